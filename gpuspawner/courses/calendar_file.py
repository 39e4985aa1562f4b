"""Reserved hours of a calendar's file (.ics), as a timetable's program writes it.

What lessons have is read; what is beyond that is named, and nothing of the file is taken.

ref: RFC 5545
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from babel.core import get_global

from ..untrusted import bounded
from .hours import FORMAT, ReservedHours
from .model import CourseCalendar
from .week import zone_of

# How large a file may be, in bytes; how many events it may have; how many times they may mean.
MAX_FILE = 1024 * 1024
MAX_EVENTS = 500
MAX_ALL_TIMES = 5000
# How much of a name or a value a sentence quotes, and how long one is, in characters.
MAX_SHOWN = 60
MAX_ERROR = 300
# The properties that are read; those that can't be, and would mean other times.
READ = {"UID", "DTSTART", "DTEND", "DURATION", "RRULE", "EXDATE", "RECURRENCE-ID"}
READ |= {"STATUS", "TRANSP", "SUMMARY"}
NOT_READ = {"RDATE", "EXRULE"}
PROPERTY = re.compile(r'((?:[^:"]|"[^"]*")*):(.*)', re.DOTALL)
PARAMETER = re.compile(r'(?:[^;"]|"[^"]*")+')
TIME = re.compile(r"([0-9]{8})T([0-9]{6})(Z?)")
DURATION = re.compile(
    r"\+?P(?:([0-9]{1,3})W)?(?:([0-9]{1,3})D)?"
    r"(?:T(?:([0-9]{1,3})H)?(?:([0-9]{1,4})M)?(?:([0-9]{1,5})S)?)?"
)


@dataclass(frozen=True)
class Property:
    """A property of an event: its parameters, and its value."""

    parameters: Mapping[str, str]
    value: str


@dataclass
class Event:
    """An event, from a line of the file on."""

    line: int
    properties: dict[str, list[Property]] = field(default_factory=dict)

    def one(self, name: str) -> Property | None:
        """Return a property; None where there is none."""
        found = self.properties.get(name, [])
        if len(found) > 1:
            raise ValueError(f"it has {name} more than once")
        return found[0] if found else None

    def value(self, name: str) -> str:
        """Return the value of a property; "" where there is none."""
        found = self.one(name)
        return found.value.strip() if found else ""


@dataclass(frozen=True)
class Moment:
    """A time by the clock on the wall of a zone; "": the machine's."""

    wall: datetime
    zone: str

    def in_zone(self, zone: str) -> datetime:
        """Return what the clock of a zone shows then."""
        if zone == self.zone:
            return self.wall
        seconds = self.wall.replace(tzinfo=zone_of(self.zone)).timestamp()
        return datetime.fromtimestamp(seconds, zone_of(zone)).replace(tzinfo=None)


def read_calendar(content: bytes, calendar: CourseCalendar, now: float) -> list[ReservedHours]:
    """Return the hours of a calendar's events, but of those that are over.

    Whole days, and what is cancelled or takes no time (TRANSP), are no hours either.

    Args:
        content: the file.
        calendar: what its events reserve.
        now: the time, in seconds since the epoch.

    Raises:
        ValueError: something of it isn't understood; the message names the line and the event.
    """
    if len(content) > MAX_FILE:
        raise ValueError(f"it is larger than {MAX_FILE} bytes")
    if calendar.zone and zone_of(calendar.zone) is None:
        raise ValueError(f"zone: there is no time zone {_shown(calendar.zone)}")
    events = list(_events(content))
    found: list[ReservedHours] = []
    moved: dict[str, list[Moment]] = {}
    number_of_times = 0
    for event in events:
        with _naming(event):
            if instance := event.one("RECURRENCE-ID"):
                if "RANGE" in instance.parameters:
                    raise ValueError("RECURRENCE-ID with RANGE can't be read: write single times")
                of = moved.setdefault(event.value("UID"), [])
                of += _moments("RECURRENCE-ID", instance, calendar)
    for event in events:
        with _naming(event):
            hours = _hours_of(event, calendar, moved)
            times = list(hours.times()) if hours else []
            number_of_times += len(times)
            if number_of_times > MAX_ALL_TIMES:
                raise ValueError(f"with it there are more than {MAX_ALL_TIMES} times")
            if hours and times[-1][1] > now:
                found.append(hours)
    return found


@contextmanager
def _naming(event: Event) -> Iterator[None]:
    """Name the event in what is raised."""
    try:
        yield
    except (ValueError, OverflowError, OSError) as error:
        summary = event.properties.get("SUMMARY", [])
        name = f"event {_shown(_plain(summary[0].value))}" if summary else "an event"
        # Some of them quote a rule, which may be as long as the file.
        words = bounded(str(error), MAX_ERROR)
        raise ValueError(f"line {event.line}: {name}: {words}") from None


