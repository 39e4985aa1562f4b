"""Who may act in a course: as one of its instructors, or as an administrator."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from ..courses.catalogue import CourseCatalogue
from ..courses.model import Course
from ..errors import Refused
from ..i18n.lazy_text import lazy_gettext
from ..leases.endings import INSTRUCTOR
from ..leases.endings import RULE as ADMINISTRATOR

# Whether there is such a course isn't told to those who don't teach it.
NO_SUCH_COURSE = lazy_gettext("There is no such course, or you don't teach it.")
ONLY_ADMINISTRATORS = lazy_gettext("Only an administrator can do that.")


@dataclass(frozen=True)
class Asker:
    """Who asks, as a service has authenticated them.

    Args:
        name: the user's name.
        as_administrator: whether they may act as an administrator, if they are one.
    """

    name: str
    as_administrator: bool = False


class People(Protocol):
    """The users and groups of the hub: `compat.People`."""

    def groups_of(self, user: str) -> frozenset[str]:
        """Return the names of a user's groups."""

    def members_of(self, groups: Iterable[str]) -> frozenset[str]:
        """Return the names of the users in these groups."""

    def may_stop_all(self, user: str) -> bool:
        """Return whether a user may stop everybody's servers."""


class CourseRights:
    """The rights in a hub's courses, as its courses and groups are at each question.

    Args:
        courses: the courses.
        people: the hub's users and groups.
    """

    def __init__(self, courses: CourseCatalogue, people: People) -> None:
        self._courses = courses
        self._people = people

    def courses_of(self, asker: Asker) -> list[dict[str, Any]]:
        """Return the courses that somebody may act in, as JSON values."""
        courses = self._courses.current().values()
        return [
            {"key": course.key, "title": course.name}
            for course in courses
            if self.rule_of(course, asker)
        ]

    def rule_of(self, course: Course, asker: Asker) -> str:
        """Return as what somebody may act in a course: a rule of the audit log; "": they mayn't."""
        if course.is_taught_by(self._people.groups_of(asker.name)):
            return INSTRUCTOR
        return ADMINISTRATOR if self.is_administrator(asker) else ""

    def of(self, key: str, asker: Asker) -> tuple[Course, str]:
        """Return a course, and as what somebody acts in it; raises Refused if they mayn't."""
        course = self._courses.current().get(key)
        rule = self.rule_of(course, asker) if course else ""
        if course is None or not rule:
            raise Refused(NO_SUCH_COURSE, status=404)
        return course, rule

    def is_administrator(self, asker: Asker) -> bool:
        """Return whether somebody acts as an administrator, and is one."""
        return asker.as_administrator and self._people.may_stop_all(asker.name)

    def require_administrator(self, asker: Asker) -> None:
        """Raise Refused unless somebody acts as an administrator, and is one."""
        if not self.is_administrator(asker):
            raise Refused(ONLY_ADMINISTRATORS, status=403)
