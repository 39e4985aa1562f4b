"""`gpuspawner doctor` tries on three machines whether users' files are the same there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpuspawner.doctor.own_volumes import OWN
from gpuspawner.simulation.state import describe

from ..support import machine_folders, shell_image
from ..support.hubs import until
from ..support.machine_folders import Folder
from ..support.paths import ROOT
from ..support.swarms import Swarm, open_swarm

pytestmark = [pytest.mark.engine, pytest.mark.thorough, pytest.mark.timeout(600)]

STATES = tuple(describe([("T4", 1)], "570.133.20") for _ in range(3))
NODES = ("node-1", "node-2", "node-3")
FOLDERS = "c.GPUSwarmSpawner.volumes = {'/tmp/homes/{username}': '/home/user'}"
# As of a file server: the engine mounts what the options say.
VOLUMES = """
c.GPUSwarmSpawner.home_volume = "home-{username}"
c.GPUSwarmSpawner.volume_driver = "local"
c.GPUSwarmSpawner.volume_driver_options = {
    "type": "none", "o": "bind", "device": "/tmp/homes/{volume}",
}
"""
# Doctor's checks without those of GPUs and the hub, which start containers and take their time.
CHECKS = """
import json
from pathlib import Path
from gpuspawner.doctor import checks
from gpuspawner.doctor.findings import Context, examine

names = checks.ENGINE, checks.CONFIGURATION, checks.SWARM, checks.IMAGES, checks.SHARED_HOMES
only = [each for each in checks.CHECKS if each.title in names]
context = Context(Path("jupyterhub_config.py").absolute(), Path.cwd())
found = [each for each in examine(only, context, lambda check: None)]
found = [each for title, each in found if title == checks.SHARED_HOMES]
print(json.dumps([[each.state, each.found, each.advice] for each in found]))
"""
SHELL = f"c.GPUSwarmSpawner.images = {{'shell': {shell_image.IMAGE!r}}}"


@pytest.fixture(scope="module")
def swarm(tmp_path_factory) -> Iterator[Swarm]:
    with open_swarm(STATES, tmp_path_factory.mktemp("swarm")) as made:
        shell_image.load(made.clients)
        yield made


@pytest.fixture
def folder(swarm) -> Iterator[Folder]:
    """What is at /tmp/homes, by default on no machine; nothing is ever left in it."""
    with machine_folders.opened(swarm.cluster) as made:
        yield made
        names = [each.name for each in made.shared.rglob("*")]
        for number in (1, 2, 3):
            names += [each.name for each in made.on(number).rglob("*")]
        assert [name for name in names if OWN in name] == []
    assert swarm.services() == {}
    for client in swarm.clients:
        names = [each["Name"] for each in client.volumes()["Volumes"] or []]
        assert [name for name in names if name.startswith(OWN)] == []


@pytest.fixture
def tried(swarm, tmp_path) -> Callable[..., list[tuple[str, str]]]:
    """Return (state, what was found) of the check, for a configuration."""

    def run(lines: str) -> list[tuple[str, str]]:
        hub = swarm.hub(tmp_path / "hub", lines, SHELL)
        done = subprocess.run(
            swarm.cluster.enter([sys.executable, "-c", CHECKS]),
            cwd=hub.folder,
            env=environment(swarm),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert all(advice for state, _, advice in found if state != "ok"), found
        return [(state, words) for state, words, _ in found]

    return run


def environment(swarm: Swarm) -> dict[str, str]:
    return {**os.environ, **swarm.cluster.environment, "PYTHONPATH": str(ROOT)}


def ready(found: list[tuple[str, str]], place: str) -> None:
    ((state, words),) = found
    assert state == "ok", words
    assert words.startswith(f"{place}: what each of 3 machines wrote, the others read")
    assert "(1000, on tmpfs)" in words


@pytest.mark.parametrize(
    ("lines", "place"), [(FOLDERS, "/tmp/homes"), (VOLUMES, "/tmp/homes (bind)")]
)
def test_what_is_the_same_on_all_machines_is_found_to_be(swarm, folder, tried, lines, place):
    for number in (1, 2, 3):
        folder.share(number)
    ready(tried(lines), place)


@pytest.mark.parametrize("lines", [FOLDERS, VOLUMES])
def test_a_machine_with_a_folder_of_its_own_is_named(swarm, folder, tried, lines):
    folder.share(1)
    folder.make(2)
    folder.share(3)
    ((state, words),) = tried(lines)
    assert state == "failure"
    assert "isn't the same on all machines" in words
    assert words.endswith("node-1, node-3 (tmpfs); node-2 (tmpfs)")


@pytest.mark.parametrize(
    ("lines", "said"),
    [(FOLDERS, "node-3 has no folder /tmp/homes"), (VOLUMES, "node-3 can't give a server")],
)
def test_a_machine_without_the_folder_is_named(swarm, folder, tried, lines, said):
    folder.share(1)
    folder.share(2)
    found = dict(tried(lines))
    assert found["failure"].startswith(said), found
    # The others are tried all the same.
    assert "what each of 2 machines wrote" in found["ok"]


def test_a_machine_that_has_it_read_only_is_named(swarm, folder, tried):
    for number in (1, 2, 3):
        folder.share(number)
    folder.remount(2, "ro")
    assert tried(FOLDERS) == [("failure", "/tmp/homes is read-only on node-2")]
    for number in (1, 3):
        folder.remount(number, "ro")
    ((state, words),) = tried(FOLDERS)
    assert (state, words) == ("failure", "/tmp/homes is read-only on all machines (tmpfs)")


def test_a_machine_that_takes_another_for_the_owner_is_named(swarm, folder, tried):
    folder.share(1)
    folder.share(2, "-o", "X-mount.idmap=b:0:0:1 b:1000:1001:1")
    folder.share(3)
    found = tried(FOLDERS)
    assert {state for state, _ in found} == {"failure"}
    said = " ".join(words for _, words in found)
    assert "node-2 takes 1001 for the owner of what node-1 wrote in /tmp/homes" in said
    assert "which there is 1000, and can't read it" in said


def test_where_root_may_make_nothing_a_users_own_folder_is_tried(swarm, folder, tried):
    """As with root_squash, where an administrator makes users' folders on the file server."""
    for number in (1, 2, 3):
        folder.share(number)
    subprocess.run(["chattr", "+i", folder.shared], check=True)
    try:
        ((state, words),) = tried(FOLDERS)
        assert state == "warning"
        assert "root may make nothing there" in words
    finally:
        subprocess.run(["chattr", "-i", folder.shared], check=True)
    own = folder.shared / "doctor"
    own.mkdir(mode=0o700)
    os.chown(own, shell_image.USER, shell_image.USER)
    subprocess.run(["chattr", "+i", folder.shared], check=True)
    try:
        ready(tried(FOLDERS), "/tmp/homes")
    finally:
        subprocess.run(["chattr", "-i", folder.shared], check=True)
    os.chown(own, 1234, 1234)
    found = tried(FOLDERS)
    assert [state for state, _ in found] == ["failure"] * 3
    assert all("the servers' user 1000 may not write" in words for _, words in found)
    own.rmdir()
    # A folder of that user on one machine alone is of another place.
    folder.remove_from(2)
    folder.make(2)
    (folder.on(1) / "doctor").mkdir()
    ((state, words),) = tried(FOLDERS)
    assert (state, "doctor in it is on node-1, node-3 alone" in words) == ("failure", True), words


