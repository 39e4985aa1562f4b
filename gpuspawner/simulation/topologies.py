"""How the GPUs of a simulated host are connected: by NVLink and by PCIe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .state import State

# Pairs of GPUs -> how many NVLinks they have. `State`'s GPUs are numbered from 0.
Links = dict[tuple[int, int], int]

# A DGX-1 with V100, as its `nvidia-smi topo -m` shows it.
# ref: https://docs.nvidia.com/dgx/dgx1-user-guide/introduction-to-dgx1.html
DGX_1: Links = {
    **{(0, 1): 1, (0, 2): 1, (0, 3): 2, (0, 4): 2, (1, 2): 2, (1, 3): 1, (1, 5): 2, (2, 3): 2},
    **{(2, 6): 1, (3, 7): 1, (4, 5): 1, (4, 6): 1, (4, 7): 2, (5, 6): 2, (5, 7): 1, (6, 7): 2},
}
# Bridges that don't join neighbours.
# ref: https://github.com/NVIDIA/k8s-device-plugin/issues/546
PAIRS: Links = {(0, 2): 4, (1, 3): 4, (4, 5): 4, (6, 7): 4}


def on_bus(state: State) -> State:
    """Return a host with two GPUs on each PCIe switch, and half of the GPUs on each socket."""
    half = (len(state.gpus) + 1) // 2
    gpus = (
        replace(gpu, pcie=(number // half, number // 2)) for number, gpu in enumerate(state.gpus)
    )
    return replace(state, gpus=tuple(gpus))


def linked(state: State, links: Links) -> State:
    """Return a host with these NVLinks; pairs that it doesn't have are left out."""
    state = on_bus(state)
    found: list[list[tuple[str, int]]] = [[] for _ in state.gpus]
    for pair, count in links.items():
        if max(pair) < len(state.gpus):
            for one, other in (pair, pair[::-1]):
                found[one].append((state.gpus[other].bus_id or "", count))
    gpus = (replace(gpu, nvlinks=tuple(found[n])) for n, gpu in enumerate(state.gpus))
    return replace(state, gpus=tuple(gpus))


def switched(state: State) -> State:
    """Return a host on which all GPUs are connected by NVSwitch."""
    state = on_bus(state)
    gpus = (replace(gpu, nvlinks=(("switch", 12),)) for gpu in state.gpus)
    return replace(state, gpus=tuple(gpus))


TOPOLOGIES: dict[str, Callable[[State], State]] = {
    "dgx-1": lambda state: linked(state, DGX_1),
    "nvswitch": switched,
    "pairs": lambda state: linked(state, PAIRS),
    "pcie": on_bus,
}
