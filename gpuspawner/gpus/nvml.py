"""What NVML says of this host: its GPUs, and whether each is healthy and at rest.

The only module that imports pynvml. A host without an NVIDIA driver is a normal value; a driver
that can't be asked is an `InventoryError`; a GPU that can't be asked is one sick entry beside the
healthy ones. What can't be told is never reported as at rest.

ref: https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pynvml

from ..errors import GPUSpawnerError
from ..i18n.lazy_text import lazy_gettext
from .state import GPUFacts, InventoryState, derive_state, without_duplicate_uuids

MIB = 1024 * 1024
# How long a caller waits while another's call hangs in the driver.
LOCK_TIMEOUT_SECONDS = 20.0
# More than any host has: a larger count is a library gone wrong.
MAX_GPUS = 256
MAX_PROCESSES = 100_000

_UUID = re.compile(r"GPU-[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")
_ARGUMENT_VERSION_MISMATCH = 25  # older nvidia-ml-py has no name for it
_COMPUTE_MODES = {0: "default", 1: "exclusive_process", 2: "prohibited", 3: "exclusive_process"}


class InventoryError(GPUSpawnerError):
    """NVML can't be asked, so nothing is known of the GPUs. The text is a sentence for people."""


@dataclass(frozen=True)
class Inventory:
    """The host's driver and CUDA versions ("570.133.20", "12.8") and its GPUs in NVML's order.

    `driver` is None on a host without NVIDIA's driver; `cuda` also where NVML doesn't tell.
    """

    driver: str | None
    cuda: str | None
    gpus: tuple[GPUFacts, ...]


_lock = threading.Lock()
_is_initialised = False


def read(memory_threshold_mib: int | None = None, excluded: Collection[str] = ()) -> Inventory:
    """Ask NVML about this host. Blocks, for as long as the driver takes: call it in a thread.

    NVML stays initialised between reads, since starting it can take seconds. It is let go after a
    read in which something failed, so that a driver that comes back is found and a GPU that needs a
    reset can have it (a reset is refused while any program holds the GPU); `close` lets it go too.

    Args:
        memory_threshold_mib: a GPU with more than this much memory in use counts as in use.
            None: 1024 MiB or 2 % of its memory, whichever is more.
        excluded: UUIDs of GPUs that the administrator keeps out.

    Raises:
        InventoryError: NVML is there and can't be asked.
    """
    if not _lock.acquire(timeout=LOCK_TIMEOUT_SECONDS):
        raise InventoryError(
            lazy_gettext(
                "The NVIDIA driver has not answered for %(seconds)s seconds. "
                "If `nvidia-smi` hangs too, the host needs a reboot.",
                seconds=round(LOCK_TIMEOUT_SECONDS),
            )
        )
    try:
        return _read_locked(memory_threshold_mib, frozenset(uuid.lower() for uuid in excluded))
    except Exception as error:
        _shut_down_nvml()
        if isinstance(error, InventoryError):
            raise
        raise InventoryError(_explain_failure(error)) from error
    finally:
        _lock.release()


def close() -> None:
    """Let NVML go until the next `read`, so that the driver can be unloaded or a GPU reset."""
    with _lock:
        _shut_down_nvml()


def _read_locked(memory_threshold_mib: int | None, excluded: frozenset[str]) -> Inventory:
    kept = _is_initialised
    try:
        _init_nvml()
        inventory = _read_host()
    except pynvml.NVMLError as error:
        if isinstance(error, pynvml.NVMLError_LibraryNotFound):
            return _without_library()
        if not kept:
            raise
        # The driver may have gone and come back since the last read: begin anew, once.
        _shut_down_nvml()
        _init_nvml()
        inventory = _read_host()
    if any(gpu.state != "ok" for gpu in inventory.gpus):
        _shut_down_nvml()
    gpus = (
        derive_state(gpu, memory_threshold_mib, excluded)
        for gpu in without_duplicate_uuids(inventory.gpus)
    )
    return replace(inventory, gpus=tuple(gpus))


def _init_nvml() -> None:
    global _is_initialised
    if not _is_initialised:
        # Without the flag some drivers fail to start where they have no GPU.
        pynvml.nvmlInitWithFlags(pynvml.NVML_INIT_FLAG_NO_GPUS)
        _is_initialised = True


def _shut_down_nvml() -> None:
    global _is_initialised
    if _is_initialised:
        _is_initialised = False
        with suppress(pynvml.NVMLError):  # what failed before may fail again
            pynvml.nvmlShutdown()


