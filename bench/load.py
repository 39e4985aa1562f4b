"""A class that comes at once: 60 users in a minute on 4 GPUs, with all their pages open.

Each user opens the form and the dashboard, asks for a GPU, and follows the queue's page until there
is a server. Once all have asked, each keeps it for a moment. They come as people do, one after the
other within a minute. In further rounds all of them open their pages in the same moment, and ask
within the minute after it. The users are another process on the same machine, as browsers would be;
their load counts against the hub. Their servers are plain ones: how long JupyterLab takes is
another part's matter.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from gpuspawner.simulation.host import SimulatedHost
from tests.support import crowd, dashboards
from tests.support.hubs import PLAIN_SERVER, Hub
from tests.support.measured import (
    dashboard_of,
    database_of,
    descriptors_of,
    memory_of,
    proxy_of,
)

from .one_hub import OUR_PAGES, one_hub
from .pages import percentile
from .processor import EngineProcesses, seconds_of

GPUS, USERS, REFUSALS = 4, 60, 1000
# The interval of the requests that depend on nobody, in seconds.
PROBE_SECONDS = 0.1
PROBE = "a user by REST"
# How long somebody who comes looks at the form before asking, in seconds.
LOOK_SECONDS = 10.0
# The users' pages that the hub answers at once. Sending the form and stopping wait for a server: up
# to `slow_spawn_timeout`, and until the engine has stopped it.
AT_ONCE = (crowd.FORM, crowd.FORMS_STREAM, crowd.PENDING, crowd.EVENTS)
GOAL_MS = 100.0
# By how much the hub's memory may grow from this round to the last, in MiB.
STEADY_AFTER, GOAL_MIB = 3, 5.0
# How late the hub's event loop is: how much longer than so many seconds a sleep takes.
TICK_SECONDS = 0.02
LATENESS = f"""
import asyncio, time
from jupyterhub.app import JupyterHub

async def measure_lateness():
    with open("lateness", "w", buffering=1) as file:
        while True:
            began = time.perf_counter()
            await asyncio.sleep({TICK_SECONDS})
            file.write(f"{{1000 * (time.perf_counter() - began - {TICK_SECONDS}):.2f}}\\n")

async def start_measured(self, start=JupyterHub.start):
    self.lateness = asyncio.ensure_future(measure_lateness())
    return await start(self)

JupyterHub.start = start_measured
"""
MIB = 1 << 20


@dataclass
class Memory:
    """Memory in bytes, and connections, of each process; and the bytes of the hub's database."""

    hub: int
    dashboard: int
    proxy: int
    database: int
    connections: int


@dataclass
class Rounds:
    """The measurements of rounds of one kind.

    Args:
        taken: request -> milliseconds of each.
        lateness: milliseconds by which the hub's event loop was late.
        memory: before the first round, and after each.
        processor: process -> its seconds in each round.
    """

    taken: dict[str, list[float]] = field(default_factory=dict)
    lateness: list[float] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    processor: dict[str, list[float]] = field(default_factory=dict)

    def percentile_at_once(self, percent: int) -> float:
        """Return a percentile of what users' pages took that the hub answers at once."""
        return percentile([ms for what in AT_ONCE for ms in self.taken.get(what, ())], percent)


@dataclass
class Measured:
    """The measurements.

    Args:
        came: of the rounds in which people came one after the other.
        together: of those in which all opened their pages in the same moment.
        errors: what was answered and shouldn't be.
        refused: before the refused requests, and after them.
        beside_refusals: milliseconds of each request by REST while they were sent.
    """

    came: Rounds = field(default_factory=Rounds)
    together: Rounds = field(default_factory=Rounds)
    errors: list[str] = field(default_factory=list)
    refused: list[Memory] = field(default_factory=list)
    beside_refusals: list[float] = field(default_factory=list)


