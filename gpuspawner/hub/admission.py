"""Which of the declared and granted hours can be promised, and what the others collide with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..courses.hours import ReservedHours, overlap
from ..courses.hours_request import HoursRequest
from ..courses.model import Course, title_of
from ..gpus.allocation import gpu_count_phrase
from ..gpus.model import GPU
from ..i18n.lazy_text import join_sentences, lazy_gettext, lazy_ngettext, listed
from ..i18n.phrases import clock_time
from ..scheduling.reserved import Missing, ReservedTime, admitted

TOO_FEW = lazy_gettext("It isn't reserved: there are too few GPUs for it.")
WITHOUT_ENDS = lazy_gettext("It isn't reserved: servers here have no end.")
OVERLAPS = lazy_gettext("It isn't reserved: it overlaps other hours of the course.")
UNDIVIDED = lazy_gettext("It isn't reserved: GPUs here aren't divided into slots for some hours.")


@dataclass(frozen=True)
class Claim:
    """Hours of a course: declared in the configuration, or granted on the dashboard.

    Args:
        course: the course.
        hours: the hours, which can be.
        where: where they stand, for a line of the log.
        request: what was granted; None: they are declared.
    """

    course: Course
    hours: ReservedHours
    where: str
    request: HoursRequest | None = None

    def times(self) -> list[ReservedTime]:
        """Return their times."""
        hours = self.hours
        return [
            ReservedTime(
                self.course.key,
                begin,
                end,
                hours.gpus,
                hours.kind,
                hours.model,
                60 * hours.unclaimed_minutes,
                hours.slots,
            )
            for begin, end in hours.times()
        ]


@dataclass(frozen=True)
class Verdict:
    """Whether hours are promised.

    Args:
        claim: the hours.
        times: all of their times, what is over too.
        refused: why they aren't, as the week shows it; "" if they are.
        missing: the first time for which there are too few units; None: there is none.
        beside: what is promised to others at that time.
        clash: the other hours of the course that they overlap; None: they overlap none.
    """

    claim: Claim
    times: Sequence[ReservedTime]
    refused: str = ""
    missing: Missing | None = None
    beside: Sequence[ReservedTime] = ()
    clash: ReservedHours | None = None


def claims_of(
    courses: Mapping[str, Course], granted: Iterable[HoursRequest] = ()
) -> Iterator[Claim]:
    """Yield all hours in the order of precedence: as declared, then as they were granted.

    Args:
        courses: key -> course.
        granted: those of a course that there isn't are left out.
    """
    for course in courses.values():
        for number, hours in enumerate(course.reserved):
            yield Claim(course, hours, f"courses[{course.key!r}] reserved.{number}")
    for each in sorted(granted, key=lambda one: one.rank):
        if found := courses.get(each.course):
            where = f"the hours that were granted as number {each.id} to course {found.key!r}"
            yield Claim(found, each.hours, where, each)


def judge(
    claims: Iterable[Claim],
    gpus: Sequence[GPU],
    now: float,
    *,
    has_ends: bool = True,
    divides_gpus: bool = True,
) -> list[Verdict]:
    """Return the verdict on each of these hours: what comes later is refused first.

    Args:
        claims: the hours, in the order of precedence.
        gpus: every unit of every node.
        now: in seconds since the epoch.
        has_ends: whether servers have an end.
        divides_gpus: whether the backend divides whole GPUs into slots (`Backend.divides_gpus`).
    """
    kept: list[ReservedTime] = []
    found: list[Verdict] = []
    of_course: dict[str, list[tuple[ReservedHours, Sequence[tuple[float, float]]]]] = {}
    for claim in claims:
        times = claim.times()
        if not has_ends:
            found.append(Verdict(claim, times, WITHOUT_ENDS))
            continue
        if claim.hours.slots and not divides_gpus:
            found.append(Verdict(claim, times, UNDIVIDED))
            continue
        own = of_course.setdefault(claim.course.key, [])
        span = (claim.hours, [(each.begin, each.end) for each in times])
        # What a configuration declares of one course doesn't overlap.
        if claim.request and (clash := overlap([*own, span])):
            found.append(Verdict(claim, times, OVERLAPS, clash=own[min(clash)][0]))
            continue
        more, refused = admitted([each for each in times if each.end > now], gpus, kept)
        if refused:
            first = refused[0]
            beside = [each for each in kept if _meet(each, first.reserved)]
            found.append(Verdict(claim, times, TOO_FEW, first, beside))
            if not claim.request:
                own.append(span)
            continue
        own.append(span)
        kept += more
        found.append(Verdict(claim, times))
    return found


def collision(verdict: Verdict, courses: Mapping[str, Course], gpus: Sequence[GPU]) -> str:
    """Return why hours can't be promised, and with which others they collide; "" if they can be.

    Args:
        verdict: of these hours.
        courses: key -> course.
        gpus: every unit of every node.
    """
    if verdict.clash:
        return lazy_gettext(
            "It overlaps hours of the same course: %(begin)s, %(rule)s.",
            begin=verdict.clash.begin.replace("T", " "),
            rule=verdict.clash.repeat or lazy_gettext("once"),
        )
    if verdict.missing is None:
        return verdict.refused
    first = verdict.missing.reserved
    too_few = lazy_ngettext(
        "From %(time)s on there is 1 GPU too few for it.",
        "From %(time)s on there are %(num)s GPUs too few for it.",
        verdict.missing.gpus,
        time=clock_time(first.begin),
    )
    if not verdict.beside:
        there = sum(first.takes(gpu) and gpu.state not in ("excluded", "mig") for gpu in gpus)
        return join_sentences(too_few, lazy_gettext("There are %(there)s in all.", there=there))
    others = [
        lazy_gettext(
            "%(course)s (%(gpus)s from %(time)s on)",
            course=title_of(courses, each.course),
            gpus=gpu_count_phrase(each.gpus, each.model or None, each.kind),
            time=clock_time(each.begin),
        )
        for each in verdict.beside[:5]
    ]
    reserved = lazy_gettext("Reserved then: %(others)s.", others=listed(others))
    return join_sentences(too_few, reserved)


def _meet(one: ReservedTime, other: ReservedTime) -> bool:
    """Return whether two of them are about the same units at some moment."""
    models = {one.model, other.model} - {""}
    same = one.kind == other.kind and len(models) < 2
    return same and one.begin < other.end and other.begin < one.end
