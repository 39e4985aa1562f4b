"""What the hub's `/hub/metrics` tells of GPUs. No label names a user; each has few values.

A scrape reads what was last seen of the host, and asks for a fresh look for the next one, so that
it never waits for NVML.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter as Count
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, ClassVar

from prometheus_client import REGISTRY, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily

from ..errors import Unknown
from ..gpus.nvml import InventoryError
from ..leases.ledger import Ledger
from ..scheduling.queue import Queue

# From a look away to the longest wait that anybody puts up with.
WAIT_BUCKETS = (1, 10, 60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400)
START_BUCKETS = (0.5, 1, 2, 3, 5, 10, 20, 30, 60, 120)
# What was seen longer ago is looked at again for the next scrape.
FRESH_SECONDS = 5.0

WAITS = Histogram(
    "gpuspawner_wait_seconds",
    "Seconds from a choice of GPUs to their reservation",
    buckets=WAIT_BUCKETS,
)
STARTS = Histogram(
    "gpuspawner_start_seconds",
    "Seconds from the reservation to the server's first answer",
    ["gpus"],
    buckets=START_BUCKETS,
)
REFUSALS = Counter("gpuspawner_refusals", "Requests that were refused", ["reason"])
ERRORS = Counter("gpuspawner_errors", "Times that the host couldn't be read", ["source"])


def observe_start(seconds: float, gpus: int) -> None:
    """Count a server that has started, with GPUs or without."""
    STARTS.labels("yes" if gpus else "no").observe(seconds)


def count_read_error(error: BaseException) -> None:
    """Count an error of NVML or of the engine."""
    ERRORS.labels("nvml" if isinstance(error, InventoryError) else "engine").inc()


class HostMetrics:
    """The state of the nodes and the queue, as gauges."""

    # Prometheus' registry is the process's, and so is this.
    _registered: ClassVar[HostMetrics | None] = None

    def __init__(self, ledger: Ledger, queue: Queue, loop: asyncio.AbstractEventLoop) -> None:
        self._ledger = ledger
        self._queue = queue
        self._loop = loop
        self._refreshing: asyncio.Task[None] | None = None

    def register(self) -> None:
        """Be part of every scrape from now on, in place of an earlier one in this process."""
        if HostMetrics._registered:
            HostMetrics._registered.unregister()
        HostMetrics._registered = self
        REGISTRY.register(self)  # type: ignore[arg-type]

    def unregister(self) -> None:
        """Be part of no scrape any more."""
        with suppress(KeyError):
            REGISTRY.unregister(self)  # type: ignore[arg-type]

    def describe(self) -> list[Any]:
        """Return the gauges without values: what a registry asks for when it takes this in."""
        return [GaugeMetricFamily(name, text, labels=labels) for name, text, labels in GAUGES]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges. Called on the hub's event loop."""
        gpus, leases, queue, age = self.describe()
        seen = self._ledger.last_view
        if seen:
            several = len(seen.nodes) > 1
            if several:
                # With one node the series stay what they were before there could be more.
                gpus = GaugeMetricFamily(gpus.name, gpus.documentation, labels=NODE_LABELS)
            counts: Count[tuple[str, ...]] = Count(
                (gpu.state, gpu.model, *([gpu.node] if several else [])) for gpu in seen.gpus
            )
            for values, number in sorted(counts.items()):
                gpus.add_metric(values, number)
            leases.add_metric([], sum(1 for lease in seen.leases if lease.gpus))
            age.add_metric([], time.monotonic() - self._ledger.last_view_at)
        queue.add_metric([], len(self._queue.waiting))
        if seen is None or time.monotonic() - self._ledger.last_view_at > FRESH_SECONDS:
            self._loop.call_soon_threadsafe(self._refresh)
        yield from (gpus, leases, queue, age)

    def _refresh(self) -> None:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = self._loop.create_task(self._read())

    async def _read(self) -> None:
        with suppress(Unknown):  # counted where it was raised
            await self._ledger.read()


# Of `gpuspawner_gpus`, where there are several nodes.
NODE_LABELS = ["state", "model", "node"]
GAUGES: list[tuple[str, str, list[str]]] = [
    ("gpuspawner_gpus", "GPUs", ["state", "model"]),
    ("gpuspawner_leases", "Servers that hold GPUs", []),
    ("gpuspawner_queue_length", "Servers that wait for GPUs", []),
    ("gpuspawner_seen_age_seconds", "How long ago the host was last seen", []),
]
