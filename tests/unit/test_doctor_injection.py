"""What doctor says of the way in which containers are given GPUs, and of CDI's specifications."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpuspawner.doctor import cdi_files, injection, toolkit
from gpuspawner.doctor import engine as engines
from gpuspawner.doctor.findings import Configuration, Context, Finding
from gpuspawner.gpus.nvml import GPUFacts, Inventory
from gpuspawner.simulation import cdi
from gpuspawner.simulation.state import describe

ONE, TWO = (f"GPU-{n}0000000-0000-0000-0000-00000000000a" for n in (1, 2))
GPUS = [{"uuid": ONE, "minor_number": "0"}, {"uuid": TWO, "minor_number": "1"}]

# Engines, as `GET /info` has them, and the version of their API.
BOOKWORM = ({"ServerVersion": "20.10.24+dfsg1"}, "1.41")
TRIXIE = ({"ServerVersion": "26.1.5+dfsg1", "CDISpecDirs": []}, "1.45")
TRIXIE_ON = ({"ServerVersion": "26.1.5+dfsg1", "CDISpecDirs": ["/etc/cdi"]}, "1.45")
SID = ({"ServerVersion": "28.5.2+dfsg4", "CDISpecDirs": ["/etc/cdi"]}, "1.51")
NEWEST = ({"ServerVersion": "29.2.1", "CDISpecDirs": ["/etc/cdi"]}, "1.53")


def listing(engine: tuple[dict[str, Any], str], *names: str) -> tuple[dict[str, Any], str]:
    devices = [{"Source": "cdi", "ID": f"nvidia.com/gpu={name}"} for name in names]
    return {**engine[0], "DiscoveredDevices": devices}, engine[1]


LISTS_BOTH, LISTS_ONE = listing(SID, ONE, TWO), listing(SID, ONE)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """One with two GPUs, its engine on it, and none of NVIDIA's programs yet."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(engines, "SEARCH_PATH", str(tmp_path / "bin"))
    monkeypatch.delenv(toolkit.SIMULATION_VARIABLE, raising=False)
    monkeypatch.setattr(cdi_files, "DRIVERS_GPUS", tmp_path / "driver")
    gpus = tuple(GPUFacts(uuid=uuid, index=n) for n, uuid in enumerate((ONE, TWO)))
    inventory = Inventory("570.133.20", "12.8", gpus)
    return Context(None, tmp_path, inventory=inventory, engine_is_here=True)


def has(machine: Context, *programs: str) -> None:
    for name in programs:
        path = machine.folder / "bin" / name
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)


def look(machine: Context, engine: tuple[dict[str, Any], str], wanted: str = "") -> list[Finding]:
    machine.engine_info, version = engine
    machine.engine = SimpleNamespace(api=SimpleNamespace(api_version=version))  # type: ignore[assignment]
    if wanted:
        machine.configuration = Configuration(
            Path("f.py"),
            "gpu",
            True,
            {"gpu_injection": wanted},
            {},
            {},
            sections={"GPUSpawner": ["gpu_injection"]},
            lines={("GPUSpawner", "gpu_injection"): 7},
        )
    return list(injection.injection(machine))


TRAIT = "c.GPUSpawner.gpu_injection (line 7)"
HOOK, CDI_HOOK = "nvidia-container-runtime-hook", "nvidia-cdi-hook"


