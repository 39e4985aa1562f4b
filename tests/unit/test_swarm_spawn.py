"""One spawn on a Docker Swarm, whose API is in memory: what its user gets, and reads."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from types import SimpleNamespace
from typing import Any

import docker.errors
import pytest
from jupyterhub import orm
from jupyterhub.objects import Hub as HubServer
from jupyterhub.user import User
from tornado import web
from traitlets.config import Config

from gpuspawner.backends.swarm import backend as backend_module
from gpuspawner.backends.swarm.backend import SwarmBackend
from gpuspawner.backends.swarm.errors import explain_unknown
from gpuspawner.backends.swarm.listing import LABEL_NODE
from gpuspawner.backends.swarm.reader import SwarmReader
from gpuspawner.backends.swarm.tasks import state_of
from gpuspawner.errors import Contested
from gpuspawner.gpus.model import GPU, Node
from gpuspawner.i18n.languages import LOG
from gpuspawner.leases import audit_log
from gpuspawner.leases.ledger import Ledger
from gpuspawner.nodes.exchange import NodeError
from gpuspawner.nodes.node_images import LocalImage, PullRefused
from gpuspawner.nodes.resources import offers
from gpuspawner.scheduling.queue import Queue, QueueSettings
from gpuspawner.swarm_spawner import GPUSwarmSpawner

from ..support import databases
from ..support.ledgers import NoWatcher
from ..support.raft import RaftInMemory
from ..support.spawns import Hub, begin

UUIDS = [f"GPU-{n}1b2c3d4-0000-0000-0000-000000000000" for n in range(2)]
GPUS = tuple(GPU(uuid, number, "T4", node="one") for number, uuid in enumerate(UUIDS))


class Inventory:
    """What the nodes' daemons say: all GPUs are there, and idle."""

    lets_go = False

    def __init__(self, swarm: RaftInMemory) -> None:
        self.swarm = swarm
        self.containers: Any = {}

    async def __call__(self) -> tuple[Node, ...]:
        self.containers = {"one": self.swarm.as_told()} if self.swarm.state == "ready" else {}
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
        inventory = Inventory(self.swarm)
        reader = SwarmReader(inventory, self.backend.list_nodes, logging.getLogger("tests"))
        self.backend.containers = reader.containers
        self.backend.daemons = self.daemons = Daemons()
        self.ledger = Ledger(
            self.backend.list,
            reader,
            explain_unknown,
            self.address.api_url,
            read_notes=self.backend.notes,
        )
        self.queue = Queue(self.ledger, QueueSettings(), NoWatcher)
        self.usage = SimpleNamespace(note_why=lambda server_id, why: None)

    def server_of(self, port: int, **traits: Any) -> GPUSwarmSpawner:
        """Return a user's spawner, whose servers answer at a port of this machine."""
        config = {"images": {"plain": "ref/plain"}, "network_name": "net", "port": port, **traits}
        session = databases.in_memory()
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


async def test_the_nodes_are_asked_for_the_images_of_the_catalogue() -> None:
    hub = SwarmHub()
    one = hub.server_of(8888, images={"plain": "ref/plain", "torch": "ref/torch:2"})
    await hub.ledger.read()
    there = one.images_of_nodes(hub.backend)
    hub.daemons.has = {"sha256:1": BUILT}
    assert await there() == {"one": {"ref/plain", "ref/torch:2"}}
    hub.backend.daemons = None
    assert await there() == {}


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
    hub.swarm.containers.clear()
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


async def test_a_node_that_rejects_a_server_is_named_to_administrators(hub, port):
    hub.swarm.place = lambda: [
        each.update(Status={"State": "rejected", "Err": "No such image: sha256:1"})
        for each in hub.swarm.all_tasks
        if each["Status"]["State"] == "new"
    ]
    with pytest.raises(web.HTTPError) as refused:
        await spawned(hub.server_of(port), gpus=1)
    said = refused.value.jupyterhub_message
    assert "The image isn't on the machine" in said
    assert "The image isn't on machine one" in LOG.say(said)
    assert hub.swarm.services() == []


