"""When containers ran: from their inspections, and of those that are gone from the engine's events.

The engine remembers its last 256 events, whoever listens.
ref: eventsLimit in moby's daemon/events/events.go
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

import docker.errors

from ...leases.labels import LABEL_GPUS
from ...leases.server_run import ServerRun
from .errors import is_out_of_memory

# What an inspection has in place of a time at which nothing has happened.
NEVER = "0001-01-01"
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)")


def seconds(text: object) -> float | None:
    """Return a time of an inspection, to the nanosecond there, in seconds since the epoch.

    None where nothing has happened yet.
    """
    found = _TIME.fullmatch(str(text))
    if found is None or found[1].startswith(NEVER):
        return None
    zone = "+00:00" if found[3] == "Z" else found[3]
    with suppress(ValueError):
        return datetime.fromisoformat(found[1] + zone).timestamp() + float(found[2] or 0)
    return None


def run_of(state: Mapping[str, Any]) -> ServerRun:
    """Return when a container ran, from `State` of its inspection."""
    started = seconds(state.get("StartedAt"))
    if state.get("Running") or started is None:
        return ServerRun(started)
    return ServerRun(
        started,
        seconds(state.get("FinishedAt")),
        state.get("ExitCode"),
        is_out_of_memory(state),
    )


def read(client: Any, container_ids: Collection[str], now: float) -> dict[str, ServerRun]:
    """Return when containers ran; of those that aren't known nothing. Blocks.

    Args:
        client: a `docker.APIClient`.
        container_ids: the containers.
        now: the time, in seconds since the epoch.

    Raises:
        docker.errors.APIError: the engine can't tell.
    """
    found, gone = {}, set()
    for container_id in container_ids:
        try:
            found[container_id] = run_of(client.inspect_container(container_id)["State"])
        except docker.errors.NotFound:
            gone.add(container_id)
    return {**found, **_of_gone(client, gone, now)} if gone else found


def _of_gone(client: Any, gone: Collection[str], now: float) -> dict[str, ServerRun]:
    filters = {"type": ["container"], "event": ["start", "die", "oom"], "label": [LABEL_GPUS]}
    # With an end that is past it answers at once, with what it remembers.
    events = client.events(since=1, until=f"{now:.9f}", filters=filters, decode=True)
    runs: dict[str, ServerRun] = {}
    short_of_memory: set[str] = set()
    for event in events:
        actor = event.get("Actor") or {}
        container_id, action = str(actor.get("ID")), event.get("Action")
        if container_id not in gone:
            continue
        at = float(event.get("timeNano") or 0) / 1e9
        if action == "start":
            runs[container_id] = ServerRun(at)
        elif action == "oom":
            short_of_memory.add(container_id)
        else:
            code = str((actor.get("Attributes") or {}).get("exitCode", ""))
            exit_code = int(code) if code.isdigit() else None
            started = runs.get(container_id, ServerRun()).started
            full = container_id in short_of_memory and exit_code == 137
            runs[container_id] = ServerRun(started, at, exit_code, full)
    return runs
