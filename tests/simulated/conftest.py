"""Fixtures: an engine's cache, an image without a registry, and a simulated host that runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gpuspawner.simulation.host import SimulatedHost

from ..support.labs import PROBE, STATE, Lab, Session
from ..support.requirements import cannot


@pytest.fixture(scope="session")
def engine_cache(tmp_path_factory) -> Path:
    """A cache of these tests' own; skips where no engine can be had."""
    if os.geteuid() != 0 or not shutil.which("dockerd"):
        cannot("needs root and dockerd")
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def image_files(engine_cache) -> dict[str, bytes]:
    """The files of the tests' image."""
    (engine_cache / "probe.c").write_text(PROBE)
    words = [
        "cc",
        "-static",
        "-O1",
        str(engine_cache / "probe.c"),
        "-o",
        str(engine_cache / "probe"),
    ]
    subprocess.run(words, check=True)
    return {"probe": (engine_cache / "probe").read_bytes()}


@pytest.fixture(scope="module")
def running(engine_cache, image_files) -> Iterator[Lab]:
    """One simulated host for the tests that don't end it."""
    with SimulatedHost(STATE, engine_cache) as host:
        lab = Lab(host)
        lab.load(image_files)
        yield lab
        lab.client.close()


@pytest.fixture
def lab(running) -> Iterator[Lab]:
    """The running host, as it was at first, and so again afterwards."""
    yield running
    running.host.write(STATE)
    for container in running.client.containers.list(all=True):
        container.remove(force=True)


@pytest.fixture
def session(engine_cache) -> Iterator[Callable[..., Session]]:
    begun: list[Session] = []

    def begin(**how: object) -> Session:
        begun.append(Session(engine_cache, **how))
        return begun[-1]

    yield begin
    for each in begun:
        each.process.kill()
        # A COMMAND that wants more signals than it got has our pipe, and isn't impressed.
        command = int(each.environment["COMMAND_PID"])
        with suppress(OSError):
            if b"COMMAND_PID" in Path(f"/proc/{command}/cmdline").read_bytes():
                os.kill(command, signal.SIGKILL)
        if not each.process.stdout.closed:
            each.process.communicate()
