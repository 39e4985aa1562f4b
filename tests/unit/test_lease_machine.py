"""One GPU has one holder and none is lost, whatever happens in whatever order.

Two hubs share one engine. Hypothesis decides who starts, gives up, dies and restarts, and for every
call to the engine and to NVML when it takes effect, when it is answered, and whether with an error.
`launch`, the queue, the ledger and what removes leftovers are the real ones, as a hub has them; the
engine keeps containers and nothing else.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import hypothesis
import pytest
import requests
from docker.errors import APIError, NotFound
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpuspawner.backends import leftovers as leftovers_module
from gpuspawner.backends.docker.backend import remove
from gpuspawner.backends.docker.listing import server_record
from gpuspawner.backends.launch import launch
from gpuspawner.backends.leftovers import Leftovers, StaleServerReaper
from gpuspawner.errors import Refused, StartAgain, Unknown
from gpuspawner.gpus.model import GPU, SHARED, WHOLE, Holder, Node, Request
from gpuspawner.gpus.nvml import InventoryError
from gpuspawner.gpus.unit_names import exclude_each_other
from gpuspawner.gpus.units import split
from gpuspawner.leases.labels import LABEL_GPUS, LABEL_HUB, ServerRecord, labels
from gpuspawner.leases.ledger import Ledger, Reservation
from gpuspawner.scheduling.plan import QueuedRequest
from gpuspawner.scheduling.queue import Queue, QueueSettings, RequestLimits

from ..support.ledgers import NoWatcher, reserve

GPUS = tuple(GPU(f"GPU-{n}", n, "Tesla T4") for n in range(3))
USERS = ("ann", "bob", "eve")
# What a hub shares, the same as another hub or not, and not what it shared before its restart.
SHARED_GPUS: list[dict[str, int]] = [
    {"GPU-2": 2},
    {"GPU-2": 2},
    {"GPU-2": 3, "GPU-1": 2},
    {},
]
# How long those wait who may, in seconds.
LONGEST_WAIT = 20
# Longer than any wait of the code under test, but the one until a container is stale.
A_WHILE = 70


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

    def settle(self) -> None:
        """Run until everything waits: for the engine, for NVML or for the clock."""
        self.busy = True
        while self.busy:
            self.busy = False
            super().call_soon(self.stop)
            self.run_forever()


@dataclass(eq=False)
class Call:
    """A call on its way: it takes effect at one moment and is answered at a later one."""

    number: int
    hub: Hub
    method: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    answer: asyncio.Future[Any]
    outcome: Any = None  # an exception is one, too
    took_effect: bool = False


class Machine:
    """The GPU machine: its engine's containers, its NVML, and the calls under way to both."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.containers: dict[str, dict[str, Any]] = {}
        self.calls: list[Call] = []
        self.numbers = itertools.count(1)
        self.troubles: list[Any] = []
        # Whether the next container is created with other GPUs than its label says.
        self.confused = False
        # The ids of the servers that were found to answer.
        self.answered: set[str] = set()
        # Whether there may be a container that its hub doesn't know of.
        self.unclean = False
        self.now = time.time() - 10

    def call(self, hub: Hub, method: str, *arguments: Any, **options: Any) -> asyncio.Future[Any]:
        answer = self.loop.create_future()
        if hub.alive:  # else nothing that it does reaches anybody
            number = next(self.numbers)
            if method == "remove_container":
                self.notice_removal(hub, *arguments, **options)
            self.calls.append(Call(number, hub, method, arguments, options, answer))
        return answer

    def act(self, call: Call) -> None:
        """Let a call take effect."""
        call.took_effect = True
        try:
            call.outcome = getattr(self, call.method)(*call.arguments, **call.options)
        except Exception as error:
            call.outcome = error

    def reply(self, call: Call, error: Exception | None = None) -> None:
        """Answer a call with its outcome, or with the error that came instead."""
        self.calls.remove(call)
        if call.method == "remove_container" and isinstance(call.outcome, str):
            self.containers.pop(call.outcome, None)  # answered only when it is gone
        outcome = error or call.outcome
        if not call.hub.alive or call.answer.done():
            return
        if isinstance(outcome, Exception):
            call.answer.set_exception(outcome)
        else:
            if call.method in call.hub.newest:
                call.hub.newest[call.method] = call.number
            call.answer.set_result(outcome)

    def catch_up(
        self, rounds: int, only: Hub | None = None, last_first: tuple[bool, bool] = (False, False)
    ) -> None:
        """Answer what is asked, by one hub or by all, and what is asked then, and so on.

        Args:
            last_first: whether the last call takes effect first, and whether it is answered first.
        """
        for _ in range(rounds):
            calls = [call for call in self.calls if only in (None, call.hub)]
            for call in calls[::-1] if last_first[0] else calls:
                if not call.took_effect:
                    self.act(call)
            for call in calls[::-1] if last_first[1] else calls:
                self.reply(call)
                self.loop.settle()

    def notice_removal(self, hub: Hub, id: str, force: bool = False, **_: Any) -> None:
        """Another hub's container may only be removed if it never ran, as far as can be known."""
        container = self.containers.get(id)
        if container and not container["Name"].startswith(hub.name):
            ran = container.get("Started", 0)
            if force or 0 < ran < hub.newest["list_containers"]:
                self.troubles.append(f"hub {hub.name} removes {container}")

    # What the engine and NVML do

    def nvml(self) -> Any:
        return (Node("", "570.133.20", "12.8", GPUS),)

    def list_containers(self) -> list[dict[str, Any]]:
        return copy.deepcopy(list(self.containers.values()))

    def create_container(self, name: str, labels: dict[str, str], age: int) -> dict[str, str]:
        if any(container["Name"] == name for container in self.containers.values()):
            raise _api_error(409, "the name is in use")
        # Ids in no order, and a clock of whole seconds: neither tells who came first.
        id = hashlib.sha256(str(next(self.numbers)).encode()).hexdigest()
        self.containers[id] = {
            "Id": id,
            "Name": name,
            "State": "created",
            "Created": int(self.now) - age,
            "Labels": labels,
            "Granted": ["GPU-9"] if self.confused else labels[LABEL_GPUS].split(","),
        }
        self.confused = False
        return {"Id": id}

    def inspect_container(self, name: str) -> dict[str, Any]:
        for container in self.containers.values():
            if container["Name"] == name:
                return {"Id": container["Id"]}
        raise _api_error(404, "no such container")

    def uuids_of(self, id: str) -> list[str]:
        if id not in self.containers:
            raise _api_error(404, "no such container")
        return list(filter(None, self.containers[id]["Granted"]))

    def answers(self, id: str) -> None:
        if self.containers.get(id, {}).get("State") != "running":
            raise _api_error(500, "it has ended")
        self.answered.add(id)

    def start(self, id: str) -> None:
        if self.containers.get(id, {}).get("State") != "created":
            raise _api_error(404, "no such container")
        self.containers[id] |= {"State": "running", "Started": next(self.numbers)}

    def remove_container(self, id: str, force: bool = False, v: bool = False) -> str:
        if id not in self.containers:
            raise _api_error(404, "no such container")
        if self.containers[id]["State"] == "removing":
            raise _api_error(409, "its removal is in progress")
        if self.containers[id]["State"] == "running" and not force:
            raise _api_error(409, "it is running")
        self.containers[id]["State"] = "removing"
        return id


