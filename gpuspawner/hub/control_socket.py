"""The control socket: HTTP on a Unix socket, for services of the hub.

It serves the queue and the leases, extends leases, and stops servers. It is in the hub's folder
and only the hub's account can open it: services that the hub starts can, users can't. A service
authenticates its users and decides what each of them may do. One that has neither NVML nor the
engine asks for the nodes as well, and has GPUs taken out of service.

    GET  /status                                             -> {"queue": […], "leases": […], …}
    GET  /nodes                                              -> {"nodes": […], "marks": […], …}
    GET  /usage                               -> {"url": "sqlite:///…", "hub": "…", "courses": {…}}
    GET  /calendar                                           -> {"zones": […], "events": […]}
    POST /week    {"day": "2026-11-30"}                      -> {"days": […], "reserved": […], …}
    POST /extend  {"user": "ada", "server": "", "hours": 1}  -> {"until": 1764090000.0}
    POST /here    {"user": "ada", "server": ""}              -> {}
    POST /devices {"user": "ada", "server": "", "gone": true}  -> {}
    POST /stop    {"user": "ada", "by": "user:boss", "why": "…", "minutes": 10}  -> {}
    POST /keep    {"user": "ada", "by": "user:boss"}         -> {}
    POST /ask     {"user": "ada", "by": "user:ada", "gpus": 1, "kind": null}   -> {"gpus": 1, …}
    POST /leave   {"user": "ada", "by": "user:ada"}          -> {}
    POST /switch  {"user": "ada", "by": "user:ada"}          -> {}
    POST /give-back  {"user": "ada", "by": "user:ada"}       -> {}
    POST /courses {"who": "prof"}                            -> {"courses": […], "open_hours": 0}
    POST /course  {"who": "prof", "course": "ml"}            -> {"key": "ml", "members": […], …}
    POST /course-extend  {…, "user": "ada", "hours": 1}      -> {"servers": [{"until": …}]}
    POST /course-stop    {…, "user": "ada", "why": "…", "minutes": 10}  -> {}
    POST /course-keep    {…, "user": "ada"}                  -> {}
    POST /course-message {…, "text": "…"}                    -> {"sent": 12}
    POST /course-front   {…, "user": "ada"}                  -> {"place": 2}
    POST /hours          {"who": "prof"}                     -> {"reserved_hours": […], …}
    POST /hours-ask      {"who": "prof", "course": "ml", "hours": {…}, "note": "…"}  -> {"id": 7, …}
    POST /hours-make     {"who": "boss", "course": "ml", "hours": {…}}  -> {"id": 8, …}
    POST /hours-grant    {"who": "boss", "id": 7, "hours": null}  -> {"id": 7, …}
    POST /hours-refuse   {"who": "boss", "id": 7, "why": "…"}  -> {"id": 7, …}
    POST /hours-withdraw {"who": "prof", "id": 7}            -> {"id": 7, …}
    POST /hours-end      {"who": "boss", "id": 8, "why": ""}  -> {"id": 8, …}
    POST /stop-orphan  {"id": "7f3a…", "by": "boss"}         -> {}
    POST /out-of-service  {"uuid": "GPU-…", "by": "boss", "why": "fan"}  -> {}
    POST /in-service  {"uuid": "GPU-…"}                      -> {}

Who extends it is `by`, "" for its user. `over_all` says that this is an administrator, whom neither
`extend_minutes` nor the queue binds. A stop is for administrators; with `minutes` it is announced,
and `keep` takes that back. `ask` asks for GPUs for a server that runs without; `leave` withdraws
that, `switch` restarts the server with what is reserved for it, and `give-back` one without what it
has.

What begins with `course` is for instructors, and the hub checks whether `who`, a user's name, is
one (`instructors.Instructors`), and so with `hours` (`hours_desk.HoursDesk`). `administrator` says
that they may act as an administrator, if they are one. Without `user`, `course-extend` and
`course-message` are for all servers of the course.

An error has its status, and in the body {"error": "a sentence", "status": 409, "key": "hours",
"sentence": …}: the key that is refused, "" if it isn't one's, and the sentence once more, as
`lazy_text.restored` takes it. The server's name is "" for the default one.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tornado import web
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.netutil import Resolver, bind_unix_socket
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from ..check_in import CheckIn
from ..choices.options import MAX_KEY
from ..errors import Refused
from ..gpus.model import Holder
from ..i18n.lazy_text import kept, lazy_gettext
from ..leases.audit_log import one_line
from ..leases.endings import MAX_MINUTES, MAX_WHY, Ending
from ..leases.reconciler import Reconciler
from ..scheduling.queue import Queue, QueueEntry
from ..untrusted import parse_json
from .health_watch import HealthWatch
from .hours_desk import HoursDesk
from .instructors import Instructors
from .nodes import NodeFacts
from .rights import NO_SUCH_COURSE, Asker
from .switches import Switches
from .week import WeekFacts

# The longest name in JupyterHub's database.
MAX_NAME_LENGTH = 255
# The largest request, and how much is read of a larger one, so that it is told so.
MAX_REQUEST_BYTES = 16 * 1024
MAX_READ_BYTES = 256 * 1024
TIMEOUT_SECONDS = 5.0
# What is asked for without a body.
READ_ONLY = ("status", "nodes", "usage", "calendar")


class ControlSocket:
    """The hub's side of the socket.

    Args:
        path: the socket's path, relative to the hub's folder.
        queue: who waits.
        servers: lists the `ServerLease`s of servers that hold GPUs.
        log: a logger.
        reading: how this hub reads NVML: the arguments of `gpus.reader.Reader`.
        reconciler: knows the servers that the hub doesn't.
        nodes: reads the nodes.
        endings: how servers were lately stopped that are off.
        homes: returns how much the users of the running servers keep at home, as JSON values.
        switches: the running servers that ask for GPUs.
        turns: the turns that have come, and whose users haven't said yet that they are there.
        health: watches the GPUs' health; None: nobody does.
        usage: returns where the store of the usage is (`url`, "" for none), this hub's address in
            it, and what users call the courses in it, by their keys; None: none is kept.
        week: tells of the hours that are reserved; None: nobody does.
        instructors: the courses, for those who teach them; None: there are none.
        name_machines: who may know the machines' names; services go by it too.
        hours: where reserved hours are asked for; None: nowhere.
    """

    def __init__(
        self,
        path: str,
        queue: Queue,
        servers: Callable[[], Iterable[Any]],
        log: Any,
        reading: Mapping[str, Any],
        reconciler: Reconciler,
        nodes: NodeFacts,
        endings: Mapping[Holder, Ending],
        homes: Callable[[], Awaitable[Sequence[Mapping[str, Any]]]] | None = None,
        switches: Switches | None = None,
        turns: Mapping[Holder, CheckIn] | None = None,
        health: HealthWatch | None = None,
        usage: Callable[[], Awaitable[Mapping[str, Any]]] | None = None,
        week: WeekFacts | None = None,
        instructors: Instructors | None = None,
        name_machines: str = "administrators",
        hours: HoursDesk | None = None,
    ) -> None:
        self._name_machines = name_machines
        self._hours = hours
        self.week = week
        self._instructors = instructors
        self._health = health
        self.usage = usage
        self._homes = homes
        self.switches = switches or Switches(tuple)
        self._turns = {} if turns is None else turns
        self._reading = reading
        self.reconciler = reconciler
        self.nodes = nodes
        self._endings = endings
        self._path = Path(path)
        self._queue = queue
        self._servers = servers
        self._log = log
        self._server: HTTPServer | None = None

    async def begin(self) -> None:
        """Open the socket, replacing that of a killed hub; log a warning if it can't be opened."""
        if _is_answered(self._path):
            self._log.warning(
                "Another hub answers on %r: give each its own c.GPUSpawner.control_socket",
                str(self._path),
            )
            return
        try:
            # It has its mode before it listens.
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
            max_body_size=MAX_READ_BYTES,
        )
        self._server.add_socket(listening)

    def close(self) -> None:
        """Close the socket and remove it, if it was opened."""
        if self._server:
            self._server.stop()
            self._path.unlink(missing_ok=True)
            self._server = None

    def _application(self) -> web.Application:
        # They are handlers of this module's kind.
        from .hours_handlers import HOURS_ROUTES

        shared = {"control": self}
        return web.Application(
            [
                ("/status", _Status, shared),
                ("/week", _Week, shared),
                ("/calendar", _Calendar, shared),
                ("/extend", _Extend, shared),
                ("/here", _KeepAlive, shared),
                ("/devices", _Devices, shared),
                ("/stop", _Stop, shared),
                ("/keep", _Keep, shared),
                ("/ask", _Ask, shared),
                ("/leave", _Leave, shared),
                ("/switch", _Switch, shared),
                ("/give-back", _GiveBack, shared),
                ("/stop-orphan", _StopOrphan, shared),
                ("/nodes", _Nodes, shared),
                ("/usage", _Usage, shared),
                ("/out-of-service", _OutOfService, shared),
                ("/in-service", _InService, shared),
                ("/courses", _Courses, shared),
                ("/course", _Course, shared),
                ("/course-extend", _CourseExtend, shared),
                ("/course-stop", _CourseStop, shared),
                ("/course-keep", _CourseKeep, shared),
                ("/course-message", _CourseMessage, shared),
                ("/course-front", _CourseFront, shared),
                *((path, handler, shared) for path, handler in HOURS_ROUTES),
            ],
            default_handler_class=_Unknown,
            default_handler_args=shared,
            # No access log: the dashboard asks every two seconds. Exceptions are logged elsewhere.
            log_function=lambda handler: None,
        )

    async def status(self) -> dict[str, Any]:
        """Return the queue and the leases as a JSON value; times in seconds since the epoch."""
        servers = list(self._servers())
        await asyncio.gather(*(server.ensure_rules_applied() for server in servers))
        return {
            "now": time.time(),
            "order": self._queue.settings.order,
            "reading": dict(self._reading),
            "name_machines": self._name_machines,
            "queue": [_entry(entry) for entry in self._queue.waiting],
            "leases": [server.facts() for server in servers],
            "requests": self.switches.facts(),
            "orphans": self.reconciler.facts(),
            "stopped": [
                {"user": holder.user, "server": holder.server, **ending.facts()}
                for holder, ending in self._endings.items()
            ],
            "homes": [*await self._homes()] if self._homes else [],
            "health": self._health.facts() if self._health else [],
            "messages": self._instructors.messages.facts() if self._instructors else [],
        }

    @property
    def instructors(self) -> Instructors:
        """The courses, for those who teach them; raises Refused where there are none."""
        if self._instructors is None:
            raise Refused(NO_SUCH_COURSE, status=404)
        return self._instructors

    @property
    def hours(self) -> HoursDesk:
        """Where reserved hours are asked for; raises Refused where they aren't."""
        if self._hours is None:
            raise Refused(NO_SUCH_COURSE, status=404)
        return self._hours

    def open_hours_for(self, asker: Asker) -> int:
        """Return how many requests for reserved hours wait for an administrator's decision."""
        return self._hours.open_for(asker) if self._hours else 0

    def turn_of(self, holder: Holder) -> CheckIn | None:
        """Return the turn whose user is asked whether they are there; None: there is none."""
        return self._turns.get(holder)

    async def find_lease(self, holder: Holder) -> Any:
        """Return the lease of a holder.

        Raises:
            Refused: it holds no GPUs.
        """
        for server in self._servers():
            if server.holder == holder:
                await server.ensure_rules_applied()
                return server
        raise Refused(
            lazy_gettext("%(holder)s has no server with GPUs that runs now.", holder=str(holder)),
            status=404,
        )


