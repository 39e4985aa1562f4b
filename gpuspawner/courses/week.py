"""A week as people look at it: seven days from a date on, by the hub's clock."""

from __future__ import annotations

import os
import re
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ..errors import Refused
from ..i18n.lazy_text import lazy_gettext

DAYS = 7
# Years of which it can be asked.
FIRST_YEAR, LAST_YEAR = 2000, 2099


def local_zone_name() -> str:
    """Return the name of the machine's time zone, "Europe/Berlin"; "" if it has none.

    ref: tzset(3) for TZ, localtime(5) for the link.
    """
    named = os.environ.get("TZ")
    if named is None:
        named = os.path.realpath("/etc/localtime")
    name = named.lstrip(":").rpartition("zoneinfo/")[2] or "UTC"
    return name if zone_of(name) else ""


def zone_of(name: str) -> ZoneInfo | None:
    """Return a time zone; None, which is the machine's, for a name of none."""
    try:
        return ZoneInfo(name) if name else None
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def parse_day(text: str, zone: ZoneInfo | None, now: float) -> date:
    """Return a date, written as 2026-11-30; "": today.

    Args:
        text: what somebody sent.
        zone: whose today it is; None: the machine's.
        now: in seconds since the epoch.

    Raises:
        Refused: it is none.
    """
    if not text:
        return datetime.fromtimestamp(now, zone).date()
    try:
        if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text, re.ASCII):
            raise ValueError
        found = date.fromisoformat(text)
        if not FIRST_YEAR <= found.year <= LAST_YEAR:
            raise ValueError
    except ValueError:
        words = lazy_gettext(
            "%(value)s is no date from %(first)s to %(last)s such as 2026-11-01.",
            value=repr(text[:32]),
            first=FIRST_YEAR,
            last=LAST_YEAR,
        )
        raise Refused(words, key="from") from None
    return found


def midnights(first: date, zone: ZoneInfo | None) -> tuple[float, ...]:
    """Return when each of seven days begins and the last one ends, in seconds since the epoch."""
    days = (first + timedelta(days=number) for number in range(DAYS + 1))
    return tuple(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp() for day in days)
