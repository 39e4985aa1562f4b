"""An engine of another version than the machine's: its programs are in a root folder of their own.

Such a folder is made by `mmdebstrap` of another release of the distribution, of the packages of
whatever mirror this machine's apt uses. What engine and host share has the same path in it.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from .programs import SimulationError, call, require, search_path

PACKAGES = ("docker.io", "containerd", "runc", "iptables", "ca-certificates", "python3")
# Debian's release whose engine is new enough for a cluster, where the machine's own isn't.
FOR_CLUSTERS = "trixie"

# The root is made the engine's by pivot_root: in a plain chroot the engine can't import images.
# ref: pivot_root(2), which has the last steps
SCRIPT = """
set -e
root=$1 shared=$2
shift 2
mount --bind "$root" "$root"
for each in dev proc sys; do mount --rbind "/$each" "$root/$each"; done
mount -t tmpfs -o mode=0755 tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
IFS=:
for each in $shared; do
    mkdir -p "$root$each"
    mount --rbind "$each" "$root$each"
done
unset IFS
cd "$root"
pivot_root . .
umount -l .
cd /
exec "$@"
"""


def enter(root: Path, shared: Sequence[Path], words: Sequence[str]) -> list[str]:
    """Return the command that runs another one in a root, with a mount namespace of its own.

    Args:
        root: the root folder.
        shared: folders that have the same path in it.
        words: the other command, of the root's programs.
    """
    paths = ":".join(map(str, shared))
    own = ["unshare", "--mount", "--propagation", "private"]
    return [*own, "sh", "-c", SCRIPT, "sh", str(root), paths, *words]


def python_command(directory: Path, program: Path) -> list[str]:
    """Return the command of a stand-in's program for an engine in a root.

    Args:
        directory: the simulated host's folder, which the root has.
        program: the program, which the root lacks, as it does this process's interpreter.
    """
    own = directory / "hook" / program.name
    shutil.copyfile(program, own)
    return ["/usr/bin/python3", "-I", "-S", str(own)]


def make_root(release: str, root: Path, more: Sequence[str] = ()) -> None:
    """Make the root of a release of Debian, unless it is there. Who comes meanwhile waits.

    Args:
        release: the release's name.
        root: the folder.
        more: further arguments of mmdebstrap.

    Raises:
        SimulationError: it can't be made, as without a mirror.
    """
    if root.exists():
        return
    require(["mmdebstrap"])
    root.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(root.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if root.exists():
            return
        new = root.with_name(f"{release}.new")
        shutil.rmtree(new, ignore_errors=True)
        words = ["mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
        done = subprocess.run(
            [*words, *more, release, str(new)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PATH": search_path()},
        )
        if done.returncode:
            shutil.rmtree(new, ignore_errors=True)
            lines = [line for line in done.stderr.splitlines() if line.startswith("E:")]
            said = " ".join(lines)[-500:] or done.stderr[-500:]
            raise SimulationError(f"mmdebstrap can't make a root of {release}: {said}")
        new.replace(root)
    finally:
        os.close(lock)


def engine_for_cluster(
    root: Path | None, cache: Path, oldest: tuple[int, int], say: Callable[[str], None]
) -> tuple[Path | None, Path]:
    """Return the root with a cluster's engine (None: the machine's own), and the engines' cache.

    Args:
        root: the one that is wanted; None: the machine's own engine, if it is new enough, else one
            that is made.
        cache: the folder of what is kept between runs.
        oldest: the oldest engine that is new enough.
        say: told what takes a while.

    Raises:
        SimulationError: there is none.
    """
    if root is not None:
        if not (root / "usr").is_dir():
            raise SimulationError(f"{root} isn't a root folder")
        return root, cache / f"of-{root.resolve().name}"
    if shutil.which("dockerd", path=search_path()) and version() >= oldest:
        return None, cache
    made = cache / "roots" / FOR_CLUSTERS
    if not made.exists():
        say(
            f"this machine has no Docker Engine {oldest[0]} or newer: making a folder with that of "
            f"Debian {FOR_CLUSTERS}, half a minute, the first time"
        )
    make_root(FOR_CLUSTERS, made)
    return made, cache / f"of-{FOR_CLUSTERS}"


def version(root: Path | None = None) -> tuple[int, int]:
    """Return the installed engine's version: (20, 10).

    Args:
        root: the root folder that it is in; None: the machine's.

    Raises:
        SimulationError: `dockerd --version` doesn't report it.
    """
    said = call([*(["chroot", str(root)] if root else []), "dockerd", "--version"])
    numbers = re.search(r"(\d+)\.(\d+)", said)
    if numbers is None:
        raise SimulationError(f"`dockerd --version` names no version: {said.strip()!r}")
    return int(numbers[1]), int(numbers[2])