@pytest.mark.parametrize("times", [1, 2])
async def test_a_node_that_cannot_join_the_network_is_tried_once_more(hub, port, times):
    place, refused = hub.swarm.place, []

    def refuse() -> None:
        for each in hub.swarm.all_tasks:
            if each["Status"]["State"] == "new" and len(refused) < times:
                said = "network sandbox join failed: error creating vxlan interface: file exists"
                each["Status"] = {"State": "rejected", "Err": said}
                refused.append(each["ID"])
        place()

    hub.swarm.place = refuse
    if times == 1:
        await spawned(hub.server_of(port), gpus=2)
        assert len(hub.swarm.services()) == 1
    else:
        with pytest.raises(web.HTTPError) as error:
            await spawned(hub.server_of(port), gpus=2)
        assert "vxlan interface: file exists" in error.value.jupyterhub_message
        assert hub.swarm.services() == []
    assert len(refused) == times


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


# -- What Swarm, or somebody by hand, does to a server ---------------------------------------------


async def ended(one: GPUSwarmSpawner) -> str:
    """Have JupyterHub notice that a server has ended; return why, as its user reads it."""
    for _ in range(500):
        if await one.poll() is not None:
            break
        await asyncio.sleep(0.01)
    else:
        raise AssertionError("it goes on")
    await one.run_post_stop_hook()
    return one.lease.notice


def warned(lines: list[Any]) -> list[str]:
    """The rules of Swarm's warnings in the audit log."""
    return [each["rule"] for each in lines if (each["event"], each["by"]) == ("warn", "swarm")]


def released(lines: list[Any]) -> list[tuple[str, str]]:
    """By whom and why GPUs came back, as the audit log has it."""
    return [(each["by"], each["rule"]) for each in lines if each["event"] == "release"]


@pytest.fixture
def lines(monkeypatch) -> list[Any]:
    """What the audit log has."""
    found: list[Any] = []

    def note(log: Any, event: str, holder: Any, by: str, **facts: Any) -> None:
        found.append({"event": event, "by": by, **facts})

    monkeypatch.setattr(audit_log, "record", note)
    return found


async def test_who_is_on_a_machine_that_is_away_reads_it_and_what_becomes_of_it(hub, port, lines):
    one = hub.server_of(port)
    await spawned(one, gpus=2)
    hub.swarm.go_down()
    assert await one.poll() is None
    assert await one.poll() is None
    assert "The machine on which your server runs is out of reach" in one.lease.trouble.words
    assert warned(lines) == ["machine away"]
    # Nobody else has the GPUs meanwhile: its container goes on.
    assert [gpu.state for gpu in (await hub.ledger.read()).gpus] != ["free", "free"]
    hub.swarm.come_back()
    assert "its machine was out of reach for too long" in await ended(one)
    one.clear_state()
    assert one.lease.trouble.words == ""
    assert released(lines) == [("swarm", "machine away")]
    assert [gpu.state for gpu in (await hub.ledger.read()).gpus] == ["free", "free"]


async def test_what_a_machine_that_was_away_has_not_ended_yet_keeps_its_gpus(hub, port):
    """Swarm has forgotten it, and would give the GPU to another one."""
    one = hub.server_of(port)
    await spawned(one, gpus=2)
    hub.swarm.go_down()
    hub.swarm.orphan()
    assert "has been away for too long" in await ended(one)
    finish, hub.swarm.finish = hub.swarm.finish, lambda: None
    hub.swarm.come_back()
    assert [gpu.state for gpu in (await hub.ledger.read()).gpus] == ["foreign", "foreign"]
    with pytest.raises(web.HTTPError) as refused:
        await spawned(hub.server_of(port), gpus=1)
    assert refused.value.status_code == 503
    hub.swarm.finish = finish
    await until(lambda: not hub.swarm.containers)
    assert [gpu.state for gpu in (await hub.ledger.read()).gpus] == ["free", "free"]


async def test_a_container_that_somebody_has_made_on_a_machine_keeps_its_gpu(hub, port):
    hub.swarm.containers["by-hand"] = UUIDS[:1]
    one = hub.server_of(port)
    hub.swarm.finish = lambda: None
    await spawned(one, gpus=1)
    assert one.lease.units == frozenset(UUIDS[1:])
    (outsider,) = (await hub.ledger.read()).outsiders
    assert outsider.name == "of-by-hand (one)"


