"""Who goes when: the order of those who wait for one host's GPUs. Values and pure functions.

`allocation` says which GPUs a request gets from what is free; this says whose turn it is and when
the others' comes, by the ends of the leases that are known.
"""

from __future__ import annotations

import copy
import heapq
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from math import inf, nextafter

from ..gpus.allocation import POLICIES, apply_leases, by_model, check, choose
from ..gpus.model import GPU, Holder, Lease, Request

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
            "order", as enough GPUs are free but kept for those before; "never", as there aren't
            so many here. "" where it starts now.
    """

    waiting: QueuedRequest
    place: int
    start: float | None
    gpus: tuple[GPU, ...] = ()
    because: str = ""


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

    Conservative backfill: in order, each is booked for the earliest time at which enough GPUs are
    free for as long as it asked, so that who comes later gets only what those before can spare.
    Where the known ends don't give one enough GPUs, they gather: from when each is free it is kept.

    While everybody ends when their time is over, nobody starts later than first said. When somebody
    ends earlier, those before use it first, which can move one behind them to later.

    Args:
        queue: who waits, in any order.
        gpus: every GPU of the host.
        leases: what is held on the host.
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

    def book(rather: Mapping[int, tuple[GPU, ...]]) -> tuple[_Calendar, list[_Booking]]:
        calendar = _Calendar(host, leases, now, group_limits or {})
        return calendar, [calendar.book(each, rather.get(n, ())) for n, each in enumerate(waiting)]

    calendar, bookings = book({})
    chosen = calendar.choose_now(waiting, bookings, policy)
    if any(bookings[number].gpus != gpus for number, gpus in chosen.items()):
        # What the policy would rather hand out stands if it makes nobody start later.
        _, again = book(chosen)
        if all(new.start <= old.start for new, old in zip(again, bookings, strict=True)):
            bookings = again
    return _turns(waiting, bookings, host, leases, now, group_limits or {})


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
        self._host = apply_leases(gpus, leases)
        self._leases = leases
        self._now = now
        self._limits = group_limits
        self._queue = by_time(queue)
        self._calendar = _Calendar(self._host, leases, now, group_limits)
        bookings = [self._calendar.book(waiting) for waiting in self._queue]
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
        booking = self._calendar.copy().book(waiting)
        (turn,) = _turns([waiting], [booking], self._host, self._leases, self._now, self._limits)
        return replace(turn, place=len(self._queue) + 1)


@dataclass(frozen=True)
class _Booking:
    """When one starts (infinite: unknown), and on which GPUs."""

    start: float
    gpus: tuple[GPU, ...] = ()


class _Supply:
    """How many are free from when on: of one GPU 1 or 0, of a group what its members may take."""

    def __init__(self, now: float, free: int) -> None:
        self._steps = [(now, free)]

    def gaps(self, count: int, seconds: float) -> list[tuple[float, float]]:
        """Return the spans, no shorter than asked, in which `count` are free throughout."""
        found = []
        begin = None
        for time, free in self._steps:
            if free >= count:
                begin = time if begin is None else begin
            elif begin is not None:
                if begin + seconds <= time:
                    found.append((begin, time))
                begin = None
        return found if begin is None else [*found, (begin, inf)]

    def settled(self, count: int) -> float:
        """Return from when on `count` are free for ever; infinite where they never are."""
        return next((begin for begin, _ in self.gaps(count, inf)), inf)

    def copy(self) -> _Supply:
        """Return another that is the same."""
        other = _Supply(0.0, 0)
        other._steps = list(self._steps)
        return other

    def take(self, begin: float, end: float, count: int) -> None:
        """Take `count` from `begin` until `end`; a negative count gives back."""
        first, last = self._cut(begin), self._cut(end)
        for number in range(first, last):
            time, free = self._steps[number]
            self._steps[number] = (time, free - count)

    def _cut(self, time: float) -> int:
        number = bisect_left(self._steps, (time,))
        if time < inf and (number == len(self._steps) or self._steps[number][0] != time):
            self._steps.insert(number, (time, self._steps[number - 1][1]))
        return number


class _Calendar:
    """What is held and booked from now on: GPU by GPU, and of each limited group's share."""

    def __init__(
        self, host: Sequence[GPU], leases: Sequence[Lease], now: float, limits: Mapping[str, int]
    ) -> None:
        totals = Counter(gpu.model for gpu in host)
        # Rarer models first, and always in one order: so who is booked ahead gets the same GPUs
        # when the time has come, and what was booked around them can stay.
        self._host = sorted(host, key=lambda gpu: (totals[gpu.model], gpu.model, gpu.index))
        self._now = now
        self._limits = limits
        self._gpus = {gpu.uuid: _Supply(now, int(gpu.state == "free")) for gpu in host}
        self._groups = {name: _Supply(now, limit) for name, limit in limits.items()}
        for gpu in host:
            if gpu.state == "leased":
                self._gpus[gpu.uuid].take(self._end(gpu.until), inf, -1)
        for lease in leases:
            for name in lease.groups & limits.keys():
                self._groups[name].take(now, self._end(lease.until), len(lease.gpus))

    def copy(self) -> _Calendar:
        """Return another with the same bookings."""
        other = copy.copy(self)
        other._gpus = {uuid: supply.copy() for uuid, supply in self._gpus.items()}
        other._groups = {name: supply.copy() for name, supply in self._groups.items()}
        return other

    def _end(self, until: float | None) -> float:
        # What is past its end goes any moment, but isn't free yet.
        return inf if until is None else max(until, nextafter(self._now, inf))

    def book(self, waiting: QueuedRequest, rather: Sequence[GPU] = ()) -> _Booking:
        """Book the earliest time for one; where that is now, on certain GPUs if they can be had."""
        request, seconds = waiting.request, _seconds(waiting.request)
        if request.gpus <= 0:
            return _Booking(self._now)
        if not _possible(waiting, self._host, self._limits):
            return _Booking(inf)
        gpus = [gpu for gpu in self._host if gpu.uuid and request.takes(gpu)]
        groups = [self._groups[name] for name in waiting.groups & self._limits.keys()]
        start, ready = self._earliest(request, gpus, groups)
        if start == inf:
            self._gather(gpus, groups, request.gpus)
            return _Booking(inf)
        wished = start == self._now and rather and all(gpu in ready for gpu in rather)
        chosen = tuple(rather) if wished else _first(ready, request.gpus)
        for gpu in chosen:
            self._gpus[gpu.uuid].take(start, start + seconds, 1)
        for group in groups:
            group.take(start, start + seconds, request.gpus)
        return _Booking(start, chosen)

    def _earliest(
        self, request: Request, gpus: Sequence[GPU], groups: Iterable[_Supply]
    ) -> tuple[float, list[GPU]]:
        """Return when a request can start, and all the GPUs that it could have then."""
        seconds = _seconds(request)
        spans = [self._gpus[gpu.uuid].gaps(1, seconds) for gpu in gpus]
        shares = [group.gaps(request.gpus, seconds) for group in groups]
        for start in sorted({begin for gaps in [*spans, *shares] for begin, _ in gaps}):
            if all(_within(gaps, start, seconds) for gaps in shares):
                ready = [_within(gaps, start, seconds) for gaps in spans]
                if sum(ready) >= request.gpus:
                    return start, list(compress(gpus, ready))
        return inf, []

    def _gather(self, gpus: Iterable[GPU], groups: Sequence[_Supply], count: int) -> None:
        """Keep for ever, from when it is free, what one could use whose start isn't known.

        Where its group is why, that is what the group may still hold, and no GPU.
        """
        allowed = [group.settled(count) for group in groups]
        for group, begin in zip(groups, allowed, strict=True):
            group.take(begin if begin < inf else self._now, inf, count)
        for gpu in gpus:
            supply = self._gpus[gpu.uuid]
            supply.take(max([supply.settled(1), *allowed]), inf, 1)

    def choose_now(
        self, waiting: Sequence[QueuedRequest], bookings: Sequence[_Booking], policy: str
    ) -> dict[int, tuple[GPU, ...]]:
        """Return which GPUs the policy hands out now, touching no other booking: number -> GPUs."""
        chosen: dict[int, tuple[GPU, ...]] = {}
        given: set[str | None] = set()
        for number, (each, booking) in enumerate(zip(waiting, bookings, strict=True)):
            if booking.gpus and booking.start == self._now:
                seconds = _seconds(each.request)
                for gpu in booking.gpus:
                    self._gpus[gpu.uuid].take(self._now, self._now + seconds, -1)
                view = [self._as_now(gpu, seconds, given) for gpu in self._host]
                picked = {gpu.uuid for gpu in choose(each.request, view, policy) or ()}
                chosen[number] = tuple(gpu for gpu in self._host if gpu.uuid in picked)
                given |= picked
        return chosen

    def _as_now(self, gpu: GPU, seconds: float, given: Container[str | None]) -> GPU:
        """Return a GPU as `choose` should see it: free only if no booking needs it meanwhile."""
        if gpu.uuid in given:
            return replace(gpu, state="leased")
        free = _within(self._gpus[gpu.uuid].gaps(1, seconds), self._now, seconds)
        return gpu if free or gpu.state != "free" else replace(gpu, state="unknown")