def _hours_of(
    event: Event, calendar: CourseCalendar, moved: Mapping[str, Sequence[Moment]]
) -> ReservedHours | None:
    """Return an event's hours; None where it has none."""
    start = event.one("DTSTART")
    if start is None:
        raise ValueError("it has no DTSTART")
    if event.value("STATUS").upper() == "CANCELLED" or _is_day(start):
        return None
    if event.value("TRANSP").upper() == "TRANSPARENT":
        return None
    if unread := NOT_READ & event.properties.keys():
        raise ValueError(f"{min(unread)} can't be read: use RRULE and EXDATE, or single events")
    (begin,) = _moments("DTSTART", start, calendar)
    end = _end_of(event, begin, calendar)
    for name, wall in (("begins", begin.wall), ("ends", end)):
        if wall.second:
            raise ValueError(f"it {name} at {wall:%H:%M:%S}, and hours are of whole minutes")
    hours = calendar.hours(f"{begin.wall:{FORMAT}}", f"{end:{FORMAT}}", begin.zone)
    rule = event.value("RRULE")
    if not rule or event.one("RECURRENCE-ID"):
        return hours
    hours = replace(hours, repeat=rule)
    days = {each.in_zone(begin.zone).date() for each in moved.get(event.value("UID"), ())}
    for left_out in event.properties.get("EXDATE", ()):
        for each in _moments("EXDATE", left_out, calendar):
            wall = each.wall if _is_day(left_out) else each.in_zone(begin.zone)
            days.add(wall.date())
    there_are = {each.date() for each in hours.wall_times()[0]}
    if there_are and there_are <= days:
        return None
    exceptions = tuple(sorted(day.isoformat() for day in days & there_are))
    return replace(hours, exceptions=exceptions)


def _end_of(event: Event, begin: Moment, calendar: CourseCalendar) -> datetime:
    """Return an event's end by the clock of its begin."""
    if end := event.one("DTEND"):
        (found,) = _moments("DTEND", end, calendar)
        return found.in_zone(begin.zone)
    length = event.value("DURATION")
    match = DURATION.fullmatch(length)
    if not match or not any(match.groups()):
        raise ValueError(
            f"DURATION: {_shown(length)} isn't understood" if length else "it has no end"
        )
    weeks, days, hours, minutes, seconds = (int(each or 0) for each in match.groups())
    return begin.wall + timedelta(
        weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds
    )


def _is_day(found: Property) -> bool:
    return found.parameters.get("VALUE", "").upper() == "DATE"


def _moments(name: str, found: Property, calendar: CourseCalendar) -> list[Moment]:
    """Return the times of a property, of which EXDATE may have several."""
    zone = _zone_name(found.parameters["TZID"]) if "TZID" in found.parameters else calendar.zone
    moments = []
    for text in found.value.strip().split(","):
        whole = f"{text}T000000" if _is_day(found) else text
        match = TIME.fullmatch(whole)
        try:
            if match is None:
                raise ValueError
            wall = datetime.strptime(match[1] + match[2], "%Y%m%d%H%M%S")
        except ValueError:
            raise ValueError(f"{name}: {_shown(text)} is no time") from None
        moments.append(Moment(wall, "UTC" if match[3] else zone))
    if name != "EXDATE" and len(moments) > 1:
        raise ValueError(f"{name} has several times")
    return moments


def _zone_name(given: str) -> str:
    """Return the time zone that a program means by a name of its own.

    Outlook has Windows' names, others a prefix: /freeassociation.sourceforge.net/Europe/Berlin.
    """
    parts = given.split("/")
    windows: Mapping[str, str] = get_global("windows_zone_mapping")
    for name in (given, windows.get(given, ""), "/".join(parts[-2:]), "/".join(parts[-3:])):
        if zone_of(name):
            return name
    raise ValueError(f"there is no time zone {_shown(given)}")


def _events(content: bytes) -> Iterator[Event]:
    """Yield the events of a calendar."""
    within: list[str] = []
    event: Event | None = None
    number_of_events = 0
    for number, line in _lines(content):
        name = line.partition(":")[0].partition(";")[0].strip().upper()
        value = line.partition(":")[2].strip().upper()
        if not within and (name, value) != ("BEGIN", "VCALENDAR"):
            raise ValueError(f"line {number}: a calendar begins with BEGIN:VCALENDAR")
        if name == "BEGIN":
            within.append(value)
            if within == ["VCALENDAR", "VEVENT"]:
                event = Event(number)
        elif name == "END":
            if within.pop() != value:
                raise ValueError(f"line {number}: {_shown(line)} ends what hasn't begun")
            if event and within == ["VCALENDAR"]:
                number_of_events += 1
                if number_of_events > MAX_EVENTS:
                    raise ValueError(f"line {number}: there are more than {MAX_EVENTS} events")
                yield event
                event = None
        elif event and len(within) == 2 and name in READ | NOT_READ:
            event.properties.setdefault(name, []).append(_property(number, line))
    if within:
        raise ValueError(f"it ends before END:{within[-1][:MAX_SHOWN]}")


def _lines(content: bytes) -> Iterator[tuple[int, str]]:
    """Yield (its number, line) of the lines that aren't empty, unfolded.

    As bytes, since some programs fold in the middle of a letter.
    """
    first, pieces = 1, list[bytes]()
    lines = re.split(rb"\r\n|\n|\r", content.removeprefix(codecs.BOM_UTF8))
    for number, line in enumerate([*lines, b""], 1):
        if line.startswith((b" ", b"\t")) and pieces:
            pieces.append(line[1:])
            continue
        if whole := b"".join(pieces).strip():
            try:
                yield first, whole.decode()
            except UnicodeDecodeError:
                raise ValueError(f"line {first}: it isn't UTF-8") from None
        first, pieces = number, [line]


def _property(number: int, line: str) -> Property:
    match = PROPERTY.fullmatch(line)
    if match is None:
        raise ValueError(f"line {number}: {_shown(line)} isn't understood")
    parameters = {}
    for each in PARAMETER.findall(match[1])[1:]:
        name, _, value = each.partition("=")
        parameters[name.strip().upper()] = value.strip().strip('"')
    return Property(parameters, match[2])


def _plain(text: str) -> str:
    """Return a text as people read it. ref: RFC 5545, 3.3.11"""
    return re.sub(r"\\(.)", lambda found: " " if found[1] in "nN" else found[1], text)


def _shown(value: str) -> str:
    return bounded(repr(value), MAX_SHOWN)
