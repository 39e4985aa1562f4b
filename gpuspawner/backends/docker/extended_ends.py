"""The ends of leases that were extended: for each an empty volume of the engine, with labels.

A container's labels can't be changed, and the hub's database may be lost, or put back as it was
some time ago. So the engine keeps these ends too, as it keeps what is out of service.

An extension makes a volume of its own before the one of the extension before is removed, so that
there is always one. The latest end is the one that holds. What is kept of a container that is gone
is removed with the next listing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import docker.errors

from ...errors import Unknown
from ...leases.clock import Clock, Deadline
from ...untrusted import parse_json

PREFIX = "gpuspawner-extended-"
# The container's id, and the end as `Deadline.saved` returns it.
LABEL = "gpuspawner.extended"
LABEL_END = "gpuspawner.extended.end"
# The engine's own takes names that have this in them anywhere.
FILTER = {"name": PREFIX}

# The latest end, in seconds since the epoch.
MAX_SECONDS = 1e11

Volume = Mapping[str, Any]


def keep(client: Any, container_id: str, end: Deadline) -> None:
    """Keep until when a container's lease was extended. Blocks.

    Args:
        client: a `docker.APIClient`.
        container_id: the container's.
        end: the lease's new end.

    Raises:
        Unknown: it isn't kept afterwards.
    """
    labels = {LABEL: container_id, LABEL_END: json.dumps(end.saved())}
    name = f"{PREFIX}{container_id[:12]}-{round(end.until)}"
    client.create_volume(name, labels=labels)
    kept = [each for each in listed(client) if container_of(each) == container_id]
    if not any(each["Name"] == name for each in kept):
        raise Unknown("the Docker Engine doesn't keep the volume that says so")
    forget(client, [each["Name"] for each in kept if not _later(each, end)], but=name)


def _later(volume: Volume, end: Deadline) -> bool:
    other = _end(volume, end.clock)
    return other is not None and other.at > end.at


def forget(client: Any, names: Iterable[str], but: str = "") -> None:
    """Remove volumes by their names. Blocks."""
    for name in names:
        with suppress(docker.errors.NotFound):
            if name != but:
                client.remove_volume(name)


def listed(client: Any) -> Sequence[Volume]:
    """Return the volumes that the engine keeps for this. Blocks."""
    found: Sequence[Volume] | None = client.volumes(filters=FILTER)["Volumes"]
    return [each for each in found or () if container_of(each)]


def latest(volumes: Iterable[Volume], clock: Clock) -> dict[str, Deadline]:
    """Return container id -> its latest end, of what `listed` returned."""
    ends: dict[str, Deadline] = {}
    for volume in volumes:
        end, container_id = _end(volume, clock), container_of(volume)
        if end and (container_id not in ends or ends[container_id].at < end.at):
            ends[container_id] = end
    return ends


def of_others_than(volumes: Iterable[Volume], container_ids: Iterable[str]) -> list[str]:
    """Return the names of those volumes whose containers aren't among these.

    Args:
        volumes: any; those that are for something else are passed over.
        container_ids: the ids of all containers that there are.
    """
    there = {"", *container_ids}
    return [each["Name"] for each in volumes if container_of(each) not in there]


def container_of(volume: Volume) -> str:
    """Return the id of the container that a volume is about; "" if it is somebody else's volume."""
    if not str(volume.get("Name") or "").startswith(PREFIX):
        return ""
    return str((volume.get("Labels") or {}).get(LABEL) or "")


def _end(volume: Volume, clock: Clock) -> Deadline | None:
    try:
        end = Deadline.restored(parse_json(volume["Labels"][LABEL_END]), clock)
    except (KeyError, TypeError, ValueError, OverflowError):  # made by hand
        return None
    # Later would be a year that `datetime` doesn't know; what isn't a number isn't less either.
    return end if 0 <= end.until < MAX_SECONDS else None
