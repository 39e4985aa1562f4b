"""The usage: what the store keeps, gives out, forgets and sums up."""

from __future__ import annotations

import asyncio
import csv
import io
import itertools
import json
import logging
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from traitlets import TraitError

from gpuspawner.__main__ import main
from gpuspawner.gpus.model import GPU
from gpuspawner.leases.clock import Moment
from gpuspawner.leases.labels import LABEL_COURSE
from gpuspawner.leases.server_run import ServerRun
from gpuspawner.spawner import GPUSpawner
from gpuspawner.usage import database, endings, report
from gpuspawner.usage.report import Period, Scope
from gpuspawner.usage.schema import PREFIX, VERSION_TABLE, metadata
from gpuspawner.usage.sightings import sample_of
from gpuspawner.usage.spans import LONGEST_UNSEEN_SECONDS, Span, begin
from gpuspawner.usage.store import Store, StoreError

from ..support.usage import EPOCH, Killed, World, killed_after, look, rows

HOUR = 3600.0
RECORDED = Path(__file__).parent / "recorded" / "usage-0001.sql"
ALL = Period(0, 1e10)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(f"sqlite:///{tmp_path / 'usage.sqlite'}")


def play(world: World, *steps: Any) -> None:
    """Have a hub look between steps: seconds to wait, or what is done."""

    async def run() -> None:
        recorder = world.recorder()
        await look(recorder)
        for step in steps:
            if callable(step):
                step()
            else:
                world.steady += step
            await look(recorder)
        recorder.close()

    asyncio.run(run())


def sums(world: World, by: str, period: Period = ALL, **scope: Any) -> dict[Any, report.Sums]:
    store = Store(world.url, writes=False)
    found, _ = store.report(period, by, Scope(**scope))
    store.close()
    return {row.name: row for row in found}


def ended(world: World, number: int = -1, exit_code: int = 0) -> Any:
    return lambda: world.end(world.boxes[number], exit_code)


def test_sums_are_by_whoever_and_whatever_a_lease_was_for(world: World) -> None:
    world.gpus = [GPU("GPU-a", 0, "A100"), GPU("GPU-b", 1, "Tesla T4")]
    play(
        world,
        lambda: world.start("hub", "GPU-a", "ada", of=["ml", "phd"], waited=120),
        lambda: world.start("hub", "GPU-b#0/4", "ben", of=["ml"], **{LABEL_COURSE: "cv101"}),
        HOUR,
        ended(world, 0),
        HOUR,
        ended(world, 1),
    )
    by_user = sums(world, "user")
    assert by_user["ada"].gpu_hours == pytest.approx(1)
    assert by_user["ben"].gpu_hours == pytest.approx(2 / 4)
    assert (by_user["ada"].wait_mean_seconds, by_user["ada"].wait_longest_seconds) == (120, 120)
    hours = {by: {k: v.gpu_hours for k, v in sums(world, by).items()} for by in report.DIMENSIONS}
    assert hours["group"] == {"ml": pytest.approx(1.5), "phd": pytest.approx(1)}
    assert hours["course"] == {None: pytest.approx(1), "cv101": pytest.approx(0.5)}
    assert hours["model"] == {"A100": pytest.approx(1), "Tesla T4": pytest.approx(0.5)}
    assert hours["image"] == {"pytorch": pytest.approx(1.5)}
    # Of the first half of an hour half of it, and no wait, which was of the hour's beginning.
    half = Period(EPOCH + 100 + HOUR / 2, EPOCH + 100 + HOUR)
    assert sums(world, "user", half)["ada"].gpu_hours == pytest.approx(0.5)
    assert sums(world, "user", half)["ada"].wait_mean_seconds is None
    assert sums(world, "user", Period(0, EPOCH)) == {}
    # Its days add up to it.
    store = Store(world.url, writes=False)
    days = store.over_time(Period(EPOCH - 4 * 86400, EPOCH + 4 * 86400), Scope())
    assert sum(row.gpu_hours for _, row in days) == pytest.approx(1.5)
    month = report.spans(Period(EPOCH + 100, EPOCH + 100 + HOUR))[0]
    assert store.over_time(month, Scope()) == [(month, store.report(month, "user", Scope())[1])]
    store.close()
    # By whom it is asked.
    assert set(sums(world, "user", user="ben")) == {"ben"}
    assert sums(world, "user", hub="another") == {}


