"""A dashboard without the engine and without GPUs, on a real hub that nobody has come to yet."""

from __future__ import annotations

import asyncio

import pytest

from gpuspawner.hub.control_socket import ask

from ..support import dashboards
from ..support.dashboards import Visitor, states
from ..support.hubs import until

pytestmark = pytest.mark.engine

# JupyterHub passes on little of its environment to a service, and no LD_LIBRARY_PATH: it finds
# neither the simulated driver nor, with this, an engine.
ALONE = """
(gpus, *others) = c.JupyterHub.services
away = {"DOCKER_HOST": "unix:///nowhere/docker.sock"}
gpus = {**gpus, "command": [*gpus["command"], "--from-hub"], "environment": away}
c.JupyterHub.services = [gpus, *others]
"""


@pytest.fixture(scope="module")
def _hub(hubs_of_run, minimal_image):
    hub = hubs_of_run(dashboards.lines(), ALONE)
    yield hub
    hub.stop()


@pytest.fixture
def hub(idle_host, _hub):
    yield _hub
    _hub.stop_all_servers()


@pytest.mark.thorough
def test_a_hub_tells_of_its_gpus_before_anybody_comes(make_hub):
    hub = make_hub(dashboards.lines(), ALONE)
    socket = hub.folder / "gpuspawner.sock"
    until(socket.exists, "the hub's state is there", log=hub.log)
    told = asyncio.run(ask(str(socket), {"do": "nodes"}, 30))
    assert [gpu["state"] for gpu in told["nodes"][0]["gpus"]] == ["free"] * 4


@pytest.mark.thorough
def test_it_shows_who_has_what_and_extends(hub):
    hub.start_server("ada", {"gpus": 2, "hours": 1})
    ada = Visitor(hub, "ada")
    until(lambda: states(ada.status()).count("leased") == 2, "they are seen", log=hub.log)
    seen = ada.status()
    assert [gpu["yours"] for gpu in seen["gpus"]].count(True) == 2
    assert seen["driver"]
    assert ada.said(do="extend", user="ada", server="").startswith("Your server now ends at ")


@pytest.mark.thorough
def test_an_administrator_takes_gpus_out_of_service_through_the_hub(hub, engine):
    boss = Visitor(hub, "boss")
    until(lambda: states(boss.status()) == ["free"] * 4, "all are free", log=hub.log)
    uuid = boss.status()["gpus"][3]["uuid"]
    boss.press(do="out-of-service", gpu=uuid, why="loud fan")
    assert states(boss.status()) == ["free", "free", "free", "excluded"]
    assert boss.status()["gpus"][3]["out_of_service"]["by"] == "boss"
    assert [each["Name"] for each in engine.volumes()["Volumes"]] == [
        f"gpuspawner-out-of-service-{uuid}"
    ]
    boss.press(do="in-service", gpu=uuid)
    assert states(boss.status()) == ["free"] * 4
