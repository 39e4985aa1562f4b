"""The lease of one server: until when it keeps its GPUs, and whether it uses them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Literal, Protocol

from ..choices.limits import MAX_HOURS
from ..choices.refusals import MAX_SHOWN
from ..errors import Refused
from ..gpus.memory import parts_of
from ..gpus.model import GPU, Holder, Lease
from ..gpus.unit_names import exclude_each_other
from ..i18n.lazy_text import join_sentences, kept, lazy_gettext, lazy_ngettext, restored
from ..i18n.phrases import clock_time, hours_words
from . import audit_log
from .clock import Clock, Deadline
from .endings import RULE as ADMINISTRATOR
from .endings import AnnouncedStop, Ending, announced_words, not_extended_words, stopped_words
from .gpu_trouble import GPUTrouble
from .idleness import Idleness
from .memory_share import MemoryShare
from .term import LATE_WARNING_SECONDS, Step, Term

Occasion = Literal["end", "idle", "memory", "process ended", "announced", "stopped", "trouble"]

# After how many seconds an administrator is answered whose stop takes its time.
ANSWER_SECONDS = 10


def note_releases(leases: Iterable[ServerLease], units: Collection[str]) -> None:
    """Record the releases before the grant of what was released.

    The engine says that a server's GPUs are free before the hub is through with its stop.

    Args:
        leases: of this hub's servers.
        units: the names of the units that are granted.
    """
    for lease in list(leases):
        if exclude_each_other(lease.units, units):
            lease.note_release()


class LeasedServer(Protocol):
    """The server of a lease, as its spawner implements it, with the rules for its user now."""

    log: Any
    warning_minutes: float
    extend_minutes: float | None
    idle_minutes: float
    idle_warning_minutes: float
    idle_utilization: float
    idle_exempt_groups: Collection[str]
    idle_only_while_waiting: bool
    memory_guard: bool
    memory_guard_seconds: float

    @property
    def server_id(self) -> str:
        """The backend's id of the server; "" if there is none."""

    @property
    def holder(self) -> Holder:
        """The server and its user."""

    @property
    def groups(self) -> frozenset[str]:
        """The names of its user's groups."""

    @property
    def longest_hours(self) -> float | None:
        """The most hours that it may have left, by its user's limits; None: any."""

    @property
    def image_title(self) -> str:
        """What users call its image; "" if that isn't known."""

    @property
    def pending(self) -> Any:
        """Whether it is starting or stopping; JupyterHub's `Spawner.pending`."""

    @property
    def waiting_requests(self) -> int:
        """The number of requests in the queue that could use its GPUs."""

    async def ensure_rules_applied(self) -> None:
        """Apply the rules if an earlier hub process started the server."""

    def on_lease_begin(self) -> None:
        """Register the lease with the reclaimer."""

    def on_lease_end(self) -> None:
        """Unregister the lease from the reclaimer."""

    def on_end_changed(self, until: float) -> None:
        """Record when the lease ends now, in seconds since the epoch."""

    def latest_end(self, until: float) -> tuple[float, str]:
        """Return the latest end that the lease can have if it asks for this one, in seconds.

        And a sentence on the reserved hours that are in the way of a later one; "": none are.
        """

    def budgeted_end(self, until: float) -> tuple[float, str]:
        """Return the latest end within its user's budgets if it asks for this one, in seconds.

        And sentences on why it can't be later; "": it can.
        """

    def on_extended(self, end: Deadline) -> None:
        """Have the new end kept where it outlives the hub's database."""

    async def read_extended_end(self) -> Deadline | None:
        """Return the end that was kept there; None if there is none. Raises if it can't be read."""

    def save_state(self) -> None:
        """Save the lease in the hub's database, so that it survives a crash of the hub."""

    def tell(self, occasion: Occasion, words: str) -> None:
        """Send its user a message, where an administrator has set where to."""

    async def stop_through_hub(self) -> None:
        """Stop the server and let the hub update its route, database and hooks."""


