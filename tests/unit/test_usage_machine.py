"""Leases' time is neither lost nor doubled, whatever is killed between any two statements.

Two hubs share an engine and a SQLite file. Hypothesis decides who starts and ends, when a hub
looks, is killed or comes back, and when the wall clock is set. The recorders, with the ledger that
they listen to, are the real ones.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from gpuspawner.gpus.unit_names import exclude_each_other
from gpuspawner.usage.recorder import Recorder

from ..support.usage import Killed, World, held, killed_after, look

HUBS = ("one", "two")
UNITS = ("GPU-a", "GPU-b", "GPU-b#0/2", "GPU-b#1/2")
# What floating point makes of sums of the clocks' times.
CLOSE = 1e-3
# The most statements of one transaction here.
STATEMENTS = 40
# Where there is one: a disk takes its time for each commit.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


class Usage:
    """Two hubs, their servers, and what the store says of them.

    Args:
        folder: for the store.
    """

    def __init__(self, folder: str) -> None:
        self.world = World(f"sqlite:///{Path(folder) / 'usage.sqlite'}")
        self.loop = asyncio.new_event_loop()
        self.hubs: dict[str, Recorder] = {}
        self.was_set = False
        # Servers that a hub has written.
        self.written: set[str] = set()
        for hub in HUBS:
            self.come_back(hub)
            self.look(hub)

    def close(self) -> None:
        for hub in list(self.hubs):
            self.kill(hub)
        self.loop.close()

    # -- What happens ----------------------------------------------------------------------------

    def wait(self, seconds: float) -> None:
        self.world.steady += seconds

    def set_clock(self, seconds: float) -> None:
        self.world.shift += seconds
        self.was_set = True

    def start(self, hub: str, unit: str, tells: bool) -> None:
        running = [box.unit for box in self.world.boxes if box.over is None]
        if exclude_each_other(running, [unit]):
            return
        self.world.steady += 0.1
        box = self.world.start(hub, unit)
        if tells and hub in self.hubs:
            self.hubs[hub].began(self.world.record_of(box))

    def end(self, unit: str, is_listed: bool) -> None:
        self.world.steady += 0.1
        for box in self.world.boxes:
            if box.over is None and exclude_each_other([box.unit], [unit]):
                self.world.end(box, 137, is_listed)

    def remove_what_has_ended(self) -> None:
        for box in self.world.boxes:
            box.is_listed = box.is_listed and box.over is None

    def remember(self, events: bool) -> None:
        self.world.events = events

    def look(self, hub: str, statements: int | None = None, goes_on: bool = True) -> None:
        """Look and write; the process ends before a statement, or only the transaction does."""
        recorder = self.hubs.get(hub)
        if recorder is None:
            return
        try:
            with killed_after(recorder.store, statements):
                self.loop.run_until_complete(look(recorder))
        except Killed:
            if not goes_on:
                self.kill(hub)
        else:
            listed = {box.id for box in self.world.boxes if box.hub == hub and box.is_listed}
            self.written |= listed
        self.check()

    def lose_answer(self, hub: str) -> None:
        """Look and write; the transaction is committed, and the hub never hears of it."""
        if recorder := self.hubs.get(hub):
            sightings = recorder._sightings
            sightings.written = lambda batch: None  # type: ignore[method-assign]
            self.look(hub)
            del sightings.written

    def kill(self, hub: str) -> None:
        if recorder := self.hubs.pop(hub, None):
            recorder.close()

    def come_back(self, hub: str) -> None:
        if hub not in self.hubs:
            self.hubs[hub] = self.world.recorder(hub)

    # -- What holds ------------------------------------------------------------------------------

    def check(self) -> None:
        """No GPU has more time than there was, and no server has two rows, or more than its own."""
        if not Path(self.world.url.removeprefix("sqlite:///")).exists():
            return
        found, now = held(self.world.url), self.world.steady
        sums: dict[str, Any] = defaultdict(Fraction)
        spans = []
        for row in found:
            sums[row["gpu"]] += Fraction(row["part"], row["of"]) * Fraction(row["seconds"])
            assert 0 <= row["seconds"] <= row["until_steady"] <= now + CLOSE
            spans.append((row["unit"], row["until_steady"] - row["seconds"], row["until_steady"]))
        assert all(each <= now + CLOSE for each in sums.values())
        for number, (unit, began, until) in enumerate(spans):
            for other, other_began, other_until in spans[:number]:
                both = min(until, other_until) - max(began, other_began)
                assert both <= CLOSE or not exclude_each_other([unit], [other])
        boxes = {box.id: box for box in self.world.boxes}
        assert len({row["server_id"] for row in found}) == len(found)
        for row in [] if self.was_set else found:
            box = boxes[row["server_id"]]
            assert row["seconds"] <= (now if box.over is None else box.over) - box.began + CLOSE
            assert row["began"] == pytest.approx(box.started, abs=CLOSE)

    def come_to_an_end(self) -> None:
        """At last both hubs are there, everything ends, and each server has a row of its time."""
        for hub in HUBS:
            self.come_back(hub)
            self.look(hub)
        running = [box for box in self.world.boxes if box.over is None]
        there = {box.id for box in self.world.boxes if box.is_listed}
        self.world.steady += 20
        self.world.events = True
        for box in running:
            self.world.end(box)
        for hub in HUBS:
            self.look(hub)
        found = {row["server_id"]: row for row in held(self.world.url)}
        assert all(row["is_over"] and row["why"] for row in found.values())
        assert there | self.written <= found.keys()
        for box in [] if self.was_set else running:
            assert found[box.id]["seconds"] == pytest.approx(box.seconds, abs=CLOSE)
        for box in self.world.boxes:
            if box.over is not None and box.is_listed and not self.was_set:
                assert found[box.id]["seconds"] == pytest.approx(box.seconds, abs=CLOSE)


def _step(name: str, *arguments: Any) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(st.just(name), *arguments)


hubs, units = st.sampled_from(HUBS), st.sampled_from(UNITS)
often = [
    _step("start", hubs, units, st.booleans()),
    _step("end", units, st.booleans()),
    _step("look", hubs),
]
usual = [
    _step("wait", st.sampled_from([0.3, 2.0, 15.0, 4000.0])),
    _step("look", hubs, st.integers(0, STATEMENTS), st.booleans()),
    _step("lose_answer", hubs),
    _step("kill", hubs),
    _step("come_back", hubs),
]
rare = [_step("remove_what_has_ended"), _step("remember", st.booleans())]
clock = [_step("set_clock", st.sampled_from([-86400.0, -40.0, -1.0, 3.0, 3600.0, 4e7]))]


def play(steps: Iterable[tuple[Any, ...]]) -> None:
    with TemporaryDirectory(dir=MEMORY) as folder:
        usage = Usage(folder)
        try:
            for name, *arguments in steps:
                getattr(usage, name)(*arguments)
            usage.come_to_an_end()
        finally:
            usage.close()


EXAMPLES = settings(max_examples=60, deadline=None, phases=(Phase.explicit, Phase.generate))


# When the server started is known only after a transaction whose answer was lost.
LEARNT_LATER = [
    ("remember", False),
    ("start", "one", "GPU-a", True),
    ("end", "GPU-a", False),
    ("lose_answer", "one"),
    ("remember", True),
    ("look", "one"),
]

# The next process never asks when it started, as the store has it, and then can't be told.
FORGOTTEN = [
    ("start", "one", "GPU-a", True),
    ("look", "one"),
    ("kill", "one"),
    ("come_back", "one"),
    ("look", "one"),
    ("end", "GPU-a", False),
    ("remember", False),
    ("lose_answer", "one"),
    ("look", "one"),
]

orders = st.lists(st.one_of(*often * 3, *usual * 2, *rare), min_size=20, max_size=60)


@settings(EXAMPLES, max_examples=8)
@example(LEARNT_LATER)
@example(FORGOTTEN)
@given(orders)
def test_no_time_is_lost_or_doubled_by_a_few_orders_of_kills(steps: list[Any]) -> None:
    play(steps)


@pytest.mark.thorough
@settings(EXAMPLES, max_examples=300)
@given(orders)
def test_no_time_is_lost_or_doubled_whatever_is_killed(steps: list[Any]) -> None:
    play(steps)


# Between an end and the next start on the same GPU, and nobody looks.
SET_BACK = [
    ("start", "one", "GPU-a", True),
    ("look", "one"),
    ("wait", 15.0),
    ("end", "GPU-a", False),
    ("set_clock", -40.0),
    ("wait", 2.0),
    ("start", "one", "GPU-a", True),
    ("wait", 15.0),
    ("look", "one"),
]
SET_BACK_OF_TWO = [
    *SET_BACK[:-3],
    ("start", "two", "GPU-a", True),
    ("wait", 15.0),
    ("look", "two"),
    ("look", "one"),
]

# Between a start and the next look.
SET_FORWARD = [
    ("look", "one"),
    ("start", "one", "GPU-a", False),
    ("set_clock", 4e7),
    ("look", "one"),
]


@EXAMPLES
@example(SET_FORWARD)
@example(SET_BACK)
@example(SET_BACK_OF_TWO)
@given(st.lists(st.one_of(*often * 3, *usual, *rare, *clock * 2), min_size=20, max_size=60))
def test_a_clock_that_is_set_makes_no_time(steps: list[Any]) -> None:
    play(steps)
