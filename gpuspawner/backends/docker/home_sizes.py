"""How large users' homes are: measured rarely, one after the other, and remembered.

Nobody waits for it. Who asks gets what is known by then, and what is old is measured anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...choices.home_use import HomeUse
from ...leases.audit_log import one_line
from .errors import explain
from .set_aside import FirstVolume, list_volumes
from .volume_folders import QUOTA, engines_sizes, folder_of, size_of

# How long what was measured is taken for true: at least this, and so long that measuring takes a
# small part of the time only. The engine measures all that it has, images too.
HOME_SECONDS, ENGINE_SECONDS = 600.0, 3600.0
PART_OF_TIME = 0.05


@dataclass
class _Measured:
    """What is known of a home.

    Args:
        until: until when it isn't measured anew, by the monotonic clock.
        used: its size in bytes; None: not known.
        quota: its size's limit in the engine; None: none.
        at: when it was measured, in seconds since the epoch.
    """

    until: float
    used: int | None = None
    quota: int | None = None
    at: float = 0.0


class HomeSizes:
    """The sizes of users' homes on one engine.

    Args:
        client: returns a `docker.APIClient`.
        in_thread: calls a blocking function in a thread.
        log: a logger.
    """

    def __init__(
        self, client: Callable[[], Any], in_thread: Callable[..., Awaitable[Any]], log: Any
    ) -> None:
        self._client = client
        self._in_thread = in_thread
        self._log = log
        self._known: dict[FirstVolume, _Measured] = {}
        # In the order in which they are measured.
        self._wanted: dict[FirstVolume, None] = {}
        self._task: asyncio.Task[None] | None = None
        # The engine's sizes of all volumes, and until when they are used.
        self._engines: Mapping[str, int] = {}
        self._engines_until = 0.0

    def of(self, first: FirstVolume, allowed: int | None) -> HomeUse | None:
        """Return what is known of a home, at once, and have it measured if that is old.

        Args:
            first: the first generation of the volume.
            allowed: how many bytes the user may keep there; None: no limit.
        """
        known = self._known.get(first)
        if known is None or known.until < time.monotonic():
            self._wanted[first] = None
            if self._task is None or self._task.done():
                self._task = asyncio.ensure_future(self._measure_all())
        if known is None or known.used is None:
            return None
        enforced = known.quota is not None
        return HomeUse(known.used, known.quota if enforced else allowed, enforced, known.at)

    def forget(self, user: str) -> None:
        """Forget what is known of a user's homes: who comes next has others."""
        self._known = {first: each for first, each in self._known.items() if first.user != user}

    async def _measure_all(self) -> None:
        while self._wanted:
            first = next(iter(self._wanted))
            began = time.monotonic()
            found = _Measured(0.0)
            try:
                found = await self._in_thread(self._measure, first)
            except Exception as error:  # the engine is away; the next time will do
                self._log.debug(
                    "The home of %r isn't measured: %s", first.user, one_line(explain(error))
                )
            took = time.monotonic() - began
            found.until = time.monotonic() + max(HOME_SECONDS, took / PART_OF_TIME)
            self._known[first] = found
            del self._wanted[first]

    def _measure(self, first: FirstVolume) -> _Measured:
        listing = list_volumes(self._client(), [first.name])
        about = listing.volumes.get(listing.current(first))
        if about is None:
            return _Measured(0.0)
        used = size_of(folder_of(about))
        if used is None:
            used = self._engines_sizes().get(about["Name"])
        return _Measured(0.0, used, quota_of(about), time.time())

    def _engines_sizes(self) -> Mapping[str, int]:
        if self._engines_until < time.monotonic():
            began = time.monotonic()
            # Also where the engine fails: it was asked.
            self._engines_until = began + ENGINE_SECONDS
            self._engines = engines_sizes(self._client())
            took = time.monotonic() - began
            self._engines_until += max(0.0, took / PART_OF_TIME - ENGINE_SECONDS)
        return self._engines


def quota_of(about: Mapping[str, Any]) -> int | None:
    """Return how many bytes the engine lets a volume have; None: as many as the disk has.

    Args:
        about: what the engine says of the volume.
    """
    options = about.get("Options") or {}
    if about.get("Driver") != "local" or set(options) != {QUOTA}:
        return None
    text = str(options[QUOTA])
    return int(text) if text.isdecimal() and text.isascii() else None
