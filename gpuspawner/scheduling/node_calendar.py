"""When each GPU of one node is free, and how much of its share each group may still take."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from math import inf, nextafter

from ..gpus.allocation import by_model
from ..gpus.model import GPU

# From when until when a GPU is free, in seconds; the end is infinite where nothing is booked.
Gap = tuple[float, float]


class GroupShare:
    """How many GPUs a group may still take, from when on.

    Args:
        now: from when on, in seconds.
        free: how many, as long as nothing is taken.
    """

    def __init__(self, now: float, free: int) -> None:
        # From when on how many are free; the first is from `now`.
        self._steps = [(now, free)]

    def first_free(self, count: int, seconds: float, after: float) -> float:
        """Return the first time from `after` on at which `count` are free for so long."""
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

    def eventually_free_from(self, count: int) -> float:
        """Return from when on `count` are free for ever; infinite where they never are."""
        found = inf
        for time, free in reversed(self._steps):
            if free < count:
                break
            found = time
        return found

    def take(self, begin: float, end: float, count: int) -> None:
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
    """When each GPU of one node is free.

    Args:
        name: the node's.
        now: from when on, in seconds.
    """

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.gpus: list[GPU] = []
        # How often something was taken: what was found out before then is a lower bound.
        self.changes = 0
        self._now = now
        # Of the GPUs that can be named; what is neither free nor leased has no gap.
        self.gaps: dict[str, list[Gap]] = {}

    def add(self, gpu: GPU) -> None:
        """Take in a GPU, free from now on or once its lease has ended."""
        self.gpus.append(gpu)
        if gpu.uuid:
            self.gaps[gpu.uuid] = []
            if gpu.state == "free":
                self.gaps[gpu.uuid] = [(self._now, inf)]
            elif gpu.state == "leased" and gpu.until is not None:
                self.gaps[gpu.uuid] = [(free_from(gpu.until, self._now), inf)]

    def is_free(self, gpu: GPU, start: float, seconds: float) -> bool:
        """Return whether a GPU is free from `start` on for so long."""
        return any(begin <= start and start + seconds <= end for begin, end in self._of(gpu))

    def take(self, gpus: Iterable[GPU], begin: float, end: float) -> None:
        """Book GPUs from `begin` until `end`, when they are free."""
        self.changes += 1
        for gpu in gpus:
            gaps = self._of(gpu)
            number = bisect_right(gaps, (begin, inf)) - 1
            first, last = gaps[number]
            left = ((first, begin), (end, last))
            gaps[number : number + 1] = [gap for gap in left if gap[0] < gap[1]]

    def give_back(self, gpus: Iterable[GPU], end: float) -> None:
        """Undo a booking from now until `end`. Only afterwards are gaps right, not bounds."""
        for gpu in gpus:
            gaps = self._of(gpu)
            joined = bool(gaps) and gaps[0][0] == end
            gaps[:joined] = [(self._now, gaps[0][1] if joined else end)]

    def _of(self, gpu: GPU) -> list[Gap]:
        return self.gaps[gpu.uuid or ""]


def free_from(until: float | None, now: float) -> float:
    """Return when what ends at `until` is free; infinite where that isn't known."""
    # What is past its end goes any moment, but isn't free yet.
    return inf if until is None else max(until, nextafter(now, inf))


class NodePool:
    """The GPUs of one node that a kind of request can have.

    Args:
        node: the calendar that they are in.
        rank: its place among the nodes, where nothing else decides.
    """

    def __init__(self, node: NodeCalendar, rank: int) -> None:
        self.node = node
        self.rank = rank
        self.gpus: list[GPU] = []
        self.gaps: list[list[Gap]] = []
        # With those that can't be named, as they may be able to again.
        self.usable = 0

    def add(self, gpu: GPU) -> None:
        """Take in a GPU."""
        self.usable += gpu.state in ("free", "leased")
        if gpu.uuid:
            self.gpus.append(gpu)
            self.gaps.append(self.node.gaps[gpu.uuid])

    def earliest(self, count: int, seconds: float, after: float) -> float:
        """Return the first time from `after` on at which `count` of the GPUs are free for so long.

        Infinite where they never are.
        """
        start = after
        while True:
            # For each GPU, from when on it is free for so long, now or at last.
            begins = []
            for gaps in self.gaps:
                for begin, end in gaps:
                    if (begin if begin > start else start) + seconds <= end:
                        begins.append(begin)
                        break
            if len(begins) < count:
                return inf
            begins.sort()
            if begins[count - 1] <= start:
                return start
            # Until then too few are, and by then some may not be any more.
            start = begins[count - 1]

    def choose(self, count: int, start: float, seconds: float) -> tuple[GPU, ...]:
        """Return the first GPUs of one model that has enough at a time, else the first of all."""
        ready = [gpu for gpu in self.gpus if self.node.is_free(gpu, start, seconds)]
        pools = (pool for pool in by_model(ready) if len(pool) >= count)
        return tuple(next(pools, ready)[:count])

    def mixes_models(self, count: int, start: float, seconds: float) -> bool:
        """Return whether `count` GPUs at a time would have to be of several models."""
        if len({gpu.model for gpu in self.gpus}) == 1:
            return False
        return len({gpu.model for gpu in self.choose(count, start, seconds)}) > 1

    def count_eventually_free(self) -> int:
        """Return how many of the GPUs are free for ever from some time on."""
        return sum(1 for gaps in self.gaps if gaps and gaps[-1][1] == inf)

    def book_eventually_free(self, after: float) -> None:
        """Book for ever what is free for ever, from then on, but not before `after`."""
        for gpu, gaps in zip(self.gpus, self.gaps, strict=True):
            if gaps and gaps[-1][1] == inf:
                self.node.take([gpu], max(gaps[-1][0], after), inf)
