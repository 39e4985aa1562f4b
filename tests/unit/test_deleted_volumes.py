"""What becomes of volumes when a user is deleted, also where the engine is away or refuses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import docker.errors
import pytest

from gpuspawner.backends.docker import deleted_volumes
from gpuspawner.backends.docker.deleted_volumes import DeletedVolumes, Deletion
from gpuspawner.backends.docker.set_aside import FirstVolume, labels_of, list_volumes

from ..support.volumes import VolumeEngine

HUB = "http://hub"
ADA = FirstVolume("home-ada", "ada")
AWAY = docker.errors.DockerException("Error while fetching server API version")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deleted_volumes, "GONE_SECONDS", 0.001)
    monkeypatch.setattr(deleted_volumes, "RETRY_SECONDS", 0.001)


@pytest.fixture
def engine() -> VolumeEngine:
    return VolumeEngine("home-ada", "home-ben", "home-ada-2dx", "course")


@pytest.fixture
def deleted(engine: VolumeEngine, caplog: pytest.LogCaptureFixture) -> DeletedVolumes:
    caplog.set_level(logging.INFO)

    async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
        await asyncio.sleep(0)
        return function(*args)

    return DeletedVolumes(lambda: engine, in_thread, logging.getLogger("deleted"))


def deletion(policy: Any = "set_aside", server: str | None = None, gone: bool = True) -> Deletion:
    return Deletion("ada", server, HUB, [ADA], policy, lambda: gone)


def marked(engine: VolumeEngine) -> set[str]:
    return set(list_volumes(engine).marks)


async def until(true: Callable[[], bool]) -> None:
    for _ in range(5000):
        if true():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it didn't come")


async def test_a_deleted_user_s_volumes_are_set_aside_and_nobody_else_s(
    deleted: DeletedVolumes, engine: VolumeEngine
) -> None:
    # Of a server that was removed before, and of a configuration of before.
    engine.create_volume("old-ada-lab", labels=labels_of(ADA, HUB, "lab"))
    await deleted.begin(deletion())
    assert marked(engine) == {"home-ada", "old-ada-lab"}
    assert {"home-ada", "old-ada-lab"} < set(engine.there)


async def test_with_a_named_server_go_its_own_volumes_only(
    deleted: DeletedVolumes, engine: VolumeEngine
) -> None:
    engine.create_volume("old-ada-lab", labels=labels_of(ADA, HUB, "lab"))
    engine.create_volume("old-ada-two", labels=labels_of(ADA, HUB, "two"))
    engine.create_volume("ada-lab")
    first = FirstVolume("ada-lab", "ada")
    await deleted.begin(Deletion("ada", "lab", HUB, [first], "set_aside", lambda: True))
    assert marked(engine) == {"ada-lab", "old-ada-lab"}


async def test_who_never_had_a_volume_leaves_no_mark(
    deleted: DeletedVolumes, engine: VolumeEngine
) -> None:
    engine.remove_volume("home-ada")
    await deleted.begin(deletion())
    assert marked(engine) == set()


async def test_volumes_are_removed_once_the_user_is_forgotten_and_no_container_uses_them(
    deleted: DeletedVolumes, engine: VolumeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.used.add("home-ada")  # its container is being removed
    forgotten: list[bool] = []
    one = deletion("remove")
    one.is_gone = lambda: bool(forgotten)
    await deleted.begin(one)
    assert marked(engine) == {"home-ada"}
    asked = len(engine.asked)
    await asyncio.sleep(0.02)
    assert len(engine.asked) == asked
    forgotten.append(True)
    await until(lambda: engine.asked[asked:].count("remove") > 2)
    assert "home-ada" in engine.there
    engine.used.clear()
    await until(lambda: "home-ada" not in engine.there and not marked(engine))
    assert {"home-ben", "home-ada-2dx", "course"} == set(engine.there)
    await until(lambda: "Removed volume home-ada of 'ada'" in caplog.text)


async def test_a_volume_that_stays_in_use_stays_set_aside_and_the_log_says_how_to_remove_it(
    deleted: DeletedVolumes,
    engine: VolumeEngine,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deleted_volumes, "REMOVALS", 3)
    engine.used.add("home-ada")
    await deleted.begin(deletion("remove"))
    await until(lambda: "gpuspawner volumes remove home-ada" in caplog.text)
    assert marked(engine) == {"home-ada"}


async def test_nothing_is_removed_of_who_is_not_deleted_after_all(
    deleted: DeletedVolumes, engine: VolumeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deleted_volumes, "GONE_TRIES", 5)
    one = deletion("remove", gone=False)
    await deleted.begin(one)
    await asyncio.sleep(0.05)
    assert "home-ada" in engine.there
    await deleted.undo(one)
    assert marked(engine) == set()
    assert "home-ada" in engine.there


async def test_who_starts_a_server_in_the_middle_of_being_deleted_leaves_no_files_either(
    deleted: DeletedVolumes, engine: VolumeEngine
) -> None:
    one = deletion(gone=False)
    await deleted.begin(one)
    await deleted.undo(one)
    assert marked(engine) == set()
    engine.create_volume("home-ada.2", labels=labels_of(ADA, HUB, None))  # the next user's
    one.is_gone = lambda: True
    await until(lambda: marked(engine) == {"home-ada"})


async def test_where_the_engine_is_away_the_log_says_what_to_do_and_it_is_tried_again(
    deleted: DeletedVolumes, engine: VolumeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.away = AWAY
    await deleted.begin(deletion())  # raises nothing: the hub goes on to delete the user
    assert "run: gpuspawner volumes set-aside home-ada" in caplog.text
    assert "Traceback" not in caplog.text
    engine.away = None
    await until(lambda: marked(engine) == {"home-ada"})
    assert "Volumes of 'ada' are set aside and can be restored: home-ada" in caplog.text


async def test_nobody_of_that_name_starts_before_it_is_done(
    deleted: DeletedVolumes, engine: VolumeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deleted_volumes, "RETRY_SECONDS", 600)
    monkeypatch.setattr(deleted_volumes, "FIRST_RETRY_SECONDS", 600)
    engine.away = AWAY
    await deleted.begin(deletion())
    with pytest.raises(docker.errors.DockerException):
        await deleted.before_start("ada")
    await deleted.before_start("ben")
    engine.away = None
    await deleted.before_start("ada")
    assert marked(engine) == {"home-ada"}
    # Who comes then has a volume that isn't theirs, and keeps it.
    engine.create_volume("home-ada.2", labels=labels_of(ADA, HUB, None))
    await deleted.before_start("ada")
    assert marked(engine) == {"home-ada"}


async def test_a_deletion_that_failed_while_the_engine_was_away_is_forgotten(
    deleted: DeletedVolumes, engine: VolumeEngine
) -> None:
    engine.away = AWAY
    one = deletion(gone=False)
    await deleted.begin(one)
    engine.away = None
    await deleted.undo(one)
    await asyncio.sleep(0.02)
    await deleted.before_start("ada")
    assert marked(engine) == set()


async def test_names_make_no_line_of_their_own_in_the_log(
    deleted: DeletedVolumes, engine: VolumeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    evil = FirstVolume("home-ada\ngpuspawner {}", "ada\nCRITICAL")
    engine.away = AWAY
    await deleted.begin(Deletion(evil.user, None, HUB, [evil], "set_aside", lambda: True))
    engine.away = None
    await deleted.before_start(evil.user)
    assert all("\n" not in record.getMessage() for record in caplog.records)
