"""When a term ends and when GPUs are idle, as values; clocks that jump, and hubs that were away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import pytest

from gpuspawner.gpus.model import GPU, Node
from gpuspawner.leases import reclaimer
from gpuspawner.leases.clock import Clock, Deadline
from gpuspawner.leases.idleness import STEADY_MEMORY_MIB, Idleness
from gpuspawner.leases.ledger import Ledger
from gpuspawner.leases.reclaimer import Reclaimer
from gpuspawner.leases.term import Term

HOUR = 3600.0
DAY = 24 * HOUR
WARNING = 900.0


@dataclass
class Times:
    """Clocks that a test moves."""

    wall: float = 1_800_000_000.0
    steady: float = 50_000.0
    boot: str = "first"

    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.steady, lambda: self.boot)

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


def term(times: Times, seconds: float = 4 * HOUR) -> Term:
    return Term(Deadline.after(seconds, times.clock()), seconds)


def steps(term: Term, times: Times, seconds: float, every: float = 1.0) -> list[tuple[str, float]]:
    """Return what became due in the next seconds, and after how many of them."""
    found, passed = [], 0.0
    while passed < seconds:
        if step := term.step(WARNING):
            found.append((step, passed))
            if step == "stop":
                break
            term.warn(WARNING)
        times.pass_(every)
        passed += every
    return found


def test_a_term_warns_and_then_stops() -> None:
    times = Times()
    assert steps(term(times), times, 5 * HOUR, 60) == [
        ("warn", 4 * HOUR - WARNING),
        ("stop", 4 * HOUR),
    ]


def test_half_of_a_short_term_is_without_a_warning() -> None:
    times = Times()
    assert steps(term(times, 60), times, HOUR) == [("warn", 30), ("stop", 60)]


@pytest.mark.parametrize("jump", [10 * HOUR, -10 * HOUR, 30 * 365 * 24 * HOUR])
def test_a_clock_that_jumps_changes_no_term(jump: float) -> None:
    times = Times()
    running = term(times)
    times.pass_(HOUR)
    times.wall += jump
    assert running.deadline.remaining == 3 * HOUR
    assert running.until == times.wall + 3 * HOUR  # as people read it from now on
    restarted = Term.restored(running.saved(), times.clock())
    times.wall -= jump / 2
    assert restarted.deadline.remaining == 3 * HOUR
    assert steps(restarted, times, 4 * HOUR, 60) == [
        ("warn", 3 * HOUR - WARNING),
        ("stop", 3 * HOUR),
    ]


def test_after_a_boot_the_wall_clock_tells() -> None:
    times = Times()
    saved = term(times).saved()
    times.pass_(HOUR)
    times.steady, times.boot = 30.0, "second"
    assert Term.restored(saved, times.clock()).deadline.remaining == 3 * HOUR


def test_a_hub_that_was_away_at_the_end_warns_before_it_stops() -> None:
    times = Times()
    saved = term(times).saved()
    times.pass_(9 * HOUR)
    late = Term.restored(saved, times.clock())
    assert steps(late, times, HOUR) == [("warn", 0), ("stop", 300)]


def test_a_warning_that_was_given_counts_after_a_restart() -> None:
    times = Times()
    running = term(times)
    times.pass_(4 * HOUR - WARNING)
    assert running.step(WARNING) == "warn"
    running.warn(WARNING)
    times.pass_(60)
    again = Term.restored(running.saved(), times.clock())
    assert steps(again, times, HOUR) == [("stop", WARNING - 60)]


def test_a_warning_of_which_nobody_could_hear_is_given_anew_after_a_restart() -> None:
    """The hub went away right after it, and came back when the time was over."""
    times = Times()
    running = term(times)
    times.pass_(4 * HOUR - WARNING)
    running.warn(WARNING)
    saved = running.saved()
    times.pass_(2 * HOUR)
    again = Term.restored(saved, times.clock())
    assert steps(again, times, HOUR) == [("warn", 0), ("stop", 300)]


def extended(running: Term, seconds: float, most: float) -> float:
    """Extend a term as far as it may be; return how much that was."""
    added = running.extension(seconds, most)
    running.extend(added)
    return added


def test_an_extension_counts_from_the_end_up_to_what_may_be_left_and_is_warned_about_anew() -> None:
    times = Times()
    running = term(times)
    times.pass_(4 * HOUR - WARNING)
    running.warn(WARNING)
    assert extended(running, 2 * HOUR, DAY) == 2 * HOUR
    assert running.deadline.remaining == 2 * HOUR + WARNING
    assert running.step(WARNING) is None
    assert extended(running, 9 * HOUR, 4 * HOUR) == 2 * HOUR - WARNING
    assert running.deadline.remaining == 4 * HOUR
    # A limit that fell takes nothing away.
    assert running.extension(HOUR, 2 * HOUR) == 0
    assert running.deadline.remaining == 4 * HOUR


def test_an_extension_after_the_end_begins_now() -> None:
    times = Times()
    running = term(times)
    times.pass_(5 * HOUR)
    assert extended(running, HOUR, DAY) == HOUR
    assert running.deadline.remaining == HOUR


@pytest.mark.parametrize(
    ("length", "window", "after"),
    [
        (4 * HOUR, HOUR, 3 * HOUR),
        (HOUR, HOUR, HOUR / 2),
        (4 * HOUR, None, 0),
        (4 * HOUR, 0, 4 * HOUR),
    ],
)
def test_a_term_can_be_extended_near_its_end_only(length, window, after) -> None:
    times = Times()
    running = term(times, length)
    assert running.can_be_extended(window) is (after == 0)
    times.pass_(after - 1)
    assert running.can_be_extended(window) is (after == 0)
    times.pass_(1)
    assert running.can_be_extended(window)
    # Of what was added it is so as well.
    running.extend(length)
    assert running.can_be_extended(window) is (window is None)


def test_who_was_warned_can_extend() -> None:
    times = Times()
    running = term(times)
    running.warn(WARNING)
    assert running.can_be_extended(0)


def gpu(number: int = 0, use: int | None = 0, memory: int | None = 1000) -> GPU:
    return GPU(f"GPU-{number}", number, "A100", 40960, memory, use, state="leased")


def seen(times: Times, *measurements: Any, every: float = 5.0) -> Idleness:
    """Return what comes of measurements, each a list of GPUs."""
    idleness = Idleness(times.clock())
    for gpus in measurements:
        idleness.add_measurement(gpus, 5)
        times.pass_(every)
    return idleness


def test_gpus_that_do_nothing_are_warned_about_and_then_stopped() -> None:
    times = Times()
    idleness = seen(times, *[[gpu(0), gpu(1, use=5)]] * 13)
    assert idleness.step(70, True) is None
    assert idleness.step(60, True) == "warn"
    idleness.warn(30)
    assert idleness.step(60, True) is None
    times.pass_(30)
    assert idleness.step(60, True) == "stop"
    assert idleness.step(60, False) is None  # nobody waits, where that is the rule
    # Somebody comes hours later: what was said before the queue was empty is no warning any more.
    assert idleness.step(60, True) == "warn"


IDLE = [gpu(0), gpu(1)]
WORKS = {
    "one of them computes": [gpu(0), gpu(1, use=6)],
    "its memory grows": [gpu(0), gpu(1, memory=1001 + STEADY_MEMORY_MIB)],
    "its use isn't known": [gpu(0), gpu(1, use=None)],
    "its memory isn't known": [gpu(0), gpu(1, memory=None)],
    "NVML says nothing": [],
}


@pytest.mark.parametrize("measured", WORKS.values(), ids=WORKS)
def test_what_works_or_cannot_be_measured_is_not_idle(measured: list[GPU]) -> None:
    times = Times()
    idleness = seen(times, *[IDLE] * 20, measured, IDLE)
    assert idleness.step(60, True) is None


@pytest.mark.parametrize(
    "case", ["its use isn't known", "its memory isn't known", "NVML says nothing"]
)
def test_what_cannot_be_measured_is_never_idle(case: str) -> None:
    assert seen(Times(), *[WORKS[case]] * 1000).step(60, True) is None


def test_memory_that_fell_and_grows_again_is_growth() -> None:
    times = Times()
    idleness = seen(times, *[[gpu(memory=9000)]] * 20, [gpu(memory=100)], [gpu(memory=5000)])
    assert idleness.step(60, True) is None


def test_memory_that_stays_after_it_grew_is_idle_in_the_end() -> None:
    times = Times()
    idleness = seen(times, [gpu()], *[[gpu(memory=30000)]] * 20)
    assert idleness.step(60, True) == "warn"


def test_work_and_a_word_of_the_user_end_a_warning() -> None:
    times = Times()
    idleness = seen(times, *[IDLE] * 20)
    idleness.warn(30)
    idleness.add_measurement(WORKS["one of them computes"], 5)
    times.pass_(60)
    assert idleness.step(60, True) is None
    idleness = seen(times, *[IDLE] * 20)
    idleness.warn(30)
    idleness.reset()
    times.pass_(60)
    assert idleness.step(60, True) is None


class TwoGPUs:
    """A server with two GPUs that is seen to three times."""

    units = frozenset({"GPU-0", "GPU-1"})
    is_measured = True

    def __init__(self) -> None:
        self.idleness = Idleness(Times().clock())
        self.times_left = 3

    async def enforce(self) -> None:
        self.times_left -= 1

    def measure(self, gpus: Collection[GPU]) -> None:
        self.idleness.add_measurement(gpus, 5)


@pytest.mark.parametrize(
    ("seen", "idle"), [(["GPU-0", "GPU-1"], True), (["GPU-0"], False), ([], False), (None, False)]
)
@pytest.mark.parametrize("first", ["GPU-0", "GPU-0#1/8"])
async def test_a_server_is_idle_only_where_all_its_gpus_can_be_read(
    monkeypatch: pytest.MonkeyPatch, seen: list[str] | None, idle: bool, first: str
) -> None:
    """It was idle before; None: NVML can't be read at all.

    Also who was given a GPU as it isn't shared any more.
    """
    monkeypatch.setattr(reclaimer, "MEASURE_SECONDS", 0)
    monkeypatch.setattr(reclaimer, "TICK_SECONDS", 0)
    server = TwoGPUs()
    server.units = frozenset({first, "GPU-1"})
    server.idleness.since = 0.0

    async def nvml() -> tuple[Node, ...]:
        if seen is None:
            raise OSError("NVML is away")
        return (Node(gpus=tuple(GPU(uuid, 0, "A100", 40960, 0, 0) for uuid in seen)),)

    async def listing() -> list[Any]:
        return []

    ledger = Ledger(listing, nvml)
    servers = Reclaimer(
        ledger, lambda: [server] if server.times_left > 0 else [], logging.getLogger("reclaim")
    )
    servers.start()
    await asyncio.wait_for(servers._task, 20)
    assert (server.idleness.since is not None) == idle
