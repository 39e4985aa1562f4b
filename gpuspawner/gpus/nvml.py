"""NVML's inventory of this machine: its driver and its GPUs, with their health and use.

The only module that imports pynvml. A machine without an NVIDIA driver is a normal value. If the
driver can't be queried, that is an `InventoryError`. A GPU that can't be queried is an unhealthy
entry beside the others. A GPU whose use can't be determined is never reported as idle.

ref: https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pynvml

from ..errors import GPUSpawnerError
from ..i18n.lazy_text import lazy_gettext
from ..untrusted import printable
from . import health_facts
from .health_facts import HealthReading
from .missing_driver import own_container_id
from .nvml_health import read_health
from .nvml_links import Links, read_links
from .nvml_mig import read_instances
from .nvml_processes import read_gpu_memory
from .nvml_queries import (
    MAX_TEXT,
    call,
    count_processes,
    has_host_memory,
    query,
    query_optional,
    query_text,
    read_memory,
)
from .state import (
    GPUFacts,
    GPUMemory,
    InventoryState,
    derive_state,
    has_mig,
    without_duplicate_uuids,
)

# How long a read waits for another thread's read that hangs in the driver.
LOCK_TIMEOUT_SECONDS = 20.0
# No machine has more: a larger count means that the library is broken.
MAX_GPUS = 256
REPAIR_PENDING = "A repair of its memory waits for the next reset or reboot."

_UUID = re.compile(r"GPU-[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")
_COMPUTE_MODES = {0: "default", 1: "exclusive_process", 2: "prohibited", 3: "exclusive_process"}


class InventoryError(GPUSpawnerError):
    """NVML can't be queried, so nothing is known of the GPUs. `str()` is a sentence for users."""


class DriverNotLoaded(InventoryError):
    """NVIDIA's library is there, and its driver isn't loaded."""


@dataclass(frozen=True)
class Inventory:
    """This machine's driver and CUDA versions ("570.133.20", "12.8"), and its GPUs in NVML's order.

    `driver` is None without NVIDIA's driver; `cuda` also if NVML doesn't report it.
    """

    driver: str | None
    cuda: str | None
    gpus: tuple[GPUFacts, ...]


_lock = threading.Lock()
_is_initialised = False
# The UUIDs of the GPUs that were last there -> the links of each.
_links: dict[tuple[str, ...], Links] = {}
# The UUIDs of all GPUs, by index, as of the last read in which each told its own.
_uuids: tuple[str, ...] = ()


def read(
    memory_threshold_mib: int | None = None,
    excluded: Collection[str] = (),
    lets_go: bool = False,
) -> Inventory:
    """Read this machine's inventory from NVML. Blocks for as long as the driver takes.

    NVML stays initialised between reads, since its start can take seconds. It is shut down after a
    read in which something failed or a GPU waits for a reset, so that a reloaded driver is found
    and the GPU can be reset (the driver refuses that while a program holds the GPU). The same goes
    for a GPU in MIG mode, or about to be: only a new session sees which instances there are now,
    and the administrator can't change the mode beside one. `close` shuts it down, too.

    Args:
        memory_threshold_mib: a GPU with more memory than this in use counts as in use.
            None: 1024 MiB or 2 % of its memory, whichever is more.
        excluded: UUIDs of the GPUs that the administrator excludes.
        lets_go: whether NVML is shut down after this read in any case.

    Raises:
        InventoryError: NVML is there and can't be queried.
    """
    _take_lock()
    try:
        lower = frozenset(uuid.lower() for uuid in excluded)
        inventory = _read_locked(memory_threshold_mib, lower)
        if lets_go:
            _shut_down_nvml()
        return inventory
    except Exception as error:
        _shut_down_nvml()
        if isinstance(error, InventoryError):
            raise
        is_unloaded = isinstance(error, pynvml.NVMLError_DriverNotLoaded)
        kind = DriverNotLoaded if is_unloaded else InventoryError
        raise kind(_explain_failure(error)) from error
    finally:
        _lock.release()


def _take_lock() -> None:
    if not _lock.acquire(timeout=LOCK_TIMEOUT_SECONDS):
        raise InventoryError(
            lazy_gettext(
                "The NVIDIA driver has not answered for %(seconds)s seconds. "
                "If `nvidia-smi` hangs too, the host needs a reboot.",
                seconds=round(LOCK_TIMEOUT_SECONDS),
            )
        )


