"""The inventory over NVML libraries gone wrong: what makes no sense is never a free GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from gpuspawner.gpus.nvml import InventoryError
from gpuspawner.simulation.state import describe

from ..support.nvml import Program, compile_variant

HOST = describe([("A100-40GB", 2), ("T4", 1)])


@dataclass
class Oddity:
    """A library with one function that lies, and what is then said of the first GPU."""

    name: str
    function: str
    definition: str
    state: str
    reason: str = ""


ODDITIES = [
    Oddity(
        "a UUID that is none",
        "nvmlDeviceGetUUID",
        "nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t d, char *u, unsigned int n)"
        "{ (void)d; (void)n; u[0] = '7'; u[1] = 0; return NVML_SUCCESS; }",
        "unknown",
        "'7'",
    ),
    Oddity(
        "a UUID that isn't UTF-8",
        "nvmlDeviceGetUUID",
        "nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t d, char *u, unsigned int n)"
        "{ (void)d; (void)n; u[0] = (char)0xff; u[1] = 0; return NVML_SUCCESS; }",
        "unknown",
        "UUID",
    ),
    Oddity(
        "success and nothing written",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t d, nvmlMemory_v2_t *m)"
        "{ (void)d; (void)m; return NVML_SUCCESS; }",
        "unknown",
        "0 of 0 bytes",
    ),
    Oddity(
        "more memory used than there is",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t d, nvmlMemory_v2_t *m)"
        "{ (void)d; m->total = 1; m->used = 2; return NVML_SUCCESS; }",
        "unknown",
        "2 of 1 bytes",
    ),
    Oddity(
        "always too little room for the processes",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t d, unsigned int *n,"
        " nvmlProcessInfo_t *i) { (void)d; (void)i; *n += 9; return 7; }",
        "unknown",
        "Insufficient Size",
    ),
    Oddity(
        "four thousand million processes",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t d, unsigned int *n,"
        " nvmlProcessInfo_t *i) { (void)d; *n = 4000000000u; return i ? 0 : 7; }",
        "unknown",
        "Insufficient Size",
    ),
    Oddity(
        "utilization of 250 %",
        "nvmlDeviceGetUtilizationRates",
        "nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t d, nvmlUtilization_t *u)"
        "{ (void)d; u->gpu = 250; return NVML_SUCCESS; }",
        "ok",
    ),
    Oddity(
        "a handle that is none",
        "nvmlDeviceGetHandleByIndex_v2",
        "nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int i, nvmlDevice_t *d)"
        "{ (void)i; *d = 0; return NVML_SUCCESS; }",
        "unknown",
        "Invalid Argument",
    ),
    Oddity(
        "two GPUs of one UUID",
        "nvmlDeviceGetHandleByIndex_v2",
        "nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int i, nvmlDevice_t *d)"
        "{ return original_nvmlDeviceGetHandleByIndex_v2(i == 2 ? 2 : 0, d); }",
        "unknown",
        "same UUID",
    ),
    Oddity(
        "a count larger than the handles",
        "nvmlDeviceGetCount_v2",
        "nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *n) { *n = 9; return NVML_SUCCESS; }",
        "ok",
    ),
    Oddity(
        "a code without words",
        "nvmlDeviceGetComputeMode",
        "nvmlReturn_t nvmlDeviceGetComputeMode(nvmlDevice_t d, nvmlComputeMode_t *m)"
        "{ (void)d; (void)m; return (nvmlReturn_t)-5; }",
        "unknown",
        "NVML can't tell its state",
    ),
    Oddity(
        "words that aren't UTF-8",
        "nvmlErrorString",
        'const char *nvmlErrorString(nvmlReturn_t r) { (void)r; return "\\xff\\xfe"; }',
        "ok",
    ),
]


@pytest.mark.parametrize("oddity", ODDITIES, ids=lambda oddity: oddity.name)
def test_a_library_gone_wrong(tmp_path: Path, oddity: Oddity) -> None:
    directory = compile_variant(tmp_path, oddity.function, oddity.definition)
    with Program(directory, tmp_path / "state") as program:
        inventory = program.read(HOST.with_gpu(1, function_faults=(("nvmlDeviceGetUUID", 777),)))
    first = inventory.gpus[0]
    assert first.state == oddity.state
    assert oddity.reason in first.reason
    assert bool(oddity.reason) == bool(first.reason)
    assert (first.utilization_percent or 0) <= 100
    # The second GPU fails its UUID, and those beyond the count have no handle.
    assert all(gpu.state == "unknown" for gpu in (inventory.gpus[1], *inventory.gpus[3:]))
    named = [gpu.uuid for gpu in inventory.gpus if gpu.uuid]
    assert len(named) == len(set(named))


@pytest.mark.parametrize(
    ("function", "definition", "part"),
    [
        (
            "nvmlDeviceGetCount_v2",
            "nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *n) { *n = 1000000; return 0; }",
            "1000000 GPUs",
        ),
        (
            "nvmlSystemGetDriverVersion",
            "nvmlReturn_t nvmlSystemGetDriverVersion(char *v, unsigned int n)"
            "{ (void)n; v[0] = (char)0xff; v[1] = 0; return 0; }",
            "driver's version",
        ),
        (
            "nvmlInitWithFlags",
            "nvmlReturn_t nvmlInitWithFlags(unsigned int f) { (void)f; return 12345; }",
            "NVML fails",
        ),
    ],
)
def test_a_library_whose_host_answers_make_no_sense(
    tmp_path: Path, function: str, definition: str, part: str
) -> None:
    directory = compile_variant(tmp_path, function, definition)
    with (
        Program(directory, tmp_path / "state") as program,
        pytest.raises(InventoryError, match=part),
    ):
        program.read(HOST)
