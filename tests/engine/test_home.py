"""The home that is kept: of the shipped configuration, and where it is full or broken."""

from __future__ import annotations

import json
from contextlib import contextmanager

import docker
import pytest

from ..support.hubs import IMAGES_OWN
from ..support.looks import container_of, inside

pytestmark = pytest.mark.engine

IMAGE = "gpuspawner/minimal:py3.11"
CHOICE = {"gpus": 0, "image": "minimal"}
NEW, EARLIER = "gpuspawner-jovyan-", "gpuspawner-home-"
COMPUTE = """
import jupyter_client
manager = jupyter_client.KernelManager()
manager.start_kernel()
client = manager.client()
client.start_channels()
client.wait_for_ready(60)
client.execute_interactive("print(6 * 7)", timeout=60)
manager.shutdown_kernel(now=True)
"""


@pytest.fixture(scope="module")
def _hub(hubs_of_run, minimal_image):
    no_start = "c.JupyterHub.tornado_settings['slow_spawn_timeout'] = 0"
    return hubs_of_run(IMAGES_OWN, no_start, shipped=True)


@pytest.fixture
def hub(idle_host, _hub, engine):
    yield _hub
    _hub.stop_all_servers()
    for volume in engine.volumes()["Volumes"] or []:
        if volume["Name"].startswith((NEW, EARLIER)):
            engine.remove_volume(volume["Name"])


def volumes(engine):
    return {each["Name"] for each in engine.volumes()["Volumes"] or []}


@contextmanager
def beside(engine, volume, command, path="/home/jovyan"):
    """Have another container of the image use a volume meanwhile."""
    limits = engine.create_host_config(binds={volume: {"bind": path, "mode": "rw"}})
    made = engine.create_container(IMAGE, command, host_config=limits)["Id"]
    try:
        engine.start(made)
        yield made
    finally:
        engine.remove_container(made, force=True)


def test_all_of_the_home_is_kept_and_nothing_of_it_overwritten(hub, engine):
    hub.start_server("ada", {"gpus": 0, "image": "minimal"})
    # What the image has there, and who it belongs to.
    assert inside(engine, "ada", "stat -c %U ~ ~/.bashrc").split() == ["jovyan", "jovyan"]
    inside(engine, "ada", "git init -q ~/project; echo mine > ~/.bashrc; mkdir -p ~/.ssh")
    inside(engine, "ada", "echo key > ~/.ssh/authorized_keys")
    hub.stop_server("ada")
    hub.start_server("ada", {"gpus": 1, "image": "minimal"})
    assert inside(engine, "ada", "cat ~/.bashrc ~/.ssh/authorized_keys").split() == ["mine", "key"]
    assert inside(engine, "ada", "ls -d ~/project/.git") == "/home/jovyan/project/.git"
    # JupyterLab and terminals open there.
    assert inside(engine, "ada", "echo $JUPYTERHUB_ROOT_DIR; pwd").split() == ["/home/jovyan"] * 2
    assert volumes(engine) >= {NEW + "ada"}
    assert EARLIER + "ada" not in volumes(engine)


@pytest.mark.thorough
def test_what_a_running_server_needs_for_itself_lies_off_the_home(hub, engine):
    hub.start_server("ada", {"gpus": 0, "image": "minimal"})
    assert inside(engine, "ada", "jupyter --runtime-dir").startswith("/tmp/")
    assert inside(engine, "ada", "find ~ -name '*jpserver*'") == ""
    assert "jpserver" in inside(engine, "ada", "ls $(jupyter --runtime-dir)")


@pytest.mark.thorough
def test_who_has_a_volume_from_before_finds_it_where_it_was(hub, engine):
    engine.create_volume(EARLIER + "ada")
    write = ["bash", "-c", "echo old > ~/work/note; sleep 60"]
    with beside(engine, EARLIER + "ada", write, "/home/jovyan/work"):
        hub.start_server("ada", {"gpus": 0, "image": "minimal"})
        assert inside(engine, "ada", "cat ~/work/note") == "old"
        assert inside(engine, "ada", "echo new >> ~/work/note; echo more > ~/note; cat ~/work/note")
        hub.stop_server("ada")
    hub.start_server("ada", {"gpus": 1, "image": "minimal"})
    assert inside(engine, "ada", "cat ~/work/note ~/note").split() == ["old", "new", "more"]
    hub.start_server("ben", {"gpus": 0, "image": "minimal"})
    assert EARLIER + "ben" not in volumes(engine)
    assert inside(engine, "ben", "touch ~/work/mine && ls ~/work") == "mine"


