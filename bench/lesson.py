"""A class on shared GPUs: 60 users come within a minute to 4 GPUs of 15 slots, a slot for each.

The slots are those of reserved hours of the class's course, or with `--all-day` those that are
there at any time. Each asks for one by REST, spread evenly over the minute, and gets JupyterLab of
the image `minimal`. All of them fit, so that nobody waits for another. The hub, its proxy and the
engine are real, on a simulated host. Printed are how many were seated, when the last one's server
could be used after the first had asked, and how long each took from asking.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from gpuspawner.simulation.host import SimulatedHost
from tests.support.hubs import Hub
from tests.support.measured import proxy_of

from .one_hub import OUR_PAGES, one_hub
from .pages import percentile
from .processor import EngineProcesses, seconds_of

GPUS, SLOTS, USERS = 4, 15, 60
COME_SECONDS = 60.0
# Seconds from the first request to the last server, on two cores.
GOAL_SECONDS = 90.0
# How often it is asked who has a server, and how long at the most for all.
POLL_SECONDS, PATIENCE_SECONDS = 0.5, 600.0
LINES = (
    OUR_PAGES,
    # A request is answered at once, as those of people who close the page.
    "c.JupyterHub.tornado_settings = {'slow_spawn_timeout': 0}",
)
ALL_DAY = f"c.GPUSpawner.shared_gpus = {{'NVIDIA A100-SXM4-40GB': {SLOTS}}}"


@dataclass
class Lesson:
    """What came out; times in seconds since the first one asked.

    Args:
        asked: user -> when they asked.
        seated: user -> when it was seen that their server can be used.
        refused: what else was answered.
        processor: process -> seconds of the processor.
    """

    asked: dict[str, float] = field(default_factory=dict)
    seated: dict[str, float] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    processor: Mapping[str, float] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> int:
    """Have the class come, print what came out, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench class", description=__doc__)
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--seconds", type=float, default=COME_SECONDS, help="in which all ask")
    parser.add_argument("--all-day", action="store_true", help="the GPUs are always shared")
    options = parser.parse_args(arguments)
    with one_hub(GPUS, (*LINES, ALL_DAY if options.all_day else of_course())) as (host, hub):
        names = [f"student-{number:02}" for number in range(options.users)]
        for name in [*names, "somebody"]:
            hub.add_user(name)
        if not options.all_day:
            hub.add_to_group("students", *names, "somebody")
        # What a hub does once, for its first server.
        hub.start_server("somebody", {"gpus": 1, "kind": "shared"})
        hub.stop_server("somebody")
        show(measure(host, hub, names, options.seconds), options.seconds)
    return 0


def of_course() -> str:
    """Return the lines of a course whose reserved hours have begun."""
    begin, end = (f"{datetime.now() + timedelta(hours=each):%Y-%m-%dT%H:%M}" for each in (-0.1, 3))
    hours = {"begin": begin, "end": end, "gpus": GPUS, "slots": SLOTS, "unclaimed_minutes": 180}
    course = {"title": "The class", "group": "students", "reserved": [hours]}
    return (
        "c.GPUSpawner.hour_limit = 8\n"
        "c.JupyterHub.load_groups = {'students': {'users': []}}\n"
        f"c.GPUSpawner.courses = {{'class': {course!r}}}"
    )


def measure(host: SimulatedHost, hub: Hub, names: Sequence[str], seconds: float) -> Lesson:
    """Have the users come, and return when all of them have a server, or patience ends."""
    lesson, engine, proxy = Lesson(), EngineProcesses(host), proxy_of(hub)

    def used() -> dict[str, float]:
        return {
            "hub": seconds_of(hub.pid),
            "proxy": seconds_of(proxy),
            "engine": sum(engine.seconds()),
        }

    before, began = used(), time.monotonic()
    print(f"{len(names)} users come within {seconds:g} s", file=sys.stderr)

    def ask(number: int) -> None:
        time.sleep(max(0.0, began + number * seconds / len(names) - time.monotonic()))
        lesson.asked[names[number]] = time.monotonic() - began
        answer = hub.api("POST", f"/users/{names[number]}/server", {"gpus": 1, "kind": "shared"})
        if answer.status_code not in (201, 202):
            lesson.refused.append(f"{answer.status_code}: {answer.text[:200]}")

    def poll() -> None:
        while len(lesson.seated) + len(lesson.refused) < len(names):
            at = time.monotonic() - began
            if at > PATIENCE_SECONDS:
                return
            for name in hub.ready_users() - lesson.seated.keys():
                lesson.seated[name] = time.monotonic() - began
            time.sleep(POLL_SECONDS)

    polling = threading.Thread(target=poll)
    polling.start()
    # One who waits for an answer doesn't hold up the next one.
    with ThreadPoolExecutor(len(names)) as people:
        list(people.map(ask, range(len(names))))
    polling.join()
    lesson.processor = {name: total - before[name] for name, total in used().items()}
    return lesson


def show(lesson: Lesson, seconds: float) -> None:
    """Print it."""
    users, seated = len(lesson.asked), len(lesson.seated)
    last = max(lesson.seated.values(), default=0.0)
    met = "met" if seated == users and last <= GOAL_SECONDS else "missed"
    took = sorted(at - lesson.asked[name] for name, at in lesson.seated.items())
    print(f"\n{users} users come within {seconds:g} s to {GPUS} GPUs of {SLOTS} slots")
    print(f"{'':42} {'is':>8} {'goal':>8}")
    print(f"{'seated':42} {seated:8} {users:8}")
    print(f"{'the last one is ready after, seconds':42} {last:8.1f} {GOAL_SECONDS:8.0f} {met}")
    if len(took) > 1:
        middle, most = statistics.median(took), percentile(took, 95)
        print(
            f"from asking to ready, seconds: median {middle:.1f}, 95 % {most:.1f}, "
            f"longest {took[-1]:.1f}"
        )
    parts = (f"{name} {total:.1f}" for name, total in lesson.processor.items())
    print("processor seconds: " + ", ".join(parts))
    for each in lesson.refused[:10]:
        print(f"  {each}")
