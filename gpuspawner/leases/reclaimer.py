"""The reclaimer, which ends leases whose time is over or whose GPUs are idle, after a warning.

The rules themselves are plain values: `Term` and `Idleness`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

from ..gpus.model import GPU
from ..gpus.unit_names import uuids_of
from .ledger import Ledger, Unknown

# How often leases are checked, and how often GPUs that may be idle are measured.
TICK_SECONDS = 1.0
MEASURE_SECONDS = 5.0


class ReclaimableServer(Protocol):
    """A server that holds GPUs, as the reclaimer needs it: a `ServerLease`."""

    @property
    def units(self) -> frozenset[str]:
        """The names of its units."""

    @property
    def is_measured(self) -> bool:
        """Whether its GPUs are to be measured, as it can be stopped for being idle."""

    async def enforce(self) -> None:
        """Warn its user or stop it if that is due."""

    def measure(self, gpus: Collection[GPU]) -> None:
        """Add a measurement of its GPUs; no GPUs if they couldn't be read."""


class Reclaimer:
    """A background task that enforces the leases of this hub's servers while there are any.

    Args:
        ledger: who holds what.
        servers: lists the servers that hold GPUs.
        log: a logger.
    """

    def __init__(
        self, ledger: Ledger, servers: Callable[[], Iterable[ReclaimableServer]], log: Any
    ) -> None:
        self._ledger = ledger
        self._servers = servers
        self._log = log
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task unless it runs. It ends when there is no server left."""
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        measured_at = loop.time()
        while servers := list(self._servers()):
            if loop.time() - measured_at >= MEASURE_SECONDS:
                measured_at = loop.time()
                try:
                    await self._measure([server for server in servers if server.is_measured])
                except Exception:  # terms are still enforced
                    self._log.exception("Measuring idle GPUs failed")
            # Concurrently, so that a server that takes long to stop delays no other.
            results = await asyncio.gather(
                *(server.enforce() for server in servers), return_exceptions=True
            )
            for error in results:
                if isinstance(error, Exception):
                    self._log.error("Looking after a server's time failed", exc_info=error)
            await asyncio.sleep(TICK_SECONDS)

    async def _measure(self, servers: Collection[ReclaimableServer]) -> None:
        if not servers:
            return
        try:
            # Also of who holds a GPU in another way than it is shared now.
            seen = {gpu.uuid: gpu for gpu in (await self._ledger.read()).gpus}
        except Unknown:
            seen = {}
        for server in servers:
            uuids = uuids_of(server.units)
            found = [seen[uuid] for uuid in uuids if uuid in seen]
            server.measure(found if len(found) == len(uuids) else [])
