"""Reserved hours that are asked for and granted, beside those that a configuration declares."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from pydantic import TypeAdapter, ValidationError

from ..errors import Refused
from ..i18n.lazy_text import lazy_gettext
from .hours import HoursError, ReservedHours, shown

State = Literal["asked", "granted", "refused", "withdrawn", "ended"]
STATES: tuple[State, ...] = get_args(State)
# States of which nothing is reserved any more, nor will be.
CLOSED: tuple[State, ...] = ("refused", "withdrawn", "ended")
# State -> what may become of it.
TRANSITIONS: Mapping[State, tuple[State, ...]] = {
    "asked": ("granted", "refused", "withdrawn"),
    "granted": ("ended",),
    "refused": (),
    "withdrawn": (),
    "ended": (),
}
# The longest note of who asks, and the longest reason, in characters.
MAX_NOTE = 500
MAX_WHY = 200

UNREADABLE = lazy_gettext(
    "These hours can't be read: a text isn't Unicode, a number is too long, or lists lie too deep."
)

_hours = TypeAdapter(ReservedHours)


@dataclass(frozen=True)
class HoursRequest:
    """Hours that somebody has asked for, or that an administrator has made.

    Args:
        id: its number in the store; 0: it isn't in there yet.
        course: the course's key.
        hours: what is asked for; once granted, what is granted.
        state: what has become of it.
        asked_by: the user who has asked for it, or made it.
        asked_at: when, in seconds since the epoch.
        over_at: when the last of its times ends.
        note: what the administrator is told.
        decided_by: who has granted, refused, withdrawn or ended it; "": nobody yet.
        decided_at: when.
        why: the reason for that; "": none was given.
        rank: its place among all that was granted, from 1 on; 0: it never was.
    """

    id: int
    course: str
    hours: ReservedHours
    state: State
    asked_by: str
    asked_at: float
    over_at: float
    note: str = ""
    decided_by: str = ""
    decided_at: float | None = None
    why: str = ""
    rank: int = 0

    def becomes(self, state: State, by: str, at: float, why: str = "", **more: Any) -> HoursRequest:
        """Return it in its next state.

        Args:
            state: the state.
            by: the user who decides so.
            at: when, in seconds since the epoch.
            why: the reason.
            more: other fields that change with it.

        Raises:
            Refused: something else has become of it already.
        """
        if state not in TRANSITIONS[self.state]:
            raise Refused(_ALREADY[self.state], status=409)
        return replace(self, state=state, decided_by=by, decided_at=at, why=why, **more)


_ALREADY: Mapping[State, str] = {
    "asked": lazy_gettext("It isn't granted yet."),
    "granted": lazy_gettext("It has been granted already."),
    "refused": lazy_gettext("It has been refused already."),
    "withdrawn": lazy_gettext("It was withdrawn."),
    "ended": lazy_gettext("It has been ended already."),
}


def read_hours(fields: Mapping[str, Any]) -> ReservedHours:
    """Return the hours of untrusted fields, which can be.

    Args:
        fields: those of `ReservedHours`, a JSON value each.

    Raises:
        Refused: they can't be; its key is the field.
    """
    try:
        # As JSON, where a list is as good as a tuple.
        text = json.dumps(fields)
    except (ValueError, RecursionError):
        raise Refused(UNREADABLE, key="hours") from None
    try:
        hours = _hours.validate_json(text)
        for _ in hours.times():
            pass
    except ValidationError as error:
        raise _refusal(error.errors()[0]) from None
    except HoursError as error:
        raise Refused(error.sentence, key=error.key) from None
    except (ValueError, OverflowError, OSError) as error:
        raise Refused(str(error)) from None
    return hours


def _refusal(error: Any) -> Refused:
    """Return the refusal for the first error that pydantic has found."""
    if error["type"] == "json_invalid":  # its input is all that was sent
        return Refused(UNREADABLE, key="hours")
    key = ".".join(map(str, error["loc"]))[:100]
    kind, bounds, got = error["type"], error.get("ctx", {}), shown(error["input"])
    if kind == "missing":
        words = lazy_gettext("%(key)s is missing.", key=key)
    elif kind == "unexpected_keyword_argument":
        words = lazy_gettext("There is no %(key)s here.", key=key)
    elif kind == "greater_than_equal":
        words = lazy_gettext(
            "%(key)s can't be %(got)s: it is at least %(least)s.",
            key=key,
            got=got,
            least=f"{bounds['ge']:g}",
        )
    elif kind == "less_than_equal":
        words = lazy_gettext(
            "%(key)s can't be %(got)s: it is at most %(most)s.",
            key=key,
            got=got,
            most=f"{bounds['le']:g}",
        )
    elif kind == "string_too_long":
        words = lazy_gettext(
            "%(key)s is too long: at most %(most)s characters.", key=key, most=bounds["max_length"]
        )
    elif kind == "int_type":
        words = lazy_gettext("%(key)s can't be %(got)s: it is a whole number.", key=key, got=got)
    elif kind == "float_type":
        words = lazy_gettext("%(key)s can't be %(got)s: it is a number.", key=key, got=got)
    elif kind == "string_type":
        words = lazy_gettext("%(key)s can't be %(got)s: it is text.", key=key, got=got)
    else:
        words = lazy_gettext("%(key)s can't be %(got)s.", key=key, got=got)
    return Refused(words, key=key)


def hours_as_text(hours: ReservedHours) -> str:
    """Return hours as JSON, for `hours_of_text`."""
    return _hours.dump_json(hours).decode()


def hours_of_text(text: str) -> ReservedHours:
    """Return the hours of JSON; raises ValueError if it has none of this version's."""
    return _hours.validate_json(text)


def hours_as_fields(hours: ReservedHours) -> dict[str, Any]:
    """Return hours as a JSON value for `read_hours`."""
    fields: dict[str, Any] = _hours.dump_python(hours, mode="json")
    return fields
