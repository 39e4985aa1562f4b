"""Events and trouble in the simulated NVML: what wakes who waits, and what a GPU says of itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuspawner.simulation import changes
from gpuspawner.simulation.library import Binaries
from gpuspawner.simulation.state import State, describe

from ..support.nvml import Program

# What is asked here is the stand-in; an older nvidia-ml-py hasn't every question.
pytestmark = pytest.mark.same_on_oldest

XID, SINGLE_BIT, DOUBLE_BIT, MIG_CONFIG, RECOVERY = 0x8, 0x1, 0x2, 0x100, 0x8000
HOST = describe([("A100-40GB", 2)], driver="580.65.06")
DIVIDED = changes.parse("gpu 0 instances 3g.20gb, 1g.5gb")(HOST)
NOBODY = 0xFFFFFFFF
BEGIN = """
from pynvml import *
from ctypes import byref
nvmlInit()
gpus = [nvmlDeviceGetHandleByIndex(n) for n in range(nvmlDeviceGetCount())]
events = nvmlEventSetCreate()
def wait(milliseconds):
    try:
        seen = nvmlEventSetWait_v2(events, milliseconds)
    except NVMLError as error:
        return error.value
    place = (seen.gpuInstanceId, seen.computeInstanceId)
    return nvmlDeviceGetIndex(seen.device), seen.eventType, seen.eventData, place
