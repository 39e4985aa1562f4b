"""The daemon of one machine: tells the hubs that it knows what GPUs there are, over TLS.

    POST /v1/node    {"excluded": […], "shared": {…}, …}    -> the report, see `reports`
    POST /v1/images  {"references": ["lab:1"]}              -> {"images": {"lab:1": {"id": …}}}
    POST /v1/pull    {"reference": "lab:1", "policy": "…"}  -> lines: {"fraction": …, …}, at last
                                                               {"done": {"id": …}} or {"error": …}
    POST /v1/load?id=…&size=…  an archive of that image     -> {"image": {"id": …}}
    GET  /v1/doctor                                         -> {"findings": […]}
    POST /v1/leftovers {}      removes what it has left     -> {"left": ["what is still used"]}

It has no rights: what needs the engine, it asks the part that has them (`engine_part`, by
`engine_link`). An error has its status, and in the body {"error": "a sentence"}.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import ssl
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from tornado import web
from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets

from .. import __version__
from ..gpus.model import Node
from ..gpus.nvml import InventoryError
from ..gpus.reader import Reader
from ..i18n.lazy_text import kept
from ..images.catalogue import is_reference
from ..leases.audit_log import one_line
from ..leases.ledger import SharedRead
from ..untrusted import parse_json
from .engine_link import EngineLink, EnginePartError, ImageLink
from .identity import Identity, certificates_in, fingerprint_of, server_context
from .node_images import is_image_id, largest_archive
from .reports import NodeContainer, NodeReport, of_engine, written

# A little less than a hub waits.
NVML_SECONDS = 4.0
MAX_REQUEST_BYTES = 1_048_576
MAX_HEADER_BYTES = 16_384
# Who has connected and says nothing, also in the middle of the handshake, is cut off.
IDLE_SECONDS = 30
# In which a hub has to have sent an image.
LOAD_SECONDS = 4 * 3600
# Each hub has settings of its own.
MAX_READERS = 8
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
HUBS_FILE = "hubs.pem"

log = logging.getLogger(__name__)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Settings(_Body):
    """A hub's rules by which GPUs are read."""

    excluded: Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=4096)] = []
    memory_threshold_mib: Annotated[int, Field(ge=0, le=2**31)] | None = None
    shared: Annotated[
        dict[
            Annotated[str, Field(max_length=200)],
            Annotated[int, Field(ge=1, le=64)],
        ],
        Field(max_length=4096),
    ] = {}
    lets_go: bool = False


class _References(_Body):
    references: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=512)]], Field(max_length=1000)
    ]


def _checked_reference(text: str) -> str:
    if not is_reference(text):
        raise ValueError("it is no image reference")
    return text


class _Pull(_Body):
    reference: Annotated[str, AfterValidator(_checked_reference)]
    policy: Annotated[str, Field(pattern="^(always|ifnotpresent|never)$")] = "always"


class Inventory:
    """This machine's GPUs, read by the rules of whoever asks.

    Args:
        engine: the part of the daemon that may ask the engine.
    """

    def __init__(self, engine: EngineLink) -> None:
        self._engine = engine
        self._readers: OrderedDict[str, SharedRead[tuple[float, tuple[Node, ...]]]] = OrderedDict()

    async def report(self, settings: _Settings) -> NodeReport:
        """Return what is true now, or why it can't be read."""
        about, containers, read = await asyncio.gather(
            self._engine.about(), self._containers(), self._read(settings)
        )
        common: dict[str, Any] = {
            "version": __version__,
            "boot_id": boot_id(),
            "toolkit": about.get("toolkit"),
            "engine": about.get("engine"),
            "containers": containers,
        }
        if isinstance(read, InventoryError):
            return NodeReport(Node(), time=time.time(), unread=str(read), **common)
        read_at, (node,) = read
        age = max(0.0, time.monotonic() - read_at)
        return NodeReport(node, time=time.time(), age=age, **common)

    async def _containers(self) -> tuple[NodeContainer, ...] | None:
        """Return what runs with GPUs; None if the engine can't be asked."""
        try:
            return tuple(map(of_engine, await self._engine.containers()))
        except (EnginePartError, AttributeError, KeyError, TypeError, ValueError):
            return None

    async def _read(self, settings: _Settings) -> tuple[float, tuple[Node, ...]] | InventoryError:
        try:
            return await self._reader(settings)()
        except InventoryError as error:
            return error

    def _reader(self, settings: _Settings) -> SharedRead[tuple[float, tuple[Node, ...]]]:
        key = settings.model_dump_json()
        if key not in self._readers:
            read = Reader(
                NVML_SECONDS,
                excluded=settings.excluded,
                memory_threshold_mib=settings.memory_threshold_mib,
                shared=settings.shared,
            )
            read.lets_go = settings.lets_go

            async def timed() -> tuple[float, tuple[Node, ...]]:
                began = time.monotonic()
                return began, await read()

            self._readers[key] = SharedRead(timed)
        self._readers.move_to_end(key)
        while len(self._readers) > MAX_READERS:
            self._readers.popitem(last=False)
        return self._readers[key]