def test_a_server_that_starts_again_before_its_end_was_written_has_two_leases(world: World) -> None:
    async def run() -> None:
        recorder = world.recorder()
        await look(recorder)
        box = world.start("hub")
        world.steady += 100
        await look(recorder)
        world.steady += 10
        world.end(box, is_listed=True)
        with pytest.raises(Killed), killed_after(recorder.store, 0):
            await look(recorder)
        world.steady += 1000
        box.over = box.ended = None
        box.began, box.started = world.steady, world.wall
        world.steady += 50
        await look(recorder)
        recorder.close()

    asyncio.run(run())
    assert [(row.seconds, row.is_over) for row in rows(world.url)] == [
        (pytest.approx(110), True),
        (pytest.approx(50), False),
    ]


def test_what_was_held_and_not_used_is_known_where_it_can_be_measured(world: World) -> None:
    def does(percent: int | None, mib: int | None = 1000) -> Any:
        return lambda: setattr(
            world, "gpus", [GPU("GPU-a", 0, "A100", 4000, mib, percent, kind="gpu")]
        )

    steps: list[Any] = [does(90, 3000), lambda: world.start("hub")]
    play(world, *steps)
    recorder = world.recorder()

    async def sample(percent: int | None, mib: int | None) -> None:
        does(percent, mib)()
        world.steady += 60
        await recorder._ledger.read()
        await look(recorder)

    async def run() -> None:
        await look(recorder)
        for percent, mib in ((80, 3000), (0, 1000), (None, None)):
            await sample(percent, mib)

    asyncio.run(run())
    recorder.close()
    (row,) = rows(world.url)
    assert (row.measured, row.idle) == (120, 60)
    assert row.used / row.used_of == pytest.approx(0.4)
    assert (row.memory_of, row.memory, row.memory_peak) == (120, 60 * 4000, 3000)
    found = sums(world, "user")["ada"]
    assert found.idle_gpu_hours == pytest.approx(60 / HOUR)
    assert found.utilization_percent == pytest.approx(40)


def test_what_cannot_be_measured_is_unknown_and_never_nothing(world: World) -> None:
    play(world, lambda: world.start("hub"), 60.0, ended(world))
    (row,) = rows(world.url)
    assert [row.measured, row.idle, row.used, row.memory, row.memory_peak] == [None] * 5
    found = sums(world, "user")["ada"]
    assert found.gpu_hours > 0
    assert found.idle_gpu_hours is found.utilization_percent is found.memory_peak_mib is None
    assert json.loads(json.dumps(report.as_json([found])))[0]["idle_gpu_hours"] is None


def test_a_part_of_a_gpu_has_no_use_of_its_own_but_that_nobody_uses_it() -> None:
    slot = GPU("GPU-a", 0, "A100", 100, 90, 0, kind="shared", part=0, parts=4)
    assert sample_of([slot], 1, 1, 5).is_idle is True
    assert sample_of([slot], 1, 1, 5).used is sample_of([slot], 1, 1, 5).memory_mib is None
    instance = GPU("MIG-a", 0, "A100", 100, 90, None, kind="1g.10gb", parts=7, parent="GPU-a")
    found = sample_of([instance], 1, 1, 5)
    assert (found.is_idle, found.used, found.memory_mib) == (None, None, 90)
    busy, quiet = (GPU(f"GPU-{n}", n, "A100", 100, 10, n) for n in (50, 0))
    found = sample_of([busy, quiet], 1, 1, 5)
    assert (found.is_idle, found.used, found.memory_mib) == (False, 0.25, 20)


@pytest.mark.parametrize(
    ("noted", "run", "why"),
    [
        (endings.IDLE, ServerRun(1, 2, 137), endings.IDLE),
        ("", ServerRun(1, 2, 137, True), endings.MEMORY),
        ("", ServerRun(1, 2, 137), endings.KILLED),
        ("", ServerRun(1, 2, 0), endings.EXITED),
        ("", ServerRun(1), endings.VANISHED),
        ("", None, endings.VANISHED),
    ],
)
def test_why_a_lease_ended(noted: str, run: ServerRun | None, why: str) -> None:
    assert endings.why_of(noted, run) == why


def test_why_a_hub_ends_a_lease_is_kept_though_it_is_killed_before_the_end(world: World) -> None:
    async def run() -> None:
        recorder = world.recorder()
        await look(recorder)
        world.start("hub")
        await look(recorder)
        recorder.note_why("box-0", endings.TIME)
        recorder.note_why("box-0", endings.HUB)
        await look(recorder)
        recorder.close()
        world.end(world.boxes[0], 143)
        recorder = world.recorder()
        await look(recorder)
        recorder.close()

    asyncio.run(run())
    assert [(row.why, row.is_over) for row in rows(world.url)] == [(endings.TIME, True)]


