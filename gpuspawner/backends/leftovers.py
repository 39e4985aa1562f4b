"""Cleanup after failed starts, and of servers that dead hubs have left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from ..leases.audit_log import one_line
from ..leases.labels import LABEL_HUB, LABEL_REMOVE, ServerRecord
from ..leases.ledger import Ledger, Reservation

# A server that was created and isn't started within this time, or has ended and isn't removed,
# belongs to a dead hub.
STALE_SECONDS = 180
# How long a start waits for the cleanup of the server's last one.
CLEAR_TIMEOUT_SECONDS = 30
# The pause between tries to remove a server, about as long as an engine takes to restart, and their
# number.
RETRY_SECONDS = 2
ATTEMPTS = 1800

Remove = Callable[[str], Awaitable[None]]


class Leftovers:
    """The cleanup tasks of this process, by server.

    A server's next start waits for them, since a container that is still being created has the same
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
        """Remove the server of a failed start and end its reservation, in a task of its own.

        Args:
            server_key: the server's name in this process.
            remove: removes a server by its id; if it raises, it is called again.
            ledger: the ledger of the reservation.
            reservation: the start's.
            creating: the call that creates the server, which may still run in its thread; None if
                it wasn't begun.
        """
        return self._track(server_key, _undo(remove, ledger, reservation, creating))

    def remove_later(self, server_key: str, remove: Remove, server_id: str) -> asyncio.Task[None]:
        """Remove a server in a task that tries until it succeeds; return at once."""
        return self._track(server_key, _remove_with_retries(remove, server_id))

    async def wait_until_cleared(self, server_key: str) -> bool:
        """Wait until a server's cleanup has ended; return whether it has in time."""
        if tasks := set(self._tasks.get(server_key, ())):
            _, unfinished = await asyncio.wait(tasks, timeout=CLEAR_TIMEOUT_SECONDS)
            return not unfinished
        return True

    def _track(self, server_key: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
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
        await _remove_with_retries(remove, created)


async def _remove_with_retries(remove: Remove, server_id: str) -> None:
    for _ in range(ATTEMPTS):
        try:
            await remove(server_id)
            return
        except Exception:  # the engine is unreachable or busy
            await asyncio.sleep(RETRY_SECONDS)


class StaleServerReaper:
    """Removes servers whose hubs died before their start, or weren't there at their end.

    Their age is measured by this process's clock, since the engine's may be another machine's.

    Args:
        remove: removes a server unless it runs.
        log: a logger.
    """

    def __init__(self, remove: Remove, log: Any) -> None:
        self._remove = remove
        self._log = log
        # Server id -> when it was first listed as not started or ended, by the loop's clock.
        self._first_seen: dict[str, float] = {}
        # Strong references, as the event loop holds tasks only weakly.
        self._removals: set[asyncio.Task[None]] = set()

    def reap(self, servers: Sequence[ServerRecord]) -> None:
        """Begin to remove the stale servers in a listing of every server; return at once.

        What bears no hub's label somebody made by hand, and may mean to start.
        """
        now = asyncio.get_running_loop().time()
        stale = {each.id: each.state for each in servers if _may_be_stale(each)}
        self._first_seen = {each: self._first_seen.get(each, now) for each in stale}
        for server_id, since in self._first_seen.items():
            if now - since > STALE_SECONDS:
                said = "was never started" if stale[server_id] == "created" else "has ended"
                self._log.warning("Removing server %s, which %s", one_line(server_id[:12]), said)
                task = asyncio.ensure_future(self._remove_quietly(server_id))
                self._removals.add(task)
                task.add_done_callback(self._removals.discard)

    async def _remove_quietly(self, server_id: str) -> None:
        with suppress(Exception):
            await self._remove(server_id)


def _may_be_stale(server: ServerRecord) -> bool:
    if server.state == "created":
        return LABEL_HUB in server.labels
    return server.state == "ended" and bool(server.labels.get(LABEL_REMOVE))
