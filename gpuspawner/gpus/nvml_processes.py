"""What each process holds of a GPU's memory, by NVML.

ref: https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import pynvml

from .nvml_queries import MAX_PROCESSES, MIB, query_entries, read_memory
from .state import GPUMemory

# Kinds of processes; the first is the one that every driver knows.
_KINDS = ("Compute", "Graphics", "MPSCompute")
# NVML's word for memory of which it doesn't know who holds it.
_NOT_AVAILABLE = 2**64 - 1
# What was there before NVML has written.
_UNWRITTEN = 0xA5
# How many bytes an entry may have, the usual size first. All begin with the id and the memory.
_SIZES = (24, 16, 32)


def read_gpu_memory(handle: Any) -> GPUMemory | None:
    """Return a GPU's memory, and what its processes hold; None if NVML can't say.

    A process that computes and draws is listed twice, with the same memory.

    Raises:
        pynvml.NVMLError: a query failed.
        ValueError: what NVML says can't be.
    """
    total, _ = read_memory(handle)
    if total is None:
        return None
    held: dict[int, int | None] = {}
    for kind in _KINDS:
        found = _processes(f"nvmlDeviceGet{kind}RunningProcesses", handle)
        if found is None and kind == _KINDS[0]:
            return None
        for pid, size in found or ():
            if size is not None and size > total * MIB:
                raise ValueError(f"it says that process {pid} holds {size} bytes of {total} MiB")
            before = held.get(pid, 0)
            held[pid] = None if size is None or before is None else max(size, before)
    return GPUMemory(total * MIB, held)


def _processes(name: str, handle: Any) -> list[tuple[int, int | None]] | None:
    """Return process ids with what each holds, in bytes; None if the driver doesn't tell."""
    # Bypasses pynvml, whose releases know different versions of this query and of its struct.
    for version in ("_v3", "_v2", ""):  # since driver 510, since 450, all drivers
        try:
            question = pynvml._nvmlGetFunctionPointer(f"{name}{version}")
        except pynvml.NVMLError_FunctionNotFound:
            continue
        found = ask(question, handle)
        if found is not None:
            return found
    return None


def ask(question: Callable[..., int], handle: Any) -> list[tuple[int, int | None]] | None:
    """Return process ids with what each holds, in bytes; None if the driver can't say.

    Args:
        question: a query of NVML's for processes.
        handle: NVML's handle of the GPU.

    Raises:
        pynvml.NVMLError: the query failed.
        ValueError: what NVML says can't be.
    """
    code, count, answer = query_entries(question, handle, _UNWRITTEN)
    if code in (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND):
        return None
    if code != pynvml.NVML_SUCCESS:
        raise pynvml.NVMLError(code)
    if count > MAX_PROCESSES:
        raise ValueError(f"it says that {count} processes are on it")
    return list(_entries(answer, count))


def _entries(answer: bytes, count: int) -> Iterator[tuple[int, int | None]]:
    """Yield the entries, whose size is what was written: not all drivers keep to the version's.

    Drivers 535.43 to 535.86 write one field more, others two fewer. Read in the wrong size, entries
    would be those of other processes, with other memory.
    ref: https://github.com/NVIDIA/go-nvml/issues/75
    """
    written = len(answer.rstrip(bytes([_UNWRITTEN])))
    size = next((size for size in _SIZES if size * (count - 1) + 16 <= written <= size * count), 0)
    if count and not size:
        raise ValueError(f"it has written {written} bytes for {count} processes")
    for number in range(count):
        pid, held = struct.unpack_from("=I4xQ", answer, number * size)
        yield pid, None if held == _NOT_AVAILABLE else held
