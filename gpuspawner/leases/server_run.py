"""When a server ran, as its backend knows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerRun:
    """The last run of a server.

    Args:
        started: when it was started, in seconds since the epoch by the backend's clock; None: it
            never was, or that isn't known.
        ended: when it ended; None: it runs, or that isn't known.
        exit_code: what it ended with; None: that isn't known.
        out_of_memory: whether it was ended as its memory was full.
    """

    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    out_of_memory: bool = False
