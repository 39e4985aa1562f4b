"""The engine's word that a container has ended, as it happens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ...leases.labels import LABEL_GPUS

# Between tries to open the stream while the engine is away.
RETRY_SECONDS = 1.0


class EndWatcher:
    """Call back on the event loop whenever a container with a lease ends.

    Also each time the stream of events was opened, since what happened before that isn't in it.
    Between `begin` and `end` a broken stream is opened again, for as long as it takes.
    """

    def __init__(self, client: Any, notice: Callable[[], None]) -> None:
        """Take a `docker.APIClient`, and what to call."""
        self._client = client
        self._notice = notice
        self._stopped = threading.Event()
        self._stream: Any = None

    def begin(self) -> None:
        """Begin to listen, and return at once."""
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._follow, args=(loop,), name="endings", daemon=True).start()

    def end(self) -> None:
        """Stop listening."""
        self._stopped.set()
        stream, self._stream = self._stream, None
        if stream is not None:
            with suppress(Exception):
                stream.close()

    def _follow(self, loop: asyncio.AbstractEventLoop) -> None:
        filters = {"type": ["container"], "event": ["die", "destroy"], "label": [LABEL_GPUS]}
        while not self._stopped.is_set():
            with suppress(Exception):  # the engine is away, or closed the stream
                self._stream = self._client.events(filters=filters, decode=True)
                self._call(loop)
                for _ in self._stream:
                    if self._stopped.is_set():
                        break
                    self._call(loop)
            self._stopped.wait(RETRY_SECONDS)
        with suppress(Exception):  # where `end` came between the check and the opening
            self._stream.close()

    def _call(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(self._notice)
