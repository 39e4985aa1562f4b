"""Queries of NVML: what an error means where the answer is required or not, memory, processes.

ref: https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pynvml

from ..untrusted import printable

MIB = 1024 * 1024
MAX_PROCESSES = 100_000
# How much is taken of a text of NVML's, in characters; its own names have 96 at most.
MAX_TEXT = 200

_ARGUMENT_VERSION_MISMATCH = 25  # older nvidia-ml-py has no name for it


def query(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return NVML's answer; None if the GPU or the driver doesn't support the query."""
    try:
        return function(*arguments)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return None


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return NVML's answer to a query that is required."""
    return function(*arguments)


def query_optional(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return NVML's answer to an optional query; None if it fails, unless the GPU itself has."""
    try:
        return query(function, *arguments)
    except (pynvml.NVMLError_GpuIsLost, pynvml.NVMLError_ResetRequired):
        raise
    except pynvml.NVMLError:
        return None


def query_text(function: Callable[..., Any], *arguments: Any) -> str:
    # Bypasses pynvml's wrapper, which fails if the text isn't UTF-8.
    text = getattr(function, "__wrapped__", function)(*arguments)
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    return printable(text, MAX_TEXT)


def read_memory(handle: Any) -> tuple[int | None, int | None]:
    """Return total and used memory in MiB; version 1 of the query counts the driver's as used."""
    try:
        memory = query(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    except pynvml.NVMLError as error:
        # The driver doesn't know this version of the struct.
        if error.value not in (pynvml.NVML_ERROR_INVALID_ARGUMENT, _ARGUMENT_VERSION_MISMATCH):
            raise
        memory = None
    memory = memory or query(pynvml.nvmlDeviceGetMemoryInfo, handle)
    if memory is None:
        return None, None
    if memory.total == 0 or memory.used > memory.total:
        raise ValueError(f"it says that {memory.used} of {memory.total} bytes are used")
    return memory.total // MIB, memory.used // MIB


def count_processes(handle: Any) -> int | None:
    """Return the number of the GPU's compute processes; None if NVML doesn't support the query.

    Their ids are of no use: a hub inside a container sees other ids, or zeros.
    """
    # Bypasses pynvml, whose releases know different versions of this query and of its struct.
    for version in ("_v3", "_v2", ""):  # since driver 510, since 450, all drivers
        try:
            name = f"nvmlDeviceGetComputeRunningProcesses{version}"
            code, count = query_array(pynvml._nvmlGetFunctionPointer(name), handle)
        except pynvml.NVMLError_FunctionNotFound:
            continue
        if code == pynvml.NVML_SUCCESS:
            return count
        if code == pynvml.NVML_ERROR_NOT_SUPPORTED:
            return None
        if code != pynvml.NVML_ERROR_FUNCTION_NOT_FOUND:
            raise pynvml.NVMLError(code)
    return None


def query_array(question: Callable[..., int], handle: Any) -> tuple[int, int]:
    """Return code and count of a query that fills an array."""
    return query_entries(question, handle)[:2]


def query_entries(
    question: Callable[..., int], handle: Any, unwritten: int = 0
) -> tuple[int, int, bytes]:
    """Return code, count and array of a query that fills one: called for the size, then again.

    Args:
        question: the query.
        handle: NVML's handle of the GPU.
        unwritten: the byte of which the array is full before the query fills it.
    """
    count = ctypes.c_uint(0)
    code = question(handle, ctypes.byref(count), None)
    if code != pynvml.NVML_ERROR_INSUFFICIENT_SIZE or count.value > MAX_PROCESSES:
        return code, count.value, b""
    room = count.value * 2 + 5  # processes may start in between
    answer = ctypes.create_string_buffer(room * 64)  # twice the largest entry of any version
    ctypes.memset(answer, unwritten, len(answer))
    count = ctypes.c_uint(room)
    return question(handle, ctypes.byref(count), answer), count.value, answer.raw


class _AddressingMode(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint), ("value", ctypes.c_uint))


# ref: nvmlDeviceGetAddressingMode, since driver 580
_ADDRESSING_MODE_V1 = ctypes.sizeof(_AddressingMode) | 1 << 24
_ATS = 2


def has_host_memory(handle: Any) -> bool:
    """Return whether the GPU's memory is a part of the host's; False if NVML doesn't tell."""
    mode = _AddressingMode(_ADDRESSING_MODE_V1, 0)
    try:
        # Bypasses pynvml, whose older releases don't know it.
        question = pynvml._nvmlGetFunctionPointer("nvmlDeviceGetAddressingMode")
    except pynvml.NVMLError_FunctionNotFound:
        return False
    return question(handle, ctypes.byref(mode)) == pynvml.NVML_SUCCESS and mode.value == _ATS
