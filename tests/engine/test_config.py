"""The repository's own configuration: what it promises about servers, volumes and the network."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import docker
import pytest
import requests
from docker.models.networks import NetworkCollection

from gpuspawner.backends.docker import network

from ..support.looks import container_of, containers, inside, labelled

pytestmark = pytest.mark.engine

COURSE = "/home/jovyan/course"


@pytest.fixture(scope="module")
def _hub(hubs_of_run, minimal_image):
    return hubs_of_run(
        "c.JupyterHub.load_groups = {'instructors': {'users': ['admin', 'teacher']}}", shipped=True
    )


@pytest.fixture
def shipped(idle_host, _hub):
    yield _hub
    _hub.stop_all_servers()


def test_a_server_has_no_rights_that_it_does_not_need(shipped, engine):
    shipped.start_server("ada", {"gpus": 1, "image": "minimal"})
    container = engine.inspect_container(container_of(engine, "ada"))
    host = container["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["PidsLimit"] == 4096
    assert host["Memory"] == 16 * 1024**3
    assert not host["Privileged"]
    assert not host["PortBindings"]
    assert not any(container["NetworkSettings"]["Ports"].values())
    assert inside(engine, "ada", "id -u") == "1000"
    assert inside(engine, "ada", "grep -E 'CapEff|CapPrm' /proc/1/status | cut -f2").split() == [
        "0" * 16,
        "0" * 16,
    ]
    assert inside(engine, "ada", "cat /proc/1/comm") == "tini"
    assert inside(engine, "ada", "touch /etc/mine 2>&1").endswith("Permission denied")


def test_dataloaders_find_room_to_share_memory(shipped, engine):
    shipped.start_server("ada", {"gpus": 1, "image": "minimal"})
    code = (
        "from multiprocessing.shared_memory import SharedMemory as M;"
        "m = M(create=True, size=300 << 20); m.buf[-1] = 7; print(m.buf[-1]); m.close(); m.unlink()"
    )
    # Docker's own 64 MB would end this with a bus error.
    assert inside(engine, "ada", f'python -c "{code}"') == "7"


def test_servers_reach_the_hub_and_not_each_other(shipped, engine):
    shipped.start_server("ada", {"gpus": 0, "image": "minimal"})
    shipped.start_server("ben", {"gpus": 0, "image": "minimal"})
    networks = engine.inspect_container(container_of(engine, "ben"))["NetworkSettings"]["Networks"]
    (network,) = networks.values()
    hub = inside(engine, "ada", "echo $JUPYTERHUB_API_URL")
    fetch = "curl -s -o /dev/null -m 3 -w %{http_code} "
    assert inside(engine, "ada", fetch + hub) == "200"
    assert inside(engine, "ben", fetch + f"http://{network['IPAddress']}:8888/") != "000"
    assert inside(engine, "ada", fetch + f"http://{network['IPAddress']}:8888/") == "000"


def test_no_server_is_told_who_else_runs_one(shipped, engine):
    """The engine's own name server answers every container on the network."""
    shipped.start_server("ada", {"gpus": 0, "image": "minimal"})
    shipped.start_server("ben", {"gpus": 0, "image": "minimal"})
    ben = engine.inspect_container(container_of(engine, "ben"))
    (network,) = ben["NetworkSettings"]["Networks"].values()
    code = "import socket, sys; print(socket.gethostbyaddr(sys.argv[1]))"
    told = inside(engine, "ada", f"python -c '{code}' {network['IPAddress']}")
    assert ben["Name"].lstrip("/") in told
    assert "ben" not in told
    assert inside(engine, "ada", "getent hosts jupyter-ben; true") == ""


@pytest.mark.thorough
def test_users_have_volumes_of_their_own_that_stay(shipped, engine):
    for user in ("ada", "ben"):
        shipped.start_server(user, {"gpus": 0, "image": "minimal"})
        assert inside(engine, user, "stat -c %U ~") == "jovyan"
        assert inside(engine, user, f"echo {user} > ~/mine; cat ~/mine") == user
    shipped.stop_server("ada")
    assert list(labelled(engine)) == ["ben"]
    shipped.start_server("ada", {"gpus": 1, "image": "minimal"})
    assert inside(engine, "ada", "cat ~/mine") == "ada"


