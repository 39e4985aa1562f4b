"""A disk is full, the hub's or the engine's, while people wait, start and run."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from ..support import scenes
from ..support.hubs import until
from ..support.looks import free_gpus
from ..support.scenes import COMES, RUNS, STARTS, WAITS, Scene

pytestmark = [pytest.mark.engine, pytest.mark.thorough]

CAN_T_WRITE = "JupyterHub can't write into its database, so your server was stopped again."


def fill(folder: Path) -> Path:
    """Leave not one block of a file system free; return the file that takes all."""
    file = folder / "fills-the-disk"
    with suppress(OSError), file.open("wb", buffering=0) as writing:
        for size in (65536, 4096, 1):
            with suppress(OSError):
                while True:
                    writing.write(bytes(size))
    return file


@contextmanager
def on_a_small_disk(hub: Any, aside: Path) -> Iterator[None]:
    """Have a hub's folder be a file system of its own, but for the log, in which a test reads."""
    hub.end()
    hub.stop()
    kept = shutil.copytree(hub.folder, aside / "folder", ignore=shutil.ignore_patterns("*.sock"))
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "hub", hub.folder], check=True
    )
    try:
        shutil.copytree(kept, hub.folder, dirs_exist_ok=True)
        log = Path(shutil.move(hub.folder / "hub.log", aside / "hub.log"))
        (hub.folder / "hub.log").symlink_to(log)
        hub.start()
        yield
    finally:
        hub.stop()
        subprocess.run(["umount", "-l", hub.folder], check=True)


def test_a_hub_whose_disk_is_full(make_hub, engine, tmp_path):
    hub = make_hub(*scenes.LINES)
    with on_a_small_disk(hub, tmp_path):
        scene = Scene(hub, engine)
        hub.add_user(COMES)
        file = fill(hub.folder)
        assert scene.answers(RUNS)
        assert scene.has_place()
        assert hub.api("POST", f"/users/{COMES}/server", {"gpus": 1}).status_code == 500
        scene.let_start()
        assert CAN_T_WRITE in scene.start_failed()
        assert hub.api("DELETE", f"/users/{RUNS}/server").status_code in (202, 204)
        assert CAN_T_WRITE in scene.start_failed(WAITS)
        until(lambda: len(free_gpus()) == 4, "all GPUs are free", log=hub.log)
        file.unlink()
        scene.nothing_is_lost()
        for user in (RUNS, STARTS, WAITS):
            assert not hub.server(user)


@contextmanager
def small_disk_of_containers(host: Any, engine: Any) -> Iterator[Path]:
    """Have the engine keep what it knows of new containers on a small file system."""
    pid = (host.directory / "docker.pid").read_text()
    inside = ["nsenter", f"--mount=/proc/{pid}/ns/mnt", "--"]
    folder = Path(engine.info()["DockerRootDir"]) / "containers"
    subprocess.run([*inside, "mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True)
    try:
        yield Path(f"/proc/{pid}/root{folder}")
    finally:
        subprocess.run([*inside, "umount", "-l", folder], check=True)


def test_an_engine_whose_disk_is_full(make_hub, engine, host):
    hub = make_hub(*scenes.LINES)
    with small_disk_of_containers(host, engine) as folder:
        scene = Scene(hub, engine)
        file = fill(folder)
        scene.let_start()
        scene.has_started()
        assert scene.answers(RUNS)
        message = hub.failed_start(COMES, {"gpus": 0})["message"]
        assert "The GPU machine's disk is full" in message
        # Who ends gives the GPUs back all the same; and perhaps enough room for the next one.
        assert hub.api("DELETE", f"/users/{RUNS}/server").status_code in (202, 204)
        until(lambda: not hub.server(RUNS), "it has ended", seconds=120, log=hub.log)
        until(lambda: not hub.server(WAITS).get("pending"), "it was their turn", log=hub.log)
        if not hub.server(WAITS):
            assert "The GPU machine's disk is full" in scene.start_failed(WAITS)
        file.unlink()
        if not hub.server(WAITS):
            hub.start_server(WAITS, {"gpus": 2})
        # It can't be asked for in the engine's list, which goes on calling it "created".
        assert scene.answers(WAITS)
        assert len(free_gpus()) == 1
        scene.nothing_is_lost()
        hub.stop_all_servers()
