"""The generic resources of Docker Swarm by which its nodes offer GPUs, and services reserve them.

Each GPU, and each MIG instance, is a kind of its own. A kind of several GPUs isn't safe: after a
restart of a manager, Swarm gives the same GPU to two services. A GPU that is shared in slots is
offered as often as it has slots.

ref: https://docs.docker.com/reference/cli/dockerd/#node-generic-resources
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from ...gpus.model import GPU
from ...gpus.unit_names import UnitName, parse

# As long as a label of a domain name may be.
MAX_KIND = 63
# What kinds of ours begin with. Anybody else's are for something else.
PREFIXES = ("gpu-", "mig-")


def kind_of(uuid: str) -> str:
    """Return the kind of a GPU or of a MIG instance, by its UUID: "gpu-1b2c3d4e-…"."""
    return re.sub("[^a-z0-9-]", "-", uuid.lower())[:MAX_KIND]


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
        if gpu.uuid:
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
