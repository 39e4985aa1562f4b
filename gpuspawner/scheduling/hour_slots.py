"""The slots in which a course's servers share GPUs in its reserved hours, and who has them when.

The hours hold whole GPUs; only which slot of them is whose is decided here. A slot ends with its
hours, so a server that asks for longer ends then, too.
"""

from __future__ import annotations

from collections import Counter
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

    def is_free(self, at: float) -> bool:
        """Return whether it is free at a time."""
        return any(begin <= at < end for begin, end in self.gaps)

    def take(self, start: float, until: float) -> None:
        """Book it."""
        self.gaps = [
            gap
            for begin, end in self.gaps
            for gap in ((begin, min(end, start)), (max(begin, until), end))
            if gap[0] < gap[1]
        ]


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
        self._leases = leases
        self._now = now
        self._policy = policy
        # They are many, and made for those courses alone of which somebody waits.
        self._slots: dict[tuple[str, int], list[Slot]] = {}
        self._held: dict[str, list[tuple[UnitName, float]]] | None = None

    def is_possible(self, request: Request) -> bool:
        """Return whether a request could have a slot if nobody had one."""
        return any(request.takes(slot.unit) for slot in self._of(request))

    def begin_of(self, request: Request) -> float:
        """Return when the first hours begin that a request may be for; infinite: never."""
        key = request.course, request.slots
        return min((place.begin for place in self._places.get(key, ())), default=inf)

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
        slots = [slot for slot in self._of(request) if request.takes(slot.unit)]
        while True:
            firsts = [(slot.first_free(seconds, after), slot) for slot in slots]
            start = min((first for first, _ in firsts), default=inf)
            if start == inf:
                return inf, None
            found = [slot for first, slot in firsts if first == start]
            length = min(seconds, *(slot.end - start for slot in found))
            after = allowed(start, length)
            if after == start:
                return start, self._best(request, found, start)
            if after == inf:
                return inf, None

    def take(self, unit: GPU, start: float, until: float, request: Request) -> None:
        """Book a slot that was found."""
        for slot in self._of(request):
            if slot.unit.id == unit.id and slot.is_free(start):
                slot.take(start, until)

    def _best(self, request: Request, slots: Sequence[Slot], start: float) -> Slot:
        """Return the slot that the policy prefers among those that are free."""
        free = Counter(slot.unit.uuid for slot in slots)
        sign = 1 if self._policy == "pack" else -1
        return min(
            slots,
            key=lambda slot: (
                slot.unit.node != request.home_node,
                request.rank(slot.unit.node),
                sign * free[slot.unit.uuid],
            ),
        )

    def _of(self, request: Request) -> list[Slot]:
        key = request.course, request.slots
        if key not in self._slots:
            self._slots[key] = [
                slot for place in self._places.get(key, ()) for slot in self._slots_of(place)
            ]
        return self._slots[key]

    def _slots_of(self, place: SharedPlace) -> list[Slot]:
        held, end = self._held_of(place.gpu.uuid), place.reserved.end
        gpu = replace(place.gpu, state="free", reason="", holder=None, until=None)
        found = []
        for unit in slots_of(gpu, place.reserved.slots, end):
            name = unit.name
            assert name is not None, "it was placed by its name"
            free = max((free for other, free in held if name.excludes(other)), default=place.begin)
            begin = max(place.begin, free)
            found.append(Slot(unit, end, [(begin, end)] if begin < end else []))
        return found

    def _held_of(self, uuid: str | None) -> Sequence[tuple[UnitName, float]]:
        """Return what is held of a GPU, and when each is free again."""
        if self._held is None:
            self._held = {}
            for lease in self._leases:
                free = free_from(lease.until, self._now)
                for each in map(parse, lease.gpus):
                    self._held.setdefault(each.gpu, []).append((each, free))
        return self._held.get(uuid or "", ())
