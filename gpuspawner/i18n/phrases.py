"""Formats of times, durations and ordinal numbers, the same on all pages and in all messages."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone, tzinfo
from fractions import Fraction
from math import inf
from typing import Any, Literal

from babel import Locale
from babel.dates import format_skeleton, format_timedelta
from babel.lists import format_list
from babel.units import format_unit
from markupsafe import Markup

from .languages import Language
from .lazy_text import FORMATS, N_, Quantity, lazy_gettext

# Unicode's skeletons of time formats; the scripts of the pages use the same ones.
_CLOCK, _PRECISE_CLOCK, _DAY, _DAY_OF_ANOTHER_YEAR = "Hm", "Hms", "MMMEd", "yMMMEd"


def clock_time(seconds: float) -> str:
    """Return a time in the hub's time zone: "15:40", or "Sun, Nov 29, 15:40" if it isn't today.

    Args:
        seconds: since the epoch.
    """
    return Quantity("time", seconds)


def hours_words(seconds: float) -> str:
    """Return a duration: "4 hours", "1 hour, 30 minutes", "20 minutes", "30 seconds"."""
    return Quantity("duration", seconds)


def memory_words(size: float) -> str:
    """Return an amount of memory: "16 GB", "1.5 GB", "400 MB"; size: in bytes."""
    return Quantity("memory", size)


def share_words(share: Fraction | int) -> str:
    """Return a part of GPUs: "2", "1/8", "1 1/8"."""
    whole, rest = divmod(share, 1)
    return " ".join(str(each) for each in (whole, rest) if each) or "0"


def moment(seconds: float, language: Language, *, precise: bool = False) -> Markup:
    """Return a time as HTML in the hub's time zone; scripts convert it to the browser's.

    Args:
        seconds: since the epoch.
        language: the reader's.
        precise: whether to show seconds.
    """
    whole = seconds // 1 if precise else seconds // 60 * 60
    return Markup('<time datetime="{}"{}>{}</time>').format(
        datetime.fromtimestamp(whole, timezone.utc).isoformat(),
        Markup(' data-form="second"') if precise else "",
        _format_time(seconds, language.locale, _PRECISE_CLOCK if precise else _CLOCK),
    )


def wall_time(seconds: float, language: Language, zone: tzinfo | None) -> str:
    """Return a day and a time by the clock of a zone; None: the machine's."""
    then, now = (_wall(each, zone) for each in (seconds, time.time()))
    text = format_skeleton(_CLOCK, then, locale=language.locale)
    return _with_day(text, then, now, language.locale)


def wall_moment(seconds: float, language: Language, zone: tzinfo | None) -> Markup:
    """Return the same as HTML, whose day isn't broken across lines."""
    then, now = (_wall(each, zone) for each in (seconds, time.time()))
    text = format_skeleton(_CLOCK, then, locale=language.locale)
    pattern, day = _pattern_and_day(then, now, language.locale)
    unbroken = Markup('<span class="gs-day">{}</span>').format(day)
    return Markup(pattern).format(text, unbroken)  # noqa: S704 # Babel's own


def wall_day(seconds: float, language: Language, zone: tzinfo | None) -> str:
    """Return the day that it is at a time in a zone; None: the machine's."""
    return str(format_skeleton(_DAY, _wall(seconds, zone), locale=language.locale))


def _wall(seconds: float, zone: tzinfo | None) -> datetime:
    return datetime.fromtimestamp(seconds, zone).replace(tzinfo=None)


def ordinal(number: int) -> str:
    """Return an ordinal number: "1st", "2nd", "11th"."""
    return lazy_gettext(_ORDINALS[Locale("en").ordinal_form(number)], number=number)


_ORDINALS = {
    "one": N_("%(number)sst"),
    "two": N_("%(number)snd"),
    "few": N_("%(number)srd"),
    "other": N_("%(number)sth"),
}


def _format_time(seconds: float, locale: Any, clock: str = _CLOCK) -> str:
    then, now = datetime.fromtimestamp(seconds), datetime.fromtimestamp(time.time())
    text = format_skeleton(clock, then, locale=locale)
    return text if then.date() == now.date() else _with_day(text, then, now, locale)


def _with_day(text: str, then: datetime, now: datetime, locale: Any) -> str:
    pattern, day = _pattern_and_day(then, now, locale)
    return pattern.format(text, day)


def _pattern_and_day(then: datetime, now: datetime, locale: Any) -> tuple[str, str]:
    """Return the pattern "{1}, {0}" of a day and a time, and the day."""
    skeleton = _DAY if then.year == now.year else _DAY_OF_ANOTHER_YEAR
    day = format_skeleton(skeleton, then, locale=locale)
    # Letters of a pattern's own are in quotes.
    together: str = Locale.parse(locale).datetime_formats["medium"]
    return together.replace("'", ""), day


def _format_duration(seconds: float, locale: Any) -> str:
    if round(seconds) < 60:
        return _format_one(max(0, round(seconds)), "second", locale)
    hours, minutes = divmod(round(seconds / 60), 60)
    parts = [_format_one(hours, "hour", locale)] if hours else []
    parts += [_format_one(minutes, "minute", locale)] if minutes else []
    return format_list(parts, style="unit", locale=locale)


def _format_one(number: int, unit: Literal["hour", "minute", "second"], locale: Any) -> str:
    # Without an infinite threshold, long durations would be rounded to days or weeks.
    delta = timedelta(**{f"{unit}s": number})
    return format_timedelta(delta, granularity=unit, threshold=inf, locale=locale)


def _format_memory(size: float, locale: Any) -> str:
    # As people say it: what are GiB, strictly.
    gigabytes = round(size / 2**30, 1)
    if gigabytes < 1:
        return format_unit(round(size / 2**20), "digital-megabyte", "short", locale=locale)
    return format_unit(gigabytes, "digital-gigabyte", "short", locale=locale)


FORMATS.update(time=_format_time, duration=_format_duration, memory=_format_memory)
