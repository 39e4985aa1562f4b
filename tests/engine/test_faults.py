"""The engine or the driver fails while people wait, start and run: who has what afterwards."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ..support import scenes
from ..support.hubs import until
from ..support.looks import labelled
from ..support.scenes import COMES, RUNS, STARTS, WAITS, Scene

pytestmark = pytest.mark.engine

LINES = scenes.LINES
THOROUGH = pytest.mark.thorough


@pytest.fixture
def scene(module_hub, engine) -> Scene:
    """One user runs, one starts and one waits."""
    return Scene(module_hub, engine)


def engine_pid(host) -> int:
    return int((host.directory / "docker.pid").read_text())


@contextmanager
def halted(host) -> Iterator[None]:
    """Stop the engine's process: connections are taken, and nothing answers."""
    os.kill(engine_pid(host), signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(engine_pid(host), signal.SIGCONT)


@contextmanager
def live_restore(host, engine) -> Iterator[None]:
    """Have the engine leave containers alone when it ends."""
    file = host.directory / "daemon.json"
    before = file.read_text()

    def turn(on: bool) -> None:
        # A line that is gone changes nothing when the engine reads its file again.
        file.write_text(json.dumps({**json.loads(before), "live-restore": on}))
        os.kill(engine_pid(host), signal.SIGHUP)
        until(lambda: engine.info()["LiveRestoreEnabled"] is on, "the engine has read it")

    turn(True)
    try:
        yield
    finally:
        turn(False)
        file.write_text(before)


@contextmanager
def away(host, how: str) -> Iterator[None]:
    """End the engine by "stop" or "kill", and start it again."""
    getattr(host, f"{how}_engine")()
    try:
        yield
    finally:
        host.start_engine()


def keeps_the_place(scene: Scene, why: str) -> None:
    until(lambda: why in scene.told(WAITS), "who waits reads why", log=scene.hub.log)
    assert scene.told(WAITS).startswith("You keep your place.")


def test_an_engine_that_hangs_stops_nobody(scene, host):
    hub = scene.hub
    with halted(host):
        scene.let_start()
        until(lambda: scene.answers(STARTS), "it starts all the same", log=hub.log)
        keeps_the_place(scene, "didn't answer in time")
        assert scene.answers(RUNS)
        assert "didn't answer in time" in hub.failed_start(COMES, {"gpus": 1})["message"]
        until(lambda: f"Whether {RUNS} runs isn't known" in hub.log(), "the log says so")
    scene.goes_on()
    scene.has_started()
    scene.waits_on()
    scene.nothing_is_lost()


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["kill", pytest.param("stop", marks=THOROUGH)])
def test_an_engine_that_ends_with_live_restore_stops_no_server(scene, host, engine, how):
    with live_restore(host, engine):
        with away(host, how):
            keeps_the_place(scene, "can't be reached")
            assert scene.answers(RUNS)
        scene.goes_on()
        scene.let_start()
        scene.has_started()
        scene.waits_on()
    scene.nothing_is_lost()


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["kill", pytest.param("stop", marks=THOROUGH)])
def test_an_engine_that_ends_takes_the_servers_along(scene, host, how):
    with away(host, how):
        keeps_the_place(scene, "can't be reached")
    # The other is JupyterHub's word, where the engine was away for all of the server's time.
    words = scene.start_failed()
    assert "stopped while starting" in words or "didn't respond in" in words
    scene.is_served()
    scene.has_ended("its container was stopped or removed, as by a restart")
    scene.nothing_is_lost()


@THOROUGH
def test_a_machine_that_loses_engine_and_containers_at_once(scene, host, engine):
    with live_restore(host, engine), away(host, "kill"):
        for pid in scene.pids.values():
            os.kill(pid, signal.SIGKILL)
        keeps_the_place(scene, "can't be reached")
    # The other is JupyterHub's word, where the engine was away for all of the server's time.
    words = scene.start_failed()
    assert "stopped while starting" in words or "didn't respond in" in words
    scene.is_served()
    scene.has_ended("its container was stopped or removed, as by a restart")
    scene.nothing_is_lost()


@pytest.mark.thorough
def test_a_server_that_is_killed_from_outside_ends_with_a_word(scene, engine):
    """Of three that change at once, each is told what became of it."""
    os.kill(scene.pids[RUNS], signal.SIGKILL)
    scene.is_served()
    scene.has_ended("its container was stopped or removed")
    os.kill(scene.pids[STARTS], signal.SIGKILL)
    assert "stopped while starting (exit 137)" in scene.start_failed()
    assert list(labelled(engine)) == [WAITS]
    scene.nothing_is_lost()
