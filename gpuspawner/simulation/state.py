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

from . import events, instances
from .checks import (
    MAX_PROCESSES,
    check,
    check_function_faults,
    check_number,
    check_processes,
    is_line,
    matches,
)
from .events import MAX_EVENTS, SimulatedEvent
from .instances import MAX_INSTANCES, SimulatedInstance
from .models import MODELS, Model, cuda_of

STATE_PATH_VARIABLE = "GPUSPAWNER_SIMULATED_STATE"
STATE_PATH = Path("/run/gpuspawner/state")

DEFAULT_DRIVER = "570.133.20"
COMPUTE_MODES = ("default", "exclusive_process", "prohibited")
GPU_FAULTS = ("lost", "unreachable", "reset_required")
HOST_FAULTS = ("driver_not_loaded", "library_mismatch", "no_permission", "unknown")
RECOVERY_ACTIONS = ("none", "gpu_reset", "node_reboot", "drain_p2p", "drain_and_reset")
FABRIC_STATES = ("not_started", "in_progress", "completed", "failed")
ADDRESSING_MODES = ("none", "hmm", "ats")
MIG_GAPS = ("not_found", "invalid_argument")

# `state.h` has room for this many.
MAX_GPUS = 64
# As NVML's NVML_NVLINK_MAX_LINKS.
MAX_LINKS = 18

_UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_DRIVER = re.compile(r"\d+(\.\d+){1,2}\Z")
_CUDA = re.compile(r"\d+\.\d+\Z")
_BUS_ID = re.compile(r"[0-9A-F]{8}:[0-9A-F]{2}:[0-9A-F]{2}\.[0-7]\Z")


