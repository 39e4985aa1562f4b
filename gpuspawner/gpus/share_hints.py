"""What programs on a shared GPU are told of their part of its memory.

Nothing divides that memory by hardware. Frameworks that would take all of it at their first use are
told not to, in the variables that they read themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

from .model import GPU, SHARED

# Of its part a framework is given so much: a process's context on the GPU takes memory as well.
OF_PART = 0.9


def environment(gpus: Sequence[GPU]) -> dict[str, str]:
    """Return environment variables for a server with these units; {} unless it shares a GPU.

    ref: https://docs.jax.dev/en/latest/gpu_memory_allocation.html
    ref: https://www.tensorflow.org/guide/gpu#limiting_gpu_memory_growth
    """
    if len(gpus) != 1 or gpus[0].kind != SHARED:
        return {}
    fraction = f"{OF_PART / gpus[0].parts:.3f}"
    return {
        "GPUSPAWNER_GPU_MEMORY_FRACTION": fraction,
        "XLA_PYTHON_CLIENT_MEM_FRACTION": fraction,
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    }
