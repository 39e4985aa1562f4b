"""Courses as an administrator has written them: in the configuration, or in a YAML file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..untrusted import Lines, parse_yaml_with_lines
from .hours import ReservedHours, check_slots, overlap, shown
from .model import NO_COURSE, Course

# Keys whose value may be one name, in place of a list of them.
NAMES = ("group", "instructors", "images")
# How large a file may be, in bytes.
MAX_FILE = 4 * 1024 * 1024

_course = TypeAdapter(Course)


@dataclass(frozen=True)
class ReadCourses:
    """What has been read.

    Args:
        courses: key -> course, in the order in which they are declared.
        problems: key -> a sentence for each entry that is wrong.
    """

    courses: Mapping[str, Course] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)


def read_courses(entries: Any, where: str, lines: Lines | None = None) -> ReadCourses:
    """Return the courses of a mapping key -> entry. An entry that is wrong is named and left out.

    Args:
        entries: any value.
        where: what it is in a sentence: "courses", or a file's path.
        lines: the line of each value of a file.

    Raises:
        ValueError: it isn't a mapping.
    """
    if entries is None:
        entries = {}
    if not isinstance(entries, Mapping):
        raise ValueError(f"{where} must be a mapping of keys to courses, got {shown(entries)}")
    found: dict[str, Course] = {}
    problems: dict[str, str] = {}
    for key, entry in entries.items():
        try:
            course = _read(key, entry)
            _check_against(course, found.values())
            _check_hours(course)
            found[course.key] = course
        except Wrong as error:
            line = _line_of(lines, (str(key), *error.path))
            name = f"{where}[{key!r}]" if lines is None else f"{where}, {line}course {key!r}"
            problems[str(key)] = f"{name}: {error}"
    return ReadCourses(found, problems)


def read_file(text: str, where: str) -> ReadCourses:
    """Return the courses of a YAML file's text.

    Raises:
        ValueError: as a whole it is none that can be read; the message names the file and the line.
    """
    try:
        value, lines = parse_yaml_with_lines(text)
    except ValueError as error:
        raise ValueError(f"{where}: {' '.join(str(error).split())}") from None
    return read_courses(value, where, lines)


# What is wrong, by the type of pydantic's error, where its own words are a programmer's.
_WORDS = {
    "bool_parsing": "it must be true or false",
    "bool_type": "it must be true or false",
    "dataclass_type": "it must be a mapping",
    "int_parsing": "it must be a whole number",
    "int_type": "it must be a whole number",
    "list_type": "it must be a list",
    "missing": "it is missing",
    "tuple_type": "it must be a list",
    "unexpected_keyword_argument": "there is no such key",
}


class Wrong(ValueError):
    """An entry is wrong.

    Args:
        words: what is wrong.
        path: where in the entry.
    """

    def __init__(self, words: str, *path: str | int) -> None:
        super().__init__(words)
        self.path = path


def _read(key: Any, entry: Any) -> Course:
    if not isinstance(entry, Mapping):
        raise Wrong(f"a course must be a mapping with 'group', got {shown(entry)}")
    if "key" in entry:
        raise Wrong("'key' is what stands before the entry", "key")
    if key == NO_COURSE:
        raise Wrong(f"{NO_COURSE!r} is what users send who want no course: take another key")
    fields = {
        name: [value] if name in NAMES and isinstance(value, str) else value
        for name, value in entry.items()
    }
    try:
        # As JSON, where a list is as good as a tuple, and a date is its text.
        return _course.validate_json(json.dumps({**fields, "key": key}, default=_plain))
    except ValidationError as error:
        first = error.errors()[0]
        path = tuple(first["loc"])
        words = _WORDS.get(first["type"]) or first["msg"].removeprefix("Value error, ")
        words = words[:1].lower() + words[1:]
        name = ".".join(map(str, path))
        got = "" if first["type"] == "missing" else f", got {shown(first['input'])}"
        raise Wrong(f"{name}: {words}{got}", *path) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise Wrong(str(error)) from None


def _check_against(course: Course, others: Any) -> None:
    """Raise Wrong if a folder lies where another of the same or of an earlier course does."""
    taken = [(*folder, other.key) for other in others for folder in other.folders()]
    for volume, path in course.folders():
        for other_volume, other_path, whose in taken:
            of = "this course" if whose == course.key else f"course {whose!r}"
            if path == other_path or path.startswith(other_path + "/"):
                raise Wrong(f"{path} lies where {of} has its own folder, {other_path}")
            if other_path.startswith(path + "/"):
                raise Wrong(f"{other_path} of {of} lies below {path}")
            if volume == other_volume:
                raise Wrong(f"volume {volume!r} is {of}'s as well")
        taken.append((volume, path, course.key))


def _check_hours(course: Course) -> None:
    """Raise Wrong if reserved hours can't be, or two of them of the same units overlap."""
    known: list[tuple[ReservedHours, list[tuple[float, float]]]] = []
    for number, hours in enumerate(course.reserved):
        try:
            known.append((hours, list(hours.times())))
        except (ValueError, OverflowError, OSError) as error:
            raise Wrong(f"reserved.{number}: {error}", "reserved", number) from None
    if course.calendar:
        try:
            check_slots(course.calendar.slots, course.calendar.kind)
        except ValueError as error:
            raise Wrong(f"calendar.{error}", "calendar", "slots") from None
    if found := overlap(known):
        one, other = found
        words = f"reserved.{other}: it overlaps reserved.{one} of the same course"
        raise Wrong(words, "reserved", other)


def _line_of(lines: Lines | None, path: tuple[Any, ...]) -> str:
    if lines is None:
        return ""
    while path and path not in lines:
        path = path[:-1]
    return f"line {lines[path]}: " if path in lines else ""


def _plain(value: Any) -> Any:
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{shown(value)} is no text, number, list or mapping")


def problems_of(read: ReadCourses) -> Iterator[str]:
    """Yield the sentences on what is wrong."""
    yield from read.problems.values()
