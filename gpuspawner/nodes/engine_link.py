"""How the daemon asks the part of it that may ask the engine: a line of JSON on a Unix socket.

Whoever may use the engine's socket is root on the machine. So what listens on the network may not;
the other part, `engine_part`, does a few things for it and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import GPUSpawnerError
from ..i18n.lazy_text import lazy_gettext, restored
from ..timeouts import within
from ..untrusted import parse_json

MAX_LINE_BYTES = 1_048_576
# How long what the engine says of itself is kept.
ABOUT_SECONDS = 60.0
ABOUT_TIMEOUT = 1.0
IMAGES_TIMEOUT = CONTAINERS_TIMEOUT = 4.0
LEFTOVERS_TIMEOUT = 10.0
DOCTOR_TIMEOUT = 80.0
# For an image that is sent: until it may come, for each part of it, and until it is unpacked.
BEGIN_TIMEOUT = 60.0
PART_TIMEOUT = 120.0
UNPACK_TIMEOUT = 3700.0


class EnginePartError(GPUSpawnerError):
    """The part that may ask the engine can't be asked. `str()` is a sentence for users."""


class EngineLink:
    """Asks the part that may ask the engine.

    Args:
        socket: its socket; None: there is none on this machine.
    """

    def __init__(self, socket: Path | None) -> None:
        self._socket = socket
        self._about: Mapping[str, Any] = {}
        self._asked = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    async def about(self) -> Mapping[str, Any]:
        """Return the versions of "engine" and "toolkit"; {} if they aren't known."""
        if self._asking is None and time.monotonic() - self._asked > ABOUT_SECONDS:
            self._asked = time.monotonic()
            self._asking = asyncio.ensure_future(self._ask_about())
        if self._asking is not None and not self._about:
            # Nobody waits longer for this than for the GPUs.
            await asyncio.wait([self._asking], timeout=ABOUT_TIMEOUT)
        return self._about

    async def _ask_about(self) -> None:
        try:
            self._about = dict(await self._answer({"do": "about"}, IMAGES_TIMEOUT))
        except (EnginePartError, TypeError, ValueError):
            self._about = {}
        finally:
            self._asking = None

    async def containers(self) -> list[Mapping[str, Any]]:
        """Return the containers that run with GPUs, as `given.GivenContainers` does.

        Raises:
            EnginePartError: it can't be asked.
        """
        return list(await self._answer({"do": "containers"}, CONTAINERS_TIMEOUT))

    async def images(self, references: Sequence[str]) -> Mapping[str, Any]:
        """Return reference -> {"id": …, "digests": […]}, or None if the engine hasn't got it.

        Raises:
            EnginePartError: it can't be asked.
        """
        request = {"do": "images", "references": list(references)}
        return dict(await self._answer(request, IMAGES_TIMEOUT))

    async def doctor(self) -> list[Mapping[str, str]]:
        """Return what the doctor finds; raises `EnginePartError` if it can't be asked."""
        return list(await self._answer({"do": "doctor"}, DOCTOR_TIMEOUT))

    async def leftovers(self) -> list[str]:
        """Have the doctor's unused volumes removed; return the names of those that are used.

        Raises:
            EnginePartError: it can't be asked.
        """
        return list(await self._answer({"do": "leftovers"}, LEFTOVERS_TIMEOUT))

    async def pull(self, reference: str, policy: str) -> AsyncIterator[Mapping[str, Any]]:
        """Have the engine get an image; yield the progress, and {"done"} or {"error"} at last.

        Raises:
            EnginePartError: it can't be asked.
        """
        events = self._events({"do": "pull", "reference": reference, "policy": policy})
        async for event in events:
            yield event
            if "done" in event or "error" in event:
                return
        raise _gone()

    async def load(self, image_id: str, size: int) -> ImageLink:
        """Begin to have the engine take an image; raises `EnginePartError` if it doesn't.

        Args:
            image_id: the image's id.
            size: its size in bytes.
        """
        link = ImageLink(*await self._connect())
        try:
            await link.begin({"do": "load", "id": image_id, "size": size})
        except BaseException:
            link.close()
            raise
        return link

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._socket is None:
            raise _gone()
        try:
            return await asyncio.open_unix_connection(str(self._socket), limit=MAX_LINE_BYTES)
        except OSError:
            raise _gone() from None

    async def _answer(self, request: Mapping[str, Any], seconds: float) -> Any:
        async def first() -> Any:
            async for event in self._events(request):
                if "error" in event:
                    raise EnginePartError(str(event["error"]))
                return event.get("done")
            raise _gone()

        try:
            return await within(seconds, first())
        except asyncio.TimeoutError:
            raise EnginePartError(
                lazy_gettext(
                    "The Docker Engine didn't answer within %(seconds)s seconds.",
                    seconds=f"{seconds:g}",
                )
            ) from None

    async def _events(self, request: Mapping[str, Any]) -> AsyncIterator[Mapping[str, Any]]:
        reader, writer = await self._connect()
        try:
            writer.write(json.dumps(request).encode() + b"\n")
            await writer.drain()
            while line := await reader.readline():
                yield dict(parse_json(line))
        except (OSError, TypeError, ValueError):
            raise _gone() from None
        finally:
            with suppress(OSError, RuntimeError):
                writer.close()


class ImageLink:
    """An image on its way to the part that may ask the engine.

    Args:
        reader, writer: the connection.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        # What the engine has, once it has it.
        self.image: Any = None
        # It may say at any time that it won't, and then it reads no more.
        self._answering: asyncio.Task[bytes] | None = None

    async def begin(self, request: Mapping[str, Any]) -> None:
        """Ask; the image is there already if `image` is set then."""
        self._writer.write(json.dumps(request).encode() + b"\n")
        await self._take(BEGIN_TIMEOUT)
        self._answering = asyncio.ensure_future(self._reader.readline())

    async def send(self, part: bytes) -> None:
        """Send the next part of the archive; raises `EnginePartError` if it isn't taken."""
        try:
            if self._answering is not None and self._answering.done():
                raise ConnectionResetError
            self._writer.write(len(part).to_bytes(4, "big") + part)
            await within(PART_TIMEOUT, self._writer.drain())
        except (OSError, asyncio.TimeoutError):
            await self._take(IMAGES_TIMEOUT)  # why it was broken off
            raise _gone() from None

    async def end(self) -> Any:
        """Return what the engine has when it has unpacked the archive."""
        await self.send(b"")
        await self._take(UNPACK_TIMEOUT)
        return self.image

    async def _take(self, seconds: float) -> None:
        """Take the next answer; raises `EnginePartError` if it is that it won't."""
        try:
            answering, self._answering = self._answering or self._reader.readline(), None
            answer = dict(parse_json(await within(seconds, answering)))
        except (OSError, TypeError, ValueError, asyncio.TimeoutError):
            raise _gone() from None
        if "error" in answer:
            raise EnginePartError(str(restored(answer["error"])))
        self.image = answer.get("done")

    def close(self) -> None:
        """End it, whole or not."""
        answering = self._answering
        if answering is not None and not answering.cancel() and not answering.cancelled():
            answering.exception()  # retrieved: nobody asks for it
        with suppress(OSError, RuntimeError):
            self._writer.close()


def _gone() -> EnginePartError:
    return EnginePartError(
        lazy_gettext("The part of the machine's daemon that asks Docker doesn't run.")
    )