"""
ALL = (
    "for gpu in gpus: nvmlDeviceRegisterEvents(gpu, nvmlDeviceGetSupportedEventTypes(gpu), events)"
)


@pytest.fixture
def watcher(binaries: Binaries, tmp_path: Path) -> Iterator[Program]:
    """A program with an event set; nothing is registered."""
    with Program(binaries.directory, tmp_path / "state") as program:
        program.run(BEGIN, HOST)
        yield program


def changed(state: State, *texts: str) -> State:
    for text in texts:
        state = changes.parse(text)(state)
    return state


def test_who_waits_is_woken_by_what_another_program_does(watcher: Program) -> None:
    watcher.run(ALL)
    got: list[Any] = []
    waiting = threading.Thread(target=lambda: got.append(watcher.run("result = wait(120000)")))
    waiting.start()
    time.sleep(0.5)  # so that it has looked at the state of before
    changed(HOST, "gpu 1 xid 79").write(watcher.state_path)
    waiting.join()
    assert got == [(1, XID, 79, (NOBODY, NOBODY))]


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["gpu 0 xid 31", "gpu 1 xid 63"], [(0, XID, 31), (1, XID, 63)]),
        (["gpu 0 xid 13", "gpu 0 xid 43"], [(0, XID, 13), (0, XID, 43)]),
        (["gpu 1 ecc 3"], [(1, DOUBLE_BIT, 0)]),
        (["gpu 0 remap pending"], [(0, RECOVERY, 0)]),
        (["gpu 0 instances 7g.40gb"], [(0, MIG_CONFIG, 0)]),
        (["gpu 0 use 50"], []),
    ],
)
def test_each_event_is_told_once(
    watcher: Program, texts: list[str], told: list[tuple[int, int, int]]
) -> None:
    watcher.run(ALL)
    changed(HOST, *texts).write(watcher.state_path)
    seen = [watcher.run("result = wait(0)") for _ in range(len(told) + 1)]
    assert [each[:3] for each in seen[:-1]] == told
    assert seen[-1] == 10, "the time is over"


def test_what_was_before_is_not_told_nor_what_nobody_asked_for(watcher: Program) -> None:
    before = changed(HOST, "gpu 0 xid 31")
    watcher.run("nvmlDeviceRegisterEvents(gpus[0], nvmlEventTypeXidCriticalError, events)", before)
    assert watcher.run("result = wait(0)") == 10
    later = changed(before, "gpu 0 ecc 1", "gpu 1 xid 79", "gpu 0 xid 94")
    assert watcher.run("result = wait(0)", later) == (0, XID, 94, (NOBODY, NOBODY))
    assert watcher.run("result = wait(0)") == 10


def test_an_event_of_an_instance_says_so_to_who_may_know(watcher: Program) -> None:
    watcher.run(ALL, DIVIDED)
    state = changed(DIVIDED, "gpu 0 xid 43 instance 1")
    assert watcher.run("result = wait(0)", state) == (0, XID, 43, (7, 0))
    again = changed(state, "gpu 0 xid 13 instance 1")
    unprivileged = again.only([DIVIDED.gpu(0).uuid])
    assert watcher.run("result = wait(0)", unprivileged) == 10
    whole = changed(again, "gpu 0 xid 79").only([DIVIDED.gpu(0).uuid])
    assert watcher.run("result = wait(0)[1:3]", whole) == (XID, 79)


def test_a_lost_gpu_ends_the_wait_after_its_xid(watcher: Program) -> None:
    watcher.run(ALL)
    lost = changed(HOST, "gpu 1 xid 79", "gpu 1 lost")
    code = "seen = nvmlEventSetWait_v2(events, 0); result = (seen.eventType, seen.eventData)"
    assert watcher.run(code, lost) == (XID, 79)
    assert watcher.run("result = wait(1000)") == 15


def test_a_set_is_needed_and_a_kind_that_there_is(watcher: Program) -> None:
    code = "try: {}; result = 0\nexcept NVMLError as error: result = error.value"
    register = "nvmlDeviceRegisterEvents(gpus[0], {}, events)"
    assert watcher.run(code.format(register.format("1 << 40"))) == 3
    assert watcher.run(code.format(register.format("0"))) == 2
    watcher.run("nvmlEventSetFree(events)")
    assert watcher.run(code.format("nvmlEventSetWait_v2(events, 0)")) == 2
    assert watcher.run(code.format(register.format("8"))) == 2
    sets = "made = [nvmlEventSetCreate() for _ in range(16)]"
    watcher.run(sets)
    assert watcher.run(code.format("nvmlEventSetCreate()")) == 999
    watcher.run("for each in made: nvmlEventSetFree(each)")
    watcher.run(sets)


# What a GPU says of itself ---------------------------------------------------------------------

FABRIC = "info = c_nvmlGpuFabricInfo_v2_t(); nvmlDeviceGetGpuFabricInfoV(gpu, byref(info)); "
FIELD = "value = nvmlDeviceGetFieldValues(gpu, [{}])[0]; "
RECOVERY_ACTION = FIELD.format(230) + "result = value.nvmlReturn or -value.value.uiVal"
MODE = (
    "from ctypes import c_uint; mode = (c_uint * 2)(0x1000008, 0);"
    "code = pynvml._nvmlGetFunctionPointer('nvmlDeviceGetAddressingMode')(gpu, byref(mode));"
    "result = code or -mode[1]"
)
CASES: list[tuple[str, dict[str, Any], Any]] = [
    ("result = nvmlDeviceGetCurrentClocksThrottleReasons(gpu)", {}, 1),
    ("result = nvmlDeviceGetCurrentClocksThrottleReasons(gpu)", {"utilization_percent": 9}, 0),
    (
        "result = nvmlDeviceGetCurrentClocksThrottleReasons(gpu)",
        {"clocks_event_reasons": 0x48},
        0x48,
    ),
    (FABRIC + "result = (info.state, info.status)", {"fabric": "in_progress"}, (2, 0)),
    (FABRIC + "result = (info.state, info.status)", {"fabric": "completed"}, (3, 0)),
    (FABRIC + "result = (info.state, info.status)", {"fabric": "failed"}, (3, 999)),
    (FABRIC, {}, 3),
    (RECOVERY_ACTION, {}, 0),
    (RECOVERY_ACTION, {"recovery_action": "node_reboot"}, -2),
    (RECOVERY_ACTION, {"recovery_action": "drain_and_reset"}, -4),
    (RECOVERY_ACTION, {"recovery_action": None}, 3),
    (FIELD.format(1) + "result = value.nvmlReturn", {}, 3),
    (MODE, {"addressing_mode": "ats"}, -2),
    (MODE, {"addressing_mode": "none"}, 0),
    (MODE, {}, 3),
    (
        "result = [p.pid for p in nvmlDeviceGetMPSComputeRunningProcesses(gpu)]",
        {"mps_processes": ((41, 9),), "processes": ((40, 30),)},
        [41],
    ),
    (
        "result = [p.pid for p in nvmlDeviceGetComputeRunningProcesses(gpu)]",
        {"mps_processes": ((41, 9),), "processes": ((40, 30),)},
        [40],
    ),
    (
        "result = nvmlDeviceGetMemoryInfo(gpu, nvmlMemory_v2).used >> 20",
        {"mps_processes": ((41, 9),), "processes": ((40, 30),)},
        39,
    ),
    ("result = nvmlDeviceGetCpuAffinity(gpu, 2)[:]", {"pcie": (3, 0)}, [0, 0xFFFFFFFF << 32]),
    ("result = nvmlDeviceGetCpuAffinity(gpu, 1)[:]", {}, 3),
    ("result = nvmlDeviceGetNumaNodeId(gpu)", {"pcie": (1, 0)}, 1),
    ("result = nvmlDeviceGetAccountingMode(gpu)", {}, 0),
    ("result = nvmlDeviceGetHandleByIndex(0)", {"fault": "unreachable"}, 999),
    ("result = nvmlDeviceGetName(gpu)", {"fault": "unreachable"}, 999),
]


@pytest.mark.parametrize(("text", "with_", "value"), CASES)
def test_what_a_gpu_says(watcher: Program, text: str, with_: dict[str, Any], value: Any) -> None:
    watcher.run("import pynvml; gpu = gpus[0]; result = None")
    guarded = "try:\n    " + text + "\nexcept NVMLError as error: result = error.value"
    assert watcher.run(guarded, HOST.with_gpu(0, **with_)) == value


@pytest.mark.parametrize(
    ("driver", "mode", "fabric", "reasons", "action"),
    [
        ("580.65.06", 0, 0, 0, 0),
        ("570.133.20", 13, 0, 0, 0),
        ("560.35.03", 13, 0, 0, 3),
        ("535.104.05", 13, 13, 0, 3),
        ("470.82.01", 13, 13, 13, 3),
    ],
)
def test_older_drivers_lack_the_newer_functions(
    watcher: Program, driver: str, mode: int, fabric: int, reasons: int, action: int
) -> None:
    with_ = {"addressing_mode": "none", "fabric": "completed"}
    state = describe([("A100-40GB", 1)], driver).with_gpu(0, **with_)
    watcher.run("import pynvml; gpu = gpus[0]; nvmlShutdown(); nvmlInit()", state)
    clocks = (
        "from ctypes import c_ulonglong; found = c_ulonglong();"
        "result = pynvml._nvmlGetFunctionPointer("
        "'nvmlDeviceGetCurrentClocksEventReasons')(gpu, byref(found))"
    )
    fabric_code = (
        "from ctypes import create_string_buffer; info = create_string_buffer(36);"
        "info[0:4] = (0x2000024).to_bytes(4, 'little');"
        "result = pynvml._nvmlGetFunctionPointer("
        "'nvmlDeviceGetGpuFabricInfoV')(gpu, byref(info))"
    )
    codes = [watcher.run(text) for text in (MODE, fabric_code, clocks, RECOVERY_ACTION)]
    assert codes == [mode, fabric, reasons, action]
