"""Machine-wide settings of simulated hosts: the first host sets them, the last restores them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from .programs import SimulationError

IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")

# Fixed folders of Docker and containerd, which the engine's mount namespace hides. They have to
# exist to be hidden.
HIDDEN_FOLDERS = (Path("/run/docker"), Path("/run/containerd"))


def prepare(note: Path) -> None:
    """Enable IP forwarding in this network namespace, and create the folders that the engine hides.

    Args:
        note: the file to which the former settings are written, for `restore_…`.

    Raises:
        SimulationError: forwarding can't be enabled, as in an unprivileged container.
    """
    known = _read(note)
    forwarding = known.setdefault("forwarding", {})
    before = IP_FORWARD.read_text().strip()
    if before != "1":
        forwarding.setdefault(_network(), {"before": before, "docker0": _has_docker0()})
    folders = known.setdefault("folders", [])
    folders += [str(folder) for folder in HIDDEN_FOLDERS if not folder.exists()]
    note.write_text(json.dumps(known))
    for folder in HIDDEN_FOLDERS:
        folder.mkdir(exist_ok=True)
    if before != "1":
        try:
            IP_FORWARD.write_text("1")
        except OSError as error:
            raise SimulationError(
                f"{IP_FORWARD} can't be written ({error.strerror}): a simulated host needs to set "
                "up networks; in a container that takes `--privileged`"
            ) from error


def restore_forwarding(note: Path) -> None:
    """Restore IP forwarding in this network namespace to what `prepare` found."""
    known = _read(note)
    found = known.get("forwarding", {}).pop(_network(), None)
    if found is None:
        return
    # An engine that was started meanwhile found forwarding enabled, and relies on it.
    if found["docker0"] or not _has_docker0():
        with contextlib.suppress(OSError):
            IP_FORWARD.write_text(found["before"])
    note.write_text(json.dumps(known))


def restore_folders(note: Path) -> None:
    """Remove the empty folders that `prepare` created, and the note."""
    for folder in _read(note).get("folders", []):
        with contextlib.suppress(OSError):
            Path(folder).rmdir()
    note.unlink(missing_ok=True)


def _read(note: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(note.read_text()))
    except (OSError, ValueError):
        return {}


def _network() -> str:
    return str(Path("/proc/self/ns/net").readlink())


def _has_docker0() -> bool:
    # /sys may show another namespace's interfaces.
    return any(line.startswith("docker0:") for line in _interfaces())


def _interfaces() -> list[str]:
    return [line.strip() for line in Path("/proc/self/net/dev").read_text().splitlines()]
