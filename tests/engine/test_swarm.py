"""A hub on a Docker Swarm of three machines: real engines, each with a simulated NVML."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import requests

from gpuspawner.leases.clock import Clock, Deadline
from gpuspawner.nodes.resources import kind_of
from gpuspawner.simulation.state import describe
from gpuspawner.simulation.switch import plug

from ..support import plain_image
from ..support.flaky import flaky_engine
from ..support.hubs import Hub, until
from ..support.kills import at_call, is_dead
from ..support.swarms import Swarm, every_gpu, held_twice, open_swarm

pytestmark = [pytest.mark.engine, pytest.mark.thorough, pytest.mark.timeout(600)]

A100, T4 = "NVIDIA A100-SXM4-40GB", "Tesla T4"
# The hub's own container is on the third, so that the manager's engine can be restarted.
STATES = (
    describe([("A100-40GB", 2)], "570.133.20"),
    describe([("T4", 2)], "550.54.15"),
    describe([("T4", 1)], "535.183.01"),
)


@pytest.fixture(scope="module")
def swarm(tmp_path_factory) -> Iterator[Swarm]:
    with open_swarm(STATES, tmp_path_factory.mktemp("swarm"), hub_on=3) as made:
        yield made


@pytest.fixture
def make_hub(swarm, tmp_path) -> Iterator[Callable[..., Hub]]:
    made: list[Hub] = []

    def make(*lines: str, **more: Any) -> Hub:
        hub = swarm.hub(tmp_path / f"hub-{len(made)}", *lines, **more)
        made.append(hub)
        hub.start()
        return hub

    yield make
    for hub in made:
        hub.stop()
    swarm.clear()
    until(lambda: not swarm.running(), "nothing runs any more")


@pytest.fixture(scope="module")
def module_hub(swarm, tmp_path_factory) -> Iterator[Hub]:
    hub = swarm.hub(tmp_path_factory.mktemp("hub") / "hub")
    try:
        hub.start()
        yield hub
    finally:
        hub.stop()


@pytest.fixture
def hub(swarm, module_hub) -> Iterator[Hub]:
    yield module_hub
    module_hub.begin_anew()
    swarm.clear()
    until(lambda: not swarm.running(), "nothing runs any more")


def with_backend(swarm: Swarm, use: Callable[[Any], Any]) -> Any:
    """Return what an asynchronous function of the backend returns."""

    async def run() -> Any:
        backend = swarm.backend()
        try:
            return await use(backend)
        finally:
            backend.close()

    return asyncio.run(run())


def test_a_server_has_exactly_its_gpus_on_their_machine(swarm, hub):
    hub.start_server("ada", {"gpus": 2, "model": A100})
    granted = swarm.leased()["ada"]
    assert sorted(granted) == sorted(every_gpu(swarm.cluster)["node-1"])
    assert swarm.node_of("ada") == 1
    assert sorted(swarm.seen("ada")) == sorted(granted)
    hub.start_server("ben", {"gpus": 2})
    assert swarm.node_of("ben") == 2
    assert sorted(swarm.seen("ben")) == sorted(swarm.leased()["ben"])
    hub.start_server("cyd", {"gpus": 0})
    assert swarm.leased()["cyd"] == []
    refused = hub.spawn("dan", {"gpus": 2})
    assert refused.status_code == 503, refused.text
    assert held_twice(swarm) == []
    hub.stop_server("ada")
    assert "ada" not in swarm.leased()
    hub.start_server("dan", {"gpus": 2})
    assert sorted(swarm.seen("dan")) == sorted(granted)


def test_two_hubs_never_both_have_a_gpu(swarm, make_hub):
    first, second = make_hub(prefix="first"), make_hub(prefix="second")
    pairs = ((first, "ada"), (second, "ben"))
    for hub, user in pairs:
        hub.add_user(user)
    won = {"ada": 0, "ben": 0}
    for number in range(6):
        with ThreadPoolExecutor(2) as both:
            asked = {
                user: both.submit(hub.spawn, user, {"gpus": 2, "model": T4}) for hub, user in pairs
            }
            answers = {user: future.result() for user, future in asked.items()}
        winners = [user for user, answer in answers.items() if answer.status_code in (201, 202)]
        assert len(winners) == 1, {user: answer.text for user, answer in answers.items()}
        (winner,), hub = winners, first if winners == ["ada"] else second
        until(partial(hub.ready, winner), f"{winner}'s server is ready", log=hub.log)
        assert list(swarm.leased()) == winners, f"round {number}"
        assert held_twice(swarm) == []
        won[winner] += 1
        hub.stop_server(winner)
    assert swarm.leased() == {}
    print(f"\n{won}")


def test_a_hub_killed_at_each_change_of_the_swarm_loses_no_gpu(swarm, make_hub, tmp_path):
    manager = swarm.cluster.hosts[0]
    with flaky_engine(manager.socket, tmp_path / "flaky.sock") as flaky:
        hub = make_hub(docker_host=flaky.url)
        hub.start_server("rita", {"gpus": 1, "model": T4})
        held = swarm.leased()["rita"]
        for call in (r"POST \S*/services/create\b", r"POST \S*/services/\S+/update\b"):
            for moment in ("asked", "answered"):
                _killed(hub, flaky, moment, re.compile(call).match)
                assert held_twice(swarm) == []
                until(partial(hub.ready, "rita"), "rita's server goes on", log=hub.log)
                if not hub.ready("stan"):
                    hub.start_server("stan", {"gpus": 2, "model": A100})
                assert len(swarm.leased()["stan"]) == 2
                assert swarm.leased()["rita"] == held
                hub.stop_server("stan")
                assert list(swarm.leased()) == ["rita"]


def _killed(hub: Hub, flaky: Any, moment: str, wanted: Callable[[str], object]) -> None:
    """Have a start that the hub doesn't live to see the end of, and start the hub again."""

    def ask() -> None:
        with suppress(requests.RequestException):
            hub.spawn("stan", {"gpus": 2, "model": A100})

    hub.add_user("stan")
    killing = at_call(hub, flaky, moment, lambda _, line: wanted(line))
    with killing, ThreadPoolExecutor(1) as other:
        asked = other.submit(ask)
        until(lambda: asked.done() and is_dead(hub), "the hub is dead", log=hub.log)
    hub.kill()
    hub.start()
    until(lambda: not hub.server("stan").get("pending"), "it is settled", log=hub.log)


