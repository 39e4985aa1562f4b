"""What all open spawn pages share: the host, looked at once for all, and what they are told of it.

200 pages that stay open cost the hub no more than what is new to each of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import Unknown
from ..gpus.model import GPU, Holder
from ..leases.ledger import Ledger, View
from ..scheduling.queue import Queue

# How old what a page shows may be when it is told.
RECENT_SECONDS = 1.0
# How often the host is looked at while a page is open, however many are.
POLL_SECONDS = 1.5
# A page that follows this is told of the last of these looks, and causes none.
POLLED_VIEW_SECONDS = POLL_SECONDS + 0.5


class ChangeWatcher:
    """Notices that a host has changed, for as long as somebody wants to know.

    Args:
        read_state: returns what there is to notice, as a value that can be compared.
    """

    def __init__(self, read_state: Callable[[], Awaitable[Any]]) -> None:
        self._read_state = read_state
        self._seen: Any = None
        self._watchers = 0
        self._change = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at the host meanwhile."""
        self._watchers += 1
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        try:
            yield
        finally:
            self._watchers -= 1

    async def wait_for_change(self, seconds: float) -> bool:
        """Wait for a change; False where there was none for so long."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._change.wait(), seconds)
            return True
        return False

    async def _run(self) -> None:
        while self._watchers:
            seen = await self._read_state()
            if seen != self._seen:
                self._seen = seen
                news, self._change = self._change, asyncio.Event()
                news.set()
            await asyncio.sleep(POLL_SECONDS)


class RenderCache:
    """What many pages are told, made once for all of them."""

    def __init__(self) -> None:
        self._state: Any = None
        self._made: dict[Hashable, str] = {}

    def get(self, state: Any, key: Hashable, make: Callable[[], str]) -> str:
        """Return what was made for a key while the state was this, or make it.

        Args:
            state: what all that is made depends on; anything that can be compared.
            key: what else this depends on.
            make: makes it.
        """
        if state != self._state:
            self._state, self._made = state, {}
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


class OpenForms:
    """The open pages of one host.

    Args:
        ledger: who holds what there.
        queue: who waits.
    """

    def __init__(self, ledger: Ledger, queue: Queue) -> None:
        self.ledger = ledger
        self._queue = queue
        self.watcher = ChangeWatcher(self._read_state)
        self.render_cache = RenderCache()

    async def recent_view(
        self, except_for: Holder | None = None, seconds: float = RECENT_SECONDS
    ) -> tuple[View | None, str]:
        """Return the host, or None, and why it can't be read.

        Args:
            except_for: whose lease isn't counted.
            seconds: how old that may be.
        """
        try:
            return await self.ledger.read_recent(seconds, except_for), ""
        except Unknown as error:
            return None, str(error)

    def visible_state(self, view: View | None, trouble: str) -> Any:
        """Return what pages depend on, as a value that can be compared: to the minute."""
        found = view or View()
        drivers = [(node.name, node.driver) for node in found.nodes]
        gpus = [_shown_fields(gpu) for gpu in found.gpus]
        leases = {(each.gpus, each.groups, _minute(each.until)) for each in found.leases}
        turns = [(entry.waiting, entry.turn) for entry in self._queue.waiting]
        return trouble, drivers, gpus, leases, turns, _minute(time.time())

    async def _read_state(self) -> Any:
        return self.visible_state(*await self.recent_view())


def _shown_fields(gpu: GPU) -> tuple[Any, ...]:
    """Return what of a GPU is on a page; how much it does isn't."""
    return gpu.node, gpu.uuid, gpu.index, gpu.model, gpu.state, gpu.reason, _minute(gpu.until)


def _minute(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds / 60)
