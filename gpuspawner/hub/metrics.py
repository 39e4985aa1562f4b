"""Prometheus metrics of GPUs, leases and the queue, at the hub's `/hub/metrics`.

No label names a user, and each label has few values. A scrape reports the last view of the ledger
and triggers a new read for the next scrape, so it never waits for NVML.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, ClassVar

from prometheus_client import REGISTRY, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily

from ..errors import Unknown
from ..gpus.nvml import InventoryError
from ..gpus.unit_names import Share
from ..leases.ledger import Ledger
from ..scheduling.queue import Queue
from ..usage.writing import Added

# In seconds: from an immediate grant to a wait of a day.
WAIT_BUCKETS = (1, 10, 60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400)
START_BUCKETS = (0.5, 1, 2, 3, 5, 10, 20, 30, 60, 120)
# If the last view is older than this, a scrape triggers a new read.
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


GPU_SECONDS = Counter(
    "gpuspawner_gpu_seconds", "Seconds for which servers held GPUs, times their parts", ["model"]
)
IDLE_GPU_SECONDS = Counter(
    "gpuspawner_idle_gpu_seconds", "Those of them in which the GPUs did nothing", ["model"]
)
LEASES = Counter("gpuspawner_leases_ended", "Leases that are over", ["why"])


def count_usage(added: Added) -> None:
    """Count what the store has been given."""
    for model, seconds in added.seconds.items():
        GPU_SECONDS.labels(model).inc(seconds)
    for model, seconds in added.idle.items():
        IDLE_GPU_SECONDS.labels(model).inc(seconds)
    for why, number in added.ends.items():
        LEASES.labels(why).inc(number)


def observe_start(seconds: float, gpus: int) -> None:
    """Count a start of a server.

    Args:
        seconds: from the reservation to the server's first answer.
        gpus: how many GPUs it has.
    """
    STARTS.labels("yes" if gpus else "no").observe(seconds)


def count_read_error(error: BaseException) -> None:
    """Count a failed read of NVML or of the engine."""
    ERRORS.labels("nvml" if isinstance(error, InventoryError) else "engine").inc()


class HostMetrics:
    """A Prometheus collector with gauges of the nodes and the queue."""

    # Prometheus' registry is process-wide.
    _registered: ClassVar[HostMetrics | None] = None

    def __init__(
        self,
        ledger: Ledger,
        queue: Queue,
        loop: asyncio.AbstractEventLoop,
        verdicts: Callable[[], Mapping[str, int]] = dict,
        names_machines: bool = True,
    ) -> None:
        self._names_machines = names_machines
        self._ledger = ledger
        self._queue = queue
        self._loop = loop
        self._verdicts = verdicts
        self._refreshing: asyncio.Task[None] | None = None

    def register(self) -> None:
        """Register with Prometheus, replacing an earlier collector in this process."""
        if HostMetrics._registered:
            HostMetrics._registered.unregister()
        HostMetrics._registered = self
        REGISTRY.register(self)  # type: ignore[arg-type]

    def unregister(self) -> None:
        """Unregister from Prometheus."""
        with suppress(KeyError):
            REGISTRY.unregister(self)  # type: ignore[arg-type]

    def describe(self) -> list[Any]:
        """Return the gauges without values, as a registry needs them at registration."""
        return [GaugeMetricFamily(name, text, labels=labels) for name, text, labels in GAUGES]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges. Called on the hub's event loop."""
        gpus, leases, queue, age, health = self.describe()
        seen = self._ledger.last_view
        if seen:
            machines, several = seen.machines, len(seen.nodes) > 1
            if several:
                # With one node there is no label for it, so that existing series continue.
                gpus = GaugeMetricFamily(gpus.name, gpus.documentation, labels=NODE_LABELS)
            # A part of a GPU is its part of one, so that there are no more than the machine has.
            counts: dict[tuple[str, ...], Share] = defaultdict(int)
            divided = {gpu.parent for gpu in seen.gpus}
            for gpu in seen.gpus:
                if gpu.uuid not in divided:
                    key = (
                        gpu.state,
                        gpu.model,
                        *([machines.known_as(gpu.node, self._names_machines)] if several else []),
                    )
                    counts[key] += gpu.name.share if gpu.name else 1
            for values, number in sorted(counts.items()):
                gpus.add_metric(values, float(number))
            leases.add_metric([], sum(1 for lease in seen.leases if lease.gpus))
            age.add_metric([], time.monotonic() - self._ledger.last_view_at)
        queue.add_metric([], len(self._queue.waiting))
        for verdict, number in self._verdicts().items():
            health.add_metric([verdict], number)
        is_old = seen is None or time.monotonic() - self._ledger.last_view_at > FRESH_SECONDS
        if is_old and not self._loop.is_closed():  # the hub may end
            self._loop.call_soon_threadsafe(self._refresh)
        yield from (gpus, leases, queue, age, health)

    def _refresh(self) -> None:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = self._loop.create_task(self._read())

    async def _read(self) -> None:
        with suppress(Unknown):  # counted by `count_read_error`
            await self._ledger.read()


# The labels of `gpuspawner_gpus` if there are several nodes.
NODE_LABELS = ["state", "model", "node"]
GAUGES: list[tuple[str, str, list[str]]] = [
    ("gpuspawner_gpus", "GPUs", ["state", "model"]),
    ("gpuspawner_leases", "Servers that hold GPUs", []),
    ("gpuspawner_queue_length", "Servers that wait for GPUs", []),
    ("gpuspawner_seen_age_seconds", "How long ago the host was last seen", []),
    ("gpuspawner_gpu_health", "GPUs by the verdict on their health", ["verdict"]),
]
