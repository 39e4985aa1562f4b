"""Each preset of a real machine, read through the real nvidia-ml-py by our inventory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from gpuspawner.gpus.links import NVLINK
from gpuspawner.simulation.presets import PRESETS

from ..support.nvml import Program
from ..support.paths import ROOT


@dataclass(frozen=True)
class Expected:
    """What the inventory says of a machine; the last four of each of its GPUs."""

    name: str
    count: int
    cuda: str
    capability: tuple[int, int]
    memory_mib: int | None
    mig: bool | None
    states: tuple[str, ...] = ("ok",)
    in_use: tuple[bool, ...] = (False,)
    instances: tuple[tuple[str, ...], ...] = ((),)
    nvlinks: tuple[int, ...] = (0,)


A100, A30 = "NVIDIA A100-SXM4-40GB", "NVIDIA A30"
RTX_4090 = "NVIDIA GeForce RTX 4090"
SEVEN = ("1g.5gb",) * 7
MACHINES = {
    "dgx-a100": Expected(
        *(A100, 8, "12.4", (8, 0), 40960, False),
        states=("ok",) * 6 + ("mig",) * 2,
        in_use=(False,) * 8,
        instances=((),) * 6 + (("3g.20gb",) * 2, SEVEN),
        nvlinks=(7 * 12,) * 8,
    ),
    "dgx-1": Expected("Tesla V100-SXM2-16GB", 8, "12.2", (7, 0), 16384, None, nvlinks=(6,)),
    "l40s": Expected("NVIDIA L40S", 8, "12.4", (8, 9), 46068, None),
    "rtx-4090": Expected(RTX_4090, 2, "12.6", (8, 9), 24564, None),
    "a30": Expected(
        *(A30, 4, "12.4", (8, 0), 24576, True),
        states=("mig", "mig", "ok", "ok"),
        in_use=(False,) * 4,
        instances=(("1g.6gb",) * 4, ("2g.12gb", "1g.6gb", "1g.6gb"), (), ()),
        nvlinks=(0,) * 4,
    ),
    "gh200": Expected("NVIDIA GH200 480GB", 1, "13.0", (9, 0), 97871, False),
    "gb10": Expected("NVIDIA GB10", 1, "13.0", (12, 1), None, None),
    "wsl2": Expected(RTX_4090, 1, "12.4", (8, 9), 24564, None, states=("unknown",), in_use=(True,)),
    "jetson": Expected("Orin (nvgpu)", 1, "12.6", (8, 7), None, None, states=("unknown",)),
}


def each(values: tuple[Any, ...], count: int) -> list[Any]:
    """One value for each GPU: the only one is of all."""
    return list(values) * count if len(values) == 1 else list(values)


def test_every_preset_is_expected_to_be_something_and_is_in_the_handbook() -> None:
    assert set(MACHINES) == set(PRESETS)
    page = (ROOT / "docs/how-to/rehearse.md").read_text()
    assert [name for name in PRESETS if f"| `{name}` |" not in page] == []


@pytest.mark.parametrize("name", PRESETS)
def test_a_machine(program: Program, name: str) -> None:
    expected = MACHINES[name]
    inventory = program.read(PRESETS[name].state())
    gpus = inventory.gpus
    assert inventory.cuda == expected.cuda
    assert [gpu.name for gpu in gpus] == [expected.name] * expected.count
    assert {gpu.compute_capability for gpu in gpus} == {expected.capability}
    assert {gpu.memory_total_mib for gpu in gpus} == {expected.memory_mib}
    assert gpus[0].mig == expected.mig
    assert [gpu.state for gpu in gpus] == each(expected.states, expected.count)
    assert [gpu.in_use for gpu in gpus] == each(expected.in_use, expected.count)
    profiles = [tuple(part.profile for part in gpu.instances) for gpu in gpus]
    assert profiles == each(expected.instances, expected.count)
    nvlinks = [sum(near // NVLINK for _, near in gpu.links) for gpu in gpus]
    assert nvlinks == each(expected.nvlinks, expected.count)
    assert all(gpu.reason for gpu in gpus if gpu.state != "ok")


def test_the_host_s_own_use_of_a_gpu_s_memory_is_not_a_program_s(program: Program) -> None:
    state = PRESETS["gh200"].state()
    assert program.read(state).gpus[0].memory_used_mib == 31240
    assert program.read(state.with_gpu(0, processes=((41, 5),))).gpus[0].in_use
    # Where the processes aren't known, memory is all that there is to go by.
    faults = (("nvmlDeviceGetComputeRunningProcesses_v3", 3),)
    assert program.read(state.with_gpu(0, function_faults=faults)).gpus[0].in_use
    assert program.read(state.with_gpu(0, addressing_mode="hmm")).gpus[0].in_use
    assert program.read(state.with_gpu(0, addressing_mode=None)).gpus[0].in_use


def test_a_gpu_without_memory_of_its_own_is_judged_by_its_processes(program: Program) -> None:
    state = PRESETS["gb10"].state()
    gpu = program.read(state).gpus[0]
    assert (gpu.memory_used_mib, gpu.processes, gpu.utilization_percent) == (None, 0, 0)
    assert program.read(state.with_gpu(0, processes=((41, 0),))).gpus[0].in_use


def test_what_nothing_is_known_of_says_so(program: Program) -> None:
    (orin,) = program.read(PRESETS["jetson"].state()).gpus
    assert orin.reason == "NVML can't tell whether it is in use."
    (windows,) = program.read(PRESETS["wsl2"].state()).gpus
    assert "Unknown Error" in windows.reason