async def test_who_is_on_a_machine_that_is_emptied_reads_that(hub, port, lines):
    one = hub.server_of(port)
    await spawned(one, gpus=1)
    hub.swarm.make_available("drain")
    assert "an administrator has emptied its machine." in await ended(one)
    one.clear_state()
    assert released(lines) == [("swarm", "machine drained")]
    assert [gpu.state for gpu in (await hub.ledger.read()).gpus] == ["excluded", "excluded"]


async def test_a_machine_that_takes_no_more_servers_keeps_those_that_run(hub, port):
    one = hub.server_of(port)
    await spawned(one, gpus=1)
    hub.swarm.make_available("pause")
    await asyncio.sleep(0.1)
    assert await one.poll() is None
    assert one.lease.trouble.words == ""


async def test_a_service_that_is_restarted_by_hand_is_no_longer_its_users_server(hub, port, lines):
    """What runs in the new container has nothing of the old one's, nor its address."""
    one = hub.server_of(port)
    await spawned(one, gpus=1)
    (service,) = hub.swarm.kept.values()
    hub.swarm.force(service)
    assert "somebody restarted it in the Swarm by hand" in await ended(one)
    assert hub.swarm.kept == {}
    one.clear_state()
    assert released(lines) == [("swarm", "service restarted")]


async def test_that_is_known_also_where_swarm_keeps_no_history_and_the_hub_is_restarted(hub, port):
    one = hub.server_of(port)
    await spawned(one, gpus=1)
    state = one.get_state()
    (service,) = hub.swarm.kept.values()
    hub.swarm.force(service)
    del hub.swarm.all_tasks[0]
    found = hub.server_of(port)
    found.load_state(state)
    assert "somebody restarted it in the Swarm by hand" in await ended(found)


async def test_a_second_task_of_a_service_takes_nothing_from_the_first(hub, port):
    one = hub.server_of(port)
    await spawned(one, gpus=0)
    (service,) = hub.swarm.kept.values()
    hub.swarm.scale(service, 2)
    await asyncio.sleep(0.1)
    first, second = hub.swarm.all_tasks
    assert state_of(second) == "running"
    second["NetworksAttachments"][0]["Addresses"] = ["127.0.0.9/24"]
    assert await one.poll() is None
    assert await one.get_url() == f"http://127.0.0.1:{port}"
    first["Status"] = {"State": "failed", "ContainerStatus": {"ExitCode": 3}}
    assert "exit 3" in await ended(one)
    await until(lambda: not hub.swarm.containers.keys() - {first["ID"]})


async def test_a_service_that_is_removed_by_hand_ends_its_server(hub, port, lines):
    one = hub.server_of(port)
    await spawned(one, gpus=1)
    hub.swarm.remove_service(one.server_id)
    assert "somebody removed it from the Swarm by hand" in await ended(one)
    one.clear_state()
    assert released(lines) == [("swarm", "service removed")]
    assert [gpu.state for gpu in (await hub.ledger.read()).gpus] == ["free", "free"]


async def test_who_stops_a_server_is_not_told_that_somebody_else_did(hub, port, lines):
    one = hub.server_of(port)
    await spawned(one, gpus=1)
    hub.swarm.finish = lambda: None
    stopping = asyncio.ensure_future(one.stop())
    await until(lambda: not hub.swarm.kept)
    await one.poll()
    hub.swarm.containers.clear()
    hub.swarm.all_tasks.clear()
    await stopping
    assert warned(lines) == []
    assert released(lines) == [("jupyterhub", "stopped")]


@pytest.mark.parametrize("number", [0, 2])
async def test_a_service_that_is_scaled_as_it_starts_is_started_once_or_not_at_all(
    hub, port, number
):
    one = hub.server_of(port)
    orchestrate = hub.swarm.orchestrate

    def scale() -> None:
        for service in hub.swarm.kept.values():
            if service["Spec"]["Mode"]["Replicated"]["Replicas"] and not service.get("Scaled"):
                service["Scaled"] = True
                hub.swarm.scale(service, number)
        orchestrate()

    hub.swarm.orchestrate = scale
    if number:
        await spawned(one, gpus=1)
        assert await one.poll() is None
    else:
        with pytest.raises(web.HTTPError):
            await spawned(one, gpus=1)
    assert len(hub.swarm.running()) == (1 if number else 0)


