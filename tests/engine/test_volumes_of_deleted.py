"""Users who are deleted, and those who come after them with the same name: who finds what."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from gpuspawner.backends.docker.set_aside import list_volumes

from ..support.hubs import until, with_groups
from ..support.looks import container_of, inside

pytestmark = pytest.mark.engine

GROUPS = {
    "removed": {"deleted_user_volumes": "remove"},
    "kept": {"deleted_user_volumes": "keep"},
    "per-server": {"home_volume": "home-{username}-{servername}"},
    "stopped-stay": {"remove": False},
    "elsewhere": {"earlier_home_volumes": {"earlier-{username}": "/home/jovyan/earlier"}},
}
LINES = (
    "c.GPUSpawner.client_kwargs = {'timeout': 10}",
    'c.GPUSpawner.home_volume = "home-{username}"',
    'c.GPUSpawner.course_volumes = {"course": {"path": "/course", "instructors": ["kept"]}}',
    with_groups(GROUPS),
)
NONE = {"gpus": 0}
NOTE = "/home/jovyan/work/note"


def write(engine: Any, user: str, words: str, server: str = "") -> None:
    inside(engine, user, f"echo {words} >> {NOTE}", server)
    assert words in read(engine, user, server)


def read(engine: Any, user: str, server: str = "") -> str:
    return inside(engine, user, f"cat {NOTE} 2>/dev/null", server)


def home(engine: Any, user: str, server: str = "", path: str = "/home/jovyan/work") -> str:
    mounts = engine.inspect_container(container_of(engine, user, server))["Mounts"]
    return {each["Destination"]: each["Name"] for each in mounts}.get(path, "")


def there(engine: Any) -> set[str]:
    return set(list_volumes(engine).volumes)


def set_aside(engine: Any) -> set[str]:
    return set(list_volumes(engine).marks)


def delete(hub: Any, user: str) -> None:
    assert hub.api("DELETE", f"/users/{user}").status_code == 204
    assert "Error cleaning up" not in hub.log()


@pytest.mark.thorough
def test_a_new_user_of_that_name_finds_no_file_and_the_old_ones_are_there(module_hub, engine):
    hub = module_hub
    for times, volume in enumerate(("home-ada", "home-ada.2", "home-ada.3")):
        hub.start_server("ada", NONE)
        assert home(engine, "ada") == volume
        assert read(engine, "ada") == ""
        write(engine, "ada", f"of-{times}")
        # One's own files, also in a server of another name.
        hub.start_server("ada", {"gpus": 1}, "lab")
        assert read(engine, "ada", "lab") == f"of-{times}"
        hub.stop_server("ada", "lab")
        hub.stop_server("ada")
        hub.start_server("ada", NONE)
        assert read(engine, "ada") == f"of-{times}"
        # Its server runs: the hub stops it first.
        delete(hub, "ada")
        assert volume in set_aside(engine)
    assert there(engine) >= {"home-ada", "home-ada.2", "home-ada.3", "course"}
    assert set_aside(engine) == {"home-ada", "home-ada.2", "home-ada.3"}
    mark = list_volumes(engine).marks["home-ada"]
    assert mark.user == "ada"
    assert mark.since is not None
    assert "Volumes of 'ada' are set aside and can be restored: home-ada.3" in hub.log()
    # Somebody else's, whose name has that one in it.
    hub.start_server("ada-2", NONE)
    assert home(engine, "ada-2") == "home-ada-2d2"


@pytest.mark.thorough
def test_without_its_mark_the_volume_is_the_users_again(module_hub, engine):
    hub = module_hub
    hub.start_server("ada", NONE)
    write(engine, "ada", "mine")
    delete(hub, "ada")
    engine.remove_volume("gpuspawner-set-aside-home-ada")
    hub.start_server("ada", NONE)
    assert read(engine, "ada") == "mine"


@pytest.mark.thorough
def test_a_user_who_is_made_anew_while_the_old_server_still_goes_starts_without_its_files(
    module_hub, engine
):
    hub = module_hub
    hub.start_server("ada", NONE)
    write(engine, "ada", "old")
    old = container_of(engine, "ada")
    # It has been stopped for the hub, and its container takes a while.
    delete(hub, "ada")
    hub.start_server("ada", NONE)
    assert container_of(engine, "ada") != old
    assert (home(engine, "ada"), read(engine, "ada")) == ("home-ada.2", "")


@pytest.mark.thorough
def test_an_engine_that_hangs_leaves_nobody_half_deleted(module_hub, engine, host):
    hub = module_hub
    hub.start_server("ada", NONE)
    write(engine, "ada", "old")
    hub.stop_server("ada")
    pid = int((host.directory / "docker.pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        assert hub.api("DELETE", "/users/ada").status_code == 204
        assert hub.api("GET", "/users/ada").status_code == 404
        assert "run: gpuspawner volumes set-aside home-ada" in hub.log()
    finally:
        os.kill(pid, signal.SIGCONT)
    # At once: what is left to do is done before it starts.
    hub.start_server("ada", NONE)
    assert (home(engine, "ada"), read(engine, "ada")) == ("home-ada.2", "")
    assert "Volumes of 'ada' are set aside and can be restored: home-ada" in hub.log()


def test_where_volumes_are_removed_files_are_gone_and_so_is_the_mark(module_hub, engine):
    hub = module_hub
    hub.add_to_group("removed", "ada")
    hub.start_server("ada", NONE)
    write(engine, "ada", "secret")
    # Somebody looks into it when the user is deleted.
    host = engine.create_host_config(binds={"home-ada": {"bind": "/x", "mode": "rw"}})
    image = "gpuspawner/minimal:py3.11"
    looking = engine.create_container(image, ["sleep", "600"], host_config=host)["Id"]
    delete(hub, "ada")
    assert "home-ada" in set_aside(engine)
    hub.start_server("ada", NONE)
    assert read(engine, "ada") == ""
    engine.remove_container(looking, force=True)
    until(lambda: "home-ada" not in there(engine), "the volume is removed", log=hub.log)
    until(lambda: not set_aside(engine), "the mark is removed", log=hub.log)
    assert home(engine, "ada") == "home-ada.2"
    write(engine, "ada", "new")
    hub.stop_server("ada")
    hub.start_server("ada", NONE)
    assert read(engine, "ada") == "new"
    assert "course" in there(engine)


@pytest.mark.thorough
def test_where_volumes_are_kept_a_new_user_of_that_name_has_them(module_hub, engine):
    hub = module_hub
    hub.add_to_group("kept", "ada")
    hub.start_server("ada", NONE)
    write(engine, "ada", "handed-over")
    delete(hub, "ada")
    assert set_aside(engine) == set()
    hub.start_server("ada", NONE)
    assert read(engine, "ada") == "handed-over"


@pytest.mark.thorough
def test_with_a_named_server_only_its_own_volume_goes(module_hub, engine):
    hub = module_hub
    hub.add_to_group("per-server", "ada")
    for name in ("", "lab", "two"):
        hub.start_server("ada", NONE, name)
        write(engine, "ada", f"of-{name}", name)
        hub.stop_server("ada", name)
    remove = hub.api("DELETE", "/users/ada/servers/lab", {"remove": True})
    assert remove.status_code == 204, remove.text
    assert set_aside(engine) == {"home-ada-lab"}
    hub.start_server("ada", NONE, "lab")
    assert (home(engine, "ada", "lab"), read(engine, "ada", "lab")) == ("home-ada-lab.2", "")
    hub.start_server("ada", NONE, "two")
    assert read(engine, "ada", "two") == "of-two"
    for name in ("lab", "two"):
        hub.stop_server("ada", name)
    delete(hub, "ada")
    # Those of all servers, also of one that was removed before.
    names = {"home-ada-", "home-ada-lab", "home-ada-lab.2", "home-ada-two"}
    assert set_aside(engine) == names


@pytest.mark.thorough
def test_a_named_server_that_is_removed_leaves_the_users_home(module_hub, engine):
    hub = module_hub
    hub.start_server("ada", NONE, "lab")
    write(engine, "ada", "mine", "lab")
    hub.stop_server("ada", "lab")
    assert hub.api("DELETE", "/users/ada/servers/lab", {"remove": True}).status_code == 204
    assert set_aside(engine) == set()
    hub.start_server("ada", NONE)
    assert read(engine, "ada") == "mine"


@pytest.mark.thorough
def test_who_cannot_be_deleted_keeps_the_files(module_hub, engine):
    """JupyterHub stops the server without a name only, and fails where another one runs."""
    hub = module_hub
    hub.start_server("ada", NONE, "lab")
    write(engine, "ada", "mine", "lab")
    assert hub.api("DELETE", "/users/ada").status_code == 500
    assert set_aside(engine) == set()
    assert "Stop lab first" in hub.log()
    hub.start_server("ada", NONE)
    assert read(engine, "ada") == "mine"
    hub.stop_server("ada", "lab")
    delete(hub, "ada")
    assert set_aside(engine) == {"home-ada"}


@pytest.mark.thorough
def test_volumes_of_an_earlier_configuration_go_too_and_none_is_made_anew(module_hub, engine):
    hub = module_hub
    hub.add_to_group("elsewhere", "ada")
    engine.create_volume("earlier-ada")
    hub.start_server("ada", NONE)
    assert home(engine, "ada", path="/home/jovyan/earlier") == "earlier-ada"
    delete(hub, "ada")
    assert set_aside(engine) == {"home-ada", "earlier-ada"}
    hub.add_to_group("elsewhere", "ada")
    hub.start_server("ada", NONE)
    assert home(engine, "ada", path="/home/jovyan/earlier") == ""
    assert there(engine) == {"home-ada", "home-ada.2", "earlier-ada", "course"}


@pytest.mark.thorough
def test_a_stopped_container_of_who_was_deleted_is_not_started_again(module_hub, engine):
    hub = module_hub
    hub.add_to_group("stopped-stay", "ada")
    hub.start_server("ada", NONE)
    inside(engine, "ada", "echo old > /tmp/note")
    hub.stop_server("ada")
    old = container_of(engine, "ada")
    hub.start_server("ada", NONE)
    assert container_of(engine, "ada") == old
    delete(hub, "ada")
    hub.add_to_group("stopped-stay", "ada")
    hub.start_server("ada", NONE)
    assert inside(engine, "ada", "cat /tmp/note 2>/dev/null") == ""
    # And the new one's own is.
    hub.stop_server("ada")
    new = container_of(engine, "ada")
    hub.start_server("ada", NONE)
    assert container_of(engine, "ada") == new


@pytest.mark.thorough
def test_a_start_makes_a_volume_that_says_whose_it_is_and_root_owns_none(module_hub, engine):
    hub = module_hub
    hub.start_server("ada", NONE)
    labels = engine.inspect_volume("home-ada")["Labels"]
    assert labels["gpuspawner.user"] == "ada"
    assert labels["gpuspawner.volume"] == "home-ada"
    assert labels["gpuspawner.hub"].startswith("http")
    assert inside(engine, "ada", "stat -c %U ~/work") == "jovyan"
    assert not engine.inspect_volume("course")["Labels"]
