"""Which images are on the machine, so that a page offers none that nobody can start."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import docker.errors

from ..backends.docker import errors as engine_errors

# How long what was seen is taken for true. A start looks for itself.
KNOWN_SECONDS = 10.0


class LocalImages:
    """The images of one engine, looked for once for all who ask.

    Args:
        inspect: returns the engine's image of a reference; raises `docker.errors.NotFound`.
    """

    def __init__(self, inspect: Callable[[str], Awaitable[Any]]) -> None:
        self._inspect = inspect
        # Reference -> when it was looked for, and whether it is there.
        self._known: dict[str, tuple[float, bool]] = {}

    async def missing(self, references: Collection[str]) -> frozenset[str]:
        """Return those that aren't there. What can't be told isn't called missing."""
        now = time.monotonic()
        unknown = {
            each
            for each in references
            if self._known.get(each, (-math.inf, True))[0] + KNOWN_SECONDS < now
        }
        await asyncio.gather(*map(self._look, unknown))
        return frozenset(each for each in references if not self._known[each][1])

    async def _look(self, reference: str) -> None:
        there = True
        try:
            await self._inspect(reference)
        except docker.errors.NotFound:
            there = False
        except engine_errors.UNREACHABLE:
            pass
        self._known[reference] = (time.monotonic(), there)
