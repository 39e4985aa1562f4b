"""A real image registry that a simulated host's engine can reach, slowed down or broken at will."""

from __future__ import annotations

import ctypes
import http.client
import io
import os
import re
import shutil
import socket
import socketserver
import ssl
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import docker
import requests

from .hubs import free_port, until

PROGRAM = "docker-registry"
CLONE_NEWNET = 0x40000000
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"

CONFIG = """
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""

# What a fault does with an answer: it is given the answer's status, headers and body, and returns
# what is sent in its place.
Answer = tuple[int, dict[str, str], bytes]
Fault = Callable[[Answer], Answer]


class Registry:
    """A registry, and before it a door through which the engine comes to it.

    The registry listens on the host's loopback, the door on loopback in the engine's own network
    namespace, where an engine speaks HTTP. What goes through the door is what a test breaks.
    """

    def __init__(self, folder: Path, engine_pid: int) -> None:
        self._folder = folder
        self._engine_pid = engine_pid
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._doors: list[ThreadingHTTPServer] = []
        self.faults: dict[str, Fault] = {}
        """Pattern of a path -> what happens to its answers to GET and HEAD."""
        self.paths: list[str] = []
        """What was asked for, in order."""
        self.login = ""
        """What a request's `Authorization` must be, where it isn't ""."""
        self.gate = threading.Event()
        """While it isn't set, the second half of a large layer is held back."""
        self.gate.set()
        self.name = ""
        """The registry's name in an image reference."""

    def reset(self) -> None:
        """Mend everything, and forget what was asked for."""
        self.faults, self.login = {}, ""
        self.gate.set()
        self.paths.clear()

    def start(self) -> None:
        """Start the registry and its door."""
        config = self._folder / "config.yml"
        config.write_text(CONFIG.format(folder=self._folder / "storage", port=self._port))
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [shutil.which(PROGRAM) or PROGRAM, "serve", str(config)], stdout=log, stderr=log
            )
        until(self._answers, "the registry answers")
        self.name = self.open_door("127.0.0.1")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text()
        try:
            socket.create_connection(("127.0.0.1", self._port), 1).close()
        except OSError:
            return False
        return True

    def open_door(self, address: str, context: ssl.SSLContext | None = None) -> str:
        """Listen on another address of the engine's namespace; return its name in a reference."""
        door = ThreadingHTTPServer(("", 0), _Door, bind_and_activate=False)
        door.registry = self  # type: ignore[attr-defined]
        self._doors.append(door)
        return "{}:{}".format(*serve_inside(self._engine_pid, address, door, context))

    def open_for(self, engine_pid: int) -> None:
        """Listen in another engine's namespace too, by the same name."""
        address, _, port = self.name.rpartition(":")
        door = ThreadingHTTPServer(("", 0), _Door, bind_and_activate=False)
        door.registry = self  # type: ignore[attr-defined]
        self._doors.append(door)
        serve_inside(engine_pid, address, door, port=int(port))

    def stop(self) -> None:
        """End it."""
        self.gate.set()
        for door in self._doors:
            door.shutdown()
            door.server_close()
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    @property
    def port(self) -> int:
        """Where the registry itself listens."""
        return self._port


class _Door(BaseHTTPRequestHandler):
    """Passes a request on to the registry, and its answer back, as the test wants it."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _pass(self) -> None:
        registry: Registry = self.server.registry  # type: ignore[attr-defined]
        registry.paths.append(f"{self.command} {self.path}")
        body = self._body()
        connection = http.client.HTTPConnection("127.0.0.1", registry.port)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():  # some come several times
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        told = (answer.status, dict(answer.getheaders()), answer.read())
        connection.close()
        if self.command in ("GET", "HEAD"):
            for pattern, fault in registry.faults.items():
                if re.search(pattern, self.path):
                    told = fault(told)
        if registry.login not in ("", self.headers.get("Authorization")):
            told = refused(401, "UNAUTHORIZED", "authentication required")(told)
        self._send(*told, registry)

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while length := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(
        self, status: int, headers: Mapping[str, str], body: bytes, registry: Registry
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("date", "server", "connection"):
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        half = len(body) // 2
        try:
            if len(body) > 1e6 and not registry.gate.is_set():
                self.wfile.write(body[:half])
                self.wfile.flush()
                registry.gate.wait()
                self.wfile.write(body[half:])
            else:
                self.wfile.write(body)
            if len(body) < int(headers.get("Content-Length") or len(body)):
                self.close_connection = True  # a fault has cut it
        except OSError:  # the engine gave up
            self.close_connection = True


def serve_inside(
    pid: int,
    address: str,
    server: socketserver.ThreadingTCPServer,
    context: ssl.SSLContext | None = None,
    port: int = 0,
) -> tuple[str, int]:
    """Let a server that has no socket yet serve in a process's network namespace; (IP, port)."""
    server.socket.close()
    server.socket = _listening_inside(pid, address, port)
    where: tuple[str, int] = server.socket.getsockname()
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
    return where


