"""Reserved hours as they are declared: once or repeated, by the clock on the wall.

ref: RFC 5545, 3.3.10 for the rules, of which those for lessons are taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import islice
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dateutil.rrule import rrulestr
from pydantic import ConfigDict, Field

# The most times that a rule may mean, and the longest hours.
MAX_TIMES = 1000
MAX_HOURS = 7 * 24
DAYS = r"([+-]?[1-5])?(MO|TU|WE|TH|FR|SA|SU)"
# Part of a rule -> what it may be. Others aren't for lessons, and some can't be computed in a
# bounded time.
PARTS = {
    "FREQ": r"DAILY|WEEKLY|MONTHLY",
    "INTERVAL": r"[1-9][0-9]?",
    "COUNT": r"[1-9][0-9]{0,2}",
    "UNTIL": r"[0-9]{8}(T[0-9]{6}Z?)?",
    "BYDAY": rf"{DAYS}(,{DAYS})*",
    "WKST": r"MO|TU|WE|TH|FR|SA|SU",
}
FORMAT = "%Y-%m-%dT%H:%M"

Units = Annotated[int, Field(ge=1, le=100_000)]
Kind = Annotated[str, Field(min_length=1, max_length=50)]
Minutes = Annotated[float, Field(ge=0, le=7 * 24 * 60)]


@dataclass(frozen=True)
class ReservedHours:
    """Hours in which units are reserved for a course.

    Args:
        begin: the first begin, "2026-10-05T10:00".
        end: its end, as "12:00" of the same day, or with a date.
        gpus: how many units.
        repeat: a rule of RFC 5545, "FREQ=WEEKLY;UNTIL=20270208"; "": once.
        exceptions: the days on which it isn't, "2026-12-21".
        kind: the kind of the units (`GPU.kind`).
        model: their GPU model; "": any.
        zone: the time zone, "Europe/Berlin"; "": the machine's.
        unclaimed_minutes: how long after the begin what no member has is free for all.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    begin: str
    end: str
    gpus: Units
    repeat: str = ""
    exceptions: tuple[str, ...] = ()
    kind: Kind = "gpu"
    model: str = ""
    zone: str = ""
    unclaimed_minutes: Minutes = 15

    def wall_times(self) -> tuple[list[datetime], timedelta]:
        """Return each begin by the clock on the wall, exceptions too, and how long they are.

        Raises:
            ValueError: it can't be; the message says what and where.
        """
        begin, zone = _moment("begin", self.begin), _zone(self.zone)
        length = _end(begin, self.end) - begin
        if not timedelta() < length <= timedelta(hours=MAX_HOURS):
            raise ValueError(
                f"end: {self.end} has to come after begin, {self.begin}, within {MAX_HOURS} hours"
            )
        if not self.repeat:
            return [begin], length
        rule = rrulestr(_rule(self.repeat, begin, zone), dtstart=begin)
        starts = list(islice(rule, MAX_TIMES + 1))
        if len(starts) > MAX_TIMES:
            raise ValueError(f"repeat: {self.repeat} means more than {MAX_TIMES} times")
        return starts, length

    def left_out(self) -> set[date]:
        """Return the days of the exceptions; raises ValueError, which says what is none."""
        return {_day(each) for each in self.exceptions}

    def bounded_rule(self) -> str:
        """Return the rule as it is understood, its UNTIL by the clock on the wall; "": once."""
        if not self.repeat:
            return ""
        return _rule(self.repeat, _moment("begin", self.begin), _zone(self.zone))

    def times(self) -> Iterator[tuple[float, float]]:
        """Yield (begin, end) of each time, in seconds since the epoch.

        Raises:
            ValueError: it can't be; the message says what and where.
        """
        (starts, length), left_out = self.wall_times(), self.left_out()
        zone = _zone(self.zone)
        if unknown := left_out - {each.date() for each in starts}:
            raise ValueError(f"exceptions: on {min(unknown)} there are no such hours")
        starts = [each for each in starts if each.date() not in left_out]
        if not starts:
            raise ValueError(f"repeat: {self.repeat or 'once'} means no time at all")
        last = float("-inf")
        for each in starts:
            first, until = _epoch("begin", each, zone), _epoch("end", each + length, zone)
            if first < last:
                raise ValueError(f"repeat: the hours of {each:%Y-%m-%d} begin before the last end")
            if first >= until:
                raise ValueError(f"end: on {each:%Y-%m-%d} the clock changes, and no time is left")
            last = until
            yield first, until


