"""The time of a start, from the request to a usable server: GPUSpawner, DockerSpawner, by hand.

All kinds start in turns on one engine of one simulated host. Times depend on the machine's other
load, so the results are the medians of each round's ratios. Processor times hardly depend on it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import docker
import docker.errors

from gpuspawner.__main__ import main as gpuspawner
from gpuspawner.backends.docker.readiness import QUICK_START
from gpuspawner.image_builder.recipe import recipes
from gpuspawner.simulation.host import SimulatedHost, cache_folder
from gpuspawner.simulation.state import describe
from tests.support.hubs import Hub, write_config

from . import plain_image
from .by_hand import ByHand
from .processor import EngineProcesses, seconds_of

LARGE = "pytorch-2.7"
NETWORK = "gpuspawner"
# Every server has a volume for its user's files, those by hand, too.
VOLUME, VOLUME_BY_HAND = "gpuspawner-bench-{username}", "gpuspawner-bench-by-hand-"
HOME = "/home/jovyan/work"
# Concurrent starts beside DockerSpawner, whose servers need several times the processor time.
RUSH = 8

OURS, OURS_LARGE, OURS_BARE = "GPUSpawner", f"GPUSpawner, {LARGE}", "GPUSpawner, no GPU"
STOCK, STOCK_PLAIN = "DockerSpawner", "DockerSpawner, plain image"
STOCK_ASKS = "DockerSpawner, asking for a quick start"
FLOOR = "by hand, bare Jupyter Server"

# (kind, compared kind, goal: the largest ratio)
GOALS: list[tuple[str, str, float | None]] = [
    (OURS, STOCK_PLAIN, 0.25),
    (OURS, STOCK, 0.6),
    (OURS, FLOOR, 0.9),
    (OURS_LARGE, OURS, 1.1),
    # Without a goal: the parts of the image and of the spawner in it.
    (OURS_BARE, STOCK_ASKS, None),
    (STOCK, FLOOR, None),
]
RUSH_GOAL = (OURS, STOCK_PLAIN, 0.5)
CROWD_GOAL = 1.0
# dockerd's processor seconds for a start of ours above those for one by hand: half of what an
# earlier version took.
EXTRA_GOAL = 0.16
# The ratio of a hub's start with running servers to one without.
RESTART_GOAL = 1.2


@dataclass
class Start:
    """One start: seconds until the server is usable, and processor seconds in the container."""

    seconds: float
    processor: float


@dataclass
class Rush:
    """Concurrent starts: seconds until the last is ready or has failed, and how many are ready."""

    seconds: float
    ready: int
    use: Use | None = None
    calls: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Use:
    """Processor times in seconds.

    Args:
        containers: of the servers.
        daemon: of dockerd.
        rest: of containerd, its shims, runc and NVIDIA's hook.
        starter: of the hub, or of the program that starts servers by hand.
        proxy: of the hub's proxy.
    """

    containers: float
    daemon: float
    rest: float
    starter: float
    proxy: float = 0.0


@dataclass
class Measured:
    """The measurements: kind of start -> a list with one item per round.

    Args:
        starts: single starts.
        rushes: `RUSH` concurrent starts, compared with DockerSpawner.
        crowds: many concurrent starts, compared with as many by hand.
        calls: kind -> the calls of the engine for one start and for many.
        restarts: seconds of a hub's start, without running servers and with many.
    """

    starts: dict[str, list[Start]] = field(default_factory=dict)
    rushes: dict[str, list[Rush]] = field(default_factory=dict)
    crowds: dict[str, list[Rush]] = field(default_factory=dict)
    calls: dict[str, tuple[Counter[str], Counter[str]]] = field(default_factory=dict)
    restarts: list[tuple[float, float]] = field(default_factory=list)
    users: int = 0


def main(arguments: list[str] | None = None) -> int:
    """Run the rounds and print their results; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench starts", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="of single starts")
    parser.add_argument("--rushes", type=int, default=1, help=f"rounds of {RUSH} starts at once")
    parser.add_argument("--crowds", type=int, default=4, help="rounds of many starts at once")
    parser.add_argument("--users", type=int, default=30, help="how many start at once then")
    options = parser.parse_args(arguments)
    # The images of `make run`, if there are any: they needn't be built twice.
    with (
        SimulatedHost(
            describe([("A100-40GB", max(options.users, RUSH))]), cache=cache_folder()
        ) as host,
        tempfile.TemporaryDirectory() as folder,
    ):
        os.environ.update(host.additions)
        large = [LARGE] if options.rounds else []
        if gpuspawner(["image", "build", "minimal", *large]) != 0:
            return 1
        with Bench(host, Path(folder), bool(options.rounds or options.rushes)) as bench:
            measured = bench.measure(options.rounds, options.rushes, options.crowds, options.users)
    show(measured)
    return 0


