"""The stop of a server that an administrator has announced, and how a server has been stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..i18n.lazy_text import lazy_gettext
from ..i18n.phrases import clock_time
from .clock import Clock, Deadline

# The rule in the audit log, where an administrator stops a server.
RULE = "an administrator"
# The longest reason, in characters, and the longest time from the announcement to the stop.
MAX_WHY = 200
MAX_MINUTES = 24 * 60


@dataclass(frozen=True)
class AnnouncedStop:
    """A stop that an administrator has announced.

    Args:
        deadline: when the server is stopped.
        by: who has it stopped, for the audit log.
        why: the administrator's reason; "" for none.
    """

    deadline: Deadline
    by: str
    why: str

    def saved(self) -> dict[str, Any]:
        """Return it as a JSON value for `restored`."""
        return {"deadline": self.deadline.saved(), "by": self.by, "why": self.why}

    @classmethod
    def restored(cls, saved: Mapping[str, Any], clock: Clock) -> AnnouncedStop:
        """Return the stop of a JSON value."""
        deadline = Deadline.restored(saved["deadline"], clock)
        return cls(deadline, str(saved["by"]), str(saved["why"]))


@dataclass(frozen=True)
class Ending:
    """How a server was stopped, for its user.

    Args:
        at: when, in seconds since the epoch.
        rule: the rule in the audit log: "time limit", "idle GPUs", "GPU memory" or `RULE`.
        why: the administrator's reason; "" for none.
    """

    at: float
    rule: str
    why: str = ""

    def facts(self) -> dict[str, Any]:
        """Return the facts as a JSON value."""
        return {"at": self.at, "rule": self.rule, "why": self.why}


def stopped_words(at: float, why: str) -> str:
    """Return that an administrator has stopped a server, at a time in seconds since the epoch."""
    time = clock_time(at)
    if not why:
        return lazy_gettext(
            "An administrator stopped your server at %(time)s. Your files are kept.", time=time
        )
    return lazy_gettext(
        "An administrator stopped your server at %(time)s: %(why)s. Your files are kept.",
        time=time,
        why=why.rstrip(".。 "),
    )


def announced_words(at: float, why: str) -> str:
    """Return that an administrator will stop a server, at a time in seconds since the epoch."""
    time = clock_time(at)
    if not why:
        return lazy_gettext(
            "An administrator stops your server at %(time)s. Save your work before.", time=time
        )
    return lazy_gettext(
        "An administrator stops your server at %(time)s: %(why)s. Save your work before.",
        time=time,
        why=why.rstrip(".。 "),
    )
