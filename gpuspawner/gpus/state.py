"""What follows from what NVML tells of a GPU: whether it is in use, and could be handed out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from ..i18n.lazy_text import lazy_gettext, lazy_ngettext

# Driver contexts, monitoring and a desktop take some memory on a GPU nobody computes on.
IN_USE_FROM_MIB = 1024
IN_USE_FROM_PERCENT = 2

InventoryState = Literal["ok", "mig", "unhealthy", "unknown", "excluded"]


@dataclass(frozen=True)
class GPUFacts:
    """What NVML tells of one GPU.

    `state` is "ok" if it could be handed out whole, as far as NVML knows; `in_use` says whether
    something computes on it now, in a container of ours or not. `reason` is a sentence for people
    where `state` isn't "ok" or the GPU is in use, `warning` one where it works but needs attention.

    `uuid` is None where the GPU can't tell. Other fields are None where NVML doesn't support the
    query. Memory is in MiB and without what the driver keeps for itself (on drivers before 510:
    with it); `processes` counts compute processes, not those that only draw.
    """

    uuid: str | None
    index: int
    name: str = lazy_gettext("unknown GPU")
    memory_total_mib: int | None = None
    memory_used_mib: int | None = None
    utilization_percent: int | None = None
    processes: int | None = None
    mig: bool | None = None
    compute_mode: str | None = None
    compute_capability: tuple[int, int] | None = None
    state: InventoryState = "ok"
    reason: str = ""
    in_use: bool = False
    warning: str = ""


def derive_state(
    gpu: GPUFacts, memory_threshold_mib: int | None, excluded: frozenset[str]
) -> GPUFacts:
    """The GPU with what follows from its facts: whether it is in use, and could be handed out."""
    used_by = _describe_use(gpu, memory_threshold_mib)
    gpu = replace(gpu, in_use=bool(used_by))
    if gpu.uuid and gpu.uuid.lower() in excluded:
        reason = lazy_gettext("It is kept out by GPUSpawner.excluded_gpus.")
        return replace(gpu, state="excluded", reason=reason)
    if gpu.state != "ok":
        return gpu
    if gpu.mig:
        return replace(
            gpu, state="mig", reason=lazy_gettext("It is in MIG mode, and not handed out whole.")
        )
    if gpu.compute_mode == "prohibited":
        return replace(
            gpu, state="excluded", reason=lazy_gettext("Its compute mode is set to prohibited.")
        )
    if gpu.memory_used_mib is None and gpu.processes is None:
        return replace(
            gpu, state="unknown", reason=lazy_gettext("NVML can't tell whether it is in use.")
        )
    if gpu.processes is None and not gpu.warning:
        warning = "NVML doesn't tell its processes: it is judged by its memory alone."
        gpu = replace(gpu, warning=warning)
    return replace(gpu, reason=used_by)


def _describe_use(gpu: GPUFacts, memory_threshold_mib: int | None) -> str:
    """What uses the GPU, in a sentence; "" if nothing does."""
    if gpu.processes:
        return lazy_ngettext(
            "A process computes on it.", "%(num)s processes compute on it.", gpu.processes
        )
    if memory_threshold_mib is None:
        share = (gpu.memory_total_mib or 0) * IN_USE_FROM_PERCENT // 100
        memory_threshold_mib = max(IN_USE_FROM_MIB, share)
    if gpu.memory_used_mib is not None and gpu.memory_used_mib > memory_threshold_mib:
        return lazy_gettext("%(size)s MiB of its memory are in use.", size=gpu.memory_used_mib)
    return ""


def without_duplicate_uuids(gpus: tuple[GPUFacts, ...]) -> list[GPUFacts]:
    """Two GPUs of one UUID can't be told apart, so neither keeps it."""
    times = Counter(gpu.uuid for gpu in gpus if gpu.uuid)
    duplicates = {uuid for uuid, count in times.items() if count > 1}
    why = lazy_gettext("Another GPU has the same UUID.")
    return [
        replace(gpu, uuid=None, state="unknown", reason=why) if gpu.uuid in duplicates else gpu
        for gpu in gpus
    ]
