"""When each GPU is free, node by node: what is held and booked, and where one more could start.

A request is placed on one node, so each node has a calendar of its own, and GPUs of two are never
added up. Bookings only ever take, so that of a kind of request a node's earliest start never comes
nearer: what was found out for it once is a lower bound from then on. The nodes lie in a heap by
these bounds, and only those at its top are looked at again.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, nextafter

from ..gpus.allocation import busy_indexes, by_model, choose_node, pick
from ..gpus.model import GPU, Lease, Request

# From when until when a GPU is free, in seconds; the end is infinite where nothing is booked.
Gap = tuple[float, float]


@dataclass(frozen=True)
class Booking:
    """When one starts, in seconds (infinite: unknown), and on which GPUs, all of one node."""

    start: float
    gpus: tuple[GPU, ...] = ()


def seconds_of(request: Request) -> float:
    """Return for how long a request is booked, in seconds; infinite where it names no end."""
    # At least a second, so that rounding never makes a booking empty.
    return inf if request.seconds is None else max(request.seconds, 1.0)


class Share:
    """How many GPUs a group may still take, from when on.

    Args:
        now: from when on, in seconds.
        free: how many, as long as nothing is taken.
    """

    def __init__(self, now: float, free: int) -> None:
        # From when on how many are free; the first is from `now`.
        self._steps = [(now, free)]

    def first(self, count: int, seconds: float, after: float) -> float:
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

    def settled(self, count: int) -> float:
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
                self.gaps[gpu.uuid] = [(not_before(gpu.until, self._now), inf)]

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


def not_before(until: float | None, now: float) -> float:
    """Return when what ends at `until` is free; infinite where that isn't known."""
    # What is past its end goes any moment, but isn't free yet.
    return inf if until is None else max(until, nextafter(now, inf))


class Part:
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

    def choice(self, count: int, start: float, seconds: float) -> tuple[GPU, ...]:
        """Return the first GPUs of one model that has enough at a time, else the first of all."""
        ready = [gpu for gpu in self.gpus if self.node.is_free(gpu, start, seconds)]
        pools = (pool for pool in by_model(ready) if len(pool) >= count)
        return tuple(next(pools, ready)[:count])

    def mixes(self, count: int, start: float, seconds: float) -> bool:
        """Return whether `count` GPUs at a time would have to be of several models."""
        if len({gpu.model for gpu in self.gpus}) == 1:
            return False
        return len({gpu.model for gpu in self.choice(count, start, seconds)}) > 1

    def settled(self) -> int:
        """Return how many of the GPUs are free for ever from some time on."""
        return sum(1 for gaps in self.gaps if gaps and gaps[-1][1] == inf)

    def keep(self, after: float) -> None:
        """Book for ever what is free for ever, from then on, but not before `after`."""
        for gpu, gaps in zip(self.gpus, self.gaps, strict=True):
            if gaps and gaps[-1][1] == inf:
                self.node.take([gpu], max(gaps[-1][0], after), inf)


# (a lower bound of the start, whether models would be mixed), the rank, the node's changes when
# that was found out, and of which GPUs it is. Where these are all that there ever were it is right.
Bound = tuple[float, bool, int, int, Part]
UNSEEN = -1


