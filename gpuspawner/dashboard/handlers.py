"""The HTTP handlers of the dashboard: its pages and its JSON API."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jupyterhub.services.auth import HubAuthenticated, HubOAuthCallbackHandler
from tornado import web

from ..errors import Refused
from ..gpus.machine_names import is_administrator
from ..gpus.model import Holder
from ..i18n.languages import Language, language_for
from ..i18n.lazy_text import lazy_gettext
from ..i18n.phrases import clock_time
from ..untrusted import parse_json
from . import pages
from .actions import Actions
from .courses import CourseActions
from .facts import Person, iso_time, request_facts, status
from .login import Login
from .monitor import PERIOD_SECONDS, Monitor

FOLDER = Path(__file__).parent
# Of those who have it for themselves the hub is asked whether they are instructors. A token of a
# server's doesn't: what runs there, others may have written.
INSTRUCTORS_SCOPE = "read:users:groups"
# The largest request, and how much is read of a larger one, so that it is told so.
MAX_BODY_BYTES = 64 * 1024
MAX_READ_BYTES = 2 * MAX_BODY_BYTES
# The longest address: two names of 255 characters, each of which takes up to 12 there.
MAX_ADDRESS = 8 * 1024
# How much of an address or a message a line of the log quotes, in characters.
MAX_LOGGED = 200

log = logging.getLogger("gpuspawner.dashboard")
DEFAULT_PORTS = {"http": 80, "https": 443}
# For how long a browser needn't ask again whether it may show a token.
PREFLIGHT_SECONDS = 600


class Handler(HubAuthenticated, web.RequestHandler):
    """Base class. Users who aren't logged in are redirected to the hub, or get 403 from the API."""

    hub_auth_class = Login

    def initialize(self, monitor: Monitor, actions: Actions, names: str) -> None:
        """Set what all handlers share."""
        self.monitor = monitor
        self.actions = actions
        self._names = names

    def set_default_headers(self) -> None:
        """Set the security headers."""
        host = self.hub_auth.hub_host
        ours = f"'self' {host}" if host else "'self'"
        policy = {
            "default-src": "'none'",
            "script-src": ours,
            "style-src": ours,
            # Bootstrap's own symbols are in its style sheet.
            "img-src": f"{ours} data:",
            "font-src": ours,
            "connect-src": "'self'",
            "form-action": "'self'",
            "base-uri": "'none'",
            "frame-ancestors": "'none'",
        }
        words = "; ".join(f"{name} {value}" for name, value in policy.items())
        self.set_header("Content-Security-Policy", words)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Cache-Control", "no-store")

    async def prepare(self) -> None:
        """Check the request's size, authenticate the user, and check the XSRF token."""
        self._check_size()
        await self.hub_auth.get_user(self, sync=False)
        if self.request.method not in ("GET", "HEAD", "OPTIONS") and self.current_user:
            self.check_xsrf_cookie()

    def _check_size(self) -> None:
        """Refuse a request that is larger than any of ours."""
        if len(self.request.uri or "") > MAX_ADDRESS:
            raise web.HTTPError(414, f"An address has at most {MAX_ADDRESS} characters.")
        if len(self.request.body) > MAX_BODY_BYTES:
            raise web.HTTPError(413, f"A request has at most {MAX_BODY_BYTES} bytes.")

    @property
    def person(self) -> Person:
        """The user who asks."""
        model = self.current_user
        scopes = model.get("scopes", ())
        administrator = is_administrator(scopes)
        name = model["name"] if model.get("kind") == "user" else ""
        own = (INSTRUCTORS_SCOPE, f"{INSTRUCTORS_SCOPE}!user={name}")
        return Person(
            name,
            administrator,
            administrator or self._names == "everybody",
            frozenset(model.get("groups") or ()),
            bool(name) and any(scope in scopes for scope in own),
        )

    @property
    def language(self) -> Language:
        """The user's language, in which machines are named as far as the user may know that."""
        of_browser = language_for(self.request.headers.get("Accept-Language", ""))
        try:
            administrator = bool(self.current_user) and self.person.administrator
        except web.HTTPError:  # what was sent can't be read, and a page is to say so
            administrator = False
        return of_browser.naming(self.monitor.last.names_machines_for(administrator))

    @property
    def token(self) -> str:
        """The user's token."""
        return self.hub_auth.get_token(self) or ""

    @property
    def xsrf(self) -> str:
        """The XSRF token for forms."""
        token = self.xsrf_token
        return token.decode("ascii") if isinstance(token, bytes) else str(token)

    @property
    def courses(self) -> CourseActions:
        """What is done with courses."""
        return CourseActions(self.actions)

    async def find_courses(self) -> None:
        """Find out whose courses the page's bar leads to; none where the hub doesn't say."""
        with suppress(Refused):
            self._taught, self._open_hours = await self.courses.taught(self.person)

    # The courses that the user may act in, where the page has asked for them.
    _taught: Sequence[Mapping[str, Any]] = ()
    # How many requests for reserved hours wait for an administrator's decision.
    _open_hours = 0

    def keep_message(self, how: str, words: str) -> None:
        """Keep a message for the next page; `how`: "done" or "refused"."""
        # In a signed cookie: another process may serve the next page.
        self.set_secure_cookie(
            "said", f"{how}:{words}"[:1000], path=self.hub_auth.base_url, expires_days=None,
            httponly=True, samesite="Lax",
        )  # fmt: skip

    def take_message(self) -> dict[str, Any]:
        """Return the message that was kept, for `page`."""
        said = self.get_secure_cookie("said", max_age_days=1)
        if said:
            self.clear_cookie("said", path=self.hub_auth.base_url)
        done, _colon, words = (said or b"").decode().partition(":")
        return {"said": words, "done": done == "done"}

    def minutes(self) -> int:
        """Return in how many minutes a server is to be stopped, of those that the form offers."""
        later = self.get_body_argument("when", "") == str(pages.STOP_MINUTES)
        return pages.STOP_MINUTES if later else 0

    def page(self, template: str, facts: dict[str, Any], **more: Any) -> str:
        """Return a page's HTML."""
        more = {"courses": self._taught, "open_hours": self._open_hours, **more}
        return pages.render(
            template,
            self.language,
            facts,
            hub=f"{self.hub_auth.hub_host}{self.hub_auth.hub_prefix}",
            base=self.hub_auth.base_url,
            static=lambda name: self.static_url(name),
            period=PERIOD_SECONDS + 1,
            **more,
        )

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Show an error page."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(self.page("error.html", {}, status=status_code, detail=_error_message(error)))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log an HTTP error in one short line, whatever was sent; others with their traceback."""
        if not isinstance(value, web.HTTPError):
            super().log_exception(typ, value, tb)
        elif message := " ".join(_error_message(value).split()):
            method, address = self.request.method, self.request.uri or ""
            what = f"{method} {address[:MAX_LOGGED]}: {message[:MAX_LOGGED]}"
            log.warning("%d %s", value.status_code, what)


