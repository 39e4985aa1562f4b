"""The report's check of NVML's events: the program by which a hub hears of them, and its end."""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

from ..untrusted import parse_json
from .findings import Context, Finding

# What a hub starts; see there for what it prints, and how it ends.
PROGRAM = "gpuspawner.gpus.nvml_events"
COMMAND = (sys.executable, "-m", PROGRAM)
NO_EVENTS = 3
SECONDS, END_SECONDS = 20.0, 5.0
ADVICE = "see sudo dmesg | grep -i nvrm"


def check(context: Context) -> Iterator[Finding]:
    """Let the program hear of the GPUs' events, and see that it lets go of them at its end."""
    program = subprocess.Popen(
        COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert program.stdin
    assert program.stdout
    try:
        if not select.select([program.stdout], [], [], SECONDS)[0]:
            yield Finding("failure", f"it hears nothing within {SECONDS:g} seconds", ADVICE)
            return
        line = program.stdout.readline()
        if not line:
            yield _ended(program.wait(END_SECONDS))
            return
        yield _heard(line, context)
    finally:
        program.stdin.close()
        hangs = False
        try:
            program.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            hangs = True
            program.kill()
        program.stdout.close()
    if hangs:
        what = f"its program hasn't ended {END_SECONDS:g} seconds after it was to"
        yield Finding("failure", what, ADVICE)


def _ended(status: int) -> Finding:
    if status == NO_EVENTS:
        return Finding("note", "no GPU here has events: a hub goes by what it reads")
    return Finding("failure", f"its program ended with status {status}", ADVICE)


def _heard(line: bytes, context: Context) -> Finding:
    watching: set[str] = set()
    with suppress(ValueError, TypeError, KeyError):
        watching = set(parse_json(line)["watching"])
    there = {unit.gpu_uuid for unit in context.gpus if unit.gpu_uuid}
    missing = sorted(there - watching)
    words = f"events of {len(watching)} of {len(there)} GPUs are heard of"
    if missing:
        return Finding("note", f"{words}; not of {', '.join(missing)}")
    return Finding("ok", words)
