"""All uses of undocumented interfaces of JupyterHub and DockerSpawner, and the reasons for them.

Documented interfaces are used wherever they suffice. Each of these was checked in JupyterHub 5.5.0
and 6.1.1, and has a test that fails when JupyterHub changes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from types import SimpleNamespace
from typing import Any, TypeVar
from urllib.parse import urlsplit

from jupyterhub import orm
from jupyterhub.apihandlers.users import UserServerAPIHandler
from jupyterhub.app import JupyterHub
from jupyterhub.handlers import BaseHandler
from jupyterhub.handlers.pages import SpawnPendingHandler
from jupyterhub.scopes import get_scopes_for
from sqlalchemy import event, inspect
from sqlalchemy.exc import SQLAlchemyError
from tornado import web
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine
from traitlets import observe

from ..errors import Refused
from ..gpus.machine_names import is_administrator
from ..i18n.lazy_text import lazy_gettext
from ..leases.audit_log import one_line
from ..settings import SpawnerMixin

T = TypeVar("T")

NOT_READ = lazy_gettext("JupyterHub can't read its database now. Please try again.")
# What users read whose start can't be written into the hub's database.
NOT_WRITTEN = lazy_gettext(
    "JupyterHub can't write into its database, so your server was stopped again. An administrator "
    "can mend it."
)
# The pause until a stop whose end couldn't be written is tried again.
STOP_AGAIN_SECONDS = 5.0
# The pause until a start is tried again that the hub has no room for, and how often it is.
START_AGAIN_SECONDS = 2.0
START_TRIES = 30
# Its key in the settings of the hub's web application: that application.
APPLICATION_KEY = "gpuspawner_application"
# The group overrides that apply, while they are looked for.
_found: ContextVar[list[dict[str, Any]]] = ContextVar("found")
# The server for which the hub has just saved a choice, in the task that does so.
_saved_for: ContextVar[Any] = ContextVar("saved_for", default=None)
# Who has a server stopped by the REST API, in the task that does so: "user" or "service", a name.
_stops: ContextVar[tuple[str, str]] = ContextVar("stops", default=("", ""))


class UnofficialHooks(SpawnerMixin):
    """Undocumented methods of `Spawner` that JupyterHub calls, under names of our own."""

    async def check_options(self, user_options: Any) -> Any:
        """Return the choice that holds, for the administrator's own `apply_user_options`."""

    async def _run_apply_user_options(self, user_options: Any) -> None:
        # The trait `apply_user_options` is the official hook, and the administrator's to set: a
        # check in its default would go with it. It runs after group overrides and before the
        # pre-spawn hook, for form, link and REST alike, which nothing else does.
        # ref: User.spawn in jupyterhub/user.py
        # It is also what each start awaits, in its task.
        if task := asyncio.current_task():
            task.add_done_callback(self._start_may_have_broken_off)
        checked = await self.check_options(user_options)
        if self.apply_user_options:
            await super()._run_apply_user_options(checked)

    async def overrides_that_apply(self) -> list[dict[str, Any]]:
        """Return what the group overrides that apply to the user now set, each in its order."""
        # `apply_group_overrides` is official; what it calls for each override isn't. Without this
        # nobody could say which override is wrong, undo one when its group is left, let the
        # stricter of two hold, or keep what a hook has set since.
        # ref: Spawner.apply_group_overrides in jupyterhub/spawner.py
        found: list[dict[str, Any]] = []
        token = _found.set(found)
        try:
            await super().apply_group_overrides()
        finally:
            _found.reset(token)
        return found

    def apply_override(self, override: dict[str, Any]) -> None:
        """Apply what a group override sets, as JupyterHub does."""
        super()._apply_overrides(override)

    def _apply_overrides(self, spawner_override: dict[str, Any]) -> None:
        _found.get().append(spawner_override)

    @property
    def pending(self) -> Any:
        """What is under way; "stop" as soon as a start is given up."""
        # `pending` is documented; that a start which is being cancelled is still "spawn" isn't. The
        # hub takes the next request to give it up for the first one then, waits for a second, and
        # answers it with 500, as the server is gone.
        # ref: UserServerAPIHandler.delete in jupyterhub/apihandlers/users.py
        found = super().pending
        # Before Python 3.11 a task doesn't tell.
        given_up = getattr(self._spawn_future, "cancelling", int)()
        return "stop" if found == "spawn" and given_up else found

    def stop_polling(self) -> None:
        """Look no more whether the server runs; with this each stop begins."""
        # Documented; what stops and starts do isn't. Where their end can't be written into the
        # database they break off: the server is "pending stop" until the hub is restarted, or
        # "ready" without being there, or it is there and nobody is led to it.
        # ref: User.spawn and User.stop in jupyterhub/user.py
        super().stop_polling()
        with suppress(RuntimeError):  # no event loop: the hub's own command line
            if task := asyncio.current_task():
                task.add_done_callback(self._stop_may_have_broken_off)

    _stop_pending: bool
    # The task of the last start.
    start_task: asyncio.Task[Any] | None = None

    def _start_may_have_broken_off(self, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, SQLAlchemyError):
            # Else users read of an unknown error.
            error.jupyterhub_message = error.sentence = NOT_WRITTEN  # type: ignore[attr-defined]
            if self.start_task:  # the hub leaves it alone where its beginning can't be written
                self.start_task.cancel()
            self._stop_what_is_left()

    def _stop_may_have_broken_off(self, task: asyncio.Task[Any]) -> None:
        # All tasks are cancelled when the hub ends. And looking anew begins with looking no more.
        if not task.cancelled() and self._poll_callback is None:
            self._stop_what_is_left()

    def _stop_what_is_left(self) -> None:
        if self._stopping_again or not self.orm_spawner:
            return
        database = self.user.db
        if not database.is_active:  # else every other use of the session fails
            database.rollback()
        if self._stop_pending or self.server:
            self._stop_pending = True
            self._stopping_again = asyncio.ensure_future(self._stop_until_it_ends())

    _stopping_again: asyncio.Task[None] | None = None

    async def _stop_until_it_ends(self) -> None:
        try:
            while self._stop_pending and dict.get(self.user.spawners, self.name) is self:
                try:
                    await self.user.stop(self.name)
                except Exception as error:
                    self.user.db.rollback()
                    # What SQLAlchemy says has the statement in it, with its values.
                    unwritten = isinstance(error, SQLAlchemyError)
                    said = "the database can't be written" if unwritten else one_line(error)
                    self.log.error("Stopping %s failed: %s", self.log_name, said)
                    await asyncio.sleep(STOP_AGAIN_SECONDS)
        finally:
            self._stopping_again = None

    def on_request(self, handler: Any) -> None:
        """Called with the tornado handler of each request for this spawner; None: it has ended."""

    @observe("handler")
    def _handler_changed(self, change: Any) -> None:
        # `handler` is documented, for `options_form` and `start`. That it is set before the form is
        # made, for each request anew, is not.
        # ref: SpawnHandler in jupyterhub/handlers/pages.py
        self.on_request(change.new)