def test_what_has_ended_before_there_was_a_store_is_not_in_it(world: World) -> None:
    box = world.start("hub")
    world.end(box, is_listed=True)
    play(world, 10.0)
    assert rows(world.url) == []


def test_a_reboot_with_a_wrong_clock_makes_no_enormous_lease() -> None:
    span = Span(1000.0, 50.0, "one", 950.0)
    wrong = Moment(4e9, 20.0, "two")
    assert span.ended_at(4e9, wrong).seconds == 50
    assert span.ended_at(10.0, wrong).seconds == 50
    assert span.ended_at(1100.0, Moment(1200.0, 20.0, "two")).seconds == 100
    assert begin(4e9, wrong, Moment(1000.0, 900.0, "one")).seconds == 0
    began = begin(4e9 - 15, wrong, Moment(1000.0, 900.0, "one"))
    assert 0 <= wrong.steady - began.until_steady <= LONGEST_UNSEEN_SECONDS


# ---- retention, giving out and forgetting --------------------------------------------------------


def test_a_user_s_leases_are_given_out_and_removed_and_no_other_s(world: World, capsys) -> None:
    play(
        world,
        lambda: world.start("hub", "GPU-a", "ada", of=["ml"]),
        HOUR,
        ended(world),
        lambda: world.start("hub", "GPU-b", "ben"),
        lambda: world.start("hub", "GPU-a", "ada"),
        1.0,
    )
    db = ["usage", "--db", world.url]
    assert main([*db, "--give-out", "ada"]) == 0
    given = json.loads(capsys.readouterr().out)
    assert [each["user"] for each in given] == ["ada", "ada"]
    assert given[0]["groups"] == ["ml"]
    assert given[0]["units"][0]["gpu"] == "GPU-a"
    assert main([*db, "--forget", "ada", "--yes"]) == 0
    assert "1 stay, as their servers run" in capsys.readouterr().out
    assert [(row.user, row.is_over) for row in rows(world.url)] == [("ben", False), ("ada", False)]
    with sqlite3.connect(world.url.removeprefix("sqlite:///")) as connection:
        for table in ("units", "groups"):
            ids = f"SELECT id FROM {PREFIX}leases"
            query = f"SELECT count(*) FROM {PREFIX}{table} WHERE lease NOT IN ({ids})"
            assert connection.execute(query).fetchone() == (0,)
    assert main([*db, "--forget", "eve", "--yes"]) == 1
    assert "nothing is kept of eve" in capsys.readouterr().err


def test_nobody_is_forgotten_without_a_yes(world: World, capsys, monkeypatch) -> None:
    play(world, lambda: world.start("hub"), 5.0, ended(world))
    monkeypatch.setattr("builtins.input", lambda question: "")
    assert main(["usage", "--db", world.url, "--forget", "ada"]) == 0
    assert "they stay" in capsys.readouterr().out
    assert len(rows(world.url)) == 1


def test_what_was_forgotten_does_not_come_back_with_its_container(world: World) -> None:
    play(world, lambda: world.start("hub"), 5.0, lambda: world.end(world.boxes[0], is_listed=True))
    store = Store(world.url)
    assert store.forget("ada") == (1, 0)
    store.close()
    play(world, 5.0)
    assert rows(world.url) == []


def test_what_is_too_old_goes(world: World) -> None:
    world.retention_days = 30
    play(world, lambda: world.start("hub"), 5.0, ended(world), lambda: world.start("hub", "GPU-b"))
    world.steady += 31 * 86400
    play(world, 1.0)
    assert [(row.server_id, row.is_over) for row in rows(world.url)] == [("box-1", False)]


# ---- the database --------------------------------------------------------------------------------


