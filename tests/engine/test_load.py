"""60 people come to 4 GPUs within a moment, with forms, the queue's pages and dashboards open."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gpuspawner.backends.docker.engine_client import THREADS

from ..support import dashboards
from ..support.crowd import Crowd, log_in
from ..support.hubs import until
from ..support.looks import containers, free_gpus, labelled
from ..support.measured import dashboard_of, descriptors_of
from ..support.queues import audit_lines

pytestmark = [pytest.mark.engine, pytest.mark.thorough, pytest.mark.timeout(900)]

LINES = (dashboards.lines(),)
USERS = 60


def check_record(hub: Any, names: list[str]) -> None:
    """Fail unless the hub's record says that each was served in turn, on a GPU that was free."""
    grants = [line for line in audit_lines(hub) if line["event"] == "grant"]
    granted = [line["user"] for line in grants]
    assert sorted(granted) == names
    # In which order they came, the hub alone knows: it writes down who has to wait.
    waited = [line["user"] for line in audit_lines(hub) if line["event"] == "wait"]
    assert len(waited) > USERS / 2
    assert [user for user in granted if user in set(waited)] == waited
    assert all(len(line["gpus"]) == 1 for line in grants)
    assert len({uuid for line in grants for uuid in line["gpus"]}) == 4
    free = {uuid: True for line in grants for uuid in line["gpus"]}
    for line in audit_lines(hub):
        if line["event"] in ("grant", "release"):
            (uuid,) = line["gpus"]
            assert free[uuid] == (line["event"] == "grant"), line
            free[uuid] = line["event"] == "release"
    assert all(free.values())


def test_all_are_served_in_the_order_in_which_they_came_and_none_reads_an_error(
    module_hub: Any, engine: Any
) -> None:
    hub = module_hub
    dashboard = dashboard_of(hub)
    names = [f"user-{number:02}" for number in range(USERS)]
    visitors = log_in(hub, names)
    before = [descriptors_of(pid) for pid in (hub.pid, dashboard)]
    held: list[list[str]] = []

    async def watch() -> None:
        """See whether a GPU is anybody's twice."""
        while True:
            of_each = await asyncio.to_thread(labelled, engine)
            held.append([uuid for uuids in of_each.values() for uuid in uuids])
            await asyncio.sleep(0.2)

    async def come_and_go() -> Any:
        watching = asyncio.ensure_future(watch())
        crowd = Crowd(hub.url, visitors, seconds=12, stay=0.2)
        record = await crowd.run()
        watching.cancel()
        return record

    record = asyncio.run(come_and_go())
    assert record.errors == []
    assert sorted(record.served) == names
    check_record(hub, names)
    # By the engine's labels.
    assert max(map(len, held)) == 4
    assert all(len(each) == len(set(each)) for each in held)
    # Nobody's place ever got worse; the last had all the others before them.
    worse = {
        name: told for name, told in record.places.items() if told != sorted(told, reverse=True)
    }
    assert worse == {}
    assert record.places[names[-1]][0] == USERS - 4
    # Nothing is left.
    assert "Traceback" not in hub.log()
    until(lambda: len(free_gpus()) == 4, "the GPUs are free", log=hub.log)
    assert containers(engine) == []
    # The hub's threads keep theirs to the engine, one each.
    most = [before[0] + THREADS + 20, before[1] + 20]
    until(
        lambda: all(
            descriptors_of(pid) < number
            for pid, number in zip((hub.pid, dashboard), most, strict=True)
        ),
        "the connections are closed",
        seconds=150,
    )