def is_below(origin: str, hub_host: str) -> bool:
    """Return whether an origin is a domain below the hub's, as users' and services' are.

    Args:
        origin: what a browser says where a page comes from, as "https://ada.hub.example".
        hub_host: the hub's own; "" without `subdomain_host`.
    """
    try:
        (page, page_port), (hub, hub_port) = (
            (parts, parts.port or DEFAULT_PORTS.get(parts.scheme))
            for parts in map(urlsplit, (origin, hub_host))
        )
    except ValueError:
        return False
    below = bool(hub.hostname) and (page.hostname or "").endswith(f".{hub.hostname}")
    return below and (page.scheme, page_port) == (hub.scheme, hub_port)


def _error_message(error: Any) -> str:
    # Tornado keeps the message as a format and its arguments.
    words = getattr(error, "log_message", None)
    return str(words) % error.args if words else ""


class Page(Handler):
    """The dashboard, and the forms on it."""

    @web.authenticated
    async def get(self) -> None:
        """Show it."""
        facts = status(await self.monitor.snapshot(), self.person)
        await self.find_courses()
        self.finish(self.page("page.html", facts, xsrf=self.xsrf, **self.take_message()))

    @web.authenticated
    async def post(self) -> None:
        """Perform a form's action, and show the page again with the result."""
        try:
            done = await self._do(self.get_body_argument("do", ""))
            self.keep_message("done", self.language.say(done))
        except Refused as refusal:
            self.keep_message("refused", self.language.say(str(refusal)))
        self.redirect(self.hub_auth.base_url, status=303)

    async def _do(self, what: str) -> str:
        user, server = self.get_body_argument("user", ""), self.get_body_argument("server", "")
        gpu = self.get_body_argument("gpu", "")
        if what == "extend":
            until = await self.actions.extend(self.person, user, server)
            if self.person.is_user(user):
                return lazy_gettext("Your server now ends at %(time)s.", time=clock_time(until))
            return lazy_gettext(
                "The server of %(name)s now ends at %(time)s.",
                name=str(Holder(user, server)),
                time=clock_time(until),
            )
        if what == "here":
            await self.actions.keep_alive(self.person, user, server)
            return lazy_gettext("The server's GPUs stay yours.")
        if what == "stop":
            why, minutes = self.get_body_argument("why", ""), self.minutes()
            await self.actions.stop(self.person, self.token, user, server, why, minutes)
            if minutes:
                return lazy_gettext(
                    "The server is stopped in %(minutes)s minutes.", minutes=minutes
                )
            return lazy_gettext("The server stops, once what runs in it has saved.")
        if what == "keep":
            await self.actions.keep(self.person, user, server)
            return lazy_gettext("The server goes on.")
        if what == "stop-orphan":
            await self.actions.stop_orphan(self.person, self.get_body_argument("id", ""))
            return lazy_gettext("The server stops, once what runs in it has saved.")
        if what == "switch":
            await self.actions.switch(self.person, user, server)
            return lazy_gettext("The server saves, and starts again with its GPUs.")
        if what == "let-go":
            await self.actions.withdraw(self.person, user, server)
            return lazy_gettext("Nothing is reserved for the server any more.")
        if what == "give-back":
            await self.actions.give_back(self.person, user, server)
            return lazy_gettext("The server saves, and starts again without GPUs.")
        if what == "leave":
            await self.actions.leave(self.person, self.token, user, server)
            if self.person.is_user(user):
                return lazy_gettext("You have left the queue.")
            return lazy_gettext("%(name)s doesn't wait any more.", name=user)
        if what == "out-of-service":
            await self.actions.take_out(self.person, gpu, self.get_body_argument("why", ""))
            return lazy_gettext("The GPU is out of service. Nothing new is placed on it.")
        if what == "in-service":
            await self.actions.put_back(self.person, gpu)
            return lazy_gettext("The GPU is in service again.")
        raise Refused(lazy_gettext("That can't be done here."))


