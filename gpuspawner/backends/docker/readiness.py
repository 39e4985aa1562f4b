"""From `docker start` to the first answer: noticed at once, and so is a death on the way."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any

from tornado.httpclient import AsyncHTTPClient

# Often enough to add nothing to a start of half a second, rare enough to cost nothing.
POLL_SECONDS = 0.025
LAST_LINES = 12

# Asks our images to load what a server needs later, later: half of a start. Others overhear it.
QUICK_START = {"GPUSPAWNER_QUICK_START": "1"}


class Output:
    """A container's output from its first byte on, kept for the message about its death.

    Attached before the start, since an engine that removes a container when it exits removes its
    log with it. `ended` is set when the output ends, which is when the container does. Who starts
    it sets `started`: an engine that refuses to start a container ends its output too.
    """

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.started = False
        self._tail = deque[bytes](maxlen=64)
        self._stream: Any = None
        self._loop = asyncio.get_running_loop()

    def attach(self, client: Any, container_id: str) -> None:
        """Begin to follow a container that isn't started yet. Blocking: call it in a thread.

        The engine passes the output on itself. Its log isn't asked for: some drivers only write.

        Args:
            client: a `docker.APIClient`.
        """
        self._stream = client.attach(container_id, stream=True)
        threading.Thread(target=self._read, name="output-of-start", daemon=True).start()

    def detach(self) -> None:
        """Let go of the container, which goes on."""
        stream, self._stream = self._stream, None
        if stream is not None:
            with suppress(Exception):
                stream.close()

    async def has_ended(self) -> bool:
        """Return whether the container ended, or does in a moment."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.ended.wait(), 0.5)
        return self.started and self._stream is not None and self.ended.is_set()

    def last_lines(self) -> list[str]:
        """Return the last lines of the output, decoded, at most `LAST_LINES`."""
        text = b"".join(self._tail).decode("utf-8", "replace")
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        return lines[-LAST_LINES:]

    def _read(self) -> None:
        with suppress(Exception):  # closed by detach(), or the engine went away
            for chunk in self._stream:
                self._tail.append(chunk[-4096:])
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self.ended.set)


def exit_code(client: Any, container_id: str) -> int | None:
    """Return how a container that just ended did, from the engine's memory of recent events.

    The container itself may be removed already. None where the engine doesn't remember. Blocking,
    for two seconds at most: call it in a thread.
    """
    now = int(time.time())
    filters = {"container": [container_id], "event": ["die"]}
    with suppress(Exception):
        for event in client.events(since=now - 600, until=now + 2, filters=filters, decode=True):
            return int(event["Actor"]["Attributes"]["exitCode"])
    return None


async def wait_until_answering(
    url: str, ip: str, port: int, ended: asyncio.Event, seconds: float
) -> bool:
    """Wait until a server answers over HTTP; False if it ended first or time ran out.

    Args:
        url: what to ask; any status below 500 is an answer. "" where a connection is enough.
        ended: set when the server's container ends.
        seconds: how long to wait at most.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not ended.is_set() and loop.time() < deadline:
        if await _listens(ip, port) and (not url or await _responds(url)):
            return True
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(ended.wait(), POLL_SECONDS)
    return False


async def _listens(ip: str, port: int) -> bool:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(ip, port), 1)
    except (OSError, asyncio.TimeoutError):
        return False
    writer.close()
    return True


async def _responds(url: str) -> bool:
    try:
        response = await AsyncHTTPClient().fetch(
            url, raise_error=False, follow_redirects=False, request_timeout=5
        )
    except Exception:
        return False
    return response.code < 500
