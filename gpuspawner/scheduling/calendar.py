"""The calendar of leases and bookings on all nodes, which finds the earliest start of a request.

A request gets all its GPUs on one node, so each node has its own calendar. Bookings are only ever
added, so a node's earliest start for a kind of request never becomes earlier: once computed it is a
lower bound. The nodes are kept in a heap by these bounds, and only those at the top are recomputed.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right, insort
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from ..gpus.allocation import busy_indexes, choose_node, pick_on_node
from ..gpus.model import GPU, WHOLE, Lease, Request
from ..gpus.unit_names import Share
from .hour_slots import SlotCalendar
from .node_calendar import NEVER_COMPUTED, Bound, GroupShare, NodePool, free_from
from .reserved import Hold, ReservedTime, place
from .units import Units


@dataclass(frozen=True)
class Booking:
    """When a request starts, in seconds (infinite: unknown), and on which GPUs of one node.

    `in_hours` is whether it takes some that are held for its course. `until` is when it ends, in
    seconds, if that is earlier than asked for: a slot for reserved hours ends with them.
    """

    start: float
    gpus: tuple[GPU, ...] = ()
    in_hours: bool = False
    until: float | None = None


def seconds_of(request: Request) -> float:
    """Return for how long a request is booked, in seconds; infinite if it has no end."""
    # At least a second: rounding must not make a booking empty.
    return inf if request.seconds is None else max(request.seconds, 1.0)


class StartSearch:
    """A search for the earliest start of requests of one kind and one number of GPUs.

    Args:
        pools: the pool of each node that has enough GPUs, by rank.
        count: the number of GPUs.
    """

    def __init__(self, pools: Sequence[NodePool], count: int) -> None:
        self._pools = pools
        self._count = count
        # Length of the booking -> heap of bounds.
        self._heaps: dict[float, list[Bound]] = {}
        self._lengths: list[float] = []
        self._by_eventually_free = [
            (-len(pool.gpus), pool.rank, NEVER_COMPUTED, pool) for pool in pools
        ]
        heapq.heapify(self._by_eventually_free)

    def earliest(self, seconds: float) -> tuple[float, NodePool | None]:
        """Return the earliest start of a booking of `seconds`, and its pool; infinite: unknown."""
        heap = self._heap(seconds)
        while heap:
            start, _, rank, changes, length, pool = heap[0]
            if start == inf:
                break
            if changes == pool.node.changes and length == seconds:
                return start, pool
            heapq.heapreplace(heap, self._bound(pool, rank, seconds, start))
        return inf, None

    def _bound(self, pool: NodePool, rank: int, seconds: float, after: float) -> Bound:
        start = pool.earliest(self._count, seconds, after)
        mixes = start < inf and pool.mixes_models(self._count, start, seconds)
        return start, mixes, rank, pool.node.changes, seconds, pool

    def _heap(self, seconds: float) -> list[Bound]:
        if seconds not in self._heaps:
            # A longer booking can't start earlier than a shorter one, whose bounds are reused.
            number = bisect_right(self._lengths, seconds) - 1
            if number >= 0:
                heap = list(self._heaps[self._lengths[number]])
            else:
                heap = [pool.first_bound(self._count) for pool in self._pools]
                heapq.heapify(heap)
            self._heaps[seconds] = heap
            insort(self._lengths, seconds)
        return self._heaps[seconds]

    def earliest_after(
        self, seconds: float, after: float, among: Collection[str] | None = None
    ) -> tuple[float, NodePool | None]:
        """Return the earliest start at or after `after`, and its pool; infinite if unknown.

        `among` are the names of the nodes that are looked at; None: all.
        """
        best: tuple[float, bool, int] = (inf, False, 0)
        found = None
        for pool in self._pools:
            if among is not None and pool.node.name not in among:
                continue
            start, mixes, rank, *_ = self._bound(pool, pool.rank, seconds, after)
            if (start, mixes, rank) < best:
                best, found = (start, mixes, rank), pool
            if start == after and not mixes:
                break
        return best[0], found

    def at_home(self, node: str, seconds: float, start: float) -> NodePool | None:
        """Return the pool of a node if a booking can start there at `start`; None if it can't."""
        pool = next((each for each in self._pools if each.node.name == node), None)
        if pool is None or pool.earliest(self._count, seconds, start) != start:
            return None
        return pool

    def largest_pool(self) -> NodePool | None:
        """Return the pool with the most GPUs that become free for good; None if no GPU does."""
        heap = self._by_eventually_free
        while heap:
            less, rank, changes, pool = heap[0]
            if changes == pool.node.changes:
                return pool if less else None
            heapq.heapreplace(heap, (-pool.count_eventually_free(), rank, pool.node.changes, pool))
        return None


