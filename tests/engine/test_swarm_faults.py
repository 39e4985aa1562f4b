"""Machines and managers of a Swarm fail while one user runs, one starts and one waits."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from gpuspawner.simulation.state import describe
from gpuspawner.simulation.switch import plug

from ..support import plain_image
from ..support.hubs import Hub, until
from ..support.queues import ask, audit_lines, message
from ..support.swarms import (
    Swarm,
    every_gpu,
    flaky_manager,
    held_twice,
    open_swarm,
    watchful_hub,
)

pytestmark = [pytest.mark.engine, pytest.mark.thorough, pytest.mark.timeout(600)]

T4, L40S = "Tesla T4", "NVIDIA L40S"
ALL = {"gpus": 2, "model": T4}
# The hub's own container is on the third, so that the manager's engine can be restarted.
STATES = (
    describe([("A100-40GB", 1)], "570.133.20"),
    describe([("T4", 2)], "550.54.15"),
    describe([("L40S", 1)], "570.133.20"),
)


@pytest.fixture(scope="module")
def swarm(tmp_path_factory) -> Iterator[Swarm]:
    folder = tmp_path_factory.mktemp("swarm")
    with open_swarm(STATES, folder, hub_on=3, heartbeat=5) as made:
        yield made


@pytest.fixture(scope="module")
def flaky(swarm, tmp_path_factory) -> Iterator[Any]:
    with flaky_manager(swarm, 1, tmp_path_factory.mktemp("flaky")) as made:
        yield made


@pytest.fixture(scope="module")
def module_hub(swarm, flaky, tmp_path_factory) -> Iterator[Hub]:
    with watchful_hub(swarm, flaky, tmp_path_factory.mktemp("hub") / "hub") as made:
        yield made


@pytest.fixture
def hub(swarm, flaky, module_hub) -> Iterator[Hub]:
    """A hub on which ada has both GPUs of the second machine, and wade waits for them."""
    module_hub.start_server("ada", ALL)
    ask(module_hub, "wade", ALL)
    waits_on(module_hub)
    yield module_hub
    flaky.refuse(None)
    plug(swarm.cluster.facts.switch, 2, True)
    until(lambda: swarm.state(2) == "ready", "the machine is up", 120)
    swarm.availability(2, "active")
    module_hub.begin_anew()
    swarm.clear()
    until(lambda: not swarm.running(), "nothing runs any more")
    until(lambda: not swarm.containers(2), "no container is left")


def waits_on(hub: Hub) -> None:
    until(lambda: "in line" in message(hub, "wade"), "wade has a place", log=hub.log)


def is_served(swarm: Swarm, hub: Hub) -> None:
    """Who waited has both GPUs, and nobody else has."""
    until(lambda: hub.ready("wade"), "wade's server is ready", 120, hub.log)
    assert held_twice(swarm) == []
    assert sorted(swarm.seen("wade")) == sorted(every_gpu(swarm.cluster)["node-2"])


def has_ended(hub: Hub, words: str, rule: str, user: str = "ada") -> None:
    """Whose server ran has none any more, and is told why; so are administrators."""
    until(lambda: not hub.server(user), "the end is noticed", 120, hub.log)
    page = hub.log_in(user).get(f"{hub.url}/hub/spawn/{user}")
    assert words in page.text, (page.status_code, page.url, page.history)
    assert "Your files are kept." in page.text
    lines = [each for each in audit_lines(hub) if each["user"] == user]
    assert [each["rule"] for each in lines if each["event"] == "release"] == [rule]


@contextmanager
def away(swarm: Swarm, hub: Hub) -> Iterator[None]:
    """Cut the second machine off until Swarm takes it for down, and plug it in at the end."""
    switch = swarm.cluster.facts.switch
    plug(switch, 2, False)
    try:
        until(lambda: swarm.state(2) == "down", "it is down", 120, hub.log)
        yield
    finally:
        plug(switch, 2, True)


def the_container(swarm: Swarm) -> str:
    """The id of the one container on the second machine."""
    (container,) = swarm.containers(2)
    return str(container["Id"])


# -- The machine -----------------------------------------------------------------------------------


def test_a_machine_that_is_away_for_a_moment_loses_nothing(swarm, hub):
    before = the_container(swarm)
    plug(swarm.cluster.facts.switch, 2, False)
    try:
        until(lambda: "Node node-2: unknown" in hub.log(), "it is noticed", log=hub.log)
        waits_on(hub)
    finally:
        plug(swarm.cluster.facts.switch, 2, True)
    until(lambda: "Node node-2 answers again" in hub.log(), "it answers", log=hub.log)
    assert hub.ready("ada")
    assert the_container(swarm) == before
    waits_on(hub)
    hub.stop_server("ada")
    is_served(swarm, hub)


def test_a_machine_that_is_away_for_long_ends_its_servers_and_everybody_is_told(swarm, hub):
    with away(swarm, hub):
        said = "machine away"
        until(lambda: said in hub.log(), "it is noticed", log=hub.log)
        home = hub.log_in("ada").get(f"{hub.url}/hub/home").text
        assert "The machine on which your server runs is out of reach" in home
        waits_on(hub)
        assert len(swarm.containers(2)) == 1
    has_ended(hub, "its machine was out of reach for too long", "machine away")
    is_served(swarm, hub)


def test_who_stops_a_server_that_is_out_of_reach_gives_its_gpus_back_with_the_machine(swarm, hub):
    with away(swarm, hub):
        hub.stop_server("ada")
        hub.start_server("ada", {"gpus": 0})
        assert swarm.leased()["ada"] == []
        waits_on(hub)
    is_served(swarm, hub)
    assert hub.ready("ada")


def test_a_hub_that_is_killed_while_a_machine_is_away_finds_out(swarm, hub):
    with away(swarm, hub):
        hub.kill()
        hub.start()
    has_ended(hub, "its machine was out of reach", "machine away")
    # Who waited has lost the place, as with one machine, and comes again.
    ask(hub, "wade", ALL)
    is_served(swarm, hub)


def test_a_machine_that_is_emptied_ends_its_servers_and_is_used_again(swarm, hub):
    swarm.availability(2, "drain")
    has_ended(hub, "an administrator has emptied its machine.", "machine drained")
    waits_on(hub)
    assert swarm.containers(2) == []
    swarm.availability(2, "active")
    is_served(swarm, hub)


def test_a_machine_that_takes_no_more_servers_keeps_those_that_run(swarm, hub):
    before = the_container(swarm)
    swarm.availability(2, "pause")
    waits_on(hub)
    assert hub.ready("ada")
    assert the_container(swarm) == before
    hub.stop_server("ada")
    waits_on(hub)
    swarm.availability(2, "active")
    is_served(swarm, hub)


def test_a_machines_engine_that_is_started_anew_ends_its_servers(swarm, hub):
    machine = swarm.cluster.hosts[1]
    machine.stop_engine()
    machine.start_engine()
    until(lambda: not hub.server("ada"), "the end is noticed", 120, hub.log)
    assert "Your files are kept." in hub.log_in("ada").get(f"{hub.url}/hub/spawn/ada").text
    is_served(swarm, hub)


def test_a_daemon_that_says_nothing_ends_no_server_and_gives_no_gpu(swarm, hub):
    pid = daemon_of(swarm, 2)
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: "Node node-2: unknown" in hub.log(), "it is noticed", log=hub.log)
        assert hub.ready("ada")
        hub.stop_server("ada")
        waits_on(hub)
        assert swarm.containers(2) == []
    finally:
        os.kill(pid, signal.SIGCONT)
    is_served(swarm, hub)


def daemon_of(swarm: Swarm, number: int) -> int:
    """The process of a machine's daemon, by the machine's number from 1."""
    folder = f"{swarm.cluster.hosts[number - 1].directory}/node"
    for each in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (each / "cmdline").read_text().split("\0")
            if "serve" in words and folder in words and Path(words[0]).name != "sh":
                return int(each.name)
    raise AssertionError("it has no daemon")


# -- By hand ---------------------------------------------------------------------------------------


def test_a_service_that_is_restarted_by_hand_is_ended(swarm, hub):
    swarm.update("ada", force=True)
    has_ended(hub, "somebody restarted it in the Swarm by hand", "service restarted")
    is_served(swarm, hub)


def test_a_service_that_is_scaled_by_hand_keeps_its_first_container(swarm, hub):
    before = the_container(swarm)
    swarm.update("ada", replicas=2)
    until(lambda: len(swarm.running()) == 2, "there is a second task")
    waits_on(hub)
    assert hub.ready("ada")
    assert the_container(swarm) == before
    hub.stop_server("ada")
    is_served(swarm, hub)


@pytest.mark.parametrize("how", ["remove", "scale"])
def test_a_service_that_is_removed_by_hand_gives_its_gpus_back(swarm, hub, how):
    if how == "remove":
        (service,) = swarm.services().values()
        swarm.manager.remove_service(service["ID"])
        has_ended(hub, "somebody removed it from the Swarm by hand", "service removed")
    else:
        swarm.update("ada", replicas=0)
        has_ended(hub, "stopped or removed", "it ended by itself")
    is_served(swarm, hub)


def test_a_container_that_is_removed_on_its_machine_gives_its_gpus_back(swarm, hub):
    swarm.clients[1].remove_container(the_container(swarm), force=True)
    has_ended(hub, "stopped or removed", "it ended by itself")
    is_served(swarm, hub)


def test_a_container_made_by_hand_on_a_machine_has_its_gpu_until_it_ends(swarm, hub):
    one, _ = every_gpu(swarm.cluster)["node-2"]
    client = swarm.clients[1]
    variables = {"NVIDIA_VISIBLE_DEVICES": one}
    made = client.create_container(
        plain_image.IMAGE, plain_image.COMMAND, environment=variables, name="by-hand"
    )
    client.start(made["Id"])
    try:
        # It uses nothing, so that NVML alone would say that the GPU is free.
        hub.stop_server("ada")
        # Whoever starts has all read anew.
        hub.start_server("nell", {"gpus": 1, "model": L40S})
        waits_on(hub)
        assert list(swarm.leased()) == ["nell"]
    finally:
        client.remove_container(made["Id"], force=True)
    is_served(swarm, hub)


def test_a_container_that_does_not_end_when_it_is_told_to_is_killed(swarm, hub):
    hub.add_user("dora")
    hub.add_to_group("deaf", "dora")
    hub.start_server("dora", {"gpus": 1, "model": L40S})
    hub.stop_server("dora")
    until(lambda: swarm.containers(3) == [], "its container is gone", log=hub.log)
    hub.start_server("nell", {"gpus": 1, "model": L40S})
    waits_on(hub)


# -- The managers ----------------------------------------------------------------------------------


def test_a_manager_that_is_killed_takes_nobodys_place(swarm, hub):
    before, manager = the_container(swarm), swarm.cluster.hosts[0]
    manager.kill_engine()
    try:
        until(lambda: "can't be reached" in hub.log(), "it is noticed", log=hub.log)
        assert hub.server("ada")
    finally:
        manager.start_engine()
    until(lambda: swarm.cluster.node_ids(), "the Swarm is there again")
    waits_on(hub)
    assert the_container(swarm) == before
    hub.stop_server("ada")
    is_served(swarm, hub)


@pytest.mark.parametrize("path", ["/tasks", "/services/create", "/services", "/nodes"])
def test_a_start_while_managers_refuse_is_made_or_undone(swarm, hub, flaky, path):
    """Whatever it was in the middle of: nothing of it is left, and the next one works."""
    wanted = {"gpus": 1, "model": L40S}
    hub.add_user("nell")
    begun: list[str] = []

    def before(line: str) -> None:
        if "/services/create" in line and not begun:
            begun.append(line)
            flaky.refuse(path)

    flaky.before = before
    hub.spawn("nell", wanted)
    until(lambda: begun, "it is begun", log=hub.log)
    time.sleep(2)  # what is asked meanwhile, is refused
    flaky.before = lambda line: None
    flaky.refuse(None)
    until(lambda: not hub.server("nell").get("pending"), "it is settled", 120, hub.log)
    until(lambda: hub.ready("nell") or "nell" not in swarm.leased(), "nothing is left", 240)
    if not hub.ready("nell"):
        hub.spawn("nell", wanted)
        until(lambda: hub.ready("nell"), "the next one works", 120, lambda: message(hub, "nell"))
    assert held_twice(swarm) == []
    assert swarm.leased()["nell"] == every_gpu(swarm.cluster)["node-3"]
    assert hub.ready("ada")
    waits_on(hub)


@pytest.mark.parametrize("path", ["/tasks", "/services"])
def test_a_stop_while_managers_refuse_happens_all_the_same(swarm, hub, flaky, path):
    flaky.refuse(path)
    hub.api("DELETE", "/users/ada/server")
    until(lambda: "on strike" in hub.log(), "it is refused", log=hub.log)
    flaky.refuse(None)
    is_served(swarm, hub)
    assert "ada" not in swarm.leased()


def test_a_hub_that_starts_while_managers_refuse_knows_its_servers_afterwards(swarm, hub, flaky):
    before = the_container(swarm)
    hub.kill()
    flaky.refuse("/services")
    hub.start()
    until(lambda: "on strike" in hub.log(), "it is refused", log=hub.log)
    flaky.refuse(None)
    until(lambda: hub.ready("ada"), "ada's server is known", log=hub.log)
    assert the_container(swarm) == before
    # While it couldn't be read, neither was it known that wade has no server.
    until(lambda: hub.spawn("wade", ALL).ok, "wade can ask again", 120, hub.log)
    waits_on(hub)
