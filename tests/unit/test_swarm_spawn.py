"""One spawn on a Docker Swarm, whose API is in memory: what its user gets, and reads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from types import SimpleNamespace
from typing import Any

import docker.errors
import pytest
from jupyterhub import orm
from jupyterhub.objects import Hub as HubServer
from jupyterhub.user import User
from tornado import web
from traitlets.config import Config

from gpuspawner.backends.swarm.backend import SwarmBackend
from gpuspawner.backends.swarm.listing import LABEL_NODE
from gpuspawner.backends.swarm.reader import SwarmReader
from gpuspawner.errors import Contested
from gpuspawner.gpus.model import GPU, Node
from gpuspawner.leases.ledger import Ledger
from gpuspawner.nodes.exchange import NodeError
from gpuspawner.nodes.node_images import LocalImage, PullRefused
from gpuspawner.nodes.resources import offers
from gpuspawner.scheduling.queue import Queue, QueueSettings
from gpuspawner.swarm_spawner import GPUSwarmSpawner

from ..support.ledgers import NoWatcher
from ..support.raft import RaftInMemory
from ..support.spawns import Hub, begin

UUIDS = [f"GPU-{n}1b2c3d4-0000-0000-0000-000000000000" for n in range(2)]
GPUS = tuple(GPU(uuid, number, "T4", node="one") for number, uuid in enumerate(UUIDS))


class Inventory:
    """What the nodes' daemons say: all GPUs are there, and idle."""

    lets_go = False

    async def __call__(self) -> tuple[Node, ...]:
        return (Node("one", "570.133.20", "12.8", GPUS),)


BUILT = LocalImage("sha256:1")


class Daemons:
    """What the nodes' daemons say of images: `has` there are, and `gets` can be had."""

    def __init__(self) -> None:
        self.known = {"one"}
        self.has: dict[str, LocalImage] = {BUILT.id: BUILT}
        self.gets: dict[str, LocalImage | Exception] = {}
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.pulling: list[tuple[str, str]] = []

    def knows(self, name: str) -> bool:
        return name in self.known

    async def images(self, name: str, references: Any) -> Mapping[str, LocalImage | None]:
        return {each: self.has.get(each) for each in references}

    async def pull(self, name: str, image: str, report: Any) -> LocalImage:
        self.pulling.append((name, image))
        report(0.5, "Getting the image: 50 %, 5.0 of 10.0 MB")
        await self.goes_on.wait()
        found = self.gets[image]
        if isinstance(found, Exception):
            raise found
        return found


class SwarmHub(Hub):
    """What a hub's spawners share, on a Swarm."""

    def __init__(self) -> None:
        super().__init__()
        self.address = HubServer()
        self.swarm = RaftInMemory(offers(GPUS))
        self.backend: Any = SwarmBackend(lambda: self.swarm, logging.getLogger("swarm"))
        self.backend.daemons = self.daemons = Daemons()
        reader = SwarmReader(Inventory(), self.backend.list_nodes, logging.getLogger("tests"))
        self.ledger = Ledger(
            self.backend.list, reader, str, self.address.api_url, read_notes=self.backend.notes
        )
        self.queue = Queue(self.ledger, QueueSettings(), NoWatcher)
        self.usage = SimpleNamespace(note_why=lambda server_id, why: None)

    def server_of(self, port: int, **traits: Any) -> GPUSwarmSpawner:
        """Return a user's spawner, whose servers answer at a port of this machine."""
        config = {"images": {"plain": "ref/plain"}, "network_name": "net", "port": port, **traits}
        session = orm.new_session_factory("sqlite:///:memory:")()
        row = orm.User(name="ada")
        session.add(row)
        session.commit()
        settings = {
            "spawner_class": GPUSwarmSpawner,
            "config": Config(GPUSwarmSpawner={"longest_wait_minutes": 0, **config}),
            "base_url": "/",
            "hub": self.address,
            "cookie_secret": b"secret",
        }
        user = User(row, settings, session)
        one: GPUSwarmSpawner = user.spawners[""]
        one._hub_state = self  # type: ignore[assignment]
        self.spawners.append(one)
        return one


@pytest.fixture
async def hub() -> AsyncIterator[SwarmHub]:
    hub = SwarmHub()
    swarming = asyncio.ensure_future(_run(hub.swarm))
    yield hub
    swarming.cancel()
    hub.backend.close()


