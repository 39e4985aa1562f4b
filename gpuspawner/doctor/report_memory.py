"""The report's check of what a memory guard rests on: which process holds how much of a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from . import cuda_kernel, kernels
from .findings import Context, Finding

NVML, PROCESSES = "gpuspawner.gpus.nvml", "gpuspawner.gpus.host_processes"
MIB = 1024 * 1024


def check(context: Context) -> Iterator[Finding]:
    """Hold memory of a GPU that nobody has, and look whether NVML says which process does."""
    if kernels.is_simulated():
        yield Finding("skipped", kernels.SIMULATED)
        return
    whole = (each for each in kernels.to_try(context) if not each.why_not and not each.gpu.parent)
    free = next(whole, None)
    if free is None:
        yield Finding("note", "not tried, as there is no whole GPU that nobody has")
        return
    with kernels.holding(free) as held:
        if held.problem:
            yield held.problem
            return
        yield judge(free.name, held.pid, _memory_of(str(free.gpu.uuid)), _has(held.pid))


def _memory_of(uuid: str) -> Any:
    found = import_module(NVML).read_memory_of([uuid], lets_go=True)
    return found.get(uuid)


def _has(pid: int) -> bool:
    return import_module(PROCESSES).find(pid) is not None


def judge(name: str, pid: int, memory: Any, is_found: bool) -> Finding:
    """Return the finding for what NVML says of a process that holds `cuda_kernel.HELD_MIB`.

    Args:
        name: the GPU's.
        pid: the process's id.
        memory: with `processes`, process id -> bytes; None: NVML doesn't tell of this GPU.
        is_found: whether the process is found in /proc.
    """
    nobody = "servers that share such a GPU aren't kept to their parts of its memory"
    if memory is None:
        return Finding("warning", f"{name}: NVML doesn't say what processes hold: {nobody}")
    if pid not in memory.processes:
        ids = "NVML names other process ids than this machine's, as for a container"
        return Finding("warning", f"{name}: {ids}: {nobody}")
    held = memory.processes[pid]
    if held is None:
        return Finding("warning", f"{name}: NVML doesn't say how much a process holds: {nobody}")
    if held < cuda_kernel.HELD_MIB * MIB:
        what = f"NVML says that a process holds {held // MIB} MiB, of {cuda_kernel.HELD_MIB} MiB"
        return Finding("failure", f"{name}: {what}")
    if not is_found:
        return Finding("failure", f"{name}: the process that NVML names isn't found in /proc")
    return Finding("ok", f"{name}: NVML names the process, with {held // MIB} MiB")