def read_memory_of(uuids: Collection[str], lets_go: bool = False) -> dict[str, GPUMemory]:
    """Return what the processes on these GPUs hold of their memory; blocks as `read` does.

    Of a GPU that can't tell, there is nothing. NVML stays as it was: begun, or shut down.

    Args:
        uuids: the GPUs' UUIDs.
        lets_go: as for `read`.

    Raises:
        InventoryError: NVML is there and can't be queried.
    """
    _take_lock()
    kept, found = _is_initialised, {}
    try:
        _init_nvml()
        for uuid in uuids:
            # Whatever is wrong with one says nothing of the others.
            with suppress(pynvml.NVMLError, ValueError):
                memory = read_gpu_memory(pynvml.nvmlDeviceGetHandleByUUID(uuid.encode()))
                found.update({} if memory is None else {uuid: memory})
        if lets_go or not kept or len(found) < len(uuids):
            # Begun anew the next time: the driver may have been reloaded.
            _shut_down_nvml()
        return found
    except Exception as error:
        _shut_down_nvml()
        raise InventoryError(_explain_failure(error)) from error
    finally:
        _lock.release()


def close() -> None:
    """Shut NVML down until the next `read`, so that the driver can be unloaded or a GPU reset.

    What is remembered of the GPUs is forgotten.
    """
    global _uuids
    with _lock:
        _uuids = ()
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
        # The driver may have been reloaded since the last read: initialise NVML again, once.
        inventory = _read_anew()
        kept = False
    if kept and any(map(has_mig, inventory.gpus)):
        # It was begun before there was MIG: a session sees the instances of its beginning.
        inventory = _read_anew()
    links = _links_of(inventory.gpus)
    if any(gpu.state != "ok" or gpu.needs_reset or has_mig(gpu) for gpu in inventory.gpus):
        _shut_down_nvml()
    gpus = (
        replace(derive_state(gpu, memory_threshold_mib, excluded), links=links.get(gpu.uuid, ()))
        for gpu in without_duplicate_uuids(_with_remembered_uuids(inventory.gpus))
    )
    return replace(inventory, gpus=tuple(gpus))


def _read_anew() -> Inventory:
    """Read in a new session of NVML."""
    _shut_down_nvml()
    _init_nvml()
    return _read_host()


def _with_remembered_uuids(gpus: tuple[GPUFacts, ...]) -> tuple[GPUFacts, ...]:
    """Return the GPUs with the UUIDs of those that don't tell theirs any more.

    A GPU that has fallen off the bus has no handle, and is still the one that somebody holds. It is
    known by its index where all others are at their own.
    """
    global _uuids
    told = [gpu.uuid for gpu in gpus]
    if None not in told:
        _uuids = tuple(map(str, told))
    elif len(told) == len(_uuids) and all(
        uuid in (None, before) for uuid, before in zip(told, _uuids, strict=True)
    ):
        return tuple(replace(gpu, uuid=before) for gpu, before in zip(gpus, _uuids, strict=True))
    return gpus


def _links_of(gpus: Collection[GPUFacts]) -> Mapping[str | None, tuple[tuple[str, int], ...]]:
    """Return UUID -> links, read once for each set of GPUs: they change with the machine."""
    uuids = tuple(sorted(gpu.uuid for gpu in gpus if gpu.uuid and gpu.state == "ok"))
    if uuids not in _links:
        _links.clear()
        _links[uuids] = read_links(uuids)
    return _links[uuids]  # type: ignore[return-value]


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
        _links.clear()
        with suppress(pynvml.NVMLError):  # what failed before may fail again
            pynvml.nvmlShutdown()


def _without_library() -> Inventory:
    # pynvml reports "not found" also for a library that is there and can't be loaded.
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
    driver = query_text(pynvml.nvmlSystemGetDriverVersion)
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
    version = query_optional(pynvml.nvmlSystemGetCudaDriverVersion)  # 12080 is 12.8
    return f"{version // 1000}.{version % 1000 // 10}" if version and version > 0 else None