def overlap(
    times: Sequence[tuple[ReservedHours, Sequence[tuple[float, float]]]],
) -> tuple[int, int] | None:
    """Return which two hours of the same kind of units overlap, by their numbers; None: no two.

    Args:
        times: hours, and when they are: `ReservedHours.times`, which don't overlap each other.
    """
    spans = sorted(
        (begin, end, number, hours.kind)
        for number, (hours, each) in enumerate(times)
        for begin, end in each
    )
    # Kind -> until when the hours last, and which they are.
    last: dict[str, tuple[float, int]] = {}
    for begin, end, number, kind in spans:
        until, other = last.get(kind, (begin, number))
        if begin < until:
            return min(other, number), max(other, number)
        last[kind] = end, number
    return None


def _moment(name: str, text: str) -> datetime:
    try:
        found = datetime.strptime(text, FORMAT)
    except ValueError:
        raise ValueError(f"{name}: a time is written as 2026-10-05T10:00, got {text!r}") from None
    if not 2000 <= found.year < 2100:
        raise ValueError(f"{name}: {text} isn't in this century")
    return found


def _end(begin: datetime, text: str) -> datetime:
    if "T" in text:
        return _moment("end", text)
    if re.fullmatch(r"[0-9]{2}:[0-9]{2}", text):
        return _moment("end", f"{begin:%Y-%m-%d}T{text}")
    raise ValueError(f"end: a time is written as 12:00 or 2026-10-05T12:00, got {text!r}")


def _day(text: str) -> date:
    try:
        return datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError:
        raise ValueError(f"exceptions: a day is written as 2026-12-21, got {text!r}") from None


def _zone(name: str) -> ZoneInfo | None:
    if not name:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"zone: there is no time zone {name!r}") from None


def _rule(text: str, begin: datetime, zone: ZoneInfo | None) -> str:
    """Return a rule that has been looked at, and has an end."""
    parts: dict[str, str] = {}
    for part in text.upper().removeprefix("RRULE:").split(";"):
        name, _, value = part.partition("=")
        if name not in PARTS or not re.fullmatch(PARTS[name], value) or name in parts:
            raise ValueError(
                f"repeat: {part!r} isn't understood; a rule is like FREQ=WEEKLY;UNTIL=20270208, of "
                f"{', '.join(PARTS)}"
            )
        parts[name] = value
    if "FREQ" not in parts:
        raise ValueError(f"repeat: {text} lacks FREQ, as FREQ=WEEKLY")
    if ("COUNT" in parts) == ("UNTIL" in parts):
        raise ValueError(f"repeat: {text} needs an end, UNTIL or COUNT, and not both")
    if until := parts.get("UNTIL"):
        parts["UNTIL"] = _until(until, begin, zone)
    return ";".join(f"{name}={value}" for name, value in parts.items())


def _until(text: str, begin: datetime, zone: ZoneInfo | None) -> str:
    """Return the end of a rule by the clock on the wall; a day is meant whole."""
    try:
        if text.endswith("Z"):
            found = datetime.strptime(text, "%Y%m%dT%H%M%SZ")
            epoch = (found - datetime(1970, 1, 1)).total_seconds()
            found = datetime.fromtimestamp(epoch, zone).replace(tzinfo=None)
        else:
            whole = text if "T" in text else f"{text}T235959"
            found = datetime.strptime(whole, "%Y%m%dT%H%M%S")
    except ValueError:
        raise ValueError(f"repeat: UNTIL={text} is no time") from None
    if found < begin:
        raise ValueError(f"repeat: UNTIL={text} is before the begin, {begin:{FORMAT}}")
    return f"{found:%Y%m%dT%H%M%S}"


def _epoch(name: str, wall: datetime, zone: ZoneInfo | None) -> float:
    """Return the seconds since the epoch at which a clock on the wall shows a time.

    Raises:
        ValueError: it never does, as it is set forward then.
    """
    seconds = wall.replace(tzinfo=zone).timestamp()
    if datetime.fromtimestamp(seconds, zone).replace(tzinfo=None) != wall:
        raise ValueError(f"{name}: on {wall:%Y-%m-%d} there is no {wall:%H:%M}: the clock changes")
    return seconds
