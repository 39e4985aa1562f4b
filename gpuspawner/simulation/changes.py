"""Changes of a running simulated host, as written on the command line: `gpu 1 lost`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from .events import with_event
from .instances import SimulatedInstance
from .mig import layout, partition, with_process, without_instance
from .state import FABRIC_STATES, RECOVERY_ACTIONS, SimulatedGPU, State

Change = Callable[[State], State]

SWITCH: dict[str, str | None] = {"on": "on", "off": None}
# What a remapping of memory rows needs.
REMAPS: dict[str, str | None] = {"pending": "drain_and_reset", "failed": "none", "none": "none"}
# NVML's bits of what keeps the clocks down; None: idleness alone.
# ref: https://docs.nvidia.com/deploy/nvml-api/group__nvmlClocksEventReasons.html
CLOCKS: dict[str, int | None] = {
    "free": None,
    "power": 0x4,
    "slowdown": 0x8,
    "hot": 0x20,
    "overheated": 0x48,
    "power_brake": 0x88,
}

DRIVER_FAULTS = {
    "gone": "driver_not_loaded",
    "mismatch": "library_mismatch",
    "forbidden": "no_permission",
    "failing": "unknown",
    "back": None,
}


def _gpu(state: State, key: str) -> SimulatedGPU:
    return state.gpu(int(key) if key.isdecimal() else key)


def _with(state: State, key: str, **changes: object) -> State:
    return state.with_gpu(_gpu(state, key).uuid, **changes)


def whole_number(word: str, what: str) -> int:
    """Return a whole number; raises ValueError if the word isn't one."""
    if not word.isdecimal():
        raise ValueError(f"{what} is {word!r}; it must be a whole number")
    return int(word)


def _of(words: dict[str, str | None], word: str) -> str | None:
    if word not in words:
        raise ValueError(f"{word!r} isn't one of {', '.join(words)}")
    return words[word]


def _without(pairs: tuple[tuple, ...], first: object) -> tuple[tuple, ...]:
    return tuple(pair for pair in pairs if pair[0] != first)


def _process(state: State, key: str, pid: str, mib: str) -> State:
    number = whole_number(pid, "a process id")
    others = _without(_gpu(state, key).processes, number)
    return _with(state, key, processes=(*others, (number, whole_number(mib, "MiB"))))


def _process_ended(state: State, key: str, pid: str) -> State:
    number = whole_number(pid, "a process id")
    gpu = _gpu(state, key)
    if not any(each == number for each, _ in (*gpu.processes, *gpu.graphics_processes)):
        raise ValueError(f"no process {number} uses GPU {key}")
    graphics = _without(gpu.graphics_processes, number)
    return _with(state, key, processes=_without(gpu.processes, number), graphics_processes=graphics)


def _gpu_function(state: State, key: str, function: str, code: str) -> State:
    faults = _gpu(state, key).function_faults
    return _with(state, key, function_faults=_function_faults(faults, function, code))


def _host_function(state: State, function: str, code: str) -> State:
    faults = _function_faults(state.function_faults, function, code)
    return replace(state, function_faults=faults)


def _function_faults(faults: tuple[tuple, ...], function: str, code: str) -> tuple[tuple, ...]:
    others = _without(faults, function)
    return others if code == "works" else (*others, (function, whole_number(code, "an error code")))


def _has_mig(state: State, key: str, word: str) -> bool:
    if _gpu(state, key).mig is None:
        raise ValueError(f"GPU {key}, {_gpu(state, key).name}, has no MIG")
    return _of(SWITCH, word) is not None


def _mig(state: State, key: str, word: str) -> State:
    on = _has_mig(state, key, word)
    kept = _gpu(state, key).instances if on else ()
    return _with(state, key, mig=on, mig_pending=None, instances=kept)


def _mig_pending(state: State, key: str, word: str) -> State:
    on = _has_mig(state, key, word)
    return _with(state, key, mig_pending=None if on == _gpu(state, key).mig else on)


def _instances(state: State, key: str, text: str) -> State:
    uuid = _gpu(state, key).uuid
    return _event(partition(state, uuid, layout(text)), uuid, "mig_config")


def _instance_gone(state: State, key: str, index: str) -> State:
    uuid = _gpu(state, key).uuid
    return _event(
        without_instance(state, uuid, whole_number(index, "INSTANCE")), uuid, "mig_config"
    )