class ServerLease:
    """The lease of one server: its GPUs, its term, and for how long the GPUs have been idle.

    `saved()` is what survives a restart of the hub: `gpus` (names of units), `term` and `stop`
    while the server runs, afterwards `notice`, the sentence that tells the user why it was stopped.
    """

    def __init__(self, server: LeasedServer, clock: Clock | None = None) -> None:
        self._server = server
        self._clock = clock or Clock()
        self._term: Term | None = None
        self._units: frozenset[str] = frozenset()
        self._idleness = Idleness(self._clock)
        # What it holds of a shared GPU's memory: the memory guard's.
        self.memory = MemoryShare(self._clock)
        self._ending: asyncio.Task[None] | None = None
        # Since when the server has had its GPUs; None if unknown.
        self._began: Deadline | None = None
        # Who has the server stopped, and why.
        self._cause: tuple[str, str] | None = None
        # Who ends it that nobody on this hub stops, and why, where that is known.
        self._ended_by = (audit_log.SERVER, "it ended by itself")
        # Whether it is recorded that its GPUs are free, before the hub knows that the server ended.
        self._is_released = False
        # Whether the lease was read from the database or from labels, which may not have the last
        # extension.
        self._may_end_later = False
        # The stop that an administrator or an instructor has announced.
        self._announced: AnnouncedStop | None = None
        # What is wrong with its GPUs.
        self.trouble = GPUTrouble()
        # Why the last server was stopped, for its user; kept after `end`.
        self.notice = ""
        # The same as facts; None where no rule and no administrator has stopped it.
        self.ending: Ending | None = None

    # -- Beginning and end of the lease ----------------------------------------------------------

    def begin_term(self, seconds: float | None) -> None:
        """Begin the term, before the server has started.

        Args:
            seconds: the term's length; None: no end.
        """
        after = None if seconds is None else Deadline.after(seconds, self._clock)
        self._term = Term(after, seconds) if after and seconds else None

    def hold(self, units: Collection[str]) -> None:
        """Hold units (by name) for the server that has started, and register with the reclaimer."""
        self._began = Deadline.after(0, self._clock)
        self._register(units)

    def _register(self, units: Collection[str]) -> None:
        self._units = frozenset(units)
        if self._units:
            self._server.on_lease_begin()

    def adopt(self, lease: Lease) -> None:
        """Take over the lease of a running server that this hub lost in a crash."""
        if lease.until:
            left = lease.until - self._clock.wall()
            # The term's length isn't known: it is at least long enough for a warning.
            length = max(left, 2 * LATE_WARNING_SECONDS)
            self._term = Term(Deadline.after(left, self._clock), length)
            self._may_end_later = True
        self._register(lease.gpus)

    def end(self) -> None:
        """End the lease; the notice stays until the next start."""
        self.note_release()
        self._is_released = False
        self._term = self._began = self._cause = self._announced = None
        self._ended_by = (audit_log.SERVER, "it ended by itself")
        self._may_end_later = False
        self._units = frozenset()
        self.trouble = GPUTrouble()
        self._idleness = Idleness(self._clock)
        self.memory = MemoryShare(self._clock)
        self._server.on_lease_end()

    def note_release(self) -> None:
        """Record that its GPUs are free, if that isn't recorded yet."""
        if self._units and not self._is_released:
            by, rule = self._cause or self._ended_by
            self.log_event("release", by, gpus=self._units, held=self.held, rule=rule)
            self._is_released = True

    def saved(self) -> dict[str, Any]:
        """Return the state for `restore`, as a JSON value."""
        return {
            "gpus": sorted(self._units),
            "term": self._term.saved() if self._term else None,
            "stop": self._announced.saved() if self._announced else None,
            "began": self._began.saved() if self._began and self._units else None,
            "notice": kept(self.notice),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore the state that an earlier hub process saved."""
        self.notice = restored(saved.get("notice")) or ""
        if saved.get("gpus"):
            term, began = saved.get("term"), saved.get("began")
            self._began = Deadline.restored(began, self._clock) if began else None
            self._term = Term.restored(term, self._clock) if term else None
            self._may_end_later = bool(term)
            stop = saved.get("stop")
            self._announced = AnnouncedStop.restored(stop, self._clock) if stop else None
            self._register(saved["gpus"])

    async def ensure_rules_applied(self) -> None:
        """Apply the group overrides if an earlier hub process started the server."""
        await self._server.ensure_rules_applied()

    def log_event(self, event: audit_log.Event, by: str = audit_log.RULES, **facts: Any) -> None:
        """Write an event of this lease to the audit log; `by`: who caused it."""
        audit_log.record(self._server.log, event, self._server.holder, by, **facts)

    def will_stop(self, by: str, rule: str) -> None:
        """Record who stops the server, and why; only the first call counts."""
        self._cause = self._cause or (by, rule)

    def note_ended_by(self, by: str, rule: str) -> None:
        """Record who ends the server without having it stopped, and why: for the audit log."""
        self._ended_by = (by, rule)
        self.log_event("warn", by, rule=rule, held=self.held)

    @property
    def cause(self) -> tuple[str, str] | None:
        """Who has the server stopped, and why; None while nobody has."""
        return self._cause

    @property
    def held(self) -> float | None:
        """For how many seconds the server has had its GPUs; None if unknown."""
        return round(-self._began.remaining, 1) if self._began else None

    # -- Facts about the lease -------------------------------------------------------------------

    @property
    def holder(self) -> Holder:
        """The server that holds the GPUs."""
        return self._server.holder

    @property
    def units(self) -> frozenset[str]:
        """The names of the running server's units; empty if it doesn't run."""
        return self._units

    @property
    def until(self) -> float | None:
        """When the lease ends, in seconds since the epoch; None: never."""
        ends = [self._term.until] if self._term else []
        ends += [self._announced.deadline.until] if self._announced else []
        return min(ends, default=None)

    @property
    def announced(self) -> AnnouncedStop | None:
        """The stop that an administrator or an instructor has announced; None: none."""
        return self._announced

    @property
    def extend_from(self) -> float | None:
        """When its user can extend the lease first, in seconds since the epoch; None: no end."""
        if self._term is None:
            return None
        window, now = self._extend_seconds, self._clock.wall()
        if window is None or self._term.can_be_extended(window):
            return now
        return now + self._term.until_extension(window)

    @property
    def _extend_seconds(self) -> float | None:
        minutes, warned = self._server.extend_minutes, self._server.warning_minutes
        # A user who has been warned can extend the lease.
        return None if minutes is None else 60 * max(minutes, warned)

    @property
    def is_measured(self) -> bool:
        """Whether the server can be stopped because its GPUs are idle."""
        server = self._server
        return server.idle_minutes > 0 and not server.groups & set(server.idle_exempt_groups)

    @property
    def shares_memory(self) -> bool:
        """Whether it shares a GPU, whose memory nothing divides by hardware."""
        return bool(parts_of(self._units))

    @property
    def guard_seconds(self) -> float | None:
        """For how long it may hold more than its part of a GPU's memory; None: nobody looks."""
        server = self._server
        return server.memory_guard_seconds if server.memory_guard and self.shares_memory else None

    @property
    def is_changing(self) -> bool:
        """Whether it is starting or stopping."""
        return bool(self._server.pending or self._ending or not self._units)

    @property
    def server_id(self) -> str:
        """The backend's id of the server; "" if there is none."""
        return self._server.server_id

    @property
    def waiting_requests(self) -> int:
        """The number of requests in the queue that could use its GPUs."""
        return self._server.waiting_requests

    def facts(self) -> dict[str, Any]:
        """Return the facts that pages show, as a JSON value."""
        idle, since = self._idleness.warned, self._idleness.since
        return {
            "user": self.holder.user,
            "server": self.holder.server,
            "gpus": sorted(self._units),
            "image": self._server.image_title,
            "since": self._began.until if self._began else None,
            "until": self.until,
            "hours": self._term.seconds / 3600 if self._term else None,
            "hour_limit": self._server.longest_hours,
            "warned": bool(self._term and self._term.warned),
            "extend_from": self.extend_from,
            "waited_for": self._server.waiting_requests,
            "idle_since": None if since is None else Deadline(since, self._clock).until,
            "idle_until": idle.until if idle else None,
            "stop": self._stop_facts(),
            "trouble": self.trouble.facts(),
            "memory": self.memory.facts(self.guard_seconds) if self.shares_memory else None,
        }

    def _stop_facts(self) -> dict[str, Any] | None:
        stop = self._announced
        if stop is None:
            return None
        return {"at": stop.deadline.until, "why": stop.why, "rule": stop.rule}

    # -- Actions of the user ---------------------------------------------------------------------

    def extend(self, hours: float | None = None, by: str = "", over_all: bool = False) -> float:
        """Extend the lease; return its new end, in seconds since the epoch.

        Args:
            hours: the time to add; None: as much as it began with. Afterwards at most the server's
                `longest_hours` are left.
            by: who extends it, for the audit log; "": its user.
            over_all: whether an administrator or an instructor extends another user's lease: at any
                time, and even while requests wait.

        Raises:
            Refused: the lease has no end, it is too early, a request waits that could use the GPUs,
                no time can be added, or a budget has none left. Nothing has changed then.
        """
        self.refuse_if_ending()
        if self._announced:
            stop = self._announced
            raise Refused(not_extended_words(stop.deadline.until, stop.rule), status=409)
        term = self._term
        if term is None:
            raise Refused(
                lazy_gettext("This server's time doesn't end, so there is nothing to extend.")
            )
        if not over_all:
            self._refuse_extension(term)
        seconds = self._within_budgets(term, self._seconds_to_add(term, hours, over_all))
        seconds = self._before_reserved_hours(term, seconds)
        term.extend(seconds)
        self._server.save_state()
        self._server.on_extended(term.deadline)
        who = by or audit_log.user(self.holder.user)
        self.log_event("extend", who, until=round(term.until), added=round(seconds), held=self.held)
        return term.until

    def _within_budgets(self, term: Term, seconds: float) -> float:
        """Return how much of the time can be added within the budgets of its user.

        Raises:
            Refused: none of it can.
        """
        latest, why = self._server.budgeted_end(term.until + seconds)
        left = min(seconds, latest - term.until) if why else seconds
        if left >= min(seconds, 60.0):
            return left
        raise Refused(why, status=403, key="hours")

    def _before_reserved_hours(self, term: Term, seconds: float) -> float:
        """Return how much of the time can be added before what is reserved for others.

        Or before the end of the hours for which it is a slot.

        Raises:
            Refused: none of it can.
        """
        latest, why = self._server.latest_end(term.until + seconds)
        if not why:
            return seconds
        left = min(seconds, latest - term.until)
        if left >= min(seconds, 60.0):
            return left
        ends = lazy_gettext("Its time ends at %(time)s.", time=clock_time(term.until))
        raise Refused(join_sentences(why, ends), status=409)

    def _refuse_extension(self, term: Term) -> None:
        """Raise Refused if its user can't extend the lease now.

        A GPU that is to be reset once the server has ended works until then: that is no reason.
        """
        if self.trouble.has_failed:
            raise Refused(
                lazy_gettext(
                    "A GPU of your server is out of order. Start the server again for another one."
                ),
                status=409,
            )
        if waiting := self._server.waiting_requests:
            raise Refused(
                lazy_ngettext(
                    "You can't extend while 1 other waits who could use your GPUs. Your server's "
                    "time ends at %(time)s; save your work before.",
                    "You can't extend while %(num)s others wait who could use your GPUs. Your "
                    "server's time ends at %(time)s; save your work before.",
                    waiting,
                    time=clock_time(term.until),
                ),
                status=409,
            )
        if not term.can_be_extended(self._extend_seconds):
            raise Refused(
                lazy_gettext(
                    "It is too early: you can extend your server from %(time)s on. Its time ends "
                    "at %(end)s.",
                    time=clock_time(self.extend_from or 0),
                    end=clock_time(term.until),
                ),
                status=409,
            )

    def _seconds_to_add(self, term: Term, hours: float | None, over_all: bool) -> float:
        if hours is not None and not 0 < hours <= MAX_HOURS:
            raise Refused(
                lazy_gettext(
                    "The hours to add must be more than 0 and at most %(most)s, got %(value)s.",
                    most=f"{MAX_HOURS:g}",
                    value=str(hours)[:MAX_SHOWN],
                ),
                key="hours",
            )
        asked = term.seconds if hours is None else hours * 3600.0
        if asked < 1:
            raise Refused(lazy_gettext("The time to add is less than a second."), key="hours")
        limit = self._server.longest_hours
        most = 3600 * (MAX_HOURS if limit is None else limit)
        seconds = term.extension(asked, most)
        if seconds >= 1:
            return seconds
        facts = {"left": hours_words(term.deadline.remaining), "most": hours_words(most)}
        if over_all:
            words = lazy_gettext(
                "The server of %(holder)s has %(left)s left, and its limit is %(most)s.",
                holder=str(self.holder),
                **facts,
            )
        else:
            words = lazy_gettext(
                "Your server has %(left)s left, and the limit is %(most)s.", **facts
            )
        raise Refused(words, status=403, key="hours")

    def keep_alive(self) -> None:
        """Reset the idle time, as the user has said that they still need the GPUs.

        Raises:
            Refused: the server is being stopped already.
        """
        self.refuse_if_ending()
        self._idleness.reset()

    # -- What is wrong with its GPUs ---------------------------------------------------------------

    def note_trouble(self, trouble: Sequence[Mapping[str, Any]]) -> None:
        """Note what is wrong with its GPUs, and tell its user where one has failed."""
        if words := self.trouble.replace(trouble):
            causes = ", ".join(str(each["cause"]) for each in trouble)
            self.log_event("warn", rule="health", why=causes, held=self.held)
            self._server.tell("trouble", words)

    def note_away(self, words: str) -> None:
        """Note that its machine is away, and tell its user; `words`: what becomes of the server."""
        self.trouble.away = words
        self._server.tell("trouble", words)

    def note_devices(self, gone: bool) -> None:
        """Note whether its container has lost its GPUs' devices, as its own program says."""
        if self.trouble.note_devices(gone, self._clock.wall()):
            self.log_event("warn", rule="devices gone", held=self.held)
            said = audit_log.one_line(self.holder)
            self._server.log.warning(
                "The container of %s has lost its GPUs' devices, as after `systemctl daemon-reload`"
                ' where NVIDIA\'s hook gave them: gpu_injection = "cdi" keeps them',
                said,
            )
            self._server.tell("trouble", self.trouble.words)

    # -- Actions of an administrator, or of an instructor of its course ---------------------------

    async def stop_for(
        self, by: str, why: str = "", minutes: float = 0, rule: str = ADMINISTRATOR
    ) -> None:
        """Stop the server for somebody else, now or later; its user reads the reason.

        Args:
            by: who stops it, for the audit log.
            why: the reason; "" for none.
            minutes: in how many minutes; 0: now. It may not have ended yet when this returns,
                where it takes its time to save.
            rule: `endings.RULE` or `endings.INSTRUCTOR`.

        Raises:
            Refused: it is being stopped already, or couldn't be stopped.
        """
        self.refuse_if_ending()
        why = " ".join(why.split())
        if minutes > 0:
            deadline = Deadline.after(60 * minutes, self._clock)
            self._announced = AnnouncedStop(deadline, by, why, rule)
            self._server.save_state()
            until = round(deadline.until)
            self.log_event("warn", by, rule=rule, why=why, until=until, held=self.held)
            self._server.tell("announced", announced_words(deadline.until, why, rule))
            self._server.on_end_changed(self.until or deadline.until)
            return
        task = self._stop_by(by, why, rule)
        await asyncio.wait([task], timeout=ANSWER_SECONDS)
        if task.done() and (task.cancelled() or task.exception()):
            words = lazy_gettext("It couldn't be stopped: the hub's log says why.")
            raise Refused(words, status=503)

    def take_back_stop(self, by: str) -> None:
        """Take an announced stop back; `by`: who does, for the audit log.

        Raises:
            Refused: none is announced, or it is too late.
        """
        self.refuse_if_ending()
        if self._announced is None:
            words = lazy_gettext("No stop of this server is announced.")
            raise Refused(words, status=409)
        self._announced = None
        self._server.save_state()
        self.log_event("keep", by, until=self.until and round(self.until), held=self.held)

    def _stop_by(self, by: str, why: str, rule: str) -> asyncio.Task[None]:
        return self._stop(rule, stopped_words(self._clock.wall(), why, rule), by, why)

    def refuse_if_ending(self) -> None:
        """Raise Refused if a rule or somebody is stopping the server."""
        if self._ending:
            raise Refused(lazy_gettext("It is too late: this server is being stopped."), status=409)

    def ends_at(self, end: Deadline) -> bool:
        """Return whether the lease has this end still."""
        return self._term is not None and self._term.deadline == end

    async def _restore_extension(self) -> None:
        """Extend a lease that an earlier hub process began, if it was extended for longer there."""
        end = await self._server.read_extended_end()
        self._may_end_later = False
        if end and self._term and self._term.extend_to(end):
            self._server.save_state()

    # -- Warnings and stops ----------------------------------------------------------------------

    def measure(self, gpus: Collection[GPU]) -> None:
        """Add a measurement of the server's GPUs; no GPUs if they couldn't be read."""
        self._idleness.add_measurement(gpus, self._server.idle_utilization)

    async def enforce(self) -> None:
        """Warn the user or stop the server if that is due."""
        await self.ensure_rules_applied()
        if self._may_end_later:
            await self._restore_extension()
        if (until := self.until) is not None:
            self._server.on_end_changed(until)
        if self.is_changing:
            return
        if self._announced and self._announced.deadline.remaining <= 0:
            self._stop_by(self._announced.by, self._announced.why, self._announced.rule)
            return
        if self._term and (step := self._term.step(self._server.warning_minutes * 60)):
            self._handle_term_step(step, self._term)
        elif self.is_measured and (step := self._idle_step()):
            self._handle_idle_step(step)

    def _handle_term_step(self, step: Step, term: Term) -> None:
        if step == "warn":
            term.warn(self._server.warning_minutes * 60)
            self._server.save_state()
            self.log_event("warn", rule="time limit", until=round(term.until), held=self.held)
            words = lazy_gettext(
                "Your server is stopped at %(time)s, in %(duration)s. Save your work before; its "
                "page says whether you can extend it.",
                time=clock_time(term.until),
                duration=hours_words(term.until - self._clock.wall()),
            )
            self._server.tell("end", words)
            return
        self._stop(
            "time limit",
            lazy_gettext(
                "Your server was stopped at %(time)s: its %(duration)s of GPU time were over. "
                "Your files are kept.",
                time=clock_time(self._clock.wall()),
                duration=hours_words(term.seconds),
            ),
        )

    def _idle_step(self) -> Step:
        server = self._server
        matters = not server.idle_only_while_waiting or bool(server.waiting_requests)
        return self._idleness.step(server.idle_minutes * 60, matters)

    def _handle_idle_step(self, step: Step) -> None:
        server = self._server
        if step == "warn":
            self._idleness.warn(server.idle_warning_minutes * 60)
            stop = self._clock.wall() + server.idle_warning_minutes * 60
            self.log_event("warn", rule="idle GPUs", until=round(stop), held=self.held)
            words = lazy_gettext(
                "Your server is stopped at %(time)s, unless its GPUs are used by then or you say "
                "on its page that you still need them.",
                time=clock_time(stop),
            )
            server.tell("idle", words)
            return
        minutes = server.idle_minutes + server.idle_warning_minutes
        self._stop(
            "idle GPUs",
            lazy_gettext(
                "Your server was stopped at %(time)s: its GPUs did nothing for %(duration)s, "
                "and others need them. Your files are kept.",
                time=clock_time(self._clock.wall()),
                duration=hours_words(60 * minutes),
            ),
        )

    def tell(self, occasion: Occasion, words: str) -> None:
        """Send its user a message, where an administrator has set where to."""
        self._server.tell(occasion, words)

    def stop_by_rule(self, rule: str, sentence: str) -> None:
        """Stop the server for a rule that another part of the hub enforces.

        Args:
            rule: the rule, as in the audit log.
            sentence: why, for its user.
        """
        self._stop(rule, sentence)

    def _stop(
        self, rule: str, sentence: str, by: str = audit_log.RULES, why: str = ""
    ) -> asyncio.Task[None]:
        self.notice, self.ending = sentence, Ending(self._clock.wall(), rule, why)
        self.will_stop(by, rule)
        facts = {"why": why} if why else {}
        self.log_event("stop", by, gpus=self._units, rule=rule, held=self.held, **facts)
        self._server.tell("stopped", sentence)
        self._ending = asyncio.ensure_future(self._server.stop_through_hub())
        self._ending.add_done_callback(self._stopped)
        return self._ending

    def _stopped(self, task: asyncio.Task[None]) -> None:
        self._ending = None
        if not task.cancelled() and (error := task.exception()):
            said = audit_log.one_line(self.holder)
            self._server.log.error("Stopping %s failed; it is tried again", said, exc_info=error)


def iso_time(seconds: float) -> str:
    """Return a time (in seconds since the epoch) as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
