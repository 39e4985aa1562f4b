"""Numbers and times as people say them."""

from __future__ import annotations

import time
from datetime import datetime, timezone

from markupsafe import Markup

from ..gpus.allocation import gpus_words
from ..scheduling.plan import Turn
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


def turn_words(turn: Turn) -> str:
    """Say where somebody stands in the queue, what they wait for, and until about when."""
    wanted = gpus_words(turn.waiting.request.gpus, turn.waiting.request.model)
    place = (
        lazy_gettext("You are next in line for %(gpus)s.", gpus=wanted)
        if turn.place == 1
        else lazy_gettext(
            "You are %(nth)s in line for %(gpus)s.", nth=ordinal(turn.place), gpus=wanted
        )
    )
    limit = ""
    if turn.because.startswith("group:"):
        group = turn.because.removeprefix("group:")
        limit = lazy_gettext(
            "Your group %(group)s has as many GPUs as it may hold at a time.", group=group
        )
    if turn.because == "never":
        never = (
            lazy_gettext("No machine here has as many that may be handed out at the moment.")
            if turn.several
            else lazy_gettext("This machine has too few that may be handed out at the moment.")
        )
        return together(place, limit, never)
    return together(place, limit, _expected(turn.start))


def _expected(start: float | None) -> str:
    if start is None:
        return lazy_gettext(
            "When they will be free isn't known: servers that have them have no end."
        )
    seconds = start - time.time()
    if seconds < 60:
        return lazy_gettext("Expected any moment.")
    return lazy_gettext(
        "Expected about %(time)s, in %(duration)s at the latest.",
        time=clock_time(start),
        duration=hours_words(seconds),
    )
