"""Reserved hours as a calendar that other programs read.

ref: RFC 5545. No library of those that there are anyway writes it.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

from .hours import ReservedHours
from .model import Course
from .week import LAST_YEAR, local_zone_name, zone_of

# The longest line, in bytes. ref: RFC 5545, 3.1
MAX_LINE = 75
# The name of a machine's time zone that has none.
NAMELESS = "local"
# How often it is looked whether the clock has changed since.
STEP_SECONDS = 7 * 24 * 3600
WALL, UTC = "%Y%m%dT%H%M%S", "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True)
class ZoneSpan:
    """A time zone, from when until when the calendar needs it, in seconds since the epoch."""

    name: str
    begin: float
    end: float


def events_of(course: Course, hours: ReservedHours, hub: str) -> list[dict[str, Any]]:
    """Return the events of reserved hours, as JSON values: their `uid` and `lines` of a VEVENT.

    That is one with its rule. Where the clock changes within the hours, so that they aren't all of
    one length, a rule would mean other ones: then it is one for each time.

    Args:
        course: the course.
        hours: hours of it, which can be.
        hub: what no other hub has, so that the same hours of two aren't the same event.
    """
    zone_name = hours.zone or local_zone_name()
    (starts, length), left_out = hours.wall_times(), hours.left_out()
    named = "\0".join([hub, course.key, hours.begin, zone_name, hours.kind])
    uid = f"{hashlib.sha256(named.encode()).hexdigest()[:32]}@gpuspawner"
    tz = f";TZID={zone_name or NAMELESS}"

    def at(wall: datetime) -> str:
        return f"{tz}:{wall.strftime(WALL)}"

    times = list(hours.times())
    if hours.repeat and len({round(end - begin) for begin, end in times}) > 1:
        return [
            {
                "uid": f"{begin:%Y%m%d}-{uid}",
                "lines": [f"DTSTART{at(begin)}", f"DTEND{at(begin + length)}"],
            }
            for begin in starts
            if begin.date() not in left_out
        ]
    lines = [f"DTSTART{at(starts[0])}", f"DTEND{at(starts[0] + length)}"]
    if hours.repeat:
        lines.append(f"RRULE:{_rule_in_utc(hours.bounded_rule(), zone_of(zone_name))}")
    lines += [f"EXDATE{at(begin)}" for begin in starts if begin.date() in left_out]
    return [{"uid": uid, "lines": lines}]


def _rule_in_utc(rule: str, zone: ZoneInfo | None) -> str:
    """Return a rule whose UNTIL is in UTC, as it has to be beside a time with a zone."""

    def in_utc(found: re.Match[str]) -> str:
        wall = datetime.strptime(found[1], WALL).replace(tzinfo=zone)
        return f"UNTIL={datetime.fromtimestamp(wall.timestamp(), timezone.utc).strftime(UTC)}"

    return re.sub(r"UNTIL=([0-9T]+)", in_utc, rule)


def spans(hours: Iterable[tuple[Course, ReservedHours]]) -> list[ZoneSpan]:
    """Return the time zones of reserved hours."""
    found: dict[str, tuple[float, float]] = {}
    for _, each in hours:
        name = each.zone or local_zone_name()
        times = list(each.times())
        begin, end = found.get(name, (times[0][0], times[-1][1]))
        found[name] = min(begin, times[0][0]), max(end, times[-1][1])
    return [ZoneSpan(name, *span) for name, span in found.items()]


def zone_lines(span: ZoneSpan) -> list[str]:
    """Return a VTIMEZONE, in which each change of the clock in its time is named.

    Rules for ever would be shorter, and are more than is known of a zone's future.
    """
    zone = zone_of(span.name)

    def wall(seconds: float) -> datetime:
        found = datetime.fromtimestamp(seconds, zone)
        return found if zone else found.astimezone()

    def part(seconds: float, before: timedelta) -> list[str]:
        now = wall(seconds)
        is_summer = bool(now.dst()) if zone else time.localtime(seconds).tm_isdst > 0
        kind = "DAYLIGHT" if is_summer else "STANDARD"
        shown = datetime.fromtimestamp(seconds, timezone.utc) + before
        return [
            f"BEGIN:{kind}",
            f"DTSTART:{shown.strftime(WALL)}",
            f"TZOFFSETFROM:{_offset(before)}",
            f"TZOFFSETTO:{_offset(now.utcoffset() or timedelta())}",
            f"END:{kind}",
        ]

    def offset(seconds: float) -> timedelta:
        return wall(seconds).utcoffset() or timedelta()

    begin = span.begin // 1 - STEP_SECONDS
    last = min(span.end, datetime(LAST_YEAR + 1, 1, 1, tzinfo=timezone.utc).timestamp())
    lines = ["BEGIN:VTIMEZONE", f"TZID:{span.name or NAMELESS}", *part(begin, offset(begin))]
    while begin < last:
        end = begin + STEP_SECONDS
        if offset(end) != offset(begin):
            lines += part(_change(offset, begin, end), offset(begin))
        begin = end
    return [*lines, "END:VTIMEZONE"]


def _change(offset: Callable[[float], timedelta], begin: float, end: float) -> float:
    """Return the first second of another distance from UTC than at the begin."""
    low, high = int(begin), int(end)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if offset(middle) == offset(begin) else (low, middle)
    return high


def _offset(of: timedelta) -> str:
    seconds = round(of.total_seconds())
    sign, seconds = "-" if seconds < 0 else "+", abs(seconds)
    text = f"{sign}{seconds // 3600:02}{seconds % 3600 // 60:02}"
    return f"{text}{seconds % 60:02}" if seconds % 60 else text


def calendar(
    name: str, zones: Iterable[Iterable[str]], events: Iterable[Mapping[str, Any]], now: float
) -> str:
    """Return a calendar's text.

    Args:
        name: what programs call it.
        zones: the lines of each VTIMEZONE.
        events: of each its `uid`, the `lines` of its time, its `summary` and its `category`.
        now: when it was made, in seconds since the epoch.
    """

    def lines() -> Iterator[str]:
        yield from ("BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:-//gpuspawner//reserved hours//EN")
        yield f"X-WR-CALNAME:{_text(name)}"
        for zone in zones:
            yield from zone
        made = datetime.fromtimestamp(now, timezone.utc).strftime(UTC)
        for event in events:
            yield from ("BEGIN:VEVENT", f"UID:{event['uid']}", f"DTSTAMP:{made}", *event["lines"])
            yield f"SUMMARY:{_text(event['summary'])}"
            yield f"CATEGORIES:{_text(event['category'])}"
            yield "END:VEVENT"
        yield "END:VCALENDAR"

    return "".join(f"{folded(line)}\r\n" for line in lines())


def _text(words: str) -> str:
    """Return a text as a value: what has a meaning there is escaped. ref: RFC 5545, 3.3.11"""
    escaped = re.sub(r"([\\;,])", r"\\\1", str(words))
    lines = re.sub(r"\r\n|[\r\n\x0b\x0c\x85\u2028\u2029]", r"\\n", escaped)
    return re.sub(r"[\x00-\x08\x0e-\x1f\x7f]", "", lines)


def folded(line: str) -> str:
    """Return a line in pieces of at most 75 bytes, no letter of which is torn apart."""
    pieces, size = [""], 0
    for letter in line:
        length = len(letter.encode())
        if size + length > MAX_LINE:
            pieces.append(" ")
            size = 1
        pieces[-1] += letter
        size += length
    return "\r\n".join(pieces)
