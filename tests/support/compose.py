"""The services of a compose file, read as `docker compose` reads them.

`docker compose` is a plug-in that the tests' machine needn't have, so `Project` starts what the
file says through the engine's API. It refuses every key that it doesn't know: nothing in the file
is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker
import docker.errors
import yaml

# ${NAME}, ${NAME:-default}, ${NAME:?why it is needed}
VARIABLE = re.compile(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}")
# What `create_container` is given, or is done otherwise; of each service.
KNOWN = {
    *("cap_drop", "command", "depends_on", "deploy", "environment", "group_add", "healthcheck"),
    *("image", "labels", "logging", "network_mode", "pull_policy", "read_only", "restart"),
    *("security_opt", "tmpfs", "user", "volumes"),
}


def interpolated(value: Any, variables: Mapping[str, str]) -> Any:
    """Return a value of the file with its variables filled in; raises ValueError without one."""
    if isinstance(value, Mapping):
        return {name: interpolated(each, variables) for name, each in value.items()}
    if isinstance(value, list):
        return [interpolated(each, variables) for each in value]
    if not isinstance(value, str):
        return value

    def fill(found: re.Match[str]) -> str:
        name, how, rest = found.groups()
        if variables.get(name):
            return variables[name]
        if how == ":-":
            return rest
        raise ValueError(f"{name}: {rest or 'it is not set'}")

    return VARIABLE.sub(fill, value)


def load(file: Path, variables: Mapping[str, str]) -> dict[str, Any]:
    """Return what a compose file says with these variables, as in `.env`."""
    read = yaml.safe_load(file.read_text())
    assert {name for name in read if not name.startswith("x-")} <= {"name", "services", "volumes"}
    filled: dict[str, Any] = interpolated(read, variables)
    for name, service in filled["services"].items():
        assert set(service) <= KNOWN, name
    return filled


def started_in(services: Mapping[str, Any]) -> list[str]:
    """Return the services in an order in which each comes after those that it depends on."""
    order: list[str] = []
    while len(order) < len(services):
        ready = [
            name
            for name, service in services.items()
            if name not in order and set(service.get("depends_on", ())) <= set(order)
        ]
        assert ready, "the services depend on each other"
        order += ready
    return order


def _seconds(text: str) -> int:
    """Return a duration ("30s") in nanoseconds, as the API has it."""
    found = re.fullmatch(r"(\d+)s", text)
    assert found, text
    return int(found[1]) * 10**9


class Project:
    """The containers of a compose file on an engine; a context manager that removes them."""

    def __init__(self, file: Path, variables: Mapping[str, str], client: docker.APIClient) -> None:
        self._file = load(file, variables)
        self._client = client
        self._name = self._file["name"]

    def __enter__(self) -> Project:
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.services:
            self.remove(name)

    @property
    def services(self) -> Mapping[str, Any]:
        """Name -> what the file says of a service."""
        services: Mapping[str, Any] = self._file["services"]
        return services

    def container(self, service: str) -> str:
        """Return the name of a service's container."""
        return f"{self._name}-{service}-1"

    def up(self) -> None:
        """Create and start every service that isn't there, as `docker compose up -d` does."""
        for name in started_in(self.services):
            try:
                self._client.inspect_container(self.container(name))
            except docker.errors.NotFound:
                self.start(name)

    def start(self, service: str, **changed: Any) -> None:
        """Create and start one service; `changed` are keys that differ from the file's."""
        wanted = {**self.services[service], **changed}
        created = self._client.create_container(**self._arguments(service, wanted))
        self._client.start(created["Id"])

    def _arguments(self, service: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        assert wanted["pull_policy"] == "never"
        log = wanted["logging"]
        health = wanted.get("healthcheck")
        reserved = wanted.get("deploy", {"resources": {"reservations": {"devices": []}}})
        host = self._client.create_host_config(
            binds=[self._bind(volume) for volume in wanted["volumes"]],
            cap_drop=wanted["cap_drop"],
            device_requests=[_request(each) for each in _devices(reserved)],
            group_add=wanted.get("group_add"),
            log_config=docker.types.LogConfig(type=log["driver"], config=log["options"]),
            network_mode=wanted["network_mode"],
            read_only=wanted["read_only"],
            restart_policy={"Name": wanted["restart"]},
            security_opt=wanted["security_opt"],
            tmpfs=dict.fromkeys(wanted["tmpfs"], ""),
        )
        return {
            "name": self.container(service),
            "image": wanted["image"],
            "command": wanted.get("command"),
            "user": wanted["user"],
            "environment": wanted.get("environment"),
            "labels": wanted.get("labels"),
            "healthcheck": health
            and {
                name: _seconds(value) if name != "test" else value for name, value in health.items()
            },
            "host_config": host,
        }

    def _bind(self, volume: str) -> str:
        source, _, rest = volume.partition(":")
        if source in self._file["volumes"]:
            return f"{self._name}_{source}:{rest}"
        assert source.startswith("/"), source
        return volume

    def remove(self, service: str) -> None:
        """Stop and remove a service's container, if there is one; volumes stay."""
        with suppress(docker.errors.NotFound):
            self._client.stop(self.container(service), timeout=20)
            self._client.remove_container(self.container(service), force=True)

    def log(self, service: str) -> str:
        """Return what a service has written."""
        return str(self._client.logs(self.container(service)).decode(errors="replace"))

    def run(self, service: str, words: Sequence[str]) -> tuple[int, str]:
        """Run a program in a service's container, as `docker compose exec` does."""
        made = self._client.exec_create(self.container(service), list(words))
        said = self._client.exec_start(made["Id"]).decode(errors="replace")
        return int(self._client.exec_inspect(made["Id"])["ExitCode"]), said

    def inspect(self, service: str) -> dict[str, Any]:
        """Return what the engine says of a service's container."""
        found: dict[str, Any] = self._client.inspect_container(self.container(service))
        return found


def _devices(deploy: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    assert set(deploy) == {"resources"}
    assert set(deploy["resources"]) == {"reservations"}
    assert set(deploy["resources"]["reservations"]) == {"devices"}
    devices: Sequence[Mapping[str, Any]] = deploy["resources"]["reservations"]["devices"]
    return devices


def _request(device: Mapping[str, Any]) -> docker.types.DeviceRequest:
    """Return a reservation as `docker compose` makes a device request of it."""
    assert set(device) == {"driver", "count", "capabilities"}
    count = -1 if device["count"] == "all" else int(device["count"])
    return docker.types.DeviceRequest(
        driver=device["driver"], count=count, capabilities=[device["capabilities"]]
    )
