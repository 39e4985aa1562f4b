"""A lease as labels on a server: written when it is created, read back from its backend."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from ..gpus.model import Holder, Lease

LABEL_GPUS = "gpuspawner.gpus"
LABEL_USER = "gpuspawner.user"
LABEL_SERVER = "gpuspawner.server"
LABEL_IMAGE = "gpuspawner.image"
# Not part of a lease: it keeps hubs that share an engine from taking each other's servers for
# their own, where both have a user of one name.
LABEL_HUB = "gpuspawner.hub"
# What a stopped server was created with, so that it is started again only if nothing changed.
LABEL_SETTINGS = "gpuspawner.settings"
# When its time was to end when it began, in seconds since the epoch; and its user's groups then.
LABEL_UNTIL = "gpuspawner.until"
LABEL_GROUPS = "gpuspawner.groups"

# One that is neither created nor ended may run, now or in a moment, and so holds its GPUs.
ServerState = Literal["created", "running", "ended"]


@dataclass(frozen=True)
class ServerRecord:
    """One server as its backend tells of it.

    Args:
        id: the backend's own name for it.
        labels: those it was created with.
        state: "created" until it is started, "ended" when it holds nothing any more.
        created: when, in seconds since the epoch by the backend's clock, which may be coarse.
    """

    id: str
    labels: Mapping[str, str]
    state: ServerState = "running"
    created: float = 0.0


def labels(
    holder: Holder,
    image: str,
    gpus: Iterable[str],
    until: float | None = None,
    groups: Iterable[str] = (),
) -> dict[str, str]:
    """Return the labels that make a server a lease; no GPUs is an empty label, not none."""
    return {
        LABEL_GPUS: ",".join(gpus),
        LABEL_USER: holder.user,
        LABEL_SERVER: holder.server,
        LABEL_IMAGE: image,
        LABEL_UNTIL: "" if until is None else str(round(until)),
        LABEL_GROUPS: json.dumps(sorted(groups)),
    }


def belongs_to(found: Mapping[str, str] | None, holder: Holder, hub: str) -> bool:
    """Return whether a server with these labels is this holder's on this hub, or may be.

    One without our labels may be: DockerSpawner made it.

    Args:
        found: the server's labels.
        hub: the hub's address, as in the label.
    """
    ours = {LABEL_USER: holder.user, LABEL_SERVER: holder.server, LABEL_HUB: hub}
    return all((found or {}).get(label, value) == value for label, value in ours.items())


def lease_of(server: ServerRecord, hub: str = "") -> Lease | None:
    """Read a server's lease; None where it holds nothing.

    Args:
        hub: the address of the hub whose users are meant by their names; "": all hubs'.
    """
    found = server.labels
    if LABEL_GPUS not in found or server.state == "ended":
        return None
    gpus = frozenset(filter(None, (part.strip() for part in found[LABEL_GPUS].split(","))))
    of_hub = found.get(LABEL_HUB, hub)
    return Lease(
        Holder(
            found.get(LABEL_USER, "?"),
            found.get(LABEL_SERVER, ""),
            of_hub if hub and of_hub != hub else "",
        ),
        gpus,
        until=_seconds(found.get(LABEL_UNTIL, "")),
        groups=_names(found.get(LABEL_GROUPS, "")),
    )


def leases_of(
    servers: Iterable[ServerRecord],
    ends: Mapping[str, float | None] | None = None,
    hub: str = "",
) -> list[Lease]:
    """Read the leases of servers.

    Args:
        ends: server id -> when its time ends now, where that isn't what its label says.
        hub: as for `lease_of`.
    """
    found = ((lease_of(server, hub), server.id) for server in servers)
    return [
        replace(lease, until=ends[name]) if ends and name in ends else lease
        for lease, name in found
        if lease
    ]


def _seconds(text: str) -> float | None:
    # Up to a year that calendars have.
    return float(text) if re.fullmatch(r"[0-9]{1,11}", text) else None


def _names(text: str) -> frozenset[str]:
    with suppress(ValueError, RecursionError):
        found = json.loads(text)
        if isinstance(found, list):
            return frozenset(name for name in found if isinstance(name, str))
    return frozenset()
