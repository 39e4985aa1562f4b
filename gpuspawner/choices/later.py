"""The time before which a server isn't to start: "08:00", or with a date and an offset."""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta

from ..errors import Refused
from ..i18n.lazy_text import lazy_gettext
from ..i18n.phrases import clock_time, hours_words
from . import refusals

KEY = "not_before"
NAME = lazy_gettext("The earliest start")
EXPECTED = lazy_gettext("a time as 08:00, or with a date as 2026-12-24T08:00")
# Whoever picks this minute is late by no more than that.
PAST_SECONDS = 60.0
_TIME = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])")
_MOMENT = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d{3}(\d{3})?)?)?(Z|[+-]\d\d:\d\d)?", re.ASCII
)


def not_before(text: str | None, most: float) -> float:
    """Return when a server is to start at the earliest, in seconds since the epoch; 0: at once.

    Args:
        text: what was sent. Without an offset it is in the hub's time zone; a time without a date
            is the next one.
        most: how far ahead it may be, in seconds; 0: it can't be asked for.

    Raises:
        Refused: it isn't a time, is past, or is too far ahead.
    """
    if not text:
        return 0.0
    if not most:
        words = lazy_gettext("A later start can't be asked for here: leave it out.")
        raise Refused(words, status=403, key=KEY)
    at, now = moment_of(text), time.time()
    if at is None:
        raise refusals.malformed(KEY, text, NAME, EXPECTED)
    if at < now - PAST_SECONDS:
        raise Refused(
            lazy_gettext(
                "You asked for no start before %(time)s, and that is past.", time=clock_time(at)
            ),
            key=KEY,
        )
    if at > now + most:
        raise Refused(
            lazy_gettext(
                "You asked for no start before %(time)s, and it can be at most %(most)s ahead.",
                time=clock_time(at),
                most=hours_words(most),
            ),
            status=403,
            key=KEY,
        )
    return at if at > now else 0.0


def moment_of(text: str) -> float | None:
    """Return the time that a text means, in seconds since the epoch; None: it means none."""
    try:
        if found := _TIME.fullmatch(text):
            now = datetime.fromtimestamp(time.time())
            then = now.replace(hour=int(found[1]), minute=int(found[2]), second=0, microsecond=0)
            # By the clock on the wall: a day on which it is changed has 23 or 25 hours.
            return (then if then > now else then + timedelta(days=1)).timestamp()
        if _MOMENT.fullmatch(text):
            at = datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
            datetime.fromtimestamp(at)  # its own offset may lead out of the calendar
            return at
    except (OSError, OverflowError, ValueError):  # no such day, or none that a clock can have
        pass
    return None
