"""Leave nothing behind: what is removed after a start that failed, and what others left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from ..leases.audit_log import one_line
from ..leases.labels import ServerRecord
from ..leases.ledger import Ledger, Reservation

# A server that was created and not started in this time belongs to a hub that died.
STALE_SECONDS = 180
# How long a start waits for what removes what the last one left.
PATIENCE_SECONDS = 30
# Between tries while the engine can't be reached, and for how many of them.
PAUSE_SECONDS = 10
ATTEMPTS = 360

Remove = Callable[[str], Awaitable[None]]


class Leftovers:
    """What this process has to remove, by server.

    The next start of a server waits for all of it: one that is still being created would take its
    name.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, set[asyncio.Task[None]]] = {}

    def undo(
        self,
        server_key: str,
        remove: Remove,
        ledger: Ledger,
        reservation: Reservation,
        creating: asyncio.Future[str] | None,
    ) -> asyncio.Task[None]:
        """Remove a failed start's server and end its reservation, whoever cancels what.

        Args:
            server_key: whose start it was.
            remove: removes a server by its id, or raises; it is called again then.
            creating: the call that creates it, which may still run in its thread, where nothing can
                cancel it; None: it was never begun.
        """
        return self._go_on(server_key, _undo(remove, ledger, reservation, creating))

    def remove_later(self, server_key: str, remove: Remove, server_id: str) -> asyncio.Task[None]:
        """Remove a server as soon as its backend lets us, and return at once."""
        return self._go_on(server_key, _remove_surely(remove, server_id))

    async def cleared(self, server_key: str) -> bool:
        """Wait until nothing of a server is left to remove; False if something still is."""
        if tasks := set(self._tasks.get(server_key, ())):
            _, unfinished = await asyncio.wait(tasks, timeout=PATIENCE_SECONDS)
            return not unfinished
        return True

    def _go_on(self, server_key: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        tasks = self._tasks.setdefault(server_key, set())
        tasks.add(task)

        def done(_: Any) -> None:
            tasks.discard(task)
            if not tasks and self._tasks.get(server_key) is tasks:
                del self._tasks[server_key]

        task.add_done_callback(done)
        return task


async def _undo(
    remove: Remove,
    ledger: Ledger,
    reservation: Reservation,
    creating: asyncio.Future[str] | None,
) -> None:
    created = None
    try:
        if creating is not None:
            await asyncio.wait([creating])
            if not creating.cancelled() and not creating.exception():
                created = creating.result()
    finally:
        # From here on the server's label holds the GPUs, until it is gone.
        ledger.release(reservation)
    if created is not None:
        await _remove_surely(remove, created)


async def _remove_surely(remove: Remove, server_id: str) -> None:
    for attempt in range(ATTEMPTS):
        try:
            await remove(server_id)
            return
        except Exception:  # the engine is away, or can't just now
            await asyncio.sleep(min(2**attempt, PAUSE_SECONDS))


class StaleServerReaper:
    """Remove servers of hubs that died between create and start.

    They are known by this process's own clock, since the engine's may be another machine's.

    Args:
        remove: removes a server unless it has been started after all.
        log: a logger.
    """

    def __init__(self, remove: Remove, log: Any) -> None:
        self._remove = remove
        self._log = log
        # Server id -> when it was first seen created and not started, by the loop's clock.
        self._first_seen: dict[str, float] = {}
        # Held here, since the event loop itself holds tasks only weakly.
        self._removals: set[asyncio.Task[None]] = set()

    def reap(self, servers: Sequence[ServerRecord]) -> None:
        """Look at a listing of every server. Returns at once."""
        now = asyncio.get_running_loop().time()
        unstarted = {each.id for each in servers if each.state == "created"}
        self._first_seen = {each: self._first_seen.get(each, now) for each in unstarted}
        for server_id, since in self._first_seen.items():
            if now - since > STALE_SECONDS:
                self._log.warning(
                    "Removing server %s, which was never started", one_line(server_id[:12])
                )
                task = asyncio.ensure_future(self._remove_quietly(server_id))
                self._removals.add(task)
                task.add_done_callback(self._removals.discard)

    async def _remove_quietly(self, server_id: str) -> None:
        with suppress(Exception):
            await self._remove(server_id)
