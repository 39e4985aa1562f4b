"""One GPU has one holder and none is lost on a Swarm, whatever happens in whatever order.

Two hubs share a Swarm. Hypothesis decides which call to the Swarm takes effect next, which start is
given up, which hub dies, and when Swarm gives a task its node or ends one. `launch`, the ledger and
the backend are the real ones; the Swarm keeps services and tasks, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from docker.errors import APIError
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gpuspawner.backends.launch import launch
from gpuspawner.backends.leftovers import Leftovers
from gpuspawner.backends.swarm.backend import SwarmBackend
from gpuspawner.backends.swarm.reader import SwarmReader
from gpuspawner.backends.swarm.service_spec import service_spec
from gpuspawner.backends.swarm.tasks import end_of, is_terminal, state_of
from gpuspawner.errors import Refused, StartAgain
from gpuspawner.gpus.model import GPU, Holder, Node
from gpuspawner.leases.clock import Clock, Deadline
from gpuspawner.leases.labels import LABEL_HUB, LABEL_REMOVE, labels
from gpuspawner.leases.ledger import Ledger, Reservation
from gpuspawner.nodes.resources import offers, reservations

from ..support.raft import RaftInMemory

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

    def give_up(self) -> None:
        """Let no call take effect any more."""
        for answer, _ in self.waiting:
            answer.cancel()
        self.waiting.clear()

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


class Inventory:
    """What the node's daemon says while it is reached: all GPUs are there, and idle."""

    lets_go = False

    def __init__(self, swarm: RaftInMemory) -> None:
        self.swarm = swarm
        self.containers: Any = {}

    async def __call__(self) -> tuple[Node, ...]:
        is_silent = self.swarm.state != "ready"
        self.containers = {} if is_silent else {"one": self.swarm.as_told()}
        gpus = tuple(replace(gpu, state="unknown") if is_silent else gpu for gpu in GPUS)
        return (Node("one", "570.133.20", "12.8", gpus),)


class Hub:
    """A hub's process, as far as it starts servers."""

    def __init__(self, loop: Loop, swarm: RaftInMemory, name: str) -> None:
        self.name, self.loop = name, loop
        self.calls = Calls()
        self.backend = SwarmBackend(lambda: swarm, logging.getLogger("tests"))
        self.backend.executor.shutdown()
        self.backend.executor = self.calls  # type: ignore[assignment]
        reader = SwarmReader(Inventory(swarm), self.backend.list_nodes, logging.getLogger("tests"))
        self.backend.containers = reader.containers
        self.ledger = Ledger(self.backend.list, reader, str, name, read_notes=self.backend.notes)
        self.leftovers = Leftovers()
        self.servers: list[Server] = []
        self.is_alive = True

    def start(self, user: str, gpus: int) -> None:
        server = Server(self, Holder(user), gpus)
        self.servers.append(server)
        server.task = self.loop.create_task(launch(server, self.ledger, self.leftovers))
        server.task.add_done_callback(lambda task: task.cancelled() or task.exception())