def saved_options(spawner: Any) -> Any:
    """Return the options that the hub has saved for a server's next start; None if it has none.

    The documented `Spawner.user_options` is empty until the server's first start in this process.
    """
    return spawner.orm_spawner.user_options if spawner.orm_spawner else None


def save_options(spawner: Any, user_options: Any) -> None:
    """Replace the saved options of a server, after the hub has saved ones that were refused.

    The hub saves options before they can be checked, and would use them again at every start.
    """
    if spawner.orm_spawner:
        spawner.orm_spawner.user_options = user_options


def repeats_saved_options(spawner: Any) -> bool:
    """Return whether this start repeats the saved options, as nobody has sent others for it.

    The hub passes both on in the same way. It has saved those that were sent, in this task.
    ref: User.spawn in jupyterhub/user.py. Needs `guard_saved_options`.
    """
    saved = spawner.orm_spawner
    return saved is not None and _saved_for.get() is not saved


def guard_saved_options(
    may_be_saved: Callable[[Any], bool], refusal: Callable[[], Exception | None]
) -> Callable[[], None]:
    """Have the hub save no choice that may not be; return what ends that.

    It writes a choice to its database as it came, before a spawner can look at it: of a start, and
    (PUT and PATCH of a server) of a later one. `repeats_saved_options` needs this as well.

    Args:
        may_be_saved: tells that of a choice.
        refusal: returns what to raise instead; None: the choice of before stays, and somebody else
            refuses, since what the hub does then can't be broken off there.
    """

    def guard(orm_spawner: Any, value: Any, before: Any, initiator: Any) -> Any:
        _saved_for.set(orm_spawner)
        if may_be_saved(value):
            return value
        if error := refusal():
            raise error
        return before if isinstance(before, dict) else None

    event.listen(orm.Spawner.user_options, "set", guard, retval=True, active_history=True)
    return lambda: event.remove(orm.Spawner.user_options, "set", guard)


