"""The state of a GPU, as it follows from NVML's facts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from ..i18n.lazy_text import lazy_gettext, lazy_ngettext
from .health_facts import NOTHING, HealthReading

# Driver contexts, monitoring and a desktop use some memory even if no program computes.
IN_USE_FROM_MIB = 1024
IN_USE_FROM_PERCENT = 2

KEPT_OUT = lazy_gettext("It is kept out by GPUSpawner.excluded_gpus.")

InventoryState = Literal["ok", "mig", "unhealthy", "unknown", "excluded"]


@dataclass(frozen=True)
class MIGInstance:
    """What NVML reports of one MIG instance: a part of a GPU, as its administrator made it.

    Args:
        uuid: its own, "MIG-…" as the driver writes it.
        parent_uuid: the UUID of the GPU that it is a part of.
        gi: its GPU instance's id on that GPU; None if NVML doesn't tell.
        ci: its compute instance's id within the GPU instance; None if NVML doesn't tell.
        profile: its kind, as `nvidia-smi` names it: "1g.10gb", "1c.3g.40gb", "1g.10gb+me". "" if
            neither its name nor its attributes tell.
        memory_total_mib: its memory, MiB; None if NVML doesn't tell.
        memory_used_mib: how much of it is in use, MiB; None if NVML doesn't tell.
        processes: the number of its compute processes; None if NVML doesn't tell. Without this
            and `memory_used_mib` it isn't known whether the instance is in use.
        slices: how many of the GPU's compute slices it has; all of them if NVML doesn't tell.
        of_slices: the most compute slices that instances of this GPU can have: 7 on an A100, 4 on
            an A30. `slices / of_slices` is its share of the GPU.
    """

    uuid: str
    parent_uuid: str
    gi: int | None
    ci: int | None
    profile: str
    memory_total_mib: int | None
    memory_used_mib: int | None
    processes: int | None
    slices: int
    of_slices: int


@dataclass(frozen=True)
class GPUMemory:
    """A GPU's memory, in bytes, by process id as the driver's library counts them.

    Args:
        total: how much it has.
        processes: what each process holds; None: the library can't say.
    """

    total: int
    processes: Mapping[int, int | None] = field(default_factory=dict)


@dataclass(frozen=True)
class GPUFacts:
    """What NVML reports of one GPU.

    `state` is "ok" if the GPU could be handed out whole, as far as NVML knows; `in_use` is whether
    a program computes on it now, in one of our containers or not. `reason` is a sentence for users
    if `state` isn't "ok" or the GPU is in use; `warning` is one if it works but needs attention.

    `links` are pairs of another GPU's UUID and how close it is (`links.closeness`).
    `mig` is whether it is in MIG mode, `mig_pending` whether it will be after its next reset.
    `instances` are its MIG instances, in NVML's order; () if it has none or doesn't tell. They
    could be handed out where its state is "mig"; any other state of it is theirs as well.
    `host_memory` is whether its memory is a part of the host's (GH200), which uses it as its own:
    memory in use says nothing of who computes then.
    `needs_reset` is whether a repair of it waits for a reset, and it works until then; `health` is
    all that was read of its health.
    `uuid` is None if NVML can't read it and never could. Other fields are None if NVML doesn't
    support the query. Memory is in MiB, without the driver's own (with it on drivers before 510);
    `processes` counts compute processes, not graphics ones.
    """

    uuid: str | None
    index: int
    name: str = lazy_gettext("unknown GPU")
    memory_total_mib: int | None = None
    memory_used_mib: int | None = None
    utilization_percent: int | None = None
    processes: int | None = None
    mig: bool | None = None
    mig_pending: bool | None = None
    compute_mode: str | None = None
    compute_capability: tuple[int, int] | None = None
    state: InventoryState = "ok"
    reason: str = ""
    in_use: bool = False
    warning: str = ""
    needs_reset: bool = False
    health: HealthReading = NOTHING
    host_memory: bool = False
    links: tuple[tuple[str, int], ...] = ()
    instances: tuple[MIGInstance, ...] = ()


def has_mig(gpu: GPUFacts) -> bool:
    """Return whether a GPU is in MIG mode, or will be after its next reset."""
    return bool(gpu.mig or gpu.mig_pending)


def derive_state(
    gpu: GPUFacts, memory_threshold_mib: int | None, excluded: frozenset[str]
) -> GPUFacts:
    """Return the facts with `in_use`, `state`, `reason` and `warning` derived from the others.

    Args:
        gpu: the facts as read.
        memory_threshold_mib: as for `nvml.read`.
        excluded: UUIDs, in lower case, of the GPUs that the administrator excludes.
    """
    # The host's own use of memory that is its, too, says nothing.
    only_processes = gpu.host_memory and gpu.processes is not None
    used_mib = None if only_processes else gpu.memory_used_mib
    used_by = describe_use(gpu.processes, used_mib, gpu.memory_total_mib, memory_threshold_mib)
    gpu = replace(gpu, in_use=bool(used_by))
    if gpu.uuid and gpu.uuid.lower() in excluded:
        return replace(gpu, state="excluded", reason=KEPT_OUT)
    if gpu.state != "ok":
        return gpu
    if gpu.mig_pending not in (None, gpu.mig):
        # Whoever had it, or an instance of it, would keep the mode from changing.
        reason = (
            lazy_gettext("It leaves MIG mode at its next reset, and isn't handed out before.")
            if gpu.mig
            else lazy_gettext("It enters MIG mode at its next reset, and isn't handed out before.")
        )
        return replace(gpu, state="excluded", reason=reason)
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


def describe_use(
    processes: int | None, used_mib: int | None, total_mib: int | None, threshold_mib: int | None
) -> str:
    """Return a sentence that says what uses a GPU or a part of it; "" if nothing does.

    Args:
        processes: how many compute on it; None: unknown.
        used_mib: how much of its memory is in use; None: unknown.
        total_mib: how much memory it has; None: unknown.
        threshold_mib: as `memory_threshold_mib` for `nvml.read`.
    """
    if processes:
        return lazy_ngettext(
            "A process computes on it.", "%(num)s processes compute on it.", processes
        )
    if threshold_mib is None:
        share = (total_mib or 0) * IN_USE_FROM_PERCENT // 100
        threshold_mib = max(IN_USE_FROM_MIB, share)
    if used_mib is not None and used_mib > threshold_mib:
        return lazy_gettext("%(size)s MiB of its memory are in use.", size=used_mib)
    return ""


def without_duplicate_uuids(gpus: tuple[GPUFacts, ...]) -> list[GPUFacts]:
    """Return the GPUs without UUIDs that several of them have: a lease couldn't name just one."""
    times = Counter(gpu.uuid for gpu in gpus if gpu.uuid)
    duplicates = {uuid for uuid, count in times.items() if count > 1}
    why = lazy_gettext("Another GPU has the same UUID.")
    return [
        replace(gpu, uuid=None, state="unknown", reason=why) if gpu.uuid in duplicates else gpu
        for gpu in gpus
    ]
