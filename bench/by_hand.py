"""Starting a bare Jupyter Server by hand: what anybody's start is compared with.

No hub: a container with `jupyter server`, created and started through the engine's API, and asked
until it answers. Its limits, mounts and devices are those of a server of ours.
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

from gpuspawner.backends.docker.poll_interval import PollInterval

COMMAND = ["jupyter", "server", "--ip=0.0.0.0", "--no-browser", "--IdentityProvider.token="]
PORT = 8888


class ByHand:
    """Starts containers like a given one, with a bare Jupyter Server in them.

    Args:
        client: of the engine.
        model: an inspection of a server's container.
        uuids: of the host's GPUs.
        network: the name of the containers' network.
        volume: what begins the names of the volumes that take the place of the users' own.
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
        # Looks no more often than GPUSpawner does.
        self._interval = PollInterval()

    def start(self, number: int) -> bool:
        """Start one, and return True once it answers.

        Args:
            number: which GPU it gets, and which volume.
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
        """Remove one that was started."""
        with suppress(docker.errors.NotFound):
            self._client.remove_container(self._started.pop(number), force=True, v=True)

    def seconds(self) -> tuple[float, float]:
        """Return the processor seconds of this program, and of a proxy, which there isn't."""
        return time.process_time(), 0.0

    def _host_config(self, number: int) -> dict[str, Any]:
        """Return the model's, with a GPU and a volume of its own."""
        given = dict(self._model["HostConfig"])
        given["DeviceRequests"] = [
            {**each, "DeviceIDs": [self._uuids[number]]} for each in given["DeviceRequests"] or []
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
