"""What the dashboard says of a week, by who asks: leases, promises of the queue, reserved hours.

Leases and the queue are those of `facts.status`, so that nobody reads a name here that they don't
read there; the reserved hours are the hub's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import inf
from typing import Any
from zoneinfo import ZoneInfo

from ..courses import calendar_feed
from ..courses.week import midnights, parse_day, zone_of
from ..errors import Refused
from ..gpus.allocation import reserved_phrase
from ..hub import control_socket
from ..i18n.languages import Language
from ..i18n.lazy_text import lazy_gettext, restored
from .actions import NO_ANSWER
from .facts import Person, iso_time, status
from .monitor import Snapshot
from .pages import Servers

CALENDAR_NAME = lazy_gettext("Reserved GPUs")
# How long a hub may compute it.
CALENDAR_SECONDS = 30.0


@dataclass(frozen=True)
class ToldWeek:
    """A week as the hub tells it.

    Args:
        days: when each day begins and the last one ends, in seconds since the epoch.
        zone: the name of the hub's time zone; "": the machine's.
        known: whether it is known what is reserved.
        reserved: that, as the hub's JSON values.
        members: the groups of courses that have reserved hours, in whatever week.
    """

    days: Sequence[float]
    zone: str = ""
    known: bool = False
    reserved: Sequence[Mapping[str, Any]] = ()
    members: frozenset[str] = frozenset()

    def has_calendar_for(self, person: Person) -> bool:
        """Return whether there are hours that concern somebody, as `ask_calendar` has them."""
        return person.administrator or not person.groups.isdisjoint(self.members)

    @property
    def clock(self) -> ZoneInfo | None:
        """The hub's time zone; None: the machine's."""
        return zone_of(self.zone)


async def ask_week(socket: str, day: str) -> ToldWeek:
    """Return a week; without what is reserved where the hub doesn't answer.

    Args:
        socket: the path of the hub's control socket.
        day: the first day, as 2026-11-30; "": today.

    Raises:
        Refused: it is no day.
    """
    here = midnights(parse_day(day, None, time.time()), None)
    try:
        answer = await control_socket.ask(socket, {"do": "week", "day": day})
        return ToldWeek(
            [float(each) for each in answer["days"]],
            str(answer["zone"]),
            bool(answer["known"]),
            answer["reserved"],
            frozenset(map(str, answer["members"])),
        )
    except (OSError, ValueError, KeyError, TypeError, asyncio.TimeoutError):
        return ToldWeek(here)


def week(snapshot: Snapshot, person: Person, told: ToldWeek) -> dict[str, Any]:
    """Return what there is in a week as a JSON value; `openapi.yaml` describes it.

    Args:
        snapshot: the state of the nodes and the hub.
        person: who asks.
        told: the week, and what is reserved in it.
    """
    now = time.time()
    begin, end = told.days[0], told.days[-1]
    seen = status(snapshot, person, history=False)
    return {
        "now": iso_time(now),
        "from": iso_time(begin),
        "to": iso_time(end),
        "days": [iso_time(each) for each in told.days[:-1]],
        "zone": told.zone or None,
        "known": seen["known"],
        "trouble": seen["trouble"],
        "queue_known": seen["queue"]["known"],
        "reserved_known": told.known,
        "you": seen["you"],
        "nodes": [node["name"] for node in seen["nodes"]],
        "gpus": [
            {name: gpu[name] for name in ("node", "id", "kind", "part", "index", "model", "state")}
            for gpu in seen["gpus"]
            if gpu["state"] != "mig" or gpu["in_use"]
        ],
        "leases": list(_leases(seen, begin, end, now)),
        "bookings": list(_bookings(snapshot, seen, begin, end, now)),
        "reserved": list(_reserved(told.reserved, person)),
    }


def _leases(
    seen: Mapping[str, Any], begin: float, end: float, now: float
) -> Iterator[dict[str, Any]]:
    servers = Servers(seen)
    for gpu in seen["gpus"]:
        if not gpu["in_use"]:
            continue
        server = servers.of(gpu)
        since = server["since"] if server else None
        # One whose time is over, and that runs still, goes on up to now at least.
        until = max(_epoch(gpu["until"], inf), now)
        if _epoch(since, now) < end and begin < until:
            yield {
                "gpu": gpu["id"],
                "yours": gpu["yours"],
                "holders": gpu["holders"],
                "other_hub": gpu["other_hub"],
                "since": since,
                "until": gpu["until"],
            }


def _bookings(
    snapshot: Snapshot, seen: Mapping[str, Any], begin: float, end: float, now: float
) -> Iterator[dict[str, Any]]:
    """Yield what the queue expects; both are in the queue's order."""
    told = snapshot.hub["queue"] if snapshot.hub else []
    for entry, asked in zip(seen["queue"]["waiting"], told, strict=True):
        if entry["expected"] is None:
            continue
        start = max(_epoch(entry["expected"], now), now)
        seconds = asked.get("seconds")
        until = start + seconds if seconds else None
        if start < end and begin < (until or inf):
            yield {
                "place": entry["place"],
                "yours": entry["yours"],
                "holder": entry["holder"],
                "gpus": entry["gpus"],
                "kind": entry["kind"],
                "model": entry["model"],
                "begin": iso_time(start),
                "until": iso_time(until),
            }


def _reserved(told: Sequence[Mapping[str, Any]], person: Person) -> Iterator[dict[str, Any]]:
    same = ("course", "title", "gpus", "kind", "model", "slots", "missing")
    for each in told:
        yours = not person.groups.isdisjoint(each["members"])
        # What isn't kept for them concerns nobody else.
        if not each["refused"] or yours or person.administrator:
            yield {
                **{name: each[name] for name in same},
                "yours": yours,
                "begin": iso_time(each["begin"]),
                "end": iso_time(each["end"]),
                "free_from": iso_time(each["free_from"]),
                "refused": restored(each["refused"]) or "",
            }


def _epoch(text: str | None, otherwise: float) -> float:
    return datetime.fromisoformat(text).timestamp() if text else otherwise


async def ask_calendar(socket: str, person: Person, language: Language) -> str:
    """Return the reserved hours that concern somebody as a calendar's text.

    Args:
        socket: the path of the hub's control socket.
        person: who asks. An administrator is concerned by those of all courses.
        language: theirs.

    Raises:
        Refused: the hub doesn't answer.
    """
    try:
        told = await control_socket.ask(socket, {"do": "calendar"}, CALENDAR_SECONDS)
        events = [
            {
                **each,
                "category": each["course"],
                "summary": f"{each['title']} ({_of(each, language)})",
            }
            for each in told["events"]
            if person.administrator or not person.groups.isdisjoint(each["members"])
        ]
        name = language.say(CALENDAR_NAME)
        return calendar_feed.calendar(name, told["zones"], events, time.time())
    except (OSError, ValueError, KeyError, TypeError, asyncio.TimeoutError) as error:
        raise Refused(NO_ANSWER, status=503) from error


def _of(event: Mapping[str, Any], language: Language) -> str:
    phrase = reserved_phrase(event["gpus"], event["model"], event["kind"], event["slots"])
    return str(language.say(phrase))
