"""A day of many nodes: the time of each decision and form, the hub's memory, and the Swarm's lists.

No server is started: what runs is a list, and the day is a clock that is set. The ledger, the queue
and the form are the hub's, and the lists of a Swarm's tasks come from a process that answers as
its engine does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from heapq import heappop, heappush
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import docker

from gpuspawner.backends.swarm.backend import SwarmBackend
from gpuspawner.backends.swarm.service_spec import service_spec
from gpuspawner.gpus.model import GPU, Holder, Node, Request
from gpuspawner.leases.labels import ServerRecord, labels
from gpuspawner.leases.ledger import Reservation
from gpuspawner.nodes.resources import kind_of
from gpuspawner.scheduling.plan import QueuedRequest
from gpuspawner.scheduling.queue import Queue, QueueSettings, RequestLimits
from tests.support.ledgers import NoWatcher
from tests.support.spawns import Hub

HOUR, DAY = 3600.0, 86400.0
# The midnight at which the day begins, in seconds since the epoch.
MIDNIGHT = 1_800_057_600.0
GPUS_PER_NODE, USERS_PER_NODE, REQUESTS_PER_NODE = 8, 25, 100
MODELS = ("NVIDIA A100-SXM4-40GB", "NVIDIA L40S", "Tesla T4")
SIZES = (1, 10, 50)
# The goals: milliseconds of the processor, MiB, and percent of one processor.
DECISION_GOAL, MEMORY_GOAL, LISTS_GOAL = 50.0, 1024.0, 5.0
QUEUE_LENGTH = 10_000
# For how long the Swarm's tasks are watched, in seconds.
WATCHED_SECONDS = 20.0


@dataclass
class Figures:
    """What a day of one size has cost; times in milliseconds of the processor."""

    nodes: int
    decisions: list[float] = field(default_factory=list)
    forms: list[float] = field(default_factory=list)
    waited: int = 0
    longest: int = 0
    memory: float = 0.0
    lists: float = 0.0


@dataclass(order=True, frozen=True)
class Job:
    """A request, when it comes, and for how long its server uses its GPUs, in seconds."""

    at: float
    number: int
    user: str = field(compare=False)
    request: Request = field(compare=False)
    uses: float = field(compare=False)


class ManyNodes(Hub):
    """A hub whose nodes and servers are lists."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.nodes = tuple(_node(each) for each in range(number))
        self.running: dict[str, ServerRecord] = {}
        self.reads = 0
        self.ledger.on_read = self._count
        settings = QueueSettings(length=QUEUE_LENGTH)
        self.queue = Queue(self.ledger, settings, NoWatcher, lambda: self.reserved())
        self.open_forms._queue = self.queue

    def _count(self) -> None:
        self.reads += 1

    async def _list(self) -> list[ServerRecord]:
        return list(self.running.values())

    async def _read(self) -> tuple[Node, ...]:
        return self.nodes


def _node(number: int) -> Node:
    name, model = f"node-{number:03}", MODELS[number % len(MODELS)]
    gpus = (
        GPU(
            f"GPU-{number:04x}{n:04x}-0000-0000-0000-000000000000", n, model, 40960, 0, 0, node=name
        )
        for n in range(GPUS_PER_NODE)
    )
    return Node(name, "570.133.20", "12.8", tuple(gpus))


def jobs_of(nodes: int, seed: int) -> list[Job]:
    """Return a day's requests: by daylight, most for one GPU, and more than there are GPUs for."""
    chance = random.Random(seed)  # noqa: S311 # a simulation, no secret
    found = []
    for number in range(nodes * REQUESTS_PER_NODE):
        at = min(max(chance.gauss(14 * HOUR, 5 * HOUR), 0), DAY)
        count = chance.choices([1, 2, 4, 8], [80, 12, 6, 2])[0]
        asked = chance.choices([0.5, 1, 2, 4], [30, 35, 25, 10])[0] * HOUR
        model = chance.choice(MODELS[: min(nodes, 3)]) if chance.random() < 0.4 else None
        user = f"user-{chance.randrange(nodes * USERS_PER_NODE)}"
        request = Request("plain", count, model=model, seconds=asked)
        found.append(Job(MIDNIGHT + at, number, user, request, asked * chance.uniform(0.1, 1)))
    return sorted(found)


