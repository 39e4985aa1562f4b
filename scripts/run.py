"""`make run`: install what is missing, then start the hub, on a simulated GPU host if need be.

`make run NODES=3` starts it on so many simulated machines, whose Docker Swarm it uses.
"""

from __future__ import annotations

import os
import sys

from . import setup
from .console import ROOT, Stop, finish, say
from .host import inspect_machine
from .ports import check_ports
from .root import as_root, is_root

SIMULATED_GPUS = 4
MAX_NODES = 8


def main() -> int:
    """Replace this process by the hub, or by the program that runs it."""
    os.chdir(ROOT)
    nodes = wanted_nodes()
    if not nodes:  # else its ports are those of a machine that is simulated
        check_ports()
    host = inspect_machine()
    if nodes:
        say(f"{nodes} machines with GPUs are simulated, as a Docker Swarm")
    elif host.lacks:
        say(f"{host.lacks}: {SIMULATED_GPUS} GPUs are simulated")
    is_simulated = bool(nodes or host.lacks)
    setup.begin()
    setup.for_running(simulated=is_simulated)
    bin_folder = setup.ENVIRONMENT / "bin"
    path = [
        str(ROOT / "node_modules" / ".bin"),
        str(bin_folder),
        os.environ.get("PATH", os.defpath),
    ]
    os.environ["PATH"] = os.pathsep.join(path)
    command = [str(bin_folder / "python"), "-m", "scripts.serve"]
    purpose = "the Docker Engine"
    if is_simulated:
        purpose = "the simulated GPU host"
        what = ["--nodes", str(nodes)] if nodes else ["--gpus", str(SIMULATED_GPUS)]
        command = [command[0], "-m", "gpuspawner", "simulate", *what, "--", *command]
    if is_simulated or host.needs_root:
        if not is_root():
            say(f"{purpose} takes root: going on with sudo")
        command = as_root(command, purpose)
    # In place of this process, so that signals reach it directly.
    sys.stdout.flush()
    os.execvp(command[0], command)  # noqa: S606  # no shell is what is wanted


def wanted_nodes() -> int:
    """Return how many machines are to be simulated, by NODES; 0: it isn't set."""
    text = os.environ.get("NODES", "").strip()
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MAX_NODES):
        raise Stop(f"NODES is {text!r}, and has to be a whole number from 1 to {MAX_NODES}")
    return int(text)


if __name__ == "__main__":
    finish(main)
