"""HTTP on a Unix socket, for services of the hub: who waits, whose time ends, and more time.

The socket is in the hub's folder and only the hub's own account can open it: a service that the hub
starts can, users can't. The service decides which user may ask for what: it has its users' log-in.

    GET  /status                                             -> {"queue": […], "leases": […], …}
    POST /extend  {"user": "ada", "server": "", "hours": 1}  -> {"until": 1764090000.0}
    POST /here    {"user": "ada", "server": ""}              -> {}

Who extends it is `by`, "" for its user. `over_all` says that this is an administrator, whom neither
`extend_minutes` nor the queue binds.

An error has its status, and in the body {"error": "a sentence", "status": 409, "sentence": …}: the
sentence once more, as `lazy_text.restored` takes it. The server's name is "" for the default one.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tornado import web
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.netutil import Resolver, bind_unix_socket
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from ..errors import Refused
from ..gpus.model import Holder
from ..i18n.lazy_text import kept, lazy_gettext
from ..leases.audit_log import one_line
from ..scheduling.queue import Queue, QueueEntry

# As long as the names that JupyterHub's database takes.
LONGEST_NAME = 255
LARGEST_REQUEST_BYTES = 16 * 1024
TIMEOUT_SECONDS = 5.0


class ControlSocket:
    """The hub's side of the socket.

    Args:
        path: where the socket is, relative to the hub's folder.
        queue: who waits.
        servers: lists the servers that hold GPUs, `ServerLease`s.
        log: a logger.
        reading: how this hub reads the host, as the arguments of `gpus.reader.Reader`.
    """

    def __init__(
        self,
        path: str,
        queue: Queue,
        servers: Callable[[], Iterable[Any]],
        log: Any,
        reading: Mapping[str, Any],
    ) -> None:
        self._reading = reading
        self._path = Path(path)
        self._queue = queue
        self._servers = servers
        self._log = log
        self._server: HTTPServer | None = None

    async def begin(self) -> None:
        """Open the socket, in place of one that a killed hub left; log a warning if it can't be."""
        if _is_answered(self._path):
            self._log.warning(
                "Another hub answers on %r: give each its own c.GPUSpawner.control_socket",
                str(self._path),
            )
            return
        try:
            # Nobody can connect before it listens, and by then it has its mode.
            listening = bind_unix_socket(str(self._path), mode=0o600)
        except (OSError, ValueError) as error:
            self._log.warning(
                "c.GPUSpawner.control_socket = %r can't be opened (%s): pages won't show who waits",
                str(self._path),
                one_line(
                    error if isinstance(error, OSError) else "a file that isn't a socket is there"
                ),
            )
            return
        self._server = HTTPServer(
            self._application(),
            no_keep_alive=True,
            idle_connection_timeout=TIMEOUT_SECONDS,
            body_timeout=TIMEOUT_SECONDS,
            max_header_size=LARGEST_REQUEST_BYTES,
            max_body_size=LARGEST_REQUEST_BYTES,
        )
        self._server.add_socket(listening)

    def close(self) -> None:
        """Close the socket and remove it, if it was opened."""
        if self._server:
            self._server.stop()
            self._path.unlink(missing_ok=True)
            self._server = None

    def _application(self) -> web.Application:
        shared = {"control": self}
        return web.Application(
            [("/status", _Status, shared), ("/extend", _Extend, shared), ("/here", _Here, shared)],
            default_handler_class=_Unknown,
            default_handler_args=shared,
            # The dashboard asks every two seconds; exceptions are logged all the same.
            log_function=lambda handler: None,
        )

    async def status(self) -> dict[str, Any]:
        """Return who waits and whose time ends, as a value for JSON; times since the epoch."""
        servers = list(self._servers())
        await asyncio.gather(*(server.know_rules() for server in servers))
        return {
            "now": time.time(),
            "order": self._queue.rules.order,
            "reading": dict(self._reading),
            "queue": [_entry(entry) for entry in self._queue.waiting],
            "leases": [server.facts() for server in servers],
        }

    async def find(self, holder: Holder) -> Any:
        """Return the server of a holder.

        Raises:
            Refused: it has none that holds GPUs.
        """
        for server in self._servers():
            if server.holder == holder:
                await server.know_rules()
                return server
        raise Refused(
            lazy_gettext("%(holder)s has no server with GPUs that runs now.", holder=str(holder)),
            status=404,
        )


