"""One spawn off the straight path, over a ledger and a queue whose engine is a list."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import closing
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from jupyterhub import orm
from jupyterhub.user import User
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from tornado import web
from traitlets.config import Config

from gpuspawner import wait_in_queue
from gpuspawner.backends.launch import ensure_cleared
from gpuspawner.backends.leftovers import Leftovers
from gpuspawner.base_spawner import BaseGPUSpawner
from gpuspawner.choices import form_stream
from gpuspawner.errors import Refused, Unknown
from gpuspawner.gpus.model import Holder, Request
from gpuspawner.hub import compat
from gpuspawner.leases import audit_log
from gpuspawner.leases.labels import ServerRecord, labels
from gpuspawner.scheduling import queue
from gpuspawner.scheduling.plan import QueuedRequest
from gpuspawner.scheduling.queue import Queue, QueueSettings, RequestLimits
from gpuspawner.spawner import GPUSpawner

from ..support import databases
from ..support.ledgers import NoWatcher
from ..support.spawns import Hub, Spawner, begin, lab, waiting


@pytest.fixture
async def hub() -> Hub:
    return Hub()


def handler(method: str, choice: dict[str, Any], path: str = "/hub/spawn") -> Any:
    """Return the hub's handler of a request, with a choice where the page's script has it."""
    headers = {form_stream.HEADER: quote(json.dumps(choice)), "Accept": "text/html"}
    request = SimpleNamespace(method=method, headers=headers, query_arguments={}, path=path)
    hub = SimpleNamespace(base_url="/hub/")
    return SimpleNamespace(request=request, hub=hub, set_header=lambda name, value: None)


async def told(one: GPUSpawner, **choice: Any) -> str:
    """Return what a page's script is told of a choice."""
    one.handler = handler("GET", choice)
    with pytest.raises(web.Finish) as answer:
        await one.render_form()
    return answer.value.args[0]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/hub/spawn", "You asked for 2 GPUs, and your limit is 1."),
        ("/hub/api/users/ada/server", "gpus: You asked for 2 GPUs, and your limit is 1."),
    ],
)
async def test_a_page_is_told_in_the_form_s_words_and_a_program_with_the_key(hub, path, said):
    one = hub.spawner(gpu_limit=1)
    one.handler = handler("POST", {}, path)
    with pytest.raises(web.HTTPError) as refused:
        await begin(one, gpus=2)
    assert refused.value.jupyterhub_message == said
    # Who looks at the page of a start that a program has asked for.
    assert refused.value.sentence == "You asked for 2 GPUs, and your limit is 1."


async def test_each_page_is_told_of_the_rules_of_its_own_user(hub, monkeypatch):
    """What is told is made once a minute for all pages whose users may have the same."""
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0)
    wide, narrow = hub.spawner(), hub.spawner(gpu_limit=1)
    pages = [await told(one, gpus=2) for one in (wide, narrow, wide)]
    assert ["Your limit is 1." in page for page in pages] == [False, True, False]


async def test_who_sends_the_form_gets_a_page_whatever_the_headers_say(hub):
    one = hub.spawner()
    one.handler = handler("POST", {"gpus": 2})
    assert 'id="gpuspawner"' in await one.render_form()


async def test_what_a_refused_choice_was_to_start_is_looked_for_nowhere(hub, monkeypatch):
    """The hub stops each start that fails: what another hub, or a lost one, left goes on."""
    stopped = []
    one = hub.spawner(post_stop_hook=stopped.append)
    with pytest.raises(web.HTTPError, match="this machine has 2"):
        await begin(one, gpus=9)

    async def away() -> Any:
        raise AssertionError("the engine was asked")

    monkeypatch.setattr(hub.ledger, "servers", away)
    assert await one.poll() == 0
    await one.run_post_stop_hook()
    assert stopped == [one]
    one.clear_state()
    assert not one.attempt.is_refused


