"""The generic resources of Docker Swarm by which its nodes offer GPUs, and services reserve them.

Each GPU, and each MIG instance, is a kind of its own. A kind of several GPUs isn't safe: after a
restart of a manager, Swarm gives the same GPU to two services. A GPU that is shared in slots is
offered as often as it has slots.

ref: https://docs.docker.com/reference/cli/dockerd/#node-generic-resources
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping

from ..gpus.model import GPU
from ..gpus.unit_names import UnitName, parse

# What kinds of ours begin with. Anybody else's are for something else.
PREFIXES = ("gpu-", "mig-")
# As long as a label of a domain name may be.
MAX_KIND = 63

_HEX = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_UUID = re.compile(rf"(gpu|mig)-({_HEX})")
# A MIG instance by drivers before 470: the GPU, the GPU instance's id, the compute instance's.
_OLD_INSTANCE = re.compile(rf"mig-gpu-({_HEX})[/-]([0-9]{{1,3}})[/-]([0-9]{{1,3}})")


def kind_of(uuid: str) -> str:
    """Return the kind of a GPU or of a MIG instance, by its UUID: "gpu-1b2c3d4e-…".

    It can be a label of a domain name. No two UUIDs have the same kind, and that of any form that
    a driver writes can be read back by `uuid_of`; "-" isn't lost as other characters would be.
    """
    low = uuid.lower()
    if _UUID.fullmatch(low):
        return low
    if _OLD_INSTANCE.fullmatch(low):
        return low.replace("/", "-")
    digest = hashlib.sha256(low.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    start = re.sub("[^a-z0-9-]", "-", low)
    if not start.startswith(PREFIXES):
        start = f"gpu-{start}"
    return f"{start[: MAX_KIND - len(digest) - 1]}-{digest}"


def uuid_of(kind: str) -> str | None:
    """Return the UUID that `kind_of` has made a kind of; None if it isn't in a driver's form."""
    if found := _UUID.fullmatch(kind):
        return f"{found[1].upper()}-{found[2]}"
    if found := _OLD_INSTANCE.fullmatch(kind):
        return f"MIG-GPU-{found[1]}/{found[2]}/{found[3]}"
    return None


def is_kind(kind: str) -> bool:
    """Return whether a kind of generic resources is that of a GPU or of a MIG instance."""
    return kind.startswith(PREFIXES)


def offers(gpus: Iterable[GPU]) -> dict[str, int]:
    """Return kind -> how many of it a node with these units offers.

    A GPU in MIG mode is offered beside its instances, as the mode may change while its engine runs,
    which reads what it offers at its start only.
    """
    found: dict[str, int] = {}
    for gpu in gpus:
        if not gpu.uuid:
            continue
        if gpu.parent:
            found.setdefault(kind_of(gpu.parent), 1)
        kind = kind_of(gpu.uuid)
        found[kind] = max(found.get(kind, 1), 1 if gpu.parent else gpu.parts)
    return found


def as_words(offered: Mapping[str, int]) -> list[str]:
    """Return what daemon.json's `node-generic-resources` is for kind -> number."""
    return [f"{kind}={number}" for kind, number in sorted(offered.items())]


def reservations(units: Iterable[str], offered: Mapping[str, int]) -> dict[str, int]:
    """Return kind -> how many of it a service reserves for units.

    A whole GPU, or a MIG instance, is all that its node offers of the kind, and a slot its part of
    that, rounded up: however many slots two hubs make of a GPU, not more than the whole is given.

    Args:
        units: their names.
        offered: kind -> how many of it their node offers.

    Raises:
        ValueError: the node doesn't offer one of them.
    """
    wanted: dict[str, int] = {}
    for name in map(parse, units):
        kind = kind_of(name.uuid)
        if not offered.get(kind):
            raise ValueError(name.uuid)
        wanted[kind] = min(offered[kind], wanted.get(kind, 0) + _amount(name, offered[kind]))
    return wanted


def _amount(name: UnitName, offered: int) -> int:
    return offered if name.slot is None else math.ceil(offered / name.of)
