"""A hub that ran DockerSpawner goes on with GPUSpawner, and back: servers, volumes, choices."""

from __future__ import annotations

import json
import re
import textwrap
from typing import Any

import pytest
import requests
from bs4 import BeautifulSoup

from ..support.hubs import Hub, until
from ..support.looks import container_of, free_gpus, inside, labelled
from ..support.paths import ROOT

pytestmark = pytest.mark.engine

PAGE = ROOT / "docs" / "how-to" / "dockerspawner.md"
# What administrators of DockerSpawner have: all GPUs for some, homes in volumes, a form of their
# own. Stopped containers are kept, which is its default.
DOCKERSPAWNERS = """
import docker
del c["GPUSpawner"]
c.JupyterHub.spawner_class = "docker"
c.DockerSpawner.network_name = "gpuspawner"
c.DockerSpawner.image = "gpuspawner/minimal:py3.11"
c.DockerSpawner.pull_policy = "never"
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 1}
c.DockerSpawner.volumes = {"jupyterhub-user-{username}": "/home/jovyan/work"}
def every_gpu(spawner):
    if spawner.user.name != "ben":
        return {}
    return {"device_requests": [docker.types.DeviceRequest(count=-1, capabilities=[["gpu"]])]}
c.DockerSpawner.extra_host_config = every_gpu
"""
FORM = """
c.DockerSpawner.options_form = '<input name="profile"><input name="gpus"><input name="image">'
c.DockerSpawner.options_from_form = lambda form: {**form, "image": "".join(form["image"])}
"""


# What doctor says of every hub of DockerSpawner's.
NO_GPUS = ("which hands out no GPUs",)


def on_page(word: str) -> str:
    """Return the one block of the page that is a configuration with this word in it."""
    text = PAGE.read_text()
    found = re.findall(r"^ *```python\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    (block,) = (each for each in found if word in each)
    return textwrap.dedent(block)


THERE, BACK = on_page("spawner_class"), on_page("forget_choice")


def change(hub: Hub, old: str = "", new: str = "") -> None:
    """Restart a hub whose configuration has others of its lines, at the end."""
    file = hub.folder / "jupyterhub_config.py"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, "") + new)
    hub.stop()
    hub.start()


def run(engine: Any, container: str, command: str) -> str:
    """Return what a command prints in a container."""
    job = engine.exec_create(container, ["sh", "-c", command], user="0")
    return engine.exec_start(job["Id"]).decode().strip()


def answers(hub: Hub, user: str) -> bool:
    """Return whether a user's server answers through the proxy."""
    return requests.get(f"{hub.url}/user/{user}/", timeout=30).text == "plain"


def test_servers_run_on_hold_their_gpus_and_their_users_find_their_files(make_hub, engine):
    hub = make_hub(DOCKERSPAWNERS, doctor=NO_GPUS)
    for user in ("ada", "ben"):
        hub.start_server(user)
        run(engine, f"jupyter-{user}", "echo kept > /home/jovyan/work/file")
        run(engine, f"jupyter-{user}", "echo lost > /opt/file")
    change(hub, new=THERE)
    for user in ("ada", "ben"):
        assert hub.ready(user)
        assert answers(hub, user)
    # Ben's has all, and no lease says so.
    assert free_gpus() == []
    assert re.search(r"jupyter-ben has GPU 0, 1, 2, 3 and no lease", hub.log())
    assert "jupyter-ada has" not in hub.log()
    assert hub.spawn("cy", {"gpus": 1}).status_code == 202
    assert not hub.ready("cy")
    hub.stop_server("ben")
    until(lambda: hub.ready("cy"), "cy's server is ready", log=hub.log)
    assert len(labelled(engine)["cy"]) == 1
    assert len(free_gpus()) == 3
    # DockerSpawner keeps stopped containers, and what is in them and in no volume.
    hub.stop_server("ada")
    for user in ("ada", "ben"):
        hub.start_server(user, {"gpus": 1})
        new = container_of(engine, user)
        assert run(engine, new, "cat /home/jovyan/work/file") == "kept"
        old = engine.inspect_container(f"jupyter-{user}")
        assert old["Id"] != new
        assert not old["State"]["Running"]
        assert f"Container jupyter-{user}, which an earlier spawner made for {user}" in hub.log()
        engine.start(f"jupyter-{user}")
        assert run(engine, f"jupyter-{user}", "cat /opt/file") == "lost"


