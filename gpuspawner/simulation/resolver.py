"""A DNS relay for containers, where the host's resolver listens on a loopback they can't reach.

`python -m gpuspawner.simulation.resolver ADDRESS UPSTREAM` hands each question to UPSTREAM (port
53) and its answer back, over UDP and TCP, without looking into either. It writes `ready`, then
works until it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import sys
from typing import cast

PORT = 53
SECONDS = 10
LONGEST = 65535


class _Questions(asyncio.DatagramProtocol):
    def __init__(self, upstream: tuple[str, int]) -> None:
        self._upstream = upstream
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Python's own isn't an instance of it.
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        task = asyncio.get_running_loop().create_task(self._pass_on(data, addr))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, question: bytes, addr: tuple[str, int]) -> None:
        # Each question leaves from its own port, so that nobody can guess where to forge an answer.
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            self._transport.sendto(await _ask(question, self._upstream), addr)


class _Answer(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if not self.answer.done():
            self.answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


async def _ask(question: bytes, upstream: tuple[str, int]) -> bytes:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(_Answer, remote_addr=upstream)
    try:
        transport.sendto(question)
        return await asyncio.wait_for(protocol.answer, SECONDS)
    finally:
        transport.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(LONGEST):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()


async def relay(address: tuple[str, int], upstream: tuple[str, int]) -> asyncio.AbstractServer:
    """Relay DNS over UDP and TCP.

    Args:
        address: the (address, port) to listen at.
        upstream: the (address, port) of the resolver that answers.

    Raises:
        OSError: the address is in use.
    """

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(*upstream)
            await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
            far_writer.close()
        writer.close()

    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(connected, *address)
    await loop.create_datagram_endpoint(lambda: _Questions(upstream), local_addr=address)
    return server


async def _main(address: str, upstream: str) -> int:
    try:
        server = await relay((address, PORT), (upstream, PORT))
    except OSError as error:
        # A resolver that listens on every address of the host answers there too.
        print("taken" if error.errno == errno.EADDRINUSE else error, flush=True)
        return 0 if error.errno == errno.EADDRINUSE else 1
    print("ready", flush=True)
    await server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_main(*sys.argv[1:])))
