"""The time of a lease: by the steady clock as far as it is known, never negative, never doubled.

A lease's place in the calendar is by the wall clock, as it is set when the lease is first seen. How
long it lasts is by the steady clock, which is never set, and goes on over restarts of the hub. The
backend's own times of a start and an end place both between two readings, and are taken for no more
than that. So whatever the wall clock does, leases of one unit together have no more time than there
was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..leases.clock import Moment

# After a reboot there is the wall clock alone, which may be wrong until it is set. Nobody's hub is
# away for longer than this while its servers run.
LONGEST_UNSEEN_SECONDS = 31 * 86400.0


@dataclass(frozen=True)
class Span:
    """The time of a lease so far.

    Args:
        began: when it began, in seconds since the epoch.
        seconds: for how long it has been held.
        boot: whose steady clock `until_steady` is of.
        until_steady: the end of what is known of it.
    """

    began: float
    seconds: float
    boot: str
    until_steady: float

    @property
    def until(self) -> float:
        """The end of what is known of it, in seconds since the epoch."""
        return self.began + self.seconds

    @property
    def began_steady(self) -> float:
        """When it began by the steady clock."""
        return self.until_steady - self.seconds

    def held_at(self, steady: float, at: Moment) -> Span:
        """Return the span of a lease that was held at a time.

        Args:
            steady: the time; if it is earlier than what is known, nothing changes.
            at: a moment of the same clock.
        """
        if at.is_comparable(self.boot):
            return self._longer(max(0.0, steady - self.until_steady))
        resumed = self._resumed(at.wall - (at.steady - steady))
        return replace(resumed, boot=at.boot, until_steady=steady)

    def ended_at(self, ended: float, at: Moment) -> Span:
        """Return the span of a lease that ended.

        Args:
            ended: when, in seconds since the epoch by the backend's clock.
            at: the moment at which it was known to be over.
        """
        steady = min(at.steady_of(ended), at.steady)
        if at.is_comparable(self.boot):
            return self._longer(max(0.0, steady - self.until_steady))
        return replace(self._resumed(min(ended, at.wall)), boot=at.boot, until_steady=steady)

    def cut(self, steady: float) -> Span:
        """Return the span up to a time at the most, by its own clock."""
        over = min(max(0.0, self.until_steady - steady), self.seconds)
        return replace(self, seconds=self.seconds - over, until_steady=self.until_steady - over)

    def moved_to(self, steady: float) -> Span:
        """Return the span that begins later, before it has any time."""
        assert not self.seconds
        later = max(0.0, steady - self.until_steady)
        return replace(self, began=self.began + later, until_steady=self.until_steady + later)

    def _longer(self, seconds: float) -> Span:
        return replace(
            self, seconds=self.seconds + seconds, until_steady=self.until_steady + seconds
        )

    def _resumed(self, wall: float) -> Span:
        """Return the span up to a time after a reboot, where that is to be believed."""
        seconds = wall - self.until
        return self._longer(seconds if 0 <= seconds <= LONGEST_UNSEEN_SECONDS else 0.0)


def begin(started: float, at: Moment, after: Moment | None) -> Span:
    """Return the span of a lease at its beginning.

    Args:
        started: when it began, in seconds since the epoch by the backend's clock.
        at: the moment at which it was known to have begun.
        after: an earlier moment at which it hadn't; None: unknown.
    """
    earliest = 0.0  # a server is no older than its machine's boot
    if after is not None and at.is_comparable(after.boot):
        earliest = after.steady
    elif after is not None:
        unseen = at.wall - after.wall
        earliest = at.steady - (unseen if 0 <= unseen <= LONGEST_UNSEEN_SECONDS else 0.0)
    steady = min(max(at.steady_of(started), earliest), at.steady)
    return Span(at.wall - (at.steady - steady), 0.0, at.boot, steady)
