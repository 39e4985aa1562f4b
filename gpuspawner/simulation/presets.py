"""Real machines as simulated hosts, with what is odd about each.

What their drivers answer is from NVIDIA's documents and from reports of people who have them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from .mig import layout, partition
from .state import State, describe
from .topologies import DGX_1, linked, on_bus, switched

NOT_SUPPORTED, UNKNOWN = 3, 999
# All versions of a query, of which a program asks for the newest that there is.
PROCESS_QUERIES = tuple(
    f"nvmlDeviceGet{kind}RunningProcesses{version}"
    for kind in ("Compute", "Graphics")
    for version in ("", "_v2", "_v3")
)


@dataclass(frozen=True)
class Preset:
    """A machine.

    Args:
        summary: what it is, as a part of a sentence.
        state: returns what its NVML reports.
    """

    summary: str
    state: Callable[[], State]


def _dgx_a100() -> State:
    state = switched(describe([("A100-40GB", 8)], "550.54.15"))
    state = partition(state, 6, layout("3g.20gb x2"))
    return partition(state, 7, layout("1g.5gb x7"))


def _a30() -> State:
    state = on_bus(describe([("A30", 4)], "550.54.15"))
    state = partition(state, 0, layout("1g.6gb x4"))
    return partition(state, 1, layout("2g.12gb, 1g.6gb x2"))


def _rtx_4090() -> State:
    """Two cards of a desktop, one of which draws the screen."""
    state = describe([("RTX-4090", 2)], "560.35.03")
    state = state.with_gpu(0, pcie=(0, 0), graphics_processes=((1893, 412), (2210, 96)))
    return state.with_gpu(1, pcie=(0, 1))


def _gh200() -> State:
    """A GPU whose memory is a NUMA node of the host, which uses it as its own.

    ref: https://docs.nvidia.com/grace-perf-tuning-guide/
    """
    state = describe([("GH200", 1)], "580.65.06")
    return state.with_gpu(0, addressing_mode="ats", memory_used_mib=31240, pcie=(0, 0))


def _gb10() -> State:
    """A system on one chip: its GPU has no memory of its own."""
    state = describe([("GB10", 1)], "580.95.05")
    return state.with_gpu(0, bus_id="0000000F:01:00.0")


def _wsl2() -> State:
    """Windows draws on it, and NVML can't tell which processes use it.

    ref: https://docs.nvidia.com/cuda/wsl-user-guide/#known-limitations-for-linux-cuda-applications
    """
    state = describe([("RTX-4090", 1)], "552.22")
    state = state.with_gpu(0, memory_used_mib=1741, fan_percent=0)
    faults = tuple((name, UNKNOWN) for name in PROCESS_QUERIES)
    return replace(state, function_faults=faults)


def _jetson() -> State:
    """NVML on the chip's own GPU tells next to nothing."""
    state = replace(describe([("Orin", 1)], "540.4.0"), cuda="12.6")
    faults = tuple((name, NOT_SUPPORTED) for name in PROCESS_QUERIES)
    faults += (("nvmlDeviceGetComputeMode", NOT_SUPPORTED),)
    return state.with_gpu(0, bus_id=None, utilization_percent=None, function_faults=faults)


PRESETS: Mapping[str, Preset] = {
    "dgx-a100": Preset("8 A100 on NVSwitch, two of them in MIG mode", _dgx_a100),
    "dgx-1": Preset(
        "8 V100 that aren't all linked",
        lambda: linked(describe([("V100-16GB", 8)], "535.183.01"), DGX_1),
    ),
    "l40s": Preset("8 L40S over PCIe", lambda: on_bus(describe([("L40S", 8)], "550.54.15"))),
    "rtx-4090": Preset("2 cards of a desktop, which draws on one", _rtx_4090),
    "a30": Preset("4 A30, two of them in MIG mode", _a30),
    "gh200": Preset("a GPU whose memory the host uses too", _gh200),
    "gb10": Preset("a GPU without memory of its own", _gb10),
    "wsl2": Preset("a GPU under Windows, whose processes aren't known", _wsl2),
    "jetson": Preset("a GPU of which next to nothing is known", _jetson),
}
