"""The way in which containers are given their GPUs: by CDI, or by NVIDIA's hook.

With CDI, the Container Device Interface, the engine itself adds what a specification says of a
device. With the hook NVIDIA's toolkit does, which the engine calls at each start.

ref: https://docs.docker.com/reference/cli/dockerd/#enable-cdi-devices
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ...errors import GPUSpawnerError, StartAgain
from ...i18n.lazy_text import lazy_gettext
from .device_requests import cdi_name

Way = Literal["cdi", "hook"]
# The values of the trait.
WAYS = ("auto", "cdi", "hook")

# The first engine that knows CDI at all. Up to 28.1 it has to be turned on.
FIRST_WITH_CDI = 25
# The first version of the engine's API that lists the devices: Docker Engine 28.2.
LISTS_DEVICES = (1, 50)

GENERATE = "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"


@dataclass(frozen=True)
class EngineCDI:
    """What an engine says of CDI.

    Args:
        is_on: whether it knows CDI; None: it doesn't say.
        devices: the names of the devices that it knows; None: it doesn't list them.
    """

    is_on: bool | None = None
    devices: frozenset[str] | None = None

    def lacks(self, uuids: Collection[str]) -> list[str]:
        """Return the names of GPUs that it doesn't list, sorted."""
        return sorted({cdi_name(uuid) for uuid in uuids} - (self.devices or frozenset()))


class NoCDI(GPUSpawnerError):
    """The trait asks for CDI, and the engine can't give these GPUs by it.

    `str()` is a sentence for users.
    """


class InjectionChanged(StartAgain):
    """The engine gives GPUs in another way by now than when the container was created."""


def cdi_of(info: Mapping[str, Any], api_version: str) -> EngineCDI:
    """Return what an engine's `GET /info` says of CDI.

    Args:
        info: the answer.
        api_version: the version of the API that was asked, as "1.41".
    """
    listed = info.get("DiscoveredDevices")
    # Without any device, the answer has no such key.
    lists = listed is not None or _numbers(api_version) >= LISTS_DEVICES
    names = frozenset(str(each.get("ID", "")) for each in listed or [] if _is_cdi(each))
    if "CDISpecDirs" in info:
        is_on: bool | None = bool(info["CDISpecDirs"])
    else:
        version = _numbers(str(info.get("ServerVersion") or ""))
        is_on = False if version and version[0] < FIRST_WITH_CDI else None
    return EngineCDI(True if names else is_on, names if lists else None)


def choose(wanted: str, engine: EngineCDI, uuids: Collection[str]) -> Way:
    """Return the way in which a container is to be given GPUs.

    Args:
        wanted: the trait's value, one of `WAYS`.
        engine: what the engine says.
        uuids: the UUIDs of the GPUs.

    Raises:
        NoCDI: only CDI is wanted, and the engine can't give these GPUs by it.
    """
    if wanted == "hook" or not uuids:
        return "hook"
    lacks = engine.lacks(uuids)
    if wanted == "auto":
        return "hook" if lacks else "cdi"
    if engine.is_on is False:
        raise NoCDI(knows_no_cdi())
    if engine.devices is not None and lacks:
        raise NoCDI(
            lazy_gettext(
                "Servers are to get their GPUs by CDI (c.GPUSpawner.gpu_injection), and the Docker "
                "Engine of the GPU machine has no device %(name)s. An administrator can make it: "
                "%(command)s",
                name=lacks[0],
                command=GENERATE,
            )
        )
    return "cdi"


def knows_no_cdi() -> str:
    """Return what a user reads where the engine doesn't know CDI at all."""
    return lazy_gettext(
        "The Docker Engine of the GPU machine knows no CDI, by which servers are to get their "
        "GPUs. An administrator can turn it on, from Docker 25 on, or change "
        "c.GPUSpawner.gpu_injection."
    )


def _is_cdi(device: Mapping[str, Any]) -> bool:
    return device.get("Source", "cdi") == "cdi"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))
