"""A client of an engine for an event loop: its calls run in threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# DockerSpawner's one thread makes every call wait for the slowest `docker stop`.
THREADS = 48


class EngineClient:
    """A client of one engine, which is connected at its first use.

    Args:
        make_client: returns a `docker.APIClient`; called when the engine is first needed.
    """

    def __init__(self, make_client: Callable[[], Any]) -> None:
        self._make_client = make_client
        self._client: Any = None
        self._connecting = threading.Lock()
        # Large enough that a slow stop delays no other call.
        self.executor = ThreadPoolExecutor(THREADS, thread_name_prefix="docker")

    @property
    def client(self) -> Any:
        """The client of the engine, connected at its first use."""
        with self._connecting:  # several threads may use it first
            if self._client is None:
                self._client = self._make_client()
            return self._client

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the client in a thread."""
        return await self.in_thread(lambda: getattr(self.client, method)(*args, **kwargs))

    async def in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a blocking function in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.executor, function, *args)

    def close(self) -> None:
        """Close the connection to the engine; servers keep running."""
        self.executor.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.close()