class Bench:
    """The hubs on one host, one for each kind of start.

    Args:
        host: the simulated host, which runs.
        folder: the parent of the hubs' folders.
        beside: whether to measure DockerSpawner, too.
    """

    def __init__(self, host: SimulatedHost, folder: Path, beside: bool) -> None:
        self._host, self._folder, self._beside = host, folder, beside
        self._hubs: dict[str, Hub] = {}
        self._client = docker.DockerClient(
            base_url=host.docker_host, version="auto", max_pool_size=64
        )
        images = {key: found.version.image for key, found in recipes().items()}
        self._images = {key: images[key] for key in ("minimal", LARGE)}
        self._engine = EngineProcesses(host)
        self._uuids = [str(gpu.uuid) for gpu in host.read().gpus]

    def __enter__(self) -> Bench:
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _begin(self) -> None:
        usual = ["c.JupyterHub.tornado_settings = {'slow_spawn_timeout': 300}"]
        if two_cores():
            usual.append(f"c.DockerSpawner.extra_host_config = {{'cpuset_cpus': {two_cores()!r}}}")
        lines = [f"c.GPUSpawner.images = {self._images}", f"c.GPUSpawner.home_volume = {VOLUME!r}"]
        self._add(OURS, usual + lines)
        self._by_hand = ByHand(
            self._client.api, self._model(), self._uuids, NETWORK, VOLUME_BY_HAND
        )
        if self._beside:
            self._add_docker_spawners(usual)

    def _add_docker_spawners(self, usual: list[str]) -> None:
        print("the image without what makes a start quick", file=sys.stderr)
        plain = plain_image.ensure(self._client, self._images["minimal"])
        for kind, reference, environment in (
            (STOCK, self._images["minimal"], {}),
            (STOCK_ASKS, self._images["minimal"], QUICK_START),
            (STOCK_PLAIN, plain, {}),
        ):
            lines = {
                "c.JupyterHub.spawner_class": "docker",
                "c.DockerSpawner.image": reference,
                "c.DockerSpawner.environment": environment,
                "c.DockerSpawner.network_name": NETWORK,
                "c.DockerSpawner.pull_policy": "never",
                "c.DockerSpawner.remove": True,
                "c.DockerSpawner.prefix": f"stock{len(self._hubs)}",
                "c.DockerSpawner.volumes": {VOLUME: HOME},
            }
            self._add(kind, usual + [f"{name} = {value!r}" for name, value in lines.items()])

    def __exit__(self, *_: object) -> None:
        for hub in self._hubs.values():
            with suppress(AssertionError, OSError):
                hub.stop_all_servers()
            hub.stop()
        for volume in self._client.volumes.list():
            if volume.name.startswith(VOLUME.partition("{")[0]):
                with suppress(docker.errors.APIError):
                    volume.remove()
        self._client.close()

    def _add(self, kind: str, lines: list[str]) -> None:
        folder = self._folder / str(len(self._hubs))
        folder.mkdir()
        write_config(folder, lines)
        self._hubs[kind] = Hub(folder, self._host.environment)
        self._hubs[kind].start()

    def _model(self) -> Mapping[str, Any]:
        """Return the inspection of a GPUSpawner's container."""
        hub = self._hubs[OURS]
        hub.start_server("model", {"image": "minimal", "gpus": 1})
        (container,) = self._client.containers.list()
        found: Mapping[str, Any] = container.attrs
        hub.stop_server("model")
        return found

    def measure(self, rounds: int, rushes: int, crowds: int, users: int) -> Measured:
        """Start every kind in each round; the first round fills caches and isn't counted.

        Args:
            rounds: the number of rounds of single starts.
            rushes: the number of rounds of `RUSH` concurrent starts.
            crowds: the number of rounds of many concurrent starts.
            users: how many starts these are.
        """
        measured = Measured(users=users)
        for user in map(name, range(max(users, RUSH))):
            for hub in self._hubs.values():
                hub.add_user(user)
        for number in range(rounds + 1 if rounds else 0):
            print(f"round {number} of {rounds}", file=sys.stderr)
            for kind, start in self._kinds().items():
                found = start()
                if number:
                    measured.starts.setdefault(kind, []).append(found)
        for number in range(1, rushes + 1):
            print(f"{RUSH} users at once, round {number} of {rushes}", file=sys.stderr)
            for kind in (OURS, STOCK, STOCK_PLAIN):
                with self._rush(kind, RUSH) as rush:
                    measured.rushes.setdefault(kind, []).append(rush)
        for number in range(crowds + 1 if crowds else 0):
            print(f"{users} users at once, round {number} of {crowds}", file=sys.stderr)
            self._crowd(measured, users, bool(number))
        if crowds:
            print("what the engine is asked", file=sys.stderr)
            for kind in (OURS, FLOOR):
                measured.calls[kind] = (self._asked(kind, 1), self._asked(kind, users))
        return measured

    def _kinds(self) -> dict[str, Callable[[], Start]]:
        return {
            OURS: lambda: self._start(OURS, {"image": "minimal", "gpus": 1}),
            OURS_LARGE: lambda: self._start(OURS, {"image": LARGE, "gpus": 1}),
            OURS_BARE: lambda: self._start(OURS, {"image": "minimal", "gpus": 0}),
            STOCK: lambda: self._start(STOCK),
            STOCK_ASKS: lambda: self._start(STOCK_ASKS),
            STOCK_PLAIN: lambda: self._start(STOCK_PLAIN),
            FLOOR: self._start_by_hand,
        }

    def _start(self, kind: str, choice: Mapping[str, Any] | None = None) -> Start:
        """Start a server by a hub and stop it again."""
        hub, user = self._hubs[kind], name(0)
        began = time.perf_counter()
        answer = hub.api("POST", f"/users/{user}/server", choice)
        seconds = time.perf_counter() - began
        assert answer.status_code == 201, answer.text
        processor = self._in_containers()
        hub.stop_server(user)
        return Start(seconds, processor)

    def _start_by_hand(self) -> Start:
        with self._rush(FLOOR, 1) as rush:
            assert rush.use
            return Start(rush.seconds, rush.use.containers)

    def _in_containers(self) -> float:
        """Return the processor seconds that all containers have used."""

        def used(container: Any) -> float:
            found = self._client.api.stats(container.id, stream=False, one_shot=True)
            return float(found["cpu_stats"]["cpu_usage"]["total_usage"]) / 1e9

        with ThreadPoolExecutor(8) as pool:
            return sum(pool.map(used, self._client.containers.list(ignore_removed=True)))

    # -- Many at once ----------------------------------------------------------------------------

    def _crowd(self, measured: Measured, users: int, counts: bool) -> None:
        """Measure concurrent starts by hand and by the hub, and the hub's restart beside them."""
        with self._rush(FLOOR, users) as by_hand:
            pass
        with self._rush(OURS, users) as ours:
            beside = self._restart()
            known = sum(self._hubs[OURS].ready(name(number)) for number in range(users))
            assert known == ours.ready, f"of {ours.ready} servers the new hub knows {known}"
        without = self._restart()
        self._start(OURS, {"image": "minimal", "gpus": 1})  # a hub caches facts at its first start
        if counts:
            measured.crowds.setdefault(OURS, []).append(ours)
            measured.crowds.setdefault(FLOOR, []).append(by_hand)
            measured.restarts.append((without, beside))

    def _asked(self, kind: str, users: int) -> Counter[str]:
        """Return the engine's calls for concurrent starts, until all servers are ready."""
        with self._rush(kind, users, count=True) as rush:
            return rush.calls

    def _restart(self) -> float:
        """Restart a hub while its servers run; return the seconds until it is up."""
        hub = self._hubs[OURS]
        hub.end()
        began = time.perf_counter()
        hub.start()
        return time.perf_counter() - began

    @contextmanager
    def _rush(self, kind: str, users: int, count: bool = False) -> Iterator[Rush]:
        """Start servers concurrently; stop all of them at the end of the context.

        Args:
            kind: the kind of start.
            users: the number of servers.
            count: whether to count the engine's calls, which takes time.
        """
        way = self._by_hand if kind == FLOOR else ByHub(self._hubs[kind], kind == OURS)
        with ThreadPoolExecutor(users) as pool:
            with self._engine.asked() if count else nullcontext(Counter()) as calls:
                before = (*self._engine.seconds(), *way.seconds())
                began = time.perf_counter()
                ready = sum(pool.map(way.start, range(users)))
                seconds = time.perf_counter() - began
                after = (*self._engine.seconds(), *way.seconds())
            spent = [then - now for now, then in zip(before, after, strict=True)]
            try:
                yield Rush(seconds, ready, Use(self._in_containers(), *spent), calls)
            finally:
                list(pool.map(way.stop, range(users)))


