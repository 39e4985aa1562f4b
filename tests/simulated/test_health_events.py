"""The watch for NVML's events, against the simulated library: what is heard, and let go of."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gpuspawner.gpus import event_watch
from gpuspawner.gpus.event_watch import EventWatch
from gpuspawner.gpus.health import HealthEvent
from gpuspawner.simulation import changes
from gpuspawner.simulation.library import Binaries, build
from gpuspawner.simulation.state import State, describe

from ..support.nvml import environment

HOST = describe([("A100-40GB", 2)], driver="580.65.06")
FIRST, SECOND = (gpu.uuid for gpu in HOST.gpus)
DIVIDED = changes.parse("gpu 0 instances 3g.20gb, 1g.5gb")(HOST)


class Watched:
    """A watch, the state that it sees, and what it has heard."""

    def __init__(self, path: Path, state: State) -> None:
        self.path, self.state = path, state
        state.write(path)
        self.heard: list[HealthEvent] = []
        self.watch = EventWatch(self.heard.append)

    def change(self, *texts: str) -> None:
        for text in texts:
            self.state = changes.parse(text)(self.state)
        self.state.write(self.path)

    async def until(self, there: Callable[[], object]) -> None:
        while not there():
            await asyncio.sleep(0.02)

    async def on(self) -> None:
        self.watch.turn_on()
        await self.until(lambda: self.watch.watching)


@pytest.fixture
async def watched(
    binaries: Binaries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Watched]]:
    """Makes a watch of a state."""
    made: list[Watched] = []

    def make(state: State = HOST, library: Binaries = binaries) -> Watched:
        path = tmp_path / f"state-{len(made)}"
        for name, value in environment(library.directory, path).items():
            monkeypatch.setenv(name, value)
        made.append(Watched(path, state))
        return made[-1]

    yield make
    for each in made:
        each.watch.turn_off()


async def test_an_event_arrives_on_the_event_loop(watched) -> None:
    here = watched()
    await here.on()
    assert here.watch.watching == {FIRST, SECOND}
    here.change("gpu 1 xid 79")
    await here.until(lambda: here.heard)
    here.change("gpu 0 ecc 2", "gpu 1 recovery node_reboot")
    await here.until(lambda: len(here.heard) == 3)
    assert here.heard[0] == HealthEvent(SECOND, "xid", 79)
    assert set(here.heard[1:]) == {HealthEvent(FIRST, "ecc"), HealthEvent(SECOND, "recovery")}


async def test_an_event_of_an_instance_names_it_and_one_of_the_gpu_names_none(watched) -> None:
    here = watched(DIVIDED)
    await here.on()
    instance = DIVIDED.gpu(0).instances[1]
    here.change("gpu 0 xid 43 instance 1")
    await here.until(lambda: here.heard)
    here.change("gpu 0 xid 95")
    await here.until(lambda: len(here.heard) == 2)
    assert here.heard == [
        HealthEvent(FIRST, "xid", 43, (instance.uuid,)),
        HealthEvent(FIRST, "xid", 95),
    ]


async def test_after_other_instances_were_made_events_name_the_new_ones(watched) -> None:
    here = watched(DIVIDED)
    await here.on()
    here.change("gpu 0 instances 7g.40gb")
    await here.until(lambda: here.heard and not here.watch.is_on)
    assert here.heard == [HealthEvent(FIRST, "mig")]
    here.watch._not_before = 0
    await here.on()
    here.change("gpu 0 xid 13 instance 0")
    await here.until(lambda: len(here.heard) == 2)
    assert here.heard[1].instances == (here.state.gpu(0).instances[0].uuid,)


async def test_what_one_that_has_ended_watched_another_does_not_watch_yet(watched) -> None:
    here = watched()
    await here.on()
    here.watch._process.kill()
    here.watch._process.wait()  # and the event loop has heard nothing of it
    here.watch.turn_on()
    assert here.watch.is_on
    assert not here.watch.watching
    await here.until(lambda: here.watch.watching)


async def test_off_nothing_of_it_runs_and_on_again_it_hears(watched) -> None:
    here = watched()
    await here.on()
    process = here.watch._process
    here.watch.turn_off()
    assert not here.watch.is_on
    assert process.poll() is not None, "it has let go of NVML"
    here.change("gpu 0 xid 63")
    await here.on()
    here.change("gpu 0 xid 31")
    await here.until(lambda: here.heard)
    assert here.heard == [HealthEvent(FIRST, "xid", 31)]


async def test_it_ends_with_who_has_started_it(watched) -> None:
    """As when the hub is killed: nobody turns it off then."""
    here = watched()
    await here.on()
    process = here.watch._process
    process.stdin.close()
    await asyncio.to_thread(process.wait)
    assert process.returncode == 0


@pytest.mark.parametrize(
    "texts",
    [("gpu 1 lost",), ("driver gone",), ("function nvmlEventSetWait_v2 999",)],
    ids=["a lost GPU", "an unloaded driver", "NVML fails"],
)
async def test_what_fails_ends_it_and_it_comes_back(watched, texts) -> None:
    here = watched()
    await here.on()
    here.change(*texts)
    await here.until(lambda: not here.watch.is_on)
    await here.until(lambda: not here.watch.watching)
    here.watch.turn_on()
    assert not here.watch.is_on, "it is given a while"
    here.state = HOST
    here.change("gpu 0 use 1")
    here.watch._not_before = 0
    await here.on()
    here.change("gpu 0 xid 48")
    await here.until(lambda: here.heard)
    assert here.heard == [HealthEvent(FIRST, "xid", 48)]


async def test_one_that_was_killed_comes_back(watched) -> None:
    here = watched()
    await here.on()
    os.kill(here.watch._process.pid, signal.SIGKILL)
    await here.until(lambda: not here.watch.is_on and not here.watch.watching)
    here.watch._not_before = 0
    await here.on()


async def test_a_driver_without_events_is_asked_seldom(watched, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "library"
    folder.mkdir()
    here = watched(library=build(folder, missing_functions=("nvmlEventSetCreate",)))
    monkeypatch.setattr(event_watch, "NO_EVENTS_SECONDS", 12345.0)
    before = asyncio.get_running_loop().time()
    here.watch.turn_on()
    await here.until(lambda: here.watch._process is None)
    assert here.watch._not_before > before + 12000


async def test_a_gpu_that_does_not_answer_hides_no_events_of_the_others(watched) -> None:
    here = watched(HOST.with_gpu(0, fault="unreachable"))
    await here.on()
    assert here.watch.watching == {SECOND}
    here.change("gpu 1 xid 119")
    await here.until(lambda: here.heard)
    assert here.heard == [HealthEvent(SECOND, "xid", 119)]


async def test_what_is_no_line_of_ours_is_passed_over(tmp_path) -> None:
    script = tmp_path / "prints"
    script.write_text(
        "#!/bin/sh\necho nonsense\necho '[1]'\necho '{\"gpu\": 1}'\n"
        'echo \'{"gpu": "GPU-1", "kind": "xid", "xid": 31, "instances": []}\'\nexec sleep 60\n'
    )
    script.chmod(0o755)
    heard: list[HealthEvent] = []
    watch = EventWatch(heard.append, [str(script)])
    watch.turn_on()
    try:
        while not heard:
            await asyncio.sleep(0.02)
        assert heard == [HealthEvent("GPU-1", "xid", 31)]
    finally:
        watch.turn_off()