class Callback(Handler, HubOAuthCallbackHandler):
    """Where the hub's log-in leads back to."""

    async def prepare(self) -> None:
        """Check the request's size; nobody is logged in yet."""
        self._check_size()

    async def get(self) -> None:
        """Finish the log-in."""
        try:
            await HubOAuthCallbackHandler.get(self)
        except web.HTTPError as error:
            if error.status_code != 500:
                raise
            # The hub doesn't know the code, or doesn't answer.
            log.warning("A log-in failed: %s", _error_message(error)[:MAX_LOGGED])
            raise web.HTTPError(
                403, "JupyterHub didn't finish the log-in. Please open this page again."
            ) from None


class LivePart(Handler):
    """The part of the page that changes, for the script."""

    async def get(self) -> None:
        """Send it."""
        if not self.current_user:
            raise web.HTTPError(403)
        facts = status(await self.monitor.snapshot(), self.person)
        self.finish(self.page("live.html", facts, xsrf=self.xsrf))


class _Answer(web.HTTPError):
    """An error of the JSON API.

    Args:
        status: the HTTP status.
        sentence: for people.
        key: the key of the request whose value is refused; "": none of its own.
    """

    def __init__(self, status: int, sentence: str, key: str) -> None:
        super().__init__(status, "%s", sentence)
        self.key = key


