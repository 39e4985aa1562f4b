"""What doctor tries of users' files on several machines, and what it says of what it has seen."""

from __future__ import annotations

from typing import Any

import pytest

from gpuspawner.doctor import homes_agree
from gpuspawner.doctor.configuration import from_loaded, load
from gpuspawner.doctor.findings import Finding
from gpuspawner.doctor.homes_agree import Answer

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