class Calendar:
    """Leases and bookings on all nodes, and the use of each limited group's share.

    Args:
        gpus: every GPU of every node, with the leases on them.
        leases: the leases on them.
        now: in seconds, on the clock of `Lease.until`.
        limits: group -> the most GPUs that its members may hold at a time.
        reserved: what is reserved for courses, as `reserved.ahead` returns it.
        part_policy: a key of `allocation.POLICIES`, for slots of the GPUs that courses share.
        units: those of an earlier plan, whose calendar is of no use any more; None: of none.
    """

    def __init__(
        self,
        gpus: Sequence[GPU],
        leases: Sequence[Lease],
        now: float,
        limits: Mapping[str, int],
        reserved: Sequence[ReservedTime] = (),
        part_policy: str = "spread",
        units: Units | None = None,
    ) -> None:
        self._now = now
        self._limits = limits
        self._units = units or Units()
        self._units.begin(gpus, now)
        self._nodes = self._units.nodes
        self._shares = {name: GroupShare(now, limit) for name, limit in limits.items()}
        for lease in leases if limits else ():
            for name in lease.groups & limits.keys():
                self._shares[name].take(now, free_from(lease.until, now), lease.share)
        placed = place(reserved, self._nodes, leases, now)
        self.missing = placed.missing
        self._slots = SlotCalendar(placed.shared, leases, now, part_policy)
        # Course -> what is held for it.
        self._holds: dict[str, list[Hold]] = {}
        for hold in placed.holds:
            self._holds.setdefault(hold.course, []).append(hold)
        # `Request.accepts` -> the pool of each node, and how many GPUs the largest could have if
        # nothing were leased; (`Request.accepts`, number of GPUs) -> search.
        self._kinds: dict[Hashable, tuple[list[NodePool], int]] = {}
        self._searches: dict[Hashable, StartSearch] = {}

    def is_possible(self, request: Request, groups: Collection[str]) -> bool:
        """Return whether a request could be granted if nothing were leased or booked.

        Unhealthy and foreign GPUs don't count: nobody knows when they come back.

        Args:
            request, groups: as for `find_earliest`.
        """
        if any(request.share > self._limits[name] for name in self._limited(groups)):
            return False
        if request.slots:
            return self._slots.is_possible(request)
        return self._of_kind(request)[1] >= request.gpus

    def count_nodes(self, request: Request) -> int:
        """Return how many nodes have as many units as a request for such asks for."""
        return sum(pool.usable >= request.gpus for pool in self._of_kind(request)[0])

    def find_earliest(
        self, request: Request, groups: Collection[str], not_before: float = 0.0
    ) -> Booking:
        """Find the earliest start for a request, and its GPUs, without booking them.

        Args:
            request: the request.
            groups: its user's groups.
            not_before: when it is to start at the earliest, in seconds.
        """
        after = max(self._now, not_before)
        if request.gpus <= 0:
            return Booking(after)
        if not self.is_possible(request, groups):
            return Booking(inf)
        shares = [self._shares[name] for name in self._limited(groups)]
        if request.slots:
            return self._earliest_slot(request, shares, after)
        start, pool = self._earliest(request, shares, after)
        if request.course and request.course in self._holds:
            # What begins after that can't make it earlier.
            end = start + seconds_of(request)
            holds = [
                hold
                for hold in self._holds[request.course]
                if hold.begin < end and not hold.slots  # those are for who shares them
            ]
            found = self._earliest_of_member(request, shares, after, holds) if holds else None
            if found and found.start <= start:
                return found
        if pool is None:
            return Booking(inf)
        return Booking(start, pool.choose(request.gpus, start, seconds_of(request)))

    def _earliest_slot(
        self, request: Request, shares: Sequence[GroupShare], after: float
    ) -> Booking:
        """Find the earliest start of a server with a slot of what is held for its course."""
        seconds = seconds_of(request)
        start, slot = self._slots.find(
            request,
            seconds,
            after,
            lambda start, length: _first_allowed(shares, request.share, length, start),
        )
        if slot is None:
            return Booking(inf)
        until = slot.until(start, seconds)
        unit = replace(slot.unit, share=request.unit_share)  # as limits count it
        return Booking(start, (unit,), until=until if until < start + seconds else None)

    def begin_of_hours(self, request: Request) -> float:
        """Return when the first hours begin that a request for a slot is for; infinite: never."""
        return self._slots.begin_of(request)

    def _earliest_of_member(
        self, request: Request, shares: Sequence[GroupShare], after: float, holds: Sequence[Hold]
    ) -> Booking:
        """Find the earliest start of a course's server on the nodes with what is held for it."""
        for hold in holds:
            self._nodes[hold.gpu.node].release(hold.gpu, hold.begin, hold.end)
        among = {hold.gpu.node for hold in holds}
        start, pool = self._earliest(request, shares, after, among)
        found = Booking(inf)
        if pool is not None:
            seconds = seconds_of(request)
            held = {hold.gpu.id for hold in holds if hold.overlaps(start, start + seconds)}
            gpus = pool.choose(request.gpus, start, seconds, held)
            found = Booking(start, gpus, any(gpu.id in held for gpu in gpus))
        for hold in holds:
            self._nodes[hold.gpu.node].take([hold.gpu], hold.begin, hold.end)
        return found

    def _take_of_holds(self, course: str, gpus: Sequence[GPU], begin: float, end: float) -> None:
        """Let a course's server have what is held for it of these GPUs."""
        taken = {gpu.id for gpu in gpus}
        left: list[Hold] = []
        for hold in self._holds[course]:
            if hold.gpu.id not in taken or not hold.overlaps(begin, end):
                left.append(hold)
                continue
            node = self._nodes[hold.gpu.node]
            node.release(hold.gpu, hold.begin, hold.end)
            for rest in hold.without(begin, end):
                node.take([rest.gpu], rest.begin, rest.end)
                left.append(rest)
        self._holds[course] = left

    def holds_against(self, request: Request) -> Iterator[Hold]:
        """Yield what is held that a request for whole units can't have."""
        for course, holds in self._holds.items():
            for hold in holds:
                if course != request.course or hold.slots:
                    yield hold

    def longest_now(self, request: Request) -> float:
        """Return for how long a request could have its GPUs from now on, in seconds."""
        found = 0.0
        for pool in self._pools(request):
            lengths = sorted(
                (gaps[0][1] - self._now for gaps in pool.gaps if gaps and gaps[0][0] == self._now),
                reverse=True,
            )
            if len(lengths) >= request.gpus:
                found = max(found, lengths[request.gpus - 1])
        return found

    def _earliest(
        self,
        request: Request,
        shares: Sequence[GroupShare],
        after: float,
        among: Collection[str] | None = None,
    ) -> tuple[float, NodePool | None]:
        """Return the earliest start and its pool.

        `among`: only these nodes are looked at, where earlier starts are no lower bounds.
        """
        search, seconds = self._search(request), seconds_of(request)
        start, pool = search.earliest(seconds) if among is None else (-inf, None)
        if start < after:
            start, pool = search.earliest_after(seconds, after, among)
        while start < inf:
            allowed = _first_allowed(shares, request.share, seconds, start)
            if allowed == start:
                home = request.home_node
                at_home = search.at_home(home, seconds, start) if home and among is None else None
                return start, at_home or pool
            if allowed == inf:
                break
            start, pool = search.earliest_after(seconds, allowed, among)
        return inf, None

    def book(
        self,
        request: Request,
        groups: Collection[str],
        preferred: Sequence[GPU] = (),
        not_before: float = 0.0,
        known: Booking | None = None,
    ) -> Booking:
        """Book the earliest start for a request.

        If no start is known, GPUs are held for it as they become free, on the node with the most
        GPUs that it could use. If only its group's limit is in the way, the group's share is held
        for it, and no GPU.

        Args:
            request, groups, not_before: as for `find_earliest`.
            preferred: the GPUs to book if the request starts now and they are free.
            known: its earliest start, if that is known from a calendar with the same bookings.
        """
        found = known or self.find_earliest(request, groups, not_before)
        shares = [self._shares[name] for name in self._limited(groups)]
        if found.start == inf:
            if self.is_possible(request, groups) and not request.slots:
                self._hold_without_start(request, shares, max(self._now, not_before))
            return found
        if (
            preferred
            and found.start == self._now
            and self._are_free(preferred, seconds_of(request))
        ):
            found = Booking(found.start, tuple(preferred))
        if found.gpus:
            end = found.until or found.start + seconds_of(request)
            if found.in_hours:
                self._take_of_holds(request.course, found.gpus, found.start, end)
            if request.slots:
                self._slots.take(found.gpus[0], found.start, end, request)
            else:
                self._nodes[found.gpus[0].node].take(found.gpus, found.start, end)
            for share in shares:
                share.take(found.start, end, request.share)
        return found

    def _are_free(self, gpus: Sequence[GPU], seconds: float) -> bool:
        node = self._nodes[gpus[0].node]
        return all(node.is_free(gpu, self._now, seconds) for gpu in gpus)

    def _hold_without_start(
        self, request: Request, shares: Sequence[GroupShare], after: float
    ) -> None:
        allowed = [share.eventually_free_from(request.share) for share in shares]
        for share, begin in zip(shares, allowed, strict=True):
            share.take(max(begin, after) if begin < inf else after, inf, request.share)
        pool, begin = self._search(request).largest_pool(), max([after, *allowed])
        if pool is not None and begin < inf:
            pool.book_eventually_free(begin)

    def choose_now(
        self,
        requests: Sequence[Request],
        bookings: Sequence[Booking],
        whole_policy: str,
        part_policy: str,
    ) -> dict[int, tuple[GPU, ...]]:
        """Choose by the policy the GPUs of the requests that start now, around later bookings.

        Nothing can be booked in this calendar afterwards.

        Args:
            requests: the requests that have been booked.
            bookings: their bookings, in the same order.
            whole_policy: a key of `allocation.POLICIES`.
            part_policy: the same for slots and MIG instances.

        Returns:
            The request's position in `requests` -> its GPUs, but of those for which the calendar
            has chosen by the policy already.
        """
        chosen: dict[int, tuple[GPU, ...]] = {}
        given: set[str | None] = set()
        for number, (request, booking) in enumerate(zip(requests, bookings, strict=True)):
            if not booking.gpus or booking.start > self._now or request.slots:
                continue
            end = self._now + seconds_of(request)
            self._nodes[booking.gpus[0].node].give_back(booking.gpus, end)
            free = {
                pool.node.name: [
                    gpu
                    for gpu, gaps in zip(pool.gpus, pool.gaps, strict=True)
                    # A GPU with a later booking may not be free for long enough.
                    if gaps and gaps[0][0] == self._now and end <= gaps[0][1]
                    if gpu.id not in given
                ]
                for pool in self._pools(request)
            }
            policy = whole_policy if request.kind == WHOLE else part_policy
            name = choose_node(free, request.gpus, policy, request.home_node, request.rank)
            assert name is not None, "its own booking would do"
            node = self._nodes[name].gpus
            busy = busy_indexes(node) + [gpu.index for gpu in node if gpu.id in given]
            by_index = sorted(free[name], key=lambda gpu: gpu.index)
            picked = {gpu.id for gpu in pick_on_node(by_index, busy, request.gpus, policy)}
            chosen[number] = tuple(gpu for gpu in node if gpu.id in picked)
            given |= picked
        return chosen

    def _limited(self, groups: Collection[str]) -> list[str]:
        if not groups or not self._limits:
            return []
        return [name for name in self._limits if name in groups]

    def _pools(self, request: Request) -> list[NodePool]:
        """Return for each node the pool of GPUs that a request can have, by rank."""
        return self._of_kind(request)[0]

    def _of_kind(self, request: Request) -> tuple[list[NodePool], int]:
        kind = request.accepts
        if kind not in self._kinds:
            pools = self._units.pools(request)
            # What no node has is impossible, even if it is for no GPU.
            self._kinds[kind] = pools, max((pool.usable for pool in pools), default=-1)
        return self._kinds[kind]

    def _search(self, request: Request) -> StartSearch:
        kind = request.accepts, request.gpus
        if kind not in self._searches:
            pools = [pool for pool in self._pools(request) if pool.usable >= request.gpus]
            self._searches[kind] = StartSearch(pools, request.gpus)
        return self._searches[kind]


def _first_allowed(
    shares: Sequence[GroupShare], count: Share, seconds: float, after: float
) -> float:
    """Return the first time at or after `after` at which all of these shares allow a booking."""
    start = after
    while True:
        later = max((share.first_free(count, seconds, start) for share in shares), default=start)
        if later == start:
            return start
        start = later
