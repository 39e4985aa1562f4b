"""The private Docker Engine of a simulated host: its configuration, its process and its API."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

from . import api, cdi, engine_root, runtime
from .cgroups import pids_in
from .network import Addresses, Namespaces
from .programs import SimulationError, call, search_path

HOOK = "nvidia-container-runtime-hook"
START_SECONDS = 120
STOP_SECONDS = 30
LOG_LINES = 12

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def configuration(
    directory: Path,
    data: Path,
    name: str,
    addresses: Addresses,
    dns: dict[str, list[str]],
    engine_version: tuple[int, int],
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the engine's daemon.json; it shares nothing with other engines on the machine.

    `more` are further settings of it, such as what a node offers to a Swarm.

    ref: https://docs.docker.com/reference/cli/dockerd/#daemon-configuration-file
    """
    settings: dict[str, Any] = {
        "data-root": str(data),
        "exec-root": str(directory / "exec"),
        "pidfile": str(directory / "docker.pid"),
        "hosts": [f"unix://{directory / 'docker.sock'}"],
        "bip": addresses.bridge,
        "default-address-pools": [
            {"base": str(addresses.containers), "size": _pool_size(addresses)}
        ],
        # systemd's own groups would carry systemd's names, not ours.
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "cgroup-parent": f"/{name}",
        # Its published ports are in its own namespace: nobody needs a process for each of them.
        "userland-proxy": False,
        "shutdown-timeout": 10,
        **dns,
    }
    settings |= cdi.settings(directory, engine_version)
    if engine_version >= (28, 2):
        # A hub on the host speaks with containers at their own addresses, which engines since 28
        # refuse to what comes from outside. ref: https://docs.docker.com/engine/network/packet-filtering-firewalls/
        settings["allow-direct-routing"] = True
    return settings | dict(more or {})


def _pool_size(addresses: Addresses) -> int:
    return min(30, max(24, addresses.containers.prefixlen + 4))


def write_hook(directory: Path, root: Path | None = None) -> None:
    """Install the stand-ins for NVIDIA's hooks where the engine looks for them.

    Args:
        directory: the simulated host's folder.
        root: the engine's own root folder, if it has one.
    """
    folder = directory / "hook"
    folder.mkdir()
    # By the interpreter itself, not the virtual environment's link to it, and without its packages:
    # it runs at every start of a container, and what the hook imports is in the standard library.
    program = Path(__file__).parent / "hook.py"
    words = [os.path.realpath(sys.executable), "-I", "-S", str(program)]
    if root is not None:
        words = engine_root.python_command(directory, program)
    command = shlex.join([*words, str(directory)])
    for name in (HOOK, cdi.CDI_HOOK):
        wrapper = folder / name
        wrapper.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        wrapper.chmod(0o755)


def write_runtime(directory: Path, root: Path | None = None) -> dict[str, Any]:
    """Install the stand-in for NVIDIA's runtime; return the settings that make it the default one.

    Args:
        directory: the simulated host's folder, with the hook.
        root: the engine's own root folder, if it has one.
    """
    folder = directory / "hook"
    program = Path(__file__).parent / "runtime.py"
    words = [os.path.realpath(sys.executable), "-I", "-S", str(program)]
    if root is not None:
        words = engine_root.python_command(directory, program)
    wrapper = folder / runtime.RUNTIME
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.join([*words, str(folder / HOOK)])} "$@"\n')
    wrapper.chmod(0o755)
    return {
        "runtimes": {runtime.NAME: {"path": str(wrapper)}},
        "default-runtime": runtime.NAME,
    }