def _listening_inside(pid: int, address: str, port: int) -> socket.socket:
    """Return a socket that listens in the network namespace of a process."""
    made: list[socket.socket | OSError] = []

    def make() -> None:
        # A namespace is a thread's, and this one ends with it.
        with Path(f"/proc/{pid}/ns/net").open() as namespace:
            library = ctypes.CDLL(None, use_errno=True)
            if library.setns(namespace.fileno(), CLONE_NEWNET):
                made.append(OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno())))
                return
        listening = socket.socket()
        listening.bind((address, port))
        listening.listen(64)
        made.append(listening)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


def refused(status: int, code: str, message: str) -> Fault:
    """Return a fault that answers with an error of the registry's protocol."""
    body = f'{{"errors": [{{"code": "{code}", "message": "{message}"}}]}}'.encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    if status == 401:
        headers["WWW-Authenticate"] = 'Basic realm="tests"'
    return lambda _: (status, headers, body)


def cut(answer: Answer) -> Answer:
    """End a large answer in its middle."""
    status, headers, body = answer
    return status, headers, body[: len(body) // 2] if len(body) > 1e6 else body


def garbled(answer: Answer) -> Answer:
    """Change a byte in a large answer."""
    status, headers, body = answer
    return status, headers, body[:-1] + bytes([body[-1] ^ 1]) if len(body) > 1e6 else body


def push(
    engine: docker.APIClient, reference: str, layers: list[dict[str, bytes]], config: str = ""
) -> None:
    """Make an image of files, push it, and remove it from the engine.

    Args:
        layers: for each, name -> content.
        config: further lines of its Dockerfile.
    """
    context = io.BytesIO()
    lines = ["FROM scratch"]
    with tarfile.open(fileobj=context, mode="w") as archive:
        for number, files in enumerate(layers):
            for name, content in files.items():
                _add(archive, f"{number}/{name}", content)
            lines.append(f"COPY {number}/ /")
        _add(archive, "Dockerfile", "\n".join([*lines, config, ""]).encode())
    context.seek(0)
    built = list(
        engine.build(
            fileobj=context, custom_context=True, tag=reference, decode=True, rm=True, nocache=True
        )
    )
    assert not [each for each in built if "error" in each], built
    for event in engine.push(reference, stream=True, decode=True):
        assert "error" not in event, event
    remove(engine, reference)


def tag(registry: Registry, name: str, old: str, new: str) -> None:
    """Give an image in the registry a second tag."""
    url = f"http://127.0.0.1:{registry.port}/v2/{name}/manifests/"
    found = requests.get(f"{url}{old}", headers={"Accept": MANIFEST}, timeout=30)
    found.raise_for_status()
    headers = {"Content-Type": found.headers["Content-Type"]}
    requests.put(f"{url}{new}", found.content, headers=headers, timeout=30).raise_for_status()


def digest(registry: Registry, name: str, tag: str) -> str:
    """Return the digest of an image in the registry."""
    url = f"http://127.0.0.1:{registry.port}/v2/{name}/manifests/{tag}"
    found = requests.head(url, headers={"Accept": MANIFEST}, timeout=30)
    return found.headers["Docker-Content-Digest"]


def remove(engine: docker.APIClient, reference: str) -> None:
    """Remove an image and what it is made of, so that it has to be pulled again."""
    engine.remove_image(reference, force=True)
    engine.prune_images(filters={"dangling": True})


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    about = tarfile.TarInfo(name)
    about.size, about.mode, about.mtime = len(content), 0o755, int(time.time())
    archive.addfile(about, io.BytesIO(content))


@contextmanager
def running(folder: Path, engine_pid: int) -> Iterator[Registry]:
    """Give a registry, and end it."""
    registry = Registry(folder, engine_pid)
    try:
        registry.start()
        yield registry
    finally:
        registry.stop()