class _ServerRequest(BaseModel):
    """The body of a request about one server."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user: str = Field(max_length=MAX_NAME_LENGTH)
    server: str = Field(default="", max_length=MAX_NAME_LENGTH)


class _ExtendRequest(_ServerRequest):
    """The body of a request to extend a lease: by `hours`, or by its original length."""

    hours: int | float | None = None
    by: str = Field(default="", max_length=2 * MAX_NAME_LENGTH)
    over_all: bool = False


class _DevicesRequest(_ServerRequest):
    """The body of what a server says of its GPUs' devices: whether they are gone."""

    gone: bool


class _StopRequest(_ServerRequest):
    """The body of an administrator's request to stop a server; `minutes` from now, 0: at once."""

    by: str = Field(max_length=2 * MAX_NAME_LENGTH)
    why: str = Field(default="", max_length=MAX_WHY)
    minutes: int | float = Field(default=0, ge=0, le=MAX_MINUTES)


class _KeepRequest(_ServerRequest):
    """The body of an administrator's request to take an announced stop back."""

    by: str = Field(max_length=2 * MAX_NAME_LENGTH)


class _SwitchRequest(_ServerRequest):
    """The body of a request about a server that asks for GPUs, or has some; `by`, who wants it."""

    by: str = Field(default="", max_length=2 * MAX_NAME_LENGTH)