class API(Handler):
    """JSON. A token in the header, or the browser's log-in with its XSRF token in the header."""

    def set_default_headers(self) -> None:
        """Let JupyterLab's page ask from its user's domain: with a token, not with cookies."""
        super().set_default_headers()
        self.set_header("Vary", "Origin")
        origin = self.request.headers.get("Origin", "")
        if is_below(origin, self.hub_auth.hub_host):
            self.set_header("Access-Control-Allow-Origin", origin)
            self.set_header("Access-Control-Allow-Headers", "Authorization, Content-Type")
            self.set_header("Access-Control-Allow-Methods", "GET, POST, PUT, DELETE")
            self.set_header("Access-Control-Max-Age", str(PREFLIGHT_SECONDS))

    def options(self, *_: str) -> None:
        """Answer what a browser asks before it shows a token to another domain."""
        self.set_status(204)

    async def prepare(self) -> None:
        """Refuse users who aren't logged in."""
        if self.request.method == "OPTIONS":
            return
        await super().prepare()
        if not self.current_user:
            raise web.HTTPError(403, "A token that may use this service is missing.")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer with an error in the form of the hub's API."""
        if status_code == 405:
            self.set_header("Allow", ", ".join(self._methods()))
        error = kwargs.get("exc_info", (None, None, None))[1]
        answer = {"status": status_code, "message": _error_message(error) or self._reason}
        key = getattr(error, "key", "")
        self.finish({**answer, "key": key} if key else answer)

    def _methods(self) -> list[str]:
        """Return the methods that there are at this address, as a 405 has to name them."""
        ours, plain = type(self), web.RequestHandler
        return [
            name
            for name in self.SUPPORTED_METHODS
            if getattr(ours, name.lower()) is not getattr(plain, name.lower())
        ]

    async def answer(self, work: Awaitable[Any]) -> Any:
        """Await an action; answer with an error if it is refused."""
        try:
            return await work
        except Refused as refusal:
            raise _Answer(refusal.status, self.language.say(str(refusal)), refusal.key) from None

    def body(self) -> dict[str, Any]:
        """Return the request's JSON; {} where there is none."""
        try:
            found = parse_json(self.request.body or b"{}")
        except ValueError:
            raise web.HTTPError(400, "The request isn't JSON.") from None
        if not isinstance(found, dict):
            raise web.HTTPError(400, "The request isn't a JSON object.")
        return found

    @staticmethod
    def text(body: Mapping[str, Any], key: str) -> str:
        """Return a text of the request's JSON; "" where there is none."""
        value = body.get(key, "")
        if not isinstance(value, str):
            raise _Answer(400, f"{key} must be text.", key)
        return value

    @staticmethod
    def number(body: Mapping[str, Any], key: str) -> float | None:
        """Return a number of the request's JSON; None where there is none."""
        value = body.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise _Answer(400, f"{key} must be a number.", key)
        return value


class Status(API):
    """All facts that the user may see."""

    async def get(self) -> None:
        """Answer."""
        history = self.get_query_argument("history", "true")
        if history not in ("true", "false"):
            raise _Answer(400, "history must be true or false.", "history")
        facts = status(await self.monitor.snapshot(), self.person, history=history == "true")
        for request in facts["requests"]:
            request["notice"] = self.language.say(request["notice"])
        for gpu in facts["gpus"]:
            gpu["node"] = self.language.say(gpu["node"])
        for node in facts["nodes"]:
            node["name"] = self.language.say(node["name"])
        self.finish(facts)


class Server(API):
    """One server; the default one where no name is given."""

    async def delete(self, user: str, server: str | None = None) -> None:
        """Stop it, for a reason and later where an administrator says so."""
        body = self.body()
        why, minutes = self.text(body, "why"), self.number(body, "minutes") or 0
        await self.answer(
            self.actions.stop(self.person, self.token, user, server or "", why, minutes)
        )
        self.set_status(204)


class Keep(API):
    """The stop of a server that an administrator has announced."""

    async def delete(self, user: str, server: str | None = None) -> None:
        """Take it back."""
        await self.answer(self.actions.keep(self.person, user, server or ""))
        self.set_status(204)


class Extend(API):
    """Extend a server's lease."""

    async def post(self, user: str, server: str | None = None) -> None:
        """Extend it."""
        hours = self.number(self.body(), "hours")
        work = self.actions.extend(self.person, user, server or "", hours)
        self.finish({"until": iso_time(await self.answer(work))})


class KeepAlive(API):
    """Keep a server's idle GPUs, as its user still needs them."""

    async def post(self, user: str, server: str | None = None) -> None:
        """Reset its idle time."""
        await self.answer(self.actions.keep_alive(self.person, user, server or ""))
        self.set_status(204)


class Devices(API):
    """Whether a server can open its GPUs' devices."""

    async def post(self, user: str, server: str | None = None) -> None:
        """Note what its image says."""
        gone = self.body().get("gone")
        if not isinstance(gone, bool):
            raise _Answer(400, "gone must be true or false.", "gone")
        await self.answer(self.actions.note_devices(self.person, user, server or "", gone))
        self.set_status(204)


