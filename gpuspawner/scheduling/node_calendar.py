"""Calendars of single nodes: when each GPU is free; and of groups: how many GPUs they may take."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable
from math import inf, nextafter

from ..gpus.allocation import by_model
from ..gpus.model import GPU
from ..gpus.unit_names import Share

# (lower bound of a start, whether models would be mixed, the pool's rank, the node's number of
# changes as of the computation, the length of the booking, the pool). The bound is exact if the
# node hasn't changed since and the length is the same.
Bound = tuple[float, bool, int, int, float, "NodePool"]
NEVER_COMPUTED = -1

# A time in which a GPU is free: begin and end in seconds, infinite if nothing is booked later.
Gap = tuple[float, float]


class GroupShare:
    """The number of GPUs that a group's members may still take, as a function of time.

    Args:
        now: the beginning, in seconds.
        free: the group's limit.
    """

    def __init__(self, now: float, free: Share) -> None:
        # (time, number of free GPUs from then on); the first is at `now`.
        self._steps: list[tuple[float, Share]] = [(now, free)]

    def first_free(self, count: Share, seconds: float, after: float) -> float:
        """Return the first time at or after `after` at which `count` are free for `seconds`."""
        begin = None
        for time, free in self._steps:
            if free >= count:
                begin = time if begin is None else begin
            elif begin is not None:
                begin = max(begin, after)
                if begin + seconds <= time:
                    return begin
                begin = None
        return inf if begin is None else max(begin, after)

    def eventually_free_from(self, count: Share) -> float:
        """Return from when on `count` are free for good; infinite if they never are."""
        found = inf
        for time, free in reversed(self._steps):
            if free < count:
                break
            found = time
        return found

    def take(self, begin: float, end: float, count: Share) -> None:
        """Take `count` from `begin` until `end`."""
        first, last = self._cut(begin), self._cut(end)
        for number in range(first, last):
            time, free = self._steps[number]
            self._steps[number] = (time, free - count)

    def _cut(self, time: float) -> int:
        number = bisect_left(self._steps, (time,))
        if time < inf and (number == len(self._steps) or self._steps[number][0] != time):
            self._steps.insert(number, (time, self._steps[number - 1][1]))
        return number


class NodeCalendar:
    """The times at which each GPU of one node is free.

    Args:
        name: the node's name.
        now: the beginning, in seconds.
    """

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.gpus: list[GPU] = []
        # The number of bookings so far: starts computed before the last one are lower bounds.
        self.changes = 0
        self._now = now
        # Unit -> its gaps, sorted; a GPU that is neither free nor leased has none.
        self.gaps: dict[str, list[Gap]] = {}
        # Unit -> when its lease ends, of those that are free now (-inf) or from then on.
        self._ends: dict[str, float] = {}

    def add(self, gpu: GPU) -> None:
        """Add a GPU, which is free from now on or from the end of its lease."""
        self.gpus.append(gpu)
        if gpu.uuid:
            self.gaps[gpu.id or ""] = []
            if gpu.state == "free" or (gpu.state == "leased" and gpu.until is not None):
                until = gpu.until if gpu.state == "leased" and gpu.until is not None else -inf
                self._ends[gpu.id or ""] = until
                self.gaps[gpu.id or ""].append((self._from(until), inf))

    def begin(self, now: float) -> None:
        """Begin anew, at another time, with the same units and without a booking."""
        self._now, self.changes = now, 0
        for name, until in self._ends.items():
            self.gaps[name][:] = [(self._from(until), inf)]

    def first_free(self, gpu: GPU) -> float:
        """Return from when on a unit is free, at the earliest, by the end of its lease alone."""
        return self._ends.get(gpu.id or "", inf)

    def _from(self, until: float) -> float:
        return self._now if until == -inf else free_from(until, self._now)

    def is_free(self, gpu: GPU, start: float, seconds: float) -> bool:
        """Return whether a GPU is free from `start` on for `seconds`."""
        last = start + seconds
        for begin, end in self._of(gpu):
            if begin > start:
                return False
            if last <= end:
                return True
        return False

    def free_since(self, gpu: GPU, start: float, seconds: float) -> float | None:
        """Return since when a GPU is free that is free from `start` on for `seconds`, else None."""
        gaps = self._of(gpu)
        number = bisect_right(gaps, (start, inf)) - 1
        if number < 0:
            return None
        begin, end = gaps[number]
        return begin if start + seconds <= end else None

    def take(self, gpus: Iterable[GPU], begin: float, end: float) -> None:
        """Book GPUs from `begin` until `end`; they have to be free."""
        self.changes += 1
        for gpu in gpus:
            gaps = self._of(gpu)
            number = bisect_right(gaps, (begin, inf)) - 1
            first, last = gaps[number]
            left = ((first, begin), (end, last))
            gaps[number : number + 1] = [gap for gap in left if gap[0] < gap[1]]

    def release(self, gpu: GPU, begin: float, end: float) -> None:
        """Undo a booking of a GPU. Starts computed before are no lower bounds until it is redone.

        Who does so takes it again, or a part of it, before anybody asks for a bound.
        """
        self.changes += 1
        gaps = self._of(gpu)
        number = bisect_left(gaps, (begin, begin))
        if number and gaps[number - 1][1] == begin:
            number -= 1
            begin = gaps.pop(number)[0]
        if number < len(gaps) and gaps[number][0] == end:
            end = gaps.pop(number)[1]
        gaps.insert(number, (begin, end))

    def give_back(self, gpus: Iterable[GPU], end: float) -> None:
        """Undo a booking from now until `end`. Starts computed before are no lower bounds then."""
        for gpu in gpus:
            gaps = self._of(gpu)
            joined = bool(gaps) and gaps[0][0] == end
            gaps[:joined] = [(self._now, gaps[0][1] if joined else end)]

    def _of(self, gpu: GPU) -> list[Gap]:
        return self.gaps[gpu.id or ""]


def free_from(until: float | None, now: float) -> float:
    """Return from when on the GPUs of a lease that ends at `until` are free; infinite: unknown."""
    # A lease that is past its end ends at any moment, but its GPUs aren't free yet.
    return inf if until is None else max(until, nextafter(now, inf))


class NodePool:
    """The GPUs of one node that requests of one kind can have.

    Args:
        node: the node's calendar.
        rank: the node's position among equally good ones.
    """

    def __init__(self, node: NodeCalendar, rank: int) -> None:
        self.node = node
        self.rank = rank
        self.gpus: list[GPU] = []
        self.gaps: list[list[Gap]] = []
        # Includes GPUs without a UUID, which may report it again later.
        self.usable = 0
        self._models: set[str] = set()
        # Number of GPUs -> the bound of a search that hasn't looked at the node yet.
        self._first_bounds: dict[int, Bound] = {}

    def add(self, gpu: GPU) -> None:
        """Add a GPU of the node."""
        # What is overdue comes back by itself or never, as what others use.
        self.usable += gpu.state in ("free", "leased") and not gpu.overdue
        if gpu.uuid:
            self.gpus.append(gpu)
            self._models.add(gpu.model)
            self.gaps.append(self.node.gaps[gpu.id or ""])

    def first_bound(self, count: int) -> Bound:
        """Return when `count` GPUs may be free, however shortly, at the earliest; infinite: never.

        It costs less than `earliest`, and is the same in each plan while the node's units are.
        """
        if count not in self._first_bounds:
            begins = sorted(self.node.first_free(gpu) for gpu in self.gpus)
            first = begins[count - 1] if len(begins) >= count else inf
            self._first_bounds[count] = first, False, self.rank, NEVER_COMPUTED, 0.0, self
        return self._first_bounds[count]

    def earliest(self, count: int, seconds: float, after: float) -> float:
        """Return the first time at or after `after` at which `count` GPUs are free for `seconds`.

        Infinite if they never are.
        """
        if count == 1:
            return self._first_start(seconds, after)
        start = after
        while True:
            # For each GPU the begin of the first gap that is long enough.
            begins = []
            for gaps in self.gaps:
                # Most have one or two, of which none is over.
                if len(gaps) > 4 and gaps[1][0] <= start:
                    gaps = gaps[bisect_right(gaps, (start, inf)) - 1 :]
                for begin, end in gaps:
                    if (begin if begin > start else start) + seconds <= end:
                        begins.append(begin)
                        break
            if len(begins) < count:
                return inf
            begins.sort()
            if begins[count - 1] <= start:
                return start
            # Before that too few are free; by then, others may not be free any more.
            start = begins[count - 1]

    def _first_start(self, seconds: float, after: float) -> float:
        """Return the same for one GPU."""
        found = inf
        for gaps in self.gaps:
            if len(gaps) > 4 and gaps[1][0] <= after:
                gaps = gaps[bisect_right(gaps, (after, inf)) - 1 :]
            for begin, end in gaps:
                if begin >= found:
                    break
                if begin <= after:
                    if after + seconds <= end:
                        return after
                elif begin + seconds <= end:
                    found = begin
                    break
        return found

    def choose(
        self, count: int, start: float, seconds: float, first: Collection[str | None] = ()
    ) -> tuple[GPU, ...]:
        """Choose GPUs that are free at `start`: of one model if one has enough, else the first.

        Args:
            count: how many.
            start: in seconds.
            seconds: for how long.
            first: the units that come before others of their model.
        """
        are_alike = len(self._models) == 1 and not first
        ready = []
        for gpu in self.gpus:
            if self.node.is_free(gpu, start, seconds):
                ready.append(gpu)
                if are_alike and len(ready) == count:
                    return tuple(ready)
        if first:
            ready.sort(key=lambda gpu: gpu.id not in first)
        pools = (pool for pool in by_model(ready) if len(pool) >= count)
        return tuple(next(pools, ready)[:count])

    def mixes_models(self, count: int, start: float, seconds: float) -> bool:
        """Return whether `count` GPUs that are free at `start` would be of several models."""
        if len(self._models) == 1:
            return False
        return len({gpu.model for gpu in self.choose(count, start, seconds)}) > 1

    def count_eventually_free(self) -> int:
        """Return the number of GPUs that are free for good from some time on."""
        return sum(1 for gaps in self.gaps if gaps and gaps[-1][1] == inf)

    def book_eventually_free(self, after: float) -> None:
        """Book for good each GPU that becomes free for good, from then on or from `after`."""
        for gpu, gaps in zip(self.gpus, self.gaps, strict=True):
            if gaps and gaps[-1][1] == inf:
                self.node.take([gpu], max(gaps[-1][0], after), inf)
