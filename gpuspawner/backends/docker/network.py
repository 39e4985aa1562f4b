"""The network of the servers, and the address at which they reach the hub."""

from __future__ import annotations

import ipaddress
import os
import threading
from collections.abc import Mapping
from typing import Any

import docker
import docker.errors
import docker.types
from docker.models.networks import Network

from ...errors import GPUSpawnerError
from ...gpus.missing_driver import own_container_id
from .errors import explain

# Set by `gpuspawner simulate`: its engine's gateways are in another network namespace.
HUB_IP_VARIABLE = "GPUSPAWNER_HUB_IP"
# A bridge's option: whether its containers reach each other.
BETWEEN_CONTAINERS = "com.docker.network.bridge.enable_icc"
# Name -> what the engine said of the networks that `ensure_network` has had in this process.
_ensured: dict[str, Mapping[str, Any]] = {}
_restoring = threading.Lock()
HOST_NETWORK = "start it with `--network host` (in a compose file: `network_mode: host`)"


class NetworkError(GPUSpawnerError):
    """The network can't be had. `str()` says what to do.

    Args:
        words: what is wrong.
        advice: what to do about it; "" where the words say that too.
    """

    def __init__(self, words: str, advice: str = "") -> None:
        super().__init__(f"{words}: {advice}" if advice else words)
        self.words = words
        self.advice = advice


def ensure_network(name: str = "gpuspawner", address: str = "") -> str:
    """Create the servers' network if it doesn't exist; return the address for `hub_ip`.

    Containers on it reach the hub and the internet, but not each other. An existing network is used
    as it is.

    Args:
        name: the network's name, also for `c.GPUSpawner.network_name`.
        address: this machine's address on it, where something else has to know it beforehand: a new
            network has the 256 addresses around it. "": the engine chooses.

    Raises:
        NetworkError: the engine refuses or can't be reached, the network has no gateway, or this
            machine has another address on it.
    """
    try:
        subnet = _subnet(address) if address else None
        client = docker.from_env(timeout=20)
        found = client.networks.list(names=[f"^{name}$"])
        network = found[0] if found else _create(client, name, subnet, address)
        network.reload()
        if address and (there := _gateway(network)) != address:
            raise NetworkError(
                f"network {name!r}: this machine's address on it is {there}, and not {address}",
                f"write {there} where {address} is written, or remove it, with no server running: "
                f"docker network rm {name}",
            )
        _ensured[name] = network.attrs
        return os.environ.get(HUB_IP_VARIABLE) or _hub_address(client, network)
    except (docker.errors.DockerException, OSError) as error:
        raise NetworkError(f"network {name!r}: {explain(error)}") from None


def is_cut_off(container: Mapping[str, Any], name: str) -> bool:
    """Return whether a container that was started on a network isn't on it any more.

    Args:
        container: its inspection.
        name: the network's name.
    """
    attached = container.get("NetworkSettings", {}).get("Networks") or {}
    wanted = container.get("HostConfig", {}).get("NetworkMode")
    return bool(container["State"]["Running"] and wanted == name and name not in attached)


def restore_network(client: docker.APIClient, name: str, servers: Mapping[str, str]) -> bool:
    """Create a network anew that `ensure_network` has had in this process, with its addresses.

    `docker network prune` removes the servers' network while none runs, and who removes it by force
    cuts off those that run: they get their addresses back, before another server can.

    Args:
        client: a client of the engine.
        name: the network's name.
        servers: container ids -> addresses, of those that may run on it.

    Returns:
        Whether it was missing, here or for another hub, and is there now.

    Raises:
        NetworkError: it is there, but a server couldn't be put on it.
        docker.errors.APIError: the engine refuses it.
    """
    with _restoring:
        before = _ensured.get(name)
        if before is None:
            return False
        there = [each for each in client.networks(names=[f"^{name}$"]) if each["Name"] == name]
        if not there:
            _create_again(client, name, before)
        elif there[0]["Id"] == before["Id"]:
            # Its servers were taken off it one by one: somebody wants it so.
            return False
        left = [each for each in servers.items() if not _is_attached(client, name, *each)]
        if left:  # the next time they are tried again
            said = ", ".join(f"{address} ({each[:12]})" for each, address in left)
            raise NetworkError(f"network {name!r}: no server could have these addresses: {said}")
        _ensured[name] = client.inspect_network(name)
        return True


