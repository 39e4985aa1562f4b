"""The arguments that a container is created with: its GPUs, labels and limits.

Pure functions on the arguments of docker-py's `create_container`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import resource
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ...gpus.model import Holder
from ...leases.labels import LABEL_GPUS, LABEL_REMOVE, LABEL_SETTINGS
from .device_requests import granted_uuids, join_device_requests, refuse_device_files

# The variable that the NVIDIA Container Toolkit reads. CUDA base images ship it as "all".
VISIBLE_DEVICES = "NVIDIA_VISIBLE_DEVICES"
# Variables of an image with which NVIDIA's toolkit gives a container further devices. Those that
# rule or watch all MIG instances nobody has; of the others, those that the administrator sets.
# ref: https://github.com/NVIDIA/nvidia-container-toolkit, internal/config/image
CONTROL_DEVICES = ("NVIDIA_MIG_CONFIG_DEVICES", "NVIDIA_MIG_MONITOR_DEVICES")
OTHER_DEVICES = (
    "NVIDIA_GDRCOPY",
    "NVIDIA_GDS",
    "NVIDIA_IMEX_CHANNELS",
    "NVIDIA_MOFED",
    "NVIDIA_NVSWITCH",
)

# The folders of a server whose files outlast it, with colons between; empty: none.
KEPT = "GPUSPAWNER_KEPT"

# json-file is the default of an engine, and doesn't limit its size by default.
ROTATED = {"json-file": {"max-size": "10m", "max-file": "3"}}


def pseudonym(holder: Holder, secret: bytes) -> str:
    """Return the name of a holder's container: always the same, and not telling whose it is.

    Args:
        holder: whose it is.
        secret: without it nobody can compute the name of somebody's container.
    """
    words = json.dumps([holder.user, holder.server]).encode()
    return hmac.new(secret, words, hashlib.sha256).hexdigest()[:16]


def refused_ulimit(error: Exception | str, ulimits: Iterable[str]) -> str | None:
    """Return the name of the ulimit that the engine isn't allowed to set; None for other errors.

    A dockerd without CAP_SYS_RESOURCE can't exceed its own limits: so in many containers and small
    virtual machines.

    Args:
        error: the error of a start, or its words. runc names the limit by its number.
        ulimits: the names of the ulimits that we set.
    """
    found = re.search(r"setting rlimit type ([0-9]+)", str(error))
    numbers = {getattr(resource, f"RLIMIT_{name.upper()}", None): name for name in ulimits}
    return numbers.get(int(found[1])) if found else None


def with_lease(
    create_kwargs: Mapping[str, Any],
    *,
    labels: Mapping[str, str],
    uuids: Sequence[str],
    allowed_devices: Collection[str] = (),
    by_cdi: bool = False,
    shm_size: int | None = None,
    ulimits: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Return `create_kwargs` with a lease, which the administrator's extra arguments can't change.

    Args:
        create_kwargs: for `APIClient.create_container`; `host_config` in the API's own form.
        labels: the labels of the lease.
        uuids: the UUIDs of its GPUs; may be empty.
        allowed_devices: patterns of the names of other devices that every server may have.
        by_cdi: whether it gets the GPUs as CDI devices, and not by NVIDIA's hook.
        shm_size: the size of /dev/shm in bytes, unless the host config has one.
        ulimits: name -> value (-1: unlimited), unless the host config has them.

    Raises:
        ValueError: the administrator's arguments would give GPUs to every server, or devices
            that aren't allowed.
    """
    host_config = dict(create_kwargs.get("host_config") or {})
    refuse_device_files(host_config)
    configured = host_config.pop("DeviceRequests", None) or []
    requests = join_device_requests(configured, uuids, allowed_devices, by_cdi=by_cdi)
    if requests:
        host_config["DeviceRequests"] = requests
    if shm_size and not host_config.get("ShmSize"):
        host_config["ShmSize"] = shm_size
    host_config["Ulimits"] = _join_ulimits(host_config.get("Ulimits") or [], ulimits or {})
    environment = with_gpu_variables(create_kwargs.get("environment"), uuids)
    return {
        **create_kwargs,
        "labels": {**_as_mapping(create_kwargs.get("labels"), ""), **labels},
        "environment": environment,
        "host_config": host_config,
    }


def with_gpu_variables(environment: Any, uuids: Sequence[str]) -> dict[str, str | None]:
    """Return a container's environment with the variables that NVIDIA's toolkit reads.

    Args:
        environment: as for docker-py, a mapping or a list.
        uuids: the UUIDs of its GPUs; may be empty.
    """
    # A name without a value removes the image's variable; an empty value wouldn't.
    variables = _as_mapping(environment, None)
    # `docker exec` sees this variable, not the one that the engine adds for PID 1.
    variables[VISIBLE_DEVICES] = ",".join(uuids) or "void"
    variables |= dict.fromkeys(CONTROL_DEVICES)
    return dict.fromkeys(OTHER_DEVICES) | variables


