"""Who goes when: the order of those who wait for GPUs. Values and pure functions.

`allocation` says which GPUs a request gets from what is free; this says whose turn it is and when
the others' comes, by the ends of the leases that are known.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from ..gpus.allocation import POLICIES, apply_leases, are_several, check
from ..gpus.model import GPU, Holder, Lease, Request
from .calendar import Booking, Calendar

# What one GPU that its user holds counts for in the fair order: as having joined so much later.
FAIR_SECONDS = 1800


@dataclass(frozen=True)
class QueuedRequest:
    """A holder in the queue: for what, since when (in seconds), and of which groups it is."""

    holder: Holder
    request: Request
    since: float
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Turn:
    """What one who waits can expect.

    Args:
        place: 1 is first.
        start: when it starts by the known ends, in seconds; None where they don't tell.
        gpus: what to hand out now; none unless `start` is now.
        because: what it waits for: "gpus"; "group:NAME", whose members hold as many as they may;
            "order", as enough GPUs are free but kept for those before; "never", as no node has
            so many. "" where it starts now.
        several: whether there are several nodes, so that words have to tell them apart.
    """

    waiting: QueuedRequest
    place: int
    start: float | None
    gpus: tuple[GPU, ...] = ()
    because: str = ""
    several: bool = False


Order = Callable[[Sequence[QueuedRequest], Sequence[Lease]], list[QueuedRequest]]


def by_time(queue: Sequence[QueuedRequest], leases: Sequence[Lease] = ()) -> list[QueuedRequest]:
    """First come, first served: what everybody expects of a queue and can check."""
    return sorted(queue, key=lambda waiting: (waiting.since, waiting.holder))


def by_share(queue: Sequence[QueuedRequest], leases: Sequence[Lease]) -> list[QueuedRequest]:
    """Who holds less goes first, so that many servers of one user don't keep others waiting.

    Each GPU that a user holds, or gets before in this order, counts as having joined FAIR_SECONDS
    later. Time passes for everybody, so nobody can be overtaken for ever.
    """
    held: Counter[tuple[str, str]] = Counter()
    for lease in leases:
        held[lease.holder.person] += len(lease.gpus)
    users: dict[tuple[str, str], list[QueuedRequest]] = {}
    for waiting in reversed(by_time(queue)):
        users.setdefault(waiting.holder.person, []).append(waiting)
    # Only a user's own turn changes what that user holds, so the others' keys stay as they are.
    keys = [(own[-1].since + held[user] * FAIR_SECONDS, user) for user, own in users.items()]
    heapq.heapify(keys)
    order = []
    while keys:
        user = heapq.heappop(keys)[1]
        order.append(users[user].pop())
        held[user] += order[-1].request.gpus
        if users[user]:
            heapq.heappush(keys, (users[user][-1].since + held[user] * FAIR_SECONDS, user))
    return order


ORDERS: dict[str, Order] = {"fifo": by_time, "fair": by_share}


def plan(
    queue: Sequence[QueuedRequest],
    gpus: Sequence[GPU],
    leases: Sequence[Lease],
    now: float,
    *,
    order: str = "fifo",
    policy: str = "pack",
    group_limits: Mapping[str, int] | None = None,
) -> tuple[Turn, ...]:
    """Return everybody's turn, in the queue's order.

    Conservative backfill: in order, each is booked for the earliest time at which enough GPUs of
    one node are free for as long as it asked, so that who comes later gets only what those before
    can spare. Where the known ends give one enough GPUs on no node, they gather on one: from when
    each is free it is kept.

    While everybody ends when their time is over, nobody starts later than first said. When somebody
    ends earlier, those before use it first, which can move one behind them to later.

    Args:
        queue: who waits, in any order.
        gpus: every GPU of every node.
        leases: what is held.
        now: on the clock of `Lease.until` and `QueuedRequest.since`.
        order: a key of `ORDERS`.
        policy: a key of `allocation.POLICIES`, for what is handed out now.
        group_limits: group -> the most GPUs that its members may hold at a time.

    Raises:
        ValueError: there is no such order or policy, or two GPUs have one UUID.
    """
    check("order", order, ORDERS, gpus)
    check("policy", policy, POLICIES, gpus)
    host = apply_leases(gpus, leases)
    waiting = ORDERS[order](queue, leases)
    limits = group_limits or {}

    def book(rather: Mapping[int, tuple[GPU, ...]]) -> tuple[Calendar, list[Booking]]:
        calendar = Calendar(host, leases, now, limits)
        return calendar, [
            calendar.book(each.request, each.groups, rather.get(number, ()))
            for number, each in enumerate(waiting)
        ]

    calendar, bookings = book({})
    chosen = calendar.choose_now([each.request for each in waiting], bookings, policy)
    if any(bookings[number].gpus != gpus for number, gpus in chosen.items()):
        # What the policy would rather hand out stands if it makes nobody start later.
        _, again = book(chosen)
        if all(new.start <= old.start for new, old in zip(again, bookings, strict=True)):
            bookings = again
    causes = _Causes(calendar, host, leases, limits)
    return tuple(
        causes.turn(each, place, booking, now)
        for place, (each, booking) in enumerate(zip(waiting, bookings, strict=True), 1)
    )


def could_use(turn: Turn, gpus: Sequence[GPU], leases: Sequence[Lease], back: set[str]) -> bool:
    """Return whether one who waits would be helped if some held GPUs came back.

    Args:
        turn: of the one who waits.
        gpus: every GPU of every node, with the leases on them.
        leases: what is held.
        back: the UUIDs of those that would come back.
    """
    request = turn.waiting.request
    kind, _colon, group = turn.because.partition(":")
    if kind == "group":
        # Whose share is used up is helped by GPUs of that share alone.
        return any(lease.gpus & back for lease in leases if group in lease.groups)
    # What is sick or kept out isn't handed out when it comes back.
    fitting = [gpu for gpu in gpus if gpu.state in ("free", "leased") and request.takes(gpu)]
    sizes = Counter(gpu.node for gpu in fitting)
    return any(gpu.uuid in back and sizes[gpu.node] >= request.gpus for gpu in fitting)


class QueueSnapshot:
    """How a queue stands, to tell again and again what turn one more would get.

    Pages ask for many choices, and to plan a long queue anew for each would keep a hub busy.

    Args:
        queue, gpus, leases, now, group_limits: as for `plan`, for the order "fifo".
    """

    def __init__(
        self,
        queue: Sequence[QueuedRequest],
        gpus: Sequence[GPU],
        leases: Sequence[Lease],
        now: float,
        group_limits: Mapping[str, int],
    ) -> None:
        host = apply_leases(gpus, leases)
        self._now = now
        self._limits = group_limits
        self._queue = by_time(queue)
        self._calendar = Calendar(host, leases, now, group_limits)
        self._causes = _Causes(self._calendar, host, leases, group_limits)
        bookings = [self._calendar.book(each.request, each.groups) for each in self._queue]
        # Who gets GPUs now may get others than these, and then all is different.
        self._settled = all(booking.start > now for booking in bookings)

    def turn_of(self, waiting: QueuedRequest, group_limits: Mapping[str, int]) -> Turn | None:
        """Return the turn that `plan` would find for one who joins; None where only that can tell.

        Args:
            waiting: who would join.
            group_limits: what applies to its groups.
        """
        last = self._queue[-1].since if self._queue else -inf
        known = all(self._limits.get(name, inf) <= most for name, most in group_limits.items())
        if not self._settled or not known or waiting.since <= last:
            return None
        booking, place = self._calendar.find(waiting.request, waiting.groups), len(self._queue) + 1
        if booking.start == self._now:
            return Turn(waiting, place, self._now, booking.gpus, several=self._causes.several)
        return self._causes.later(waiting, place, booking)


class _Causes:
    """What those who can't start now wait for, once those before have what they get now.

    Args:
        calendar: what is booked.
        gpus: every GPU of every node, with the leases on them.
        leases: what is held.
        limits: group -> the most GPUs that its members may hold at a time.
    """

    def __init__(
        self,
        calendar: Calendar,
        gpus: Sequence[GPU],
        leases: Sequence[Lease],
        limits: Mapping[str, int],
    ) -> None:
        self._calendar = calendar
        self._limits = limits
        self.several = are_several(gpus)
        # Whether a request takes a GPU depends on its node and model alone.
        self._one_of = {(gpu.node, gpu.model): gpu for gpu in gpus}
        self._free = Counter(
            (gpu.node, gpu.model) for gpu in gpus if gpu.state == "free" and gpu.uuid
        )
        # Request.kind -> how many are free on one node.
        self._most: dict[Hashable, int] = {}
        self._held = Counter[str]()
        for lease in leases:
            self._hold(lease.groups, len(lease.gpus))

    def turn(self, waiting: QueuedRequest, place: int, booking: Booking, now: float) -> Turn:
        """Return one's turn, and count what it gets now."""
        if booking.start == now:
            self._free.subtract((gpu.node, gpu.model) for gpu in booking.gpus)
            self._most.clear()
            self._hold(waiting.groups, waiting.request.gpus)
            return Turn(waiting, place, now, booking.gpus, several=self.several)
        return self.later(waiting, place, booking)

    def later(self, waiting: QueuedRequest, place: int, booking: Booking) -> Turn:
        """Return the turn of one that can't start now."""
        start = booking.start if booking.start < inf else None
        return Turn(waiting, place, start, (), self._cause(waiting), self.several)

    def _cause(self, waiting: QueuedRequest) -> str:
        request = waiting.request
        for name in sorted(waiting.groups & self._limits.keys()):
            if self._held[name] + request.gpus > self._limits[name]:
                return f"group:{name}"
        if self._most_free(request) >= request.gpus:
            return "order"
        return "gpus" if self._calendar.is_possible(request, waiting.groups) else "never"

    def _most_free(self, request: Request) -> int:
        if request.kind not in self._most:
            free = Counter[str]()
            for place, number in self._free.items():
                if number and request.takes(self._one_of[place]):
                    free[place[0]] += number
            self._most[request.kind] = max(free.values(), default=0)
        return self._most[request.kind]

    def _hold(self, groups: Iterable[str], number: int) -> None:
        for name in groups:
            self._held[name] += number
