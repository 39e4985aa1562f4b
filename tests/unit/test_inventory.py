"""The inventory over a simulated NVML, through the real nvidia-ml-py."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from gpuspawner.gpus.nvml import InventoryError
from gpuspawner.simulation.state import describe

from ..support.nvml import Program

HOST = describe([("A100-40GB", 2), ("T4", 1)])
UNKNOWN = 999
# Without privileges, a GPU in MIG mode answers these with "no permission".
# ref: https://github.com/NVIDIA/nvidia-container-toolkit/issues/842
SAID_TO_THE_HOST_ONLY = (
    "nvmlDeviceGetMemoryInfo_v2",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetUtilizationRates",
)
COMPUTE_PROCESSES = "nvmlDeviceGetComputeRunningProcesses_v3"


def test_a_healthy_idle_host(program: Program) -> None:
    inventory = program.read(HOST)
    assert (inventory.driver, inventory.cuda) == ("570.133.20", "12.8")
    assert [gpu.uuid for gpu in inventory.gpus] == [gpu.uuid for gpu in HOST.gpus]
    first = inventory.gpus[0]
    assert (first.index, first.name) == (0, "NVIDIA A100-SXM4-40GB")
    assert (first.memory_total_mib, first.memory_used_mib) == (40960, 0)
    assert (first.utilization_percent, first.processes) == (0, 0)
    assert (first.mig, first.compute_mode, first.compute_capability) == (False, "default", (8, 0))
    assert (first.state, first.reason, first.warning, first.in_use) == ("ok", "", "", False)
    assert inventory.gpus[2].mig is None  # a T4 doesn't know MIG, which is no sickness
    assert {gpu.state for gpu in inventory.gpus} == {"ok"}


@dataclass
class Scenario:
    """What happens to the first GPU, and what is then said of it."""

    name: str
    changes: dict[str, Any]
    expected: dict[str, Any]
    reason: str = ""  # a part of it
    warning: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)


IN_USE = {"state": "ok", "in_use": True}
AT_REST = {"state": "ok", "in_use": False}
SCENARIOS = [
    Scenario(
        "a process computes", {"processes": ((41, 4),)}, {**IN_USE, "processes": 1}, "process"
    ),
    Scenario(
        "three processes compute",
        {"processes": ((41, 4), (42, 4), (43, 4)), "utilization_percent": 97},
        {**IN_USE, "processes": 3, "utilization_percent": 97, "memory_used_mib": 12},
        "3 processes",
    ),
    Scenario(
        "a desktop draws on it",
        {"graphics_processes": ((7, 300),)},
        {**AT_REST, "processes": 0, "memory_used_mib": 300},
    ),
    Scenario("memory at the threshold", {"memory_used_mib": 1024}, AT_REST),
    Scenario("memory above the threshold", {"memory_used_mib": 1025}, IN_USE, "1025 MiB"),
    Scenario(
        "2 % of a large memory is more than 1 GiB",
        {"memory_total_mib": 183359, "memory_used_mib": 3667},
        AT_REST,
    ),
    Scenario(
        "more than 2 % of a large memory",
        {"memory_total_mib": 183359, "memory_used_mib": 3668},
        IN_USE,
        "3668 MiB",
    ),
    Scenario(
        "the administrator's threshold is lower",
        {"memory_used_mib": 101},
        IN_USE,
        "101 MiB",
        arguments={"memory_threshold_mib": 100},
    ),
    Scenario(
        "the administrator's threshold is higher",
        {"memory_used_mib": 9000},
        AT_REST,
        arguments={"memory_threshold_mib": 9000},
    ),
    Scenario("fully busy without a process", {"utilization_percent": 100}, AT_REST),
    Scenario("in MIG mode", {"mig": True}, {"state": "mig", "mig": True}, "MIG mode"),
    Scenario(
        "in MIG mode, and in a container",
        {"mig": True, "function_faults": tuple((name, 4) for name in SAID_TO_THE_HOST_ONLY)},
        {"state": "mig", "mig": True, "memory_used_mib": None, "processes": None},
        "MIG mode",
    ),
    Scenario(
        "it enters MIG mode at its next reset",
        {"mig_pending": True},
        {"state": "excluded", "mig": False, "mig_pending": True},
        "enters MIG mode",
    ),
    Scenario(
        "it leaves MIG mode at its next reset",
        {"mig": True, "mig_pending": False},
        {"state": "excluded", "mig": True, "mig_pending": False},
        "leaves MIG mode",
    ),
    Scenario(
        "compute mode prohibited",
        {"compute_mode": "prohibited"},
        {"state": "excluded", "compute_mode": "prohibited"},
        "prohibited",
    ),
    Scenario(
        "compute mode exclusive process",
        {"compute_mode": "exclusive_process"},
        {**AT_REST, "compute_mode": "exclusive_process"},
    ),
    Scenario(
        "kept out by the administrator",
        {},
        {"state": "excluded"},
        "GPUSpawner.excluded_gpus",
        arguments={"excluded": [HOST.gpus[0].uuid.upper().replace("GPU", "gpu")]},
    ),
    Scenario(
        "kept out because it is broken",
        {"fault": "reset_required"},
        {"state": "excluded"},
        "GPUSpawner.excluded_gpus",
        arguments={"excluded": [HOST.gpus[0].uuid]},
    ),
    Scenario(
        "fallen off the bus", {"fault": "lost"}, {"state": "unhealthy", "uuid": None}, "off the bus"
    ),
    Scenario(
        "needs a reset",
        {"fault": "reset_required"},
        {"state": "unhealthy", "uuid": HOST.gpus[0].uuid, "memory_used_mib": None},
        "reset",
    ),
    Scenario(
        "row remapping failed", {"remap_failed": True}, {"state": "unhealthy"}, "can't be repaired"
    ),
    Scenario("row remapping waits", {"remap_pending": True}, AT_REST, warning="reset or reboot"),
    Scenario(
        "page retirement waits",
        {"retired_pages_pending": True},
        AT_REST,
        warning="reset or reboot",
    ),
    Scenario(
        "lost while it is asked",
        {"function_faults": (("nvmlDeviceGetUtilizationRates", 15),)},
        {"state": "unhealthy", "uuid": HOST.gpus[0].uuid},
        "off the bus",
    ),
    Scenario(
        "no permission for its handle",
        {"function_faults": (("nvmlDeviceGetHandleByIndex_v2", 4),)},
        {"state": "unknown", "uuid": None},
        "Insufficient Permissions",
    ),
    Scenario(
        "memory can't be read",
        {"function_faults": (("nvmlDeviceGetMemoryInfo_v2", UNKNOWN),)},
        {"state": "unknown", "memory_used_mib": None},
        "Unknown Error",
    ),
    Scenario(
        "processes can't be read",
        {"function_faults": ((COMPUTE_PROCESSES, UNKNOWN),)},
        {"state": "unknown", "processes": None},
        "Unknown Error",
    ),
    Scenario(
        "MIG mode can't be read",
        {"function_faults": (("nvmlDeviceGetMigMode", UNKNOWN),)},
        {"state": "unknown", "mig": None},
        "Unknown Error",
    ),
    Scenario(
        "compute mode can't be read",
        {"function_faults": (("nvmlDeviceGetComputeMode", UNKNOWN),)},
        {"state": "unknown", "compute_mode": None},
        "Unknown Error",
    ),
    Scenario(
        "the UUID can't be read",
        {"function_faults": (("nvmlDeviceGetUUID", UNKNOWN),)},
        {"state": "unknown", "uuid": None},
        "Unknown Error",
    ),
    Scenario(
        "a code that NVML doesn't have",
        {"function_faults": (("nvmlDeviceGetMemoryInfo_v2", 777),)},
        {"state": "unknown"},
        "can't tell its state",
    ),
    Scenario(
        "neither memory nor processes supported",
        {"memory_total_mib": None, "function_faults": ((COMPUTE_PROCESSES, 3),)},
        {"state": "unknown", "processes": None, "memory_used_mib": None},
        "whether it is in use",
    ),
    Scenario(
        "processes not supported",
        {"function_faults": ((COMPUTE_PROCESSES, 3),)},
        {**AT_REST, "processes": None},
        warning="memory alone",
    ),
    Scenario(
        "processes not supported, memory in use",
        {"memory_used_mib": 5000, "function_faults": ((COMPUTE_PROCESSES, 3),)},
        {**IN_USE, "processes": None},
        "5000 MiB",
        warning="memory alone",
    ),
    Scenario(
        "memory shared with the host, so not supported",
        {"memory_total_mib": None, "memory_reserved_mib": 0},
        {**AT_REST, "memory_total_mib": None, "memory_used_mib": None, "processes": 0},
    ),
    Scenario(
        "memory not supported, a process computes",
        {"memory_total_mib": None, "memory_reserved_mib": 0, "processes": ((41, 0),)},
        {**IN_USE, "processes": 1},
        "process",
    ),
    Scenario(
        "utilization not supported",
        {"utilization_percent": None},
        {**AT_REST, "utilization_percent": None},
    ),
    Scenario(
        "utilization can't be read",
        {"function_faults": (("nvmlDeviceGetUtilizationRates", UNKNOWN),)},
        {**AT_REST, "utilization_percent": None},
    ),
    Scenario(
        "the name can't be read",
        {"function_faults": (("nvmlDeviceGetName", UNKNOWN),)},
        {**AT_REST, "name": "unknown GPU"},
    ),
    Scenario(
        "the memory's health can't be read",
        {"function_faults": (("nvmlDeviceGetRemappedRows", UNKNOWN),)},
        AT_REST,
        warning="health can't be read",
    ),
    Scenario(
        "a name that isn't UTF-8",
        {"name": "NVIDIA \udcff\udcfe A100"},
        {**AT_REST, "name": "NVIDIA \ufffd\ufffd A100"},
    ),
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_one_gpu(program: Program, scenario: Scenario) -> None:
    state = HOST.with_gpu(0, **{"memory_reserved_mib": 0, **scenario.changes})
    program.run("from gpuspawner.gpus import nvml; nvml.close()")
    inventory = program.read(state, **scenario.arguments)
    gpu = inventory.gpus[0]
    assert {key: getattr(gpu, key) for key in scenario.expected} == scenario.expected
    for part, sentence in ((scenario.reason, gpu.reason), (scenario.warning, gpu.warning)):
        assert part in sentence
        assert bool(part) == bool(sentence)
        assert not sentence or re.fullmatch(r"[A-Z0-9].*\.", sentence)
    others = [(other.state, other.in_use, other.reason) for other in inventory.gpus[1:]]
    assert others == [("ok", False, "")] * 2, "one GPU's trouble is its own"


@pytest.mark.parametrize("fault", ["lost", "unreachable"])
def test_a_gpu_without_a_handle_is_still_the_one_that_it_was(program: Program, fault: str) -> None:
    uuids = [gpu.uuid for gpu in program.read(HOST).gpus]
    for _ in range(2):
        gone = program.read(HOST.with_gpu(1, fault=fault)).gpus
        assert [gpu.uuid for gpu in gone] == uuids
        assert [gpu.state == "ok" for gpu in gone] == [True, False, True]
    excluded = program.read(HOST.with_gpu(1, fault=fault), excluded=[uuids[1]])
    assert excluded.gpus[1].state == "excluded"
    # Where another is at its place, or one less is there, nobody can tell.
    moved = replace(HOST, gpus=(HOST.gpus[1], HOST.gpus[0], HOST.gpus[2]))
    assert program.read(moved.with_gpu(0, fault=fault)).gpus[0].uuid is None
    fewer = replace(HOST, gpus=HOST.gpus[:2])
    assert program.read(fewer.with_gpu(1, fault=fault)).gpus[1].uuid is None
    program.run("from gpuspawner.gpus import nvml; nvml.close()")
    assert program.read(HOST.with_gpu(1, fault=fault)).gpus[1].uuid is None


def test_every_needed_question_that_fails_makes_a_gpu_unknown(program: Program) -> None:
    """Whatever fails with whatever code, a GPU with a process on it never looks at rest."""
    functions = program.run(
        "import pynvml, re, inspect; from gpuspawner.gpus import nvml, nvml_queries;"
        "result = sorted(set(re.findall(r'pynvml\\.(nvmlDevice\\w+)',"
        " inspect.getsource(nvml) + inspect.getsource(nvml_queries))))"
    )
    assert {"nvmlDeviceGetMigMode", "nvmlDeviceGetMemoryInfo"} <= set(functions)
    symbols = {"nvmlDeviceGetHandleByIndex": "nvmlDeviceGetHandleByIndex_v2"}
    busy = HOST.with_gpu(0, processes=((41, 2000),))
    for function in [*functions, "nvmlDeviceGetMemoryInfo_v2"]:
        for code in (1, 2, 3, 4, 6, 7, 10, 13, 15, 16, 17, 20, 25, UNKNOWN):
            faults = ((symbols.get(function, function), code),)
            try:
                gpu = program.read(busy.with_gpu(0, function_faults=faults)).gpus[0]
            except InventoryError:
                continue  # "uninitialized" is of NVML as a whole
            assert gpu.in_use or gpu.state in ("unknown", "unhealthy"), (function, code)
