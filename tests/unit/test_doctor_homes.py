"""What doctor tries of users' files on several machines, and what it says of what it has seen."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from gpuspawner.doctor import homes_agree, shared_homes
from gpuspawner.doctor.configuration import from_loaded, load
from gpuspawner.doctor.findings import Finding
from gpuspawner.doctor.homes_agree import Answer
from gpuspawner.doctor.own_volumes import OWN

FILES = {"a": "f0", "b": "f1", "c": "f2"}
PLACE = "/srv/homes"


def places(tmp_path: Any, lines: str) -> list[dict[str, Any]]:
    file = tmp_path / "jupyterhub_config.py"
    head = 'c.JupyterHub.spawner_class = "gpu-swarm"\nc.GPUSwarmSpawner.network_name = "net"\n'
    file.write_text(f"{head}{lines}\n")
    found: list[dict[str, Any]] = from_loaded(file, load(file, tmp_path)).spawner["homes"]["places"]
    return found


def nfs(device: str, more: str = "") -> str:
    options = f'{{"type": "nfs", "o": "addr=nas{more}", "device": "{device}"}}'
    return (
        'c.GPUSwarmSpawner.home_volume = "home-{username}"\n'
        'c.GPUSwarmSpawner.volume_driver = "local"\n'
        f"c.GPUSwarmSpawner.volume_driver_options = {options}"
    )


@pytest.mark.parametrize(
    ("lines", "source", "own"),
    [
        ("c.GPUSwarmSpawner.volumes = {'/srv/homes/{username}': '/w'}", "/srv/homes", "doctor"),
        ("c.GPUSwarmSpawner.volumes = {'/srv/{username}/work': '/w'}", "/srv", "doctor/work"),
        ("c.GPUSwarmSpawner.volumes = {'/srv/lab-{username}': '/w'}", "/srv", "lab-doctor"),
        ("c.GPUSwarmSpawner.volumes = {'/srv/all/': '/w'}", "/srv/all", ""),
        (nfs(":/homes/{volume}"), ":/homes", "home-doctor"),
        (nfs(":/homes/{volume}/work"), ":/homes", "home-doctor/work"),
        (nfs(":/{volume}"), ":/", "home-doctor"),
        (nfs("//nas/homes/{volume}"), "//nas/homes", "home-doctor"),
    ],
)
def test_what_all_users_files_are_in_is_tried(
    tmp_path: Any, lines: str, source: str, own: str
) -> None:
    (place,) = places(tmp_path, lines)
    mount = place["mount"]
    if mount["Type"] == "volume":
        options = mount["VolumeOptions"]["DriverConfig"]["Options"]
        assert (options["device"], options["type"], options["o"]) == (source, "nfs", "addr=nas")
    else:
        assert mount == {"Type": "bind", "Source": source}
    assert (place["own"], place["untried"]) == (own, "")


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (nfs("//nas/{volume}"), "a share of its own"),
        (nfs(":/homes/{volume}", ",path={volume}"), "elsewhere than in device"),
        ("c.GPUSwarmSpawner.volumes = {'/{username}': '/w'}", "no folder of its own"),
        (
            "c.GPUSwarmSpawner.home_volume = 'h-{username}'\n"
            "c.GPUSwarmSpawner.volume_driver = 'rexray'",
            "'rexray' would be left on each machine",
        ),
        (
            "c.GPUSwarmSpawner.home_volume = 'h-{username}'\nc.GPUSwarmSpawner.shared_homes = True",
            "volume_driver is empty",
        ),
    ],
)
def test_what_cannot_be_tried_without_a_trace_says_why(tmp_path: Any, lines: str, why: str) -> None:
    (place,) = places(tmp_path, lines)
    assert why in place["untried"]


@pytest.mark.parametrize(
    "lines",
    [
        "",
        "c.GPUSwarmSpawner.home_volume = 'h-{username}'",
        # Nobody writes there, and a template that nobody knows is told of elsewhere.
        "c.GPUSwarmSpawner.volumes = {'/srv/data': {'bind': '/d', 'mode': 'ro'}}",
        "c.GPUSwarmSpawner.volumes = {'/srv/{nobody}': '/w'}",
    ],
)
def test_where_nothing_is_shared_nothing_is_tried(tmp_path: Any, lines: str) -> None:
    assert places(tmp_path, lines) == []


# -- What machines have seen -----------------------------------------------------------------------


def compared(
    wrote: dict[str, dict[str, str]] | None = None, read: dict[str, dict[str, str]] | None = None
) -> list[Finding]:
    """Return the findings where all is well on three machines but what is given here."""
    usual = {"type": "nfs", "user": "1000", "owner": "1000"}
    seen = {"type": "nfs", **{f"owner-{file}": "1000" for file in FILES.values()}}
    answers = [
        {name: Answer((changed or {}).get(name, said)) for name in FILES}
        for said, changed in ((usual, wrote), (seen, read))
    ]
    found = list(homes_agree.compare(PLACE, FILES, *answers))
    assert all(each.advice for each in found if each.state != "ok"), found
    return found


def test_all_is_well() -> None:
    (found,) = compared()
    assert found.state == "ok"
    assert "each of 3 machines wrote, the others read, with its owner (1000, on nfs)" in found.found


def test_machines_that_see_each_other_are_named_together() -> None:
    read = {
        "a": {"type": "nfs", "owner-f0": "1000", "owner-f2": "1000"},
        "b": {"type": "ext2/ext3", "owner-f1": "1000"},
        "c": {"type": "nfs", "owner-f0": "1000", "owner-f2": "1000"},
    }
    (found,) = compared(read=read)
    assert found.state == "failure"
    assert found.found.endswith("don't see: a, c (nfs); b (ext2/ext3)")
    # Of what isn't mounted at all, nobody could make anything.
    missing = {"type": "ext2/ext3", "user": "1000", "refused": "sh: 1: f: Directory nonexistent"}
    (same,) = compared({"b": missing}, {**read, "b": {"type": "ext2/ext3"}})
    assert same.found == found.found


@pytest.mark.parametrize(("user", "squash"), [("0", "root_squash"), ("1000", "all_squash")])
def test_whose_files_the_server_makes_another_s_reads_by_what_option(
    user: str, squash: str
) -> None:
    wrote = {"type": "nfs", "user": user, "owner": "65534"}
    seen = {f"owner-{file}": "65534" for file in FILES.values()}
    found = compared(dict.fromkeys(FILES, wrote), dict.fromkeys(FILES, seen))
    assert [each.state for each in found] == ["failure"] * 3
    assert f"{user} writes in {PLACE} on a belongs to 65534" in found[0].found
    assert squash in found[0].found


def test_who_cannot_read_what_is_theirs_is_named() -> None:
    seen = {f"owner-{file}": "1000" for file in FILES.values()}
    (found,) = compared(read={"b": {**seen, "refused-f0": "cat: f0: Input/output error"}})
    assert found.found == f"b can't read what a wrote in {PLACE}: cat: f0: Input/output error"
    (found,) = compared(read={"b": {**seen, "owner-f0": "1001"}})
    assert found.found.startswith("b takes 1001 for the owner of what a wrote")
    assert "can't read" not in found.found


@pytest.mark.parametrize(
    ("said", "state", "words"),
    [
        ({"refused": "mkdir: Permission denied", "type": "nfs"}, "warning", "root_squash (nfs"),
        ({"refused": "mkdir: Operation not permitted"}, "warning", "root_squash"),
        ({"refused": "mkdir: Read-only file system"}, "failure", "read-only on all machines"),
        ({"refused": "mkdir: No space left on device"}, "warning", "No space left"),
        ({}, "warning", "root may make nothing there"),
    ],
)
def test_what_root_may_not_do(said: dict[str, str], state: str, words: str) -> None:
    found = homes_agree.refused_to_root(PLACE, "doctor", said)
    assert (found.state, words in found.found) == (state, True), found
    if state == "warning":
        assert "make doctor in it" in found.advice


@pytest.mark.parametrize(
    ("problem", "state", "words"),
    [
        (
            'invalid mount config for type "bind": bind source path does not exist: /srv/homes',
            "failure",
            "b has no folder /srv/homes",
        ),
        ("No such image: sha256:1234", "note", "hasn't got the image"),
        ('exec: "sh": executable file not found in $PATH', "note", "no shell"),
        (
            "failed to mount local volume: mount :/homes: connection refused",
            "failure",
            "b can't give a server /srv/homes: failed to mount local volume",
        ),
        ("it doesn't end within 60 seconds (started)", "failure", "doesn't answer on b"),
    ],
)
def test_what_keeps_a_machine_from_being_tried(problem: str, state: str, words: str) -> None:
    found = homes_agree.not_run(PLACE, "b", problem)
    assert (found.state, words in found.found) == (state, True), found
    assert found.advice


# -- A user who can write where it is tried ------------------------------------------------------

MADE = f".{OWN}0123"
# In the place of a command: does what it does, and then what somebody else does at that moment.
MEANWHILE = """#!/bin/sh
PATH={path}
{command} "$@"; code=$?
{meanwhile}
exit $code
"""


@pytest.fixture
def homes(tmp_path: Any) -> Path:
    """What is tried, with another user's folder that nobody else may look into."""
    there: Path = tmp_path / "homes"
    (there / "bob").mkdir(parents=True, mode=0o700)
    (there / "bob" / "thesis").write_text("years of work")
    return there


