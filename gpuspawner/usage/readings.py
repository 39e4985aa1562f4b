"""What GPUs were read to do, and the store doesn't have yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..gpus.model import GPU

# How many readings of single GPUs wait at the most for a store that can't be written.
MAX_WAITING = 100_000

# Utilization in percent and used memory in MiB; None where NVML doesn't tell.
Measures = tuple[int | None, int | None]


@dataclass(frozen=True)
class Reading:
    """What GPUs did at a moment.

    Args:
        at: when that was, in seconds since the epoch.
        gpus: UUID of a physical GPU -> what it did.
    """

    at: float
    gpus: Mapping[str, Measures]


def reading_of(at: float, gpus: Iterable[GPU]) -> Reading:
    """Return what physical GPUs do: all slots of one say the same, and an instance is none.

    Args:
        at: when they were read, in seconds since the epoch.
        gpus: all units.
    """
    measures = (
        (each.uuid, (each.utilization_percent, each.memory_used_mib))
        for each in gpus
        if each.uuid and not each.parent
    )
    return Reading(at, {uuid: found for uuid, found in measures if found != (None, None)})


class Readings:
    """The readings that aren't written, the oldest first."""

    def __init__(self) -> None:
        self._waiting: deque[Reading] = deque()
        self._number = 0

    def add(self, reading: Reading) -> None:
        """Add one; the oldest go where too many wait."""
        if reading.gpus:
            self._waiting.append(reading)
            self._number += len(reading.gpus)
        while self._number > MAX_WAITING:
            self._drop_first()

    def batch(self) -> Sequence[Reading]:
        """Return what there is to write."""
        return tuple(self._waiting)

    def written(self, batch: Sequence[Reading]) -> None:
        """Forget what has been written: `batch` as it was."""
        done = {id(each) for each in batch}
        while self._waiting and id(self._waiting[0]) in done:
            self._drop_first()

    def _drop_first(self) -> None:
        self._number -= len(self._waiting.popleft().gpus)
