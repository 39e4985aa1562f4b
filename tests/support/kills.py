"""Hubs that are killed at a moment of a start that is counted, not timed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .flaky import Flaky

# Counts the awaits of one start that really wait, and kills the hub at the one whose number is in
# a file; for a hub's configuration.
AT_AWAITS = """
import itertools, os, signal, types
from pathlib import Path
from jupyterhub.user import User
from gpuspawner.spawner import GPUSpawner

number = itertools.count(1)

@types.coroutine
def counted(coroutine, last):
    error = None
    while True:
        try:
            awaited = coroutine.send(None) if error is None else coroutine.throw(error)
        except StopIteration as ended:
            return ended.value
        if next(number) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        error = None
        try:
            yield awaited
        except BaseException as raised:
            error = raised

def counting(function):
    def begin(*arguments, **named):
        coroutine, armed = function(*arguments, **named), Path("kill-at")
        return counted(coroutine, int(armed.read_text())) if armed.exists() else coroutine
    return begin

# Each is awaited in a task of its own.
User.spawn = counting(User.spawn)
GPUSpawner.start = counting(GPUSpawner.start)
GPUSpawner.create_server = counting(GPUSpawner.create_server)
"""


@contextmanager
def at_await(hub: Any, number: int) -> Iterator[None]:
    """Kill a hub with `AT_AWAITS` at an await of the start that begins in the block."""
    armed = hub.folder / "kill-at"
    armed.write_text(str(number))
    try:
        yield
    finally:
        armed.unlink()


@contextmanager
def at_call(
    hub: Any, flaky: Flaky, moment: str, wanted: Callable[[int, str], object]
) -> Iterator[None]:
    """Kill a hub at a call of the engine that `flaky` is before.

    Args:
        moment: "asked": before the engine hears of it, or "answered": before the hub hears of it.
        wanted: tells of the number of a call in this block, and its first line.
    """
    number = [0]
    marked: list[str] = []

    def kill() -> None:
        with suppress(ProcessLookupError):
            os.kill(hub.pid, signal.SIGKILL)

    def before(line: str) -> None:
        number[0] += 1
        if wanted(number[0], line):
            marked.append(line)
            if moment == "asked":
                kill()
                raise ConnectionAbortedError

    def answered(line: str) -> None:
        if line in marked:
            kill()

    flaky.before, flaky.answered = before, answered
    try:
        yield
    finally:
        flaky.before = flaky.answered = lambda line: None


def is_dead(hub: Any) -> bool:
    """Return whether a hub's process has ended."""
    with suppress(FileNotFoundError):
        return Path(f"/proc/{hub.pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    return True
