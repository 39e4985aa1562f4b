"""What happens while a server starts, for the page that shows it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any


class Steps:
    """What happened so far in a spawn, for the progress page.

    Args:
        translate: returns a sentence in other languages, by their tags.
    """

    def __init__(self, translate: Callable[[str], dict[str, str]] | None = None) -> None:
        self._translate = translate or (lambda message: {})
        # Number, what it is about, event. The numbers grow for ever, also over `begin`.
        self._steps: list[tuple[int, str, dict[str, Any]]] = []
        self._said = 0
        self._changed = asyncio.Event()

    def begin(self) -> None:
        """Forget an earlier spawn's steps."""
        self._steps = []
        self._wake()

    def add(self, percent: int, message: str, *, about: str = "", **facts: Any) -> None:
        """Add a step. The page escapes the message, and its bar never goes back.

        Args:
            about: names what goes on, such as a download. A step takes the place of the last one
                if both are about the same: who comes late isn't told every percent there was.
            facts: what else the page may need of it, as values for JSON.
        """
        if self._steps:
            percent = max(percent, self._steps[-1][2]["progress"])
            if about and self._steps[-1][1] == about:
                self._steps.pop()
        self._said += 1
        ours = {"about": about, "at": time.time(), "said": self._translate(message), **facts}
        event = {"progress": percent, "message": message, "gpuspawner": ours}
        self._steps.append((self._said, about, event))
        self._wake()

    def so_far(self) -> list[dict[str, Any]]:
        """Return the steps so far."""
        return [dict(event) for _, _, event in self._steps]

    async def follow(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the steps so far, then each new one; never ends by itself."""
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