def _create_again(client: docker.APIClient, name: str, before: Mapping[str, Any]) -> None:
    try:
        client.create_network(
            name,
            driver=before["Driver"],
            options=before.get("Options"),
            ipam=before.get("IPAM"),
            internal=before.get("Internal", False),
            enable_ipv6=before.get("EnableIPv6", False),
            labels=before.get("Labels"),
            check_duplicate=True,
        )
    except docker.errors.APIError as error:
        if error.status_code != 409:  # somebody else has created it
            raise


def _is_attached(client: docker.APIClient, name: str, container_id: str, address: str) -> bool:
    """Put a container that was cut off on a network again; return False if that fails."""
    try:
        if is_cut_off(client.inspect_container(container_id), name):
            client.connect_container_to_network(container_id, name, ipv4_address=address)
    except docker.errors.APIError as error:
        return bool(error.status_code == 404)  # it has ended
    return True


def _subnet(address: str) -> str:
    """Return the 256 addresses around one, as "172.31.99.0/24"."""
    try:
        return str(ipaddress.IPv4Network(f"{ipaddress.IPv4Address(address)}/24", strict=False))
    except ValueError:
        raise NetworkError(f"{address!r} is no address, such as 172.31.99.1") from None


def _create(
    client: docker.DockerClient, name: str, subnet: str | None = None, address: str = ""
) -> Network:
    pool = docker.types.IPAMPool(subnet=subnet, gateway=address) if subnet else None
    try:
        created = client.networks.create(
            name,
            driver="bridge",
            check_duplicate=True,
            options={BETWEEN_CONTAINERS: "false"},
            labels={"gpuspawner.network": name},
            ipam=docker.types.IPAMConfig(pool_configs=[pool]) if pool else None,
        )
    except docker.errors.APIError as error:
        if error.status_code == 409:  # another hub has created it
            return client.networks.get(name)
        raise
    # An engine may let two hubs create it in the same moment, and then attaches no server by a name
    # that two networks have. The older one stays.
    networks = client.networks.list(names=[f"^{name}$"])
    oldest = min(networks, key=lambda each: (each.attrs["Created"], each.id))
    if oldest.id != created.id:
        created.remove()
    return oldest


def own_container(client: docker.DockerClient) -> Mapping[str, Any] | None:
    """Inspect the container that this process is in; None where it is in none of this engine's."""
    own = own_container_id()
    if not own:
        return None
    try:
        found: Mapping[str, Any] = client.api.inspect_container(own)
    except docker.errors.NotFound:
        return None
    return found


def shares_host_network(container: Mapping[str, Any]) -> bool:
    """Return whether a container has the addresses of its host."""
    return bool(container["HostConfig"].get("NetworkMode") == "host")


def _hub_address(client: docker.DockerClient, network: Network) -> str:
    """Return where a hub that runs here can listen for a network's servers."""
    container = own_container(client)
    if container is None or shares_host_network(container):
        return _gateway(network)
    name = str(container["Name"]).lstrip("/")
    attached = container["NetworkSettings"]["Networks"].get(network.name)
    apart = (network.attrs.get("Options") or {}).get(BETWEEN_CONTAINERS) == "false"
    if attached and attached.get("IPAddress") and not apart:
        return str(attached["IPAddress"])
    raise NetworkError(
        f"network {network.name!r}: the hub's container {name} isn't in the host's network, so it "
        "can't listen where servers look for it",
        HOST_NETWORK,
    )


def _gateway(network: Network) -> str:
    for config in network.attrs["IPAM"]["Config"] or []:
        if gateway := config.get("Gateway"):
            return str(ipaddress.ip_interface(gateway).ip)
        if subnet := config.get("Subnet"):
            return str(next(ipaddress.ip_network(subnet).hosts()))
    raise NetworkError(
        f"network {network.name!r}: it has no gateway, so containers on it can't reach a hub on "
        "this machine",
        "remove it with `docker network rm`, or choose another name",
    )
