"""Leave nothing behind: what is done after a start that failed, and about what others left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from docker.errors import APIError, NotFound

from .allocation import Request
from .container import VISIBLE_DEVICES, granted_uuids
from .leases import LABEL_GPUS, Ledger, Reservation

# A container that was created and not started in this time belongs to a hub that died.
STALE_SECONDS = 180
# How long to go on trying while the engine can't be reached.
ATTEMPTS = 6

Docker = Callable[..., Any]

# Container name -> what tidies up after its last start. The next start waits for it: a container
# that is still being created would take its name.
_tasks: dict[str, asyncio.Task[None]] = {}
# Held here, since the event loop itself holds tasks only weakly.
_sweeping: set[asyncio.Task[None]] = set()


def begin(
    name: str,
    docker: Docker,
    ledger: Ledger,
    reservation: Reservation | None,
    creating: asyncio.Future[Any] | None,
) -> asyncio.Task[None]:
    """Remove a failed start's container and end its reservation, whoever cancels what.

    Args:
        name: the container's name.
        docker: calls the engine: `await docker(method, *args)`.
        creating: the call that creates the container; it may still run in its thread, where nothing
            can cancel it.
    """
    task = asyncio.ensure_future(_tidy(docker, ledger, reservation, creating))
    _tasks[name] = task
    task.add_done_callback(lambda done: _tasks.pop(name) if _tasks.get(name) is done else None)
    return task


async def finish(name: str) -> None:
    """Wait until nothing tidies up after an earlier start of this container any more."""
    if task := _tasks.get(name):
        await asyncio.wait([task])


async def _tidy(
    docker: Docker,
    ledger: Ledger,
    reservation: Reservation | None,
    creating: asyncio.Future[Any] | None,
) -> None:
    try:
        if creating is None:
            return
        await asyncio.wait([creating])
        if creating.cancelled() or creating.exception():
            return
        for attempt in range(ATTEMPTS):
            try:
                await remove(docker, creating.result()["Id"])
                return
            except Exception:  # the engine is away; what runs there is on its own labels' account
                await asyncio.sleep(2**attempt)
    finally:
        if reservation is not None:
            ledger.release(reservation)


async def remove(docker: Docker, container_id: str) -> None:
    """Remove a container, running or not, and return when it is gone.

    Raises:
        docker.errors.APIError: the engine refuses, and not because it is removing it already.
    """
    while True:
        try:
            await docker("remove_container", container_id, force=True, v=True)
        except NotFound:
            return
        except APIError as error:
            if error.status_code != 409:  # 409: its removal is under way
                raise
            await asyncio.sleep(0.05)


async def remove_remains(docker: Docker, container: Mapping[str, Any], always: bool) -> bool:
    """Remove a container that isn't running: any, or only one that never ran; say if it is gone.

    One that never ran holds its GPUs as long as it exists, and nobody can want it back.

    Args:
        container: an inspection of it.
        always: whether one that ran is to be removed too.
    """
    state = container["State"]
    if state["Running"] or not (always or state["Status"] == "created"):
        return False
    await remove(docker, container["Id"])
    return True


def sweep_stale(docker: Docker, containers: Sequence[Mapping[str, Any]], log: Any) -> None:
    """Remove containers of hubs that died between create and start. Returns at once.

    Not by force: one that was started after all stays.
    """
    for container in containers:
        age = time.time() - (container.get("Created") or time.time())
        if container.get("State") == "created" and age > STALE_SECONDS:
            log.warning("Removing container %s, which was never started", container["Id"][:12])
            task = asyncio.ensure_future(_remove_quietly(docker, container["Id"]))
            _sweeping.add(task)
            task.add_done_callback(_sweeping.discard)


async def _remove_quietly(docker: Docker, container_id: str) -> None:
    with suppress(Exception):
        await docker("remove_container", container_id, v=True)


def can_resume(container: Mapping[str, Any], request: Request, image: str, mem_limit: Any) -> bool:
    """Return whether a stopped container is just what was asked for now.

    Only one without GPUs is: who stopped gave them back, and others may have them.

    Args:
        container: an inspection of it.
        image: the image reference that was granted.
        mem_limit: the memory limit in bytes that applies now; None: none.
    """
    config, host = container["Config"], container["HostConfig"]
    variables = dict(line.partition("=")[::2] for line in config.get("Env") or [])
    return (
        request.gpus == 0
        and (config.get("Labels") or {}).get(LABEL_GPUS) == ""
        and variables.get(VISIBLE_DEVICES) == "void"
        and not granted_uuids(container)
        and config.get("Image") == image
        and (host.get("Memory") or None) == (mem_limit or None)
        and not container["State"]["Running"]
    )
