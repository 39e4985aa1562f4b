"""Full spawns, from the request to the hub until the server can be used, of three kinds in turn.

GPUSpawner, DockerSpawner as it comes, and the floor: a container created and started by hand with a
bare Jupyter Server. All on one engine, from one image. A single time says little on a machine that
does other things as well, so the kinds take turns and the ratios are what counts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import docker
import requests

from gpuspawner.__main__ import main as gpuspawner
from gpuspawner.simulation.host import SimulatedHost, cache_folder
from gpuspawner.simulation.state import describe
from tests.hubs import Hub, write_config

from . import queue

IMAGE = "gpuspawner/minimal:py3.11"
PATIENT = "c.JupyterHub.tornado_settings = {'slow_spawn_timeout': 120}"
STOCK = [
    'c.JupyterHub.spawner_class = "docker"',
    f'c.DockerSpawner.image = "{IMAGE}"',
    'c.DockerSpawner.network_name = "gpuspawner"',
    "c.DockerSpawner.remove = True",
    'c.DockerSpawner.prefix = "stock"',
]


def main() -> int:
    """Run the rounds and print a table; then the queue's, or with `queue` that one alone."""
    if sys.argv[1:2] == ["queue"]:
        return queue.main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    with (
        SimulatedHost(describe([("A100-40GB", 4)]), cache=cache_folder() / "tests") as host,
        tempfile.TemporaryDirectory() as folder,
    ):
        times = measure(host, Path(folder), rounds)
    show(times)
    return queue.main()


def measure(host: SimulatedHost, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Return kind -> seconds per round."""
    import os

    os.environ.update(host.additions)
    if gpuspawner(["image", "build", "minimal"]) != 0:
        sys.exit(1)
    ours, stock = (
        start_hub(folder / name, host, lines)
        for name, lines in (("ours", [PATIENT]), ("stock", [PATIENT, *STOCK]))
    )
    client = docker.DockerClient(base_url=host.docker_host)
    kinds: dict[str, Callable[[], float]] = {
        "GPUSpawner, 1 GPU": lambda: spawn(ours, {"gpus": 1}),
        "GPUSpawner, no GPU": lambda: spawn(ours, {"gpus": 0}),
        "DockerSpawner": lambda: spawn(stock, None),
        "floor": lambda: bare(client),
    }
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    try:
        for number in range(rounds + 1):
            for kind, run in kinds.items():
                seconds = run()
                if number:  # the first round fills caches
                    times[kind].append(seconds)
            print(f"round {number} of {rounds}", file=sys.stderr)
    finally:
        for hub in (ours, stock):
            hub.stop()
        client.close()
    return times


def start_hub(folder: Path, host: SimulatedHost, lines: list[str]) -> Hub:
    """Start a hub of one kind, with one user."""
    folder.mkdir()
    write_config(folder, lines)
    hub = Hub(folder, host.environment)
    hub.start()
    hub.add_user("ada")
    return hub


def spawn(hub: Hub, options: dict[str, int] | None) -> float:
    """Start a server and stop it again; return how long the start took, in seconds."""
    began = time.perf_counter()
    answer = hub.api("POST", "/users/ada/server", options)
    seconds = time.perf_counter() - began
    assert answer.status_code == 201, answer.text
    hub.stop_server("ada")
    return seconds


def bare(client: docker.DockerClient) -> float:
    """Start Jupyter Server by hand; return how long it took until it answered, in seconds."""
    command = ["jupyter", "server", "--ip=0.0.0.0", "--no-browser", "--IdentityProvider.token="]
    began = time.perf_counter()
    container = client.containers.create(IMAGE, command, network="gpuspawner")
    try:
        container.start()
        container.reload()
        address = container.attrs["NetworkSettings"]["Networks"]["gpuspawner"]["IPAddress"]
        while True:
            try:
                if requests.get(f"http://{address}:8888/api", timeout=5).ok:
                    return time.perf_counter() - began
            except requests.ConnectionError:
                time.sleep(0.01)
    finally:
        container.remove(force=True, v=True)


def show(times: dict[str, list[float]]) -> None:
    """Print each kind's median, and its ratio to the floor and to DockerSpawner, round by round."""
    print(f"{'request to ready':20} {'median':>8} {'to floor':>9} {'to DockerSpawner':>17}")
    for kind, seconds in times.items():
        ratios = [
            statistics.median(a / b for a, b in zip(seconds, times[other], strict=True))
            for other in ("floor", "DockerSpawner")
        ]
        print(f"{kind:20} {statistics.median(seconds):7.2f}s {ratios[0]:8.2f}x {ratios[1]:16.2f}x")


if __name__ == "__main__":
    sys.exit(main())
