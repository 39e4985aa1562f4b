"""The progress of a server's start, for the progress page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any


class Steps:
    """The progress events of a spawn.

    Args:
        translate: returns language tag -> translation of a sentence, English as "en" among them.
            They are for all who may see the start.
    """

    def __init__(self, translate: Callable[[str], dict[str, str]] | None = None) -> None:
        self._translate = translate or (lambda message: {"en": message})
        # (number, subject, event). Numbers are never reused, not even after `begin`.
        self._steps: list[tuple[int, str, dict[str, Any]]] = []
        self._said = 0
        self._changed = asyncio.Event()

    def begin(self) -> None:
        """Drop the events of the last spawn."""
        self._steps = []
        self._wake()

    def add(self, percent: int, message: str, *, about: str = "", **facts: Any) -> None:
        """Add an event. The page escapes its message; the percentage never decreases.

        Args:
            percent: the progress from 0 to 100.
            message: a sentence for users.
            about: the subject, such as "image". An event replaces the last one if both have the
                same, so that a page opened later doesn't get every percent of a download.
            facts: further data for the page, as JSON values.
        """
        if self._steps:
            percent = max(percent, self._steps[-1][2]["progress"])
            if about and self._steps[-1][1] == about:
                self._steps.pop()
        self._said += 1
        said = self._translate(message)
        english = said.pop("en")
        ours = {"about": about, "at": time.time(), "said": said, **facts}
        event = {"progress": percent, "message": english, "gpuspawner": ours}
        self._steps.append((self._said, about, event))
        self._wake()

    def so_far(self) -> list[dict[str, Any]]:
        """Return the events so far."""
        return [dict(event) for _, _, event in self._steps]

    async def follow(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the events so far, then each new one; never ends."""
        seen = 0
        while True:
            changed = self._changed
            for number, _, event in [step for step in self._steps if step[0] > seen]:
                seen = number
                yield dict(event)
            if changed is self._changed:
                await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
