"""The sentences for users about their place in the queue."""

from __future__ import annotations

import time

from ..gpus.allocation import gpu_count_phrase
from ..i18n.lazy_text import join_sentences, lazy_gettext
from ..i18n.phrases import clock_time, hours_words, ordinal
from .plan import Turn


def turn_words(turn: Turn) -> str:
    """Return the place of a request in the queue, what it waits for, and its expected start."""
    wanted = gpu_count_phrase(turn.waiting.request.gpus, turn.waiting.request.model)
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
        return join_sentences(place, limit, never)
    return join_sentences(place, limit, _expected(turn.start))


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