def _read_gpu(index: int) -> GPUFacts:
    """Read all facts of one GPU, up to the first required one that NVML fails to return."""
    known: dict[str, Any] = {"uuid": None, "index": index}
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        known["uuid"] = _read_uuid(handle)
        known["name"] = (
            query_optional(query_text, pynvml.nvmlDeviceGetName, handle) or GPUFacts.name
        )
        capability = pynvml.nvmlDeviceGetCudaComputeCapability
        known["compute_capability"] = query_optional(capability, handle)
        mig = query(pynvml.nvmlDeviceGetMigMode, handle)
        if mig is not None:
            known["mig"], known["mig_pending"] = (mode != 0 for mode in mig)
        # In a container, or without privileges, a GPU in MIG mode says little of itself.
        required = query_optional if known.get("mig") else call
        if known.get("mig"):
            known["instances"] = read_instances(handle, known["uuid"])
        mode = required(query, pynvml.nvmlDeviceGetComputeMode, handle)
        known["compute_mode"] = _COMPUTE_MODES.get(mode)
        memory = required(read_memory, handle) or (None, None)
        known["memory_total_mib"], known["memory_used_mib"] = memory
        known["processes"] = required(count_processes, handle)
        known["host_memory"] = has_host_memory(handle)
        known["utilization_percent"] = _read_utilization(handle)
        known["health"], error = read_health(handle)
        known.update(_judge(known["health"], error))
    except (pynvml.NVMLError_DriverNotLoaded, pynvml.NVMLError_Uninitialized):
        raise
    except Exception as error:  # one unhealthy GPU must not hide the others
        known["state"], known["reason"], cause = _failure_state(error)
        known["health"] = HealthReading(frozenset({cause}), health_facts.ALL_TOLD, answers=False)
    return GPUFacts(**known)


def _read_uuid(handle: Any) -> str:
    uuid = query_text(pynvml.nvmlDeviceGetUUID, handle)
    if not _UUID.match(uuid):
        raise ValueError(f"its UUID is {uuid!r}")
    return uuid


def _read_utilization(handle: Any) -> int | None:
    rates = query_optional(pynvml.nvmlDeviceGetUtilizationRates, handle)
    return rates.gpu if rates is not None and rates.gpu <= 100 else None


def _judge(health: HealthReading, error: pynvml.NVMLError | None) -> dict[str, Any]:
    """Return state, reason, warning and `needs_reset` as they follow from a GPU's health."""
    if error is not None:
        return {"warning": f"Its memory's health can't be read: {_error_text(error)}."}
    if health_facts.REMAP_FAILED in health.causes:
        reason = lazy_gettext("Its memory has faults that can't be repaired: replace it.")
        return {"state": "unhealthy", "reason": reason}
    return {
        "warning": REPAIR_PENDING if health.causes & health_facts.REPAIRS else "",
        "needs_reset": bool(health.causes & health_facts.WAIT_FOR_RESET),
    }


# Errors -------------------------------------------------------------------------------------------


def _error_text(error: Exception) -> str:
    try:
        text = printable(str(error).strip(), MAX_TEXT)
        return text.rstrip(".") or type(error).__name__
    except Exception:  # pynvml gets the text from the library, which may be what is broken
        return type(error).__name__


def _failure_state(error: Exception) -> tuple[InventoryState, str, str]:
    """Return the state, the reason and the cause of a GPU for which a query failed."""
    if isinstance(error, pynvml.NVMLError_GpuIsLost):
        reason = lazy_gettext("It has fallen off the bus: the host needs a reboot.")
        return "unhealthy", reason, health_facts.LOST
    if isinstance(error, pynvml.NVMLError_ResetRequired):
        reason = lazy_gettext("It needs a reset (`nvidia-smi --gpu-reset`) before it works again.")
        return "unhealthy", reason, health_facts.RESET_REQUIRED
    reason = lazy_gettext("NVML can't tell its state: %(error)s.", error=_error_text(error))
    return "unknown", reason, health_facts.UNREACHABLE


def _explain_failure(error: Exception) -> str:
    """Return what an error of NVML as a whole means and what to do, as a sentence for users."""
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
    own = own_container_id()
    if own:
        # ref: NVIDIA's troubleshooting, "Containers losing access to GPUs"
        return lazy_gettext(
            "NVML fails: %(error)s. A container loses its GPUs when systemd reloads, and this is "
            "one: restart it with `docker restart %(container)s`; if that doesn't help, see "
            "whether `nvidia-smi` works on the host.",
            error=_error_text(error),
            container=own[:12],
        )
    return lazy_gettext(
        "NVML fails: %(error)s. See whether `nvidia-smi` works on the host.",
        error=_error_text(error),
    )
