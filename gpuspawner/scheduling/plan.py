"""The plan: which waiting request starts when, and on which GPUs. Values and pure functions.

`allocation` chooses GPUs for one request among those that are free; the plan decides whose turn it
is, and when the turns of the others come by the known ends of the leases.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from math import inf

from ..gpus.allocation import POLICIES, apply_leases, check_policy_and_gpus, span_several_nodes
from ..gpus.model import GPU, Holder, Lease, Request, course_group, course_of_groups
from ..gpus.unit_names import Share, UnitIndex, parse
from .calendar import Booking, Calendar, seconds_of
from .reserved import ReservedTime, ahead
from .units import Units

# In the order "fair", each GPU that a user holds counts as having joined so many seconds later.
FAIR_SECONDS = 1800
# In the order "share", each GPU hour of a user's counts as having joined so many seconds later.
USED_SECONDS = 600
# What a request without an end counts for in that order, in seconds.
ENDLESS_SECONDS = 24 * 3600.0
# Who isn't to start for longer than that needs no GPUs back now.
SOON_SECONDS = 3600


@dataclass(frozen=True)
class QueuedRequest:
    """A request in the queue: its holder, when it joined (in seconds), and its user's groups.

    It doesn't start before `not_before`, in seconds. `moved`: an instructor has moved it to the
    front of its course's, the later the higher; 0: nobody has.
    """

    holder: Holder
    request: Request
    since: float
    groups: frozenset[str] = frozenset()
    not_before: float = 0.0
    moved: int = 0


# How long before reserved hours a server ends that isn't the course's: it needs time to stop.
MARGIN_SECONDS = 300.0


@dataclass(frozen=True)
class HoursInTheWay:
    """Reserved hours that keep a request from starting now.

    Args:
        course: the key of the course whose they are; users read `Turn.course_name`.
        begin, end: from when until when, in seconds since the epoch.
        until_then: the end that the request's server could have if it started now, in seconds since
            the epoch; 0: it can't.
    """

    course: str
    begin: float
    end: float
    until_then: float = 0.0


@dataclass(frozen=True)
class Turn:
    """When a queued request starts, and what it waits for.

    Args:
        waiting: the queued request.
        place: its place in the queue; 1 is first.
        start: when it starts by the known ends of the leases, in seconds; None if unknown.
        gpus: the GPUs to hand out now; empty if it can't start now.
        because: what it waits for: "gpus"; "group:NAME", as the group's members hold as many GPUs
            as they may; "course:KEY", as that course's servers do; "order", as enough GPUs are free
            but booked for earlier requests; "time", as it isn't to start yet; "never", as no node
            has so many; "reserved", as others than its course have reserved what is free; "hours",
            as its course's reserved hours haven't begun, for a slot in them. "" if it starts now.
        several: whether there are several nodes, so that messages have to say so.
        of: how many requests wait in all; 0 if unknown.
        hours: the reserved hours that are in its way, if it waits for "reserved".
        used: the GPU hours that its user had in the last 7 days, where the order goes by them.
        until: when its server would end, if that is earlier than asked for; else None.
        machines: on how many nodes it could start one day, where there are several; else 0.
        course_title: what users call the course whose limit or hours it waits for; the queue knows.
    """

    waiting: QueuedRequest
    place: int
    start: float | None
    gpus: tuple[GPU, ...] = ()
    because: str = ""
    several: bool = False
    of: int = 0
    hours: HoursInTheWay | None = None
    used: float | None = None
    until: float | None = None
    machines: int = 0
    course_title: str = ""

    @property
    def course_name(self) -> str:
        """What users call that course; its key if nobody has said so."""
        return self.course_title or self.course

    @property
    def course(self) -> str:
        """The key of the course whose limit or hours it waits for; "": of none."""
        if self.hours:
            return self.hours.course
        kind, _colon, key = self.because.partition(":")
        return key if kind == "course" else ""

    def at(self, place: int, of: int) -> Turn:
        """Return the same turn at this place among so many."""
        # Does what `dataclasses.replace` does, several times as fast: all who wait are given one.
        there = object.__new__(Turn)
        there.__dict__.update(self.__dict__, place=place, of=of)
        return there


@dataclass(frozen=True)
class UserShare:
    """What a user has had lately, as the order "share" counts it.

    Args:
        decayed: the user's GPU hours, which count for less the longer ago they were.
        week: those of the last 7 days, as they were.
        weight: how many times as much as others the user may have.
    """

    decayed: float = 0.0
    week: float = 0.0
    weight: float = 1.0


# (hub, user) -> what the user has had lately; who isn't there has had nothing.
UserShares = Mapping[tuple[str, str], UserShare]
NO_SHARES: UserShares = {}
Order = Callable[[Sequence[QueuedRequest], Sequence[Lease], UserShares], list[QueuedRequest]]


def by_time(
    queue: Sequence[QueuedRequest], leases: Sequence[Lease] = (), shares: UserShares = NO_SHARES
) -> list[QueuedRequest]:
    """Return the queue in order of arrival: what users expect of a queue, and can verify."""
    return sorted(queue, key=lambda waiting: (waiting.since, waiting.holder))


def by_share(
    queue: Sequence[QueuedRequest], leases: Sequence[Lease], shares: UserShares = NO_SHARES
) -> list[QueuedRequest]:
    """Return the queue with the requests of users who hold fewer GPUs first.

    A user with many servers doesn't keep others waiting. Each GPU that a user holds, or gets by an
    earlier request in this order, counts as having joined FAIR_SECONDS later. No request can be
    overtaken for ever, as later requests join with a later time.
    """
    held: dict[tuple[str, str], float | Share] = defaultdict(int)
    for lease in leases:
        held[lease.holder.person] += lease.share
    return _by_debt(queue, held, lambda waiting: waiting.request.share, FAIR_SECONDS)


def by_use(
    queue: Sequence[QueuedRequest], leases: Sequence[Lease], shares: UserShares = NO_SHARES
) -> list[QueuedRequest]:
    """Return the queue with the requests of users first who have used less lately.

    Each GPU hour that a user has had, or is promised by an earlier request in this order, counts as
    having joined USED_SECONDS later, divided by the user's weight. So what was long ago and what
    has a weight counts for less, and no request can be overtaken for ever.
    """
    nothing = UserShare()
    debts: dict[tuple[str, str], float | Share] = defaultdict(float)
    for each in queue:
        share = shares.get(each.holder.person, nothing)
        debts[each.holder.person] = share.decayed / share.weight

    def cost(waiting: QueuedRequest) -> float:
        seconds = min(seconds_of(waiting.request), ENDLESS_SECONDS)
        weight = shares.get(waiting.holder.person, nothing).weight
        return float(waiting.request.share) * seconds / 3600 / weight

    return _by_debt(queue, debts, cost, USED_SECONDS)


def _by_debt(
    queue: Sequence[QueuedRequest],
    debts: dict[tuple[str, str], float | Share],
    cost: Callable[[QueuedRequest], float | Share],
    seconds: float,
) -> list[QueuedRequest]:
    """Return the queue in order of arrival, later by so many seconds for each of a user's debts.

    Args:
        queue: the queue.
        debts: person -> what the user has. It is changed.
        cost: returns what a request adds to it.
        seconds: how much later one of it is.
    """
    users: dict[tuple[str, str], list[QueuedRequest]] = {}
    for waiting in reversed(by_time(queue)):
        users.setdefault(waiting.holder.person, []).append(waiting)
    # A user's turn changes only what that user holds, so the keys of the others stay valid.
    keys = [(own[-1].since + float(debts[user]) * seconds, user) for user, own in users.items()]
    heapq.heapify(keys)
    order = []
    while keys:
        user = heapq.heappop(keys)[1]
        order.append(users[user].pop())
        debts[user] += cost(order[-1])
        if users[user]:
            heapq.heappush(keys, (users[user][-1].since + float(debts[user]) * seconds, user))
    return order


def within_courses(queue: Sequence[QueuedRequest]) -> list[QueuedRequest]:
    """Return the queue with those first in each course whom an instructor has moved to its front.

    The places that a course's requests have among all of them stay the course's.

    Args:
        queue: in its order otherwise.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for number, waiting in enumerate(queue):
        if waiting.request.course:
            places[waiting.request.course].append(number)
    found = list(queue)
    for numbers in places.values():
        of_course = sorted((queue[number] for number in numbers), key=lambda each: -each.moved)
        for number, waiting in zip(numbers, of_course, strict=True):
            found[number] = waiting
    return found


