"""A connection that asks for nothing ends; what is sent in one has a size."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tornado import web

from gpuspawner.dashboard import command, handlers


class Echo(web.RequestHandler):
    def post(self) -> None:
        self.finish(str(len(self.request.body)))


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Where the dashboard's server listens, with a service of the test's and little patience."""
    monkeypatch.setattr(command, "IDLE_SECONDS", 0.2)

    def begin() -> int:
        server = command.server_of(web.Application([("/", Echo)]))
        server.listen(0, "127.0.0.1")
        (listening,) = server._sockets.values()
        return int(listening.getsockname()[1])

    return begin


async def said(port: int, sent: bytes) -> bytes:
    """Return all that a server says until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    answer = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    return answer


async def test_a_connection_that_asks_for_nothing_ends(port: Any) -> None:
    where = port()
    assert await said(where, b"") == b""
    assert await said(where, b"POST / HTTP/1.1\r\nHost: x\r\n") == b""
    # Nor does it stay for a body that doesn't come, or after an answer.
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"
    assert not (await said(where, head + b"x")).endswith(b"2")
    assert (await said(where, head + b"xy")).endswith(b"2")


async def test_a_body_has_a_size(port: Any) -> None:
    where, most = port(), handlers.MAX_READ_BYTES
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    assert (await said(where, head % most + b"x" * most)).endswith(str(most).encode())
    assert b" 400 " in await said(where, head % (most + 1))
