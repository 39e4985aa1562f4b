"""The queue of requests that wait for GPUs.

`Planner` decides whose turn it is. The queue holds the requests, plans again when something
changes, reserves GPUs, and notifies the servers that wait.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import Refused, Unknown
from ..gpus.allocation import explain_shortage, request_phrase
from ..gpus.model import WHOLE, Holder, Lease, Request, course_group
from ..gpus.unit_names import Share, share_of
from ..i18n.lazy_text import join_sentences, lazy_gettext
from ..i18n.phrases import hours_words, share_words
from ..leases.ledger import Ledger, Reservation, View
from ..timeouts import within
from .budgets import (
    Budgets,
    Promise,
    Standing,
    Use,
    latest_end,
    part_of_gpus,
    shown_hours,
    within_budgets,
)
from .phrases import hours_words_of, slot_words
from .plan import (
    NO_SHARES,
    Planner,
    QueuedRequest,
    QueueSnapshot,
    Turn,
    UserShare,
    UserShares,
    could_use,
)
from .reserved import ReservedTime
from .shares import Shares

# The logger of the hub's own handlers.
log = logging.getLogger("tornado.application")

# While requests wait, the queue is planned at least this often, also without an event.
PERIOD_SECONDS = 5.0
# For how long the place of a user is kept who has left the queue to change their choice.
KEPT_PLACE_SECONDS = 600.0
# Two plans that are made one after the other differ by so much at most where they are the same.
SAME_SECONDS = 1.0
WAITS_NO_MORE = lazy_gettext("It doesn't wait any more: it has got its GPUs, or was given up.")


@dataclass(frozen=True)
class QueueSettings:
    """The administrator's settings of the queue, the same for all users.

    Args:
        order: a key of `plan.ORDERS`.
        policy: a key of `allocation.POLICIES`, for whole GPUs.
        part_policy: the same for slots of shared GPUs and for MIG instances.
        length: the most requests that may wait.
    """

    order: str = "fifo"
    policy: str = "pack"
    part_policy: str = "spread"
    length: int = 100


@dataclass(frozen=True)
class RequestLimits:
    """The limits of one request in the queue.

    Args:
        user_limit: the most GPUs that its user may hold with all servers; None: no limit.
        group_limits: group -> the most GPUs that its members may hold at a time.
        max_wait_seconds: the longest wait; 0: the request is refused at once, None: no limit.
        per_student: `course_group` -> the most GPUs and the most slots that its user may hold with
            all servers, if the request is for that course; None: no limit.
    """

    user_limit: int | None = None
    group_limits: Mapping[str, int] = field(default_factory=dict)
    max_wait_seconds: float | None = None
    per_student: Mapping[str, tuple[int | None, int | None]] = field(default_factory=dict)

    def most_of_user(self, request: Request) -> Share | None:
        """Return the most GPUs that the request's user may hold with all servers; None: no limit.

        Args:
            request: the request, whose units are what a limit of slots counts.
        """
        gpus, slots = self.per_student.get(course_group(request.course), (None, None))
        if request.kind != WHOLE and slots is not None:
            gpus = None
        of_slots = None if slots is None else slots * request.unit_share
        found = [each for each in (self.user_limit, gpus, of_slots) if each is not None]
        return min(found, default=None)


@dataclass(frozen=True)
class KeptPlace:
    """The place in the queue of a request that has left it.

    Args:
        since: when it joined, in seconds since the epoch.
        until: until when its holder can have the place again.
        not_before: when it was to start at the earliest; 0: at once.
    """

    since: float
    until: float
    not_before: float = 0.0


CurrentRules = Callable[[], tuple[frozenset[str], RequestLimits]]


@dataclass(eq=False)
class QueueEntry:
    """A request in the queue.

    Args:
        waiting: the request, its holder and when it joined.
        request_limits: its limits.
        notify: called with each change of its turn, and with a sentence if the nodes can't be read.
        answer: set to the reservation when it is granted, or to an exception when it is refused.
        rules: returns its user's groups and its limits now; None: as when it joined.
        has_place: whether it waits already, if only before it came again.
        turn: its turn by the last plan; None before the first one.
        shown: what its server was notified of last, so that it hears of changes only.
    """

    waiting: QueuedRequest
    request_limits: RequestLimits
    notify: Callable[[Turn | str], None]
    answer: asyncio.Future[Reservation]
    rules: CurrentRules | None = None
    has_place: bool = False
    turn: Turn | None = None
    shown: Any = None

    @property
    def holder(self) -> Holder:
        """The server that waits."""
        return self.waiting.holder

    def refresh(self) -> None:
        """Update the groups and limits."""
        if self.rules is not None:
            groups, self.request_limits = self.rules()
            self.waiting = replace(self.waiting, groups=groups)


class Queue:
    """The requests of this hub that wait for GPUs.

    Args:
        ledger: who holds what on all nodes.
        settings: the administrator's settings.
        watch: `Backend.watch`: takes a callback for when a server may have ended, and returns a
            watcher.
        reserved: returns the hours that are reserved for courses, as of the ledger's last reading.
        budgets: the GPU hours that users may have.
        shares: what users have had lately, for the order "share"; None: in another order.
        ready: waits until `reserved` knows of the hours that were granted, if they can be read.
        course_title: returns what users call a course, by its key.
    """

    def __init__(
        self,
        ledger: Ledger,
        settings: QueueSettings,
        watch: Callable[[Callable[[], None]], Any],
        reserved: Callable[[], Sequence[ReservedTime]] = lambda: (),
        budgets: Budgets | None = None,
        shares: Shares | None = None,
        ready: Callable[[], Awaitable[None]] | None = None,
        course_title: Callable[[str], str] = str,
    ) -> None:
        self._course_title = course_title
        self.budgets = budgets or Budgets()
        self._ready = ready
        self._shares = shares
        self._reserved = reserved
        self._ledger = ledger
        self._settings = settings
        self._watch = watch
        self._entries: list[QueueEntry] = []
        self._changed = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None
        self._last_join_time = 0.0
        # Holder -> the place that is kept for them.
        self._kept_places: dict[Holder, KeptPlace] = {}
        # (holder, since when, course) -> how an instructor has moved it to the course's front. It
        # outlives a request that comes again at its place.
        self._moved: dict[tuple[Holder, float, str], int] = {}
        # Cache of forecasts: the view and the queue that they were made for, and key -> turn.
        self._forecasts: tuple[View | None, list[QueueEntry], dict[Any, Turn]] = (None, [], {})
        self._snapshot: QueueSnapshot | None = None
        # Each keeps what it can of its last plan: one of the queue, one of what would be.
        self._planner, self._other_planner = Planner(), Planner()
        ledger.on_release = self.wake

    async def ensure_read(self, groups: Collection[str]) -> None:
        """Read what a plan needs to know of the past and of reserved hours, if it never was.

        Args:
            groups: those of the user who asks.

        Raises:
            Unknown: there is a budget for the user, and what they have had can't be read.
        """
        await self.budgets.ensure_read(groups)
        if self._ready:
            await self._ready()

    @property
    def settings(self) -> QueueSettings:
        """The administrator's settings."""
        return self._settings

    @property
    def waiting(self) -> tuple[QueueEntry, ...]:
        """The requests that couldn't be granted at once, in the queue's order."""
        entries = [entry for entry in self._entries if entry.turn and not entry.answer.done()]
        return tuple(sorted(entries, key=lambda entry: entry.turn.place if entry.turn else 0))

    def waiting_for(self, units: Collection[str]) -> int:
        """Return how many requests in the queue could use these GPUs if they were free."""
        view, back, now = self._ledger.last_view or View(), set(units), time.time()
        alike: dict[Any, list[Turn]] = {}
        for entry in self._unanswered():
            if turn := entry.turn:
                request = turn.waiting.request
                kind = request.accepts, request.gpus, turn.because, turn.waiting.not_before
                alike.setdefault(kind, []).append(turn)
        return sum(
            len(turns)
            for turns in alike.values()
            if could_use(turns[0], view.gpus, view.leases, back, now)
        )

    def wake(self) -> None:
        """Plan again, as something may have changed."""
        self._changed.set()

    def join_time(self, holder: Holder | None = None) -> float:
        """Return the time at which a request joins: now, after all earlier ones.

        Args:
            holder: the holder, whose place may be kept, and who has that again then.
        """
        if holder and (kept := self.kept_place(holder)):
            return kept.since
        # Strictly later even if the clock was set back: with equal times the name would decide.
        self._last_join_time = max(math.nextafter(self._last_join_time, math.inf), time.time())
        return self._last_join_time

    def kept_place(self, holder: Holder) -> KeptPlace | None:
        """Return the place that is kept for a holder who has left the queue; None: none."""
        kept = self._kept_places.get(holder)
        return kept if kept and time.time() < kept.until else None

    def keep_place(self, waiting: QueuedRequest) -> None:
        """Keep the place of a request that leaves the queue, for `KEPT_PLACE_SECONDS`."""
        now = time.time()
        kept = {holder: each for holder, each in self._kept_places.items() if now < each.until}
        place = KeptPlace(waiting.since, now + KEPT_PLACE_SECONDS, waiting.not_before)
        self._kept_places = {**kept, waiting.holder: place}

    def move_to_front(self, holder: Holder, course: str, view: View) -> int:
        """Move a request to the front of those of its course; return its place among all.

        The course's requests keep their places among all, and change them with each other. Nobody
        else starts later for it by the known ends of the leases.

        Args:
            holder: whose request it is.
            course: the key of the course.
            view: the nodes and the leases, read since the last await.

        Raises:
            Refused: it doesn't wait for that course, or others would start later.
        """
        entries = self._unanswered()
        of_course = [each for each in entries if each.waiting.request.course == course]
        entry = next((each for each in of_course if each.holder == holder and each.turn), None)
        if entry is None:
            raise Refused(WAITS_NO_MORE, status=409)
        moved = replace(entry.waiting, moved=1 + max(each.waiting.moved for each in of_course))
        before = self._plan([(each.waiting, each.request_limits) for each in entries], view)
        after = self._plan(
            [(moved if each is entry else each.waiting, each.request_limits) for each in entries],
            view,
        )
        others = [each.holder for each in entries if each not in of_course]
        if any(_start(after[each]) > _start(before[each]) + SAME_SECONDS for each in others):
            words = lazy_gettext(
                "At the front of the course it would keep others waiting for longer who aren't in "
                "the course: it asks for more, or for longer, than who is there now."
            )
            raise Refused(words, status=409)
        entry.waiting = moved
        known = {each.holder for each in entries} | self._kept_places.keys()
        self._moved = {key: each for key, each in self._moved.items() if key[0] in known}
        self._moved[_identity(moved)] = moved.moved
        self.wake()
        return after[holder].place

    async def wait(
        self,
        waiting: QueuedRequest,
        request_limits: RequestLimits,
        notify: Callable[[Turn | str], None],
        rules: CurrentRules | None = None,
        waited: float | None = None,
    ) -> Reservation:
        """Wait until it is the request's turn; return its reservation. A cancel leaves the queue.

        Args:
            waiting: the request.
            request_limits: its limits.
            notify, rules: as for `QueueEntry`.
            waited: for how many seconds it has waited already, and so has its place; None: it
                comes for the first time. Not from `waiting.since`, as the clock may be set.

        Raises:
            Refused: it may not wait, has waited too long, or its user holds too many GPUs.
            Unknown: NVML or the engine couldn't be read when the request joined.
        """
        answer: asyncio.Future[Reservation] = asyncio.get_running_loop().create_future()
        kept = self.kept_place(waiting.holder)
        has_place = waited is not None or (kept is not None and kept.since == waiting.since)
        self._kept_places.pop(waiting.holder, None)
        waiting = replace(waiting, moved=self._moved.get(_identity(waiting), 0))
        entry = QueueEntry(waiting, request_limits, notify, answer, rules, has_place)
        longest = request_limits.max_wait_seconds
        # What it waits for its own time doesn't count.
        ahead = max(0.0, waiting.not_before - waiting.since)
        left = longest and max(1.0, longest + ahead - (waited or 0.0))
        self._entries.append(entry)
        self.wake()
        if self._serving is None or self._serving.done():
            self._serving = asyncio.ensure_future(self._serve())
        try:
            # A request that may not wait is granted or refused by the first plan.
            await asyncio.wait([answer], timeout=left or None)
            if not answer.done():
                raise Refused(_waited_too_long(waiting.request, longest or 0), "no_gpu", 503)
            return answer.result()
        except BaseException:
            if answer.done() and not answer.exception():
                self._ledger.release(answer.result())
            raise
        finally:
            self._entries.remove(entry)
            is_granted = not answer.cancel() and not answer.cancelled() and not answer.exception()
            # The plan that has granted its GPUs has told the others their turns.
            if not is_granted or not self._entries:
                self.wake()

    def forecast(self, waiting: QueuedRequest, request_limits: RequestLimits, view: View) -> Turn:
        """Return the turn that a request would get if it joined now.

        Open forms ask for the same requests again and again, so forecasts are cached while neither
        the view nor the queue changes.

        Args:
            waiting: the request.
            request_limits: its limits.
            view: the nodes and the leases.
        """
        others = [entry for entry in self._unanswered() if entry.holder != waiting.holder]
        if self._forecasts[0] is not view or self._forecasts[1] != others:
            self._forecasts = (view, others, {})
            self._snapshot = self._make_snapshot(others, view)
        request, limits = replace(waiting.request, image=""), request_limits.group_limits
        claims = self.claims(view.leases)
        held = held_by_person(waiting.holder, claims)
        mine = frozenset(waiting.groups & limits.keys())
        kept, later = self.kept_place(waiting.holder), waiting.not_before
        share = self.share_of_user(waiting.holder, waiting.groups)
        key = (request, held, frozenset(limits.items()), mine, kept, later, share)
        known = self._forecasts[2]
        if key not in known:
            turn = self._snapshot.forecast_turn(waiting, limits) if self._snapshot else None
            if turn is None:
                queue = [
                    *((entry.waiting, entry.request_limits) for entry in others),
                    (waiting, request_limits),
                ]
                turn = self._plan(queue, view)[waiting.holder]
            known[key] = self._titled(turn)
        return replace(known[key], waiting=waiting)

    def _make_snapshot(self, entries: Sequence[QueueEntry], view: View) -> QueueSnapshot | None:
        if self._settings.order != "fifo":
            return None
        limits = _strictest(entry.request_limits for entry in entries)
        queue = [entry.waiting for entry in entries]
        now, reserved = time.time(), self._reserved()
        return QueueSnapshot(queue, view.gpus, view.leases, now, limits, reserved)

    async def _serve(self) -> None:
        watcher = self._watch(self.wake)
        listening = False
        refreshed_at = time.monotonic()
        try:
            while self._entries:
                self._changed.clear()
                if time.monotonic() - refreshed_at >= PERIOD_SECONDS:
                    refreshed_at = time.monotonic()
                    self._refresh()
                try:
                    view = await self._ledger.read()
                    # No await between the read and the reservations: another spawn could choose
                    # the same GPUs.
                    self._decide(view)
                except Unknown as error:
                    self._report_unknown(error)
                except Exception:  # one request that fails must not stop the queue
                    log.exception("Planning the queue failed")
                    # The error's text may be about another user's request.
                    self._fail_newcomers(
                        Unknown(lazy_gettext("An administrator finds the reason in the hub's log."))
                    )
                if not listening and self._unanswered():
                    # Not earlier, as most requests never wait. The watcher calls back as soon as
                    # it listens, so an end of a server since the read isn't missed.
                    watcher.begin()
                    listening = True
                with suppress(asyncio.TimeoutError):
                    await within(PERIOD_SECONDS, self._changed.wait())
        finally:
            if listening:
                watcher.end()

    def _refresh(self) -> None:
        for entry in self._unanswered():
            try:
                entry.refresh()
            except Exception as error:  # its groups can't be read: it fails alone
                entry.answer.set_exception(error)

    def _decide(self, view: View) -> None:
        self._refuse_over_limit(view.leases)
        entries = {entry.holder: entry for entry in self._unanswered()}
        queue = [(entry.waiting, entry.request_limits) for entry in entries.values()]
        granted_now: list[Lease] = []
        for turn in self._plan(queue, view, self._planner).values():
            entry = entries[turn.waiting.holder]
            if turn.gpus:
                granted = self._reserve(turn)
                entry.answer.set_result(granted)
                granted_now.append(_lease_of(granted))
                continue
            if not entry.has_place or entry.request_limits.max_wait_seconds == 0:
                # A refusal says what is free after the grants before it.
                view, granted_now = view.with_leases(granted_now), []
                request, limits = entry.waiting.request, entry.request_limits
                if refused := self.refusal(request, limits, turn, view):
                    entry.answer.set_exception(Refused(refused, "no_gpu", 503))
                    continue
            entry.turn, entry.has_place = turn, True
            self._notify(entry, turn, _shown_turn(turn))

    def _plan(
        self,
        queue: Sequence[tuple[QueuedRequest, RequestLimits]],
        view: View,
        planner: Planner | None = None,
    ) -> dict[Holder, Turn]:
        """Return holder -> turn, with the places counted among requests that can't start now.

        Args:
            queue: the requests with their limits.
            view: the nodes and the leases.
            planner: who has planned such a queue before; None: this one would be another.
        """
        turns = (planner or self._other_planner).plan(
            [waiting for waiting, _ in queue],
            view.gpus,
            view.leases,
            time.time(),
            order=self._settings.order,
            policy=self._settings.policy,
            part_policy=self._settings.part_policy,
            group_limits=_strictest(request_limits for _, request_limits in queue),
            reserved=self._reserved(),
            shares=self._shares_of(waiting for waiting, _ in queue),
        )
        places, of = itertools.count(1), sum(not turn.gpus for turn in turns)
        return {
            turn.waiting.holder: turn if turn.gpus else self._titled(turn.at(next(places), of))
            for turn in turns
        }

    def _titled(self, turn: Turn) -> Turn:
        """Return a turn with what users call the course that it waits for."""
        return replace(turn, course_title=self._course_title(turn.course)) if turn.course else turn

    def _shares_of(self, queue: Iterable[QueuedRequest]) -> UserShares:
        people = ((each.holder, each.groups) for each in queue)
        return self._shares.of(people, time.time()) if self._shares else NO_SHARES

    def share_of_user(self, holder: Holder, groups: Collection[str]) -> UserShare | None:
        """Return what a user has had lately, roughly, where the order goes by it; else None.

        Args:
            holder: a server of the user's.
            groups: the user's groups.
        """
        if self._shares is None:
            return None
        found = self._shares.of([(holder, groups)], time.time())
        share = found.get(holder.person, UserShare())
        return replace(share, decayed=round(share.decayed, 1), week=round(share.week, 1))

    def _reserve(self, turn: Turn) -> Reservation:
        waiting = turn.waiting
        reservation = Reservation(waiting.holder, turn.gpus, groups=waiting.groups)
        reservation.begin(time.time(), waiting.request.seconds)
        return self._ledger.reserve(reservation)

    def refusal(
        self, request: Request, request_limits: RequestLimits, turn: Turn, view: View
    ) -> str:
        """Return why a request that can't start now may not wait either; "" if it may."""
        if request_limits.max_wait_seconds == 0:
            ahead = "" if turn.because != "order" else lazy_gettext("Others wait before you.")
            if turn.hours:
                return hours_words_of(turn.hours, turn.course_name)
            if request.slots:
                return slot_words(turn)
            return join_sentences(explain_shortage(request, view.gpus), ahead)
        waiting = len(self.waiting)
        if waiting >= self._settings.length:
            return lazy_gettext(
                "The queue is full: %(number)s wait already. Please try again later.",
                number=waiting,
            )
        return ""

    def _refuse_over_limit(self, leases: Sequence[Lease]) -> None:
        """Refuse new requests of users who hold or wait for too many GPUs already."""
        counted: list[QueueEntry] = []
        before = [entry for entry in self._unanswered() if entry.has_place]
        for entry in self._unanswered():
            if not entry.has_place:
                request = entry.waiting.request
                limit = entry.request_limits.most_of_user(request)
                if limit is not None:
                    held = _held_beside(entry, leases, counted)
                    if held + request.share > limit:
                        entry.answer.set_exception(over_user_limit(request, held, limit))
                        continue
                if refused := self._over_budget(entry, leases, before):
                    entry.answer.set_exception(refused)
                    continue
                before.append(entry)
            counted.append(entry)

    def _over_budget(
        self, entry: QueueEntry, leases: Sequence[Lease], before: Sequence[QueueEntry]
    ) -> Exception | None:
        """Return why a new request is over a budget by what has come since its check, if it is."""
        if not self.budgets:
            return None
        waiting = entry.waiting
        try:
            standings = self.standings(waiting.holder, waiting.groups, leases, before)
            within_budgets(waiting.request, self._part_of(waiting.request), standings, named=True)
        except (Refused, Unknown) as error:
            return error
        return None

    def standings(
        self,
        holder: Holder,
        groups: Collection[str],
        leases: Sequence[Lease],
        waiting: Sequence[QueueEntry] | None = None,
    ) -> list[Standing]:
        """Return what a server's user has left of each budget, without what it is promised itself.

        Args:
            holder: the server.
            groups: its user's groups.
            leases: what is held, as of the last read.
            waiting: the requests that count; None: all that wait.

        Raises:
            Unknown: what the user has had can't be read.
        """
        if not self.budgets:
            return []
        now = time.time()
        promises = [
            Promise(
                entry.holder,
                entry.waiting.groups,
                self._part_of(entry.waiting.request),
                entry.waiting.request.seconds and now + entry.waiting.request.seconds,
            )
            for entry in (self._unanswered() if waiting is None else waiting)
        ]
        return self.budgets.standings(holder, groups, leases, promises, now)

    def _part_of(self, request: Request) -> Share:
        return part_of_gpus(request, self._ledger.last_view.gpus if self._ledger.last_view else ())

    def within_budgets(
        self,
        waiting: QueuedRequest,
        leases: Sequence[Lease],
        named: bool,
        promised: float | None = None,
    ) -> Request:
        """Return a request with an end within its user's budgets; arguments as for that function.

        Raises:
            Refused: too little is left.
            Unknown: what the user has had can't be read.
        """
        standings = self.standings(waiting.holder, waiting.groups, leases)
        part = self._part_of(waiting.request)
        return within_budgets(waiting.request, part, standings, named, promised)

    def latest_end(self, lease: Lease, until: float) -> tuple[float, str]:
        """Return the latest end within its user's budgets that a running server can have.

        Args:
            lease: the server's, with its end and its user's groups as they are now.
            until: the end that it asks for, in seconds since the epoch.

        Returns:
            The end, and sentences on why it can't be later; "": it can.

        Raises:
            Unknown: what the user has had can't be read.
        """
        standings = self.standings(lease.holder, lease.groups, self._ledger.leases_now())
        part, now = share_of(lease.gpus), time.time()
        own = Use(lease.holder.user, lease.groups, float(part), now, max(now, lease.until or now))
        return latest_end(standings, part, own, until)

    def claims(self, leases: Sequence[Lease]) -> list[tuple[Holder, Share]]:
        """Return (holder, number of GPUs) of every lease and every request in the queue."""
        return [(lease.holder, lease.share) for lease in leases] + [
            (entry.holder, entry.waiting.request.share) for entry in self._unanswered()
        ]

    def _unanswered(self) -> list[QueueEntry]:
        return [entry for entry in self._entries if not entry.answer.done()]

    def _report_unknown(self, error: Unknown) -> None:
        for entry in self._unanswered():
            if not entry.has_place:
                entry.answer.set_exception(error)
            else:
                words = join_sentences(lazy_gettext("You keep your place."), str(error))
                self._notify(entry, words, words)

    def _notify(self, entry: QueueEntry, news: Turn | str, shown: Any) -> None:
        """Notify the server of a request if what it shows changes; if that fails, it fails alone.

        Args:
            entry: the request.
            news: its turn, or a sentence.
            shown: what users see of the news.
        """
        if shown == entry.shown:
            return
        entry.shown = shown
        try:
            entry.notify(news)
        except Exception as error:
            if not entry.answer.done():
                entry.answer.set_exception(error)

    def _fail_newcomers(self, error: Exception) -> None:
        for entry in self._unanswered():
            if not entry.has_place:
                entry.answer.set_exception(error)


