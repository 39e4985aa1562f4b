"""The queue: who waits for GPUs is served in order, as soon as something changes.

`plan` decides; here is who waits, what wakes the queue, and who is told what.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import Refused, Unknown
from ..gpus.allocation import explain, gpus_words
from ..gpus.model import Holder, Lease, Request
from ..i18n.lazy_text import lazy_gettext, together
from ..i18n.phrases import hours_words
from ..leases.ledger import Ledger, Reservation, View
from .plan import QueuedRequest, QueueSnapshot, Turn, could_use, plan

# Where the hub's own handlers write what goes wrong.
log = logging.getLogger("tornado.application")

# While somebody waits the host is looked at this often, also where no event of the engine came.
PERIOD_SECONDS = 5.0


@dataclass(frozen=True)
class QueueSettings:
    """What the administrator says of the queue, the same for everybody.

    Args:
        order: a key of `order.ORDERS`.
        policy: a key of `allocation.POLICIES`.
        length: the most who may wait.
    """

    order: str = "fifo"
    policy: str = "pack"
    length: int = 100


@dataclass(frozen=True)
class RequestLimits:
    """What applies to one that waits.

    Args:
        user_limit: the most GPUs that its user may hold, all servers together; None: no limit.
        group_limits: group -> the most GPUs that its members may hold at a time.
        longest: seconds to wait at most; 0 to be refused at once, None: for ever.
    """

    user_limit: int | None = None
    group_limits: Mapping[str, int] = field(default_factory=dict)
    longest: float | None = None


Rules = Callable[[], tuple[frozenset[str], RequestLimits]]


@dataclass(eq=False)
class QueueEntry:
    """One that waits.

    Args:
        waiting: who, for what and since when.
        request_limits: what applies to it.
        tell: called with each change of its turn, and with the sentence where there is trouble.
        rules: returns its groups and what applies to it now; None: what they were when it joined.
        has_place: whether it was told to wait already, if only before it came again.
    """

    waiting: QueuedRequest
    request_limits: RequestLimits
    tell: Callable[[Turn | str], None]
    answer: asyncio.Future[Reservation]
    rules: Rules | None = None
    has_place: bool = False
    # Its turn when the host was last looked at.
    turn: Turn | None = None

    @property
    def holder(self) -> Holder:
        """Whose server waits."""
        return self.waiting.holder

    def refresh(self) -> None:
        """Take the groups and limits of now."""
        if self.rules is not None:
            groups, self.request_limits = self.rules()
            self.waiting = replace(self.waiting, groups=groups)


class Queue:
    """Everybody of this hub who waits for GPUs.

    Args:
        ledger: hands out the GPUs of all nodes.
        rules: what applies to everybody.
        watch: makes, from what to call when a server may have ended, something with `begin` and
            `end` that listens in between.
    """

    def __init__(
        self, ledger: Ledger, rules: QueueSettings, watch: Callable[[Callable[[], None]], Any]
    ) -> None:
        self._ledger = ledger
        self._rules = rules
        self._watch = watch
        self._entries: list[QueueEntry] = []
        self._changed = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None
        self._last_since = 0.0
        # The view and the queue for which turns were forecast, and these by what they depend on.
        self._forecasts: tuple[View | None, list[QueueEntry], dict[Any, Turn]] = (None, [], {})
        self._standing: QueueSnapshot | None = None

    @property
    def rules(self) -> QueueSettings:
        """What applies to everybody."""
        return self._rules

    @property
    def waiting(self) -> tuple[QueueEntry, ...]:
        """Those who were told to wait, in the queue's order."""
        entries = [entry for entry in self._entries if entry.turn and not entry.answer.done()]
        return tuple(sorted(entries, key=lambda entry: entry.turn.place if entry.turn else 0))

    def waiting_for(self, uuids: Collection[str]) -> int:
        """Return how many wait who could use these GPUs, if they came back."""
        view, back = self._ledger.seen or View(), set(uuids)
        alike: dict[Any, list[Turn]] = {}
        for entry in self._open():
            if turn := entry.turn:
                request = turn.waiting.request
                alike.setdefault((request.kind, request.gpus, turn.because), []).append(turn)
        return sum(
            len(turns)
            for turns in alike.values()
            if could_use(turns[0], view.gpus, view.leases, back)
        )

    def wake(self) -> None:
        """Look at the host again: something may have changed."""
        self._changed.set()

    def since(self) -> float:
        """Return now, as the time at which somebody joins; after who joined last, always."""
        # Also where the clock was set back: of two that came at one time the name would decide.
        self._last_since = max(math.nextafter(self._last_since, math.inf), time.time())
        return self._last_since

    async def wait(
        self,
        waiting: QueuedRequest,
        request_limits: RequestLimits,
        tell: Callable[[Turn | str], None],
        rules: Rules | None = None,
        again: bool = False,
    ) -> Reservation:
        """Return GPUs, reserved, when it is this one's turn. A cancel leaves the queue.

        Args:
            waiting, request_limits, tell, rules: as of a `QueueEntry`.
            again: whether it has waited before, since `waiting.since`, and so has its place.

        Raises:
            Refused: it may not wait, or waited long enough, or its user holds too many already.
            Unknown: NVML or the engine couldn't be read when it joined.
        """
        answer: asyncio.Future[Reservation] = asyncio.get_running_loop().create_future()
        entry = QueueEntry(waiting, request_limits, tell, answer, rules, has_place=again)
        longest = request_limits.longest
        left = longest and max(1.0, longest - (time.time() - waiting.since if again else 0))
        self._entries.append(entry)
        self.wake()
        if self._serving is None or self._serving.done():
            self._serving = asyncio.ensure_future(self._serve())
        try:
            # Of those who may not wait, the first look decides.
            await asyncio.wait([answer], timeout=left or None)
            if not answer.done():
                raise Refused(_too_long(waiting.request, longest or 0), "no_gpu", 503)
            return answer.result()
        except BaseException:
            if answer.done() and not answer.exception():
                self._ledger.release(answer.result())
            raise
        finally:
            self._entries.remove(entry)
            answer.cancel()
            self.wake()

    def forecast(self, waiting: QueuedRequest, request_limits: RequestLimits, view: View) -> Turn:
        """Return what turn somebody would get who joined now, for a page that asks before.

        Pages ask for the same again and again: while nothing has changed, what was found stands.
        """
        others = [entry for entry in self._open() if entry.holder != waiting.holder]
        if self._forecasts[0] is not view or self._forecasts[1] != others:
            self._forecasts = (view, others, {})
            self._standing = self._stand(others, view)
        request, limits = replace(waiting.request, image=""), request_limits.group_limits
        claims = self.claims(view.leases)
        held = held_by_person(waiting.holder, claims)
        mine = frozenset(waiting.groups & limits.keys())
        key = (request, held, frozenset(limits.items()), mine)
        known = self._forecasts[2]
        if key not in known:
            turn = self._standing.turn_of(waiting, limits) if self._standing else None
            if turn is None:
                queue = [
                    *((entry.waiting, entry.request_limits) for entry in others),
                    (waiting, request_limits),
                ]
                turn = self._plan(queue, view)[waiting.holder]
            known[key] = turn
        return replace(known[key], waiting=waiting)

    def _stand(self, entries: Sequence[QueueEntry], view: View) -> QueueSnapshot | None:
        if self._rules.order != "fifo":
            return None
        limits = _strictest(entry.request_limits for entry in entries)
        queue = [entry.waiting for entry in entries]
        return QueueSnapshot(queue, view.gpus, view.leases, time.time(), limits)

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
                    view = await self._ledger.look()
                    # From here to the reservations nothing may await: it would choose them twice.
                    self._decide(view)
                except Unknown as error:
                    self._say_trouble(error)
                except Exception:  # no queue may stop for one that can't be decided on
                    log.exception("The queue can't be decided on")
                    # Whose fault it is isn't known, and its words may be about somebody else.
                    self._fail_newcomers(
                        Unknown(lazy_gettext("An administrator finds the reason in the hub's log."))
                    )
                if not listening and self._open():
                    # Most never wait. What happened since the look is looked at once it listens.
                    watcher.begin()
                    listening = True
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), PERIOD_SECONDS)
        finally:
            if listening:
                watcher.end()

    def _refresh(self) -> None:
        for entry in self._open():
            try:
                entry.refresh()
            except Exception as error:  # its groups can't be read: it fails alone
                entry.answer.set_exception(error)

    def _decide(self, view: View) -> None:
        self._refuse_over_limit(view.leases)
        entries = {entry.holder: entry for entry in self._open()}
        queue = [(entry.waiting, entry.request_limits) for entry in entries.values()]
        for turn in self._plan(queue, view).values():
            entry = entries[turn.waiting.holder]
            if turn.gpus:
                granted = self._reserve(turn)
                entry.answer.set_result(granted)
                # Who is refused after this one reads what is free now.
                lease = Lease(granted.holder, granted.uuids, granted.until, granted.groups)
                view = view.with_lease(lease)
            elif (not entry.has_place or entry.request_limits.longest == 0) and (
                refused := self.refusal(entry.waiting.request, entry.request_limits, turn, view)
            ):
                entry.answer.set_exception(Refused(refused, "no_gpu", 503))
            else:
                news = entry.turn is None or _as_told(turn) != _as_told(entry.turn)
                entry.turn, entry.has_place = turn, True
                if news:
                    self._tell(entry, turn)

    def _plan(
        self, queue: Sequence[tuple[QueuedRequest, RequestLimits]], view: View
    ) -> dict[Holder, Turn]:
        """Return each one's turn, with the place among those who can't start now."""
        turns = plan(
            [waiting for waiting, _ in queue],
            view.gpus,
            view.leases,
            time.time(),
            order=self._rules.order,
            policy=self._rules.policy,
            group_limits=_strictest(request_limits for _, request_limits in queue),
        )
        places = itertools.count(1)
        return {
            turn.waiting.holder: turn if turn.gpus else replace(turn, place=next(places))
            for turn in turns
        }

    def _reserve(self, turn: Turn) -> Reservation:
        waiting = turn.waiting
        seconds = waiting.request.seconds
        until = None if seconds is None else time.time() + seconds
        return self._ledger.reserve(
            Reservation(waiting.holder, turn.gpus, until=until, groups=waiting.groups)
        )

    def refusal(
        self, request: Request, request_limits: RequestLimits, turn: Turn, view: View
    ) -> str:
        """Return why somebody who can't start now may not wait either; "" where they may."""
        if request_limits.longest == 0:
            ahead = "" if turn.because != "order" else lazy_gettext("Others wait before you.")
            return together(explain(request, view.gpus), ahead)
        waiting = len(self.waiting)
        if waiting >= self._rules.length:
            return lazy_gettext(
                "The queue is full: %(number)s wait already. Please try again later.",
                number=waiting,
            )
        return ""

    def _refuse_over_limit(self, leases: Sequence[Lease]) -> None:
        """Refuse newcomers whose user holds, or waits for, too many GPUs already."""
        claims = [(lease.holder, len(lease.gpus)) for lease in leases]
        for entry in self._open():
            request = entry.waiting.request
            limit = entry.request_limits.user_limit
            if not entry.has_place and limit is not None:
                held = held_by(entry.holder, claims)
                if held + request.gpus > limit:
                    sentence = over_user_limit(request.gpus, held, limit)
                    entry.answer.set_exception(Refused(sentence, "limit", 403))
                    continue
            claims.append((entry.holder, request.gpus))

    def claims(self, leases: Sequence[Lease]) -> list[tuple[Holder, int]]:
        """Return holder and number of GPUs of every lease and everybody who waits."""
        return [(lease.holder, len(lease.gpus)) for lease in leases] + [
            (entry.holder, entry.waiting.request.gpus) for entry in self._open()
        ]

    def _open(self) -> list[QueueEntry]:
        return [entry for entry in self._entries if not entry.answer.done()]

    def _say_trouble(self, error: Unknown) -> None:
        for entry in self._open():
            if not entry.has_place:
                entry.answer.set_exception(error)
            else:
                self._tell(entry, together(lazy_gettext("You keep your place."), str(error)))

    def _tell(self, entry: QueueEntry, news: Turn | str) -> None:
        """Tell one, who alone fails where that can't be done."""
        try:
            entry.tell(news)
        except Exception as error:
            if not entry.answer.done():
                entry.answer.set_exception(error)

    def _fail_newcomers(self, error: Exception) -> None:
        for entry in self._open():
            if not entry.has_place:
                entry.answer.set_exception(error)