@pytest.mark.parametrize(
    ("engine", "wanted", "programs", "state", "found", "advice"),
    [
        (BOOKWORM, "", [HOOK], "ok", "by NVIDIA's hook: Docker knows no CDI", ""),
        (TRIXIE, "", [HOOK, CDI_HOOK], "ok", "by NVIDIA's hook: Docker knows no CDI", ""),
        (TRIXIE_ON, "", [HOOK], "ok", "before 28.2 doesn't list", ""),
        (SID, "", [HOOK, CDI_HOOK], "ok", "by NVIDIA's hook: Docker lists no CDI devices", ""),
        (listing(SID, "0", "1", "all"), "", [HOOK], "ok", "by NVIDIA's hook: Docker lists no", ""),
        (LISTS_BOTH, "", [], "ok", "by CDI: Docker lists all 2", ""),
        (LISTS_BOTH, "auto", [HOOK], "ok", "by CDI: Docker lists all 2", ""),
        (LISTS_BOTH, "hook", [HOOK], "ok", f"as {TRAIT}", ""),
        (LISTS_ONE, "", [HOOK], "warning", f"doesn't list: nvidia.com/gpu={TWO}", "nvidia-ctk"),
        (LISTS_BOTH, "cdi", [], "ok", f"by CDI, as {TRAIT}", ""),
        (TRIXIE_ON, "cdi", [], "ok", "doesn't list its devices", ""),
        (TRIXIE, "cdi", [], "failure", "(line 7) is 'cdi', and this Docker knows", '"features"'),
        (BOOKWORM, "cdi", [], "failure", "this Docker knows no CDI", "25 or newer"),
        (LISTS_ONE, "cdi", [], "failure", f"no device nvidia.com/gpu={TWO}", "nvidia-ctk"),
        (listing(SID, "0"), "cdi", [], "failure", "have other names", "nvidia-ctk"),
        # Only the toolkit's base package.
        (BOOKWORM, "", [], "failure", "no device driver `nvidia`", "28.2 or newer"),
        (TRIXIE, "", [CDI_HOOK], "failure", "base package alone", '"features": {"cdi": true}'),
        (TRIXIE, "", [CDI_HOOK], "failure", "base package alone", "gpu_injection = \"cdi\""),
        (SID, "", [CDI_HOOK], "failure", "base package alone", "or by CDI: sudo nvidia-ctk"),
        (LISTS_BOTH, "hook", [CDI_HOOK], "failure", "isn't installed", "apt-get install"),
        # These take CDI by themselves.
        (NEWEST, "", [CDI_HOOK], "note", "Docker takes CDI (nvidia-cdi-hook", "nvidia-ctk cdi"),
        (NEWEST, "hook", [HOOK, CDI_HOOK], "note", "CDI or the hook, whichever", ""),
        (NEWEST, "", [HOOK], "ok", "by NVIDIA's hook", ""),
        (listing(NEWEST, ONE, TWO), "", [HOOK, CDI_HOOK], "ok", "by CDI: Docker lists all 2", ""),
    ],
)  # fmt: skip
def test_the_way_is_said_with_its_reason(
    machine: Context,
    engine: tuple[dict[str, Any], str],
    wanted: str,
    programs: list[str],
    state: str,
    found: str,
    advice: str,
) -> None:
    has(machine, *programs)
    finding = look(machine, engine, wanted)[0]
    assert (finding.state, found in finding.found) == (state, True), finding
    assert advice in finding.advice


def test_a_missing_hook_does_not_keep_doctor_from_trying(machine: Context) -> None:
    """It may be where only the engine looks for it."""
    (found,) = look(machine, TRIXIE)
    assert found.state == "failure"
    assert not found.blocks_others


def test_where_the_engines_machine_cannot_be_seen_nothing_is_missed(machine: Context) -> None:
    machine.engine_is_here = False
    (found,) = look(machine, TRIXIE)
    assert found.state == "ok"


def test_without_gpus_nothing_is_said(machine: Context) -> None:
    machine.inventory = Inventory("570.133.20", "12.8", ())
    assert look(machine, SID) == []
    machine.inventory = Inventory(None, None, ())
    assert look(machine, SID) == []


# ---- Specifications ------------------------------------------------------------------------------


def specified(machine: Context, change: Any = None, name: str = "nvidia.yaml") -> Path:
    """Write the stand-in's specification, which is this machine's, and may be changed."""
    folder = machine.folder / "cdi"
    folder.mkdir(exist_ok=True)
    state = machine.folder / "state"
    host = describe([("A100-40GB", 1), ("A100-40GB", 1)])
    host.with_gpu(0, uuid=ONE).with_gpu(1, uuid=TWO).write(state)
    said = cdi.specification(machine.folder, state.read_text())
    if change:
        change(said)
    path = folder / name
    path.write_text(json.dumps(said))
    return path


def compared(machine: Context, *folders: str, **more: Any) -> list[Finding]:
    dirs = [str(machine.folder / folder) for folder in folders or ("cdi",)]
    info, version = LISTS_BOTH
    return look(machine, ({**info, "CDISpecDirs": dirs, **more}, version))[1:]


def common_node(said: dict[str, Any], **fields: Any) -> None:
    said["containerEdits"]["deviceNodes"][1] |= fields


