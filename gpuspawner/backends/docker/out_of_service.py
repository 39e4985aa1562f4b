"""Marks of GPUs that are out of service: for each GPU an empty volume of the engine, with labels.

All hubs on the engine, their pages and the command line read the same marks, which outlive them.
Creating a volume that exists and removing one that doesn't are harmless, so no lock is needed.
The name is what counts, so that one made by hand does too.

Those of a GPU's health are beside them: `health_marks`.

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

from ...errors import Unknown
from ...gpus.out_of_service import MAX_REASON_LENGTH, OutOfServiceMark, with_health
from ...i18n.lazy_text import lazy_gettext
from ...untrusted import bounded
from . import health_marks
from .health_marks import LABEL, LABEL_BY, LABEL_SINCE, LABEL_WHY, PREFIX

# How much of a GPU's UUID and of an administrator's name is read, in characters.
MAX_NAME_LENGTH = 255
# The engine's own takes names that have this in them anywhere.
FILTER = {"name": PREFIX}

Volume = Mapping[str, Any]


def parse_marks(volumes: Iterable[Volume] | None) -> dict[str, OutOfServiceMark]:
    """Return UUID -> mark from the engine's list of volumes."""
    found: dict[str, OutOfServiceMark] = {}
    health = []
    for volume in volumes or ():
        if mark := health_marks.mark_of(volume):
            health.append(mark)
            continue
        labels = volume.get("Labels") or {}
        for uuid in _uuids(volume):
            found[uuid] = mark_of_labels(uuid, labels)
    return with_health(found, health)


def _uuids(volume: Volume) -> set[str]:
    """Return the GPU that a volume takes out of service; where name and label disagree, both."""
    name = volume.get("Name") or ""
    labelled = bounded((volume.get("Labels") or {}).get(LABEL) or "", MAX_NAME_LENGTH)
    named = bounded(name.removeprefix(PREFIX), MAX_NAME_LENGTH) if name.startswith(PREFIX) else ""
    return {labelled} if labelled and _name(labelled) == name else {labelled, named} - {""}


def take_out(client: Any, uuid: str, by: str, why: str) -> None:
    """Take a GPU out of service: it isn't handed out any more; a server that has it keeps it.

    Args:
        client: a `docker.APIClient`.
        uuid: the GPU's.
        by: the name of the administrator, shown to administrators.
        why: the reason, shown to everybody. If the GPU is out of service already, its mark stays.

    Raises:
        Unknown: it isn't out of service afterwards.
    """
    client.create_volume(_name(uuid), labels=labels_of(uuid, by, why))
    mark = list_marks(client).get(uuid)
    if mark is None or not mark.is_own:
        raise Unknown(
            lazy_gettext("The Docker Engine doesn't keep that the GPU is out of service.")
        )


def labels_of(uuid: str, by: str, why: str) -> dict[str, str]:
    """Return the labels of an administrator's mark that is put now."""
    return {
        LABEL: uuid,
        LABEL_BY: by,
        LABEL_WHY: bounded(" ".join(why.split()), MAX_REASON_LENGTH),
        LABEL_SINCE: str(round(time.time())),
    }


def mark_of_labels(uuid: str, labels: Mapping[str, Any]) -> OutOfServiceMark:
    """Return an administrator's mark of a GPU, from labels that anybody may have written."""
    since = str(labels.get(LABEL_SINCE, ""))
    return OutOfServiceMark(
        uuid,
        bounded(str(labels.get(LABEL_BY, "")), MAX_NAME_LENGTH),
        bounded(str(labels.get(LABEL_WHY, "")), MAX_REASON_LENGTH),
        float(since) if re.fullmatch(r"[0-9]{1,11}", since) else None,
    )


def put_back(client: Any, uuid: str) -> None:
    """Put a GPU into service again, whoever has taken it out.

    What can be read of its health, and still is, keeps it out no more.

    Raises:
        Unknown: it is out of service still.
    """
    for volume in _listed(client):
        mark = health_marks.mark_of(volume)
        if mark is not None and uuid in (mark.uuid, mark.gpu):
            health_marks.lift(client, mark)
        elif mark is None and uuid in _uuids(volume):
            with suppress(docker.errors.NotFound):
                client.remove_volume(volume["Name"])
    if uuid in list_marks(client):
        raise Unknown(lazy_gettext("The Docker Engine keeps the GPU out of service."))


def list_marks(client: Any) -> dict[str, OutOfServiceMark]:
    """Read UUID -> mark from the engine. Blocks."""
    return parse_marks(_listed(client))


def _listed(client: Any) -> Sequence[Volume]:
    listed: Sequence[Volume] | None = client.volumes(filters=FILTER)["Volumes"]
    return listed or ()


def _name(uuid: str) -> str:
    return f"{PREFIX}{uuid.replace('/', '-')}"