def main(arguments: list[str] | None = None) -> int:
    """Run the rounds and print their results; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench load", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--together", type=int, default=3, help="further rounds: all open their pages at once"
    )
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--seconds", type=float, default=60, help="in which all of them ask")
    parser.add_argument(
        "--look", type=float, default=LOOK_SECONDS, help="how long each looks before asking"
    )
    parser.add_argument("--stay", type=float, default=1, help="how long each keeps a server")
    parser.add_argument("--refusals", type=int, default=REFUSALS, help="in a minute, afterwards")
    options = parser.parse_args(arguments)
    with one_hub(GPUS, [PLAIN_SERVER, OUR_PAGES, dashboards.lines(), LATENESS]) as (host, hub):
        names = [f"user{number}" for number in range(options.users)]
        print(f"logging in {options.users} users", file=sys.stderr)
        visitors = crowd.log_in(hub, names)
        show(measure(host, hub, visitors, options), options.users, options.seconds)
    return 0


def measure(
    host: SimulatedHost, hub: Hub, visitors: list[crowd.Visitor], options: argparse.Namespace
) -> Measured:
    """Return the measurements of all rounds."""
    found = Measured()
    for rounds, number, look in (
        (found.came, options.rounds, options.look),
        (found.together, options.together, None),
    ):
        rounds.memory.append(_memory(hub))
        for count in range(1, number + 1):
            kind = "all together" if look is None else "one after the other"
            print(f"round {count} of {number}, {kind}", file=sys.stderr)
            found.errors += _round(host, hub, visitors, options, look, rounds)
    if options.refusals:
        print(f"{options.refusals} requests that are refused", file=sys.stderr)
        _refuse(hub, 0.3 * options.refusals, 15)
        found.refused.append(_memory(hub))
        with _probing(hub) as found.beside_refusals:
            found.errors += _refuse(hub, options.refusals, 60)
        found.refused.append(_memory(hub))
    return found


def _round(
    host: SimulatedHost,
    hub: Hub,
    visitors: list[crowd.Visitor],
    options: argparse.Namespace,
    look: float | None,
    rounds: Rounds,
) -> list[str]:
    """Measure one round; return what was answered and shouldn't be."""
    processes: dict[str, Callable[[], float]] = {
        "hub": lambda: seconds_of(hub.pid),
        "dashboard": lambda: seconds_of(dashboard_of(hub)),
        "proxy": lambda: seconds_of(proxy_of(hub)),
        "engine": lambda: sum(EngineProcesses(host).seconds()),
    }
    before = {name: seconds() for name, seconds in processes.items()}
    ticks = len(_lateness(hub))
    with _probing(hub) as probed:
        record = _come_and_go(hub.url, visitors, options.seconds, options.stay, look)
    for name, seconds in processes.items():
        rounds.processor.setdefault(name, []).append(seconds() - before[name])
    rounds.lateness += _lateness(hub)[ticks:]
    for what, taken in {**record.taken, PROBE: probed}.items():
        rounds.taken.setdefault(what, []).extend(taken)
    rounds.memory.append(_memory(hub))
    return record.errors


def _memory(hub: Hub) -> Memory:
    dashboard, proxy = dashboard_of(hub), proxy_of(hub)
    return Memory(
        memory_of(hub.pid),
        memory_of(dashboard),
        memory_of(proxy),
        database_of(hub),
        sum(map(descriptors_of, (hub.pid, dashboard, proxy))),
    )


def _lateness(hub: Hub) -> list[float]:
    return [float(line) for line in (hub.folder / "lateness").read_text().split()]


@contextmanager
def _probing(hub: Hub) -> Iterator[list[float]]:
    """Send requests that depend on nobody, in this context; collect the milliseconds of each."""
    taken: list[float] = []
    over = threading.Event()

    def probe() -> None:
        while not over.wait(PROBE_SECONDS):
            began = time.perf_counter()
            assert hub.api("GET", "/users/user0").ok
            taken.append(1000 * (time.perf_counter() - began))

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield taken
    finally:
        over.set()
        thread.join()


