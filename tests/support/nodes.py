"""Nodes for tests: real daemons, each a process of its own with its own simulated NVML."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType

from gpuspawner.nodes.addresses import NodeAddress
from gpuspawner.nodes.daemon import HUBS_FILE
from gpuspawner.nodes.identity import Identity, load_or_make, server_context
from gpuspawner.simulation.state import State

from .nvml import environment
from .paths import ROOT

Talk = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def lying_daemon(
    hub: Identity, node: Identity, talk: Talk, name: str = "atlas"
) -> AsyncIterator[NodeAddress]:
    """A daemon with the right certificate that does whatever it likes; yields its address.

    Args:
        hub: who may ask it.
        node: its own identity.
        talk: is given the head of each request, and answers.
    """
    talking: set[asyncio.Task[None] | None] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talking.add(asyncio.current_task())
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await talk(await reader.readuntil(b"\r\n\r\n"), writer)
        writer.close()

    tls = server_context(node, [hub.certificate])
    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield NodeAddress(name, "127.0.0.1", server.sockets[0].getsockname()[1], node.fingerprint)
        for task in talking:
            if task:
                task.cancel()


class NodeDaemon:
    """A running daemon; a context manager.

    Args:
        folder: its own, which is made: its key, the hubs that it knows, and what its NVML says.
        library: the folder of the simulated NVML library.
        hubs: those that may ask.
        state: what its NVML says at first.
        engine_socket: where the part answers that may ask an engine.
    """

    def __init__(
        self,
        folder: Path,
        library: Path,
        hubs: list[Identity],
        state: State,
        name: str = "atlas",
        engine_socket: Path | None = None,
    ) -> None:
        self.name = name
        self.folder = folder
        self.state_path = folder / "state"
        self.identity = load_or_make(folder, name)
        (folder / HUBS_FILE).write_text("".join(hub.certificate for hub in hubs))
        state.write(self.state_path)
        self.library = library
        self._engine_socket = engine_socket or folder / "none.sock"
        self._process: subprocess.Popen[str] | None = None
        self.port = 0

    def __enter__(self) -> NodeDaemon:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, on the port that it had before."""
        words = ["-m", "gpuspawner", "node", "serve", "--folder", str(self.folder)]
        words += ["--listen", "127.0.0.1", "--port", str(self.port)]
        words += ["--engine-socket", str(self._engine_socket)]
        self._process = subprocess.Popen(
            [sys.executable, *words],
            env=environment(self.library, self.state_path, PYTHONPATH=str(ROOT)),
            stdout=subprocess.PIPE,
            stderr=(self.folder / "log").open("a"),
            text=True,
        )
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line.startswith("listening on port "), (self.folder / "log").read_text()
        self.port = int(line.split()[3].rstrip(","))

    @property
    def address(self) -> NodeAddress:
        """The address by which a hub knows it."""
        return NodeAddress(self.name, "127.0.0.1", self.port, self.identity.fingerprint)

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self.folder / "log").read_text()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Kill it, if it runs."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdout
            process.stdout.close()
