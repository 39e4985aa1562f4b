"""GPUs come back: when a lease's time is over, and when its GPUs do nothing. Warned first, always.

The rules are plain values, moved by what is told to them; `Reclaimer` tells them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from .allocation import GPU
from .clock import Clock, Deadline
from .leases import Ledger, Unknown

# How often ends are looked after, and how often GPUs that may be idle are measured.
TICK_SECONDS = 1.0
MEASURE_SECONDS = 5.0
# A warning that comes late, since the hub was down, still leaves this much time.
LATE_WARNING_SECONDS = 300.0
# What a program that only waits may do to its GPU's memory.
STEADY_MEMORY_MIB = 64

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

    def extend(self, seconds: float, most: float) -> float:
        """Add seconds, and return how many were added.

        Args:
            seconds: how many are asked for.
            most: how many may be left afterwards.
        """
        left = max(0.0, self.deadline.remaining)
        new = min(left + seconds, max(most, left))
        self.deadline = Deadline.after(new, self.deadline.clock)
        self.warned = None
        return new - left

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


@dataclass
class Idleness:
    """How long a server's GPUs have done nothing, as far as was measured."""

    clock: Clock
    since: float | None = None
    # UUID -> the memory in use (MiB) that isn't growth.
    memory_mib: dict[str, int] = field(default_factory=dict)
    warned: Deadline | None = None

    def see(self, gpus: Collection[GPU], utilization_percent: float) -> None:
        """Take in a measurement of all of the server's GPUs.

        Args:
            gpus: what NVML says of them; empty where it says nothing.
            utilization_percent: up to where a GPU counts as doing nothing.
        """
        if not gpus or any(self._works(gpu, utilization_percent) for gpu in gpus):
            self.reset()
        elif self.since is None:
            self.since = self.clock.steady()
        known = self.memory_mib if self.since is not None else {}
        self.memory_mib = {
            gpu.uuid: min(gpu.memory_used_mib or 0, known.get(gpu.uuid, gpu.memory_used_mib or 0))
            for gpu in gpus
            if gpu.uuid
        }

    def _works(self, gpu: GPU, utilization_percent: float) -> bool:
        if gpu.utilization_percent is None or gpu.memory_used_mib is None:
            return True  # what can't be measured is never called idle
        known = self.memory_mib.get(gpu.uuid or "", gpu.memory_used_mib)
        grown = gpu.memory_used_mib > known + STEADY_MEMORY_MIB
        return grown or gpu.utilization_percent > utilization_percent

    def reset(self) -> None:
        """Begin anew: they work, or their user is there."""
        self.since = self.warned = None

    def step(self, idle_seconds: float, somebody_may_have_them: bool) -> Step:
        """Return what is due now. Who asks for "warn" calls `warn`.

        Args:
            idle_seconds: how long they may do nothing.
            somebody_may_have_them: whether it matters, by the administrator's rules.
        """
        if not somebody_may_have_them:
            self.warned = None  # whoever comes later, there is a warning first
            return None
        if self.since is None:
            return None
        if self.warned is None:
            return "warn" if self.clock.steady() - self.since >= idle_seconds else None
        return "stop" if self.warned.remaining <= 0 else None

    def warn(self, seconds: float) -> None:
        """Take note that the user has been warned, `seconds` before the stop."""
        self.warned = Deadline.after(seconds, self.clock)


class Reclaimed(Protocol):
    """What `Reclaimer` looks after: a server that holds GPUs."""

    @property
    def uuids(self) -> frozenset[str]:
        """Its GPUs."""

    @property
    def measured(self) -> bool:
        """Whether its GPUs' idleness matters to anybody."""

    async def look_after(self) -> None:
        """Warn or stop it where that is due."""

    def measure(self, gpus: Collection[GPU]) -> None:
        """Take in what NVML says of its GPUs; nothing where NVML says nothing."""


class Reclaimer:
    """Look after the ends of this hub's servers, for as long as there are any."""

    def __init__(self, ledger: Ledger, servers: Callable[[], Iterable[Reclaimed]], log: Any):
        """Take the ledger, what lists the servers that hold GPUs, and a logger."""
        self._ledger = ledger
        self._servers = servers
        self._log = log
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begin, or go on; ends by itself with the last server."""
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        measured_at = loop.time()
        while servers := list(self._servers()):
            if loop.time() - measured_at >= MEASURE_SECONDS:
                measured_at = loop.time()
                try:
                    await self._measure([server for server in servers if server.measured])
                except Exception:  # ends are kept all the same
                    self._log.exception("Measuring idle GPUs failed")
            # Side by side: one server that takes long to stop holds up no other.
            results = await asyncio.gather(
                *(server.look_after() for server in servers), return_exceptions=True
            )
            for error in results:
                if isinstance(error, Exception):
                    self._log.error("Looking after a server's time failed", exc_info=error)
            await asyncio.sleep(TICK_SECONDS)

    async def _measure(self, servers: Collection[Reclaimed]) -> None:
        if not servers:
            return
        try:
            seen = {gpu.uuid: gpu for gpu in (await self._ledger.look()).gpus}
        except Unknown:
            seen = {}
        for server in servers:
            found = [seen[uuid] for uuid in server.uuids if uuid in seen]
            server.measure(found if len(found) == len(server.uuids) else [])
