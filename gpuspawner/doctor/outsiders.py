"""The check of other containers: GPUs without a lease, names that servers need, users' files."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlparse

import docker.errors

from ..backends.docker.container_config import is_kept_of_another
from ..backends.docker.listing import Listing
from ..gpus.model import Node
from ..leases.labels import LABEL_GPUS, LABEL_HUB, ServerRecord
from ..leases.ledger import outsiders_of
from .findings import Configuration, Context, Finding
from .trial import HUB

# Which containers a finding names at most.
NAMED = 5


def outsiders(context: Context) -> Iterator[Finding]:
    """Check that no other container has GPUs without a lease, or a name that a server would get."""
    assert context.engine is not None
    servers = Listing()(context.engine.api)
    found = [
        *_with_gpus(servers, context),
        *(_with_names(servers, context.configuration) if context.configuration else ()),
        *_with_files(context.engine.api),
    ]
    yield from found or [Finding("ok", "none has GPUs without a lease, or a server's name")]


def _with_gpus(servers: Sequence[ServerRecord], context: Context) -> Iterator[Finding]:
    indexes = {gpu.uuid: gpu.index for gpu in context.gpus}
    for outsider in outsiders_of(servers, [Node(gpus=context.gpus)]):
        which = ", ".join(map(str, sorted({indexes[uuid] for uuid in outsider.gpus})))
        yield Finding(
            "warning",
            f"{outsider.name} was given GPU {which} without a lease: not handed out while it runs",
            f"if nobody needs it: docker stop {shlex.quote(outsider.name)}\n"
            "if it has fewer, start it with their UUIDs: --gpus device=GPU-…\n"
            "if it only watches them: --label gpuspawner.gpus=",
        )


def _with_names(servers: Sequence[ServerRecord], given: Configuration) -> Iterator[Finding]:
    """Yield findings for other hubs' containers with names that this hub's servers would get."""
    prefix, place = given.spawner.get("prefix"), given.hub.get("connects")
    if not isinstance(prefix, str) or not prefix or not place:
        return
    for server in servers:
        hub = server.labels.get(LABEL_HUB, "")
        if not server.name.startswith(f"{prefix}-") or hub in ("", HUB) or _is_at(hub, place):
            continue
        state = "runs" if server.state == "running" else "is left"
        yield Finding(
            "warning",
            f"{server.name} {state} from a hub at {hub}, which isn't this one: a server whose "
            "container would get that name can't start",
            f"if no hub is there: docker rm -f {shlex.quote(server.name)}\n"
            'if one is, a name of its own for each: c.DockerSpawner.prefix = "…"',
        )


def _with_files(api: Any) -> Iterator[Finding]:
    """Yield a finding for containers that DockerSpawner made, and keeps when they are stopped."""
    names = sorted(_kept(api))
    if names:
        listed = ", ".join(names[:NAMED]) + (", …" if names[NAMED:] else "")
        yield Finding(
            "note",
            f"kept from DockerSpawner: {listed} ({len(names)} in all). What users have in them, "
            "and in no volume, isn't in new servers",
            f"to have it: docker cp {shlex.quote(names[0])}:/home/jovyan/. …    "
            "(see docs/how-to/dockerspawner.md)\n"
            f"if nobody needs it: docker rm {shlex.quote(names[0])}",
        )


def _kept(api: Any) -> Iterator[str]:
    for entry in api.containers(all=True):
        if LABEL_GPUS in (entry.get("Labels") or {}):
            continue
        with suppress(docker.errors.NotFound):  # gone meanwhile
            found = api.inspect_container(entry["Id"])
            variables = found["Config"].get("Env") or []
            is_server = any(each.startswith("JUPYTERHUB_USER=") for each in variables)
            if is_server and is_kept_of_another(found):
                yield str(found["Name"]).lstrip("/")


def _is_at(hub: str, place: Sequence[object]) -> bool:
    parts = urlparse(hub)
    try:
        return [parts.hostname, parts.port or 80] == list(place)
    except ValueError:  # an invalid port
        return False
