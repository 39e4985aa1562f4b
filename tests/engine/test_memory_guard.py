"""The memory guard on a real hub and engine: two servers share a GPU, and one takes too much."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker
import pytest

from gpuspawner.backends.docker.backend import DockerBackend
from gpuspawner.errors import GPUSpawnerError
from gpuspawner.gpus.host_processes import find

from ..support import dashboards
from ..support.dashboards import Program, Visitor
from ..support.hubs import until, with_groups
from ..support.looks import container_of, inside
from ..support.paths import ROOT
from ..support.queues import audit_lines, control

pytestmark = pytest.mark.engine

GIB = 1024
# The simulated host's first GPU has 40 GiB: half of it is a server's part.
LINES = (
    dashboards.lines(),
    "from gpuspawner.gpus import nvml",
    "c.GPUSpawner.shared_gpus = {gpu.uuid: 2 for gpu in nvml.read().gpus if gpu.index == 0}",
    "c.GPUSpawner.memory_guard_seconds = 3",
    with_groups({"trusted": {"memory_guard": False}}),
)
NS_LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


@pytest.fixture
def hub(module_hub):
    """In these tests the hub is the one with these lines."""
    return module_hub


class Held:
    """What real processes hold of the first GPU, as its stand-in is told."""

    def __init__(self, host: Any, engine: docker.APIClient) -> None:
        self._host, self._engine = host, engine
        self._mib: dict[int, int] = {}

    def start(self, user: str, gib: int) -> str:
        """Start a process in a user's server that holds so much; return the engine's name of it."""
        words = ["sleep", "1000"]
        job = self._engine.exec_create(container_of(self._engine, user), words)["Id"]
        self._engine.exec_start(job, detach=True)
        self.set(self.pid(job), gib)
        return str(job)

    def pid(self, job: str) -> int:
        """Return the machine's id of a process."""
        return int(self._engine.exec_inspect(job)["Pid"])

    def set(self, pid: int, gib: int) -> None:
        """Have a process hold so much; 0: nothing any more."""
        self._mib = {**self._mib, pid: gib * GIB}
        held = tuple((each, mib) for each, mib in self._mib.items() if mib)
        self._host.change(lambda state: state.with_gpu(0, processes=held))

    def goes_on(self, job: str) -> bool:
        """Return whether a process runs."""
        return bool(self._engine.exec_inspect(job)["Running"])

    def code(self, job: str) -> int:
        """Return a process's exit status."""
        return int(self._engine.exec_inspect(job)["ExitCode"])


@pytest.fixture
def held(idle_host, engine) -> Held:
    return Held(idle_host, engine)


def labels(engine: docker.APIClient, user: str) -> dict[str, str]:
    found = engine.inspect_container(container_of(engine, user))
    return dict(found["Config"]["Labels"])


def memory(hub: Any, user: str) -> dict[str, Any]:
    """Return what the hub says of a server's memory."""
    leases = control(hub, do="status")["leases"]
    return next(each["memory"] for each in leases if each["user"] == user)


def events(hub: Any, *kinds: str) -> list[tuple[str, str]]:
    return [
        (line["event"], line["user"])
        for line in audit_lines(hub)
        if line["event"] in kinds and line["rule"] == "GPU memory"
    ]


def test_the_largest_process_of_who_takes_too_much_is_ended_and_nobody_elses(hub, engine, held):
    for user in ("ada", "ben"):
        hub.start_server(user, {"kind": "shared"})
    hub.start_server("eve", {"gpus": 1})
    assert [labels(engine, user)["gpuspawner.memory-guard"] for user in ("ada", "ben")] == [
        "on"
    ] * 2
    assert "gpuspawner.memory-guard" not in labels(engine, "eve")
    told = "echo $GPUSPAWNER_GPU_SHARE $GPUSPAWNER_MEMORY_GUARD"
    assert inside(engine, "ada", told) == "1/2 3"
    assert inside(engine, "eve", told) == ""
    bens, small, large = held.start("ben", 15), held.start("ada", 8), held.start("ada", 14)
    ada, boss = Program(hub, "ada"), Visitor(hub, "boss")
    # What JupyterLab's page asks, as its user.
    lab = lambda: ada.status()["servers"][0]["memory"]  # noqa: E731
    until(lambda: ada.status()["servers"], "ada's server is seen", log=hub.log)
    until(lambda: lab()["next"] == "end", "ada is warned", log=hub.log)
    assert (lab()["used_bytes"], lab()["part_bytes"]) == (22 << 30, 20 << 30)
    assert lab()["at"]
    until(lambda: not held.goes_on(large), "ada's largest process is ended", log=hub.log)
    assert held.code(large) == 128 + 15
    held.set(held.pid(large), 0)
    until(lambda: lab()["ended"] and lab()["next"] is None, "ada is told so", log=hub.log)
    assert lab()["ended"]["process"] == "sleep"
    assert lab()["ended"]["held_bytes"] == 14 << 30
    assert "sleep was ended at" in Visitor(hub, "ada").page()
    # After a while in which all is well it is forgotten, and nothing was done to anybody else.
    looked = memory(hub, "ben")
    assert (looked["used"], looked["next"], looked["ended"]) == (15 << 30, None, None)
    assert held.goes_on(small)
    assert held.goes_on(bens)
    assert events(hub, "warn", "end", "stop") == [("warn", "ada"), ("end", "ada")]
    (line,) = [each for each in audit_lines(hub) if each["event"] == "end"]
    assert (line["process"], line["process_memory"], line["by"]) == (
        "sleep",
        14 << 30,
        "gpuspawner",
    )
    assert "8.0 of its 20 GB" in boss.page()