@dataclass(frozen=True)
class SimulatedGPU:
    """One GPU as NVML reports it. For `None`, NVML answers "not supported".

    `processes`, `graphics_processes` and `mps_processes` (clients of MPS) are pairs of process id
    and memory in MiB; a GPU's used memory is never less than what they hold. `memory_reserved_mib`
    is what the driver keeps for itself, which version 1 of NVML's memory query counts as used and
    version 2 doesn't.

    `pcie` is its place on the bus: the socket's number and that of the PCIe switch. `nvlinks` are
    pairs of where NVLinks go (another GPU's bus id, or `switch`) and how many.

    `mig` is whether it is in MIG mode, `mig_pending` the mode after the next reset (None: the
    same), and `mig_slices` the most compute slices, and so instances, that it can have. `events`
    wake programs that wait for them.

    `clocks_event_reasons` are NVML's bits of what keeps its clocks down; None: idleness alone.
    `recovery_action` is what would repair it, `fabric` how far its NVSwitch fabric is,
    `addressing_mode` is `ats` where its memory is a part of the host's.

    `fault` is `lost` (fallen off the bus: every query fails, also for its handle), `unreachable`
    (the same in other words, "Unknown Error", as some drivers say it) or `reset_required` (it still
    says who it is, and nothing else). `function_faults` are pairs of an NVML function's full name
    and the error code it returns, such as `("nvmlDeviceGetMemoryInfo_v2", 999)`.

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
    mps_processes: tuple[tuple[int, int], ...] = ()
    compute_mode: str = "default"
    compute_capability: tuple[int, int] | None = None
    mig: bool | None = None
    mig_pending: bool | None = None
    mig_slices: int = 7
    instances: tuple[SimulatedInstance, ...] = ()
    ecc: bool | None = None
    ecc_errors: int = 0
    retired_pages_pending: bool | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    recovery_action: str | None = "none"
    clocks_event_reasons: int | None = None
    fabric: str | None = None
    addressing_mode: str | None = None
    events: tuple[SimulatedEvent, ...] = ()
    power_limit_watts: int | None = None
    fan_percent: int | None = None
    pcie: tuple[int, int] | None = None
    nvlinks: tuple[tuple[str, int], ...] = ()
    fault: str | None = None
    function_faults: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        check(matches(_UUID, self.uuid), "uuid", self.uuid, "GPU- and a UUID in lower case")
        check(is_line(self.name), "name", self.name, "text on one line")
        check_number("minor_number", self.minor_number, high=255)
        check(
            self.bus_id is None or matches(_BUS_ID, self.bus_id),
            "bus_id",
            self.bus_id,
            "like 00000000:07:00.0, or None",
        )
        check(self.serial is None or is_line(self.serial), "serial", self.serial, "text, or None")
        self._check_numbers()
        self._check_choices()
        for key in ("processes", "graphics_processes", "mps_processes"):
            check_processes(key, getattr(self, key))
        self._check_instances()
        everything = self.processes + self.graphics_processes + self.mps_processes
        everything += tuple(pair for each in self.instances for pair in each.processes)
        check_number("the number of processes", len(everything), high=MAX_PROCESSES)
        if self.memory_total_mib is not None:
            room = self.memory_total_mib - self.memory_reserved_mib
            check_number("the MiB of all processes", sum(mib for _, mib in everything), high=room)
        check_function_faults(self.function_faults)
        self._check_connections()

    def _check_instances(self) -> None:
        check_number("mig_slices", self.mig_slices, low=1, high=instances.MAX_SLICES)
        right = isinstance(self.instances, tuple) and len(self.instances) <= MAX_INSTANCES
        check(right, "instances", self.instances, f"a tuple of at most {MAX_INSTANCES}")
        check(self.mig or not self.instances, "instances", self.instances, "() outside MIG mode")
        for parts in ("index", "uuid"), ("gi", "ci"):
            values = [tuple(getattr(each, key) for key in parts) for each in self.instances]
            check(len(set(values)) == len(values), "instances", values, "different from each other")
        slices = sum(each.slices for each in self.instances)
        check_number("the slices of all instances", slices, high=self.mig_slices)
        for each in self.instances:
            check_number("an instance's index", each.index, high=self.mig_slices - 1)
            right = each.parent in (None, self.uuid)
            check(right, "an instance's uuid", each.uuid, f"made of {self.uuid}")
        right = isinstance(self.events, tuple) and len(self.events) <= MAX_EVENTS
        check(right, "events", self.events, f"a tuple of at most {MAX_EVENTS}")

    def _check_connections(self) -> None:
        if self.pcie is not None:
            right = isinstance(self.pcie, tuple) and len(self.pcie) == 2
            check(right, "pcie", self.pcie, "a pair of socket and PCIe switch, or None")
            for part in self.pcie:
                check_number("pcie", part, high=99)
        right = isinstance(self.nvlinks, tuple) and len(self.nvlinks) <= MAX_GPUS
        check(right, "nvlinks", self.nvlinks, f"a tuple of at most {MAX_GPUS} pairs")
        for pair in self.nvlinks:
            right = isinstance(pair, tuple) and len(pair) == 2
            right = right and (pair[0] == "switch" or matches(_BUS_ID, pair[0]))
            check(right, "nvlinks", pair, "pairs of a bus id, or switch, and a number")
            check_number("nvlinks", pair[1], low=1, high=MAX_LINKS)
        check_number("the number of NVLinks", sum(n for _, n in self.nvlinks), high=MAX_LINKS)

    def _check_numbers(self) -> None:
        for key in ("memory_total_mib", "power_limit_watts"):
            if getattr(self, key) is not None:
                check_number(key, getattr(self, key), high=2_000_000)
        for key in ("utilization_percent", "fan_percent"):
            if getattr(self, key) is not None:
                check_number(key, getattr(self, key), high=100)
        check_number("ecc_errors", self.ecc_errors)
        if self.clocks_event_reasons is not None:
            check_number("clocks_event_reasons", self.clocks_event_reasons, high=511)
        room = self.memory_total_mib or 0
        check_number("memory_reserved_mib", self.memory_reserved_mib, high=room)
        check_number("memory_used_mib", self.memory_used_mib, high=room - self.memory_reserved_mib)

    def _check_choices(self) -> None:
        check(
            self.compute_mode in COMPUTE_MODES,
            "compute_mode",
            self.compute_mode,
            "one of " + ", ".join(COMPUTE_MODES),
        )
        for key, known in (
            ("fault", GPU_FAULTS),
            ("recovery_action", RECOVERY_ACTIONS),
            ("fabric", FABRIC_STATES),
            ("addressing_mode", ADDRESSING_MODES),
        ):
            value = getattr(self, key)
            check(value in (None, *known), key, value, "None or one of " + ", ".join(known))
        for key in (key for key in _BOOLS if key != "privileged"):
            check(
                getattr(self, key) in (None, True, False),
                key,
                getattr(self, key),
                "a bool, or None",
            )
        if self.compute_capability is not None:
            right = isinstance(self.compute_capability, tuple) and len(self.compute_capability) == 2
            check(right, "compute_capability", self.compute_capability, "a pair such as (8, 0)")
            for part in self.compute_capability:
                check_number("compute_capability", part, high=99)


@dataclass(frozen=True)
class State:
    """What NVML reports of a simulated host: driver, CUDA version and GPUs, in NVML's order.

    `cuda` is the version that goes with the driver unless it is given. `fault` makes NVML fail as a
    whole: `driver_not_loaded`, `library_mismatch` (after an upgrade without a reboot),
    `no_permission`, `unknown`. `function_faults` are pairs of an NVML function's full name and the
    error code that it returns for every GPU. `slow_milliseconds` delays each call. `loads` is how
    often the driver has been loaded: a program that began before the last time must begin anew.

    `privileged` is whether a GPU in MIG mode tells the use of all its instances, which it doesn't
    in a container. `mig_gap` is what NVML answers where no instance has an index between others'.

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
    privileged: bool = True
    mig_gap: str = "not_found"

    def __post_init__(self) -> None:
        check(matches(_DRIVER, self.driver), "driver", self.driver, "a version such as 570.133.20")
        if not self.cuda:
            object.__setattr__(self, "cuda", cuda_of(self.driver))
        check(matches(_CUDA, self.cuda), "cuda", self.cuda, "a version such as 12.8")
        allowed = "None or one of " + ", ".join(HOST_FAULTS)
        check(self.fault in (None, *HOST_FAULTS), "fault", self.fault, allowed)
        check_function_faults(self.function_faults)
        check_number("loads", self.loads)
        check(isinstance(self.privileged, bool), "privileged", self.privileged, "a bool")
        allowed = "one of " + ", ".join(MIG_GAPS)
        check(self.mig_gap in MIG_GAPS, "mig_gap", self.mig_gap, allowed)
        check_number("slow_milliseconds", self.slow_milliseconds, high=3_600_000)
        check_number("the number of GPUs", len(self.gpus), high=MAX_GPUS)
        for key in ("uuid", "minor_number", "bus_id"):
            values = [getattr(gpu, key) for gpu in self.gpus if getattr(gpu, key) is not None]
            check(len(set(values)) == len(values), key, values, "different for each GPU")
        values = [each.uuid for gpu in self.gpus for each in gpu.instances]
        check(len(set(values)) == len(values), "uuid", values, "different for each instance")

    def gpu(self, key: str | int) -> SimulatedGPU:
        """Return the GPU with this UUID or index; raise ValueError if there is none."""
        return self.gpus[self._index(key)]

    def with_gpu(self, key: str | int, **changes: Any) -> State:
        """Return this state with a GPU (by UUID or index) changed; ValueError as SimulatedGPU."""
        index = self._index(key)
        known = {each.name for each in fields(SimulatedGPU)}
        for name in changes:
            check(name in known, "the GPU's field", name, "one of " + ", ".join(sorted(known)))
        gpus = list(self.gpus)
        gpus[index] = replace(gpus[index], **changes)
        return replace(self, gpus=tuple(gpus))

    def only(self, uuids: Collection[str]) -> State:
        """Return the state that a container with these GPUs and MIG instances sees.

        Indexes begin with 0, minor numbers are the host's. A GPU of which it has instances is in
        MIG mode there, with those alone.

        Raises:
            ValueError: the host has no GPU or instance with one of these UUIDs.
        """
        wanted, seen = set(uuids), []
        for gpu in self.gpus:
            theirs = tuple(each for each in gpu.instances if each.uuid in wanted)
            if theirs or gpu.uuid in wanted:
                numbered = tuple(replace(each, index=n) for n, each in enumerate(theirs))
                seen.append(replace(gpu, instances=numbered))
                wanted -= {gpu.uuid, *(each.uuid for each in theirs)}
        for uuid in wanted:
            self._index(uuid)
        return replace(self, gpus=tuple(seen), privileged=False)

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
    "mps_processes": "mps_process",
    "function_faults": "function_fault",
    "nvlinks": "nvlink",
}
# Lines of their own form: see `instances` and `events`.
_OTHERS = ("instances", "events")
_HOST_KEYS = ("driver", "cuda", "fault", "loads", "slow_milliseconds", "privileged", "mig_gap")
_GPU_KEYS = tuple(
    f.name for f in fields(SimulatedGPU) if f.name not in (*_REPEATED, *_OTHERS, "uuid")
)
_TEXTS = (
    *("driver", "cuda", "fault", "name", "bus_id", "serial", "compute_mode", "mig_gap"),
    *("recovery_action", "fabric", "addressing_mode"),
)
_BOOLS = (
    *("mig", "mig_pending", "ecc", "retired_pages_pending", "remap_pending", "remap_failed"),
    "privileged",
)


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
        for instance in gpu.instances:
            yield from instances.written(instance)
        for event in gpu.events:
            yield events.written(event)


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
        check(not missing, "a GPU of the state file", gpu["uuid"], f"given {sorted(missing)} too")
    return State(gpus=tuple(SimulatedGPU(**gpu) for gpu in gpus), **host)


