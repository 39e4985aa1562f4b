"""The memory guard on real processes in real control groups; what NVML says, a test says."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Collection, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from gpuspawner.errors import GPUSpawnerError
from gpuspawner.gpus.model import Holder
from gpuspawner.gpus.nvml import InventoryError
from gpuspawner.gpus.state import GPUMemory
from gpuspawner.i18n.languages import language_for
from gpuspawner.leases.clock import Clock
from gpuspawner.leases.memory_guard import MemoryGuard
from gpuspawner.leases.server_lease import ServerLease

from ..support.control_groups import Container, containers

GPU, GIB = "GPU-0", 1024**3
# Of 40 GiB.
PART = 5 * GIB
SECONDS = 60.0
CHINESE = language_for("zh-CN")


class Server:
    """A server in a container, whose time a test lets pass."""

    groups, pending, image_title = frozenset[str](), None, "Plain"
    longest_hours, extend_minutes, warning_minutes, waiting_requests = None, None, 15.0, 0
    idle_minutes = 0.0
    memory_guard, memory_guard_seconds = True, SECONDS
    broken = False

    def __init__(self, name: str, container: Container, clock: Clock, unit: str) -> None:
        self.holder, self.container = Holder(name), container
        self.log = logging.getLogger("hub-of-memory-guard")
        self.told: list[tuple[str, str]] = []
        self.stops = 0
        self.lease = ServerLease(self, clock)  # type: ignore[arg-type]
        self.lease.hold([unit])

    @property
    def server_id(self) -> str:
        return self.container.id

    def on_lease_begin(self) -> None:
        pass

    def on_lease_end(self) -> None:
        pass

    def on_end_changed(self, until: float) -> None:
        pass

    def save_state(self) -> None:
        pass

    def tell(self, occasion: str, words: str) -> None:
        self.told.append((occasion, words))

    async def ensure_rules_applied(self) -> None:
        pass

    async def stop_through_hub(self) -> None:
        await asyncio.sleep(0)
        self.stops += 1
        if self.broken:
            raise RuntimeError("no engine")
        self.lease.end()


class Host:
    """A machine on which ada and ben share a GPU, and eve has one of her own."""

    def __init__(self, three: list[Container]) -> None:
        self.now = 1_800_000_000.0
        self.clock = Clock(lambda: self.now, lambda: self.now, lambda: "boot")
        units = (f"{GPU}#0/8", f"{GPU}#1/8", "GPU-1")
        names = ("ada", "ben", "eve")
        self.servers = [
            Server(name, each, self.clock, unit)
            for name, each, unit in zip(names, three, units, strict=True)
        ]
        self.ada, self.ben, self.eve = self.servers
        self.held: dict[int, int | None] = {}
        self.asked: list[Collection[str]] = []
        self.error: Exception | None = None
        self.inside: list[tuple[str, int, int]] = []
        self.guard = self.new_guard()

    def new_guard(self, **more: Any) -> MemoryGuard:
        leases = lambda: [each.lease for each in self.servers]  # noqa: E731
        log = logging.getLogger("hub-of-memory-guard")
        return MemoryGuard(self.read, leases, log, **more)

    async def read(self, uuids: Collection[str]) -> dict[str, GPUMemory]:
        self.asked.append(uuids)
        if self.error:
            raise self.error
        return {uuid: GPUMemory(40 * GIB, dict(self.held)) for uuid in uuids}

    async def look(self, times: int = 1, after: float = 5.0) -> None:
        for _ in range(times):
            self.now += after
            await self.guard.look()
            for _ in range(3):
                await asyncio.sleep(0)  # what has begun to stop

    async def pass_(self, seconds: float) -> None:
        await self.look(round(seconds / 5))


@pytest.fixture
def host() -> Iterator[Host]:
    with containers(3) as three:
        for each in three:
            each.start()  # what is in every container, and on no GPU
        yield Host(three)


@pytest.fixture
def events(caplog) -> Any:
    caplog.set_level(logging.INFO, "hub-of-memory-guard")

    def found() -> list[dict[str, Any]]:
        words = [each.getMessage() for each in caplog.records]
        lines = [json.loads(each.partition(" ")[2]) for each in words if each.startswith("gpusp")]
        return [line for line in lines if line["event"] != "release"]

    return found


def start(host: Host, server: Server, gib: float, **how: Any) -> subprocess.Popen[bytes]:
    """Start a process in a server's container that holds so much."""
    child = server.container.start(**how)
    host.held[child.pid] = int(gib * GIB)
    return child


def has_ended(child: subprocess.Popen[bytes], by: signal.Signals = signal.SIGTERM) -> bool:
    """Return whether a process was ended: it has got the signal, or never will."""
    return child.wait() == -by


def goes_on(*children: subprocess.Popen[bytes]) -> bool:
    """Return whether none has got a signal. To be asked last: they end by this one."""
    for child in children:
        child.send_signal(signal.SIGUSR1)
    return all(child.wait() == -signal.SIGUSR1 for child in children)


