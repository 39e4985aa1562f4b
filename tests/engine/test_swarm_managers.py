"""A Swarm of several managers loses one while users run, start and wait; and the ledger's traps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from html import unescape
from typing import Any

import docker.errors
import pytest
import requests

from gpuspawner.simulation.state import describe
from gpuspawner.simulation.switch import plug

from ..support.hubs import Hub, until
from ..support.kills import at_call, is_dead
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

A100, T4, L40S = "NVIDIA A100-SXM4-40GB", "Tesla T4", "NVIDIA L40S"
# Three managers. The third one is the hub's, whose container is there.
STATES = (
    describe([("A100-40GB", 1)], "570.133.20"),
    describe([("T4", 3)], "550.54.15"),
    describe([("L40S", 1)], "570.133.20"),
)
ALL, ONE = {"gpus": 3, "model": T4}, {"gpus": 1, "model": T4}
# A process that nobody's server runs, and its memory in MiB.
PROCESS = (4242, 9000)


@pytest.fixture(scope="module")
def swarm(tmp_path_factory) -> Iterator[Swarm]:
    folder = tmp_path_factory.mktemp("swarm")
    with open_swarm(STATES, folder, asks=3, managers=3, hub_on=3, heartbeat=5) as made:
        assert len(made.node_ids) == 3
        yield made


@pytest.fixture(scope="module")
def flaky(swarm, tmp_path_factory) -> Iterator[Any]:
    with flaky_manager(swarm, 3, tmp_path_factory.mktemp("flaky")) as made:
        yield made


@pytest.fixture(scope="module")
def module_hub(swarm, flaky, tmp_path_factory) -> Iterator[Hub]:
    with watchful_hub(swarm, flaky, tmp_path_factory.mktemp("hub") / "hub") as made:
        yield made


@pytest.fixture
def hub(swarm, flaky, module_hub) -> Iterator[Hub]:
    """A hub without servers."""
    yield module_hub
    flaky.before = flaky.answered = lambda line: None
    until(lambda: is_whole(swarm), "all machines are there, and decide", 120)
    module_hub.begin_anew()
    swarm.clear()
    until(lambda: not swarm.running(), "nothing runs any more")
    until(lambda: not any(map(swarm.containers, (1, 2, 3))), "no container is left")


@pytest.fixture
def busy(swarm, hub) -> Hub:
    """The hub with a server on the first machine, one on the second, and one who waits for that."""
    hub.start_server("mona", {"gpus": 1, "model": A100})
    hub.start_server("ada", ALL)
    ask(hub, "wade", ALL)
    waits(hub, "wade")
    hub.add_user("nell")
    return hub


def waits(hub: Hub, user: str) -> None:
    until(lambda: "in line" in message(hub, user), f"{user} has a place", log=hub.log)


def leader(swarm: Swarm) -> str:
    """The name of the machine that leads; "": none does."""
    try:
        return next((name for name, word in swarm.managers().items() if word == "leader"), "")
    except docker.errors.APIError:
        return ""


def is_whole(swarm: Swarm) -> bool:
    """Whether all machines are ready, and all are managers that reach each other."""
    words = sorted(swarm.managers().values()) if leader(swarm) else []
    return words == ["leader", "reachable", "reachable"] and all(
        swarm.state(number) == "ready" for number in (1, 2, 3)
    )


@contextmanager
def lost(swarm: Swarm, how: str) -> Iterator[Callable[[], None]]:
    """Yield what kills the first machine's engine, or cuts it off; at the end it is there again."""
    machine, switch = swarm.cluster.hosts[0], swarm.cluster.facts.switch
    with ExitStack() as back:

        def lose() -> None:
            if how == "killed":
                machine.kill_engine()
                back.callback(machine.start_engine)
            else:
                plug(switch, 1, False)
                back.callback(plug, switch, 1, True)

        yield lose


def starts_while(hub: Hub, flaky: Any, user: str, options: Any, lose: Callable[[], None]) -> None:
    """Begin a start, in the middle of which a manager is lost."""
    begun: list[str] = []

    def before(line: str) -> None:
        if "/services/create" in line and not begun:
            begun.append(line)
            lose()

    flaky.before = before
    hub.spawn(user, options)
    until(lambda: begun, "it is begun", log=hub.log)