def full_home(engine, user):
    options = {"type": "tmpfs", "device": "tmpfs", "o": "size=400k,uid=1000,gid=100,mode=755"}
    engine.create_volume(NEW + user, driver="local", driver_opts=options)
    fill = "dd if=/dev/zero of=$HOME/big bs=1k; touch $HOME/.full; sleep 600"
    return beside(engine, NEW + user, ["bash", "-c", fill])


@pytest.mark.thorough
def test_a_home_that_is_full_to_the_last_byte_starts_and_can_be_tidied(hub, engine):
    with full_home(engine, "ada"):
        hub.start_server("ada", {"gpus": 1, "image": "minimal"})
        assert "No space left" in inside(engine, "ada", "(echo more >> ~/big) 2>&1")
        inside(engine, "ada", "rm ~/big")
        assert inside(engine, "ada", f"python -c '{COMPUTE}' 2>/dev/null") == "42"
        hub.stop_server("ada")
        # A notebook in it runs in safe mode at once: IPython wants to write at its first start.
    with full_home(engine, "ben"):
        hub.start_server("ben", {"gpus": 0, "image": "minimal", "safe_mode": True})
        assert "No space left" in inside(engine, "ben", "(echo more >> ~/big) 2>&1")
        assert inside(engine, "ben", f"python -c '{COMPUTE}' 2>/dev/null") == "42"
        hub.stop_server("ben")


def test_settings_that_break_the_server_are_left_out_in_safe_mode(hub, engine):
    hub.start_server("ada", {"gpus": 0, "image": "minimal"})
    inside(
        engine,
        "ada",
        "mkdir -p ~/.jupyter; echo raise SystemExit > ~/.jupyter/jupyter_server_config.py",
    )
    inside(engine, "ada", "mkdir -p ~/.local/lib/python3.11/site-packages/tornado")
    hub.stop_server("ada")
    assert "stopped while starting" in hub.failed_start("ada", CHOICE)["message"]
    hub.start_server("ada", {"gpus": 1, "image": "minimal", "safe_mode": True})
    about = engine.inspect_container(container_of(engine, "ada"))
    assert "GPUSPAWNER_SAFE_MODE=1" in about["Config"]["Env"]
    assert inside(engine, "ada", "cat ~/.jupyter/jupyter_server_config.py") == "raise SystemExit"
    inside(engine, "ada", "rm -r ~/.jupyter ~/.local/lib")
    hub.stop_server("ada")
    hub.start_server("ada", {"gpus": 0, "image": "minimal"})
    seen = json.loads(inside(engine, "ada", "jupyter --paths --json"))
    assert "/home/jovyan/.jupyter" in seen["config"]


@pytest.mark.thorough
def test_an_earlier_volume_that_goes_away_stops_no_start(hub, engine):
    engine.create_volume(EARLIER + "ada")
    hub.start_server("ada", {"gpus": 0, "image": "minimal"})
    hub.stop_server("ada")
    engine.remove_volume(EARLIER + "ada")
    hub.start_server("ada", {"gpus": 0, "image": "minimal"})
    with pytest.raises(docker.errors.NotFound):
        engine.inspect_volume(EARLIER + "ada")


@pytest.mark.thorough
def test_a_user_whose_name_is_too_long_for_a_volume_has_a_home_all_the_same(make_hub, engine):
    # As without the shipped configuration's `username_pattern`.
    hub = make_hub("c.GPUSpawner.home_volume = 'gpuspawner-home-{username}'")
    for user in ("学" * 80 + "a", "学" * 80 + "b"):
        hub.start_server(user, {"gpus": 0})
        hub.stop_server(user)
    homes = {name for name in volumes(engine) if name.startswith(EARLIER)}
    assert {len(name) for name in homes} == {255}
    assert len(homes) == 2
