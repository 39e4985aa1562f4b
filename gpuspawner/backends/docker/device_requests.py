"""The device requests of a container: the lease's GPUs, and the administrator's other devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# With any of these capabilities, the engine gives a request without a driver to NVIDIA's.
# ref: nvidia_linux.go in moby's daemon/
GPU_CAPABILITIES = frozenset(
    {"gpu", "nvidia", "compute", "compat32", "graphics", "utility", "video", "display"}
)


def join_device_requests(
    configured: Sequence[Mapping[str, Any]], uuids: Sequence[str]
) -> list[dict[str, Any]]:
    """Join the administrator's device requests with the lease's GPUs.

    Requests for other devices are kept. Those for GPUs are merged with the lease's, since the
    runtime's hook runs once per request: their capabilities and options are kept, a count ("all of
    them") is replaced by the leased GPUs.

    Raises:
        ValueError: a request names GPUs by their ids, so that every server would get them.
    """
    ours: dict[str, Any] = {
        "Driver": "nvidia",
        "Count": 0,
        "DeviceIDs": list(uuids),
        "Capabilities": [["gpu"]],
        "Options": {},
    }
    others: list[dict[str, Any]] = []
    for request in configured:
        if not asks_for_gpus(request):
            others.append(dict(request))
            continue
        if request.get("DeviceIDs"):
            raise ValueError(
                f"extra_host_config: device_requests names GPUs itself ({request['DeviceIDs']}), "
                "which would give them to everybody. Remove that line, and list GPUs that must "
                "not be handed out in c.GPUSpawner.excluded_gpus."
            )
        more = [word for words in request.get("Capabilities") or [] for word in words]
        ours["Capabilities"] = [list(dict.fromkeys(ours["Capabilities"][0] + more))]
        ours["Options"] |= request.get("Options") or {}
    return [*others, ours] if uuids else others


def asks_for_gpus(request: Mapping[str, Any]) -> bool:
    """Return whether a device request is for NVIDIA GPUs, by capability, driver or CDI name."""
    words = [word for words in request.get("Capabilities") or [] for word in words]
    ids = request.get("DeviceIDs") or []
    # CDI names, for any driver: "nvidia.com/gpu=0" and "runtime.nvidia.com/gpu=0".
    if any("nvidia.com/gpu" in str(name) for name in ids):
        return True
    driver = request.get("Driver") or ""
    # Newer engines have "nvidia.cdi" and "nvidia.runtime-hook" as well.
    return driver.startswith("nvidia") or (not driver and not GPU_CAPABILITIES.isdisjoint(words))


def granted_uuids(container: Mapping[str, Any]) -> list[str]:
    """Return the UUIDs of the GPUs that a container has, from its inspection.

    The device requests decide, not the variable in its environment.
    """
    requests = (container.get("HostConfig") or {}).get("DeviceRequests") or []
    return [uuid for request in requests if asks_for_gpus(request) for uuid in _device_ids(request)]


def _device_ids(request: Mapping[str, Any]) -> list[str]:
    if request.get("Count"):
        return [f"count={request['Count']}"]
    return list(request.get("DeviceIDs") or [])
