"""The state of a simulated host, which its NVML reports: driver, GPUs and faults, in a file.

`State` is written to a small text file, one `key value` per line; the C library and `nvidia-smi`
read it afresh at each call (`state.h` is the other half of this format).
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from .models import MODELS, Model, cuda_of

STATE_PATH_VARIABLE = "GPUSPAWNER_SIMULATED_STATE"
STATE_PATH = Path("/run/gpuspawner/state")

DEFAULT_DRIVER = "570.133.20"
COMPUTE_MODES = ("default", "exclusive_process", "prohibited")
GPU_FAULTS = ("lost", "reset_required")
HOST_FAULTS = ("driver_not_loaded", "library_mismatch", "no_permission", "unknown")

# `state.h` has room for this many.
MAX_GPUS = 64
MAX_PROCESSES = 64
MAX_FUNCTION_FAULTS = 16
# As NVML's NVML_NVLINK_MAX_LINKS.
MAX_LINKS = 18

_UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_DRIVER = re.compile(r"\d+(\.\d+){1,2}\Z")
_CUDA = re.compile(r"\d+\.\d+\Z")
_BUS_ID = re.compile(r"[0-9A-F]{8}:[0-9A-F]{2}:[0-9A-F]{2}\.[0-7]\Z")
_FUNCTION = re.compile(r"nvml[A-Za-z0-9_]+\Z")


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.match(value) is not None


def _check(right: object, key: str, value: object, allowed: str) -> None:
    if not right:
        raise ValueError(f"{key} is {value!r}; it must be {allowed}")


def _check_number(key: str, value: object, low: int = 0, high: int = 2**31 - 1) -> None:
    # `bool` is an `int` to Python, and `True` written as a number would read back as 1.
    right = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    _check(right, key, value, f"a whole number from {low} to {high}")


def _check_function_faults(faults: object) -> None:
    right = isinstance(faults, tuple) and len(faults) <= MAX_FUNCTION_FAULTS
    _check(right, "function_faults", faults, f"a tuple of at most {MAX_FUNCTION_FAULTS} pairs")
    for pair in faults if isinstance(faults, tuple) else ():
        right = isinstance(pair, tuple) and len(pair) == 2 and _matches(_FUNCTION, pair[0])
        right = right and isinstance(pair[1], int) and 0 < pair[1] < 1000
        _check(right, "function_faults", pair, "pairs of an NVML function and a code from 1 to 999")


@dataclass(frozen=True)
class SimulatedGPU:
    """One GPU as NVML reports it. For `None`, NVML answers "not supported".

    `processes` and `graphics_processes` are pairs of process id and memory in MiB; a GPU's used
    memory is never less than what they hold. `memory_reserved_mib` is what the driver keeps for
    itself, which version 1 of NVML's memory query counts as used and version 2 doesn't.

    `pcie` is its place on the bus: the socket's number and that of the PCIe switch. `nvlinks` are
    pairs of where NVLinks go (another GPU's bus id, or `switch`) and how many.

    `fault` is `lost` (fallen off the bus: every query fails, also for its handle) or
    `reset_required` (it still says who it is, and nothing else). `function_faults` are pairs of an
    NVML function's full name and the error code it returns, such as
    `("nvmlDeviceGetMemoryInfo_v2", 999)`.

    Raises:
        ValueError: NVML can't report such a value.
    """

    uuid: str
    name: str
    minor_number: int
    bus_id: str | None = None
    serial: str | None = None
    memory_total_mib: int | None = 16384
    memory_reserved_mib: int = 0
    memory_used_mib: int = 0
    utilization_percent: int | None = 0
    processes: tuple[tuple[int, int], ...] = ()
    graphics_processes: tuple[tuple[int, int], ...] = ()
    compute_mode: str = "default"
    compute_capability: tuple[int, int] | None = None
    mig: bool | None = None
    ecc: bool | None = None
    ecc_errors: int = 0
    retired_pages_pending: bool | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    power_limit_watts: int | None = None
    fan_percent: int | None = None
    pcie: tuple[int, int] | None = None
    nvlinks: tuple[tuple[str, int], ...] = ()
    fault: str | None = None
    function_faults: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        _check(_matches(_UUID, self.uuid), "uuid", self.uuid, "GPU- and a UUID in lower case")
        _check(_is_line(self.name), "name", self.name, "text on one line")
        _check_number("minor_number", self.minor_number, high=255)
        _check(
            self.bus_id is None or _matches(_BUS_ID, self.bus_id),
            "bus_id",
            self.bus_id,
            "like 00000000:07:00.0, or None",
        )
        _check(self.serial is None or _is_line(self.serial), "serial", self.serial, "text, or None")
        self._check_numbers()
        self._check_choices()
        for key in ("processes", "graphics_processes"):
            _check_processes(key, getattr(self, key))
        everything = self.processes + self.graphics_processes
        _check_number("the number of processes", len(everything), high=MAX_PROCESSES)
        if self.memory_total_mib is not None:
            room = self.memory_total_mib - self.memory_reserved_mib
            _check_number("the MiB of all processes", sum(mib for _, mib in everything), high=room)
        _check_function_faults(self.function_faults)
        self._check_connections()

    def _check_connections(self) -> None:
        if self.pcie is not None:
            right = isinstance(self.pcie, tuple) and len(self.pcie) == 2
            _check(right, "pcie", self.pcie, "a pair of socket and PCIe switch, or None")
            for part in self.pcie:
                _check_number("pcie", part, high=99)
        right = isinstance(self.nvlinks, tuple) and len(self.nvlinks) <= MAX_GPUS
        _check(right, "nvlinks", self.nvlinks, f"a tuple of at most {MAX_GPUS} pairs")
        for pair in self.nvlinks:
            right = isinstance(pair, tuple) and len(pair) == 2
            right = right and (pair[0] == "switch" or _matches(_BUS_ID, pair[0]))
            _check(right, "nvlinks", pair, "pairs of a bus id, or switch, and a number")
            _check_number("nvlinks", pair[1], low=1, high=MAX_LINKS)
        _check_number("the number of NVLinks", sum(n for _, n in self.nvlinks), high=MAX_LINKS)

    def _check_numbers(self) -> None:
        for key in ("memory_total_mib", "power_limit_watts"):
            if getattr(self, key) is not None:
                _check_number(key, getattr(self, key), high=2_000_000)
        for key in ("utilization_percent", "fan_percent"):
            if getattr(self, key) is not None:
                _check_number(key, getattr(self, key), high=100)
        _check_number("ecc_errors", self.ecc_errors)
        room = self.memory_total_mib or 0
        _check_number("memory_reserved_mib", self.memory_reserved_mib, high=room)
        _check_number("memory_used_mib", self.memory_used_mib, high=room - self.memory_reserved_mib)

    def _check_choices(self) -> None:
        _check(
            self.compute_mode in COMPUTE_MODES,
            "compute_mode",
            self.compute_mode,
            "one of " + ", ".join(COMPUTE_MODES),
        )
        _check(
            self.fault in (None, *GPU_FAULTS),
            "fault",
            self.fault,
            "None or one of " + ", ".join(GPU_FAULTS),
        )
        for key in ("mig", "ecc", "retired_pages_pending", "remap_pending", "remap_failed"):
            _check(
                getattr(self, key) in (None, True, False),
                key,
                getattr(self, key),
                "a bool, or None",
            )
        if self.compute_capability is not None:
            right = isinstance(self.compute_capability, tuple) and len(self.compute_capability) == 2
            _check(right, "compute_capability", self.compute_capability, "a pair such as (8, 0)")
            for part in self.compute_capability:
                _check_number("compute_capability", part, high=99)


def _is_line(text: object) -> bool:
    return isinstance(text, str) and bool(text) and not any(c < " " for c in text)


def _check_processes(key: str, processes: object) -> None:
    _check(isinstance(processes, tuple), key, processes, "a tuple of (process id, MiB) pairs")
    for pair in processes if isinstance(processes, tuple) else ():
        right = isinstance(pair, tuple) and len(pair) == 2
        _check(right, key, pair, "pairs of process id and MiB")
        _check_number(f"a process id in {key}", pair[0], low=1)
        _check_number(f"a process's MiB in {key}", pair[1], high=2_000_000)


@dataclass(frozen=True)
class State:
    """What NVML reports of a simulated host: driver, CUDA version and GPUs, in NVML's order.

    `cuda` is the version that goes with the driver unless it is given. `fault` makes NVML fail as a
    whole: `driver_not_loaded`, `library_mismatch` (after an upgrade without a reboot),
    `no_permission`, `unknown`. `function_faults` are pairs of an NVML function's full name and the
    error code that it returns for every GPU. `slow_milliseconds` delays each call. `loads` is how
    often the driver has been loaded: a program that began before the last time must begin anew.

    Raises:
        ValueError: there is no such driver, version or fault, or two GPUs have the same UUID, minor
            number or bus id.
    """

    driver: str = DEFAULT_DRIVER
    cuda: str = ""
    gpus: tuple[SimulatedGPU, ...] = ()
    fault: str | None = None
    function_faults: tuple[tuple[str, int], ...] = ()
    slow_milliseconds: int = 0
    loads: int = 1

    def __post_init__(self) -> None:
        _check(
            _matches(_DRIVER, self.driver), "driver", self.driver, "a version such as 570.133.20"
        )
        if not self.cuda:
            object.__setattr__(self, "cuda", cuda_of(self.driver))
        _check(_matches(_CUDA, self.cuda), "cuda", self.cuda, "a version such as 12.8")
        allowed = "None or one of " + ", ".join(HOST_FAULTS)
        _check(self.fault in (None, *HOST_FAULTS), "fault", self.fault, allowed)
        _check_function_faults(self.function_faults)
        _check_number("loads", self.loads)
        _check_number("slow_milliseconds", self.slow_milliseconds, high=3_600_000)
        _check_number("the number of GPUs", len(self.gpus), high=MAX_GPUS)
        for key in ("uuid", "minor_number", "bus_id"):
            values = [getattr(gpu, key) for gpu in self.gpus if getattr(gpu, key) is not None]
            _check(len(set(values)) == len(values), key, values, "different for each GPU")

    def gpu(self, key: str | int) -> SimulatedGPU:
        """Return the GPU with this UUID or index; raise ValueError if there is none."""
        return self.gpus[self._index(key)]

    def with_gpu(self, key: str | int, **changes: Any) -> State:
        """Return this state with a GPU (by UUID or index) changed; ValueError as SimulatedGPU."""
        index = self._index(key)
        known = {each.name for each in fields(SimulatedGPU)}
        for name in changes:
            _check(name in known, "the GPU's field", name, "one of " + ", ".join(sorted(known)))
        gpus = list(self.gpus)
        gpus[index] = replace(gpus[index], **changes)
        return replace(self, gpus=tuple(gpus))

    def only(self, uuids: Collection[str]) -> State:
        """Return the state that a container with these GPUs sees.

        Indexes begin with 0, minor numbers are the host's.

        Raises:
            ValueError: the host has no GPU with one of these UUIDs.
        """
        for uuid in uuids:
            self._index(uuid)
        return replace(self, gpus=tuple(gpu for gpu in self.gpus if gpu.uuid in set(uuids)))

    def _index(self, key: str | int) -> int:
        for index, gpu in enumerate(self.gpus):
            if key == gpu.uuid or (isinstance(key, int) and key == index):
                return index
        there = ", ".join(f"{index}: {gpu.uuid}" for index, gpu in enumerate(self.gpus))
        raise ValueError(f"there is no GPU {key!r}; there are {there or 'none'}")

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the state file atomically: a reader sees the old state or the new one.

        All users may read the file, as all may use NVML.

        Raises:
            OSError: it can't be written.
        """
        path = Path(path)
        text = "\n".join(_lines(self)) + "\n"
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(text.encode("utf-8", "surrogateescape"))
                os.fchmod(file.fileno(), 0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> State:
        """Return the state in a file.

        Raises:
            ValueError: a line isn't one that `write` writes.
            OSError: it can't be read.
        """
        text = Path(path).read_bytes().decode("utf-8", "surrogateescape")
        return _parse(text)


# One line each for these; every other field of a GPU is one `key value` line, `-` for None.
_REPEATED = {
    "processes": "process",
    "graphics_processes": "graphics_process",
    "function_faults": "function_fault",
    "nvlinks": "nvlink",
}
_HOST_KEYS = ("driver", "cuda", "fault", "loads", "slow_milliseconds")
_GPU_KEYS = tuple(f.name for f in fields(SimulatedGPU) if f.name not in (*_REPEATED, "uuid"))
_TEXTS = ("driver", "cuda", "fault", "name", "bus_id", "serial", "compute_mode")
_BOOLS = ("mig", "ecc", "retired_pages_pending", "remap_pending", "remap_failed")


def _lines(state: State) -> Iterator[str]:
    for key in _HOST_KEYS:
        yield f"{key} {_written(getattr(state, key))}"
    for pair in state.function_faults:
        yield f"function_fault {pair[0]} {pair[1]}"
    for gpu in state.gpus:
        yield f"gpu {gpu.uuid}"
        for key in _GPU_KEYS:
            yield f"{key} {_written(getattr(gpu, key))}"
        for key, word in _REPEATED.items():
            for pair in getattr(gpu, key):
                yield f"{word} {pair[0]} {pair[1]}"


def _written(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return ".".join(str(part) for part in value)
    return str(int(value)) if isinstance(value, bool) else str(value)


def _parse(text: str) -> State:
    host: dict[str, Any] = {}
    gpus: list[dict[str, Any]] = []
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        key, _, value = line.partition(" ")
        if key == "gpu":
            gpus.append({"uuid": value})
            continue
        try:
            _parse_line(gpus[-1] if gpus else host, key, value, _GPU_KEYS if gpus else _HOST_KEYS)
        except (ValueError, TypeError) as error:
            raise ValueError(f"line {number} of the state file, {line!r}: {error}") from error
    for gpu in gpus:
        missing = {"name", "minor_number"} - gpu.keys()
        _check(not missing, "a GPU of the state file", gpu["uuid"], f"given {sorted(missing)} too")
    return State(gpus=tuple(SimulatedGPU(**gpu) for gpu in gpus), **host)


def _parse_line(into: dict[str, Any], key: str, value: str, keys: Collection[str]) -> None:
    for name, word in _REPEATED.items():
        if key == word and (name == "function_faults" or keys is _GPU_KEYS):
            first, second = value.split(" ")
            pair = (first if name in ("function_faults", "nvlinks") else int(first), int(second))
            into[name] = (*into.get(name, ()), pair)
            return
    _check(key in keys, "the key", key, "one of " + ", ".join((*keys, *_REPEATED.values())))
    into[key] = _read(key, value)


def _read(key: str, value: str) -> object:
    if key in _TEXTS:
        return None if value == "-" and key != "name" else value
    if value == "-":
        return None
    if key in ("compute_capability", "pcie"):
        major, minor = value.split(".")
        return (int(major), int(minor))
    if key in _BOOLS:
        _check(value in ("0", "1"), key, value, "0, 1 or -")
        return value == "1"
    return int(value)


def describe(
    models: Iterable[tuple[str, int]] = (("A100-40GB", 4),), driver: str = DEFAULT_DRIVER
) -> State:
    """Return the state of an idle, healthy host.

    UUIDs and serial numbers are always the same for the same models, and unique on the host.

    Args:
        models: (model, number of GPUs) pairs; a model is a key of `MODELS` or NVML's name of it.
        driver: the driver's version.

    Raises:
        ValueError: there is no such model or driver, or a number is below 0.
    """
    gpus: list[SimulatedGPU] = []
    for name, count in models:
        model = MODELS.get(name) or next((m for m in MODELS.values() if m.name == name), None)
        _check(model, "model", name, "one of " + ", ".join(sorted(MODELS)))
        _check_number(f"the count of {name}", count, high=MAX_GPUS)
        assert model is not None
        for _ in range(count):
            gpus.append(_idle(model, len(gpus)))
    return State(driver=driver, gpus=tuple(gpus))


def _idle(model: Model, minor_number: int) -> SimulatedGPU:
    digits = hashlib.sha256(f"{model.name} {minor_number}".encode()).hexdigest()
    uuid = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:32]))
    return SimulatedGPU(
        uuid=f"GPU-{uuid}",
        name=model.name,
        minor_number=minor_number,
        bus_id=f"00000000:{0x07 + 3 * minor_number:02X}:00.0",
        serial=str(1_320_000_000_000 + int(digits[32:40], 16)) if model.has_ecc else None,
        memory_total_mib=model.memory_total_mib,
        memory_reserved_mib=model.memory_total_mib // 64,
        compute_capability=model.compute_capability,
        mig=False if model.has_mig else None,
        ecc=True if model.has_ecc else None,
        # Row remapping came with Ampere and took the place of page retirement.
        # ref: https://docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt/
        retired_pages_pending=False
        if model.has_ecc and model.compute_capability < (8, 0)
        else None,
        remap_pending=False if model.has_ecc and model.compute_capability >= (8, 0) else None,
        remap_failed=False if model.has_ecc and model.compute_capability >= (8, 0) else None,
        power_limit_watts=model.power_limit_watts,
        fan_percent=30 if model.has_fan else None,
    )
