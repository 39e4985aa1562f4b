"""The interval at which starting servers are polled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# The shortest interval: short compared with a start of half a second.
POLL_SECONDS = 0.01
# The most polls per second of all starting servers, since each takes processor time from them.
ATTEMPTS_PER_SECOND = 160


class PollInterval:
    """The polling interval of all starting servers: longer, the more servers there are."""

    def __init__(self) -> None:
        self._waiting = 0

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Count one more starting server, in this context."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    @property
    def seconds(self) -> float:
        """The time between two polls of one server, in seconds."""
        return max(POLL_SECONDS, self._waiting / ATTEMPTS_PER_SECOND)