def test_leases_and_servers_outlive_a_restart_of_the_manager(swarm, hub):
    hub.start_server("ada", {"gpus": 1, "model": T4})
    held, before = swarm.leased()["ada"], swarm.containers(2) + swarm.containers(3)
    manager = swarm.cluster.hosts[0]
    manager.kill_engine()
    refused = hub.spawn("ben", {"gpus": 1})
    assert refused.status_code in (500, 503), refused.text
    manager.start_engine()
    until(lambda: swarm.cluster.node_ids(), "the Swarm is there again")
    until(lambda: _starts(hub, "ben", {"gpus": 2, "model": T4}), "ben's server", 90, hub.log)
    assert hub.ready("ada")
    assert swarm.leased()["ada"] == held
    assert not {*swarm.leased()["ben"]} & {*held}
    ids = {each["Id"] for each in swarm.containers(2) + swarm.containers(3)}
    assert {each["Id"] for each in before} <= ids
    assert held_twice(swarm) == []


def _starts(hub: Hub, user: str, options: Any) -> bool:
    return hub.spawn(user, options).status_code in (201, 202) or hub.ready(user)


def test_who_removes_a_container_by_hand_ends_its_lease(swarm, hub):
    hub.start_server("ada", {"gpus": 2, "model": A100})
    (container,) = swarm.containers(1)
    swarm.clients[0].remove_container(container["Id"], force=True)
    until(lambda: "ada" not in swarm.leased(), "its service is removed", log=hub.log)
    page = hub.log_in("ada").get(f"{hub.url}/hub/spawn/ada").text
    assert "Your files are kept." in page
    hub.start_server("ben", {"gpus": 2, "model": A100})
    assert swarm.containers(1)[0]["Labels"]["gpuspawner.user"] == "ben"


