"""Numbers and times as people say them."""

from __future__ import annotations

from datetime import datetime, timezone

from markupsafe import Markup

from .lazy_text import lazy_gettext, lazy_ngettext, together


def clock_time(seconds: float) -> str:
    """Return seconds since the epoch as the hub's clock on the wall shows them: "15:40"."""
    then = datetime.fromtimestamp(seconds).astimezone()
    now = datetime.now().astimezone()
    return f"{then:%H:%M}" if then.date() == now.date() else f"{then:%Y-%m-%d %H:%M}"


def moment(seconds: float) -> Markup:
    """Return a time, to the minute, as HTML by the hub's clock; scripts make it the reader's."""
    whole = datetime.fromtimestamp(seconds // 60 * 60, timezone.utc)
    return Markup('<time datetime="{}">{}</time>').format(whole.isoformat(), clock_time(seconds))


def hours_words(seconds: float) -> str:
    """Return a duration: "4 hours", "1 hour 30 minutes", "20 minutes", "30 seconds"."""
    if seconds < 60:
        return lazy_ngettext("%(num)s second", "%(num)s seconds", max(0, round(seconds)))
    hours, minutes = divmod(round(seconds / 60), 60)
    return together(
        lazy_ngettext("%(num)s hour", "%(num)s hours", hours) if hours else "",
        lazy_ngettext("%(num)s minute", "%(num)s minutes", minutes) if minutes else "",
    )


def ordinal(number: int) -> str:
    """Return a place: "1st", "2nd", "11th"."""
    last = 0 if number % 100 in (11, 12, 13) else number % 10
    if last == 1:
        return lazy_gettext("%(number)sst", number=number)
    if last == 2:
        return lazy_gettext("%(number)snd", number=number)
    if last == 3:
        return lazy_gettext("%(number)srd", number=number)
    return lazy_gettext("%(number)sth", number=number)