class ByHub:
    """Starts servers by a hub's REST API.

    Args:
        hub: the hub, which runs.
        ours: whether its spawner is GPUSpawner, so that users send a choice.
    """

    def __init__(self, hub: Hub, ours: bool) -> None:
        self._hub = hub
        self._choice = {"image": "minimal", "gpus": 1} if ours else None

    def start(self, number: int) -> bool:
        """Start a user's server; return whether it was ready in time."""
        answer = self._hub.api("POST", f"/users/{name(number)}/server", self._choice, 300)
        return bool(answer.status_code == 201)

    def stop(self, number: int) -> None:
        """Stop a user's server."""
        self._hub.stop_server(name(number))

    def seconds(self) -> tuple[float, float]:
        """Return the processor seconds of the hub and of its proxy."""
        proxy = int((self._hub.folder / "jupyterhub-proxy.pid").read_text())
        return seconds_of(self._hub.pid), seconds_of(proxy)


def name(number: int) -> str:
    """Return a user's name."""
    return f"user{number}"


def two_cores() -> str:
    """Return the two processors for servers, as a cpuset; "" if the machine has no more."""
    cores = sorted(os.sched_getaffinity(0))
    return ",".join(map(str, cores[:2])) if len(cores) > 2 else ""


# -- What is printed -------------------------------------------------------------------------------