def _api_error(status: int, explanation: str) -> APIError:
    response = requests.Response()
    response.status_code = status
    error = NotFound if status == 404 else APIError
    return error(explanation, response, explanation)


class OtherGPUs(Exception):
    """A container that was created with other GPUs than were reserved."""


@dataclass(eq=False)
class Server:
    """One try to start a server, as `launch` takes it, and what became of it."""

    hub: Hub
    holder: Holder
    age: int
    request: Request
    longest: float = 0
    reservations: list[Reservation] = field(default_factory=list)
    # What its user was offered while it ran without GPUs, until it is started with that.
    offered: Reservation | None = None
    # Several where a start was tried again with the same GPUs.
    creating: dict[Reservation, list[asyncio.Future[Any]]] = field(default_factory=dict)
    task: asyncio.Task[str] | None = None

    @property
    def name(self) -> str:
        return f"{self.hub.name}-{self.holder}"

    @property
    def server_key(self) -> str:
        return self.name

    def created(self) -> set[str]:
        """The ids of the containers that this process was told of."""
        every = itertools.chain.from_iterable(self.creating.values())
        told = [each for each in every if each.done() and not each.exception()]
        return {each.result()["Id"] for each in told}

    async def reserve_gpus(self) -> Reservation:
        try:
            existing = await self.hub.docker("inspect_container", self.name)
        except NotFound:
            pass
        else:
            await self.hub.backend.remove(existing["Id"])
        if self.offered:
            reservation, self.offered = self.offered, None
            return reservation
        if self.request.gpus == 0:
            reservation = Reservation(self.holder, ())
            self.reservations.append(reservation)
            return reservation
        return await self.wait()

    async def wait(self) -> Reservation:
        """Wait in the queue."""
        queue = self.hub.queue
        joining = QueuedRequest(self.holder, self.request, queue.join_time())
        limits = RequestLimits(max_wait_seconds=self.longest)
        reservation = await queue.wait(joining, limits, lambda turn: None)
        assert min(self.hub.newest.values()) > 0  # unknown is never free
        assert len(reservation.units) == self.request.gpus
        self.reservations.append(reservation)
        return reservation

    async def create_server(self, reservation: Reservation) -> str:
        lease = labels(self.holder, self.request.image, sorted(reservation.units))
        lease[LABEL_HUB] = f"http://{self.hub.name}"
        creating = self.hub.docker("create_container", self.name, lease, self.age)
        self.creating.setdefault(reservation, []).append(creating)
        return str((await creating)["Id"])

    async def verify_server(self, server_id: str, reservation: Reservation) -> None:
        if set(await self.hub.docker("uuids_of", server_id)) != reservation.units:
            raise OtherGPUs

    async def start_server(self, server_id: str) -> None:
        await self.hub.backend.start(server_id)

    async def await_server(self, server_id: str) -> str:
        await self.hub.docker("answers", server_id)
        return server_id

    def discarder(self) -> Callable[[str], Awaitable[None]]:
        return self.hub.backend.remove

    def on_retry(self, reason: StartAgain) -> None:
        """Each try is as good as the last."""


