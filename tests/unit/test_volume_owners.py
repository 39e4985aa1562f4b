"""Whose a user's volume is, and how seldom the engine is asked to look into a container for it."""

from __future__ import annotations

import io
import os
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from docker.errors import NotFound

from gpuspawner.backends.docker import volume_folders
from gpuspawner.backends.docker.set_aside import list_volumes
from gpuspawner.backends.docker.volumes import Volume, VolumeOwners

UID = 1000
HOME = Volume("home-ada", "/home/jovyan/work", True)
CONTAINER = {"Id": "c1", "Image": "sha256:1", "Config": {"User": "jovyan"}}
PASSWD = f"root:x:0:0::/root:/bin/sh\njovyan:x:{UID}:100::/home/jovyan:/bin/sh\n"


class Engine:
    """An engine's socket, as far as volumes go: what it answers, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.there: dict[str, dict[str, Any]] = {}
        # Whose a volume's folder is, as seen in a container.
        self.owners: dict[str, int] = {}
        self.looked: list[str] = []
        self.inspected: list[str] = []
        self.given: list[str] = []
        self.security: list[str] = []

    def make(self, name: str, owner: int, **more: Any) -> None:
        folder = self._folder / name / "_data"
        folder.mkdir(parents=True)
        created = datetime.fromtimestamp(folder.parent.stat().st_ctime, timezone.utc)
        self.owners[name] = owner
        self.there[name] = {
            "Name": name,
            "Driver": "local",
            "Mountpoint": str(folder),
            "CreatedAt": created.isoformat(timespec="seconds").replace("+00:00", "Z"),
            "Options": None,
            **more,
        }

    def inspect_volume(self, name: str) -> dict[str, Any]:
        if name not in self.there:
            raise NotFound("no such volume")
        self.inspected.append(name)
        return self.there[name]

    def volumes(self, filters: Any = None) -> dict[str, Any]:
        return {"Volumes": list(self.there.values()) or None}

    def info(self) -> dict[str, Any]:
        return {"SecurityOptions": ["name=seccomp,profile=default", *self.security]}

    def get_archive(self, container: str, path: str, chunk_size: int = 0) -> tuple[Any, Any]:
        self.looked.append(path)
        entry = tarfile.TarInfo("it")
        content = b""
        if path == "/etc/passwd":
            time.sleep(0.05)  # long enough for another to ask, too
            content = PASSWD.encode()
            entry.size = len(content)
        else:
            entry.type, entry.uid = tarfile.DIRTYPE, self.owners[HOME.name]
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.addfile(entry, io.BytesIO(content))
        step = chunk_size or 1 << 20
        whole = packed.getvalue()
        return (whole[at : at + step] for at in range(0, len(whole), step)), {}

    def put_archive(self, container: str, path: str, data: bytes) -> None:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            (entry,) = archive.getmembers()
        self.given.append(f"{path}/{entry.name} to {entry.uid}:{entry.gid}")
        self.owners[HOME.name] = entry.uid


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path)


@pytest.fixture
def owners(engine: Engine) -> VolumeOwners:
    return VolumeOwners(lambda: engine)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Whose a volume's folder is, as the hub sees it; where it isn't said, as it really is."""
    whose: dict[str, int] = {}
    really = os.lstat

    def lstat(path: Any) -> Any:
        found = list(really(path))
        found[4] = whose.get(Path(path).parent.name, found[4])
        return os.stat_result(found)

    monkeypatch.setattr(volume_folders.os, "lstat", lstat)
    return whose


def start(owners: VolumeOwners, engine: Engine, new: int | None = None) -> None:
    """Do what a start does; `new` makes the volume meanwhile, as a container's creation would."""
    before = list_volumes(engine, [HOME.name]).volumes
    if new is not None:
        engine.make(HOME.name, new)
    owners.chown_to_user(CONTAINER, [HOME], before, {})


def test_a_volume_that_the_hub_sees_to_be_the_users_is_not_looked_into(
    owners: VolumeOwners, engine: Engine, seen: dict[str, int]
) -> None:
    engine.make(HOME.name, UID)
    seen[HOME.name] = UID
    start(owners, engine)
    assert (engine.looked, engine.given) == ([], [])


def test_a_volume_that_the_hub_sees_to_be_roots_is_given_each_time(
    owners: VolumeOwners, engine: Engine, seen: dict[str, int]
) -> None:
    engine.make(HOME.name, 0)
    seen[HOME.name] = 0
    for times in (1, 2):
        engine.owners[HOME.name] = 0  # somebody restored a backup
        start(owners, engine)
        assert engine.given == [f"/home/jovyan/work to {UID}:100"] * times


def unreadable(engine: Engine) -> None:
    engine.there[HOME.name]["Mountpoint"] = "/nowhere/_data"


def another_of_that_name(engine: Engine) -> None:
    engine.there[HOME.name]["CreatedAt"] = "2020-01-01T00:00:00Z"


def a_mount(engine: Engine) -> None:
    engine.there[HOME.name]["Options"] = {"type": "nfs", "device": ":/homes/ada"}


def other_numbers(engine: Engine) -> None:
    engine.security.append("name=rootless")


@pytest.mark.parametrize("why", [unreadable, another_of_that_name, a_mount, other_numbers])
def test_what_the_hub_cannot_see_or_not_trust_is_looked_for_in_the_container(
    owners: VolumeOwners, engine: Engine, seen: dict[str, int], why: Any
) -> None:
    engine.make(HOME.name, 0)
    seen[HOME.name] = UID  # which is wrong
    why(engine)
    start(owners, engine)
    assert engine.given == [f"/home/jovyan/work to {UID}:100"]
    # And is remembered.
    engine.looked.clear()
    start(owners, engine)
    assert engine.looked == []


def test_a_new_volume_of_the_users_is_looked_into_once_for_each_image(
    owners: VolumeOwners, engine: Engine
) -> None:
    engine.security.append("name=userns")
    for times in range(3):
        start(owners, engine, new=UID)
        assert engine.looked.count("/home/jovyan/work/.") == 1, times
        engine.there.clear()
        (engine._folder / HOME.name).rename(engine._folder / f"old-{times}")
    assert engine.given == []


def test_a_new_volume_of_roots_is_given_to_the_user(owners: VolumeOwners, engine: Engine) -> None:
    engine.security.append("name=userns")
    start(owners, engine, new=0)
    assert engine.given == [f"/home/jovyan/work to {UID}:100"]


def test_a_volume_that_was_made_for_the_container_is_not_asked_for_again(
    owners: VolumeOwners, engine: Engine
) -> None:
    engine.security.append("name=userns")
    engine.make(HOME.name, 0)
    owners.chown_to_user(CONTAINER, [HOME], {}, {HOME.name: engine.there[HOME.name]})
    assert engine.given == [f"/home/jovyan/work to {UID}:100"]
    assert engine.inspected == []


def test_many_starts_at_once_ask_once_who_an_images_user_is(
    owners: VolumeOwners, engine: Engine
) -> None:
    engine.security.append("name=userns")
    engine.make(HOME.name, UID)
    all_there = threading.Barrier(8)

    def one(_: int) -> None:
        before = list_volumes(engine, [HOME.name]).volumes
        all_there.wait(20)
        owners.chown_to_user(CONTAINER, [HOME], before, {})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))
    assert engine.looked.count("/etc/passwd") == 1
