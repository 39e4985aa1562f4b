"""A server's time: kept with the hub's state, extended, warned about, and ended."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any, ClassVar
from weakref import WeakSet

from tornado import web

from .choices.limits import MAX_HOURS
from .choices.options import MAX_SHOWN, Refused
from .gpus.model import GPU
from .i18n.lazy_text import kept, lazy_gettext, lazy_ngettext, restored
from .i18n.phrases import clock_time, hours_words
from .leases import audit_log
from .leases.clock import Clock, Deadline
from .leases.idleness import Idleness
from .leases.labels import lease_of
from .leases.term import LATE_WARNING_SECONDS, Step, Term
from .leasing import LeasingSpawner

STATE = "gpuspawner"


class TimedSpawner(LeasingSpawner):
    """What `GPUSpawner` knows of time: how long a server keeps its GPUs, and whether it uses them.

    What is kept for a restart of the hub is in the spawner's own state, under the key `STATE`:
    `gpus` (UUIDs), `term` and `idle_warned` while a server runs, `waiting_since` while it waits,
    and `notice` afterwards, the sentence that tells why it was stopped.
    """

    clock: ClassVar[Clock] = Clock()
    # This hub's servers that hold GPUs.
    _holding: ClassVar[WeakSet[TimedSpawner]] = WeakSet()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._term: Term | None = None
        self._uuids: frozenset[str] = frozenset()
        self._idleness = Idleness(self.clock)
        self._waiting_since: float | None = None
        self._ending: asyncio.Task[None] | None = None
        # Whether an earlier hub started it: then nobody has applied the group overrides here.
        self._rules_unknown = False
        # Why the last server was stopped, for its user; outlives `clear_state`.
        self._notice = ""
        super().__init__(*args, **kwargs)

    # -- What survives a restart of the hub ------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Return what the hub keeps for `load_state`."""
        ours = {
            "gpus": sorted(self._uuids),
            "term": self._term.saved() if self._term else None,
            "waiting_since": self._waiting_since,
            "notice": kept(self._notice),
        }
        return {**super().get_state(), **({STATE: ours} if any(ours.values()) else {})}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up what an earlier hub kept."""
        super().load_state(state)
        ours = state.get(STATE) or {}
        self._notice = restored(ours.get("notice")) or ""
        if ours.get("waiting_since"):
            self._notice = lazy_gettext(
                "JupyterHub was restarted while you waited for GPUs, so that you have lost your "
                "place. Please start your server again."
            )
        if ours.get("gpus"):
            term = ours.get("term")
            self._term = Term.restored(term, self.clock) if term else None
            self._rules_unknown = True
            self.hold(ours["gpus"])

    async def know_rules(self) -> None:
        """Apply the group overrides to a server that an earlier hub started.

        JupyterHub does that at a spawn only; time and idleness are counted long afterwards.
        """
        if self._rules_unknown:
            self._rules_unknown = False
            with suppress(web.HTTPError):  # an override that is wrong, which is in the log now
                await self.apply_group_overrides()

    def keep_state(self) -> None:
        """Write the state to the hub's database now: what isn't there, a crash forgets."""
        if self.orm_spawner and self.user:
            self.orm_spawner.state = self.get_state()
            # Not `self.db`, which JupyterHub means to take from spawners.
            self.user.db.commit()

    def clear_state(self) -> None:
        """Forget the last server's time; its notice stays until the next start."""
        super().clear_state()
        if self._uuids:
            self.note("release", gpus=self._uuids)
        self._term = self._waiting_since = None
        self._rules_unknown = False
        self._uuids = frozenset()
        self._idleness = Idleness(self.clock)
        TimedSpawner._holding.discard(self)

    def begin_term(self, seconds: float | None) -> None:
        """Begin to count a server's time; it hasn't started yet.

        Args:
            seconds: how much it has; None: no end.
        """
        after = None if seconds is None else Deadline.after(seconds, self.clock)
        self._term = Term(after, seconds) if after and seconds else None

    def hold(self, uuids: Collection[str]) -> None:
        """Look after a server's GPUs and time from now on."""
        self._uuids = frozenset(uuids)
        if self._uuids:
            TimedSpawner._holding.add(self)
            with suppress(RuntimeError):  # no event loop: the hub's own command line
                asyncio.get_running_loop()
                self.shared.reclaimer.begin()

    async def get_object(self) -> Any:
        """Inspect this server's container, and take up its lease if a crash has lost it."""
        found = await super().get_object()
        if found and found["State"]["Running"] and not self._uuids and not self.pending:
            lease = lease_of({**found["Config"], "State": "running"})
            if lease and lease.gpus:
                if lease.until:
                    left = lease.until - self.clock.wall()
                    # How long it was isn't known: long enough for a warning at its end.
                    length = max(left, 2 * LATE_WARNING_SECONDS)
                    self._term = Term(Deadline.after(left, self.clock), length)
                self._rules_unknown = True
                self.hold(lease.gpus)
        return found

    def get_env(self) -> dict[str, str]:
        """Return the server's environment; `GPUSPAWNER_UNTIL` is when its time was to end."""
        until = {"GPUSPAWNER_UNTIL": iso_time(self.until)} if self.until else {}
        return {**super().get_env(), **until}

    def note(self, event: audit_log.Event, **facts: Any) -> None:
        """Write a line for the administrator about this server's GPUs."""
        audit_log.record(self.log, event, self.holder, **facts)

    # -- What its user can do --------------------------------------------------------------------

    def extend(self, hours: float | None = None) -> float:
        """Give the server more time; return its new end, in seconds since the epoch.

        Args:
            hours: how much more; None: as much as it began with. At most `hour_limit` is left then.

        Raises:
            Refused: there is no end, somebody waits, or no time can be added.
        """
        self._refuse_if_ending()
        if self._term is None:
            raise Refused(
                lazy_gettext("This server's time doesn't end, so there is nothing to extend.")
            )
        if waiting := len(self.shared.queue.waiting):
            raise Refused(
                lazy_ngettext(
                    "Nobody can extend while 1 other waits for GPUs. Your server's time ends at "
                    "%(time)s; save your work before.",
                    "Nobody can extend while %(num)s others wait for GPUs. Your server's time "
                    "ends at %(time)s; save your work before.",
                    waiting,
                    time=clock_time(self._term.until),
                ),
                409,
            )
        if hours is not None and not 0 < hours <= MAX_HOURS:
            raise Refused(
                lazy_gettext(
                    "hours must be more than 0 and at most %(most)s, got %(value)s.",
                    most=f"{MAX_HOURS:g}",
                    value=str(hours)[:MAX_SHOWN],
                )
            )
        seconds = self._term.seconds if hours is None else hours * 3600.0
        most = 3600 * (MAX_HOURS if self.hour_limit is None else self.hour_limit)
        if self._term.extend(seconds, most) < 1:
            raise Refused(
                lazy_gettext(
                    "hours: your server has %(left)s left, and the limit is %(most)s.",
                    left=hours_words(self._term.deadline.remaining),
                    most=hours_words(most),
                ),
                403,
            )
        self.keep_state()
        self.note("extend", until=round(self._term.until))
        return self._term.until

    def still_here(self) -> None:
        """Take the user's word that the GPUs aren't forgotten: idle time begins anew.

        Raises:
            Refused: it is too late.
        """
        self._refuse_if_ending()
        self._idleness.reset()

    def _refuse_if_ending(self) -> None:
        if self._ending:
            raise Refused(lazy_gettext("It is too late: this server is being stopped."), 409)

    @classmethod
    def _servers_with_gpus(cls) -> list[Any]:
        return list(TimedSpawner._holding)

    # -- Warnings and ends -----------------------------------------------------------------------

    @property
    def uuids(self) -> frozenset[str]:
        """The GPUs of the server that runs; empty while none does."""
        return self._uuids

    @property
    def until(self) -> float | None:
        """When the server's time ends, in seconds since the epoch; None: never."""
        return self._term.until if self._term else None

    @property
    def measured(self) -> bool:
        """Whether it can be stopped for idle GPUs."""
        return self.idle_minutes > 0 and not self._groups() & set(self.idle_exempt_groups)

    def measure(self, gpus: Collection[GPU]) -> None:
        """Take in what NVML says of its GPUs."""
        self._idleness.see(gpus, self.idle_utilization)

    async def look_after(self) -> None:
        """Warn or stop the server where that is due."""
        await self.know_rules()
        if self.container_id and self._term:
            self.ledger.ends[self.container_id] = self._term.until
        if self.pending or self._ending or not self._uuids:
            return
        if self._term and (step := self._term.step(self.warning_minutes * 60)):
            self._term_is(step, self._term)
        elif self.measured and (step := self._idle_step()):
            self._idle_is(step)

    def _term_is(self, step: Step, term: Term) -> None:
        if step == "warn":
            term.warn(self.warning_minutes * 60)
            self.keep_state()
            self.note("warn", rule="time limit", until=round(term.until))
            return
        self._end(
            "time limit",
            lazy_gettext(
                "Your server was stopped at %(time)s: its %(duration)s of GPU time were over. "
                "Your files are kept.",
                time=clock_time(self.clock.wall()),
                duration=hours_words(term.seconds),
            ),
        )

    def _idle_step(self) -> Step:
        matters = not self.idle_only_while_waiting or bool(self.shared.queue.waiting)
        return self._idleness.step(self.idle_minutes * 60, matters)

    def _idle_is(self, step: Step) -> None:
        if step == "warn":
            self._idleness.warn(self.idle_warning_minutes * 60)
            stop = self.clock.wall() + self.idle_warning_minutes * 60
            self.note("warn", rule="idle GPUs", until=round(stop))
            return
        minutes = self.idle_minutes + self.idle_warning_minutes
        self._end(
            "idle GPUs",
            lazy_gettext(
                "Your server was stopped at %(time)s: its GPUs did nothing for %(minutes)s "
                "minutes, and others need them. Your files are kept.",
                time=clock_time(self.clock.wall()),
                minutes=f"{minutes:g}",
            ),
        )

    def _end(self, rule: str, sentence: str) -> None:
        self._ending = asyncio.ensure_future(self._stop_for(rule, sentence))
        self._ending.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._ending = None
        if not task.cancelled() and (error := task.exception()):
            self.log.error("Stopping %s failed; it is tried again", self.holder, exc_info=error)

    async def _stop_for(self, rule: str, sentence: str) -> None:
        """Stop the server as its user would, and let the hub notice."""
        self._notice = sentence
        self.note("stop", gpus=self._uuids, rule=rule)
        await self.stop()
        # The hub takes it from here: route, database, hooks.
        await self.poll_and_notify()

    def lease_facts(self) -> dict[str, Any]:
        """Return what pages show of this server's lease, as a value for JSON."""
        idle = self._idleness.warned
        return {
            "user": self.holder.user,
            "server": self.holder.server,
            "gpus": sorted(self._uuids),
            "until": self.until,
            "hours": self._term.seconds / 3600 if self._term else None,
            "hour_limit": self.hour_limit,
            "warned": bool(self._term and self._term.warned),
            "idle_since": self._idle_since(),
            "idle_until": idle.until if idle else None,
        }

    def _idle_since(self) -> float | None:
        since = self._idleness.since
        return None if since is None else Deadline(since, self.clock).until


def iso_time(seconds: float) -> str:
    """Return seconds since the epoch as ISO 8601 in UTC, as the variable in a server has it."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