def test_only_the_hub_s_account_can_read_the_file(world: World) -> None:
    play(world)
    path = Path(world.url.removeprefix("sqlite:///"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_migrations_make_what_the_code_knows(world: World) -> None:
    store = Store(world.url)
    store.open()
    with store.engine.begin() as connection:
        options = {"version_table": VERSION_TABLE, "target_metadata": metadata}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []
    store.close()


def test_a_store_of_the_first_revision_is_brought_up_to_date(world: World) -> None:
    path = Path(world.url.removeprefix("sqlite:///"))
    with sqlite3.connect(path) as connection:
        connection.executescript(RECORDED.read_text())
    store = Store(world.url)
    store.open()
    with store.engine.begin() as connection:
        assert database.revision_of(connection) == database.newest_revision()
    store.close()
    found = sums(world, "user")
    assert {name: round(row.gpu_hours, 3) for name, row in found.items()} == {
        "ada": 2.0,
        "ben": 0.5,
    }
    world.steady = 9000
    play(world, lambda: world.start("hub"))
    assert len(rows(world.url)) == 3


@pytest.mark.parametrize("level", [logging.NOTSET, logging.INFO])
def test_alembic_is_heard_by_who_asks_for_it(
    world: World, caplog: pytest.LogCaptureFixture, level: int
) -> None:
    logger = logging.getLogger("alembic")
    before = logger.level
    caplog.set_level(logging.INFO)
    logger.setLevel(level)
    try:
        store = Store(world.url)
        store.open()
        store.close()
    finally:
        logger.setLevel(before)
    assert bool(caplog.records) is (level == logging.INFO)
    # Somebody else's migrations say what they always did.
    logging.getLogger("alembic.runtime.migration").info("JupyterHub's")
    assert "JupyterHub's" in caplog.text


def test_a_store_of_a_newer_version_is_left_alone(world: World) -> None:
    play(world)
    with sqlite3.connect(world.url.removeprefix("sqlite:///")) as connection:
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    with pytest.raises(StoreError, match="revision 9999, which only a newer version"):
        Store(world.url).open()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("usage.sqlite", "no URL of SQLAlchemy's"),
        ("mysql://ada:secret@db/usage", "begins with 'mysql'"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
    ],
)
def test_an_address_that_makes_no_sense_is_refused_by_the_name_of_its_trait(url, says) -> None:
    with pytest.raises(TraitError, match=r"c\.GPUSpawner\.usage_db: ") as refused:
        GPUSpawner(usage_db=url)
    assert says in str(refused.value)
    assert "secret" not in str(refused.value)


def test_an_empty_address_keeps_nothing(tmp_path: Path) -> None:
    assert GPUSpawner(usage_db="").usage_db == ""
    world = World("")
    play(world, lambda: world.start("hub"), 5.0)
    assert list(tmp_path.iterdir()) == []


# ---- the command ---------------------------------------------------------------------------------


def test_the_command_prints_a_table_csv_and_json(world: World, capsys) -> None:
    world.steady = 0
    play(world, lambda: world.start("hub", "GPU-a", "=1+1"), 2 * HOUR, ended(world))
    words = ["usage", "--db", world.url, "--from", "2026-01-01", "--to", "2028-01-01"]
    assert main(words) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:4] == ["USER", "LEASES", "GPU", "HOURS"]
    assert table[1].split()[:3] == ["=1+1", "1", "2.00"]
    assert table[-1].split()[0] == "all"
    assert main([*words, "--format", "csv"]) == 0
    (line,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (line["name"], line["gpu_hours"], line["idle_gpu_hours"]) == ("'=1+1", "2.0", "")
    assert main([*words, "--format", "json", "--by", "image"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "pytorch"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--from", "yesterday"], "'yesterday' is no date such as 2026-11-01"),
        (["--from", "2026-02-02", "--to", "2026-02-01"], "No time lies from"),
        (["--to", "9999-99-99"], "is no date"),
    ],
)
def test_a_wrong_date_is_a_sentence(words: list[str], says: str, capsys) -> None:
    assert main(["usage", *words]) == 2
    assert says in capsys.readouterr().err


def test_the_command_finds_the_store_that_the_configuration_names(
    world: World, tmp_path: Path, capsys, monkeypatch
) -> None:
    play(world, lambda: world.start("hub"), HOUR, ended(world))
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert main(["usage"]) == 1
    assert "there is no" in capsys.readouterr().err
    config = folder / "jupyterhub_config.py"
    config.write_text("c.GPUSpawner.usage_db = 'sqlite:///../usage.sqlite'\n")
    words = ["usage", "--from", "2026-01-01", "--to", "2028-01-01"]
    assert main(words) == 0
    assert "ada" in capsys.readouterr().out
    config.write_text("c.GPUSpawner.usage_db = ''\n")
    assert main(words) == 1
    assert "nothing is kept" in capsys.readouterr().err
    config.write_text("1 / 0\n")
    assert main(words) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_the_days_of_a_chart_are_half_open_and_leave_nothing_out() -> None:
    period = report.parse_period("2026-03-01", "2026-04-01", 0)
    days = report.spans(period)
    assert len(days) == 31
    assert (days[0].begin, days[-1].end) == (period.begin, period.end)
    assert all(one.end == other.begin for one, other in itertools.pairwise(days))
    assert len(report.spans(report.parse_period("2025-01-01", "2026-01-01", 0))) <= report.MAX_BARS
    assert len(report.spans(report.parse_period("2026-03-01T08:00", "2026-03-01T09:00", 0))) == 1
