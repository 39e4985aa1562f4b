"""This machine's processes, by /proc: which container each is in, and signals to no other one.

A process id may be another process's as soon as the first has ended. So a process is known by its
id and by when it began, and one that gets a signal is held by a file descriptor while that is
compared.

ref: cgroups(7), proc_pid_stat(5), pidfd_open(2)
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..untrusted import printable

PROC = Path("/proc")
MAX_NAME = 64
# An engine's control groups have a container's whole id in their paths, whoever makes them:
# /docker/<id>, /system.slice/docker-<id>.scope, /user.slice/…/docker-<id>.scope.
_CONTAINER = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_ENDED = ("Z", "X")


@dataclass(frozen=True)
class HostProcess:
    """A process of this machine.

    Args:
        pid: its id, in the namespace of the process that looks.
        began: when it began, in the kernel's ticks since boot: another one of this id began later.
        name: its program's name, as the program has set it.
        groups: for each of the kernel's hierarchies of control groups that says so, the containers
            that the process is in, the outermost first. There is one hierarchy with version 2.
        inside: its id in the namespace of its container; None where that isn't clear.
    """

    pid: int
    began: int
    name: str = ""
    groups: tuple[tuple[str, ...], ...] = ()
    inside: int | None = None

    @property
    def began_at(self) -> float:
        """When it began, in seconds since boot, rounded down as the kernel does."""
        return self.began / os.sysconf("SC_CLK_TCK")

    def container(self, known: Collection[str]) -> str | None:
        """Return in which of these containers the process is; None if in none of them.

        It is in the outermost: below that one's control group its user may make some of their own,
        and call them what they like. Hierarchies that don't agree name none.
        """
        of_each = {next((each for each in ids if each in known), None) for ids in self.groups} - {
            None
        }
        return of_each.pop() if len(of_each) == 1 else None


def find(pid: int, proc: Path = PROC) -> HostProcess | None:
    """Return a process; None if there is none of this id, it has ended, or may not be looked at."""
    folder = proc / str(pid)
    try:
        name, state, began = _stat(folder)
        groups = container_ids((folder / "cgroup").read_text(errors="replace"))
        inside = _inside((folder / "status").read_text(errors="replace"))
        # Else the groups could be those of another process that has got the id meanwhile.
        if state in _ENDED or _stat(folder)[2] != began:
            return None
    except (OSError, ValueError, IndexError):
        return None
    return HostProcess(pid, began, name, groups, inside)


def _stat(folder: Path) -> tuple[str, str, int]:
    """Return a process's name, its state, and when it began."""
    before, _, after = (folder / "stat").read_text(errors="replace").rpartition(")")
    fields = after.split()
    return printable(before.partition("(")[2], MAX_NAME), fields[0], int(fields[19])


def container_ids(text: str) -> tuple[tuple[str, ...], ...]:
    """Return the containers that a file /proc/PID/cgroup names, line by line, each once."""
    named = (tuple(_CONTAINER.findall(line)) for line in text.splitlines())
    return tuple(dict.fromkeys(ids for ids in named if ids))


def _inside(status: str) -> int | None:
    # The process's ids in this namespace, and in each one below it that it is in.
    found = re.search(r"^NSpid:\t(\d+)\t(\d+)$", status, re.MULTILINE)
    return int(found[2]) if found else None


def has_processes(container: str, proc: Path = PROC) -> bool:
    """Return whether some process is seen to be in a container's control group.

    A process in a namespace of its own sees none, and without control groups of their own, as
    rootless engines may be, containers can't be told apart.
    """
    return any(container in ids for ids in _all_ids(proc))


def _all_ids(proc: Path) -> Iterator[str]:
    for folder in proc.iterdir():
        if folder.name.isdecimal():
            try:
                text = (folder / "cgroup").read_text(errors="replace")
            except OSError:  # it has ended, or isn't ours to look at
                continue
            for ids in container_ids(text):
                yield from ids


def is_same(
    process: HostProcess, container: str, known: Collection[str], proc: Path = PROC
) -> bool:
    """Return whether a process is there still, and in this container."""
    now = find(process.pid, proc)
    return now is not None and now.began == process.began and now.container(known) == container


def send_signal(
    process: HostProcess,
    number: signal.Signals,
    container: str,
    known: Collection[str],
    proc: Path = PROC,
) -> bool:
    """Send a signal to a process of a container; False: that one is no more, and nobody got any.

    Args:
        process: as it was found.
        number: the signal.
        container: the id of the container that it must be in.
        known: as for `HostProcess.container`.
        proc: where the processes' files are.

    Raises:
        OSError: it may not be sent, or the kernel can't (before Linux 5.3).
    """
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        # What is held now has this id. If that began when the process did, it is the process; if it
        # ends from now on, the signal is lost, whoever gets the id.
        if not is_same(process, container, known, proc):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True
