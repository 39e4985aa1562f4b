"""Leave nothing behind: what is done after a start that failed, and about what others left."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

from docker.errors import APIError, NotFound

from ...leases.labels import LABEL_GPUS, LABEL_SETTINGS
from ...leases.ledger import Ledger, Reservation
from .container_config import granted_uuids

# A container that was created and not started in this time belongs to a hub that died.
STALE_SECONDS = 180
# How long a removal that the engine says is under way may take.
REMOVAL_SECONDS = 30
# How long a start waits for what tidies up after the last one.
PATIENCE_SECONDS = 30
# Between tries while the engine can't be reached, and for how many of them.
PAUSE_SECONDS = 10
ATTEMPTS = 360

Docker = Callable[..., Any]

# Container name -> what tidies up after its last starts. The next start waits for all of it: a
# container that is still being created would take its name.
_tasks: dict[str, set[asyncio.Task[None]]] = {}


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
    return _go_on(name, _tidy(docker, ledger, reservation, creating))


def remove_later(name: str, docker: Docker, container_id: str) -> asyncio.Task[None]:
    """Remove a container as soon as the engine lets us, and return at once."""
    return _go_on(name, _remove_surely(docker, container_id))


def _go_on(name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    task = asyncio.ensure_future(work)
    tasks = _tasks.setdefault(name, set())
    tasks.add(task)

    def done(_: Any) -> None:
        tasks.discard(task)
        if not tasks and _tasks.get(name) is tasks:
            del _tasks[name]

    task.add_done_callback(done)
    return task


async def finish(name: str) -> bool:
    """Wait until nothing tidies up after this container's starts; False if something goes on."""
    if tasks := set(_tasks.get(name, ())):
        _, unfinished = await asyncio.wait(tasks, timeout=PATIENCE_SECONDS)
        return not unfinished
    return True


async def _tidy(
    docker: Docker,
    ledger: Ledger,
    reservation: Reservation | None,
    creating: asyncio.Future[Any] | None,
) -> None:
    created = None
    try:
        if creating is not None:
            await asyncio.wait([creating])
            if not creating.cancelled() and not creating.exception():
                created = creating.result()
    finally:
        # From here the container's label holds the GPUs, until it is gone.
        if reservation is not None:
            ledger.release(reservation)
    if created is not None:
        await _remove_surely(docker, created["Id"])


async def _remove_surely(docker: Docker, container_id: str) -> None:
    for attempt in range(ATTEMPTS):
        try:
            await remove(docker, container_id)
            return
        except Exception:  # the engine is away, or can't just now
            await asyncio.sleep(min(2**attempt, PAUSE_SECONDS))


async def remove(docker: Docker, container_id: str) -> None:
    """Remove a container, running or not, and return when it is gone.

    Raises:
        docker.errors.APIError: the engine refuses, or its own removal of it doesn't end.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + REMOVAL_SECONDS
    while True:
        try:
            await docker("remove_container", container_id, force=True, v=True)
        except NotFound:
            return
        except APIError as error:
            if error.status_code != 409 or loop.time() > deadline:  # 409: it is being removed
                raise
            await asyncio.sleep(0.05)


class StaleContainerReaper:
    """Remove containers of hubs that died between create and start.

    They are known by this process's own clock, since the engine's may be another machine's.
    """

    def __init__(self) -> None:
        # Container id -> when it was first seen created and not started, by the loop's clock.
        self._first_seen: dict[str, float] = {}
        # Held here, since the event loop itself holds tasks only weakly.
        self._removals: set[asyncio.Task[None]] = set()

    def reap(self, docker: Docker, containers: Sequence[Mapping[str, Any]], log: Any) -> None:
        """Look at a listing of every container. Returns at once.

        Nothing is removed by force: what was started after all stays.
        """
        now = asyncio.get_running_loop().time()
        waiting = {each["Id"] for each in containers if each.get("State") == "created"}
        seen = {each: self._first_seen.get(each, now) for each in waiting}
        self._first_seen = seen
        for container_id in (each for each in waiting if now - seen[each] > STALE_SECONDS):
            log.warning("Removing container %s, which was never started", container_id[:12])
            task = asyncio.ensure_future(_remove_quietly(docker, container_id))
            self._removals.add(task)
            task.add_done_callback(self._removals.discard)


async def _remove_quietly(docker: Docker, container_id: str) -> None:
    with suppress(Exception):
        await docker("remove_container", container_id, v=True)


def fingerprint(create_kwargs: Mapping[str, Any]) -> str:
    """Return a hash of what a container is created with, but for what each start makes anew."""
    fresh = {"JUPYTERHUB_API_TOKEN", "JPY_API_TOKEN"}
    environment = create_kwargs.get("environment") or {}
    settings = {
        **create_kwargs,
        "environment": {name: text for name, text in environment.items() if name not in fresh},
    }
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def can_resume(container: Mapping[str, Any], plan: Mapping[str, Any], image_id: str) -> bool:
    """Return whether a stopped container is just what would be created now.

    Only one without GPUs is: who stopped gave them back, and others may have them.

    Args:
        container: an inspection of it.
        plan: what `create_container` would be called with now.
        image_id: the id of the image that it would have.
    """
    found, wanted = container["Config"].get("Labels") or {}, plan["labels"]
    return (
        not container["State"]["Running"]
        and not granted_uuids(container)
        and found.get(LABEL_GPUS) == wanted[LABEL_GPUS] == ""
        and found.get(LABEL_SETTINGS) == wanted[LABEL_SETTINGS]
        and container.get("Image") == image_id
    )
