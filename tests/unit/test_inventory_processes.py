"""What each process holds of a GPU's memory, by the real nvidia-ml-py over a simulated NVML."""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path
from typing import Any

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.gpus.nvml import InventoryError
from gpuspawner.gpus.nvml_processes import ask
from gpuspawner.gpus.state import GPUMemory
from gpuspawner.simulation.library import build
from gpuspawner.simulation.state import State, describe

from ..support.nvml import Program, compile_variant

HOST = describe([("A100-40GB", 2), ("T4", 1)])
ONE, OTHER, THIRD = (gpu.uuid for gpu in HOST.gpus)
MIB, GIB = 1024**2, 1024**3
COMPUTE = "nvmlDeviceGetComputeRunningProcesses"
KINDS = (
    COMPUTE,
    "nvmlDeviceGetGraphicsRunningProcesses",
    "nvmlDeviceGetMPSComputeRunningProcesses",
)


def memory_of(program: Program, state: State | None, *uuids: str, **more: Any) -> dict[str, Any]:
    text = "from gpuspawner.gpus import nvml; "
    text += f"result = nvml.read_memory_of({uuids!r}, **{more!r})"
    found: dict[str, Any] = program.run(text, state)
    return found


def is_open(program: Program) -> bool:
    return bool(program.run("from gpuspawner.gpus import nvml; result = nvml._is_initialised"))


def test_what_computes_draws_or_is_a_client_of_mps_is_counted_once(program: Program) -> None:
    state = HOST.with_gpu(
        ONE,
        processes=((41, 1000), (42, 300)),
        graphics_processes=((42, 300), (43, 20)),
        mps_processes=((44, 5),),
    )
    assert memory_of(program, state, ONE, OTHER) == {
        ONE: GPUMemory(40 * GIB, {41: 1000 * MIB, 42: 300 * MIB, 43: 20 * MIB, 44: 5 * MIB}),
        OTHER: GPUMemory(40 * GIB, {}),
    }


@pytest.mark.parametrize("missing", [("_v3",), ("_v3", "_v2")])
def test_older_drivers_say_it_in_their_own_words(missing: tuple[str, ...], tmp_path: Path) -> None:
    functions = [f"{kind}{version}" for kind in KINDS for version in missing]
    binaries = build(tmp_path / "cache", functions)
    state = HOST.with_gpu(ONE, processes=((41, 1000), (42, 300), (43, 1)))
    with Program(binaries.directory, tmp_path / "state") as old:
        held = {41: 1000 * MIB, 42: 300 * MIB, 43: MIB}
        assert memory_of(old, state, ONE) == {ONE: GPUMemory(40 * GIB, held)}


def test_of_a_gpu_that_cannot_say_there_is_nothing_and_the_others_are_there(program: Program):
    state = HOST.with_gpu(ONE, fault="lost").with_gpu(
        THIRD, function_faults=((f"{COMPUTE}_v3", 999),)
    )
    assert set(memory_of(program, state, ONE, OTHER, THIRD)) == {OTHER}
    # A query that isn't supported is no empty list of processes.
    state = HOST.with_gpu(ONE, function_faults=((f"{COMPUTE}_v3", 3), (f"{COMPUTE}_v2", 3)))
    state = state.with_gpu(ONE, function_faults=(*state.gpu(ONE).function_faults, (COMPUTE, 3)))
    assert set(memory_of(program, state, ONE, OTHER)) == {OTHER}
    # Graphics and MPS, not all drivers have.
    state = HOST.with_gpu(ONE, function_faults=tuple((f"{kind}_v3", 3) for kind in KINDS[1:]))
    assert set(memory_of(program, state, ONE)) == {ONE}
    assert memory_of(program, HOST, "GPU-00000000-0000-0000-0000-000000000000") == {}