async def test_a_database_that_can_t_be_written_costs_nobody_the_place_or_the_gpus(hub):
    hub.occupy()
    one = hub.spawner()
    with closing(databases.in_memory()) as session:
        row = orm.Spawner(user=orm.User(name="ada"), name="")
        session.add(row)
        session.commit()
        one.orm_spawner, one.user.db = row, session
        session.execute(text("PRAGMA query_only = 1"))
        await begin(one, gpus=2)
        task = await waiting(one, hub)
        assert not row.state
        hub.free_all()
        await task
        assert hub.held() == 1
        # The hub can go on with its session, and save it later.
        session.execute(text("PRAGMA query_only = 0"))
        compat.save_state(one)
        session.expire_all()
        assert row.state["gpuspawner"]["image"]


async def test_a_stop_that_can_t_be_written_ends_as_soon_as_it_can(hub, monkeypatch):
    monkeypatch.setattr(compat, "STOP_AGAIN_SECONDS", 0.01)
    settings = {"spawner_class": Spawner, "config": Config(), "base_url": "/"}
    with closing(databases.in_memory()) as session:
        row = orm.User(name="ada")
        session.add(orm.Spawner(user=row, name=""))
        session.commit()
        user = User(row, settings, session)
        one = user.spawners[""]
        one._hub_state = hub
        monkeypatch.setattr(one, "poll", lambda: asyncio.sleep(0, 1))
        one.lease.hold(["GPU-0"])
        session.execute(text("PRAGMA query_only = 1"))
        stop = asyncio.ensure_future(user.stop(""))
        await asyncio.wait([stop])
        assert isinstance(stop.exception(), SQLAlchemyError)
        assert one.pending == "stop"
        await asyncio.sleep(0.05)
        assert one.pending == "stop"
        session.rollback()
        session.execute(text("PRAGMA query_only = 0"))
        while one.pending:
            await asyncio.sleep(0)
        assert one.lease.units == frozenset()
        assert not user.spawners
        assert one._stopping_again is None


async def test_a_start_whose_end_can_t_be_written_is_undone_and_its_user_reads_why(
    hub, monkeypatch
):
    monkeypatch.setattr(compat, "STOP_AGAIN_SECONDS", 0.01)
    settings = {"spawner_class": Spawner, "config": Config(), "base_url": "/"}
    with closing(databases.in_memory()) as session:
        row = orm.User(name="ada")
        server = orm.Server(proto="http", ip="", port=0, base_url="/", cookie_name="")
        session.add(orm.Spawner(user=row, name="", server=server))
        session.commit()
        user = User(row, settings, session)
        one = user.spawners[""]
        one._hub_state = hub
        monkeypatch.setattr(one, "poll", lambda: asyncio.sleep(0, 1))
        begun: list[asyncio.Task[None]] = []

        async def end_of_start() -> None:
            await begin(one, gpus=1)
            one.start_task = asyncio.ensure_future(asyncio.sleep(60))
            begun.append(one.start_task)
            session.execute(text("PRAGMA query_only = 1"))
            one.orm_spawner.state = {"changed": True}
            session.commit()

        start = one._spawn_future = asyncio.ensure_future(end_of_start())
        await asyncio.wait([start])
        assert start.exception().jupyterhub_message == compat.NOT_WRITTEN
        assert one.pending == "stop"
        assert session.is_active
        await asyncio.sleep(0.05)
        assert one.pending == "stop"
        session.rollback()
        session.execute(text("PRAGMA query_only = 0"))
        while one.pending:
            await asyncio.sleep(0)
        assert one.orm_spawner.server is None
        # What the hub had begun and left alone.
        assert begun[0].cancelled()


async def test_a_start_that_is_written_goes_on(hub):
    settings = {"spawner_class": Spawner, "config": Config(), "base_url": "/"}
    with closing(databases.in_memory()) as session:
        row = orm.User(name="ada")
        server = orm.Server(proto="http", ip="", port=0, base_url="/", cookie_name="")
        session.add(orm.Spawner(user=row, name="", server=server))
        session.commit()
        one = User(row, settings, session).spawners[""]
        one._hub_state = hub

        async def end_of_start() -> None:
            one.start_polling()
            session.commit()

        await asyncio.ensure_future(end_of_start())
        await asyncio.sleep(0)
        assert one.ready
        assert one._stopping_again is None
        one.stop_polling()