def show(measured: Measured) -> None:
    """Print the times, and the ratios with their goals beside them."""
    starts, rushes = measured.starts, measured.rushes
    if starts:
        print(f"\n{'from request to ready, medians':42} {'seconds':>8} {'processor':>10}")
    for kind, found in starts.items():
        seconds = statistics.median(each.seconds for each in found)
        processor = statistics.median(each.processor for each in found)
        print(f"{kind:42} {seconds:8.2f} {processor:10.2f}")
    if rushes:
        print(f"\n{f'{RUSH} users at once on 2 cores':42} {'seconds':>8} {'ready':>10}")
    for kind, each in rushes.items():
        print(_rush_line(kind, each))
    if measured.crowds:
        _show_crowds(measured)
    print(f"\n{'ratio of each round, median':60} {'is':>6} {'goal':>6}")
    for one, other, goal in GOALS if starts else []:
        print(line(f"{one} : {other}", median_ratio(starts[one], starts[other]), goal))
    if rushes:
        one, other, most = RUSH_GOAL
        ratio = median_ratio(rushes[one], rushes[other])
        everybody = all(each.ready == RUSH for each in rushes[one])
        print(line(f"{RUSH} at once, {one} : {other}", ratio, most, everybody))
    if measured.crowds:
        ours, by_hand = measured.crowds[OURS], measured.crowds[FLOOR]
        everybody = all(each.ready == measured.users for each in ours)
        called = f"{measured.users} at once, {OURS} : {FLOOR}"
        print(line(called, median_ratio(ours, by_hand), CROWD_GOAL, everybody))
        ratio = statistics.median(beside / without for without, beside in measured.restarts)
        called = f"start of a hub with {measured.users} servers running : with none"
        print(line(called, ratio, RESTART_GOAL))
        extra = _daemon_seconds(measured, OURS) - _daemon_seconds(measured, FLOOR)
        print(line("dockerd's processor seconds a start, above those by hand", extra, EXTRA_GOAL))