ORDERS: dict[str, Order] = {"fifo": by_time, "fair": by_share, "share": by_use}


class Planner:
    """Plans a queue again and again, and keeps what is the same in the next plan.

    It plans as one that has seen nothing before. Where requests have only joined at the queue's end
    since a plan in which nobody starts, they are booked in its calendar, behind the others: these
    are where they were. If one of them starts, the others are booked there without a search.
    """

    def __init__(self) -> None:
        # Of a plan's first calendar, and of the one with the GPUs that the policy prefers.
        self._units = Units(), Units()
        self._kept: _KeptPlan | None = None

    def plan(
        self,
        queue: Sequence[QueuedRequest],
        gpus: Sequence[GPU],
        leases: Sequence[Lease],
        now: float,
        *,
        order: str = "fifo",
        policy: str = "pack",
        part_policy: str = "spread",
        group_limits: Mapping[str, int] | None = None,
        reserved: Sequence[ReservedTime] = (),
        shares: UserShares = NO_SHARES,
    ) -> tuple[Turn, ...]:
        """Return the turn of each queued request, in the queue's order.

        Conservative backfill: in order, each request is booked at the earliest time at which
        enough GPUs of one node are free for as long as it asks, so a later request never delays an
        earlier one. If the known ends of the leases never give a request enough GPUs on one node,
        GPUs of one node are held for it as they become free.

        As long as every server stops when its time is over, no request starts later than first
        announced. If a server stops earlier, earlier requests use its GPUs first, which can delay
        a later one. What isn't to start yet is booked from then on; until then others have the
        GPUs, if they are done by its start.

        Args:
            queue: the queued requests, in any order.
            gpus: every GPU of every node.
            leases: the leases on them.
            now: in seconds, on the clock of `Lease.until` and `QueuedRequest.since`.
            order: a key of `ORDERS`.
            policy: a key of `allocation.POLICIES`, for the whole GPUs that are handed out now.
            part_policy: the same for slots of shared GPUs and for MIG instances.
            group_limits: group -> the most GPUs that its members may hold at a time.
            reserved: the hours that are reserved for courses.
            shares: what users have had lately, for the order "share".

        Raises:
            ValueError: there is no such order or policy, or two GPUs have the same UUID.
        """
        check_policy_and_gpus("order", order, ORDERS, gpus)
        check_policy_and_gpus("policy", policy, POLICIES, ())
        check_policy_and_gpus("part_policy", part_policy, POLICIES, ())
        host = apply_leases(gpus, leases)
        waiting = within_courses(ORDERS[order](queue, leases, shares))
        limits = group_limits or {}
        hours = ahead(reserved, now, max((each.request.seconds or 0 for each in queue), default=0))
        kept, self._kept = self._kept, None
        known: list[Booking] = []
        if kept and not hours and kept.is_about(waiting, host, leases, limits, now):
            turns = kept.with_more(waiting[len(kept.waiting) :], now)
            if turns is not None:
                self._kept = kept
                return _with_use(turns, order, shares)
            known = kept.bookings_before

        def book(
            preferred: Mapping[int, tuple[GPU, ...]], units: Units, known: Sequence[Booking]
        ) -> tuple[Calendar, list[Booking]]:
            calendar = Calendar(host, leases, now, limits, hours, part_policy, units)
            return calendar, [
                calendar.book(
                    each.request, each.groups, preferred.get(number, ()), each.not_before, booking
                )
                for number, (each, booking) in enumerate(zip_longest(waiting, known))
            ]

        calendar, bookings = book({}, self._units[0], known)
        chosen = calendar.choose_now(
            [each.request for each in waiting], bookings, policy, part_policy
        )
        others = [number for number, gpus in chosen.items() if bookings[number].gpus != gpus]
        if others:
            # The GPUs that the policy prefers are handed out if that delays no other request.
            _, again = book(chosen, self._units[1], bookings[: min(others)])
            if all(new.start <= old.start for new, old in zip(again, bookings, strict=True)):
                bookings = again
        reasons = _WaitReasons(calendar, host, leases, limits)
        turns = [
            reasons.turn(each, place, booking, now)
            for place, (each, booking) in enumerate(zip(waiting, bookings, strict=True), 1)
        ]
        if not hours and all(turn.start != now for turn in turns):
            self._kept = _KeptPlan(
                waiting, host, leases, limits, now, calendar, bookings, reasons, turns
            )
        return _with_use(turns, order, shares)


