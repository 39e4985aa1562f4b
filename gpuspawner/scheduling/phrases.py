"""The sentences for users about their place in the queue."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..gpus.allocation import request_phrase, units_phrase
from ..gpus.model import GPU, Request
from ..i18n.lazy_text import join_sentences, lazy_gettext, lazy_ngettext, listed
from ..i18n.phrases import clock_time, hours_words, ordinal
from .budgets import shown_hours
from .plan import HoursInTheWay, Turn

NO_GPU = lazy_gettext("no GPU")


def turn_words(turn: Turn) -> str:
    """Return the place of a request in the queue, what it waits for, and its expected start."""
    if turn.start is None or turn.because == "never":
        return place_words(turn)
    return join_sentences(place_words(turn), _expected(turn.start))


def place_words(turn: Turn) -> str:
    """Return the same without the expected start, which pages give in their reader's time zone."""
    limit = ""
    if turn.because.startswith("group:"):
        group = turn.because.removeprefix("group:")
        limit = lazy_gettext(
            "Your group %(group)s has as many GPUs as it may hold at a time.", group=group
        )
    if turn.because.startswith("course:"):
        limit = lazy_gettext(
            "Course %(course)s has as many GPUs as it may have at a time.",
            course=turn.course_name,
        )
    if turn.hours:
        limit = hours_words_of(turn.hours, turn.course_name)
    when = ""
    if turn.because == "time":
        limit = lazy_gettext("It starts later, as you asked.")
    if turn.because in ("hours", "gpus") and turn.waiting.request.slots:
        limit = slot_words(turn)
    if turn.because == "never" and turn.waiting.request.slots:
        when = slot_words(turn)
    elif turn.because == "never":
        when = (
            lazy_gettext("No machine here has as many that may be handed out at the moment.")
            if turn.several
            else lazy_gettext("This machine has too few that may be handed out at the moment.")
        )
    elif turn.start is None:
        when = lazy_gettext(
            "When they will be free isn't known: servers that have them have no end."
        )
    if turn.machines and turn.because != "never":
        there = lazy_ngettext(
            "%(num)s machine has what you asked for.",
            "%(num)s machines have what you asked for.",
            turn.machines,
        )
        limit = join_sentences(there, limit)
    used = ""
    if turn.used is not None:
        used = lazy_gettext(
            "You used %(hours)s GPU hours in the last 7 days: the less one has used lately, the "
            "sooner it is one's turn.",
            hours=shown_hours(turn.used),
        )
    return join_sentences(_place(turn), limit, when, used)


def hours_words_of(hours: HoursInTheWay, course_name: str) -> str:
    """Return what is reserved, and what could be had meanwhile.

    Args:
        hours: the reserved hours.
        course_name: what users call the course whose they are.
    """
    reserved = lazy_gettext(
        "Reserved for course %(course)s from %(begin)s until %(end)s.",
        course=course_name,
        begin=clock_time(hours.begin),
        end=clock_time(hours.end),
    )
    if not hours.until_then:
        return reserved
    shorter = lazy_gettext(
        "A server that ends by %(time)s could start now.", time=clock_time(hours.until_then)
    )
    return join_sentences(reserved, shorter)


def slot_words(turn: Turn) -> str:
    """Return why a request for a slot in its course's reserved hours doesn't start now."""
    if turn.because == "hours":
        return lazy_gettext("It starts in the next reserved hours of your course.")
    if turn.because == "never":
        return lazy_gettext("Your course has no reserved hours left in which it could start.")
    return lazy_gettext("Others of your course have all of its slots now.")


def _place(turn: Turn) -> str:
    wanted = request_phrase(turn.waiting.request)
    if turn.place == 1 and turn.of > 1:
        return lazy_ngettext(
            "You are next in line for %(gpus)s; %(num)s other waits after you.",
            "You are next in line for %(gpus)s; %(num)s others wait after you.",
            turn.of - 1,
            gpus=wanted,
        )
    if turn.place == 1:
        return lazy_gettext("You are next in line for %(gpus)s.", gpus=wanted)
    return lazy_gettext(
        "You are %(nth)s of %(total)s in line for %(gpus)s.",
        nth=ordinal(turn.place),
        total=max(turn.of, turn.place),
        gpus=wanted,
    )


def _expected(start: float) -> str:
    seconds = start - time.time()
    if seconds < 60:
        return lazy_gettext("Expected any moment.")
    return lazy_gettext(
        "Expected about %(time)s, in %(duration)s at the latest.",
        time=clock_time(start),
        duration=hours_words(seconds),
    )


def asked_words(request: Request, image: str) -> str:
    """Return what a request asks for: "You asked for 2 GPUs, image PyTorch 2.7, 4 hours."

    Args:
        request: the request.
        image: what users call its image; "" if there is none to choose.
    """
    what = [request_phrase(request) if request.gpus else NO_GPU]
    if image:
        what.append(lazy_gettext("image %(image)s", image=image))
    if request.gpus and request.seconds:
        what.append(hours_words(request.seconds))
    return lazy_gettext("You asked for %(what)s.", what=listed(what))


def while_away_words(request: Request, check_in_seconds: float = 0) -> str:
    """Return what happens while a request waits and its user is away.

    Args:
        request: the request.
        check_in_seconds: how long they have to say that they are there; 0: they needn't.
    """
    if check_in_seconds:
        return lazy_gettext(
            "You may close this page: you keep your place. When it is your turn you have "
            "%(duration)s to say here that you are there; else the next in line has the GPUs.",
            duration=hours_words(check_in_seconds),
        )
    stays = lazy_gettext(
        "You may close this page: you keep your place, and your server starts when it is your turn."
    )
    if not request.seconds:
        return stays
    begins = lazy_gettext(
        "Its %(duration)s begin then, whether you are here or not.",
        duration=hours_words(request.seconds),
    )
    return join_sentences(stays, begins)


def check_in_words(request: Request, until: float) -> str:
    """Return that a turn has come, and its user has to say that they are there.

    Args:
        request: what was asked for, and is held.
        until: until when, in seconds since the epoch.
    """
    return lazy_ngettext(
        "It's your turn: %(gpus)s is held for you until %(time)s. Say on the page on which you "
        "wait that you are there; else the next in line has it.",
        "It's your turn: %(gpus)s are held for you until %(time)s. Say on the page on which "
        "you wait that you are there; else the next in line has them.",
        request.gpus,
        gpus=request_phrase(request),
        time=clock_time(until),
    )


def absent_words(came: float, seconds: float) -> str:
    """Return that nobody was there when a turn came.

    Args:
        came: when it came, in seconds since the epoch.
        seconds: how long there was to say so.
    """
    return lazy_gettext(
        "Your turn came at %(time)s, and nobody said within %(duration)s that they were there, so "
        "that the next in line has the GPUs. Please join the queue again.",
        time=clock_time(came),
        duration=hours_words(seconds),
    )


def kept_words(until: float) -> str:
    """Return until when a place in the queue is kept, in seconds since the epoch."""
    return lazy_gettext(
        "Your place in the queue is kept until %(time)s: join it again by then, and you have it "
        "back.",
        time=clock_time(until),
    )


def runs_words(gpus: Sequence[GPU], until: float | None) -> str:
    """Return that a server runs whose user has waited.

    Args:
        gpus: those that it has.
        until: when its time ends, in seconds since the epoch; None: never.
    """
    runs = lazy_gettext("Your server runs, with %(gpus)s.", gpus=units_phrase(gpus))
    if until is None:
        return runs
    return join_sentences(runs, lazy_gettext("Its time ends at %(time)s.", time=clock_time(until)))