class _AskRequest(_SwitchRequest):
    """The body of a request for GPUs for a server that runs."""

    gpus: int = Field(default=1, ge=0, lt=10**9)
    model: str | None = Field(default=None, max_length=MAX_KEY)
    kind: str | None = Field(default=None, max_length=MAX_KEY)


class _OrphanRequest(BaseModel):
    """The body of a request to stop a server that the hub doesn't know; `by`, who wants it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str = Field(max_length=MAX_NAME_LENGTH)
    by: str = Field(max_length=MAX_NAME_LENGTH)


class _InServiceRequest(BaseModel):
    """The body of a request to put a GPU back into service."""

    model_config = ConfigDict(extra="forbid", strict=True)

    uuid: str = Field(max_length=MAX_NAME_LENGTH)


class _OutOfServiceRequest(_InServiceRequest):
    """The body of a request to take a GPU out of service; `by`, who wants it."""

    by: str = Field(max_length=MAX_NAME_LENGTH)
    why: str = ""


class _WeekRequest(BaseModel):
    """The body of a request for a week: its first day; "": today."""

    model_config = ConfigDict(extra="forbid", strict=True)

    day: str = Field(default="", max_length=32)


class CoursesRequest(BaseModel):
    """The body of an instructor's request: `who` asks; whether they may act as an administrator."""

    model_config = ConfigDict(extra="forbid", strict=True)

    who: str = Field(min_length=1, max_length=MAX_NAME_LENGTH)
    administrator: bool = False

    @property
    def asker(self) -> Asker:
        """Who asks."""
        return Asker(self.who, self.administrator)


