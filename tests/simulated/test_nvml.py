"""The simulated NVML, seen through unmodified programs: nvidia-ml-py, nvitop and gpustat."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest

from gpuspawner.simulation.library import LIBRARY_SOURCES, PROGRAM_SOURCES, Binaries, build
from gpuspawner.simulation.models import NOT_BEFORE_DRIVER_510
from gpuspawner.simulation.state import State, describe

from ..support.nvml import SOURCES, Program

MIB = 1024 * 1024
HOST = describe([("A100-40GB", 2), ("RTX-4090", 1)]).with_gpu(
    0,
    processes=((4001, 3000), (4002, 1000)),
    graphics_processes=((7, 12),),
    utilization_percent=64,
    memory_used_mib=4100,
)


@pytest.fixture(scope="module")
def notebook(binaries: Binaries, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A process with nvidia-ml-py that lives through these tests, NVML initialised."""
    state_path = tmp_path_factory.mktemp("notebook") / "state"
    with Program(binaries.directory, state_path) as program:
        program.run("from pynvml import *; import pynvml; nvmlInit()", HOST)
        yield program


def ask(notebook: Program, expression: str, state: State = HOST, gpu: int = 0) -> object:
    """The value of an expression in which `gpu` is a handle, got before `state` is written."""
    notebook.run(f"gpu = nvmlDeviceGetHandleByIndex({gpu})", HOST)
    return notebook.run(f"result = {expression}", state)


def error_code(notebook: Program, expression: str, state: State = HOST, gpu: int = 0) -> int:
    """The code that the expression fails with; 0 if it doesn't fail."""
    text = f"try:\n    {expression}\n    result = 0\nexcept NVMLError as e:\n    result = e.value"
    notebook.run(f"gpu = nvmlDeviceGetHandleByIndex({gpu})", HOST)
    return int(notebook.run(text, state))


# The binary interface ---------------------------------------------------------------------------


def nvml_h() -> Path:
    files = importlib.metadata.files("nvidia-nvml-dev-cu12") or []
    return Path(next(file for file in files if file.name == "nvml.h").locate())


def compile_c(source: str | Path, *flags: str) -> subprocess.CompletedProcess[str]:
    text = source.read_text() if isinstance(source, Path) else source
    return subprocess.run(
        ["cc", "-fsyntax-only", "-xc", f"-I{SOURCES}", f"-I{nvml_h().parent}", *flags, "-"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", [*LIBRARY_SOURCES, *PROGRAM_SOURCES])
def test_the_sources_compile_without_a_warning(name: str) -> None:
    done = compile_c(SOURCES / name, "-Wall", "-Wextra", "-Werror", "-O2")
    assert (done.returncode, done.stderr) == (0, "")


REAL_HEADER = ("-DNVML_NO_UNVERSIONED_FUNC_DEFS", "-DGPUSPAWNER_NVML_H=<nvml.h>", "-Werror")


@pytest.mark.parametrize("name", LIBRARY_SOURCES)
def test_every_function_has_the_prototype_of_the_real_header(name: str) -> None:
    done = compile_c(SOURCES / name, *REAL_HEADER)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_prototype_does_not_compile() -> None:
    right, wrong = "int *major, int *minor", "int *major, long *minor"
    source = (SOURCES / "nvml_gpu.c").read_text()
    assert right in source
    assert compile_c(source.replace(right, wrong), *REAL_HEADER).returncode != 0


def layout_checks(header: str) -> str:
    """C that compares each struct and constant of our header with the real one's."""
    lines = ["#include <stddef.h>", "#define NVML_NO_UNVERSIONED_FUNC_DEFS", "#include <nvml.h>"]
    lines += ["#define ABI(name) ours_##name", header]
    compared = 0
    for fields, name in re.findall(
        r"typedef (?:struct|union) \{(.*?)\} ABI\((\w+)\);", header, re.S
    ):
        lines.append(f'_Static_assert(sizeof(ours_{name}) == sizeof({name}), "{name}");')
        for declaration in fields.split(";")[:-1]:
            for member in declaration.split(","):
                found = re.search(r"(\w+)(\[\d+\])?\s*$", member)
                assert found, member
                where = f"{name}, {found[1]}"
                lines.append(
                    f'_Static_assert(offsetof(ours_{where}) == offsetof({where}), "{where}");'
                )
                mine, theirs = (f"sizeof(((({p}{name} *)0)->{found[1]}))" for p in ("ours_", ""))
                lines.append(f'_Static_assert({mine} == {theirs}, "size of {where}");')
                compared += 1
    for constant in re.findall(r"ABI\((NVML_\w+)\) = ", header):
        equal = f"(int)ours_{constant} == (int){constant}"
        lines.append(f'_Static_assert({equal}, "{constant}");')
        compared += 1
    assert compared > 60
    return "\n".join(lines)


def test_every_struct_and_constant_is_laid_out_as_in_the_real_header() -> None:
    header = (SOURCES / "nvml_abi.h").read_text()
    done = compile_c(layout_checks(header), "-Werror")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("total, reserved, free, used", "total, free, reserved, used"),
        ("char busIdLegacy[16]", "char busIdLegacy[17]"),
        ("ABI(NVML_ERROR_GPU_IS_LOST) = 15", "ABI(NVML_ERROR_GPU_IS_LOST) = 14"),
    ],
)
def test_the_comparison_sees_a_difference(right: str, wrong: str) -> None:
    header = (SOURCES / "nvml_abi.h").read_text()
    assert right in header
    assert compile_c(layout_checks(header.replace(right, wrong))).returncode != 0


