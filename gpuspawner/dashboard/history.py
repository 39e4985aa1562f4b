"""The history of each GPU's utilization and memory in the last minutes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ..gpus.model import GPU

MINUTES = 10
SECONDS_PER_POINT = 10
POINTS = MINUTES * 60 // SECONDS_PER_POINT

# Utilization in percent and used memory in MiB; None where NVML doesn't tell.
Sample = tuple[int | None, int | None]


class History:
    """Means over spans of `SECONDS_PER_POINT`; None for a span without a reading."""

    def __init__(self) -> None:
        # GPU -> (number of the span since the epoch, samples in it), oldest first.
        self._spans: dict[str, deque[tuple[int, list[Sample]]]] = {}

    def add(self, at: float, gpus: Iterable[GPU]) -> None:
        """Add a reading.

        Args:
            at: when it was, in seconds since the epoch.
            gpus: every GPU of every node; those that are gone are forgotten.
        """
        number = int(at // SECONDS_PER_POINT)
        kept = {}
        for gpu in gpus:
            spans = self._spans.get(key(gpu)) or deque(maxlen=POINTS)
            if not spans or spans[-1][0] != number:
                spans.append((number, []))
            spans[-1][1].append((gpu.utilization_percent, gpu.memory_used_mib))
            kept[key(gpu)] = spans
        self._spans = kept

    def points(self, gpu: GPU, now: float) -> tuple[list[int | None], list[int | None]]:
        """Return `POINTS` means of utilization and of memory up to now, oldest first."""
        last = int(now // SECONDS_PER_POINT)
        spans = dict(self._spans.get(key(gpu), ()))
        samples = [spans.get(number, []) for number in range(last - POINTS + 1, last + 1)]
        return [_mean(s[0] for s in span) for span in samples], [
            _mean(s[1] for s in span) for span in samples
        ]


def key(gpu: GPU) -> str:
    """Return what one GPU is known by from reading to reading."""
    return gpu.uuid or f"{gpu.node} index {gpu.index}"


def _mean(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known)) if known else None
