"""`gpuspawner volumes`: what it lists, archives, sets aside, gives back and removes."""

from __future__ import annotations

import json
import tarfile
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker
import docker.errors
import pytest

from gpuspawner.__main__ import main
from gpuspawner.backends.docker import set_aside
from gpuspawner.backends.docker.set_aside import FirstVolume, labels_of, list_volumes

from ..support.volumes import VolumeEngine

HUB = "http://hub"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> VolumeEngine:
    made = VolumeEngine("ml-course", "gpu-home-old")
    for user in ("ada", "ben"):
        first = FirstVolume(f"home-{user}", user)
        made.create_volume(first.name, labels=labels_of(first, HUB, None))
    monkeypatch.setattr(docker, "from_env", lambda timeout: SimpleNamespace(api=made))
    return made


def with_files(engine: VolumeEngine, name: str, folder: Path) -> Path:
    """Let a volume be a folder of this machine's."""
    files = folder / name / "_data"
    files.mkdir(parents=True)
    created = datetime.fromtimestamp(files.stat().st_ctime, timezone.utc).isoformat()
    engine.there[name] |= {"Mountpoint": str(files), "CreatedAt": created.replace("+00:00", "Z")}
    return files


def later(engine: VolumeEngine, name: str, user: str) -> None:
    first = FirstVolume(name.rpartition(".")[0], user)
    engine.create_volume(name, labels=labels_of(first, HUB, None))


def marked(engine: VolumeEngine) -> set[str]:
    return set(list_volumes(engine).marks)


def command(*words: str) -> int:
    return main(["volumes", *words])


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, dict[str, Any]]:
    assert command("list", "--json", "--no-size", *words) == 0
    return {each["name"]: each for each in json.loads(capsys.readouterr().out)}


