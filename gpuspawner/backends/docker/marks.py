"""Marks of GPUs that are out of service: for each GPU an empty volume of the engine, with labels.

All hubs on the engine, their pages and the command line read the same marks, which outlive them.
Creating a volume that exists and removing one that doesn't are harmless, so no lock is needed.

`docker volume prune` removes marks, as it removes users' volumes: always on engines before 23, with
`--all` on newer ones.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import docker.errors

from ...gpus.out_of_service import MAX_REASON_LENGTH, OutOfServiceMark

LABEL = "gpuspawner.out-of-service"
LABEL_BY = "gpuspawner.out-of-service.by"
LABEL_WHY = "gpuspawner.out-of-service.why"
LABEL_SINCE = "gpuspawner.out-of-service.since"
FILTER = {"label": LABEL}

Volume = Mapping[str, Any]


def parse_marks(volumes: Iterable[Volume] | None) -> dict[str, OutOfServiceMark]:
    """Return UUID -> mark from the engine's list of volumes."""
    found = {}
    for volume in volumes or ():
        labels = volume.get("Labels") or {}
        if uuid := labels.get(LABEL):
            since = labels.get(LABEL_SINCE, "")
            found[uuid] = OutOfServiceMark(
                uuid,
                labels.get(LABEL_BY, ""),
                labels.get(LABEL_WHY, ""),
                float(since) if re.fullmatch(r"[0-9]{1,11}", since) else None,
            )
    return found


def take_out(client: Any, uuid: str, by: str, why: str) -> None:
    """Take a GPU out of service: it isn't handed out any more; a server that has it keeps it.

    Args:
        client: a `docker.APIClient`.
        uuid: the GPU's.
        by: the name of the administrator, shown to administrators.
        why: the reason, shown to everybody. If the GPU is out of service already, its mark stays.
    """
    labels = {
        LABEL: uuid,
        LABEL_BY: by,
        LABEL_WHY: " ".join(why.split())[:MAX_REASON_LENGTH],
        LABEL_SINCE: str(round(time.time())),
    }
    client.create_volume(_name(uuid), labels=labels)


def put_back(client: Any, uuid: str) -> None:
    """Put a GPU back into service. Idempotent."""
    with suppress(docker.errors.NotFound):
        client.remove_volume(_name(uuid))


def list_marks(client: Any) -> dict[str, OutOfServiceMark]:
    """Return UUID -> mark of all GPUs that are out of service. Blocks."""
    listed: Sequence[Volume] | None = client.volumes(filters=FILTER)["Volumes"]
    return parse_marks(listed)


def _name(uuid: str) -> str:
    return f"gpuspawner-out-of-service-{uuid.replace('/', '-')}"
