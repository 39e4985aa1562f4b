"""What all open spawn forms share: views of the nodes, a watcher for changes, rendered HTML.

200 open forms cost the hub no more than sending each of them what has changed.
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
from ..timeouts import within

# How old the view of a page may be when the page is rendered.
RECENT_SECONDS = 1.0
# How often the ledger is read while forms are open, however many are.
POLL_SECONDS = 1.5
# How old the view of a streamed form may be: it uses the last of these reads and causes none.
POLLED_VIEW_SECONDS = POLL_SECONDS + 0.5
# How many different forms are kept: about 10 kB each, and most pages show one of a few.
MAX_KEPT = 300


class ChangeWatcher:
    """A watcher that polls a state while somebody watches, and notifies all of its changes.

    Args:
        read_state: returns the state, as a value that can be compared.
    """

    def __init__(self, read_state: Callable[[], Awaitable[Any]]) -> None:
        self._read_state = read_state
        self._seen: Any = None
        self._watchers = 0
        self._change = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Poll the state in this context."""
        self._watchers += 1
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        try:
            yield
        finally:
            self._watchers -= 1

    async def wait_for_change(self, seconds: float) -> bool:
        """Wait for a change for `seconds`; return whether there was one."""
        with suppress(asyncio.TimeoutError):
            await within(seconds, self._change.wait())
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
    """A cache of rendered HTML, shared by all open pages and emptied when the state changes."""

    def __init__(self) -> None:
        self._state: Any = None
        self._made: dict[Hashable, str] = {}

    def get(self, state: Any, key: Hashable, make: Callable[[], str]) -> str:
        """Return the cached text of a key, or make it.

        Args:
            state: the state that all texts depend on; any value that can be compared.
            key: what else this text depends on.
            make: makes the text.
        """
        if state != self._state:
            self._state, self._made = state, {}
        if key not in self._made:
            if len(self._made) >= MAX_KEPT:
                del self._made[next(iter(self._made))]  # the oldest
            self._made[key] = make()
        return self._made[key]


class OpenForms:
    """The views, changes and HTML that open forms share.

    Args:
        ledger: who holds what.
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
        """Return a recent view and "", or None and why the nodes can't be read.

        Args:
            except_for: a holder whose leases aren't counted.
            seconds: how old the view may be.
        """
        try:
            return await self.ledger.read_recent(seconds, except_for), ""
        except Unknown as error:
            return None, str(error)

    def visible_state(self, view: View | None, trouble: str) -> Any:
        """Return the state that forms show, as a comparable value; times to the minute."""
        found = view or View()
        drivers = [(node.name, node.driver) for node in found.nodes]
        gpus = [_shown_fields(gpu) for gpu in found.gpus]
        leases = {(each.gpus, each.groups, _minute(each.until)) for each in found.leases}
        turns = [(entry.waiting, entry.turn) for entry in self._queue.waiting]
        return trouble, drivers, gpus, leases, turns, _minute(time.time())

    async def _read_state(self) -> Any:
        return self.visible_state(*await self.recent_view())


def _shown_fields(gpu: GPU) -> tuple[Any, ...]:
    """Return the fields of a GPU that forms show: not its utilization and memory in use."""
    return gpu.node, gpu.id, gpu.index, gpu.model, gpu.state, gpu.reason, _minute(gpu.until)


def _minute(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds / 60)
