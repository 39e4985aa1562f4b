"""The store in PostgreSQL, which two hubs share: a real cluster of this test's own, on a socket."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from gpuspawner.usage import report
from gpuspawner.usage.history import LONG, SHORT
from gpuspawner.usage.readings import Reading
from gpuspawner.usage.report import Period, Scope
from gpuspawner.usage.store import Store

from ..support.usage import EPOCH, Killed, World, killed_after, look, rows

# Debian's are on no PATH.
FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
HOUR = 3600.0
ALL = Period(0, 1e10)

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(
        not (FOLDERS and find_spec("psycopg2")), reason="needs postgresql and psycopg2"
    ),
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
                with killed_after(recorder, statements):
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