def _strictest(request_limits: Iterable[RequestLimits]) -> dict[str, int]:
    """Return each group's limit: of members under different rules the strictest holds for all."""
    limits = [limit for each in request_limits for limit in each.group_limits.items()]
    return dict(sorted(limits, key=lambda limit: limit[1], reverse=True))


def held_by_person(holder: Holder, claims: Sequence[tuple[Holder, int]]) -> int:
    """Return how many GPUs a holder's user has, or waits for, with all servers."""
    return sum(number for other, number in claims if other.person == holder.person)


def held_by(holder: Holder, claims: Sequence[tuple[Holder, int]]) -> int:
    """Return how many GPUs a holder's user has, or waits for, with servers other than this one.

    Args:
        holder: the server that isn't counted.
        claims: holder and number of GPUs, for every lease and everybody who waits.
    """
    return sum(
        number for other, number in claims if other.person == holder.person and other != holder
    )


def over_user_limit(wanted: int, held: int, limit: int) -> str:
    """Say that a user asks for too many GPUs, with those of their other servers."""
    return lazy_gettext(
        "gpus is %(wanted)s, your other servers have or wait for %(held)s, and your limit is "
        "%(limit)s for all of them together. Stop one, or ask for fewer.",
        wanted=wanted,
        held=held,
        limit=limit,
    )


def _as_told(turn: Turn) -> tuple[Any, ...]:
    """Return what of a turn a person would call news."""
    return turn.place, turn.because, None if turn.start is None else round(turn.start / 60)


def _too_long(request: Request, seconds: float) -> str:
    return lazy_gettext(
        "You have waited for %(gpus)s for %(duration)s, which is the longest wait here. "
        "Ask for fewer, or try again later.",
        gpus=gpus_words(request.gpus),
        duration=hours_words(seconds),
    )
