"""The distribution's packages: which ones are missing, and their installation."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from .console import ROOT, Stop, call, say, step
from .root import as_root

# A user's PATH often leaves these out, and `dockerd` and `iptables` live there.
ADMINISTRATORS_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")

# A program, and the packages that bring it.
SIMULATION: Mapping[str, tuple[str, ...]] = {
    "dockerd": ("docker.io",),
    "ip": ("iproute2",),
    "iptables": ("iptables",),
    "cc": ("gcc", "libc6-dev"),
    # For the base image, where no registry has one.
    "mmdebstrap": ("mmdebstrap", "debian-archive-keyring"),
}
# The tests pull from a registry of their own.
REGISTRY: Mapping[str, tuple[str, ...]] = {"docker-registry": ("docker-registry",)}
BROWSER: Mapping[str, tuple[str, ...]] = {"chromium": ("chromium",)}


def find(program: str) -> str | None:
    """Return a program's path, from PATH or an administrator's folders; None if it is missing."""
    folders = [os.environ.get("PATH", os.defpath), *ADMINISTRATORS_FOLDERS]
    return shutil.which(program, path=os.pathsep.join(folders))


def missing(programs: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return the packages of the missing ones of these programs (program -> packages)."""
    wanted = [names for program, names in programs.items() if not find(program)]
    return [name for names in wanted for name in names]


def missing_for_environment() -> list[str]:
    """Return the package that Debian's Python needs for environments, if it is missing."""
    return [] if importlib.util.find_spec("ensurepip") else ["python3-venv"]


def missing_for_browser() -> list[str]:
    """Return Chromium's package, if it is missing and the distribution has it."""
    names = missing(BROWSER)
    if names and _is_ubuntu():
        say("there is no Chromium, which Ubuntu has only as a snap (`snap install chromium`): the")
        say("  tests in a browser are skipped")
        return []
    return names


def missing_for_chinese() -> list[str]:
    """Return the package of a Chinese font, if the machine has none, for screenshots."""
    listed = shutil.which("fc-list")
    found = (
        listed
        and subprocess.run(
            [listed, ":lang=zh-cn"], stdout=subprocess.PIPE, check=False
        ).stdout.strip()
    )
    return [] if found else ["fonts-wqy-microhei"]


def _is_ubuntu() -> bool:
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return False
    return "ID=ubuntu" in lines


def install(packages: Iterable[str]) -> None:
    """Install packages, if there are any; raise Stop if that fails."""
    names = list(packages)
    if not names:
        return
    listed = " ".join(names)
    if shutil.which("apt-get") is None:
        raise Stop(
            f"this machine has no apt-get to install {listed} (Debian's names): install them with "
            "its own package manager and try again"
        )
    script = ROOT / "scripts" / "install-packages"
    command = as_root([str(script), *names], f"installing {listed}")
    with step(f"Installing with apt-get: {listed}"):
        if "docker.io" in names:
            say(
                "  Docker's service isn't started now; the simulated host runs an engine of its own"
            )
        call(command, f"apt-get can't install {listed}")
