"""Hours that are reserved for a course: so many units of a kind, whichever they are.

In a plan they are holds: units that are kept, each on a GPU of the plan's choice, which may be
another one in the next plan. Who isn't in the course is booked around them.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from ..gpus.model import GPU, WHOLE, Lease
from ..gpus.unit_names import parse
from .node_calendar import NodeCalendar, free_from
from .placement import Search, Want, could_be

# How far ahead a plan looks at least, in seconds.
HORIZON_SECONDS = 7 * 24 * 3600.0


@dataclass(frozen=True)
class ReservedTime:
    """Units that are reserved for a course's servers, in seconds since the epoch.

    Args:
        course: its key.
        begin, end: from when until when.
        gpus: how many units.
        kind: their kind (`GPU.kind`).
        model: their GPU model; "": any.
        unclaimed_seconds: how long after the begin what nobody of the course has is free for all.
        slots: into how many slots each unit is divided for its servers; 0: they get them whole.
    """

    course: str
    begin: float
    end: float
    gpus: int
    kind: str = WHOLE
    model: str = ""
    unclaimed_seconds: float = inf
    slots: int = 0

    def takes(self, gpu: GPU) -> bool:
        """Return whether a unit is one of those that it may be about."""
        return self.kind == gpu.kind and self.model in ("", gpu.model)

    def is_kept(self, now: float) -> bool:
        """Return whether it is kept for the course's members still, or will be."""
        return now < min(self.end, self.begin + self.unclaimed_seconds)

    def is_ahead(self, now: float) -> bool:
        """Return whether a plan has to look at it: it is kept still, or servers share its GPUs."""
        # A GPU of which one has a slot is nobody else's anyhow.
        return now < self.end if self.slots else self.is_kept(now)


@dataclass(frozen=True)
class Hold:
    """A unit that a plan keeps for a course, from `begin` until `end`, in seconds.

    `slots`: as for `ReservedTime`.
    """

    course: str
    gpu: GPU
    begin: float
    end: float
    slots: int = 0

    def overlaps(self, begin: float, end: float) -> bool:
        """Return whether a time has a moment of it."""
        return self.begin < end and begin < self.end

    def without(self, begin: float, end: float) -> list[Hold]:
        """Return what is left of it without a time."""
        left = [(self.begin, min(begin, self.end)), (max(end, self.begin), self.end)]
        return [replace(self, begin=a, end=b) for a, b in left if a < b]


@dataclass(frozen=True)
class Missing:
    """What was reserved and can't be kept: so many units of it, as things are."""

    reserved: ReservedTime
    gpus: int


@dataclass(frozen=True)
class SharedPlace:
    """A GPU whose slots the servers of a course have from `begin` until the hours' end."""

    reserved: ReservedTime
    gpu: GPU
    begin: float


@dataclass(frozen=True)
class Placement:
    """What a plan gives reserved hours: holds, GPUs to share, and what there is no unit for."""

    holds: list[Hold]
    shared: list[SharedPlace]
    missing: list[Missing]


def ahead(reserved: Iterable[ReservedTime], now: float, longest: float = 0.0) -> list[ReservedTime]:
    """Return what a plan has to look at: what is kept still, and begins early enough.

    Args:
        reserved: all of it.
        now: in seconds.
        longest: for how long somebody may ask, in seconds.
    """
    horizon = now + max(HORIZON_SECONDS, 2 * longest if longest < inf else 0.0)
    return sorted(
        (each for each in reserved if each.is_ahead(now) and each.begin < horizon),
        key=_order,
    )


def place(
    reserved: Sequence[ReservedTime],
    nodes: Mapping[str, NodeCalendar],
    leases: Sequence[Lease],
    now: float,
) -> Placement:
    """Place what is reserved on the units of a plan in which nothing is booked yet.

    What begins earlier is placed first. All units that are free at its begin are equally good for
    what begins later, so a placement is found where there is one, but that a model may be asked
    for: units that nothing else names come first. Of these, those that become free last, which is
    best for who isn't in the course; then those of a node that has holds already. Where that leaves
    too few for something and models are named, all other ways are tried.

    Args:
        reserved: as `ahead` returns it.
        nodes: the calendars, in which the holds are booked.
        leases: the leases; those of the course's servers are what it has of its hours.
        now: in seconds.
    """
    named = Counter(each.model for each in reserved if each.model)
    of_course = _units_of_courses(nodes, leases, now)
    holds: list[Hold] = []
    shared: list[SharedPlace] = []
    given: list[_Given] = []
    held_on: Counter[str] = Counter()
    for each in reserved:
        begin = max(each.begin, now)
        claimed, places = _claimed(each, begin, of_course, nodes)
        need = each.gpus - len(claimed) if each.is_kept(now) else 0
        free_then = _free_at(each, begin, nodes) if need > 0 else []
        free_then.sort(
            key=lambda one: (
                (0 if each.model else named[one[1].model], -one[0], -held_on[one[1].node])
            )
        )
        given.append(_Given(each, begin, need, [gpu for _, gpu in free_then[:need]]))
        for gpu, since in [*places, *((gpu, begin) for gpu in given[-1].gpus)]:
            nodes[gpu.node].take([gpu], since, each.end)
            held_on[gpu.node] += 1
        holds += [Hold(each.course, gpu, since, each.end, each.slots) for gpu, since in places]
        if each.slots:
            # Of a GPU that is somebody else's before the hours end nobody new gets a slot.
            kept = {gpu.id for gpu, _ in places}
            shared += [
                SharedPlace(each, gpu, begin)
                for free, gpu in claimed
                if free >= each.end or gpu.id in kept
            ]
    if named and any(each.missing for each in given):
        given = _tried_otherwise(given, nodes)
    holds += [hold for one in given for hold in one.holds()]
    for one in given:
        if one.reserved.slots:
            shared += [SharedPlace(one.reserved, gpu, one.begin) for gpu in one.gpus]
    missing = [Missing(one.reserved, one.missing) for one in given if one.missing]
    return Placement(holds, shared, missing)


