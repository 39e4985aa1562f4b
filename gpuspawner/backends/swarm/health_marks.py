"""Marks of GPUs' health: for each unit and cause a `config` object of the Swarm, with labels.

What an administrator has lifted is another one. Creating one that exists and removing one that
doesn't are harmless, so that every hub may write them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import docker.errors

from ...errors import Unknown
from ...gpus.health import HealthMark, cause_of
from ...i18n.lazy_text import lazy_gettext
from ..docker.health_marks import labels_of, lifted_labels, lifted_of_labels, mark_of_labels

# Two of them and a unit with its cause are too long for a config's name, which has a digest.
PREFIX = "gpuspawner-ill-"
PREFIX_LIFTED = "gpuspawner-lifted-"
# Swarm keeps no empty one.
CONTENT = b"This GPU is out of order, or was. See the labels.\n"
# The engine's own takes names that begin with one of these.
FILTER = {"name": [PREFIX, PREFIX_LIFTED]}

Config = Mapping[str, Any]


def read(configs: Iterable[Config]) -> tuple[list[HealthMark], frozenset[tuple[str, str]]]:
    """Return the marks among configs, and (unit, cause) of those that were lifted."""
    found = list(configs)
    lifted = (
        each for config in found if (each := lifted_of_labels(_labels(config, PREFIX_LIFTED)))
    )
    return list(_marks(found)), frozenset(lifted)


def _marks(configs: Iterable[Config]) -> Iterator[HealthMark]:
    for config in configs:
        if mark := mark_of_labels(_labels(config, PREFIX)):
            yield mark


def _labels(config: Config, prefix: str) -> Mapping[str, Any]:
    spec = config.get("Spec") or {}
    return spec.get("Labels") or {} if str(spec.get("Name") or "").startswith(prefix) else {}


def listed(client: Any) -> list[Config]:
    """Return the configs of the Swarm that are such marks, and maybe others. Blocks."""
    return list(client.configs(filters=FILTER) or ())


def keep(client: Any, mark: HealthMark) -> None:
    """Keep a mark. Blocks.

    Raises:
        Unknown: it isn't kept afterwards.
    """
    _create(client, _name(PREFIX, *mark.key), labels_of(mark))
    if mark.key not in {each.key for each in _marks(listed(client))}:
        raise Unknown(lazy_gettext("The Swarm doesn't keep that the GPU is out of service."))


def end(client: Any, mark: HealthMark) -> None:
    """Remove a mark. Blocks."""
    _remove(client, _name(PREFIX, *mark.key))


def lift(client: Any, mark: HealthMark) -> None:
    """Remove a mark for an administrator, and keep that, where the cause can be read. Blocks."""
    if not cause_of(mark.cause).is_event:
        _create(client, _name(PREFIX_LIFTED, *mark.key), lifted_labels(mark))
    end(client, mark)


def forget_lifted(client: Any, uuid: str, cause: str) -> None:
    """Forget that a cause was lifted. Blocks."""
    _remove(client, _name(PREFIX_LIFTED, uuid, cause))


def _create(client: Any, name: str, labels: Mapping[str, str]) -> None:
    try:
        client.create_config(name, CONTENT, labels=dict(labels))
    except docker.errors.APIError as error:
        if error.status_code != 409:  # it is there
            raise


def _remove(client: Any, name: str) -> None:
    for config in listed(client):
        if (config.get("Spec") or {}).get("Name") == name:
            with suppress(docker.errors.NotFound):
                client.remove_config(config["ID"])


def _name(prefix: str, uuid: str, cause: str) -> str:
    return prefix + hashlib.sha256(f"{uuid} {cause}".encode()).hexdigest()[:32]
