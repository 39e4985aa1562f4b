"""Control groups, by which all processes of a simulated host are found and killed.

ref: cgroups(7)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from pathlib import Path

from .programs import SimulationError


def of_name(name: str) -> list[Path]:
    """Return the folders of the control groups of this name, in every mounted hierarchy."""
    return [group for mount in _mounts() if (group := mount / name).is_dir()]


def hold(name: str) -> int | None:
    """Make a control group and lock it; return the descriptor that holds the lock.

    Returns:
        The descriptor, which keeps the lock while it is open; None if another process has it.

    Raises:
        SimulationError: no control group can be made.
    """
    group = _first_of_name(name)
    while True:
        try:
            group.mkdir(exist_ok=True)
            descriptor = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # removed by another, between the two
            continue
        except OSError as error:
            raise SimulationError(
                f"{group} can't be made ({error.strerror}): Docker needs control groups that can "
                "be written; in a container that takes `--privileged`"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last holder may have removed the group meanwhile: then this locks nothing.
            if group.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        os.close(descriptor)


def let_go(name: str, descriptor: int) -> None:
    """Remove an empty control group that `hold` made, and release its lock."""
    with contextlib.suppress(OSError):
        _first_of_name(name).rmdir()
    os.close(descriptor)


def make(name: str) -> Path:
    """Make a control group for the engine's own processes, below a held one; return its folder.

    What they start is in it or in a container's group beside it, so that every process can be found
    whatever happens to its parents.
    """
    group = _first_of_name(name) / "engine"
    group.mkdir(exist_ok=True)
    return group


def end_all(name: str) -> None:
    """Kill every process in control groups of this name; remove all groups but the held one."""
    held = _first_of_name(name)
    for group in of_name(name):
        below = [each for each in group.iterdir() if each.is_dir()] if group == held else [group]
        for each in below:
            _end(each)


def _end(group: Path, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        below = [Path(folder) for folder, _, _ in os.walk(group)]
        pids = [pid for path in below for pid in pids_in(path)]
        if not pids:
            break
        for path in below:
            # A frozen process (`docker pause`) doesn't die before it is thawed.
            for file, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                with contextlib.suppress(OSError):
                    (path / file).write_text(word)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    while group.is_dir() and time.monotonic() < deadline:
        # The kernel frees a group a little after its last process has ended.
        for folder, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()
        if group.is_dir():
            time.sleep(0.01)


def pids_in(group: Path) -> list[int]:
    """Return the pids in a control group, except processes of other pid namespaces."""
    try:
        words = (group / "cgroup.procs").read_text().split()
    except OSError:  # gone meanwhile, or a threaded group, whose processes its parent names
        return []
    return [int(word) for word in words if word != "0"]


def _first_of_name(name: str) -> Path:
    mounts = _mounts()
    if not mounts:
        raise SimulationError("no control groups are mounted in /sys/fs/cgroup: Docker needs them")
    return mounts[0] / name


def _mounts() -> list[Path]:
    """Return where control groups are mounted, the best hierarchy for finding processes first.

    With version 2 there is one. Of version 1's hierarchies `cpuset` doesn't take processes until
    it is configured and `memory` often has them in groups of their own, so these come last.
    """
    ranked = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, options, *_ = line.split()
        if kind == "cgroup2":
            ranked.append((0, mount))
        elif kind == "cgroup":
            simple = {"pids", "freezer", "devices"} & set(options.split(","))
            ranked.append((1 if simple else 2, mount))
    return [Path(mount) for _, mount in sorted(ranked)]