def is_served(swarm: Swarm, hub: Hub, user: str = "wade") -> None:
    """Who waited has all GPUs of the second machine, and nobody else has."""
    until(lambda: hub.ready(user), f"{user}'s server is ready", 120, hub.log)
    assert sorted(swarm.seen(user)) == sorted(every_gpu(swarm.cluster)["node-2"])


def page_of(hub: Hub, user: str) -> str:
    return unescape(hub.log_in(user).get(f"{hub.url}/hub/spawn/{user}").text)


# -- A manager is lost -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_of_three_managers_one_is_lost_and_nobody_s_place(swarm, busy, flaky, how):
    (before,) = swarm.containers(2)
    wanted = {"gpus": 1, "model": L40S}
    with lost(swarm, how) as lose:
        starts_while(busy, flaky, "nell", wanted, lose)
        # At first it is the one that leads.
        until(lambda: leader(swarm) in ("node-2", "node-3"), "another one leads", 120)
        until(lambda: not busy.server("nell").get("pending"), "it is settled", 120, busy.log)
        if not busy.ready("nell"):
            said = busy.progress("nell")[-1]["message"]
            assert "has no leader" in said or "didn't answer in time" in said, said
            # What the managers may have made of it all the same, the next start removes.
            busy.start_server("nell", wanted)
        assert [each["Id"] for each in swarm.containers(2)] == [before["Id"]]
        assert busy.ready("ada")
        waits(busy, "wade")
        until(lambda: swarm.state(1) == "down", "its machine is down", 120)
        # Meanwhile servers stop and start as ever.
        busy.stop_server("ada")
        until(lambda: busy.ready("wade"), "wade's server is ready", 120, busy.log)
    is_served(swarm, busy)
    # What ran on its machine ends: who had it is told, and so is the administrator.
    until(lambda: not busy.server("mona"), "the end is noticed", 120, busy.log)
    assert "Your files are kept." in page_of(busy, "mona")
    (ended,) = (
        each for each in audit_lines(busy) if each["user"] == "mona" and each["event"] == "release"
    )
    assert ended["rule"] == "machine away"
    assert held_twice(swarm) == []
    busy.start_server("mona", {"gpus": 1, "model": A100})
    assert swarm.seen("mona") == every_gpu(swarm.cluster)["node-1"]


@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_of_two_managers_one_is_lost_and_all_go_on_once_it_is_back(swarm, busy, flaky, how):
    (before,) = swarm.containers(2)
    swarm.role(2, "worker")
    until(lambda: "node-2" not in swarm.managers(), "there are two managers", 60)
    try:
        with lost(swarm, how) as lose:
            starts_while(busy, flaky, "nell", {"gpus": 1, "model": L40S}, lose)
            until(lambda: not leader(swarm), "nobody leads", 120)
            until(lambda: not busy.server("nell").get("pending"), "it is settled", 180, busy.log)
            assert not busy.ready("nell")
            assert busy.server("ada")["ready"]
            said = page_of(busy, "nell")
            # One that leads still, and reaches nobody, may not answer at all.
            assert "The Swarm has no leader" in said or "didn't answer in time" in said, said
    finally:
        until(lambda: leader(swarm), "somebody leads", 120)
        swarm.role(2, "manager")
    # The others have what they had. What is left of the start, the next one removes.
    assert [each["Id"] for each in swarm.containers(2)] == [before["Id"]]
    assert busy.ready("ada")
    waits(busy, "wade")
    busy.start_server("nell", {"gpus": 1, "model": L40S})
    busy.stop_server("ada")
    is_served(swarm, busy)
    assert held_twice(swarm) == []


