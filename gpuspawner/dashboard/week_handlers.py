"""The page of a week, and its part of the JSON API."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from math import inf
from typing import Any

from tornado import web

from ..errors import Refused
from ..i18n.phrases import wall_day, wall_moment, wall_time
from .handlers import API, Handler
from .pages import lanes
from .week_facts import ToldWeek, ask_calendar, ask_week, week

# More units than these are drawn only where they are held.
MAX_IDLE_ROWS = 24
# The least width of a bar, in percent of the week: half an hour.
LEAST_WIDTH = 0.3
# The hours that have a line of their own.
MARKED_HOURS = (6, 12, 18)

Facts = Mapping[str, Any]


class _Week(Handler):
    """What both have."""

    async def told(self) -> ToldWeek:
        """Return the week that the address names, as the hub tells it."""
        return await ask_week(self.actions.socket, self.get_query_argument("from", ""))

    async def facts(self, told: ToldWeek) -> dict[str, Any]:
        """Return what this person may know of a week."""
        facts = week(await self.monitor.snapshot(), self.person, told)
        for each in facts["reserved"]:
            each["refused"] = self.language.say(each["refused"])
        facts["nodes"] = [self.language.say(each) for each in facts["nodes"]]
        for gpu in facts["gpus"]:
            gpu["node"] = self.language.say(gpu["node"])
        return facts


class WeekAPI(API, _Week):
    """JSON."""

    async def get(self) -> None:
        """Answer."""
        self.finish(await self.facts(await self.answer(self.told())))


class CalendarAPI(API):
    """The reserved hours as a calendar (.ics)."""

    async def get(self) -> None:
        """Send it."""
        asking = ask_calendar(self.actions.socket, self.person, self.language)
        text = await self.answer(asking)
        self.set_header("Content-Type", "text/calendar; charset=utf-8")
        self.set_header("Content-Disposition", 'attachment; filename="reserved.ics"')
        self.finish(text)


class WeekPage(_Week):
    """A picture, and a table that says the same."""

    @web.authenticated
    async def get(self) -> None:
        """Show them, or why not."""
        try:
            told, refusal = await self.told(), ""
        except Refused as error:
            self.set_status(error.status)
            refusal = self.language.say(str(error))
            told = await ask_week(self.actions.socket, "")
        facts = await self.facts(told)
        await self.find_courses()
        first = datetime.fromtimestamp(told.days[0], told.clock).date()
        self.finish(
            self.page(
                "week.html",
                {"you": facts["you"], "nodes": facts["nodes"]},
                page="week",
                week=facts,
                refusal=refusal,
                has_calendar=told.has_calendar_for(self.person),
                picture=Picture(facts, told),
                entries=sorted(entries(facts), key=lambda each: each["begin"]),
                day=first.isoformat(),
                before=_other(first, -7),
                after=_other(first, 7),
                when=lambda text: wall_time(_epoch(text), self.language, told.clock),
                moment=lambda text: wall_moment(_epoch(text), self.language, told.clock),
                weekday=lambda text: wall_day(_epoch(text), self.language, told.clock),
            )
        )


class Picture:
    """Where things are in the picture of a week: left and width in percent of it.

    Args:
        facts: `week_facts.week`.
        told: the week.
    """

    def __init__(self, facts: Facts, told: ToldWeek) -> None:
        self._begin, self._end = told.days[0], told.days[-1]
        self._now = time.time()
        held = {each["gpu"] for each in facts["leases"]}
        units = facts["gpus"]
        drawn = [gpu for gpu in units if len(units) <= MAX_IDLE_ROWS or gpu["id"] in held]
        self.left_out = len(units) - len(drawn)
        self.gpus = [
            (gpu, [each for each in facts["leases"] if each["gpu"] == gpu["id"]]) for gpu in drawn
        ]
        self.bookings = _lanes(facts["bookings"], "until")
        self.reserved = _lanes(facts["reserved"], "end")
        self.days = [(self._at(_epoch(each)), each) for each in facts["days"]]
        self.hours = [(self._at(seconds), hour) for hour, seconds in _marked_hours(told)]
        self.now = self._at(self._now) if self._begin <= self._now < self._end else ""

    def _share(self, seconds: float) -> float:
        return 100 * (seconds - self._begin) / (self._end - self._begin)

    def _at(self, seconds: float) -> str:
        return f"{self._share(seconds):.3f}%"

    def place(self, begin: str | None, end: str | None) -> Mapping[str, str]:
        """Return where a bar is.

        Args:
            begin: ISO 8601; None: it isn't known, and it is drawn from now on.
            end: the same; None: it has none.
        """
        first = min(100.0, max(0.0, self._share(_epoch(begin) if begin else self._now)))
        last = min(100.0, max(0.0, self._share(_epoch(end)) if end else 100.0))
        width = max(LEAST_WIDTH, last - first)
        return {"x": f"{min(first, 100 - width):.3f}%", "width": f"{width:.3f}%"}


def _lanes(found: Sequence[Facts], end: str) -> list[list[Facts]]:
    spans = [
        {"begin": _epoch(each["begin"]), "end": _epoch(each[end]) if each[end] else inf, "of": each}
        for each in found
    ]
    return [[each["of"] for each in row] for row in lanes(spans)]


def entries(facts: Facts) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table: `what` it is, from when, and the facts."""
    now = _epoch(facts["now"])
    gpus = {gpu["id"]: gpu for gpu in facts["gpus"]}
    for each in facts["leases"]:
        begin = _epoch(each["since"]) if each["since"] else now
        yield {"what": "lease", "begin": begin, "facts": each, "gpu": gpus[each["gpu"]]}
    for each in facts["bookings"]:
        yield {"what": "booking", "begin": _epoch(each["begin"]), "facts": each, "gpu": None}
    for each in facts["reserved"]:
        yield {"what": "reserved", "begin": _epoch(each["begin"]), "facts": each, "gpu": None}


def _marked_hours(told: ToldWeek) -> Iterator[tuple[int, float]]:
    """Yield (hour, when it is) for the marked hours of each day, by the hub's clock."""
    for begin in told.days[:-1]:
        day = datetime.fromtimestamp(begin, told.clock)
        for hour in MARKED_HOURS:
            yield hour, day.replace(hour=hour, minute=0, fold=0).timestamp()


def _other(day: date, days: int) -> str:
    return (day + timedelta(days=days)).isoformat()


def _epoch(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
