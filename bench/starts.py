"""From the request to the hub until the server can be used: GPUSpawner, DockerSpawner, and neither.

All on one engine of one simulated host, and by turns: a single time says little on a machine that
does other things as well, so what counts is each round's ratio, and of those the median. The
processor time of a container until its server answers hardly depends on what else goes on.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import requests

from gpuspawner.__main__ import main as gpuspawner
from gpuspawner.backends.docker.readiness import QUICK_START
from gpuspawner.image_builder.recipe import recipes
from gpuspawner.simulation.host import SimulatedHost, cache_folder
from gpuspawner.simulation.state import describe
from tests.support.hubs import Hub, write_config

from . import plain_image

LARGE = "pytorch-2.7"
NETWORK = "gpuspawner"
CROWD = [f"user{number}" for number in range(8)]

OURS, OURS_LARGE, OURS_BARE = "GPUSpawner", f"GPUSpawner, {LARGE}", "GPUSpawner, no GPU"
STOCK, STOCK_PLAIN = "DockerSpawner", "DockerSpawner, plain image"
STOCK_ASKS = "DockerSpawner, asking for a quick start"
FLOOR = "by hand, bare Jupyter Server"

# Of which kind to which, and the goal: at most this ratio.
GOALS: list[tuple[str, str, float | None]] = [
    (OURS, STOCK_PLAIN, 0.25),
    (OURS, STOCK, 0.6),
    (OURS, FLOOR, 1.5),
    (OURS_LARGE, OURS, 1.1),
    # Without a goal: how much of it is the image's doing, and how much the spawner's.
    (OURS_BARE, STOCK_ASKS, None),
    (STOCK, FLOOR, None),
]
CROWD_GOAL = (OURS, STOCK_PLAIN, 0.5)


@dataclass
class Start:
    """One start: seconds until it could be used, and of processor time in the container."""

    seconds: float
    processor: float


@dataclass
class Rush:
    """Some starts at once: seconds until the last was ready or had failed, how many were ready."""

    seconds: float
    ready: int


@dataclass
class Measured:
    """What was measured, a list by round for each kind."""

    starts: dict[str, list[Start]] = field(default_factory=dict)
    rushes: dict[str, list[Rush]] = field(default_factory=dict)


def main(arguments: list[str] | None = None) -> int:
    """Run the rounds and print what came out; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench starts", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="of single starts")
    parser.add_argument("--crowds", type=int, default=3, help="rounds of 8 starts at once")
    options = parser.parse_args(arguments)
    # The images are those of `make run`, where that was used: there is no need for two of each.
    with (
        SimulatedHost(describe([("A100-40GB", len(CROWD))]), cache=cache_folder()) as host,
        tempfile.TemporaryDirectory() as folder,
    ):
        os.environ.update(host.additions)
        if gpuspawner(["image", "build", "minimal", LARGE]) != 0:
            return 1
        with Bench(host, Path(folder)) as bench:
            measured = bench.measure(options.rounds, options.crowds)
    show(measured)
    return 0


