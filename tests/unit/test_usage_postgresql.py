"""The store in PostgreSQL, which two hubs share: a real cluster of this test's own, on a socket."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import insert

from gpuspawner.courses.hours import ReservedHours
from gpuspawner.courses.hours_request import HoursRequest, hours_as_fields
from gpuspawner.errors import Refused
from gpuspawner.hub.rights import Asker
from gpuspawner.usage import database, report
from gpuspawner.usage.history import LONG, SHORT
from gpuspawner.usage.hours_store import HoursStore
from gpuspawner.usage.readings import Reading
from gpuspawner.usage.report import Period, Scope
from gpuspawner.usage.schema import metadata, reserved_hours
from gpuspawner.usage.store import Store

from ..support.courses import Classroom
from ..support.usage import EPOCH, Killed, World, killed_after, look, rows

# Debian's are on no PATH.
FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
HOUR = 3600.0
ALL = Period(0, 1e10)

pytestmark = [
    pytest.mark.thorough,
    # A database's server isn't installed on a machine for its tests' sake.
    pytest.mark.skipif(not FOLDERS, reason="needs Debian's package postgresql"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The folder of a cluster's socket. A cluster isn't root's."""
    folder = Path(mkdtemp(prefix="gpuspawner-pg-"))
    who = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
    as_who: dict[str, Any] = {}
    if os.getuid() == 0:
        os.chown(folder, who.pw_uid, who.pw_gid)
        as_who = {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": str(folder)}

    def call(name: str, *words: str) -> None:
        command = [str(FOLDERS[0] / name), *words]
        subprocess.run(
            command, check=True, env=environment, cwd=folder, stdout=subprocess.DEVNULL, **as_who
        )

    data = str(folder / "data")
    call("initdb", "-D", data, "-U", "hub", "--auth=trust", "--no-sync")
    options = f"-k {folder} -c listen_addresses='' -c fsync=off"
    call("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield str(folder)
    finally:
        call("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.fixture
def world(cluster: str, request: pytest.FixtureRequest) -> World:
    name = f"usage_{abs(hash(request.node.name))}"
    command = [str(FOLDERS[0] / "createdb"), "-h", cluster, "-U", "hub", name]
    subprocess.run(command, check=True)
    return World(f"postgresql://hub@/{name}?host={cluster}")


def test_what_two_hubs_write_is_summed_up_given_out_and_forgotten(world: World) -> None:
    async def run() -> None:
        one, two = world.recorder("one"), world.recorder("two")
        await look(one)
        await look(two)
        world.start("one", "GPU-a", "ada", of=["ml"], waited=60)
        world.start("two", "GPU-b#0/4", "ben")
        # Both at once.
        await asyncio.gather(look(one), look(two))
        world.steady += HOUR
        for box in world.boxes:
            world.end(box)
        await asyncio.gather(look(one), look(two))
        one.close()
        two.close()

    asyncio.run(run())
    store = Store(world.url)
    store.open()
    hours = {
        by: {row.name: round(row.gpu_hours, 6) for row in store.report(ALL, by, Scope())[0]}
        for by in report.DIMENSIONS
    }
    assert hours["user"] == {"ada": 1.0, "ben": 0.25}
    assert hours["group"] == {"ml": 1.0, None: 0.25}
    assert store.report(ALL, "user", Scope(hub="one"))[1].gpu_hours == pytest.approx(1)
    assert store.rows_of("ada")[0]["groups"] == ["ml"]
    assert store.forget("ada") == (1, 0)
    assert store.expire(1e10) == 1
    assert rows(world.url) == []
    store.close()


def test_a_transaction_that_is_killed_anywhere_leaves_nothing(world: World) -> None:
    async def run() -> int:
        recorder = world.recorder("one")
        await look(recorder)
        box = world.start("one")
        await look(recorder)
        world.steady += 100
        world.end(box, is_listed=True)
        world.start("one", user="ben")
        world.steady += 50
        statements = 0
        while True:
            try:
                with killed_after(recorder.store, statements):
                    await look(recorder)
            except Killed:
                found = [(row.user, row.is_over) for row in rows(world.url)]
                assert found == [("ada", False)]
                statements += 1
                continue
            recorder.close()
            return statements

    assert asyncio.run(run()) > 10
    found = rows(world.url)
    assert [(row.user, row.seconds) for row in found] == [
        ("ada", pytest.approx(100)),
        ("ben", pytest.approx(50)),
    ]


def test_what_gpus_did_is_written_once_and_thinned(world: World) -> None:
    stores = [Store(world.url) for _ in range(2)]
    for store in stores:
        store.open()
    start = EPOCH - EPOCH % LONG
    read = [
        Reading(start + at, {"GPU-a": (50, 100), "GPU-b": (None, 7)}) for at in range(0, LONG, 60)
    ]
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda store: store.write_history(read, start + LONG), stores * 2))
    store = stores[0]
    whole = Period(start, start + LONG)
    before = store.curves(whole, LONG).gpus
    assert before["GPU-a"][0].used_of == pytest.approx(LONG - 6 * 60)
    assert before["GPU-a"][0].utilization_percent == 50
    assert before["GPU-b"][0].utilization_percent is None
    assert len(store.curves(whole, SHORT, ["GPU-a"]).gpus["GPU-a"]) == 6
    for _ in range(2):
        store.thin_history(start + 4 * 86400, 400)
        assert store.curves(whole, LONG).gpus == before
    assert store.held(whole) == []
    store.thin_history(start + 500 * 86400, 400)
    assert store.curves(whole, LONG).gpus == {}
    for each in stores:
        each.close()


def test_hubs_that_come_at_once_make_the_tables_once(world: World) -> None:
    stores = [Store(world.url) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(Store.open, stores))
    for store in stores:
        assert store.open_leases("one") == {}
        store.close()


# -- Reserved hours, in the same database --------------------------------------------------------


def request(begin: str = "2090-10-02T10:00") -> HoursRequest:
    """Four GPUs as sixty slots, which nobody has decided on."""
    hours = ReservedHours(begin, "12:00", 4, slots=15, zone="Europe/Berlin")
    ((_, end),) = hours.times()
    return HoursRequest(0, "ml", hours, "asked", "ada", EPOCH, end, "for the exam")


def hours_stores(world: World, number: int) -> list[HoursStore]:
    def fail(broken: int) -> None:
        raise AssertionError(f"number {broken} can't be read")

    return [HoursStore(Store(world.url), "hub", fail) for _ in range(number)]


def grant(store: HoursStore, number: int) -> HoursRequest | None:
    """Grant a request; None: somebody was first."""

    def decide(known: Sequence[HoursRequest]) -> HoursRequest:
        (asked,) = [each for each in known if each.id == number]
        rank = 1 + max(each.rank for each in known)
        return asked.becomes("granted", "boss", EPOCH, rank=rank)

    try:
        return store.change(decide, EPOCH)
    except Refused:
        return None


def test_hours_that_hubs_write_at_once_are_each_asked_for_and_granted_once(world: World) -> None:
    stores = hours_stores(world, 4)
    with ThreadPoolExecutor(8) as threads:
        asked = list(
            threads.map(lambda store: store.change(lambda known: request(), EPOCH), stores * 3)
        )
        assert sorted(each.id for each in asked) == list(range(1, 13))
        # Each of the four decides on each of the twelve.
        pairs = [(store, number) for number in range(1, 13) for store in stores]
        granted = [each for each in threads.map(lambda pair: grant(*pair), pairs) if each]
    assert sorted(each.id for each in granted) == list(range(1, 13))
    # Who reads and who writes is the same one: no two have a place in the order.
    assert sorted(each.rank for each in granted) == list(range(1, 13))
    for store in stores:
        assert store.read(EPOCH) == sorted(granted, key=lambda each: each.id)
        store.close()


def test_a_decision_that_is_killed_anywhere_has_changed_nothing(world: World) -> None:
    store, beside = hours_stores(world, 2)
    asked = store.change(lambda known: request(), EPOCH)
    statements = 0
    while True:
        try:
            with killed_after(store._store, statements):
                granted = grant(store, asked.id)
        except Killed:
            assert beside.read(EPOCH) == [asked]
            statements += 1
            continue
        break
    # The lock, what there is, the change, and the commit.
    assert statements == 4
    assert granted
    assert beside.read(EPOCH) == [granted]
    assert granted.hours.seats == 60
    for each in (store, beside):
        each.close()


def test_hours_of_the_revision_that_brought_them_are_kept_and_are_whole(world: World) -> None:
    """Migrations run as on SQLite, whatever stands in the tables."""
    engine = database.engine_for(database.check(world.url), writes=True)
    database.migrate(engine, "0002")
    written = hours_as_fields(request().hours)
    del written["slots"]
    row = {"hub": "hub", "course": "ml", "hours": json.dumps(written), "state": "granted"}
    row |= {"asked_by": "ada", "asked_at": EPOCH, "over_at": 4e9, "note": "", "rank": 1}
    row |= {"decided_by": "boss", "decided_at": EPOCH, "why": ""}
    with engine.begin() as connection:
        connection.execute(insert(reserved_hours).values(row))
    (store,) = hours_stores(world, 1)
    (found,) = store.read(EPOCH)
    assert (found.state, found.hours.gpus, found.hours.slots) == ("granted", 4, 0)
    with engine.begin() as connection:
        assert database.revision_of(connection) == database.newest_revision()
        options = {"version_table": database.VERSION_TABLE, "target_metadata": metadata}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []
    engine.dispose()
    store.close()


def test_hours_are_asked_for_granted_and_known_to_a_hub_beside(world: World) -> None:
    fields = {"begin": "2090-10-02T10:00", "end": "12:00", "gpus": 4, "slots": 15}
    prof, boss = Asker("prof"), Asker("boss", True)

    async def run() -> None:
        room, beside = Classroom(usage_db=world.url), Classroom(usage_db=world.url)
        for each in (room, beside):
            await each.ledger.read()
        # The longest of what is kept, in letters of four bytes: here columns have a length.
        asked = await room.hours.ask(prof, "ml", fields, "\U0001f393" * 500)
        await room.hours.grant(boss, asked["id"], None)
        await beside.hours.facts(boss)
        assert [(each.course, each.gpus, each.slots) for each in beside.reserved()] == [
            ("ml", 4, 15)
        ]
        with pytest.raises(Refused, match="already"):
            await beside.hours.refuse(boss, asked["id"], "no")
        await beside.hours.end(boss, asked["id"], "\U0001f393" * 200)
        (seen,) = (await room.hours.facts(prof))["reserved_hours"]
        assert (seen["state"], len(seen["note"]), len(seen["why"])) == ("ended", 500, 200)
        assert room.reserved() == ()
        for each in (room, beside):
            await each.close()

    asyncio.run(run())
    store = Store(world.url)
    (given,) = store.hours_of("prof")
    assert json.loads(given["hours"])["slots"] == 15
    store.forget("prof")
    assert store.hours_of("prof") == []
    store.close()
