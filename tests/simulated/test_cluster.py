"""The parts of a simulated cluster that need no engine: its hosts, its runtime, its words."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from gpuspawner.simulation import cluster_changes, command, slots
from gpuspawner.simulation.cluster import name_of, of_node, offered_by
from gpuspawner.simulation.engine_root import FOR_CLUSTERS, engine_for_cluster
from gpuspawner.simulation.presets import PRESETS
from gpuspawner.simulation.programs import SimulationError
from gpuspawner.simulation.running_host import CLUSTER, ClusterFacts, cluster_of, find_running
from gpuspawner.simulation.runtime import bundle_of, with_hook
from gpuspawner.simulation.state import STATE_PATH_VARIABLE, State, describe

from ..support.labs import simulate


@pytest.mark.parametrize("preset", PRESETS)
def test_no_two_hosts_have_the_same_gpu(preset, tmp_path):
    state = PRESETS[preset].state()
    one, other = of_node(state, name_of(1)), of_node(state, name_of(2))
    uuids = [
        {*(gpu.uuid for gpu in each.gpus), *(i.uuid for gpu in each.gpus for i in gpu.instances)}
        for each in (state, one, other)
    ]
    assert len(set.union(*uuids)) == sum(map(len, uuids))
    assert of_node(state, name_of(1)) == one
    assert [gpu.name for gpu in one.gpus] == [gpu.name for gpu in state.gpus]
    one.write(tmp_path / "state")
    assert State.read(tmp_path / "state") == one


def test_each_gpu_and_instance_is_offered_as_a_kind_of_its_own():
    state = PRESETS["a30"].state()
    offered = offered_by(state)
    assert len(offered) == 4 + 4 + 3
    assert all(each.endswith("=1") and each == each.lower() for each in offered)
    assert offered_by(describe([])) == []


@pytest.mark.parametrize(
    ("words", "bundle"),
    [
        (["--root", "/r", "create", "--bundle", "/b", "--pid-file", "/p", "id"], "/b"),
        (["create", "-b", "/b", "id"], "/b"),
        (["create", "--bundle=/b", "id"], "/b"),
        (["create", "id"], str(Path.cwd())),
        (["--root", "/r", "start", "id"], None),
        (["exec", "--process", "/x", "id"], None),
    ],
)
def test_the_runtime_knows_which_container_is_created(words, bundle):
    assert bundle_of(words) == (bundle and Path(bundle))


def test_the_runtime_adds_the_hook_once_and_leaves_the_rest():
    config = {"process": {"env": []}, "hooks": {"prestart": [{"path": "/other"}], "poststop": []}}
    before = json.dumps(config)
    made = with_hook(config, "/hook")
    assert json.dumps(config) == before
    assert made["hooks"]["prestart"] == [
        {"path": "/other"},
        {"path": "/hook", "args": ["hook", "prestart"]},
    ]
    assert made["process"] == config["process"]
    assert with_hook(made, "/hook") == made
    assert with_hook({}, "/hook")["hooks"]["prestart"][0]["path"] == "/hook"


# -- Its words -------------------------------------------------------------------------------------


def states(*words: str) -> list[State]:
    """The hosts that arguments ask for."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command._states(parser.parse_args([*words, "--", "true"]))


def models(*words: str) -> list[list[str]]:
    return [[gpu.name for gpu in state.gpus] for state in states(*words)]


def test_hosts_that_are_not_described_have_models_that_no_other_has():
    found = models("--nodes", "3")
    assert len(found) == 3
    assert all(found)
    assert len({name for names in found for name in names}) == len(found)
    assert len({state.driver for state in states("--nodes", "3")}) == 3
    assert models("--nodes", "4")[3] == found[0]


def test_hosts_are_alike_or_each_as_it_is_described():
    assert models("--nodes", "2", "--model", "T4:1") == [["Tesla T4"]] * 2
    assert states("--nodes", "2", "--preset", "a30") == [PRESETS["a30"].state()] * 2
    first, second, third = states("--node", "T4:2,L4@550.54.15", "--node", "none", "--node", "a30")
    assert [gpu.name for gpu in first.gpus] == ["Tesla T4", "Tesla T4", "NVIDIA L4"]
    assert (first.driver, second.gpus, third) == ("550.54.15", (), PRESETS["a30"].state())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nodes", "0"], "'0' isn't a whole number from 1 to 8"),
        (["--nodes", "9"], "'9' isn't a whole number from 1 to 8"),
        (["--node", "T44"], "'T44' isn't known"),
        (["--node", "T4@new"], "a version such as"),
        (["--node", "a30@550.54.15"], "a preset says its driver itself"),
        (["--node", "T4", "--model", "T4"], "leave the others out"),
        (["--node", "T4", "--nodes", "2"], "leave the others out"),
        (["--node", "T4"] * 9, "there are at most 8 hosts"),
        (["--engine-root", "/"], "--engine-root is for --nodes"),
        (["--nodes", "2", "--engine-root", "/none"], "/none isn't a root folder"),
        (["--change", "node 2 explode"], "node NODE cut SECONDS"),
        (["--change", "node two down"], "isn't a change of a cluster"),
    ],
)
def test_arguments_of_a_cluster_that_make_no_sense_are_answered(words, said):
    done = simulate(*words, *([] if words[0] == "--change" else ["--", "true"]))
    assert said in done.stderr
    assert done.returncode == (1 if "/none" in words else 2)
    assert "Traceback" not in done.stderr


