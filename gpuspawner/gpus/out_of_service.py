"""GPUs that an administrator has taken out of service for a while, without a change of settings.

Kept where the leases are, in the engine: an empty volume per GPU, with labels. So both hubs of one
engine, their pages and the command line see the same, and it outlives all of them. Creating one
that exists and removing one that doesn't are harmless, so that nobody needs to be locked out.

`docker volume prune` would remove it, as it would every user's own volume: on engines before 23
always, on newer ones with `--all`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import docker.errors

from ..i18n.lazy_text import lazy_gettext
from .model import GPU, Node

LABEL = "gpuspawner.out-of-service"
LABEL_BY = "gpuspawner.out-of-service.by"
LABEL_WHY = "gpuspawner.out-of-service.why"
LABEL_SINCE = "gpuspawner.out-of-service.since"
FILTER = {"label": LABEL}
LONGEST_WHY = 200

Volume = Mapping[str, Any]


@dataclass(frozen=True)
class Mark:
    """A GPU that is out of service: who took it out, why, and since when (since the epoch)."""

    uuid: str
    by: str = ""
    why: str = ""
    since: float | None = None

    @property
    def reason(self) -> str:
        """A sentence for everybody, so without a name."""
        if not self.why:
            return lazy_gettext("It is out of service.")
        return lazy_gettext("It is out of service: %(why)s", why=self.why)


def marks_of(volumes: Iterable[Volume] | None) -> dict[str, Mark]:
    """Read UUID -> mark out of the engine's list of volumes."""
    found = {}
    for volume in volumes or ():
        labels = volume.get("Labels") or {}
        if uuid := labels.get(LABEL):
            since = labels.get(LABEL_SINCE, "")
            found[uuid] = Mark(
                uuid,
                labels.get(LABEL_BY, ""),
                labels.get(LABEL_WHY, ""),
                float(since) if re.fullmatch(r"[0-9]{1,11}", since) else None,
            )
    return found


def apply_marks(gpus: Iterable[GPU], marks: Mapping[str, Mark]) -> tuple[GPU, ...]:
    """Return the GPUs with those out of service kept out. What is sick keeps that state."""
    return tuple(_apply(gpu, marks.get(gpu.uuid or "")) for gpu in gpus)


def _apply(gpu: GPU, mark: Mark | None) -> GPU:
    if mark is None or gpu.state not in ("free", "foreign"):
        return gpu
    return replace(gpu, state="excluded", reason=mark.reason)


class InServiceReader:
    """Read the nodes, with what is out of service kept out.

    Args:
        read_nodes: reads each node from its NVML.
        list_volumes: lists the engine's volumes that pass `FILTER`, as `GET /volumes` does.
    Where either fails, so does this: what may be out of service isn't handed out.
    """

    def __init__(
        self,
        read_nodes: Callable[[], Awaitable[Sequence[Node]]],
        list_volumes: Callable[[], Awaitable[Mapping[str, Any]]],
    ) -> None:
        self._read_nodes = read_nodes
        self._list_volumes = list_volumes
        # What the last reading found.
        self.marks: dict[str, Mark] = {}

    async def __call__(self) -> tuple[Node, ...]:
        """Return the nodes as they are now; raises what either of the two raises."""
        nodes = await self._read_nodes()
        if any(node.gpus for node in nodes):
            self.marks = marks_of((await self._list_volumes())["Volumes"])
        return tuple(replace(node, gpus=apply_marks(node.gpus, self.marks)) for node in nodes)


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
        LABEL_WHY: " ".join(why.split())[:LONGEST_WHY],
        LABEL_SINCE: str(round(time.time())),
    }
    client.create_volume(_name(uuid), labels=labels)


def put_back(client: Any, uuid: str) -> None:
    """Put a GPU into service again."""
    try:
        client.remove_volume(_name(uuid))
    except docker.errors.NotFound:
        return


def list_marks(client: Any) -> dict[str, Mark]:
    """Read UUID -> mark from the engine. Blocks."""
    listed: Sequence[Volume] | None = client.volumes(filters=FILTER)["Volumes"]
    return marks_of(listed)


def _name(uuid: str) -> str:
    return f"gpuspawner-out-of-service-{uuid.replace('/', '-')}"
