"""A hub whose servers are processes: what isn't a backend knows nothing of Docker."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from gpuspawner.simulation.state import describe

from ..support.hubs import ALWAYS, PASSWORD, TOKEN, Hub, free_port, until, with_groups
from ..support.nvml import environment
from ..support.paths import ROOT
from ..support.queues import ask, audit_lines, message

pytestmark = pytest.mark.engine

SECONDS = 1 / 3600
CONFIG = f"""
c = get_config()
c.JupyterHub.authenticator_class = "shared-password"
c.SharedPasswordAuthenticator.user_password = {PASSWORD!r}
c.Authenticator.allow_all = True
c.JupyterHub.spawner_class = "tests.support.processes.ProcessSpawner"
c.JupyterHub.allow_named_servers = True
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 1}}
c.ProcessSpawner.poll_interval = 1
c.ProcessSpawner.hour_limit = 8
c.ProcessSpawner.images = {{"minimal": "none"}}
"""

# A stop lasts while there is a file "slow".
SLOW_STOP = """
import asyncio
from pathlib import Path
from gpuspawner.pages import TEMPLATES

async def post_stop_hook(spawner):
    while Path("slow").exists():
        await asyncio.sleep(0.05)

c.ProcessSpawner.post_stop_hook = post_stop_hook
c.JupyterHub.tornado_settings = {"slow_stop_timeout": 0.1}
c.JupyterHub.template_paths = [TEMPLATES]
"""

# After what every hub of the tests has.
HOOKS = """
def pre_spawn_hook(spawner):
    spawner.environment = {"WHO": "the hook"}

c.ProcessSpawner.pre_spawn_hook = pre_spawn_hook
"""
LAB = {"default_gpus": 2, "environment": {"WHO": "the override"}}


@contextmanager
def started(binaries, folder: Path, *lines: str) -> Iterator[Hub]:
    """Have a hub on a simulated NVML with two GPUs, with more lines of a configuration."""
    state = folder / "state"
    describe([("T4", 2)]).write(state)
    ports = {"public": free_port(), "hub": free_port(), "api": free_port()}
    config = [
        CONFIG,
        ALWAYS.format(token=TOKEN, prefix="", **ports),
        SLOW_STOP,
        HOOKS,
        with_groups({"lab": LAB}),
        *lines,
    ]
    (folder / "jupyterhub_config.py").write_text("".join(config))
    (folder / "ports").write_text("\n".join(map(str, ports.values())))
    (folder / "prefix").touch()
    nowhere = f"unix://{folder / 'no-engine'}"
    names = environment(Path(binaries.directory), state, PYTHONPATH=str(ROOT), DOCKER_HOST=nowhere)
    hub = Hub(folder, names)
    try:
        hub.start()
        yield hub
    finally:
        hub.stop()


@pytest.fixture(scope="module")
def _hub(binaries, tmp_path_factory):
    with started(binaries, tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture
def hub(_hub):
    """A hub on a simulated NVML with two GPUs, and no Docker Engine for anybody to call."""
    yield _hub
    _hub.begin_anew()


def variable(hub: Hub, user: str, name: str) -> str:
    """Return what a variable is in a user's process, as that says itself."""
    return hub.log_in(user).get(f"{hub.url}/user/{user}/{name}").text


def uuids(hub: Hub, user: str) -> str:
    """Return the GPUs that a user's process was given."""
    return variable(hub, user, "NVIDIA_VISIBLE_DEVICES")


def test_gpus_are_granted_waited_for_and_given_back(hub):
    hub.start_server("ada", {"gpus": 1})
    hub.start_server("ben", {"gpus": 1})
    granted = {uuids(hub, "ada"), uuids(hub, "ben")}
    assert len(granted) == 2
    assert all(each.startswith("GPU-") for each in granted)
    ask(hub, "cyd", {"gpus": 1})
    assert "You are next in line for 1 GPU." in message(hub, "cyd")
    form = BeautifulSoup(hub.log_in("dan").get(f"{hub.url}/hub/spawn/dan").text, "html.parser")
    assert "2nd in line" in form.get_text()
    hub.stop_server("ada")
    until(lambda: hub.ready("cyd"), "cyd's turn", log=hub.log)
    assert uuids(hub, "cyd") in granted - {uuids(hub, "ben")}


@pytest.mark.thorough
def test_a_server_ends_when_its_time_is_over(hub):
    hub.start_server("ada", {"gpus": 2, "hours": 4 * SECONDS})
    until(lambda: not hub._has("ada", ""), "ada's time is over", log=hub.log)
    assert [line["event"] for line in audit_lines(hub)] == ["grant", "warn", "stop", "release"]
    assert "of GPU time were over" in hub.log_in("ada").get(f"{hub.url}/hub/spawn/ada").text
    hub.start_server("ben", {"gpus": 2})


ORPHAN = """
from gpuspawner.leases.labels import LABEL_HUB, labels
from gpuspawner.gpus.model import Holder

async def pre_spawn_hook(spawner):
    for user, until in (("past", 1.0), ("endless", None)):
        bears = {**labels(Holder(user), "x", [], until), LABEL_HUB: spawner.hub_address}
        await spawner.backend.start(spawner.backend.create(bears, {}))

c.ProcessSpawner.pre_spawn_hook = pre_spawn_hook
c.ProcessSpawner.unknown_server_minutes = 0.02
"""