class _CourseRequest(CoursesRequest):
    """The body of an instructor's request about a course."""

    course: str = Field(max_length=MAX_NAME_LENGTH)


class _CourseServerRequest(_CourseRequest):
    """The body of an instructor's request about one server of a course."""

    user: str = Field(max_length=MAX_NAME_LENGTH)
    server: str = Field(default="", max_length=MAX_NAME_LENGTH)

    @property
    def holder(self) -> Holder:
        """The server."""
        return Holder(self.user, self.server)


class _CourseStopRequest(_CourseServerRequest):
    """The body of an instructor's request to stop a server; `minutes` from now, 0: at once."""

    why: str = Field(default="", max_length=MAX_WHY)
    minutes: int | float = Field(default=0, ge=0, le=MAX_MINUTES)


class _CourseServersRequest(_CourseRequest):
    """The body of an instructor's request about one server of a course, or all without `user`."""

    user: str | None = Field(default=None, max_length=MAX_NAME_LENGTH)
    server: str = Field(default="", max_length=MAX_NAME_LENGTH)

    @property
    def holder(self) -> Holder | None:
        """The server; None: all."""
        return None if self.user is None else Holder(self.user, self.server)


class _CourseExtendRequest(_CourseServersRequest):
    """The body of an instructor's request for more time: `hours`, or as much as each began with."""

    hours: int | float | None = None


class _CourseMessageRequest(_CourseServersRequest):
    """The body of an instructor's message."""

    text: str


