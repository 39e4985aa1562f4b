"""`make run`: install what is missing, then start the hub, on a simulated GPU host if need be."""

from __future__ import annotations

import os
import sys

from . import setup
from .console import ROOT, finish, say
from .host import inspect_machine
from .ports import check_ports
from .root import as_root, is_root

SIMULATED_GPUS = 4


def main() -> int:
    """Replace this process by the hub, or by the program that runs it."""
    os.chdir(ROOT)
    check_ports()
    host = inspect_machine()
    if host.lacks:
        say(f"{host.lacks}: {SIMULATED_GPUS} GPUs are simulated")
    setup.begin()
    setup.for_running(simulated=bool(host.lacks))
    bin_folder = setup.ENVIRONMENT / "bin"
    path = [
        str(ROOT / "node_modules" / ".bin"),
        str(bin_folder),
        os.environ.get("PATH", os.defpath),
    ]
    os.environ["PATH"] = os.pathsep.join(path)
    command = [str(bin_folder / "python"), "-m", "scripts.serve"]
    purpose = "the Docker Engine"
    if host.lacks:
        purpose = "the simulated GPU host"
        simulate = ["-m", "gpuspawner", "simulate", "--gpus", str(SIMULATED_GPUS), "--"]
        command = [command[0], *simulate, *command]
    if host.lacks or host.needs_root:
        if not is_root():
            say(f"{purpose} takes root: going on with sudo")
        command = as_root(command, purpose)
    # In place of this process, so that signals reach it directly.
    sys.stdout.flush()
    os.execvp(command[0], command)  # noqa: S606  # no shell is what is wanted


if __name__ == "__main__":
    finish(main)
