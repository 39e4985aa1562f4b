"""How large homes are: measured rarely, one after the other, and nobody waits for it."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import docker.errors
import pytest

from gpuspawner.backends.docker import home_sizes, volume_folders
from gpuspawner.backends.docker.home_sizes import HomeSizes, quota_of
from gpuspawner.backends.docker.set_aside import FirstVolume, set_aside
from gpuspawner.choices.home_use import HomeUse
from gpuspawner.i18n.languages import ENGLISH, language_for

from ..support.volumes import VolumeEngine

ADA, BEN = FirstVolume("home-ada", "ada"), FirstVolume("home-ben", "ben")
MIB = 1024**2


@pytest.fixture
def engine() -> VolumeEngine:
    made = VolumeEngine("home-ada", "home-ben")
    made.sizes = {"home-ada": 5 * MIB, "home-ben": 7 * MIB}
    return made


@pytest.fixture
def sizes(engine: VolumeEngine) -> HomeSizes:
    async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.to_thread(function, *args)

    return HomeSizes(lambda: engine, in_thread, logging.getLogger("homes"))


async def known(sizes: HomeSizes, first: FirstVolume, allowed: int | None = None) -> HomeUse:
    """Return what is known of a home once it is."""
    for _ in range(2000):
        if use := sizes.of(first, allowed):
            return use
        await asyncio.sleep(0.002)
    raise AssertionError("it isn't measured")


def a_folder(engine: VolumeEngine, name: str, folder: Path) -> Path:
    files = folder / name / "_data"
    files.mkdir(parents=True)
    created = datetime.fromtimestamp(files.stat().st_ctime, timezone.utc).isoformat()
    engine.there[name] |= {"Mountpoint": str(files), "CreatedAt": created.replace("+00:00", "Z")}
    return files


async def test_who_asks_gets_what_is_known_and_does_not_wait(
    sizes: HomeSizes, engine: VolumeEngine
) -> None:
    go_on = threading.Event()
    measure = engine.get
    engine.get = lambda *a, **k: (go_on.wait(30), measure(*a, **k))[1]  # type: ignore[method-assign]
    assert sizes.of(ADA, None) is None
    await asyncio.sleep(0.05)
    assert sizes.of(ADA, None) is None
    go_on.set()
    assert (await known(sizes, ADA)).used == 5 * MIB


async def test_the_engine_measures_once_for_all_and_not_again_for_a_while(
    sizes: HomeSizes, engine: VolumeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await known(sizes, ADA)
    assert (await known(sizes, BEN)).used == 7 * MIB
    for _ in range(50):
        sizes.of(ADA, None)
        await asyncio.sleep(0)
    assert engine.asked.count("measure") == 1
    # A home is looked at again sooner than the engine is asked again.
    sizes._known[ADA].until = 0.0
    sizes.of(ADA, None)
    await asyncio.sleep(0.1)
    assert engine.asked.count("list") == 3
    assert engine.asked.count("measure") == 1


async def test_what_is_of_this_machine_is_measured_here_and_the_engine_not_asked(
    sizes: HomeSizes, engine: VolumeEngine, tmp_path: Path
) -> None:
    (a_folder(engine, "home-ada", tmp_path) / "data").write_bytes(b"x" * 3 * MIB)
    assert 3 * MIB <= (await known(sizes, ADA)).used < 3.2 * MIB
    assert "measure" not in engine.asked


async def test_what_takes_long_is_measured_more_rarely(
    sizes: HomeSizes, engine: VolumeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home_sizes, "HOME_SECONDS", 0.0)
    monkeypatch.setattr(home_sizes, "PART_OF_TIME", 1e-9)
    await known(sizes, ADA)
    asked = len(engine.asked)
    sizes.of(ADA, None)
    await asyncio.sleep(0.05)
    assert len(engine.asked) == asked


async def test_an_engine_that_is_away_costs_nobody_anything(
    sizes: HomeSizes, engine: VolumeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.away = docker.errors.DockerException("Error while fetching server API version")
    for _ in range(20):
        assert sizes.of(ADA, None) is None
        await asyncio.sleep(0.005)
    assert len(engine.asked) == 1
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


async def test_a_new_user_of_a_name_is_not_told_of_the_files_of_the_one_before(
    sizes: HomeSizes, engine: VolumeEngine
) -> None:
    await known(sizes, ADA)
    set_aside(engine, ["home-ada"], "ada")
    sizes.forget("ada")
    assert sizes.of(ADA, None) is None
    await asyncio.sleep(0.1)
    assert sizes.of(ADA, None) is None  # no volume yet


async def test_what_the_engine_enforces_is_what_is_allowed(
    sizes: HomeSizes, engine: VolumeEngine
) -> None:
    engine.there["home-ada"]["Options"] = {"size": str(6 * MIB)}
    use = await known(sizes, ADA, 10 * MIB)
    assert (use.allowed, use.enforced, use.is_nearly_full) == (6 * MIB, True, False)
    use = await known(sizes, BEN, 7 * MIB)
    assert (use.allowed, use.enforced, use.is_nearly_full) == (7 * MIB, False, True)


@pytest.mark.parametrize(
    ("about", "quota"),
    [
        ({"Driver": "local", "Options": {"size": "5"}}, 5),
        ({"Driver": "local", "Options": {"size": "5G"}}, None),
        ({"Driver": "local", "Options": {"size": "٣"}}, None),
        ({"Driver": "local", "Options": {"size": "5", "type": "tmpfs"}}, None),
        ({"Driver": "local", "Options": None}, None),
        ({"Driver": "other", "Options": {"size": "5"}}, None),
    ],
)
def test_only_a_quota_that_is_known_counts_as_one(about: Any, quota: int | None) -> None:
    assert quota_of(about) == quota


@pytest.mark.parametrize(
    ("use", "words", "warning"),
    [
        (HomeUse(5 * MIB, None, False, 0), "Your files take 5 MB.", ""),
        (HomeUse(44 * 2**30, 50 * 2**30, True, 0), "Your files take 44 GB of 50 GB.", ""),
        (
            HomeUse(45 * 2**30, 50 * 2**30, True, 0),
            "Your files take 45 GB of 50 GB.",
            "When no room is left, nothing can be saved any more. Remove what you no longer need.",
        ),
        (
            HomeUse(90 * 2**30, 50 * 2**30, False, 0),
            "Your files take 90 GB of 50 GB.",
            "Remove what you no longer need.",
        ),
        (
            HomeUse(0, 0, False, 0),
            "Your files take 0 MB of 0 MB.",
            "Remove what you no longer need.",
        ),
    ],
)
def test_a_user_is_told_how_much_it_is_and_warned_from_nine_tenths_on(
    use: HomeUse, words: str, warning: str
) -> None:
    assert ENGLISH.say(use.words).replace("\u202f", " ") == words
    assert ENGLISH.say(use.warning) == warning
    assert language_for("zh-CN").say(use.words).startswith("您的文件")


def test_measuring_leaves_the_machine_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"
    (tmp_path / "du").write_text(f'#!/bin/sh\nnice > {told}\necho "7 x"\n')
    (tmp_path / "du").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert volume_folders.size_of(tmp_path) == 7 * 1024
    assert int(told.read_text()) == min(19, os.nice(0) + 19)


@pytest.mark.parametrize("script", ["exit 2", "echo nonsense", "true"])
def test_what_cannot_be_measured_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    (tmp_path / "du").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "du").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert volume_folders.size_of(tmp_path) is None
    assert volume_folders.size_of(None) is None
    assert volume_folders.size_of(tmp_path / "nowhere") is None
