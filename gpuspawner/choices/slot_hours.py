"""What a course's members may pick in reserved hours in which they share GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..gpus.model import GPU, SHARED, WHOLE, Node
from ..gpus.units import slots_of
from ..scheduling.reserved import ReservedTime

if TYPE_CHECKING:
    from .limits import Limits

# So long before the hours who picks nothing else waits for a slot in them, in seconds: a class
# comes before it begins.
NEAR_SECONDS = 1800.0


@dataclass(frozen=True)
class SlotHours:
    """Reserved hours in which a course's servers share GPUs.

    Args:
        slots: into how many slots each GPU is divided.
        model: the model of the GPUs; "": any.
        begin, end: from when until when, in seconds since the epoch.
        are_near: whether they have begun, or will soon.
    """

    slots: int
    model: str
    begin: float
    end: float
    are_near: bool

    def offers(self, gpu: GPU) -> bool:
        """Return whether a GPU may be among those that are shared."""
        return gpu.kind == WHOLE and bool(gpu.uuid) and self.model in ("", gpu.model)


def next_of_each(times: Iterable[ReservedTime], now: float) -> dict[str, SlotHours]:
    """Return course -> the first of its hours with slots that aren't over.

    Args:
        times: what is reserved.
        now: in seconds since the epoch.
    """
    found: dict[str, SlotHours] = {}
    for each in sorted(times, key=lambda each: each.begin):
        if each.slots and now < each.end and each.course not in found:
            near = each.begin - NEAR_SECONDS <= now
            found[each.course] = SlotHours(each.slots, each.model, each.begin, each.end, near)
    return found


def within_hours(limits: Limits, nodes: Sequence[Node]) -> tuple[Limits, tuple[Node, ...]]:
    """Return limits and nodes as who is in a course has them for its hours with slots.

    For each GPU that may be shared then there is one slot, which stands for all of them. Where GPUs
    are shared at any time, that is what "shared" means until the hours are near.

    Args:
        limits: those within the course.
        nodes: the nodes with all their units.
    """
    hours = limits.slot_hours.get(limits.course)
    there = tuple(nodes)
    of_all_day = any(gpu.kind == SHARED and gpu.ends is None for n in there for gpu in n.gpus)
    if hours is None or (of_all_day and not hours.are_near):
        return limits, there
    shared = tuple(
        replace(node, gpus=(*_others(node), *_slots(node, hours, limits.counts_units)))
        for node in there
    )
    kinds = None if limits.kinds is None else limits.kinds | {SHARED}
    usual = SHARED if hours.are_near else limits.default_kind
    return replace(limits, kinds=kinds, default_kind=usual, hours_now=hours), shared


def _others(node: Node) -> list[GPU]:
    return [gpu for gpu in node.gpus if gpu.kind != SHARED]


def _slots(node: Node, hours: SlotHours, count_as_one: bool) -> list[GPU]:
    found = [slots_of(gpu, hours.slots, hours.end)[0] for gpu in node.gpus if hours.offers(gpu)]
    return [replace(slot, share=1) for slot in found] if count_as_one else found
