"""The places for simulated hosts on this machine, and sweeping out what a killed one left.

Each running simulation has a slot: a number from which its names and addresses follow. Everything
that it makes outside of its own namespaces carries the slot's name, so whoever holds the slot may
remove anything of that name.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shlex
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import cgroups, machine
from .programs import SimulationError, call

SLOTS = 16
RUN = Path("/run/gpuspawner")
NOTE = RUN / "machine.json"

_LOCK_NAMES = "gpuspawner-simulation-"


@dataclass
class _Hold:
    """What only one process can have at a time for a slot's number: the right to sweep it.

    Files, control groups and the network each have a lock of their own, for chroots and containers
    share some of these and not others. The network's is an abstract socket's name, which is unique
    per network namespace like the interface and the rules. The kernel frees all with their process.
    """

    number: int
    folder: int
    group: int
    name: socket.socket

    def close(self) -> None:
        """Give the slot back; its folder and control group have to be empty."""
        with contextlib.suppress(OSError):
            (RUN / str(self.number)).rmdir()
        cgroups.let_go(slot_name(self.number), self.group)
        os.close(self.folder)
        self.name.close()


@dataclass
class Slot:
    """A number that no other running simulation on this machine has, until `release`."""

    number: int
    hold: _Hold

    @property
    def name(self) -> str:
        """What everything of this slot is called: network interface, rules and control groups."""
        return slot_name(self.number)

    @property
    def directory(self) -> Path:
        """Socket, state, logs: what the simulation keeps while it runs."""
        return RUN / str(self.number)

    def prepare_machine(self) -> None:
        """Change what all simulations share, unless another one has. See `machine.prepare`."""
        with _one_at_a_time():
            machine.prepare(NOTE)

    def release(self) -> None:
        """Sweep out everything of this slot, then give it back.

        Processes that are left are killed. Settings of the machine that the first simulation
        changed are put back by the last.
        """
        with _one_at_a_time():
            sweep(self.number)
            self.hold.close()
            if not _names_in_use():
                machine.restore_forwarding(NOTE)
            if not any(_folder_is_held(number) for number in range(SLOTS)):
                machine.restore_folders(NOTE)
                with contextlib.suppress(OSError):
                    RUN.rmdir()


def slot_name(number: int) -> str:
    """The name of a slot's belongings. It has to fit a network interface: 15 characters."""
    return f"gpuspawner-{number}"


def claim() -> Slot:
    """The first free slot, swept, with an empty folder; dead simulations' slots are swept too.

    SimulationError if all are taken.
    """
    claimed = None
    with _one_at_a_time():
        for number in range(SLOTS):
            is_new = not (RUN / str(number)).exists()
            if claimed is not None and is_new:
                continue
            hold = _hold(number)
            if hold is None:
                continue
            sweep(number)
            if claimed is None:
                claimed = Slot(number, hold)
            else:
                hold.close()
    if claimed is None:
        raise SimulationError(f"{SLOTS} simulated hosts are running already: end one of them")
    return claimed


def running() -> list[Path]:
    """The folders of the simulated hosts that run now."""
    if not RUN.is_dir():
        return []
    with _one_at_a_time():
        return [RUN / str(number) for number in range(SLOTS) if _folder_is_held(number)]


def sweep(number: int) -> None:
    """Remove what carries this slot's name: processes, interface, rules, groups, files."""
    name = slot_name(number)
    cgroups.end_all(name)
    call(["ip", "link", "delete", name], check=False)
    remove_rules(name)
    for entry in (RUN / str(number)).iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def remove_rules(name: str) -> None:
    """Remove the firewall rules that are tagged with this name, and no others."""
    for table in ("filter", "nat"):
        for line in call(["iptables", "-w", "-t", table, "-S"], check=False).splitlines():
            words = shlex.split(line)
            if words[:1] == ["-A"] and ("--comment", name) in itertools.pairwise(words):
                call(["iptables", "-w", "-t", table, "-D", *words[1:]], check=False)


def _hold(number: int) -> _Hold | None:
    """All of a slot's locks, or None if another process has one. Makes folder and group."""
    path = RUN / str(number)
    with contextlib.ExitStack() as back:
        if not path.exists():
            path.mkdir()
            back.callback(path.rmdir)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        back.callback(os.close, folder)
        name = socket.socket(socket.AF_UNIX)
        back.callback(name.close)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            name.bind(f"\0{_lock_name(number)}")
        except OSError:
            return None
        group = cgroups.hold(slot_name(number))
        if group is None:
            return None
        back.pop_all()
    return _Hold(number, folder, group, name)


def _lock_name(number: int) -> str:
    return f"{_LOCK_NAMES}{number}"


def _names_in_use() -> bool:
    """Whether a simulation runs in this network namespace."""
    return any(
        line.split()[-1].startswith(f"@{_LOCK_NAMES}")
        for line in Path("/proc/self/net/unix").read_text().splitlines()
    )


def _folder_is_held(number: int) -> bool:
    try:
        folder = os.open(RUN / str(number), os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(folder)
    return False


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Held while slots are claimed, swept, given back or looked at."""
    while True:
        RUN.mkdir(exist_ok=True)
        descriptor = os.open(RUN, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Whoever held the lock may have removed the folder; then this one locks nothing.
        with contextlib.suppress(FileNotFoundError):
            if RUN.stat().st_ino == os.fstat(descriptor).st_ino:
                break
        os.close(descriptor)
    try:
        yield
    finally:
        os.close(descriptor)
