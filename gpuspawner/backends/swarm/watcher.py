"""The watcher of a Swarm's tasks, which reports changes of what runs.

Engines have no events of tasks, so they are listed again and again, once for all who watch.
ref: https://github.com/moby/moby/issues/37403
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import chain

from .tasks import Task, is_terminal

# The pause between two listings, in seconds.
PERIOD_SECONDS = 1.0


class TaskWatcher:
    """A watcher that calls back on the event loop when a task may have ended.

    Args:
        list_tasks: returns service id -> its tasks.
        notice: the callback.
        period: the pause between two listings, in seconds.
    """

    def __init__(
        self,
        list_tasks: Callable[[], Awaitable[Mapping[str, Sequence[Task]]]],
        notice: Callable[[], None],
        period: float = PERIOD_SECONDS,
    ) -> None:
        self._list_tasks = list_tasks
        self._notice = notice
        self._period = period
        self._following: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start listening; return at once."""
        self._following = asyncio.ensure_future(self._follow())

    def end(self) -> None:
        """Stop listening."""
        if self._following is not None:
            self._following.cancel()

    async def _follow(self) -> None:
        last = None
        while True:
            try:
                tasks = chain.from_iterable((await self._list_tasks()).values())
                now = frozenset(str(each.get("ID")) for each in tasks if not is_terminal(each))
            except Exception:  # the Swarm can't be read: what comes back may have changed
                now = None
            # What began meanwhile isn't an end, but costs nothing.
            if now is not None and now != last:
                self._notice()
            last = now
            await asyncio.sleep(self._period)