class Engine:
    """One dockerd in its own namespaces, with all its processes in one control group.

    The kernel sends it SIGTERM when the process that started it dies; it then ends its containers
    and itself.

    Args:
        directory: the simulated host's folder, with daemon.json, socket and log.
        namespaces: the network and mount namespaces.
        group: the control group.
        data: the folder of images and volumes.
        root: the root folder with the engine's programs; None: the machine's own.
        hostname: what it calls the host; "": as the machine is called.
    """

    def __init__(
        self,
        directory: Path,
        namespaces: Namespaces,
        group: Path,
        data: Path,
        root: Path | None = None,
        hostname: str = "",
    ) -> None:
        self.directory = directory
        self.socket = directory / "docker.sock"
        self.log = directory / "dockerd.log"
        self._namespaces = namespaces
        self._group = group
        self._data = data
        self._root = root
        self._hostname = hostname
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            SimulationError: it doesn't; the message has the end of its log.
        """
        if self._process is not None and self._process.poll() is None:
            return
        # A killed engine leaves its pid files, and their pids may be other processes' by now.
        for file in ("docker.pid", "exec/containerd/containerd.pid"):
            (self.directory / file).unlink(missing_ok=True)
        words = ["dockerd", "--config-file", str(self.directory / "daemon.json")]
        if self._root is not None:
            words = engine_root.enter(self._root, [self.directory, self._data], words)
        if self._hostname:
            script = 'echo "$0" > /proc/sys/kernel/hostname && exec "$@"'
            words = ["unshare", "--uts", "sh", "-c", script, self._hostname, *words]
        environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(self.directory / "hook"), search_path()]),
            # Engines 28.0 and 28.1 have it only as a variable: see `allow-direct-routing` above.
            "DOCKER_INSECURE_NO_IPTABLES_RAW": "1",
        }
        for name in ("LD_LIBRARY_PATH", "PYTHONPATH", "DOCKER_HOST", "DOCKER_CONTEXT"):
            environment.pop(name, None)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._namespaces.enter(words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd="/",
                start_new_session=True,
                preexec_fn=joining(self._group, signal.SIGTERM),
            )
        self._wait_until_ready(self._process)
        # Whatever the engine does with packets from outside: the host may reach containers.
        rule = ["DOCKER-USER", "-i", "eth0", "-j", "ACCEPT"]
        for action in ("-D", "-I"):
            call(self._namespaces.enter(["iptables", "-w", action, *rule]), check=action == "-I")

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if process.poll() is not None:
                raise SimulationError(
                    f"the engine ended while starting; its log:\n{self.last_words()}"
                )
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.ask("GET", "/_ping", seconds=5)[0] == 200:
                    return
            time.sleep(0.02)
        raise SimulationError(
            f"the engine doesn't answer after {START_SECONDS} s; its log:\n{self.last_words()}"
        )

    def stop(self) -> None:
        """Stop it with SIGTERM: it stops its containers first and keeps them."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it with SIGKILL: containers keep running until it is started again."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        # Its containerd goes with it, but a little later, and the next one won't start before.
        end = time.monotonic() + STOP_SECONDS
        while self._containerd_runs() and time.monotonic() < end:
            time.sleep(0.01)

    def _containerd_runs(self) -> bool:
        for pid in pids_in(self._group):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "containerd":
                    return True
        return False

    def reap(self) -> None:
        """Reap the engine's ended processes that became this process's children (`adopt_orphans`).

        No other code of this process may wait for a child at the same time.
        """
        while True:
            if self._process is not None:
                self._process.poll()
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is None:
                    return
                if self._process is None or ended.si_pid != self._process.pid:
                    os.waitpid(ended.si_pid, 0)
            except ChildProcessError:
                return

    def last_words(self) -> str:
        """Return the end of its log."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-LOG_LINES:])

    def ask(self, method: str, path: str, seconds: float = 30) -> tuple[int, Any]:
        """Send a request to its API; return the status and the JSON answer (None if it is empty).

        Args:
            method: the HTTP method.
            path: the path with its query.
            seconds: the timeout.

        Raises:
            OSError: it can't be reached.
        """
        return api.ask(self.socket, method, path, seconds=seconds)

    def remove_containers(self, grace_seconds: int) -> None:
        """Stop and remove all its containers; named volumes stay.

        Args:
            grace_seconds: how long a container may take to end by itself. What can't be removed
                is in the engine's log.
        """
        with contextlib.suppress(OSError, http.client.HTTPException):
            if self._in_swarm():
                self.ask("POST", "/swarm/leave?force=true")
            _, containers = self.ask("GET", "/containers/json?all=true")
            with ThreadPoolExecutor(8) as pool:
                for container in containers or []:
                    pool.submit(self._remove, container, grace_seconds)

    def _in_swarm(self) -> bool:
        _, answer = self.ask("GET", "/info")
        return bool(answer) and answer.get("Swarm", {}).get("LocalNodeState") not in (
            None,
            "inactive",
        )

    def _remove(self, container: dict[str, Any], grace_seconds: int) -> None:
        place = f"/containers/{quote(container['Id'])}"
        with contextlib.suppress(OSError, http.client.HTTPException):
            if container.get("State") == "paused":
                self.ask("POST", f"{place}/unpause")
            if container.get("State") in ("paused", "running", "restarting"):
                self.ask("POST", f"{place}/stop?t={grace_seconds}")
            self.ask("DELETE", f"{place}?force=true&v=true")


def forget_networks(data: Path) -> None:
    """Remove an earlier run's networks and swarm from an engine's data folder.

    Their addresses may not be free in this run. Images and volumes stay.
    """
    shutil.rmtree(data / "network" / "files", ignore_errors=True)
    shutil.rmtree(data / "swarm", ignore_errors=True)


def adopt_orphans() -> None:
    """Make this process the subreaper of its descendants: it becomes the parent of orphans.

    Else the shims of containers would go to process 1, which in many a container reaps nothing. A
    containerd that has ended and isn't reaped keeps dockerd from starting another.
    ref: PR_SET_CHILD_SUBREAPER in prctl(2)
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def joining(group: Path, when_parent_dies: signal.Signals) -> Callable[[], None]:
    """Return a `preexec_fn`: join a control group, and get a signal when the parent dies."""
    parent = os.getpid()
    library = ctypes.CDLL(None)

    def join() -> None:
        # Not `Path`: between fork and exec the less the better.
        with open(group / "cgroup.procs", "w") as file:  # noqa: PTH123
            file.write(str(os.getpid()))
        library.prctl(_PR_SET_PDEATHSIG, when_parent_dies)
        if os.getppid() != parent:  # the parent died before the signal was set
            os._exit(1)

    return join
