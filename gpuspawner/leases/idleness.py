"""For how long a server's GPUs have been idle. A plain value."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from ..gpus.model import GPU
from .clock import Clock, Deadline
from .term import Step

# Growth of the memory in use, in MiB, up to which a GPU may still count as idle.
STEADY_MEMORY_MIB = 64


@dataclass
class Idleness:
    """For how long all of a server's GPUs have been idle, by the measurements so far.

    `since` is when that began, by the steady clock; None while a GPU is busy. `warned` is the
    earliest stop after a warning; None while the user hasn't been warned.
    """

    clock: Clock
    since: float | None = None
    # Unit -> the least memory in use (MiB) since the GPUs have been idle.
    memory_mib: dict[str, int] = field(default_factory=dict)
    warned: Deadline | None = None

    def add_measurement(self, gpus: Collection[GPU], utilization_percent: float) -> None:
        """Add a measurement of all of the server's GPUs.

        Args:
            gpus: the GPUs as NVML reports them; empty if they couldn't be read.
            utilization_percent: a GPU counts as idle up to this utilization.
        """
        if not gpus or any(self._is_busy(gpu, utilization_percent) for gpu in gpus):
            self.reset()
        elif self.since is None:
            self.since = self.clock.steady()
        known = self.memory_mib if self.since is not None else {}
        self.memory_mib = {
            gpu.id: min(gpu.memory_used_mib or 0, known.get(gpu.id, gpu.memory_used_mib or 0))
            for gpu in gpus
            if gpu.id
        }

    def _is_busy(self, gpu: GPU, utilization_percent: float) -> bool:
        if gpu.utilization_percent is None or gpu.memory_used_mib is None:
            return True  # a GPU that can't be measured never counts as idle
        # What a shared GPU does is nobody's alone: it is idle if nobody uses it.
        known = self.memory_mib.get(gpu.id or "", gpu.memory_used_mib)
        grown = gpu.memory_used_mib > known + STEADY_MEMORY_MIB
        return grown or gpu.utilization_percent > utilization_percent

    def reset(self) -> None:
        """Count the idle time from the beginning: a GPU is busy, or the user has answered."""
        self.since = self.warned = None

    def step(self, idle_seconds: float, is_enforced: bool) -> Step:
        """Return what is due now. On "warn", the caller has to call `warn`.

        Args:
            idle_seconds: for how long the GPUs may be idle.
            is_enforced: whether the administrator's rules apply now.
        """
        if not is_enforced:
            self.warned = None  # when the rules apply again, there is a warning first
            return None
        if self.since is None:
            return None
        if self.warned is None:
            return "warn" if self.clock.steady() - self.since >= idle_seconds else None
        return "stop" if self.warned.remaining <= 0 else None

    def warn(self, seconds: float) -> None:
        """Record that the user has been warned, `seconds` before the stop."""
        self.warned = Deadline.after(seconds, self.clock)
