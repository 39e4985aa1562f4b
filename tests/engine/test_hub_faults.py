"""The hub, or what it rests on, fails while people wait, start and run: who has what afterwards."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import Any

import pytest

from ..support import dashboards, scenes
from ..support.clocks import Clock
from ..support.dashboards import Visitor
from ..support.hubs import until
from ..support.looks import container_of, labelled
from ..support.measured import dashboard_of
from ..support.queues import control
from ..support.scenes import COMES, RUNS, STARTS, WAITS, Scene

pytestmark = pytest.mark.engine

LINES = scenes.LINES
THOROUGH = pytest.mark.thorough
STOPPED_START = "JupyterHub was restarted while your server started. Please start it again."
LOST_PLACE = "JupyterHub was restarted while you waited for GPUs"
NETWORK = "gpuspawner"


def waits_anew(scene: Scene) -> None:
    """Who waited has read so, and gets a server as others do."""
    assert LOST_PLACE in scene.page(WAITS)
    scene.hub.spawn(WAITS, {"gpus": 2})
    until(lambda: scene.has_place() or scene.answers(WAITS), "a place", log=scene.hub.log)
    scene.hub.stop_server(RUNS)
    scene.is_served()


# ---- The hub -------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["kill", pytest.param("end", marks=THOROUGH)])
def test_a_hub_that_ends_stops_no_server(make_hub, engine, how):
    hub = make_hub(*LINES)
    scene = Scene(hub, engine)
    getattr(hub, how)()
    if how == "kill":
        scene.let_start()
        assert scene.answers(RUNS)
    hub.start()
    scene.goes_on()
    if how == "kill":
        scene.has_started()
    else:
        # It has given up what it had begun.
        assert not hub.server(STARTS)
        assert STOPPED_START in scene.page(STARTS)
    waits_anew(scene)
    scene.nothing_is_lost()


@THOROUGH
def test_a_hub_that_is_killed_ends_a_start_that_never_answers(make_hub, engine):
    hub = make_hub(*LINES)
    scene = Scene(hub, engine)
    hub.kill()
    hub.start()
    scene.goes_on()
    until(lambda: not hub.server(STARTS), "it is given up", log=hub.log)
    assert STOPPED_START in scene.page(STARTS)
    waits_anew(scene)
    scene.nothing_is_lost()


@THOROUGH
def test_a_hub_that_has_lost_its_database_leaves_servers_alone(make_hub, engine):
    hub = make_hub(*LINES, "c.GPUSpawner.unknown_server_minutes = 0.05")
    scene = Scene(hub, engine)
    hub.kill()
    (hub.folder / "jupyterhub.sqlite").unlink()
    hub.start()
    assert labelled(engine) == scene.held

    def orphans() -> dict[str, Any]:
        return {each["user"]: each["id"] for each in control(hub, do="status")["orphans"]}

    until(lambda: {*orphans()} == {RUNS, STARTS}, "both are shown", log=hub.log)
    # What is held isn't handed out.
    hub.spawn(WAITS, {"gpus": 2})
    until(scene.has_place, "who waits has a place", log=hub.log)
    # Who starts a server anew has it in place of the one of before.
    hub.start_server(RUNS, {"gpus": 1})
    assert len(labelled(engine)[RUNS]) == 1
    scene.is_served()
    until(lambda: {*orphans()} == {STARTS}, "it isn't unknown any more", log=hub.log)
    control(hub, do="stop-orphan", id=orphans()[STARTS], by="boss")
    scene.nothing_is_lost()


# ---- Its proxy and its dashboard -----------------------------------------------------------------


@THOROUGH
def test_a_proxy_that_is_killed_is_back_with_all_its_routes(module_hub, engine):
    hub = module_hub
    scene = Scene(hub, engine)
    os.kill(int((hub.folder / "jupyterhub-proxy.pid").read_text()), signal.SIGKILL)
    assert not scene.answers(RUNS)
    until(hub._answers, "the proxy is back", log=hub.log)
    scene.goes_on()
    scene.let_start()
    scene.has_started()
    scene.waits_on()
    scene.nothing_is_lost()


@THOROUGH
def test_a_dashboard_that_is_killed_is_back_and_disturbs_nobody(make_hub, engine):
    hub = make_hub(dashboards.lines(), *LINES)
    scene = Scene(hub, engine)
    boss = Visitor(hub, "boss")
    assert {each["user"] for each in boss.status()["servers"]} == {RUNS}
    pid = dashboard_of(hub)
    os.kill(pid, signal.SIGKILL)
    scene.goes_on()
    scene.let_start()
    scene.has_started()
    scene.waits_on()
    until(lambda: boss.session.get(boss.url).ok, "it is back", log=hub.log)
    shown = {STARTS, WAITS}
    until(lambda: {each["user"] for each in boss.status()["servers"]} == shown, "all are shown")
    assert dashboard_of(hub) != pid
    scene.nothing_is_lost()


# ---- The driver and the clock --------------------------------------------------------------------


@THOROUGH
def test_a_driver_that_hangs_stops_nobody(module_hub, engine, idle_host):
    hub = module_hub
    scene = Scene(hub, engine)
    idle_host.change(lambda state: replace(state, slow_milliseconds=5_000))
    scene.let_start()
    scene.has_started()
    until(lambda: "NVML" in scene.told(WAITS), "who waits reads why", log=hub.log)
    assert scene.told(WAITS).startswith("You keep your place.")
    assert scene.answers(RUNS)
    assert "NVML" in hub.failed_start(COMES, {"gpus": 1})["message"]
    idle_host.change(lambda state: replace(state, slow_milliseconds=0))
    scene.goes_on()
    scene.waits_on()
    scene.nothing_is_lost()


@THOROUGH
@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_is_set_ends_no_time_and_gives_none(
    make_hub, engine, idle_host, tmp_path, hours
):
    clock = Clock(tmp_path)
    hub = make_hub(*LINES, environment=clock.environment(idle_host.environment))
    scene = Scene(hub, engine, hours=0.5)

    def until_of(user: str) -> float:
        return next(
            each["until"] for each in control(hub, do="status")["leases"] if each["user"] == user
        )

    before = until_of(RUNS)
    clock.set(hours)
    # What is left is the same, so the end is another by the new time.
    assert until_of(RUNS) - before == pytest.approx(hours * 3600, abs=60)
    scene.let_start()
    scene.has_started()
    until(scene.has_place, "who waits has the place", log=hub.log)
    hub.kill()
    hub.start()
    scene.goes_on()
    assert until_of(RUNS) - before == pytest.approx(hours * 3600, abs=60)
    scene.has_started()
    waits_anew(scene)
    scene.nothing_is_lost()


# ---- The servers' network ------------------------------------------------------------------------


@THOROUGH
def test_a_network_that_is_taken_away_is_made_anew_with_who_was_on_it(module_hub, engine):
    hub = module_hub
    scene = Scene(hub, engine)
    attached = engine.inspect_network(NETWORK)["Containers"]
    assert len(attached) == 2
    for container in attached:
        engine.disconnect_container_from_network(container, NETWORK, force=True)
    engine.remove_network(NETWORK)
    scene.goes_on()
    scene.let_start()
    scene.has_started()
    for user, address in scene.addresses.items():
        networks = engine.inspect_container(container_of(engine, user))["NetworkSettings"]
        assert networks["Networks"][NETWORK]["IPAddress"] == address
    scene.waits_on()
    scene.nothing_is_lost()
