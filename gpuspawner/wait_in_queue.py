"""A spawn's wait for GPUs: its place in the queue, and the check by the rules of its turn."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

from .errors import Refused, Unknown
from .gpus.links import connection
from .gpus.model import Request
from .hub import compat, metrics
from .i18n.languages import translations
from .i18n.phrases import ordinal
from .leases import audit_log
from .leases.clock import Clock, Deadline
from .leases.ledger import Reservation
from .scheduling.phrases import place_words, turn_words
from .scheduling.plan import QueuedRequest, Turn
from .scheduling.queue import PERIOD_SECONDS
from .spawn_attempt import SpawnAttempt


class WaitInQueue:
    """How the spawns of one server wait for their turn.

    Args:
        spawner: the server's `BaseGPUSpawner`.
    """

    def __init__(self, spawner: Any) -> None:
        self._spawner = spawner

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
            reservation = await self._wait_in_queue(request)
            try:
                if attempt.waiting_since is not None:
                    granted_by = reservation.groups, spawner.request_limits()
                    await self._check_again()
                    asked = replace(attempt.request, image=request.image)
                    rules = spawner.groups, spawner.request_limits()
                    if asked != request or (request.gpus and rules != granted_by):
                        # By the current rules it is another request, or in another group's share.
                        # Nothing awaits until it is back in the queue, at its place.
                        self._give_back(reservation)
                        continue
                    attempt.waiting_since = None
                attempt.granted = reservation
                compat.save_state(spawner)
            except BaseException:  # refused by a new rule, or cancelled
                attempt.granted = None
                self._give_back(reservation)
                raise
            return reservation

    def join(self) -> None:
        """Note that the request comes now."""
        spawner = self._spawner
        spawner.attempt.since = spawner.hub_state.queue.join_time(spawner.holder)
        spawner.attempt.joined = Deadline.after(0, Clock())

    @property
    def _waited(self) -> float:
        """For how long the request has waited, in seconds."""
        joined = self._spawner.attempt.joined
        return round(-joined.remaining, 1) if joined else 0.0

    async def _wait_in_queue(self, request: Request) -> Reservation:
        """Wait in the queue; return the reservation and begin the lease's term."""
        spawner = self._spawner
        if request.gpus == 0:
            spawner.lease.begin_term(None)
            return Reservation(spawner.holder, ())
        queue, since = spawner.hub_state.queue, spawner.attempt.since
        assert since is not None
        waiting = QueuedRequest(spawner.holder, request, since, spawner.groups)
        try:
            reservation = await queue.wait(
                waiting,
                spawner.request_limits(),
                self._show_turn,
                rules=lambda: (spawner.groups, spawner.request_limits()),
                waited=None if spawner.attempt.waiting_since is None else self._waited,
            )
        except asyncio.CancelledError:
            facts = {"gpus": request.gpus, "waited": self._waited, "rule": "given up"}
            spawner.lease.log_event("leave", audit_log.HUB, **facts)
            if spawner.attempt.waiting_since and time.monotonic() < spawner.attempt.changing_until:
                queue.keep_place(waiting)
            raise
        except (Refused, Unknown) as error:
            rule = str(error)
            spawner.lease.log_event("refuse", gpus=request.gpus, waited=self._waited, rule=rule)
            raise
        spawner.lease.begin_term(request.seconds)
        spawner.attempt.granted_at = time.monotonic()
        metrics.WAITS.observe(self._waited)
        spawner.lease.log_event(
            "grant",
            gpus=reservation.uuids,
            waited=self._waited,
            rule=queue.settings.order,
            connection=connection(reservation.gpus),
            until=spawner.lease.until and round(spawner.lease.until),
        )
        return reservation

    def _give_back(self, reservation: Reservation) -> None:
        spawner = self._spawner
        spawner.ledger.release(reservation)
        self.note_unused(spawner.attempt, reservation, "other rules, or given up before the start")

    def note_unused(
        self, attempt: SpawnAttempt, granted: Reservation, rule: str, by: str = audit_log.RULES
    ) -> None:
        """Log the release of GPUs whose server never ran."""
        if granted.gpus:
            held = round(time.monotonic() - attempt.granted_at, 1)
            self._spawner.lease.log_event("release", by, gpus=granted.uuids, held=held, rule=rule)

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
                compat.save_state(spawner)
                spawner.lease.log_event("wait", gpus=turn.waiting.request.gpus, rule=turn.because)
            nth = ordinal(turn.place)
            facts = {"place": turn.place, "nth": nth, "start": turn.start}
            facts["nth_said"] = translations(nth)
            facts["because"] = turn.because
            line = place_words(turn)
            facts |= {"line": line, "line_said": translations(line), "of": turn.of}
            turn = turn_words(turn)
        spawner.progress_steps.add(15, turn, about="queue", **facts)
