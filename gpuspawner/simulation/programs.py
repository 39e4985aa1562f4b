"""Calls of other programs, with their failures as sentences for users."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence

# `sudo` and a plain user's shell often leave these out, and `dockerd` and `iptables` live there.
ADMINISTRATORS_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")

PACKAGES = {
    "dockerd": "docker.io",
    "ip": "iproute2",
    "iptables": "iptables",
    "mount": "mount",
    "nsenter": "util-linux",
    "unshare": "util-linux",
}


class SimulationError(Exception):
    """A simulated host can't be set up. `str()` says why and what to do."""


def search_path() -> str:
    """Return PATH with the administrator's folders appended."""
    return os.pathsep.join([os.environ.get("PATH", "/usr/bin:/bin"), *ADMINISTRATORS_FOLDERS])


def require(names: Sequence[str]) -> None:
    """Check that programs are installed.

    Raises:
        SimulationError: one is missing; the message names the packages to install.
    """
    missing = [name for name in names if shutil.which(name, path=search_path()) is None]
    if missing:
        packages = sorted({PACKAGES.get(name, name) for name in missing})
        raise SimulationError(
            f"{', '.join(missing)} can't be found: install what is missing, on Debian and Ubuntu "
            f"with `apt-get install {' '.join(packages)}`, and try again"
        )


def call(words: Sequence[str], *, check: bool = True, seconds: float = 60) -> str:
    """Run a program to its end and return its standard output.

    Args:
        words: the program and its arguments.
        check: whether an exit status other than 0 is an error.
        seconds: the timeout.

    Raises:
        SimulationError: it can't be run, takes too long, or fails; the message quotes the end of
            its output.
    """
    environment: Mapping[str, str] = {**os.environ, "PATH": search_path(), "LC_ALL": "C"}
    try:
        done = subprocess.run(
            list(words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        if not check:
            return ""
        raise SimulationError(f"`{' '.join(words)}` can't be run: {error}") from error
    if check and done.returncode:
        reason = (done.stderr or done.stdout).strip().replace("\n", "; ")
        raise SimulationError(f"`{' '.join(words)}` failed: {reason or done.returncode}")
    return done.stdout
