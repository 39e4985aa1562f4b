"""The end of a container, which has time to save what it has.

The engine's own `stop` keeps a thread and a connection until the container has ended: a class that
ends at once would take all of them. So the container is told to end, and looked at now and then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import docker.errors

from ...leases.labels import ServerRecord
from . import errors as engine_errors

# The variable of a container that says how many seconds it has to save, and our images its server.
GRACE = "GPUSPAWNER_STOP_GRACE"
# After these: for what the server itself does at its end.
LAST_SECONDS = 2
# Pauses between two looks at a container that is ending, in seconds: the first, and the longest.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 0.5


async def stop(
    call: Callable[..., Awaitable[Any]],
    servers: Callable[[], Awaitable[Sequence[ServerRecord]]],
    container_id: str,
) -> None:
    """Stop a container; it is ended by force when its time to save is over.

    One that doesn't have the variable `GRACE`, as an earlier version's, has the engine's own time.

    Args:
        call: calls a method of the engine's client: `await call(method, *args)`.
        servers: lists the engine's containers.
        container_id: the container's id.

    Raises:
        docker.errors.NotFound: there is none.
        docker.errors.APIError: the engine refuses.
    """
    inspected = await call("inspect_container", container_id)
    grace = _grace(inspected["Config"])
    if grace is None:
        await call("stop", container_id)
        return
    # 409: it doesn't run.
    with suppress(docker.errors.APIError):
        signal = inspected["Config"].get("StopSignal") or "SIGTERM"
        await call("kill", container_id, signal=signal)
        if await _ends(servers, container_id, grace):
            return
    await call("stop", container_id, timeout=LAST_SECONDS)


def _grace(config: Mapping[str, Any]) -> float | None:
    """Return how many seconds a container has to save, by its inspection's `Config`, or None."""
    for line in config.get("Env") or ():
        name, _, value = line.partition("=")
        if name == GRACE:
            with suppress(ValueError):
                return max(float(value), config.get("StopTimeout") or 0)
    return None


async def _ends(
    servers: Callable[[], Awaitable[Sequence[ServerRecord]]], container_id: str, seconds: float
) -> bool:
    """Return whether a container ends within some seconds."""
    loop = asyncio.get_running_loop()
    until, pause = loop.time() + seconds, FIRST_PAUSE
    while loop.time() < until:
        # An engine that is away for a moment may be back before the time is over.
        with suppress(*engine_errors.UNREACHABLE):
            there = await servers()
            if not any(each.id == container_id and each.state == "running" for each in there):
                return True
        await asyncio.sleep(min(pause, max(0.0, until - loop.time())))
        pause = min(LONGEST_PAUSE, pause * 1.5)
    return False
