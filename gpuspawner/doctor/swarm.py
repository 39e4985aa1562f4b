"""The checks of a hub's Docker Swarm: its managers, machines and network, as a manager knows them.

What each machine finds of itself is in `swarm_node` and `machines`. Each sentence says what is
wrong and what follows from it, and the advice what to do.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import docker.errors

from ..backends.docker.errors import UNREACHABLE, engine_message
from ..backends.swarm.cluster import SwarmNode, disagreements, parse_nodes
from ..gpus.model import Node
from ..nodes.oldest_engine import OLDEST_WORDS, is_too_old
from ..untrusted import parse_json
from .engine import find_program
from .findings import Configuration, Context, Finding

# A machine may be away for as many heartbeats until Swarm takes it to be lost.
HEARTBEATS = 3
LEAST_HEARTBEAT_SECONDS = 30
# How much an overlay network adds to each packet. ref: RFC 7348, 5
VXLAN_BYTES = 50
# That of an overlay network without the option. ref: libnetwork's overlay driver
OVERLAY_MTU = 1450
MTU_OPTION = "com.docker.network.driver.mtu"
ENCRYPTED = "encrypted"
HEARTBEAT = f"docker swarm update --dispatcher-heartbeat {LEAST_HEARTBEAT_SECONDS}s"

Json = Mapping[str, Any]


def is_of_swarm(given: Configuration | None) -> bool:
    """Return whether a configuration's servers are services of a Swarm."""
    return given is not None and given.is_ours and "homes" in given.spawner


def swarm(context: Context) -> Iterator[Finding]:
    """Check the Swarm of the hub's engine, where the configuration's servers are on one."""
    if not is_of_swarm(context.configuration) or context.engine is None:
        return
    found = list(of_membership(context.engine_info))
    yield from found
    if any(each.state == "failure" for each in found):
        return
    api = context.engine.api
    try:
        about, listed = api.inspect_swarm(), api.nodes()
    except docker.errors.APIError as error:
        what = f"it can't be read, so nothing is handed out: {engine_message(error)}"
        yield Finding("failure", what, "docker node ls")
        return
    except UNREACHABLE as error:
        yield Finding("failure", f"it can't be read, so nothing is handed out: {error}")
        return
    yield from of_heartbeat(about)
    yield from of_managers(listed)
    yield from of_nodes(parse_nodes(listed))
    if context.nodes is not None:
        yield from of_kinds(context.nodes, parse_nodes(listed))
    if context.configuration and len(listed) > 1:
        yield from of_homes(context.configuration.spawner["homes"])


def of_membership(info: Json) -> Iterator[Finding]:
    """Yield whether an engine, by its `GET /info`, decides for a Swarm."""
    about = info.get("Swarm") or {}
    state = about.get("LocalNodeState") or "inactive"
    if state != "active":
        yield Finding(
            "failure",
            f"the hub's engine is in no Swarm ({state}), so no server can be started",
            f"docker swarm init --advertise-addr ADDRESS --dispatcher-heartbeat "
            f"{LEAST_HEARTBEAT_SECONDS}s",
        )
    elif not about.get("ControlAvailable"):
        yield Finding(
            "failure",
            "the hub's engine isn't a manager of its Swarm, and only these start services",
            "on a manager: docker node promote NAME, or run the hub on one",
        )


def of_heartbeat(about: Json) -> Iterator[Finding]:
    """Yield what is wrong with a Swarm's heartbeat, by its `GET /swarm`."""
    dispatcher = (about.get("Spec") or {}).get("Dispatcher") or {}
    seconds = (dispatcher.get("HeartbeatPeriod") or 0) / 1e9
    if not seconds:
        yield Finding("note", "its heartbeat can't be told", HEARTBEAT)
    elif seconds < LEAST_HEARTBEAT_SECONDS:
        yield Finding(
            "warning",
            f"its heartbeat is {seconds:g} seconds: a machine that is cut off for more than "
            f"{HEARTBEATS * seconds:g} has its servers killed when it comes back",
            HEARTBEAT,
        )
    else:
        away = f"{HEARTBEATS * seconds:g} seconds"
        yield Finding("ok", f"machines may be cut off for {away} and keep their servers")


