"""What programs on a shared GPU are told of their part of its memory.

Nothing divides that memory by hardware. Frameworks that would take all of it at their first use are
told not to, in the variables that they read themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

from .model import GPU, SHARED

# Of its part a framework is given so much: a process's context on the GPU takes memory as well.
OF_PART = 0.9


def is_shared(gpus: Sequence[GPU]) -> bool:
    """Return whether a server with these units shares a GPU."""
    return len(gpus) == 1 and gpus[0].kind == SHARED


def environment(gpus: Sequence[GPU], guard_seconds: float | None = None) -> dict[str, str]:
    """Return environment variables for a server with these units; {} unless it shares a GPU.

    Args:
        gpus: the units.
        guard_seconds: for how long it may hold more than its part; None: nobody looks.

    ref: https://docs.jax.dev/en/latest/gpu_memory_allocation.html
    ref: https://www.tensorflow.org/guide/gpu#limiting_gpu_memory_growth
    """
    if not is_shared(gpus):
        return {}
    fraction = f"{OF_PART / gpus[0].parts:.3f}"
    return {
        "GPUSPAWNER_GPU_SHARE": f"1/{gpus[0].parts}",
        "GPUSPAWNER_GPU_MEMORY_FRACTION": fraction,
        "GPUSPAWNER_MEMORY_GUARD": "off" if guard_seconds is None else f"{guard_seconds:g}",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": fraction,
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    }
