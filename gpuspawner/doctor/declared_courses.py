"""The courses of a configuration and of its file, read as a hub reads them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from ..courses.catalogue import CourseCatalogue

ADVICE = "mend it: a hub reads it again by itself, and says in its log what it has read"


@dataclass(frozen=True)
class DeclaredCourses:
    """What checks need to know of the courses.

    Args:
        taught: the trait that declares a course with instructors; "": there is none.
        has_slots: whether the hours of one divide GPUs into slots.
        problems: what a hub would say that is wrong in the files.
    """

    taught: str
    has_slots: bool
    problems: tuple[str, ...]


def declared_courses(spawner: Any) -> DeclaredCourses:
    """Return what checks need to know of a spawner's courses. Runs in the hub's folder."""
    said = _Kept(logging.ERROR)
    # One that is nobody else's: it writes nothing.
    log = logging.Logger(__name__)
    log.addHandler(said)
    courses = CourseCatalogue(spawner.courses, spawner.courses_file, log).current()
    taught = [key for key, course in courses.items() if course.instructors]
    declared = any(key in spawner.courses for key in taught)
    return DeclaredCourses(
        ("courses" if declared else "courses_file") if taught else "",
        any(where for course in courses.values() for where in course.hours_as_slots()),
        tuple(said.lines),
    )


class _Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.lines.append(record.getMessage())
