"""Starts of a bare Jupyter Server without a hub, with which other starts are compared.

A container with `jupyter server` is created and started by the engine's API, and polled until it
answers. Its limits, mounts and devices are those of a GPUSpawner's server.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import docker
import docker.errors

from gpuspawner.backends.docker.device_requests import cdi_name
from gpuspawner.backends.docker.poll_interval import PollInterval

COMMAND = ["jupyter", "server", "--ip=0.0.0.0", "--no-browser", "--IdentityProvider.token="]
PORT = 8888


class ByHand:
    """Starts bare Jupyter Servers in containers that are like a given one.

    Args:
        client: a client of the engine.
        model: the inspection of a server's container.
        uuids: the UUIDs of the host's GPUs.
        network: the name of the containers' network.
        volume: the beginning of the names of the volumes that replace users' own volumes.
    """

    def __init__(
        self,
        client: docker.APIClient,
        model: Mapping[str, Any],
        uuids: list[str],
        network: str,
        volume: str,
    ) -> None:
        self._client = client
        self._model = model
        self._uuids = uuids
        self._network = network
        self._volume = volume
        self._started: dict[int, str] = {}
        # Polls as often as GPUSpawner does.
        self._interval = PollInterval()

    def start(self, number: int) -> bool:
        """Start a server; return True once it answers.

        Args:
            number: the number of its GPU and its volume.
        """
        config, client = self._model["Config"], self._client
        created = client.create_container(
            config["Image"],
            COMMAND,
            user=config["User"],
            host_config=self._host_config(number),
            labels={"gpuspawner.bench": "by hand"},
        )
        container = self._started[number] = str(created["Id"])
        client.start(container)
        found = client.inspect_container(container)
        with self._interval.one_more():
            wait_for(
                found["NetworkSettings"]["Networks"][self._network]["IPAddress"], self._interval
            )
        return True

    def stop(self, number: int) -> None:
        """Remove a server."""
        with suppress(docker.errors.NotFound):
            self._client.remove_container(self._started.pop(number), force=True, v=True)

    def seconds(self) -> tuple[float, float]:
        """Return the processor seconds of this process, and 0.0 for a proxy, as there is none."""
        return time.process_time(), 0.0

    def _host_config(self, number: int) -> dict[str, Any]:
        """Return the host config of the model, with another GPU and another volume."""
        given = dict(self._model["HostConfig"])
        uuid = self._uuids[number]
        given["DeviceRequests"] = [
            {**each, "DeviceIDs": [cdi_name(uuid) if each["Driver"] == "cdi" else uuid]}
            for each in given["DeviceRequests"] or []
        ]
        given["Binds"] = [
            f"{self._volume}{number}:{bind.partition(':')[2]}" for bind in given["Binds"] or []
        ]
        return given


def wait_for(address: str, interval: PollInterval) -> None:
    """Wait until a Jupyter Server answers."""
    while True:
        try:
            socket.create_connection((address, PORT), 5).close()
            break
        except OSError:
            time.sleep(interval.seconds)
    while True:
        connection = http.client.HTTPConnection(address, PORT, timeout=5)
        try:
            connection.request("GET", "/api")
            if connection.getresponse().status < 500:
                return
        except (OSError, http.client.HTTPException):
            time.sleep(interval.seconds)
        finally:
            connection.close()