@pytest.mark.thorough
def test_what_was_chosen_in_a_form_of_dockerspawner_s_keeps_nobody_from_starting(make_hub, engine):
    hub = make_hub(DOCKERSPAWNERS, FORM, doctor=NO_GPUS)
    session = hub.log_in("ada")
    form = {"profile": "large", "gpus": "two", "image": "theirs:1"}
    xsrf = session.cookies.get("_xsrf", path="/hub/")
    session.post(f"{hub.url}/hub/spawn", data={**form, "_xsrf": xsrf})
    # JupyterHub saves what it passes on, even where a start fails, and starts again with that.
    assert hub.spawn("ada").status_code == 400
    hub.start_server("ben", {"profile": ["large", 3], "safe_mode": "yes"})
    hub.stop_server("ben")
    change(hub, FORM, THERE)
    hub.start_server("ada")
    assert len(labelled(engine)["ada"]) == 1
    assert "The saved choice of ada is set aside: " in hub.log()
    hub.stop_server("ada")
    # "Start My Server" leads to the form.
    page = BeautifulSoup(hub.log_in("ben").get(f"{hub.url}/hub/spawn").content, "html.parser")
    assert page.select_one("#spawn_form #gpuspawner")
    hub.start_server("ben")
    assert "The saved choice of ben is set aside: " in hub.log()


@pytest.mark.thorough
def test_a_form_of_the_administrator_s_goes_on_working(make_hub, engine):
    """It is theirs: its keys are left to their hooks, and those that are ours are checked."""
    hook = """
def apply(spawner, choice):
    spawner.environment = {"PROFILE": "".join(choice.get("profile", []))}
c.DockerSpawner.apply_user_options = apply
"""
    hub = make_hub(DOCKERSPAWNERS, FORM.replace('<input name="gpus">', ""), hook, doctor=NO_GPUS)
    session = hub.log_in("ada")

    def start() -> str:
        xsrf = session.cookies.get("_xsrf", path="/hub/")
        form = {"profile": "large", "image": "", "_xsrf": xsrf}
        session.post(f"{hub.url}/hub/spawn", data=form, allow_redirects=False)
        until(lambda: hub.ready("ada"), "the server is ready", log=hub.log)
        (found,) = engine.containers()
        return run(engine, found["Id"], "echo $PROFILE")

    assert start() == "large"
    hub.stop_server("ada")
    change(hub, new=THERE)
    assert start() == "large"
    assert len(labelled(engine)["ada"]) == 1
    hub.stop_server("ada")
    hub.start_server("ada")  # by what is saved
    assert "PROFILE=large" in inside(engine, "ada", "env").splitlines()


@pytest.mark.parametrize(
    "remove",
    ["c.DockerSpawner.remove = False", pytest.param("", marks=pytest.mark.thorough)],
    ids=["said", "default"],
)
def test_a_container_that_is_kept_and_in_the_way_gets_another_name(make_hub, engine, remove):
    name = 'c.DockerSpawner.name_template = "{prefix}-{username}"'
    hub = make_hub(DOCKERSPAWNERS, name, remove, doctor=NO_GPUS)
    hub.start_server("ada")
    first = engine.inspect_container("jupyter-ada")["Id"]
    run(engine, first, "echo mine > /opt/file")
    hub.stop_server("ada")
    assert engine.inspect_container("jupyter-ada")["State"]["Running"] is False
    change(hub, new=THERE)
    hub.start_server("ada", {"gpus": 0})
    assert engine.inspect_container("jupyter-ada")["Id"] == container_of(engine, "ada") != first
    aside = f"jupyter-ada-{first[:12]}"
    assert f"Container {aside}, so far jupyter-ada, which an earlier spawner made" in hub.log()
    engine.start(aside)
    assert run(engine, aside, "cat /opt/file") == "mine"
    # That one is nobody's server any more: a stop and a start of ada's leave it alone.
    hub.stop_server("ada")
    hub.start_server("ada", {"gpus": 0})
    assert engine.inspect_container(aside)["State"]["Running"]
    assert hub.log().count("which an earlier spawner made") == 1


@pytest.mark.thorough
def test_dockerspawner_s_containers_that_are_not_kept_are_removed(make_hub, engine):
    hub = make_hub(DOCKERSPAWNERS, "c.DockerSpawner.remove = True", doctor=NO_GPUS)
    hub.start_server("ada")
    change(hub, new=THERE)
    assert answers(hub, "ada")
    hub.stop_server("ada")
    assert engine.containers(all=True) == []
    assert "an earlier spawner" not in hub.log()


@pytest.mark.thorough
def test_the_way_back_is_the_same(make_hub, engine):
    images = 'c.GPUSpawner.images = {"ours": "gpuspawner/minimal:py3.11"}\n'
    hub = make_hub(DOCKERSPAWNERS, images, THERE)
    for user, count in (("ada", 0), ("ben", 2)):
        hub.start_server(user, {"gpus": count, "image": "ours"})
        run(engine, container_of(engine, user), "echo kept > /home/jovyan/work/file")
    change(hub, THERE, BACK)
    for user in ("ada", "ben"):
        assert hub.ready(user)
        assert answers(hub, user)
    for user in ("ada", "ben"):
        hub.stop_server(user)
    # As the page says; DockerSpawner would start it again.
    assert len(engine.prune_containers({"label": "gpuspawner.gpus"})["ContainersDeleted"]) == 2
    for user in ("ada", "ben"):
        # By what is saved, which is GPUSpawner's.
        hub.start_server(user)
        assert answers(hub, user)
    for each in engine.containers():
        assert run(engine, each["Id"], "cat /home/jovyan/work/file") == "kept"
    # And there once more, beside what DockerSpawner has started.
    change(hub, BACK, THERE)
    assert answers(hub, "ada")
    assert free_gpus() == []
    hub.stop_server("ben")
    hub.start_server("ben", {"gpus": 2})
    assert len(labelled(engine)["ben"]) == 2


