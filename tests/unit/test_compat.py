"""What we use of JupyterHub that isn't documented is still there, and does what we take it for."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import sys
import textwrap
from contextlib import nullcontext
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from jupyterhub import orm
from jupyterhub.apihandlers.users import UserAPIHandler, UserServerAPIHandler
from jupyterhub.app import JupyterHub
from jupyterhub.handlers import pages
from jupyterhub.handlers.base import BaseHandler
from jupyterhub.services.service import Service
from jupyterhub.spawner import Spawner
from jupyterhub.user import User
from tornado import web
from traitlets.config import Config

from gpuspawner.hub import compat
from gpuspawner.spawner import GPUSpawner

from ..support import databases
from ..support.paths import ROOT


def calls(function: Any) -> list[str]:
    """Return the names of the methods that a function's source calls, in its order."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    found = [
        (node.lineno, node.col_offset, node.func.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    return [name for _, _, name in sorted(found)]


def spawner(**traits: Any) -> GPUSpawner:
    user = SimpleNamespace(name="ada", groups=[SimpleNamespace(name="lab")])
    return GPUSpawner(user=user, config=Config({"GPUSpawner": traits}))


def test_a_choice_is_checked_after_the_overrides_and_before_the_administrator_s_hooks() -> None:
    order = calls(User.spawn)
    wanted = ["apply_group_overrides", "_run_apply_user_options", "run_pre_spawn_hook", "start"]
    assert [name for name in order if name in wanted] == wanted
    # A choice is saved before, and state is cleared before anything of this spawn is set.
    assert order.index("clear_state") < order.index("apply_group_overrides")


def test_a_hub_has_the_spawners_of_all_known_servers_before_anything_else_runs() -> None:
    """Else the reconciler could take one of them for unknown."""
    (made,) = ast.parse(textwrap.dedent(inspect.getsource(JupyterHub.init_spawners))).body
    assert isinstance(made, ast.AsyncFunctionDef)
    own = [
        each for each in made.body if not isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    waits = [n.lineno for each in own for n in ast.walk(each) if isinstance(n, ast.Await)]
    makes = [
        n.lineno
        for each in own
        for n in ast.walk(each)
        if isinstance(n, ast.Subscript) and ast.unparse(n.value) == "user.spawners"
    ]
    assert makes
    assert max(makes) < min(waits)


async def test_whoever_wants_to_hears_of_a_hub_s_start_and_of_no_other_command() -> None:
    made = inspect.getsource(JupyterHub.initialize)
    assert made.index("self.init_tornado_settings()") < made.index("self.init_spawners()")
    assert "spawner_class=self.spawner_class" in inspect.getsource(JupyterHub.init_tornado_settings)
    started: list[Any] = []
    told: list[Any] = []

    class Application:
        def __init__(self, **settings: Any) -> None:
            self.tornado_settings = settings

        async def start(self) -> None:
            started.append(self)

    original = JupyterHub.start
    try:
        JupyterHub.start = Application.start
        compat.at_hub_start(told.append)
        hub, command = Application(spawner_class=GPUSpawner), Application()
        for each in (hub, command):
            await JupyterHub.start(each)
    finally:
        JupyterHub.start = original
    assert (started, told) == ([hub, command], [hub])


async def test_the_check_runs_whatever_the_administrator_s_apply_user_options_is() -> None:
    seen: list[Any] = []
    one = spawner(apply_user_options=lambda spawner, choice: seen.append(("theirs", choice)))

    async def check(choice: Any) -> Any:
        seen.append(("ours", choice))
        return {"gpus": 2}

    one.check_options = check
    await one._run_apply_user_options({"gpus": 1})
    assert seen == [("ours", {"gpus": 1}), ("theirs", {"gpus": 2})]


async def test_every_override_of_a_group_comes_by_our_way() -> None:
    overrides = {
        "a": {"groups": ["lab"], "spawner_override": {"gpu_limit": 4}},
        "b": {"groups": ["lab"], "spawner_override": {"default_gpus": 2}},
        "c": {"groups": ["others"], "spawner_override": {"gpu_limit": 8}},
    }
    one = spawner()
    one.group_overrides = overrides
    seen: list[dict[str, Any]] = []
    one.apply_override = seen.append
    await one.apply_group_overrides()
    made = [{name: value(one) for name, value in each.items()} for each in seen]
    assert made == [{"gpu_limit": 4}, {"default_gpus": 2}]


def test_the_handler_is_set_for_each_request_before_the_form_is_made() -> None:
    source = inspect.getsource(pages.SpawnHandler)
    assert re.search(r"spawner\.handler = self", source)
    one = spawner()
    told: list[Any] = []
    one.on_request = told.append
    request = SimpleNamespace(request=SimpleNamespace(headers={}, method="GET"))
    one.handler = request
    one.handler = None
    assert told == [request, None]


async def test_a_start_that_is_given_up_is_a_stop_at_once() -> None:
    one = spawner()
    one._spawn_pending = True
    one._spawn_future = asyncio.ensure_future(asyncio.sleep(60))
    assert one.pending == "spawn"
    one._spawn_future.cancel()
    assert one.pending == ("stop" if sys.version_info >= (3, 11) else "spawn")
    one._spawn_pending = False
    assert one.pending is None


def test_a_handler_of_the_hub_s_starts_and_stops_servers_without_a_request() -> None:
    settings: dict[str, Any] = {}
    hub = SimpleNamespace(base_url="/hub/", server=SimpleNamespace(base_url="/"))
    application = web.Application(hub=hub, log_function=lambda handler: None)
    app = SimpleNamespace(
        tornado_application=application, tornado_settings=settings, hub_prefix="/hub/"
    )
    compat.extend_application(app, [("gpu-switch/([^/]+)", BaseHandler)])
    (ours,) = application.default_router.rules[0].target.rules
    assert ours.matcher.regex.match("/hub/gpu-switch/ada")
    one = spawner()
    one.user.settings, one._accept_language = settings, "zh-CN"
    one.hub = SimpleNamespace(url="http://10.0.0.1:8081/hub/", base_url="/hub/")
    handler = compat.handler_of_hub(one)
    assert isinstance(handler, BaseHandler)
    assert handler.current_user is one.user
    assert handler.request.headers["Accept-Language"] == "zh-CN"
    # What is refused is said in the words of a page.
    assert not handler.request.path.startswith("/hub/api/")
    for method, names in (
        (BaseHandler.spawn_single_user, {"user", "server_name", "options"}),
        (BaseHandler.stop_single_user, {"user", "server_name"}),
    ):
        assert names <= inspect.signature(method).parameters.keys()
    assert "spawner._spawn_future" in inspect.getsource(BaseHandler.spawn_single_user)
    assert "return future" in inspect.getsource(BaseHandler.stop_single_user)


def test_the_hub_drops_the_spawner_of_a_server_that_is_off() -> None:
    assert "self.spawners.pop(server_name)" in inspect.getsource(User.stop)
    one = spawner()
    one.user.spawners = {"": one}
    assert compat.spawner_now(one) is one
    assert compat.is_current(one)
    one.user.spawners = {"": spawner()}
    assert not compat.is_current(one)


@pytest.mark.parametrize(
    ("refusals", "raised"), [((429, 429), None), ((500,), 500), ((429,) * 40, 429)]
)
async def test_a_start_waits_for_room_on_the_hub_and_for_nothing_else(
    monkeypatch, refusals, raised
) -> None:
    monkeypatch.setattr(compat, "START_AGAIN_SECONDS", 1e-9)
    one = spawner()
    one._server = None
    one.user.spawners = {"": one}
    left, started = list(refusals), []

    class Handler:
        async def spawn_single_user(self, user: Any, name: str, options: Any) -> None:
            if left:
                raise web.HTTPError(left.pop(0))
            started.append((user, name, options))

    with pytest.raises(web.HTTPError) if raised else nullcontext():
        await compat.start_by(Handler(), one, {"gpus": 1}, lambda: True)
    assert started == ([] if raised else [(one.user, "", {"gpus": 1})])


@pytest.mark.parametrize("unwanted_at", ["before", "without room", "in between"])
async def test_a_server_that_somebody_has_stopped_meanwhile_is_not_started_or_is_stopped_again(
    monkeypatch, unwanted_at
) -> None:
    monkeypatch.setattr(compat, "START_AGAIN_SECONDS", 1e-9)
    one = spawner()
    one._server = None
    one.user.spawners = {"": one}
    did: list[str] = []

    class Handler:
        wanted = unwanted_at != "before"

        async def spawn_single_user(self, user: Any, name: str, options: Any) -> None:
            self.wanted = False
            if unwanted_at == "without room":
                raise web.HTTPError(429)
            did.append("start")
            one._server = object()

        async def stop_single_user(self, user: Any, name: str) -> Any:
            did.append("stop")
            return asyncio.sleep(0)

    handler = Handler()
    await compat.start_by(handler, one, {}, lambda: handler.wanted)
    assert did == (["start", "stop"] if unwanted_at == "in between" else [])


@pytest.mark.parametrize(
    ("error", "is_told"), [(None, True), (web.HTTPError(403), False), (RuntimeError(), True)]
)
async def test_whoever_wants_to_hears_of_each_stop_that_is_not_refused(
    monkeypatch, error, is_told
) -> None:
    """One that comes while the server stops is answered, and nothing else happens."""
    inner = inspect.unwrap(UserServerAPIHandler.delete)
    text = inspect.getsource(inner)
    assert "if spawner.pending == 'stop':" in text
    assert text.index("self.set_status(202)") < text.index("stop_single_user")
    told: list[Any] = []
    stops: list[Any] = []

    async def delete(handler: Any, user_name: str, server_name: str = "") -> None:
        # The hub stops it in a task of its own.
        stops.append(await asyncio.ensure_future(asyncio.to_thread(compat.who_stops)))
        if error:
            raise error

    monkeypatch.setattr(UserServerAPIHandler, "delete", delete)
    compat.at_stop(lambda *facts: told.append(facts))
    # The handler's own settings are a copy, made before there is anything of ours in them.
    assert "return self.settings['app']" in inspect.getsource(BaseHandler.app.fget)  # type: ignore[attr-defined]
    settings = {"ours": 1}
    handler = SimpleNamespace(
        settings={},
        app=SimpleNamespace(tornado_settings=settings),
        current_user=orm.Service(name="culler"),
    )
    with pytest.raises(type(error)) if error else nullcontext():
        await UserServerAPIHandler.delete(handler, "ada", "lab")
    assert told == ([(settings, "ada", "lab")] if is_told else [])
    assert stops == [("service", "culler")]
    assert orm.User.kind == "user"


def test_pages_have_a_method_of_their_handler() -> None:
    assert "static_url" in inspect.getsource(BaseHandler.template_namespace.fget)  # type: ignore[attr-defined]
    handler = object.__new__(BaseHandler)
    assert compat.handler_of_page(handler.static_url) is handler
    assert compat.handler_of_page(len) is None or compat.handler_of_page(None) is None


def test_spawners_of_one_hub_share_its_application_s_settings() -> None:
    assert "settings" in inspect.getsource(User)
    settings: dict[str, Any] = {}
    one, two = spawner(), spawner()
    one.user.settings = two.user.settings = settings
    assert compat.process_wide(one) is compat.process_wide(two) is settings
    assert compat.process_wide(spawner()) == {}


def test_a_service_s_address_is_found_in_the_application_s_settings() -> None:
    assert "tornado_settings['services']" in inspect.getsource(JupyterHub)
    one = spawner()
    assert compat.url_of_service(one, "gpus") == ""
    known = {"base_url": "/jupyter/", "url": "http://127.0.0.1:8710", "hub": None}
    gpus, idle = Service(name="gpus", **known), Service(name="idle", hub=None)
    one.user.settings = {"services": {"gpus": gpus, "idle": idle}}
    assert compat.url_of_service(one, "gpus") == "/jupyter/services/gpus/"
    assert compat.url_of_service(one, "idle") == ""
    gpus.host = "https://gpus--service.hub.test:8443"
    there = "https://gpus--service.hub.test:8443/jupyter/services/gpus/"
    assert compat.url_of_service(one, "gpus") == there


def test_state_and_options_are_where_the_hub_keeps_them() -> None:
    source = inspect.getsource(User)
    assert "orm_spawner.state = spawner.get_state()" in source
    assert "spawner.orm_spawner.user_options = options" in source
    row = SimpleNamespace(state=None, user_options={"gpus": 9}, server=None)
    commits: list[bool] = []
    one = spawner()
    one.orm_spawner = row
    one.user.db = SimpleNamespace(commit=lambda: commits.append(True))
    assert compat.saved_options(one) == {"gpus": 9}
    compat.save_options(one, {"gpus": 1})
    assert row.user_options == {"gpus": 1}
    one.attempt.waiting_since = 5.0
    compat.save_state(one)
    assert row.state["gpuspawner"]["waiting_since"] == 5.0
    assert commits == [True]


@pytest.mark.parametrize(
    "name", [name for name, each in vars(compat).items() if inspect.isfunction(each)]
)
def test_each_way_has_its_reason_in_the_handbook(name: str) -> None:
    if vars(compat)[name].__module__ == compat.__name__:
        assert f"`{name}`" in (ROOT / "docs" / "architecture.md").read_text()


def test_nothing_else_of_ours_uses_what_jupyterhub_keeps_to_itself() -> None:
    private = {name for name in vars(Spawner) if re.match(r"_[a-z]", name)} - {"_log_name"}
    private |= {"orm_spawner"}
    ours = {name for name in vars(GPUSpawner) if name.startswith("_")}
    spawners = (
        "base_spawner",
        "spawner",
        "settings",
        "group_overrides",
        "kept_rules",
        "wait_in_queue",
        "hub/spawn_form",
        "backends/docker/settings",
    )
    for path in (ROOT / "gpuspawner" / f"{name}.py" for name in spawners):
        used = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute)
        }
        assert used & (private - ours) == set(), path.name