def test_the_library_needs_no_c_library_of_its_own_nor_a_version_of_one(binaries: Binaries) -> None:
    """It is loaded in containers beside whatever is there."""

    def dump(*arguments: str) -> str:
        command = ["objdump", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    symbols = dump("-T", str(binaries.library))
    wanted = {line.split()[-1] for line in symbols.splitlines() if "*UND*" in line}
    plain = {"calloc", "close", "free", "getenv", "memcpy", "memset", "nanosleep", "open", "read"}
    assert "nanosleep" in wanted
    assert wanted <= plain, "functions that every C library has"
    assert "GLIBC" not in symbols
    assert "NEEDED" not in dump("-p", str(binaries.library))
    assert "SONAME               libnvidia-ml.so.1" in dump("-p", str(binaries.library))
    assert "INTERP" not in dump("-p", str(binaries.nvidia_smi))


# What nvidia-ml-py says -------------------------------------------------------------------------

ANSWERS = [
    ("nvmlSystemGetDriverVersion()", "570.133.20"),
    ("nvmlSystemGetNVMLVersion()", "12.570.133.20"),
    ("nvmlSystemGetCudaDriverVersion()", 12080),
    ("nvmlSystemGetCudaDriverVersion_v2()", 12080),
    ("nvmlErrorString(15)", "GPU is lost"),
    ("nvmlDeviceGetCount()", 3),
    ("nvmlDeviceGetIndex(gpu)", 0),
    ("nvmlDeviceGetMinorNumber(gpu)", 0),
    ("nvmlDeviceGetName(gpu)", "NVIDIA A100-SXM4-40GB"),
    ("nvmlDeviceGetUUID(gpu)", HOST.gpus[0].uuid),
    ("nvmlDeviceGetSerial(gpu)", HOST.gpus[0].serial),
    ("nvmlDeviceGetBrand(gpu)", pynvml.NVML_BRAND_NVIDIA),
    ("nvmlDeviceGetCudaComputeCapability(gpu)", (8, 0)),
    ("nvmlDeviceGetPciInfo(gpu).busId", "00000000:07:00.0"),
    ("nvmlDeviceGetPciInfo(gpu).busIdLegacy", "0000:07:00.0"),
    ("nvmlDeviceGetPciInfo(gpu).bus", 7),
    ("nvmlDeviceGetMemoryInfo(gpu).used", (4100 + 640) * MIB),
    ("nvmlDeviceGetMemoryInfo(gpu).total", 40960 * MIB),
    ("nvmlDeviceGetMemoryInfo(gpu, nvmlMemory_v2).used", 4100 * MIB),
    ("nvmlDeviceGetMemoryInfo(gpu, nvmlMemory_v2).reserved", 640 * MIB),
    ("nvmlDeviceGetMemoryInfo(gpu, nvmlMemory_v2).free", (40960 - 640 - 4100) * MIB),
    ("nvmlDeviceGetUtilizationRates(gpu).gpu", 64),
    ("nvmlDeviceGetTemperature(gpu, NVML_TEMPERATURE_GPU)", 57),
    ("nvmlDeviceGetPowerUsage(gpu)", 256000),
    ("nvmlDeviceGetPowerManagementLimit(gpu)", 400000),
    ("nvmlDeviceGetEnforcedPowerLimit(gpu)", 400000),
    ("nvmlDeviceGetPersistenceMode(gpu)", 1),
    ("nvmlDeviceGetComputeMode(gpu)", pynvml.NVML_COMPUTEMODE_DEFAULT),
    ("nvmlDeviceGetPerformanceState(gpu)", 0),
    ("nvmlDeviceGetClockInfo(gpu, NVML_CLOCK_SM)", 1410),
    ("nvmlDeviceGetMigMode(gpu)", [0, 0]),
    ("nvmlDeviceGetMaxMigDeviceCount(gpu)", 0),
    ("nvmlDeviceGetEccMode(gpu)", [1, 1]),
    ("nvmlDeviceGetTotalEccErrors(gpu, 1, 0)", 0),
    ("nvmlDeviceGetRemappedRows(gpu)", (0, 0, 0, 0)),
    ("[p.pid for p in nvmlDeviceGetComputeRunningProcesses(gpu)]", [4001, 4002]),
    (
        "[p.usedGpuMemory for p in nvmlDeviceGetComputeRunningProcesses(gpu)]",
        [3000 * MIB, 1000 * MIB],
    ),
    ("[p.pid for p in nvmlDeviceGetGraphicsRunningProcesses(gpu)]", [7]),
    (
        "[(s.pid, s.smUtil) for s in nvmlDeviceGetProcessUtilization(gpu, 0)]",
        [(4001, 32), (4002, 32)],
    ),
    ("nvmlDeviceGetUUID(nvmlDeviceGetHandleByUUID(nvmlDeviceGetUUID(gpu)))", HOST.gpus[0].uuid),
    ("nvmlDeviceGetUUID(nvmlDeviceGetHandleByPciBusId(b'0000:07:00.0'))", HOST.gpus[0].uuid),
    ("nvmlDeviceGetUUID(nvmlDeviceGetHandleBySerial(nvmlDeviceGetSerial(gpu)))", HOST.gpus[0].uuid),
    ("nvmlDeviceGetFieldValues(gpu, [NVML_FI_DEV_NVLINK_LINK_COUNT])[0].nvmlReturn", 3),
]


@pytest.mark.parametrize(("expression", "value"), ANSWERS, ids=[pair[0] for pair in ANSWERS])
def test_an_answer(notebook: Program, expression: str, value: object) -> None:
    assert ask(notebook, expression) == value


def test_a_process_query_without_room_gives_the_number(notebook: Program) -> None:
    text = """
import ctypes
count = ctypes.c_uint(0)
call = pynvml._nvmlGetFunctionPointer("nvmlDeviceGetComputeRunningProcesses_v3")
result = (call(gpu, ctypes.byref(count), None), count.value)
"""
    notebook.run("gpu = nvmlDeviceGetHandleByIndex(0); idle = nvmlDeviceGetHandleByIndex(1)", HOST)
    assert notebook.run(text) == (7, 2)
    assert notebook.run(text.replace("call(gpu", "call(idle")) == (0, 0)


def test_the_first_version_of_the_process_query(notebook: Program) -> None:
    """The only one that a driver before 450 has; nvidia-ml-py has no function for it."""
    text = """
class Process(ctypes.Structure):
    _fields_ = [("pid", ctypes.c_uint), ("bytes", ctypes.c_ulonglong)]
room, processes = ctypes.c_uint(3), (Process * 3)()
call = pynvml._nvmlGetFunctionPointer("nvmlDeviceGet{kind}RunningProcesses")
code = call(gpu, ctypes.byref(room), processes)
result = code, [(p.pid, p.bytes) for p in processes[: room.value]]
"""
    notebook.run("import ctypes; gpu = nvmlDeviceGetHandleByIndex(0)", HOST)
    compute = [(4001, 3000 * MIB), (4002, 1000 * MIB)]
    assert notebook.run(text.replace("{kind}", "Compute")) == (0, compute)
    assert notebook.run(text.replace("{kind}", "Graphics")) == (0, [(7, 12 * MIB)])


GEFORCE = 2
ERRORS = [
    ("a v2 memory struct of another version", 25, "nvmlDeviceGetMemoryInfo(gpu, 1)", 0),
    ("an index beyond the count", 2, "nvmlDeviceGetHandleByIndex(3)", 0),
    ("an unknown UUID", 6, "nvmlDeviceGetHandleByUUID('GPU-no')", 0),
    ("an unknown bus id", 6, "nvmlDeviceGetHandleByPciBusId(b'0000:FF:00.0')", 0),
    ("no handle", 2, "nvmlDeviceGetName(None)", 0),
    ("no MIG on a GeForce", 3, "nvmlDeviceGetMigMode(gpu)", GEFORCE),
    ("no ECC on a GeForce", 3, "nvmlDeviceGetTotalEccErrors(gpu, 1, 0)", GEFORCE),
    ("no row remapping on a GeForce", 3, "nvmlDeviceGetRemappedRows(gpu)", GEFORCE),
    ("no page retirement on a GeForce", 3, "nvmlDeviceGetRetiredPages(gpu, 0)", GEFORCE),
    ("no serial number on a GeForce", 3, "nvmlDeviceGetSerial(gpu)", GEFORCE),
    ("no fan on an A100", 3, "nvmlDeviceGetFanSpeed(gpu)", 0),
    ("no process to have a utilization", 6, "nvmlDeviceGetProcessUtilization(gpu, 0)", 1),
    ("no violation counters", 3, "nvmlDeviceGetViolationStatus(gpu, 0)", 0),
    ("a function that isn't there", 13, "nvmlDeviceGetBoardId(gpu)", 0),
]


@pytest.mark.parametrize(
    ("code", "expression", "gpu"), [case[1:] for case in ERRORS], ids=[case[0] for case in ERRORS]
)
def test_an_error(notebook: Program, code: int, expression: str, gpu: int) -> None:
    assert error_code(notebook, expression, gpu=gpu) == code


LOST = HOST.with_gpu(0, fault="lost")
NEEDS_RESET = HOST.with_gpu(0, fault="reset_required")
FAULTS = [
    ("lost, through an old handle", LOST, "nvmlDeviceGetUUID(gpu)", 15),
    ("lost, its memory", LOST, "nvmlDeviceGetMemoryInfo(gpu)", 15),
    ("lost, a new handle", LOST, "nvmlDeviceGetHandleByIndex(0)", 15),
    ("lost, a new handle by UUID", LOST, f"nvmlDeviceGetHandleByUUID({HOST.gpus[0].uuid!r})", 15),
    ("lost, the one beside it", LOST, "nvmlDeviceGetName(nvmlDeviceGetHandleByIndex(1))", 0),
    ("lost, and still counted", LOST, "assert nvmlDeviceGetCount() == 3", 0),
    (
        "needs a reset, its identity",
        NEEDS_RESET,
        "nvmlDeviceGetUUID(nvmlDeviceGetHandleByIndex(0))",
        0,
    ),
    ("needs a reset, its memory", NEEDS_RESET, "nvmlDeviceGetMemoryInfo(gpu)", 16),
    ("unplugged", State(gpus=HOST.gpus[1:]), "nvmlDeviceGetName(gpu)", 15),
    ("driver reloaded", State(gpus=HOST.gpus, loads=2), "nvmlDeviceGetCount()", 999),
    ("driver gone", State(fault="driver_not_loaded"), "nvmlInit()", 9),
    (
        "driver gone under a running program",
        State(fault="driver_not_loaded"),
        "nvmlDeviceGetCount()",
        9,
    ),
    ("library mismatch", State(fault="library_mismatch"), "nvmlInit()", 18),
    ("no permission", State(fault="no_permission"), "nvmlInit()", 4),
    ("unknown", State(fault="unknown"), "nvmlInit()", 999),
    (
        "MIG mode has no utilization",
        HOST.with_gpu(0, mig=True),
        "nvmlDeviceGetUtilizationRates(gpu)",
        3,
    ),
    (
        "MIG mode has room for seven",
        HOST.with_gpu(0, mig=True),
        "assert nvmlDeviceGetMaxMigDeviceCount(gpu) == 7",
        0,
    ),
    (
        "MIG mode without instances",
        HOST.with_gpu(0, mig=True),
        "nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0)",
        6,
    ),
    ("no MIG mode, no instances", HOST, "nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0)", 3),
]


@pytest.mark.parametrize(
    ("state", "expression", "code"), [case[1:] for case in FAULTS], ids=[case[0] for case in FAULTS]
)
def test_a_fault(notebook: Program, state: State, expression: str, code: int) -> None:
    assert error_code(notebook, expression, state) == code


def test_a_function_fault_is_of_one_gpu_or_of_all(notebook: Program) -> None:
    faults = (("nvmlDeviceGetUtilizationRates", 999),)
    one = HOST.with_gpu(1, function_faults=faults)
    every = State(gpus=HOST.gpus, function_faults=faults)
    call = "nvmlDeviceGetUtilizationRates(gpu)"
    codes = [[error_code(notebook, call, state, gpu) for gpu in (0, 1)] for state in (one, every)]
    assert codes == [[0, 999], [999, 999]]
    assert error_code(notebook, "nvmlDeviceGetName(gpu)", every) == 0


def test_uninitialised_and_without_a_state_file(binaries: Binaries, tmp_path: Path) -> None:
    with Program(binaries.directory, tmp_path / "none") as program:
        program.run("from pynvml import *")

        def code(call: str) -> Any:
            """What NVML returned: older releases' exceptions can't be handed between processes."""
            return program.run(
                f"try:\n    {call}\n    result = 0\n"
                "except NVMLError as error:\n    result = error.value"
            )

        assert code("nvmlInit()") == pynvml.NVML_ERROR_DRIVER_NOT_LOADED
        HOST.write(tmp_path / "none")
        assert code("nvmlDeviceGetCount()") == pynvml.NVML_ERROR_UNINITIALIZED
        program.run("nvmlInit(); nvmlInit(); nvmlShutdown()")
        assert program.run("result = nvmlDeviceGetCount()") == 3
        program.run("nvmlShutdown()")
        assert code("nvmlDeviceGetCount()") == pynvml.NVML_ERROR_UNINITIALIZED


def test_functions_left_out_are_no_symbols_of_the_library(nvml_cache: Path) -> None:
    listed = ["nm", "--dynamic", "--defined-only", build(nvml_cache, NOT_BEFORE_DRIVER_510).library]
    symbols = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split()
    assert not set(NOT_BEFORE_DRIVER_510) & set(symbols)
    assert "nvmlDeviceGetMemoryInfo" in symbols