class GPURequest(API):
    """What a server that runs without GPUs asks for."""

    async def post(self, user: str, server: str | None = None) -> None:
        """Ask for GPUs."""
        body = self.body()
        gpus, model = self.number(body, "gpus"), self.text(body, "model")
        kind = self.text(body, "kind")
        found = await self.answer(
            self.actions.ask_for_gpus(self.person, user, server or "", gpus, model, kind)
        )
        self.finish(request_facts(found))

    async def delete(self, user: str, server: str | None = None) -> None:
        """Withdraw that, or let what is reserved go."""
        await self.answer(self.actions.withdraw(self.person, user, server or ""))
        self.set_status(204)


class Switch(API):
    """The restart of a server with what is reserved for it."""

    async def post(self, user: str, server: str | None = None) -> None:
        """Begin it."""
        await self.answer(self.actions.switch(self.person, user, server or ""))
        self.set_status(204)


class ServersGPUs(API):
    """The GPUs of a server."""

    async def delete(self, user: str, server: str | None = None) -> None:
        """Give them back."""
        await self.answer(self.actions.give_back(self.person, user, server or ""))
        self.set_status(204)


class OrphanServer(API):
    """A server that the hub doesn't know."""

    async def delete(self, server_id: str) -> None:
        """Stop it."""
        await self.answer(self.actions.stop_orphan(self.person, server_id))
        self.set_status(204)


class OutOfService(API):
    """Whether a GPU is out of service."""

    async def put(self, uuid: str) -> None:
        """Take it out."""
        why = self.text(self.body(), "why")
        await self.answer(self.actions.take_out(self.person, uuid, why))
        self.set_status(204)

    async def delete(self, uuid: str) -> None:
        """Put it back."""
        await self.answer(self.actions.put_back(self.person, uuid))
        self.set_status(204)


class Description(API):
    """The API's own description, as OpenAPI."""

    async def get(self) -> None:
        """Send it."""
        self.set_header("Content-Type", "application/yaml")
        self.finish((FOLDER / "openapi.yaml").read_text())


class Static(web.StaticFileHandler):
    """Our style sheet and script: the same for everybody, and no secret."""

    def set_extra_headers(self, path: str) -> None:
        """Keep browsers from guessing what it is."""
        self.set_header("X-Content-Type-Options", "nosniff")


def routes(prefix: str, base_url: str, shared: dict[str, Any]) -> list[Any]:
    """Return what is where, below the service's prefix.

    Programs in servers come past the proxy, by an address that a configuration has in a line, so
    the API is there without the hub's own prefix too.

    Args:
        prefix: as "/jupyter/services/gpus/".
        base_url: the hub's own of that, as "/jupyter/".
    """
    # They are handlers of this module's kind.
    from .course_handlers import COURSE_ROUTES
    from .history_handlers import HistoryAPI, HistoryPage
    from .hours_handlers import HOURS_ROUTES
    from .usage_handlers import UsageAPI, UsagePage
    from .week_handlers import CalendarAPI, WeekAPI, WeekPage

    below = re.escape(prefix)
    of_api = f"(?:{below}|/{re.escape(prefix.removeprefix(base_url))})"
    server = r"api/users/([^/]+)/server(?:s/([^/]+))?"
    handlers: list[tuple[str, Callable[..., Any]]] = [
        ("", Page),
        ("live", LivePart),
        ("usage", UsagePage),
        ("api/usage", UsageAPI),
        ("history", HistoryPage),
        ("api/history", HistoryAPI),
        ("week", WeekPage),
        ("api/week", WeekAPI),
        (r"api/reserved\.ics", CalendarAPI),
        ("api/status", Status),
        ("api/openapi.yaml", Description),
        (server, Server),
        (f"{server}/extend", Extend),
        (f"{server}/here", KeepAlive),
        (f"{server}/devices", Devices),
        (f"{server}/stop", Keep),
        (f"{server}/gpu-request", GPURequest),
        (f"{server}/switch", Switch),
        (f"{server}/gpus", ServersGPUs),
        ("api/gpus/([^/]+)/out-of-service", OutOfService),
        ("api/orphans/([^/]+)", OrphanServer),
        *COURSE_ROUTES,
        *HOURS_ROUTES,
    ]
    return [
        (rf"{below}oauth_callback", Callback, shared),
        *(
            (f"{of_api if path.startswith('api/') else below}{path}", handler, shared)
            for path, handler in handlers
        ),
        (".*", NotFound, shared),
    ]


class NotFound(Handler):
    """Any other path."""

    async def get(self) -> None:
        """Answer 404."""
        raise web.HTTPError(404)

    post = put = delete = get
