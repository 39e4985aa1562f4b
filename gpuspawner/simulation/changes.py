"""Changes of a running simulated host, as written on the command line: `gpu 1 lost`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from .state import SimulatedGPU, State

Change = Callable[[State], State]

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


def _number(word: str, what: str) -> int:
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
    number = _number(pid, "a process id")
    others = _without(_gpu(state, key).processes, number)
    return _with(state, key, processes=(*others, (number, _number(mib, "MiB"))))


def _process_ended(state: State, key: str, pid: str) -> State:
    number = _number(pid, "a process id")
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
    return others if code == "works" else (*others, (function, _number(code, "an error code")))


def _mig(state: State, key: str, word: str) -> State:
    if _gpu(state, key).mig is None:
        raise ValueError(f"GPU {key}, {_gpu(state, key).name}, has no MIG")
    return _with(state, key, mig=_of({"on": "on", "off": None}, word) is not None)


# Words in capitals are placeholders; GPU is an index or a UUID. The first form that matches counts.
CHANGES: tuple[tuple[str, str, Callable[..., State]], ...] = (
    ("gpu GPU process PID ended", "a process doesn't use it any more", _process_ended),
    ("gpu GPU process PID MIB", "a process uses so much of its memory", _process),
    (
        "gpu GPU use PERCENT",
        "how busy it is",
        lambda state, key, percent: _with(
            state, key, utilization_percent=_number(percent, "PERCENT")
        ),
    ),
    (
        "gpu GPU memory MIB",
        "memory in use, whoever uses it",
        lambda state, key, mib: _with(state, key, memory_used_mib=_number(mib, "MIB")),
    ),
    (
        "gpu GPU lost",
        "it has fallen off the bus",
        lambda state, key: _with(state, key, fault="lost"),
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
    ("gpu GPU mig SWITCH", "MIG mode, on or off", _mig),
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
        lambda state, word: replace(state, slow_milliseconds=_number(word, "MILLISECONDS")),
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
        values = _match(form.split(), words)
        if values is not None:
            return partial(_apply, function, values)
    raise ValueError(f"{text!r} isn't a change; these are:\n{explanation()}")


def _apply(function: Callable[..., State], values: list[str], state: State) -> State:
    return function(state, *values)


def _match(form: list[str], words: list[str]) -> list[str] | None:
    """Return the words in place of the form's capitals; None if the other words differ."""
    if len(form) != len(words):
        return None
    if any(ours != theirs for ours, theirs in zip(form, words, strict=True) if ours.islower()):
        return None
    return [theirs for ours, theirs in zip(form, words, strict=True) if ours.isupper()]
