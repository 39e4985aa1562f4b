"""One spawn off the straight path, over a ledger and a queue whose engine is a list."""

from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from tornado import web
from traitlets.config import Config

from gpuspawner.backends.launch import ensure_cleared
from gpuspawner.backends.leftovers import Leftovers
from gpuspawner.base_spawner import BaseGPUSpawner
from gpuspawner.choices import form_stream
from gpuspawner.choices.open_forms import OpenForms
from gpuspawner.errors import Refused
from gpuspawner.gpus.model import GPU, Holder, Node
from gpuspawner.hub import compat
from gpuspawner.leases import audit_log
from gpuspawner.leases.labels import ServerRecord, labels
from gpuspawner.leases.ledger import Ledger
from gpuspawner.scheduling.queue import Queue, QueueSettings
from gpuspawner.spawner import GPUSpawner

from ..support.ledgers import NoWatcher

IMAGES = {"plain": "ref/plain", "secret": {"image": "ref/secret", "default": True}}


class Hub:
    """What a hub's spawners share, with two GPUs, and what runs on them."""

    def __init__(self) -> None:
        self.servers: list[ServerRecord] = []
        self.ledger = Ledger(self._list, self._read)
        self.queue = Queue(self.ledger, QueueSettings(), NoWatcher)
        self.leftovers = Leftovers()
        self.open_forms = OpenForms(self.ledger, self.queue)
        self.leases: set[Any] = set()
        self.pulled: list[str] = []
        self.removed: list[str] = []
        self.backend = SimpleNamespace(pull=self._pull, remove=self._remove)

    async def _list(self) -> list[ServerRecord]:
        return list(self.servers)

    async def _read(self) -> tuple[Node, ...]:
        gpus = tuple(GPU(f"GPU-{n}", n, "A100", 40960, 0, 0) for n in range(2))
        return (Node(driver="570.133.20", cuda="12.8", gpus=gpus),)

    async def _pull(self, image: str, policy: str, report: Any) -> None:
        self.pulled.append(image)

    async def _remove(self, server_id: str) -> None:
        self.removed.append(server_id)

    def occupy(self) -> None:
        """Have somebody else hold the GPUs."""
        self.servers.append(ServerRecord("other", labels(Holder("else"), "x", ["GPU-0", "GPU-1"])))

    def free_all(self) -> None:
        """End what others hold."""
        self.servers.clear()
        self.queue.wake()

    def spawner(self, groups: tuple[str, ...] = (), **traits: Any) -> GPUSpawner:
        """Return a user's spawner on this hub, whose engine has nothing of theirs."""
        user = SimpleNamespace(name="ada", groups=[SimpleNamespace(name=each) for each in groups])
        one = Spawner(user=user, config=Config({"GPUSpawner": {"images": IMAGES, **traits}}))
        one._hub_state = self  # type: ignore[assignment]
        return one

    def held(self) -> int:
        """Return how many reservations are open."""
        return len([each for each in self.ledger._reservations if each.ended_tick is None])


class Spawner(GPUSpawner):
    """Its engine has nothing of its user's."""

    @property
    def backend(self) -> Any:
        return self.hub_state.backend

    async def remove_leftovers(self, request: Any) -> None:
        pass


@pytest.fixture
async def hub() -> Hub:
    return Hub()


async def begin(one: GPUSpawner, **options: Any) -> None:
    """Do what JupyterHub does before the pre-spawn stage."""
    one.user_options = options
    one.clear_state()
    await one.apply_group_overrides()
    await one._run_apply_user_options(options)


async def waiting(one: GPUSpawner, hub: Hub) -> asyncio.Task[None]:
    """Begin the pre-spawn stage of one who has to wait."""
    task = asyncio.ensure_future(one.run_pre_spawn_hook())
    for _ in range(50):
        await asyncio.sleep(0)
    assert hub.queue.waiting
    return task


def lab(**overrides: Any) -> dict[str, Any]:
    return {"lab": {"groups": ["lab"], "spawner_override": overrides}}


def handler(method: str, choice: dict[str, Any]) -> Any:
    """Return the hub's handler of a request, with a choice where the page's script has it."""
    headers = {form_stream.HEADER: quote(json.dumps(choice)), "Accept": "text/html"}
    request = SimpleNamespace(method=method, headers=headers)
    return SimpleNamespace(request=request, set_header=lambda name, value: None)


async def told(one: GPUSpawner, **choice: Any) -> str:
    """Return what a page's script is told of a choice."""
    one.handler = handler("GET", choice)
    with pytest.raises(web.Finish) as answer:
        await one.render_form()
    return answer.value.args[0]


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


async def test_a_database_that_fails_after_a_wait_loses_no_gpu(hub, monkeypatch):
    hub.occupy()
    one = hub.spawner()
    await begin(one, gpus=2)
    task = await waiting(one, hub)

    def locked(spawner: Any) -> None:
        raise OSError("database is locked")

    monkeypatch.setattr(compat, "save_state", locked)
    hub.free_all()
    with pytest.raises(web.HTTPError):
        await task
    assert hub.held() == 0


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


async def test_an_image_that_a_hook_sets_outlives_a_wait_and_costs_no_second_grant(
    hub, monkeypatch
):
    events: list[str] = []
    monkeypatch.setattr(audit_log, "record", lambda log, event, holder, **_: events.append(event))
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