class Search:
    """Where requests for one number of GPUs of one kind can start.

    Args:
        parts: of every node that has enough, by rank.
        count: how many GPUs.
        now: in seconds.
    """

    def __init__(self, parts: Sequence[Part], count: int, now: float) -> None:
        self._parts = parts
        self._count = count
        self._now = now
        # For how long -> a heap.
        self._heaps: dict[float, list[Bound]] = {}
        self._lengths: list[float] = []
        self._kept = [(-len(part.gpus), part.rank, UNSEEN, part) for part in parts]
        heapq.heapify(self._kept)

    def earliest(self, seconds: float) -> tuple[float, Part | None]:
        """Return the earliest start for so long, and where; infinite where none is known."""
        heap = self._heap(seconds)
        while heap:
            start, _, rank, changes, part = heap[0]
            if start == inf:
                break
            if changes == part.node.changes:
                return start, part
            heapq.heapreplace(heap, self._bound(part, rank, seconds, start))
        return inf, None

    def _bound(self, part: Part, rank: int, seconds: float, after: float) -> Bound:
        start = part.earliest(self._count, seconds, after)
        mixes = start < inf and part.mixes(self._count, start, seconds)
        return start, mixes, rank, part.node.changes, part

    def _heap(self, seconds: float) -> list[Bound]:
        if seconds not in self._heaps:
            # Who wants them for longer can't start earlier than who wants them for less.
            number = bisect_right(self._lengths, seconds) - 1
            heap = (
                [
                    (start, mixes, rank, UNSEEN, part)
                    for start, mixes, rank, _, part in self._heaps[self._lengths[number]]
                ]
                if number >= 0
                else [(self._now, False, part.rank, UNSEEN, part) for part in self._parts]
            )
            self._heaps[seconds] = heap
            insort(self._lengths, seconds)
        return self._heaps[seconds]

    def earliest_after(self, seconds: float, after: float) -> tuple[float, Part | None]:
        """Return the earliest start from `after` on, and where; infinite where none is known."""
        best: tuple[float, bool, int] = (inf, False, 0)
        found = None
        for part in self._parts:
            start, mixes, rank, _, _ = self._bound(part, part.rank, seconds, after)
            if (start, mixes, rank) < best:
                best, found = (start, mixes, rank), part
            if start == after and not mixes:
                break
        return best[0], found

    def fullest(self) -> Part | None:
        """Return where most GPUs are free for ever from some time on; None where none is."""
        heap = self._kept
        while heap:
            less, rank, changes, part = heap[0]
            if changes == part.node.changes:
                return part if less else None
            heapq.heapreplace(heap, (-part.settled(), rank, part.node.changes, part))
        return None


