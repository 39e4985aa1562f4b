"""Courses, as plain values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlencode

from pydantic import ConfigDict, Field

from .hours import Kind, Minutes, ReservedHours, Slots, Units

# The value of a choice that is for no course; no course can have that key.
NO_COURSE = "none"
# What a course's key and a volume's name may be. ref: RestrictedNameChars in moby's daemon/names
KEY = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
VOLUME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$"
PATH = r"^/[^\x00-\x1f{}]*[^\x00-\x1f{}/]$"

# Read from what an administrator wrote: unknown keys and wrong types are refused.
STRICT = ConfigDict(strict=True, extra="forbid")

Name = Annotated[str, Field(min_length=1, max_length=255)]
VolumeName = Annotated[str, Field(pattern=VOLUME)]
Path = Annotated[str, Field(pattern=PATH)]


@dataclass(frozen=True)
class Folder:
    """A volume, and its path in the container."""

    __pydantic_config__ = STRICT

    volume: VolumeName
    path: Path


@dataclass(frozen=True)
class Teams:
    """A folder for each team, which is a group: `path`/TEAM, of the volume `volume`-TEAM."""

    __pydantic_config__ = STRICT

    volume: VolumeName
    path: Path
    groups: Annotated[tuple[Annotated[str, Field(pattern=KEY)], ...], Field(min_length=1)]


@dataclass(frozen=True)
class Repository:
    """A Git repository that a link brings into a server by nbgitpuller.

    Args:
        url: its address.
        branch: which branch; "": its default.
        open: the path in it that is opened; "": its folder.
    """

    __pydantic_config__ = STRICT

    url: Annotated[str, Field(pattern=r"^(https?|git|ssh)://[^\s]+$")]
    branch: str = ""
    open: str = ""

    def path(self) -> str:
        """Return the path of the link below a hub's address, which starts a server if needed.

        ref: https://nbgitpuller.readthedocs.io/en/latest/topic/url-options.html
        """
        folder = self.url.rstrip("/").rpartition("/")[2].removesuffix(".git")
        opened = "/".join(filter(None, ["lab/tree", folder, self.open.strip("/")]))
        named = {"repo": self.url, "urlpath": opened}
        if self.branch:
            named["branch"] = self.branch
        return f"user-redirect/git-pull?{urlencode(named)}"


@dataclass(frozen=True)
class CourseLimits:
    """The limits of a course. None: no limit.

    Args:
        gpus_per_student: the most GPUs of one student's servers together.
        slots_per_student: the same in slots of shared GPUs.
        gpus: the most GPUs of all servers of the course at a time.
        hours: the longest time of a student's server.
    """

    __pydantic_config__ = STRICT

    gpus_per_student: Annotated[int | None, Field(ge=0)] = None
    slots_per_student: Annotated[int | None, Field(ge=0)] = None
    gpus: Annotated[int | None, Field(ge=0)] = None
    hours: Annotated[float | None, Field(gt=0, le=87_600)] = None


@dataclass(frozen=True)
class CourseCalendar:
    """A calendar's file (.ics), each of whose events reserves units for a course.

    Args:
        file: its path.
        gpus, kind, model, unclaimed_minutes, slots: as of `ReservedHours`, for each event.
        zone: the time zone of events that name none; "": the machine's.
    """

    __pydantic_config__ = STRICT

    file: Annotated[str, Field(max_length=4096, pattern=r"^[^\x00]+$")]
    gpus: Units
    kind: Kind = "gpu"
    model: str = ""
    zone: str = ""
    unclaimed_minutes: Minutes = 15
    slots: Slots = 0

    def hours(self, begin: str, end: str, zone: str) -> ReservedHours:
        """Return hours of one of its events."""
        same = (self.kind, self.model, zone, self.unclaimed_minutes, self.slots)
        return ReservedHours(begin, end, self.gpus, "", (), *same)


@dataclass(frozen=True)
class Course:
    """A course.

    Args:
        key: its name in choices, labels and the log.
        group: the JupyterHub groups of its students.
        title: what users call it; "": its key.
        instructors: the groups of its instructors.
        images: the keys of the image versions that its servers may have; (): all.
        limits: its limits.
        material: what instructors write and students read.
        shared: a folder that all members write.
        teams: a folder for each team.
        repository: the notebooks that a link brings.
        required: whether a student's servers are always for a course.
        reserved: the hours in which units are reserved for it.
        calendar: a file with more of them; what it has is in `reserved` of a catalogue's courses.
    """

    __pydantic_config__ = STRICT

    key: Annotated[str, Field(pattern=KEY)]
    group: Annotated[tuple[Name, ...], Field(min_length=1)]
    title: Annotated[str, Field(max_length=200)] = ""
    instructors: tuple[Name, ...] = ()
    images: tuple[Name, ...] = ()
    limits: CourseLimits = CourseLimits()
    material: Folder | None = None
    shared: Folder | None = None
    teams: Teams | None = None
    repository: Repository | None = None
    required: bool = True
    reserved: tuple[ReservedHours, ...] = ()
    calendar: CourseCalendar | None = None

    @property
    def name(self) -> str:
        """What users call it."""
        return self.title or self.key

    def is_taught_by(self, groups: Collection[str]) -> bool:
        """Return whether somebody in these groups is one of its instructors."""
        return not set(self.instructors).isdisjoint(groups)

    def has_member(self, groups: Collection[str]) -> bool:
        """Return whether somebody in these groups is one of its students or instructors."""
        return self.is_taught_by(groups) or not set(self.group).isdisjoint(groups)

    def hours_as_slots(self) -> Iterator[str]:
        """Yield where it declares hours whose GPUs are divided: "reserved.0", "calendar"."""
        for number, hours in enumerate(self.reserved):
            if hours.slots:
                yield f"reserved.{number}"
        if self.calendar and self.calendar.slots:
            yield "calendar"

    def folders(self) -> Iterator[tuple[str, str]]:
        """Yield (volume, path in the container) of each of its folders."""
        for each in (self.material, self.shared):
            if each:
                yield each.volume, each.path
        if self.teams:
            for team in self.teams.groups:
                yield f"{self.teams.volume}-{team}", f"{self.teams.path}/{team}"


def title_of(courses: Mapping[str, Course], key: str) -> str:
    """Return what users call a course; its key, if there is no such course any more.

    Args:
        courses: key -> course.
        key: the course's.
    """
    course = courses.get(key)
    return course.name if course else key


def course_volumes(courses: Iterable[Course]) -> dict[str, Mapping[str, Any]]:
    """Return the volumes of courses, as the trait `course_volumes` has such.

    Args:
        courses: all of them; who has which volume, their groups say.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for course in courses:
        members = [*course.group, *course.instructors]
        if course.material:
            found[course.material.volume] = {
                "path": course.material.path,
                "instructors": list(course.instructors),
                "readers": list(course.group),
            }
        if course.shared:
            found[course.shared.volume] = {
                "path": course.shared.path,
                "instructors": members,
                "readers": [],
            }
        for team in course.teams.groups if course.teams else ():
            assert course.teams
            found[f"{course.teams.volume}-{team}"] = {
                "path": f"{course.teams.path}/{team}",
                "instructors": [team, *course.instructors],
                "readers": [],
            }
    return found
