"""Where servers' output goes: the engine's log driver, which doesn't fill the disk."""

from __future__ import annotations

import re
import socketserver

import docker
import pytest
from traitlets.config import Config

from gpuspawner.backends.docker.container_config import with_log
from gpuspawner.spawner import GPUSpawner

from ..support.hubs import PLAIN_SAYS, until, with_groups
from ..support.looks import container_of
from ..support.paths import ROOT
from ..support.registry import serve_inside

pytestmark = pytest.mark.engine

THIRTY_MB = {"max-size": "10m", "max-file": "3"}


def handbook_examples() -> list[Config]:
    """Return the configurations in the handbook's page on logs."""
    page = (ROOT / "docs" / "how-to" / "logs.md").read_text()
    examples = []
    for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        examples.append(Config())
        exec(text, {"c": examples[-1]})
    return examples


# What those in a group have.
GROUPS: dict[str, dict[str, object]] = {
    "local": {"log_driver": "local", "log_options": {"max-size": "1m", "max-file": "2"}},
    "extra": {"extra_host_config": {"log_config": {"type": "local"}}},
    "unread": {"log_driver": "none"},
    "dying-unread": {
        "log_driver": "none",
        "cmd": ["bash", "-c", "echo no licence; exit 3"],
    },
}


def config_of(engine: docker.APIClient) -> dict[str, object]:
    return engine.inspect_container(container_of(engine, "ada"))["HostConfig"]["LogConfig"]


LINES = (with_groups(GROUPS),)


@pytest.fixture
def hub(module_hub):
    """In these tests the hub is the one with these groups."""
    return module_hub


def test_the_engines_own_log_is_rotated(hub, engine):
    assert engine.info()["LoggingDriver"] == "json-file"
    hub.start_server("ada", {"gpus": 1})
    assert config_of(engine) == {"Type": "json-file", "Config": THIRTY_MB}
    assert PLAIN_SAYS.encode() in engine.logs(container_of(engine, "ada"))


def test_another_driver_with_its_options(hub, engine):
    hub.add_to_group("local", "ada")
    hub.start_server("ada", {"gpus": 1})
    assert config_of(engine) == {"Type": "local", "Config": {"max-size": "1m", "max-file": "2"}}
    assert PLAIN_SAYS.encode() in engine.logs(container_of(engine, "ada"))


@pytest.mark.parametrize("kind", ["journald", "fluentd"])
def test_an_engine_takes_what_the_handbook_shows(engine, minimal_image, kind):
    """Created only: whether the machine has a journal or a fluentd is another matter."""
    found = [each for each in handbook_examples() if each.GPUSpawner.log_driver == kind]
    spawner = GPUSpawner(config=found[0])
    made = with_log(
        {"image": minimal_image[1], "command": ["true"]}, spawner.log_driver, spawner.log_options
    )
    created = engine.create_container(**made)
    try:
        config = engine.inspect_container(created["Id"])["HostConfig"]["LogConfig"]
        assert config == {"Type": kind, "Config": spawner.log_options}
        assert config["Config"]["tag"]
    finally:
        engine.remove_container(created["Id"])


def test_extra_host_config_goes_before(hub, engine):
    hub.add_to_group("extra", "ada")
    hub.start_server("ada", {"gpus": 1})
    assert config_of(engine) == {"Type": "local", "Config": {}}


def test_a_server_whose_log_nobody_keeps_starts(hub, engine):
    hub.add_to_group("unread", "ada")
    hub.start_server("ada", {"gpus": 1})
    assert config_of(engine) == {"Type": "none", "Config": {}}
    with pytest.raises(docker.errors.APIError, match="does not support reading"):
        engine.logs(container_of(engine, "ada"))
    hub.stop_server("ada")


def test_last_words_are_heard_also_where_the_log_can_not_be_read(hub):
    hub.add_to_group("dying-unread", "ada")
    answer = hub.spawn("ada", {"gpus": 0})
    assert answer.status_code == 500
    assert answer.json()["message"].splitlines() == [
        "The server stopped while starting (exit 3). Its last words:",
        "no licence",
    ]


def test_what_a_server_says_arrives_at_a_fluentd(make_hub, engine, host):
    pid = int((host.directory / "docker.pid").read_text())
    heard = bytearray()

    class Listener(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while part := self.request.recv(65536):
                heard.extend(part)

    fluentd = socketserver.ThreadingTCPServer(("", 0), Listener, bind_and_activate=False)
    address = "{}:{}".format(*serve_inside(pid, "127.0.0.1", fluentd))
    options = {"fluentd-address": address, "tag": "jupyter.{{.Name}}"}
    try:
        hub = make_hub(
            'c.GPUSpawner.log_driver = "fluentd"', f"c.GPUSpawner.log_options = {options!r}"
        )
        hub.start_server("ada", {"gpus": 1})
        until(lambda: PLAIN_SAYS.encode() in heard, "its words are there")
        name = engine.inspect_container(container_of(engine, "ada"))["Name"].lstrip("/")
        assert f"jupyter.{name}".encode() in heard
    finally:
        fluentd.shutdown()
        fluentd.server_close()
