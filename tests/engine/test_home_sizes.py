"""How much users keep at home, on a real hub and engine."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import docker
import pytest
import requests

from gpuspawner.backends.docker.set_aside import list_volumes
from gpuspawner.backends.docker.volume_folders import engines_sizes, folder_of, size_of
from gpuspawner.doctor import homes
from gpuspawner.doctor.findings import Configuration, Context

from ..support.dashboards import Visitor, check, lines
from ..support.hubs import until
from ..support.looks import inside

pytestmark = pytest.mark.engine

LINES = (
    lines(),
    'c.GPUSpawner.home_volume = "home-{username}"',
    'c.GPUSpawner.home_size = "2M"',
)


def fill(engine, user):
    inside(engine, user, "dd if=/dev/zero of=/home/jovyan/work/big bs=1M count=3 2>/dev/null; sync")


@pytest.mark.thorough
def test_users_read_it_in_the_form_on_the_dashboard_and_over_its_api(module_hub, engine):
    hub = module_hub
    # An engine on a disk without quotas refuses them: the server starts all the same.
    hub.start_server("ada", {"gpus": 0})
    assert "home_size is told to users, and isn't enforced" in hub.log()
    fill(engine, "ada")
    ada, boss = Visitor(hub, "ada"), Visitor(hub, "boss")
    until(lambda: check("Status", ada.status())["homes"], "ada's home is measured", log=hub.log)
    (home,) = boss.status()["homes"]
    assert (home["user"], home["allowed_bytes"]) == ("ada", 2 * 2**20)
    assert not home["enforced"]
    assert "Files of those whose servers run" in boss.page()
    assert "Your files take" in ada.page()
    hub.stop_server("ada")
    form = ada.session.get(f"{hub.url}/hub/spawn").text
    assert "Your files take" in form
    # Nobody else's.
    assert "Your files take" not in Visitor(hub, "ben").session.get(f"{hub.url}/hub/spawn").text


def measured(engine):
    """Return what the engine measures, which it refuses while it measures for somebody else."""
    found = {}

    def is_done():
        with suppress(requests.HTTPError):
            found.update(engines_sizes(engine))
        return bool(found)

    until(is_done, "the engine measures")
    return found


@pytest.mark.thorough
def test_the_hub_and_the_engine_measure_the_same(module_hub, engine):
    module_hub.start_server("ada", {"gpus": 0})
    fill(engine, "ada")
    here = size_of(folder_of(engine.inspect_volume("home-ada")))
    theirs = measured(engine)["home-ada"]
    for size in (here, theirs):
        assert 3 * 2**20 <= size < 3.5 * 2**20


@pytest.mark.thorough
def test_doctor_tells_whether_it_is_enforced(idle_host, engine):
    values = {"home_volume": "home-{username}", "home_size": 2 * 2**20}
    given = Configuration(Path("config.py"), "", True, values, {}, {})
    client = docker.DockerClient(base_url=idle_host.docker_host, version="auto")
    context = Context(None, Path(), engine=client, engine_info=client.info(), engine_is_here=True)
    context.configuration = given
    (found,) = homes.homes(context)
    assert found.state == "warning"
    assert "c.GPUSpawner.home_size = 2 MB is told to users, and isn't enforced" in found.found
    assert "no quota support" in found.found
    assert list(list_volumes(engine).volumes) == []
    client.close()
