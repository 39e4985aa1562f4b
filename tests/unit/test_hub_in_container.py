"""The hub's image and its compose file: what they name is there, and who may do what."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker
import jupyterhub.services.auth
import jupyterhub.services.service
import pytest
from jupyterhub.app import JupyterHub
from jupyterhub.proxy import ConfigurableHTTPProxy
from traitlets.config.loader import PyFileConfigLoader

from gpuspawner.backends.docker.network import NetworkError, ensure_network
from gpuspawner.dashboard import command as dashboard
from gpuspawner.image_builder import hub_image
from gpuspawner.leases.labels import LABEL_GPUS
from gpuspawner.spawner import GPUSpawner

from ..support.compose import load, started_in
from ..support.paths import ROOT

HUB = ROOT / "image" / "hub"
ADDRESS = "172.31.99.1"
FILE = load(HUB / "compose.yaml", {"DOCKER_GID": "998"})
SERVICES = FILE["services"]
EVERY = pytest.mark.parametrize("name", sorted(SERVICES))


def read_only_socket(service: dict[str, Any]) -> list[str]:
    return [each for each in service["volumes"] if "docker.sock" in each]


def test_there_are_the_three_in_the_order_of_who_needs_whom() -> None:
    assert started_in(SERVICES) == ["proxy", "hub", "dashboard"]


@EVERY
def test_none_has_a_right_that_it_does_not_need(name: str) -> None:
    service = SERVICES[name]
    assert service["user"] == "990:990"
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    # The name isn't looked for in a registry, where anybody may have taken it.
    assert service["pull_policy"] == "never"
    assert f"{service['image']}:latest" == hub_image.REFERENCE


def test_the_engine_and_the_gpus_are_the_hub_s_alone() -> None:
    assert {name for name, each in SERVICES.items() if read_only_socket(each)} == {"hub"}
    assert {name for name, each in SERVICES.items() if "group_add" in each} == {"hub"}
    assert {name for name, each in SERVICES.items() if "deploy" in each} == {"hub"}
    (device,) = SERVICES["hub"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["utility"]}
    # Else every hub on the engine took all GPUs for given away.
    assert SERVICES["hub"]["labels"] == {LABEL_GPUS: ""}


def test_the_engine_s_group_has_to_be_said() -> None:
    with pytest.raises(ValueError, match=r"DOCKER_GID: .*stat -c %g"):
        load(HUB / "compose.yaml", {})


def test_each_secret_is_shared_by_the_two_that_need_it() -> None:
    shared = {
        volume: {
            name
            for name, each in SERVICES.items()
            if any(bind.startswith(f"{volume}:") for bind in each["volumes"])
        }
        for volume in FILE["volumes"]
    }
    assert shared == {
        "hub": {"hub"},
        "control": {"hub", "dashboard"},
        "proxy-token": {"proxy", "hub"},
        "dashboard-token": {"hub", "dashboard"},
    }
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            assert not re.search("TOKEN|SECRET|PASSWORD", f"{name}={value}")


@EVERY
def test_each_volume_is_mounted_where_the_image_has_a_folder_of_the_user_s(name: str) -> None:
    folders = re.findall(r"install -d -o hub -g hub -m 700 (.*);?$", dockerfile(), re.MULTILINE)
    for bind in SERVICES[name]["volumes"]:
        source, target = bind.split(":")[:2]
        assert source in FILE["volumes"] or source.startswith("/var/run/"), bind
        assert target in folders[0].split() or target == "/var/run/docker.sock"


def dockerfile() -> str:
    return (HUB / "Dockerfile").read_text()


# ---- What the variables and the commands name ----------------------------------------------------


@EVERY
def test_every_variable_is_one_that_somebody_reads(name: str) -> None:
    services = (jupyterhub.services.auth, jupyterhub.services.service, dashboard)
    sources = "".join(map(inspect.getsource, services))
    ours = (HUB / "in_container.py").read_text()
    documented = (ROOT / "docs" / "reference" / "environment.md").read_text()
    for variable in SERVICES[name].get("environment", {}):
        if variable.startswith("GPUSPAWNER_"):
            assert f"| `{variable}` |" in documented
            assert f'"{variable}"' in ours
        else:
            assert variable.startswith("JUPYTERHUB_")
            assert re.search(rf"['\"]{variable}['\"]", sources), variable


def test_the_variables_of_the_file_are_in_its_guide() -> None:
    text = (HUB / "compose.yaml").read_text()
    guide = (ROOT / "docs" / "how-to" / "hub-in-container.md").read_text()
    for name in set(re.findall(r"\$\{(\w+)", text)):
        assert f"`{name}`" in guide, name


def test_the_dashboard_is_told_what_a_service_of_the_hub_s_is_told() -> None:
    told = SERVICES["dashboard"]["environment"]
    words = SERVICES["dashboard"]["command"]
    assert words[:3] == ["with-secret", "JUPYTERHUB_API_TOKEN", "/srv/dashboard-token/token"]
    assert {*told, words[1]} >= set(dashboard.NEEDED)
    assert words[3:5] == ["gpuspawner", "dashboard"]
    parser = argparse.ArgumentParser()
    dashboard.add_arguments(parser)
    given = parser.parse_args(words[5:])
    assert given.from_hub
    assert given.socket == config_of_hub_socket()


def config_of_hub_socket() -> str:
    found = re.search(r'control_socket = "(.*)"', (HUB / "in_container.py").read_text())
    assert found
    return found[1]


def test_the_proxy_s_options_are_those_that_it_has() -> None:
    words = SERVICES["proxy"]["command"]
    assert words[:3] == ["with-secret", "CONFIGPROXY_AUTH_TOKEN", "/srv/proxy-token/token"]
    assert words[3] == "configurable-http-proxy"
    program = ROOT / "node_modules" / "configurable-http-proxy" / "bin" / "configurable-http-proxy"
    if not program.exists():
        pytest.skip("the Node.js packages aren't installed")
    for word in words[4:]:
        assert f'"{word.partition("=")[0]} <' in program.read_text(), word
    options = dict(word.split("=", 1) for word in words[4:])
    api = f"http://{options['--api-ip']}:{options['--api-port']}"
    assert ConfigurableHTTPProxy(app=JupyterHub()).api_url == api
    assert options["--error-target"] == f"http://{ADDRESS}:8081/hub/error"


# ---- The configuration ---------------------------------------------------------------------------


Load = Callable[[str], Any]


@pytest.fixture
def load_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return what a hub in the container makes of a configuration's text."""
    for folder in ("proxy-token", "dashboard-token"):
        (tmp_path / folder).mkdir()
    text = (HUB / "in_container.py").read_text().replace('"/srv/', f'"{tmp_path}/')
    (tmp_path / "in_container.py").write_text(text)
    (tmp_path / "image").symlink_to(ROOT / "image")
    network = SimpleNamespace(
        name="gpuspawner",
        attrs={"IPAM": {"Config": [{"Gateway": ADDRESS}]}},
        reload=lambda: None,
    )
    engine = SimpleNamespace(networks=SimpleNamespace(list=lambda names: [network]))
    monkeypatch.setattr(docker, "from_env", lambda **_: engine)
    monkeypatch.delenv("GPUSPAWNER_HUB_IP", raising=False)
    monkeypatch.setenv("GPUSPAWNER_ADDRESS", ADDRESS)
    monkeypatch.setenv("PATH", f"{HUB}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)

    def load_text(text: str) -> Any:
        (tmp_path / "jupyterhub_config.py").write_text(text)
        return PyFileConfigLoader("in_container.py", path=str(tmp_path)).load_config()

    return load_text


SHIPPED = (ROOT / "jupyterhub_config.py").read_text()


def test_the_shipped_configuration_is_loaded_and_fits_the_other_containers(
    load_with: Load, tmp_path: Path
) -> None:
    loaded = load_with(SHIPPED)
    classes = {
        "JupyterHub": JupyterHub,
        "GPUSpawner": GPUSpawner,
        "ConfigurableHTTPProxy": ConfigurableHTTPProxy,
    }
    for name, cls in classes.items():
        assert set(loaded[name]) <= set(cls.class_traits(config=True))
    told = SERVICES["dashboard"]["environment"]
    (service,) = loaded.JupyterHub.services
    assert service["name"] == told["JUPYTERHUB_SERVICE_NAME"]
    assert service["url"] == told["JUPYTERHUB_SERVICE_URL"]
    assert not {"command", "environment"} & set(service)
    assert service["api_token"] == (tmp_path / "dashboard-token" / "token").read_text()
    assert (
        loaded.GPUSpawner.environment["GPUSPAWNER_API_URL"] == f"{service['url']}/services/gpus/api"
    )
    hub = JupyterHub(config=loaded)
    assert told["JUPYTERHUB_API_URL"] == f"http://{hub.hub_ip}:{hub.hub_port}/hub/api"
    proxy = ConfigurableHTTPProxy(config=loaded)
    assert proxy.auth_token == (tmp_path / "proxy-token" / "token").read_text()
    assert not proxy.should_start
    assert not hub.cleanup_servers
    options = SERVICES["proxy"]["command"]
    assert hub.bind_url == "http://127.0.0.1:8000"
    assert {"--ip=127.0.0.1", "--port=8000"} < set(options)


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ("", []),
        ("c.JupyterHub.services.append({'name': 'cull', 'command': ['cull']})", ["cull"]),
        ("c.JupyterHub.services.extend([{'name': 'gpus', 'command': ['x']}])", ["gpus"]),
    ],
)
def test_another_configuration_s_services_are_left_but_for_the_dashboard(
    load_with: Load, lines: str, names: list[str]
) -> None:
    services = load_with(f"c = get_config()\n{lines}\n").JupyterHub.services
    assert [each["name"] for each in services] == names
    assert [each["name"] for each in services if "command" in each] == names[: names == ["cull"]]