async def _awaited(answer: Awaitable[Any]) -> Any:
    return await answer


class ListBackend:
    """A backend whose servers are the machine's list of containers."""

    def __init__(self, hub: Hub) -> None:
        self._call = hub.docker
        log = logging.getLogger("lease-machine")
        self._reaper = StaleServerReaper(self.remove_unstarted, log)

    async def list(self) -> list[ServerRecord]:
        found = [server_record(each) for each in await self._call("list_containers")]
        self._reaper.reap(found)
        return found

    async def start(self, server_id: str) -> None:
        await self._call("start", server_id)

    async def remove(self, server_id: str) -> None:
        await remove(self._call, server_id)

    async def remove_unstarted(self, server_id: str) -> None:
        await self._call("remove_container", server_id, v=True)


class Hub:
    """One hub's process, and all that it remembers."""

    def __init__(
        self, machine: Machine, name: str, shared: Mapping[str, int] | None = None
    ) -> None:
        self.machine, self.name, self.shared = machine, name, shared or {}
        self.alive = True
        self.servers: list[Server] = []
        self.stopped: set[str] = set()
        self.newest = {"nvml": 0, "list_containers": 0}
        self.backend = ListBackend(self)
        self.ledger = Ledger(self.backend.list, self.nvml)
        self.queue = Queue(self.ledger, QueueSettings(), NoWatcher)
        self.leftovers = Leftovers()

    def docker(self, method: str, *arguments: Any, **options: Any) -> asyncio.Future[Any]:
        return self.machine.call(self, method, *arguments, **options)

    async def nvml(self) -> Any:
        nodes = await self.docker("nvml")
        return [
            replace(
                node, gpus=tuple(unit for gpu in node.gpus for unit in split(gpu, self.shared, ()))
            )
            for node in nodes
        ]

    def launch(self, server: Server) -> Any:
        self.servers.append(server)
        return self._launch(server)

    async def _launch(self, server: Server) -> str:
        launched = await launch(server, self.ledger, self.leftovers)
        assert launched.reservation is server.reservations[-1]
        return launched.answer

    async def ask(self, server: Server) -> None:
        """Wait for a server's GPUs while it runs without; they stay reserved until it claims."""
        self.servers.append(server)
        server.offered = await server.wait()

    def claim(self, server: Server) -> Any:
        return self._launch(server)

    def let_go(self, server: Server) -> None:
        if server.offered:
            self.ledger.release(server.offered)
            server.offered = None

    async def stop(self, container: dict[str, Any]) -> None:
        self.stopped.add(container["Id"])
        self.leftovers.remove_later(container["Name"], self.backend.remove, container["Id"])
        await self.leftovers.wait_until_cleared(container["Name"])

    def starting(self) -> list[Server]:
        return [server for server in self.servers if server.task and not server.task.done()]


