"""Two hubs on one engine: the containers are the ledger of both."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest

from ..support.hubs import until
from ..support.looks import container_of, containers, free_gpus, gpus, labelled

pytestmark = pytest.mark.engine


def test_racing_for_the_last_gpu_never_gives_it_to_both(make_hub, idle_host, engine, thorough):
    idle_host.change(lambda state: replace(state, gpus=state.gpus[:1]))
    assert len(gpus()) == 1
    first = make_hub()
    second = make_hub('c.GPUSpawner.prefix = "second"')
    for hub, user in ((first, "ada"), (second, "ben")):
        hub.add_user(user)
    won = {"ada": 0, "ben": 0}
    rounds = 50 if thorough else 10
    for number in range(rounds):
        with ThreadPoolExecutor(2) as both:
            asked = {
                user: both.submit(hub.spawn, user, {"gpus": 1})
                for hub, user in ((first, "ada"), (second, "ben"))
            }
            answers = {user: future.result() for user, future in asked.items()}
        winners = [user for user, answer in answers.items() if answer.status_code in (201, 202)]
        assert len(winners) == 1, {user: answer.text for user, answer in answers.items()}
        loser = next(answer for user, answer in answers.items() if user not in winners)
        assert loser.status_code == 503, loser.text
        (winner,), hub = winners, first if winners == ["ada"] else second
        until(partial(hub.ready, winner), f"{winner}'s server is ready", log=hub.log)
        assert list(labelled(engine)) == winners, f"round {number}"
        won[winner] += 1
        hub.stop_server(winner)
    assert containers(engine) == []
    assert len(free_gpus()) == 1
    print(f"\nof {rounds} rounds: {won}")


@pytest.mark.thorough
def test_what_the_other_hub_has_is_neither_offered_nor_granted(make_hub, engine):
    first = make_hub()
    second = make_hub('c.GPUSpawner.prefix = "second"')
    first.start_server("ada", {"gpus": 3})
    refused = second.spawn("ben", {"gpus": 2})
    assert refused.status_code == 503
    assert "1 of 4 is free now (3 in use)" in refused.json()["message"]
    second.start_server("ben", {"gpus": 1})
    held = labelled(engine)
    assert not set(held["ada"]) & set(held["ben"])
    first.kill()  # the ledger doesn't need the hub that wrote it
    assert second.spawn("eve", {"gpus": 1}).status_code == 503
    first.start()
    until(lambda: first.ready("ada"), "the first hub is back", log=first.log)
    first.stop_server("ada")
    second.start_server("eve", {"gpus": 3})


@pytest.mark.thorough
def test_a_container_of_another_hub_is_neither_taken_over_nor_stopped(make_hub, engine):
    """Two hubs with one template and a user of one name."""
    template = 'c.GPUSpawner.name_template = "{prefix}-{username}"'
    first, second = make_hub(template), make_hub(template)
    first.start_server("ada", {"gpus": 1})
    theirs = engine.inspect_container(container_of(engine, "ada"))["Id"]
    refused = second.spawn("ada", {"gpus": 1})
    assert refused.status_code == 500
    assert "c.DockerSpawner.prefix" in refused.json()["message"]
    assert engine.inspect_container(container_of(engine, "ada"))["Id"] == theirs
    assert engine.inspect_container(container_of(engine, "ada"))["State"]["Running"]
    assert len(free_gpus()) == 3
    assert first.ready("ada")