def _turns(
    waiting: Sequence[QueuedRequest],
    bookings: Sequence[_Booking],
    host: Sequence[GPU],
    leases: Sequence[Lease],
    now: float,
    limits: Mapping[str, int],
) -> tuple[Turn, ...]:
    """Say of each booking what it waits for, once those before it have what they get now."""
    free = [gpu for gpu in host if gpu.state == "free" and gpu.uuid]
    held = Counter[str]()
    for lease in leases:
        held.update(dict.fromkeys(lease.groups, len(lease.gpus)))
    turns = []
    for place, (each, booking) in enumerate(zip(waiting, bookings, strict=True), 1):
        if booking.start == now:
            turns.append(Turn(each, place, now, booking.gpus))
            free = [gpu for gpu in free if gpu not in booking.gpus]
            held.update(dict.fromkeys(each.groups, each.request.gpus))
            continue
        full = [
            n
            for n in sorted(each.groups & limits.keys())
            if held[n] + each.request.gpus > limits[n]
        ]
        if full:
            because = f"group:{full[0]}"
        elif sum(map(each.request.takes, free)) >= each.request.gpus:
            because = "order"
        else:
            because = "gpus" if _possible(each, host, limits) else "never"
        start = booking.start if booking.start < inf else None
        turns.append(Turn(each, place, start, (), because))
    return tuple(turns)


def _possible(waiting: QueuedRequest, host: Sequence[GPU], limits: Mapping[str, int]) -> bool:
    """Return whether one could be served, were all others gone.

    What is sick or used by others than us comes back by itself or never: nothing is kept for it.
    """
    request = waiting.request
    fitting = [gpu for gpu in host if gpu.state in ("free", "leased") and request.takes(gpu)]
    within = all(request.gpus <= limits[name] for name in waiting.groups & limits.keys())
    return within and request.gpus <= len(fitting)


def _seconds(request: Request) -> float:
    # At least a second, so that rounding never makes a booking empty.
    return inf if request.seconds is None else max(request.seconds, 1.0)


def _within(gaps: Sequence[tuple[float, float]], start: float, seconds: float) -> bool:
    return any(begin <= start and start + seconds <= end for begin, end in gaps)


def _first(gpus: Sequence[GPU], count: int) -> tuple[GPU, ...]:
    """Return the first GPUs of one model that has enough, else the first of all."""
    pools = (pool for pool in by_model(gpus) if len(pool) >= count)
    return tuple(next(pools, gpus)[:count])