class _Handler(web.RequestHandler):
    def initialize(self, inventory: Inventory, engine: EngineLink, hubs: frozenset[str]) -> None:
        self.inventory = inventory
        self.engine = engine
        self.hubs = hubs

    def prepare(self) -> None:
        # TLS lets nobody else in; this is what holds if its settings are ever changed.
        certificate = None
        with suppress(AttributeError):  # who asked has left already
            certificate = self.request.get_ssl_certificate(binary_form=True)
        if not isinstance(certificate, bytes) or fingerprint_of(certificate) not in self.hubs:
            raise web.HTTPError(403, "this machine doesn't know you")

    def body(self, kind: type[Any]) -> Any:
        """Return the body as one of the classes above, or refuse it."""
        try:
            return kind.model_validate(parse_json(self.request.body or b"{}"))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            words = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise web.HTTPError(400, "%s", words) from None
        except ValueError as error:
            raise web.HTTPError(400, "%s", f"this isn't JSON: {error}") from None

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        said = ""
        if isinstance(error, web.HTTPError) and error.log_message:
            said = error.log_message % error.args if error.args else error.log_message
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps({"error": (said or f"status {status_code}")[:500]}))

    def set_default_headers(self) -> None:
        self.set_header("Server", "gpuspawner")


class _Node(_Handler):
    async def post(self) -> None:
        self.write(written(await self.inventory.report(self.body(_Settings))))

    async def get(self) -> None:
        self.write(written(await self.inventory.report(_Settings())))


class _Images(_Handler):
    async def post(self) -> None:
        wanted: _References = self.body(_References)
        try:
            self.write({"images": await self.engine.images(wanted.references)})
        except EnginePartError as error:
            raise web.HTTPError(503, "%s", str(error)) from None


class _Pulls(_Handler):
    async def post(self) -> None:
        wanted: _Pull = self.body(_Pull)
        self.set_header("Content-Type", "application/x-ndjson; json")
        try:
            async for event in self.engine.pull(wanted.reference, wanted.policy):
                await self._send(event)
        except EnginePartError as error:
            await self._send({"error": kept(str(error)), "said": ""})
        except StreamClosedError:
            return  # who asked has left, and the pull goes on

    async def _send(self, event: Mapping[str, Any]) -> None:
        self.write(json.dumps(event) + "\n")
        await self.flush()


@web.stream_request_body
class _Loads(_Handler):
    """Passes an image on as it comes.

    It may answer before the end, if the image isn't needed or isn't taken. The rest is still read:
    a connection that is closed with something unread loses the answer. Who asks leaves then.
    """

    _link: ImageLink | None = None
    _has_answered = False

    async def prepare(self) -> None:  # type: ignore[override]
        super().prepare()
        image_id = self.get_query_argument("id", "", strip=False)
        size = self.get_query_argument("size", "", strip=False)
        if not is_image_id(image_id) or not re.fullmatch("[1-9][0-9]{0,12}", size):
            raise web.HTTPError(400, "no image's id and size")
        connection: Any = self.request.connection
        connection.set_max_body_size(largest_archive(int(size)))
        connection.set_body_timeout(LOAD_SECONDS)
        try:
            self._link = await self.engine.load(image_id, int(size))
        except EnginePartError as error:
            self._refuse(error)
        else:
            if self._link.image is not None:
                self._answer({"image": self._link.image})

    async def data_received(self, chunk: bytes) -> None:
        if self._link is None or self._has_answered:
            return
        try:
            await self._link.send(chunk)
        except EnginePartError as error:
            self._refuse(error)

    async def post(self) -> None:
        if self._link is None or self._has_answered:
            self.finish()
            return
        try:
            self._answer({"image": await self._link.end()})
        except EnginePartError as error:
            self._refuse(error)
        self.finish()

    def _refuse(self, error: EnginePartError) -> None:
        self.set_status(503)
        self._answer({"error": str(error)[:500]})

    def _answer(self, value: Mapping[str, Any]) -> None:
        self._has_answered = True
        body = json.dumps(value).encode()
        self.set_header("Content-Type", "application/json")
        self.set_header("Content-Length", str(len(body)))
        self.write(body)
        self.flush()

    def on_finish(self) -> None:
        if self._link is not None:
            self._link.close()

    on_connection_close = on_finish