async def _run(swarm: RaftInMemory) -> None:
    while True:
        swarm.orchestrate()
        swarm.place()
        swarm.finish()
        await asyncio.sleep(0.01)


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """Where something answers as a server does."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def spawned(one: GPUSwarmSpawner, **choice: Any) -> Any:
    """Start a server as JupyterHub does; return its address."""
    await begin(one, **choice)
    await one.run_pre_spawn_hook()
    return await one.start()


async def test_a_server_is_a_service_with_its_gpus_until_it_is_stopped(hub, port):
    one = hub.server_of(port, mem_limit="2G")
    assert await spawned(one, gpus=2) == ("127.0.0.1", port)
    (service,) = hub.swarm.services()
    found = service["Spec"]["Labels"]
    assert found["gpuspawner.gpus"].split(",") == UUIDS
    assert found[LABEL_NODE] == "one"
    assert one.server_id == service["ID"]
    assert sorted(one.lease.units) == UUIDS
    template = service["Spec"]["TaskTemplate"]
    assert template["ContainerSpec"]["Image"] == "sha256:1"
    assert f"NVIDIA_VISIBLE_DEVICES={','.join(UUIDS)}" in template["ContainerSpec"]["Env"]
    assert template["Resources"]["Limits"]["MemoryBytes"] == 2**31
    assert await one.poll() is None
    assert one.get_state()["node"] == "one"
    await one.stop()
    assert hub.swarm.services() == hub.swarm.tasks() == []
    assert hub.held() == 0
    assert await one.poll() == 0


async def test_a_server_without_gpus_has_a_node_as_well(hub, port):
    await spawned(hub.server_of(port), gpus=0)
    (service,) = hub.swarm.services()
    assert service["Spec"]["TaskTemplate"]["Placement"] == {"Constraints": ["node.id==n1"]}
    assert service["Spec"]["Labels"]["gpuspawner.gpus"] == ""


async def test_a_server_that_dies_gives_its_gpus_back_and_its_user_reads_why(hub, port):
    one = hub.server_of(port)
    await spawned(one, gpus=2)
    hub.swarm.all_tasks[0]["Status"] = {
        "State": "failed",
        "Err": "task: non-zero exit (3)",
        "ContainerStatus": {"ExitCode": 3},
    }
    assert str(await one.poll()).startswith("failed")
    await one.run_post_stop_hook()
    assert "exit 3" in one.lease.notice
    assert hub.swarm.services() == []
    assert [gpu.state for gpu in (await hub.ledger.read()).gpus] == ["free", "free"]


async def test_what_swarm_gives_to_another_is_chosen_anew_or_refused(hub, port):
    one = hub.server_of(port)
    hub.swarm.all_tasks.append(
        {
            "ID": "t0",
            "ServiceID": "gone",
            "NodeID": "n1",
            "Status": {"State": "running"},
            "Spec": {
                "ContainerSpec": {"Labels": {}},
                "Resources": {
                    "Reservations": {
                        "GenericResources": [
                            {"DiscreteResourceSpec": {"Kind": kind, "Value": 1}}
                            for kind in offers(GPUS[:1])
                        ]
                    }
                },
            },
        }
    )
    with pytest.raises(web.HTTPError) as refused:
        await spawned(one, gpus=2)
    assert refused.value.status_code == 503
    await spawned(one, gpus=1)
    assert one.lease.units == frozenset(UUIDS[1:])
    reservation = one.attempt.granted
    assert reservation
    hub.backend.nodes = ()
    with pytest.raises(Contested):
        await one.service(reservation)


async def test_a_node_that_rejects_a_server_is_named(hub, port):
    hub.swarm.place = lambda: [
        each.update(Status={"State": "rejected", "Err": "No such image: sha256:1"})
        for each in hub.swarm.all_tasks
        if each["Status"]["State"] == "new"
    ]
    with pytest.raises(web.HTTPError) as refused:
        await spawned(hub.server_of(port), gpus=1)
    assert "The image isn't on machine one" in refused.value.jupyterhub_message
    assert hub.swarm.services() == []


async def test_a_ulimit_that_a_node_may_not_set_is_left_out_there(hub, port):
    place = hub.swarm.place

    def refuse() -> None:
        for each in hub.swarm.all_tasks:
            if each["Spec"]["ContainerSpec"]["Ulimits"][0]["Name"] == "memlock":
                said = "starting container failed: error setting rlimit type 8: not permitted"
                each["Status"] = {"State": "failed", "Err": said}
        place()

    hub.swarm.place = refuse
    await spawned(hub.server_of(port), gpus=1)
    (service,) = hub.swarm.services()
    limits = service["Spec"]["TaskTemplate"]["ContainerSpec"]["Ulimits"]
    assert [each["Name"] for each in limits] == ["stack"]


async def test_a_hub_that_was_killed_as_a_server_started_finds_it(hub, port):
    await spawned(hub.server_of(port), gpus=1)
    found = hub.server_of(port)
    assert await found.poll() is None
    assert found.server_id
    assert found.lease.units == frozenset(UUIDS[:1])
    assert await found.get_url() == f"http://127.0.0.1:{port}"


async def test_what_a_killed_hub_has_created_and_not_started_is_no_server(hub, port):
    await spawned(hub.server_of(port), gpus=1)
    (service,) = hub.swarm.kept.values()
    service["Spec"]["Mode"]["Replicated"]["Replicas"] = 0
    hub.swarm.all_tasks.clear()
    found = hub.server_of(port)
    assert await found.poll() == 0
    await found.run_post_stop_hook()
    assert hub.swarm.services() == []


async def test_a_swarm_that_can_not_be_read_ends_no_server(hub, port, monkeypatch):
    one = hub.server_of(port)
    await spawned(one, gpus=1)

    def away(*_: Any, **__: Any) -> Any:
        raise ConnectionError("away")

    monkeypatch.setattr(hub.swarm, "inspect_service", away)
    assert await one.poll() is None


async def test_what_a_service_can_not_carry_is_refused_also_where_a_function_sets_it(hub, port):
    one = hub.server_of(port, extra_host_config=lambda spawner: {"privileged": True})
    with pytest.raises(web.HTTPError) as refused:
        await spawned(one, gpus=1)
    assert "can't have Privileged" in refused.value.jupyterhub_message
    assert hub.swarm.services() == []
    assert hub.held() == 0


# -- The image, which the server's machine has before there is a service ---------------------------


PULLED = LocalImage(f"sha256:{'2' * 64}", (f"ref/plain@sha256:{'3' * 64}",))


def without_image(hub: SwarmHub) -> None:
    """Have neither the hub's engine nor a machine have the image, and a registry have it."""

    def none(image: str) -> Any:
        raise docker.errors.ImageNotFound("No such image")

    hub.swarm.inspect_image = none
    hub.daemons.has = {}
    hub.daemons.gets = {"ref/plain": PULLED}


