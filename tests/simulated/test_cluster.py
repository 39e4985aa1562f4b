"""The parts of a simulated cluster that need no engine: its hosts' GPUs and its runtime."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpuspawner.simulation.cluster import name_of, of_node, offered_by
from gpuspawner.simulation.presets import PRESETS
from gpuspawner.simulation.runtime import bundle_of, with_hook
from gpuspawner.simulation.state import State, describe


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
