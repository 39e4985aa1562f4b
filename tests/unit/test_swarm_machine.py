"""One GPU has one holder and none is lost on a Swarm, whatever happens in whatever order.

Two hubs share a Swarm. Hypothesis decides which call to the Swarm takes effect next, which start is
given up, which hub dies, and when Swarm gives a task its node or ends one. `launch`, the ledger and
the backend are the real ones; the Swarm keeps services and tasks, and nothing else.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests
from docker.errors import APIError, NotFound
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gpuspawner.backends.launch import launch
from gpuspawner.backends.leftovers import Leftovers
from gpuspawner.backends.swarm.backend import SwarmBackend
from gpuspawner.backends.swarm.reader import SwarmReader
from gpuspawner.backends.swarm.service_spec import service_spec
from gpuspawner.backends.swarm.tasks import state_of
from gpuspawner.errors import Refused, StartAgain
from gpuspawner.gpus.model import GPU, Holder, Node
from gpuspawner.leases.clock import Clock, Deadline
from gpuspawner.leases.labels import LABEL_GPUS, LABEL_HUB, labels
from gpuspawner.leases.ledger import Ledger, Reservation
from gpuspawner.nodes.resources import offers, reservations

GPUS = tuple(
    GPU(f"GPU-{n}1b2c3d4-0000-0000-0000-000000000000", n, "T4", node="one") for n in (0, 1)
)
OFFERED = offers(GPUS)
# Longer than any wait of the code under test, in seconds.
A_WHILE = 300


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0
        self.busy = False
        super().__init__()

    def time(self) -> float:
        return self.now

    def call_soon(self, *args: Any, **kwargs: Any) -> asyncio.Handle:
        self.busy = True
        return super().call_soon(*args, **kwargs)

    def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> asyncio.Handle:
        self.busy = True
        return super().call_soon_threadsafe(*args, **kwargs)

    def settle(self) -> None:
        """Run until everything waits: for the Swarm, or for the clock."""
        self.busy = True
        while self.busy:
            self.busy = False
            super().call_soon(self.stop)
            self.run_forever()


class Calls(Executor):
    """A hub's calls to the Swarm, each of which takes effect when it is told to."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        answer: Future[Any] = Future()
        self.waiting.append((answer, lambda: function(*args, **kwargs)))
        return answer

    def act(self, number: int, is_answered: bool = True) -> None:
        """Let a call take effect; `is_answered`: whether its hub lives to hear of it."""
        answer, function = self.waiting.pop(number)
        try:
            result = function()
        except Exception as error:
            if is_answered and not answer.cancelled():
                answer.set_exception(error)
            return
        if is_answered and not answer.cancelled():
            answer.set_result(result)


def refusal(status: int, words: str) -> APIError:
    """What docker-py raises for an answer of the engine's."""
    response = requests.Response()
    response.status_code = status
    return (NotFound if status == 404 else APIError)(words, response, words)