def test_memory_that_the_driver_does_not_know_is_unknown_and_not_none(tmp_path: Path) -> None:
    """On Windows' WSL 2, say, whose kernel keeps it."""
    definition = f"""
    nvmlReturn_t {COMPUTE}_v3(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *infos)
    {{
        nvmlReturn_t code = original_{COMPUTE}_v3(device, count, infos);
        if (code == NVML_SUCCESS && *count)
            infos[0].usedGpuMemory = ~0ULL;
        return code;
    }}
    """
    directory = compile_variant(tmp_path, f"{COMPUTE}_v3", definition)
    state = HOST.with_gpu(ONE, processes=((41, 1000), (42, 300)), graphics_processes=((41, 9),))
    with Program(directory, tmp_path / "state") as program:
        assert memory_of(program, state, ONE)[ONE].processes == {41: None, 42: 300 * MIB}


def test_nvml_is_left_as_it_was(program: Program) -> None:
    program.read(HOST)
    assert is_open(program)
    memory_of(program, None, ONE)
    assert is_open(program)
    # What is out of service can be reset beside it.
    memory_of(program, None, ONE, lets_go=True)
    assert not is_open(program)
    memory_of(program, None, ONE)
    assert not is_open(program)
    # A reloaded driver is found the next time.
    program.read(HOST)
    memory_of(program, State(gpus=HOST.gpus, loads=2), ONE)
    assert set(memory_of(program, None, ONE)) == {ONE}


def test_a_driver_that_is_gone_is_an_error_and_not_a_gpu_without_processes(program: Program):
    program.run("from gpuspawner.gpus import nvml; nvml.close()")
    with pytest.raises(InventoryError, match="driver isn't loaded"):
        memory_of(program, State(gpus=HOST.gpus, fault="driver_not_loaded"), ONE)


# -- The array, as drivers fill it -----------------------------------------------------------------


def filling(entries: list[tuple[int, int]], size: int) -> Any:
    """Return a query that gives these entries, each of so many bytes."""

    def question(handle: Any, count: Any, answer: Any) -> int:
        room, count._obj.value = count._obj.value, len(entries)
        if room < len(entries):
            return int(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)
        rest = (0xFFFFFFFF, 0xFFFFFFFF, 0)
        for number, (pid, held) in enumerate(entries):
            whole = struct.pack("=I4xQIIQ", pid, held, *rest)[:size]
            ctypes.memmove(ctypes.addressof(answer) + number * size, whole, size)
        return int(pynvml.NVML_SUCCESS)

    return question


ENTRIES = st.lists(st.tuples(st.integers(0, 2**22), st.integers(0, 80 * GIB)), max_size=20)


@given(ENTRIES, st.sampled_from([16, 24, 32]))
def test_entries_of_any_size_are_read_as_they_were_written(entries, size: int) -> None:
    assert ask(filling(entries, size), None) == entries


@given(ENTRIES.filter(lambda entries: len(entries) > 1), st.sampled_from([8, 12, 40, 64]))
def test_entries_of_no_size_that_is_known_are_no_processes(entries, size: int) -> None:
    whole = list(entries)

    def question(handle: Any, count: Any, answer: Any) -> int:
        room, count._obj.value = count._obj.value, len(whole)
        if room < len(whole):
            return int(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)
        ctypes.memset(answer, 1, min(len(whole) * size, len(answer)))
        return int(pynvml.NVML_SUCCESS)

    with pytest.raises(ValueError, match="bytes for"):
        ask(question, None)


def test_a_process_that_holds_more_than_the_gpu_has_makes_all_of_it_unknown(tmp_path: Path) -> None:
    definition = f"""
    nvmlReturn_t {COMPUTE}_v3(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *infos)
    {{
        nvmlReturn_t code = original_{COMPUTE}_v3(device, count, infos);
        if (code == NVML_SUCCESS && *count)
            infos[0].usedGpuMemory = 41ULL << 30;
        return code;
    }}
    """
    directory = compile_variant(tmp_path, f"{COMPUTE}_v3", definition)
    state = HOST.with_gpu(ONE, processes=((41, 1000),))
    with Program(directory, tmp_path / "state") as program:
        assert memory_of(program, state, ONE, OTHER) == {OTHER: GPUMemory(40 * GIB, {})}
