"""The course of a choice, and the limits within it: the strictest of all that apply."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from ..courses.model import NO_COURSE, Course, title_of
from ..errors import Refused
from ..gpus.model import SHARED, course_group
from ..group_overrides import lower
from ..i18n.lazy_text import lazy_gettext, listed
from ..scheduling.queue import RequestLimits
from .limits import Limits, Rule
from .refusals import quoted


def courses_offered(limits: Limits) -> list[str]:
    """Return the keys that a choice may name, `NO_COURSE` among them; [] if there is no course.

    Args:
        limits: the user's limits.
    """
    if not limits.courses:
        return []
    keys = [course.key for course in limits.courses]
    bound = any(
        course.required and course.key not in limits.taught_courses for course in limits.courses
    )
    return keys if bound else [*keys, NO_COURSE]


def course_key(named: str | None, limits: Limits) -> str:
    """Return the key of the course that a choice means; "": none.

    Args:
        named: the course that it names; None: it names none.
        limits: the user's limits.

    Raises:
        Refused: the user isn't in such a course, or has to be in one.
    """
    offered = courses_offered(limits)
    if named is None:
        if not offered or NO_COURSE in offered:
            return limits.course_now
        return limits.course_now or offered[0]
    if named == NO_COURSE and (not offered or named in offered):
        return ""
    if named not in offered:
        raise _not_in(named, offered, limits)
    return named


def _not_in(named: str, offered: list[str], limits: Limits) -> Refused:
    """Return the refusal of a course: users know the others' titles, programs their keys."""
    if not offered:
        sentence = lazy_gettext(
            "You asked for course %(course)s, and you are in none.", course=quoted(named)
        )
        return Refused(sentence, status=403, key="course")

    def said(names: Sequence[str]) -> str:
        if named == NO_COURSE:
            return lazy_gettext(
                "Your servers are for a course: pick one of %(courses)s.", courses=listed(names)
            )
        return lazy_gettext(
            "You asked for course %(course)s, and those you may pick are: %(courses)s.",
            course=quoted(named),
            courses=listed(names),
        )

    keyed = Refused(said(offered), key="course").keyed
    titles = [course_title(key, limits) for key in offered]
    return Refused(said(titles), status=403, key="course", keyed=keyed)


def course_title(key: str, limits: Limits) -> str:
    """Return what users call a course that they may pick, or that they may pick none.

    Args:
        key: one of `courses_offered`.
        limits: the user's limits.
    """
    if key == NO_COURSE:
        return lazy_gettext("none, my own work")
    return title_of({each.key: each for each in limits.courses}, key)


def within_course(named: str | None, limits: Limits) -> Limits:
    """Return the limits of a choice that names a course: of each the stricter one.

    Args:
        named, limits: as for `course_key`.

    Raises:
        Refused: as `course_key` does.
    """
    key = course_key(named, limits)
    course = next((each for each in limits.courses if each.key == key), None)
    if course is None:
        return limits
    limits = _with_images(limits, course)
    limits = replace(limits, course=key, course_rules=tuple(_rules(course, limits)))
    of_course = course.limits
    if key in limits.taught_courses:
        return limits
    if of_course.slots_per_student is not None and of_course.gpus_per_student is None:
        limits = replace(limits, kinds=frozenset({SHARED}) & (limits.kinds or {SHARED}))
    return replace(
        limits,
        hours=lower(limits.hours, of_course.hours),
        default_hours=lower(limits.default_hours, of_course.hours),
    )


def longest_hours(
    hours: float | None, course: Course | None, groups: Collection[str]
) -> float | None:
    """Return the most hours of a server: the stricter limit of its user's and of its course's.

    Args:
        hours: the user's limit; None: there is none.
        course: what the server runs for; None: no course.
        groups: the user's groups. Who teaches a course has no limit by it.
    """
    if course is None or course.is_taught_by(groups):
        return hours
    return lower(hours, course.limits.hours)


def _with_images(limits: Limits, course: Course) -> Limits:
    if not course.images:
        return limits
    versions = {key: each for key, each in limits.versions.items() if key in course.images}
    present = [key for key in versions if key not in limits.absent]
    default = limits.default_image
    if default not in versions:
        default = next(iter(present or versions), "")
    return replace(limits, versions=versions, default_image=default, any_image=False)


def _rules(course: Course, limits: Limits) -> list[Rule]:
    found = []
    of_course, name = course.limits, course.name
    each = [of_course.gpus_per_student, of_course.slots_per_student]
    most = max((number for number in each if number is not None), default=None)
    if most is not None and course.key not in limits.taught_courses:
        whose = lazy_gettext("the limit of course %(course)s for each student", course=name)
        statement = lazy_gettext(
            "The limit of course %(course)s for each student is %(most)s.", course=name, most=most
        )
        found.append(Rule(most, whose, statement))
    if (most := of_course.gpus) is not None:
        whose = lazy_gettext("the limit of course %(course)s", course=name)
        statement = lazy_gettext(
            "The limit of course %(course)s is %(most)s.", course=name, most=most
        )
        found.append(Rule(most, whose, statement))
    return found


def with_courses(
    limits: RequestLimits, courses: Sequence[Course], taught: frozenset[str]
) -> RequestLimits:
    """Return the limits of a request in the queue, with those of its user's courses.

    Args:
        limits: the limits without them.
        courses: those that the user is in.
        taught: the keys of those that the user teaches.
    """
    if not courses:
        return limits
    at_a_time = {
        course_group(course.key): course.limits.gpus
        for course in courses
        if course.limits.gpus is not None
    }
    per_student = {
        course_group(course.key): (
            course.limits.gpus_per_student,
            course.limits.slots_per_student,
        )
        for course in courses
        if course.key not in taught
    }
    groups = {**limits.group_limits, **at_a_time}
    return replace(limits, group_limits=groups, per_student=per_student)
