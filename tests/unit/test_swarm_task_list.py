"""How often a Swarm's tasks are listed, of which there may be many: counts, no times."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from typing import Any

import pytest

from gpuspawner.backends.swarm.backend import SwarmBackend
from gpuspawner.backends.swarm.task_list import ONE_SERVICE, RECENT_SECONDS, Listing

from ..support.raft import RaftInMemory


class CountingRaft(RaftInMemory):
    """A Swarm with so many services of one task each, which counts what it is asked."""

    def __init__(self, number: int) -> None:
        super().__init__({})
        self.asked: Counter[str] = Counter()
        for n in range(number):
            self.kept[f"s{n}"] = {"ID": f"s{n}", "Spec": {"Name": f"name-{n}"}}
            self.all_tasks.append(self.task(n))

    def task(self, n: int, state: str = "running") -> dict[str, Any]:
        return {"ID": f"t{n}", "ServiceID": f"s{n}", "Status": {"State": state}}

    def tasks(self, filters: Any = None) -> list[Any]:
        self.asked["one" if filters else "all"] += 1
        return super().tasks(filters)


@pytest.fixture
async def many():
    swarm = CountingRaft(2 * ONE_SERVICE)
    backend = SwarmBackend(lambda: swarm, logging.getLogger("swarm"))
    yield swarm, backend.tasks
    backend.close()


async def test_who_may_know_how_it_was_a_moment_ago_shares_one_list(many):
    swarm, tasks = many
    found = await asyncio.gather(*(tasks.recent() for _ in range(60)))
    assert swarm.asked == {"all": 1}
    assert all(each["s7"] == [swarm.task(7)] for each in found)
    swarm.all_tasks.clear()
    assert "s7" in await tasks.recent()
    await tasks.now()
    assert await tasks.recent() == {}


async def test_what_is_a_list_of_many_for_one_is_a_list_of_one_once_that_is_known(many):
    swarm, tasks = many
    assert await tasks.of("s7") == [swarm.task(7)]
    assert swarm.asked == {"all": 1}
    swarm.all_tasks[7] = swarm.task(7, "failed")
    assert await tasks.of("s7") == [swarm.task(7, "failed")]
    assert swarm.asked == {"all": 1, "one": 1}
    # Of sixty at once, one is asked for alone, and the others share a list of all.
    found = await asyncio.gather(*(tasks.of(f"s{n}") for n in range(60)))
    assert found == [[each] for each in swarm.all_tasks[:60]]
    assert swarm.asked == {"all": 2, "one": 2}


async def test_the_tasks_of_a_service_that_is_gone_are_found(many):
    swarm, tasks = many
    await tasks.now()
    del swarm.kept["s7"]
    assert await tasks.of("s7") == [swarm.task(7)]


@pytest.mark.parametrize(
    ("age", "took", "recent"), [(0.5, 0.01, 1), (2, 0.01, 0), (2, 0.2, 1), (60, 30, 0)]
)
def test_a_list_that_took_long_holds_for_longer_but_not_for_ever(age, took, recent):
    assert RECENT_SECONDS == 1
    assert Listing(time.monotonic() - age, took).is_recent is bool(recent)
