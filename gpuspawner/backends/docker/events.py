"""The watcher of the engine's events, which reports ends of containers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ...leases.labels import LABEL_GPUS

# The pause between tries to open the event stream while the engine is unreachable.
RETRY_SECONDS = 1.0


class EndWatcher:
    """A watcher that calls back on the event loop when a container with a lease ends.

    It also calls back whenever the event stream has been opened, since earlier events aren't in it.
    A broken stream is opened again until `end` is called.

    Args:
        client: a `docker.APIClient`.
        notice: the callback.
        on_open: called in a thread whenever the stream has been opened: the engine may be another.
    """

    def __init__(
        self,
        client: Any,
        notice: Callable[[], None],
        on_open: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = client
        self._notice = notice
        self._on_open = on_open
        self._stopped = threading.Event()
        self._stream: Any = None

    def begin(self) -> None:
        """Start listening in a thread; return at once."""
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
            with suppress(Exception):  # the engine is unreachable, or closed the stream
                self._stream = self._client.events(filters=filters, decode=True)
                self._on_open()
                self._call(loop)
                for _ in self._stream:
                    if self._stopped.is_set():
                        break
                    self._call(loop)
            self._stopped.wait(RETRY_SECONDS)
        with suppress(Exception):  # `end` was called between the check and the opening
            self._stream.close()

    def _call(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._notice)