def _without_library() -> Inventory:
    # pynvml says "not found" also of a library that is there and doesn't load.
    name = "libnvidia-ml.so.1"
    try:
        ctypes.CDLL(name)
    except OSError as error:
        if name not in str(error) or "No such file" not in str(error):
            raise InventoryError(
                lazy_gettext(
                    "NVIDIA's library %(name)s is installed and can't be loaded: %(error)s. "
                    "Reinstall the driver's libraries.",
                    name=name,
                    error=str(error),
                )
            ) from error
    return Inventory(None, None, ())


def _read_host() -> Inventory:
    driver = _query_text(pynvml.nvmlSystemGetDriverVersion)
    if not re.match(r"\d+\.\d", driver):
        raise InventoryError(
            lazy_gettext(
                "NVML says that the driver's version is %(version)s, which is none.",
                version=repr(driver),
            )
        )
    count = pynvml.nvmlDeviceGetCount()
    if not 0 <= count <= MAX_GPUS:
        raise InventoryError(
            lazy_gettext(
                "NVML says that this host has %(number)s GPUs, which can't be right.", number=count
            )
        )
    return Inventory(
        driver, _read_cuda_version(), tuple(_read_gpu(index) for index in range(count))
    )


def _read_cuda_version() -> str | None:
    version = _query_optional(pynvml.nvmlSystemGetCudaDriverVersion)  # 12080 is 12.8
    return f"{version // 1000}.{version % 1000 // 10}" if version and version > 0 else None


def _read_gpu(index: int) -> GPUFacts:
    """All that one GPU tells, up to the first needed question that it can't answer."""
    known: dict[str, Any] = {"uuid": None, "index": index}
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        known["uuid"] = _read_uuid(handle)
        known["name"] = (
            _query_optional(_query_text, pynvml.nvmlDeviceGetName, handle) or GPUFacts.name
        )
        capability = pynvml.nvmlDeviceGetCudaComputeCapability
        known["compute_capability"] = _query_optional(capability, handle)
        mig = _query(pynvml.nvmlDeviceGetMigMode, handle)
        known["mig"] = None if mig is None else mig[0] != 0
        mode = _query(pynvml.nvmlDeviceGetComputeMode, handle)
        known["compute_mode"] = _COMPUTE_MODES.get(mode)
        known["memory_total_mib"], known["memory_used_mib"] = _read_memory(handle)
        known["processes"] = _count_processes(handle)
        known["utilization_percent"] = _read_utilization(handle)
        known["state"], known["reason"], known["warning"] = _read_health(handle)
    except (pynvml.NVMLError_DriverNotLoaded, pynvml.NVMLError_Uninitialized):
        raise
    except Exception as error:  # one sick GPU must not hide the others
        known["state"], known["reason"] = _failure_state(error)
    return GPUFacts(**known)


# How to ask ---------------------------------------------------------------------------------------


def _query(function: Callable[..., Any], *arguments: Any) -> Any:
    """NVML's answer; None where the GPU or the driver doesn't have it, which is no failure."""
    try:
        return function(*arguments)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return None


def _query_optional(function: Callable[..., Any], *arguments: Any) -> Any:
    """NVML's answer to what nothing depends on; None unless the GPU as a whole has failed."""
    try:
        return _query(function, *arguments)
    except (pynvml.NVMLError_GpuIsLost, pynvml.NVMLError_ResetRequired):
        raise
    except pynvml.NVMLError:
        return None


def _query_text(function: Callable[..., Any], *arguments: Any) -> str:
    # Past pynvml's wrapper, which decodes as UTF-8 and fails where a text isn't.
    text = getattr(function, "__wrapped__", function)(*arguments)
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def _read_uuid(handle: Any) -> str:
    uuid = _query_text(pynvml.nvmlDeviceGetUUID, handle)
    if not _UUID.match(uuid):
        raise ValueError(f"its UUID is {uuid!r}")
    return uuid