class Calendar:
    """What is held and booked from now on: node by node, and of each limited group's share.

    Args:
        gpus: every GPU of every node, with the leases on them.
        leases: what is held.
        now: on the clock of `Lease.until`, in seconds.
        limits: group -> the most GPUs that its members may hold at a time.
    """

    def __init__(
        self, gpus: Sequence[GPU], leases: Sequence[Lease], now: float, limits: Mapping[str, int]
    ) -> None:
        self._now = now
        self._limits = limits
        totals = Counter(gpu.model for gpu in gpus)
        # Rarer models first, and always in one order: so who is booked ahead gets the same GPUs
        # when the time has come, and what was booked around them can stay.
        self._gpus = sorted(
            gpus, key=lambda gpu: (totals[gpu.model], gpu.model, gpu.node, gpu.index)
        )
        self._nodes: dict[str, NodeCalendar] = {}
        for gpu in self._gpus:
            if gpu.node not in self._nodes:
                self._nodes[gpu.node] = NodeCalendar(gpu.node, now)
            self._nodes[gpu.node].add(gpu)
        self._shares = {name: Share(now, limit) for name, limit in limits.items()}
        for lease in leases:
            for name in lease.groups & limits.keys():
                self._shares[name].take(now, not_before(lease.until, now), len(lease.gpus))
        # What requests say of GPUs -> those of each node; and with a number of GPUs.
        self._kinds: dict[Hashable, list[Part]] = {}
        self._searches: dict[Hashable, Search] = {}

    def is_possible(self, request: Request, groups: Collection[str]) -> bool:
        """Return whether a request could be served, were all others gone.

        What is sick or used by others than us comes back by itself or never: nothing is kept for
        it.
        """
        allowed = all(request.gpus <= self._limits[name] for name in self._limited(groups))
        return allowed and any(part.usable >= request.gpus for part in self._parts(request))

    def find(self, request: Request, groups: Collection[str]) -> Booking:
        """Return the earliest time for a request, and GPUs for it; books nothing.

        Args:
            request: for how many GPUs, of which kind, for how long.
            groups: of which groups its user is.
        """
        if request.gpus <= 0:
            return Booking(self._now)
        if not self.is_possible(request, groups):
            return Booking(inf)
        start, part = self._earliest(
            request, [self._shares[name] for name in self._limited(groups)]
        )
        if part is None:
            return Booking(inf)
        return Booking(start, part.choice(request.gpus, start, seconds_of(request)))

    def _earliest(self, request: Request, shares: Sequence[Share]) -> tuple[float, Part | None]:
        search, seconds = self._search(request), seconds_of(request)
        start, part = search.earliest(seconds)
        while start < inf:
            allowed = _first(shares, request.gpus, seconds, start)
            if allowed == start:
                return start, part
            if allowed == inf:
                break
            start, part = search.earliest_after(seconds, allowed)
        return inf, None

    def book(
        self, request: Request, groups: Collection[str], rather: Sequence[GPU] = ()
    ) -> Booking:
        """Book the earliest time for a request.

        Where no start is known, its GPUs gather: what it could use on the node that has most of it
        is kept for it, from when it is free. Where its group is why, that is what the group may
        still hold, and no GPU.

        Args:
            request, groups: as for `find`.
            rather: the GPUs to take where the start is now, if they can be had.
        """
        found = self.find(request, groups)
        shares = [self._shares[name] for name in self._limited(groups)]
        if found.start == inf:
            if self.is_possible(request, groups):
                self._gather(request, shares)
            return found
        if rather and found.start == self._now and self._are_free(rather, seconds_of(request)):
            found = Booking(found.start, tuple(rather))
        if found.gpus:
            end = found.start + seconds_of(request)
            self._nodes[found.gpus[0].node].take(found.gpus, found.start, end)
            for share in shares:
                share.take(found.start, end, request.gpus)
        return found

    def _are_free(self, gpus: Sequence[GPU], seconds: float) -> bool:
        node = self._nodes[gpus[0].node]
        return all(node.is_free(gpu, self._now, seconds) for gpu in gpus)

    def _gather(self, request: Request, shares: Sequence[Share]) -> None:
        allowed = [share.settled(request.gpus) for share in shares]
        for share, begin in zip(shares, allowed, strict=True):
            share.take(begin if begin < inf else self._now, inf, request.gpus)
        part = self._search(request).fullest()
        if part is not None and max(allowed, default=self._now) < inf:
            part.keep(max(allowed, default=self._now))

    def choose_now(
        self, requests: Sequence[Request], bookings: Sequence[Booking], policy: str
    ) -> dict[int, tuple[GPU, ...]]:
        """Return which GPUs the policy hands out now, touching no other booking: number -> GPUs.

        Nothing can be booked afterwards.
        """
        chosen: dict[int, tuple[GPU, ...]] = {}
        given: set[str | None] = set()
        for number, (request, booking) in enumerate(zip(requests, bookings, strict=True)):
            if not booking.gpus or booking.start > self._now:
                continue
            end = self._now + seconds_of(request)
            self._nodes[booking.gpus[0].node].give_back(booking.gpus, end)
            free = {
                part.node.name: [
                    gpu
                    for gpu, gaps in zip(part.gpus, part.gaps, strict=True)
                    # What is booked for later isn't free for long enough.
                    if gaps and gaps[0][0] == self._now and end <= gaps[0][1]
                    if gpu.uuid not in given
                ]
                for part in self._parts(request)
            }
            name = choose_node(free, request.gpus, policy)
            assert name is not None, "its own booking would do"
            node = self._nodes[name].gpus
            busy = busy_indexes(node) + [gpu.index for gpu in node if gpu.uuid in given]
            by_index = sorted(free[name], key=lambda gpu: gpu.index)
            picked = {gpu.uuid for gpu in pick(by_index, busy, request.gpus, policy)}
            chosen[number] = tuple(gpu for gpu in node if gpu.uuid in picked)
            given |= picked
        return chosen

    def _limited(self, groups: Collection[str]) -> list[str]:
        return [name for name in self._limits if name in groups]

    def _parts(self, request: Request) -> list[Part]:
        """Return the GPUs of each node that a request can have, by rank."""
        kind = request.kind
        if kind not in self._kinds:
            parts: dict[str, Part] = {}
            for gpu in self._gpus:
                if request.takes(gpu):
                    if gpu.node not in parts:
                        parts[gpu.node] = Part(self._nodes[gpu.node], len(parts))
                    parts[gpu.node].add(gpu)
            self._kinds[kind] = list(parts.values())
        return self._kinds[kind]

    def _search(self, request: Request) -> Search:
        kind = request.kind, request.gpus
        if kind not in self._searches:
            parts = [part for part in self._parts(request) if part.usable >= request.gpus]
            self._searches[kind] = Search(parts, request.gpus, self._now)
        return self._searches[kind]


def _first(shares: Sequence[Share], count: int, seconds: float, after: float) -> float:
    """Return the first time from `after` on at which all of some shares allow a booking."""
    start = after
    while True:
        later = max((share.first(count, seconds, start) for share in shares), default=start)
        if later == start:
            return start
        start = later