async def test_the_largest_process_of_who_takes_too_much_is_ended_after_a_warning(host, events):
    small, large = start(host, host.ada, 2), start(host, host.ada, 4)
    ben, eve = start(host, host.ben, 4.5), start(host, host.eve, 30)
    await host.pass_(SECONDS)
    assert (host.ada.told, events()) == ([], [])
    await host.look()
    ((occasion, words),) = host.ada.told
    assert occasion == "memory"
    assert "takes 6 GB of the memory of a GPU that it shares, and its part is 5 GB" in str(words)
    assert "5 GB" in CHINESE.say(words)
    assert host.ada.lease.facts()["memory"] == {
        "guarded": True,
        "used": 6 * GIB,
        "part": PART,
        "next": "end",
        "until": host.now + SECONDS,
        "ended": None,
    }
    await host.pass_(SECONDS)
    assert has_ended(large)
    del host.held[large.pid]
    told = [str(words) for occasion, words in host.ada.told if occasion == "process ended"]
    assert "which took 4 GB of the memory of a GPU that it shares" in told[0]
    await host.pass_(4 * SECONDS)
    assert host.ada.stops == host.ben.stops == host.eve.stops == 0
    assert host.ben.told == host.eve.told == []
    assert [(each["event"], each["user"], each["rule"]) for each in events()] == [
        ("warn", "ada", "GPU memory"),
        ("end", "ada", "GPU memory"),
    ]
    assert (events()[1]["pid"], events()[1]["process_memory"]) == (large.pid, 4 * GIB)
    facts = host.ada.lease.facts()["memory"]
    assert (facts["used"], facts["next"]) == (2 * GIB, None)
    # Of whole GPUs nothing is read, and nothing said.
    assert set(map(tuple, host.asked)) == {(GPU,)}
    assert host.eve.lease.facts()["memory"] is None
    assert goes_on(small, ben, eve)


async def test_a_server_that_goes_on_taking_too_much_is_stopped_and_its_user_reads_why(
    host, events
) -> None:
    children = [start(host, host.ada, 6), start(host, host.ada, 7)]
    other = start(host, host.ben, 5)
    await host.pass_(2 * SECONDS + 5)
    assert has_ended(children[1])
    del host.held[children[1].pid]
    await host.pass_(SECONDS)
    assert host.ada.stops == 1
    assert "it took 6 GB of the memory of a GPU that others use too, and its part was 5 GB" in str(
        host.ada.lease.notice
    )
    assert host.ada.lease.notice in [words for _, words in host.ada.told]
    assert host.ada.lease.ending.rule == "GPU memory"
    assert [each["event"] for each in events()] == ["warn", "end", "stop"]
    # The next server begins from the beginning.
    assert host.ada.lease.memory.done == ""
    assert goes_on(children[0], other)


async def test_a_stop_that_fails_is_tried_again(host) -> None:
    start(host, host.ada, 6)
    largest = start(host, host.ada, 7)
    host.ada.broken = True
    await host.pass_(2 * SECONDS + 5)
    del host.held[largest.pid]
    await host.pass_(SECONDS)
    assert host.ada.stops == 1
    await host.look(2)
    assert host.ada.stops == 3


async def test_who_does_not_end_when_told_so_is_killed(host) -> None:
    child = start(host, host.ada, 6, stubborn=True)
    await host.pass_(2 * SECONDS + 5)
    child.send_signal(0)
    await host.look(3)
    assert has_ended(child, signal.SIGKILL)
    assert host.ada.stops == 0


async def test_who_frees_the_memory_when_told_so_is_not_killed(host) -> None:
    child = start(host, host.ada, 6, stubborn=True)
    await host.pass_(2 * SECONDS + 5)
    host.held[child.pid] = GIB
    await host.pass_(4 * SECONDS)
    assert goes_on(child)


async def test_who_began_after_the_question_is_not_who_held_the_memory(host) -> None:
    """The process that NVML means has ended since, and its id is another one's of the server."""
    later: list[subprocess.Popen[bytes]] = []

    async def read(uuids: Collection[str]) -> dict[str, GPUMemory]:
        time.sleep(1 / os.sysconf("SC_CLK_TCK"))  # the kernel counts in ticks
        later.append(host.ada.container.start())
        return {uuid: GPUMemory(40 * GIB, {later[-1].pid: 6 * GIB}) for uuid in uuids}

    host.read = read
    host.guard = host.new_guard()
    await host.pass_(2 * SECONDS)
    assert (host.ada.told, host.ada.stops) == ([], 0)
    assert goes_on(*later)