def _parse_line(into: dict[str, Any], key: str, value: str, keys: Collection[str]) -> None:
    if keys is _GPU_KEYS and key in ("instance", "instance_process", "event"):
        _parse_other(into, key, value)
        return
    for name, word in _REPEATED.items():
        if key == word and (name == "function_faults" or keys is _GPU_KEYS):
            first, second = value.split(" ")
            pair = (first if name in ("function_faults", "nvlinks") else int(first), int(second))
            into[name] = (*into.get(name, ()), pair)
            return
    check(key in keys, "the key", key, "one of " + ", ".join((*keys, *_REPEATED.values())))
    into[key] = _read(key, value)


def _parse_other(into: dict[str, Any], key: str, value: str) -> None:
    if key == "event":
        into["events"] = (*into.get("events", ()), events.read(value))
    elif key == "instance":
        into["instances"] = (*into.get("instances", ()), instances.read(value))
    else:
        index, pid, mib = map(int, value.split(" "))
        known = into.get("instances", ())
        check(index in [each.index for each in known], "an instance_process", value, "an index's")
        into["instances"] = tuple(
            replace(each, processes=(*each.processes, (pid, mib))) if each.index == index else each
            for each in known
        )


def _read(key: str, value: str) -> object:
    if key in _TEXTS:
        return None if value == "-" and key != "name" else value
    if value == "-":
        return None
    if key in ("compute_capability", "pcie"):
        major, minor = value.split(".")
        return (int(major), int(minor))
    if key in _BOOLS:
        check(value in ("0", "1"), key, value, "0, 1 or -")
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
        check(model, "model", name, "one of " + ", ".join(sorted(MODELS)))
        check_number(f"the count of {name}", count, high=MAX_GPUS)
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
        memory_reserved_mib=(model.memory_total_mib or 0) // 64,
        compute_capability=model.compute_capability,
        mig=False if model.mig_profiles else None,
        mig_slices=model.mig_slices,
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