def removed_by_hub(create_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return `create_kwargs` of a container that the hub removes after its end, not the engine.

    An engine before 24.0.8 kills what it is to remove when it is restarted, though it has
    live-restore. And a container that is gone can't say why it ended.
    ref: https://github.com/moby/moby/issues/46308

    Args:
        create_kwargs: as for `with_lease`.
    """
    return {
        **create_kwargs,
        "labels": {**_as_mapping(create_kwargs.get("labels"), ""), LABEL_REMOVE: "1"},
        "host_config": {**(create_kwargs.get("host_config") or {}), "AutoRemove": False},
    }


def with_kept_folders(create_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return `create_kwargs` with a variable that tells a server what of its files is kept.

    That is what is mounted from elsewhere and can be written. An administrator's own value stays.

    Args:
        create_kwargs: as for `with_lease`, of a container that is removed after its end.
    """
    environment = _as_mapping(create_kwargs.get("environment"), None)
    environment.setdefault(KEPT, ":".join(kept_folders(create_kwargs.get("host_config") or {})))
    return {**create_kwargs, "environment": environment}


def kept_folders(host_config: Mapping[str, Any]) -> list[str]:
    """Return the folders of a container whose files outlast it.

    Args:
        host_config: in the API's own form. A bind is "volume:/folder", or with modes after it,
            "/folder:/folder:ro,z".
    """
    binds = [(*str(each).split(":"), "", "")[:3] for each in host_config.get("Binds") or []]
    found = [path for _, path, modes in binds if "ro" not in modes.split(",")]
    for mount in host_config.get("Mounts") or []:
        if mount.get("Source") and mount.get("Type") != "tmpfs" and not mount.get("ReadOnly"):
            found.append(str(mount.get("Target")))
    return [each for each in found if each.startswith("/")]


def with_log(
    create_kwargs: Mapping[str, Any], driver: str, options: Mapping[str, str]
) -> dict[str, Any]:
    """Return `create_kwargs` with a log driver, unless the host config has one.

    Args:
        create_kwargs: as for `with_lease`.
        driver: the log driver; "" if unknown: nothing is added then.
        options: its options, which override our default rotation.
    """
    host_config = dict(create_kwargs.get("host_config") or {})
    if driver and not host_config.get("LogConfig"):
        config = {**ROTATED.get(driver, {}), **options}
        host_config["LogConfig"] = {"Type": driver, "Config": config}
    return {**create_kwargs, "host_config": host_config}


def is_kept_of_another(container: Mapping[str, Any]) -> bool:
    """Return whether another spawner made a container that stays when it is stopped.

    So does DockerSpawner's, unless its `remove` is True: users may have files in it, outside of
    volumes.

    Args:
        container: its inspection.
    """
    found = container["Config"].get("Labels") or {}
    return LABEL_GPUS not in found and not (container.get("HostConfig") or {}).get("AutoRemove")


def _as_mapping(value: Any, bare: str | None) -> dict[str, str | None]:
    """Return labels or environment, which may be a list in docker-py, as a mapping.

    Args:
        bare: the value of a name without "=".
    """
    if isinstance(value, list | tuple):
        pairs = (str(item).partition("=") for item in value)
        return {name: text if equals else bare for name, equals, text in pairs}
    return dict(value or {})


def _join_ulimits(
    configured: Sequence[Mapping[str, Any]], defaults: Mapping[str, int]
) -> list[dict[str, Any]]:
    named = {limit.get("Name") for limit in configured}
    added = [
        {"Name": name, "Soft": value, "Hard": value}
        for name, value in defaults.items()
        if name not in named
    ]
    return [*map(dict, configured), *added]


def fingerprint(create_kwargs: Mapping[str, Any]) -> str:
    """Return a hash of the arguments of a container, without those that differ at each start."""
    fresh = {"JUPYTERHUB_API_TOKEN", "JPY_API_TOKEN"}
    environment = create_kwargs.get("environment") or {}
    settings = {
        **create_kwargs,
        "environment": {name: text for name, text in environment.items() if name not in fresh},
    }
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def can_resume(container: Mapping[str, Any], plan: Mapping[str, Any], image_id: str) -> bool:
    """Return whether a stopped container can be started again in place of creating a new one.

    Only containers without GPUs can: a stopped server holds none, so others may have got them.

    Args:
        container: the container's inspection.
        plan: the arguments that a container would be created with now.
        image_id: the id of the image that it would have.
    """
    found, wanted = container["Config"].get("Labels") or {}, plan["labels"]
    return (
        not container["State"]["Running"]
        and not granted_uuids(container)
        and found.get(LABEL_GPUS) == wanted[LABEL_GPUS] == ""
        and found.get(LABEL_SETTINGS) == wanted[LABEL_SETTINGS]
        and container.get("Image") == image_id
    )
