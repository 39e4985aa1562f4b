"""Deadlines that survive restarts of the hub and changes of the machine's clock."""

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
    # Unlike the monotonic clock it goes on while the machine sleeps, as the users' hours do.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Clock:
    """The machine's clocks, in seconds: `wall` since the epoch, `steady` since boot, never set."""

    wall: Callable[[], float] = time.time
    steady: Callable[[], float] = _since_boot
    boot: Callable[[], str] = _boot_id


@dataclass(frozen=True)
class Deadline:
    """A point in time by the steady clock."""

    at: float
    clock: Clock

    @classmethod
    def after(cls, seconds: float, clock: Clock) -> Deadline:
        """Return the deadline that is `seconds` from now."""
        return cls(clock.steady() + seconds, clock)

    @property
    def remaining(self) -> float:
        """The seconds left; negative once the deadline has passed."""
        return self.at - self.clock.steady()

    @property
    def until(self) -> float:
        """The deadline in seconds since the epoch, by the wall clock as it is set now."""
        return self.clock.wall() + self.remaining

    def saved(self) -> dict[str, Any]:
        """Return the deadline as a JSON value for `restored`."""
        return {"at": self.at, "boot": self.clock.boot(), "until": self.until}

    @classmethod
    def restored(cls, saved: Mapping[str, Any], clock: Clock) -> Deadline:
        """Return the deadline of a JSON value.

        The steady clock decides if the machine hasn't been rebooted since, else the wall clock.
        """
        if saved["boot"] and saved["boot"] == clock.boot():
            return cls(float(saved["at"]), clock)
        return cls.after(float(saved["until"]) - clock.wall(), clock)


@dataclass(frozen=True)
class Moment:
    """One moment by all clocks, in seconds: `wall` since the epoch, `steady` since that boot."""

    wall: float
    steady: float
    boot: str

    @classmethod
    def now(cls, clock: Clock) -> Moment:
        """Return this moment."""
        return cls(clock.wall(), clock.steady(), clock.boot())

    def is_comparable(self, boot: str) -> bool:
        """Return whether steady times of a boot are of the same clock as this moment's."""
        return bool(boot) and boot == self.boot

    def steady_of(self, wall: float) -> float:
        """Return the steady time of a wall time, by the wall clock as it was set at this moment."""
        return self.steady - (self.wall - wall)
