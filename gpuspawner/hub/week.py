"""What a hub tells of a week: the hours that are reserved in it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from ..courses.catalogue import CourseCatalogue
from ..courses.week import local_zone_name, midnights, parse_day, zone_of
from ..i18n.lazy_text import kept
from .reserved_hours import ReservedTimes


class WeekFacts:
    """Weeks of one hub.

    Args:
        courses: the courses.
        reserved: the hours that are reserved for them.
    """

    def __init__(self, courses: CourseCatalogue, reserved: ReservedTimes) -> None:
        self._courses = courses
        self._reserved = reserved

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
                "free_from": free_from if isfinite(free_from) and free_from < each.end else None,
                "missing": missing,
                "refused": kept(refused),
            }
