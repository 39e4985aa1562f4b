"""The units of a GPU: the whole of it, the slots in which it is shared, or its MIG instances."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from ..i18n.lazy_text import lazy_gettext
from .model import GPU, NAMELESS, SHARED, WHOLE, GPUState, Lease
from .state import KEPT_OUT, MIGInstance, describe_use
from .unit_names import parse

NO_PROFILE = lazy_gettext("NVML doesn't tell which part of its GPU it is.")


def slots_for(gpu: GPU, shared: Mapping[str, int]) -> int:
    """Return in how many slots a GPU is shared; 1: it isn't.

    Args:
        gpu: the GPU.
        shared: UUID or model -> number of slots; a UUID counts before its model.
    """
    by_name = {name.lower(): number for name, number in shared.items()}
    of_model = by_name.get(gpu.model.lower(), 1)
    return by_name.get((gpu.uuid or "").lower(), of_model)


def sharing_problems(shared: Mapping[str, int], gpus: Sequence[GPU]) -> Iterator[str]:
    """Yield a sentence for each entry of `shared_gpus` that shares nothing.

    Args:
        shared: as for `slots_for`.
        gpus: every GPU, whole, shared or in MIG mode.
    """
    for name, number in shared.items():
        named = [gpu for gpu in gpus if name.lower() in (gpu.model.lower(), _uuid_of(gpu))]
        if not named:
            yield lazy_gettext(
                "shared_gpus names %(name)s, and this machine has no such GPU.", name=name
            )
        elif number > 1 and all(gpu.state == "mig" or gpu.parent for gpu in named):
            yield lazy_gettext(
                "shared_gpus names %(name)s, which is in MIG mode: its instances are handed out, "
                "each to one server.",
                name=name,
            )


def _uuid_of(gpu: GPU) -> str:
    return (gpu.gpu_uuid or "").lower()


def split(
    gpu: GPU,
    shared: Mapping[str, int],
    instances: Sequence[MIGInstance],
    excluded: Collection[str] = (),
    memory_threshold_mib: int | None = None,
) -> list[GPU]:
    """Return the units of a GPU.

    A GPU in MIG mode stays among them, since pages show it; it is never handed out (`state`).

    Args:
        gpu: the GPU as a whole, as NVML reports it.
        shared: as for `slots_for`.
        instances: its MIG instances.
        excluded: UUIDs of what is never handed out, in lower case.
        memory_threshold_mib: as for `nvml.read`.
    """
    if gpu.state == "mig" or instances:
        units = (
            _instance(gpu, each, number, memory_threshold_mib)
            for number, each in enumerate(instances)
        )
        return [gpu, *(_kept_out(unit, excluded) for unit in units)]
    slots = slots_for(gpu, shared)
    # A GPU without a UUID can't be leased: there is no telling which one it is.
    if slots <= 1 or not gpu.uuid:
        return [gpu]
    return slots_of(gpu, slots)


def slots_of(gpu: GPU, slots: int, ends: float | None = None) -> list[GPU]:
    """Return the slots of a GPU.

    Args:
        gpu: the GPU as a whole.
        slots: how many.
        ends: as for `GPU`.
    """
    share = Fraction(1, slots)
    return [
        replace(gpu, kind=SHARED, part=number, parts=slots, share=share, ends=ends)
        for number in range(slots)
    ]


def divided_as_held(gpus: Iterable[GPU], leases: Iterable[Lease]) -> list[GPU]:
    """Return GPUs as what they are to those who look: slots where servers hold slots of them.

    Which GPUs a hub shares it alone knows, and some for hours. That it does, the leases say. Their
    holders aren't filled in.

    Args:
        gpus: the units, with leases applied or not.
        leases: the leases on them.
    """
    held = [parse(name) for lease in leases for name in lease.gpus]
    shared = {name.uuid: name.of for name in held if name.slot is not None}
    return [
        unit
        for gpu in gpus
        for unit in (
            slots_of(_as_if_free(gpu), shared[gpu.uuid])
            if gpu.kind == WHOLE and gpu.uuid in shared and gpu.state != "mig"
            else [gpu]
        )
    ]


def _as_if_free(gpu: GPU) -> GPU:
    state: GPUState = "free" if gpu.state == "leased" else gpu.state
    reason = "" if gpu.state == "leased" else gpu.reason
    return replace(gpu, state=state, reason=reason, holder=None, until=None, overdue=False)


def _kept_out(unit: GPU, excluded: Collection[str]) -> GPU:
    if (unit.uuid or "").lower() in excluded:
        return replace(unit, state="excluded", reason=KEPT_OUT)
    return unit


def _instance(
    gpu: GPU, seen: MIGInstance, number: int, memory_threshold_mib: int | None = None
) -> GPU:
    """Return a MIG instance as a unit; `number` is its place among its GPU's, as in `nvidia-smi`.

    ref: https://docs.nvidia.com/datacenter/tesla/mig-user-guide/
    """
    use = describe_use(
        seen.processes, seen.memory_used_mib, seen.memory_total_mib, memory_threshold_mib
    )
    unit = replace(
        gpu,
        uuid=seen.uuid,
        kind=seen.profile,
        part=number,
        parts=seen.of_slices,
        parent=seen.parent_uuid,
        share=Fraction(min(seen.slices, seen.of_slices), seen.of_slices),
        memory_total_mib=seen.memory_total_mib,
        memory_used_mib=seen.memory_used_mib,
        # NVML has no utilization of a part of a GPU.
        utilization_percent=None,
        state="foreign" if use else "free",
        reason=use,
        links=(),
    )
    if gpu.state not in ("mig", "free", "foreign"):
        # What is wrong with the GPU, or kept out, is so with each part of it.
        return replace(unit, state=gpu.state, reason=gpu.reason)
    if not seen.profile:
        # It has to be called something, and nobody can ask for it.
        return replace(unit, kind=NAMELESS, state="unknown", reason=NO_PROFILE)
    if seen.memory_used_mib is None and seen.processes is None:
        why = lazy_gettext("NVML can't tell whether it is in use.")
        return replace(unit, state="unknown", reason=why)
    return unit