def test_a_machine_that_takes_no_servers_or_lacks_the_image_is_not_tried(swarm, folder, tried):
    for number in (1, 2, 3):
        folder.share(number)
    swarm.availability(3, "pause")
    swarm.clients[1].remove_image(shell_image.IMAGE, force=True)
    try:
        found = tried(FOLDERS)
        said = " ".join(words for state, words in found if state == "note")
        assert "isn't tried on node-3, which takes no servers now" in said, found
        assert "isn't tried on node-2, which hasn't got the image" in said, found
    finally:
        swarm.availability(3, "active")
        shell_image.load(swarm.clients)


def test_what_cannot_be_tried_is_said(swarm, folder, tried):
    lines = "c.GPUSwarmSpawner.home_volume = 'home-{username}'\n"
    assert tried(lines) == []
    ((state, words),) = tried(lines + "c.GPUSwarmSpawner.shared_homes = True")
    assert state == "warning"
    assert "volume_driver is empty" in words


def test_the_command_says_so_and_leaves_nothing_when_it_is_ended(swarm, folder, tmp_path):
    for number in (1, 2, 3):
        folder.share(number)
    hub = swarm.hub(tmp_path / "hub", FOLDERS, SHELL)
    words = [*hub.words_before, sys.executable, "-m", "gpuspawner", "doctor", "--json"]
    about = {"cwd": hub.folder, "env": environment(swarm), "text": True}
    done = subprocess.run(words, capture_output=True, check=False, **about)
    found = [each for each in json.loads(done.stdout) if each["check"] == "Shared homes"]
    assert [each["state"] for each in found] == ["ok"], done.stdout
    # In the middle of it.
    stopped = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **about)
    try:
        until(lambda: list(Path(folder.shared).glob(f".{OWN}*/*")), "a machine has written")
        (inside,) = {
            int(each.name) for each in Path("/proc").glob("[0-9]*") if _is_doctor(each, hub.folder)
        }
        os.kill(inside, signal.SIGTERM)
        assert stopped.wait(60) == 130
    finally:
        stopped.kill()
        stopped.wait()


def _is_doctor(process: Path, folder: Path) -> bool:
    try:
        words = (process / "cmdline").read_text().split("\0")
        return (
            words[:1] == [sys.executable]
            and "doctor" in words
            and ((process / "cwd").readlink() == folder)
        )
    except OSError:
        return False
