"""`make test-gpu`: install the package, and print a report of this machine's GPUs to paste."""

from __future__ import annotations

import os
import sys

from gpuspawner.gpus.missing_driver import nvidia_boards

from . import packages, setup
from .console import ROOT, finish, say
from .environment import ensure_environment
from .host import count_gpus


def main() -> int:
    """Replace this process by the report, unless there is no GPU, and so nothing to install for."""
    os.chdir(ROOT)
    if not count_gpus() and not nvidia_boards():
        say("skipped: there is no NVIDIA GPU here")
        return 0
    setup.begin()
    packages.install(packages.missing_for_environment())
    ensure_environment(setup.ENVIRONMENT, "run.txt")
    python = str(setup.ENVIRONMENT / "bin" / "python")
    command = [python, "-m", "gpuspawner", "doctor", "--gpu-report", *sys.argv[1:]]
    sys.stdout.flush()
    os.execv(python, command)  # noqa: S606  # no shell is what is wanted
    return 0


if __name__ == "__main__":
    finish(main)