def test_everybody_reads_the_course_and_instructors_write_it(shipped, engine):
    shipped.start_server("ada", {"gpus": 0, "image": "minimal"})  # before any instructor came
    assert "Read-only" in inside(engine, "ada", f"touch {COURSE}/mine 2>&1")
    shipped.start_server("teacher", {"gpus": 0, "image": "minimal"})
    written = inside(engine, "teacher", f"echo lesson > {COURSE}/1.txt && stat -c %U {COURSE}")
    assert written == "jovyan"
    assert inside(engine, "ada", f"cat {COURSE}/1.txt") == "lesson"
    assert "Read-only" in inside(engine, "ada", f"rm -f {COURSE}/1.txt 2>&1")


def test_what_anybody_sends_the_hub_has_a_size(shipped):
    body = '{"gpus": "' + "9" * 25_000_000 + '"}'
    with suppress(requests.ConnectionError):  # it may hang up before all is sent
        answer = shipped._admin.post(f"{shipped.url}/hub/api/users/ada/server", data=body)
        assert answer.status_code in (400, 413, 502, 503)
    assert "Content-Length too long" in shipped.log()
    limits = Path(f"/proc/{shipped._process.pid}/limits").read_text()
    soft, hard = re.search(r"Max open files +(\d+) +(\d+)", limits).groups()
    assert int(soft) == min(int(hard), 65_536)
    # A name that would make a line of the log is no name.
    page = shipped.log_in("ada", shipped_password(shipped)).get(f"{shipped.url}/hub/home")
    assert page.ok
    with pytest.raises(AssertionError):
        shipped.log_in("ada\ngpuspawner {}", shipped_password(shipped))


def shipped_password(hub):
    return (hub.folder / "user-password").read_text()


def test_two_gpus_are_the_limit_and_one_the_default(shipped, engine):
    assert shipped.spawn("ada", {"gpus": 3, "image": "minimal"}).status_code == 403
    shipped.start_server("ada", {"image": "minimal"})
    assert len(labelled(engine)["ada"]) == 1


def test_a_version_that_was_not_built_is_told_and_not_looked_for_elsewhere(shipped, engine):
    refused = shipped.spawn("ada", {"gpus": 0, "image": "pytorch-2.15"})
    assert refused.status_code == 500
    assert "gpuspawner/pytorch:2.15 isn't on the GPU machine" in refused.json()["message"]
    assert containers(engine) == []


def test_secrets_are_made_once_and_readable_by_the_hub_alone(shipped):
    for name in ("user-password", "admin-password"):
        file = shipped.folder / name
        assert file.stat().st_mode & 0o077 == 0
        assert len(file.read_text()) >= 12


def test_a_hub_with_a_mistake_in_its_configuration_ends_and_names_it(make_hub):
    named = r"c\.GPUSpawner\.home_volume = '{raw_username}': {raw_username} isn't escaped"
    with pytest.raises(AssertionError, match=rf"the hub ended \(1\)[\s\S]*{named}"):
        make_hub('c.GPUSpawner.home_volume = "{raw_username}"')


def test_what_docker_py_refuses_is_told_with_its_words_and_the_setting(make_hub):
    hub = make_hub(
        'c.GPUSpawner.extra_host_config = {"mem_reservation": "12Q"}',
        doctor=("mem_reservation: The specified value",),
    )
    answer = hub.spawn("ada", {"gpus": 0})
    assert answer.status_code == 500
    said = "c.GPUSpawner.extra_host_config: mem_reservation: The specified value for memory (12Q)"
    assert said in answer.json()["message"]
    assert said in hub.log()
    assert "can't be reached" not in hub.log()


def test_of_a_network_that_two_hubs_create_at_once_one_stays(host, engine, monkeypatch):
    """The engine's own check misses what is created in the same moment; here it is left out."""
    create = NetworkCollection.create

    def unchecked(self, name, **how):
        return create(self, name, **{**how, "check_duplicate": False})

    monkeypatch.setattr(NetworkCollection, "create", unchecked)
    client = docker.DockerClient(base_url=host.docker_host, version="auto")
    others = client.networks.create("race")
    try:
        assert network._create(client, "race").id == others.id
        assert [each.id for each in client.networks.list(names=["^race$"])] == [others.id]
    finally:
        for each in client.networks.list(names=["^race$"]):
            each.remove()
        client.close()