class _Handler(web.RequestHandler):
    """Base class of the handlers, which answer with JSON, errors too."""

    def initialize(self, control: ControlSocket) -> None:
        """Set the control socket that they serve."""
        self._control = control

    def prepare(self) -> None:
        """Refuse what is larger than any request of ours."""
        if max(len(self.request.body), len(self.request.uri or "")) > MAX_REQUEST_BYTES:
            raise web.HTTPError(413, f"A request has at most {MAX_REQUEST_BYTES} bytes.")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer with an error's sentence."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        # Tornado keeps the message as a format and its arguments.
        words = getattr(error, "log_message", None)
        sentence = str(words) % error.args if error and words else self._reason
        self.finish({"error": sentence, "status": status_code})

    def refuse(self, error: Refused) -> None:
        """Answer with a refusal's sentence."""
        sentence = str(error)
        self.set_status(error.status)
        facts = {"status": error.status, "key": error.key}
        self.finish({"error": sentence, "sentence": kept(sentence), **facts})


class _Unknown(_Handler):
    """Any other path."""

    def prepare(self) -> None:
        """Answer 404."""
        super().prepare()
        raise web.HTTPError(404)


class _Status(_Handler):
    """The queue and the leases."""

    async def get(self) -> None:
        """Answer with both."""
        self.finish(await self._control.status())


class _Nodes(_Handler):
    """The nodes, for a service that can't read them itself."""

    async def get(self) -> None:
        """Answer with them."""
        try:
            self.finish(await self._control.nodes.facts())
        except Refused as error:
            self.refuse(error)


class _Usage(_Handler):
    """Where it is kept who used what, for a service that reads it itself."""

    async def get(self) -> None:
        """Answer with that."""
        where = self._control.usage
        self.finish(dict(await where()) if where else {"url": "", "hub": "", "courses": {}})


class _Calendar(_Handler):
    """What is reserved, as events of a calendar."""

    async def get(self) -> None:
        """Answer with them."""
        if self._control.week is None:
            raise web.HTTPError(404)
        self.finish(await self._control.week.calendar())


class JSONRequest(_Handler, ABC):
    """Base class of requests with a body."""

    request_model: type[BaseModel]

    async def post(self) -> None:
        """Perform the action, or answer why it is refused."""
        try:
            asked = self.request_model.model_validate_json(self.request.body)
        except ValidationError as error:
            raise web.HTTPError(400, _first_error(error)) from None
        try:
            self.finish(await self.answer(asked))
        except Refused as error:
            self.refuse(error)

    @abstractmethod
    async def answer(self, asked: Any) -> dict[str, Any]:
        """Do it, and return the answer."""


class _Week(JSONRequest):
    """A week's reserved hours."""

    request_model = _WeekRequest

    async def answer(self, asked: _WeekRequest) -> dict[str, Any]:
        """Tell of them."""
        if self._control.week is None:
            raise web.HTTPError(404)
        return self._control.week.facts(asked.day)


class _StopOrphan(JSONRequest):
    """The end of a server that the hub doesn't know."""

    request_model = _OrphanRequest

    async def answer(self, asked: _OrphanRequest) -> dict[str, Any]:
        """Stop it."""
        await self._control.reconciler.stop(asked.id, asked.by)
        return {}


class _OutOfService(JSONRequest):
    """The start of a GPU's time out of service."""

    request_model = _OutOfServiceRequest

    async def answer(self, asked: _OutOfServiceRequest) -> dict[str, Any]:
        """Take it out."""
        await self._control.nodes.take_out(asked.uuid, asked.by, asked.why)
        return {}


class _InService(JSONRequest):
    """The end of it."""

    request_model = _InServiceRequest

    async def answer(self, asked: _InServiceRequest) -> dict[str, Any]:
        """Put it back."""
        await self._control.nodes.put_back(asked.uuid)
        return {}


class _Stop(JSONRequest):
    """The stop of a server by an administrator."""

    request_model = _StopRequest

    async def answer(self, asked: _StopRequest) -> dict[str, Any]:
        """Stop it, or announce that."""
        server = await self._control.find_lease(Holder(asked.user, asked.server))
        await server.stop_for(asked.by, asked.why, asked.minutes)
        return {}


