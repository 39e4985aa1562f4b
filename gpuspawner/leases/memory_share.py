"""For how long a server has held more of a shared GPU's memory than its part. A plain value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..gpus.host_processes import HostProcess
from ..gpus.memory import MemoryUse
from ..i18n.lazy_text import lazy_gettext
from ..i18n.phrases import clock_time, memory_words
from .clock import Clock, Deadline

MemoryStep = Literal["warn", "end", "stop"]
# How long a process that was told to end has for it, in seconds, at most.
END_SECONDS = 10.0
# What has been done -> what is next.
_NEXT: dict[str, MemoryStep] = {"": "warn", "warn": "end", "end": "stop"}


@dataclass(frozen=True)
class EndedProcess:
    """A process that was ended.

    Args:
        name: its program's name.
        held: what it held of the GPU's memory, in bytes.
        at: when, in seconds since the epoch.
    """

    name: str
    held: int
    at: float


@dataclass
class MemoryShare:
    """What a server holds of a shared GPU's memory, and what was done about it.

    One step follows the other only after the server was over its part for the whole of the
    administrator's seconds, without a break, since the one before: its user is warned, its largest
    process ended, and the server stopped. What isn't known is a break. It begins from the warning
    again once the server has kept to its part for as long.

    `use` is the last measurement; None while it isn't known. `done` is the last step; "": none.
    `is_seen` is whether what it holds can be seen at all; None: nobody has looked yet.
    """

    clock: Clock
    use: MemoryUse | None = None
    done: MemoryStep | Literal[""] = ""
    is_seen: bool | None = None
    # By the steady clock: since when it has been over its part, or has kept to it (None: it isn't
    # or hasn't), the last measurement, and the last step.
    over_since: float | None = None
    kept_since: float | None = None
    measured_at: float | None = None
    done_at: float | None = None
    ended: EndedProcess | None = None
    # The process that was told to end, and until when it has time for it.
    ending: tuple[HostProcess, Deadline] | None = None

    def add_measurement(self, use: MemoryUse | None, seconds: float) -> None:
        """Add a measurement.

        Args:
            use: what the server holds; None if that isn't known.
            seconds: for how long it may be over its part.
        """
        now = self.clock.steady()
        if self.measured_at is not None and now - self.measured_at > seconds:
            # Nobody looked, as while the machine slept: who was over it may not have been.
            self.over_since = self.kept_since = None
        self.use, self.measured_at = use, now
        is_over, is_kept = use is not None and use.is_over, use is not None and not use.is_over
        self.over_since = (now if self.over_since is None else self.over_since) if is_over else None
        self.kept_since = (now if self.kept_since is None else self.kept_since) if is_kept else None
        if self.kept_since is not None and now - self.kept_since >= seconds:
            self.done, self.done_at, self.ending = "", None, None

    def step(self, seconds: float) -> MemoryStep | None:
        """Return what is due now. What is done about it has to be told to `note`."""
        left = self._seconds_left(seconds)
        return _NEXT.get(self.done) if left is not None and left <= 0 else None

    def due(self, seconds: float) -> float | None:
        """Return when the next step is due after the warning, in seconds since the epoch, if so."""
        left = self._seconds_left(seconds) if self.done else None
        return None if left is None else self.clock.wall() + left

    @property
    def next(self) -> MemoryStep | None:
        """What is done next, while the server is over its part."""
        return None if self.over_since is None else _NEXT.get(self.done)

    def _seconds_left(self, seconds: float) -> float | None:
        if self.over_since is None:
            return None
        since = self.over_since if self.done_at is None else max(self.over_since, self.done_at)
        return since + seconds - self.clock.steady()

    def note(self, step: MemoryStep) -> None:
        """Note that a step was done."""
        self.done, self.done_at = step, self.clock.steady()

    def note_ended(self, use: MemoryUse, seconds: float) -> None:
        """Note that its largest process was told to end, and has time for it."""
        assert use.largest is not None
        self.note("end")
        self.ended = EndedProcess(use.largest.name, use.held, self.clock.wall())
        # Before the server is stopped for it.
        wait = min(END_SECONDS, seconds / 2)
        self.ending = use.largest, Deadline.after(wait, self.clock)

    def facts(self, seconds: float | None) -> dict[str, Any]:
        """Return the facts that pages show, as a JSON value; sizes in bytes.

        Args:
            seconds: for how long the server may be over its part; None: nobody looks.
        """
        use, ended = self.use, self.ended
        return {
            "guarded": seconds is not None and self.is_seen is not False,
            "used": use.used if use else None,
            "part": use.part if use else None,
            "next": self.next if self.done else None,
            "until": None if seconds is None else self.due(seconds),
            "ended": ended and {"process": ended.name, "held": ended.held, "at": ended.at},
        }


def over_words(share: MemoryShare, seconds: float | None) -> str:
    """Return that a server holds more than its part, and what comes of it; "" if it doesn't.

    Args:
        share: the server's.
        seconds: as for `MemoryShare.facts`.
    """
    use, until = share.use, None if seconds is None else share.due(seconds)
    if use is None or until is None:
        return ""
    sizes = {"used": memory_words(use.used), "part": memory_words(use.part)}
    if share.next == "end":
        return lazy_gettext(
            "It holds %(used)s of the memory of a GPU that it shares, and its part is %(part)s. If "
            "it still does at %(time)s, its largest process is ended.",
            time=clock_time(until),
            **sizes,
        )
    return lazy_gettext(
        "It holds %(used)s of the memory of a GPU that it shares, and its part is %(part)s. If it "
        "still does at %(time)s, it is stopped: save your work before.",
        time=clock_time(until),
        **sizes,
    )
