"""A second backend: servers are processes of this machine. It knows nothing of Docker."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from jupyterhub.spawner import Spawner
from traitlets import Unicode

from gpuspawner.backends.base import Report
from gpuspawner.base_spawner import BaseGPUSpawner
from gpuspawner.gpus.model import Request
from gpuspawner.leases.clock import Deadline
from gpuspawner.leases.labels import LABEL_HUB, ServerRecord, labels
from gpuspawner.leases.ledger import Reservation
from gpuspawner.leases.notes import Notes
from gpuspawner.leases.server_run import ServerRun

# Says what a variable of its environment is, as long as it lives: the last word of the address.
SERVER = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ.get(self.path.rpartition("/")[2], "").encode())
    def log_message(self, *words):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@dataclass
class _Server:
    labels: Mapping[str, str]
    environment: Mapping[str, str]
    port: int
    extended: Deadline | None = None
    created: float = field(default_factory=time.time)
    process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None


class ProcessBackend:
    """The processes that this hub has started."""

    def __init__(self) -> None:
        self.servers: dict[str, _Server] = {}
        self._ids = itertools.count()

    def create(self, labels: Mapping[str, str], environment: Mapping[str, str]) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        server_id = f"process-{next(self._ids)}"
        self.servers[server_id] = _Server(labels, environment, port)
        return server_id

    async def list(self) -> Sequence[ServerRecord]:
        return [
            ServerRecord(
                server_id,
                each.labels,
                "created" if each.process is None else "running" if each.runs else "ended",
                each.created,
            )
            for server_id, each in self.servers.items()
        ]

    async def start(self, server_id: str) -> None:
        server = self.servers[server_id]
        server.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(server.port)],
            env={"PATH": os.defpath, **server.environment},
        )

    async def remove(self, server_id: str) -> None:
        server = self.servers.pop(server_id, None)
        if server and server.process:
            server.process.kill()
            await asyncio.to_thread(server.process.wait)

    async def stop(self, server_id: str) -> None:
        server = self.servers.get(server_id)
        if server and server.process:
            server.process.terminate()
            await asyncio.to_thread(server.process.wait)
        await self.remove(server_id)

    async def remove_unstarted(self, server_id: str) -> None:
        if self.servers[server_id].process is None:
            del self.servers[server_id]

    sees_processes = False
    divides_gpus = True

    async def signal_inside(self, server_id: str, pid: int, number: int) -> None:
        raise AssertionError("these servers have no control groups, so nobody is ended in them")

    async def keep_end(self, server_id: str, end: Deadline) -> None:
        self.servers[server_id].extended = end

    async def runs(self, server_ids: Collection[str]) -> Mapping[str, ServerRun]:
        known = {name: self.servers[name] for name in server_ids if name in self.servers}
        return {name: ServerRun(each.created) for name, each in known.items()}

    def watch(self, notice: Callable[[], None]) -> _Watcher:
        return _Watcher(self, notice)

    async def notes(self) -> Notes:
        ends = {name: each.extended for name, each in self.servers.items() if each.extended}
        return Notes(ends=ends)

    def close(self) -> None:
        pass

    async def has_image(self, image: str) -> bool:
        return True

    async def pull(self, image: str, policy: str, report: Report) -> None:
        report(1.0, "A process needs no image")


class _Watcher:
    """Looks again and again which processes run."""

    def __init__(self, backend: ProcessBackend, notice: Callable[[], None]) -> None:
        self._backend = backend
        self._notice = notice
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._task = asyncio.ensure_future(self._follow())

    def end(self) -> None:
        if self._task:
            self._task.cancel()

    async def _follow(self) -> None:
        last = None
        while True:
            now = {name for name, each in self._backend.servers.items() if each.runs}
            if now != last:
                last = now
                self._notice()
            await asyncio.sleep(0.1)


class ProcessSpawner(BaseGPUSpawner, Spawner):
    """Servers as processes, with queue, ends and form as every GPU spawner has them."""

    image = Unicode("none", config=True)
    pull_policy = Unicode("ifnotpresent", config=True)
    _server_id = ""

    def make_backend(self) -> ProcessBackend:
        return ProcessBackend()

    def explain(self, error: BaseException) -> str:
        return str(error)

    def explain_unknown(self, error: BaseException) -> str:
        return str(error)

    @property
    def server_key(self) -> str:
        return str(self.holder)

    @property
    def server_id(self) -> str:
        return self._server_id

    async def remove_leftovers(self, request: Request) -> None:
        await self.backend.remove(self._server_id)

    async def create_server(self, reservation: Reservation) -> str:
        assert self.attempt.request
        uuids = sorted(reservation.units)
        lease = labels(
            self.holder, self.attempt.request.image, uuids, reservation.until, self.groups
        )
        assert isinstance(self.backend, ProcessBackend)
        self._server_id = self.backend.create(
            {**lease, LABEL_HUB: self.hub_address},
            {**self.get_env(), "NVIDIA_VISIBLE_DEVICES": ",".join(uuids) or "void"},
        )
        return self._server_id

    async def verify_server(self, server_id: str, reservation: Reservation) -> None:
        pass

    async def start_server(self, server_id: str) -> None:
        await self.backend.start(server_id)

    async def await_server(self, server_id: str) -> tuple[str, int]:
        port = self._process(server_id).port
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return "127.0.0.1", port
            await asyncio.sleep(0.02)

    async def poll(self) -> int | None:
        assert isinstance(self.backend, ProcessBackend)
        server = self.backend.servers.get(self._server_id)
        return None if server and server.runs else 0

    async def stop_server(self, now: bool) -> None:
        await self.backend.remove(self._server_id)

    def _process(self, server_id: str) -> Any:
        assert isinstance(self.backend, ProcessBackend)
        return self.backend.servers[server_id]
