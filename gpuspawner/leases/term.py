"""How long a server keeps its GPUs: warned first, always. A plain value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .clock import Clock, Deadline

# A warning that comes late, since the hub was down, still leaves this much time.
LATE_WARNING_SECONDS = 300.0


Step = Literal["warn", "stop"] | None


@dataclass
class Term:
    """How long a server keeps its GPUs.

    Args:
        deadline: when it ends.
        seconds: how much was asked for.
        warned: the earliest stop after a warning; None while none was given.
    """

    deadline: Deadline
    seconds: float
    warned: Deadline | None = None

    def step(self, warning_seconds: float) -> Step:
        """Return what is due now. Who asks for "warn" calls `warn`."""
        # Half of a short term at least is without a warning on it.
        early = min(warning_seconds, self.seconds / 2)
        if self.warned is None:
            return "warn" if self.deadline.remaining <= early else None
        return "stop" if max(self.deadline.remaining, self.warned.remaining) <= 0 else None

    def warn(self, warning_seconds: float) -> None:
        """Take note that the user has been warned."""
        least = min(warning_seconds, LATE_WARNING_SECONDS, self.seconds / 2)
        after = max(self.deadline.remaining, least)
        self.warned = Deadline.after(after, self.deadline.clock)

    @property
    def until(self) -> float:
        """When it ends, in seconds since the epoch."""
        return max(each.until for each in (self.deadline, self.warned) if each)

    def can_be_extended(self, seconds: float | None) -> bool:
        """Return whether its user may extend it already.

        Args:
            seconds: how long before the end that begins; None: at any time.
        """
        return seconds is None or self.warned is not None or self.until_extension(seconds) <= 0

    def until_extension(self, seconds: float) -> float:
        """Return how many seconds there are until its user may extend it, from `seconds` before."""
        # Half of a short term at most, as for a warning.
        return self.deadline.remaining - min(seconds, self.seconds / 2)

    def extension(self, seconds: float, most: float) -> float:
        """Return how many seconds an extension would add.

        Args:
            seconds: how many are asked for.
            most: how many may be left afterwards.
        """
        left = max(0.0, self.deadline.remaining)
        return min(left + seconds, max(most, left)) - left

    def extend(self, seconds: float) -> None:
        """Add seconds; of its new end there is a warning anew."""
        left = max(0.0, self.deadline.remaining)
        self.deadline = Deadline.after(left + seconds, self.deadline.clock)
        self.warned = None

    def saved(self) -> dict[str, Any]:
        """Return it as a value for JSON."""
        warned = self.warned.saved() if self.warned else None
        return {"deadline": self.deadline.saved(), "seconds": self.seconds, "warned": warned}

    @classmethod
    def restored(cls, saved: Mapping[str, Any], clock: Clock) -> Term:
        """Return what was saved. A warning of which little is left is given anew.

        Nobody could be told while the hub was away.
        """
        seconds = float(saved["seconds"])
        warned = Deadline.restored(saved["warned"], clock) if saved["warned"] else None
        if warned and warned.remaining < min(LATE_WARNING_SECONDS, seconds / 2):
            warned = None
        return cls(Deadline.restored(saved["deadline"], clock), seconds, warned)
