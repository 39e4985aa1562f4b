"""The daemons of a simulated cluster's hosts, set up as an administrator does: invited, joined.

They are the real `gpuspawner node`, each a program on its host, and end with it.
"""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address
from pathlib import Path

from .host import SimulatedHost
from .programs import SimulationError

# In the manager's folder: the hub's key and the hosts that it knows.
HUB_FOLDER = "nodes"
# Names the hub's folder for every `gpuspawner` command.
HUB_FOLDER_VARIABLE = "GPUSPAWNER_NODES"
READY_SECONDS = 90
# As a command for another machine ends: where it is taken up, and the token.
_INVITATION = re.compile(r"gpuspawner node join --no-swarm (\S+) (\S+)")
_LISTENS = "listening on port "
_GPUSPAWNER = [sys.executable, "-m", "gpuspawner", "node"]


def start_daemons(
    hosts: Mapping[str, SimulatedHost], addresses: Mapping[str, IPv4Address], manager: str
) -> Path:
    """Start the daemon of each host that has GPUs; return the hub's folder, which names them all.

    Args:
        hosts: by their names.
        addresses: of the same names, by which they reach each other.
        manager: the name of the host that invites the others, and itself.

    Raises:
        SimulationError: one doesn't join; the message has the end of its output.
    """
    first = hosts[manager]
    folder = first.directory / HUB_FOLDER
    with_gpus = [name for name, host in hosts.items() if host.read().gpus]
    invitations = {}
    for name in with_gpus:
        words = ["invite", "--no-swarm", "--host", str(addresses[manager]), "--port", "0"]
        words += ["--hub-folder", str(folder), "--minutes", "5"]
        invitations[name] = first.start_program([*_GPUSPAWNER, *words], f"invite-{name}.log")
    logs = {}
    for name in with_gpus:
        found = _INVITATION.search(_output(invitations[name], _INVITATION))
        assert found is not None
        host, address = hosts[name], str(addresses[name])
        own, socket = host.directory / "node", host.directory / "engine-part.sock"
        join = ["join", found[1], found[2], "--name", name, "--address", address, "--no-swarm"]
        join += ["--folder", str(own), "--yes", "--no-service"]
        serve = ["serve", "--folder", str(own), "--listen", address, "--engine-socket", str(socket)]
        script = f"{_line(join)} && exec {_line(serve)}"
        logs[name] = host.start_program(["sh", "-c", script], "node.log")
        host.start_program([*_GPUSPAWNER, "engine", "--socket", str(socket)], "engine-part.log")
    for log in logs.values():
        _output(log, re.compile(_LISTENS))
    return folder


def _line(words: Sequence[str]) -> str:
    return shlex.join([*_GPUSPAWNER, *words])


def _output(log: Path, wanted: re.Pattern[str]) -> str:
    """Return a program's output once something is in it."""
    end = time.monotonic() + READY_SECONDS
    while not wanted.search(said := log.read_text(errors="replace")):
        if time.monotonic() > end:
            raise SimulationError(f"a host's daemon doesn't start: {said.strip()[-1000:]}")
        time.sleep(0.02)
    return said
