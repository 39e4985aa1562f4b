"""Reserved hours on the dashboard: what the hub says of requests for them, and what it does.

Who may what, the hub decides at each question (`hub.hours_desk`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import Refused
from ..i18n.lazy_text import lazy_gettext, restored
from .actions import STOP_SECONDS, Actions, check_names
from .courses import asker, require_instructor
from .facts import Person, iso_time

# A rule as the form makes it; others are shown as they are.
WEEKLY = re.compile(r"FREQ=WEEKLY;UNTIL=([0-9]{4})([0-9]{2})([0-9]{2})")
# What the form has, in its order, and the texts that it begins with.
FORM: Mapping[str, str] = {
    "course": "",
    "day": "",
    "begin": "",
    "end": "",
    "end_day": "",
    "repeat": "",
    "until": "",
    "exceptions": "",
    "gpus": "1",
    "kind": "gpu",
    "model": "",
    "unclaimed_minutes": "15",
    "slots": "0",
    "zone": "",
    "note": "",
}
# What the hub tells and the API has alike.
_SAME = ("administrator", "courses", "kinds", "models", "divides_gpus")
# How long the hub may take to look whether it can be: another hub may write.
SECONDS = STOP_SECONDS


@dataclass(frozen=True)
class HoursActions:
    """What is done with requests for reserved hours, by way of the hub.

    Args:
        actions: the dashboard's way to the hub.
    """

    actions: Actions

    async def all(self, person: Person) -> dict[str, Any]:
        """Return what somebody may know of them, as a JSON value of the API.

        Raises:
            Refused: they teach nothing, or the hub doesn't answer.
        """
        require_instructor(person)
        answer = await self.actions.ask({"do": "hours", **asker(person)}, SECONDS)
        return {
            **{name: answer[name] for name in _SAME},
            "zone": answer["zone"] or None,
            "why_not": restored(answer["why_not"]) or "",
            "reserved_hours": [
                {**hours_facts(each), "yours": each["yours"]} for each in answer["reserved_hours"]
            ],
        }

    async def ask(
        self, person: Person, course: str, hours: Mapping[str, Any], note: str
    ) -> dict[str, Any]:
        """Ask for hours for a course; return the request."""
        check_names(course)
        return await self._send(person, "hours-ask", course=course, hours=hours, note=note)

    async def make(self, person: Person, course: str, hours: Mapping[str, Any]) -> dict[str, Any]:
        """Reserve hours for a course; return them."""
        check_names(course)
        return await self._send(person, "hours-make", course=course, hours=hours)

    async def grant(
        self, person: Person, number: int, hours: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Grant what was asked for, or other hours in its place."""
        return await self._send(person, "hours-grant", id=number, hours=hours)

    async def decide(self, person: Person, what: str, number: int, why: str) -> dict[str, Any]:
        """Refuse, withdraw or end; `what` says which of them."""
        more = {} if what == "withdraw" else {"why": why}
        return await self._send(person, f"hours-{what}", id=number, **more)

    async def _send(self, person: Person, what: str, **more: Any) -> dict[str, Any]:
        require_instructor(person)
        question = {"do": what, **asker(person), **more}
        return hours_facts(await self.actions.send(question, SECONDS))


def hours_facts(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request as a JSON value of the API; `openapi.yaml` describes it."""
    same = ("id", "course", "title", "hours", "state", "over", "asked_by", "note", "decided_by")
    return {
        **{name: answer[name] for name in same},
        "next_begin": iso_time(answer["next_begin"]),
        "next_end": iso_time(answer["next_end"]),
        "asked_at": iso_time(answer["asked_at"]),
        "decided_at": iso_time(answer["decided_at"]),
        "why": answer["why"],
        "trouble": restored(answer["trouble"]) or "",
    }


# -- The form --------------------------------------------------------------------------------------


def sent(get: Callable[[str], str]) -> dict[str, str]:
    """Return what a form has sent, by its names; `get` returns "" for what is missing."""
    # Nothing is cut: the rest would mean something else. The size of a request is bounded.
    return {name: get(name) for name in FORM}


def fields_of(form: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of reserved hours that a form has sent.

    Raises:
        Refused: it lacks something that only a form has; all else the hub looks at.
    """
    for name, words in _NEEDED.items():
        if not form[name]:
            raise Refused(words, key=name)
    repeat = form["repeat"]
    if repeat == "weekly":
        if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", form["until"], re.ASCII):
            raise Refused(lazy_gettext("Until which day is it repeated?"), key="until")
        repeat = f"FREQ=WEEKLY;UNTIL={form['until'].replace('-', '')}"
    minutes = form["unclaimed_minutes"]
    end = form["end"]
    fields: dict[str, Any] = {
        "begin": f"{form['day']}T{form['begin']}",
        "end": f"{form['end_day']}T{end}" if form["end_day"] else end,
        "gpus": _number(form["gpus"]),
        "repeat": repeat,
        "exceptions": re.findall(r"[^\s,;\uff0c\uff1b]+", form["exceptions"]),
        "kind": form["kind"],
        "model": form["model"],
        "zone": form["zone"],
    }
    if minutes:
        fields["unclaimed_minutes"] = float(minutes) if _MINUTES.fullmatch(minutes) else minutes
    if form["slots"]:
        fields["slots"] = _number(form["slots"])
    return fields


_MINUTES = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?", re.ASCII)
_NEEDED = {
    "day": lazy_gettext("The day is missing."),
    "begin": lazy_gettext("The begin is missing."),
    "end": lazy_gettext("The end is missing."),
}


def form_of(request: Mapping[str, Any]) -> dict[str, str]:
    """Return what the form has for a request: `fields_of` it is the same hours."""
    hours = request["hours"]
    day, _, begin = hours["begin"].partition("T")
    end_day, _, end = hours["end"].rpartition("T")
    weekly = WEEKLY.fullmatch(hours["repeat"])
    return {
        **FORM,
        "course": request["course"],
        "day": day,
        "begin": begin,
        "end": end,
        "end_day": end_day,
        "repeat": "weekly" if weekly else hours["repeat"],
        "until": "-".join(weekly.groups()) if weekly else "",
        "exceptions": " ".join(hours["exceptions"]),
        "gpus": str(hours["gpus"]),
        "kind": hours["kind"],
        "model": hours["model"],
        "unclaimed_minutes": f"{hours['unclaimed_minutes']:g}",
        "slots": str(hours["slots"]),
        "zone": hours["zone"],
    }


def _number(text: str) -> int | str:
    """Return a number that was typed in; the text where it is none, which the hub refuses."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text
