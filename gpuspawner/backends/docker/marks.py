"""GPUs that are out of service, as volumes of the engine: an empty one per GPU, with labels.

So both hubs of one engine, their pages and the command line see the same, and it outlives all of
them. Creating one that exists and removing one that doesn't are harmless, so that nobody needs to
be locked out.

`docker volume prune` would remove it, as it would every user's own volume: on engines before 23
always, on newer ones with `--all`.
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
    """Read UUID -> mark out of the engine's list of volumes."""
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
    """Take a GPU out of service. Nothing new is placed on it; what runs there goes on.

    Args:
        client: a `docker.APIClient`.
        by: whose doing it is, for administrators.
        why: in a few words, for everybody. Of a GPU that is out already the first reason stays.
    """
    labels = {
        LABEL: uuid,
        LABEL_BY: by,
        LABEL_WHY: " ".join(why.split())[:MAX_REASON_LENGTH],
        LABEL_SINCE: str(round(time.time())),
    }
    client.create_volume(_name(uuid), labels=labels)


def put_back(client: Any, uuid: str) -> None:
    """Put a GPU into service again."""
    with suppress(docker.errors.NotFound):
        client.remove_volume(_name(uuid))


def list_marks(client: Any) -> dict[str, OutOfServiceMark]:
    """Read UUID -> mark from the engine. Blocks."""
    listed: Sequence[Volume] | None = client.volumes(filters=FILTER)["Volumes"]
    return parse_marks(listed)


def _name(uuid: str) -> str:
    return f"gpuspawner-out-of-service-{uuid.replace('/', '-')}"