class Day:
    """One day of a hub.

    Args:
        nodes: how many there are.
        part: of how many of those who ask the form is opened.
        seed: of the requests.
    """

    def __init__(self, nodes: int, part: float, seed: int = 1) -> None:
        self.figures = Figures(nodes)
        self._jobs = jobs_of(nodes, seed)
        self._hub = ManyNodes(nodes)
        self._chance, self._part = random.Random(seed), part  # noqa: S311 # no secret
        self._now = MIDNIGHT
        # (when it ends, the server), of those that run.
        self._ends: list[tuple[float, str]] = []
        self._waiting: dict[str, tuple[Job, asyncio.Task[Reservation]]] = {}
        self._spawners: dict[str, Any] = {}

    async def run(self) -> Figures:
        """Let the day pass; return what it has cost."""
        with mock.patch("time.time", self._clock):
            for number in range(self.figures.nodes * USERS_PER_NODE):
                name = f"user-{number}"
                self._spawners[name] = self._hub.spawner(name=name, hour_limit=24)
            for job in self._jobs:
                await self._until(job.at)
                await self._open_form(job)
                await self._ask(job)
            await self._until(MIDNIGHT + 2 * DAY)
        assert not self._waiting
        self.figures.memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return self.figures

    def _clock(self) -> float:
        return self._now

    async def _until(self, at: float) -> None:
        """Let end what ends before a time, and set the clock."""
        while self._ends and self._ends[0][0] <= at:
            self._now, server = heappop(self._ends)
            del self._hub.running[server]
            if self._waiting:
                await self._decided(self._hub.reads + 1)
        self._now = at

    async def _open_form(self, job: Job) -> None:
        if self._chance.random() >= self._part:
            return
        began = time.process_time()
        await self._spawners[job.user].render_form()
        self.figures.forms.append(1000 * (time.process_time() - began))

    async def _ask(self, job: Job) -> None:
        hub, server = self._hub, f"server-{job.number}"
        holder = Holder(job.user, str(job.number))
        waiting = QueuedRequest(holder, job.request, hub.queue.join_time())
        limits = RequestLimits(max_wait_seconds=None)
        asked = asyncio.ensure_future(hub.queue.wait(waiting, limits, lambda turn: None))
        self._waiting[server] = job, asked
        await self._decided(hub.reads + 1)
        self.figures.waited += not asked.done()
        self.figures.longest = max(self.figures.longest, len(self._waiting))

    async def _decided(self, reads: int) -> None:
        """Let the queue decide what has changed, and start whose turn has come."""
        began = time.process_time()
        self._hub.queue.wake()
        while self._hub.reads < reads:  # noqa: ASYNC110 # each round is one step of the queue
            await asyncio.sleep(0)
        self.figures.decisions.append(1000 * (time.process_time() - began))
        for _ in range(5):  # what it has decided is known
            await asyncio.sleep(0)
        for server, (job, asked) in list(self._waiting.items()):
            if asked.done():
                del self._waiting[server]
                self._start(server, job, asked.result())

    def _start(self, server: str, job: Job, granted: Reservation) -> None:
        bears = labels(granted.holder, "plain", sorted(granted.units), granted.until)
        self._hub.running[server] = ServerRecord(server, bears, created=self._now)
        self._hub.ledger.settle(granted)
        heappush(self._ends, (self._now + job.uses, server))


# -- The lists of a Swarm's tasks ------------------------------------------------------------------

# Answers each request with the same, as an engine does while nothing changes.
ENGINE = """
import http.server, socketserver, sys
answer = open(sys.argv[2], "rb").read()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
    def log_message(self, *words):
        pass
    def address_string(self):
        return ""
class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
Server(sys.argv[1], Handler).serve_forever()
"""
WHEN = "2030-01-31T12:00:00.123456789Z"
NETWORK = {
    "ID": "n" * 25,
    "Version": {"Index": 10},
    "CreatedAt": WHEN,
    "UpdatedAt": WHEN,
    "Spec": {"Name": "gpuspawner", "Labels": {}, "Attachable": True, "Scope": "swarm"},
    "DriverState": {"Name": "overlay", "Options": {"vxlanid_list": "4097"}},
    "IPAMOptions": {"Configs": [{"Subnet": "10.0.0.0/16", "Gateway": "10.0.0.1"}]},
}


def task_of(number: int, gpu: GPU) -> dict[str, Any]:
    """Return the task of a server, as an engine lists it."""
    uuid = str(gpu.uuid)
    spec = service_spec(
        {
            "image": f"images/lab@sha256:{'0' * 64}",
            "command": ["jupyterhub-singleuser"],
            "environment": {f"VARIABLE_{n}": "x" * 30 for n in range(30)},
            "host_config": {"Binds": [f"home-{number}:/home/jovyan:rw"], "Memory": 1 << 30},
        },
        name=f"jupyter-{number}",
        labels=labels(Holder(f"user-{number}"), "lab", [uuid], MIDNIGHT),
        uuids=[uuid],
        kinds={kind_of(uuid): 1},
        node_id=gpu.node,
        network="gpuspawner",
    )
    return {
        "ID": f"{number:025}",
        "Version": {"Index": 1000 + number},
        "CreatedAt": WHEN,
        "UpdatedAt": WHEN,
        "Labels": {},
        "Spec": {**spec["TaskTemplate"], "ForceUpdate": 0},
        "ServiceID": f"s{number:024}",
        "Slot": 1,
        "NodeID": gpu.node,
        "Status": {
            "Timestamp": WHEN,
            "State": "running",
            "Message": "started",
            "ContainerStatus": {"ContainerID": "c" * 64, "PID": 4711, "ExitCode": 0},
            "PortStatus": {},
        },
        "DesiredState": "running",
        "NetworksAttachments": [{"Network": NETWORK, "Addresses": ["10.0.1.3/24"]}],
        "GenericResources": [{"DiscreteResourceSpec": {"Kind": kind_of(uuid), "Value": 1}}],
    }