class Swarm:
    """The Swarm as its API has it, with docker-py's methods.

    Args:
        admits: whether it gives no kind away twice. Else only the hubs see to that.
    """

    def __init__(self, admits: bool) -> None:
        self.admits = admits
        self.kept: dict[str, Any] = {}
        self.all_tasks: list[Any] = []
        self.numbers = itertools.count(1)

    # -- the API

    def nodes(self) -> list[Any]:
        resources = [
            {"DiscreteResourceSpec": {"Kind": kind, "Value": n}} for kind, n in OFFERED.items()
        ]
        return [
            {
                "ID": "n1",
                "Spec": {"Role": "manager", "Availability": "active"},
                "Status": {"State": "ready"},
                "Description": {
                    "Hostname": "one",
                    "Engine": {"EngineVersion": "26.1.5"},
                    "Resources": {"GenericResources": resources},
                },
            }
        ]

    def configs(self, filters: Any = None) -> list[Any]:
        return []

    def services(self, filters: Any = None) -> list[Any]:
        return copy.deepcopy(list(self.kept.values()))

    def tasks(self) -> list[Any]:
        return copy.deepcopy(self.all_tasks)

    def inspect_service(self, id: str) -> Any:
        for service in self.kept.values():
            if id in (service["ID"], service["Spec"]["Name"]):
                return copy.deepcopy(service)
        raise refusal(404, f"service {id} not found")

    def create_service(
        self, task_template: Any, name: str, labels: Any, mode: Any, endpoint_spec: Any
    ) -> Any:
        if any(each["Spec"]["Name"] == name for each in self.kept.values()):
            raise refusal(409, "name conflicts with an existing object")
        spec = {"Name": name, "Labels": labels, "TaskTemplate": task_template, "Mode": mode}
        number = next(self.numbers)
        self.kept[f"s{number}"] = {
            "ID": f"s{number}",
            "CreatedAt": "2030-01-31T12:00:00Z",
            "Version": {"Index": number},
            "Spec": {**copy.deepcopy(spec), "EndpointSpec": endpoint_spec},
        }
        return {"ID": f"s{number}"}

    def update_service(self, id: str, version: int, **spec: Any) -> None:
        service = self.kept.get(id)
        if service is None:
            raise refusal(404, f"service {id} not found")
        if service["Version"]["Index"] != version:
            raise refusal(500, "rpc error: code = Unknown desc = update out of sequence")
        service["Version"]["Index"] = next(self.numbers)
        service["Spec"] = copy.deepcopy(
            {
                "Name": spec["name"],
                "Labels": spec["labels"],
                "TaskTemplate": spec["task_template"],
                "Mode": spec["mode"],
                "EndpointSpec": spec["endpoint_spec"],
            }
        )
        has_task = any(each["ServiceID"] == id for each in self.all_tasks)
        if spec["mode"]["Replicated"]["Replicas"] and not has_task:
            self.all_tasks.append(
                {
                    "ID": f"t{next(self.numbers)}",
                    "ServiceID": id,
                    "Version": {"Index": next(self.numbers)},
                    "Status": {"State": "new"},
                    "Spec": copy.deepcopy(spec["task_template"]),
                }
            )

    def remove_service(self, id: str) -> None:
        if self.kept.pop(id, None) is None:
            raise refusal(404, f"service {id} not found")
        for task in self.all_tasks:
            if task["ServiceID"] == id:
                task["Stops"] = True

    # -- what it does by itself

    def place(self) -> None:
        """Give the first task that waits its node, if what it reserves is there."""
        for task in self.all_tasks:
            if state_of(task) in ("new", "pending") and not task.get("Stops"):
                if self.admits and not self._kinds(task).isdisjoint(self._given()):
                    said = "no suitable node (insufficient resources on 1 node)"
                    task["Status"] = {"State": "pending", "Err": said}
                    continue
                task["Status"] = {"State": "running"}
                task["NodeID"] = "n1"
                return

    def finish(self) -> None:
        """Have the first task end whose service is gone."""
        for task in self.all_tasks:
            if task.get("Stops"):
                self.all_tasks.remove(task)
                return

    def _given(self) -> set[str]:
        running = [each for each in self.all_tasks if state_of(each) == "running"]
        return {kind for each in running for kind in self._kinds(each)}

    def _kinds(self, task: Any) -> set[str]:
        wanted = task["Spec"]["Resources"]["Reservations"].get("GenericResources") or []
        return {each["DiscreteResourceSpec"]["Kind"] for each in wanted}

    def running(self) -> list[str]:
        """The GPUs of the containers that run."""
        return [
            uuid
            for task in self.all_tasks
            if state_of(task) == "running"
            for uuid in task["Spec"]["ContainerSpec"]["Labels"][LABEL_GPUS].split(",")
        ]


class Inventory:
    """What the nodes' daemons say: all GPUs are there, and idle."""

    lets_go = False

    async def __call__(self) -> tuple[Node, ...]:
        return (Node("one", "570.133.20", "12.8", GPUS),)


class Hub:
    """A hub's process, as far as it starts servers."""

    def __init__(self, loop: Loop, swarm: Swarm, name: str) -> None:
        self.name, self.loop = name, loop
        self.calls = Calls()
        self.backend = SwarmBackend(lambda: swarm, logging.getLogger("tests"))
        self.backend.executor.shutdown()
        self.backend.executor = self.calls  # type: ignore[assignment]
        reader = SwarmReader(Inventory(), self.backend.list_nodes)
        self.ledger = Ledger(self.backend.list, reader, str, name, read_notes=self.backend.notes)
        self.leftovers = Leftovers()
        self.servers: list[Server] = []
        self.is_alive = True

    def start(self, user: str, gpus: int) -> None:
        server = Server(self, Holder(user), gpus)
        self.servers.append(server)
        server.task = self.loop.create_task(launch(server, self.ledger, self.leftovers))


