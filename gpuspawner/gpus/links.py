"""Sets of GPUs that are well connected: by NVLink, else by a short way on the PCIe bus.

A GPU knows how close it is to each other GPU of its node (`GPU.links`). Where a node doesn't tell
that, or all are equally close, GPUs are chosen by their indexes: see `allocation`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from math import comb
from typing import Literal

from .model import GPU

# How close two GPUs are: so much for each NVLink, and 1 to 6 for their way on the PCIe bus, by
# NVML's levels from "several sockets" (50) to "on one board" (0).
NVLINK = 100
_BOARD, _LEVEL = 6, 10
ONE_SWITCH = 5
# Of more sets than this not all are looked at.
MAX_SETS = 300

# UUID -> UUID of another GPU -> how close they are.
Closeness = Mapping[str, Mapping[str, int]]
Connection = Literal["nvlink", "switch", ""]


def closeness(nvlinks: int, level: int | None) -> int:
    """Return how close two GPUs are; 0 if nothing is known.

    Args:
        nvlinks: the number of NVLinks between them.
        level: NVML's level of their common ancestor on the bus, 0 to 50; None: unknown.
    """
    return NVLINK * nvlinks + (0 if level is None else _BOARD - min(level, 50) // _LEVEL)


def choose_linked(pool: Sequence[GPU], count: int) -> tuple[GPU, ...] | None:
    """Choose the GPUs that are closest to each other, and that leave the others well connected.

    Among sets that are equally close, the one that has least to do with the GPUs that stay free:
    one GPU alone leaves pairs whole. Then the first by index.

    Args:
        pool: free GPUs of one node, by index.
        count: how many to choose, from 1 to their number.

    Returns:
        The GPUs, by index; None if it makes no difference, or isn't known.
    """
    near = _closeness(pool)
    if near is None or count == len(pool):
        return None
    names = [gpu.uuid or "" for gpu in pool]
    if comb(len(names), count) <= MAX_SETS:
        sets = [list(each) for each in combinations(names, count)]
    else:
        sets = [_improved(_grown(name, names, near, count), names, near) for name in names]
    # `max` takes the first of equals.
    best = max(sets, key=lambda chosen: _value(chosen, names, near))
    return tuple(gpu for gpu in pool if gpu.uuid in set(best))


def connection(gpus: Sequence[GPU]) -> Connection:
    """Return what connects all of these GPUs with each other; "" if nothing special does."""
    pairs = [dict(one.links).get(other.uuid or "", 0) for one, other in combinations(gpus, 2)]
    if not pairs:
        return ""
    if min(pairs) >= NVLINK:
        return "nvlink"
    return "switch" if min(pairs) >= ONE_SWITCH else ""


def _closeness(pool: Sequence[GPU]) -> Closeness | None:
    """Return how close these GPUs are to each other; None if unknown, or the same for all pairs."""
    names = {gpu.uuid for gpu in pool}
    near = {
        gpu.uuid or "": {other: value for other, value in gpu.links if other in names}
        for gpu in pool
    }
    if any(len(each) < len(pool) - 1 for each in near.values()):
        return None
    values = {value for each in near.values() for value in each.values()}
    return near if len(values) > 1 else None


def _within(chosen: Sequence[str], near: Closeness) -> int:
    return sum(near[one][other] for one, other in combinations(chosen, 2))


def _value(chosen: Sequence[str], names: Sequence[str], near: Closeness) -> tuple[int, int]:
    """Return how close these are to each other, and how far from the others."""
    inside = set(chosen)
    others = [name for name in names if name not in inside]
    return _within(chosen, near), -sum(near[one][other] for one in chosen for other in others)


def _grown(first: str, names: Sequence[str], near: Closeness, count: int) -> list[str]:
    """Return a set that begins with one GPU and takes the closest of the others, one by one.

    Of equally close ones it takes the one that has the best to come with it.
    """
    chosen = [first]
    pull = {name: near[first][name] for name in names if name != first}
    while len(chosen) < count:
        most, more = max(pull.values()), count - len(chosen) - 1
        nearest = max(
            (name for name in pull if pull[name] == most),
            key=lambda name: (
                sum(sorted(near[name][each] for each in pull if each != name)[-more:])
                if more
                else 0
            ),
        )
        del pull[nearest]
        chosen.append(nearest)
        for name, value in near[nearest].items():
            if name in pull:
                pull[name] += value
    return chosen


def _improved(chosen: list[str], names: Sequence[str], near: Closeness) -> list[str]:
    """Return the set after exchanges of one GPU each, for as long as one makes it closer."""
    while exchange := _exchange(chosen, names, near):
        leaves, comes = exchange
        chosen = [name for name in chosen if name != leaves] + [comes]
    return sorted(chosen, key=names.index)


def _exchange(
    chosen: Collection[str], names: Sequence[str], near: Closeness
) -> tuple[str, str] | None:
    pull = {
        name: sum(value for other, value in near[name].items() if other in chosen) for name in names
    }
    gain, leaves, comes = max(
        (pull[other] - near[name][other] - pull[name], name, other)
        for name in chosen
        for other in names
        if other not in chosen
    )
    return (leaves, comes) if gain > 0 else None
