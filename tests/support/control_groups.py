"""Control groups as an engine makes them for its containers, with real processes in them."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpuspawner.simulation.cgroups import _mounts

from .hubs import until
from .requirements import cannot

# Says that it is there, and stays; with a word, SIGTERM doesn't end it.
PROGRAM = """
import signal, sys, time
if len(sys.argv) > 1:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("there", flush=True)
while True:
    time.sleep(60)
"""


class Container:
    """A control group with a container's id, in the first hierarchy that there is."""

    def __init__(self, name: str = "docker/{id}") -> None:
        self.id = secrets.token_hex(32)
        mounts = [mount for mount in _mounts() if os.access(mount, os.W_OK)]
        if os.geteuid() != 0 or not mounts:
            cannot("needs root, and control groups that can be written")
        self._folder = mounts[0] / "gpuspawner-test" / secrets.token_hex(4)
        self.group = self._folder / name.format(id=self.id)
        self.children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Container:
        self.group.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.children:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        for folder, _, _ in os.walk(self._folder, topdown=False):
            # What its processes have started ends a little later than they do.
            until(lambda path=Path(folder): _is_removed(path), f"{folder} is empty")
        with suppress(OSError):  # another's are in it
            self._folder.parent.rmdir()

    def start(self, below: str = "", stubborn: bool = False) -> subprocess.Popen[bytes]:
        """Start a process in it.

        Args:
            below: a group of its user's own in it.
            stubborn: whether SIGTERM doesn't end it.
        """
        words = [sys.executable, "-I", "-S", "-c", PROGRAM, *(["stubborn"] if stubborn else [])]
        return self._start(words, self.group / below)

    def start_in_namespace(self) -> int:
        """Start a process with a namespace of ids of its own, as in a real container.

        Returns:
            Its id outside; inside it is 1.
        """
        words = ["unshare", "--pid", "--fork", "--kill-child"]
        outer = self._start([*words, sys.executable, "-I", "-S", "-c", PROGRAM], self.group)
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        return int(children.read_text())

    def _start(self, words: list[str], group: Path) -> subprocess.Popen[bytes]:
        group.mkdir(parents=True, exist_ok=True)

        def join() -> None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

        process = subprocess.Popen(words, stdout=subprocess.PIPE, preexec_fn=join)
        self.children.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        return process


def _is_removed(group: Path) -> bool:
    with suppress(OSError):
        group.rmdir()
    return not group.is_dir()


@contextmanager
def containers(number: int) -> Iterator[list[Container]]:
    """Make so many, as with the driver `cgroupfs`."""
    if number == 0:
        yield []
        return
    with Container() as first, containers(number - 1) as others:
        yield [first, *others]
