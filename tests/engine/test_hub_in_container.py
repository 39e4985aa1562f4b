"""Hub, proxy and dashboard in containers of their own, as `image/hub/compose.yaml` has them.

The hub's image is built by our own builder. `docker compose` isn't needed: `support.compose` reads
the file and starts what it says by the engine's API.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import docker
import pytest
import requests

from gpuspawner import ensure_network
from gpuspawner.__main__ import main

from ..support.compose import Project
from ..support.dashboards import Program, Visitor, states
from ..support.hubs import until
from ..support.looks import clear, container_of, inside
from ..support.paths import ROOT

pytestmark = [pytest.mark.engine, pytest.mark.thorough, pytest.mark.timeout(900)]

NETWORK = "gpuspawner"
CONFIG = "/etc/jupyterhub/jupyterhub_config.py"
# To the shipped configuration: the one version that is built here, and no waiting to extend.
LINES = """
c.GPUSpawner.images = {"minimal": c.GPUSpawner.images["minimal"]}
c.GPUSpawner.extend_minutes = None
"""
PASSWORDS = {"admin": "admin-password"}
EXTEND = (
    'curl -s -X POST -H "Authorization: token $JUPYTERHUB_API_TOKEN" '
    '"$GPUSPAWNER_API_URL/users/$JUPYTERHUB_USER/server/extend"'
)


@dataclass(frozen=True)
class Site:
    """The containers, and where a browser finds them; `log` is the hub's."""

    project: Project
    engine: docker.APIClient
    url: str
    prefix: str = ""

    def log(self) -> str:
        return self.project.log("hub")

    def answers(self) -> bool:
        with suppress(requests.RequestException):
            return requests.get(f"{self.url}/hub/health", timeout=5).ok
        return False

    def wait(self) -> None:
        until(self.answers, "the hub answers", log=self.log)

    def log_in(self, user: str, *_: str) -> requests.Session:
        file = PASSWORDS.get(user, "user-password")
        status, password = self.project.run("hub", ["cat", file])
        assert status == 0, password
        session = requests.Session()
        session.trust_env = False
        session.get(f"{self.url}/hub/login")
        form = {"username": user, "password": password.strip()}
        form["_xsrf"] = session.cookies.get("_xsrf", path="/hub/")
        done = session.post(f"{self.url}/hub/login", data=form, allow_redirects=False)
        assert done.status_code == 302, done.text
        return session

    def start_server(self, user: str, gpus: int) -> requests.Session:
        """Start a server as its user, by REST; return the user's browser."""
        program = Program(self, user).session
        where = f"{self.url}/hub/api/users/{user}"
        choice = {"gpus": gpus, "image": "minimal", "hours": 1}
        answer = program.post(f"{where}/server", json=choice)
        assert answer.status_code in (201, 202), answer.text

        def ready() -> bool:
            return bool(program.get(where).json()["servers"].get("", {}).get("ready"))

        until(ready, f"{user}'s server is ready", log=self.log)
        return self.log_in(user)

    def replace_hub(self, **changed: Any) -> None:
        """Remove the hub's container and make a new one."""
        self.project.remove("hub")
        self.project.start("hub", **changed)
        self.wait()

    def stop_servers(self) -> None:
        session = self.log_in("admin")
        session.get(f"{self.url}/hub/home")
        token = {"X-XSRFToken": session.cookies.get("_xsrf", path="/hub/")}
        for user in session.get(f"{self.url}/hub/api/users?state=active", headers=token).json():
            session.delete(f"{self.url}/hub/api/users/{user['name']}/server", headers=token)

        def gone() -> bool:
            return not self.engine.containers(all=True, filters={"label": "gpuspawner.user"})

        until(gone, "no server is there", log=self.log)


def remove_network(engine: docker.APIClient) -> None:
    for network in engine.networks(names=[NETWORK]):
        engine.remove_network(network["Id"])


@pytest.fixture(scope="module")
def _site(host, engine, minimal_image, tmp_path_factory) -> Iterator[Site]:
    assert main(["image", "hub"]) == 0
    clear(engine)
    # Other hubs of the run use a network of this name, in which the engine has chosen addresses.
    remove_network(engine)
    config = tmp_path_factory.mktemp("site") / "jupyterhub_config.py"
    config.write_text((ROOT / "jupyterhub_config.py").read_text() + LINES)
    variables = {
        "DOCKER_GID": str(host.socket.stat().st_gid),
        "DOCKER_SOCKET": str(host.socket),
        "PUBLIC_IP": "0.0.0.0",
    }
    file = ROOT / "image" / "hub" / "compose.yaml"
    with Project(file, variables, engine) as project:
        project.services["hub"]["volumes"].append(f"{config}:{CONFIG}:ro")
        project.up()
        # The engine's end of the simulated host's link, in whose network the containers are.
        site = Site(project, engine, f"http://{ipaddress.ip_address(host.hub_ip) + 1}:8000")
        site.wait()
        yield site
    clear(engine)
    remove_network(engine)
    ensure_network(NETWORK)


