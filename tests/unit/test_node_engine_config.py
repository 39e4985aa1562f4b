"""What joining changes in the engine's configuration, and that it can be undone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from gpuspawner.nodes import engine_config
from gpuspawner.nodes.engine_config import (
    EngineConfigError,
    as_text,
    backup_of,
    difference,
    offered_by,
    read_file,
    restore,
    undo_file,
    with_gpus,
    without_gpus,
    write_file,
)
from gpuspawner.nodes.resources import kind_of

UUIDS = [f"GPU-{n:08x}-aaaa-bbbb-cccc-0123456789ab" for n in range(3)]
KINDS = [kind_of(uuid) for uuid in UUIDS]

scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
runtimes = st.dictionaries(
    st.sampled_from(["nvidia", "kata", "runc"]),
    st.sampled_from([{"path": "x"}, {"args": [], "path": "nvidia-container-runtime"}]),
)
words = st.lists(
    st.sampled_from(["ssd=1", "fpga=a", "NVIDIA-GPU=b", f"{KINDS[0]}=1", f"{KINDS[1]}=8"]),
    unique=True,
)
known = {
    "live-restore": st.just(False),
    "runtimes": runtimes,
    "default-runtime": st.sampled_from(["runc", "nvidia", "kata"]),
    "node-generic-resources": words | st.just("ssd=1"),
    "data-root": st.text(max_size=5),
    "log-opts": st.dictionaries(st.text(max_size=3), scalars, max_size=3),
    "mtu": st.integers(1, 9000),
}
configs = st.fixed_dictionaries({}, optional=known)
offers = st.dictionaries(st.sampled_from(KINDS), st.integers(1, 64))
OURS = {"runtimes", "default-runtime", "node-generic-resources"}
later = {name: values for name, values in known.items() if name not in OURS}


def others(config: Any) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in OURS}


@given(configs, offers)
def test_a_machine_that_joins_offers_its_gpus_and_keeps_all_else(config, offered):
    before = json.dumps(config)
    after = with_gpus(config, offered)
    assert json.dumps(config) == before
    assert list(others(after).items()) == list(others(config).items())
    assert offered_by(after) == offered
    assert after["default-runtime"] == "nvidia"
    # What an administrator had set of the runtimes stays.
    runtimes_after = after.get("runtimes", {})
    assert {**runtimes_after, **config.get("runtimes", {})} == runtimes_after
    # Where it was the default before and isn't in the file, the engine's service names it.
    assert "nvidia" in runtimes_after or config["default-runtime"] == "nvidia"
    had = config.get("node-generic-resources", [])
    foreign = [w for w in ([had] if isinstance(had, str) else had) if "gpu-" not in w[:4]]
    assert [w for w in after.get("node-generic-resources", []) if "gpu-" not in w[:4]] == foreign
    # Who joins twice changes nothing more.
    assert with_gpus(after, offered) == after


@given(configs, offers, offers)
@example({"node-generic-resources": "ssd=1"}, {}, {})
@example({"node-generic-resources": []}, {KINDS[0]: 1}, {})
def test_leaving_puts_all_back_also_after_the_gpus_have_changed(config, first, second):
    assert without_gpus(with_gpus(with_gpus(config, first), second), config) == config


@given(configs, offers, st.fixed_dictionaries({}, optional=later))
def test_leaving_keeps_what_was_changed_meanwhile(config, offered, changes):
    after = with_gpus(config, offered)
    left = without_gpus({**after, **changes}, config)
    assert others(left) == {**others(config), **changes}
    assert left.get("default-runtime") == config.get("default-runtime")


@given(configs, offers, st.sampled_from(["kata", "runc"]))
def test_leaving_keeps_a_default_runtime_that_was_chosen_since(config, offered, chosen):
    after = {**with_gpus(config, offered), "default-runtime": chosen}
    assert without_gpus(after, config)["default-runtime"] == chosen


@given(configs, offers)
def test_whatever_is_left_names_a_runtime_that_is_there(config, offered):
    assume(config.get("default-runtime") != "nvidia" or "nvidia" in config.get("runtimes", {}))
    for found in (with_gpus(config, offered), without_gpus(with_gpus(config, offered), config)):
        if found.get("default-runtime") == "nvidia":
            assert "nvidia" in found["runtimes"]


def test_live_restore_is_refused_with_what_to_do():
    with pytest.raises(EngineConfigError, match="refuses to be in a Swarm"):
        with_gpus({"live-restore": True}, {})


# -- The file --------------------------------------------------------------------------------------


def test_the_file_is_replaced_at_once_and_comes_back_byte_by_byte(tmp_path):
    path = tmp_path / "daemon.json"
    text = '{ "mtu": 1450,\n  "log-driver": "journald" }'
    path.write_text(text)
    path.chmod(0o640)
    before = read_file(path)
    write_file(before, with_gpus(before.config, {KINDS[0]: 1}))
    assert offered_by(read_file(path).config) == {KINDS[0]: 1}
    assert path.stat().st_mode & 0o777 == 0o640
    assert backup_of(path).read_text() == text
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "daemon.json",
        "daemon.json.before-gpuspawner",
    ]
    # Another GPU was built in: what is kept is still the file from before all that.
    again = read_file(path)
    write_file(again, with_gpus(again.config, {KINDS[0]: 1, KINDS[1]: 1}))
    assert backup_of(path).read_text() == text
    assert undo_file(path)
    assert path.read_text() == text
    assert not backup_of(path).exists()
    assert not undo_file(path)


def test_without_a_file_there_is_none_afterwards(tmp_path):
    path = tmp_path / "docker" / "daemon.json"
    before = read_file(path)
    write_file(before, with_gpus(before.config, {KINDS[0]: 1}))
    assert undo_file(path)
    assert list(path.parent.iterdir()) == []


def test_undoing_keeps_a_line_that_came_later(tmp_path):
    path = tmp_path / "daemon.json"
    path.write_text("{}")
    before = read_file(path)
    after = with_gpus(before.config, {KINDS[0]: 1})
    write_file(before, after)
    path.write_text(json.dumps({**after, "mtu": 1400}))
    assert undo_file(path)
    assert json.loads(path.read_text()) == {"mtu": 1400}


def test_a_link_is_followed_and_stays_one(tmp_path):
    (tmp_path / "etc").mkdir()
    real, link = tmp_path / "real.json", tmp_path / "etc" / "daemon.json"
    real.write_text("{}")
    link.symlink_to(real)
    before = read_file(link)
    write_file(before, with_gpus(before.config, {KINDS[0]: 1}))
    assert link.is_symlink()
    assert offered_by(json.loads(real.read_text())) == {KINDS[0]: 1}
    assert undo_file(link)
    assert real.read_text() == "{}"


@pytest.mark.parametrize("content", ["[]", "{", "7", '{"a": 1}}', "[" * 100_000])
def test_what_is_no_configuration_is_left_alone(tmp_path, content):
    path = tmp_path / "daemon.json"
    path.write_text(content)
    with pytest.raises(EngineConfigError, match="so the engine can't use it"):
        read_file(path)
    assert path.read_text() == content


def test_who_changes_it_meanwhile_is_not_overwritten(tmp_path):
    path = tmp_path / "daemon.json"
    path.write_text("{}")
    before = read_file(path)
    path.write_text('{"mtu": 1400}')
    with pytest.raises(EngineConfigError, match="just been changed"):
        write_file(before, with_gpus(before.config, {}))
    assert path.read_text() == '{"mtu": 1400}'


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "daemon.json"
    path.write_text("{}")
    before = read_file(path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_file(before, with_gpus(before.config, {}))
    assert path.read_text() == "{}"
    assert [each.name for each in tmp_path.iterdir()] == ["daemon.json"]


def test_it_can_be_put_back_as_it_was_read(tmp_path):
    path = tmp_path / "daemon.json"
    for content in (None, '{"a":1}'):
        if content is not None:
            path.write_text(content)
        before = read_file(path)
        path.write_text(as_text({"broken": True}))
        restore(before)
        assert (path.read_text() if path.exists() else None) == content
        path.unlink(missing_ok=True)


def test_people_see_what_changes(tmp_path):
    path = tmp_path / "daemon.json"
    path.write_text('{\n    "mtu": 1450\n}\n')
    before = read_file(path)
    lines = difference(before, with_gpus(before.config, {KINDS[0]: 1}))
    assert '-    "mtu": 1450' in lines
    assert f'+        "{KINDS[0]}=1"' in lines
    assert difference(before, before.config) == []
    assert isinstance(engine_config.DAEMON_JSON, Path)
