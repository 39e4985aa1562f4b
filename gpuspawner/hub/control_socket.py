"""The hub's own door for pages that aren't the hub: who waits, whose time ends, and more time.

A Unix socket in the hub's folder that only the hub's own account can open: a service started by the
hub can, users can't. Who may ask for what is for the service to know, which has its users' log-in.
One line of JSON each way, then the connection is closed:

    {"do": "status"}          -> {"queue": […], "leases": […], "survey": {…}, …}
    {"do": "extend", "user": "ada", "server": "", "hours": 1}   -> {"until": 1764090000.0}
    {"do": "here", "user": "ada", "server": ""}                 -> {}

or {"error": "a sentence", "status": 409, "sentence": …}, the sentence once more, for `restored`.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..choices.options import Refused
from ..gpus.model import Holder
from ..i18n.lazy_text import kept, lazy_gettext
from ..scheduling.queue import Queue, QueueEntry

MAX_LINE = 4096
TIMEOUT_SECONDS = 5.0


class ControlSocket:
    """Answer on a socket.

    Args:
        path: where the socket is, relative to the hub's folder.
        queue: who waits.
        servers: lists the servers that hold GPUs, `TimedSpawner`s.
        log: a logger.
        survey: how this hub reads the host, as the arguments of `reader.read_node`.
    """

    def __init__(
        self,
        path: str,
        queue: Queue,
        servers: Callable[[], Iterable[Any]],
        log: Any,
        survey: Mapping[str, Any],
    ) -> None:
        self._survey = survey
        self._path = Path(path)
        self._queue = queue
        self._servers = servers
        self._log = log
        self._server: asyncio.AbstractServer | None = None

    async def begin(self) -> None:
        """Open the socket, in place of one that a killed hub left."""
        if _somebody_answers(self._path):
            self._log.warning(
                "Another hub answers on %s: give each its own c.GPUSpawner.control_socket",
                self._path,
            )
            return
        try:
            self._path.unlink(missing_ok=True)
            # Nobody else may open it, not even between its making and a chmod.
            mask = os.umask(0o177)
            try:
                self._server = await asyncio.start_unix_server(
                    self._answer, str(self._path), limit=MAX_LINE
                )
            finally:
                os.umask(mask)
        except OSError as error:
            self._log.warning(
                "c.GPUSpawner.control_socket = %r can't be opened (%s): pages won't show who waits",
                str(self._path),
                error,
            )

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), TIMEOUT_SECONDS)
            answer = await self._do(json.loads(line))
        except Refused as error:
            sentence = str(error)
            answer = {"error": sentence, "sentence": kept(sentence), "status": error.status}
        except Exception as error:  # nobody is left waiting for an answer
            self._log.warning("A question on %s wasn't understood", self._path, exc_info=True)
            answer = {"error": f"not understood: {error}", "status": 400}
        with suppress(OSError):
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()

    async def _do(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        if asked["do"] == "status":
            await asyncio.gather(*(spawner.know_rules() for spawner in self._servers()))
            return self.status()
        spawner = self._find(Holder(asked["user"], asked["server"]))
        await spawner.know_rules()
        if asked["do"] == "extend":
            return {"until": spawner.extend(asked.get("hours"))}
        if asked["do"] == "here":
            spawner.still_here()
            return {}
        raise ValueError(f"do: {asked['do']!r}")

    def status(self) -> dict[str, Any]:
        """Return who waits and whose time ends, as a value for JSON; times since the epoch."""
        return {
            "now": time.time(),
            "order": self._queue.rules.order,
            "survey": dict(self._survey),
            "queue": [_entry(entry) for entry in self._queue.waiting],
            "leases": [spawner.lease_facts() for spawner in self._servers()],
        }

    def _find(self, holder: Holder) -> Any:
        for spawner in self._servers():
            if spawner.holder == holder:
                return spawner
        raise Refused(
            lazy_gettext("%(holder)s has no server with GPUs that runs now.", holder=str(holder)),
            404,
        )


def _entry(entry: QueueEntry) -> dict[str, Any]:
    turn = entry.turn
    return {
        "user": entry.holder.user,
        "server": entry.holder.server,
        "gpus": entry.waiting.request.gpus,
        "model": entry.waiting.request.model,
        "since": entry.waiting.since,
        "place": turn.place if turn else None,
        "start": turn.start if turn else None,
        "because": turn.because if turn else "",
    }


def _somebody_answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


async def ask(path: str, question: Mapping[str, Any]) -> dict[str, Any]:
    """Ask the hub through its socket.

    Raises:
        OSError: no hub answers.
        ValueError: what answers is no hub.
    """
    reader, writer = await asyncio.wait_for(asyncio.open_unix_connection(path), TIMEOUT_SECONDS)
    try:
        writer.write(json.dumps(question).encode() + b"\n")
        line = await asyncio.wait_for(reader.read(), TIMEOUT_SECONDS)
    except asyncio.TimeoutError as error:
        raise OSError("the hub doesn't answer") from error
    finally:
        writer.close()
    return json.loads(line)
