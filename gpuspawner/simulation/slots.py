"""The slots for simulated hosts on this machine, and the removal of what killed ones have left.

Each running simulation has a slot: a number from which its names and addresses follow. Everything
that it creates outside of its namespaces has the slot's name, so the holder of a slot may remove
everything of that name.
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
    """The locks of a slot, which one process can have at a time.

    Files, control groups and the network have a lock each, since chroots and containers share some
    of these and not others. The network's lock is the name of an abstract socket, which is unique
    per network namespace like the interface and the rules. The kernel releases the locks when the
    process ends.
    """

    number: int
    folder: int
    group: int
    name: socket.socket

    def close(self) -> None:
        """Release the locks; the slot's folder and control group have to be empty."""
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
        """The name of the slot's network interface, firewall rules and control groups."""
        return slot_name(self.number)

    @property
    def directory(self) -> Path:
        """The folder of the simulation's socket, state and logs while it runs."""
        return RUN / str(self.number)

    def prepare_machine(self) -> None:
        """Change the machine's settings for all simulations, unless another one has."""
        with _one_at_a_time():
            machine.prepare(NOTE)

    def release(self) -> None:
        """Remove everything of this slot, then release it.

        Remaining processes are killed. The last simulation restores the machine's settings that the
        first one changed.
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
    """Return the name of everything of a slot, at most the 15 characters of an interface's name."""
    return f"gpuspawner-{number}"


def claim() -> Slot:
    """Claim the first free slot; everything that killed simulations left in any slot is removed.

    Raises:
        SimulationError: all slots are taken.
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
    """Return the folders of the simulated hosts that run now."""
    if not RUN.is_dir():
        return []
    with _one_at_a_time():
        return [RUN / str(number) for number in range(SLOTS) if _folder_is_held(number)]


def sweep(number: int) -> None:
    """Remove everything with a slot's name: processes, interface, rules, control groups, files."""
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
    """Return a slot's locks; None if another process has one. Creates its folder and group."""
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
    """Return whether a simulation runs in this network namespace."""
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
    """Lock the slots while one is claimed, swept, released or looked for."""
    while True:
        RUN.mkdir(exist_ok=True)
        descriptor = os.open(RUN, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # The last holder may have removed the folder meanwhile: then this locks nothing.
        with contextlib.suppress(FileNotFoundError):
            if RUN.stat().st_ino == os.fstat(descriptor).st_ino:
                break
        os.close(descriptor)
    try:
        yield
    finally:
        os.close(descriptor)
