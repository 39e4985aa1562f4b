"""Checks of values that a simulated NVML can report; the sentences are for who wrote them."""

from __future__ import annotations

import re

# `state.h` has room for this many.
MAX_FUNCTION_FAULTS = 16
MAX_PROCESSES = 64

_FUNCTION = re.compile(r"nvml[A-Za-z0-9_]+\Z")


def matches(pattern: re.Pattern[str], value: object) -> bool:
    """Return whether a value is text of this form."""
    return isinstance(value, str) and pattern.match(value) is not None


def check(right: object, key: str, value: object, allowed: str) -> None:
    """Raise ValueError unless `right`."""
    if not right:
        raise ValueError(f"{key} is {value!r}; it must be {allowed}")


def check_number(key: str, value: object, low: int = 0, high: int = 2**31 - 1) -> None:
    """Raise ValueError unless the value is a whole number in these bounds."""
    # `bool` is an `int` to Python, and `True` written as a number would read back as 1.
    right = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    check(right, key, value, f"a whole number from {low} to {high}")


def is_line(text: object) -> bool:
    """Return whether a value is text of one line."""
    return isinstance(text, str) and bool(text) and not any(c < " " for c in text)


def check_function_faults(faults: object) -> None:
    """Raise ValueError unless these are pairs of an NVML function's name and an error code."""
    right = isinstance(faults, tuple) and len(faults) <= MAX_FUNCTION_FAULTS
    check(right, "function_faults", faults, f"a tuple of at most {MAX_FUNCTION_FAULTS} pairs")
    for pair in faults if isinstance(faults, tuple) else ():
        right = isinstance(pair, tuple) and len(pair) == 2 and matches(_FUNCTION, pair[0])
        right = right and isinstance(pair[1], int) and 0 < pair[1] < 1000
        check(right, "function_faults", pair, "pairs of an NVML function and a code from 1 to 999")


def check_processes(key: str, processes: object) -> None:
    """Raise ValueError unless these are pairs of a process id and MiB."""
    check(isinstance(processes, tuple), key, processes, "a tuple of (process id, MiB) pairs")
    for pair in processes if isinstance(processes, tuple) else ():
        right = isinstance(pair, tuple) and len(pair) == 2
        check(right, key, pair, "pairs of process id and MiB")
        check_number(f"a process id in {key}", pair[0], low=1)
        check_number(f"a process's MiB in {key}", pair[1], high=2_000_000)
