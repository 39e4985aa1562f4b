"""The part of a node's daemon that may ask the engine, and doesn't listen on the network.

It says which containers have GPUs and which images there are, has the engine get one or take one
that is sent, runs the doctor's checks of a machine, and removes volumes of the doctor's own that no
container has; nothing that it is sent makes a container, names a file or changes the engine.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker
import docker.errors

from ..backends.docker import errors as engine_errors
from ..backends.docker.given import GivenContainers
from ..backends.docker.pull import PullFailed, Pulls
from ..doctor.command import entry
from ..doctor.findings import Context, examine
from ..doctor.node_checks import NODE_CHECKS
from ..doctor.own_volumes import remove_unused
from ..doctor.toolkit import installed_version
from ..i18n.lazy_text import kept
from ..images.catalogue import is_reference
from ..timeouts import within
from ..untrusted import parse_json
from .engine_link import MAX_LINE_BYTES
from .image_loading import ImageLoader, LoadRefused

# What systemd passes a service whose socket it listens on. ref: sd_listen_fds(3)
FIRST_SOCKET = 3
REQUEST_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 10.0
ENGINE_SECONDS = 20
# How long what still comes is read after the answer.
LINGER_SECONDS = 5.0
# The most images that are fetched at a time: a hub asks for those that its users start.
MAX_PULLS = 32

Send = Callable[[Mapping[str, Any]], None]


class EnginePart:
    """Answers what the daemon asks of the engine."""

    def __init__(self) -> None:
        self._client: docker.APIClient | None = None
        self._pulls = Pulls()
        self._examining = asyncio.Lock()
        self._given = GivenContainers()
        self._loader = ImageLoader(_connect)

    async def serve(self, listening: socket.socket) -> None:
        """Answer on a socket for ever."""
        server = await asyncio.start_unix_server(self._handle, sock=listening, limit=MAX_LINE_BYTES)
        async with server:
            await server.serve_forever()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def send(event: Mapping[str, Any]) -> None:
            if not writer.is_closing():
                writer.write(json.dumps(event).encode() + b"\n")

        try:
            line = await within(REQUEST_SECONDS, reader.readline())
            await self._answer(parse_json(line), reader, send)
        except (KeyError, TypeError, ValueError, asyncio.TimeoutError):
            send({"error": "this can't be asked"})
        except LoadRefused as error:
            send({"error": str(error)})
        except (docker.errors.DockerException, OSError) as error:
            self._client = None
            send({"error": kept(engine_errors.explain(error))})
        finally:
            with suppress(OSError, RuntimeError, asyncio.TimeoutError):
                await writer.drain()
                writer.write_eof()
                # Who still sends an image would lose the answer, were the connection gone.
                await within(LINGER_SECONDS, _read_to_end(reader))
            with suppress(OSError, RuntimeError):
                writer.close()

    async def _answer(
        self, request: Mapping[str, Any], reader: asyncio.StreamReader, send: Send
    ) -> None:
        match request["do"]:
            case "about":
                send({"done": await asyncio.to_thread(self._versions)})
            case "containers":
                send({"done": await asyncio.to_thread(self._containers)})
            case "images":
                names = [str(each) for each in request["references"]]
                send({"done": await asyncio.to_thread(self._images, names)})
            case "doctor":
                async with self._examining:
                    send({"done": await asyncio.to_thread(_examine)})
            case "leftovers":
                send({"done": await asyncio.to_thread(self._leftovers)})
            case "pull":
                await self._pull(str(request["reference"]), str(request["policy"]), send)
            case "load":
                wanted = request["id"], request["size"]
                loaded = await self._loader.load(*wanted, reader, send)
                send({"done": await asyncio.to_thread(self._image, loaded)})
            case _:
                raise ValueError("no such thing")

    def _engine(self) -> docker.APIClient:
        if self._client is None:
            self._client = _connect(ENGINE_SECONDS)
        return self._client

    def _versions(self) -> dict[str, str | None]:
        toolkit = installed_version()
        found: dict[str, str | None] = {
            "toolkit": ".".join(map(str, toolkit)) if toolkit else None,
            "engine": None,
        }
        with suppress(docker.errors.DockerException, OSError):
            found["engine"] = str(self._engine().version().get("Version") or "") or None
        return found

    def _containers(self) -> list[dict[str, Any]]:
        return self._given(self._engine())

    def _leftovers(self) -> list[str]:
        return remove_unused(self._engine())

    def _images(self, references: list[str]) -> dict[str, Any]:
        return {each: self._image(each) for each in references}

    def _image(self, reference: str) -> dict[str, Any] | None:
        if not is_reference(reference):
            return None
        try:
            found = self._engine().inspect_image(reference)
        except docker.errors.NotFound:
            return None
        return {"id": found["Id"], "digests": list(found.get("RepoDigests") or [])}

    async def _pull(self, reference: str, policy: str, send: Send) -> None:
        if not is_reference(reference):
            raise ValueError("no image reference")

        async def inspect(image: str) -> Any:
            return await asyncio.to_thread(self._engine().inspect_image, image)

        def stream(repository: str, tag: str) -> Any:
            engine = self._engine()
            engine.reload_config()  # the administrator may have logged in to the registry
            return engine.pull(repository, tag=tag, stream=True, decode=True)

        def report(fraction: float, sentence: str) -> None:
            send({"fraction": fraction, "sentence": kept(sentence)})

        beating = asyncio.ensure_future(_keep_alive(send))
        try:
            await asyncio.to_thread(self._engine)
            await self._pulls.ensure(reference, policy, inspect, stream, report, MAX_PULLS)
            send({"done": await asyncio.to_thread(self._image, reference)})
        except PullFailed as error:
            send({"error": kept(str(error)), "said": error.said[:500]})
        finally:
            beating.cancel()


def _connect(seconds: int) -> docker.APIClient:
    return docker.APIClient(os.environ.get("DOCKER_HOST"), version="auto", timeout=seconds)


async def _keep_alive(send: Send) -> None:
    """Say every few seconds that the pull goes on: a registry may be silent for long."""
    while True:
        await asyncio.sleep(KEEP_ALIVE_SECONDS)
        send({})


def _examine() -> list[dict[str, str]]:
    context = Context(None, Path("/"))
    try:
        return [
            entry(title, finding)
            for title, finding in examine(NODE_CHECKS, context, lambda _: None)
        ]
    finally:
        if context.engine:
            context.engine.close()


def listening_socket(path: Path | None) -> socket.socket:
    """Return the socket to answer on: the one that systemd passes, else one at a path.

    Raises:
        OSError: it can't be had.
        ValueError: systemd passes none, and there is no path.
    """
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        return socket.socket(fileno=FIRST_SOCKET)
    if path is None:
        raise ValueError("no socket")
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listening.bind(str(path))
    finally:
        os.umask(before)
    return listening


async def _read_to_end(reader: asyncio.StreamReader) -> None:
    while await reader.read(65536):
        pass
