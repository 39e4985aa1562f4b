"""Reserved hours as they are declared: once or repeated, by the clock on the wall.

ref: RFC 5545, 3.3.10 for the rules, of which those for lessons are taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dateutil.rrule import rrulestr
from pydantic import ConfigDict, Field

from ..gpus.model import WHOLE
from ..gpus.unit_names import MAX_SLOTS
from ..i18n.lazy_text import lazy_gettext
from ..untrusted import bounded

# The most times that a rule may mean, and the longest hours.
MAX_TIMES = 1000
MAX_HOURS = 7 * 24
# All that hours mean lies in these years.
FIRST_YEAR, LAST_YEAR = 2000, 2099
WEEK = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
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
# How much of a wrong value a sentence quotes, in characters.
MAX_SHOWN = 80
FORMAT = "%Y-%m-%dT%H:%M"


class HoursError(ValueError):
    """Hours that can't be. `str()` is "key: sentence", for who writes a configuration.

    Args:
        key: the field of `ReservedHours` that is wrong.
        sentence: what is wrong, for everybody.
    """

    def __init__(self, key: str, sentence: str) -> None:
        self.key = key
        self.sentence = sentence
        super().__init__(f"{key}: {sentence}")


Units = Annotated[int, Field(ge=1, le=100_000)]
Kind = Annotated[str, Field(min_length=1, max_length=50)]
Time = Annotated[str, Field(max_length=40)]
Name = Annotated[str, Field(max_length=255)]
Minutes = Annotated[float, Field(ge=0, le=7 * 24 * 60)]
# What else they can't be, `check_slots` says.
Slots = Annotated[int, Field(ge=0, le=MAX_SLOTS)]


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
        slots: into how many slots each GPU is divided for the members' servers; 0: they get whole
            units.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    begin: Time
    end: Time
    gpus: Units
    repeat: Annotated[str, Field(max_length=200)] = ""
    exceptions: Annotated[tuple[Time, ...], Field(max_length=MAX_TIMES)] = ()
    kind: Kind = "gpu"
    model: Name = ""
    zone: Name = ""
    unclaimed_minutes: Minutes = 15
    slots: Slots = 0

    @property
    def seats(self) -> int:
        """How many servers have a place in them, each with one slot; 0: they get whole units."""
        return self.gpus * self.slots

    def wall_times(self) -> tuple[list[datetime], timedelta]:
        """Return each begin by the clock on the wall, exceptions too, and how long they are.

        Raises:
            ValueError: it can't be; the message says what and where.
        """
        begin, zone = _moment("begin", self.begin), _zone(self.zone)
        length = _end(begin, self.end) - begin
        if not timedelta() < length <= timedelta(hours=MAX_HOURS):
            raise HoursError(
                "end",
                lazy_gettext(
                    "%(end)s has to come after begin, %(begin)s, within %(most)s hours",
                    end=self.end,
                    begin=self.begin,
                    most=MAX_HOURS,
                ),
            )
        if not self.repeat:
            return [begin], length
        starts: list[datetime] = []
        for each in rrulestr(_rule(self.repeat, begin, zone), dtstart=begin):
            if len(starts) == MAX_TIMES:
                words = lazy_gettext(
                    "%(rule)s means more than %(most)s times", rule=self.repeat, most=MAX_TIMES
                )
                raise HoursError("repeat", words)
            if each.year > LAST_YEAR or (each + length).year > LAST_YEAR:
                raise _too_far(self.repeat)
            starts.append(each)
        return starts, length

    def declared(self) -> tuple[float, float]:
        """Return `begin` and `end` alone, in seconds since the epoch, whatever the rule says.

        Raises:
            ValueError: they can't be; the message says what and where.
        """
        begin, zone = _moment("begin", self.begin), _zone(self.zone)
        end = _end(begin, self.end)
        return begin.replace(tzinfo=zone).timestamp(), end.replace(tzinfo=zone).timestamp()

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
        check_slots(self.slots, self.kind)
        (starts, length), left_out = self.wall_times(), self.left_out()
        zone = _zone(self.zone)
        if unknown := left_out - {each.date() for each in starts}:
            words = lazy_gettext("on %(day)s there are no such hours", day=str(min(unknown)))
            raise HoursError("exceptions", words)
        starts = [each for each in starts if each.date() not in left_out]
        if not starts:
            rule = self.repeat or "once"
            raise HoursError("repeat", lazy_gettext("%(rule)s means no time at all", rule=rule))
        last = float("-inf")
        for each in starts:
            first, until = _epoch("begin", each, zone), _epoch("end", each + length, zone)
            if first < last:
                words = lazy_gettext(
                    "the hours of %(day)s begin before the last end", day=f"{each:%Y-%m-%d}"
                )
                raise HoursError("repeat", words)
            if first >= until:
                words = lazy_gettext(
                    "on %(day)s the clock changes, and no time is left", day=f"{each:%Y-%m-%d}"
                )
                raise HoursError("end", words)
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


def check_slots(slots: int, kind: str) -> None:
    """Raise HoursError unless units of a kind can be divided into so many slots; 0: they aren't."""
    if slots == 1:
        words = lazy_gettext(
            "one slot of a GPU is the whole GPU: from 2 to %(most)s, or 0 for whole GPUs",
            most=MAX_SLOTS,
        )
        raise HoursError("slots", words)
    if slots and kind != WHOLE:
        words = lazy_gettext(
            "only whole GPUs are divided into slots, not %(kind)s", kind=shown(kind)
        )
        raise HoursError("slots", words)