@pytest.mark.parametrize("granted", [False, True])
async def test_who_started_while_the_hub_was_killed_reads_so_unless_it_runs(hub, granted):
    one = hub.spawner()
    kept = {}
    if granted:
        await begin(one, gpus=1)
        await one.run_pre_spawn_hook()
        kept = json.loads(json.dumps(one.get_state()))
    server = orm.Server(proto="http", ip="", port=0, base_url="/", cookie_name="")
    starts, off = orm.Spawner(name="", server=server), orm.Spawner(name="")
    lost, found, never = hub.spawner(row=starts), hub.spawner(row=starts), hub.spawner(row=off)
    for each in (lost, found):
        each.load_state(kept)
        assert each.notice.startswith("JupyterHub was restarted while your server started.")
    found._own({"Id": "1", "Config": {"Labels": {}}, "State": {"Running": True}})
    assert found.notice == ""
    never.load_state({})
    assert never.notice == ""
    # What runs, and is saved so, has nothing to be told.
    ran = hub.spawner(row=starts)
    ran.load_state(found.get_state())
    assert ran.notice == ""


@pytest.mark.parametrize("stopped", [False, True])
async def test_whose_server_ends_by_itself_reads_why_and_who_stops_it_doesn_t(hub, stopped):
    one = hub.spawner()
    ended = {"Running": False, "ExitCode": 137, "OOMKilled": True}
    for state in ({"Running": True}, ended):
        one._own({"Id": "1", "Config": {"Labels": {}}, "State": state})
    if stopped:
        one.lease.will_stop("user:ada", "stopped")
    await one.run_post_stop_hook()
    one.clear_state()
    assert ("machine's memory was full" in one.notice) is not stopped


async def test_the_limit_of_a_user_s_group_holds_for_one_server_and_for_all_its_members(hub):
    one = hub.spawner(("lab",), group_gpu_limits={"lab": 1, "others": 0})
    with pytest.raises(web.HTTPError) as refused:
        await begin(one, gpus=2)
    assert "the limit of your group lab is 1" in str(refused.value)
    hub.servers.append(ServerRecord("ben", labels(Holder("ben"), "x", ["GPU-0"], groups=["lab"])))
    await begin(one, gpus=1)
    task = await waiting(one, hub)
    hub.free_all()
    await task
    assert hub.held() == 1


async def test_what_a_left_group_added_to_a_mapping_goes_and_what_the_hook_added_stays(hub):
    hub.occupy()
    one = hub.spawner(("lab",), environment={"OWN": "1"}, volumes={"own": "/own"})
    one.group_overrides = lab(environment={"LAB": "secret"}, volumes={"lab-data": "/lab"})

    def hook(spawner: Any) -> None:
        spawner.environment = {**spawner.environment, "HOOK": "1"}
        spawner.volumes = {**spawner.volumes, "hooks": "/h"}

    one.pre_spawn_hook = hook
    await begin(one, gpus=1)
    task = await waiting(one, hub)
    assert one.environment == {"OWN": "1", "LAB": "secret", "HOOK": "1"}
    one.user.groups = []
    hub.free_all()
    await task
    assert one.environment == {"OWN": "1", "HOOK": "1"}
    assert one.volumes == {"own": "/own", "hooks": "/h"}
    # Nor does the next spawn have either.
    one.pre_spawn_hook = None
    await begin(one, gpus=1)
    assert one.environment == {"OWN": "1"}
    assert one.volumes == {"own": "/own"}


async def test_the_image_of_who_leaves_a_group_is_one_that_may_still_be_had(hub):
    hub.occupy()
    one = hub.spawner(("lab",), allowed_versions=["plain"])
    one.group_overrides = lab(allowed_versions=["secret"])
    await begin(one, gpus=1)
    assert one.image == "ref/secret"
    task = await waiting(one, hub)
    one.user.groups = []
    hub.free_all()
    await task
    assert one.image == "ref/plain"
    assert one.attempt.request.image == "plain"
    assert hub.pulled == ["ref/secret", "ref/plain"]


OWN = {
    "gpu_limit": 1,
    "hour_limit": 2,
    "default_hours": 1,
    "allowed_versions": ["plain"],
    "allowed_models": ["A100"],
}
LABS = {
    "gpu_limit": 2,
    "default_gpus": 2,
    "hour_limit": 48,
    "default_hours": 24,
    "allowed_versions": ["secret", "plain"],
    "allowed_models": ["A100", "H100"],
}
OF_NOBODY, OF_LAB = ("plain", 1, 1.0, {"A100"}), ("secret", 2, 24.0, {"A100", "H100"})