@pytest.mark.thorough
def test_what_the_hub_does_not_know_and_is_past_its_end_is_stopped(binaries, tmp_path):
    with started(binaries, tmp_path, ORPHAN) as hub:
        hub.start_server("ada", {"gpus": 2})
        stopped = "the server that is past its end is stopped"
        until(lambda: "stop" in [line["event"] for line in audit_lines(hub)], stopped, log=hub.log)
        by_rule = [line for line in audit_lines(hub) if line.get("rule") == "unknown to the hub"]
        assert [(line["event"], line["user"]) for line in by_rule] == [
            ("warn", "past"),
            ("stop", "past"),
        ]
        assert hub.ready("ada")
        hub.stop_server("ada")


@pytest.mark.thorough
def test_what_is_over_a_limit_is_refused(hub):
    answer = hub.spawn("ada", {"gpus": 3})
    assert answer.status_code == 400
    assert "2" in answer.json()["message"]


def at_once(hub: Hub, method: str, path: str, times: int) -> list[int]:
    """Send the hub a request several times, so that it reads all before it answers one."""
    lines = (
        f"{method} /hub/api{path} HTTP/1.1",
        f"Host: 127.0.0.1:{hub.hub_port}",
        f"Authorization: token {TOKEN}",
        "Connection: close",
    )
    request = "\r\n".join([*lines, "", ""]).encode()
    with ExitStack() as stack:
        address = ("127.0.0.1", hub.hub_port)
        calls = [stack.enter_context(socket.create_connection(address)) for _ in range(times)]
        for call in calls:
            call.sendall(request)
        return [int(call.makefile("rb").readline().split()[1]) for call in calls]


@pytest.mark.thorough
def test_who_leaves_twice_at_once_has_left(hub):
    hub.start_server("ada", {"gpus": 2})
    for _ in range(3):
        ask(hub, "cyd", {"gpus": 1})
        message(hub, "cyd")
        assert set(at_once(hub, "DELETE", "/users/cyd/server", 4)) <= {202, 204}, hub.log()[-3000:]
        until(lambda: not hub._has("cyd", ""), "cyd has left", log=hub.log)
    assert [line["event"] for line in audit_lines(hub) if line["user"] == "cyd"] == 3 * [
        "wait",
        "leave",
    ]


@pytest.mark.thorough
def test_what_a_hook_sets_holds_at_once_and_after_a_wait(hub):
    hub.add_to_group("lab", "ada", "cyd")
    hub.start_server("ada")
    assert variable(hub, "ada", "WHO") == "the hook"
    ask(hub, "cyd", {})
    assert "You are next in line for 2 GPUs." in message(hub, "cyd")
    hub.stop_server("ada")
    until(lambda: hub.ready("cyd"), "cyd's turn", log=hub.log)
    assert variable(hub, "cyd", "WHO") == "the hook"


@pytest.mark.thorough
def test_who_leaves_a_group_while_waiting_gets_what_applies_then(hub):
    hub.add_to_group("lab", "ada")
    hub.start_server("ben", {"gpus": 1})
    ask(hub, "ada", {})
    assert "You are next in line for 2 GPUs." in message(hub, "ada")
    assert hub.api("DELETE", "/groups/lab/users", {"users": ["ada"]}).ok
    hub.stop_server("ben")
    until(lambda: hub.ready("ada"), "ada's turn", log=hub.log)
    assert len(uuids(hub, "ada").split(",")) == 1
    hub.start_server("ben", {"gpus": 1})


@pytest.mark.thorough
def test_a_link_that_is_opened_while_the_server_stops_keeps_its_options(hub):
    hub.start_server("ada", {"gpus": 1})
    ada = hub.log_in("ada")
    (hub.folder / "slow").touch()
    assert hub.api("DELETE", "/users/ada/server").status_code == 202
    home = {"Referer": f"{hub.url}/hub/home"}
    waits = ada.get(f"{hub.url}/hub/spawn/ada?opt-gpus=2&opt-hours=0.5", headers=home)
    assert "stopping" in waits.text
    (hub.folder / "slow").unlink()
    until(lambda: not hub._has("ada", ""), "it has stopped", log=hub.log)
    page = BeautifulSoup(ada.get(waits.url).text, "html.parser")
    button = page.find(id="start")
    assert button.text == "Start with the link's options"
    pressed = f"{hub.url}{button['href']}"
    ada.get(pressed, headers={"Referer": waits.url}, allow_redirects=False)
    until(lambda: hub.ready("ada"), "it starts", log=hub.log)
    assert len(uuids(hub, "ada").split(",")) == 2
    # Without a link the button leads to the form.
    hub.stop_server("ada")
    page = BeautifulSoup(ada.get(f"{hub.url}/hub/spawn-pending/ada").text, "html.parser")
    assert page.find(id="start")["href"].endswith("/hub/spawn/ada")
