"""The images that are on the engine, so that the form offers no version that can't be started."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection

# How long a result is cached. A start doesn't use this cache.
CACHE_SECONDS = 10.0


class LocalImages:
    """A cache of which images an engine has, shared by all open forms.

    Args:
        has_image: returns whether the engine has an image; True if that can't be determined.
    """

    def __init__(self, has_image: Callable[[str], Awaitable[bool]]) -> None:
        self._has_image = has_image
        # Image reference -> when it was looked up, by the monotonic clock, and whether it is there.
        self._known: dict[str, tuple[float, bool]] = {}

    async def missing(self, references: Collection[str]) -> frozenset[str]:
        """Return those of some image references that the engine doesn't have."""
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
