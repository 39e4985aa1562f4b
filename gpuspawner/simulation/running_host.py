"""The simulated host that runs on this machine: its folder, and the environment to join it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from . import slots
from .programs import SimulationError
from .state import STATE_PATH_VARIABLE

# In a simulated host's folder: the variables that make a program see it.
ENVIRONMENT = "environment.json"


def find_running() -> Path:
    """Return the folder of the running simulated host: the one we are on, else the only one.

    Raises:
        SimulationError: there is none, or more than one.
    """
    named = os.environ.get(STATE_PATH_VARIABLE)
    if named:
        return Path(named).parent
    found = [directory for directory in slots.running() if (directory / "state").exists()]
    if not found:
        raise SimulationError(
            "no simulated host runs: start one with gpuspawner simulate -- COMMAND"
        )
    if len(found) > 1:
        choice = " or ".join(str(directory / "state") for directory in found)
        raise SimulationError(f"several run: set {STATE_PATH_VARIABLE} to {choice}")
    return found[0]


def environment_of(directory: Path) -> dict[str, str]:
    """Return this process's environment with the variables of a simulated host.

    Raises:
        SimulationError: it isn't up yet.
    """
    try:
        additions: Mapping[str, str] = json.loads((directory / ENVIRONMENT).read_text())
    except (OSError, ValueError) as error:
        raise SimulationError(f"the simulated host in {directory} isn't up") from error
    return {**os.environ, **additions}


def join_hint(subcommand: str) -> str:
    """Return how to run a subcommand on the running simulated host; "" if none runs."""
    if STATE_PATH_VARIABLE in os.environ:
        return ""
    with suppress(OSError):
        if slots.running():
            line = f"sudo gpuspawner simulate --join -- gpuspawner {subcommand}"
            return f"a simulated GPU host runs here; to see it: {line}"
    return ""
