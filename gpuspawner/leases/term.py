"""The term of a lease: its end, its extensions and its warning. A plain value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .clock import Clock, Deadline

# How much time a warning leaves at least, even if it comes late since the hub was down.
LATE_WARNING_SECONDS = 300.0


Step = Literal["warn", "stop"] | None


@dataclass
class Term:
    """The time for which a server keeps its GPUs.

    Args:
        deadline: its end.
        seconds: its length as requested.
        warned: the earliest stop after a warning; None while the user hasn't been warned.
    """

    deadline: Deadline
    seconds: float
    warned: Deadline | None = None

    def step(self, warning_seconds: float) -> Step:
        """Return what is due now. On "warn", the caller has to call `warn`.

        Args:
            warning_seconds: how long before the end the user is warned.
        """
        # The first half of a short term is always without a warning.
        early = min(warning_seconds, self.seconds / 2)
        if self.warned is None:
            return "warn" if self.deadline.remaining <= early else None
        return "stop" if max(self.deadline.remaining, self.warned.remaining) <= 0 else None

    def warn(self, warning_seconds: float) -> None:
        """Record that the user has been warned.

        Args:
            warning_seconds: as for `step`.
        """
        least = min(warning_seconds, LATE_WARNING_SECONDS, self.seconds / 2)
        after = max(self.deadline.remaining, least)
        self.warned = Deadline.after(after, self.deadline.clock)

    @property
    def until(self) -> float:
        """When the server is stopped at the earliest, in seconds since the epoch."""
        return max(each.until for each in (self.deadline, self.warned) if each)

    def can_be_extended(self, seconds: float | None) -> bool:
        """Return whether its user can extend the term now.

        Args:
            seconds: how long before the end that is possible; None: at any time.
        """
        return seconds is None or self.warned is not None or self.until_extension(seconds) <= 0

    def until_extension(self, seconds: float) -> float:
        """Return the time until its user can extend the term, in seconds; `seconds` as above."""
        # Half of a short term at most, as for a warning.
        return self.deadline.remaining - min(seconds, self.seconds / 2)

    def extension(self, seconds: float, most: float) -> float:
        """Return how many seconds an extension would add.

        Args:
            seconds: the time to add.
            most: the most seconds that may be left afterwards.
        """
        left = max(0.0, self.deadline.remaining)
        return min(left + seconds, max(most, left)) - left

    def extend(self, seconds: float) -> None:
        """Add seconds to the term; its user is warned again before the new end."""
        left = max(0.0, self.deadline.remaining)
        self.deadline = Deadline.after(left + seconds, self.deadline.clock)
        self.warned = None

    def extend_to(self, end: Deadline) -> bool:
        """Give the term a later end; return False if it isn't later."""
        # An end that was kept twice differs by less.
        if end.at <= self.deadline.at + 1:
            return False
        self.deadline, self.warned = end, None
        return True

    def saved(self) -> dict[str, Any]:
        """Return the term as a JSON value for `restored`."""
        warned = self.warned.saved() if self.warned else None
        return {"deadline": self.deadline.saved(), "seconds": self.seconds, "warned": warned}

    @classmethod
    def restored(cls, saved: Mapping[str, Any], clock: Clock) -> Term:
        """Return the term of a JSON value.

        If little time is left after a warning, the user is warned again: nobody saw the warning
        while the hub was down.
        """
        seconds = float(saved["seconds"])
        warned = Deadline.restored(saved["warned"], clock) if saved["warned"] else None
        if warned and warned.remaining < min(LATE_WARNING_SECONDS, seconds / 2):
            warned = None
        return cls(Deadline.restored(saved["deadline"], clock), seconds, warned)
