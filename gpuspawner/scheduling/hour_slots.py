"""The slots in which a course's servers share GPUs in its reserved hours, and who has them when.

The hours hold whole GPUs; only which slot of them is whose is decided here. A slot ends with its
hours, so a server that asks for longer ends then, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from ..gpus.model import GPU, Lease, Request
from ..gpus.unit_names import UnitName, parse
from ..gpus.units import slots_of
from .node_calendar import Gap, free_from
from .reserved import SharedPlace

# Nobody is sent into hours that are over when their server has started, in seconds.
SHORTEST_SECONDS = 60.0


@dataclass
class Slot:
    """A slot, with when it is free; its gaps are sorted."""

    unit: GPU
    end: float
    gaps: list[Gap] = field(default_factory=list)

    def first_free(self, seconds: float, after: float) -> float:
        """Return the first time at or after `after` at which it is free for so long.

        Infinite if it never is. Less will do where its hours end before.
        """
        for begin, end in self.gaps:
            start = max(begin, after)
            if start + min(SHORTEST_SECONDS, seconds) > self.end:
                break
            if min(start + seconds, self.end) <= end:
                return start
        return inf

    def until(self, start: float, seconds: float) -> float:
        """Return when a server ends that has it from `start` on and asks for `seconds`."""
        return min(start + seconds, self.end)

    def take(self, start: float, until: float) -> None:
        """Book it."""
        self.gaps = [
            gap
            for begin, end in self.gaps
            for gap in ((begin, min(end, start)), (max(begin, until), end))
            if gap[0] < gap[1]
        ]


class SharedGPU:
    """The slots of a GPU that is shared in some hours.

    Args:
        place: the GPU and the hours.
        held: what is held of the GPU, and when each is free again.
    """

    def __init__(self, place: SharedPlace, held: Sequence[tuple[UnitName, float]]) -> None:
        self.begin, end = place.begin, place.reserved.end
        self.node, self.slots = place.gpu.node, []
        gpu = replace(place.gpu, state="free", reason="", holder=None, until=None)
        for unit in slots_of(gpu, place.reserved.slots, end):
            name = unit.name
            assert name is not None, "it was placed by its name"
            free = max((free for other, free in held if name.excludes(other)), default=self.begin)
            begin = max(self.begin, free)
            self.slots.append(Slot(unit, end, [(begin, end)] if begin < end else []))
        # (length, after) -> the earliest start, and the slots that are free then. Most of those who
        # wait ask for the same.
        self._known: dict[tuple[float, float], tuple[float, list[Slot]]] = {}

    def earliest(self, seconds: float, after: float) -> tuple[float, list[Slot]]:
        """Return the earliest start at or after `after`, and the slots that are free then."""
        key = seconds, max(after, self.begin)
        if key not in self._known:
            firsts = [(slot.first_free(*key), slot) for slot in self.slots]
            start = min(first for first, _ in firsts)
            self._known[key] = start, [slot for first, slot in firsts if first == start]
        return self._known[key]

    def take(self, unit: GPU, start: float, until: float) -> None:
        """Book a slot of it."""
        self._known.clear()
        self.slots[unit.part or 0].take(start, until)


class SlotCalendar:
    """When each slot is free.

    Args:
        places: the GPUs that are shared, each for some hours.
        leases: the leases on all GPUs.
        now: in seconds.
        policy: a key of `allocation.POLICIES`.
    """

    def __init__(
        self, places: Iterable[SharedPlace], leases: Sequence[Lease], now: float, policy: str
    ) -> None:
        self._places: dict[tuple[str, int], list[SharedPlace]] = {}
        for place in places:
            key = place.reserved.course, place.reserved.slots
            self._places.setdefault(key, []).append(place)
        for of_course in self._places.values():
            of_course.sort(key=lambda place: place.begin)
        self._leases = leases
        self._now = now
        self._policy = policy
        # They are many, and made for those places alone at which somebody looks.
        self._gpus: dict[int, SharedGPU] = {}
        self._held: dict[str, list[tuple[UnitName, float]]] | None = None

    def is_possible(self, request: Request) -> bool:
        """Return whether a request could have a slot if nobody had one."""
        return any(request.takes(self._at(place).slots[0].unit) for place in self._of(request))

    def begin_of(self, request: Request) -> float:
        """Return when the first hours begin that a request may be for; infinite: never."""
        return min((place.begin for place in self._of(request)), default=inf)

    def find(
        self,
        request: Request,
        seconds: float,
        after: float,
        allowed: Callable[[float, float], float],
    ) -> tuple[float, Slot | None]:
        """Return the earliest start of a request at or after `after`, and its slot.

        Args:
            request: the request.
            seconds: for how long it asks.
            after: in seconds.
            allowed: takes a start and a length; returns the first time from then on at which limits
                allow it.
        """
        while True:
            start, found = self._earliest(request, seconds, after)
            if start == inf:
                return inf, None
            length = min(seconds, *(slots[0].end - start for _, slots in found))
            after = allowed(start, length)
            if after == start:
                return start, self._best(request, found)
            if after == inf:
                return inf, None

    def take(self, unit: GPU, start: float, until: float, request: Request) -> None:
        """Book a slot that was found."""
        for place in self._of(request):
            if place.gpu.uuid == unit.uuid and place.begin <= start < place.reserved.end:
                self._at(place).take(unit, start, until)

    def _earliest(
        self, request: Request, seconds: float, after: float
    ) -> tuple[float, list[tuple[SharedGPU, list[Slot]]]]:
        """Return the earliest start, and the GPUs that have slots then, with these slots."""
        start = inf
        found: list[tuple[SharedGPU, list[Slot]]] = []
        for place in self._of(request):
            if place.begin > start:
                break
            gpu = self._at(place)
            first, slots = gpu.earliest(seconds, after)
            if first == inf or first > start or not request.takes(slots[0].unit):
                continue
            found = [*found, (gpu, slots)] if first == start else [(gpu, slots)]
            start = first
        return start, found

    def _best(self, request: Request, found: Sequence[tuple[SharedGPU, list[Slot]]]) -> Slot:
        """Return the slot that the policy prefers among those that are free."""
        sign = 1 if self._policy == "pack" else -1
        _, slots = min(
            found,
            key=lambda each: (
                each[0].node != request.home_node,
                request.rank(each[0].node),
                sign * len(each[1]),
            ),
        )
        return slots[0]

    def _of(self, request: Request) -> Sequence[SharedPlace]:
        return self._places.get((request.course, request.slots), ())

    def _at(self, place: SharedPlace) -> SharedGPU:
        if id(place) not in self._gpus:
            self._gpus[id(place)] = SharedGPU(place, self._held_of(place.gpu.uuid))
        return self._gpus[id(place)]

    def _held_of(self, uuid: str | None) -> Sequence[tuple[UnitName, float]]:
        """Return what is held of a GPU, and when each is free again."""
        if self._held is None:
            self._held = {}
            for lease in self._leases:
                free = free_from(lease.until, self._now)
                for each in map(parse, lease.gpus):
                    self._held.setdefault(each.gpu, []).append((each, free))
        return self._held.get(uuid or "", ())
