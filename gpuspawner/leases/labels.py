"""The labels that make a server a lease, written at its creation and read back by the backend."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal

from ..gpus.model import Holder, Lease, course_group
from ..untrusted import bounded, parse_json
from .clock import Deadline

LABEL_GPUS = "gpuspawner.gpus"
LABEL_USER = "gpuspawner.user"
LABEL_SERVER = "gpuspawner.server"
LABEL_IMAGE = "gpuspawner.image"
# The hub's address: hubs that share an engine may have users of the same name, and must not take
# each other's servers for their own.
LABEL_HUB = "gpuspawner.hub"
# What a stopped server was created with, so that it is started again only if nothing changed.
LABEL_SETTINGS = "gpuspawner.settings"
# "1": whoever finds the server ended removes it.
LABEL_REMOVE = "gpuspawner.remove"
# The end of the lease as of its beginning, in seconds since the epoch, and the user's groups then.
LABEL_UNTIL = "gpuspawner.until"
LABEL_GROUPS = "gpuspawner.groups"
# How long its request has waited for the GPUs, in seconds.
LABEL_WAITED = "gpuspawner.waited"
# The key of the course that the server is for; no label: it is for none.
LABEL_COURSE = "gpuspawner.course"
# "on" or "off": whether the memory guard looked after a server on a shared GPU as it began.
LABEL_MEMORY_GUARD = "gpuspawner.memory-guard"

# How much of a label is read, in characters; and of a name on one. Ours are shorter.
MAX_LABEL = 64 * 1024
MAX_NAME = 1000

# A server in any other state than "ended" may run, now or in a moment, and so holds its GPUs.
ServerState = Literal["created", "running", "ended"]


@dataclass(frozen=True)
class ServerRecord:
    """One server as its backend lists it.

    Args:
        id: the backend's id of the server.
        labels: the labels that it was created with.
        state: "created" until it is started, "ended" once it no longer holds its GPUs.
        created: when it was created, in seconds since the epoch by the backend's clock, which may
            be coarse.
        name: its name for administrators.
        gpu_names: the GPUs that it was started with if it has no lease, by the names that
            `gpus.device_ids.gpus_named` takes.
        extended: the end of its lease, if that was extended since the labels were written.
    """

    id: str
    labels: Mapping[str, str]
    state: ServerState = "running"
    created: float = 0.0
    name: str = ""
    gpu_names: frozenset[str] = frozenset()
    extended: Deadline | None = None

    @cached_property
    def leases(self) -> dict[str, Lease | None]:
        """A hub's address -> its lease as that hub sees it, of those that have asked."""
        return {}


def labels(
    holder: Holder,
    image: str,
    gpus: Iterable[str],
    until: float | None = None,
    groups: Iterable[str] = (),
    course: str = "",
) -> dict[str, str]:
    """Return the labels of a server's lease. Without GPUs the label for them is empty, not missing.

    Args:
        holder: the server.
        image: the key or the reference of its image version.
        gpus: the names of its units, in their order.
        until: when its lease ends, in seconds since the epoch; None: never.
        groups: its user's groups.
        course: the key of the course that it is for; "": none.
    """
    return {
        LABEL_GPUS: ",".join(gpus),
        LABEL_USER: holder.user,
        LABEL_SERVER: holder.server,
        LABEL_IMAGE: image,
        LABEL_UNTIL: "" if until is None else str(round(until)),
        LABEL_GROUPS: json.dumps(sorted(groups)),
        **({LABEL_COURSE: course} if course else {}),
    }


def belongs_to(found: Mapping[str, str] | None, holder: Holder, hub: str) -> bool:
    """Return whether a server with these labels may be this holder's.

    A server without our labels may be: DockerSpawner may have created it.

    Args:
        found: the server's labels.
        holder: the server that is looked for.
        hub: the address of the holder's hub.
    """
    ours = {LABEL_USER: holder.user, LABEL_SERVER: holder.server, LABEL_HUB: hub}
    return all((found or {}).get(label, value) == value for label, value in ours.items())


def lease_of(server: ServerRecord, hub: str = "") -> Lease | None:
    """Return a server's lease, from its labels and its extension; None if it holds nothing.

    Args:
        server: as its backend lists it.
        hub: this hub's address; holders of other hubs are marked with theirs. "": all holders are
            taken for this hub's.
    """
    # Many records outlive a read, and each of a cluster's servers is looked at for each decision.
    if hub not in server.leases:
        server.leases[hub] = _read_lease(server, hub)
    return server.leases[hub]


def _read_lease(server: ServerRecord, hub: str) -> Lease | None:
    found = server.labels
    if LABEL_GPUS not in found or server.state == "ended":
        return None
    of_hub = found.get(LABEL_HUB, hub)
    lease = _lease_of(
        bounded(found[LABEL_GPUS], MAX_LABEL),
        bounded(found.get(LABEL_USER, "?"), MAX_NAME),
        bounded(found.get(LABEL_SERVER, ""), MAX_NAME),
        of_hub if hub and of_hub != hub else "",
        bounded(found.get(LABEL_UNTIL, ""), MAX_NAME),
        bounded(found.get(LABEL_GROUPS, ""), MAX_LABEL),
        bounded(found.get(LABEL_COURSE, ""), MAX_NAME),
    )
    if lease.until is None or server.extended is None:
        return lease  # a lease without an end isn't extended
    return replace(lease, until=max(lease.until, server.extended.until))  # nor to an earlier one


# Labels never change, and a backend may make its records anew for each decision.
@lru_cache(maxsize=4096)
def _lease_of(
    gpus: str, user: str, server: str, hub: str, until: str, groups: str, course: str
) -> Lease:
    """Return the lease of these labels, as their backend lists them."""
    return Lease(
        Holder(user, server, hub),
        frozenset(filter(None, (part.strip() for part in gpus.split(",")))),
        until=_seconds(until),
        groups=_names(groups) | ({course_group(course)} if course else set()),
    )


def leases_of(
    servers: Iterable[ServerRecord],
    ends: Mapping[str, float | None] | None = None,
    hub: str = "",
) -> list[Lease]:
    """Return the leases of servers, from their labels.

    Args:
        servers: as their backend lists them.
        ends: server id -> when its lease ends now, for those that this hub knows better.
        hub: as for `lease_of`.
    """
    found = ((lease_of(server, hub), server.id) for server in servers)
    return [
        replace(lease, until=ends[name]) if ends and name in ends else lease
        for lease, name in found
        if lease
    ]


def _seconds(text: str) -> float | None:
    # More digits would be a year that `datetime` doesn't know.
    return float(text) if re.fullmatch(r"[0-9]{1,11}", text) else None


def _names(text: str) -> frozenset[str]:
    with suppress(ValueError):
        found = parse_json(text)
        if isinstance(found, list):
            return frozenset(name for name in found if isinstance(name, str))
    return frozenset()
