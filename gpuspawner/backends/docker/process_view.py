"""Whether this process sees those in the engine's containers, as the memory guard has to.

It does where it is in the engine's namespace of process ids, or in one around it.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Any

PROC = Path("/proc")
# How long the engine's socket may take to answer, in seconds.
SECONDS = 1.0
# The machine's own namespace of process ids: the only one whose number is always the same.
# ref: PROC_PID_INIT_INO in Linux's include/linux/proc_ns.h
FIRST_NAMESPACE = "pid:[4026531836]"


def sees_processes(client: Any, proc: Path = PROC) -> bool:
    """Return whether the engine's own process can be seen, and its control groups be read.

    The kernel says which process listens on a Unix socket, by the id that it has here; 0 where it
    has none. Where the engine is reached over the network, only the machine's own namespace of ids
    is sure.

    Args:
        client: the engine's `docker.APIClient`.
        proc: where processes are.

    Raises:
        OSError: the engine's socket can't be opened.
    """
    path = getattr(client.get_adapter(client.base_url), "socket_path", "")
    if not path:
        return str((proc / "self" / "ns" / "pid").readlink()) == FIRST_NAMESPACE
    pid = _listener(path)
    try:
        return pid > 0 and bool((proc / str(pid) / "cgroup").read_text())
    except OSError:  # a /proc that hides others' processes
        return False


def _listener(path: str) -> int:
    """Return the id of the process that listens on a socket; 0 if it has none here.

    ref: SO_PEERCRED in unix(7)
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SECONDS)
        connection.connect(path)
        size = struct.calcsize("3i")
        found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return int(struct.unpack("3i", found)[0])
