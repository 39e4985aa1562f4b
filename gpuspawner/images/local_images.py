"""Which images are on the machine, so that a page offers none that nobody can start."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection

# How long what was seen is taken for true. A start looks for itself.
CACHE_SECONDS = 10.0


class LocalImages:
    """The images of one engine, looked for once for all who ask.

    Args:
        has_image: returns whether an image is there; True where that can't be told.
    """

    def __init__(self, has_image: Callable[[str], Awaitable[bool]]) -> None:
        self._has_image = has_image
        # Reference -> when it was looked for, and whether it is there.
        self._known: dict[str, tuple[float, bool]] = {}

    async def missing(self, references: Collection[str]) -> frozenset[str]:
        """Return those that aren't there. What can't be told isn't called missing."""
        now = time.monotonic()
        unknown = {
            each
            for each in references
            if self._known.get(each, (-math.inf, True))[0] + CACHE_SECONDS < now
        }
        await asyncio.gather(*map(self._look_up, unknown))
        return frozenset(each for each in references if not self._known[each][1])

    async def _look_up(self, reference: str) -> None:
        self._known[reference] = (time.monotonic(), await self._has_image(reference))
