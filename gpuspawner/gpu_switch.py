"""How a server that runs gets GPUs, or gives its own back, without waiting while it is off.

It asks, and waits in the queue as a start does. At its turn the GPUs are reserved for it for
`claim_minutes`: an offer. Taken up, the hub stops the server, which saves, and starts it again with
exactly these GPUs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tornado import web

from .choices.check import CheckedChoice
from .errors import Refused, Unknown
from .gpus.links import connection
from .gpus.model import Holder, Request
from .hub import compat, metrics
from .i18n.lazy_text import kept, lazy_gettext, restored
from .i18n.phrases import clock_time
from .leases import audit_log
from .leases.audit_log import one_line
from .leases.clock import Clock, Deadline
from .leases.labels import LABEL_IMAGE
from .leases.ledger import Reservation
from .scheduling.phrases import place_words
from .scheduling.plan import QueuedRequest, Turn
from .scheduling.queue import PERIOD_SECONDS, RequestLimits

# How long who asks waits for the first place in the queue, to be told of a refusal at once.
ANSWER_SECONDS = 3.0
# How often it is looked whether an offer is over.
LOOK_SECONDS = 1.0
# The rules in the audit log.
SWITCHED, GIVEN_BACK = "switched", "given back"
LOST_PLACE = lazy_gettext(
    "JupyterHub was restarted while you waited for GPUs, so that you have lost your place. Please "
    "ask for them again."
)
WAITS_AGAIN = lazy_gettext(
    "What was reserved for you can't be had any more: a GPU is out of order, or the rules for you "
    "have changed. You wait again, at your place."
)
NOT_RESTARTED = lazy_gettext("The server couldn't be restarted: the hub's log says why.")


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


class GPUSwitch:
    """What one running server asks for, its offer, and its restart.

    Args:
        spawner: the server's `BaseGPUSpawner`.
        clock: what offers end by.
    """

    def __init__(self, spawner: Any, clock: Clock | None = None) -> None:
        self._spawner = spawner
        self._clock = clock or Clock()
        self._asked: Asked | None = None
        self._offer: Offer | None = None
        # What waits, and then looks after the offer.
        self._task: asyncio.Task[None] | None = None
        self._restart: asyncio.Task[None] | None = None
        # Whether an offer is being taken up, so that it doesn't end meanwhile.
        self._is_checking = False
        # Set as soon as it is known whether a request may wait.
        self._answered = asyncio.Event()
        # What has become of the last request, for the server's user; "": nothing to tell.
        self.notice = ""

    # -- What is known of it ---------------------------------------------------------------------

    @property
    def holder(self) -> Holder:
        """The server and its user."""
        holder: Holder = self._spawner.holder
        return holder

    @property
    def asked(self) -> Asked | None:
        """What the server asks for; None: nothing."""
        return self._asked

    @property
    def offer(self) -> Offer | None:
        """What is reserved for it; None: nothing."""
        return self._offer

    @property
    def is_restarting(self) -> bool:
        """Whether the hub stops and starts it, with GPUs or without."""
        return self._restart is not None

    @property
    def has_news(self) -> bool:
        """Whether there is anything to tell its user."""
        return bool(self._asked or self._restart or self.notice)

    @property
    def place(self) -> str:
        """Its place in the queue as a sentence; "" if it doesn't wait."""
        asked = self._asked
        if asked is None or self._offer:
            return ""
        return asked.trouble or (place_words(asked.turn) if asked.turn else "")

    def facts(self) -> dict[str, Any]:
        """Return the facts that pages show, as a JSON value; times in seconds since the epoch."""
        asked, offer = self._asked, self._offer
        turn = asked.turn if asked else None
        return {
            "user": self.holder.user,
            "server": self.holder.server,
            "gpus": asked.request.gpus if asked else 0,
            "model": asked.request.model if asked else None,
            "since": asked.since if asked else None,
            "place": turn.place if turn else None,
            "of": turn.of if turn else None,
            "start": turn.start if turn else None,
            "offer": None
            if offer is None
            else {"gpus": sorted(offer.reservation.units), "until": offer.deadline.until},
            "restarting": self.is_restarting,
            "notice": kept(self.notice),
        }

    # -- What its user does ----------------------------------------------------------------------

    async def ask(self, gpus: int = 1, model: str | None = None, by: str = "") -> None:
        """Ask for GPUs; return once the request waits, or is granted.

        Args:
            gpus: how many.
            model: of which model; None: any.
            by: who asks, for the audit log; "": the server's user.

        Raises:
            Refused: it may not ask, or the request isn't one that could be granted.
        """
        self._require_nothing_asked()
        choice = await self._choice(gpus, model)
        request = await self._request(choice)
        self._require_nothing_asked()
        if request.gpus == 0:
            raise Refused(lazy_gettext("Ask for at least one GPU."), key="gpus")
        since = self._spawner.hub_state.queue.join_time(self.holder)
        self._asked = asked = Asked(choice, request, since, Deadline.after(0, self._clock))
        self._answered, self.notice = asyncio.Event(), ""
        self._spawner.hub_state.switches.add(self)
        self._task = task = asyncio.ensure_future(self._wait(asked))
        answered = asyncio.ensure_future(self._answered.wait())
        await asyncio.wait(
            [task, answered], timeout=ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        answered.cancel()
        if asked.failed:
            self.notice = ""
            self._changed()
            raise asked.failed

    async def leave(self, by: str = "") -> None:
        """Leave the queue, or let an offer go; what there was to tell is forgotten.

        Args:
            by: who does so, for the audit log; "": the server's user.

        Raises:
            Refused: it is too late.
        """
        if self._restart or self._is_checking:
            raise _being_restarted()
        self._end(self._who(by), "given up")
        self.notice = ""
        self._changed()

    async def switch(self, by: str = "") -> None:
        """Begin to restart the server with the GPUs that are reserved for it.

        Args:
            by: who does so, for the audit log; "": the server's user.

        Raises:
            Refused: nothing is reserved, or it can't be had any more. The server goes on.
        """
        if self._restart or self._is_checking:
            raise _being_restarted()
        offer, asked = self._offer, self._asked
        if offer is None or asked is None:
            words = lazy_gettext("No GPU is reserved for this server now.")
            raise Refused(words, status=409)
        self._is_checking = True
        try:
            await self._check_offer(asked, offer)
            self._require_running()
        finally:
            self._is_checking = False
        if self._offer is not offer:  # the server has ended meanwhile
            raise Refused(lazy_gettext("This server doesn't run now."), status=409)
        self._begin_restart(asked.choice, self._who(by), SWITCHED)

    async def give_back(self, by: str = "") -> None:
        """Begin to restart the server without its GPUs, which are free for others then.

        Args:
            by: who does so, for the audit log; "": the server's user.

        Raises:
            Refused: it has none, or is being stopped. It goes on.
        """
        self._require_running()
        choice = await self._choice(0, None)
        await self._request(choice)
        self._require_running()
        lease = self._spawner.lease
        if not lease.units:
            words = lazy_gettext("This server has no GPUs to give back.")
            raise Refused(words, status=409)
        lease.refuse_if_ending()
        self._begin_restart(choice, self._who(by), GIVEN_BACK)

    def tell(self, sentence: str) -> None:
        """Have the server's user read a sentence, until they ask anew."""
        self.notice = sentence
        self._changed()

    # -- The wait, and the offer -----------------------------------------------------------------

    async def _wait(self, asked: Asked) -> None:
        """Wait until it is the request's turn, and look after the offer until that is over."""
        spawner = self._spawner
        try:
            offer = await self._next_offer(asked)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            asked.failed = gone = _refusal(error)
            facts = {"gpus": asked.request.gpus, "waited": asked.waited, "rule": str(gone)}
            spawner.lease.log_event("refuse", **facts)
            if not isinstance(error, Refused | Unknown):
                said = one_line(self.holder)
                spawner.log.error("The request of %s failed", said, exc_info=error)
            self._forget(str(gone))
            return
        await self._until_over(offer)

    async def _next_offer(self, asked: Asked) -> Offer:
        spawner = self._spawner
        while True:
            reservation = await self._turn(asked)
            granted_at, granted_by = time.monotonic(), spawner.request_limits()
            try:
                request = await self._check_again(asked)
                rules = spawner.groups, spawner.request_limits()
                if request != asked.request or rules != (reservation.groups, granted_by):
                    # Nothing awaits until it is back in the queue, at its place.
                    self._release(reservation, granted_at, "other rules")
                    asked.request = request
                    continue
            except BaseException:
                self._release(reservation, granted_at, "other rules, or given up")
                raise
            deadline = Deadline.after(60 * spawner.claim_minutes, self._clock)
            if asked.request.seconds is not None:
                # Later at the latest, so that who waits isn't promised too much.
                reservation.until = deadline.until + asked.request.seconds
            asked.turn, asked.trouble = None, ""
            self._offer = offer = Offer(reservation, granted_by, deadline, granted_at)
            self._changed()
            return offer

    async def _turn(self, asked: Asked) -> Reservation:
        """Wait in the queue; return the reservation, which the audit log has then."""
        spawner = self._spawner
        queue, request = spawner.hub_state.queue, asked.request
        reservation: Reservation = await queue.wait(
            QueuedRequest(self.holder, request, asked.since, spawner.groups),
            spawner.request_limits(),
            lambda turn: self._show_turn(asked, turn),
            rules=lambda: (spawner.groups, spawner.request_limits()),
            waited=asked.waited if asked.waits else None,
        )
        metrics.WAITS.observe(asked.waited)
        facts = {"gpus": reservation.units, "waited": asked.waited, "rule": queue.settings.order}
        links = connection(reservation.gpus)
        spawner.lease.log_event("grant", **facts, connection=links, until=None)
        return reservation

    def _show_turn(self, asked: Asked, turn: Turn | str) -> None:
        if isinstance(turn, str):
            asked.trouble = turn
        else:
            asked.turn, asked.trouble = turn, ""
            if not asked.waits:
                asked.waits = True
                facts = {"gpus": asked.request.gpus, "rule": turn.because}
                self._spawner.lease.log_event("wait", **facts)
        self._changed()

    async def _check_again(self, asked: Asked) -> Request:
        """Return the request by the rules of now."""
        while True:
            try:
                return (await self._checked(asked.choice)).request
            except Unknown as error:
                # It keeps its turn, but isn't granted by rules that can't be checked.
                asked.trouble = str(error)
                self._changed()
                await asyncio.sleep(PERIOD_SECONDS)

    async def _until_over(self, offer: Offer) -> None:
        """Let an offer go when its time is over, unless it is being taken up."""
        while self._offer is offer and not self._restart:
            left = offer.deadline.remaining
            if left <= 0 and not self._is_checking:
                at = clock_time(offer.deadline.until)
                self._release_offer("not claimed in time")
                self._forget(
                    lazy_gettext(
                        "A GPU was reserved for you until %(time)s, and you didn't switch: the "
                        "next in line has it. Ask again if you need one.",
                        time=at,
                    )
                )
                return
            await asyncio.sleep(min(max(left, 0.01), LOOK_SECONDS))

    async def _check_offer(self, asked: Asked, offer: Offer) -> None:
        """Raise Refused if what is reserved can't be had by the rules of now."""
        try:
            request = (await self._checked(asked.choice)).request
            view = await self._spawner.ledger.read(except_for=self.holder)
        except Unknown as error:
            raise Refused(str(error), "no_gpu", 503) from error
        except Refused as error:
            if self._offer is offer:
                self._end(audit_log.RULES, "other rules")
            raise error
        if self._offer is not offer:
            return
        free = {gpu.id for gpu in view.gpus if gpu.state == "free"}
        rules = self._spawner.groups, self._spawner.request_limits()
        granted = offer.reservation.groups, offer.limits
        if request == asked.request and rules == granted and offer.reservation.units <= free:
            return
        self._release_offer("other rules, or a GPU out of order")
        asked.request = request
        if self._task:
            self._task.cancel()
        self._task = asyncio.ensure_future(self._wait(asked))
        self._changed()
        raise Refused(WAITS_AGAIN, "no_gpu", 409)

    # -- The restart -----------------------------------------------------------------------------

    def _begin_restart(self, choice: dict[str, Any], by: str, rule: str) -> None:
        self._spawner.hub_state.switches.add(self)
        self._restart = asyncio.ensure_future(self._restart_server(choice, by, rule))

    async def _restart_server(self, choice: dict[str, Any], by: str, rule: str) -> None:
        spawner = self._spawner
        spawner.lease.will_stop(by, rule)
        try:
            await spawner.restart_through_hub(choice)
        except Exception as error:
            # What keeps a server from starting is on its page, and in the log, as of any start.
            said = one_line(f"{self.holder} ({rule}) failed: {error}")
            spawner.log.error("Restarting %s", said)
            self.notice = NOT_RESTARTED
        finally:
            self._restart = None
            self._release_offer("the start failed, or was given up")
            self._asked = None
            runs = compat.is_current(spawner) and spawner.ready
            if not (self.notice and runs):
                spawner.hub_state.switches.remove(self)

    def take_over(self, request: Request, groups: frozenset[str]) -> Offer | None:
        """Return what is reserved for the start of the server, which takes it over; None: nothing.

        What the start doesn't ask for any more is released.

        Args:
            request: what it asks for.
            groups: its user's.
        """
        offer, asked = self._offer, self._asked
        if self._restart is None or offer is None or asked is None:
            return None
        if (request, groups) != (asked.request, offer.reservation.groups):
            self._release_offer("other rules")
            return None
        self._offer = None
        if request.seconds is not None:
            offer.reservation.until = time.time() + request.seconds
        return offer

    # -- Its end ---------------------------------------------------------------------------------

    def end(self) -> None:
        """End with the server, unless it is being restarted: whatever was reserved is free."""
        if self._restart is None:
            self._end(*(self._spawner.lease.cause or (audit_log.SERVER, "it ended by itself")))
            self.notice = ""
            if self._spawner._hub_state:
                self._spawner.hub_state.switches.remove(self)

    def _end(self, by: str, rule: str) -> None:
        asked, offer = self._asked, self._offer
        if self._task:
            self._task.cancel()
        if offer:
            self._release_offer(rule, by)
        elif asked:
            facts = {"gpus": asked.request.gpus, "waited": asked.waited, "rule": rule}
            self._spawner.lease.log_event("leave", by, **facts)
        self._task = self._asked = None

    def _forget(self, notice: str) -> None:
        self._asked, self.notice = None, notice
        self._changed()

    def _release_offer(self, rule: str, by: str = audit_log.RULES) -> None:
        offer, self._offer = self._offer, None
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
        spawner.hub_state.queue.wake()

    # -- What survives a restart of the hub ------------------------------------------------------

    def saved(self) -> dict[str, Any]:
        """Return the state for `restore`, as a JSON value: a place in the queue isn't kept."""
        waits = bool(self._asked) and not self._restart
        return {"asked": waits or None, "asked_notice": kept(self.notice)}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore the state that an earlier hub process saved."""
        lost = LOST_PLACE if saved.get("asked") else ""
        self.notice = lost or restored(saved.get("asked_notice")) or ""

    def _changed(self) -> None:
        self._answered.set()
        switches = self._spawner.hub_state.switches
        if self.has_news:
            switches.add(self)
        else:
            switches.remove(self)
        compat.save_state(self._spawner)

    # -- Checks ----------------------------------------------------------------------------------

    def _who(self, by: str) -> str:
        return by or audit_log.user(self.holder.user)

    def _require_running(self) -> None:
        if self._restart:
            raise _being_restarted()
        if not self._spawner.ready:
            raise Refused(lazy_gettext("This server doesn't run now."), status=409)

    def _require_nothing_asked(self) -> None:
        self._require_running()
        spawner = self._spawner
        if not spawner.claim_minutes:
            words = lazy_gettext(
                "Servers that run can't get GPUs here. Stop this one, and start it with some."
            )
            raise Refused(words, status=403)
        if spawner.lease.units:
            words = lazy_gettext(
                "This server has GPUs already. For others stop it, and start it with them."
            )
            raise Refused(words, status=409)
        if self._asked:
            words = lazy_gettext("This server has asked for GPUs already.")
            raise Refused(words, status=409)

    async def _choice(self, gpus: int, model: str | None) -> dict[str, Any]:
        """Return the choice that the server runs with, with other GPUs."""
        spawner = self._spawner
        running = spawner.user_options or compat.saved_options(spawner) or {}
        choice = {key: running[key] for key in running if key not in ("gpus", "model")}
        choice["gpus"] = gpus
        if model:
            choice["model"] = model
        if spawner.limits().image_can_be_chosen and (image := await self._image()):
            choice["image"] = image  # the default may be another one by now
        return choice

    async def _image(self) -> str:
        """Return the key of the image version that the server runs; "" if that isn't known."""
        spawner = self._spawner
        if request := spawner.attempt.request:
            return str(request.image)
        try:
            servers = await spawner.ledger.servers()
        except Exception as error:
            raise Refused(spawner.explain_unknown(error), "no_gpu", 503) from error
        found = (each.labels.get(LABEL_IMAGE) for each in servers if each.id == spawner.server_id)
        return str(next(found, None) or "")

    async def _request(self, choice: dict[str, Any]) -> Request:
        """Return the request of a choice that is made now."""
        try:
            return (await self._checked(choice)).request
        except Unknown as error:
            raise _refusal(error) from error

    async def _checked(self, choice: dict[str, Any]) -> CheckedChoice:
        """Check a choice as that of a start, by the rules that apply to the server's user now."""
        spawner = self._spawner
        await spawner.ensure_rules_applied()
        try:
            overrides = await spawner.overrides_of_groups()
            image = spawner.image
            with spawner.overrides.without_hooks():
                spawner.apply_overrides_of(overrides)
                applicant = spawner.applicant()
            spawner.overrides.choose("image", image)
        except web.HTTPError as error:  # an invalid override, which has been logged
            raise _refusal(error) from error
        checked: CheckedChoice = await spawner.check_choice(choice, applicant)
        return checked


def _refusal(error: Exception) -> Refused:
    """Return an error as the refusal of a request."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, Unknown):
        return Refused(str(error), "no_gpu", 503)
    words = getattr(error, "jupyterhub_message", "") if isinstance(error, web.HTTPError) else ""
    return Refused(words or NOT_RESTARTED, "no_gpu", 503)


def _being_restarted() -> Refused:
    return Refused(lazy_gettext("It is too late: this server is being restarted."), status=409)