class _Keep(JSONRequest):
    """An announced stop is taken back."""

    request_model = _KeepRequest

    async def answer(self, asked: _KeepRequest) -> dict[str, Any]:
        """Do so."""
        server = await self._control.find_lease(Holder(asked.user, asked.server))
        server.take_back_stop(asked.by)
        return {}


class _Ask(JSONRequest):
    """GPUs for a server that runs."""

    request_model = _AskRequest

    async def answer(self, asked: _AskRequest) -> dict[str, Any]:
        """Ask for them, and return what is known of the request."""
        switch = self._control.switches.find(Holder(asked.user, asked.server))
        await switch.ask(asked.gpus, asked.model, asked.by, asked.kind)
        facts: dict[str, Any] = switch.facts()
        return facts


class _OfSwitch(JSONRequest):
    """What is done with a server's request for GPUs, or with its GPUs."""

    request_model = _SwitchRequest
    action: str

    async def answer(self, asked: _SwitchRequest) -> dict[str, Any]:
        """Do it."""
        switch = self._control.switches.find(Holder(asked.user, asked.server))
        await getattr(switch, self.action)(asked.by)
        return {}


class _Leave(_OfSwitch):
    """The request is withdrawn, or what is reserved let go."""

    action = "leave"


class _Switch(_OfSwitch):
    """The server is restarted with what is reserved for it."""

    action = "switch"


class _GiveBack(_OfSwitch):
    """The server is restarted without its GPUs."""

    action = "give_back"


class _Server(JSONRequest):
    """What is done with one server."""

    request_model: type[BaseModel] = _ServerRequest

    async def answer(self, asked: _ServerRequest) -> dict[str, Any]:
        """Find it, and do it."""
        return self.do(await self._control.find_lease(Holder(asked.user, asked.server)), asked)

    @abstractmethod
    def do(self, server: Any, asked: Any) -> dict[str, Any]:
        """Perform the action and return the answer.

        Args:
            server: the server's lease.
            asked: the body of the request.

        Raises:
            Refused: it can't be done.
        """


class _Extend(_Server):
    """Extend a lease."""

    request_model = _ExtendRequest

    def do(self, server: Any, asked: _ExtendRequest) -> dict[str, Any]:
        """Give it, and return the server's new end."""
        return {"until": server.extend(asked.hours, asked.by, asked.over_all)}


class _Devices(_Server):
    """Whether a server can open its GPUs' devices, as its own program says."""

    request_model = _DevicesRequest

    def do(self, server: Any, asked: _DevicesRequest) -> dict[str, Any]:
        """Note it."""
        server.note_devices(asked.gone)
        return {}


class _KeepAlive(_Server):
    """Keep the idle GPUs of a server, as its user still needs them; or those of a turn."""

    async def answer(self, asked: _ServerRequest) -> dict[str, Any]:
        """Find the turn or the server, and do it."""
        if turn := self._control.turn_of(Holder(asked.user, asked.server)):
            turn.confirm()
            return {}
        return await super().answer(asked)

    def do(self, server: Any, asked: _ServerRequest) -> dict[str, Any]:
        """Reset the idle time."""
        server.keep_alive()
        return {}


class _Courses(JSONRequest):
    """The courses that somebody teaches."""

    request_model = CoursesRequest

    async def answer(self, asked: CoursesRequest) -> dict[str, Any]:
        """Return them."""
        asker = asked.asker
        courses = self._control.instructors.courses_of(asker)
        return {"courses": courses, "open_hours": self._control.open_hours_for(asker)}


class _Course(JSONRequest):
    """A course's members, and what they run for it."""

    request_model = _CourseRequest

    async def answer(self, asked: _CourseRequest) -> dict[str, Any]:
        """Return them."""
        return await self._control.instructors.roster(asked.course, asked.asker)


