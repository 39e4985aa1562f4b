"""Monitors that people use, unmodified, over the simulated NVML; and its own nvidia-smi."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpuspawner.simulation.library import Binaries, build
from gpuspawner.simulation.mig import layout, partition, with_process
from gpuspawner.simulation.models import NOT_BEFORE_DRIVER_510
from gpuspawner.simulation.state import State, describe
from gpuspawner.simulation.topologies import TOPOLOGIES

from ..support.nvml import environment

# No kernel gives these numbers to a process, so none is found under them by chance.
HOST = describe([("A100-40GB", 2), ("RTX-4090", 1)]).with_gpu(
    0,
    processes=((4194305, 3000), (4194306, 1000)),
    graphics_processes=((4194307, 12),),
    utilization_percent=64,
    memory_used_mib=4100,
)
LOST = HOST.with_gpu(0, fault="lost")
UUIDS = [gpu.uuid for gpu in HOST.gpus]


@pytest.fixture
def monitor(binaries: Binaries, tmp_path: Path) -> Callable[..., str]:
    """Runs a Python module that shows GPUs over a state, and returns what it prints."""

    def run(state: State, *command: str, directory: Path = binaries.directory) -> str:
        state.write(tmp_path / "state")
        done = subprocess.run(
            [sys.executable, "-m", *command],
            env=environment(directory, tmp_path / "state", COLUMNS="120", TERM="xterm"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


def test_nvitop_shows_the_gpus(monitor: Callable[..., str]) -> None:
    shown = monitor(HOST, "nvitop", "--once", "--no-unicode")
    assert "570.133.20" in shown
    assert "12.8" in shown
    assert shown.count("A100-SXM4-40GB") == 2
    assert "RTX 4090" in shown
    assert re.search(r"4100MiB / 40\.00GiB.* 64%", shown)


def test_nvitop_shows_mig_instances(monitor: Callable[..., str]) -> None:
    host = partition(HOST, 1, layout("3g.20gb, 1g.5gb x2"))
    shown = monitor(with_process(host, 1, 2, 4194308, 300), "nvitop", "--once", "--no-unicode")
    assert re.search(r"1:0 +3g\.20gb @ GI/CI: 2/0 \| +0B / ", shown)
    assert re.search(r"1:2 +1g\.5gb @ GI/CI: 8/0 \| +300\.0MiB / +4864MiB", shown)


def test_nvitop_shows_the_healthy_beside_the_lost(monitor: Callable[..., str]) -> None:
    shown = monitor(LOST, "nvitop", "--once", "--no-unicode")
    assert "GPU is Lost" in shown
    assert shown.count("A100-SXM4-40GB") == 1
    assert "RTX 4090" in shown


def test_nvitop_on_an_old_driver(monitor: Callable[..., str], nvml_cache: Path) -> None:
    old = build(nvml_cache, NOT_BEFORE_DRIVER_510)
    host = describe([("V100-32GB", 1)], driver="470.82.01")
    shown = monitor(host, "nvitop", "--once", "--no-unicode", directory=old.directory)
    assert "470.82.01" in shown
    assert "V100-SXM2-32GB" in shown


def test_gpustat_shows_the_gpus(monitor: Callable[..., str]) -> None:
    shown = json.loads(monitor(HOST, "gpustat", "--json"))
    assert shown["driver_version"] == "570.133.20"
    first, second, third = shown["gpus"]
    assert (first["uuid"], first["name"]) == (HOST.gpus[0].uuid, "NVIDIA A100-SXM4-40GB")
    assert (first["memory.used"], first["memory.total"]) == (4100, 40960)
    assert (first["utilization.gpu"], first["enforced.power.limit"]) == (64, 400)
    assert (first["temperature.gpu"], first["fan.speed"]) == (57, None)
    assert (second["index"], second["processes"]) == (1, [])
    assert (third["name"], third["fan.speed"]) == ("NVIDIA GeForce RTX 4090", 30)


def test_gpustat_shows_the_healthy_beside_the_lost(monitor: Callable[..., str]) -> None:
    first, second, _ = json.loads(monitor(LOST, "gpustat", "--json"))["gpus"]
    assert first["name"] == "((GPU is lost))"
    assert second["uuid"] == HOST.gpus[1].uuid


# The simulated nvidia-smi ---------------------------------------------------------------------


@pytest.fixture
def nvidia_smi(binaries: Binaries, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Runs `nvidia-smi` over a state: its exit code and what it prints."""

    def run(state: State | None, *arguments: str) -> tuple[int, str]:
        if state is not None:
            state.write(tmp_path / "state")
        done = subprocess.run(
            [str(binaries.nvidia_smi), *arguments],
            env=environment(tmp_path, tmp_path / "state"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""
        return done.returncode, done.stdout

    return run


def test_nvidia_smi_lists(nvidia_smi: Callable[..., tuple[int, str]]) -> None:
    listed = f"""\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: {UUIDS[0]})
GPU 1: NVIDIA A100-SXM4-40GB (UUID: {UUIDS[1]})
GPU 2: NVIDIA GeForce RTX 4090 (UUID: {UUIDS[2]})
"""
    assert nvidia_smi(HOST, "-L") == (0, listed)
    assert nvidia_smi(HOST.only([UUIDS[2]]), "-L") == (
        0,
        f"GPU 0: NVIDIA GeForce RTX 4090 (UUID: {UUIDS[2]})\n",
    )


QUERIES = [
    (
        ("--query-gpu=index,uuid,memory.total", "--format=csv"),
        f"index, uuid, memory.total [MiB]\n0, {UUIDS[0]}, 40960 MiB\n"
        f"1, {UUIDS[1]}, 40960 MiB\n2, {UUIDS[2]}, 24564 MiB\n",
    ),
    (
        ("--query-gpu=memory.used, utilization.gpu", "--format=csv,noheader,nounits", "-i", "0"),
        "4100, 64\n",
    ),
    (
        ("--query-gpu", "name,fan.speed,power.draw", "--format", "csv,noheader", "--id=2"),
        "NVIDIA GeForce RTX 4090, 30 %, 58.50 W\n",
    ),
    (
        ("--query-gpu=gpu_name,fan.speed,mig.mode.current,compute_cap", "--format=csv", "-i=0"),
        "gpu_name, fan.speed [%], mig.mode.current, compute_cap\n"
        "NVIDIA A100-SXM4-40GB, [N/A], Disabled, 8.0\n",
    ),
    (
        ("--query-gpu=driver_version,serial", "--format=csv,noheader", f"--id={UUIDS[2]}"),
        "570.133.20, [N/A]\n",
    ),
    (
        ("--query-compute-apps=pid,used_memory", "--format=csv"),
        "pid, used_memory [MiB]\n4194305, 3000 MiB\n4194306, 1000 MiB\n",
    ),
    (
        ("--query-compute-apps=gpu_uuid,pid", "--format=csv,noheader"),
        f"{UUIDS[0]}, 4194305\n{UUIDS[0]}, 4194306\n",
    ),
    (
        ("--version",),
        "NVIDIA-SMI version  : 570.133.20\nNVML version        : 570.133.20\n"
        "DRIVER version      : 570.133.20\nCUDA Version        : 12.8\n",
    ),
]


@pytest.mark.parametrize(("arguments", "printed"), QUERIES, ids=[" ".join(q[0]) for q in QUERIES])
def test_nvidia_smi_answers_queries(
    nvidia_smi: Callable[..., tuple[int, str]], arguments: tuple[str, ...], printed: str
) -> None:
    assert nvidia_smi(HOST, *arguments) == (0, printed)


def test_nvidia_smi_shows_how_gpus_are_connected(
    nvidia_smi: Callable[..., tuple[int, str]],
) -> None:
    four = describe([("A100-40GB", 4)])

    def rows(state: State) -> list[list[str]]:
        code, printed = nvidia_smi(state, "topo", "-m")
        assert code == 0
        assert "NV#  = Connection traversing a bonded set of # NVLinks" in printed
        return [line.split()[1:] for line in printed.split("\n\n")[0].splitlines()[1:]]

    assert rows(TOPOLOGIES["pairs"](four)) == [
        ["X", "PIX", "NV4", "SYS", "0-31", "0", "N/A"],
        ["PIX", "X", "SYS", "NV4", "0-31", "0", "N/A"],
        ["NV4", "SYS", "X", "PIX", "32-63", "1", "N/A"],
        ["SYS", "NV4", "PIX", "X", "32-63", "1", "N/A"],
    ]
    assert rows(TOPOLOGIES["nvswitch"](four))[0][:4] == ["X", "NV12", "NV12", "NV12"]
    assert rows(four)[1] == ["N/A", "X", "N/A", "N/A", "N/A", "N/A", "N/A"]
    eight = rows(TOPOLOGIES["dgx-1"](describe([("V100-16GB", 8)])))
    assert [row[:8] for row in eight[:2]] == [
        ["X", "NV1", "NV1", "NV2", "NV2", "SYS", "SYS", "SYS"],
        ["NV1", "X", "NV2", "NV1", "SYS", "NV2", "SYS", "SYS"],
    ]


MISUSE = [
    (("--query-gpu=nonsense", "--format=csv"), 'Field "nonsense" is not a valid field to query.'),
    (("--query-compute-apps=x", "--format=csv"), 'Field "x" is not a valid field to query.'),
    (("--query-gpu=name",), '"--format=" switch is missing.'),
    (("--nonsense",), "Invalid combination of input arguments."),
]


@pytest.mark.parametrize(("arguments", "part"), MISUSE)
def test_nvidia_smi_refuses(
    nvidia_smi: Callable[..., tuple[int, str]], arguments: tuple[str, ...], part: str
) -> None:
    code, printed = nvidia_smi(HOST, *arguments)
    assert code == 2
    assert part in printed


TROUBLES = [
    ("no state file", None, 9, "couldn't communicate with the NVIDIA driver"),
    ("gone", State(fault="driver_not_loaded"), 9, "couldn't communicate with the NVIDIA driver"),
    ("mismatch", State(fault="library_mismatch"), 18, "Driver/library version mismatch"),
    ("no permission", State(fault="no_permission"), 4, "Insufficient Permissions"),
    ("unknown", State(fault="unknown"), 255, "Unknown Error"),
    ("no GPU", State(), 6, "No devices were found"),
]


@pytest.mark.parametrize(
    ("state", "code", "part"), [case[1:] for case in TROUBLES], ids=[case[0] for case in TROUBLES]
)
def test_nvidia_smi_in_trouble(
    nvidia_smi: Callable[..., tuple[int, str]], state: State | None, code: int, part: str
) -> None:
    for arguments in ((), ("-L",), ("--query-gpu=name", "--format=csv")):
        got, printed = nvidia_smi(state, *arguments)
        assert got == code
        assert part in printed


def test_nvidia_smi_shows_the_healthy_beside_the_sick(
    nvidia_smi: Callable[..., tuple[int, str]],
) -> None:
    code, printed = nvidia_smi(LOST, "-L")
    assert code == 15
    assert "GPU 00000000:07:00.0: GPU is lost." in printed
    assert UUIDS[1] in printed
    code, printed = nvidia_smi(HOST.with_gpu(0, fault="unreachable"), "-L")
    assert code == 255
    assert "device handle for GPU00000000:07:00.0: Unknown Error" in printed
    assert UUIDS[1] in printed
    state = HOST.with_gpu(0, fault="reset_required")
    query = ("--query-gpu=index,memory.used", "--format=csv,noheader")
    assert nvidia_smi(state, *query) == (
        0,
        "0, [GPU requires reset]\n1, 0 MiB\n2, 0 MiB\n",
    )


def test_nvidia_smi_prints_a_table(nvidia_smi: Callable[..., tuple[int, str]]) -> None:
    state = HOST.with_gpu(1, mig=True, compute_mode="exclusive_process").with_gpu(
        2, fault="reset_required"
    )
    code, printed = nvidia_smi(state)
    assert code == 0
    table = [line for line in printed.splitlines()[1:] if line.strip()]
    assert {len(line) for line in table} == {91}
    assert {line[0] + line[-1] for line in table} == {"++", "||", "|+"}  # as the real one draws it
    assert "Driver Version: 570.133.20     CUDA Version: 12.8" in printed
    assert "256W /  400W |    4100MiB /  40960MiB |     64%      Default |" in printed
    assert "E. Process" in printed
    assert "GPU requires reset" in printed
    processes = [line.split()[1] for line in table if re.search(r" [CG]   \[Not", line)]
    assert processes == ["0", "0", "0"]
    assert "No running processes found" in nvidia_smi(describe([("T4", 1)]))[1]
