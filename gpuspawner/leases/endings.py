"""The stop of a server that somebody has announced, and how a server has been stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..i18n.lazy_text import lazy_gettext
from ..i18n.phrases import clock_time
from .clock import Clock, Deadline

# The rule in the audit log, where an administrator stops a server, or an instructor of its course.
RULE = "an administrator"
INSTRUCTOR = "an instructor"
# The longest reason, in characters, and the longest time from the announcement to the stop.
MAX_WHY = 200
MAX_MINUTES = 24 * 60


@dataclass(frozen=True)
class AnnouncedStop:
    """A stop that an administrator or an instructor has announced.

    Args:
        deadline: when the server is stopped.
        by: who has it stopped, for the audit log.
        why: the reason; "" for none.
        rule: `RULE` or `INSTRUCTOR`.
    """

    deadline: Deadline
    by: str
    why: str
    rule: str = RULE

    def saved(self) -> dict[str, Any]:
        """Return it as a JSON value for `restored`."""
        facts = {"by": self.by, "why": self.why, "rule": self.rule}
        return {"deadline": self.deadline.saved(), **facts}

    @classmethod
    def restored(cls, saved: Mapping[str, Any], clock: Clock) -> AnnouncedStop:
        """Return the stop of a JSON value."""
        deadline = Deadline.restored(saved["deadline"], clock)
        # An earlier version knew of administrators alone.
        rule = str(saved.get("rule", RULE))
        return cls(deadline, str(saved["by"]), str(saved["why"]), rule)


@dataclass(frozen=True)
class Ending:
    """How a server was stopped, for its user.

    Args:
        at: when, in seconds since the epoch.
        rule: the rule in the audit log: "time limit", "idle GPUs", "GPU memory", `RULE` or
            `INSTRUCTOR`.
        why: the reason of who has it stopped; "" for none.
    """

    at: float
    rule: str
    why: str = ""

    def facts(self) -> dict[str, Any]:
        """Return the facts as a JSON value."""
        return {"at": self.at, "rule": self.rule, "why": self.why}


def stopped_words(at: float, why: str, rule: str = RULE) -> str:
    """Return that somebody has stopped a server.

    Args:
        at: when, in seconds since the epoch.
        why: the reason; "" for none.
        rule: `RULE` or `INSTRUCTOR`.
    """
    facts = {"time": clock_time(at), "why": why.rstrip(".。 ")}
    if rule == INSTRUCTOR:
        if not why:
            return lazy_gettext(
                "An instructor of your course stopped your server at %(time)s. Your files are "
                "kept.",
                **facts,
            )
        return lazy_gettext(
            "An instructor of your course stopped your server at %(time)s: %(why)s. Your files "
            "are kept.",
            **facts,
        )
    if not why:
        return lazy_gettext(
            "An administrator stopped your server at %(time)s. Your files are kept.", **facts
        )
    return lazy_gettext(
        "An administrator stopped your server at %(time)s: %(why)s. Your files are kept.", **facts
    )


def announced_words(at: float, why: str, rule: str = RULE) -> str:
    """Return that somebody will stop a server; arguments as for `stopped_words`."""
    facts = {"time": clock_time(at), "why": why.rstrip(".。 ")}
    if rule == INSTRUCTOR:
        if not why:
            return lazy_gettext(
                "An instructor of your course stops your server at %(time)s. Save your work "
                "before.",
                **facts,
            )
        return lazy_gettext(
            "An instructor of your course stops your server at %(time)s: %(why)s. Save your work "
            "before.",
            **facts,
        )
    if not why:
        return lazy_gettext(
            "An administrator stops your server at %(time)s. Save your work before.", **facts
        )
    return lazy_gettext(
        "An administrator stops your server at %(time)s: %(why)s. Save your work before.", **facts
    )


def not_extended_words(at: float, rule: str) -> str:
    """Return that a server can't be extended, as it is stopped; arguments as above."""
    if rule == INSTRUCTOR:
        return lazy_gettext(
            "An instructor of its course stops this server at %(time)s, so it can't be extended.",
            time=clock_time(at),
        )
    return lazy_gettext(
        "An administrator stops this server at %(time)s, so it can't be extended.",
        time=clock_time(at),
    )
