"""What is done with GPUs, by whom and why, for the administrator: one line of the log each.

What others can choose, as a user's or a server's name, goes into no line of ours as it is.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any, Literal

from ..gpus.model import Holder, Request

Event = Literal[
    "grant",
    "wait",
    "leave",
    "refuse",
    "release",
    "extend",
    "warn",
    "keep",
    "end",
    "stop",
    "health",
    "message",
    "move",
    "reserve",
]

# Who does it. A user is "user:NAME", which no name can be taken for.
RULES = "gpuspawner"
HUB = "jupyterhub"
SERVER = "server"
SERVICE = "service"
SWARM = "swarm"

# Below the hub's own logger, so that its lines can be told from all others by the logger's name.
LOGGER = "gpuspawner"


def asked(request: Request) -> dict[str, Any]:
    """Return what a request asks for, as facts of an event: how many, and of which kind."""
    return {"gpus": request.gpus, "kind": request.kind}


def user(name: str) -> str:
    """Return a user, as who does something."""
    return f"user:{name}"


def record(log: Any, event: Event, holder: Holder, by: str, **facts: Any) -> None:
    """Log one event as `gpuspawner {"event": …, "at": …, "user": …, "server": …, "by": …, …}`.

    The line is JSON, so that programs can parse it, whatever the user's name contains.

    Args:
        log: the hub's logger.
        event: what happened.
        holder: whose server it is about.
        by: who or what did it, one of the words above.
        facts: `gpus` (UUIDs, or how many are asked for, with their `kind`), `waited` and `held`
            (seconds), `rule` (why), `until` (seconds since the epoch) and whatever else belongs to
            the event.
    """
    who = {"user": holder.user, "server": holder.server, "by": by}
    line = {"event": event, "at": round(time.time(), 3), **who, **facts}
    words = json.dumps(line, ensure_ascii=True, default=_plain)
    logging.getLogger(f"{log.name}.{LOGGER}").info("gpuspawner %s", words)


def one_line(words: Any) -> str:
    """Return words with no line break or other control character in them, for a line of the log."""
    text = str(words)
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
