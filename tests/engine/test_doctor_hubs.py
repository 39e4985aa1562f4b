"""`gpuspawner doctor` beside hubs: right about those whose servers start, and those whose don't."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ..support.hubs import Hub, with_groups
from ..support.looks import labelled

pytestmark = [pytest.mark.engine, pytest.mark.thorough]

WORKING = {
    "as it is": ("", ""),
    "below a prefix": ("", "/jupyter"),
    "a domain for each user": (
        "from urllib.parse import urlsplit\n"
        "port = urlsplit(c.JupyterHub.bind_url).port\n"
        "c.JupyterHub.subdomain_host = f'http://hub.test:{port}'",
        "",
    ),
    "functions": (
        "c.DockerSpawner.mem_limit = lambda spawner: '1G' if spawner.user.admin else '512M'\n"
        "c.DockerSpawner.extra_host_config = lambda spawner: {'pids_limit': 64}\n"
        "c.Spawner.environment = {'WHO': lambda spawner: spawner.user.name}",
        "",
    ),
    "DockerSpawner's settings": (
        "c.DockerSpawner.prefix = 'lab'\n"
        "c.DockerSpawner.volumes = {'home-{username}': '/home/jovyan/work'}\n"
        "c.DockerSpawner.mem_limit = '16G'\n"
        "c.DockerSpawner.name_template = '{prefix}-{username}--{servername}'",
        "",
    ),
    "groups with overrides": (with_groups({"lab": {"gpu_limit": 4, "mem_limit": "2G"}}), ""),
    "named servers": ("c.JupyterHub.named_server_limit_per_user = 2", ""),
    "no log-in but by tokens": ("c.JupyterHub.authenticator_class = 'null'", ""),
    "a database elsewhere": (
        "import os\nc.JupyterHub.db_url = f'sqlite:///{os.getcwd()}/elsewhere.sqlite'",
        "",
    ),
    "on all addresses": (
        "c.JupyterHub.hub_connect_ip = c.JupyterHub.hub_ip\nc.JupyterHub.hub_ip = ''",
        "",
    ),
    "homes and courses": (
        "c.GPUSpawner.home_volume = 'home-{username}'\n"
        "c.GPUSpawner.course_volumes = {'course': {'path': '/course', 'instructors': ['lab']}}",
        "",
    ),
    "stopped containers are kept": ("c.GPUSpawner.remove = False", ""),
}


def doctor(hub: Hub) -> tuple[int, list[dict[str, str]]]:
    """Run all of it where a hub is, and return its exit status and what it found."""
    words = [sys.executable, "-m", "gpuspawner", "doctor", "--json"]
    environment = {**hub.environment, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        words, cwd=hub.folder, env=environment, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("kind", WORKING)
def test_beside_a_hub_whose_servers_start_nothing_is_in_the_way(make_hub, engine, kind):
    lines, prefix = WORKING[kind]
    hub = make_hub(lines, prefix=prefix)
    hub.start_server("ada", {"gpus": 1})
    before = labelled(engine)
    status, found = doctor(hub)
    assert [each for each in found if each["state"] in ("failure", "skipped")] == []
    assert status == 0
    assert hub.ready("ada")
    assert labelled(engine) == before


# What is wrong -> the trait that doctor names, and words of its advice.
BROKEN: dict[str, tuple[str, str]] = {
    "c.GPUSpawner.images = {'gone': 'gpuspawner/no-such:1'}": (
        "gone",
        "docker pull gpuspawner/no-such:1",
    ),
    "c.GPUSpawner.network_name = 'no-such'": ("network_name", "docker network create"),
    "c.GPUSpawner.volumes = {'{nope}': '/x'}": ("volumes", "mend it"),
    "c.GPUSpawner.mounts = [{'sourc': 'x', 'target': '/x'}]": ("mounts", "mend it"),
    "c.GPUSpawner.extra_create_kwargs = {'labels': {'a': open}}": ("extra_create_kwargs", ""),
    "c.GPUSpawner.extra_host_config = {'devices': ['/dev/no-such']}": (
        "extra_host_config",
        "devices",
    ),
    "c.GPUSpawner.extra_host_config = {'runtime': 'no-such'}": ("extra_host_config", ""),
    "c.GPUSpawner.log_driver = 'no-such'": ("log_driver", "log_options"),
    "c.GPUSpawner.extra_create_kwargs = {'user': 'no-such'}": ("extra_create_kwargs", "mend user"),
}


@pytest.mark.parametrize("line", BROKEN)
def test_of_a_hub_whose_servers_do_not_start_it_says_why(make_hub, line):
    trait, advice = BROKEN[line]
    hub = make_hub("c.JupyterHub.tornado_settings = {'slow_spawn_timeout': 0}")
    config = hub.folder / "jupyterhub_config.py"
    config.write_text(config.read_text() + line + "\n")
    hub.end()
    hub.start()
    hub.failed_start("ada", {"gpus": 1})
    status, found = doctor(hub)
    told = [f"{each['found']} {each['advice']}" for each in found if each["state"] == "failure"]
    assert status == 1
    assert any(trait in each and advice in each for each in told), told