class _ServerRequest(BaseModel):
    """The body of a request about one server."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user: str = Field(max_length=LONGEST_NAME)
    server: str = Field(default="", max_length=LONGEST_NAME)


class _ExtendRequest(_ServerRequest):
    """The body of a request for more time: hours, or as many as the server began with."""

    hours: int | float | None = None
    by: str = Field(default="", max_length=2 * LONGEST_NAME)
    over_all: bool = False


class _Handler(web.RequestHandler):
    """What all answers have in common: they are JSON, errors too."""

    def initialize(self, control: ControlSocket) -> None:
        """Take what they answer from."""
        self._control = control

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer with an error's sentence."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        # Tornado keeps a message as a format.
        words = getattr(error, "log_message", None)
        sentence = str(words) % error.args if error and words else self._reason
        self.finish({"error": sentence, "status": status_code})


class _Unknown(_Handler):
    """Any other path."""

    def prepare(self) -> None:
        """Answer that there is nothing."""
        raise web.HTTPError(404)


class _Status(_Handler):
    """The queue and the leases."""

    async def get(self) -> None:
        """Answer with both."""
        self.finish(await self._control.status())


class _Server(_Handler, ABC):
    """What is done with one server."""

    request_model: type[_ServerRequest] = _ServerRequest

    async def post(self) -> None:
        """Do it, or answer why not."""
        try:
            asked = self.request_model.model_validate_json(self.request.body)
        except ValidationError as error:
            raise web.HTTPError(400, _first(error)) from None
        try:
            server = await self._control.find(Holder(asked.user, asked.server))
            self.finish(self.do(server, asked))
        except Refused as error:
            sentence = str(error)
            self.set_status(error.status)
            self.finish({"error": sentence, "sentence": kept(sentence), "status": error.status})

    @abstractmethod
    def do(self, server: Any, asked: Any) -> dict[str, Any]:
        """Do it, and return the answer."""


class _Extend(_Server):
    """More time."""

    request_model = _ExtendRequest

    def do(self, server: Any, asked: _ExtendRequest) -> dict[str, Any]:
        """Give it, and return the server's new end."""
        return {"until": server.extend(asked.hours, asked.by, asked.over_all)}


class _Here(_Server):
    """A user's word that idle GPUs aren't forgotten."""

    def do(self, server: Any, asked: _ServerRequest) -> dict[str, Any]:
        """Take it."""
        server.still_here()
        return {}


def _first(error: ValidationError) -> str:
    """Return what is wrong with a request, without what it was."""
    details = error.errors()[0]
    where = ".".join(map(str, details["loc"]))[:LONGEST_NAME]
    return f"{where}: {details['msg']}" if where else details["msg"]


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


def _is_answered(path: Path) -> bool:
    """Return whether a process listens on a socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:  # more are waiting for an answer than it lets wait
            return True
        except OSError:
            return False
    return True


class _SocketResolver(Resolver):
    """Leads every host name to one Unix socket."""

    def initialize(self, path: str) -> None:  # type: ignore[override]  # tornado's way to construct
        """Take the socket's path."""
        self._path = path

    async def resolve(self, *_: Any, **__: Any) -> list[tuple[int, Any]]:
        """Return the socket's address."""
        return [(socket.AF_UNIX, self._path)]


async def ask(path: str, question: Mapping[str, Any]) -> dict[str, Any]:
    """Ask the hub through its socket; return its answer, an error's too.

    Args:
        path: the socket's.
        question: `do`, which is "status", "extend" or "here", and the fields of that request.

    Raises:
        OSError: no hub answers.
        ValueError: what answers is no hub.
    """
    fields = {name: value for name, value in question.items() if name != "do"}
    what = question["do"]
    request = HTTPRequest(
        f"http://hub/{quote(what, safe='')}",
        method="GET" if what == "status" else "POST",
        body=None if what == "status" else json.dumps(fields),
        connect_timeout=TIMEOUT_SECONDS,
        request_timeout=TIMEOUT_SECONDS,
        follow_redirects=False,
    )
    client = SimpleAsyncHTTPClient(force_instance=True, resolver=_SocketResolver(path=path))
    try:
        answer = json.loads((await client.fetch(request, raise_error=False)).body)
    except HTTPClientError as error:  # no answer within the time, or not the whole of one
        raise OSError(f"the hub doesn't answer: {error}") from error
    finally:
        client.close()
    if not isinstance(answer, dict):
        raise ValueError("what answers is no hub")
    return answer