class _CourseExtend(JSONRequest):
    """More time for the servers of a course."""

    request_model = _CourseExtendRequest

    async def answer(self, asked: _CourseExtendRequest) -> dict[str, Any]:
        """Give it."""
        of, who = self._control.instructors, asked.asker
        return await of.extend(asked.course, who, asked.holder, asked.hours)


class _CourseStop(JSONRequest):
    """The stop of a course's server."""

    request_model = _CourseStopRequest

    async def answer(self, asked: _CourseStopRequest) -> dict[str, Any]:
        """Stop it, or announce that."""
        of, who = self._control.instructors, asked.asker
        await of.stop(asked.course, who, asked.holder, asked.why, asked.minutes)
        return {}


class _CourseKeep(JSONRequest):
    """The announced stop of a course's server is taken back."""

    request_model = _CourseServerRequest

    async def answer(self, asked: _CourseServerRequest) -> dict[str, Any]:
        """Do so."""
        await self._control.instructors.keep(asked.course, asked.asker, asked.holder)
        return {}


class _CourseMessage(JSONRequest):
    """A message to those whose servers run for a course."""

    request_model = _CourseMessageRequest

    async def answer(self, asked: _CourseMessageRequest) -> dict[str, Any]:
        """Send it."""
        of, who = self._control.instructors, asked.asker
        return {"sent": await of.send(asked.course, who, asked.holder, asked.text)}


class _CourseFront(JSONRequest):
    """A place at the front of a course's."""

    request_model = _CourseServerRequest

    async def answer(self, asked: _CourseServerRequest) -> dict[str, Any]:
        """Give it."""
        of, who = self._control.instructors, asked.asker
        return {"place": await of.move_to_front(asked.course, who, asked.holder)}


def _first_error(error: ValidationError) -> str:
    """Return the first error of a request's body, without its values."""
    details = error.errors()[0]
    where = ".".join(map(str, details["loc"]))[:MAX_NAME_LENGTH]
    return f"{where}: {details['msg']}" if where else details["msg"]


def _entry(entry: QueueEntry) -> dict[str, Any]:
    turn = entry.turn
    return {
        "user": entry.holder.user,
        "server": entry.holder.server,
        "gpus": entry.waiting.request.gpus,
        "kind": entry.waiting.request.kind,
        "model": entry.waiting.request.model,
        "seconds": entry.waiting.request.seconds,
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
        except BlockingIOError:  # its backlog is full
            return True
        except OSError:
            return False
    return True


class _SocketResolver(Resolver):
    """A resolver that returns a Unix socket for every host name."""

    def initialize(self, path: str) -> None:  # type: ignore[override]  # tornado's way to construct
        """Take the socket's path."""
        self._path = path

    async def resolve(self, *_: Any, **__: Any) -> list[tuple[int, Any]]:
        """Return the socket's address."""
        return [(socket.AF_UNIX, self._path)]


async def ask(
    path: str, question: Mapping[str, Any], seconds: float = TIMEOUT_SECONDS
) -> dict[str, Any]:
    """Send a request to the hub's control socket; return the answer, which may be an error's.

    Args:
        path: the socket's path.
        question: `do`, the last part of an address above, and the fields of its body.
        seconds: how long to wait for the answer.

    Raises:
        OSError: the hub doesn't answer.
        ValueError: the answer isn't a hub's.
    """
    fields = {name: value for name, value in question.items() if name != "do"}
    what = question["do"]
    request = HTTPRequest(
        f"http://hub/{quote(what, safe='')}",
        method="GET" if what in READ_ONLY else "POST",
        body=None if what in READ_ONLY else json.dumps(fields),
        connect_timeout=TIMEOUT_SECONDS,
        request_timeout=seconds,
        follow_redirects=False,
    )
    client = SimpleAsyncHTTPClient(force_instance=True, resolver=_SocketResolver(path=path))
    try:
        answer = parse_json((await client.fetch(request, raise_error=False)).body)
    except HTTPClientError as error:  # no answer within the time, or not the whole of one
        raise OSError(f"the hub doesn't answer: {error}") from error
    finally:
        client.close()
    if not isinstance(answer, dict):
        raise ValueError("what answers is no hub")
    return answer
