"""What GPUs did: neither lost nor doubled, thinned by age, and unknown where nobody read it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.gpus.model import GPU
from gpuspawner.usage import history, readings
from gpuspawner.usage.history import DAY, LONG, LONGEST_SECONDS, SHORT, Did, step_of
from gpuspawner.usage.readings import Reading, Readings, reading_of
from gpuspawner.usage.report import Period
from gpuspawner.usage.store import Store

from ..support.usage import EPOCH, Killed, World, killed_after, look

# A day's beginning, and so that of a long span.
START = EPOCH - EPOCH % DAY
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(f"sqlite:///{tmp_path / 'usage.sqlite'}")
    made.open()
    yield made
    made.close()


def busy(
    at: float, percent: int | None = 50, mib: int | None = 1000, gpu: str = "GPU-a"
) -> Reading:
    return Reading(START + at, {gpu: (percent, mib)})


def rows(store: Store) -> list[Any]:
    path = store.url.database
    with sqlite3.connect(str(path)) as connection:
        connection.row_factory = sqlite3.Row
        return connection.execute("SELECT * FROM gpuspawner_history ORDER BY 1, 2, 3").fetchall()


def curve(store: Store, begin: float, end: float, step: int = SHORT) -> dict[int, Did]:
    found = store.curves(Period(START + begin, START + end), step)
    return dict(found.gpus.get("GPU-a", {}))


# ---- what a reading is, and what waits -----------------------------------------------------------


def test_a_shared_gpu_is_read_once_and_an_instance_is_none() -> None:
    slots = [GPU("GPU-a", 0, "A100", 10, 5, 7, kind="shared", part=n, parts=2) for n in (0, 1)]
    divided = GPU("GPU-b", 1, "A100", 10, 5, None, state="mig")
    instance = GPU("MIG-a", 1, "A100", 5, 5, None, kind="1g.10gb", parts=7, parent="GPU-b")
    silent = [GPU("GPU-c", 2, "A100"), GPU(None, 3, "A100", 1, 1, 1)]
    found = reading_of(START, [*slots, divided, instance, *silent])
    assert found == Reading(START, {"GPU-a": (7, 5), "GPU-b": (None, 5)})


def test_what_waits_is_bounded_and_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings, "MAX_WAITING", 3)
    waiting = Readings()
    for number in range(5):
        waiting.add(busy(number))
    assert [each.at - START for each in waiting.batch()] == [2, 3, 4]
    batch = waiting.batch()
    waiting.add(busy(5))
    waiting.written(batch)
    assert [each.at - START for each in waiting.batch()] == [5]


# ---- means, gaps and thinning --------------------------------------------------------------------


def test_a_mean_is_by_time_and_a_gap_is_no_zero(store: Store) -> None:
    # A minute at 100 %, two at 0 %; then nobody reads for a span and more.
    read = [busy(60, 100, 4000), busy(180, 0, 1000), busy(2 * SHORT + 200, 30, None)]
    store.write_history(read, START + 3 * SHORT)
    found = curve(store, 0, 3 * SHORT)
    assert (found[0].used_of, found[0].utilization_percent) == (180, 33)
    assert found[0].memory_used_mib == 2000
    assert 1 not in found
    assert (found[2].used_of, found[2].utilization_percent) == (LONGEST_SECONDS, 30)
    assert found[2].memory_used_mib is None


def test_old_spans_become_long_ones_with_the_same_sums_and_go_at_last(store: Store) -> None:
    read = [busy(at, at % 100) for at in range(30, int(DAY), 600)]
    for at in range(0, len(read), 50):
        store.write_history(read[at : at + 50], START + DAY)
    before = curve(store, 0, DAY, LONG)
    assert {row["seconds"] for row in rows(store)} == {SHORT}
    store.thin_history(START + 10 * DAY, 400)
    assert {row["seconds"] for row in rows(store)} == {LONG}
    after = curve(store, 0, DAY, LONG)
    assert after.keys() == before.keys()
    for number, did in before.items():
        assert astuple(after[number]) == pytest.approx(astuple(did))
    store.thin_history(START + 10 * DAY, 400)
    assert len(rows(store)) == DAY / LONG
    store.thin_history(START + 401 * DAY, 400)
    assert rows(store) == []


def test_what_comes_when_its_time_is_thinned_adds_nothing_to_it(store: Store) -> None:
    now = START + 3 * DAY
    store.write_history([busy(60)], START + 60)
    store.thin_history(now, 400)
    (before,) = rows(store)
    store.write_history([busy(120, 100)], now)
    assert [tuple(row) for row in rows(store)] == [tuple(before)]
    # And where the clock was set back meanwhile.
    store.write_history([busy(120, 100)], START + 120)
    store.thin_history(now, 400)
    assert [tuple(row) for row in rows(store)] == [tuple(before)]


@pytest.mark.parametrize(
    ("days", "ago", "step"),
    [(1, 0, SHORT), (1, 3, LONG), (7, 0, LONG), (30, 0, 7200), (90, 0, 21600), (366, 0, 86400)],
)
def test_a_curve_has_no_more_points_than_a_picture(days: float, ago: float, step: int) -> None:
    end = START + 500 * DAY - ago * DAY
    assert step_of(Period(end - days * DAY, end), START + 500 * DAY) == step
    assert days * DAY / step <= history.MAX_POINTS


def test_who_held_it_is_there_with_part_and_time(store: Store) -> None:
    world = World(store.url.render_as_string(hide_password=False))

    async def run() -> None:
        one, two = world.recorder("one"), world.recorder("two")
        await look(one)
        await look(two)
        world.start("one", "GPU-a#0/2", "ada")
        world.start("two", "GPU-b", "ben")
        for recorder in (one, two):
            await look(recorder)
        world.steady += 600
        world.end(world.boxes[0])
        await look(one)
        one.close()
        two.close()

    asyncio.run(run())
    everything = Period(EPOCH, EPOCH + DAY)
    found = [(each.gpu, each.unit, each.hub, each.user) for each in store.held(everything)]
    assert found == [("GPU-a", "GPU-a#0/2", "one", "ada"), ("GPU-b", "GPU-b", "two", "ben")]
    (lease,) = store.held(everything, ["GPU-a"])
    assert lease.period.end - lease.period.begin == pytest.approx(600)
    assert store.held(Period(EPOCH, EPOCH + 50)) == []


# ---- kills, two hubs and clocks ------------------------------------------------------------------


moves = st.lists(
    st.tuples(
        # Who reads, for how long after the last reading, and what becomes of the transaction.
        st.sampled_from(["one", "two"]),
        st.sampled_from([0.0, 1.0, 15.0, 60.0, 200.0, 2000.0, -30.0, -4000.0, 3 * DAY]),
        st.sampled_from(["written", "written", "lost answer", "killed", "thinned"]),
        st.integers(0, 6),
    ),
    max_size=40,
)


@given(moves)
def test_no_span_has_more_time_than_it_is_long_and_a_repeat_changes_nothing(
    steps: Sequence[tuple[str, float, str, int]],
) -> None:
    with TemporaryDirectory(dir=MEMORY) as folder:
        store = Store(f"sqlite:///{folder}/usage.sqlite")
        store.open()
        waiting = {"one": Readings(), "two": Readings()}
        now = START
        for who, seconds, what, statements in steps:
            now += seconds
            waiting[who].add(Reading(now, {"GPU-a": (40, 100), "GPU-b": (None, 70)}))
            batch, before = waiting[who].batch(), [tuple(row) for row in rows(store)]
            if what == "killed":
                with suppress(Killed), killed(store, statements):
                    store.write_history(batch, now)
                after = [tuple(row) for row in rows(store)]
                store.write_history(batch, now)
                whole = [tuple(row) for row in rows(store)]
                # All of it or nothing.
                assert after in (before, whole)
                waiting[who] = Readings()
                continue
            store.write_history(batch, now)
            if what == "thinned":
                store.thin_history(now, 400)
            if what != "lost answer":
                waiting[who].written(batch)
            once = [tuple(row) for row in rows(store)]
            store.write_history(batch, now)
            if what == "thinned":
                store.thin_history(now, 400)
            assert [tuple(row) for row in rows(store)] == once
            check(rows(store))
        store.close()


def killed(store: Store, statements: int) -> Any:
    recorder: Any = type("OfStore", (), {"store": store})
    return killed_after(recorder.store, statements)


def check(found: Sequence[Any]) -> None:
    for row in found:
        assert 0 <= row["used_of"] <= row["seconds"] + 1e-6
        assert 0 <= row["memory_of"] <= row["seconds"] + 1e-6
        assert row["began"] % row["seconds"] == 0
        assert row["used"] == pytest.approx(0.4 * row["used_of"])
        percent = Did(row["used_of"], row["used"], row["memory_of"], row["memory"])
        assert percent.utilization_percent in (40, None)
        assert percent.memory_used_mib == {"GPU-a": 100, "GPU-b": 70}[row["gpu"]]


def test_a_hub_that_is_killed_and_comes_back_at_once_leaves_no_gap(world: World) -> None:
    whole = play(world, [60.0] * 10)
    assert sum(did.used_of for did in whole.values()) == pytest.approx(600, abs=61)
    again = World(world.url.replace("usage", "again"), gpus=world.gpus, history_days=400)
    cut = play(again, [60.0] * 10, killed_at=5)
    assert {number: did.used_of for number, did in cut.items()} == pytest.approx(
        {number: did.used_of for number, did in whole.items()}, abs=0.1
    )


@pytest.fixture
def world(tmp_path: Path) -> World:
    gpus = [GPU("GPU-a", 0, "A100", 40960, 1024, 80)]
    return World(f"sqlite:///{tmp_path / 'usage.sqlite'}", gpus=gpus, history_days=400)


def play(world: World, waits: Sequence[float], killed_at: int | None = None) -> dict[int, Did]:
    """Have a hub read and write between waits; it is killed before it writes, and comes back."""

    async def run() -> None:
        recorder = world.recorder()
        for number, seconds in enumerate(waits):
            world.steady += seconds
            await recorder._ledger.read()
            if number == killed_at:
                recorder.close()
                recorder = world.recorder()
                continue
            await look(recorder)
        recorder.close()

    asyncio.run(run())
    store = Store(world.url, writes=False)
    period = Period(EPOCH, EPOCH + DAY)
    found = dict(store.curves(period, SHORT).gpus.get("GPU-a", {}))
    store.close()
    return found


def test_it_is_kept_while_nobody_holds_a_gpu_and_nobody_looks(world: World) -> None:
    async def run() -> None:
        recorder = world.recorder()
        await recorder._ledger.servers()
        for _ in range(3):
            world.steady += 60
            # Nobody else has read for a while.
            recorder._ledger.last_view_at -= 61
            await recorder.record()
        recorder.close()

    asyncio.run(run())
    store = Store(world.url, writes=False)
    (found,) = store.curves(Period(EPOCH, EPOCH + DAY), SHORT).gpus["GPU-a"].values()
    store.close()
    assert (found.utilization_percent, found.memory_used_mib) == (80, 1024)


def test_two_hubs_of_one_machine_add_no_time(world: World) -> None:
    async def run() -> None:
        hubs = [world.recorder("one"), world.recorder("two")]
        for _ in range(20):
            for recorder in hubs:
                world.steady += 7.5
                await recorder._ledger.read()
                recorder._history_written_at = None
                await look(recorder)
        for recorder in hubs:
            recorder.close()

    asyncio.run(run())
    store = Store(world.url, writes=False)
    found = store.curves(Period(EPOCH, EPOCH + DAY), SHORT).gpus["GPU-a"]
    store.close()
    assert sum(did.used_of for did in found.values()) <= 400
    assert {did.utilization_percent for did in found.values()} == {80}


def test_where_none_is_to_be_kept_there_is_none(world: World) -> None:
    play(world, [60.0] * 4)
    world.history_days = 0
    assert play(world, [60.0]) == {}


def test_what_could_not_be_written_is_written_later(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        recorder = world.recorder()
        for number in range(10):
            world.steady += 60
            await recorder._ledger.read()
            if number in (3, 4, 5):
                with pytest.raises(Killed), killed_after(recorder.store, 0):
                    await look(recorder)
            else:
                await look(recorder)
        recorder.close()

    caplog.set_level(logging.WARNING)
    asyncio.run(run())
    store = Store(world.url, writes=False)
    found = store.curves(Period(EPOCH, EPOCH + DAY), SHORT).gpus["GPU-a"]
    store.close()
    assert sum(did.used_of for did in found.values()) == pytest.approx(600, abs=61)