def test_a_manager_that_is_killed_keeps_the_holes_of_what_is_given(swarm, hub):
    for user in ("ben", "cyd", "dora"):
        hub.start_server(user, ONE)
    given = swarm.leased()
    hub.stop_server("cyd")
    before = {each["Id"] for each in swarm.containers(2)}
    with lost(swarm, "killed") as lose:
        lose()
        until(lambda: leader(swarm) in ("node-2", "node-3"), "another one leads", 120)
    until(lambda: swarm.state(1) == "ready", "it is back", 120)
    # A change of the machine has Swarm look at all that it has given there.
    swarm.availability(2, "pause")
    swarm.availability(2, "active")
    hub.start_server("eve", ONE)
    ask(hub, "fay", ONE)
    waits(hub, "fay")
    assert swarm.leased()["eve"] == given["cyd"]
    assert swarm.seen("eve") == given["cyd"]
    assert {user: swarm.seen(user) for user in ("ben", "dora")} == {
        user: given[user] for user in ("ben", "dora")
    }
    assert before < {each["Id"] for each in swarm.containers(2)}
    assert held_twice(swarm) == []
    hub.stop_server("ben")
    until(lambda: hub.ready("fay"), "fay's server is ready", 120, hub.log)
    assert swarm.seen("fay") == given["ben"]


# -- Between a plan and its start ------------------------------------------------------------------


@pytest.fixture
def used(swarm) -> Iterator[Callable[[int, bool], None]]:
    """Have a process compute on a GPU of the second machine, by its index, or end."""
    machine = swarm.cluster.hosts[1]

    def use(index: int, is_used: bool = True) -> None:
        processes = (PROCESS,) if is_used else ()
        machine.change(lambda state: state.with_gpu(index, processes=processes))

    yield use
    for index in range(3):
        use(index, False)


@pytest.mark.parametrize("left", [1, 0])
def test_a_gpu_that_somebody_uses_since_it_was_chosen_is_not_handed_out(
    swarm, hub, flaky, used, left
):
    begun: list[str] = []

    def before(line: str) -> None:
        if "/services/create" in line and not begun:
            begun.append(line)
            for index in range(3 - left):
                used(index)

    flaky.before = before
    hub.add_user("ada")
    hub.spawn("ada", ONE)
    until(lambda: begun, "it is begun", log=hub.log)
    gpus = every_gpu(swarm.cluster)["node-2"]
    if not left:
        waits(hub, "ada")
        assert swarm.leased() == {}
        used(1, False)
    until(lambda: hub.ready("ada"), "ada's server is ready", 120, hub.log)
    assert swarm.seen("ada") == [gpus[2 if left else 1]]


# -- The hub is killed while a server stops --------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "call"),
    [("asked", "DELETE "), ("answered", "DELETE "), ("asked", "GET "), ("answered", "GET ")],
)
def test_a_hub_that_is_killed_while_a_server_stops_has_its_gpus_back(
    swarm, hub, flaky, moment, call
):
    hub.add_user("dora")
    hub.add_to_group("deaf", "dora")
    hub.start_server("dora", ALL)
    hub.start_server("rita", {"gpus": 1, "model": L40S})
    told: list[str] = []

    def wanted(_: int, line: str) -> bool:
        """Whether it is the removal, or the first look at the tasks after it."""
        if line.startswith("DELETE") and "/services/" in line:
            told.append(line)
            return call == "DELETE "
        return bool(told) and call == "GET " and line.startswith(call) and "/tasks" in line

    with at_call(hub, flaky, moment, wanted):
        with suppress(requests.RequestException):
            hub.api("DELETE", "/users/dora/server")
        until(lambda: is_dead(hub), "the hub is dead", log=hub.log)
    hub.kill()
    hub.start()
    until(lambda: not hub.server("dora").get("pending"), "it is settled", 120, hub.log)
    if (moment, call) == ("asked", "DELETE "):
        # Nobody has heard of it: it goes on, and can be stopped again.
        assert hub.ready("dora")
        hub.stop_server("dora")
    else:
        until(lambda: not hub.server("dora"), "it has ended", 120, hub.log)
        # Nobody has removed it by hand, as far as anybody knows.
        assert "it was stopped or removed" in page_of(hub, "dora")
        rules = [
            each["rule"]
            for each in audit_lines(hub)
            if each["user"] == "dora" and each["event"] == "release"
        ]
        assert rules == ["it ended by itself"]
    ask(hub, "wade", ALL)
    is_served(swarm, hub)
    assert held_twice(swarm) == []
    assert hub.ready("rita")
    assert set(swarm.leased()) == {"wade", "rita"}
