"""A running server's wait for GPUs: its place in the queue, and what is reserved for it then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import Refused, Unknown
from .gpus.allocation import request_phrase, units_phrase
from .gpus.links import connection
from .gpus.model import Request
from .hub import metrics
from .i18n.lazy_text import lazy_gettext, lazy_ngettext
from .i18n.phrases import clock_time
from .leases import audit_log
from .leases.audit_log import one_line
from .leases.clock import Clock, Deadline
from .leases.ledger import Reservation
from .leases.server_lease import note_releases
from .running_choice import RunningChoice, as_refusal
from .scheduling.phrases import place_words
from .scheduling.plan import QueuedRequest, Turn
from .scheduling.queue import PERIOD_SECONDS, RequestLimits

# How long who asks waits for the first place in the queue, to be told of a refusal at once.
ANSWER_SECONDS = 3.0
# How often it is looked whether an offer is over.
LOOK_SECONDS = 1.0
WAITS_AGAIN = lazy_gettext(
    "What was reserved for you can't be had any more: a GPU is out of order, or the rules for you "
    "have changed. You wait again, at your place."
)


@dataclass(eq=False)
class Asked:
    """What a running server asks for.

    Args:
        choice: what it is to be started with.
        request: the same, checked.
        since: when it joined the queue, in seconds since the epoch.
        joined: the same by the steady clock.
        turn: its turn by the last plan; None before the first one, and once it has an offer.
        waits: whether it couldn't be granted at once.
        trouble: why its turn isn't known at the moment, as a sentence; "" if it is.
        failed: why it has ended without an offer; None: it hasn't.
    """

    choice: dict[str, Any]
    request: Request
    since: float
    joined: Deadline
    turn: Turn | None = None
    waits: bool = False
    trouble: str = ""
    failed: Refused | None = None

    @property
    def what(self) -> str:
        """What it asks for: "2 GPUs", "1 shared GPU"."""
        return request_phrase(self.request)

    @property
    def waited(self) -> float:
        """For how long it has waited, in seconds."""
        return round(-self.joined.remaining, 1)


@dataclass(eq=False)
class Offer:
    """GPUs that are reserved for a running server whose turn has come.

    Args:
        reservation: the GPUs.
        limits: the limits by which they were granted.
        deadline: until when they are.
        granted_at: since when, by the monotonic clock.
    """

    reservation: Reservation
    limits: RequestLimits
    deadline: Deadline
    granted_at: float


class WaitWhileRunning:
    """What one running server asks for, and its offer.

    Args:
        spawner: the server's `BaseGPUSpawner`.
        choice: the choice that it runs with.
        clock: what offers end by.
        changed: called whenever there is something new to tell its user.
        ended: called with a sentence for its user when the wait has ended by itself.
    """

    def __init__(
        self,
        spawner: Any,
        choice: RunningChoice,
        clock: Clock,
        changed: Callable[[], None],
        ended: Callable[[str], None],
    ) -> None:
        self._spawner = spawner
        self._choice = choice
        self._clock = clock
        self._told = changed
        self._ended = ended
        # What it asks for; None: nothing.
        self.asked: Asked | None = None
        # What is reserved for it; None: nothing.
        self.offer: Offer | None = None
        # Whether the offer is being taken up, so that it doesn't end meanwhile. Set while it is
        # checked, and by the restart.
        self.is_taken_up = False
        # What waits, and then looks after the offer.
        self._task: asyncio.Task[None] | None = None
        # Set as soon as it is known whether the request may wait.
        self._answered = asyncio.Event()

    @property
    def place(self) -> str:
        """Its place in the queue as a sentence; "" if it doesn't wait."""
        asked = self.asked
        if asked is None or self.offer:
            return ""
        return asked.trouble or (place_words(asked.turn) if asked.turn else "")

    async def begin(self, choice: dict[str, Any], request: Request) -> None:
        """Begin to wait; return once the request waits, or is granted.

        Args:
            choice: what the server is to be started with.
            request: the same, checked.

        Raises:
            Refused: it isn't one that could be granted.
        """
        since = self._spawner.hub_state.queue.join_time(self._spawner.holder)
        self.asked = asked = Asked(choice, request, since, Deadline.after(0, self._clock))
        self._answered = asyncio.Event()
        self._task = task = asyncio.ensure_future(self._wait(asked))
        answered = asyncio.ensure_future(self._answered.wait())
        await asyncio.wait(
            [task, answered], timeout=ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        answered.cancel()
        if asked.failed:
            raise asked.failed

    async def _wait(self, asked: Asked) -> None:
        """Wait until it is the request's turn, and look after the offer until that is over."""
        spawner = self._spawner
        try:
            offer = await self._next_offer(asked)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            asked.failed = gone = as_refusal(error)
            facts = audit_log.asked(asked.request) | {"waited": asked.waited, "rule": str(gone)}
            spawner.lease.log_event("refuse", **facts)
            if not isinstance(error, Refused | Unknown):
                said = one_line(self._spawner.holder)
                spawner.log.error("The request of %s failed", said, exc_info=error)
            self._end_with(str(gone))
            return
        await self._until_over(offer)

    async def _next_offer(self, asked: Asked) -> Offer:
        spawner = self._spawner
        while True:
            reservation = await self._turn(asked)
            granted_at, granted_by = time.monotonic(), spawner.request_limits()
            try:
                request = await self._check_again(asked)
                rules = spawner.groups_for(request), spawner.request_limits()
                if request != asked.request or rules != (reservation.groups, granted_by):
                    # Nothing awaits until it is back in the queue, at its place.
                    self._release(reservation, granted_at, "other rules")
                    asked.request = request
                    continue
            except BaseException:
                self._release(reservation, granted_at, "other rules, or given up")
                raise
            deadline = Deadline.after(60 * spawner.claim_minutes, self._clock)
            # Later at the latest, so that who waits isn't promised too much.
            reservation.begin(deadline.until, asked.request.seconds)
            asked.turn, asked.trouble = None, ""
            self.offer = offer = Offer(reservation, granted_by, deadline, granted_at)
            self._changed()
            return offer

    async def _turn(self, asked: Asked) -> Reservation:
        """Wait in the queue; return the reservation, which the audit log has then."""
        spawner = self._spawner
        queue, request = spawner.hub_state.queue, asked.request
        reservation: Reservation = await queue.wait(
            QueuedRequest(spawner.holder, request, asked.since, spawner.groups_for(request)),
            spawner.request_limits(),
            lambda turn: self._show_turn(asked, turn),
            rules=lambda: (spawner.groups_for(request), spawner.request_limits()),
            waited=asked.waited if asked.waits else None,
        )
        metrics.WAITS.observe(asked.waited)
        facts = {"gpus": reservation.units, "waited": asked.waited, "rule": queue.settings.order}
        note_releases(spawner.hub_state.leases, reservation.units)
        links = connection(reservation.gpus)
        if request.course:
            facts["course"] = request.course
        spawner.lease.log_event("grant", **facts, connection=links, until=None)
        return reservation

    def _show_turn(self, asked: Asked, turn: Turn | str) -> None:
        if isinstance(turn, str):
            asked.trouble = turn
        else:
            asked.turn, asked.trouble = turn, ""
            if not asked.waits:
                asked.waits = True
                facts = audit_log.asked(asked.request) | {"rule": turn.because}
                self._spawner.lease.log_event("wait", **facts)
        self._changed()

    async def _check_again(self, asked: Asked) -> Request:
        """Return the request by the rules of now."""
        while True:
            try:
                return (await self._choice.check(asked.choice)).request
            except Unknown as error:
                # It keeps its turn, but isn't granted by rules that can't be checked.
                asked.trouble = str(error)
                self._changed()
                await asyncio.sleep(PERIOD_SECONDS)

    def take_over(self, request: Request, groups: frozenset[str]) -> Offer | None:
        """Return what is reserved for the start of the server, which takes it over; None: nothing.

        What the start doesn't ask for any more is released.

        Args:
            request: what it asks for.
            groups: its user's.
        """
        offer, asked = self.offer, self.asked
        if offer is None or asked is None:
            return None
        if (request, groups) != (asked.request, offer.reservation.groups):
            self.release_offer("other rules")
            return None
        self.offer = None
        offer.reservation.begin(time.time(), request.seconds)
        return offer

    async def _until_over(self, offer: Offer) -> None:
        """Let an offer go when its time is over, unless it is being taken up."""
        while self.offer is offer:
            left = offer.deadline.remaining
            if left <= 0 and not self.is_taken_up:
                at, gpus = clock_time(offer.deadline.until), units_phrase(offer.reservation.gpus)
                self.release_offer("not claimed in time")
                self._end_with(
                    lazy_ngettext(
                        "%(gpus)s was reserved for you until %(time)s, and you didn't switch: the "
                        "next in line has it. Ask again if you need one.",
                        "%(gpus)s were reserved for you until %(time)s, and you didn't switch: the "
                        "next in line has them. Ask again if you need some.",
                        len(offer.reservation.gpus),
                        gpus=gpus,
                        time=at,
                    )
                )
                return
            await asyncio.sleep(min(left, LOOK_SECONDS) if left > 0 else LOOK_SECONDS)

    async def check_offer(self) -> dict[str, Any]:
        """Return the choice to be started with what is reserved.

        Raises:
            Refused: nothing is reserved, or it can't be had by the rules of now.
        """
        asked, offer = self.asked, self.offer
        if offer is None or asked is None:
            raise Refused(lazy_gettext("No GPU is reserved for this server now."), status=409)
        self.is_taken_up = True
        try:
            await self._check(asked, offer)
        finally:
            self.is_taken_up = False
        if self.offer is not offer:  # the server has ended meanwhile
            raise Refused(lazy_gettext("This server doesn't run now."), status=409)
        return asked.choice

    async def _check(self, asked: Asked, offer: Offer) -> None:
        try:
            request = (await self._choice.check(asked.choice)).request
            view = await self._spawner.ledger.read(except_for=self._spawner.holder)
        except Unknown as error:
            raise Refused(str(error), "no_gpu", 503) from error
        except Refused as error:
            if self.offer is offer:
                self.end(audit_log.RULES, "other rules")
            raise error
        if self.offer is not offer:
            return
        free = {gpu.id for gpu in view.gpus if gpu.state == "free"}
        rules = self._spawner.groups_for(request), self._spawner.request_limits()
        granted = offer.reservation.groups, offer.limits
        if request == asked.request and rules == granted and offer.reservation.units <= free:
            return
        self.release_offer("other rules, or a GPU out of order")
        asked.request = request
        if self._task:
            self._task.cancel()
        self._task = asyncio.ensure_future(self._wait(asked))
        self._changed()
        raise Refused(WAITS_AGAIN, "no_gpu", 409)

    def end(self, by: str, rule: str) -> None:
        """End the wait, or let the offer go.

        Args:
            by: who does so, for the audit log.
            rule: why.
        """
        asked, offer = self.asked, self.offer
        if self._task:
            self._task.cancel()
        if offer:
            self.release_offer(rule, by)
        elif asked:
            facts = audit_log.asked(asked.request) | {"waited": asked.waited, "rule": rule}
            self._spawner.lease.log_event("leave", by, **facts)
        self._task = self.asked = None

    def _end_with(self, notice: str) -> None:
        self.asked = None
        self._answered.set()
        self._ended(notice)

    def _changed(self) -> None:
        self._answered.set()
        self._told()

    def release_offer(self, rule: str, by: str = audit_log.RULES) -> None:
        """Release what is reserved, if anything is; as `end` says."""
        offer, self.offer = self.offer, None
        if offer:
            self._release(offer.reservation, offer.granted_at, rule, by)

    def _release(
        self, reservation: Reservation, granted_at: float, rule: str, by: str = audit_log.RULES
    ) -> None:
        spawner = self._spawner
        spawner.ledger.release(reservation)
        held = round(time.monotonic() - granted_at, 1)
        facts = {"gpus": reservation.units, "held": held, "rule": rule}
        spawner.lease.log_event("release", by, **facts)
