"""The limits of a user's choice: the image versions and the administrator's rules."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from ..courses.model import Course
from ..i18n.lazy_text import lazy_gettext
from ..images.catalogue import ImageVersion
from .slot_hours import SlotHours

# Ten years. More means "for ever", and may exceed what `datetime` can represent.
MAX_HOURS = 87_600.0


@dataclass(frozen=True)
class Rule:
    """A limit of a server's number of GPUs.

    Args:
        most: the most GPUs that it may have.
        whose: the limit's name in a sentence: "your limit".
        statement: the limit as a sentence.
    """

    most: int
    whose: str
    statement: str


@dataclass(frozen=True)
class Limits:
    """The limits of a user's choice: the catalogue and the administrator's rules for this user.

    Args:
        versions: key -> image version that the user may choose.
        default_image: the key, or the image reference, of a choice without an image; "": none.
        image_can_be_chosen: whether a choice may name an image.
        any_image: whether it may name any image reference.
        default_gpus: the number of GPUs of a choice that names none.
        gpus: the most GPUs of one server; None: no limit.
        user_gpus: the most GPUs of all of the user's servers; None: no limit.
        group_gpus: group -> the most GPUs of its members, for the user's groups that have a limit.
        models: the GPU models that the user may have; None: all.
        kinds: the kinds of units that the user may have (`GPU.kind`); None: all.
        default_kind: the kind of a choice that names none; "": what there is.
        hours: the longest time that a server may keep its GPUs; None: no limit.
        default_hours: the time of a choice that names none; None: `hours`.
        ahead: how far ahead a start may be asked for, in seconds; 0: it can't be.
        waits: whether requests may wait in the queue; else they are refused.
        absent: the keys of versions whose image isn't on the engine and isn't pulled.
        has_catalogue: whether `images` is set; else a choice without an image starts the
            spawner's own `image`.
        memory: the most memory of a server, in bytes; None: no limit, or unknown.
        processors: the most processors of a server; None: no limit.
        files: how many bytes the user may keep at home; None: no limit.
        courses: the courses that the user is in.
        taught_courses: the keys of those that the user teaches.
        course_now: the key of the one of a choice that names none; "": the first one, or none where
            that can be.
        course: the key of the one that these limits are of; "": none.
        course_rules: its limits of a server's number of GPUs.
        gpu_hours: the GPU hours that are left of the user's budgets, for a form; None: there are
            none, or it isn't known.
        slot_hours: course -> the next hours in which its servers share GPUs.
        hours_now: those in which a choice may ask for a slot; None: there are none.
        counts_units: whether limits count units, each as one, and not parts of GPUs.
        guard_seconds: how long a server may hold more than its part of a shared GPU's memory until
            it is warned; None: nothing limits it.
    """

    versions: Mapping[str, ImageVersion]
    default_image: str
    image_can_be_chosen: bool = True
    any_image: bool = False
    default_gpus: int = 1
    gpus: int | None = None
    user_gpus: int | None = None
    group_gpus: Mapping[str, int] = field(default_factory=dict)
    models: frozenset[str] | None = None
    kinds: frozenset[str] | None = None
    default_kind: str = ""
    hours: float | None = None
    default_hours: float | None = None
    ahead: float = 0.0
    waits: bool = True
    absent: frozenset[str] = frozenset()
    has_catalogue: bool = True
    memory: int | None = None
    processors: float | None = None
    files: int | None = None
    courses: tuple[Course, ...] = ()
    taught_courses: frozenset[str] = frozenset()
    course_now: str = ""
    course: str = ""
    course_rules: tuple[Rule, ...] = ()
    gpu_hours: float | None = None
    slot_hours: Mapping[str, SlotHours] = field(default_factory=dict)
    hours_now: SlotHours | None = None
    counts_units: bool = False
    guard_seconds: float | None = None

    def rules(self) -> list[Rule]:
        """Return the limits of a server's number of GPUs, in the order of the checks."""
        found = []
        if (most := self.gpus) is not None:
            found.append(
                Rule(
                    most,
                    lazy_gettext("your limit"),
                    lazy_gettext("Your limit is %(most)s.", most=most),
                )
            )
        if (most := self.user_gpus) is not None:
            whose = lazy_gettext("your limit for all your servers together")
            statement = lazy_gettext(
                "Your limit for all your servers together is %(most)s.", most=most
            )
            found.append(Rule(most, whose, statement))
        for group, most in self.group_gpus.items():
            whose = lazy_gettext("the limit of your group %(group)s", group=group)
            statement = lazy_gettext(
                "The limit of your group %(group)s is %(most)s.", group=group, most=most
            )
            found.append(Rule(most, whose, statement))
        return [*found, *self.course_rules]

    def most_gpus(self) -> int | None:
        """Return the strictest limit of a server's number of GPUs; None: there is none."""
        return min((rule.most for rule in self.rules()), default=None)


def without_absent_versions(limits: Limits, absent: Collection[str]) -> Limits:
    """Return the limits with versions marked as absent, as their images aren't on the engine.

    If the default version is absent, the first one that isn't becomes the default.
    """
    present = [key for key in limits.versions if key not in absent]
    usual = limits.default_image
    default = present[0] if usual in absent and present else usual
    return replace(limits, absent=frozenset(absent), default_image=default)