@pytest.mark.parametrize("address", ["172.31.99", "gpus.lab", "172.31.99.0/24", "::1"])
def test_what_is_no_address_is_said_to_be_none(address: str) -> None:
    with pytest.raises(NetworkError, match=f"'{address}' is no address, such as 172.31.99.1"):
        ensure_network("gpuspawner", address=address)


# ---- Secrets -------------------------------------------------------------------------------------


def with_secret(file: Path) -> subprocess.CompletedProcess[str]:
    words = [str(HUB / "with-secret"), "S", str(file), "printenv", "S"]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_a_secret_is_made_once_by_whoever_comes_first(tmp_path: Path) -> None:
    file = tmp_path / "token"
    words = [str(HUB / "with-secret"), "S", str(file), "printenv", "S"]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    said = {each.communicate()[0] for each in both}
    assert len(said) == 1
    assert re.fullmatch(r"[0-9a-f]{64}\n", said.pop())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]
    assert with_secret(file).stdout.strip() == file.read_text()


def test_a_secret_that_the_other_has_made_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, real = tmp_path / "token", shutil.which("od")
    program = tmp_path / "bin" / "od"
    program.parent.mkdir()
    # What with-secret runs once it has seen that there is none.
    program.write_text(f'#!/bin/sh\numask 077; echo theirs >{file}; exec {real} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert with_secret(file).stdout == "theirs\n"
    assert file.read_text() == "theirs\n"
    assert set(tmp_path.iterdir()) == {file, program.parent}


def test_a_secret_that_others_can_read_is_none(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("known")
    file.chmod(0o640)
    done = with_secret(file)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"with-secret: {file} can be read by others: chmod 600 it\n"


# ---- The build -----------------------------------------------------------------------------------


def test_a_build_by_hand_gets_what_ours_gets() -> None:
    lines = (HUB / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!/") for line in lines if line.startswith("!/")}
    assert allowed == set(hub_image.INPUTS)


def test_what_the_dockerfile_copies_and_mounts_is_sent() -> None:
    context = hub_image.build_context(ROOT, {"ca.pem": b"x"})
    with tarfile.open(fileobj=BytesIO(context)) as parcel:
        members = {each.name: each for each in parcel.getmembers()}
    named = re.findall(r"type=bind,source=([\w./-]+),", dockerfile())
    for line in re.findall(r"^COPY (.*) \S+$", dockerfile(), re.MULTILINE):
        named += line.split()
    assert len(named) > 10
    for name in named:
        assert any(each == name or each.startswith(f"{name}/") for each in members), name
    assert "image/network/ca.pem" in members
    assert "gpuspawner/spawner.py" in members
    assert not [name for name in members if name.endswith((".pyc", ".mo"))]
    assert members["image/hub/with-secret"].mode == 0o755


def test_only_what_is_sent_decides_whether_it_is_built_anew() -> None:
    sent = [name for name, _ in hub_image.files(ROOT)]
    assert len(sent) == len(set(sent))
    assert "image/network/README.md" not in sent
    beside = {name for name in sent if name.startswith("image/hub/")}
    assert beside == {f"image/hub/{name}" for name in hub_image.OF_FOLDER}
    assert not [
        name for name in sent if name.startswith(("tests", "docs", ".venv", "node_modules"))
    ]


def test_npm_s_registry_goes_along_with_the_rest_of_the_network(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(b"a certificate")
    environment = {"SSL_CERT_FILE": str(tmp_path / "ca.pem"), "NPM_CONFIG_REGISTRY": "https://npm"}
    assert hub_image.network_files(environment) == {
        "ca.pem": b"a certificate",
        "npm-registry": b"https://npm",
    }
    assert "npm-registry" not in hub_image.network_files({"SSL_CERT_FILE": ""})
