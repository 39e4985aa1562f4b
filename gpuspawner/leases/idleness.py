"""How long a server's GPUs have done nothing. A plain value."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from ..gpus.model import GPU
from .clock import Clock, Deadline
from .term import Step

# What a program that only waits may do to its GPU's memory.
STEADY_MEMORY_MIB = 64


@dataclass
class Idleness:
    """How long a server's GPUs have done nothing, as far as was measured."""

    clock: Clock
    since: float | None = None
    # UUID -> the memory in use (MiB) that isn't growth.
    memory_mib: dict[str, int] = field(default_factory=dict)
    warned: Deadline | None = None

    def add_measurement(self, gpus: Collection[GPU], utilization_percent: float) -> None:
        """Take in a measurement of all of the server's GPUs.

        Args:
            gpus: what NVML says of them; empty where it says nothing.
            utilization_percent: up to where a GPU counts as doing nothing.
        """
        if not gpus or any(self._is_busy(gpu, utilization_percent) for gpu in gpus):
            self.reset()
        elif self.since is None:
            self.since = self.clock.steady()
        known = self.memory_mib if self.since is not None else {}
        self.memory_mib = {
            gpu.uuid: min(gpu.memory_used_mib or 0, known.get(gpu.uuid, gpu.memory_used_mib or 0))
            for gpu in gpus
            if gpu.uuid
        }

    def _is_busy(self, gpu: GPU, utilization_percent: float) -> bool:
        if gpu.utilization_percent is None or gpu.memory_used_mib is None:
            return True  # what can't be measured is never called idle
        known = self.memory_mib.get(gpu.uuid or "", gpu.memory_used_mib)
        grown = gpu.memory_used_mib > known + STEADY_MEMORY_MIB
        return grown or gpu.utilization_percent > utilization_percent

    def reset(self) -> None:
        """Begin anew: they work, or their user is there."""
        self.since = self.warned = None

    def step(self, idle_seconds: float, is_enforced: bool) -> Step:
        """Return what is due now. Who asks for "warn" calls `warn`.

        Args:
            idle_seconds: how long they may do nothing.
            is_enforced: whether it matters, by the administrator's rules.
        """
        if not is_enforced:
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