def test_the_list_has_users_volumes_and_no_others(
    engine: VolumeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(listed(capsys)) == {"home-ada", "home-ben"}
    # Made before volumes had labels: of a server that mounts it, and by what its name begins with.
    engine.run("jupyter-1", "gpu-home-old", user="cem", server="")
    engine.run("jupyter-1", "ml-course", writes=False, user="cem", server="")
    found = listed(capsys)
    assert set(found) == {"home-ada", "home-ben", "gpu-home-old"}
    assert found["gpu-home-old"]["user"] == "cem"
    assert found["gpu-home-old"]["containers"] == ["jupyter-1"]
    assert set(listed(capsys, "--prefix", "ml-")) - set(found) == {"ml-course"}
    # What several users write is nobody's own.
    engine.run("jupyter-2", "gpu-home-old", user="dan", server="")
    assert "gpu-home-old" not in listed(capsys)


def test_the_list_says_what_is_set_aside_and_since_when(
    engine: VolumeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    set_aside.set_aside(engine, ["home-ada", "gpu-home-old"], "ada")
    found = listed(capsys)
    assert found["home-ada"]["set_aside"]
    assert found["home-ada"]["set_aside_since"].startswith("20")
    assert found["gpu-home-old"]["user"] == "ada"
    assert not found["home-ben"]["set_aside"]
    assert command("list", "--no-size") == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["VOLUME", "USER", "STATE", "SINCE", "SIZE"]
    assert ["home-ada", "ada", "set", "aside"] in [line.split()[:4] for line in table]


def test_a_name_cannot_make_a_line_of_its_own(
    engine: VolumeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.create_volume("home-x", labels=labels_of(FirstVolume("home-x", "x\n\x1b[2J"), HUB, None))
    assert command("list", "--no-size") == 0
    assert "x??[2J" in capsys.readouterr().out


def test_sizes_are_of_the_files_on_the_disk(
    engine: VolumeEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in (("home-ada", 3_000_000), ("home-ben", 10)):
        (with_files(engine, name, tmp_path) / "data").write_bytes(b"x" * size)
    assert command("list", "--json") == 0
    sizes = {each["name"]: each["size_bytes"] for each in json.loads(capsys.readouterr().out)}
    assert 3_000_000 <= sizes["home-ada"] < 3_200_000
    assert sizes["home-ben"] < 100_000


def test_sizes_of_what_is_not_here_are_the_engine_s(
    engine: VolumeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.sizes = {"home-ada": 5_000_000, "home-ben": -1}
    assert command("list", "--json") == 0
    found = {each["name"]: each["size_bytes"] for each in json.loads(capsys.readouterr().out)}
    assert found == {"home-ada": 5_000_000, "home-ben": None}


def test_an_archive_has_all_files_and_is_nobody_else_s(
    engine: VolumeEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = with_files(engine, "home-ada", tmp_path)
    (files / "note").write_text("mine")
    (files / ".ssh").mkdir()
    (files / "link").symlink_to("/etc/passwd")
    to = tmp_path / "ada.tar.gz"
    assert command("archive", "home-ada", "--to", str(to)) == 0
    assert f"in {to}" in capsys.readouterr().out
    assert to.stat().st_mode & 0o777 == 0o600
    with tarfile.open(to) as archive:
        assert {"./note", "./.ssh", "./link"} <= set(archive.getnames())
        assert archive.getmember("./link").issym()
    assert (files / "note").read_text() == "mine"
    # And is never overwritten.
    before = to.read_bytes()
    assert command("archive", "home-ada", "--to", str(to)) == 1
    assert "is there already" in capsys.readouterr().err
    assert to.read_bytes() == before


def test_an_archive_that_fails_leaves_no_file(
    engine: VolumeEngine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_files(engine, "home-ada", tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tar").write_text("#!/bin/sh\necho half\nexit 2\n")
    (tmp_path / "bin" / "tar").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    to = tmp_path / "ada.tar.gz"
    assert command("archive", "home-ada", "--to", str(to)) == 1
    assert "tar failed on home-ada (2)" in capsys.readouterr().err
    assert not to.exists()


def test_what_is_not_of_this_machine_is_not_archived(
    engine: VolumeEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("archive", "home-ada", "--to", str(tmp_path / "x")) == 1
    assert "can't be read from here" in capsys.readouterr().err
    with_files(engine, "home-ada", tmp_path)
    engine.there["home-ada"]["CreatedAt"] = "2020-01-01T00:00:00Z"  # another machine's
    assert command("archive", "home-ada", "--to", str(tmp_path / "x")) == 1
    assert not (tmp_path / "x").exists()


def test_what_a_container_mounts_is_not_removed_and_then_nothing_is(
    engine: VolumeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.run("jupyter-1", "home-ada-lab", user="ada", server="lab")  # of another volume
    assert command("remove", "home-ada", "--yes") == 0
    engine.run("jupyter-2", "home-ben", user="ben", server="")
    set_aside.set_aside(engine, ["gpu-home-old"], "old")
    assert command("remove", "gpu-home-old", "home-ben", "--yes") == 1
    assert "home-ben is in use by jupyter-2, and stays" in capsys.readouterr().err
    assert {"gpu-home-old", "home-ben"} <= set(engine.there)
    assert "home-ada" not in engine.there


@pytest.mark.parametrize(
    ("answer", "stays"), [("y", False), ("yes", False), ("", True), ("n", True)]
)
def test_a_removal_asks_first(
    engine: VolumeEngine, monkeypatch: pytest.MonkeyPatch, answer: str, stays: bool
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda words: (asked.append(words), answer)[1])
    set_aside.set_aside(engine, ["home-ada"], "ada")
    assert command("remove", "home-ada") == 0
    assert asked == ["Remove home-ada with all its files? [y/N] "]
    assert ("home-ada" in engine.there) == stays
    assert marked(engine) == ({"home-ada"} if stays else set())


def test_without_anybody_to_ask_nothing_is_removed(
    engine: VolumeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(words: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", end)
    assert command("remove", "home-ada") == 0
    assert "home-ada" in engine.there


def test_what_is_set_aside_is_restored(
    engine: VolumeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("restore", "home-ada") == 1
    assert "home-ada isn't set aside" in capsys.readouterr().err
    assert command("set-aside", "home-ada", "home-ben") == 0
    assert marked(engine) == {"home-ada", "home-ben"}
    assert list_volumes(engine).marks["home-ada"].user == "ada"
    assert command("restore", "home-ada") == 0
    assert marked(engine) == {"home-ben"}
    assert list_volumes(engine).current(FirstVolume("home-ada", "ada")) == "home-ada"


def test_where_the_user_has_a_newer_one_it_takes_a_yes(
    engine: VolumeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        set_aside.set_aside(engine, list_volumes(engine).volumes.keys() - {"ml-course"}, "ada")
        later(engine, list_volumes(engine).current(FirstVolume("home-ada", "ada")), "ada")
    assert command("restore", "home-ada.2") == 1
    assert "the user has home-ada.3 now" in capsys.readouterr().err
    assert "home-ada.2" in marked(engine)
    assert command("restore", "home-ada.2", "--yes") == 0
    assert list_volumes(engine).current(FirstVolume("home-ada", "ada")) == "home-ada.2"
    # There and back.
    assert command("restore", "home-ada.3") == 0
    assert list_volumes(engine).current(FirstVolume("home-ada", "ada")) == "home-ada.3"


@pytest.mark.parametrize("what", [["remove", "--yes"], ["set-aside"], ["restore"], ["archive"]])
def test_a_volume_that_there_isn_t_is_named(
    engine: VolumeEngine, what: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--to", str(tmp_path / "x")] if what == ["archive"] else []
    assert command(*what, "home-nobody", *more) == 1
    assert "there is no volume home-nobody" in capsys.readouterr().err


def test_an_engine_that_is_away_is_said_in_words(
    engine: VolumeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.away = docker.errors.DockerException("Error while fetching server API version")
    assert command("list") == 1
    said = capsys.readouterr().err
    assert said.startswith("gpuspawner: ")
    assert "Traceback" not in said
