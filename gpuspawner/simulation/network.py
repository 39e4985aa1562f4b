"""The private engine's own network namespace, and its way to the host and out."""

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
    """A simulation's networks: a link with two addresses, and the containers' networks."""

    link: IPv4Network
    containers: IPv4Network

    @property
    def host(self) -> IPv4Address:
        """The host's end of the link, where containers reach a hub."""
        return self.link[1]

    @property
    def engine(self) -> IPv4Address:
        """The engine's end of the link, by which the host reaches containers."""
        return self.link[2]

    @property
    def bridge(self) -> str:
        """The default bridge's own address and network: the first quarter of the containers'."""
        quarter = next(self.containers.subnets(prefixlen_diff=2))
        return f"{quarter[1]}/{quarter.prefixlen}"


def choose_addresses(slot: int, taken: Iterable[IPv4Network]) -> Addresses:
    """Networks for a slot that overlap none of those taken, nor any other slot's.

    A wide route, such as a site's 10.0.0.0/8, is only overlapped when every place is.
    SimulationError if there is no place at all.
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
    """What this machine has routes or addresses for, and its name servers."""
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
    """The name servers in a resolv.conf; none if it can't be read."""
    return [word for key, word, *_ in _resolver_lines(file) if key == "nameserver"]


def search_domains(file: Path) -> list[str]:
    """The domains that a resolv.conf completes short names with; the last such line counts."""
    domains: list[str] = []
    for key, *words in _resolver_lines(file):
        if key in ("search", "domain"):
            domains = [word for word in words if word != "."]
    return domains


def reachable_name_servers(servers: Sequence[str]) -> list[str]:
    """Those of the name servers that a container can reach through the host's forwarding.

    Not one on the host's loopback (systemd-resolved, dnsmasq) and, for our networks have none of
    it, not one with an IPv6 address. If the first isn't reachable then none is used: it may know
    names that the others don't.
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
    """A network and a mount namespace, held open by this process; gone with it and their last one.

    They have no name under /run/netns: what is named stays when its makers die.
    """

    net: int
    mount: int
    pid: int = field(default_factory=os.getpid)

    def enter(self, words: Sequence[str]) -> list[str]:
        """The command that runs another inside."""
        return [
            "nsenter",
            f"--net=/proc/{self.pid}/fd/{self.net}",
            f"--mount=/proc/{self.pid}/fd/{self.mount}",
            "--",
            *words,
        ]

    def close(self) -> None:
        """Let go of them."""
        os.close(self.net)
        os.close(self.mount)


def open_namespaces(name: str, addresses: Addresses) -> Namespaces:
    """New namespaces, linked with the host by an interface called `name`.

    In the mount namespace the folders that Docker and containerd share between all engines of a
    machine are empty and its own. The host's later mounts and unmounts reach it, not the other way.
    SimulationError if namespaces can't be made.
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
    """The firewall rules that let containers out and to the host's end, as iptables' words.

    Each is tagged with the name, by which it is removed. The engine's own rules are in its own
    namespace; there a container's packets have got the engine's address already.
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
    """Set the firewall rules. SimulationError if iptables fails, as without kernel modules."""
    for table, *words in rules(name, addresses):
        call(["iptables", "-w", "-t", table, *words])
