"""MIG instances in the inventory: gaps, both forms of UUID, and sets that change meanwhile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpuspawner.gpus.state import MIGInstance
from gpuspawner.simulation.library import build
from gpuspawner.simulation.mig import layout, partition, with_process, without_instance
from gpuspawner.simulation.state import State, describe

from ..support.nvml import Program, compile_variant

WHOLE = describe([("A100-40GB", 2), ("A30", 1), ("H100", 1)])
HOST = partition(WHOLE, 0, layout("3g.20gb, 2g.10gb, 1g.5gb x2"))
PARENT = HOST.gpu(0)
UUIDS = [each.uuid for each in PARENT.instances]
UNPRIVILEGED = replace(HOST, privileged=False)


def instances(program: Program, state: State, gpu: int = 0) -> tuple[MIGInstance, ...]:
    found: tuple[MIGInstance, ...] = program.read(state).gpus[gpu].instances
    return found


def test_each_instance_with_its_place_its_size_and_its_use(program: Program) -> None:
    state = with_process(HOST, 0, 1, 41, 300)
    gpus = program.read(state).gpus
    assert gpus[0].state == "mig"
    assert [each.uuid for each in gpus[0].instances] == UUIDS
    assert gpus[0].instances[1] == MIGInstance(
        uuid=UUIDS[1],
        parent_uuid=PARENT.uuid,
        gi=3,
        ci=0,
        profile="2g.10gb",
        memory_total_mib=9984,
        memory_used_mib=300,
        processes=1,
        slices=2,
        of_slices=7,
    )
    assert [each.processes for each in gpus[0].instances] == [0, 1, 0, 0]
    assert [(gpu.state, gpu.instances) for gpu in gpus[1:]] == [("ok", ())] * 3


@pytest.mark.parametrize(
    ("gpu", "text", "shares"),
    [
        (0, "1g.5gb x7", [("1g.5gb", 1, 7)] * 7),
        (0, "4g.20gb, 3g.20gb", [("4g.20gb", 4, 7), ("3g.20gb", 3, 7)]),
        (0, "1c.3g.20gb x2, 1g.5gb+me", [("1c.3g.20gb", 1, 7)] * 2 + [("1g.5gb+me", 1, 7)]),
        (2, "2g.12gb, 1g.6gb x2", [("2g.12gb", 2, 4), ("1g.6gb", 1, 4), ("1g.6gb", 1, 4)]),
        (3, "7g.80gb", [("7g.80gb", 7, 7)]),
        (0, "none", []),
    ],
)
def test_its_part_of_the_gpu(
    program: Program, gpu: int, text: str, shares: list[tuple[str, int, int]]
) -> None:
    found = instances(program, partition(WHOLE, gpu, layout(text)), gpu)
    assert [(each.profile, each.slices, each.of_slices) for each in found] == shares


@pytest.mark.parametrize("gap", ["not_found", "invalid_argument"])
def test_gaps_between_the_indexes(program: Program, gap: str) -> None:
    state = without_instance(without_instance(HOST, 0, 0), 0, 2)
    found = instances(program, replace(state, mig_gap=gap))
    assert [each.uuid for each in found] == [UUIDS[1], UUIDS[3]]


def test_uuids_of_an_old_driver(nvml_cache: Path, tmp_path: Path) -> None:
    missing = ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetMemoryInfo_v2")
    old = build(nvml_cache, missing)
    state = partition(describe([("A100-40GB", 1)], "460.32.03"), 0, layout("3g.20gb, 1g.5gb"))
    with Program(old.directory, tmp_path / "state") as program:
        found = instances(program, state)
    parent = state.gpu(0).uuid
    assert [each.uuid for each in found] == [f"MIG-{parent}/2/0", f"MIG-{parent}/7/0"]
    assert [(each.gi, each.ci, each.processes) for each in found] == [(2, 0, 0), (7, 0, 0)]
    assert [each.memory_used_mib for each in found] == [0, 0]


def test_a_changed_set_is_seen_by_the_next_read(program: Program) -> None:
    assert instances(program, WHOLE) == ()
    assert len(instances(program, HOST)) == 4
    fewer = without_instance(HOST, 0, 1)
    assert [each.uuid for each in instances(program, fewer)] == [UUIDS[0], *UUIDS[2:]]
    made_anew = partition(HOST, 0, layout("3g.20gb, 1g.10gb, 1g.5gb x2"))
    found = instances(program, made_anew)
    assert [each.profile for each in found] == ["3g.20gb", "1g.10gb", "1g.5gb", "1g.5gb"]
    assert found[1].uuid not in UUIDS
    assert instances(program, partition(HOST, 0, [])) == ()
    assert program.read(WHOLE).gpus[0].state == "ok"


def test_nvml_is_let_go_of_so_that_the_mode_can_be_changed(program: Program) -> None:
    held = "from gpuspawner.gpus import nvml; result = nvml._is_initialised"
    assert program.read(WHOLE)
    assert program.run(held)
    for state in (HOST, partition(WHOLE, 0, []), WHOLE.with_gpu(1, mig_pending=True)):
        program.read(state)
        assert not program.run(held)


def test_a_parent_that_refuses_to_tell_the_use_of_all(program: Program) -> None:
    gpu = program.read(UNPRIVILEGED).gpus[0]
    assert (gpu.state, gpu.memory_used_mib, gpu.processes) == ("mig", None, None)
    assert [each.memory_used_mib for each in gpu.instances] == [0] * 4
    assert [each.processes for each in gpu.instances] == [0] * 4


REFUSALS: list[tuple[str, int, dict[str, Any]]] = [
    ("nvmlDeviceGetName", 999, {"profile": "2g.10gb", "slices": 2}),
    ("nvmlDeviceGetAttributes_v2", 999, {"profile": "2g.10gb", "slices": 2}),
    ("nvmlDeviceGetMemoryInfo_v2", 999, {"memory_used_mib": None, "memory_total_mib": 9984}),
    ("nvmlDeviceGetMemoryInfo_v2", 4, {"memory_used_mib": None, "processes": 0}),
    ("nvmlDeviceGetComputeRunningProcesses_v3", 999, {"processes": None, "memory_used_mib": 0}),
    ("nvmlDeviceGetComputeRunningProcesses_v3", 4, {"processes": None}),
    ("nvmlDeviceGetGpuInstanceId", 3, {"gi": None, "ci": 0}),
    ("nvmlDeviceGetComputeInstanceId", 999, {"gi": 3, "ci": None}),
]


@pytest.mark.parametrize(("function", "code", "expected"), REFUSALS)
def test_what_an_instance_does_not_tell_is_unknown(
    program: Program, function: str, code: int, expected: dict[str, Any]
) -> None:
    gpu = program.read(HOST.with_gpu(0, function_faults=((function, code),))).gpus[0]
    assert gpu.state == "mig"
    second = gpu.instances[1]
    assert {key: getattr(second, key) for key in expected} == expected
    assert (second.uuid, second.of_slices) == (UUIDS[1], 7)


def test_neither_name_nor_attributes_count_as_the_whole_gpu(program: Program) -> None:
    faults = (("nvmlDeviceGetName", 999), ("nvmlDeviceGetAttributes_v2", 3))
    (_, second, *_) = instances(program, HOST.with_gpu(0, function_faults=faults))
    assert (second.profile, second.slices, second.of_slices) == ("", 7, 7)


@pytest.mark.parametrize(
    "function",
    [
        "nvmlDeviceGetMaxMigDeviceCount",
        "nvmlDeviceGetMigDeviceHandleByIndex",
    ],
)
def test_a_gpu_whose_instances_can_not_be_listed_has_none_to_give(
    program: Program, function: str
) -> None:
    for code in (2, 3, 4, 6, 13, 999):
        gpu = program.read(HOST.with_gpu(0, function_faults=((function, code),))).gpus[0]
        assert gpu.instances == ()
        assert gpu.state in ("mig", "unknown")


def test_a_gpu_that_is_lost_while_its_instances_are_read(program: Program) -> None:
    faults = (("nvmlDeviceGetAttributes_v2", 15),)
    gpu = program.read(HOST.with_gpu(0, function_faults=faults)).gpus[0]
    assert (gpu.state, gpu.instances) == ("unhealthy", ())


MIG_ONLY = "if (((const char *)d)[0] == 'M' && ((const char *)d)[4] == '%s') "
VARIANTS = [
    (
        "destroyed between two queries",
        "nvmlDeviceGetUUID",
        "static int calls; nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t d, char *u, unsigned n)"
        "{ " + MIG_ONLY + "if (++calls > 1) return NVML_ERROR_INVALID_ARGUMENT;"
        " return original_nvmlDeviceGetUUID(d, u, n); }",
    ),
    (
        "a handle that became another instance's",
        "nvmlDeviceGetUUID",
        "static int calls; nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t d, char *u, unsigned n)"
        "{ nvmlReturn_t c = original_nvmlDeviceGetUUID(d, u, n);"
        + MIG_ONLY
        + "if (++calls > 1) u[5] = u[5] == 'e' ? 'f' : 'e'; return c; }",
    ),
    (
        "a UUID that is none",
        "nvmlDeviceGetUUID",
        "nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t d, char *u, unsigned n)"
        "{ nvmlReturn_t c = original_nvmlDeviceGetUUID(d, u, n);"
        + MIG_ONLY
        + "u[9] = 0; return c; }",
    ),
]


@pytest.mark.parametrize(
    ("function", "definition"), [each[1:] for each in VARIANTS], ids=[each[0] for each in VARIANTS]
)
def test_an_instance_that_is_not_what_it_was_is_not_listed(
    tmp_path: Path, function: str, definition: str
) -> None:
    text = definition.replace("%s", UUIDS[1][4])
    assert [uuid[4] for uuid in UUIDS].count(UUIDS[1][4]) == 1
    directory = compile_variant(tmp_path, function, text)
    with Program(directory, tmp_path / "state") as program:
        gpu = program.read(HOST).gpus[0]
    assert gpu.state == "mig"
    assert [each.uuid for each in gpu.instances] == [UUIDS[0], *UUIDS[2:]]


def test_a_number_of_instances_that_can_not_be_is_none(tmp_path: Path) -> None:
    definition = (
        "nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t d, unsigned *n)"
        "{ (void)d; *n = 4000000000u; return NVML_SUCCESS; }"
    )
    directory = compile_variant(tmp_path, "nvmlDeviceGetMaxMigDeviceCount", definition)
    with Program(directory, tmp_path / "state") as program:
        assert program.read(HOST).gpus[0].instances == ()