def shown(value: Any) -> str:
    """Return of a value that is wrong as much as a sentence quotes."""
    return bounded(repr(value), MAX_SHOWN)


def _moment(name: str, text: str) -> datetime:
    try:
        found = datetime.strptime(text, FORMAT)
    except ValueError:
        words = lazy_gettext("a time is written as 2026-10-05T10:00, got %(got)s", got=shown(text))
        raise HoursError(name, words) from None
    if not FIRST_YEAR <= found.year <= LAST_YEAR:
        raise HoursError(name, lazy_gettext("%(time)s isn't in this century", time=text))
    return found


def _end(begin: datetime, text: str) -> datetime:
    if "T" in text:
        return _moment("end", text)
    if re.fullmatch(r"[0-9]{2}:[0-9]{2}", text):
        return _moment("end", f"{begin:%Y-%m-%d}T{text}")
    words = lazy_gettext(
        "a time is written as 12:00 or 2026-10-05T12:00, got %(got)s", got=shown(text)
    )
    raise HoursError("end", words)


def _day(text: str) -> date:
    try:
        return datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError:
        words = lazy_gettext("a day is written as 2026-12-21, got %(got)s", got=shown(text))
        raise HoursError("exceptions", words) from None


def _zone(name: str) -> ZoneInfo | None:
    if not name:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        words = lazy_gettext("there is no time zone %(name)s", name=shown(name))
        raise HoursError("zone", words) from None


def _rule(text: str, begin: datetime, zone: ZoneInfo | None) -> str:
    """Return a rule that has been looked at, and has an end."""
    parts: dict[str, str] = {}
    for part in text.upper().removeprefix("RRULE:").split(";"):
        name, _, value = part.partition("=")
        if name not in PARTS or not re.fullmatch(PARTS[name], value) or name in parts:
            raise HoursError(
                "repeat",
                lazy_gettext(
                    "%(part)s isn't understood; a rule is like FREQ=WEEKLY;UNTIL=20270208, of "
                    "%(parts)s",
                    part=shown(part),
                    parts=", ".join(PARTS),
                ),
            )
        parts[name] = value
    if "FREQ" not in parts:
        raise HoursError(
            "repeat", lazy_gettext("%(rule)s lacks FREQ, as FREQ=WEEKLY", rule=shown(text))
        )
    if ("COUNT" in parts) == ("UNTIL" in parts):
        words = lazy_gettext("%(rule)s needs an end, UNTIL or COUNT, and not both", rule=text)
        raise HoursError("repeat", words)
    if until := parts.get("UNTIL"):
        parts["UNTIL"] = _until(until, begin, zone)
    if _never(parts, begin):
        # It would be walked through to the year 9999.
        raise HoursError("repeat", lazy_gettext("%(rule)s means no time at all", rule=text))
    return ";".join(f"{name}={value}" for name, value in parts.items())


def _never(parts: Mapping[str, str], begin: datetime) -> bool:
    """Return whether a rule is of whole weeks of days, on other days of the week than the begin."""
    if parts["FREQ"] != "DAILY" or int(parts.get("INTERVAL", 1)) % 7 or "BYDAY" not in parts:
        return False
    return WEEK[begin.weekday()] not in {each[-2:] for each in parts["BYDAY"].split(",")}


def _too_far(rule: str) -> HoursError:
    words = lazy_gettext(
        "the last time of %(rule)s has to be in the years %(first)s to %(last)s",
        rule=rule,
        first=FIRST_YEAR,
        last=LAST_YEAR,
    )
    return HoursError("repeat", words)


def _until(text: str, begin: datetime, zone: ZoneInfo | None) -> str:
    """Return the end of a rule by the clock on the wall; a day is meant whole."""
    whole = text if "T" in text else f"{text}T235959"
    try:
        found = datetime.strptime(whole.removesuffix("Z"), "%Y%m%dT%H%M%S")
    except ValueError:
        words = lazy_gettext("UNTIL=%(until)s is no time", until=text)
        raise HoursError("repeat", words) from None
    if text.endswith("Z"):
        try:
            found = found.replace(tzinfo=timezone.utc).astimezone(zone).replace(tzinfo=None)
        except (ValueError, OverflowError, OSError):
            raise _too_far(f"UNTIL={text}") from None
    if found.year > LAST_YEAR:
        raise _too_far(f"UNTIL={text}")
    if found < begin:
        words = lazy_gettext(
            "UNTIL=%(until)s is before the begin, %(begin)s", until=text, begin=f"{begin:{FORMAT}}"
        )
        raise HoursError("repeat", words)
    return f"{found:%Y%m%dT%H%M%S}"


def _epoch(name: str, wall: datetime, zone: ZoneInfo | None) -> float:
    """Return the seconds since the epoch at which a clock on the wall shows a time.

    Raises:
        ValueError: it never does, as it is set forward then.
    """
    seconds = wall.replace(tzinfo=zone).timestamp()
    if datetime.fromtimestamp(seconds, zone).replace(tzinfo=None) != wall:
        words = lazy_gettext(
            "on %(day)s there is no %(time)s: the clock changes",
            day=f"{wall:%Y-%m-%d}",
            time=f"{wall:%H:%M}",
        )
        raise HoursError(name, words)
    return seconds
