"""How often servers that start are asked whether they answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# Between two attempts to reach a server: short compared with a start of half a second.
POLL_SECONDS = 0.01
# The most attempts per second, for all servers that start: each takes time that they need to start.
ATTEMPTS_PER_SECOND = 160


class PollInterval:
    """How often servers that start are looked at: the more of them, the less often each."""

    def __init__(self) -> None:
        self._waiting = 0

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Have one more server to look at meanwhile."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    @property
    def seconds(self) -> float:
        """How long to wait between two looks at one server."""
        return max(POLL_SECONDS, self._waiting / ATTEMPTS_PER_SECOND)
