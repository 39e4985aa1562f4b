"""An engine of another version than the machine's: its programs are in a root folder of their own.

Such a folder is made by `mmdebstrap` of another release of the distribution, with `docker.io`,
`iptables` and `python3`. What engine and host share has the same path in it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

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
