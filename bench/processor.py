"""Processor times of processes, and counts of the calls of an engine."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import docker

from gpuspawner.simulation import cgroups
from gpuspawner.simulation.host import SimulatedHost
from gpuspawner.simulation.slots import slot_name

TICKS = os.sysconf("SC_CLK_TCK")
# Engines before 25 and those since.
ASKED = re.compile(
    r'msg="Calling ([A-Z]+) (\S+?)"|"handling ([A-Z]+) request".* request-url="([^"]+)"'
)


def seconds_of(pid: int) -> float:
    """Return the processor seconds of a process and of the children that it has waited for."""
    with suppress(OSError):
        # The name, in parentheses, may contain spaces and parentheses. ref: proc(5)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / TICKS
    return 0.0


class EngineProcesses:
    """The processes of a simulated host's engine: the daemon, and those that it starts.

    Args:
        host: the simulated host, which runs.
    """

    def __init__(self, host: SimulatedHost) -> None:
        self._directory = host.directory
        self._address = host.docker_host
        self._name = slot_name(int(host.directory.name))

    def seconds(self) -> tuple[float, float]:
        """Return the processor seconds of dockerd, and of containerd, shims, runc and hooks.

        A shim's time is lost when its container ends, so compare before that.
        """
        daemon = self._daemon()
        both = {daemon: 0.0, 0: 0.0}
        for pid in self._pids():
            both[daemon if pid == daemon else 0] += seconds_of(pid)
        return both[daemon], both[0]

    @contextmanager
    def asked(self) -> Iterator[Counter[str]]:
        """Count the engine's calls in this context: call -> number, filled in at its end.

        The engine logs each call, which takes time: measure nothing else at the same time.
        """
        log = self._directory / "dockerd.log"
        found: Counter[str] = Counter()
        self._debug(True)
        # The engine logs that it has read its configuration before it applies it.
        begin = log.stat().st_size
        with closing(docker.APIClient(base_url=self._address, version="auto")) as client:
            while not calls_in(log.read_bytes()[begin:].decode("utf-8", "replace")):
                client.ping()
                time.sleep(0.05)
        begin = log.stat().st_size
        try:
            yield found
        finally:
            time.sleep(0.2)
            with log.open("rb") as file:
                file.seek(begin)
                found.update(calls_in(file.read().decode("utf-8", "replace")))
            self._debug(False)

    def _debug(self, on: bool) -> None:
        """Turn the engine's log of calls on or off."""
        path = self._directory / "daemon.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"debug": on}))
        log = self._directory / "dockerd.log"
        begin = log.stat().st_size
        os.kill(self._daemon(), signal.SIGHUP)
        deadline = time.monotonic() + 10
        while b"Reloaded configuration" not in log.read_bytes()[begin:]:
            if time.monotonic() > deadline:
                raise RuntimeError("the engine doesn't read its configuration again")
            time.sleep(0.05)

    def _daemon(self) -> int:
        return int((self._directory / "docker.pid").read_text())

    def _pids(self) -> Collection[int]:
        found = (cgroups.pids_in(group / "engine") for group in cgroups.of_name(self._name))
        return {pid for pids in found for pid in pids}


def calls_in(log: str) -> list[str]:
    """Return the calls in an engine's log, without API versions, ids and arguments."""
    return [
        call_of(old_method or method, old_path or path)
        for old_method, old_path, method, path in ASKED.findall(log)
    ]


def call_of(method: str, path: str) -> str:
    """Return a call of an engine without API version, id and arguments: "GET /volumes/…"."""
    plain = re.sub(r"\?.*|^/v[0-9.]+", "", path)
    kind = re.sub(
        r"^/(containers|images|volumes)/(?!json|create|prune)(.+?)(/\w+)?$", r"/\1/…\3", plain
    )
    return f"{method} {kind}"
