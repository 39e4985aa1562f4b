"""How often the engine is asked for one start: each call takes the hub and the engine time."""

from __future__ import annotations

from collections import Counter

import pytest

from bench.processor import call_of

from ..support.flaky import flaky_engine
from ..support.hubs import IMAGES_OWN

pytestmark = pytest.mark.engine

# What is asked for a start alone on its engine, by who asks.
MOST = Counter(
    {
        "GET /volumes": 3,  # notes: the check, and the queue; the user's volumes
        "GET /containers/json": 3,  # the check, the queue, and the claim
        # The GPUs that it was created with, its address; and when the one before it has ended,
        # which the usage asks for: it is gone, so the engine's events say so.
        "GET /containers/…/json": 3,
        "GET /events": 1,
        "GET /images/…/json": 1,  # whether it is there, and its command
        "POST /containers/create": 1,
        "POST /containers/…/attach": 1,
        "POST /containers/…/start": 1,
    }
)
STARTS = 3
HOMES = "c.GPUSpawner.home_volume = 'calls-{username}'"


def test_the_engine_is_asked_nothing_twice_for_one_start(make_hub, idle_host, tmp_path) -> None:
    asked: list[str] = []
    with flaky_engine(idle_host.socket, tmp_path / "flaky.sock") as flaky:
        environment = {**idle_host.environment, "DOCKER_HOST": flaky.url}
        hub = make_hub(IMAGES_OWN, HOMES, environment=environment)
        flaky.before = lambda line: asked.append(call_of(*line.split()[:2]))
        hub.start_server("ada", {"gpus": 1})  # a hub asks some things once, and makes volumes
        found = []
        for _ in range(STARTS):
            hub.stop_server("ada")
            asked.clear()
            hub.start_server("ada", {"gpus": 1})
            found.append(Counter(asked))
    # What the hub asks now and then comes between some of them.
    least = {call: min(each[call] for each in found) for call in {*MOST, *found[0]}}
    assert Counter(least) <= MOST, found


@pytest.mark.thorough
def test_a_hub_that_starts_inspects_each_server_once(make_hub, idle_host, tmp_path) -> None:
    asked: list[str] = []
    with flaky_engine(idle_host.socket, tmp_path / "flaky.sock") as flaky:
        environment = {**idle_host.environment, "DOCKER_HOST": flaky.url}
        hub = make_hub(environment=environment)
        users = ("ada", "bob", "cyd")
        for user in users:
            hub.start_server(user, {"gpus": 1})
        hub.end()
        flaky.before = lambda line: asked.append(call_of(*line.split()[:2]))
        hub.start()
        assert all(hub.ready(user) for user in users)
    assert Counter(asked)["GET /containers/…/json"] == len(users), Counter(asked)