@contextmanager
def engine_of(tasks: Sequence[Any]) -> Iterator[str]:
    """Have an engine that lists these tasks; its address."""
    with TemporaryDirectory() as folder:
        address, answer = Path(folder) / "socket", Path(folder) / "tasks"
        answer.write_text(json.dumps(tasks))
        words = [sys.executable, "-c", ENGINE, str(address), str(answer)]
        with subprocess.Popen(words) as engine:
            try:
                while not address.exists():
                    assert engine.poll() is None
                    time.sleep(0.05)
                yield f"unix://{address}"
            finally:
                engine.terminate()


async def watched(address: str, servers: int, seconds: float) -> float:
    """Return how much of a processor it takes to watch a Swarm and to ask for each server.

    Args:
        address: the engine's.
        servers: how many run, for each of which JupyterHub asks every 30 seconds.
        seconds: for how long.
    """
    log = logging.getLogger("bench")
    backend = SwarmBackend(lambda: docker.APIClient(base_url=address, version="1.44"), log)
    await backend.tasks.now()
    watchers = [backend.watch(lambda: None) for _ in range(2)]
    for watcher in watchers:
        watcher.begin()
    began, used = time.monotonic(), time.process_time()
    while time.monotonic() < began + seconds:
        assert await backend.tasks.recent()
        await asyncio.sleep(30 / servers)
    share = (time.process_time() - used) / (time.monotonic() - began)
    for watcher in watchers:
        watcher.end()
    backend.close()
    return 100 * share


# -- What is printed -------------------------------------------------------------------------------


def measure(nodes: int, part: float, seconds: float) -> Figures:
    """Return the figures of one size, which is to have a process of its own."""
    figures = asyncio.run(Day(nodes, part).run())
    gpus = [gpu for number in range(nodes) for gpu in _node(number).gpus]
    with engine_of([task_of(number, gpu) for number, gpu in enumerate(gpus)]) as address:
        figures.lists = asyncio.run(watched(address, len(gpus), seconds))
    return figures


def percentile(values: Sequence[float], part: float) -> float:
    """Return the value that so much of the values don't exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else math.nan


def show(found: Sequence[Figures]) -> None:
    """Print a column for each size, and whether the largest meets the goals."""
    print("\nA day of many nodes, in milliseconds of the processor")
    rows: dict[str, list[float]] = {
        "nodes": [each.nodes for each in found],
        "GPUs": [each.nodes * GPUS_PER_NODE for each in found],
        "users": [each.nodes * USERS_PER_NODE for each in found],
        "requests": [each.nodes * REQUESTS_PER_NODE for each in found],
        "  of which had to wait": [each.waited for each in found],
        "  at most at a time": [each.longest for each in found],
        "a decision, median": [percentile(each.decisions, 0.5) for each in found],
        "a decision, 95 %": [percentile(each.decisions, 0.95) for each in found],
        "a decision, longest": [max(each.decisions) for each in found],
        "a form, median": [percentile(each.forms, 0.5) for each in found],
        "a form, 95 %": [percentile(each.forms, 0.95) for each in found],
        "the process at most, MiB": [each.memory for each in found],
        "the Swarm's tasks, % of a processor": [each.lists for each in found],
    }
    for name, values in rows.items():
        cells = (f"{each:9.0f}" if float(each).is_integer() else f"{each:9.2f}" for each in values)
        print(f"{name:36}", *cells)
    last = found[-1]
    for name, value, goal in (
        ("a decision, 95 %", percentile(last.decisions, 0.95), DECISION_GOAL),
        ("the process at most, MiB", last.memory, MEMORY_GOAL),
        ("the Swarm's tasks, % of a processor", last.lists, LISTS_GOAL),
    ):
        met = "met" if value <= goal else "missed"
        print(f"{name} with {last.nodes} nodes: {value:.1f} (goal: {goal:.0f}): {met}")


def main(arguments: Sequence[str] = ()) -> int:
    """Measure each size in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench cluster", description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--forms", type=float, default=0.1, help="the part of users who open one")
    parser.add_argument("--seconds", type=float, default=WATCHED_SECONDS)
    parser.add_argument("--json", action="store_true", help="of one size, in this process")
    options = parser.parse_args(arguments)
    if options.json:
        print(json.dumps(asdict(measure(options.nodes[0], options.forms, options.seconds))))
        return 0
    found = []
    for nodes in options.nodes:
        words = [sys.executable, "-m", "bench", "cluster", "--json", "--nodes", str(nodes)]
        words += ["--forms", str(options.forms), "--seconds", str(options.seconds)]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        found.append(Figures(**json.loads(done.stdout)))
    show(found)
    return 0
