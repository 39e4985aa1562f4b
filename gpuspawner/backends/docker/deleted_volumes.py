"""What becomes of the volumes of users who are deleted, and of servers that are removed."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import docker.errors

from ...leases.audit_log import one_line
from . import set_aside
from .errors import UNREACHABLE, explain
from .set_aside import FirstVolume

Policy = Literal["set_aside", "remove"]

# How often to look whether the hub has forgotten somebody, and for how long: it does as soon as all
# of the user's servers have been asked what to clean up.
GONE_SECONDS, GONE_TRIES = 1.0, 600
# The pauses between tries to set a volume aside or to remove it, and the number of removals.
FIRST_RETRY_SECONDS, RETRY_SECONDS, REMOVALS = 0.5, 10.0, 360


@dataclass(eq=False)
class Deletion:
    """The end of a user, or of one of a user's servers.

    Args:
        user: the user's name.
        server: the name of the server that is removed; None: the user is deleted.
        hub: the address of the hub.
        firsts: the first generations of the volumes that the configuration names.
        policy: what becomes of them.
        is_gone: returns whether the hub has forgotten whose they are. It may fail to, after it has
            asked what to clean up.
        volumes: the names of those that were set aside.
        is_undone: whether whose they are was there after all.
    """

    user: str
    server: str | None
    hub: str
    firsts: Sequence[FirstVolume]
    policy: Policy
    is_gone: Callable[[], bool]
    volumes: list[str] = field(default_factory=list)
    is_undone: bool = False


class DeletedVolumes:
    """Sets the volumes of those aside who are deleted, before anybody else can have their names.

    Which are to be removed are set aside first, too: the hub may fail to delete the user, a
    container that is being removed uses its volumes for a while, and many files take long.

    Where the engine can't be read, it is tried again, and a user of that name starts nothing
    before it is done.

    Args:
        client: returns a `docker.APIClient`.
        in_thread: calls a blocking function in a thread.
        log: a logger.
    """

    def __init__(
        self,
        client: Callable[[], Any],
        in_thread: Callable[..., Awaitable[Any]],
        log: Any,
    ) -> None:
        self._client = client
        self._in_thread = in_thread
        self._log = log
        self._pending: list[Deletion] = []
        self._lock = asyncio.Lock()
        # Strong references, as the event loop holds tasks only weakly.
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(self, deletion: Deletion) -> None:
        """Set the volumes aside; where that fails, the log says what to do. Raises nothing."""
        self._pending.append(deletion)
        try:
            await self._settle(deletion)
        except Exception as error:
            self._log.error(
                "%s of %r, who was deleted, may be found by a new user of that name: %s This is "
                "tried again. If JupyterHub ends before the log says that they are set aside, run: "
                "gpuspawner volumes set-aside %s",
                one_line(_names([each.name for each in deletion.firsts])),
                deletion.user,
                one_line(explain(error)),
                one_line(" ".join(each.name for each in deletion.firsts)),
            )
            self._in_background(self._retry(deletion))

    async def before_start(self, user: str) -> None:
        """Do what is left to do for those who had a user's name before.

        Raises:
            docker.errors.DockerException: the engine can't be read, or refuses.
            Unknown: the engine doesn't keep what is set aside.
        """
        for deletion in [each for each in self._pending if each.user == user]:
            await self._settle(deletion)

    async def undo(self, deletion: Deletion) -> None:
        """Give the volumes back to whom they belong, who wasn't deleted after all.

        Raises:
            docker.errors.DockerException: the engine can't be read, or refuses.
            Unknown: one is set aside still.
        """
        async with self._lock:
            deletion.is_undone = True
            if deletion in self._pending:
                self._pending.remove(deletion)
            await self._call(set_aside.give_back, deletion.volumes)
        self._log.warning("%r wasn't deleted after all, and keeps all volumes", deletion.user)
        if deletion.volumes:
            self._in_background(self._again_if_gone(deletion))

    async def _again_if_gone(self, deletion: Deletion) -> None:
        """Set them aside again if the hub deletes the user all the same, while a server starts."""
        for _ in range(GONE_TRIES):
            await asyncio.sleep(GONE_SECONDS)
            if deletion.is_gone():
                # Not what there is by now: that may be the next user's.
                await self._call(set_aside.set_aside, deletion.volumes, deletion.user)
                return

    async def _settle(self, deletion: Deletion) -> None:
        async with self._lock:  # with whom a start waits for
            if deletion not in self._pending:
                return
            deletion.volumes = await self._call(_set_aside, deletion)
            self._pending.remove(deletion)
        if deletion.volumes:
            removed = deletion.policy == "remove"
            said = "until they are removed" if removed else "and can be restored"
            self._log.info(
                "Volumes of %r are set aside %s: %s",
                deletion.user,
                said,
                one_line(_names(deletion.volumes)),
            )
        if deletion.policy == "remove" and deletion.volumes:
            self._in_background(self._remove(deletion))

    async def _retry(self, deletion: Deletion) -> None:
        for attempt in itertools.count():
            await asyncio.sleep(_pause(attempt))
            if deletion not in self._pending:
                return
            with suppress(Exception):  # which was logged
                await self._settle(deletion)

    async def _remove(self, deletion: Deletion) -> None:
        """Remove volumes once the hub has forgotten whose they were."""
        for _ in range(GONE_TRIES):
            if deletion.is_undone or deletion.is_gone():
                break
            await asyncio.sleep(GONE_SECONDS)
        if not deletion.is_gone():
            return
        for volume in deletion.volumes:
            try:
                await self._remove_one(volume)
                self._log.info("Removed volume %s of %r", one_line(volume), deletion.user)
            except Exception as error:
                self._log.error(
                    "Volume %s of %r stays, set aside: %s To remove it, run: "
                    "gpuspawner volumes remove %s",
                    one_line(volume),
                    deletion.user,
                    one_line(explain(error)),
                    one_line(volume),
                )

    async def _remove_one(self, volume: str) -> None:
        for attempt in range(REMOVALS):
            try:
                await self._call(remove, volume)
                return
            except UNREACHABLE:
                if attempt + 1 == REMOVALS:
                    raise
            # Its container may be on its way out, as may be the engine.
            await asyncio.sleep(_pause(attempt))

    async def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        return await self._in_thread(lambda: function(self._client(), *args))

    def _in_background(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def remove(client: Any, volume: str) -> None:
    """Remove a volume with its files, then its mark. Blocks.

    Raises:
        docker.errors.APIError: a container uses it, or the engine refuses.
        Unknown: its mark is still there.
    """
    with suppress(docker.errors.NotFound):
        client.remove_volume(volume)
    set_aside.give_back(client, [volume])


def _set_aside(client: Any, deletion: Deletion) -> list[str]:
    """Set aside what a user has, and return the volumes' names."""
    listing = set_aside.list_volumes(client)
    found = set(listing.labelled(deletion.user, deletion.hub, deletion.server))
    for first in deletion.firsts:
        found.update(listing.unmarked(first))
    volumes = sorted(found)
    if volumes:
        set_aside.set_aside(client, volumes, deletion.user)
    return volumes


def _pause(attempt: int) -> float:
    return min(FIRST_RETRY_SECONDS * 2 ** min(attempt, 9), RETRY_SECONDS)


def _names(volumes: Sequence[str]) -> str:
    return ", ".join(map(one_line, volumes))