def printed(homes: Path, script: str, *words: str, commands: Path | None = None) -> dict[str, str]:
    """Run a script as a service does; return what it has printed."""
    path = f"{commands}:{os.environ['PATH']}" if commands else os.environ["PATH"]
    found = subprocess.run(
        ["sh", "-c", script.replace(shared_homes.TARGET, str(homes)), "sh", *words],
        env={"PATH": path, "LC_ALL": "C"},
        check=True,
        text=True,
        capture_output=True,
    )
    assert found.stderr == ""
    return dict(line.partition("=")[::2] for line in found.stdout.splitlines())


def meanwhile(folder: Path, command: str, what: str) -> Path:
    """Return a folder with a command, during which something else happens, too."""
    folder.mkdir()
    text = MEANWHILE.format(path=os.environ["PATH"], command=command, meanwhile=what)
    (folder / command).write_text(text)
    (folder / command).chmod(0o755)
    return folder


def aged(path: Path) -> None:
    os.utime(path, (time.time() - 3600,) * 2)


def test_it_is_written_read_and_removed_and_a_killed_doctor_s_rest_goes(homes: Path) -> None:
    killed = homes / f".{OWN}dead"
    killed.mkdir()
    (killed / f"{killed.name}-1").touch()
    aged(killed)
    assert "made" in printed(homes, shared_homes.PREPARE, MADE, "doctor")
    assert sorted(each.name for each in homes.iterdir()) == [MADE, "bob"]
    assert (homes / MADE).stat().st_mode & 0o7777 == 0o1777
    wrote = printed(homes, shared_homes.WRITE, MADE, f"{MADE}-1", "word")
    assert wrote["owner"] == wrote["user"]
    read = printed(homes, shared_homes.READ, MADE, "word", f"{MADE}-1", f"{MADE}-2")
    assert read.keys() == {"type", f"owner-{MADE}-1", "end"}
    read = printed(homes, shared_homes.READ, MADE, "another", f"{MADE}-1")
    assert read[f"refused-{MADE}-1"] == "word"
    gone = printed(homes, shared_homes.REMOVE, MADE, f"{MADE}/{MADE}-1", f"{MADE}/{MADE}-2")
    assert gone.keys() == {"type", "end"}
    assert [each.name for each in homes.iterdir()] == ["bob"]