@pytest.mark.parametrize(
    ("choice", "joins", "granted"),
    [
        ({}, False, OF_NOBODY),
        ({}, True, OF_LAB),
        ({"gpus": 1}, False, OF_NOBODY),
        ({"gpus": 1}, True, ("secret", 1, 24.0, {"A100", "H100"})),
        ({"hours": 2}, False, ("plain", 1, 2.0, {"A100"})),
        ({"hours": 2}, True, ("secret", 2, 2.0, {"A100", "H100"})),
        ({"image": "plain"}, True, ("plain", 2, 24.0, {"A100", "H100"})),
        ({"model": "A100"}, True, OF_LAB),
        ({"model": "A100"}, False, OF_NOBODY),
        ({"gpus": 2}, False, "You asked for 2 GPUs, and your limit is 1."),
        ({"hours": 3}, False, "You asked for 3 hours, and your limit is 2 hours."),
        ({"image": "secret"}, False, 'image must be one of plain, got "secret".'),
    ],
)
async def test_what_a_choice_says_and_leaves_out_goes_by_the_rules_of_its_turn(
    hub, choice, joins, granted
):
    hub.occupy()
    one = hub.spawner(() if joins else ("lab",), **OWN)
    one.group_overrides = lab(**LABS)
    await begin(one, **choice)
    task = await waiting(one, hub)
    one.user.groups = [SimpleNamespace(name="lab")] if joins else []
    hub.free_all()
    if isinstance(granted, str):
        with pytest.raises(web.HTTPError, match=granted):
            await task
        assert hub.held() == 0
        return
    await task
    image, gpus, hours, models = granted
    request = one.attempt.request
    assert (request.image, request.gpus, request.models) == (image, gpus, models)
    assert request.seconds == hours * 3600
    assert one.image == f"ref/{image}"
    assert len(one.attempt.granted.gpus) == gpus
    assert one.lease.until == pytest.approx(time.time() + hours * 3600, abs=600)


@pytest.mark.parametrize("joins", [False, True])
async def test_the_share_of_a_group_counts_for_who_is_in_it_now(hub, monkeypatch, joins):
    monkeypatch.setattr(queue, "PERIOD_SECONDS", 0.01)
    hub.servers.append(
        ServerRecord("other", labels(Holder("else"), "x", ["GPU-0"], None, {"class"}))
    )
    if joins:
        hub.servers.append(ServerRecord("more", labels(Holder("more"), "x", ["GPU-1"])))
    one = hub.spawner(() if joins else ("class",), group_gpu_limits={"class": 1})
    await begin(one, gpus=1)
    task = await waiting(one, hub)
    one.user.groups = [SimpleNamespace(name="class")] if joins else []
    if not joins:
        # Nothing else happens: GPU-1 has been free all the time.
        await task
        assert hub.held() == 1
        return
    hub.servers.pop()
    while hub.queue.waiting[0].turn.because != "group:class":
        await asyncio.sleep(0)
    assert hub.held() == 0
    hub.free_all()
    await task
    assert hub.held() == 1


async def test_who_joins_a_group_in_the_moment_of_the_grant_is_under_its_share(hub):
    hub.servers.append(
        ServerRecord("other", labels(Holder("else"), "x", ["GPU-0"], None, {"class"}))
    )
    hub.servers.append(ServerRecord("more", labels(Holder("more"), "x", ["GPU-1"])))
    one = hub.spawner(group_gpu_limits={"class": 1})
    await begin(one, gpus=1)
    task = await waiting(one, hub)
    since = hub.queue.waiting[0].waiting.since
    one.user.groups = [SimpleNamespace(name="class")]
    hub.servers.pop()
    hub.queue.wake()
    for _ in range(100):
        await asyncio.sleep(0)
    assert not task.done()
    assert hub.held() == 0
    assert [each.waiting.since for each in hub.queue.waiting] == [since]
    hub.free_all()
    await task
    assert one.attempt.granted.groups == {"class"}


