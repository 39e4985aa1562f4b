"""GPU models and driver branches that a simulated host can have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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


# MIG profiles and an instance's memory (MiB), as `nvidia-smi mig -lgip` lists them.
# ref: https://docs.nvidia.com/datacenter/tesla/mig-user-guide/
_A30 = {"1g.6gb": 5952, "1g.6gb+me": 5952, "2g.12gb": 11968, "2g.12gb+me": 11968, "4g.24gb": 24000}
_A100_40GB = {
    **{"1g.5gb": 4864, "1g.5gb+me": 4864, "1g.10gb": 9984, "2g.10gb": 9984, "3g.20gb": 20096},
    **{"4g.20gb": 20096, "7g.40gb": 40448},
}
_A100_80GB = {
    **{"1g.10gb": 9728, "1g.10gb+me": 9728, "1g.20gb": 19968, "2g.20gb": 19968, "3g.40gb": 40192},
    **{"4g.40gb": 40192, "7g.80gb": 80640},
}
_H100 = {
    **{"1g.10gb": 9984, "1g.10gb+me": 9984, "1g.20gb": 20096, "2g.20gb": 20096, "3g.40gb": 40448},
    **{"4g.40gb": 40448, "7g.80gb": 81152},
}
_H200 = {
    **{"1g.18gb": 16384, "1g.18gb+me": 16384, "1g.35gb": 33280, "2g.35gb": 33280},
    **{"3g.71gb": 71168, "4g.71gb": 71168, "7g.141gb": 143360},
}
_GH200 = {
    **{"1g.12gb": 11264, "1g.12gb+me": 11264, "1g.24gb": 23552, "2g.24gb": 23552},
    **{"3g.48gb": 47616, "4g.48gb": 47616, "7g.96gb": 95232},
}
_B200 = {
    **{"1g.23gb": 22016, "1g.23gb+me": 22016, "1g.45gb": 45056, "2g.45gb": 45056},
    **{"3g.90gb": 90112, "4g.90gb": 90112, "7g.180gb": 182272},
}


@dataclass(frozen=True)
class Model:
    """A GPU model as NVML shows it: its name, memory (MiB), compute capability, power limit (W).

    Memory that is the host's, on a system on one chip, is None, and so is a limit that isn't told.
    `mig_profiles` has an instance's memory (MiB) for each MIG profile, and is empty without MIG;
    `mig_slices` are the compute slices that its instances share.
    """

    name: str
    memory_total_mib: int | None
    compute_capability: tuple[int, int]
    power_limit_watts: int | None
    mig_profiles: Mapping[str, int] = field(default_factory=dict)
    has_fan: bool = False
    has_ecc: bool = True

    @property
    def mig_slices(self) -> int:
        """7, and 4 on an A30."""
        return 4 if self.mig_profiles is _A30 else 7


MODELS: Mapping[str, Model] = MappingProxyType(
    {
        "A10": Model("NVIDIA A10", 23028, (8, 6), 150),
        "A30": Model("NVIDIA A30", 24576, (8, 0), 165, _A30),
        "A100-40GB": Model("NVIDIA A100-SXM4-40GB", 40960, (8, 0), 400, _A100_40GB),
        "A100-80GB": Model("NVIDIA A100-SXM4-80GB", 81920, (8, 0), 400, _A100_80GB),
        "A100-PCIe-40GB": Model("NVIDIA A100-PCIE-40GB", 40960, (8, 0), 250, _A100_40GB),
        "A100-PCIe-80GB": Model("NVIDIA A100 80GB PCIe", 81920, (8, 0), 300, _A100_80GB),
        "B200": Model("NVIDIA B200", 183359, (10, 0), 1000, _B200),
        "GB10": Model("NVIDIA GB10", None, (12, 1), None, has_ecc=False),
        "GH200": Model("NVIDIA GH200 480GB", 97871, (9, 0), 900, _GH200),
        "H100": Model("NVIDIA H100 80GB HBM3", 81559, (9, 0), 700, _H100),
        "H100-PCIe": Model("NVIDIA H100 PCIe", 81559, (9, 0), 350, _H100),
        "H200": Model("NVIDIA H200", 143771, (9, 0), 700, _H200),
        "L4": Model("NVIDIA L4", 23034, (8, 9), 72),
        "L40S": Model("NVIDIA L40S", 46068, (8, 9), 350),
        "Orin": Model("Orin (nvgpu)", None, (8, 7), None, has_ecc=False),
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
