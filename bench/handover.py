"""The time for which a GPU is idle while users wait: from a container's end to the next grant.

20 users request one of 4 GPUs each. Each server starts, runs for a moment, and stops. The times of
ends are from the engine's events, those of grants from the hub's audit log.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import docker

from tests.support.hubs import WAITING, Hub

from .one_hub import one_hub

GPUS, USERS = 4, 20
STAYS_SECONDS = 2.0
POLL_SECONDS = 1.0
GOAL_SECONDS = 1.0
LINES = (
    WAITING,
    "c.JupyterHub.concurrent_spawn_limit = 0",
    "c.JupyterHub.tornado_settings = {'slow_spawn_timeout': 0}",
)
GRANT = re.compile(r'^\[I (\S+ \S+) .*gpuspawner (\{"event": "grant".*\})$', re.MULTILINE)


def main(arguments: list[str] | None = None) -> int:
    """Serve all users, print for how long GPUs were idle, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench handover", description=__doc__)
    parser.add_argument("--users", type=int, default=USERS)
    options = parser.parse_args(arguments)
    with one_hub(GPUS, LINES) as (host, hub):
        with _deaths(host.docker_host) as deaths:
            _serve(hub, options.users)
        show(idle_seconds(deaths, grants(hub.log())))
    return 0


def _serve(hub: Hub, users: int) -> None:
    names = [f"user-{number:02}" for number in range(users)]
    for name in names:
        assert hub.spawn(name, {"gpus": 1}).status_code in (201, 202)
    print(f"{users} users have asked for {GPUS} GPUs", file=sys.stderr)

    def stay(name: str) -> None:
        # Not more often, so that the polling doesn't slow the hub.
        while not hub.ready(name):
            time.sleep(POLL_SECONDS)
        time.sleep(STAYS_SECONDS)
        hub.stop_server(name)

    with ThreadPoolExecutor(users) as pool:
        list(pool.map(stay, names))


@contextmanager
def _deaths(address: str) -> Iterator[list[tuple[float, str]]]:
    """Collect (time, UUID) of each end of a container with a GPU; seconds since the epoch."""
    client = docker.APIClient(base_url=address, version="auto")
    found: list[tuple[float, str]] = []
    stream = client.events(filters={"event": "die", "label": "gpuspawner.gpus"}, decode=True)

    def listen() -> None:
        for event in stream:
            uuids = event["Actor"]["Attributes"]["gpuspawner.gpus"].split(",")
            found.extend((event["timeNano"] / 1e9, uuid) for uuid in uuids if uuid)

    threading.Thread(target=listen, daemon=True).start()
    try:
        yield found
    finally:
        stream.close()
        client.close()


def grants(log: str) -> list[tuple[float, str]]:
    """Return (time, UUID) of each grant in a hub's log; seconds since the epoch."""
    found = []
    for moment, line in GRANT.findall(log):
        then = datetime.strptime(moment, "%Y-%m-%d %H:%M:%S.%f").astimezone().timestamp()
        facts: dict[str, Any] = json.loads(line)
        found.extend((then, uuid) for uuid in facts["gpus"])
    return found


def idle_seconds(deaths: list[tuple[float, str]], granted: list[tuple[float, str]]) -> list[float]:
    """Return the seconds from each end to the next grant of its GPU; none for the last ends."""
    idle = []
    for died, uuid in sorted(deaths):
        # The engine's clock is the hub's, and its log is to the millisecond.
        after = [when - died for when, other in granted if other == uuid and when > died - 0.001]
        if after:
            idle.append(min(after))
    return idle


def show(idle: list[float]) -> None:
    """Print what came out."""
    met = "met" if max(idle) <= GOAL_SECONDS else "missed"
    print(f"a GPU idle while somebody waited, {len(idle)} times")
    print(f"median {statistics.median(idle):.2f} s, longest {max(idle):.2f} s", end=" ")
    print(f"(goal: {GOAL_SECONDS:g} s): {met}")
