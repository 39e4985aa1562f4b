"""The servers' network is taken away, and made anew with who was on it."""

from __future__ import annotations

from typing import Any

import docker
import pytest
import requests

from gpuspawner.backends.docker import network
from gpuspawner.backends.docker.network import NetworkError, restore_network

IPAM = {"Config": [{"Subnet": "10.9.0.0/24", "Gateway": "10.9.0.1"}]}
SERVERS = {"of-ada": "10.9.0.2", "of-ben": "10.9.0.3"}


class Engine:
    """An engine with two servers that were started on a network, and which networks it has."""

    def __init__(self, *networks: str) -> None:
        self.has = [{"Name": "servers", "Id": each} for each in networks]
        self.attached: dict[str, str] = {}
        self.taken: set[str] = set()

    def networks(self, names: list[str]) -> list[dict[str, Any]]:
        return self.has

    def create_network(self, name: str, **how: Any) -> None:
        assert how["ipam"] == IPAM
        self.has = [{"Name": name, "Id": "new", "Driver": how["driver"], "IPAM": how["ipam"]}]

    def inspect_network(self, name: str) -> dict[str, Any]:
        return self.has[0]

    def inspect_container(self, name: str) -> dict[str, Any]:
        if name not in SERVERS:
            raise refusal(404)
        networks = {"servers": {}} if name in self.attached else {}
        return {
            "State": {"Running": True},
            "HostConfig": {"NetworkMode": "servers"},
            "NetworkSettings": {"Networks": networks},
        }

    def connect_container_to_network(self, name: str, network: str, ipv4_address: str) -> None:
        if ipv4_address in self.taken:
            raise refusal(403)
        self.attached[name] = ipv4_address


def refusal(status: int) -> docker.errors.APIError:
    answer = requests.Response()
    answer.status_code = status
    return docker.errors.APIError("refused", answer)


@pytest.fixture(autouse=True)
def known(monkeypatch) -> None:
    """The process began with a network."""
    before = {"Name": "servers", "Id": "old", "Driver": "bridge", "IPAM": IPAM}
    monkeypatch.setattr(network, "_ensured", {"servers": before})


@pytest.mark.parametrize("networks", [(), ("another hub's",)], ids=["gone", "made by another"])
def test_who_was_on_it_has_the_address_of_before(networks) -> None:
    engine = Engine(*networks)
    assert restore_network(engine, "servers", {**SERVERS, "ended": "10.9.0.4"})
    assert engine.attached == SERVERS
    # That is its network from now on.
    engine.attached.clear()
    assert not restore_network(engine, "servers", SERVERS)


def test_whom_somebody_takes_off_it_stays_off() -> None:
    engine = Engine("old")
    assert not restore_network(engine, "servers", SERVERS)
    assert engine.attached == {}


def test_a_network_that_this_hub_has_not_made_is_the_administrator_s() -> None:
    engine = Engine()
    assert not restore_network(engine, "others", SERVERS)
    assert engine.has == []


def test_who_can_t_have_the_address_keeps_nobody_else_off_and_is_tried_again() -> None:
    engine = Engine()
    engine.taken = {SERVERS["of-ada"]}
    with pytest.raises(NetworkError, match=r"10\.9\.0\.2"):
        restore_network(engine, "servers", SERVERS)
    assert [*engine.attached] == ["of-ben"]
    engine.taken.clear()
    assert restore_network(engine, "servers", SERVERS)
    assert engine.attached == SERVERS
