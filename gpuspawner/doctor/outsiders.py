"""The check of other containers: GPUs without a lease, and names that the hub's servers need."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from urllib.parse import urlparse

from ..backends.docker.listing import Listing
from ..gpus.model import Node
from ..leases.labels import LABEL_HUB, ServerRecord
from ..leases.ledger import outsiders_of
from .findings import Configuration, Context, Finding
from .trial import HUB


def outsiders(context: Context) -> Iterator[Finding]:
    """Check that no other container has GPUs without a lease, or a name that a server would get."""
    assert context.engine is not None
    servers = Listing()(context.engine.api)
    found = [
        *_with_gpus(servers, context),
        *(_with_names(servers, context.configuration) if context.configuration else ()),
    ]
    yield from found or [Finding("ok", "none has GPUs without a lease, or a server's name")]


def _with_gpus(servers: Sequence[ServerRecord], context: Context) -> Iterator[Finding]:
    indexes = {gpu.uuid: gpu.index for gpu in context.gpus}
    for outsider in outsiders_of(servers, [Node(gpus=context.gpus)]):
        which = ", ".join(str(index) for index in sorted(indexes[uuid] for uuid in outsider.gpus))
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


def _is_at(hub: str, place: Sequence[object]) -> bool:
    parts = urlparse(hub)
    try:
        return [parts.hostname, parts.port or 80] == list(place)
    except ValueError:  # an invalid port
        return False