def _rush_line(kind: str, found: Sequence[Rush]) -> str:
    seconds = statistics.median(each.seconds for each in found)
    return f"{kind:42} {seconds:8.1f} {' '.join(str(each.ready) for each in found):>10}"


def _show_crowds(measured: Measured) -> None:
    """Print the times and processor times of concurrent starts, and the engine's calls."""
    users = measured.users
    print(f"\n{f'{users} users at once on 2 cores':42} {'seconds':>8} {'ready':>10}")
    for kind, found in measured.crowds.items():
        print(_rush_line(kind, found))
    print(f"\n{'processor seconds of each of these starts':42}", end="")
    print("".join(f"{title:>11}" for title in USED))
    for kind in measured.crowds:
        print(f"{kind:42}", "".join(f"{used:11.3f}" for used in _used(measured, kind)), sep="")
    print(f"\n{'calls of the engine for each start':42} {'one alone':>10} {'of many':>10}")
    for kind, (alone, many) in measured.calls.items():
        print(f"{kind:42} {alone.total():10} {many.total() / users:10.1f}")
        for what in sorted(alone | many):
            print(f"  {what:40} {alone[what]:10} {many[what] / users:10.1f}")
    without, beside = (statistics.median(found) for found in zip(*measured.restarts, strict=True))
    print(f"\na hub's start: {without:.2f} s with no server running,", end=" ")
    print(f"{beside:.2f} s with {users}")


USED = ("containers", "dockerd", "its others", "hub, hand", "proxy")


def _used(measured: Measured, kind: str) -> list[float]:
    """Return the processor seconds per start of concurrent starts, as medians of the rounds."""
    uses = [astuple(each.use) for each in measured.crowds[kind] if each.use]
    return [statistics.median(found) / measured.users for found in zip(*uses, strict=True)]


def _daemon_seconds(measured: Measured, kind: str) -> float:
    return _used(measured, kind)[1]


def median_ratio(these: Sequence[Start | Rush], those: Sequence[Start | Rush]) -> float:
    """Return the median of the rounds' ratios of seconds."""
    return statistics.median(
        one.seconds / other.seconds for one, other in zip(these, those, strict=True)
    )


def line(called: str, ratio: float, goal: float | None, ready: bool = True) -> str:
    """Return the line of a ratio; its goal is missed, too, if not all servers were ready."""
    met = goal is not None and ratio <= goal and ready
    beside = "" if goal is None else f"{goal:6.2f}  {'met' if met else 'missed'}"
    return f"{called:60} {ratio:6.2f} {beside}".rstrip()