def _with_use(turns: Sequence[Turn], order: str, shares: UserShares) -> tuple[Turn, ...]:
    if order != "share":
        return tuple(turns)
    nothing = UserShare()
    return tuple(
        replace(turn, used=shares.get(turn.waiting.holder.person, nothing).week) for turn in turns
    )


class _KeptPlan:
    """A plan in which nobody starts, without reserved hours, and the calendar with its bookings.

    Until the first of its times it is the same plan, as what is booked begins later: at any moment
    before, each request's earliest start is the one that it has.

    Args:
        waiting: the queue in its order.
        host: every GPU of every node, with the leases on them.
        leases, limits: as for `Calendar`.
        now: when the plan was made, in seconds.
        calendar: with the bookings of all.
        bookings: of each.
        reasons: of the same.
        turns: the turn of each.
    """

    def __init__(
        self,
        waiting: list[QueuedRequest],
        host: tuple[GPU, ...],
        leases: Sequence[Lease],
        limits: Mapping[str, int],
        now: float,
        calendar: Calendar,
        bookings: list[Booking],
        reasons: _WaitReasons,
        turns: list[Turn],
    ) -> None:
        self.waiting = waiting
        self._host = host
        self._leases = tuple(leases)
        self._limits = dict(limits)
        self._now = now
        self._calendar = calendar
        self._bookings = bookings
        self._reasons = reasons
        self._turns = turns
        # The bookings without those of the requests that have joined last.
        self.bookings_before: list[Booking] = []
        self._until = min((self._first_time(turn) for turn in turns), default=inf)

    def _first_time(self, turn: Turn) -> float:
        """Return when a turn is another one at the earliest, in seconds."""
        start = inf if turn.start is None else turn.start
        # What isn't to start yet waits for something else from then on.
        later = turn.waiting.not_before
        return min(start, later) if later > self._now else start

    def is_about(
        self,
        waiting: Sequence[QueuedRequest],
        host: tuple[GPU, ...],
        leases: Sequence[Lease],
        limits: Mapping[str, int],
        now: float,
    ) -> bool:
        """Return whether it is a queue's plan but for requests at its end; arguments as above."""
        return (
            self._now <= now < self._until
            and host == self._host
            and limits == self._limits
            and len(waiting) >= len(self.waiting)
            and all(map(_is_same, waiting, self.waiting))
            and tuple(leases) == self._leases
        )

    def with_more(self, joining: Sequence[QueuedRequest], now: float) -> list[Turn] | None:
        """Return the turns with those of more requests at the end; None: one may start now.

        The calendar is of no more use then.

        Args:
            joining: the requests, in their order.
            now: in seconds.
        """
        self.bookings_before = list(self._bookings)
        for each in joining:
            booking = self._calendar.book(each.request, each.groups, not_before=each.not_before)
            turn = self._reasons.waiting_turn(each, len(self._turns) + 1, booking, now)
            self.waiting.append(each)
            self._bookings.append(booking)
            self._turns.append(turn)
            self._until = min(self._until, self._first_time(turn))
            if self._until <= now:
                return None
        return self._turns