def test_in_a_user_s_folder_only_what_is_the_doctor_s_is_removed(homes: Path) -> None:
    own = homes / "doctor"
    own.mkdir()
    for name in (f"{MADE}-old", "notes"):
        (own / name).touch()
        aged(own / name)
    assert "own" in printed(homes, shared_homes.PREPARE, MADE, "doctor")
    assert "owner" in printed(homes, shared_homes.WRITE, "doctor", f"{MADE}-1", "word")
    assert sorted(each.name for each in own.iterdir()) == [f"{MADE}-1", "notes"]
    assert "refused" not in printed(homes, shared_homes.REMOVE, "", f"doctor/{MADE}-1")
    assert [each.name for each in own.iterdir()] == ["notes"]


def test_a_link_in_the_place_of_the_folder_gives_nobody_another_one(
    homes: Path, tmp_path: Path
) -> None:
    swap = f"mv {homes}/{MADE} {homes}/away; ln -s bob {homes}/{MADE}"
    commands = meanwhile(tmp_path / "commands", "mkdir", swap)
    printed(homes, shared_homes.PREPARE, MADE, "", commands=commands)
    assert (homes / MADE).is_symlink()
    assert (homes / "bob").stat().st_mode & 0o7777 == 0o700
    gone = printed(homes, shared_homes.REMOVE, MADE, f"{MADE}/{MADE}-1")
    assert "refused" in gone
    assert (homes / "bob" / "thesis").read_text() == "years of work"


def test_what_lies_in_a_folder_with_a_doctor_s_name_is_not_removed_by_root(homes: Path) -> None:
    """To remove whole folders is safe only where the command opens none by its path."""
    bait = homes / f".{OWN}bait"
    (bait / "deep").mkdir(parents=True)
    (bait / "deep" / "thesis").touch()
    (bait / f"{bait.name}-1").symlink_to("../bob/thesis")
    aged(bait)
    printed(homes, shared_homes.PREPARE, MADE, "")
    (homes / MADE / "deep").mkdir()
    gone = printed(homes, shared_homes.REMOVE, MADE, f"{MADE}/{MADE}-1")
    assert "refused" in gone
    assert (bait / "deep" / "thesis").exists()
    assert (homes / MADE / "deep").exists()
    assert (homes / "bob" / "thesis").read_text() == "years of work"


def test_no_link_is_written_through_or_read(homes: Path) -> None:
    own = homes / "doctor"
    own.mkdir()
    (own / f"{MADE}-1").symlink_to("../bob/thesis")
    (own / f"{MADE}-2").symlink_to("../bob/new")
    for name in (f"{MADE}-1", f"{MADE}-2"):
        assert "refused" in printed(homes, shared_homes.WRITE, "doctor", name, "word")
    assert (homes / "bob" / "thesis").read_text() == "years of work"
    assert not (homes / "bob" / "new").exists()
    read = printed(homes, shared_homes.READ, "doctor", "word", f"{MADE}-1")
    assert read[f"refused-{MADE}-1"] == ""


def test_of_a_file_that_is_another_one_little_is_read(homes: Path) -> None:
    (homes / "doctor").mkdir()
    (homes / "doctor" / f"{MADE}-1").write_text("x" * 100_000 + "\nowner-b=0\n")
    read = printed(homes, shared_homes.READ, "doctor", "word", f"{MADE}-1")
    assert read[f"refused-{MADE}-1"] == "x" * 100
    assert "owner-b" not in read