def test_what_may_not_be_saved_is_not_and_what_was_saved_stays() -> None:
    refusal: list[Exception] = []
    end = compat.guard_saved_options(
        lambda choice: choice != {"gpus": "many"}, lambda: refusal[0] if refusal else None
    )
    try:
        saved = orm.Spawner(name="")
        for choice, kept in (({"gpus": "many"}, None), ({"gpus": 1}, {"gpus": 1})):
            saved.user_options = choice
            assert saved.user_options == kept
        saved.user_options = {"gpus": "many"}
        assert saved.user_options == {"gpus": 1}
        refusal.append(ValueError("too many"))
        with pytest.raises(ValueError, match="too many"):
            saved.user_options = {"gpus": "many"}
    finally:
        end()
    saved.user_options = {"gpus": "many"}
    assert saved.user_options == {"gpus": "many"}


def test_a_choice_that_is_sent_is_told_from_one_that_is_repeated() -> None:
    source = inspect.getsource(User.spawn)
    repeats = source.index("options = spawner.orm_spawner.user_options or {}")
    saves = source.index("spawner.orm_spawner.user_options = options")
    assert repeats < saves < source.index("_run_apply_user_options")
    one = spawner()
    assert not compat.repeats_saved_options(one)
    one.orm_spawner, other = orm.Spawner(name=""), orm.Spawner(name="other")
    end = compat.guard_saved_options(lambda choice: True, lambda: None)
    try:
        other.user_options = {"gpus": 1}
        assert compat.repeats_saved_options(one)
        one.orm_spawner.user_options = {"gpus": 1}
        assert not compat.repeats_saved_options(one)
    finally:
        end()


