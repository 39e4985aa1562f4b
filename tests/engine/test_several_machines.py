"""Several machines as a newcomer has them: a simulated cluster, and the shipped hub on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from gpuspawner.simulation.state import STATE_PATH_VARIABLE

from ..support.engine_roots import engine_root
from ..support.forms import submit
from ..support.hubs import until
from ..support.labs import left_by, simulate
from ..support.paths import ROOT
from ..support.swarms import THREE_MODELS, Swarm, SwarmHub, every_gpu, held_twice, open_swarm

pytestmark = [pytest.mark.engine, pytest.mark.thorough, pytest.mark.timeout(600)]

H100 = "NVIDIA H100 80GB HBM3"

NO_WAIT = """
c.GPUSwarmSpawner.longest_wait_minutes = 0
c.GPUSwarmSpawner.poll_interval = 2
"""


@pytest.fixture(scope="module")
def swarm(tmp_path_factory) -> Iterator[Swarm]:
    with open_swarm(THREE_MODELS, tmp_path_factory.mktemp("swarm")) as made:
        yield made


@pytest.fixture
def hub(swarm, tmp_path) -> Iterator[SwarmHub]:
    with swarm.started(swarm.shipped_hub(tmp_path, NO_WAIT)) as running:
        yield running


def test_who_wants_the_model_of_one_machine_is_there_with_exactly_that_gpu(swarm, hub):
    gpus = every_gpu(swarm.cluster)
    ada = hub.log_in("ada")
    form = BeautifulSoup(ada.get(f"{hub.url}/hub/spawn").content, "html.parser").text
    assert all(gpu.name in form for state in THREE_MODELS for gpu in state.gpus), form
    answer = submit(hub, ada, gpus="1", image="plain", model=H100)
    assert answer.ok, answer.text
    until(lambda: hub.ready("ada"), "ada's server is ready", log=hub.log)
    # Through proxy, hub and overlay network, as her browser.
    assert ada.get(f"{hub.url}/user/ada/api").text == "plain"
    assert swarm.node_of("ada") == 3
    assert swarm.leased()["ada"] == swarm.seen("ada") == gpus["node-3"]
    # There is no second one, and others have the rest.
    refused = hub.spawn("ben", {"gpus": 1, "model": H100})
    assert refused.status_code == 503, refused.text
    hub.start_server("ben", {"gpus": 2})
    assert swarm.node_of("ben") != 3
    assert sorted(swarm.seen("ben")) == sorted(gpus[f"node-{swarm.node_of('ben')}"])
    assert held_twice(swarm) == []

    hub.stop_server("ada")
    assert "ada" not in swarm.leased()
    hub.start_server("cyd", {"gpus": 1, "model": H100})
    assert swarm.seen("cyd") == gpus["node-3"]


def test_a_hub_that_was_killed_finds_servers_and_leases_again(swarm, hub):
    hub.start_server("ada", {"gpus": 1, "model": H100})
    hub.start_server("ben", {"gpus": 2})
    before = {user: swarm.seen(user) for user in ("ada", "ben")}
    hub.kill()
    hub.start()
    until(lambda: hub.ready_users() == {"ada", "ben"}, "both are known", log=hub.log)
    assert {user: swarm.seen(user) for user in ("ada", "ben")} == before
    assert swarm.leased() == before
    # What they hold isn't handed out.
    assert hub.spawn("cyd", {"gpus": 1, "model": H100}).status_code == 503
    hub.start_server("cyd", {"gpus": 2})
    assert not {*swarm.seen("cyd")} & {uuid for uuids in before.values() for uuid in uuids}
    assert hub.spawn("dan", {"gpus": 1}).status_code == 503
    assert held_twice(swarm) == []
    hub.stop_server("ada")
    hub.start_server("dan", {"gpus": 1})
    assert swarm.seen("dan") == before["ada"]


# -- The command -----------------------------------------------------------------------------------

# Says where it is, and waits.
COMMAND = """
import json, os, time
print(json.dumps(dict(os.environ)), flush=True)
time.sleep(600)
"""


@pytest.fixture
def begun(tmp_path) -> Iterator[tuple[subprocess.Popen[str], Mapping[str, str]]]:
    """`gpuspawner simulate --nodes 3` with a COMMAND, and the environment of that."""
    words = [sys.executable, "-m", "gpuspawner", "simulate", "--nodes", "3"]
    words += ["--engine-root", str(engine_root("trixie")), "--", sys.executable, "-c", COMMAND]
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    try:
        yield process, json.loads(process.stdout.readline())
    finally:
        process.terminate()
        process.communicate()


def joined(variables: Mapping[str, str], *words: str) -> str:
    """What a program prints that joins the cluster."""
    done = simulate("--join", "--", *words, **variables)
    assert not done.stderr, done.stderr
    return done.stdout


def test_a_simulated_cluster_can_be_changed_and_is_gone_once_it_is_killed(begun):
    process, environment = begun
    folder = Path(environment[STATE_PATH_VARIABLE]).parent
    variables = {STATE_PATH_VARIABLE: environment[STATE_PATH_VARIABLE]}
    folders = [
        Path(each) for each in json.loads((folder / "cluster.json").read_text())["nodes"].values()
    ]
    status = (sys.executable, "-m", "gpuspawner", "node", "status")

    def said() -> dict[str, str]:
        """Machine -> what the hub's command says of it."""
        blocks = joined(variables, *status).split("\nnode-")
        return {f"node-{each.removeprefix('node-')[0]}": each for each in blocks}

    def change(words: str) -> None:
        done = simulate("--change", words, **variables)
        assert done.returncode == 0, done.stderr

    def available() -> list[str]:
        listed = joined(variables, "docker", "node", "ls", "--format", "{{.Availability}}")
        return sorted(listed.split())

    assert "2 GPUs or parts of one (NVIDIA A100-SXM4-40GB): 2 not in use" in said()["node-1"]
    assert "driver 550.54.15" in said()["node-2"]
    assert H100 in said()["node-3"]
    change("node 2 gpu 0 lost")
    assert "1 not in use, 1 not handed out" in said()["node-2"]
    assert "2 not in use" in said()["node-1"]
    change("node 2 down")
    assert "! unknown, so nothing is handed out there" in said()["node-2"]
    change("node 2 up")
    until(lambda: "1 not in use" in said()["node-2"], "it answers again")
    change("node 3 cut 0")
    until(lambda: "1 not in use" in said()["node-3"], "it answers again")
    change("node 3 drain")
    assert available() == ["Active", "Active", "Drain"]
    change("node 3 active")
    assert available() == ["Active", "Active", "Active"]

    process.kill()
    process.wait()
    until(lambda: [left_by(each) for each in folders] == [[], [], []], "nothing is left")
    until(lambda: not daemons_of(folders), "no daemon is left")


def daemons_of(folders: list[Path]) -> list[str]:
    """The processes whose command line or environment names one of these folders."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            text = (each / "cmdline").read_bytes() + (each / "environ").read_bytes()
        except OSError:
            continue
        if any(f"{folder}/".encode() in text for folder in folders):
            found.append(text.replace(b"\0", b" ").decode(errors="replace"))
    return found