def _read_memory(handle: Any) -> tuple[int | None, int | None]:
    """Total and used MiB. Version 1 of the query counts the driver's own memory as used."""
    try:
        memory = _query(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    except pynvml.NVMLError as error:
        # How a driver says that it doesn't know this version of the struct.
        if error.value not in (pynvml.NVML_ERROR_INVALID_ARGUMENT, _ARGUMENT_VERSION_MISMATCH):
            raise
        memory = None
    memory = memory or _query(pynvml.nvmlDeviceGetMemoryInfo, handle)
    if memory is None:
        return None, None
    if memory.total == 0 or memory.used > memory.total:
        raise ValueError(f"it says that {memory.used} of {memory.total} bytes are used")
    return memory.total // MIB, memory.used // MIB


def _count_processes(handle: Any) -> int | None:
    """How many compute processes the GPU has.

    Their number counts, not their ids: inside a container the hub sees other ids, or zeros.
    """
    # Past pynvml, whose releases know different versions of this question and sizes of the answer.
    for version in ("_v3", "_v2", ""):  # from drivers 510, 450 and the beginning
        try:
            name = f"nvmlDeviceGetComputeRunningProcesses{version}"
            code, count = _query_array(pynvml._nvmlGetFunctionPointer(name), handle)
        except pynvml.NVMLError_FunctionNotFound:
            continue
        if code == pynvml.NVML_SUCCESS:
            return count
        if code == pynvml.NVML_ERROR_NOT_SUPPORTED:
            return None
        if code != pynvml.NVML_ERROR_FUNCTION_NOT_FOUND:
            raise pynvml.NVMLError(code)
    return None


def _query_array(question: Callable[..., int], handle: Any) -> tuple[int, int]:
    """Code and count of a question that fills an array: first for the count, then with room."""
    count = ctypes.c_uint(0)
    code = question(handle, ctypes.byref(count), None)
    if code != pynvml.NVML_ERROR_INSUFFICIENT_SIZE or count.value > MAX_PROCESSES:
        return code, count.value
    room = count.value * 2 + 5  # more may come meanwhile
    answer = ctypes.create_string_buffer(room * 64)  # twice the largest entry there has been
    count = ctypes.c_uint(room)
    return question(handle, ctypes.byref(count), answer), count.value


def _read_utilization(handle: Any) -> int | None:
    rates = _query_optional(pynvml.nvmlDeviceGetUtilizationRates, handle)
    return rates.gpu if rates is not None and rates.gpu <= 100 else None


def _read_health(handle: Any) -> tuple[InventoryState, str, str]:
    """InventoryState, reason and warning from the memory's repairs.

    ref: https://docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt/
    ref: https://docs.nvidia.com/deploy/dynamic-page-retirement/
    """
    try:
        rows = _query(pynvml.nvmlDeviceGetRemappedRows, handle)
        pages_pending = _query(pynvml.nvmlDeviceGetRetiredPagesPendingStatus, handle)
    except (pynvml.NVMLError_GpuIsLost, pynvml.NVMLError_ResetRequired):
        raise
    except pynvml.NVMLError as error:
        return "ok", "", f"Its memory's health can't be read: {_error_text(error)}."
    _, _, remap_pending, remap_failed = rows or (0, 0, 0, 0)
    if remap_failed:
        return (
            "unhealthy",
            lazy_gettext("Its memory has faults that can't be repaired: replace it."),
            "",
        )
    if remap_pending or pages_pending:
        return "ok", "", "A repair of its memory waits for the next reset or reboot."
    return "ok", "", ""


# What failures mean -------------------------------------------------------------------------------


def _error_text(error: Exception) -> str:
    try:
        return str(error).strip().rstrip(".") or type(error).__name__
    except Exception:  # pynvml asks the library for words, and the library may be what is broken
        return type(error).__name__


def _failure_state(error: Exception) -> tuple[InventoryState, str]:
    """InventoryState and reason of a GPU that failed a question."""
    if isinstance(error, pynvml.NVMLError_GpuIsLost):
        return "unhealthy", lazy_gettext("It has fallen off the bus: the host needs a reboot.")
    if isinstance(error, pynvml.NVMLError_ResetRequired):
        reason = lazy_gettext("It needs a reset (`nvidia-smi --gpu-reset`) before it works again.")
        return "unhealthy", reason
    return "unknown", lazy_gettext(
        "NVML can't tell its state: %(error)s.", error=_error_text(error)
    )


def _explain_failure(error: Exception) -> str:
    """What happened and what to do, where NVML as a whole failed."""
    code = getattr(error, "value", None)
    if code == pynvml.NVML_ERROR_DRIVER_NOT_LOADED:
        return lazy_gettext(
            "NVIDIA's library is installed and its driver isn't loaded. "
            "Load it (`modprobe nvidia`), or see in `dmesg` why it fails."
        )
    if code == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return lazy_gettext(
            "The NVIDIA driver and its library are of different versions, as after an upgrade. "
            "Reboot the host; if the driver was reloaded, restart the hub."
        )
    if code in (pynvml.NVML_ERROR_NO_PERMISSION, pynvml.NVML_ERROR_OPERATING_SYSTEM):
        return lazy_gettext(
            "This process may not use the NVIDIA driver. "
            "Check the permissions of /dev/nvidia*, in a container its device rules."
        )
    return lazy_gettext(
        "NVML fails: %(error)s. See whether `nvidia-smi` works on the host.",
        error=_error_text(error),
    )