def save_state(spawner: Any) -> None:
    """Save a server's state in the hub's database now, so that it survives a crash.

    The hub itself saves it only at the end of a start or a stop. Where the database can't be
    written, as on a full disk, the server goes on all the same.
    """
    if not (spawner.orm_spawner and spawner.user):
        return
    # Not `spawner.db`, which JupyterHub means to take from spawners.
    database = spawner.user.db
    try:
        spawner.orm_spawner.state = spawner.get_state()
        database.commit()
    except SQLAlchemyError as error:
        # Until then every other use of the session fails.
        database.rollback()
        spawner.log.error(
            "The state of %s can't be saved, and a restart of the hub would lose it: %s",
            one_line(spawner.log_name),
            one_line(getattr(error, "orig", error)),
        )


def has_begun_start(spawner: Any) -> bool:
    """Return whether the hub's database has a server as one that starts or runs.

    A hub that begins reads so what the last one was about when it was killed: a start's first
    step writes it, long before there is anything of ours to save.
    """
    return bool(spawner.orm_spawner and spawner.orm_spawner.server)


def is_forgotten(spawner: Any) -> bool:
    """Return whether the hub has deleted a server, or its user, from its database.

    `delete_forever` is called before, and the hub may fail to delete them afterwards.
    """
    return not inspect(spawner.orm_spawner).persistent


def user_since(spawner: Any) -> datetime:
    """Return when the hub has put a server's user into its database, in UTC.

    The REST API says it; a spawner has no other way to it.
    """
    since: datetime = spawner.user.orm_user.created
    return since


def answer_instead_of_page(answer: str) -> web.Finish:
    """Return the exception with which `options_form` answers a request in place of the page.

    JupyterHub has no URLs for spawners that the form's script could request: `extra_handlers` is
    deprecated, and a service doesn't know the queue.
    """
    return web.Finish(answer) if answer else web.Finish()


def handler_of_page(static_url: Any) -> Any:
    """Return the handler that renders a page, from the template's `static_url`; None if unknown.

    Templates of `template_paths` get the spawner, but neither request nor handler, which alone
    knows the language. `static_url` is one of the handler's methods.
    """
    return getattr(static_url, "__self__", None)


def is_by_administrator(handler: Any) -> bool:
    """Return whether a request is an administrator's, by the scopes that the hub found it to have.

    Every handler of the hub's has them before it answers; `needs_scope` alone is documented.
    """
    return is_administrator(getattr(handler, "expanded_scopes", ()))


def start_link(spawn_url: str, static_url: Any) -> str:
    """Return where a page's button starts a server: with the options of the link that led there.

    Who opens a link while the server stops is led to a page that waits, with the link's options in
    its address; once the server has stopped JupyterHub's page there has a button without them.
    """
    handler = handler_of_page(static_url)
    if not isinstance(handler, SpawnPendingHandler):
        return spawn_url
    link: str = handler.append_query_parameters(spawn_url, exclude=["_xsrf", "present"])
    return link


def servers_of(user: Any) -> list[Any]:
    """Return the spawners of all of a user's servers: the default one, and the named ones by name.

    `User.all_spawners` has the database's objects of those that don't run, which know neither our
    state nor why the server was stopped.
    """
    named = sorted(user.orm_user.orm_spawners) if user.allow_named_servers else []
    return [user.spawners[name] for name in dict.fromkeys(["", *named])]


