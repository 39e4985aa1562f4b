"""The cost of open pages for the hub: the times of its other requests, and reads of NVML.

In turns, no page is open, one of each, or 200 spawn pages and 20 dashboards. The host's state
changes all the time, so that pages have to be updated. The pages are another process on the same
machine, as browsers would be; their load counts against the hub.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import multiprocessing
import os
import statistics
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tornado.httpclient import AsyncHTTPClient, HTTPRequest

from gpuspawner.choices.form_stream import HEADER
from gpuspawner.simulation.host import SimulatedHost
from tests.support import dashboards
from tests.support.hubs import Hub

from .one_hub import one_hub

FORMS, BOARDS = 200, 20
NONE, ONE, MANY = "no page open", "a form, a dashboard", "many forms, dashboards"
# The intervals of requests, and of changes of a GPU, in seconds.
PROBE_SECONDS, CHANGE_SECONDS = 0.1, 2.0
# The goal: by how much the 95th percentile of other requests may be longer, in milliseconds.
GOAL_MS = 10.0
# As the dashboard's script does.
BOARD_SECONDS = 4.0


@dataclass
class Seen:
    """The measurements for a number of open pages: milliseconds per request, reads per second."""

    milliseconds: list[float] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Pages:
    """The pages to open.

    Args:
        url: the hub's URL.
        forms: the cookies of each spawn page's user.
        boards: the cookies of each dashboard's user.
    """

    url: str
    forms: list[str]
    boards: list[str]


def main(arguments: list[str] | None = None) -> int:
    """Run the rounds and print their results; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench pages", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20, help="of each round, for each kind")
    parser.add_argument("--forms", type=int, default=FORMS)
    parser.add_argument("--dashboards", type=int, default=BOARDS)
    options = parser.parse_args(arguments)
    with one_hub(8, [dashboards.lines()]) as (host, hub):
        pages = _log_in(hub, options.forms, options.dashboards)
        show(measure(hub, host, pages, options.rounds, options.seconds))
    return 0


def _log_in(hub: Hub, forms: int, boards: int) -> Pages:
    cookies = []
    for number in range(max(forms, boards)):
        if number % 50 == 0:
            print(f"logging in, {number} of {max(forms, boards)}", file=sys.stderr)
        session = hub.log_in(f"user{number}")
        if number < boards:
            assert session.get(f"{hub.url}/services/gpus/").ok
        cookies.append("; ".join(f"{each.name}={each.value}" for each in session.cookies))
    return Pages(hub.url, cookies[:forms], cookies[:boards])


def measure(
    hub: Hub, host: SimulatedHost, pages: Pages, rounds: int, seconds: float
) -> dict[str, Seen]:
    """Return the number of open pages, in words -> the measurements."""
    kinds = {
        NONE: replace(pages, forms=[], boards=[]),
        ONE: replace(pages, forms=pages.forms[:1], boards=pages.boards[:1]),
        MANY: pages,
    }
    seen = {kind: Seen() for kind in kinds}
    with _changing(host):
        for number in range(1, rounds + 1):
            for kind, opened in kinds.items():
                print(f"round {number} of {rounds}, {kind}", file=sys.stderr)
                with _opened(opened), Reads(host.state_path) as reads:
                    seen[kind].milliseconds += _probe(hub, seconds)
                    seen[kind].reads.append(reads.count() / seconds)
    return seen


def _probe(hub: Hub, seconds: float) -> list[float]:
    """Send requests that don't depend on pages, for `seconds`; return the milliseconds of each."""
    taken = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.perf_counter()
        assert hub.api("GET", "/users/user0").ok
        taken.append(1000 * (time.perf_counter() - began))
        time.sleep(PROBE_SECONDS)
    return taken


@contextmanager
def _changing(host: SimulatedHost) -> Iterator[None]:
    """Start and end a foreign program on a GPU, periodically, in this context."""
    over = threading.Event()

    def change() -> None:
        used = 0
        while not over.wait(CHANGE_SECONDS):
            used = 0 if used else 20_000
            host.change(
                lambda state, used=used: replace(  # type: ignore[misc]
                    state, gpus=(replace(state.gpus[0], memory_used_mib=used), *state.gpus[1:])
                )
            )

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# -- The pages -------------------------------------------------------------------------------------


