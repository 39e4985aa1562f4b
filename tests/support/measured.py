"""What a hub's processes take, and what they keep: memory, database, processor time."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from .hubs import Hub, until


def dashboard_of(hub: Hub) -> int:
    """Return the process of a hub's dashboard."""
    found: list[int] = []

    def runs() -> bool:
        found[:] = [pid for pid in children_of(hub.pid) if "dashboard" in _command(pid)]
        return len(found) == 1

    until(runs, "the dashboard runs", log=hub.log)
    return found[0]


def proxy_of(hub: Hub) -> int:
    """Return the process of a hub's proxy."""
    (found,) = [pid for pid in children_of(hub.pid) if "http-proxy" in " ".join(_command(pid))]
    return found


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                # The name, in parentheses, may contain spaces and parentheses. ref: proc(5)
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                if int(parent) == pid:
                    found.append(int(entry.name))
    return found


def _command(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return []


def variable_of(pid: int, name: str) -> str:
    """Return an environment variable of a process; "" where it has none."""
    variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    found: dict[str, str] = dict(each.partition("=")[::2] for each in variables)  # type: ignore[misc]
    return found.get(name, "")


def memory_of(pid: int) -> int:
    """Return the bytes of memory that a process itself fills, without files that it has open."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert found
    return 1024 * int(found[1])


def database_of(hub: Hub) -> int:
    """Return the bytes of a hub's database, with what was written and deleted."""
    return sum(each.stat().st_size for each in hub.folder.glob("jupyterhub.sqlite*"))


def descriptors_of(pid: int) -> int:
    """Return how many files and connections a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - others' processes open and close
