"""A hub whose servers are processes: what isn't a backend knows nothing of Docker."""

from __future__ import annotations

from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from gpuspawner.simulation.state import describe

from ..support.hubs import ALWAYS, PASSWORD, TOKEN, Hub, free_port, until, with_groups
from ..support.nvml import environment
from ..support.paths import ROOT
from ..support.queues import ask, journal, message

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

# After what every hub of the tests has.
HOOKS = """
def pre_spawn_hook(spawner):
    spawner.environment = {"WHO": "the hook"}

c.ProcessSpawner.pre_spawn_hook = pre_spawn_hook
"""
LAB = {"default_gpus": 2, "environment": {"WHO": "the override"}}


@pytest.fixture(scope="module")
def _hub(binaries, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    state = folder / "state"
    describe([("T4", 2)]).write(state)
    ports = {"public": free_port(), "hub": free_port(), "api": free_port()}
    config = [
        CONFIG,
        ALWAYS.format(token=TOKEN, prefix="", **ports),
        HOOKS,
        with_groups({"lab": LAB}),
    ]
    (folder / "jupyterhub_config.py").write_text("".join(config))
    (folder / "ports").write_text("\n".join(map(str, ports.values())))
    (folder / "prefix").touch()
    nowhere = f"unix://{folder / 'no-engine'}"
    names = environment(Path(binaries.directory), state, PYTHONPATH=str(ROOT), DOCKER_HOST=nowhere)
    hub = Hub(folder, names)
    hub.start()
    yield hub
    hub.stop()


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


def test_a_server_ends_when_its_time_is_over(hub):
    hub.start_server("ada", {"gpus": 2, "hours": 4 * SECONDS})
    until(lambda: not hub._has("ada", ""), "ada's time is over", log=hub.log)
    assert [line["event"] for line in journal(hub)] == ["grant", "warn", "stop", "release"]
    assert "of GPU time were over" in hub.log_in("ada").get(f"{hub.url}/hub/spawn/ada").text
    hub.start_server("ben", {"gpus": 2})


def test_what_is_over_a_limit_is_refused(hub):
    answer = hub.spawn("ada", {"gpus": 3})
    assert answer.status_code == 400
    assert "2" in answer.json()["message"]


def test_what_a_hook_sets_holds_at_once_and_after_a_wait(hub):
    hub.add_to_group("lab", "ada", "cyd")
    hub.start_server("ada")
    assert variable(hub, "ada", "WHO") == "the hook"
    ask(hub, "cyd", {})
    assert "You are next in line for 2 GPUs." in message(hub, "cyd")
    hub.stop_server("ada")
    until(lambda: hub.ready("cyd"), "cyd's turn", log=hub.log)
    assert variable(hub, "cyd", "WHO") == "the hook"


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
