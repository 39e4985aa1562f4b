"""Numbers and times as people say them."""

from __future__ import annotations

import time
from datetime import datetime, timezone

from markupsafe import Markup

from .order import Turn


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
        return _number(max(0, round(seconds)), "second")
    minutes = round(seconds / 60)
    parts = [
        _number(count, unit)
        for count, unit in ((minutes // 60, "hour"), (minutes % 60, "minute"))
        if count
    ]
    return " ".join(parts)


def ordinal(number: int) -> str:
    """Return a place: "1st", "2nd", "11th"."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10)
    return f"{number}{ending or 'th'}"


def turn_words(turn: Turn) -> str:
    """Say where somebody stands in the queue, what they wait for, and until about when."""
    gpus = turn.waiting.request.gpus
    model = f"{turn.waiting.request.model} " if turn.waiting.request.model else ""
    place = "next" if turn.place == 1 else ordinal(turn.place)
    sentences = [f"You are {place} in line for {gpus} {model}GPU{'s' if gpus > 1 else ''}."]
    if turn.because.startswith("group:"):
        group = turn.because.removeprefix("group:")
        sentences.append(f"Your group {group} has as many GPUs as it may hold at a time.")
    if turn.because == "never":
        sentences.append("This machine has too few that may be handed out at the moment.")
    else:
        sentences.append(_expected(turn.start))
    return " ".join(sentences)


def _expected(start: float | None) -> str:
    if start is None:
        return "When they will be free isn't known: servers that have them have no end."
    seconds = start - time.time()
    if seconds < 60:
        return "Expected any moment."
    return f"Expected about {clock_time(start)}, in {hours_words(seconds)} at the latest."


def _number(count: int, unit: str) -> str:
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"
