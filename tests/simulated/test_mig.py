"""MIG in the simulated NVML, through the real nvidia-ml-py, and which instances a GPU can have."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpuspawner.simulation.library import Binaries
from gpuspawner.simulation.mig import layout, partition, with_process, without_instance
from gpuspawner.simulation.state import State, describe

from ..support.nvml import Program, environment

MIB = 1024 * 1024
WHOLE = describe([("A100-40GB", 1), ("A30", 1), ("T4", 1)])
HOST = partition(WHOLE, 0, layout("3g.20gb, 2g.10gb, 1g.5gb x2"))
PARENT = HOST.gpu(0)
FIRST, SECOND, *_ = PARENT.instances
BUSY = with_process(with_process(HOST, 0, 0, 4194305, 500), 0, 2, 4194306, 7)
FIND = """
def find(gpu):
    found = {}
    for index in range(nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            found[index] = nvmlDeviceGetMigDeviceHandleByIndex(gpu, index)
        except NVMLError as error:
            found[index] = error.value
    return found
"""


@pytest.fixture
def notebook(binaries: Binaries, tmp_path: Path) -> Iterator[Program]:
    with Program(binaries.directory, tmp_path / "state") as program:
        program.run("from pynvml import *; import pynvml\n" + FIND, HOST)
        yield program


def ask(notebook: Program, expression: str, state: State = HOST, gpu: int = 0) -> Any:
    """The value of an expression over `gpu` and its instances `mig`, in a session of its own."""
    handles = f"gpu = nvmlDeviceGetHandleByIndex({gpu}); mig = find(gpu)"
    result = f"try:\n    {handles}; result = {expression}\nexcept NVMLError as e: result = e.value"
    return notebook.run(f"nvmlInit()\n{result}\nnvmlShutdown()", state)


ANSWERS: list[tuple[str, Any]] = [
    ("nvmlDeviceGetMigMode(gpu)", [1, 1]),
    ("nvmlDeviceGetMaxMigDeviceCount(gpu)", 7),
    ("[type(each).__name__ for each in mig.values()][3:5]", ["LP_struct_c_nvmlDevice_t", "int"]),
    ("[each for each in mig.values() if isinstance(each, int)]", [6, 6, 6]),
    ("nvmlDeviceGetMigDeviceHandleByIndex(gpu, 7)", 2),
    ("nvmlDeviceGetUUID(mig[0])", FIRST.uuid),
    ("nvmlDeviceGetName(mig[0])", "NVIDIA A100-SXM4-40GB MIG 3g.20gb"),
    ("nvmlDeviceGetIndex(mig[3])", 3),
    ("[nvmlDeviceGetGpuInstanceId(mig[n]) for n in range(4)]", [2, 3, 9, 10]),
    ("[nvmlDeviceGetComputeInstanceId(mig[n]) for n in range(4)]", [0, 0, 0, 0]),
    ("nvmlDeviceGetGpuInstanceId(gpu)", 2),
    ("nvmlDeviceIsMigDeviceHandle(mig[0]).value", 1),
    ("nvmlDeviceIsMigDeviceHandle(gpu).value", 0),
    ("nvmlDeviceGetUUID(nvmlDeviceGetDeviceHandleFromMigDeviceHandle(mig[1]))", PARENT.uuid),
    ("nvmlDeviceGetDeviceHandleFromMigDeviceHandle(gpu)", 2),
    ("nvmlDeviceGetAttributes_v2(mig[0]).memorySizeMB", 20096),
    ("nvmlDeviceGetAttributes_v2(mig[0]).computeInstanceSliceCount", 3),
    ("nvmlDeviceGetAttributes_v2(mig[0]).gpuInstanceSliceCount", 3),
    ("nvmlDeviceGetAttributes_v2(gpu)", 3),
    ("nvmlDeviceGetMemoryInfo(mig[0]).total", 20096 * MIB),
    ("nvmlDeviceGetMemoryInfo(mig[0], nvmlMemory_v2).used", 500 * MIB),
    ("nvmlDeviceGetMemoryInfo(gpu, nvmlMemory_v2).used", 507 * MIB),
    ("nvmlDeviceGetBAR1MemoryInfo(mig[0]).bar1Total", 256 * MIB),
    ("nvmlDeviceGetUtilizationRates(mig[0])", 3),
    ("nvmlDeviceGetUtilizationRates(gpu)", 3),
    ("[p.pid for p in nvmlDeviceGetComputeRunningProcesses(mig[0])]", [4194305]),
    ("[p.pid for p in nvmlDeviceGetComputeRunningProcesses(mig[1])]", []),
    (
        "[(p.gpuInstanceId, p.computeInstanceId)"
        " for p in nvmlDeviceGetComputeRunningProcesses(gpu)]",
        [(2, 0), (9, 0)],
    ),
    ("nvmlDeviceGetRemappedRows(gpu)", 3),
    ("nvmlDeviceGetTotalEccErrors(gpu, 1, 0)", 3),
    ("nvmlDeviceGetEncoderUtilization(gpu)", 3),
    (
        "nvmlDeviceGetUUID(nvmlDeviceGetHandleByUUID(mig and nvmlDeviceGetUUID(mig[1])))",
        SECOND.uuid,
    ),
    (f"nvmlDeviceGetUUID(nvmlDeviceGetHandleByUUID({SECOND.uuid.upper()!r}))", SECOND.uuid),
]


@pytest.mark.parametrize(("expression", "value"), ANSWERS, ids=[each[0] for each in ANSWERS])
def test_an_answer_of_a_gpu_in_mig_mode(notebook: Program, expression: str, value: Any) -> None:
    assert ask(notebook, expression, BUSY) == value


UNPRIVILEGED = replace(BUSY, privileged=False)
OTHERS: list[tuple[str, State, int, Any]] = [
    ("nvmlDeviceGetMemoryInfo(gpu)", UNPRIVILEGED, 0, 4),
    ("nvmlDeviceGetMemoryInfo(gpu, nvmlMemory_v2)", UNPRIVILEGED, 0, 4),
    ("nvmlDeviceGetComputeRunningProcesses(gpu)", UNPRIVILEGED, 0, 4),
    ("nvmlDeviceGetMemoryInfo(mig[0]).used", UNPRIVILEGED, 0, 500 * MIB),
    ("nvmlDeviceGetMemoryInfo(gpu).used", UNPRIVILEGED, 1, 384 * MIB),
    ("list(mig)", HOST, 1, []),
    ("nvmlDeviceGetMaxMigDeviceCount(gpu)", partition(HOST, 1, []), 1, 4),
    ("nvmlDeviceGetMaxMigDeviceCount(gpu)", HOST, 2, 0),
    ("nvmlDeviceGetMigMode(gpu)", HOST, 2, 3),
    ("nvmlDeviceGetMigMode(gpu)", HOST.with_gpu(1, mig_pending=True), 1, [0, 1]),
    ("mig[1]", without_instance(HOST, 0, 1), 0, 6),
    ("mig[1]", replace(without_instance(HOST, 0, 1), mig_gap="invalid_argument"), 0, 2),
    ("nvmlDeviceGetUUID(mig[2])", without_instance(HOST, 0, 1), 0, PARENT.instances[2].uuid),
]


@pytest.mark.parametrize(("expression", "state", "gpu", "value"), OTHERS)
def test_an_answer_of_another_host(
    notebook: Program, expression: str, state: State, gpu: int, value: Any
) -> None:
    assert ask(notebook, expression, state, gpu) == value


def test_a_session_does_not_see_what_was_made_after_its_start(notebook: Program) -> None:
    made = partition(HOST, 0, layout("3g.20gb, 1g.5gb x4"))
    notebook.run("nvmlInit(); gpu = nvmlDeviceGetHandleByIndex(0); mig = find(gpu)", HOST)
    code = "try: result = {}\nexcept NVMLError as error: result = error.value"
    assert notebook.run(code.format("nvmlDeviceGetName(mig[1])"), made) == 2
    assert notebook.run(code.format("nvmlDeviceGetName(mig[0])")).endswith("3g.20gb")
    assert notebook.run("result = [str(each) for each in find(gpu).values()][1]") == "6"
    notebook.run("nvmlShutdown(); nvmlInit(); mig = find(nvmlDeviceGetHandleByIndex(0))")
    assert notebook.run("result = nvmlDeviceGetName(mig[4])").endswith("1g.5gb")
    notebook.run("nvmlShutdown()")


def test_an_old_driver_names_an_instance_by_its_gpu_and_its_numbers(notebook: Program) -> None:
    old = partition(describe([("A100-40GB", 1)], "460.32.03"), 0, ["3g.20gb"])
    uuid = ask(notebook, "nvmlDeviceGetUUID(mig[0])", old)
    assert uuid == f"MIG-{old.gpu(0).uuid}/2/0"
    assert ask(notebook, f"nvmlDeviceGetGpuInstanceId(nvmlDeviceGetHandleByUUID({uuid!r}))") == 6
    again = f"nvmlDeviceGetGpuInstanceId(nvmlDeviceGetHandleByUUID({uuid!r}))"
    assert ask(notebook, again, old) == 2


def test_nvidia_smi_shows_the_instances(binaries: Binaries, tmp_path: Path) -> None:
    def shown(state: State, *words: str) -> str:
        state.write(tmp_path / "state")
        return subprocess.run(
            [binaries.nvidia_smi, *words],
            env=environment(binaries.directory, tmp_path / "state"),
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    listed = shown(HOST, "-L").splitlines()
    assert listed[1] == f"  MIG 3g.20gb     Device  0: (UUID: {FIRST.uuid})"
    assert [line[:2] for line in listed] == ["GP", "  ", "  ", "  ", "  ", "GP", "GP"]
    table = shown(BUSY)
    assert "|  0    2   0   0  |             500MiB / 20096MiB    |" in table
    assert "|    0     2    0         4194305      C " in table
    assert "N/A" in shown(UNPRIVILEGED, "-i", "0")
    assert "40960MiB" not in shown(UNPRIVILEGED, "-i", "0")
    assert "No MIG devices found" in shown(partition(WHOLE, 0, []))
    assert "MIG devices" not in shown(WHOLE)
    pending = ["--query-gpu=mig.mode.current,mig.mode.pending", "--format=csv,noheader", "-i", "1"]
    assert shown(HOST.with_gpu(1, mig_pending=True), *pending) == "Disabled, Enabled\n"
    assert "Disabled*" in shown(HOST.with_gpu(1, mig_pending=True))


# Which instances a GPU can have ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "text", "ids"),
    [
        ("A100-40GB", "1g.5gb x7", [7, 8, 9, 10, 11, 12, 13]),
        ("A100-40GB", "7g.40gb", [0]),
        ("A100-40GB", "3g.20gb x2", [2, 1]),
        ("A100-40GB", "4g.20gb, 3g.20gb", [1, 2]),
        ("A100-40GB", "3g.20gb,2g.10gb,1g.5gb,1g.5gb", [2, 3, 9, 10]),
        ("A100-40GB", "1c.3g.20gb x3, 1g.10gb", [2, 2, 2, 3]),
        ("A100-40GB", "1g.10gb x4", [6, 3, 4, 5]),
        ("A30", "1g.6gb x4", [3, 4, 5, 6]),
        ("A30", "2g.12gb, 1g.6gb x2", [1, 5, 6]),
        ("H200", "3g.71gb, 1g.18gb+me, 1g.35gb", [2, 7, 4]),
        ("A100-40GB", "none", []),
    ],
)
def test_instances_are_placed_as_the_driver_does(model: str, text: str, ids: list[int]) -> None:
    gpu = partition(describe([(model, 1)]), 0, layout(text)).gpu(0)
    assert [each.gi for each in gpu.instances] == ids
    assert [each.index for each in gpu.instances] == list(range(len(ids)))
    assert gpu.mig is True


@pytest.mark.parametrize(
    ("model", "text", "words"),
    [
        ("A100-40GB", "1g.5gb x8", "no room for one more 1g.5gb"),
        ("A100-40GB", "4g.20gb x2", "no room for one more 4g.20gb"),
        ("A100-40GB", "3g.20gb x2, 1g.5gb", "no room"),
        ("A30", "1g.5gb", "has no MIG profile 1g.5gb; it has 1g.6gb"),
        ("T4", "1g.5gb", "Tesla T4 has no MIG"),
        ("A30", "big", "'big' isn't a MIG profile such as 1g.10gb"),
        ("A30", "1g.6gb y 2", "isn't a MIG profile"),
        ("A30", "", "isn't a MIG profile"),
    ],
)
def test_instances_that_there_is_no_room_for(model: str, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        partition(describe([(model, 1)]), 0, layout(text))


def test_the_same_instance_has_the_same_uuid_again_and_another_size_another() -> None:
    assert partition(WHOLE, 0, layout("3g.20gb, 2g.10gb, 1g.5gb x2")) == HOST
    other = partition(HOST, 0, layout("3g.20gb, 1g.10gb, 1g.5gb x2")).gpu(0).instances
    assert [one.uuid == two.uuid for one, two in zip(other, PARENT.instances, strict=True)] == [
        *(True, False, True, True)
    ]


@pytest.mark.parametrize("change", [(0, 9), (1, 0)])
def test_an_instance_that_there_is_not_can_not_be_destroyed(change: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="has no MIG instance"):
        without_instance(HOST, *change)
    with pytest.raises(ValueError, match="has no MIG instance"):
        with_process(HOST, *change, 1, 1)


def test_a_container_sees_its_instance_alone() -> None:
    seen = HOST.only([SECOND.uuid])
    assert [gpu.uuid for gpu in seen.gpus] == [PARENT.uuid]
    assert seen.gpus[0].instances == (replace(SECOND, index=0),)
    assert (seen.gpus[0].mig, seen.privileged) == (True, False)
    assert HOST.only([PARENT.uuid]).gpus[0].instances == ()
    with pytest.raises(ValueError, match="there is no GPU 'MIG-no'"):
        HOST.only(["MIG-no"])