@dataclass(eq=False)
class Server:
    """One start, as `launch` takes it."""

    hub: Hub
    holder: Holder
    gpus: int
    task: asyncio.Task[Any] | None = None
    id: str = ""
    units: list[str] = field(default_factory=list)

    @property
    def server_key(self) -> str:
        return str(self.holder)

    async def reserve_gpus(self) -> Reservation:
        ledger = self.hub.ledger
        view = await ledger.read(except_for=self.holder)
        free = [gpu for gpu in view.gpus if gpu.state == "free"]
        if len(free) < self.gpus:
            raise Refused("too few", "no_gpu", 503)
        return ledger.reserve(Reservation(self.holder, tuple(free[: self.gpus]), 2e9))

    async def create_server(self, reservation: Reservation) -> str:
        lease = labels(self.holder, "torch", sorted(reservation.units), reservation.until)
        spec = service_spec(
            {"image": "sha256:1"},
            name=f"{self.hub.name}-{self.holder}",
            labels={**lease, LABEL_HUB: self.hub.name},
            uuids=reservation.uuids,
            kinds=reservations(reservation.units, OFFERED),
            node_id="n1",
            network="net",
        )
        return await self.hub.backend.create(spec)

    async def verify_server(self, server_id: str, reservation: Reservation) -> None:
        self.id, self.units = server_id, sorted(reservation.units)

    async def start_server(self, server_id: str) -> None:
        await self.hub.backend.start(server_id)
        await self.hub.backend.await_task(server_id, lambda task: state_of(task) == "running")

    async def await_server(self, server_id: str) -> None:
        await self.hub.backend.keep_end(server_id, Deadline.after(7200, Clock()))

    def discarder(self) -> Callable[[str], Awaitable[None]]:
        return self.hub.backend.remove

    def on_retry(self, reason: StartAgain) -> None:
        pass


class Story:
    """A Swarm with two hubs, and what happens there."""

    def __init__(self, admits: bool) -> None:
        self.loop, self.swarm = Loop(), Swarm(admits)
        self.hubs = [Hub(self.loop, self.swarm, name) for name in ("first", "second")]
        for number, hub in enumerate(self.hubs):
            for user in ("ann", "bob"):
                self._in_loop(lambda hub=hub, user=user, n=number: hub.start(f"{user}{n}", 1))

    def _in_loop(self, begin: Callable[[], None]) -> None:
        self.loop.call_soon(begin)
        self.loop.settle()

    @property
    def servers(self) -> list[Server]:
        return [server for hub in self.hubs for server in hub.servers]

    def happen(self, data: st.DataObject) -> None:
        """Let one thing happen, as hypothesis has it."""
        what = data.draw(st.sampled_from("cccccccppfwxk"))
        hub = data.draw(st.sampled_from(self.hubs))
        if what == "c" and hub.calls.waiting:
            hub.calls.act(data.draw(st.integers(0, len(hub.calls.waiting) - 1)), hub.is_alive)
        elif what == "p":
            self.swarm.place()
        elif what == "f":
            self.swarm.finish()
        elif what == "w":
            self.loop.now += data.draw(st.sampled_from((0.05, 0.5, 6.0)))
        elif what == "x" and hub.is_alive:
            server = data.draw(st.sampled_from(hub.servers))
            self._in_loop(server.task.cancel)
        elif (
            what == "k"
            and data.draw(st.booleans())
            and len([h for h in self.hubs if h.is_alive]) > 1
        ):
            # What it has sent may still be on its way.
            hub.is_alive = False
        self.loop.settle()

    def come_to_rest(self) -> None:
        """Let everything take its course, while a hub that lives reads the ledger now and then."""
        living = next(hub for hub in self.hubs if hub.is_alive)
        for second in range(A_WHILE):
            if second % 50 == 0:
                self.reading = self.loop.create_task(living.ledger.read())
            self.loop.now += 1.0
            self.loop.settle()
            for hub in self.hubs:
                while hub.calls.waiting:
                    hub.calls.act(0, hub.is_alive)
                    self.loop.settle()
                    self.check()
            self.swarm.place()
            self.swarm.finish()
            self.check()

    def check(self) -> None:
        held = self.swarm.running()
        assert len(held) == len(set(held)), held

    def close(self) -> None:
        for hub in self.hubs:
            hub.calls.waiting.clear()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.settle()
        self.loop.close()


@pytest.mark.parametrize("admits", [True, False], ids=["Raft admits", "only the hubs see to it"])
# A shorter story of a failure would take minutes to find.
@settings(phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(data=st.data())
def test_no_gpu_has_two_holders_and_none_is_lost(admits: bool, data: st.DataObject) -> None:
    story = Story(admits)
    try:
        for _ in range(data.draw(st.integers(0, 120), "how much happens first")):
            story.happen(data)
            story.check()
        story.come_to_rest()
        # Who started has what their label says; of who didn't, nothing is left.
        up = [
            each
            for each in story.servers
            if each.hub.is_alive
            and each.task.done()
            and not each.task.cancelled()
            and each.task.exception() is None
        ]
        for server in up:
            assert server.units[0] in story.swarm.running()
        services = story.swarm.services()
        living = {hub.name for hub in story.hubs if hub.is_alive}
        theirs = [each for each in services if each["Spec"]["Labels"][LABEL_HUB] in living]
        assert sorted(each["ID"] for each in theirs) == sorted(each.id for each in up)
        # What a dead hub has created and not started is gone as well.
        assert all(each["Spec"]["Mode"]["Replicated"]["Replicas"] for each in services)
        view = story.reading.result()
        free = {gpu.id for gpu in view.gpus if gpu.state == "free"}
        assert free == {gpu.id for gpu in GPUS} - set(story.swarm.running())
    finally:
        story.close()