class Bench:
    """The hubs on one host, each of which starts servers in its own way."""

    def __init__(self, host: SimulatedHost, folder: Path) -> None:
        self._host, self._folder = host, folder
        self._hubs: dict[str, Hub] = {}
        self._client = docker.DockerClient(base_url=host.docker_host, version="auto")
        images = {key: found.version.image for key, found in recipes().items()}
        self._images = {key: images[key] for key in ("minimal", LARGE)}

    def __enter__(self) -> Bench:
        print("the image without what makes a start quick", file=sys.stderr)
        plain = plain_image.ensure(self._client, self._images["minimal"])
        usual = ["c.JupyterHub.tornado_settings = {'slow_spawn_timeout': 300}"]
        if two_cores():
            usual.append(f"c.DockerSpawner.extra_host_config = {{'cpuset_cpus': {two_cores()!r}}}")
        self._add(OURS, [*usual, f"c.GPUSpawner.images = {self._images}"])
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
            }
            self._add(kind, usual + [f"{name} = {value!r}" for name, value in lines.items()])
        return self

    def __exit__(self, *_: object) -> None:
        for hub in self._hubs.values():
            hub.stop()
        self._client.close()

    def _add(self, kind: str, lines: list[str]) -> None:
        folder = self._folder / str(len(self._hubs))
        folder.mkdir()
        write_config(folder, lines)
        hub = self._hubs[kind] = Hub(folder, self._host.environment)
        hub.start()
        for user in CROWD:
            hub.add_user(user)

    def measure(self, rounds: int, crowds: int) -> Measured:
        """Start every kind in each round. The first round fills caches and isn't counted."""
        kinds: dict[str, Callable[[], Start]] = {
            OURS: lambda: self._start(OURS, {"image": "minimal", "gpus": 1}),
            OURS_LARGE: lambda: self._start(OURS, {"image": LARGE, "gpus": 1}),
            OURS_BARE: lambda: self._start(OURS, {"image": "minimal", "gpus": 0}),
            STOCK: lambda: self._start(STOCK),
            STOCK_ASKS: lambda: self._start(STOCK_ASKS),
            STOCK_PLAIN: lambda: self._start(STOCK_PLAIN),
            FLOOR: self._by_hand,
        }
        measured = Measured()
        for number in range(rounds + 1):
            print(f"round {number} of {rounds}", file=sys.stderr)
            for kind, start in kinds.items():
                found = start()
                if number:
                    measured.starts.setdefault(kind, []).append(found)
        for number in range(1, crowds + 1):
            print(f"{len(CROWD)} users at once, round {number} of {crowds}", file=sys.stderr)
            for kind in (OURS, STOCK, STOCK_PLAIN):
                measured.rushes.setdefault(kind, []).append(self._rush(kind))
        return measured

    def _start(self, kind: str, choice: Mapping[str, Any] | None = None) -> Start:
        """Start a server by a hub and stop it again."""
        hub, user = self._hubs[kind], CROWD[0]
        began = time.perf_counter()
        answer = hub.api("POST", f"/users/{user}/server", choice)
        seconds = time.perf_counter() - began
        assert answer.status_code == 201, answer.text
        (container,) = self._client.containers.list()
        processor = self._processor(str(container.id))
        hub.stop_server(user)
        return Start(seconds, processor)

    def _by_hand(self) -> Start:
        """Start Jupyter Server in a container through the engine's API, and remove it again."""
        command = ["jupyter", "server", "--ip=0.0.0.0", "--no-browser", "--IdentityProvider.token="]
        began = time.perf_counter()
        container = self._client.containers.create(
            self._images["minimal"], command, network=NETWORK, cpuset_cpus=two_cores()
        )
        try:
            container.start()
            container.reload()
            address = container.attrs["NetworkSettings"]["Networks"][NETWORK]["IPAddress"]
            while True:
                try:
                    if requests.get(f"http://{address}:8888/api", timeout=5).ok:
                        break
                except requests.ConnectionError:
                    time.sleep(0.01)
            seconds = time.perf_counter() - began
            return Start(seconds, self._processor(str(container.id)))
        finally:
            container.remove(force=True, v=True)

    def _processor(self, container: str) -> float:
        """Return the seconds of processor time that a container has used."""
        found = self._client.api.stats(container, stream=False, one_shot=True)
        return float(found["cpu_stats"]["cpu_usage"]["total_usage"]) / 1e9

    def _rush(self, kind: str) -> Rush:
        """Start everybody's server at once, and stop all of them again."""
        hub = self._hubs[kind]
        choice = {"image": "minimal", "gpus": 1} if kind == OURS else None

        def start(user: str) -> bool:
            answer = hub.api("POST", f"/users/{user}/server", choice, 300)
            return bool(answer.status_code == 201)

        began = time.perf_counter()
        with ThreadPoolExecutor(len(CROWD)) as pool:
            ready = sum(pool.map(start, CROWD))
        seconds = time.perf_counter() - began
        hub.stop_all_servers()
        return Rush(seconds, ready)


def two_cores() -> str:
    """Return the two processors that servers run on; "" where there are no more."""
    cores = sorted(os.sched_getaffinity(0))
    return ",".join(map(str, cores[:2])) if len(cores) > 2 else ""


def show(measured: Measured) -> None:
    """Print the times, and the ratios with their goals beside them."""
    starts, rushes = measured.starts, measured.rushes
    print(f"\n{'from request to ready, medians':42} {'seconds':>8} {'processor':>10}")
    for kind, found in starts.items():
        seconds = statistics.median(each.seconds for each in found)
        processor = statistics.median(each.processor for each in found)
        print(f"{kind:42} {seconds:8.2f} {processor:10.2f}")
    if rushes:
        print(f"\n{f'{len(CROWD)} users at once on 2 cores':42} {'seconds':>8} {'ready':>10}")
    for kind, crowd in rushes.items():
        seconds = statistics.median(each.seconds for each in crowd)
        print(f"{kind:42} {seconds:8.1f} {' '.join(str(each.ready) for each in crowd):>10}")
    print(f"\n{'ratio of each round, median':60} {'is':>6} {'goal':>6}")
    for one, other, goal in GOALS:
        ratio = median_ratio(
            [each.seconds for each in starts[one]], [each.seconds for each in starts[other]]
        )
        print(line(f"{one} : {other}", ratio, goal))
    if rushes:
        one, other, most = CROWD_GOAL
        ratio = median_ratio(
            [each.seconds for each in rushes[one]], [each.seconds for each in rushes[other]]
        )
        everybody = all(each.ready == len(CROWD) for each in rushes[one])
        print(line(f"{len(CROWD)} at once, {one} : {other}", ratio, most, everybody))


def median_ratio(these: list[float], those: list[float]) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(these, those, strict=True))


def line(name: str, ratio: float, goal: float | None, ready: bool = True) -> str:
    """Return a ratio's line of the table. A goal is missed as well where not all were ready."""
    met = goal is not None and ratio <= goal and ready
    beside = "" if goal is None else f"{goal:6.2f}  {'met' if met else 'missed'}"
    return f"{name:60} {ratio:6.2f} {beside}".rstrip()
