"""`SimulatedCluster`: several simulated hosts as a Docker Swarm, as a context manager.

Each host has its own engine, network namespace, name and NVML. A bridge in a namespace of its own
connects them, and a hub runs in the network namespace of a container on an overlay network, as one
in a container does: a process of a host can't reach an overlay network.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from . import api
from .engine_root import version
from .host import HUB_IP_VARIABLE, SimulatedHost
from .node_daemons import HUB_FOLDER_VARIABLE, start_daemons
from .programs import SimulationError, call
from .running_host import CLUSTER, ENVIRONMENT, ClusterFacts, entered
from .simulation import Simulation
from .state import State
from .switch import Switch, address_of, open_switch

# An older engine ends running servers at every change of a node.
OLDEST_ENGINE = (25, 0)
# Names the hub's address for browsers on this machine.
PUBLIC_IP_VARIABLE = "GPUSPAWNER_PUBLIC_IP"

# The overlay network of hub and servers, and where Swarm takes its addresses from.
NETWORK = "gpuspawner"
OVERLAYS = "198.19.0.0/16"
# As a site with GPUs sets it: a node that is cut off for less goes on. In seconds.
HEARTBEAT = 30
READY_SECONDS = 60

HUB_IMAGE = "gpuspawner-simulation/hub"
HUB_CONTAINER = "gpuspawner-simulated-hub"
HUB_PROGRAM = """
#include <signal.h>
#include <unistd.h>
static void leave(int number) { (void)number; _exit(0); }
int main(void) { signal(SIGTERM, leave); for (;;) pause(); }
"""


def name_of(number: int) -> str:
    """Return the name of a host, by its number from 1."""
    return f"node-{number}"


def of_node(state: State, name: str) -> State:
    """Return a host's state with UUIDs that no other host has, as two of a model would else."""
    gpus = []
    for gpu in state.gpus:
        uuid = f"GPU-{_uuid(name, gpu.uuid)}"
        instances = tuple(
            replace(
                each,
                uuid=each.uuid.replace(gpu.uuid, uuid)
                if gpu.uuid in each.uuid
                else f"MIG-{_uuid(name, each.uuid)}",
            )
            for each in gpu.instances
        )
        gpus.append(replace(gpu, uuid=uuid, instances=instances))
    return replace(state, gpus=tuple(gpus))


def _uuid(*words: str) -> str:
    digits = hashlib.sha256(" ".join(words).encode()).hexdigest()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:32]))


def offered_by(state: State) -> list[str]:
    """Return what a host offers to a Swarm: each GPU and MIG instance, as daemon.json wants it."""
    uuids = [gpu.uuid for gpu in state.gpus]
    uuids += [each.uuid for gpu in state.gpus for each in gpu.instances]
    return [f"{uuid.lower().replace('/', '-')}=1" for uuid in uuids]


