"""Units of GPUs that are whole, shared or partitioned."""

from __future__ import annotations

from typing import Any

from gpuspawner.gpus.model import GPU
from gpuspawner.gpus.state import MIGInstance
from gpuspawner.gpus.units import split

A100 = "NVIDIA A100-SXM4-40GB"


def gpu(number: int, model: str = A100, **more: Any) -> GPU:
    return GPU(f"GPU-{number}", number, model, memory_total_mib=40960, **more)


def instance(number: int, part: int, profile: str = "1g.5gb", **more: Any) -> MIGInstance:
    facts: dict[str, Any] = {
        "uuid": f"MIG-{number}-{part}",
        "parent_uuid": f"GPU-{number}",
        "gi": part + 7,
        "ci": 0,
        "profile": profile,
        "memory_total_mib": 4864,
        "memory_used_mib": 0,
        "processes": 0,
        "slices": int(profile[0]),
        "of_slices": 7,
    }
    return MIGInstance(**{**facts, **more})


def partitioned(number: int, *profiles: str) -> list[GPU]:
    parts = [instance(number, part, profile) for part, profile in enumerate(profiles)]
    return split(gpu(number, state="mig"), {}, parts)


def shared(number: int, slots: int) -> list[GPU]:
    return split(gpu(number), {A100: slots}, ())
