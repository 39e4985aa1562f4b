"""The names of GPUs for users, the same on all pages and in JupyterLab."""

from __future__ import annotations

from collections.abc import Sequence

from ..i18n.lazy_text import lazy_gettext, listed
from .machine_names import MachineNames
from .model import GPU, SHARED, WHOLE


def gpu_names(gpus: Sequence[GPU], machines: MachineNames) -> str:
    """Return GPUs by their names: "GPU 1, GPU 2 (NVIDIA A100)"; "" for none.

    Args:
        gpus: the GPUs.
        machines: what all machines are called: where there are several, names need the machine's.
    """
    parts = []
    for model in dict.fromkeys(gpu.model for gpu in gpus):
        of_model = [gpu_name(gpu, machines) for gpu in gpus if gpu.model == model]
        names = listed(of_model)
        parts.append(lazy_gettext("%(gpus)s (%(model)s)", gpus=names, model=model))
    return listed(parts)


def part_name(gpu: GPU) -> str:
    """Return what part of a GPU a unit is: "1/8", "1g.10gb"; "" for the whole."""
    if gpu.kind == WHOLE:
        return ""
    return f"1/{gpu.parts}" if gpu.kind == SHARED else gpu.kind


def gpu_name(gpu: GPU, machines: MachineNames) -> str:
    """Return a unit's name, the same on all pages.

    "GPU 1", "machine 2 · GPU 1", for who may know the machine "atlas · GPU 1", "GPU 1 (1/8)" for a
    slot of eight, "GPU 1 (1g.10gb)" for an instance.
    """
    name = lazy_gettext("GPU %(index)s", index=gpu.index)
    if gpu.kind != WHOLE:
        name = lazy_gettext("%(gpu)s (%(part)s)", gpu=name, part=part_name(gpu))
    if not machines.several:
        return name
    return lazy_gettext("%(node)s · %(gpu)s", node=machines.of(gpu.node), gpu=name)
