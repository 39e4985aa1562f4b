"""The network between simulated hosts: a bridge in a namespace of its own, with a link to each."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from .programs import SimulationError, call, search_path

# Benchmarks' range: no site has it, and nothing of it is seen outside of the namespaces.
# ref: RFC 2544
NETWORK = IPv4Network("198.18.231.0/24")
BRIDGE = "switch"
# A host's end of its link.
INTERFACE = "eth1"


def address_of(number: int) -> IPv4Address:
    """Return the address of a host, by its number from 1."""
    return NETWORK[number]


@dataclass
class Switch:
    """A bridge; it ends with this process.

    The namespace has no name under /run/netns, since a named one outlives its processes.
    """

    net: int
    pid: int = field(default_factory=os.getpid)

    @property
    def path(self) -> str:
        """The file by which other processes enter the namespace."""
        return f"/proc/{self.pid}/fd/{self.net}"

    def connect(self, number: int, namespace: str, seconds_to_wait: float = 30) -> None:
        """Give a host its link.

        Args:
            number: the host's, from 1.
            namespace: the file of its network namespace.
            seconds_to_wait: the timeout of each command.
        """
        port = port_of(number)
        # The kernel finds the other end's namespace by a process in it.
        words = ["ip", "link", "add", port, "type", "veth", "peer", "name", INTERFACE]
        holder = subprocess.Popen(
            ["nsenter", f"--net={namespace}", "sh", "-c", "echo here; read -r answer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PATH": search_path()},
        )
        try:
            assert holder.stdout is not None
            if holder.stdout.readline().strip() != "here":
                raise SimulationError(f"the network namespace {namespace} can't be entered")
            self._inside([*words, "netns", str(holder.pid)])
        finally:
            holder.communicate("\n", timeout=seconds_to_wait)
        self._inside(["ip", "link", "set", port, "master", BRIDGE, "up"])
        inside = ["nsenter", f"--net={namespace}", "--", "ip"]
        address = f"{address_of(number)}/{NETWORK.prefixlen}"
        call([*inside, "address", "add", address, "dev", INTERFACE])
        call([*inside, "link", "set", INTERFACE, "up"])

    def _inside(self, words: list[str]) -> None:
        call(["nsenter", f"--net={self.path}", "--", *words])

    def close(self) -> None:
        """Remove the bridge with its links."""
        os.close(self.net)


def port_of(number: int) -> str:
    """Return the name of the switch's end of a host's link."""
    return f"node{number}"


def plug(switch: str, number: int, connected: bool) -> None:
    """Connect a host's cable, or pull it out.

    Args:
        switch: the file of the switch's namespace.
        number: the host's, from 1.
        connected: whether it is to be connected.

    Raises:
        SimulationError: there is no such switch or host any more.
    """
    state = "up" if connected else "down"
    call(["nsenter", f"--net={switch}", "--", "ip", "link", "set", port_of(number), state])


def open_switch() -> Switch:
    """Make a bridge in a namespace of its own.

    Raises:
        SimulationError: that can't be had.
    """
    script = f"ip link add {BRIDGE} type bridge && ip link set {BRIDGE} up && echo ready; read -r x"
    maker = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PATH": search_path(), "LC_ALL": "C"},
    )
    try:
        assert maker.stdout is not None
        if maker.stdout.readline().strip() != "ready":
            _, problem = maker.communicate(timeout=30)
            raise SimulationError(f"hosts can't be connected: {problem.strip()}")
        return Switch(os.open(Path(f"/proc/{maker.pid}/ns/net"), os.O_RDONLY))
    finally:
        maker.kill()
        maker.communicate()
