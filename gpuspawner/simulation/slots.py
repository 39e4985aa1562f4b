"""The places for simulated hosts on this machine, and sweeping out what a killed one left.

Each running simulation has a slot: a number from which its names and addresses follow. Everything
that it makes outside of its own namespaces carries the slot's name, so whoever holds the slot may
remove anything of that name.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .programs import SimulationError, call

SLOTS = 16
RUN = Path("/run/gpuspawner")

IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")

# Docker and containerd have fixed places there, which the engine's mount namespace hides. To hide a
# folder there has to be one.
HIDDEN_FOLDERS = (Path("/run/docker"), Path("/run/containerd"))


@dataclass
class Slot:
    """A number that no other running simulation on this machine has, until `release`."""

    number: int
    holder: socket.socket

    @property
    def name(self) -> str:
        """What everything of this slot is called: network interface, rules and control groups."""
        return slot_name(self.number)

    @property
    def directory(self) -> Path:
        """Socket, state, logs: what the simulation keeps while it runs."""
        return RUN / str(self.number)

    def release(self) -> None:
        """Sweep out everything of this slot, then give it back.

        Processes that are left are killed. Settings of the machine that the first simulation
        changed are put back by the last.
        """
        with _one_at_a_time():
            sweep(self.number)
            if not _others_run(self.number):
                _restore_machine()
            self.holder.close()


def slot_name(number: int) -> str:
    """The name of a slot's belongings. It has to fit a network interface: 15 characters."""
    return f"gpuspawner-{number}"


def claim() -> Slot:
    """The first free slot, swept, with an empty folder; dead simulations' slots are swept too.

    SimulationError if all are taken.
    """
    with _one_at_a_time():
        claimed = None
        for number in range(SLOTS):
            holder = _hold(number)
            if holder is None:
                continue
            if claimed is not None:
                if (RUN / str(number)).exists():
                    sweep(number)
                holder.close()
                continue
            sweep(number)
            claimed = Slot(number, holder)
        if claimed is None:
            raise SimulationError(f"{SLOTS} simulated hosts are running already: end one of them")
        claimed.directory.mkdir(parents=True)
        return claimed


def running() -> list[int]:
    """The numbers of the slots that are held now."""
    names = {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()}
    return [number for number in range(SLOTS) if f"@{_lock_name(number)}" in names]


def prepare_machine() -> None:
    """Let the machine forward packets and have the folders that the engine hides.

    What that changes is noted, for the last simulation to put back. SimulationError if the
    settings can't be written, as in an unprivileged container.
    """
    with _one_at_a_time():
        note = _read_note()
        if "ip_forward" not in note and (before := IP_FORWARD.read_text().strip()) != "1":
            note["ip_forward"] = before
            note["had_docker0"] = _has_docker0()
        for folder in HIDDEN_FOLDERS:
            if not folder.exists():
                note.setdefault("folders", []).append(str(folder))
        _note_file().write_text(json.dumps(note))
        for folder in HIDDEN_FOLDERS:
            folder.mkdir(exist_ok=True)
        if IP_FORWARD.read_text().strip() != "1":
            try:
                IP_FORWARD.write_text("1")
            except OSError as error:
                raise SimulationError(
                    f"{IP_FORWARD} can't be written ({error.strerror}): a simulated host needs to "
                    "set up networks; in a container that takes `--privileged`"
                ) from error


def sweep(number: int) -> None:
    """Remove whatever carries this slot's name: processes, interface, rules, control groups."""
    name = slot_name(number)
    for group in groups(name):
        _end_group(group)
    call(["ip", "link", "delete", name], check=False)
    remove_rules(name)
    shutil.rmtree(RUN / str(number), ignore_errors=True)


def remove_rules(name: str) -> None:
    """Remove the firewall rules that are tagged with this name, and no others."""
    for table in ("filter", "nat"):
        for line in call(["iptables", "-w", "-t", table, "-S"], check=False).splitlines():
            words = [word.strip('"') for word in line.split()]
            if words[:1] == ["-A"] and _follows(words, "--comment", name):
                call(["iptables", "-w", "-t", table, "-D", *words[1:]], check=False)


def groups(name: str) -> list[Path]:
    """The control groups of this name, in every hierarchy that is mounted."""
    return [group for mount in _group_mounts() if (group := mount / name).is_dir()]


def own_group(name: str) -> Path:
    """A new control group of this name for the engine's own processes.

    All that they start is in it or in a container's group beside it, so that everything can be
    found and ended, whatever becomes of its parents. SimulationError if none can be made.
    """
    mounts = _group_mounts()
    if not mounts:
        raise SimulationError(
            "no control groups are mounted under /sys/fs/cgroup: Docker needs them"
        )
    group = mounts[0] / name / "engine"
    try:
        group.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SimulationError(
            f"{group} can't be made ({error.strerror}): Docker needs control groups that can be "
            "written; in a container that takes `--privileged`"
        ) from error
    return group


def _group_mounts() -> list[Path]:
    """Mount points of the control groups, the best one for keeping track of processes first.

    With version 2 there is one. Of version 1's hierarchies `cpuset` doesn't take processes until it
    is configured and `memory` often has them in groups of their own, so they come last.
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


def _end_group(group: Path, seconds: float = 20) -> None:
    """Kill every process in a control group and those below, then remove the groups."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        below = [path for path, _, _ in os.walk(group)]
        pids = [pid for path in below for pid in _pids(Path(path))]
        if not pids:
            break
        for path in below:
            # A frozen process (`docker pause`) doesn't die before it is thawed.
            for file, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                with contextlib.suppress(OSError):
                    (Path(path) / file).write_text(word)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    while group.is_dir() and time.monotonic() < end:
        # The kernel gives a group free a little after its last process.
        for path, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                Path(path).rmdir()
        if group.is_dir():
            time.sleep(0.01)


def _pids(group: Path) -> list[int]:
    try:
        words = (group / "cgroup.procs").read_text().split()
    except OSError:  # gone meanwhile, or a threaded group, whose processes its parent names
        return []
    return [int(word) for word in words if word != "0"]


def _follows(words: list[str], first: str, second: str) -> bool:
    return (first, second) in itertools.pairwise(words)


def _lock_name(number: int) -> str:
    return f"gpuspawner-simulation-{number}"


def _hold(number: int) -> socket.socket | None:
    """The slot's lock, or None if another process has it.

    It is an abstract socket's name: the kernel frees it with its process, it leaves no file, and
    like the names and addresses it stands for it is unique per network namespace.
    """
    holder = socket.socket(socket.AF_UNIX)
    try:
        holder.bind(f"\0{_lock_name(number)}")
    except OSError:
        holder.close()
        return None
    return holder


def _others_run(number: int) -> bool:
    return any(other != number for other in running())


def _note_file() -> Path:
    return RUN / "machine.json"


def _read_note() -> dict:
    try:
        return dict(json.loads(_note_file().read_text()))
    except (OSError, ValueError):
        return {}


def _has_docker0() -> bool:
    return Path("/sys/class/net/docker0").exists()


def _restore_machine() -> None:
    note = _read_note()
    # An engine that was started meanwhile found forwarding on, and relies on it.
    started = _has_docker0() and not note.get("had_docker0", True)
    if "ip_forward" in note and not started:
        with contextlib.suppress(OSError):
            IP_FORWARD.write_text(note["ip_forward"])
    for folder in note.get("folders", []):
        with contextlib.suppress(OSError):
            Path(folder).rmdir()
    _note_file().unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        RUN.rmdir()


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Held while slots are claimed, swept or given back."""
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