# -- A start while something fails -----------------------------------------------------------------


async def test_a_start_outlives_a_moment_without_a_leader(hub, port):
    place, looks = hub.swarm.place, [0]

    def lose_for_a_while() -> None:
        hub.swarm.has_leader = not hub.swarm.all_tasks or looks[0] > 30
        looks[0] += bool(hub.swarm.all_tasks)
        if hub.swarm.has_leader:
            place()

    hub.swarm.place = lose_for_a_while
    one = hub.server_of(port)
    await spawned(one, gpus=1)
    assert looks[0] > 30
    assert await one.poll() is None


async def test_a_swarm_without_a_leader_for_long_fails_a_start_and_says_why(hub, port, monkeypatch):
    monkeypatch.setattr(backend_module, "UNREADABLE_SECONDS", 0.3)
    one, place = hub.server_of(port), hub.swarm.place

    def lose() -> None:
        hub.swarm.has_leader = not hub.swarm.all_tasks

    hub.swarm.place = lose
    with pytest.raises(web.HTTPError) as failed:
        await spawned(one, gpus=1)
    assert "The Swarm has no leader" in failed.value.jupyterhub_message
    # What is left of it is removed once there is one, and holds the GPU until then.
    assert len(hub.swarm.kept) == 1
    hub.swarm.place, hub.swarm.has_leader = place, True
    assert await hub.leftovers.wait_until_cleared(one.server_key)
    assert hub.swarm.kept == {}


async def test_a_machine_that_goes_away_as_a_server_starts_there_is_left_at_once(
    hub, port, monkeypatch
):
    """Not only once the time for the start is over."""
    monkeypatch.setattr(backend_module, "SOON_SECONDS", 0.0)
    one, place = hub.server_of(port), hub.swarm.place

    def place_and_lose() -> None:
        place()
        for task in hub.swarm.all_tasks:
            if state_of(task) == "running":
                task["Status"] = {"State": "preparing"}
                hub.swarm.go_down()

    hub.swarm.place = place_and_lose
    with pytest.raises(web.HTTPError) as refused:
        await spawned(one, gpus=1)
    assert refused.value.status_code == 503
    assert "free" not in {gpu.state for gpu in (await hub.ledger.read()).gpus}


@pytest.mark.parametrize("state", ["rejected", "failed", "orphaned", "shutdown", "complete"])
async def test_whatever_ends_a_task_as_it_starts_ends_the_start(hub, port, state):
    hub.swarm.place = lambda: [
        each.update(Status={"State": state, "Err": "why not"}) for each in hub.swarm.all_tasks
    ]
    with pytest.raises(web.HTTPError):
        await spawned(hub.server_of(port), gpus=1)
    assert hub.swarm.services() == []
    assert hub.held() == 0


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something is so."""
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never is")


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
        (PullRefused("The disk is full.", "no space"), "The disk is full."),
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


async def test_a_hub_that_asks_for_each_server_lists_them_once(hub, port):
    one = hub.server_of(port)
    await spawned(one, gpus=1)
    assert await one.poll() is None
    asked: Counter[str] = Counter()
    for name in ("tasks", "inspect_service"):
        real = getattr(hub.swarm, name)
        setattr(hub.swarm, name, lambda *a, r=real, n=name, **k: (asked.update([n]), r(*a, **k))[1])
    for _ in range(20):
        assert await one.poll() is None
    assert asked.keys() <= {"tasks"}
    assert asked["tasks"] <= 2
    # One that has ended is asked for, as soon as a list shows it.
    hub.swarm.all_tasks[0]["Status"] = {"State": "complete"}
    await hub.backend.tasks.now()
    assert str(await one.poll()).startswith("complete")


async def test_what_was_running_a_moment_ago_and_is_gone_by_hand_is_no_server_soon(hub, port):
    one = hub.server_of(port)
    await spawned(one, gpus=1)
    assert await one.poll() is None
    hub.swarm.remove_service(one.server_id)
    while await one.poll() is None:
        await asyncio.sleep(0.05)
    assert await one.poll() == 0