def _come_and_go(
    url: str, visitors: list[crowd.Visitor], seconds: float, stay: float, look: float | None
) -> crowd.Record:
    """Have the users come, in a process of their own, until the last one has left."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as people:
        return people.submit(_be_them, url, visitors, seconds, stay, look).result()


def _be_them(
    url: str, visitors: list[crowd.Visitor], seconds: float, stay: float, look: float | None
) -> crowd.Record:
    async def run() -> crowd.Record:
        return await crowd.Crowd(url, visitors, seconds, stay, look).run()

    return asyncio.run(run())


def _refuse(hub: Hub, number: float, seconds: float) -> list[str]:
    """Send choices that are refused, spread over some seconds; return what was wrong about that."""
    kinds: list[Mapping[str, Any]] = [
        {"gpus": "x" * 50_000},
        {"gpus": 99},
        {"image": "x" * 5000},
        {"nonsense": ["x" * 10] * 500},
    ]
    wrong = []
    began = time.monotonic()
    for count in range(int(number)):
        answer = hub.api("POST", f"/users/user{count % 20}/server", kinds[count % len(kinds)])
        if not 400 <= answer.status_code < 500:
            wrong.append(f"refused with {answer.status_code}: {answer.text[:200]}")
        time.sleep(max(0.0, began + (count + 1) * seconds / number - time.monotonic()))
    return wrong


# -- What came out ---------------------------------------------------------------------------------


def show(found: Measured, users: int, seconds: float) -> None:
    """Print the tables."""
    came, together = found.came, found.together
    if came.taken:
        print(f"{users} users come within {seconds:g} s to {GPUS} GPUs, {_times(came)}")
        _show_rounds(came)
        most = came.percentile_at_once(95)
        print(
            f"\nof the pages that the hub answers at once, 95 % take at most {most:.0f} ms", end=" "
        )
        print(f"(goal: {GOAL_MS:g} ms): {'met' if most <= GOAL_MS else 'missed'}")
        _show_memory(came)
    if together.taken:
        print(f"\n{users} users open their pages in the same moment, {_times(together)}")
        _show_rounds(together)
        forms = together.taken.get(crowd.FORM, [])
        if len(forms) > 1:
            print(f"\nof {users} forms opened in the same moment,", end=" ")
            print(f"half are there after {statistics.median(forms):.0f} ms,", end=" ")
            print(
                f"95 % after {percentile(forms, 95):.0f} ms (no goal: one is made after the other)"
            )
    print(f"errors: {len(found.errors) or 'none'}")
    for error in found.errors[:10]:
        print(f"  {error}")
    if found.refused:
        _show_refused(found)


def _times(rounds: Rounds) -> str:
    number = len(rounds.memory) - 1
    return "once" if number == 1 else f"{number} times"


def _show_rounds(rounds: Rounds) -> None:
    title = "until an answer begins, milliseconds"
    print(f"{title:42} {'number':>8} {'median':>8} {'95 %':>8} {'longest':>8}")
    _show_times([*rounds.taken.items(), ("the hub's event loop is late", rounds.lateness)])
    used = (f"{name} {statistics.median(each):.1f}" for name, each in rounds.processor.items())
    print("processor seconds of a round, medians: " + ", ".join(used))


def _show_times(rows: Iterable[tuple[str, list[float]]]) -> None:
    for what, taken in rows:
        if len(taken) > 1:
            middle, most = statistics.median(taken), percentile(taken, 95)
            print(f"{what:42} {len(taken):8} {middle:8.1f} {most:8.1f} {max(taken):8.1f}")


def _show_memory(found: Rounds) -> None:
    print(f"\n{'after round':16}" + "".join(f"{each:7}" for each in range(len(found.memory))))
    for what in ("hub", "dashboard", "proxy", "database"):
        sizes = (getattr(each, what) / MIB for each in found.memory)
        print(f"{f'{what}, MiB':16}" + "".join(f"{size:7.1f}" for size in sizes))
    print(f"{'connections':16}" + "".join(f"{each.connections:7}" for each in found.memory))
    if len(found.memory) > STEADY_AFTER + 1:
        grown = (found.memory[-1].hub - found.memory[STEADY_AFTER].hub) / MIB
        met = "met" if grown <= GOAL_MIB else "missed"
        print(f"since round {STEADY_AFTER} the hub has grown by {grown:.1f} MiB", end=" ")
        print(f"(goal: {GOAL_MIB:g} MiB): {met}")


def _show_refused(found: Measured) -> None:
    before, after = found.refused
    kept = ", ".join(
        f"{what} {(getattr(after, what) - getattr(before, what)) / 1024:+.0f} kB"
        for what in ("hub", "dashboard", "proxy", "database")
    )
    print(f"\nrefused requests, sent in a minute: {kept}")
    _show_times([("a user by REST, beside them", found.beside_refusals)])