@dataclass(eq=False)
class Server:
    """One start, as `launch` takes it."""

    hub: Hub
    holder: Holder
    gpus: int
    task: asyncio.Task[Any] | None = None
    id: str = ""
    own: str = ""
    units: list[str] = field(default_factory=list)
    stopped: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        """Whether it has started, and nobody has stopped it."""
        has_started = self.task and self.task.done() and not self.task.cancelled()
        return bool(has_started and not self.task.exception() and not self.stopped)

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is there, or will be."""
        if self.stopped:
            return self.stopped.done()
        return bool(self.task and self.task.done() and not self.is_up)

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
            labels={**lease, LABEL_HUB: self.hub.name, LABEL_REMOVE: "1"},
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
        task = await self.hub.backend.await_task(
            server_id, lambda task: state_of(task) == "running"
        )
        if task is None or is_terminal(task):
            raise RuntimeError("it ended as it started")
        self.own = str(task["ID"])

    async def await_server(self, server_id: str) -> None:
        await self.hub.backend.keep_end(server_id, Deadline.after(7200, Clock()))

    async def look(self) -> None:
        """Do as JupyterHub does now and then: clean up after a server that has ended."""
        with suppress(APIError):
            service = await self.hub.backend.inspect(self.id)
            tasks = await self.hub.backend.tasks.of(self.id)
            if service is None or not tasks or end_of(tasks, self.own) is not None:
                self.stop()

    def stop(self) -> None:
        """Do as its user who stops it, or as JupyterHub at its end."""
        if self.is_up:
            self.stopped = self.hub.loop.create_task(self._remove())

    async def _remove(self) -> None:
        backend, leftovers = self.hub.backend, self.hub.leftovers
        await leftovers.remove_later(self.server_key, backend.remove, self.id)

    def discarder(self) -> Callable[[str], Awaitable[None]]:
        return self.hub.backend.remove

    def on_retry(self, reason: StartAgain) -> None:
        pass


class Story:
    """A Swarm with two hubs, and what happens there."""

    def __init__(self, admits: bool) -> None:
        self.loop, self.swarm = Loop(), RaftInMemory(OFFERED, admits)
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
        what = data.draw(st.sampled_from("cccccccaaaooppfwxksslduurriggte"))
        hub = data.draw(st.sampled_from(self.hubs))
        if what == "c" and hub.calls.waiting:
            hub.calls.act(data.draw(st.integers(0, len(hub.calls.waiting) - 1)), hub.is_alive)
        elif what == "p":
            self.swarm.place()
        elif what == "a":
            containers_end = data.draw(st.booleans())
            for _ in range(data.draw(st.integers(1, 6))):
                self.pass_second(containers_end)
        elif what == "o":
            self.swarm.orchestrate()
        elif what == "f":
            self.swarm.finish()
        elif what == "d":
            self.swarm.go_down()
        elif what == "u":
            self.swarm.come_back()
        elif what == "g":
            self.swarm.go_down()
            self.swarm.orphan()
        elif what == "i":
            self.swarm.make_available(data.draw(st.sampled_from(("drain", "pause", "active"))))
        elif what == "l":
            self.swarm.has_leader = not self.swarm.has_leader
        elif what == "t" and self.swarm.kept:
            service = data.draw(st.sampled_from(list(self.swarm.kept.values())))
            self.swarm.force(service)
        elif what == "e" and self.swarm.kept:
            service = data.draw(st.sampled_from(list(self.swarm.kept.values())))
            self.swarm.scale(service, data.draw(st.integers(0, 2)))
        elif what == "s" and hub.is_alive:
            server = data.draw(st.sampled_from(hub.servers))
            self._in_loop(server.stop)
        elif what == "r" and hub.is_alive:
            server = data.draw(st.sampled_from(hub.servers))
            if server.is_over:
                hub.servers.remove(server)
                self._in_loop(lambda: hub.start(server.holder.user, 1))
        elif what == "w":
            self.loop.now += data.draw(st.sampled_from((0.05, 0.5, 6.0, 200.0)))
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
        self.swarm.has_leader = True
        self.swarm.come_back()
        self.swarm.make_available("active")
        for second in range(A_WHILE):
            if second % 50 == 0:
                self.reading = self.loop.create_task(living.ledger.read())
                self.looks = [
                    self.loop.create_task(server.look())
                    for server in self.servers
                    if server.hub.is_alive and server.is_up
                ]
            self.pass_second()

    def pass_second(self, containers_end: bool = True) -> None:
        """Let a second pass in which all does what it is about to do."""
        self.loop.now += 1.0
        self.loop.settle()
        # By turns, so that each sees as little of the other as it can.
        while waiting := [hub for hub in self.hubs if hub.calls.waiting]:
            for hub in waiting:
                hub.calls.act(0, hub.is_alive)
                self.loop.settle()
                self.check()
        self.swarm.orchestrate()
        self.swarm.place()
        if containers_end:
            self.swarm.finish()
        self.check()

    def check(self) -> None:
        held = self.swarm.running()
        assert len(held) == len(set(held)), held

    def close(self) -> None:
        while tasks := asyncio.all_tasks(self.loop):  # what undoes a start isn't given up at once
            for hub in self.hubs:
                hub.calls.give_up()
            for task in tasks:
                task.cancel()
            self.loop.settle()
        self.loop.close()


# A shorter story of a failure would take minutes to find.
@pytest.mark.parametrize("admits", [True, False], ids=["Raft admits", "only the hubs see to it"])
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
        up = [each for each in story.servers if each.hub.is_alive and each.is_up]
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
