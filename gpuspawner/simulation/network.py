"""The network of the private engine: its namespace, its link to the host and its firewall rules."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, ip_address
from pathlib import Path

from .machine import HIDDEN_FOLDERS
from .programs import SimulationError, call, search_path

RESOLV_CONF = Path("/etc/resolv.conf")

HINT = "run it on the machine itself, or in a container with `--privileged`"

# Where to look for addresses that nobody uses: for the link to the host, and for the containers.
# A site that has routes for all of 10/8 or 172.16/12 seldom has them for both.
PLACES = (
    (IPv4Network("10.231.0.0/16"), IPv4Network("10.232.0.0/14")),
    (IPv4Network("172.29.254.0/24"), IPv4Network("172.28.0.0/16")),
    (IPv4Network("192.168.231.0/24"), IPv4Network("192.168.232.0/21")),
    (IPv4Network("10.117.0.0/16"), IPv4Network("10.120.0.0/14")),
)

# A route as wide as this is "the rest of the world" or a site's whole private range, of which our
# smaller networks take a part that is hopefully unused.
WIDE = 12


@dataclass(frozen=True)
class Addresses:
    """A simulation's networks: the link to the host, and the range for containers' networks."""

    link: IPv4Network
    containers: IPv4Network

    @property
    def host(self) -> IPv4Address:
        """The host's address on the link, where containers reach a hub."""
        return self.link[1]

    @property
    def engine(self) -> IPv4Address:
        """The engine's address on the link, by which the host reaches containers."""
        return self.link[2]

    @property
    def bridge(self) -> str:
        """The default bridge's address/prefix: the first quarter of the containers' range."""
        quarter = next(self.containers.subnets(prefixlen_diff=2))
        return f"{quarter[1]}/{quarter.prefixlen}"


def choose_addresses(slot: int, taken: Iterable[IPv4Network]) -> Addresses:
    """Choose networks for a slot that overlap no taken network and no other slot's.

    A wide route, such as a site's 10.0.0.0/8, is overlapped only if nothing else is free.

    Args:
        slot: the slot's number.
        taken: the networks in use, as `taken_networks` returns them.

    Raises:
        SimulationError: there is no free network.
    """
    taken = [network for network in taken if network.prefixlen > 1]  # a VPN's halves of the world
    narrow = [network for network in taken if network.prefixlen > WIDE]
    for avoid in (taken, narrow):
        for links, containers in PLACES:
            link = list(links.subnets(new_prefix=30))[slot]
            part = list(containers.subnets(prefixlen_diff=4))[slot]
            if not any(network.overlaps(link) or network.overlaps(part) for network in avoid):
                return Addresses(link, part)
    places = ", ".join(str(network) for pair in PLACES for network in pair)
    raise SimulationError(f"this machine has routes for all of {places}: no network is left to use")


def taken_networks() -> list[IPv4Network]:
    """Return the networks that this machine has routes or addresses for, and its name servers."""
    found = []
    for route in json.loads(call(["ip", "-j", "-4", "route", "show", "table", "all"]) or "[]"):
        with contextlib.suppress(ValueError):
            found.append(IPv4Network(route.get("dst", ""), strict=False))
    for interface in json.loads(call(["ip", "-j", "-4", "address", "show"]) or "[]"):
        for address in interface.get("addr_info", []):
            with contextlib.suppress(ValueError, KeyError):
                found.append(
                    IPv4Network(f"{address['local']}/{address['prefixlen']}", strict=False)
                )
    for server in name_servers(RESOLV_CONF):
        with contextlib.suppress(ValueError):
            found.append(IPv4Network(server))
    return found


def name_servers(file: Path) -> list[str]:
    """Return the name servers in a resolv.conf; [] if it can't be read. ref: resolv.conf(5)"""
    return [word for key, word, *_ in _resolver_lines(file) if key == "nameserver"]


def search_domains(file: Path) -> list[str]:
    """Return the search domains in a resolv.conf; the last such line counts."""
    domains: list[str] = []
    for key, *words in _resolver_lines(file):
        if key in ("search", "domain"):
            domains = [word for word in words if word != "."]
    return domains


def reachable_name_servers(servers: Sequence[str]) -> list[str]:
    """Return the name servers that a container can reach through the host's forwarding.

    A server on the host's loopback (systemd-resolved, dnsmasq) can't be reached, nor one with an
    IPv6 address, since our networks have no IPv6. If the first can't be reached, none is used: it
    may know names that the others don't.
    """
    usable = []
    for server in servers:
        try:
            address = ip_address(server.split("%")[0])
        except ValueError:
            continue
        if address.version == 4 and not address.is_loopback:
            usable.append(server)
        elif not usable:
            return []
    return usable