class _Doctor(_Handler):
    async def get(self) -> None:
        try:
            self.write({"findings": await self.engine.doctor()})
        except EnginePartError as error:
            raise web.HTTPError(503, "%s", str(error)) from None


class _Leftovers(_Handler):
    async def post(self) -> None:
        self.body(_Body)
        try:
            self.write({"left": await self.engine.leftovers()})
        except EnginePartError as error:
            raise web.HTTPError(503, "%s", str(error)) from None


def make_application(
    inventory: Inventory, engine: EngineLink, hubs: Iterable[str]
) -> web.Application:
    """Return the daemon's application.

    Args:
        inventory: this machine's GPUs.
        engine: the part that may ask the engine.
        hubs: the fingerprints of the hubs that may ask.
    """
    rest = {"inventory": inventory, "engine": engine, "hubs": frozenset(hubs)}
    return web.Application(
        [
            ("/v1/node", _Node, rest),
            ("/v1/images", _Images, rest),
            ("/v1/pull", _Pulls, rest),
            ("/v1/load", _Loads, rest),
            ("/v1/doctor", _Doctor, rest),
            ("/v1/leftovers", _Leftovers, rest),
            (".*", _NotFound, rest),
        ],
        log_function=_log_request,
    )


class _NotFound(_Handler):
    def prepare(self) -> None:
        super().prepare()
        raise web.HTTPError(404, "there is nothing here")


def _log_request(handler: web.RequestHandler) -> None:
    status = handler.get_status()
    if status >= 400:
        method, path = handler.request.method, handler.request.path[:100]
        log.warning("%s %s: %s", one_line(method), one_line(path), one_line(status))


class Daemon:
    """The daemon, which listens from `start` on.

    Args:
        identity: this machine's.
        hubs: the certificates of the hubs that may ask, in PEM form.
        engine: the part that may ask the engine.
    """

    def __init__(self, identity: Identity, hubs: Iterable[str], engine: EngineLink) -> None:
        hubs = list(hubs)
        tls: ssl.SSLContext = server_context(identity, hubs)
        application = make_application(Inventory(engine), engine, map(fingerprint_of, hubs))
        self._server = HTTPServer(
            application,
            ssl_options=tls,
            max_header_size=MAX_HEADER_BYTES,
            max_body_size=MAX_REQUEST_BYTES,
            max_buffer_size=2 * MAX_REQUEST_BYTES,
            idle_connection_timeout=IDLE_SECONDS,
            body_timeout=IDLE_SECONDS,
        )

    def start(self, address: str, port: int) -> int:
        """Listen; return the port, which the system chooses for 0.

        Raises:
            OSError: that address or port can't be had.
        """
        sockets = bind_sockets(port, address)
        self._server.add_sockets(sockets)
        return int(sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Listen no more, and end the connections."""
        self._server.stop()
        await asyncio.gather(self._server.close_all_connections(), return_exceptions=True)


def read_hubs(file: Path) -> list[str]:
    """Return the certificates of the hubs that may ask, from a file; [] if there is none."""
    try:
        return certificates_in(file.read_text(encoding="ascii", errors="replace"))
    except OSError:
        return []


def boot_id() -> str:
    """Return what changes whenever this machine is started anew; "" if the kernel doesn't tell."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""