def test_what_a_service_by_hand_reserves_or_names_is_not_handed_out(swarm, hub):
    one, two = every_gpu(swarm.cluster)["node-1"]
    image = swarm.manager.inspect_image(plain_image.IMAGE)["Id"]
    container = {"Image": image, "Args": plain_image.COMMAND}
    wanted = [{"DiscreteResourceSpec": {"Kind": kind_of(one), "Value": 1}}]
    resources = {"Reservations": {"GenericResources": wanted}}
    place = {"Constraints": [f"node.id=={swarm.node_ids['node-1']}"]}
    template = {"ContainerSpec": container, "Placement": place}
    swarm.manager.create_service({**template, "Resources": resources}, name="reserves")
    refused = hub.spawn("ada", {"gpus": 2, "model": A100})
    assert refused.status_code == 503, refused.text
    named = {**container, "Env": [f"NVIDIA_VISIBLE_DEVICES={two}"]}
    swarm.manager.create_service({**template, "ContainerSpec": named}, name="names")
    refused = hub.spawn("ada", {"gpus": 1, "model": A100})
    assert refused.status_code == 503, refused.text
    swarm.manager.remove_service("reserves")
    until(lambda: _starts(hub, "ada", {"gpus": 1, "model": A100}), "it is free", log=hub.log)
    until(lambda: hub.ready("ada"), "ada's server is ready", log=hub.log)
    assert swarm.leased()["ada"] == [one]


def test_an_extension_is_kept_by_the_service_and_its_server_goes_on(swarm, hub):
    hub.start_server("ada", {"gpus": 2, "model": A100, "hours": 1})
    (before,) = swarm.containers(1)
    (service_id,) = (each["ID"] for each in swarm.services().values())
    end = Deadline.after(7200, Clock())
    with_backend(swarm, lambda backend: backend.keep_end(service_id, end))

    async def ends(backend: Any) -> list[float]:
        notes = await backend.notes()
        return [each.extended.until for each in notes.with_ends(await backend.list())]

    (kept,) = with_backend(swarm, ends)
    assert kept == pytest.approx(end.until, abs=2)
    with_backend(swarm, lambda backend: backend.keep_end(service_id, Deadline.after(60, Clock())))
    assert with_backend(swarm, ends) == [pytest.approx(end.until, abs=2)]
    (after,) = swarm.containers(1)
    assert after["Id"] == before["Id"]
    hub.kill()
    hub.start()
    until(lambda: hub.ready("ada"), "it is known", log=hub.log)
    assert with_backend(swarm, ends) == [pytest.approx(end.until, abs=2)]


def test_what_is_out_of_service_is_kept_by_the_swarm(swarm, hub):
    one, two = every_gpu(swarm.cluster)["node-1"]
    for _ in range(2):
        with_backend(swarm, lambda backend: backend.take_out_of_service(one, "root", "fan"))
    notes = with_backend(swarm, lambda backend: backend.notes())
    assert [(each.by, each.why) for each in notes.marks.values()] == [("root", "fan")]
    # As what the Swarm hasn't got at all.
    assert hub.spawn("ada", {"gpus": 2, "model": A100}).status_code == 400
    hub.start_server("ada", {"gpus": 1, "model": A100})
    assert swarm.leased()["ada"] == [two]
    hub.stop_server("ada")
    with_backend(swarm, lambda backend: backend.put_into_service(one))
    hub.start_server("ada", {"gpus": 2, "model": A100})


def test_a_machine_that_takes_no_servers_or_does_not_answer_gives_no_gpu(swarm, hub):
    node_id = swarm.node_ids["node-2"]

    def available(word: str) -> None:
        node = swarm.manager.inspect_node(node_id)
        swarm.manager.update_node(
            node_id, node["Version"]["Index"], {**node["Spec"], "Availability": word}
        )

    available("drain")
    try:
        assert hub.spawn("ada", {"gpus": 2, "model": T4}).status_code == 400
    finally:
        available("active")
    hub.start_server("ada", {"gpus": 2, "model": T4})
    hub.stop_server("ada")
    switch = swarm.cluster.facts.switch
    plug(switch, 2, False)
    try:
        down = lambda: swarm.manager.inspect_node(node_id)["Status"]["State"] != "ready"  # noqa: E731
        until(down, "it is down", 120)
        refused = hub.spawn("ada", {"gpus": 2, "model": T4})
        assert refused.status_code in (400, 503), refused.text
        hub.start_server("ben", {"gpus": 0})
        assert swarm.node_of("ben") != 2
    finally:
        plug(switch, 2, True)
        until(lambda: not down(), "it is up", 120)