def _claimed(
    reserved: ReservedTime,
    begin: float,
    of_course: Mapping[tuple[str, int], Sequence[tuple[float, GPU]]],
    nodes: Mapping[str, NodeCalendar],
) -> tuple[list[tuple[float, GPU]], list[tuple[GPU, float]]]:
    """Return (free again, unit) of what a course's servers have of its hours.

    And (unit, since when) of what is to be kept of it for others of the course until these end.
    """
    claimed = [
        (free, gpu)
        for free, gpu in of_course.get((reserved.course, reserved.slots), ())
        if free > begin and reserved.takes(gpu)
    ]
    claimed.sort(key=lambda one: one[0], reverse=True)
    claimed = claimed[: reserved.gpus]
    places = [
        (gpu, free)
        for free, gpu in claimed
        if free < reserved.end and nodes[gpu.node].is_free(gpu, free, reserved.end - free)
    ]
    return claimed, places


@dataclass(frozen=True)
class _Given:
    """The units that a placement gives reserved hours, beside those of the course's servers.

    Args:
        reserved: the hours.
        begin: from when, in seconds.
        need: how many they need.
        gpus: the units.
    """

    reserved: ReservedTime
    begin: float
    need: int
    gpus: Sequence[GPU]

    @property
    def missing(self) -> int:
        """How many there are too few."""
        return max(0, self.need - len(self.gpus))

    def holds(self) -> list[Hold]:
        """Return the units as holds."""
        of = self.reserved
        return [Hold(of.course, gpu, self.begin, of.end, of.slots) for gpu in self.gpus]


def _units_of_courses(
    nodes: Mapping[str, NodeCalendar], leases: Sequence[Lease], now: float
) -> dict[tuple[str, int], list[tuple[float, GPU]]]:
    """Return the units of each course's servers, each with when it is free again.

    Returns:
        (course, 0) -> its units; (course, n) -> the GPUs of which its servers have n-th parts for
        its hours, as far as these can be handed out.
    """
    units = {gpu.id: gpu for node in nodes.values() for gpu in node.gpus if gpu.id}
    found: dict[tuple[str, int], list[tuple[float, GPU]]] = {}
    # (course, n), GPU -> when the last of them is free.
    last: dict[tuple[tuple[str, int], str], float] = {}
    for lease in leases:
        if not lease.course:
            continue
        free = free_from(lease.until, now)
        for name in sorted(lease.gpus):
            if name in units:
                found.setdefault((lease.course, 0), []).append((free, units[name]))
            elif (part := parse(name)).slot is not None and part.uuid in units:
                key = (lease.course, part.of), part.uuid
                last[key] = max(free, last.get(key, free))
    for (shared, uuid), free in last.items():
        if units[uuid].state in ("free", "leased"):
            found.setdefault(shared, []).append((free, units[uuid]))
    return found


def _tried_otherwise(given: list[_Given], nodes: Mapping[str, NodeCalendar]) -> list[_Given]:
    """Return a placement in which nothing is missing that needn't be, as far as one is found."""
    found = {id(each): each for each in given}
    seen: set[int] = set()
    for each in given:
        if not each.missing or id(each) in seen:
            continue
        together = _beside(each, [one for one in given if one.need > 0])
        seen |= {id(one) for one in together}
        if not any(one.reserved.model for one in together):
            continue
        for hold in (hold for one in together for hold in one.holds()):
            nodes[hold.gpu.node].release(hold.gpu, hold.begin, hold.end)
        wants = [_want(one, nodes) for one in together]
        ways = Search(wants, nodes).find() if could_be(wants, nodes) else None
        if ways is None:
            for hold in (hold for one in together for hold in one.holds()):
                nodes[hold.gpu.node].take([hold.gpu], hold.begin, hold.end)
        else:
            found |= {
                id(one): replace(one, gpus=gpus) for one, gpus in zip(together, ways, strict=True)
            }
    return [found[id(each)] for each in given]