async def may_have_server(handler: Any, user: Any, name: str) -> bool:
    """Return whether who opens a page may have a named server: it exists, or there is room for it.

    Args:
        handler: of the page, or None.
        user: whose server it would be; only they are answered, as the limit is asked for them.
        name: the server's.
    """
    if handler is None or handler.current_user is not user or not handler.allow_named_servers:
        return False
    names = {each.name for each in user.orm_user.orm_spawners.values() if each.name}
    limit = await handler.get_current_user_named_server_limit()
    return name in names or limit <= 0 or len(names) < limit


class People:
    """The users and groups of a hub, from its database as it is now.

    The REST API has them for who has a token; the hub itself has no other way to them.

    Args:
        settings: those of the hub's web application, with its database's session.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings

    def groups_of(self, user: str) -> frozenset[str]:
        """Return the names of a user's groups; none for who is no user of this hub."""
        return self._names(orm.Group.name, orm.Group.users, orm.User.name == user)

    def members_of(self, groups: Iterable[str]) -> frozenset[str]:
        """Return the names of the users in these groups."""
        return self._names(orm.User.name, orm.User.groups, orm.Group.name.in_([*groups]))

    def may_stop_all(self, user: str) -> bool:
        """Return whether a user may stop everybody's servers, as administrators may."""
        found = self._read(lambda db: orm.User.find(db, user))
        return found is not None and "delete:servers" in get_scopes_for(found)

    def _names(self, column: Any, through: Any, condition: Any) -> frozenset[str]:
        return self._read(
            lambda db: frozenset(
                name for (name,) in db.query(column).join(through).filter(condition)
            )
        )

    def _read(self, question: Callable[[Any], T]) -> T:
        database = self._settings["db"]
        try:
            return question(database)
        except SQLAlchemyError as error:
            # Until then every other use of the session fails.
            database.rollback()
            raise Refused(NOT_READ, status=503) from error


def url_of_service(spawner: Any, name: str) -> str:
    """Return where browsers find a service of the hub's; "" where there is no such service.

    A path, or with `subdomain_host`, which gives each service a domain, a whole address. JupyterHub
    tells a service where it is, and nobody else. ref: Service in jupyterhub/services/service.py
    """
    service = process_wide(spawner).get("services", {}).get(name)
    return f"{service.host}{service.prefix}" if service and service.url else ""


def process_wide(spawner: Any) -> dict[str, Any]:
    """Return the settings of the hub's web application, as a place for process-wide state.

    JupyterHub has no place for state that a spawner class needs once per hub. ref: User.settings.
    """
    settings = getattr(spawner.user, "settings", None)
    return {} if settings is None else settings


def extend_application(app: Any, pages: list[tuple[str, type[web.RequestHandler]]]) -> None:
    """Add pages to a hub's web application, and let `handler_of_hub` find that.

    A form on the home page needs an address of the hub's, and `extra_handlers` is deprecated. A
    service has none of the hub's rights, and a page of its own.

    Args:
        app: the hub's application.
        pages: (path below the hub's own, as a regular expression; handler).
    """
    application = app.tornado_application
    app.tornado_settings[APPLICATION_KEY] = application
    application.add_handlers(".*$", [(app.hub_prefix + path, page) for path, page in pages])


def handler_of_hub(spawner: Any) -> Any:
    """Return a handler of the hub's that no request has led to, to stop and start a server with.

    What the hub does around both, from the limit of servers to the route and the look after the
    server, are methods of its handlers. ref: `spawn_single_user` in jupyterhub/handlers/base.py
    """
    hub = urlsplit(spawner.hub.url).netloc
    headers = HTTPHeaders({"Host": hub, "Accept-Language": spawner._accept_language})
    request = HTTPServerRequest(
        start_line=RequestStartLine("POST", f"{spawner.hub.base_url}home", "HTTP/1.1"),
        headers=headers,
        connection=SimpleNamespace(set_close_callback=lambda callback: None),  # type: ignore[arg-type]
    )
    handler = BaseHandler(process_wide(spawner)[APPLICATION_KEY], request)
    handler._jupyterhub_user = spawner.user
    return handler