def said(one: GPUSwarmSpawner) -> list[str]:
    return [each["message"] for each in one.progress_steps.so_far()]


@pytest.mark.parametrize("gpus", [0, 1])
async def test_a_machine_gets_the_image_before_there_is_a_service(hub, port, gpus):
    without_image(hub)
    hub.daemons.goes_on.clear()
    one = hub.server_of(port, cmd="/server")
    starting = asyncio.ensure_future(spawned(one, gpus=gpus))
    while not hub.daemons.pulling:
        await asyncio.sleep(0.01)
    assert hub.daemons.pulling == [("one", "ref/plain")]
    assert "Getting the image: 50 %, 5.0 of 10.0 MB" in said(one)
    assert hub.swarm.services() == []
    assert hub.held() == (1 if gpus else 0)
    hub.daemons.goes_on.set()
    await starting
    (service,) = hub.swarm.services()
    assert service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"] == PULLED.id
    assert len(hub.daemons.pulling) == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PullRefused("The disk is full.", "no space"), "The disk is full. That is machine one."),
        (NodeError("Machine one doesn't answer.", "cut off"), "Machine one doesn't answer. So"),
    ],
)
async def test_a_pull_that_fails_ends_the_start_and_nothing_is_held(hub, port, error, words):
    without_image(hub)
    hub.daemons.gets["ref/plain"] = error
    one = hub.server_of(port)
    with pytest.raises(web.HTTPError) as failed:
        await spawned(one, gpus=2)
    assert words in failed.value.jupyterhub_message
    assert hub.held() == 0
    assert hub.swarm.services() == []
    assert one.attempt.granted is None
    assert [gpu.state for gpu in (await hub.ledger.read()).gpus] == ["free", "free"]


async def test_who_gives_up_during_a_pull_holds_nothing(hub, port):
    without_image(hub)
    hub.daemons.goes_on.clear()
    one = hub.server_of(port)
    starting = asyncio.ensure_future(spawned(one, gpus=2))
    while not hub.daemons.pulling:
        await asyncio.sleep(0.01)
    assert hub.held() == 1
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert hub.held() == 0
    assert hub.swarm.services() == []


async def test_another_try_has_the_image_on_its_machine_too(hub, port, monkeypatch):
    without_image(hub)
    one = hub.server_of(port, cmd="/server")
    await begin(one, gpus=1)
    await one.run_pre_spawn_hook()
    first = one.attempt.reservation
    create = hub.swarm.create_service

    def quicker(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(hub.swarm, "create_service", create)
        raise Contested("somebody was quicker")

    monkeypatch.setattr(hub.swarm, "create_service", quicker)
    hub.daemons.gets["ref/plain"] = PullRefused("The disk is full.", "no space")
    with pytest.raises(web.HTTPError, match="The disk is full"):
        await one.start()
    assert first
    assert hub.held() == 0


async def test_an_image_that_may_not_be_pulled_is_the_administrators_to_bring(hub, port):
    without_image(hub)
    with pytest.raises(web.HTTPError) as failed:
        await spawned(hub.server_of(port, pull_policy="never"), gpus=1)
    assert 'and pull_policy is "never"' in failed.value.jupyterhub_message
    assert hub.daemons.pulling == []
    assert hub.held() == 0


@pytest.mark.parametrize("policy", ["skip", "ifnotpresent"])
async def test_with_skip_and_without_a_daemon_no_machine_is_asked(hub, port, policy):
    without_image(hub)
    if policy != "skip":
        hub.daemons.known = set()
    await spawned(hub.server_of(port, cmd="/server", pull_policy=policy), gpus=1)
    assert hub.daemons.pulling == []
    (service,) = hub.swarm.services()
    assert service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"] == "ref/plain"
