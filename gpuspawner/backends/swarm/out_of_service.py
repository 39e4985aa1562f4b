"""Marks of GPUs that are out of service: for each GPU a `config` object of the Swarm, with labels.

All hubs of the Swarm, their pages and the command line read the same marks, which are in Raft and
so outlive any one manager. The name is what counts, so that one made by hand does too.

ref: https://docs.docker.com/engine/swarm/configs/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import docker.errors

from ...errors import Unknown
from ...gpus.out_of_service import OutOfServiceMark
from ...i18n.lazy_text import lazy_gettext
from ...nodes.resources import kind_of, uuid_of
from ...untrusted import bounded
from ..docker.out_of_service import LABEL, MAX_NAME_LENGTH, labels_of, mark_of_labels
from . import health_marks

# A config's name has at most 64 characters, of which a GPU's kind takes 40.
PREFIX = "gpuspawner-off-"
MAX_CONFIG_NAME = 64
# Swarm keeps no empty one.
CONTENT = b"This GPU isn't handed out. See its labels.\n"
# The engine's own takes names that begin with this.
FILTER = {"name": PREFIX}

Config = Mapping[str, Any]


def name_of(uuid: str) -> str:
    """Return the name of the config that takes a GPU out of service."""
    return f"{PREFIX}{kind_of(uuid)}"[:MAX_CONFIG_NAME]


def parse_marks(configs: Iterable[Config] | None) -> dict[str, OutOfServiceMark]:
    """Return UUID -> mark from the engine's list of configs."""
    found = {}
    for config in configs or ():
        labels = (config.get("Spec") or {}).get("Labels") or {}
        for uuid in _uuids(config):
            found[uuid] = mark_of_labels(uuid, labels)
    return found


def _uuids(config: Config) -> set[str]:
    """Return the GPU that a config takes out of service; where name and label disagree, both."""
    spec = config.get("Spec") or {}
    name = str(spec.get("Name") or "")
    if not name.startswith(PREFIX):
        return set()
    labelled = bounded(str((spec.get("Labels") or {}).get(LABEL) or ""), MAX_NAME_LENGTH)
    if labelled and name_of(labelled) == name:
        return {labelled}
    return {labelled, uuid_of(name.removeprefix(PREFIX)) or ""} - {""}


def take_out(client: Any, uuid: str, by: str, why: str) -> None:
    """Take a GPU out of service: it isn't handed out any more; a server that has it keeps it.

    Args:
        client: a `docker.APIClient` of a manager.
        uuid: the GPU's.
        by: the name of the administrator, shown to administrators.
        why: the reason, shown to everybody. If the GPU is out of service already, its mark stays.

    Raises:
        Unknown: it isn't out of service afterwards.
    """
    try:
        client.create_config(name_of(uuid), CONTENT, labels=labels_of(uuid, by, why))
    except docker.errors.APIError as error:
        if error.status_code != 409:  # it is there
            raise
    if uuid not in list_marks(client):
        raise Unknown(lazy_gettext("The Swarm doesn't keep that the GPU is out of service."))


def put_back(client: Any, uuid: str) -> None:
    """Put a GPU into service again, whoever has taken it out.

    Raises:
        Unknown: it is out of service still.
    """
    marks, _ = health_marks.read(health_marks.listed(client))
    for mark in marks:
        if uuid in (mark.uuid, mark.gpu):
            health_marks.lift(client, mark)
    for config in listed(client):
        if uuid in _uuids(config):
            with suppress(docker.errors.NotFound):
                client.remove_config(config["ID"])
    if uuid in list_marks(client):
        raise Unknown(lazy_gettext("The Swarm keeps the GPU out of service."))


def list_marks(client: Any) -> dict[str, OutOfServiceMark]:
    """Read UUID -> mark from the engine. Blocks."""
    return parse_marks(listed(client))


def listed(client: Any) -> Sequence[Config]:
    """Return the configs of the Swarm that are marks, and maybe others. Blocks."""
    found: Sequence[Config] | None = client.configs(filters=FILTER)
    return found or ()
