"""A socket before the engine's that passes everything on, except what it is told to refuse."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

REFUSAL = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 23\r\n"
BODY = b'{"message":"on strike"}'


class Flaky:
    """What the tests hold of it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._refused: str | None = None
        # Called with a request's first line, before it is passed on, and before its answer is.
        self.before: Callable[[str], None] = lambda line: None
        self.answered: Callable[[str], None] = lambda line: None
        self._asked: list[tuple[bytes, asyncio.StreamWriter]] = []
        self.loop = asyncio.new_event_loop()

    def refuse(self, path: str | None) -> None:
        """Answer 500 to requests whose target has this in it from now on; None: to none."""
        self._refused = path

    def times(self, path: str) -> int:
        """Return how often a request with this in its target was passed on."""
        return sum(path.encode() in line for line, _ in self._asked)

    def cut(self, path: str) -> None:
        """End every connection on which a request with this in its target was passed on."""
        for line, writer in self._asked:
            if path.encode() in line:
                self.loop.call_soon_threadsafe(writer.close)

    def passes(self, chunk: bytes, writer: asyncio.StreamWriter) -> None:
        """Take note of what is passed on, and to whom its answer goes."""
        self._asked.append((chunk.split(b"\r\n", 1)[0], writer))

    def refuses(self, chunk: bytes) -> bool:
        """Return whether a chunk begins a request that is refused."""
        line = chunk.split(b"\r\n", 1)[0]
        return self._refused is not None and self._refused.encode() in line


@contextmanager
def flaky_engine(engine: Path, socket: Path) -> Iterator[Flaky]:
    """Serve `socket`, in a thread, for as long as the block runs."""
    flaky = Flaky(f"unix://{socket}")
    loop = flaky.loop
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, before = await asyncio.open_unix_connection(str(engine))
        asked = [""]

        def answered() -> None:
            flaky.answered(asked[0])

        back = asyncio.ensure_future(_pass_on(behind, writer, answered))
        with suppress(OSError, asyncio.CancelledError):
            while chunk := await reader.read(65536):
                line = chunk.split(b"\r\n", 1)[0].decode(errors="replace")
                if line.endswith(" HTTP/1.1"):  # else the rest of what is asked
                    asked[0] = line
                    flaky.before(line)
                if flaky.refuses(chunk):
                    writer.write(REFUSAL + b"Content-Type: application/json\r\n\r\n" + BODY)
                    await writer.drain()
                    continue
                flaky.passes(chunk, writer)
                before.write(chunk)
                await before.drain()
        before.close()
        with suppress(asyncio.CancelledError):
            await back

    starting = asyncio.start_unix_server(serve, path=str(socket))
    server = asyncio.run_coroutine_threadsafe(starting, loop).result()
    try:
        yield flaky
    finally:
        loop.call_soon_threadsafe(server.close)
        asyncio.run_coroutine_threadsafe(_end_others(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


async def _end_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for each in others:
        each.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answered: Callable[[], None]
) -> None:
    with suppress(OSError):
        while chunk := await reader.read(65536):
            answered()
            writer.write(chunk)
            await writer.drain()
    writer.close()
