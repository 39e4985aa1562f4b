"""The hub is killed at each step of a start: no GPU has two holders or none, and all are told."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import Any

import pytest
import requests

from ..support.flaky import flaky_engine
from ..support.hubs import Hub, until
from ..support.kills import AT_AWAITS, at_await, at_call, is_dead
from ..support.looks import containers, free_gpus, labelled

pytestmark = pytest.mark.engine

RUNS, STARTS = "rita", "stan"
RESTARTED = "JupyterHub was restarted while your server started. Please start it again."


class Killing:
    """A hub with one server that runs, and a start that the hub doesn't live to see the end of."""

    def __init__(self, hub: Hub, engine: Any) -> None:
        self.hub, self.engine = hub, engine
        hub.start_server(RUNS, {"gpus": 1})
        self.held = labelled(engine)[RUNS]

    def start(self, killing: AbstractContextManager[None]) -> bool:
        """Start a server, and the hub again if that has killed it; return whether it has."""
        hub = self.hub
        hub.add_user(STARTS)
        with killing, ThreadPoolExecutor(1) as other:
            asked = other.submit(self._ask)
            until(lambda: asked.done() and self._is_over(), "it is over", log=hub.log)
        killed = is_dead(hub)
        if killed:
            hub.kill()
            hub.start()
        return killed

    def _ask(self) -> None:
        with suppress(requests.RequestException):
            self.hub.spawn(STARTS, {"gpus": 3})

    def _is_over(self) -> bool:
        with suppress(requests.RequestException, ValueError):
            return is_dead(self.hub) or self.hub.ready(STARTS)
        return False

    def check(self) -> str:
        """Check that who started has all of it or nothing, and knows; return which."""
        hub = self.hub
        until(lambda: not hub.server(STARTS).get("pending"), "it is settled", log=hub.log)
        ready = hub.ready(STARTS)
        if ready:
            held = labelled(self.engine)
            assert len(held[STARTS]) == 3
            assert not {*held[STARTS]} & {*self.held}
            hub.stop_server(STARTS)
        else:
            page = hub.log_in(STARTS).get(f"{hub.url}/hub/spawn/{STARTS}").text
            assert RESTARTED in page, page
        until(lambda: len(free_gpus()) == 3, "the GPUs are free", log=hub.log)
        until(lambda: len(containers(self.engine)) == 1, "nothing is left", log=hub.log)
        assert hub.ready(RUNS)
        assert labelled(self.engine) == {RUNS: self.held}
        return "has a server" if ready else "is told"


def each_step(killing: Killing, at: Callable[[int], AbstractContextManager[None]]) -> list[str]:
    """Go through a start's steps until it has no more; return how each went."""
    found: list[str] = []
    while killing.start(at(len(found) + 1)):
        found.append(killing.check())
    assert killing.check() == "has a server"
    return found


@pytest.fixture
def engine_between(idle_host, tmp_path):
    with flaky_engine(idle_host.socket, tmp_path / "flaky.sock") as flaky:
        yield flaky


def test_a_hub_killed_before_the_container_s_start_and_after_its_creation_loses_no_gpu(
    make_hub, idle_host, engine, engine_between
):
    hub = make_hub(environment={**idle_host.environment, "DOCKER_HOST": engine_between.url})
    killing = Killing(hub, engine)
    for moment, call in (("answered", "create"), ("asked", "start")):
        wanted = re.compile(rf"POST \S*/{call}\b").match
        at = at_call(hub, engine_between, moment, lambda _, line, wanted=wanted: wanted(line))
        assert killing.start(at)
        assert killing.check() == "is told"


@pytest.mark.thorough
@pytest.mark.timeout(900)
@pytest.mark.parametrize("moment", ["asked", "answered"])
def test_a_hub_killed_at_each_call(make_hub, idle_host, engine, engine_between, moment):
    hub = make_hub(environment={**idle_host.environment, "DOCKER_HOST": engine_between.url})
    calls: list[str] = []

    def at(nth: int) -> AbstractContextManager[None]:
        def wanted(number: int, line: str) -> bool:
            if number == nth:
                calls.append(line)
            return number == nth

        return at_call(hub, engine_between, moment, wanted)

    found = each_step(Killing(hub, engine), at)
    print(*(f"\n{line}: who starts {how}" for line, how in zip(calls, found, strict=True)))
    assert any("/containers/create" in line for line in calls)
    assert {*found} == {"is told", "has a server"}


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_a_hub_killed_at_each_await(make_hub, engine):
    hub = make_hub(AT_AWAITS)
    found = each_step(Killing(hub, engine), lambda number: at_await(hub, number))
    print(found)
    assert {*found} == {"is told", "has a server"}
