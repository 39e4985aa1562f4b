"""The part of a daemon that asks the engine takes an image, and an engine's answers."""

from __future__ import annotations

import asyncio
import io
import json
import socketserver
import tarfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest

from gpuspawner.nodes import image_loading
from gpuspawner.nodes.engine_link import EngineLink, EnginePartError
from gpuspawner.nodes.engine_part import EnginePart, listening_socket
from gpuspawner.nodes.image_loading import REPOSITORY

ID, OTHER = (f"sha256:{number * 64}" for number in "12")
SIZE = 1_000_000


def archive(tags: Any = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as made:
        for name, content in (
            ("blobs/sha256/1", b"layer" * 50_000),
            ("manifest.json", json.dumps([{"RepoTags": tags}]).encode()),
        ):
            about = tarfile.TarInfo(name)
            about.size = len(content)
            made.addfile(about, io.BytesIO(content))
    return out.getvalue()


class Engine(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """An engine's API for images: what it has, and what it has when an archive was loaded."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Answers)
        self.images: set[str] = set()
        self.loads = ID
        self.fails = ""
        self.loaded = b""
        self.tags: list[str] = []
        self.removed: list[str] = []
        self.folder = str(path.parent)
        self.goes_on = threading.Event()
        self.goes_on.set()


class Answers(BaseHTTPRequestHandler):
    """Answers as the engine does, to docker-py."""

    protocol_version = "HTTP/1.1"
    server: Engine

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def address_string(self) -> str:
        return "engine"

    def _say(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        engine = self.server
        if path.endswith("/version"):
            self._say({"ApiVersion": "1.45", "Version": "26.1.5"})
        elif path.endswith("/info"):
            self._say({"DockerRootDir": engine.folder})
        elif path.endswith("/images/json"):
            self._say([{"Id": each} for each in sorted(engine.images)])
        elif (image := path.split("/images/")[-1].removesuffix("/json")) in engine.images:
            self._say({"Id": image, "RepoDigests": []})
        else:
            self._say({"message": "No such image"}, 404)

    def do_POST(self) -> None:
        engine = self.server
        if "/tag" in self.path:
            engine.tags.append(unquote(self.path))
            self._say({}, 201)
            return
        while line := self.rfile.readline():
            length = int(line, 16)
            if not length:
                break
            engine.loaded += self.rfile.read(length)
            self.rfile.readline()
            engine.goes_on.wait()
        if not line:  # an archive that is broken off is none
            self.close_connection = True
            return
        self.rfile.readline()
        if engine.fails:
            self._say({"error": engine.fails})
            return
        engine.images.add(engine.loads)
        self._say({"stream": f"Loaded image ID: {engine.loads}\n"})

    def do_DELETE(self) -> None:
        image = unquote(self.path.partition("?")[0].split("/images/")[-1])
        self.server.removed.append(image)
        self.server.images.discard(image)
        self._say([])


@pytest.fixture
def engine(tmp_path, monkeypatch) -> Iterator[Engine]:
    made = Engine(tmp_path / "docker.sock")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    threading.Thread(target=made.serve_forever, args=[0.01], daemon=True).start()
    yield made
    made.goes_on.set()
    made.shutdown()
    made.server_close()


@asynccontextmanager
async def link_to(tmp_path: Path) -> AsyncIterator[EngineLink]:
    path = tmp_path / "part.sock"
    listening = listening_socket(path)
    listening.listen()
    serving = asyncio.ensure_future(EnginePart().serve(listening))
    try:
        yield EngineLink(path)
    finally:
        serving.cancel()


async def loaded(link: EngineLink, data: bytes, size: int = SIZE, image: str = ID) -> Any:
    sending = await link.load(image, size)
    try:
        if sending.image is None:
            for start in range(0, len(data), 60_000):
                await sending.send(data[start : start + 60_000])
            await sending.end()
        return sending.image
    finally:
        sending.close()


async def test_an_image_that_was_promised_is_there_and_has_a_name_that_keeps_it(engine, tmp_path):
    async with link_to(tmp_path) as link:
        assert await loaded(link, archive()) == {"id": ID, "digests": []}
        assert engine.loaded == archive()
        ((tag),) = engine.tags
        assert REPOSITORY in tag
        assert f"tag={'1' * 64}" in tag
        # Once more, it is there already.
        assert await loaded(link, b"") == {"id": ID, "digests": []}
        assert engine.loaded == archive()


async def test_another_image_than_was_promised_is_removed_and_gets_no_name(engine, tmp_path):
    engine.loads = OTHER
    async with link_to(tmp_path) as link:
        with pytest.raises(EnginePartError, match="isn't the image by its id"):
            await loaded(link, archive())
    assert (engine.removed, engine.tags, engine.images) == ([OTHER], [], set())


async def test_what_was_there_before_stays_also_if_it_is_sent_as_another(engine, tmp_path):
    engine.loads, engine.images = OTHER, {OTHER}
    async with link_to(tmp_path) as link:
        with pytest.raises(EnginePartError):
            await loaded(link, archive())
    assert (engine.removed, engine.images) == ([], {OTHER})


@pytest.mark.parametrize("data", [archive(["lab:1"]), archive()[:30_000], b"x" * 100_000, b""])
async def test_what_names_an_image_or_is_broken_off_is_not_loaded(engine, tmp_path, data):
    async with link_to(tmp_path) as link:
        with pytest.raises(EnginePartError, match="what was sent isn't the image"):
            await loaded(link, data)
    assert engine.images == set()
    assert b"lab:1" not in engine.loaded


async def test_an_archive_that_is_too_large_is_broken_off(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(image_loading, "largest_archive", lambda size: size)
    async with link_to(tmp_path) as link:
        with pytest.raises(EnginePartError, match="larger than the hub has said"):
            await loaded(link, archive(), 200_000)
    assert engine.images == set()


async def test_a_full_disk_is_said_before_anything_is_sent(engine, tmp_path, monkeypatch):
    disk = SimpleNamespace(f_bavail=1, f_frsize=1_000_000)
    monkeypatch.setattr(image_loading.os, "statvfs", lambda folder: disk)
    async with link_to(tmp_path) as link:
        with pytest.raises(EnginePartError, match=r"has 0\.0 GB left, and the image takes 2\.0 GB"):
            await loaded(link, archive(), 10**9)
    assert engine.loaded == b""


async def test_what_the_engine_says_against_it_is_said(engine, tmp_path):
    engine.fails = "no space left on device"
    async with link_to(tmp_path) as link:
        with pytest.raises(EnginePartError, match="no space left on device"):
            await loaded(link, archive())


async def test_one_image_comes_at_a_time_and_who_leaves_is_no_obstacle(engine, tmp_path):
    async with link_to(tmp_path) as link:
        first = await link.load(ID, SIZE)
        with pytest.raises(EnginePartError, match="another image is loaded there now"):
            await link.load(ID, SIZE)
        await first.send(archive()[:20_000])
        first.close()
        while ID not in engine.images:
            with suppress(EnginePartError):  # the first one is being given up
                await loaded(link, archive())
            await asyncio.sleep(0.01)
        assert len(engine.tags) == 1


@pytest.mark.parametrize(
    ("image", "size"), [("lab:1", SIZE), (ID, 0), (ID, -1), (ID, True), (ID, 2**50), (None, SIZE)]
)
async def test_what_makes_no_sense_can_not_be_asked(engine, tmp_path, image, size):
    async with link_to(tmp_path) as link:
        with pytest.raises(EnginePartError, match="this can't be asked"):
            await link.load(image, size)