@contextmanager
def _opened(pages: Pages) -> Iterator[None]:
    """Open pages in this context; it begins once each has received an update."""
    if not pages.forms and not pages.boards:
        yield
        return
    context = multiprocessing.get_context("spawn")
    told = context.Value("i", 0)
    browsers = context.Process(target=_browse, args=(pages, told), daemon=True)
    browsers.start()
    try:
        while told.value < len(pages.forms) + len(pages.boards):
            assert browsers.is_alive()
            time.sleep(0.1)
        yield
    finally:
        browsers.terminate()
        browsers.join()


def _browse(pages: Pages, told: Any) -> None:
    number = len(pages.forms) + len(pages.boards)
    AsyncHTTPClient.configure("tornado.simple_httpclient.SimpleAsyncHTTPClient", max_clients=number)

    async def all_of_them() -> None:
        forms = [_form(pages.url, cookies, told) for cookies in pages.forms]
        await asyncio.gather(*forms, *(_board(pages.url, each, told) for each in pages.boards))

    asyncio.run(all_of_them())


async def _form(url: str, cookies: str, told: Any) -> None:
    """Be one open spawn page."""
    heard = False

    def hear(_: bytes) -> None:
        nonlocal heard
        if not heard:
            heard = True
            told.value += 1

    headers = {
        "Cookie": cookies,
        "Accept": "text/event-stream",
        HEADER: quote(json.dumps({"gpus": 1})),
    }
    while True:
        with suppress(OSError):
            await AsyncHTTPClient().fetch(
                HTTPRequest(
                    f"{url}/hub/spawn", headers=headers, streaming_callback=hear, request_timeout=0
                ),
                raise_error=False,
            )
        await asyncio.sleep(0.5)


async def _board(url: str, cookies: str, told: Any) -> None:
    """Be one open dashboard."""
    first = True
    while True:
        request = HTTPRequest(f"{url}/services/gpus/live", headers={"Cookie": cookies})
        answer = await AsyncHTTPClient().fetch(request, raise_error=False)
        if first and answer.code == 200:
            first = False
            told.value += 1
        await asyncio.sleep(BOARD_SECONDS)


# -- What they cost --------------------------------------------------------------------------------


class Reads:
    """Counts the calls of the simulated driver by all processes: each opens the state file.

    ref: inotify(7)
    """

    _IN_OPEN = 0x20
    # struct inotify_event: its name comes after it, with as many bytes as it says last.
    _EVENT = struct.Struct("iIII")

    def __init__(self, path: Path | str) -> None:
        # A change of the state replaces the file.
        self._folder, name = os.path.split(os.fsencode(path))
        self._name = name

    def __enter__(self) -> Reads:
        library = ctypes.CDLL(None, use_errno=True)
        self._file = library.inotify_init1(os.O_NONBLOCK)
        if self._file < 0 or library.inotify_add_watch(self._file, self._folder, self._IN_OPEN) < 0:
            raise OSError(ctypes.get_errno(), "inotify")
        self._seen = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        return self

    def _read(self) -> None:
        # The kernel's queue has room for some thousand events.
        while not self._over.wait(0.05):
            with suppress(BlockingIOError):
                while events := os.read(self._file, 1 << 16):
                    self._seen += sum(name == self._name for name in self._names(events))

    def _names(self, events: bytes) -> Iterator[bytes]:
        while events:
            *_, length = self._EVENT.unpack_from(events)
            end = self._EVENT.size + length
            yield events[self._EVENT.size : end].rstrip(b"\0")
            events = events[end:]

    def count(self) -> int:
        """Return the number of calls so far."""
        return self._seen

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        os.close(self._file)


def percentile(values: list[float], percent: int) -> float:
    """Return the percentile of some values."""
    return statistics.quantiles(values, n=100)[percent - 1]


def show(seen: Mapping[str, Seen]) -> None:
    """Print the table."""
    name = "the hub's other requests, milliseconds"
    print(f"{name:42} {'median':>8} {'95 %':>8} {'NVML/s':>8}")
    for kind, each in seen.items():
        middle, most = statistics.median(each.milliseconds), percentile(each.milliseconds, 95)
        print(f"{kind:42} {middle:8.1f} {most:8.1f} {statistics.mean(each.reads):8.1f}")
    none, one, many = (seen[kind] for kind in (NONE, ONE, MANY))
    moved = percentile(many.milliseconds, 95) - percentile(none.milliseconds, 95)
    met = "met" if moved < GOAL_MS else "missed"
    print(f"\nthe 95 % beside many pages are {moved:.1f} ms above those beside none", end=" ")
    print(f"(goal: less than {GOAL_MS:g} ms): {met}")
    ratio = statistics.mean(many.reads) / statistics.mean(one.reads)
    print(f"NVML, many pages : one of each  {ratio:.2f}")