def _identity(waiting: QueuedRequest) -> tuple[Holder, float, str]:
    return waiting.holder, waiting.since, waiting.request.course


def _start(turn: Turn) -> float:
    return math.inf if turn.start is None else turn.start


def _strictest(request_limits: Iterable[RequestLimits]) -> dict[str, int]:
    """Return group -> limit; if requests have different limits of a group, the strictest one."""
    limits = [limit for each in request_limits for limit in each.group_limits.items()]
    return dict(sorted(limits, key=lambda limit: limit[1], reverse=True))


def held_by_person(holder: Holder, claims: Sequence[tuple[Holder, Share]]) -> Share:
    """Return how many GPUs a holder's user has or waits for with all of their servers."""
    return sum(number for other, number in claims if other.person == holder.person)


def held_by_other_servers(holder: Holder, claims: Sequence[tuple[Holder, Share]]) -> Share:
    """Return how many GPUs a holder's user has or waits for with all of their other servers.

    Args:
        holder: the server that isn't counted.
        claims: (holder, number of GPUs) of every lease and every request in the queue.
    """
    return sum(
        number for other, number in claims if other.person == holder.person and other != holder
    )


def _held_beside(entry: QueueEntry, leases: Sequence[Lease], others: Sequence[QueueEntry]) -> Share:
    """Return how many GPUs an entry's user has or waits for with their other servers."""
    person = entry.holder.person
    claims = [(each.holder, each.share) for each in leases if each.holder.person == person]
    claims += [
        (each.holder, each.waiting.request.share) for each in others if each.holder.person == person
    ]
    return held_by_other_servers(entry.holder, claims)