def _instance_process(state: State, key: str, index: str, pid: str, mib: str) -> State:
    numbers = whole_number(index, "INSTANCE"), whole_number(pid, "a process id")
    size = None if mib == "ended" else whole_number(mib, "MiB")
    return with_process(state, _gpu(state, key).uuid, *numbers, size)


def _event(
    state: State,
    key: str,
    kind: str,
    data: int = 0,
    instance: SimulatedInstance | None = None,
) -> State:
    place = (None, None) if instance is None else (instance.gi, instance.ci)
    return _with(state, key, events=with_event(_gpu(state, key).events, kind, data, *place))


def _xid(state: State, key: str, word: str, index: str | None = None) -> State:
    number = whole_number(word, "an Xid")
    if index is None:
        return _event(state, key, "xid", number)
    for each in _gpu(state, key).instances:
        if each.index == whole_number(index, "INSTANCE"):
            return _event(state, key, "xid", number, each)
    raise ValueError(f"GPU {key} has no MIG instance {index}")


def _ecc(state: State, key: str, word: str) -> State:
    """Set the number of uncorrectable errors; more of them than before are an event."""
    number, before = whole_number(word, "ERRORS"), _gpu(state, key)
    if not before.ecc:
        raise ValueError(f"GPU {key}, {before.name}, counts no memory errors")
    state = _with(state, key, ecc_errors=number)
    return _event(state, key, "double_bit_ecc") if number > before.ecc_errors else state


def _remap(state: State, key: str, word: str) -> State:
    gpu = _gpu(state, key)
    if gpu.remap_pending is None:
        raise ValueError(f"GPU {key}, {gpu.name}, remaps no rows")
    _of(REMAPS, word)
    repair = None if gpu.recovery_action is None else REMAPS[word]
    state = _with(
        state,
        key,
        remap_pending=word == "pending",
        remap_failed=word == "failed",
        recovery_action=repair,
    )
    return state if repair == gpu.recovery_action else _event(state, key, "recovery_action")


def _reset(state: State, key: str) -> State:
    gpu = _gpu(state, key)
    if gpu.fault in ("lost", "unreachable"):
        raise ValueError(f"GPU {key} can't be reset: it isn't on the bus")
    changed = gpu.mig_pending not in (None, gpu.mig)
    return _with(
        state,
        key,
        fault=None,
        mig=gpu.mig_pending if changed else gpu.mig,
        mig_pending=None,
        instances=() if changed else gpu.instances,
        ecc_errors=0,
        remap_pending=None if gpu.remap_pending is None else False,
        retired_pages_pending=None if gpu.retired_pages_pending is None else False,
        clocks_event_reasons=None,
        recovery_action=None if gpu.recovery_action is None else "none",
    )


def _clocks(state: State, key: str, word: str) -> State:
    if word not in CLOCKS:
        raise ValueError(f"{word!r} isn't one of {', '.join(CLOCKS)}")
    return _with(state, key, clocks_event_reasons=CLOCKS[word])


def _recovery(state: State, key: str, word: str) -> State:
    state = _with(state, key, recovery_action=word)
    return _event(state, key, "recovery_action")