def _is_same(one: QueuedRequest, other: QueuedRequest) -> bool:
    # Requests are the same that differ in the nodes that they prefer; their turns aren't.
    return one is other or (one == other and one.request is other.request)


def could_use(
    turn: Turn, gpus: Sequence[GPU], leases: Sequence[Lease], back: set[str], now: float
) -> bool:
    """Return whether one who waits would be helped if some held GPUs came back.

    Args:
        turn: of the one who waits.
        gpus: every GPU of every node, with the leases on them.
        leases: what is held.
        back: the names of those that would come back.
        now: in seconds.
    """
    if turn.waiting.not_before > now + SOON_SECONDS:
        return False
    request = turn.waiting.request
    kind, _colon, group = turn.because.partition(":")
    if kind in ("group", "course"):
        group = course_group(group) if kind == "course" else group
        # Whose share is used up is helped by GPUs of that share alone.
        return any(lease.gpus & back for lease in leases if group in lease.groups)
    if request.slots:
        # A slot of a GPU that its course shares; which of them doesn't matter.
        return any(
            lease.course == request.course and lease.gpus & back and parse(name).of == request.slots
            for lease in leases
            for name in lease.gpus
        )
    # What is sick or kept out isn't handed out when it comes back.
    fitting = [gpu for gpu in gpus if gpu.state in ("free", "leased") and request.takes(gpu)]
    sizes = Counter(gpu.node for gpu in fitting)
    index = UnitIndex(back)
    return any(
        sizes[gpu.node] >= request.gpus and gpu.name and index.excluded_by(gpu.name)
        for gpu in fitting
    )