async def stop_by(handler: Any, spawner: Any) -> None:
    """Stop a server, as the hub does for its API; return once it is off.

    Raises:
        RuntimeError: it couldn't be stopped, or its user has to log in before the next start.
    """
    user, name = spawner.user, spawner.name
    if handler.authenticator.refresh_pre_spawn and not await handler.refresh_auth(user, force=True):
        raise RuntimeError("its user has to log in again")
    await (await handler.stop_single_user(user, name))
    if spawner.active:  # what was wrong is in the log
        raise RuntimeError("it couldn't be stopped")


async def start_by(
    handler: Any, spawner: Any, options: dict[str, Any], is_wanted: Callable[[], bool]
) -> None:
    """Start a server that is off, as the hub does for its API; return once it is ready.

    While the hub has no room for one more start, it is tried again, for a while.

    Args:
        is_wanted: says whether it is to be started still. One that isn't any more when it is ready
            is stopped again.

    Raises:
        Exception: it didn't start.
    """
    user, name = spawner.user, spawner.name
    for pause in [START_AGAIN_SECONDS] * START_TRIES + [0.0]:
        if not is_wanted():
            return
        try:
            await handler.spawn_single_user(user, name, options=options)
            break
        except web.HTTPError as error:
            if error.status_code != 429 or user.spawners[name].active or not pause:
                raise
        await asyncio.sleep(pause)
    # A start that takes its time goes on.
    if under_way := user.spawners[name]._spawn_future:
        await under_way
    # Whoever has it stopped while the hub asks whether its user may start it finds it off.
    started = user.spawners.get(name)
    if started and started.ready and not is_wanted():
        await (await handler.stop_single_user(user, name))


def at_stop(told: Callable[[dict[str, Any], str, str], None]) -> None:
    """Have a function called whenever somebody has a server stopped by the REST API, as pages do.

    The hub answers so too for a server that stops already or is off, and tells its spawner nothing:
    a restart, which is just there, would start it again.
    ref: UserServerAPIHandler.delete in jupyterhub/apihandlers/users.py

    Args:
        told: called with what `process_wide` returns, and the names of user and server.
    """
    delete = UserServerAPIHandler.delete

    @wraps(delete)
    async def delete_and_tell(handler: Any, user_name: str, server_name: str = "") -> None:
        if who := handler.current_user:
            _stops.set((str(who.kind), str(who.name)))
        try:
            await delete(handler, user_name, server_name)
        except web.HTTPError:  # refused
            raise
        except Exception:  # the restart's own stop came in between
            told(handler.app.tornado_settings, user_name, server_name)
            raise
        told(handler.app.tornado_settings, user_name, server_name)

    UserServerAPIHandler.delete = delete_and_tell


def who_stops() -> tuple[str, str]:
    """Return who has a server stopped by the REST API, as pages do: "user" or "service", a name.

    ("", ""): nobody does, where it is the hub itself, or a rule of ours.
    """
    return _stops.get()


def spawner_now(spawner: Any) -> Any:
    """Return the spawner that the hub has for a server now: it drops that of one that is off."""
    return spawner.user.spawners[spawner.name]


def is_current(spawner: Any) -> bool:
    """Return whether the hub still has a spawner.

    One that it has dropped seems to run whenever the next one of the server does: both have the
    same row of the database.
    """
    return spawner.user.spawners.get(spawner.name) is spawner


def at_hub_start(begin: Callable[[Any], None]) -> None:
    """Have a function called at each start of a hub in this process, before the hub answers.

    JupyterHub makes spawners only for servers that its database has, and for people who come: a
    spawner class doesn't hear of a hub without either. ref: `init_spawners` in jupyterhub/app.py

    Args:
        begin: called with the hub's application, on its event loop, once the spawners of all
            servers in its database are made.
    """
    start = JupyterHub.start

    @wraps(start)
    async def begin_and_start(app: Any) -> None:
        # It is set up for a hub only: `jupyterhub token` and the like start the same application.
        if "spawner_class" in app.tornado_settings:
            begin(app)
        await start(app)

    JupyterHub.start = begin_and_start
