"""The network that servers live in, and the address at which they reach the hub."""

from __future__ import annotations

import ipaddress
import os

import docker
import docker.errors
from docker.models.networks import Network

from ...errors import GPUSpawnerError
from .errors import explain

# Set by `gpuspawner simulate`, whose engine's networks have their gateways in another namespace.
HUB_IP_VARIABLE = "GPUSPAWNER_HUB_IP"


class NetworkError(GPUSpawnerError):
    """The network can't be had. `str()` says what to do."""


def ensure_network(name: str = "gpuspawner") -> str:
    """Create the servers' network if there is none, and return the address for `hub_ip`.

    Containers on it reach the hub and the outside world, and not each other. A network that is
    there already is taken as it is.

    Args:
        name: for `c.GPUSpawner.network_name` too.

    Raises:
        NetworkError: the engine refuses or can't be reached, or the network is none of ours.
    """
    try:
        client = docker.from_env(timeout=20)
        found = client.networks.list(names=[f"^{name}$"])
        network = found[0] if found else _create(client, name)
    except (docker.errors.DockerException, OSError) as error:
        raise NetworkError(f"network {name!r}: {explain(error)}") from None
    return os.environ.get(HUB_IP_VARIABLE) or _gateway(network)


def _create(client: docker.DockerClient, name: str) -> Network:
    try:
        return client.networks.create(
            name,
            driver="bridge",
            check_duplicate=True,
            options={"com.docker.network.bridge.enable_icc": "false"},
            labels={"gpuspawner.network": name},
        )
    except docker.errors.APIError as error:
        if error.status_code == 409:  # another hub was quicker
            return client.networks.get(name)
        raise


def _gateway(network: Network) -> str:
    network.reload()
    for config in network.attrs["IPAM"]["Config"] or []:
        if gateway := config.get("Gateway"):
            return str(ipaddress.ip_interface(gateway).ip)
        if subnet := config.get("Subnet"):
            return str(next(ipaddress.ip_network(subnet).hosts()))
    raise NetworkError(
        f"network {network.name!r} has no gateway, so containers on it can't reach a hub on this "
        "machine: remove it with `docker network rm`, or choose another name"
    )
