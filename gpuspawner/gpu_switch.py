"""How a server that runs gets GPUs, or gives its own back, without waiting while it is off.

It asks, and waits in the queue as a start does (`wait_while_running.py`). At its turn the GPUs are
reserved for it for `claim_minutes`: an offer. Taken up, the hub stops the server, which saves, and
starts it again with exactly these GPUs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from .errors import Refused
from .gpus.model import WHOLE, Holder, Request
from .hub import compat
from .i18n.lazy_text import kept, lazy_gettext, restored
from .leases import audit_log
from .leases.audit_log import one_line
from .leases.clock import Clock
from .running_choice import NOT_RESTARTED, RunningChoice
from .wait_while_running import Asked, Offer, WaitWhileRunning

# The rules in the audit log.
SWITCHED, GIVEN_BACK = "switched", "given back"
LOST_PLACE = lazy_gettext(
    "JupyterHub was restarted while you waited for GPUs, so that you have lost your place. Please "
    "ask for them again."
)


class GPUSwitch:
    """What one running server asks for, its offer, and its restart.

    Args:
        spawner: the server's `BaseGPUSpawner`.
        clock: what offers end by.
    """

    def __init__(self, spawner: Any, clock: Clock | None = None) -> None:
        self._spawner = spawner
        self._choice = RunningChoice(spawner)
        self._wait = WaitWhileRunning(
            spawner, self._choice, clock or Clock(), self._changed, self.tell
        )
        self._restart: asyncio.Task[None] | None = None
        # Whether the restart leaves the server off: somebody has it stopped meanwhile.
        self._stays_off = False
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
        return self._wait.asked

    @property
    def offer(self) -> Offer | None:
        """What is reserved for it; None: nothing."""
        return self._wait.offer

    @property
    def is_restarting(self) -> bool:
        """Whether the hub stops and starts it, with GPUs or without."""
        return self._restart is not None

    @property
    def starts_again(self) -> bool:
        """Whether the hub stops and starts it, and nobody has it stopped meanwhile."""
        return self._restart is not None and not self._stays_off

    @property
    def has_news(self) -> bool:
        """Whether there is anything to tell its user."""
        return bool(self.asked or self._restart or self.notice)

    @property
    def place(self) -> str:
        """Its place in the queue as a sentence; "" if it doesn't wait."""
        return self._wait.place

    def facts(self) -> dict[str, Any]:
        """Return the facts that pages show, as a JSON value; times in seconds since the epoch."""
        asked, offer = self.asked, self.offer
        turn = asked.turn if asked else None
        return {
            "user": self.holder.user,
            "server": self.holder.server,
            "gpus": asked.request.gpus if asked else 0,
            "kind": asked.request.kind if asked else WHOLE,
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

    async def ask(
        self, gpus: int = 1, model: str | None = None, by: str = "", kind: str | None = None
    ) -> None:
        """Ask for GPUs; return once the request waits, or is granted.

        Args:
            gpus: how many.
            model: of which model; None: any.
            kind: of which kind, as in a choice; None: the usual.
            by: who asks, for the audit log; "": the server's user.

        Raises:
            Refused: it may not ask, or the request isn't one that could be granted.
        """
        self._require_nothing_asked()
        choice = await self._choice.with_gpus(gpus, model, kind)
        request = await self._choice.request(choice)
        self._require_nothing_asked()
        if request.gpus == 0:
            raise Refused(lazy_gettext("Ask for at least one GPU."), key="gpus")
        self.notice = ""
        self._spawner.hub_state.switches.add(self)
        try:
            await self._wait.begin(choice, request)
        except Refused:
            self.notice = ""
            self._changed()
            raise

    async def leave(self, by: str = "") -> None:
        """Leave the queue, or let an offer go; what there was to tell is forgotten.

        Args:
            by: who does so, for the audit log; "": the server's user.

        Raises:
            Refused: it is too late.
        """
        if self._restart or self._wait.is_taken_up:
            raise _being_restarted()
        self._wait.end(self._who(by), "given up")
        self.notice = ""
        self._changed()

    async def switch(self, by: str = "") -> None:
        """Begin to restart the server with the GPUs that are reserved for it.

        Args:
            by: who does so, for the audit log; "": the server's user.

        Raises:
            Refused: nothing is reserved, or it can't be had any more. The server goes on.
        """
        if self._restart or self._wait.is_taken_up:
            raise _being_restarted()
        choice = await self._wait.check_offer()
        self._require_running()
        self._begin_restart(choice, self._who(by), SWITCHED)

    async def give_back(self, by: str = "") -> None:
        """Begin to restart the server without its GPUs, which are free for others then.

        Args:
            by: who does so, for the audit log; "": the server's user.

        Raises:
            Refused: it has none, or is being stopped. It goes on.
        """
        self._require_running()
        choice = await self._choice.with_gpus(0, None)
        await self._choice.request(choice)
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

    # -- The restart -----------------------------------------------------------------------------

    def _begin_restart(self, choice: dict[str, Any], by: str, rule: str) -> None:
        self._spawner.hub_state.switches.add(self)
        self._wait.is_taken_up, self._stays_off = True, False
        self._restart = asyncio.ensure_future(self._restart_server(choice, by, rule))

    async def _restart_server(self, choice: dict[str, Any], by: str, rule: str) -> None:
        spawner = self._spawner
        spawner.lease.will_stop(by, rule)
        try:
            await spawner.restart_through_hub(choice, lambda: self.starts_again)
        except Exception as error:
            # What keeps a server from starting is on its page, and in the log, as of any start.
            said = one_line(f"{self.holder} ({rule}) failed: {error}")
            spawner.log.error("Restarting %s", said)
            self.notice = NOT_RESTARTED
        finally:
            self._restart, self._wait.is_taken_up = None, False
            self._wait.release_offer("the start failed, or was given up")
            self._wait.asked = None
            runs = compat.is_current(spawner) and spawner.ready
            if not (self.notice and runs):
                spawner.hub_state.switches.remove(self)

    def stay_off(self) -> None:
        """Have the restart, if there is one, leave the server off: somebody has it stopped."""
        self._stays_off = True

    def take_over(self, request: Request, groups: frozenset[str]) -> Offer | None:
        """Return what is reserved for the start of the server, as `WaitWhileRunning.take_over`."""
        return self._wait.take_over(request, groups) if self._restart else None

    # -- Its end ---------------------------------------------------------------------------------

    def end(self) -> None:
        """End with the server, unless it is being restarted: whatever was reserved is free."""
        if self._restart is None:
            self._wait.end(*(self._spawner.lease.cause or (audit_log.SERVER, "it ended by itself")))
            self.notice = ""
            if self._spawner._hub_state:
                self._spawner.hub_state.switches.remove(self)

    # -- What survives a restart of the hub ------------------------------------------------------

    def saved(self) -> dict[str, Any]:
        """Return the state for `restore`, as a JSON value: a place in the queue isn't kept."""
        waits = bool(self.asked) and not self._restart
        return {"asked": waits or None, "asked_notice": kept(self.notice)}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore the state that an earlier hub process saved."""
        lost = LOST_PLACE if saved.get("asked") else ""
        self.notice = lost or restored(saved.get("asked_notice")) or ""

    def _changed(self) -> None:
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
        if self.asked:
            words = lazy_gettext("This server has asked for GPUs already.")
            raise Refused(words, status=409)


def _being_restarted() -> Refused:
    return Refused(lazy_gettext("It is too late: this server is being restarted."), status=409)
