"""What NVML says of a GPU's health: its memory's repairs, what would recover it, fabric, clocks.

Each question may be one that the GPU or the driver doesn't know, or that isn't allowed: that is
"not told" (`HealthReading.unread`), which is never "healthy".

ref: https://docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt/
ref: https://docs.nvidia.com/deploy/dynamic-page-retirement/
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pynvml

from . import health_facts as facts
from .health_facts import HealthReading
from .nvml_queries import query

# ref: nvmlFieldValueEnums; older nvidia-ml-py has no name for it. Drivers answer from 570 on.
FIELD_RECOVERY_ACTION = 230
# ref: nvmlClocksEventReasons
SW_THERMAL, HW_THERMAL, POWER_BRAKE = 0x20, 0x40, 0x80
# ref: nvmlGpuFabricState_t
FABRIC_NOT_STARTED, FABRIC_IN_PROGRESS, FABRIC_COMPLETED = 1, 2, 3


class _FabricInfo(ctypes.Structure):
    """`nvmlGpuFabricInfo_v2_t`, which older nvidia-ml-py doesn't have."""

    _fields_ = (
        ("version", ctypes.c_uint),
        ("cluster", ctypes.c_ubyte * 16),
        ("status", ctypes.c_uint),
        ("clique", ctypes.c_uint),
        ("state", ctypes.c_ubyte),
        ("health_mask", ctypes.c_uint),
    )


_FABRIC_V2 = ctypes.sizeof(_FabricInfo) | 2 << 24


def read_health(handle: Any) -> tuple[HealthReading, pynvml.NVMLError | None]:
    """Return what a GPU says of its health, and why its memory's can't be read; None: it can.

    Raises:
        pynvml.NVMLError_GpuIsLost: it has fallen off the bus.
        pynvml.NVMLError_ResetRequired: it needs a reset.
    """
    causes: set[str] = set()
    unread: set[str] = set()
    failed: pynvml.NVMLError | None = None
    for told, ask in _QUESTIONS:
        found = None
        try:
            found = query(ask, handle)
        except (pynvml.NVMLError_GpuIsLost, pynvml.NVMLError_ResetRequired):
            raise
        except pynvml.NVMLError as error:
            if told in (facts.OF_ROWS, facts.OF_PAGES):
                failed = failed or error
        if found is None:
            unread |= told
        else:
            causes |= found
    return HealthReading(frozenset(causes), frozenset(unread)), failed


def _rows(handle: Any) -> set[str]:
    _, _, pending, failed = pynvml.nvmlDeviceGetRemappedRows(handle)
    return _those({facts.REMAP_PENDING: pending, facts.REMAP_FAILED: failed})


def _pages(handle: Any) -> set[str]:
    return _those({facts.PAGES_PENDING: pynvml.nvmlDeviceGetRetiredPagesPendingStatus(handle)})


def _ecc(handle: Any) -> set[str]:
    errors = pynvml.nvmlDeviceGetTotalEccErrors(
        handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
    )
    return _those({facts.ECC_ERRORS: errors})


def _recovery(handle: Any) -> set[str] | None:
    (value,) = pynvml.nvmlDeviceGetFieldValues(handle, [FIELD_RECOVERY_ACTION])
    if value.nvmlReturn != pynvml.NVML_SUCCESS:
        return None
    action = int(value.value.uiVal)
    return {facts.RECOVERY.get(action, facts.RECOVERY_OTHER)} if action else set()


def _fabric(handle: Any) -> set[str] | None:
    info = _FabricInfo(_FABRIC_V2)
    # Bypasses pynvml, whose releases know different versions of this struct.
    code = pynvml._nvmlGetFunctionPointer("nvmlDeviceGetGpuFabricInfoV")(handle, ctypes.byref(info))
    if code != pynvml.NVML_SUCCESS:
        return None
    return _those(
        {
            facts.FABRIC_SETTING_UP: info.state in (FABRIC_NOT_STARTED, FABRIC_IN_PROGRESS),
            facts.FABRIC_FAILED: info.state == FABRIC_COMPLETED and info.status != 0,
        }
    )


def _clocks(handle: Any) -> set[str]:
    # Its name before driver 535, which newer drivers know too.
    reasons = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    return _those(
        {facts.HOT: reasons & (SW_THERMAL | HW_THERMAL), facts.POWER_BRAKE: reasons & POWER_BRAKE}
    )


def _those(found: dict[str, Any]) -> set[str]:
    return {name for name, there in found.items() if there}


_QUESTIONS: tuple[tuple[frozenset[str], Callable[[Any], set[str] | None]], ...] = (
    (facts.OF_ROWS, _rows),
    (facts.OF_PAGES, _pages),
    (facts.OF_ECC, _ecc),
    (facts.OF_RECOVERY, _recovery),
    (facts.OF_FABRIC, _fabric),
    (facts.OF_CLOCKS, _clocks),
)