def end(loop: Loop) -> None:
    while pending := asyncio.all_tasks(loop):
        for task in pending:
            task.cancel()
        loop.settle()
    loop.close()


def picked(which: int, among: list[Any]) -> Any:
    return among[which % len(among)]


def uuids_of(container: dict[str, Any]) -> list[str]:
    return list(filter(None, container["Labels"][LABEL_GPUS].split(",")))


def is_startable(call: Call) -> bool:
    """Return whether a call is about to start a container."""
    if call.method != "start":
        return False
    container = call.hub.machine.containers.get(call.arguments[0], {})
    return bool(container.get("State") == "created")


WHICH = st.integers(0, 11)


class Leases(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.machine = Machine(self.loop)
        self.loop.set_exception_handler(lambda _, context: self.machine.troubles.append(context))
        self.past: list[Hub] = []
        self.hubs = [self.boot("a", 0), self.boot("b", 0)]
        self.tasks: list[tuple[Hub, asyncio.Task[Any]]] = []
        self.ended: dict[Reservation, int] = {}

    def boot(self, name: str, which: int) -> Hub:
        return Hub(self.machine, name, picked(which, SHARED_GPUS))

    def run(self, hub: Hub, coroutine: Any) -> asyncio.Task[Any]:
        task = self.loop.create_task(coroutine)
        self.tasks.append((hub, task))
        return task

    def idle(self) -> list[tuple[Hub, Holder]]:
        return [
            (hub, Holder(user))
            for hub in self.hubs
            for user in USERS
            if user not in {server.holder.user for server in hub.starting()}
        ]

    def starting(self) -> list[Server]:
        return [server for hub in self.hubs for server in hub.starting()]

    def containers(self, *states: str) -> list[dict[str, Any]]:
        found = self.machine.containers.values()
        return [container for container in found if container["State"] in states]

    def waiting(self) -> list[Call]:
        return [call for call in self.machine.calls if not call.took_effect]

    def acted(self) -> list[Call]:
        return [call for call in self.machine.calls if call.took_effect]

    # What users do

    @precondition(lambda self: self.idle())
    @rule(
        which=WHICH,
        several=st.integers(1, 3),
        gpus=st.sampled_from([1, 1, 1, 2, 3, 0]),
        longest=st.sampled_from([0, 0, LONGEST_WAIT]),
        age=st.integers(0, 1),
        kind=st.sampled_from([WHOLE, WHOLE, SHARED]),
    )
    def start(
        self, which: int, several: int, gpus: int, longest: float, age: int, kind: str
    ) -> None:
        for number in range(several):
            if idle := self.idle():
                hub, holder = picked(which + 3 * number, idle)  # by turns on both hubs
                request = Request("torch", gpus if kind == WHOLE else min(gpus, 1), kind=kind)
                server = Server(hub, holder, (age + number) % 2, request, longest)
                server.task = self.run(hub, hub.launch(server))
        self.loop.settle()

    @precondition(lambda self: self.idle())
    @rule(which=WHICH, gpus=st.integers(1, 2), longest=st.sampled_from([0, LONGEST_WAIT]))
    def ask_while_running(self, which: int, gpus: int, longest: float) -> None:
        hub, holder = picked(which, self.idle())
        server = Server(hub, holder, 0, Request("torch", gpus), longest)
        server.task = self.run(hub, hub.ask(server))
        self.loop.settle()

    def offered(self) -> list[Server]:
        servers = [server for hub in self.hubs for server in hub.servers]
        return [server for server in servers if server.offered]

    @precondition(lambda self: self.offered())
    @rule(which=WHICH, claims=st.booleans())
    def claim_or_let_go(self, which: int, claims: bool) -> None:
        server = picked(which, self.offered())
        if claims and (server.hub, server.holder) in self.idle():
            server.task = self.run(server.hub, server.hub.claim(server))
        else:
            server.hub.let_go(server)
        self.loop.settle()

    @precondition(lambda self: self.starting())
    @rule(which=WHICH)
    def give_up(self, which: int) -> None:
        task = picked(which, self.starting()).task
        task.cancel()
        self.loop.settle()

    @precondition(lambda self: self.containers("running", "exited"))
    @rule(which=WHICH)
    def stop(self, which: int) -> None:
        container = picked(which, self.containers("running", "exited"))
        hub = next(hub for hub in self.hubs if container["Name"].startswith(hub.name))
        self.run(hub, hub.stop(container))
        self.loop.settle()

    @rule(which=WHICH)
    def look(self, which: int) -> None:
        hub = picked(which, self.hubs)
        self.run(hub, hub.ledger.read())
        self.loop.settle()

    # What the engine, NVML and the clock do

    @precondition(lambda self: self.waiting())
    @rule(which=WHICH)
    def a_call_takes_effect(self, which: int) -> None:
        self.machine.act(picked(which, self.waiting()))

    @precondition(lambda self: self.acted())
    @rule(which=WHICH)
    def a_call_is_answered(self, which: int) -> None:
        self.machine.reply(picked(which, self.acted()))
        self.loop.settle()

    @precondition(lambda self: self.machine.calls)
    @rule(rounds=st.integers(1, 4), last_first=st.tuples(st.booleans(), st.booleans()))
    def all_calls_are_answered(self, rounds: int, last_first: tuple[bool, bool]) -> None:
        self.machine.catch_up(rounds, last_first=last_first)

    @precondition(lambda self: self.machine.calls)
    @rule(
        which=WHICH,
        rounds=st.integers(1, 4),
        last_first=st.tuples(st.booleans(), st.booleans()),
    )
    def one_hubs_calls_are_answered(
        self, which: int, rounds: int, last_first: tuple[bool, bool]
    ) -> None:
        self.machine.catch_up(rounds, picked(which, self.hubs), last_first)

    @precondition(lambda self: self.machine.calls)
    @rule(which=WHICH, rounds=st.integers(1, 3))
    def what_is_only_read_is_answered_first(self, which: int, rounds: int) -> None:
        """While the engine takes its time to create, start and remove."""
        hub = picked(which, self.hubs)
        for _ in range(rounds):
            for call in [each for each in self.machine.calls if each.hub is hub]:
                if call.method in hub.newest:
                    self.machine.act(call)
                    self.machine.reply(call)
                    self.loop.settle()

    @rule(seconds=st.sampled_from([0.05, 1, A_WHILE]))
    def time_passes(self, seconds: float) -> None:
        self.loop.now += seconds
        self.loop.settle()

    # What goes wrong: one rule, so that all the others together are more frequent

    @rule(
        which=WHICH,
        what=st.sampled_from(
            [
                "die",
                "die_and_be_removed",
                "be_removed_by_force",
                "refuse_a_call",
                "refuse_a_limit",
                "lose_an_answer",
                "kill_and_restart_a_hub",
                "grant_other_gpus",
                "let_much_time_pass",
            ]
        ),
    )
    def something_goes_wrong(self, which: int, what: str) -> None:
        getattr(self, what)(which)
        self.loop.settle()

    def die(self, which: int) -> None:
        if running := self.containers("running"):
            picked(which, running)["State"] = "exited"

    def die_and_be_removed(self, which: int) -> None:
        if running := self.containers("running"):
            del self.machine.containers[picked(which, running)["Id"]]

    def be_removed_by_force(self, which: int) -> None:
        if self.machine.containers:
            del self.machine.containers[picked(which, list(self.machine.containers))]

    def refuse_a_call(self, which: int) -> None:
        if waiting := self.waiting():
            call = picked(which, waiting)
            nvml = call.method == "nvml"
            self.machine.reply(call, InventoryError("away") if nvml else _api_error(500, "full"))

    def refuse_a_limit(self, which: int) -> None:
        """The engine doesn't start a container, and would start one that asks for less."""
        if starts := [call for call in self.waiting() if is_startable(call)]:
            self.machine.reply(picked(which, starts), StartAgain("it may not set a limit"))

    def lose_an_answer(self, which: int) -> None:
        """Whether or not the call took effect; one that changes something may do so later."""
        if self.machine.calls:
            self.machine.unclean = True
            call = picked(which, self.machine.calls)
            error = requests.exceptions.ReadTimeout("no answer")
            if call.took_effect or call.method in call.hub.newest:
                self.machine.reply(call, error)
            elif not call.answer.done():
                call.answer.set_exception(error)

    def kill_and_restart_a_hub(self, which: int) -> None:
        hub = picked(which, self.hubs)
        hub.alive = False
        self.machine.unclean = True
        self.past.append(hub)
        self.hubs[self.hubs.index(hub)] = self.boot(hub.name, which)

    def grant_other_gpus(self, which: int) -> None:
        """The next container isn't what it should be."""
        self.machine.confused = True

    def let_much_time_pass(self, which: int = 0) -> None:
        """So much that a container which never started belongs to a hub that died."""
        self.loop.now += leftovers_module.STALE_SECONDS + 100

    # What always holds

    @invariant()
    def no_gpu_has_two_running_holders(self) -> None:
        running = [uuids_of(container) for container in self.containers("running")]
        for one, other in itertools.combinations(running, 2):
            assert not exclude_each_other(one, other), running

    @invariant()
    def what_runs_is_what_was_granted(self) -> None:
        for container in self.containers("running"):
            assert list(filter(None, container["Granted"])) == uuids_of(container)

    @invariant()
    def who_is_told_of_a_server_can_use_it(self) -> None:
        for server in [each for hub in self.hubs for each in hub.servers]:
            done = server.task and server.task.done() and not server.task.cancelled()
            if done and server.task.exception() is None and server.task.result() is not None:
                assert server.task.result() in self.machine.answered

    @invariant()
    def one_hub_never_sets_one_gpu_aside_twice(self) -> None:
        """Not even where the claim before the start would notice."""
        for hub in self.hubs:
            held = [each.units for each in self.held_by(hub)]
            for one, other in itertools.combinations(held, 2):
                assert not exclude_each_other(one, other), held

    def held_by(self, hub: Hub) -> Iterator[Reservation]:
        """The reservations that are open, or whose containers hold GPUs, or are being created."""
        for server in hub.servers:
            for reservation in server.reservations:
                creating = server.creating.get(reservation, [])
                if (
                    reservation.ended_tick is None
                    or not all(each.done() for each in creating)
                    or any(map(self.is_there, creating))
                ):
                    yield reservation

    def is_there(self, creating: asyncio.Future[Any]) -> bool:
        """Return whether a container that was created holds its GPUs."""
        if creating.exception():
            return False
        container = self.machine.containers.get(creating.result()["Id"])
        return bool(container and container["State"] in ("created", "running"))

    @invariant()
    def a_reservation_ends_once(self) -> None:
        for hub in [*self.hubs, *self.past]:
            for server in hub.servers:
                for reservation in server.reservations:
                    if reservation.ended_tick is not None:
                        first = self.ended.setdefault(reservation, reservation.ended_tick)
                        assert first == reservation.ended_tick

    @invariant()
    def nothing_goes_wrong_behind_the_scenes(self) -> None:
        assert self.machine.troubles == []

    # What holds in the end

    def teardown(self) -> None:
        try:
            self.settle_everything()
            self.nothing_is_lost()
        finally:
            end(self.loop)

    def settle_everything(self) -> None:
        """Let every call be answered and every wait end, until nothing is under way."""
        for server in self.offered():
            server.hub.let_go(server)
        for seconds, rounds in ((3, 30), (A_WHILE, 12)):
            for _ in range(rounds):
                self.machine.catch_up(8)
                self.time_passes(seconds)
                self.no_gpu_has_two_running_holders()
            self.nobody_waits_for_nothing()
        assert self.starting() == []
        for server in self.offered():
            server.hub.let_go(server)
        servers = [server for hub in self.hubs for server in hub.servers]
        reservations = [each for server in servers for each in server.reservations]
        assert [each for each in reservations if each.ended_tick is None] == []

    def nobody_waits_for_nothing(self) -> None:
        """Who still starts waits for a container that a dead hub has left, or a lost answer."""
        servers = [server for hub in self.hubs for server in hub.servers]
        known = {id: server for server in servers for id in server.created()}
        created = {container["Id"] for container in self.containers("created")}
        assert created - set(known) or not self.starting()
        # What a hub knows of and doesn't start, it removes.
        left = [known[id] for id in created & set(known)]
        assert [server for server in left if server not in self.starting()] == []
        assert [id for hub in self.hubs for id in hub.stopped & set(self.machine.containers)] == []

    def nothing_is_lost(self) -> None:
        # A look finds what hubs that died have left, and removes it.
        for hub in self.hubs * 2:
            self.finished(hub.ledger.read)
            self.let_much_time_pass()
        self.finished(self.hubs[0].ledger.read)
        assert self.containers("created", "removing") == []
        self.machine.containers.clear()
        for hub in self.hubs:
            view = self.finished(hub.ledger.read)
            assert {gpu.state for gpu in view.gpus} == {"free"}
            whole = Request("torch", sum(gpu.kind == WHOLE for gpu in view.gpus))
            self.finished(lambda hub=hub, all=whole: reserve(hub.ledger, Holder("all"), all))
        self.nobody_fails_without_a_reason()

    def nobody_fails_without_a_reason(self) -> None:
        # The clock moves faster than removals here, so that one may take too long.
        reasons = {"full", "no such container", "its removal is in progress", "it has ended"}
        if self.machine.unclean:
            reasons.add("the name is in use")
        for hub, task in self.tasks:
            assert task.done() or not hub.alive
            if task.done() and not task.cancelled() and (error := task.exception()):
                if isinstance(error, APIError):
                    assert error.explanation in reasons
                else:
                    assert isinstance(
                        error, Refused | Unknown | OtherGPUs | requests.exceptions.ReadTimeout
                    )

    def finished(self, act: Callable[[], Any]) -> Any:
        task = self.loop.create_task(_awaited(act()))
        for _ in range(20):
            self.loop.settle()
            self.machine.catch_up(8)
        return task.result()


# Finding the shortest way to a failure takes minutes.
TestLeases = pytest.mark.timeout(900)(Leases.TestCase)
# Old releases of hypothesis take a hundred times as long to choose a step.
QUICK = hypothesis.__version_info__ >= (6, 150)
EXAMPLES = 4 * settings.default.max_examples if QUICK else 15
TestLeases.settings = settings(max_examples=EXAMPLES, stateful_step_count=60, deadline=None)


# What happens too rarely by chance


@pytest.fixture
def machine() -> Iterator[Machine]:
    loop = Loop()
    yield Machine(loop)
    end(loop)


def start(hub: Hub, user: str = "ann", gpus: int = 1, longest: float = 0) -> Server:
    server = Server(hub, Holder(user), 0, Request("torch", gpus), longest)
    server.task = hub.machine.loop.create_task(hub.launch(server))
    hub.machine.loop.settle()
    return server


def advance(machine: Machine, until: str) -> Call:
    """Answer all calls before the first one of a method, and return that one."""
    for _ in range(20):
        for call in machine.calls:
            if call.method == until:
                return call
        machine.catch_up(1)
    raise AssertionError(f"{until} isn't called")


def test_gpus_stay_reserved_while_their_container_is_being_created(machine: Machine) -> None:
    """A listing doesn't show it yet, however often the host is looked at."""
    hub = Hub(machine, "a")
    first = start(hub)
    creating = advance(machine, "create_container")
    second = start(hub, "bob")
    for _ in range(8):
        for call in [each for each in machine.calls if each.method != creating.method]:
            machine.act(call)
            machine.reply(call)
            machine.loop.settle()
    held = [first.reservations[-1].units, second.reservations[-1].units]
    assert not held[0] & held[1]


def test_a_container_with_other_gpus_than_were_granted_never_runs(machine: Machine) -> None:
    hub = Hub(machine, "a")
    machine.confused = True
    server = start(hub)
    for _ in range(20):
        machine.catch_up(1)
        assert not [each for each in machine.containers.values() if each["State"] == "running"]
    assert isinstance(server.task.exception(), OtherGPUs)
    assert not machine.containers


def test_who_is_tried_again_keeps_the_gpus_from_who_waits(machine: Machine) -> None:
    hub = Hub(machine, "a")
    first = start(hub, gpus=3)
    starting = advance(machine, "start")
    second = start(hub, "bob", gpus=3, longest=LONGEST_WAIT)
    machine.reply(starting, StartAgain("it may not set a limit"))
    machine.catch_up(20)
    assert first.task.result() in machine.answered
    assert len(first.reservations) == 1
    assert not second.task.done()
    assert list(machine.containers) == [first.task.result()]
    # It ends as any other does.
    machine.loop.create_task(hub.stop(machine.containers[first.task.result()]))
    machine.loop.settle()
    machine.catch_up(20)
    hub.queue.wake()
    machine.loop.settle()
    machine.catch_up(20)
    assert second.task.result() in machine.answered


def test_who_gives_up_while_the_last_try_is_tidied_up_keeps_no_gpu(machine: Machine) -> None:
    hub = Hub(machine, "a")
    first = start(hub, gpus=3)
    machine.reply(advance(machine, "start"), StartAgain("it may not set a limit"))
    machine.loop.settle()
    advance(machine, "remove_container")
    first.task.cancel()
    machine.loop.settle()
    machine.catch_up(20)
    assert machine.containers == {}
    second = start(hub, "bob", gpus=3)
    machine.catch_up(20)
    assert second.task.result() in machine.answered


def test_who_is_tried_again_in_vain_keeps_no_gpu(machine: Machine) -> None:
    hub = Hub(machine, "a")
    first = start(hub, gpus=3)
    while not first.task.done():
        machine.reply(advance(machine, "start"), StartAgain("it may not set a limit"))
        machine.loop.settle()
        if not first.task.done():
            machine.catch_up(1)
    assert isinstance(first.task.exception(), Refused)
    machine.catch_up(20)
    second = start(hub, "bob", gpus=3)
    machine.catch_up(20)
    assert second.task.result() in machine.answered


def test_who_starts_again_waits_until_the_last_try_is_tidied_up(machine: Machine) -> None:
    """Else the container that is still being created takes the name."""
    hub = Hub(machine, "a")
    first = start(hub)
    creating = advance(machine, "create_container")
    first.task.cancel()
    second = start(hub)
    assert machine.calls == [creating]
    machine.catch_up(20)
    assert first.task.cancelled()
    assert list(machine.containers) == [second.task.result()]


def test_who_starts_again_is_told_if_the_last_try_cannot_be_tidied_up(machine: Machine) -> None:
    hub = Hub(machine, "a")
    first = start(hub)
    creating = advance(machine, "create_container")
    first.task.cancel()
    second = start(hub)
    machine.loop.now += leftovers_module.CLEAR_TIMEOUT_SECONDS + 1
    machine.loop.settle()
    assert machine.calls == [creating]
    with pytest.raises(Refused, match="isn't tidied up yet"):
        second.task.result()


def test_a_removal_that_is_under_way_already_is_waited_for(machine: Machine) -> None:
    hub = Hub(machine, "a")
    machine.create_container("a-ann", labels(Holder("ann"), "torch", []), 0)
    (id,) = machine.containers
    removals = [machine.loop.create_task(remove(hub.docker, id)) for _ in range(2)]
    machine.loop.settle()
    first, second = machine.calls
    machine.act(first)
    machine.act(second)
    machine.reply(second)  # "removal is in progress"
    machine.loop.settle()
    assert not any(removal.done() for removal in removals)
    machine.reply(first)
    machine.loop.now += 1
    machine.loop.settle()
    machine.catch_up(5)
    assert [removal.result() for removal in removals] == [None, None]


def test_a_container_is_removed_as_soon_as_the_engine_is_back(machine: Machine) -> None:
    hub = Hub(machine, "a")
    first = start(hub)
    machine.act(advance(machine, "create_container"))
    first.task.cancel()
    machine.loop.settle()
    machine.catch_up(1)
    for _ in range(3):
        machine.reply(advance(machine, "remove_container"), _api_error(500, "full"))
        machine.loop.settle()
        machine.loop.now += A_WHILE
        machine.loop.settle()
    machine.catch_up(20)
    assert machine.containers == {}


def test_a_container_that_was_started_after_all_is_left_alone(machine: Machine) -> None:
    """Its hub was only slow."""
    slow, other = Hub(machine, "a"), Hub(machine, "b")
    server = start(slow)
    starting = advance(machine, "start")
    (container,) = machine.containers.values()
    for look in (1, 2):  # the first sees it, and the second that it is still there
        machine.loop.create_task(_awaited(other.ledger.read()))
        machine.loop.settle()
        if look == 1:
            machine.catch_up(5, other)
            machine.loop.now += leftovers_module.STALE_SECONDS + 100
    sweeping = None
    while sweeping is None:
        for call in [call for call in machine.calls if call.hub is other]:
            if call.method == "remove_container":
                sweeping = call
            else:
                machine.act(call)
                machine.reply(call)
        machine.loop.settle()
    machine.act(starting)
    machine.act(sweeping)
    machine.catch_up(5)
    assert container["State"] == "running"
    assert server.task.result() == container["Id"]
