"""A configuration written for DockerSpawner works unchanged."""

from __future__ import annotations

import re

import pytest

from ..support.hubs import until
from ..support.looks import container_of, containers, inside, labelled

pytestmark = pytest.mark.engine

REFERENCE = "gpuspawner/minimal:py3.11"
# The usual configuration names images by our trait; DockerSpawner's have only its own.
NO_IMAGES = "c.GPUSpawner.images = {}"


@pytest.fixture
def no_driver(idle_host):
    """The simulated host's engine, and no NVML: a machine without an NVIDIA driver."""
    without = {"LD_LIBRARY_PATH", "GPUSPAWNER_SIMULATED_STATE"}
    return {k: v for k, v in idle_host.environment.items() if k not in without}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("allowed", "key"),
    [
        (f'["{REFERENCE}"]', REFERENCE),
        (f'{{"Our image": "{REFERENCE}", "other": "no/such:image"}}', "Our image"),
        (f'lambda spawner: {{"for " + spawner.user.name: "{REFERENCE}"}}', "for ada"),
    ],
)
def test_allowed_images_are_the_catalogue(make_hub, no_driver, engine, allowed, key):
    hub = make_hub(
        NO_IMAGES,
        f'c.DockerSpawner.image = "{REFERENCE}"',
        f"c.DockerSpawner.allowed_images = {allowed}",
        environment=no_driver,
    )
    hub.start_server("ada", {"image": key})
    assert engine.inspect_container(container_of(engine, "ada"))["Config"]["Image"] == REFERENCE
    assert labelled(engine) == {"ada": []}
    refused = hub.spawn("ben", {"image": "ubuntu"})
    assert refused.status_code == 400
    assert "ubuntu" in refused.json()["message"]


def test_image_alone_starts_at_once_without_a_form(make_hub, no_driver, engine):
    hub = make_hub(NO_IMAGES, f'c.DockerSpawner.image = "{REFERENCE}"', environment=no_driver)
    session = hub.log_in("ada")
    page = session.get(f"{hub.url}/hub/spawn", allow_redirects=False)
    assert page.status_code == 302, page.text
    until(lambda: hub.ready("ada"), "the server is ready", log=hub.log)
    refused = hub.spawn("ben", {"image": REFERENCE})
    assert refused.status_code == 400
    assert "on this hub there is none to choose" in refused.json()["message"]


def test_the_administrator_s_extras_are_joined_and_not_lost(make_hub, engine):
    hub = make_hub(
        "import docker",
        "async def extra(spawner):",
        "    files = docker.types.Ulimit(name='nofile', soft=2048, hard=4096)",
        "    every = docker.types.DeviceRequest(count=-1, capabilities=[['gpu', 'utility']])",
        "    return {'device_requests': [every], 'cap_drop': ['ALL'], 'ulimits': [files],",
        "            'extra_hosts': {'files': '10.1.2.3'}}",
        "c.DockerSpawner.extra_host_config = extra",
        "c.DockerSpawner.extra_create_kwargs = {'labels': {'team': 'lab {username}',",
        "    'gpuspawner.gpus': 'all'}, 'hostname': 'lab'}",
        "c.DockerSpawner.environment = {'NVIDIA_VISIBLE_DEVICES': 'all', 'COURSE': 'ml'}",
        "c.DockerSpawner.mem_limit = lambda spawner: '1G'",
        "c.DockerSpawner.cpu_limit = 1.5",
    )
    hub.start_server("ada", {"gpus": 1})
    container = engine.inspect_container(container_of(engine, "ada"))
    host, config = container["HostConfig"], container["Config"]
    (request,) = host["DeviceRequests"]
    granted = labelled(engine)["ada"]
    assert len(granted) == 1
    assert request["DeviceIDs"] == granted
    assert request["Count"] == 0
    assert set(request["Capabilities"][0]) == {"gpu", "utility"}
    assert host["CapDrop"] == ["ALL"]
    assert host["ExtraHosts"] == ["files:10.1.2.3"]
    assert {"Name": "nofile", "Soft": 2048, "Hard": 4096} in host["Ulimits"]
    assert "stack" in {limit["Name"] for limit in host["Ulimits"]}
    assert host["ShmSize"] == 8 * 1024**3
    assert host["Memory"] == 1024**3
    assert host["CpuQuota"] == 150_000
    assert config["Labels"]["team"] == "lab ada"
    assert config["Labels"]["gpuspawner.gpus"] == granted[0]
    assert f"NVIDIA_VISIBLE_DEVICES={granted[0]}" in config["Env"]
    assert f"GPUSPAWNER_GPUS={granted[0]}" in config["Env"]
    assert "COURSE=ml" in config["Env"]