def test_a_specification_of_this_machine_is_fine(machine: Context) -> None:
    path = specified(machine)
    (found,) = compared(machine)
    assert found == Finding("ok", f"the devices in {path} are this machine's")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda said: common_node(said, major=511, minor=0),
            "/dev/null has the numbers 1:3 here, and 511:0 there",
        ),
        (
            lambda said: common_node(said, hostPath="/dev/nvidia-gone"),
            "/dev/nvidia-gone isn't there",
        ),
        (
            lambda said: said["containerEdits"].update(
                mounts=[{"hostPath": "/lib/libcuda.so.1.2.3", "containerPath": "/lib/libcuda.so"}]
            ),
            "it mounts /lib/libcuda.so.1.2.3, which isn't there",
        ),
        (
            lambda said: said["devices"][0]["containerEdits"]["deviceNodes"][0].update(
                path="/dev/nvidia1"
            ),
            f"{ONE} is /dev/nvidia1 there, which is another GPU: it is /dev/nvidia0",
        ),
    ],
)
def test_a_specification_that_is_out_of_date_is_told(
    machine: Context, change: Any, words: str
) -> None:
    for each in GPUS:
        folder = machine.folder / "driver" / f"0000:0{each['minor_number']}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text(
            f"Model: \t\t NVIDIA A100\nGPU UUID: \t {each['uuid']}\n"
            f"Device Minor: \t {each['minor_number']}\n"
        )
    specified(machine)
    assert [each.state for each in compared(machine)] == ["ok"]
    path = specified(machine, change)
    (found,) = compared(machine)
    assert found.state == "failure"
    assert not found.blocks_others
    assert words in found.found
    assert found.advice == f"sudo nvidia-ctk cdi generate --output={path}"


def test_what_nobody_uses_may_be_out_of_date(machine: Context) -> None:
    has(machine, HOOK, CDI_HOOK)
    specified(machine, lambda said: common_node(said, major=511, minor=0))
    older = ({**SID[0], "CDISpecDirs": [str(machine.folder / "cdi")]}, SID[1])
    assert [each.state for each in look(machine, older)] == ["ok"]
    # This one may take it for the hook's requests.
    newer = ({**NEWEST[0], "CDISpecDirs": [str(machine.folder / "cdi")]}, NEWEST[1])
    assert [each.state for each in look(machine, newer)] == ["note", "warning"]


def test_a_later_folder_goes_before_an_earlier_one(machine: Context) -> None:
    old = specified(machine, lambda said: common_node(said, major=511, minor=0))
    later = machine.folder / "later"
    later.mkdir()
    new = specified(machine, name="other.json")
    new.rename(later / "nvidia.json")
    assert compared(machine, "later", "cdi")[0].found.startswith(str(old))
    assert [each.state for each in compared(machine, "cdi", "later")] == ["ok"]
    assert compared(machine, "cdi", "nowhere", "later")[0].state == "ok"


def test_a_device_of_two_files_is_nobodys(machine: Context) -> None:
    first, second = specified(machine), specified(machine, name="z.json")
    found = compared(machine)
    assert any(
        each.state == "warning" and f"is in {first} and in {second}" in each.found for each in found
    )


def of_ours(edits: Any) -> str:
    devices = [{"name": ONE, "containerEdits": edits}]
    return json.dumps({"kind": "nvidia.com/gpu", "devices": devices})


@pytest.mark.parametrize(
    "text",
    ["", "kind: [", "[]", "{}", '"x"', "1", '{"kind": "nvidia.com/gpu", "devices": 1}',
     '{"kind": "nvidia.com/gpu", "devices": [{}]}', "[" * 5000,
     of_ours(7), of_ours({"deviceNodes": 1}), of_ours({"deviceNodes": [{}], "mounts": 1}),
     '{"kind": "example.com/nic", "devices": [{"name": "0"}]}'],
)  # fmt: skip
def test_a_file_that_is_no_specification_breaks_nothing(machine: Context, text: str) -> None:
    specified(machine)
    (machine.folder / "cdi" / "z.yaml").write_text(text)
    found = compared(machine)
    assert found
    assert {each.state for each in found} <= {"ok", "note", "warning"}


def test_a_specification_that_may_not_be_read_is_a_note(machine: Context) -> None:
    path = specified(machine)
    path.unlink()
    path.symlink_to(path)  # whoever runs this, root too, can't open it
    (found,) = compared(machine)
    assert found.state == "note"
    assert f"{path} can't be read" in found.found


def test_numbers_are_those_of_the_device_files() -> None:
    """The stand-in's specification has those of this machine's /dev/null."""
    there = Path(cdi.HOST_PATH).stat()
    assert stat.S_ISCHR(there.st_mode)
    assert (os.major(there.st_rdev), os.minor(there.st_rdev)) == (cdi.MAJOR, cdi.MINOR)
