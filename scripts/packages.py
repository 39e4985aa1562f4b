"""What has to come from the distribution: which programs are missing, and installing them."""

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
    """Where a program is, the administrator's folders included."""
    folders = [os.environ.get("PATH", os.defpath), *ADMINISTRATORS_FOLDERS]
    return shutil.which(program, path=os.pathsep.join(folders))


def missing(programs: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The packages to install for those of the programs that aren't there."""
    wanted = [names for program, names in programs.items() if not find(program)]
    return [name for names in wanted for name in names]


def missing_for_environment() -> list[str]:
    """The package without which Debian's Python makes no environment."""
    return [] if importlib.util.find_spec("ensurepip") else ["python3-venv"]


def missing_for_browser() -> list[str]:
    """Chromium's package where it is missing and can be had."""
    names = missing(BROWSER)
    if names and _is_ubuntu():
        say("there is no Chromium, which Ubuntu has only as a snap (`snap install chromium`): the")
        say("  tests in a browser are skipped")
        return []
    return names


def missing_for_chinese() -> list[str]:
    """A font with Chinese letters where the machine has none, for pictures of Chinese pages."""
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
    """Install packages; nothing happens if there are none. Stop if it can't be done."""
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