@pytest.mark.parametrize("what", ["NVML", "one process", "the ids", "the container", "the guard"])
async def test_what_is_not_known_ends_nothing(host, what: str, caplog) -> None:
    child, more = start(host, host.ada, 30), start(host, host.ada, 1)
    if what == "NVML":
        host.error = InventoryError("NVML didn't answer within 10 seconds.")
    elif what == "one process":
        host.held[more.pid] = None
    elif what == "the ids":
        host.held[2**22 + 5] = GIB
    elif what == "the container":
        host.ada.container.id = "f" * 64
    else:
        host.ada.memory_guard = False
    await host.pass_(5 * SECONDS)
    assert (host.ada.told, host.ada.stops) == ([], 0)
    facts = host.ada.lease.facts()["memory"]
    assert facts["guarded"] is (what == "NVML")
    said = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    expected = 0 if what in ("NVML", "the guard") else 2 if what == "the ids" else 1
    # Of ben's, too, where his GPU can't be seen either.
    assert len([each for each in said if "can't be seen: nothing limits it" in each]) == expected
    assert goes_on(child, more)


async def test_a_hub_that_was_restarted_begins_from_the_warning(host, events) -> None:
    child = start(host, host.ada, 6)
    await host.pass_(2 * SECONDS)
    again = Server("ada", host.ada.container, host.clock, f"{GPU}#0/8")
    again.lease.restore(host.ada.lease.saved())
    host.servers[0] = again
    host.guard = host.new_guard()
    await host.pass_(SECONDS)
    assert again.told == []
    await host.look()
    assert [occasion for occasion, _ in again.told] == ["memory"]
    await host.pass_(SECONDS)
    assert has_ended(child)


async def test_who_may_not_send_signals_has_the_engine_send_them(host, monkeypatch) -> None:
    """A hub that isn't root sees users' processes, and may not end them."""

    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    async def signal_inside(server_id: str, pid: int, number: int) -> None:
        host.inside.append((server_id, pid, number))

    start(host, host.ada, 6)
    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    # These processes have no namespace of ids of their own, so that there is no other way.
    await host.pass_(2 * SECONDS + 5)
    assert [occasion for occasion, _ in host.ada.told] == ["memory"]
    await host.pass_(SECONDS)
    assert host.ada.stops == 1
    host.servers = [Server("cyd", host.ada.container, host.clock, f"{GPU}#0/8")]
    host.guard = host.new_guard(signal_inside=signal_inside)
    host.held = {host.ada.container.start_in_namespace(): 6 * GIB}
    await host.pass_(2 * SECONDS + 5)
    assert host.inside == [(host.ada.container.id, 1, signal.SIGTERM)]
    assert [occasion for occasion, _ in host.servers[0].told] == ["memory", "process ended"]


async def test_an_engine_that_cannot_send_them_either_has_the_server_stopped(
    host, monkeypatch, caplog
) -> None:
    async def signal_inside(*_: Any) -> None:
        raise GPUSpawnerError("there is no sh")

    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *_: (_ for _ in ()).throw(OSError()))
    pid = host.ada.container.start_in_namespace()
    host.held = {pid: 6 * GIB}
    host.guard = host.new_guard(signal_inside=signal_inside)
    await host.pass_(3 * SECONDS + 5)
    assert host.ada.stops == 1
    assert f"Process {pid} of ada can't be ended: there is no sh" in caplog.text


async def test_a_look_in_which_nvml_fails_is_a_break(host) -> None:
    child = start(host, host.ada, 6)
    for _ in range(4):
        await host.pass_(SECONDS - 5)
        host.error = InventoryError("NVML didn't answer within 10 seconds.")
        await host.look()
        host.error = None
    assert host.ada.told == []
    assert goes_on(child)


async def test_a_server_that_stops_already_is_left_alone(host, caplog) -> None:
    child = start(host, host.ada, 6)
    await host.pass_(SECONDS)
    host.ada.pending = "stop"
    await host.pass_(5 * SECONDS)
    assert host.ada.told == []
    assert goes_on(child)
    # Nor does the log complain of a container whose processes end.
    host.ada.container.id = "f" * 64
    await host.look()
    assert "can't be seen" not in caplog.text


async def test_it_looks_while_a_server_shares_a_gpu_and_ends_then(host, monkeypatch) -> None:
    looked = asyncio.Event()
    host.ada.memory_guard_seconds = 1.0
    guard = host.new_guard()
    look, problems = guard.look, [RuntimeError("once")]

    async def look_with_trouble() -> None:
        if problems:
            raise problems.pop()
        await look()
        looked.set()

    monkeypatch.setattr(guard, "look", look_with_trouble)
    guard.start()
    task = guard._task
    guard.start()
    assert guard._task is task
    await asyncio.wait_for(looked.wait(), 30)
    host.servers = [host.eve]
    assert task
    await asyncio.wait_for(task, 30)


async def test_the_guard_of_a_hub_begins_with_its_first_lease() -> None:
    from ..support.spawns import Hub

    hub, begun = Hub(), []
    hub.memory_guard = SimpleNamespace(start=lambda: begun.append(1))  # type: ignore[assignment]
    one = hub.spawner()
    one.lease.hold([f"{GPU}#0/8"])
    assert begun
    assert one.lease.guard_seconds == SECONDS
    one.memory_guard = False
    assert one.lease.guard_seconds is None
