"""The messages of instructors to those whose servers run for their course, until they are read."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..gpus.model import Holder

# For how long a message is kept, and how many of one server. JupyterLab's page asks for them every
# 20 seconds while somebody looks at it.
KEPT_SECONDS = 3600.0
MAX_KEPT = 5
# JupyterLab cuts a notification off after 140 characters, in which it says whom it is from as well.
MAX_LENGTH = 110


@dataclass(frozen=True)
class Message:
    """A message.

    Args:
        id: tells it from all others.
        text: one line.
        course: what users call the course.
        at: when it was sent, in seconds since the epoch.
    """

    id: str
    text: str
    course: str
    at: float


class Messages:
    """The messages for servers, which end with them; spawners' states keep them over restarts.

    Args:
        now: the time, in seconds since the epoch.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._kept: dict[Holder, tuple[Message, ...]] = {}

    def send(self, holder: Holder, text: str, course: str) -> None:
        """Keep a message for a server's user.

        Args:
            holder: the server.
            text: what it says.
            course: what users call the course.
        """
        message = Message(secrets.token_hex(8), text, course, self._now())
        self._kept[holder] = (*self._kept.get(holder, ()), message)[-MAX_KEPT:]

    def forget(self, holder: Holder) -> None:
        """Forget those for a server, which is started anew."""
        self._kept.pop(holder, None)

    def saved(self, holder: Holder) -> list[dict[str, Any]]:
        """Return those for a server that aren't old as JSON values for `restore`."""
        oldest = self._now() - KEPT_SECONDS
        return [asdict(each) for each in self._kept.get(holder, ()) if each.at > oldest]

    def restore(self, holder: Holder, saved: Iterable[Mapping[str, Any]]) -> None:
        """Restore what an earlier hub process saved; what this one has is newer, and stays."""
        self._kept.setdefault(holder, tuple(Message(**each) for each in saved))

    def facts(self) -> list[dict[str, Any]]:
        """Return those that aren't old, as JSON values."""
        oldest = self._now() - KEPT_SECONDS
        fresh = {
            holder: tuple(each for each in messages if each.at > oldest)
            for holder, messages in self._kept.items()
        }
        self._kept = {holder: messages for holder, messages in fresh.items() if messages}
        return [
            {
                "user": holder.user,
                "server": holder.server,
                "id": each.id,
                "text": each.text,
                "course": each.course,
                "at": each.at,
            }
            for holder, messages in self._kept.items()
            for each in messages
        ]
