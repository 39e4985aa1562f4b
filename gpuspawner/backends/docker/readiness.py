"""The wait from `docker start` to the server's first answer, or to the container's end."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import docker

from ...timeouts import within
from .poll_interval import PollInterval

LAST_LINES = 12
# How long a server may take to accept a connection, and to answer a request, in seconds.
CONNECT_SECONDS = 1
ANSWER_SECONDS = 5
# How much of an answer is read, in bytes: whatever a user's server sends, the hub keeps no more.
MAX_LINE = 1024
_STATUS = re.compile(rb"HTTP/[0-9.]{1,5} ([1-4][0-9]{2})\b")

# Makes our images defer imports that a start doesn't need, which halves it. Others ignore it.
QUICK_START = {"GPUSPAWNER_QUICK_START": "1"}


class Output:
    """The output of a container during its start, for the error message if it ends.

    Attached before the start, since an engine that removes a container at its exit removes its log,
    too. `ended` is set when the output ends, which is when the container does. The caller sets
    `started` after the start, since the output also ends if the engine refuses to start it.
    """

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.started = False
        self._tail = deque[bytes](maxlen=64)
        self._stream: Any = None
        self._loop = asyncio.get_running_loop()

    def attach(self, client: Any, container: Mapping[str, Any]) -> None:
        """Attach to a container that isn't started yet. Blocks: call it in a thread.

        Not the log: some log drivers can't be read.

        Args:
            client: a `docker.APIClient`.
            container: the container's inspection.
        """
        attach: Any = docker.APIClient.attach
        terminal = bool(container["Config"].get("Tty"))
        self._stream = attach(_AttachingClient(client, terminal), container["Id"], stream=True)
        threading.Thread(target=self._read, name="output-of-start", daemon=True).start()

    def detach(self) -> None:
        """Detach from the container, which keeps running."""
        stream, self._stream = self._stream, None
        if stream is not None:
            with suppress(Exception):
                stream.close()

    async def has_ended(self) -> bool:
        """Return whether the container has ended, or ends within half a second."""
        with suppress(asyncio.TimeoutError):
            await within(0.5, self.ended.wait())
        return self.started and self._stream is not None and self.ended.is_set()

    def last_lines(self) -> list[str]:
        """Return the last lines of the output, decoded, at most `LAST_LINES`."""
        text = b"".join(self._tail).decode("utf-8", "replace")
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        return lines[-LAST_LINES:]

    def _read(self) -> None:
        with suppress(Exception):  # closed by detach(), or by the engine
            for chunk in self._stream:
                self._tail.append(chunk[-4096:])
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.ended.set)


class _AttachingClient:
    """A client for `attach`, for which docker-py needn't inspect the container once more.

    Args:
        client: a `docker.APIClient`.
        has_terminal: whether the container has a terminal, so that its output is one stream.
    """

    def __init__(self, client: Any, has_terminal: bool) -> None:
        self._client = client
        self._has_terminal = has_terminal

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def _check_is_tty(self, container: str) -> bool:
        return self._has_terminal


async def wait_until_answering(
    url: str, ip: str, port: int, ended: asyncio.Event, seconds: float, interval: PollInterval
) -> bool:
    """Wait until a server answers over HTTP; return False if it ends first or time runs out.

    Args:
        url: the URL to request; any status below 500 is an answer. "": a connection is enough.
        ip, port: the server's address.
        ended: set when the server's container ends.
        seconds: the longest wait.
        interval: the polling interval, shared by all servers that start.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    with interval.one_more():
        while not ended.is_set() and loop.time() < deadline:
            if await _answers(url, ip, port):
                return True
            with suppress(asyncio.TimeoutError):
                await within(interval.seconds, ended.wait())
    return False


async def _answers(url: str, ip: str, port: int) -> bool:
    """Return whether a server answers a request; without a URL, whether it accepts a connection."""
    try:
        connection = asyncio.open_connection(ip, port, limit=MAX_LINE)
        reader, writer = await within(CONNECT_SECONDS, connection)
    except (OSError, asyncio.TimeoutError):
        return False
    try:
        if not url:
            return True
        parts = urlsplit(url)
        head = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        # ValueError: the line is longer than the limit.
        with suppress(OSError, ValueError, asyncio.TimeoutError):
            return _STATUS.match(await within(ANSWER_SECONDS, reader.readline())) is not None
        return False
    finally:
        writer.close()
