"""The daemon's systemd units: installed from the package, and removed again."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from ..errors import GPUSpawnerError
from .addresses import replace_file

SOURCES = Path(__file__).parent / "units"
UNIT_FOLDER = Path("/etc/systemd/system")
SYSUSERS_FOLDER = Path("/etc/sysusers.d")
# There if systemd runs. ref: sd_booted(3)
BOOTED = Path("/run/systemd/system")
DAEMON, SOCKET = "gpuspawner-node.service", "gpuspawner-node-engine.socket"
PART = "gpuspawner-node-engine.service"
UNITS = (DAEMON, SOCKET, PART)
SYSUSERS = "gpuspawner-node.conf"


class ServiceError(GPUSpawnerError):
    """The daemon's service can't be set up. `str()` is a sentence for administrators."""


def has_systemd() -> bool:
    """Return whether systemd runs this machine."""
    return BOOTED.is_dir() and shutil.which("systemctl") is not None


def rendered(name: str, port: int) -> str:
    """Return a unit file, or another one of the package, as it is installed."""
    text = (SOURCES / name).read_text()
    return text.replace("@PYTHON@", _escaped(sys.executable)).replace("@PORT@", str(port))


def _escaped(program: str) -> str:
    # ref: systemd.service(5), "Command lines"
    return program.replace("%", "%%").replace("$", "$$").replace(" ", "\\x20")


def check_program() -> None:
    """Raise `ServiceError` if the daemon's account couldn't run this program."""
    for program in (Path(sys.prefix), Path(__file__).resolve().parent):
        closed = [each for each in (program, *program.parents) if not each.stat().st_mode & 0o001]
        if closed:
            raise ServiceError(
                f"gpuspawner is installed in {program}, which others than its owner can't read "
                f"({closed[-1]}), so the daemon's own account couldn't start it. Install it in a "
                "folder of the system, such as /opt/gpuspawner: python3 -m venv /opt/gpuspawner"
            )


def install(port: int) -> None:
    """Install and start the daemon, anew if it runs.

    Raises:
        ServiceError: systemd refuses.
        OSError: a unit can't be written.
    """
    files = {UNIT_FOLDER / name: rendered(name, port) for name in UNITS}
    files[SYSUSERS_FOLDER / SYSUSERS] = rendered(SYSUSERS, port)
    changed = [file for file, text in files.items() if _text(file) != text]
    for file in changed:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, files[file].encode(), 0o644)
    systemctl("systemd-sysusers", str(SYSUSERS_FOLDER / SYSUSERS))
    if changed:
        # Where NVIDIA's hook gives containers their GPUs, this takes them away from those that run:
        # so it isn't done for nothing. ref: NVIDIA's troubleshooting, "losing access to GPUs"
        systemctl("systemctl", "daemon-reload")
    systemctl("systemctl", "enable", SOCKET, DAEMON)
    systemctl("systemctl", "restart", SOCKET, DAEMON)


def remove() -> None:
    """Stop and remove the daemon, as far as it is there.

    Raises:
        ServiceError: systemd refuses.
        OSError: a unit can't be removed.
    """
    there = [name for name in UNITS if (UNIT_FOLDER / name).exists()]
    if there:
        systemctl("systemctl", "disable", "--now", *there)
    for name in there:
        (UNIT_FOLDER / name).unlink()
    (SYSUSERS_FOLDER / SYSUSERS).unlink(missing_ok=True)
    if there:
        systemctl("systemctl", "daemon-reload")


def is_active(name: str = DAEMON) -> bool:
    """Return whether a unit runs."""
    done = subprocess.run(["systemctl", "is-active", "--quiet", name], check=False)
    return done.returncode == 0


def systemctl(*words: str) -> None:
    """Run a program of systemd's; raises `ServiceError` with what it says if it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServiceError(f"{' '.join(words)}: {error}") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[:500]
        raise ServiceError(f"{' '.join(words)}: {said}")


def _text(file: Path) -> str | None:
    try:
        return file.read_text()
    except OSError:
        return None
