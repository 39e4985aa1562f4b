"""Time that a change of the clock doesn't reach: when a lease ends, across restarts of the hub."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def _boot_id() -> str:
    # ref: random(4), /proc/sys/kernel/random/boot_id
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _since_boot() -> float:
    # Unlike the monotonic clock it goes on while the machine sleeps, and people's hours do too.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Clock:
    """The machine's clocks, in seconds: `wall` is what people read, `steady` is never set."""

    wall: Callable[[], float] = time.time
    steady: Callable[[], float] = _since_boot
    boot: Callable[[], str] = _boot_id


@dataclass(frozen=True)
class Deadline:
    """A moment to come, by the steady clock."""

    at: float
    clock: Clock

    @classmethod
    def after(cls, seconds: float, clock: Clock) -> Deadline:
        """Return the moment that is `seconds` away."""
        return cls(clock.steady() + seconds, clock)

    @property
    def remaining(self) -> float:
        """Seconds until then; negative once it is past."""
        return self.at - self.clock.steady()

    @property
    def until(self) -> float:
        """The moment as people read it, in seconds since the epoch, by the clock as it goes now."""
        return self.clock.wall() + self.remaining

    def saved(self) -> dict[str, Any]:
        """Return a value for JSON from which `restored` makes the same moment."""
        return {"at": self.at, "boot": self.clock.boot(), "until": self.until}

    @classmethod
    def restored(cls, saved: Mapping[str, Any], clock: Clock) -> Deadline:
        """Return the moment that was saved.

        The steady clock tells while the machine hasn't been started anew; after that the wall
        clock has to.
        """
        if saved["boot"] and saved["boot"] == clock.boot():
            return cls(float(saved["at"]), clock)
        return cls.after(float(saved["until"]) - clock.wall(), clock)