class QueueSnapshot:
    """A planned queue, to forecast the turn of one more request again and again.

    Open forms ask for many choices; planning a long queue anew for each would keep the hub busy.

    Args:
        queue, gpus, leases, now, group_limits, reserved: as for `Planner.plan` in the order "fifo".
    """

    def __init__(
        self,
        queue: Sequence[QueuedRequest],
        gpus: Sequence[GPU],
        leases: Sequence[Lease],
        now: float,
        group_limits: Mapping[str, int],
        reserved: Sequence[ReservedTime] = (),
    ) -> None:
        host = apply_leases(gpus, leases)
        self._now = now
        self._limits = group_limits
        self._queue = within_courses(by_time(queue))
        longest = max((each.request.seconds or 0 for each in queue), default=0)
        hours = ahead(reserved, now, longest)
        self._calendar = Calendar(host, leases, now, group_limits, hours)
        self._reasons = _WaitReasons(self._calendar, host, leases, group_limits)
        bookings = [
            self._calendar.book(each.request, each.groups, not_before=each.not_before)
            for each in self._queue
        ]
        # A request that starts now may get other GPUs by the policy, which changes all bookings.
        self._is_settled = all(booking.start > now for booking in bookings)

    def forecast_turn(self, waiting: QueuedRequest, group_limits: Mapping[str, int]) -> Turn | None:
        """Return the turn of a request that would join; None if a planner has to be asked.

        Args:
            waiting: the request that would join.
            group_limits: the limits of its groups.
        """
        last = max((each.since for each in self._queue), default=-inf)
        known = all(self._limits.get(name, inf) <= most for name, most in group_limits.items())
        if not self._is_settled or not known or waiting.since <= last:
            return None
        booking, place = (
            self._calendar.find_earliest(waiting.request, waiting.groups, waiting.not_before),
            len(self._queue) + 1,
        )
        if booking.start == self._now:
            return self._reasons.turn_now(waiting, place, booking)
        return self._reasons.waiting_turn(waiting, place, booking, self._now)