class SimulatedCluster(Simulation):
    """Several simulated hosts as a Docker Swarm; a context manager.

    The first host is the manager. Needs what a `SimulatedHost` does, and engines 25 or newer.

    Args:
        states: what NVML reports at first, of each host.
        cache: the folder in which images and volumes are kept.
        engine_root: a root folder with an engine; None: the machine's own.
        managers: how many of the hosts decide.
        hub_on: the number of the host, from 1, on which the hub's container is.
        offers: what a host offers to the Swarm, in words of daemon.json.
        heartbeat: after three times as many seconds a host that is cut off is down.
    """

    def __init__(
        self,
        states: Sequence[State],
        cache: str | os.PathLike[str],
        engine_root: str | os.PathLike[str] | None = None,
        *,
        managers: int = 1,
        hub_on: int = 1,
        offers: Callable[[State], list[str]] = offered_by,
        heartbeat: int = HEARTBEAT,
    ) -> None:
        self._root = Path(engine_root) if engine_root is not None else None
        self._managers = managers
        self._hub_on = hub_on
        self._heartbeat = heartbeat
        self._all = ExitStack()
        self._hub_pid = 0
        self._switch: Switch | None = None
        self.hub_ip = ""
        """The hub's address on the network of hub and servers."""
        self.public_ip = ""
        """The hub's address for the machine's own programs, such as a browser."""
        self.hub_folder = Path()
        """The folder with the hub's key and the hosts that it may ask."""
        named = [of_node(state, name_of(n)) for n, state in enumerate(states, 1)]
        self.hosts = [
            SimulatedHost(
                state,
                cache,
                engine_root=engine_root,
                hostname=name_of(number),
                engine_settings={"node-generic-resources": offers(state)},
            )
            for number, state in enumerate(named, 1)
        ]

    def start(self) -> None:
        """Set everything up.

        Raises:
            SimulationError: that failed, and nothing of it is left; the message says what to do.
        """
        if version(self._root) < OLDEST_ENGINE:
            raise SimulationError(
                f"a cluster needs Docker Engine {OLDEST_ENGINE[0]} or newer, and this machine has "
                f"{'.'.join(map(str, version(self._root)))}"
            )
        with ExitStack() as undo:
            undo.callback(self.stop)
            self._switch = open_switch()
            self._all.callback(self._switch.close)
            with ThreadPoolExecutor(len(self.hosts)) as pool:
                starts = [pool.submit(host.start) for host in self.hosts]
                # All of them end, so that none is left that `stop` doesn't know.
                errors = [each.exception() for each in starts]
            for error in filter(None, errors):
                raise error
            for number, host in enumerate(self.hosts, 1):
                self._switch.connect(number, host.network_namespace)
            self._form_swarm()
            self._start_hub()
            self.hub_folder = start_daemons(
                {host.hostname: host for host in self.hosts},
                {host.hostname: address_of(n) for n, host in enumerate(self.hosts, 1)},
                manager=name_of(1),
            )
            self._write()
            undo.pop_all()

    def stop(self) -> None:
        """Take everything down, unless it is down already."""
        up = [host for host in self.hosts if host.is_up]
        if up:
            with ThreadPoolExecutor(len(up)) as pool:
                for each in [pool.submit(host.stop) for host in up]:
                    each.result()
        self._all.close()

    # -- The Swarm -------------------------------------------------------------------------------

    def _form_swarm(self) -> None:
        first = address_of(1)
        about = {
            "AdvertiseAddr": str(first),
            "ListenAddr": f"{first}:2377",
            "DefaultAddrPool": [OVERLAYS],
            "SubnetSize": 24,
            "Spec": {"Dispatcher": {"HeartbeatPeriod": self._heartbeat * 10**9}},
        }
        self.ask(1, "POST", "/swarm/init", about)
        tokens = self.ask(1, "GET", "/swarm")["JoinTokens"]
        for number in range(2, len(self.hosts) + 1):
            own = address_of(number)
            joining = {
                "AdvertiseAddr": str(own),
                "ListenAddr": f"{own}:2377",
                "RemoteAddrs": [f"{first}:2377"],
                "JoinToken": tokens["Manager" if number <= self._managers else "Worker"],
            }
            self.ask(number, "POST", "/swarm/join", joining)
        network = {"Name": NETWORK, "Driver": "overlay", "Attachable": True}
        self.ask(1, "POST", "/networks/create", network)

    def ask(self, number: int, method: str, place: str, content: Any = None) -> Any:
        """Return what a host's engine answers.

        Args:
            number: the host's, from 1.
            method: the HTTP method.
            place: the path of the request with its query.
            content: as for `api.ask`.

        Raises:
            SimulationError: it refuses.
        """
        path = self.hosts[number - 1].socket
        status, answer = api.ask(path, method, place, content, seconds=READY_SECONDS)
        if status >= 400:
            said = answer.get("message") if isinstance(answer, dict) else answer
            raise SimulationError(f"{name_of(number)}: {method} {place}: {said}")
        return answer

    def node_ids(self) -> dict[str, str]:
        """Return the name of each host -> Swarm's id of it, once it is ready."""
        end = time.monotonic() + READY_SECONDS
        while True:
            nodes = self.ask(1, "GET", "/nodes")
            if all(each["Status"]["State"] == "ready" for each in nodes) or time.monotonic() > end:
                return {each["Description"]["Hostname"]: each["ID"] for each in nodes}
            time.sleep(0.1)

    # -- The hub's place -------------------------------------------------------------------------

    def _start_hub(self) -> None:
        """Start the container in whose network namespace a hub runs."""
        number = self._hub_on
        place = f"/images/create?fromSrc=-&repo={HUB_IMAGE}&tag=1"
        self.ask(number, "POST", place, _archive())
        about = {
            "Image": f"{HUB_IMAGE}:1",
            "Cmd": ["/hub"],
            "HostConfig": {"NetworkMode": NETWORK, "Init": False},
        }
        self.node_ids()  # a worker can't join the network before it is ready
        made = self.ask(number, "POST", f"/containers/create?name={HUB_CONTAINER}", about)
        self.ask(number, "POST", f"/containers/{made['Id']}/start")
        found = self.ask(number, "GET", f"/containers/{made['Id']}/json")
        self._hub_pid = found["State"]["Pid"]
        self.hub_ip = found["NetworkSettings"]["Networks"][NETWORK]["IPAddress"]
        interfaces = json.loads(call(self.enter(["ip", "-j", "-4", "address", "show"])))
        addresses = [
            each["local"] for interface in interfaces for each in interface.get("addr_info", [])
        ]
        others = {self.hub_ip, "127.0.0.1"}
        self.public_ip = next((each for each in addresses if each not in others), "")

    def enter(self, words: Sequence[str]) -> list[str]:
        """Return the command that runs another one in the network of hub and servers."""
        return entered(self._hub_pid, words)

    @property
    def additions(self) -> dict[str, str]:
        """The environment variables that make a program see the manager's host and the others."""
        return {
            **self.hosts[0].additions,
            HUB_IP_VARIABLE: self.hub_ip,
            PUBLIC_IP_VARIABLE: self.public_ip,
            HUB_FOLDER_VARIABLE: str(self.hub_folder),
        }

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment with `additions`."""
        return {**self.hosts[0].environment, **self.additions}

    @property
    def facts(self) -> ClusterFacts:
        """The hosts, and how the hub's network is entered."""
        assert self._switch is not None
        folders = {host.hostname: str(host.directory) for host in self.hosts}
        return ClusterFacts(self._switch.path, self._hub_pid, folders)

    def _write(self) -> None:
        text = json.dumps(asdict(self.facts), indent=1)
        for host in self.hosts:
            (host.directory / CLUSTER).write_text(text)
        (self.hosts[0].directory / ENVIRONMENT).write_text(json.dumps(self.additions))


def _archive() -> bytes:
    """Return the tar archive of the hub's container: a static program that waits."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "hub.c"), Path(folder, "hub")
        source.write_text(HUB_PROGRAM)
        compiler = shutil.which("cc") or "cc"
        try:
            words = [compiler, "-static", "-O1", str(source), "-o", str(program)]
            subprocess.run(words, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", "") or error
            raise SimulationError(f"`cc -static` can't build a program: {said}") from error
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            entry = tarfile.TarInfo("hub")
            entry.size, entry.mode = program.stat().st_size, 0o755
            tar.addfile(entry, io.BytesIO(program.read_bytes()))
    return packed.getvalue()
