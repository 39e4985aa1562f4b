"""A spawn's wait for GPUs: its place in the queue, and the check by the rules of its turn."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

from .check_in import CheckIn
from .errors import Refused, Unknown
from .gpus.links import connection
from .gpus.model import Request
from .hub import compat, metrics
from .i18n.languages import translations
from .i18n.lazy_text import lazy_gettext
from .i18n.phrases import ordinal
from .leases import audit_log
from .leases.clock import Clock, Deadline
from .leases.ledger import Reservation
from .leases.server_lease import note_releases
from .scheduling.phrases import absent_words, check_in_words, place_words, turn_words
from .scheduling.plan import QueuedRequest, Turn
from .scheduling.queue import PERIOD_SECONDS
from .spawn_attempt import SpawnAttempt

UNUSED = "other rules, or given up before the start"


class WaitInQueue:
    """How the spawns of one server wait for their turn.

    Args:
        spawner: the server's `BaseGPUSpawner`.
        clock: the machine's.
    """

    def __init__(self, spawner: Any, clock: Clock | None = None) -> None:
        self._spawner = spawner
        self._clock = clock or Clock()

    async def for_turn(self) -> Reservation:
        """Wait in the queue; return the reservation, granted by the rules at that time."""
        spawner = self._spawner
        attempt = spawner.attempt
        if attempt.request is None:
            with spawner.overrides.without_hooks():
                applicant = spawner.applicant()
            spawner.take(await spawner.check_choice(spawner.user_options, applicant))
        assert attempt.request
        await spawner.remove_leftovers(attempt.request)
        if attempt.since is None:
            self.join()
        while True:
            request = attempt.request
            reservation = self._take_over(request) or await self._wait_in_queue(request)
            try:
                if attempt.waiting_since is not None:
                    await self._check_in(request, reservation)
                    granted_by = reservation.groups, spawner.request_limits()
                    await self._check_again()
                    asked = replace(attempt.request, image=request.image)
                    rules = spawner.groups_for(asked), spawner.request_limits()
                    if asked != request or (request.gpus and rules != granted_by):
                        # By the current rules it is another request, or in another group's share.
                        # Nothing awaits until it is back in the queue, at its place.
                        self.give_back(reservation, UNUSED)
                        continue
                    attempt.waiting_since = None
                attempt.granted, attempt.waited = reservation, self._waited
                compat.save_state(spawner)
            except BaseException:  # refused by a new rule, or cancelled
                self.give_back(reservation, UNUSED)
                raise
            return reservation

    async def _check_in(self, request: Request, reservation: Reservation) -> None:
        """Wait until who has waited long says that they are there; the GPUs are held meanwhile.

        Raises:
            Refused: they haven't in time.
        """
        spawner, attempt = self._spawner, self._spawner.attempt
        minutes = spawner.check_in_minutes
        if not (minutes and reservation.gpus) or attempt.is_present:
            return
        if self._waited < 60 * minutes:  # they are there still
            return
        came, turns = self._clock.wall(), spawner.hub_state.turns
        turn = CheckIn(Deadline.after(60 * minutes, self._clock))
        attempt.check_in = turns[spawner.holder] = turn
        until = turn.deadline.until
        reservation.begin(until, request.seconds)  # the plan reckons with the latest end
        words = check_in_words(request, until)
        spawner.progress_steps.add(18, words, about="turn", until=until, token=turn.token)
        spawner.lease.log_event("warn", rule="check in", until=round(until))
        spawner.tell("check in", words)
        try:
            attempt.is_present = await turn.wait()
        finally:
            attempt.check_in = None
            turns.pop(spawner.holder, None)
        if attempt.is_present:
            # Neither does the time to answer count.
            self._begin_term(request, reservation)
            reservation.until = spawner.lease.until
            spawner.progress_steps.add(18, lazy_gettext("You are here."), about="turn")
            return
        facts = audit_log.asked(request) | {"waited": self._waited, "rule": "nobody was there"}
        spawner.lease.log_event("leave", **facts)
        spawner.lease.notice = absent_words(came, 60 * minutes)
        raise Refused(spawner.lease.notice, "absent", 503)

    def join(self) -> None:
        """Note that the request comes now."""
        spawner = self._spawner
        spawner.attempt.since = spawner.hub_state.queue.join_time(spawner.holder)
        spawner.attempt.joined = Deadline.after(0, self._clock)
        spawner.hub_state.notifier.begin(spawner.holder)

    @property
    def _waited(self) -> float:
        """For how long the request has waited, in seconds."""
        joined = self._spawner.attempt.joined
        return round(-joined.remaining, 1) if joined else 0.0

    def _take_over(self, request: Request) -> Reservation | None:
        """Return the GPUs that were reserved while the server ran; None: none were."""
        spawner = self._spawner
        switch = spawner.hub_state.switches.get(spawner.holder)
        offer = switch and switch.take_over(request, spawner.groups_for(request))
        if not offer:
            return None
        reservation: Reservation = offer.reservation
        self._begin_term(request, reservation)
        spawner.attempt.granted_at = offer.granted_at
        return reservation

    def _begin_term(self, request: Request, reservation: Reservation) -> None:
        """Let the time begin that is asked for, or what is left of it for these units."""
        seconds = reservation.seconds(self._clock.wall(), request.seconds)
        self._spawner.lease.begin_term(seconds)

    async def _wait_in_queue(self, request: Request) -> Reservation:
        """Wait in the queue; return the reservation and begin the lease's term."""
        spawner = self._spawner
        if request.gpus == 0:
            spawner.lease.begin_term(None)
            return Reservation(spawner.holder, ())
        queue, since = spawner.hub_state.queue, spawner.attempt.since
        assert since is not None
        later = spawner.attempt.not_before
        request = replace(request, preferred=(await spawner.nodes_with_image(),))
        waiting = QueuedRequest(spawner.holder, request, since, spawner.groups_for(request), later)
        try:
            reservation = await queue.wait(
                waiting,
                spawner.request_limits(),
                self._show_turn,
                rules=lambda: (spawner.groups_for(request), spawner.request_limits()),
                waited=None if spawner.attempt.waiting_since is None else self._waited,
            )
        except asyncio.CancelledError:
            facts = audit_log.asked(request) | {"waited": self._waited, "rule": "given up"}
            spawner.lease.log_event("leave", audit_log.HUB, **facts)
            if spawner.attempt.waiting_since and time.monotonic() < spawner.attempt.changing_until:
                queue.keep_place(waiting)
            raise
        except (Refused, Unknown) as error:
            rule = str(error)
            facts = audit_log.asked(request) | {"waited": self._waited, "rule": rule}
            spawner.lease.log_event("refuse", **facts)
            raise
        self._begin_term(request, reservation)
        spawner.attempt.granted_at = time.monotonic()
        if not later:  # how long there are too few GPUs
            metrics.WAITS.observe(self._waited)
        note_releases(spawner.hub_state.leases, reservation.units)
        spawner.lease.log_event(
            "grant",
            gpus=reservation.units,
            waited=self._waited,
            rule=queue.settings.order,
            connection=connection(reservation.gpus),
            until=spawner.lease.until and round(spawner.lease.until),
            **({"course": request.course} if request.course else {}),
        )
        return reservation

    def give_back(self, reservation: Reservation, rule: str) -> None:
        """Release GPUs whose server isn't started.

        Args:
            reservation: of the GPUs.
            rule: why, for the log.
        """
        self._spawner.attempt.granted = None
        self._spawner.ledger.release(reservation)
        self.note_unused(self._spawner.attempt, reservation, rule)

    def note_unused(
        self, attempt: SpawnAttempt, granted: Reservation, rule: str, by: str = audit_log.RULES
    ) -> None:
        """Log the release of GPUs whose server never ran."""
        if granted.gpus:
            held = round(time.monotonic() - attempt.granted_at, 1)
            self._spawner.lease.log_event("release", by, gpus=granted.units, held=held, rule=rule)

    async def _check_again(self) -> None:
        """Check a choice that has waited by the rules that apply now.

        As at its first check, these are the rules without what later hooks have set.
        """
        spawner = self._spawner
        while True:
            overrides = await spawner.overrides_of_groups()
            with spawner.overrides.without_hooks():
                spawner.apply_overrides_of(overrides)
                applicant = spawner.applicant()
            try:
                spawner.take(await spawner.check_choice(spawner.user_options, applicant))
            except Unknown as error:
                # The request keeps its turn, but isn't granted by rules that can't be checked.
                self._show_turn(str(error))
                await asyncio.sleep(PERIOD_SECONDS)
                continue
            return await spawner.pull_image(spawner.image)

    def _show_turn(self, turn: Turn | str) -> None:
        """Show the server's place in the queue on the progress page."""
        spawner = self._spawner
        facts: dict[str, Any] = {}
        if not isinstance(turn, str):
            if spawner.attempt.waiting_since is None:
                spawner.attempt.waiting_since = spawner.attempt.since
                spawner.attempt.has_waited = True
                compat.save_state(spawner)
                waits_for = audit_log.asked(turn.waiting.request)
                spawner.lease.log_event("wait", **waits_for, rule=turn.because)
            nth = ordinal(turn.place)
            facts = {"place": turn.place, "nth": nth, "start": turn.start}
            facts["nth_said"] = translations(nth)
            facts["because"] = turn.because
            line = place_words(turn)
            facts |= {"line": line, "line_said": translations(line), "of": turn.of}
            turn = turn_words(turn)
        spawner.progress_steps.add(15, turn, about="queue", **facts)