class _WaitReasons:
    """Determine what each request that can't start now waits for, in the queue's order.

    Args:
        calendar: the calendar with all bookings.
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
        self.several = span_several_nodes(gpus)
        free = [gpu for gpu in gpus if gpu.state == "free" and gpu.uuid]
        # (node, model, kind) -> a unit: whether a request accepts one depends on these alone.
        self._sample_gpus = {(gpu.node, gpu.model, gpu.kind): gpu for gpu in free}
        self._free = Counter((gpu.node, gpu.model, gpu.kind) for gpu in free)
        # `Request.accepts` -> the most GPUs that are free on one node.
        self._most_free_by_kind: dict[Hashable, int] = {}
        self._in_the_way: dict[Hashable, HoursInTheWay | None] = {}
        self._machines: dict[Hashable, int] = {}
        self._held: dict[str, Share] = defaultdict(int)
        for lease in leases if limits else ():
            self._hold(lease.groups & limits.keys(), lease.share)

    def turn(self, waiting: QueuedRequest, place: int, booking: Booking, now: float) -> Turn:
        """Return the turn of a request; count the GPUs that it gets now as taken for the next."""
        if booking.start == now:
            if not waiting.request.slots:
                self._free.subtract((gpu.node, gpu.model, gpu.kind) for gpu in booking.gpus)
            self._most_free_by_kind.clear()
            self._in_the_way.clear()
            self._hold(waiting.groups, waiting.request.share)
            return self.turn_now(waiting, place, booking)
        return self.waiting_turn(waiting, place, booking, now)

    def turn_now(self, waiting: QueuedRequest, place: int, booking: Booking) -> Turn:
        """Return the turn of a request that starts now."""
        gpus, until = booking.gpus, booking.until
        return Turn(waiting, place, booking.start, gpus, several=self.several, until=until)

    def waiting_turn(
        self, waiting: QueuedRequest, place: int, booking: Booking, now: float
    ) -> Turn:
        """Return the turn of a request that can't start now."""
        start = booking.start if booking.start < inf else None
        because = self._reason(waiting, now)
        hours = self._hours_in_the_way(waiting.request, now) if because == "order" else None
        because = "reserved" if hours else because
        return Turn(
            waiting,
            place,
            start,
            (),
            because,
            self.several,
            hours=hours,
            until=booking.until,
            machines=self._machines_for(waiting.request),
        )

    def _machines_for(self, request: Request) -> int:
        """Return on how many of several nodes a request could start one day; else 0."""
        if not self.several or request.slots:
            return 0
        key = request.accepts, request.gpus
        if key not in self._machines:
            self._machines[key] = self._calendar.count_nodes(request)
        return self._machines[key]

    def _hours_in_the_way(self, request: Request, now: float) -> HoursInTheWay | None:
        """Return the reserved hours but for which enough GPUs would be free for the request."""
        key = request.accepts, request.gpus, request.seconds, request.course
        if key not in self._in_the_way:
            self._in_the_way[key] = self._find_hours(request, now)
        return self._in_the_way[key]

    def _find_hours(self, request: Request, now: float) -> HoursInTheWay | None:
        end = now + seconds_of(request)
        holds = [
            hold
            for hold in self._calendar.holds_against(request)
            if hold.overlaps(now, end) and request.takes(hold.gpu)
        ]
        kept = Counter(gpu.node for gpu in {hold.gpu for hold in holds} if gpu.state == "free")
        free = Counter[str]()
        for place, number in self._free.items():
            if number and request.takes(self._sample_gpus[place]):
                free[place[0]] += number
        if not holds or any(free[node] - kept[node] >= request.gpus for node in free):
            return None
        first = min(holds, key=lambda hold: (hold.begin, hold.end, hold.course))
        longest = self._calendar.longest_now(request) - MARGIN_SECONDS
        until = now + longest if 60 <= longest < inf else 0.0
        return HoursInTheWay(first.course, first.begin, first.end, until)

    def _reason(self, waiting: QueuedRequest, now: float) -> str:
        request = waiting.request
        if waiting.not_before > now and self._calendar.is_possible(request, waiting.groups):
            return "time"
        for name in sorted(waiting.groups & self._limits.keys()):
            if self._held[name] + request.share > self._limits[name]:
                course = course_of_groups([name])
                return f"course:{course}" if course else f"group:{name}"
        if request.slots:
            return self._slot_reason(request, now)
        if self._most_free(request) >= request.gpus:
            return "order"
        return "gpus" if self._calendar.is_possible(request, waiting.groups) else "never"

    def _slot_reason(self, request: Request, now: float) -> str:
        """Return why a request for a slot can't start now."""
        begin = self._calendar.begin_of_hours(request)
        if begin == inf or not self._calendar.is_possible(request, ()):
            return "never"
        return "hours" if begin > now else "gpus"

    def _most_free(self, request: Request) -> int:
        if request.accepts not in self._most_free_by_kind:
            free = Counter[str]()
            for place, number in self._free.items():
                if number and request.takes(self._sample_gpus[place]):
                    free[place[0]] += number
            self._most_free_by_kind[request.accepts] = max(free.values(), default=0)
        return self._most_free_by_kind[request.accepts]

    def _hold(self, groups: Iterable[str], number: Share) -> None:
        for name in groups:
            self._held[name] += number
