"""Images that a hub sends to this machine's engine: one at a time, checked before and after.

A part of `engine_part`. The archive has no names (`image_archive`), and what was loaded has to be
the image that was promised, by its id. It gets a name that nothing else has, so that the engine
doesn't take it for a leftover.
"""

from __future__ import annotations

import asyncio
import os
import queue
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import docker
import docker.errors

from ..errors import GPUSpawnerError
from ..timeouts import within
from .image_archive import ArchiveCheck, ArchiveRefused
from .node_images import is_image_id, largest_archive

# What an image that was sent is called: its id is the tag.
REPOSITORY = "gpuspawner/spread"
MAX_IMAGE_BYTES = 2**40
# How long the next part of an archive may take, and the engine to unpack it, in seconds.
PART_SECONDS = 120.0
UNPACK_SECONDS = 3600
MAX_PART_BYTES = 4 * 2**20
_WAITING = 8
_LOADED = re.compile(r"Loaded image(?: ID)?: (sha256:[0-9a-f]{64})")


class LoadRefused(GPUSpawnerError):
    """An image isn't loaded. `str()` is a sentence for administrators."""


class ImageLoader:
    """Loads images that are sent.

    Args:
        make_client: returns a client of the engine with a timeout in seconds.
    """

    def __init__(self, make_client: Callable[[int], docker.APIClient]) -> None:
        self._make_client = make_client
        self._is_busy = False

    async def load(
        self,
        image_id: Any,
        size: Any,
        reader: asyncio.StreamReader,
        send: Callable[[Mapping[str, Any]], None],
    ) -> str:
        """Load the image that comes by a stream; return its id.

        Args:
            image_id: the id that it has to have.
            size: the image's size in bytes.
            reader: the archive, in parts with their length before them; one of 0 bytes is the end.
            send: called when the archive may come.

        Raises:
            LoadRefused: it isn't loaded.
            ValueError: that can't be asked.
            docker.errors.DockerException, OSError: the engine can't be asked.
        """
        if not isinstance(image_id, str) or not is_image_id(image_id):
            raise ValueError("no id of an image")
        if type(size) is not int or not 0 < size <= MAX_IMAGE_BYTES:
            raise ValueError("no size")
        if self._is_busy:
            raise LoadRefused("another image is loaded there now")
        self._is_busy = True
        try:
            client = await asyncio.to_thread(self._make_client, UNPACK_SECONDS)
            try:
                if not await asyncio.to_thread(_is_there, client, image_id):
                    await asyncio.to_thread(_check_room, client, size)
                    send({"go": True})
                    await self._receive(client, image_id, size, reader)
                await asyncio.to_thread(_keep, client, image_id)
            finally:
                client.close()
        finally:
            self._is_busy = False
        return image_id

    async def _receive(
        self, client: docker.APIClient, image_id: str, size: int, reader: asyncio.StreamReader
    ) -> None:
        parts: queue.Queue[bytes | None] = queue.Queue(_WAITING)
        loading = asyncio.ensure_future(asyncio.to_thread(_load, client, image_id, parts))
        total = 0
        try:
            while not loading.done():
                part = await _next_part(reader)
                total += len(part)
                if total > largest_archive(size):
                    raise LoadRefused("it is larger than the hub has said")
                await _put(parts, part, loading)
                if not part:
                    break
        except (EOFError, ValueError, asyncio.TimeoutError):
            raise LoadRefused("it is broken off") from None
        finally:
            await _put(parts, None, loading)
            # Not before the engine has let go of it: the next one may come then.
            await asyncio.wait([loading])
            failed = loading.exception()
        if failed is not None:
            raise failed


async def _next_part(reader: asyncio.StreamReader) -> bytes:
    (length,) = struct.unpack(">I", await within(PART_SECONDS, reader.readexactly(4)))
    if length > MAX_PART_BYTES:
        raise ValueError("a part is too long")
    return await within(PART_SECONDS, reader.readexactly(length))


async def _put(
    parts: queue.Queue[bytes | None], part: bytes | None, loading: asyncio.Future[None]
) -> None:
    while not loading.done():
        with suppress(queue.Full):
            return parts.put_nowait(part)
        await asyncio.sleep(0.01)
    return None


def _load(client: docker.APIClient, image_id: str, parts: queue.Queue[bytes | None]) -> None:
    """Load an archive, and see that it was the image; blocks."""
    before = set(client.images(quiet=True, all=True))
    loaded: set[str] = set()
    try:
        for event in client.load_image(_checked(parts)) or ():
            if "error" in event:
                raise LoadRefused(f"the Docker Engine there says: {str(event['error'])[:300]}")
            loaded |= set(_LOADED.findall(str(event.get("stream") or "")))
    except ArchiveRefused as error:
        raise LoadRefused(f"what was sent isn't the image: {error}") from None
    if not _is_there(client, image_id):
        _remove(client, loaded - before)
        raise LoadRefused(
            "what was loaded isn't the image by its id: the Docker Engine there keeps its images "
            "in another kind of store, or what was sent is another image"
        )


def _checked(parts: queue.Queue[bytes | None]) -> Iterator[bytes]:
    check = ArchiveCheck()
    while part := parts.get():
        check.feed(part)
        yield part
    if part is None:
        raise ArchiveRefused("it is broken off")
    check.finish()


def _is_there(client: docker.APIClient, image_id: str) -> bool:
    try:
        return bool(client.inspect_image(image_id)["Id"] == image_id)
    except docker.errors.NotFound:
        return False


def _keep(client: docker.APIClient, image_id: str) -> None:
    client.tag(image_id, REPOSITORY, tag=image_id.partition(":")[2])


def _remove(client: docker.APIClient, ids: Iterable[str]) -> None:
    for each in ids:
        with suppress(docker.errors.APIError):  # somebody uses it already
            client.remove_image(each)


def _check_room(client: docker.APIClient, size: int) -> None:
    """Raise `LoadRefused` if the disk is too full: the engine has it twice for a while."""
    with suppress(OSError):  # its folder can't be seen from here: the engine says it itself
        disk = os.statvfs(str(client.info().get("DockerRootDir") or ""))
        free = disk.f_bavail * disk.f_frsize
        if free < 2 * size:
            raise LoadRefused(
                f"the disk there has {free / 1e9:.1f} GB left, and the image takes "
                f"{2 * size / 1e9:.1f} GB while it is loaded"
            )
