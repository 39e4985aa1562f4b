"""What a hub tells of reserved hours: those of a week, and all of them for calendars."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from typing import Any

from ..courses import calendar_feed
from ..courses.catalogue import CourseCatalogue
from ..courses.week import local_zone_name, midnights, parse_day, zone_of
from ..i18n.lazy_text import kept
from .admission import Claim
from .reserved_hours import ReservedTimes


class WeekFacts:
    """Weeks of one hub, and its calendar.

    Args:
        courses: the courses.
        reserved: the hours that are reserved for them.
        hub: its address.
    """

    def __init__(self, courses: CourseCatalogue, reserved: ReservedTimes, hub: str) -> None:
        self._courses = courses
        self._reserved = reserved
        self._hub = hub

    def facts(self, day: str) -> dict[str, Any]:
        """Return the week from a day on, as a JSON value; times in seconds since the epoch.

        Args:
            day: as 2026-11-30; "": today.

        Raises:
            Refused: it is no day.
        """
        zone_name = local_zone_name()
        zone = zone_of(zone_name)
        days = midnights(parse_day(day, zone, time.time()), zone)
        return {
            "zone": zone_name,
            "days": list(days),
            "known": self._reserved.is_known,
            "reserved": list(self._hours(days[0], days[-1])),
            # Whom the calendar concerns, in whatever week.
            "members": sorted(
                {
                    name
                    for course in self._courses.current().values()
                    if course.reserved
                    for name in (*course.group, *course.instructors)
                }
            ),
        }

    def _hours(self, begin: float, end: float) -> Iterator[Mapping[str, Any]]:
        courses = self._courses.current()
        for each, missing, refused in self._reserved.between(begin, end):
            course = courses.get(each.course)
            if course is None:  # it was removed while we looked
                continue
            free_from = each.begin + each.unclaimed_seconds
            yield {
                "course": course.key,
                "title": course.name,
                "members": [*course.group, *course.instructors],
                "begin": each.begin,
                "end": each.end,
                "gpus": each.gpus,
                "kind": each.kind,
                "model": each.model or None,
                "slots": each.slots,
                "free_from": free_from if isfinite(free_from) and free_from < each.end else None,
                "missing": missing,
                "refused": kept(refused),
            }

    async def calendar(self) -> dict[str, Any]:
        """Return what is reserved as events of a calendar: a JSON value."""
        promised = self._reserved.promised()
        # Years of times are computed: not on the event loop.
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, self._calendar, promised)

    def _calendar(self, claims: Iterable[Claim]) -> dict[str, Any]:
        promised = [(each.course, each.hours) for each in claims]
        return {
            "zones": [calendar_feed.zone_lines(each) for each in calendar_feed.spans(promised)],
            "events": [
                {
                    **event,
                    "course": course.key,
                    "title": course.name,
                    "members": [*course.group, *course.instructors],
                    "gpus": hours.gpus,
                    "kind": hours.kind,
                    "model": hours.model or None,
                    "slots": hours.slots,
                }
                for course, hours in promised
                for event in calendar_feed.events_of(course, hours, self._hub)
            ],
        }