def of_managers(listed: Sequence[Json]) -> Iterator[Finding]:
    """Yield how many managers a Swarm has, and may lose, by its `GET /nodes`."""
    managers = [each for each in listed if (each.get("Spec") or {}).get("Role") == "manager"]
    number, may_lose = len(managers), (len(managers) - 1) // 2
    for each in managers:
        about = each.get("ManagerStatus") or {}
        if about.get("Reachability") != "reachable":
            said = about.get("Reachability") or "unknown"
            yield Finding(
                "warning",
                f"manager {_name(each)} is {said}: of {number} only {may_lose} may be away, and "
                "beyond that nothing starts or stops",
                "there: systemctl status docker",
            )
    if number == 1:
        yield Finding(
            "note",
            "there is one manager alone: while it is away servers go on, and nothing starts, "
            "stops or is extended; if its disk is lost, so is the Swarm",
            "keep a copy of its /var/lib/docker/swarm, or have three: docker node promote NAME",
        )
    elif number and number % 2 == 0:
        yield Finding(
            "warning",
            f"there are {number} managers, an even number: no more of them may be away "
            f"({may_lose}) than of {number - 1}, and there is one more that can be",
            "docker node promote NAME, or docker node demote NAME",
        )
    elif number:
        yield Finding("ok", f"{number} managers, of which {may_lose} may be away")


def of_nodes(nodes: Sequence[SwarmNode]) -> Iterator[Finding]:
    """Yield which machines take no servers, or none with GPUs."""
    for each in nodes:
        if each.state != "ready":
            yield Finding(
                "warning",
                f"{each.name} is {each.state}: nothing is started there, and what runs there "
                "isn't seen",
                "there: systemctl status docker; are 2377/tcp and 7946/tcp and udp open?",
            )
        elif each.availability != "active":
            yield Finding(
                "note",
                f"{each.name} takes no servers: it was set to {each.availability}",
                f"docker node update --availability active {each.name}",
            )
        if is_too_old(each.version):
            ends = "ends running servers with GPUs whenever a machine of the Swarm changes"
            follows = (
                "nothing is handed out anywhere, as it is a manager"
                if each.is_manager
                else "its GPUs aren't handed out"
            )
            yield Finding(
                "failure",
                f"{each.name}: Docker Engine {each.version or '?'} {ends}, so {follows}",
                f"there, with no server running: install {OLDEST_WORDS} or newer",
            )


def of_kinds(told: Sequence[Node], nodes: Sequence[SwarmNode]) -> Iterator[Finding]:
    """Yield what the machines' daemons and the Swarm say differently of GPUs.

    Args:
        told: what the daemons say.
        nodes: those of the Swarm.
    """
    for sentence in disagreements(told, nodes):
        what, _, todo = sentence.rpartition(": ")
        if not todo.startswith(("let it join", "gpuspawner")):
            what, todo = (
                sentence,
                "give each its own hostname, or invite it: gpuspawner node invite",
            )
        ends = "" if "handed out" in what else ", so it isn't handed out"
        yield Finding("warning", f"{what}{ends}", todo)


def of_homes(told: Json) -> Iterator[Finding]:
    """Yield where users' files are, by what the configuration says of it.

    Args:
        told: `local` and `why`, as `backends.swarm.homes.HomesOf` has them.
    """
    if told["local"]:
        yield Finding(
            "note",
            f"users' files are on one machine each ({told['why']}): who gets GPUs on another one "
            "doesn't see them there, and form and JupyterLab say so",
            "a file server: see docs/how-to/swarm.md, Files",
        )
    else:
        what = f"users' files are the same on all machines by the configuration ({told['why']})"
        yield Finding("ok", what)


# -- The network -----------------------------------------------------------------------------------