HOOKS = """
import json
c.Authenticator.enable_auth_state = True
c.CryptKeeper.keys = [b"k" * 32]
async def with_state(authenticator, handler, authentication):
    return {**authentication, "auth_state": {"team": "red"}}
c.Authenticator.post_auth_hook = with_state
def say(hook, spawner, **facts):
    with open("hooks.log", "a") as file:
        said = {"hook": hook, "volumes": sorted(spawner.volumes), **facts}
        file.write(json.dumps(said) + "\\n")
def remember(spawner, state):
    spawner.environment = {**spawner.environment, "TEAM": (state or {}).get("team", "none")}
    say("auth_state", spawner)
async def before(spawner):
    spawner.volumes["extra-{username}"] = "/extra"
    spawner.cpu_limit = 0.75
    say("pre_spawn", spawner)
def after(spawner):
    say("post_stop", spawner, team=spawner.environment.get("TEAM"))
async def host_config(spawner):
    return {"extra_hosts": {"files": "10.1.2.3"}, "shm_size": 2**20, "cap_drop": ["ALL"]}
c.DockerSpawner.auth_state_hook = remember
c.DockerSpawner.pre_spawn_hook = before
c.DockerSpawner.post_stop_hook = after
c.DockerSpawner.environment = {"COURSE": lambda spawner: f"ml-{spawner.user.name}"}
c.DockerSpawner.extra_host_config = host_config
c.DockerSpawner.extra_create_kwargs = lambda spawner: {"hostname": f"lab-{spawner.user.name}"}
c.DockerSpawner.mem_limit = lambda spawner: "512M"
c.DockerSpawner.mounts = [{"type": "volume", "source": "mounted-{username}", "target": "/mounted"}]
c.DockerSpawner.read_only_volumes = {"course": "/course"}
c.DockerSpawner.post_start_cmd = "touch /tmp/started"
c.Spawner.args = ["--an-argument"]
"""


def made(engine: Any) -> dict[str, Any]:
    """Return what hooks and functions have made of the only container that runs."""
    (found,) = [engine.inspect_container(each["Id"]) for each in engine.containers()]
    host, config = found["HostConfig"], found["Config"]
    variables = dict(line.partition("=")[::2] for line in config["Env"])
    return {
        "variables": {name: variables.get(name) for name in ("COURSE", "TEAM")},
        "mounts": sorted(
            (each["Name"], each["Destination"], each["RW"]) for each in found["Mounts"]
        ),
        "host": {name: host[name] for name in ("CpuQuota", "Memory", "ExtraHosts", "ShmSize")},
        "dropped": host["CapDrop"],
        "hostname": config["Hostname"],
        "last argument": config["Cmd"][-1],
        "after its start": run(engine, found["Id"], "ls /tmp/started"),
    }


@pytest.mark.thorough
def test_hooks_and_functions_do_the_same_work_before_and_after(make_hub, engine):
    hub = make_hub(DOCKERSPAWNERS, HOOKS, doctor=NO_GPUS)

    def said() -> list[dict[str, Any]]:
        """Return what hooks have said since this was last asked."""
        file = hub.folder / "hooks.log"
        lines = file.read_text().splitlines() if file.exists() else []
        file.write_text("")
        return [json.loads(line) for line in lines]

    def started() -> tuple[Any, Any]:
        hub.start_server("ada")
        return made(engine), said()

    hub.log_in("ada")
    first, begun = started()
    assert first["variables"] == {"COURSE": "ml-ada", "TEAM": "red"}
    assert ("extra-ada", "/extra", True) in first["mounts"]
    assert [each["hook"] for each in begun] == ["auth_state", "pre_spawn"]
    hub.stop_server("ada")
    ended = said()
    assert [each["hook"] for each in ended] == ["post_stop"]
    hub.start_server("ada")
    change(hub, new=THERE)
    said()
    # A server that DockerSpawner started ends as one of ours does.
    hub.stop_server("ada")
    assert [each["hook"] for each in said()] == ["post_stop"]
    for _ in range(2):  # the second time by a hub that has restarted
        assert started() == (first, begun)
        hub.stop_server("ada")
        assert said() == ended
        hub.stop()
        hub.start()
    hub.start_server("ada")
    hub.stop()
    hub.start()
    said()
    hub.stop_server("ada")
    assert [each["hook"] for each in said()] == ["post_stop"]
