"""The check of the servers' network: that it exists and isolates them from each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..backends.docker.network import BETWEEN_CONTAINERS
from . import swarm
from .findings import Context, Finding

OUR_NETWORK = (
    'c.JupyterHub.hub_ip = ensure_network("gpuspawner")    (from gpuspawner.network)\n'
    'c.GPUSpawner.network_name = "gpuspawner"'
)


def network(context: Context) -> Iterator[Finding]:
    """Check the network that the configuration names."""
    given, client = context.configuration, context.engine
    if given is None or client is None:
        return
    if swarm.is_of_swarm(given):
        yield from swarm.network(context)
        return
    if given.network_error:
        words = given.network_error.partition(": ")[2]
        yield Finding("failure", words, given.network_advice or OUR_NETWORK)
        return
    name = str(given.spawner.get("network_name") or "bridge")
    if name in ("host", "none"):
        yield Finding("failure", f"servers are in the engine's network {name!r}", OUR_NETWORK)
        return
    found = [each for each in client.api.networks(names=[name]) if each["Name"] == name]
    if not found:
        what = f"{given.where('network_name')} is {name!r}, and the engine has no such network"
        yield Finding("failure", what, _create_command(name))
        return
    yield _check_isolation(name, found[0])


def _create_command(name: str) -> str:
    make = f"docker network create -o {BETWEEN_CONTAINERS}=false {name}"
    return f"{make}\nor, for one that is made at the hub's start:\n{OUR_NETWORK}"


def _check_isolation(name: str, about: Mapping[str, Any]) -> Finding:
    options = about.get("Options") or {}
    driver = about.get("Driver")
    if driver != "bridge":
        return Finding(
            "note", f"{name} is of the kind {driver}: whether it keeps servers apart isn't known"
        )
    if str(options.get(BETWEEN_CONTAINERS, "true")).lower() != "false":
        what = f"in {name} servers reach each other: one user's programs another's JupyterLab"
        if name == "bridge":
            return Finding("warning", what, OUR_NETWORK)
        advice = f"with no server running: docker network rm {name}\nthen {_create_command(name)}"
        return Finding("warning", what, advice)
    if about.get("Internal"):
        what = f"{name} keeps servers apart, and from the outside: they can't install packages"
        return Finding("note", what)
    return Finding("ok", f"{name} keeps servers apart, and lets them reach the hub and the outside")