def _resolver_lines(file: Path) -> Iterator[list[str]]:
    try:
        text = file.read_text(errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if len(words) > 1:
            yield words


@dataclass
class Namespaces:
    """A network and a mount namespace; they end with this process and the last process in them.

    They have no name under /run/netns, since a named namespace outlives its processes.
    """

    net: int
    mount: int
    pid: int = field(default_factory=os.getpid)

    def enter(self, words: Sequence[str]) -> list[str]:
        """Return the command that runs another one in the namespaces."""
        return [
            "nsenter",
            f"--net=/proc/{self.pid}/fd/{self.net}",
            f"--mount=/proc/{self.pid}/fd/{self.mount}",
            "--",
            *words,
        ]

    def close(self) -> None:
        """Stop holding them open."""
        os.close(self.net)
        os.close(self.mount)


def open_namespaces(name: str, addresses: Addresses) -> Namespaces:
    """Create namespaces that are linked to the host by a network interface.

    In the mount namespace, the folders that all engines of a machine share are empty and private.
    The host's later mounts propagate into it, but not the other way.

    Args:
        name: the interface's name.
        addresses: the simulation's networks.

    Raises:
        SimulationError: namespaces can't be created.
    """
    # The folders come from a constant, the addresses are numbers: nothing here is anybody's text.
    script = "set -e; "
    script += "".join(f"mount -t tmpfs -o mode=0700 tmpfs {folder}; " for folder in HIDDEN_FOLDERS)
    script += "echo ready; read -r answer; ip link set lo up; ip link set eth0 up; "
    script += f"ip address add {addresses.engine}/{addresses.link.prefixlen} dev eth0; "
    script += f"ip route add default via {addresses.host}; "
    script += "echo 1 > /proc/sys/net/ipv4/ip_forward; echo linked"
    maker = subprocess.Popen(
        ["unshare", "--net", "--mount", "--propagation", "slave", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PATH": search_path(), "LC_ALL": "C"},
    )
    try:
        assert maker.stdout is not None
        if maker.stdout.readline().strip() != "ready":
            raise SimulationError(_why_no_namespaces(maker))
        net = os.open(f"/proc/{maker.pid}/ns/net", os.O_RDONLY)
        mount = os.open(f"/proc/{maker.pid}/ns/mnt", os.O_RDONLY)
        _link(name, addresses, maker.pid)
        out, problem = maker.communicate("go on\n", timeout=30)
        if out.strip() != "linked":
            raise SimulationError(
                f"the engine's network can't be set up ({problem.strip()}): {HINT}"
            )
        call(["ip", "route", "add", str(addresses.containers), "via", str(addresses.engine)])
    finally:
        maker.kill()
        maker.communicate()
    return Namespaces(net, mount)


def _why_no_namespaces(maker: subprocess.Popen[str]) -> str:
    _, problem = maker.communicate()
    return f"no network and mount namespaces of its own can be had ({problem.strip()}): {HINT}"


def _link(name: str, addresses: Addresses, inside: int) -> None:
    far_end = ["peer", "name", "eth0", "netns", str(inside)]
    try:
        call(["ip", "link", "add", name, "type", "veth", *far_end])
    except SimulationError as error:
        raise SimulationError(f"{error}; {HINT}") from error
    call(["ip", "address", "add", f"{addresses.host}/{addresses.link.prefixlen}", "dev", name])
    call(["ip", "link", "set", name, "up"])


def rules(name: str, addresses: Addresses) -> list[list[str]]:
    """Return the firewall rules that let containers reach the host and the internet.

    The engine's own rules are in its namespace, where packets of containers get its address.

    Args:
        name: the tag of each rule, by which it is removed.
        addresses: the simulation's networks.

    Returns:
        The arguments of iptables for each rule.
    """
    tag = ["-m", "comment", "--comment", name]
    known = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"]
    link = str(addresses.link)
    return [
        ["nat", "-A", "POSTROUTING", "-s", link, "!", "-o", name, *tag, "-j", "MASQUERADE"],
        # At the front: Docker's own engine and firewalls end these chains with a refusal.
        ["filter", "-I", "FORWARD", "-i", name, *tag, "-j", "ACCEPT"],
        ["filter", "-I", "FORWARD", "-o", name, *known, *tag, "-j", "ACCEPT"],
        ["filter", "-I", "INPUT", "-i", name, "-d", str(addresses.host), *tag, "-j", "ACCEPT"],
    ]


def add_rules(name: str, addresses: Addresses) -> None:
    """Add the firewall rules.

    Raises:
        SimulationError: iptables fails, as it does without its kernel modules.
    """
    for table, *words in rules(name, addresses):
        call(["iptables", "-w", "-t", table, *words])
