"""The watch for NVML's events: a thread that hears a program of ours, and tells the event loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ..untrusted import parse_json
from .health import HealthEvent

COMMAND = (sys.executable, "-m", "gpuspawner.gpus.nvml_events")
# As `nvml_events.EXIT_NO_EVENTS`.
NO_EVENTS = 3
# The pause before it is started anew: at first, at most, and where no GPU has events.
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, NO_EVENTS_SECONDS = 1.0, 60.0, 600.0
# A line of the program's is far shorter.
MAX_LINE = 65536


class EventWatch:
    """Hears of NVML's events while it is on; off, nothing of it has NVML open.

    Args:
        on_event: called on the event loop with each event.
        command: the program that prints events.
    """

    def __init__(
        self, on_event: Callable[[HealthEvent], None], command: Sequence[str] = COMMAND
    ) -> None:
        self._on_event = on_event
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._not_before = 0.0
        self._failures = 0
        # The GPUs whose events are heard of now.
        self.watching: frozenset[str] = frozenset()

    @property
    def is_on(self) -> bool:
        """Whether the program runs."""
        return self._process is not None and self._process.poll() is None

    def turn_on(self) -> None:
        """Start the program unless it runs; one that has just failed is given a while."""
        if self.is_on or time.monotonic() < self._not_before:
            return
        # The thread of one that has just ended may not have said so yet.
        self.watching = frozenset()
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        loop = asyncio.get_running_loop()
        threading.Thread(
            target=self._hear, args=(self._process, loop), name="nvml-events", daemon=True
        ).start()

    def turn_off(self) -> None:
        """End the program: when this returns, it has let go of every GPU, or is about to."""
        process, self._process = self._process, None
        self.watching = frozenset()
        if process is None:
            return
        process.kill()
        with suppress(subprocess.TimeoutExpired):  # it hangs in the driver; the thread waits on
            process.wait(0.5)

    def _hear(self, process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop) -> None:
        assert process.stdout
        while line := process.stdout.readline(MAX_LINE):
            with suppress(ValueError, RuntimeError):  # no line of ours, or the loop is closed
                loop.call_soon_threadsafe(self._heard, process, parse_json(line))
        status = process.wait()
        for stream in (process.stdin, process.stdout):
            with suppress(OSError):
                stream and stream.close()
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._ended, process, status)

    def _heard(self, process: subprocess.Popen[bytes], facts: Any) -> None:
        if not isinstance(facts, dict):
            return
        if "watching" in facts:
            if process is self._process:
                self._failures, self.watching = 0, frozenset(facts["watching"])
            return
        try:
            instances = tuple(map(str, facts["instances"]))
            event = HealthEvent(str(facts["gpu"]), facts["kind"], int(facts["xid"]), instances)
        except (KeyError, TypeError, ValueError):
            return
        # Also of one that was turned off meanwhile: what it has heard of, has happened.
        self._on_event(event)

    def _ended(self, process: subprocess.Popen[bytes], status: int) -> None:
        if process is not self._process:
            return
        self._process, self.watching = None, frozenset()
        self._failures += 1
        pause = min(PAUSE_SECONDS * 2 ** (self._failures - 1), LONGEST_PAUSE_SECONDS)
        self._not_before = time.monotonic() + (NO_EVENTS_SECONDS if status == NO_EVENTS else pause)
