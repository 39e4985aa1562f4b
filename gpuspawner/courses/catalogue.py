"""The courses of a hub: those of the configuration, and of a file that is read when it changes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..leases.audit_log import one_line
from .calendar_file import MAX_FILE as MAX_CALENDAR
from .calendar_file import read_calendar
from .hours import ReservedHours, overlap
from .model import Course, CourseCalendar, title_of
from .reading import MAX_FILE, ReadCourses, problems_of, read_courses, read_file
from .watched_file import WatchedFile


class CourseCatalogue:
    """The courses of a hub.

    An entry of the file that is wrong is named in the log, once, and what it said before stays; so
    do all of them where the file can't be read, and the hours of a calendar that can't be.

    Args:
        declared: the trait `courses`, which has been checked.
        file: the trait `courses_file`; "": there is none.
        log: a logger.
    """

    def __init__(self, declared: Mapping[str, Any], file: str, log: Any) -> None:
        self._declared = dict(read_courses(declared, "courses").courses)
        self._file = WatchedFile(file, MAX_FILE) if file else None
        self._log = log
        self._of_file: dict[str, Course] = {}
        # Course, or "" for the file -> what is wrong with it, which was said.
        self._said: dict[str, frozenset[str]] = {}
        self._calendars: dict[str, CalendarHours] = {}
        # As they are written, and with the hours of their calendars.
        self._written = self._current = self._declared

    def current(self) -> Mapping[str, Course]:
        """Return key -> course, as they are declared now. The same object until one changes."""
        before = self._written
        if self._file is not None:
            self._look(self._file)
        if self._look_at_calendars() or self._written is not before:
            self._current = {key: self._with_hours(each) for key, each in self._written.items()}
        return self._current

    def title_of(self, key: str) -> str:
        """Return what users call a course, by its key: all that they read of one goes by it."""
        return title_of(self.current(), key)

    def _look(self, file: WatchedFile) -> None:
        try:
            content = file.news()
            if content is None:
                return
            read = _read(content, os.fspath(file.path))
        except ValueError as error:
            kept = ". The courses of before stay" if self._of_file else ""
            self._say("", {f"{error}{kept}"})
            return
        kept_ones = {key: self._of_file[key] for key in read.problems if key in self._of_file}
        self._of_file = {**read.courses, **kept_ones}
        twice = self._of_file.keys() & self._declared.keys()
        problems = {
            f"{each}{'. What it said before stays' if key in kept_ones else '. It is left out'}"
            for key, each in read.problems.items()
        }
        problems |= {
            f"{file.path}: course {key!r} is in c.GPUSpawner.courses as well" for key in twice
        }
        self._say("", problems)
        self._written = {**self._of_file, **self._declared}
        self._log.info(
            "Courses as of %s: %s", one_line(file.path), one_line(", ".join(self._written))
        )

    def _look_at_calendars(self) -> bool:
        """Look at the calendars of all courses; return whether the hours of one are others."""
        changed = False
        for course in self._written.values():
            if course.calendar is None:
                continue
            known = self._calendars.get(course.key)
            if known is None or known.calendar != course.calendar:
                known = self._calendars[course.key] = CalendarHours(course.calendar)
            before = known.hours
            try:
                if known.look(course):
                    self._say(course.key, set())
                    said = one_line(f"{course.calendar.file}, for course {course.key}")
                    self._log.info("Events of %s: %d", said, len(known.hours))
            except ValueError as error:
                kept = ". The hours of before stay" if known.hours else ". It reserves nothing"
                self._say(course.key, {f"The calendar of course {course.key!r}: {error}{kept}"})
            changed = changed or known.hours != before
        return changed

    def _with_hours(self, course: Course) -> Course:
        if course.calendar is None:
            return course
        more = self._calendars[course.key].hours
        return replace(course, reserved=(*course.reserved, *more))

    def _say(self, of: str, problems: set[str]) -> None:
        """Log each problem that wasn't there at the last look."""
        for each in sorted(problems - self._said.get(of, frozenset())):
            self._log.error("%s", one_line(each))
        self._said[of] = frozenset(problems)


class CalendarHours:
    """The hours of a course's calendar, as they were when it could be read last.

    Args:
        calendar: where it is, and what it reserves.
    """

    def __init__(self, calendar: CourseCalendar) -> None:
        self.calendar = calendar
        self.hours: tuple[ReservedHours, ...] = ()
        self._file = WatchedFile(calendar.file, MAX_CALENDAR)
        self._beside: tuple[ReservedHours, ...] | None = None

    def look(self, course: Course) -> bool:
        """Read it again if it has changed, or the course's other hours have; return whether.

        Raises:
            ValueError: it can't be read, or overlaps these; the message names it and says why.
        """
        if course.reserved != self._beside:
            self._beside = course.reserved
            self._file.forget()
            if _overlapping(course.reserved, self.hours):
                self.hours = ()
        content = self._file.news()
        if content is None:
            return False
        try:
            found = tuple(read_calendar(content, self.calendar, time.time()))
        except ValueError as error:
            raise ValueError(f"{self._file.path}, {error}") from None
        if words := _overlapping(course.reserved, found):
            raise ValueError(f"{self._file.path}: {words}")
        self.hours = found
        return True


def _overlapping(reserved: tuple[ReservedHours, ...], more: tuple[ReservedHours, ...]) -> str:
    """Return which of a course's hours overlap; "": none."""
    hours = (*reserved, *more)
    found = overlap([(each, list(each.times())) for each in hours]) if more else None
    if found is None:
        return ""
    one, other = (hours[number] for number in found)
    return f"the hours from {other.begin} on overlap those from {one.begin} on"


def _read(content: bytes, path: str) -> ReadCourses:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: it isn't UTF-8") from None
    return read_file(text, path)


def check_courses(entries: Any) -> dict[str, Any]:
    """Validate the trait `courses`, and return it.

    Raises:
        ValueError: an entry is wrong; the message names it.
    """
    read = read_courses(entries, "courses")
    for problem in problems_of(read):
        raise ValueError(problem)
    return dict(entries)
