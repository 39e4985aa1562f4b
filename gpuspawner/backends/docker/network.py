"""The network of the servers, and the address at which they reach the hub."""

from __future__ import annotations

import ipaddress
import os

import docker
import docker.errors
from docker.models.networks import Network

from ...errors import GPUSpawnerError
from .errors import explain

# Set by `gpuspawner simulate`: its engine's gateways are in another network namespace.
HUB_IP_VARIABLE = "GPUSPAWNER_HUB_IP"


class NetworkError(GPUSpawnerError):
    """The network can't be created or used. `str()` says what to do."""


def ensure_network(name: str = "gpuspawner") -> str:
    """Create the servers' network if it doesn't exist; return the address for `hub_ip`.

    Containers on it reach the hub and the internet, but not each other. An existing network is used
    as it is.

    Args:
        name: the network's name, also for `c.GPUSpawner.network_name`.

    Raises:
        NetworkError: the engine refuses or can't be reached, or the network has no gateway.
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
        if error.status_code == 409:  # another hub has created it
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