# Words in capitals are placeholders; GPU is an index or a UUID. The first form that matches counts.
CHANGES: tuple[tuple[str, str, Callable[..., State]], ...] = (
    ("gpu GPU process PID ended", "a process doesn't use it any more", _process_ended),
    ("gpu GPU process PID MIB", "a process uses so much of its memory", _process),
    (
        "gpu GPU use PERCENT",
        "how busy it is",
        lambda state, key, percent: _with(
            state, key, utilization_percent=whole_number(percent, "PERCENT")
        ),
    ),
    (
        "gpu GPU memory MIB",
        "memory in use, whoever uses it",
        lambda state, key, mib: _with(state, key, memory_used_mib=whole_number(mib, "MIB")),
    ),
    (
        "gpu GPU lost",
        "it has fallen off the bus",
        lambda state, key: _with(state, key, fault="lost"),
    ),
    (
        "gpu GPU unreachable",
        "it is lost, and NVML only says `Unknown Error`",
        lambda state, key: _with(state, key, fault="unreachable"),
    ),
    (
        "gpu GPU sick",
        "it needs a reset",
        lambda state, key: _with(state, key, fault="reset_required"),
    ),
    (
        "gpu GPU healed",
        "it is neither lost nor sick",
        lambda state, key: _with(state, key, fault=None),
    ),
    ("gpu GPU reset", "it was reset: repairs, errors and a pending MIG mode are done with", _reset),
    ("gpu GPU xid NUMBER", "an Xid error is reported; see also `lost` for 79", _xid),
    (
        "gpu GPU xid NUMBER instance INSTANCE",
        "the same, of one of its MIG instances",
        lambda state, key, number, index: _xid(state, key, number, index),
    ),
    ("gpu GPU ecc ERRORS", "so many memory errors couldn't be corrected", _ecc),
    ("gpu GPU remap STATE", f"rows of its memory: {', '.join(REMAPS)}", _remap),
    ("gpu GPU clocks REASON", f"what keeps its clocks down: {', '.join(CLOCKS)}", _clocks),
    (
        "gpu GPU recovery ACTION",
        f"what the driver says would repair it: {', '.join(RECOVERY_ACTIONS)}",
        _recovery,
    ),
    (
        "gpu GPU fabric STATE",
        f"its NVSwitch fabric: {', '.join(FABRIC_STATES)}",
        lambda state, key, word: _with(state, key, fabric=word),
    ),
    ("gpu GPU mig SWITCH", "MIG mode, on or off; its instances go with it", _mig),
    ("gpu GPU mig pending SWITCH", "the mode that it has after the next reset", _mig_pending),
    (
        "gpu GPU instances PROFILES",
        "its MIG instances in place of those before, as `1g.5gb,1g.5gb` or `none`",
        _instances,
    ),
    ("gpu GPU instance INSTANCE destroyed", "one of them, by index; a gap stays", _instance_gone),
    (
        "gpu GPU instance INSTANCE process PID MIB",
        "a process uses so much of its memory; MIB `ended`: it doesn't any more",
        _instance_process,
    ),
    (
        "gpu GPU mode MODE",
        "compute mode: default, exclusive_process or prohibited",
        lambda state, key, mode: _with(state, key, compute_mode=mode),
    ),
    (
        "gpu GPU function NAME CODE",
        "an NVML function returns this error for it; CODE `works`: no more",
        _gpu_function,
    ),
    ("function NAME CODE", "the same for all GPUs", _host_function),
    (
        "driver STATE",
        f"NVML as a whole: {', '.join(DRIVER_FAULTS)}",
        lambda state, word: replace(state, fault=_of(DRIVER_FAULTS, word)),
    ),
    (
        "slow MILLISECONDS",
        "what each NVML call takes longer",
        lambda state, word: replace(state, slow_milliseconds=whole_number(word, "MILLISECONDS")),
    ),
)


def explanation() -> str:
    """Return a table of all changes and their meanings, one per line."""
    width = max(len(form) for form, _, _ in CHANGES)
    return "\n".join(f"  {form:{width}}  {meaning}" for form, meaning, _ in CHANGES)


def parse(text: str) -> Change:
    """Return the change that a text such as `gpu 1 lost` stands for.

    Args:
        text: a form of `CHANGES` with its values.

    Returns:
        A function from the state before to the state after. It raises ValueError for a state that
        can't be changed so, such as one without this GPU.

    Raises:
        ValueError: there is no such change.
    """
    words = text.split()
    for form, _, function in CHANGES:
        values = matched(form.split(), words)
        if values is not None:
            return partial(_apply, function, values)
    raise ValueError(f"{text!r} isn't a change; these are:\n{explanation()}")


def _apply(function: Callable[..., State], values: list[str], state: State) -> State:
    return function(state, *values)


def matched(form: list[str], words: list[str]) -> list[str] | None:
    """Return the words in place of the form's capitals; None if the other words differ.

    The last word of `instances PROFILES` may have blanks.
    """
    if form[-1] == "PROFILES" and len(words) > len(form):
        words = [*words[: len(form) - 1], " ".join(words[len(form) - 1 :])]
    if len(form) != len(words):
        return None
    if any(ours != theirs for ours, theirs in zip(form, words, strict=True) if ours.islower()):
        return None
    return [theirs for ours, theirs in zip(form, words, strict=True) if ours.isupper()]
