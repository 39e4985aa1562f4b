"""Marks of GPUs' health: for each GPU and cause an empty volume of the engine, with labels.

They stand beside an administrator's mark of the same GPU and have names of their own, so that none
takes the place of another. What an administrator has lifted is another such volume, until the cause
reads clear. Every hub on the engine may write and remove them: creating one that exists and
removing one that doesn't are harmless.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import docker.errors

from ...errors import Unknown
from ...gpus.health import BY, HealthMark, cause_of, words_of
from ...untrusted import bounded

# As those of an administrator: hubs of before keep such a GPU out, too.
PREFIX = "gpuspawner-out-of-service-"
LABEL = "gpuspawner.out-of-service"
LABEL_BY = "gpuspawner.out-of-service.by"
LABEL_WHY = "gpuspawner.out-of-service.why"
LABEL_SINCE = "gpuspawner.out-of-service.since"
LABEL_CAUSE = "gpuspawner.out-of-service.cause"
LABEL_VERDICT = "gpuspawner.out-of-service.verdict"
LABEL_GPU = "gpuspawner.out-of-service.gpu"
LABEL_SEEN = "gpuspawner.out-of-service.seen"
LABEL_DRIVER = "gpuspawner.out-of-service.driver"

PREFIX_LIFTED = "gpuspawner-health-lifted-"
LABEL_LIFTED = "gpuspawner.health-lifted"

# How much is read of a label, in characters.
MAX_LENGTH = 255
MAX_SEEN = 40
_CAUSE = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")

Volume = Mapping[str, Any]


def mark_of(volume: Volume) -> HealthMark | None:
    """Return the mark that a volume is; None if it is another's, or was made by hand."""
    mark = mark_of_labels(volume.get("Labels") or {})
    return mark if mark and volume.get("Name") == _name(PREFIX, *mark.key) else None


def mark_of_labels(labels: Mapping[str, Any]) -> HealthMark | None:
    """Return the mark that labels stand for; None if they are no mark's."""
    uuid, cause = _label(labels, LABEL), _label(labels, LABEL_CAUSE)
    if not uuid or not _CAUSE.fullmatch(cause):
        return None
    since = _label(labels, LABEL_SINCE)
    return HealthMark(
        uuid,
        cause,
        _label(labels, LABEL_GPU) or uuid,
        float(since) if re.fullmatch(r"[0-9]{1,11}", since) else None,
        tuple(filter(_CAUSE.fullmatch, _label(labels, LABEL_SEEN).split(",")[:MAX_SEEN])),
        _label(labels, LABEL_DRIVER),
    )


def lifted_of(volumes: Iterable[Volume]) -> Iterator[tuple[str, str]]:
    """Yield (unit, cause) of what an administrator has lifted."""
    for volume in volumes:
        lifted = lifted_of_labels(volume.get("Labels") or {})
        if lifted and volume.get("Name") == _name(PREFIX_LIFTED, *lifted):
            yield lifted


def keep(client: Any, mark: HealthMark) -> None:
    """Keep a mark. Blocks.

    Raises:
        Unknown: it isn't kept afterwards.
    """
    name = _name(PREFIX, mark.uuid, mark.cause)
    client.create_volume(name, labels=labels_of(mark))
    if not any(each["Name"] == name for each in _listed(client, name)):
        raise Unknown("the Docker Engine doesn't keep that a GPU is out of order")


def labels_of(mark: HealthMark) -> dict[str, str]:
    """Return the labels of a mark."""
    return {
        LABEL: mark.uuid,
        LABEL_BY: BY,
        # For `docker volume ls` and hubs of before: pages make their own sentence of the cause.
        LABEL_WHY: str(words_of([mark.cause])),
        # Whole seconds, and none later: what comes after it is compared with it.
        LABEL_SINCE: str(int(time.time() if mark.since is None else mark.since)),
        LABEL_CAUSE: mark.cause,
        LABEL_VERDICT: cause_of(mark.cause).verdict,
        LABEL_GPU: mark.gpu,
        LABEL_SEEN: ",".join(mark.seen),
        LABEL_DRIVER: mark.driver,
    }


def end(client: Any, mark: HealthMark) -> None:
    """Remove a mark. Blocks."""
    with suppress(docker.errors.NotFound):
        client.remove_volume(_name(PREFIX, mark.uuid, mark.cause))


def lift(client: Any, mark: HealthMark) -> None:
    """Remove a mark for an administrator, and keep that, where the cause can be read. Blocks."""
    if not cause_of(mark.cause).is_event:
        name = _name(PREFIX_LIFTED, mark.uuid, mark.cause)
        client.create_volume(name, labels=lifted_labels(mark))
    end(client, mark)


def lifted_labels(mark: HealthMark) -> dict[str, str]:
    """Return the labels by which it is kept that an administrator has lifted a mark."""
    return {
        LABEL_LIFTED: mark.uuid,
        LABEL_CAUSE: mark.cause,
        LABEL_SINCE: str(round(time.time())),
    }


def lifted_of_labels(labels: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return (unit, cause) of what labels say that an administrator has lifted; None: nothing."""
    uuid, cause = _label(labels, LABEL_LIFTED), _label(labels, LABEL_CAUSE)
    return (uuid, cause) if uuid and _CAUSE.fullmatch(cause) else None


def forget_lifted(client: Any, uuid: str, cause: str) -> None:
    """Forget that a cause was lifted. Blocks."""
    with suppress(docker.errors.NotFound):
        client.remove_volume(_name(PREFIX_LIFTED, uuid, cause))


def _listed(client: Any, name: str) -> Sequence[Volume]:
    return client.volumes(filters={"name": name})["Volumes"] or ()


def _label(labels: Mapping[str, Any], name: str) -> str:
    return bounded(str(labels.get(name) or ""), MAX_LENGTH)


def _name(prefix: str, uuid: str, cause: str) -> str:
    return f"{prefix}{uuid.replace('/', '-')}.{cause}"
