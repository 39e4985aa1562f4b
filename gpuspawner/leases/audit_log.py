"""What is done with GPUs and by which rule, for the administrator: one line of the log each."""

from __future__ import annotations

import json
from typing import Any, Literal

from ..gpus.model import Holder

Event = Literal["grant", "wait", "leave", "refuse", "release", "extend", "warn", "stop"]


def record(log: Any, event: Event, holder: Holder, **facts: Any) -> None:
    """Log one event as `gpuspawner {"event": …, "user": …, "server": …, …}`.

    JSON, so that a program can read it, whatever a user is called.

    Args:
        log: a logger.
        event: what happened.
        holder: whose server it is about.
        facts: `gpus` (UUIDs, or how many are asked for), `waited` (seconds), `rule` (which rule did
            it), `until` (seconds since the epoch) and whatever else belongs to the event.
    """
    line = {"event": event, "user": holder.user, "server": holder.server, **facts}
    log.info("gpuspawner %s", json.dumps(line, ensure_ascii=True, default=_plain))


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
