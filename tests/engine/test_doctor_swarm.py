"""`gpuspawner doctor` in the folder of a hub on several machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuspawner.simulation.state import describe

from ..support.paths import ROOT
from ..support.swarms import Swarm, open_swarm

pytestmark = [pytest.mark.engine, pytest.mark.thorough, pytest.mark.timeout(600)]

STATES = (describe([("A100-40GB", 1)], "570.133.20"), describe([("T4", 1)], "550.54.15"))


@pytest.fixture(scope="module")
def swarm(tmp_path_factory) -> Iterator[Swarm]:
    with open_swarm(STATES, tmp_path_factory.mktemp("swarm")) as made:
        yield made


def findings(swarm: Swarm, folder: Path) -> list[tuple[str, str, str]]:
    """Return (check, state, what was found) of a doctor that runs where the hub does."""
    hub = swarm.hub(folder, "c.GPUSwarmSpawner.home_volume = 'home-{username}'")
    words = [*hub.words_before, sys.executable, "-m", "gpuspawner", "doctor", "--json"]
    environment = {**os.environ, **swarm.cluster.environment, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        words, cwd=hub.folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    return [(each["check"], each["state"], each["found"]) for each in json.loads(done.stdout)]


def test_one_command_looks_at_the_swarm_and_at_each_machine(swarm, tmp_path):
    found = findings(swarm, tmp_path / "first")
    of_swarm = [each for each in found if each[0] == "Docker Swarm"]
    said = " ".join(words for _, _, words in of_swarm)
    assert "cut off for 90 seconds" in said, found
    assert "there is one manager alone" in said
    assert "users' files are on one machine each (volume_driver is empty" in said
    assert {state for _, state, _ in of_swarm} <= {"ok", "note"}, of_swarm
    machines = [(state, words) for check, state, words in found if check == "Other machines"]
    assert [state for state, words in machines if words.startswith("node-1: 1 GPUs")] == ["ok"]
    assert [state for state, words in machines if words.startswith("node-2: 1 GPUs")] == ["ok"]
    assert ("Network", "ok") in {(check, state) for check, state, _ in found}, found

    # What is changed is found.
    about = swarm.manager.inspect_swarm()
    spec = {**about["Spec"], "Dispatcher": {"HeartbeatPeriod": 5 * 10**9}}
    index = about["Version"]["Index"]
    swarm.manager.update_swarm(version=index, swarm_spec=spec)
    node = swarm.manager.inspect_node(swarm.node_ids["node-2"])
    drained = {**node["Spec"], "Availability": "drain"}
    swarm.manager.update_node(node["ID"], node["Version"]["Index"], drained)
    again = [each[1:] for each in findings(swarm, tmp_path / "second") if each[0] == "Docker Swarm"]
    warnings = [words for state, words in again if state == "warning"]
    assert any(words.startswith("its heartbeat is 5 seconds") for words in warnings), again
    assert any("node-2 takes no servers: it was set to drain" in words for _, words in again)
