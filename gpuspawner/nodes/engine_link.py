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
from ..i18n.lazy_text import lazy_gettext
from ..timeouts import within
from ..untrusted import parse_json

MAX_LINE_BYTES = 1_048_576
# How long what the engine says of itself is kept.
ABOUT_SECONDS = 60.0
ABOUT_TIMEOUT = 1.0
IMAGES_TIMEOUT = CONTAINERS_TIMEOUT = 4.0
DOCTOR_TIMEOUT = 80.0


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
        if self._socket is None:
            raise _gone()
        writer = None
        try:
            reader, writer = await asyncio.open_unix_connection(
                str(self._socket), limit=MAX_LINE_BYTES
            )
            writer.write(json.dumps(request).encode() + b"\n")
            await writer.drain()
            while line := await reader.readline():
                yield dict(parse_json(line))
        except (OSError, TypeError, ValueError):
            raise _gone() from None
        finally:
            if writer is not None:
                with suppress(OSError, RuntimeError):
                    writer.close()


def _gone() -> EnginePartError:
    return EnginePartError(
        lazy_gettext("The part of the machine's daemon that asks Docker doesn't run.")
    )
