"""The tasks of a Swarm, as one of its managers lists them: of all services, or of one.

A list of all grows with what runs on all nodes, and so does the time that reading it takes. Who has
to know how things are now has it read; who may know how they were a moment ago shares the last one.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import docker.errors

from ...leases.ledger import SharedRead
from .tasks import Task

# How long a list is recent, at least and at most; and the most of a processor that looking again
# takes in between.
RECENT_SECONDS, LONGEST_RECENT = 1.0, 15.0
PART = 0.02
# A list of one service's tasks takes as long as so many tasks of all of them.
ONE_SERVICE = 50


@dataclass(frozen=True)
class Listing:
    """The tasks that were there.

    Args:
        began: when they were asked for, by the monotonic clock.
        took: for how many seconds.
        of: service id -> its tasks.
        number: how many there are.
    """

    began: float
    took: float
    of: Mapping[str, Sequence[Task]] = field(default_factory=dict)
    number: int = 0

    @property
    def is_recent(self) -> bool:
        """Whether it needn't be read again yet."""
        holds = min(max(RECENT_SECONDS, self.took / PART), LONGEST_RECENT)
        return time.monotonic() - self.began < self.took + holds


class TaskList:
    """The tasks of a Swarm. Its methods raise what the engine does.

    Args:
        call: calls a method of the engine's client.
    """

    def __init__(self, call: Callable[..., Awaitable[Sequence[Task]]]) -> None:
        self._call = call
        self._last: Listing | None = None
        self._asking = 0
        # Of many who ask, the engine lists all tasks for all of them.
        self.now = SharedRead(self._list)

    async def _list(self) -> Sequence[Task]:
        began = time.monotonic()
        tasks = await self._call("tasks")
        of: dict[str, list[Task]] = {}
        for task in tasks:
            of.setdefault(str(task.get("ServiceID") or ""), []).append(task)
        self._last = Listing(began, time.monotonic() - began, of, len(tasks))
        return tasks

    async def recent(self) -> Mapping[str, Sequence[Task]]:
        """Return service id -> its tasks, as they were a moment ago."""
        while self._last is None or not self._last.is_recent:
            await self.now()
        return self._last.of

    async def of(self, service_id: str) -> Sequence[Task]:
        """Return the tasks of a service as they are now, also of one that is gone."""
        self._asking += 1
        try:
            if self._last and self._last.number > self._asking * ONE_SERVICE:
                return await self._of_one(service_id)
            return self._own(await self.now(), service_id)
        finally:
            self._asking -= 1

    async def _of_one(self, service_id: str) -> Sequence[Task]:
        try:
            found = await self._call("tasks", filters={"service": [service_id]})
        except docker.errors.NotFound:  # its containers may still stop
            found = await self.now()
        return self._own(found, service_id)

    @staticmethod
    def _own(tasks: Sequence[Task], service_id: str) -> Sequence[Task]:
        return [each for each in tasks if each.get("ServiceID") == service_id]
