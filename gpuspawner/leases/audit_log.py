"""The audit log: one line of the hub's log for each thing that happens to a lease."""

from __future__ import annotations

import json
from typing import Any, Literal

from ..gpus.model import Holder

Event = Literal["grant", "wait", "leave", "refuse", "release", "extend", "warn", "stop"]


def record(log: Any, event: Event, holder: Holder, **facts: Any) -> None:
    """Log one event as `gpuspawner {"event": …, "user": …, "server": …, …}`.

    The line is JSON, so that programs can parse it, whatever the user's name contains.

    Args:
        log: a logger.
        event: what happened.
        holder: the server that it happened to.
        facts: the event's data: `gpus` (UUIDs, or the number requested), `waited` (seconds),
            `rule` (the rule that caused it), `until` (seconds since the epoch).
    """
    line = {"event": event, "user": holder.user, "server": holder.server, **facts}
    log.info("gpuspawner %s", json.dumps(line, ensure_ascii=True, default=_plain))


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