@pytest.mark.thorough
def test_a_server_that_goes_on_is_stopped_and_its_user_reads_why(hub, engine, held):
    for user in ("ada", "ben"):
        hub.start_server(user, {"kind": "shared"})
    bens = held.start("ben", 5)
    # Of equal ones the first is the largest.
    large, _, _ = (held.start("ada", 11) for _ in range(3))
    pid = held.pid(large)
    # The hub goes away in between: at worst it warns once more.
    until(lambda: memory(hub, "ada")["next"] == "end", "ada is warned", log=hub.log)
    hub.kill()
    hub.start()
    until(lambda: not hub._has("ada", ""), "ada's server is stopped", log=hub.log)
    assert held.goes_on(bens)
    assert hub.ready("ben")
    page = hub.log_in("ada").get(f"{hub.url}/hub/spawn/ada").text
    assert (
        "it took 22 GB of the memory of a GPU that others use too, and its part was 20 GB" in page
    )
    (stopped,) = Program(hub, "ada").status()["stopped"]
    assert (stopped["user"], stopped["rule"]) == ("ada", "GPU memory")
    assert events(hub, "end", "stop") == [("end", "ada"), ("stop", "ada")]
    assert [line["pid"] for line in audit_lines(hub) if line["event"] == "end"] == [pid]


def test_a_process_outside_all_servers_and_who_has_got_an_id_meanwhile_are_left_alone(
    hub, engine, held
):
    hub.start_server("ada", {"kind": "shared"})
    outside = subprocess.Popen(["sleep", "1000"])
    heir = None
    try:
        held.set(outside.pid, 21)
        job = held.start("ada", 11)
        pid = held.pid(job)
        until(lambda: memory(hub, "ada")["used"] == 11 << 30, "the guard looks", log=hub.log)
        # What ada's process held is said to be another's, who has got its id.
        inside(engine, "ada", f"kill {find(pid).inside}")
        until(lambda: not held.goes_on(job), "ada's process has ended")
        heir = with_pid(pid)
        until(lambda: memory(hub, "ada")["used"] == 0, "ada holds nothing", log=hub.log)
        if heir is not None:
            assert heir.poll() is None
        assert outside.poll() is None
        assert events(hub, "warn", "end", "stop") == []
    finally:
        for each in filter(None, (outside, heir)):
            each.kill()
            each.wait()


def with_pid(pid: int) -> subprocess.Popen[bytes] | None:
    """Start a process that gets an id which another has had; None where that can't be chosen."""
    for _ in range(100):
        with suppress(OSError):
            NS_LAST_PID.write_text(str(pid - 1))
        child = subprocess.Popen(["sleep", "1000"])
        if child.pid == pid:
            return child
        child.kill()
        child.wait()
    return None


@pytest.mark.thorough
def test_who_is_not_guarded_reads_so_and_loses_nothing(hub, engine, held):
    hub.add_to_group("trusted", "ada")
    hub.start_server("ada", {"kind": "shared"})
    assert labels(engine, "ada")["gpuspawner.memory-guard"] == "off"
    assert inside(engine, "ada", "echo $GPUSPAWNER_MEMORY_GUARD") == "off"
    job = held.start("ada", 30)
    hub.start_server("ben", {"kind": "shared"})
    bens = held.start("ben", 1)
    until(lambda: memory(hub, "ben")["used"] == 1 << 30, "the guard looks", log=hub.log)
    assert memory(hub, "ada")["guarded"] is False
    page = Visitor(hub, "ada").page()
    assert "Nothing limits what it takes of the shared GPU" in page
    form = hub.log_in("ada").get(f"{hub.url}/hub/spawn/ada/more").text
    assert "Nothing limits who takes more" in form
    form = hub.log_in("eve").get(f"{hub.url}/hub/spawn/eve").text
    assert "Who takes more for 3 seconds is warned." in form
    assert held.goes_on(job)
    assert held.goes_on(bens)


# Says whether the hub's process would see what the guard has to.
SEES = """
import logging
from gpuspawner.backends.docker.backend import DockerBackend, connect
print(DockerBackend(lambda: connect({}, {}), logging.getLogger()).sees_processes)
"""


@pytest.mark.parametrize(
    ("within", "says"),
    [
        ([], "True"),
        # As in a container without the machine's process ids.
        (["unshare", "--pid", "--fork", "--mount-proc"], "False"),
    ],
)
def test_a_hub_that_cannot_see_the_machines_processes_knows_it(host, within, says: str) -> None:
    words = [*within, sys.executable, "-c", SEES]
    environment = {**host.environment, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == says, done.stderr


@pytest.mark.thorough
def test_a_hub_that_may_not_send_signals_has_the_engine_send_them(hub, engine, held):
    hub.start_server("ada", {"kind": "shared"})
    job, other = held.start("ada", 1), held.start("ada", 1)
    process = find(held.pid(job))
    assert process
    assert process.inside
    container = container_of(engine, "ada")
    backend = DockerBackend(lambda: engine, logging.getLogger("tests"))
    asyncio.run(backend.signal_inside(container, process.inside, 15))
    until(lambda: not held.goes_on(job), "it has ended")
    assert held.goes_on(other)
    with pytest.raises(GPUSpawnerError, match="exit status"):
        asyncio.run(backend.signal_inside(container, process.inside, 15))
    assert os.getpid()
    backend.executor.shutdown()