def of_cluster(folder: Path, number: int) -> ClusterFacts:
    """A cluster of so many hosts, as far as it is files."""
    nodes = {}
    for each in range(1, number + 1):
        host = folder / name_of(each)
        (host / "views").mkdir(parents=True)
        of_node(describe([("T4", 1)]), name_of(each)).write(host / "state")
        nodes[name_of(each)] = str(host)
    facts = ClusterFacts("/proc/0/fd/0", 0, nodes)
    for host in nodes.values():
        Path(host, CLUSTER).write_text(json.dumps(asdict(facts)))
    return facts


def test_a_change_of_one_host_leaves_the_others_as_they_are(tmp_path):
    facts = of_cluster(tmp_path, 3)
    before = [State.read(Path(host, "state")) for host in facts.nodes.values()]
    cluster_changes.parse("node 2 gpu 0 lost")(facts)
    one, two, three = (State.read(Path(host, "state")) for host in facts.nodes.values())
    assert (one, three) == (before[0], before[2])
    assert two == before[1].with_gpu(0, fault="lost")
    for number in (0, 4):
        with pytest.raises(ValueError, match="they are 1 to 3"):
            cluster_changes.parse(f"node {number} gpu 0 lost")(facts)
    with pytest.raises(ValueError, match="SECONDS is 'x'"):
        cluster_changes.parse("node 1 cut x")(facts)


def test_a_cluster_that_runs_is_found_by_its_manager(tmp_path, monkeypatch):
    monkeypatch.delenv(STATE_PATH_VARIABLE, raising=False)
    facts = of_cluster(tmp_path, 3)
    folders = [Path(host) for host in facts.nodes.values()]
    monkeypatch.setattr(slots, "running", lambda: folders[::-1])
    assert find_running() == folders[0]
    assert cluster_of(folders[2]) == facts
    other = tmp_path / "other"
    other.mkdir()
    (other / "state").touch()
    assert cluster_of(other) is None
    folders.append(other)
    with pytest.raises(SimulationError, match="several run"):
        find_running()


def test_a_change_says_of_which_host_and_only_of_a_cluster(tmp_path):
    facts = of_cluster(tmp_path, 2)
    variables = {STATE_PATH_VARIABLE: str(facts.manager / "state")}
    done = simulate("--change", "gpu 0 lost", **variables)
    assert (done.returncode, "As in 'node 2 gpu 0 lost'" in done.stderr) == (2, True)
    done = simulate("--change", "node 1 gpu 0 use 7", "--change", "node 2 gpu 0 lost", **variables)
    assert done.returncode == 0, done.stderr
    one, two = (State.read(Path(host, "state")).gpus[0] for host in facts.nodes.values())
    assert (one.utilization_percent, one.fault, two.fault) == (7, None, "lost")
    for host in facts.nodes.values():
        Path(host, CLUSTER).unlink()
    done = simulate("--change", "node 2 down", **variables)
    assert (done.returncode, "a single host runs" in done.stderr) == (2, True)


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Callable[[str, str], None]:
    """Gives the machine a Docker Engine of a version, and what mmdebstrap does beyond a folder."""

    def give(version: str, mmdebstrap: str) -> None:
        scripts = {
            "dockerd": f"echo Docker version {version}, build x",
            # Its last argument is the folder to make.
            "mmdebstrap": f'for each in "$@"; do :; done; mkdir -p "$each/usr"; {mmdebstrap}',
        }
        for name, script in scripts.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return give


def test_an_engine_that_is_too_old_gives_way_to_one_that_is_made_once(machine, tmp_path):
    cache, said = tmp_path / "cache", []
    machine("25.0.3", "exit 1")
    assert engine_for_cluster(None, cache, (25, 0), said.append) == (None, cache)
    assert said == []
    machine("24.0.9", "true")
    root, of_root = engine_for_cluster(None, cache, (25, 0), said.append)
    assert root == cache / "roots" / FOR_CLUSTERS
    assert (root / "usr").is_dir()
    assert of_root != cache
    machine("24.0.9", "exit 1")
    assert engine_for_cluster(None, cache, (25, 0), said.append) == (root, of_root)
    assert len(said) == 1


def test_a_root_that_can_not_be_made_leaves_nothing_and_says_why(machine, tmp_path):
    machine("20.10.24", "echo E: no mirror >&2; exit 1")
    with pytest.raises(SimulationError, match="E: no mirror"):
        engine_for_cluster(None, tmp_path / "cache", (25, 0), lambda words: None)
    assert list((tmp_path / "cache" / "roots").iterdir()) == []
