"""What of an engine's containers was given GPUs: for a machine that is asked for it by a hub."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import docker.errors

from ...leases.labels import MAX_NAME
from ...untrusted import bounded
from .listing import ENDED_STATES, gpu_names, names_of

# The label of a container that is a task of a Swarm.
TASK_LABEL = "com.docker.swarm.task.id"


class GivenContainers:
    """Lists the containers that run with GPUs; blocks. Each is inspected once, as it stays so."""

    def __init__(self) -> None:
        self._names: dict[str, frozenset[str]] = {}

    def __call__(self, client: Any) -> list[dict[str, Any]]:
        """Return name, task and GPUs of each, as JSON: names for `gpus.device_ids.gpus_named`.

        Args:
            client: a `docker.APIClient`.

        Raises:
            docker.errors.APIError: the engine can't tell.
        """
        known, found = {}, []
        for entry in client.containers(all=True):
            if entry.get("State") in ENDED_STATES | {"created"}:
                continue
            with suppress(docker.errors.NotFound):  # gone meanwhile
                names = self._names_of(client, entry["Id"])
                known[entry["Id"]] = names
                if names:
                    called = names_of(entry)
                    found.append(
                        {
                            "name": bounded(called[0] if called else entry["Id"][:12], MAX_NAME),
                            "task": str((entry.get("Labels") or {}).get(TASK_LABEL) or ""),
                            "gpus": sorted(names),
                        }
                    )
        self._names = known
        return found

    def _names_of(self, client: Any, container_id: str) -> frozenset[str]:
        if container_id in self._names:
            return self._names[container_id]
        return gpu_names(client.inspect_container(container_id))