def test_own_options_of_the_administrator_reach_their_hook(make_hub, engine):
    hub = make_hub(
        "def apply(spawner, options):",
        "    spawner.environment = {'COURSE': str(options.get('course'))}",
        "c.DockerSpawner.apply_user_options = apply",
    )
    hub.start_server("ada", {"course": "ml", "gpus": 0})
    assert "COURSE=ml" in inside(engine, "ada", "env").splitlines()
    # Their keys are theirs; ours stay checked.
    assert hub.spawn("ben", {"course": "ml", "gpus": "all"}).status_code == 400


def test_a_kept_container_without_gpus_is_started_again(make_hub, engine):
    hub = make_hub("c.DockerSpawner.remove = False")
    hub.start_server("ada", {"gpus": 0})
    first = engine.inspect_container(container_of(engine, "ada"))["Id"]
    inside(engine, "ada", "touch ~/kept")
    hub.stop_server("ada")
    assert [c["State"] for c in containers(engine)] == ["exited"]
    hub.start_server("ada", {"gpus": 0})
    assert engine.inspect_container(container_of(engine, "ada"))["Id"] == first
    assert inside(engine, "ada", "ls ~/kept").endswith("kept")


def test_a_kept_container_is_replaced_where_gpus_were_or_are_granted(make_hub, engine):
    hub = make_hub("c.DockerSpawner.remove = False")
    hub.start_server("ada", {"gpus": 2})
    first = engine.inspect_container(container_of(engine, "ada"))["Id"]
    hub.stop_server("ada")
    # A stopped container holds nothing.
    hub.start_server("ben", {"gpus": 4})
    hub.stop_server("ben")
    for count in (2, 0):
        hub.start_server("ada", {"gpus": count})
        second = engine.inspect_container(container_of(engine, "ada"))["Id"]
        assert second != first
        assert len(labelled(engine)["ada"]) == count
        assert "left by an earlier server" in hub.log()
        hub.stop_server("ada")
        first = second


def test_post_start_command_runs(make_hub, engine):
    hub = make_hub('c.DockerSpawner.post_start_cmd = "touch /tmp/started"')
    hub.start_server("ada", {"gpus": 1})
    assert inside(engine, "ada", "ls /tmp/started") == "/tmp/started"


def test_a_kept_container_is_replaced_where_anything_else_has_changed(make_hub, engine):
    """Somebody who no longer is an instructor must not write the course from the old container."""
    hub = make_hub(
        "c.DockerSpawner.remove = False",
        "c.JupyterHub.load_groups = {'instructors': {'users': ['ada']}}",
        'c.GPUSpawner.course_volumes = {"course": {"path": "/home/jovyan/course",'
        ' "instructors": "instructors"}}',
    )
    hub.start_server("ada", {"gpus": 0})
    first = engine.inspect_container(container_of(engine, "ada"))
    assert [mount["RW"] for mount in first["Mounts"]] == [True]
    hub.stop_server("ada")
    hub.api("DELETE", "/groups/instructors/users", {"users": ["ada"]})
    hub.start_server("ada", {"gpus": 0})
    second = engine.inspect_container(container_of(engine, "ada"))
    assert second["Id"] != first["Id"]
    assert [mount["RW"] for mount in second["Mounts"]] == [False]


@pytest.mark.thorough
def test_a_server_that_runs_under_another_name_is_taken_up(make_hub, engine):
    """As those of DockerSpawner, and of versions of ours that named containers by their users."""
    line = 'c.GPUSpawner.name_template = "{prefix}-{username}"'
    hub = make_hub(line)
    hub.start_server("ada", {"gpus": 1})
    first = engine.inspect_container("jupyter-ada")["Id"]
    config = hub.folder / "jupyterhub_config.py"
    config.write_text(config.read_text().replace(line, ""))
    hub.stop()
    hub.start()
    assert hub.ready("ada")
    assert container_of(engine, "ada") == first
    hub.stop_server("ada")
    assert engine.containers(all=True) == []
    hub.start_server("ada", {"gpus": 1})
    name = engine.inspect_container(container_of(engine, "ada"))["Name"]
    assert re.fullmatch("/jupyter-[0-9a-f]{16}", name)
