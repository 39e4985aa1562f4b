"""The device requests of a container: the lease's GPUs, and the administrator's other devices."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

# With any of these capabilities, the engine gives a request without a driver to NVIDIA's.
# ref: nvidia_linux.go in moby's daemon/
GPU_CAPABILITIES = frozenset(
    {"gpu", "nvidia", "compute", "compat32", "graphics", "utility", "video", "display"}
)

# A CDI name of a GPU or of a part of one: "nvidia.com/gpu=0", "runtime.nvidia.com/gpu=all",
# "nvidia.com/mig=0:1". An engine takes them with any driver, or with none.
GPU_NAME = re.compile(r"([\w.-]+\.)?nvidia\.com/(gpu|mig)=", re.IGNORECASE)
# CDI's kind of GPUs and MIG instances that servers are given, by their UUIDs.
GPU_KIND = "nvidia.com/gpu"
# A CDI name whose device is a GPU or a MIG instance by its UUID, which is the group "uuid".
UUID_NAME = re.compile(r"([\w.-]+\.)?nvidia\.com/gpu=(?P<uuid>(GPU|MIG)-.+)", re.IGNORECASE)
# Annotations by which NVIDIA's runtime gives a container CDI devices.
CDI_ANNOTATION = re.compile(r"(cdi\.|nvidia\.cdi\.)", re.IGNORECASE)
# A GPU's own device file, a MIG instance's, or the folder with all of them.
DEVICE_FILE = re.compile(r"/dev/nvidia[0-9]+|/dev/nvidia-caps(/.*)?|/dev/?")
# A rule of the devices' control group that lets a container make them itself.
DEVICE_RULE = re.compile(r"[ac] +(\*|195):.*")


def join_device_requests(
    configured: Sequence[Mapping[str, Any]],
    uuids: Sequence[str],
    allowed: Collection[str] = (),
    *,
    by_cdi: bool = False,
) -> list[dict[str, Any]]:
    """Join the administrator's device requests with the lease's GPUs.

    Those for GPUs are merged with the lease's, since the runtime's hook runs once per request:
    their capabilities and options are kept, a count ("all of them") is replaced by the leased GPUs.
    CDI has neither capabilities nor options: a device is what its specification says.
    Of others only those are kept that name nothing but allowed devices: engines have more and more
    names for a GPU, and this list of them would never be complete.

    Args:
        configured: the administrator's requests.
        uuids: the UUIDs of the lease's GPUs; may be empty.
        allowed: patterns of the names of devices that every server may have.
        by_cdi: name the GPUs as CDI devices, in place of a request for NVIDIA's hook.

    Raises:
        ValueError: a request names GPUs by their ids, so that every server would get them; or
            devices that aren't allowed.
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
            if not_allowed := names_beyond(request, allowed):
                raise ValueError(
                    f"extra_host_config: device_requests asks for {not_allowed}. If every server "
                    "may have it, add it to c.GPUSpawner.allowed_devices."
                )
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
    if by_cdi:
        names = [cdi_name(uuid) for uuid in uuids]
        ours = {"Driver": "cdi", "Count": 0, "DeviceIDs": names, "Capabilities": [], "Options": {}}
    return [*others, ours] if uuids else others


def cdi_name(uuid: str) -> str:
    """Return the CDI name of a GPU or MIG instance, as `nvidia-ctk cdi generate` gives it."""
    return f"{GPU_KIND}={uuid}"


def names_beyond(request: Mapping[str, Any], allowed: Collection[str]) -> str:
    """Return what a device request asks for that isn't allowed; "" if all of it is.

    Args:
        request: one that isn't for NVIDIA's GPUs.
        allowed: as for `join_device_requests`.
    """
    names = [str(name) for name in request.get("DeviceIDs") or []]
    beyond = [name for name in names if not any(fnmatchcase(name, each) for each in allowed)]
    if names and not request.get("Count"):
        return ", ".join(beyond)
    words = [str(word) for words in request.get("Capabilities") or [] for word in words]
    return f"devices of {request.get('Driver') or ' '.join(words) or 'any driver'} without names"


def refuse_device_files(host_config: Mapping[str, Any]) -> None:
    """Refuse a host config that gives GPUs to every server by their device files.

    Raises:
        ValueError: it does; `str()` names the line of the trait.
    """
    for device in host_config.get("Devices") or []:
        path = device.get("PathOnHost") if isinstance(device, Mapping) else device
        if DEVICE_FILE.fullmatch(str(path or "").partition(":")[0]):
            raise ValueError(
                f"extra_host_config: devices has {path}, which would give every server a GPU that "
                "somebody else may hold. Remove that line: leases give the devices."
            )
    for name in host_config.get("Annotations") or {}:
        if CDI_ANNOTATION.match(str(name)):
            raise ValueError(
                f"extra_host_config: annotations has {str(name)!r}, with which NVIDIA's runtime "
                "gives every server the same devices. Remove that line: leases give the devices."
            )
    for rule in host_config.get("DeviceCgroupRules") or []:
        if DEVICE_RULE.fullmatch(str(rule)):
            raise ValueError(
                f"extra_host_config: device_cgroup_rules has {str(rule)!r}, with which every "
                "server could use all GPUs. Remove that line: leases give the devices."
            )


def asks_for_gpus(request: Mapping[str, Any]) -> bool:
    """Return whether a device request is for NVIDIA GPUs, by capability, driver or CDI name."""
    words = [word for words in request.get("Capabilities") or [] for word in words]
    if any(GPU_NAME.match(str(name)) for name in request.get("DeviceIDs") or []):
        return True
    driver = request.get("Driver") or ""
    # Newer engines have "nvidia.cdi" and "nvidia.runtime-hook" as well.
    return driver.startswith("nvidia") or (not driver and not GPU_CAPABILITIES.isdisjoint(words))


def granted_uuids(container: Mapping[str, Any]) -> list[str]:
    """Return the UUIDs of the GPUs that a container has, from its inspection.

    By CDI or by NVIDIA's hook. What isn't a UUID is no GPU of a lease, and stays as it is. The
    device requests decide, not the variable in its environment.
    """
    requests = (container.get("HostConfig") or {}).get("DeviceRequests") or []
    return [uuid for request in requests if asks_for_gpus(request) for uuid in _device_ids(request)]


def are_by_cdi(container: Mapping[str, Any]) -> bool:
    """Return whether a container was given its GPUs by CDI, from its inspection."""
    requests = (container.get("HostConfig") or {}).get("DeviceRequests") or []
    return any(asks_for_gpus(each) and each.get("Driver") == "cdi" for each in requests)


def _device_ids(request: Mapping[str, Any]) -> list[str]:
    if request.get("Count"):
        return [f"count={request['Count']}"]
    names = map(str, request.get("DeviceIDs") or [])
    return [found["uuid"] if (found := UUID_NAME.fullmatch(name)) else name for name in names]