@pytest.fixture
def site(host, _site) -> Iterator[Site]:
    """The containers with the hub as the file has it, all GPUs free and healthy, no servers."""
    first = host.read()
    yield _site
    host.write(first)
    _site.stop_servers()


def doctor(site: Site) -> list[dict[str, str]]:
    words = ["gpuspawner", "doctor", "--json", "-f", "/etc/jupyterhub/in_container.py"]
    _, said = site.project.run("hub", words)
    found: list[dict[str, str]] = json.loads(said)
    return found


def short_id(site: Site) -> str:
    return str(site.project.inspect("hub")["Id"][:12])


def test_a_user_s_server_answers_through_the_proxy_and_sees_its_gpu_alone(site, engine):
    ada = site.start_server("ada", 1)
    page = ada.get(f"{site.url}/user/ada/lab")
    assert page.status_code == 200
    assert "JupyterLab" in page.text
    labels = engine.inspect_container(container_of(engine, "ada"))["Config"]["Labels"]
    seen = re.findall(r"GPU-[0-9a-f-]{36}", inside(engine, "ada", "nvidia-smi -L"))
    assert seen == [labels["gpuspawner.gpus"]]


def test_the_dashboard_shows_who_has_what_and_a_program_in_the_server_extends(site, engine):
    site.start_server("ada", 2)
    ada = Visitor(site, "ada")
    until(lambda: states(ada.status()).count("leased") == 2, "they are seen", log=site.log)
    seen = ada.status()
    assert sorted(states(seen)) == ["free", "free", "leased", "leased"]
    before = seen["servers"][0]["until"]
    assert json.loads(inside(engine, "ada", EXTEND))["until"] > before
    until(lambda: ada.status()["servers"][0]["until"] > before, "its page says so", log=site.log)
    until(lambda: "2 free" in ada.page(), "its page says what is free", log=site.log)


def test_an_administrator_takes_a_gpu_out_of_service_on_a_dashboard_without_the_engine(site):
    boss = Visitor(site, "admin")
    until(lambda: states(boss.status()) == ["free"] * 4, "all are free", log=site.log)
    uuid = boss.status()["gpus"][0]["uuid"]
    boss.press(do="out-of-service", gpu=uuid, why="loud fan")
    assert states(boss.status()) == ["excluded", "free", "free", "free"]
    boss.press(do="in-service", gpu=uuid)
    assert states(boss.status()) == ["free"] * 4


def test_a_new_container_of_the_hub_has_the_servers_of_the_one_before(site, engine):
    ada = site.start_server("ada", 1)
    assert ada.get(f"{site.url}/user/ada/lab").ok
    container = container_of(engine, "ada")
    before = Visitor(site, "ada").status()["servers"]
    site.project.remove("hub")
    # The proxy passes on to it meanwhile.
    assert ada.get(f"{site.url}/user/ada/static/favicons/favicon.ico").ok
    site.project.start("hub")
    site.wait()
    assert container_of(engine, "ada") == container
    assert (
        Program(site, "ada")
        .session.get(f"{site.url}/hub/api/users/ada")
        .json()["servers"][""]["ready"]
    )
    assert ada.get(f"{site.url}/user/ada/lab").ok
    visitor = Visitor(site, "ada")
    until(lambda: visitor.status()["known"], "the hub tells the dashboard", log=site.log)
    assert [each["gpus"] for each in visitor.status()["servers"]] == [before[0]["gpus"]]
    assert json.loads(inside(engine, "ada", EXTEND))["until"] > before[0]["until"]


def test_doctor_knows_that_it_is_in_a_container_and_finds_nothing_in_the_way(site):
    found = doctor(site)
    said = {each["check"]: each for each in found if each["state"] == "ok"}
    assert said["Container with a GPU"]["found"].endswith("sees exactly that")
    assert "4 of 4" in said["GPUs"]["found"]
    assert said["Hub's address"]["found"].startswith("172.31.99.1:8081 is reached")
    assert said["Other containers"]
    notes = " ".join(each["found"] for each in found if each["state"] == "note")
    assert "this is its container gpuspawner-hub-1, in the host's network" in notes
    bad = [each["found"] for each in found if each["state"] in ("failure", "warning", "skipped")]
    assert [each[:58] for each in bad] == [
        "an administrator who opens somebody's server lends its pag"
    ], bad