def test_a_start_is_known_before_its_choice_is_saved() -> None:
    source = inspect.getsource(User.spawn)
    assert source.index("spawner.handler = handler") < source.index("orm_spawner.user_options =")


def test_a_spawner_learns_that_the_hub_has_forgotten_whose_it_was() -> None:
    """Which it is asked to clean up before; after that the hub may fail to delete them."""
    assert "delete_forever" in calls(User._delete_spawner)
    deleting = calls(UserAPIHandler.delete)
    assert deleting.index("delete_spawners") < deleting.index("delete")
    db = databases.in_memory()
    before = datetime.now(timezone.utc).replace(tzinfo=None)
    user = orm.User(name="ada")
    servers = {name: orm.Spawner(name=name, user=user) for name in ("", "lab", "two")}
    db.add_all([user, *servers.values()])
    db.commit()
    spawners = {
        name: SimpleNamespace(orm_spawner=each, user=SimpleNamespace(orm_user=user))
        for name, each in servers.items()
    }

    def forgotten() -> list[str]:
        return [name for name, each in spawners.items() if compat.is_forgotten(each)]

    assert forgotten() == []
    assert abs((compat.user_since(spawners[""]) - before).total_seconds()) < 60
    db.delete(servers["lab"])
    db.commit()
    assert forgotten() == ["lab"]
    db.delete(user)
    db.rollback()
    assert forgotten() == ["lab"]
    db.delete(user)
    db.commit()
    assert forgotten() == ["", "lab", "two"]
