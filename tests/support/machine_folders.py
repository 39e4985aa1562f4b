"""Folders of a simulated cluster's machines: each one's own, or the same on several.

Each engine has a root of its own, with a `/tmp` that no other has; all have this machine's
`/dev/shm`, from which a folder is bound where several machines are to have the same.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gpuspawner.simulation.cluster import SimulatedCluster


class Folder:
    """A folder of one path on all machines.

    Args:
        cluster: the cluster, which runs.
        path: where it is on each machine.
    """

    def __init__(self, cluster: SimulatedCluster, path: Path) -> None:
        self._cluster = cluster
        self.path = path
        self.shared = Path(tempfile.mkdtemp(prefix="gpuspawner-", dir="/dev/shm"))
        self.shared.chmod(0o755)
        self._mounted: list[int] = []

    def on(self, number: int) -> Path:
        """Return where this process finds it that a machine has, by its number from 1."""
        return Path(f"/proc/{self._engine(number)}/root{self.path}")

    def make(self, number: int) -> None:
        """Make it on a machine, which alone has it."""
        self.on(number).mkdir(parents=True)

    def share(self, number: int, *options: str) -> None:
        """Mount what all who do so have in common, with options of `mount`."""
        if number not in self._mounted:
            self.on(number).mkdir(parents=True, exist_ok=True)
            self._mounted.append(number)
        self._do(number, "mount", *options, "--bind", str(self.shared), str(self.path))

    def remount(self, number: int, options: str) -> None:
        """Change the options of the mount on a machine."""
        self._do(number, "mount", "-o", f"remount,bind,{options}", str(self.path))

    def remove_from(self, number: int) -> None:
        """Remove it from a machine; what several have in common stays."""
        if number in self._mounted:
            self._mounted.remove(number)
            self._do(number, "umount", str(self.path))
        shutil.rmtree(self.on(number), ignore_errors=True)

    def remove(self) -> None:
        """Remove it from all machines."""
        for number in range(1, len(self._cluster.hosts) + 1):
            self.remove_from(number)
        shutil.rmtree(self.shared)

    def _engine(self, number: int) -> int:
        return int((self._cluster.hosts[number - 1].directory / "docker.pid").read_text())

    def _do(self, number: int, *words: str) -> None:
        inside: Sequence[str] = ["nsenter", "-m", "-t", str(self._engine(number)), *words]
        subprocess.run(inside, check=True)


@contextmanager
def opened(cluster: SimulatedCluster, path: str = "/tmp/homes") -> Iterator[Folder]:
    """Have a folder that is on no machine yet, and on none afterwards."""
    folder = Folder(cluster, Path(path))
    try:
        yield folder
    finally:
        folder.remove()