@pytest.mark.parametrize("service", ["proxy", "hub", "dashboard"])
def test_each_has_what_it_needs_and_no_more(site, service):
    look = (
        "id -u; id -g; grep CapEff /proc/1/status; touch /x 2>&1; ls /var/run/docker.sock 2>&1;"
        "ls /dev/nvidiactl 2>&1; find /srv -type f -perm /077"
    )
    _, said = site.project.run(service, ["bash", "-c", look])
    uid, gid, capabilities, touched, socket, device, *readable = said.splitlines()
    assert (uid, gid, capabilities) == ("990", "990", f"CapEff:\t{'0' * 16}")
    assert "Read-only file system" in touched
    assert ("No such file" not in socket) == (service == "hub")
    assert ("No such file" not in device) == (service == "hub")
    assert readable == []
    about = site.project.inspect(service)
    tokens = [
        site.project.run("hub", ["cat", f"/srv/{name}-token/token"])[1]
        for name in ("proxy", "dashboard")
    ]
    assert all(re.fullmatch(r"[0-9a-f]{64}", token) for token in tokens)
    assert not [token for token in tokens if token in json.dumps(about)]
    _, files = site.project.run(service, ["bash", "-c", "ls /srv/*-token/token"])
    own = {"proxy": ["proxy"], "dashboard": ["dashboard"], "hub": ["dashboard", "proxy"]}
    assert files.split() == [f"/srv/{name}-token/token" for name in own[service]]


def test_the_hub_s_driver_is_for_looking_only(site):
    _, said = site.project.run("hub", ["bash", "-c", "tr '\\0' '\\n' </proc/1/environ"])
    variables = dict(line.partition("=")[::2] for line in said.splitlines())
    assert variables["NVIDIA_DRIVER_CAPABILITIES"] == "utility"
    assert variables["NVIDIA_VISIBLE_DEVICES"] == "all"


def test_its_health_is_what_it_says(site):
    test = site.project.services["hub"]["healthcheck"]["test"]
    assert test[0] == "CMD"
    assert site.project.run("hub", test[1:])[0] == 0
    wrong = [*test[1:-1], test[-1].replace(":8081", ":8082")]
    assert site.project.run("hub", wrong)[0] != 0


def test_a_hub_that_has_lost_its_gpus_names_its_container_and_the_restart(site, host):
    """As after `systemctl daemon-reload`: NVML says "Unknown Error", 999."""
    host.change(lambda state: replace(state, fault="unknown"))
    restart = f"docker restart {short_id(site)}"
    # Whoever asks first, here the dashboard's page.
    told = Visitor(site, "ada").status
    until(lambda: restart in told()["trouble"], "the dashboard says so", log=site.log)
    assert f"No GPUs are handed out: NVML fails: Unknown Error. {'A container loses its GPUs'}" in (
        site.log()
    )
    assert restart in site.log()
    (driver,) = [each for each in doctor(site) if each["check"] == "NVIDIA driver"]
    assert driver["state"] == "failure"
    assert restart in driver["advice"]
    host.change(lambda state: replace(state, fault=None))
    site.engine.restart(restart.split()[-1])
    site.wait()
    until(lambda: told()["known"], "all is well", log=site.log)


def test_a_hub_without_gpus_says_at_its_start_what_it_was_not_given(site):
    try:
        site.replace_hub(deploy={"resources": {"reservations": {"devices": []}}})
        own = f"The hub's container {short_id(site)} was given none: start the hub's container with"
        until(lambda: f"Servers get no GPUs: {own}" in site.log(), "it says so", log=site.log)
        (driver,) = [each for each in doctor(site) if each["check"] == "NVIDIA driver"]
        assert "hub-in-container.md" in driver["advice"]
        status, said = site.project.run("hub", ["gpuspawner", "gpus"])
        assert (status, "was given none" in said) == (1, True)
    finally:
        site.replace_hub()


def test_without_the_label_the_hub_does_not_take_its_own_gpus_for_given_away(site):
    try:
        site.replace_hub(labels={})
        site.start_server("ada", 2)
    finally:
        site.replace_hub()


def test_another_address_than_the_network_s_is_named_with_the_right_one(site):
    site.project.remove("hub")
    try:
        site.project.start("hub", environment={"GPUSPAWNER_ADDRESS": "172.31.98.1"})
        words = "this machine's address on it is 172.31.99.1, and not 172.31.98.1"
        until(lambda: words in site.log(), "it says so", log=site.log)
    finally:
        site.replace_hub()


@pytest.mark.usefixtures("_site")
def test_the_image_keeps_nothing_of_its_builder(host):
    client = docker.DockerClient(base_url=host.docker_host, version="auto")
    look = "ls -A /run/build /root /tmp; command -v gcc; find / -xdev -perm /6000 -type f; true"
    found = client.containers.run(
        "gpuspawner/hub", ["bash", "-c", f"({look}) 2>/dev/null"], user="root", remove=True
    )
    assert found.decode().split() == ["/root:", ".bashrc", ".profile", "/tmp:"]
    assert "://" not in json.dumps(client.images.get("gpuspawner/hub").history())
    client.close()


@pytest.mark.usefixtures("_site")
def test_what_did_not_change_is_not_built_again(capsys):
    assert main(["image", "hub"]) == 0
    assert capsys.readouterr().err == "hub: gpuspawner/hub:latest is up to date\n"