async def test_who_comes_again_by_other_rules_keeps_the_place_in_a_full_queue(hub):
    hub.occupy()
    hub.queue = Queue(hub.ledger, QueueSettings(length=1), NoWatcher)
    one = hub.spawner(("lab",), gpu_limit=2, default_gpus=1)
    one.group_overrides = lab(default_gpus=2)
    await begin(one)
    task = await waiting(one, hub)
    late = asyncio.ensure_future(
        hub.queue.wait(
            QueuedRequest(Holder("late"), Request("plain", 2), hub.queue.join_time()),
            RequestLimits(),
            lambda turn: None,
            waited=0.0,
        )
    )
    one.user.groups = []
    hub.free_all()
    await task
    assert len(one.attempt.granted.gpus) == 1
    assert not late.done()
    late.cancel()


async def test_rules_that_nobody_can_look_at_hand_out_nothing_and_cost_no_place(hub, monkeypatch):
    monkeypatch.setattr(wait_in_queue, "PERIOD_SECONDS", 0.0)
    hub.occupy()
    one = hub.spawner(("lab",), **OWN)
    one.group_overrides = lab(**LABS)
    await begin(one)
    task = await waiting(one, hub)
    one.user.groups = []
    read, failures = hub.ledger.read, iter(range(3))

    async def away(except_for: Holder | None = None) -> Any:
        if except_for is not None and next(failures, None) is not None:
            raise Unknown("NVML is away.")
        return await read(except_for)

    monkeypatch.setattr(hub.ledger, "read", away)
    hub.free_all()
    await task
    assert next(failures, None) is None
    assert one.attempt.request.gpus == 1
    assert any("NVML is away." in str(each["message"]) for each in one.page.steps)


async def test_an_image_that_a_hook_sets_outlives_a_wait_and_costs_no_second_grant(
    hub, monkeypatch
):
    events: list[str] = []
    monkeypatch.setattr(audit_log, "record", lambda log, event, *_, **__: events.append(event))
    hub.occupy()
    one = hub.spawner(images={}, image="configured:1")
    one.pre_spawn_hook = lambda spawner: setattr(spawner, "image", "hooked:1")
    await begin(one, gpus=1)
    task = await waiting(one, hub)
    hub.free_all()
    await task
    assert one.image == "hooked:1"
    assert events == ["wait", "grant"]
    assert hub.held() == 1


async def test_who_may_have_no_gpu_any_more_has_no_end_either(hub):
    hub.occupy()
    one = hub.spawner(("lab",), gpu_limit=0, default_gpus=1, default_hours=1)
    one.group_overrides = lab(gpu_limit=2)
    await begin(one)
    task = await waiting(one, hub)
    one.user.groups = []
    hub.free_all()
    await task
    assert one.attempt.granted.gpus == ()
    assert one.lease.until is None
    assert hub.held() == 0


@pytest.mark.parametrize(("resumed", "removed"), [({"Id": "it"}, []), (None, ["it"])])
async def test_a_container_that_was_there_before_stays_whenever_the_undo_comes(
    hub, resumed, removed
):
    one = hub.spawner()
    one.attempt.resumed = resumed
    discard = one.discarder()
    one.clear_state()
    await discard("it")
    assert hub.removed == removed


async def test_a_start_that_is_not_tidied_up_is_refused_for_now():
    class Never(Leftovers):
        async def wait_until_cleared(self, server_key: str) -> bool:
            return False

    with pytest.raises(Refused) as refused:
        await ensure_cleared("ada", Never())
    assert (refused.value.reason, refused.value.status) == ("no_gpu", 503)


def test_a_trait_that_is_a_function_is_read_before_there_is_a_hub():
    seen: list[Any] = []

    def limit(spawner: Any) -> str:
        seen.append((spawner._hub_state, spawner._is_initialised))
        return "1G"

    GPUSpawner(config=Config({"DockerSpawner": {"mem_limit": limit}}))
    assert seen == [(None, False)]


def test_a_spawner_for_a_backend_must_say_how_it_does_each_step():
    complete = {
        name: lambda self: None
        for name in ("explain", "explain_unknown", "make_backend", "remove_leftovers", "server_key")
    }
    with pytest.raises(TypeError, match="Half doesn't say how it does await_server, create_server"):
        type("Half", (BaseGPUSpawner,), complete)
