"""GPU models and driver branches that a simulated host can have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

# The highest CUDA version each driver branch runs.
# ref: https://docs.nvidia.com/deploy/cuda-compatibility/
CUDA_OF_DRIVER_BRANCH: Mapping[int, str] = MappingProxyType(
    {
        418: "10.1",
        440: "10.2",
        450: "11.0",
        455: "11.1",
        460: "11.2",
        465: "11.3",
        470: "11.4",
        495: "11.5",
        510: "11.6",
        515: "11.7",
        520: "11.8",
        525: "12.0",
        530: "12.1",
        535: "12.2",
        545: "12.3",
        550: "12.4",
        555: "12.5",
        560: "12.6",
        565: "12.7",
        570: "12.8",
        575: "12.9",
        580: "13.0",
        590: "13.1",
        595: "13.2",
    }
)

# Functions that driver 510 introduced: for `build(missing_functions=…)`, to simulate an older one.
NOT_BEFORE_DRIVER_510 = (
    "nvmlDeviceGetMemoryInfo_v2",
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetGraphicsRunningProcesses_v3",
)


@dataclass(frozen=True)
class Model:
    """A GPU model as NVML shows it: its name, memory (MiB), compute capability, power limit (W)."""

    name: str
    memory_total_mib: int
    compute_capability: tuple[int, int]
    power_limit_watts: int
    has_mig: bool = False
    has_fan: bool = False
    has_ecc: bool = True


MODELS: Mapping[str, Model] = MappingProxyType(
    {
        "A10": Model("NVIDIA A10", 23028, (8, 6), 150),
        "A30": Model("NVIDIA A30", 24576, (8, 0), 165, has_mig=True),
        "A100-40GB": Model("NVIDIA A100-SXM4-40GB", 40960, (8, 0), 400, has_mig=True),
        "A100-80GB": Model("NVIDIA A100-SXM4-80GB", 81920, (8, 0), 400, has_mig=True),
        "A100-PCIe-40GB": Model("NVIDIA A100-PCIE-40GB", 40960, (8, 0), 250, has_mig=True),
        "A100-PCIe-80GB": Model("NVIDIA A100 80GB PCIe", 81920, (8, 0), 300, has_mig=True),
        "B200": Model("NVIDIA B200", 183359, (10, 0), 1000, has_mig=True),
        "H100": Model("NVIDIA H100 80GB HBM3", 81559, (9, 0), 700, has_mig=True),
        "H100-PCIe": Model("NVIDIA H100 PCIe", 81559, (9, 0), 350, has_mig=True),
        "H200": Model("NVIDIA H200", 143771, (9, 0), 700, has_mig=True),
        "L4": Model("NVIDIA L4", 23034, (8, 9), 72),
        "L40S": Model("NVIDIA L40S", 46068, (8, 9), 350),
        "RTX-2080-Ti": Model(
            "NVIDIA GeForce RTX 2080 Ti", 11264, (7, 5), 250, has_fan=True, has_ecc=False
        ),
        "RTX-3090": Model(
            "NVIDIA GeForce RTX 3090", 24576, (8, 6), 350, has_fan=True, has_ecc=False
        ),
        "RTX-4090": Model(
            "NVIDIA GeForce RTX 4090", 24564, (8, 9), 450, has_fan=True, has_ecc=False
        ),
        "RTX-A6000": Model("NVIDIA RTX A6000", 49140, (8, 6), 300, has_fan=True),
        "T4": Model("Tesla T4", 15360, (7, 5), 70),
        "V100-16GB": Model("Tesla V100-SXM2-16GB", 16384, (7, 0), 300),
        "V100-32GB": Model("Tesla V100-SXM2-32GB", 32768, (7, 0), 300),
    }
)


def cuda_of(driver: str) -> str:
    """Return the newest CUDA version, "12.8", that a driver such as "570.133.20" runs.

    A branch that isn't in the table runs what the branch before it does.

    Raises:
        ValueError: the driver is older than the table.
    """
    branch = int(driver.partition(".")[0])
    older = [known for known in CUDA_OF_DRIVER_BRANCH if known <= branch]
    if not older:
        oldest = min(CUDA_OF_DRIVER_BRANCH)
        raise ValueError(f"driver is {driver!r}; it must be from branch {oldest} or newer")
    return CUDA_OF_DRIVER_BRANCH[max(older)]
