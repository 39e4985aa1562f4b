"""How NVML says that GPUs are connected; what fails there fails nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gpuspawner.simulation.library import build
from gpuspawner.simulation.state import State, describe
from gpuspawner.simulation.topologies import TOPOLOGIES

from ..support.nvml import Program

IDLE = describe([("V100-16GB", 8)])


def near(program: Program, state: State) -> list[dict[int, int]]:
    """For each GPU, by index: index of another one -> how close it is."""
    program.run("from gpuspawner.gpus import nvml; nvml.close()")
    gpus = program.read(state).gpus
    assert {gpu.state for gpu in gpus if gpu.uuid} == {"ok"}
    numbers = {gpu.uuid: gpu.index for gpu in gpus}
    return [{numbers[uuid]: value for uuid, value in gpu.links} for gpu in gpus]


def test_a_host_that_says_nothing_of_it(program: Program) -> None:
    assert near(program, IDLE) == [{}] * 8


def test_nvlinks_count_and_then_the_bus(program: Program) -> None:
    found = near(program, TOPOLOGIES["dgx-1"](IDLE))
    assert found[0] == {1: 105, 2: 102, 3: 202, 4: 201, 5: 1, 6: 1, 7: 1}
    for one in range(8):
        assert found[one] == {other: found[other][one] for other in range(8) if other != one}


def test_gpus_behind_a_switch_are_all_linked(program: Program) -> None:
    found = near(program, TOPOLOGIES["nvswitch"](IDLE))
    assert {value // 100 for each in found for value in each.values()} == {12}


def test_a_bus_without_nvlink(program: Program) -> None:
    found = near(program, TOPOLOGIES["pcie"](IDLE))
    assert found[0] == {1: 5, 2: 2, 3: 2, 4: 1, 5: 1, 6: 1, 7: 1}


def test_a_link_that_only_one_end_tells_of_is_there(program: Program) -> None:
    """ref: https://github.com/NVIDIA/k8s-device-plugin/issues/448"""
    paired = TOPOLOGIES["pairs"](IDLE)
    one_way = paired.with_gpu(2, nvlinks=())
    assert near(program, one_way) == near(program, paired)


@pytest.mark.parametrize(
    "function",
    [
        "nvmlDeviceGetTopologyCommonAncestor",
        "nvmlDeviceGetNvLinkState",
        "nvmlDeviceGetNvLinkRemotePciInfo_v2",
        "nvmlDeviceGetPciInfo_v3",
        "nvmlDeviceGetHandleByUUID",
    ],
)
def test_a_query_that_fails_or_is_not_there_leaves_it_unknown(
    nvml_cache: Path, tmp_path: Path, function: str
) -> None:
    """ref: https://github.com/NVIDIA/k8s-device-plugin/issues/2038"""
    paired = TOPOLOGIES["pairs"](IDLE)
    old = build(nvml_cache, missing_functions=(function,))
    with Program(old.directory, tmp_path / "state") as program:
        assert_unlinked(near(program, paired))
    whole = build(nvml_cache)
    with Program(whole.directory, tmp_path / "state") as program:
        for code in (1, 2, 3, 4, 6, 13, 15, 16, 999):
            failing = replace(paired, function_faults=((function, code),))
            assert_unlinked(near(program, failing))


def assert_unlinked(found: list[dict[int, int]]) -> None:
    """What is known by another query than the one that failed is the bus, or the links alone."""
    for each in found:
        assert set(each.values()) in (set(), {5, 2, 1}, {400, 0}), found


def test_it_is_read_anew_for_other_gpus(program: Program) -> None:
    paired = TOPOLOGIES["pairs"](IDLE)
    assert near(program, paired)[4][5] == 405
    gpus = program.read(paired.with_gpu(5, fault="reset_required")).gpus
    assert gpus[5].links == ()
    assert dict(gpus[0].links)[paired.gpus[2].uuid] == 402
    assert paired.gpus[5].uuid not in dict(gpus[4].links)