def own_claims(
    holder: Holder, claims: Sequence[tuple[Holder, Share]]
) -> tuple[Share, Holder | None]:
    """Return what of the claims makes one holder's forecasts differ from others' by equal rules.

    That are the GPUs of the user's other servers; and the holder, if it has or waits for some: for
    its own forecasts these don't count.

    Args:
        holder: the server that would ask.
        claims: as for `held_by_other_servers`.
    """
    has_some = any(other == holder for other, _ in claims)
    return held_by_other_servers(holder, claims), holder if has_some else None


def over_user_limit(request: Request, held: Share, limit: Share) -> Refused:
    """Return the refusal of a request over the user's limit for all their servers.

    Args:
        request: what is requested.
        held: how many the user has or waits for with other servers.
        limit: the user's limit.
    """
    sentence = lazy_gettext(
        "You asked for %(gpus)s, your other servers have or wait for %(held)s, and your limit is "
        "%(limit)s for all of them together. Stop one, or ask for fewer.",
        gpus=request_phrase(request),
        held=share_words(held),
        limit=share_words(limit),
    )
    return Refused(sentence, "limit", 403, key="gpus")


def _lease_of(granted: Reservation) -> Lease:
    return Lease(granted.holder, granted.units, granted.until, granted.groups, count=granted.share)


def _shown_turn(turn: Turn) -> tuple[Any, ...]:
    """Return the part of a turn that users are notified of, to the minute."""
    start = None if turn.start is None else round(turn.start / 60)
    shorter = turn.hours and round(turn.hours.until_then / 60)
    used = None if turn.used is None else shown_hours(turn.used)
    words = turn.because, turn.course_title, turn.machines
    return turn.place, turn.of, words, start, shorter, used


def _waited_too_long(request: Request, seconds: float) -> str:
    return lazy_gettext(
        "You have waited for %(gpus)s for %(duration)s, which is the longest wait here. "
        "Ask for fewer, or try again later.",
        gpus=request_phrase(request),
        duration=hours_words(seconds),
    )
