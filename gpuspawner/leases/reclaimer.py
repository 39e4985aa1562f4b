"""GPUs come back: when a lease's time is over, and when its GPUs do nothing. Warned first, always.

The rules are plain values, moved by what is told to them; `Reclaimer` tells them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

from ..gpus.model import GPU
from .ledger import Ledger, Unknown

# How often ends are looked after, and how often GPUs that may be idle are measured.
TICK_SECONDS = 1.0
MEASURE_SECONDS = 5.0


class ReclaimableServer(Protocol):
    """What `Reclaimer` looks after: a server that holds GPUs."""

    @property
    def uuids(self) -> frozenset[str]:
        """Its GPUs."""

    @property
    def is_measured(self) -> bool:
        """Whether its GPUs' idleness matters to anybody."""

    async def enforce(self) -> None:
        """Warn or stop it where that is due."""

    def measure(self, gpus: Collection[GPU]) -> None:
        """Take in what NVML says of its GPUs; nothing where NVML says nothing."""


class Reclaimer:
    """Look after the ends of this hub's servers, for as long as there are any."""

    def __init__(
        self, ledger: Ledger, servers: Callable[[], Iterable[ReclaimableServer]], log: Any
    ):
        """Take the ledger, what lists the servers that hold GPUs, and a logger."""
        self._ledger = ledger
        self._servers = servers
        self._log = log
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
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
                    await self._measure([server for server in servers if server.is_measured])
                except Exception:  # ends are kept all the same
                    self._log.exception("Measuring idle GPUs failed")
            # Side by side: one server that takes long to stop holds up no other.
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
            seen = {gpu.uuid: gpu for gpu in (await self._ledger.read()).gpus}
        except Unknown:
            seen = {}
        for server in servers:
            found = [seen[uuid] for uuid in server.uuids if uuid in seen]
            server.measure(found if len(found) == len(server.uuids) else [])