def network(context: Context) -> Iterator[Finding]:
    """Check the overlay network that the configuration names."""
    given, client = context.configuration, context.engine
    if given is None or client is None:
        return
    name = str(given.spawner.get("network_name") or "")
    found = [each for each in client.api.networks(names=[name]) if each["Name"] == name]
    yield from of_network(f"{given.where('network_name')} = {name!r}", name, found)
    if found:
        address = str((context.engine_info.get("Swarm") or {}).get("NodeAddr") or "")
        yield from of_mtu(found[0], *interface_of(_interfaces(), address))


def of_network(setting: str, name: str, found: Sequence[Json]) -> Iterator[Finding]:
    """Yield what is wrong with the servers' network.

    Args:
        setting: the line of the configuration.
        name: the network's name.
        found: those of the engine that have it.
    """
    make = f"docker network create --driver overlay --attachable {name or 'gpuspawner'}"
    anew = f"with no server and no hub running: docker network rm {name}\n{make}"
    if not found:
        what = f"{setting}, and the Swarm has no such network: no server can be started"
        yield Finding("failure", what, make)
        return
    about = found[0]
    options = about.get("Options") or {}
    if about.get("Driver") != "overlay":
        yield Finding(
            "failure",
            f"{name} is of the kind {about.get('Driver')}: servers on other machines couldn't "
            "reach the hub",
            f"{make}    (with another name)",
        )
        return
    if not about.get("Attachable"):
        yield Finding(
            "failure",
            f"{name} isn't attachable: the hub's container can't be on it, and so reaches no "
            "server",
            anew,
        )
    if ENCRYPTED in options and str(options[ENCRYPTED]).lower() != "false":
        yield Finding(
            "warning",
            f"{name} is encrypted: where a kernel or a firewall doesn't let IPsec (ESP) through, "
            "servers on other machines start and are never reached",
            f"try it: start a server on each machine. Else {anew}",
        )
    elif about.get("Attachable"):
        yield Finding("ok", f"{name} is an overlay network that the hub's container can be on")


def of_mtu(about: Json, interface: str, mtu: int | None) -> Iterator[Finding]:
    """Yield whether the packets of an overlay network fit through an interface.

    Args:
        about: the network.
        interface: the interface's name.
        mtu: that of the interface; None: it can't be read.
    """
    if mtu is None:
        return
    given = str((about.get("Options") or {}).get(MTU_OPTION, OVERLAY_MTU))
    inner = int(given) if given.isdigit() else OVERLAY_MTU
    if inner + VXLAN_BYTES > mtu:
        yield Finding(
            "warning",
            f"packets of {about.get('Name')} have up to {inner} bytes, and {interface} carries "
            f"{mtu} with {VXLAN_BYTES} around each: large answers of servers on other machines "
            "get lost, and their pages hang",
            "make it anew, with no server running: docker network create --driver overlay "
            f"--attachable --opt {MTU_OPTION}={mtu - VXLAN_BYTES} {about.get('Name')}",
        )


def interface_of(interfaces: Iterable[Json], address: str) -> tuple[str, int | None]:
    """Return the name and the MTU of the interface with an address; "", None: it isn't here.

    Args:
        interfaces: as `ip -json address` prints them.
        address: the address by which a machine is in its Swarm.
    """
    for each in interfaces:
        here = [str(known.get("local")) for known in each.get("addr_info") or []]
        mtu = each.get("mtu")
        if address and address in here and isinstance(mtu, int):
            return str(each.get("ifname")), mtu
    return "", None


def _interfaces() -> Sequence[Json]:
    """Return this machine's interfaces; () where they can't be read, as in a container."""
    program = find_program("ip")
    if program is None:
        return ()
    try:
        done = subprocess.run(
            [program, "-json", "address"], capture_output=True, timeout=10, check=True
        )
        found: Sequence[Json] = parse_json(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()
    return found


def _name(node: Json) -> str:
    return str((node.get("Description") or {}).get("Hostname") or node.get("ID") or "?")