def _beside(each: _Given, others: Sequence[_Given]) -> list[_Given]:
    """Return what has to be placed together: what overlaps, what overlaps that, and so on."""
    begin, end, together = each.begin, each.reserved.end, 0
    while True:
        found = [
            one
            for one in others
            if one.reserved.kind == each.reserved.kind
            and one.begin < end
            and begin < one.reserved.end
        ]
        if len(found) == together:
            return found
        together = len(found)
        begin = min(one.begin for one in found)
        end = max(one.reserved.end for one in found)


def _want(given: _Given, nodes: Mapping[str, NodeCalendar]) -> Want:
    reserved = given.reserved
    among = [
        gpu for node in nodes.values() for gpu in node.gpus if gpu.uuid and reserved.takes(gpu)
    ]
    return Want(given.begin, reserved.end, given.need, among, reserved.model)


def _free_at(
    reserved: ReservedTime, begin: float, nodes: Mapping[str, NodeCalendar]
) -> list[tuple[float, GPU]]:
    """Return (since when it is free, unit) of the units that are free for reserved hours."""
    found = []
    for node in nodes.values():
        for gpu in node.gpus:
            if gpu.uuid and reserved.takes(gpu):
                since = node.free_since(gpu, begin, reserved.end - begin)
                if since is not None:
                    found.append((since, gpu))
    return found


def admitted(
    reserved: Sequence[ReservedTime], gpus: Sequence[GPU], before: Sequence[ReservedTime] = ()
) -> tuple[list[ReservedTime], list[Missing]]:
    """Return what the units that there are would do for, and what is beyond them.

    Args:
        reserved: in the order of precedence; what comes later is refused first.
        gpus: every unit of every node. What is excluded doesn't count; what is leased, ill or
            used by others does, as it may be free by then.
        before: what has been admitted with these units, and takes precedence over all of it.

    Returns:
        What of `reserved` can be promised, and what can't, with how many units there are too few.
    """
    kept: list[ReservedTime] = []
    refused: list[Missing] = []
    usable = [gpu for gpu in gpus if gpu.uuid and gpu.state not in ("excluded", "mig")]
    units = Counter(gpu.kind for gpu in usable)
    known = _ByBegin(before)
    for each in reserved:
        together = known.together_with(each)
        of_kind = [one for one in together if one.kind == each.kind]
        # A year of a faculty's lessons would take minutes, were all of them placed.
        are_plain = not any(one.model for one in of_kind)
        beside = [one for one in of_kind if one.begin < each.end and each.begin < one.end]
        if are_plain and sum(one.gpus for one in beside) <= units[each.kind]:
            missing: list[Missing] = []
        else:
            now = together[0].begin
            nodes: dict[str, NodeCalendar] = {}
            for gpu in usable:
                node = nodes.setdefault(gpu.node, NodeCalendar(gpu.node, now))
                node.add(replace(gpu, state="free"))
            missing = place(together, nodes, (), now).missing
        if missing:
            refused.append(Missing(each, sum(one.gpus for one in missing)))
        else:
            kept.append(each)
            known.add(each)
    return kept, refused


class _ByBegin:
    """Reserved times, which can be asked which of them overlap another one."""

    def __init__(self, reserved: Iterable[ReservedTime]) -> None:
        self._times = sorted(reserved, key=_begin)
        self._longest = max((each.end - each.begin for each in self._times), default=0.0)

    def add(self, reserved: ReservedTime) -> None:
        insort(self._times, reserved, key=_begin)
        self._longest = max(self._longest, reserved.end - reserved.begin)

    def together_with(self, reserved: ReservedTime) -> list[ReservedTime]:
        """Return what has to be placed together with it, in that order: no plan looks further."""
        begin, end = reserved.begin, reserved.end
        earliest, latest = begin - HORIZON_SECONDS, end + HORIZON_SECONDS
        found: list[ReservedTime] = []
        while True:
            first = bisect_left(self._times, max(begin - self._longest, earliest), key=_begin)
            last = bisect_left(self._times, min(end, latest), key=_begin)
            more = [each for each in self._times[first:last] if begin < each.end]
            if len(more) == len(found):
                return sorted([*found, reserved], key=_order)
            found = more
            begin = min(begin, *(each.begin for each in found))
            end = max(end, *(each.end for each in found))


def _begin(reserved: ReservedTime) -> float:
    return reserved.begin


def _order(reserved: ReservedTime) -> tuple[float, bool, float, str]:
    """Return the order in which what is reserved is placed."""
    # Who names a model has less to choose from.
    return reserved.begin, not reserved.model, reserved.end, reserved.course
