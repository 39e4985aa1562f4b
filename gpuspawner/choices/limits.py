"""What applies to one user's choice: the image versions and the administrator's rules."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from ..i18n.lazy_text import lazy_gettext
from ..images.catalogue import ImageVersion

# Ten years. Beyond that people mean "for ever", and no calendar goes on.
MAX_HOURS = 87_600.0


@dataclass(frozen=True)
class Rule:
    """A limit of a server's number of GPUs.

    Args:
        most: that many may be had.
        whose: whose limit it is, in words: "your limit".
        statement: the rule in a sentence.
    """

    most: int
    whose: str
    statement: str


@dataclass(frozen=True)
class Limits:
    """What applies to a choice: the catalogue and the administrator's rules for this user.

    `gpus` is the most GPUs a server of theirs may have, `user_gpus` all of their servers together,
    `group_gpus` each of their groups that has a limit; None leaves it to the host. `models` are the
    GPU models they may have, None: all. `hours` is the longest a server keeps its GPUs, None: it
    has no end. Where `waits` is False, what can't be had now is refused. `absent` are the versions
    whose image isn't on the machine and won't be fetched, where somebody has looked. Where
    `has_catalogue` is False, who picks no version starts whatever image the administrator has set.
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
    hours: float | None = None
    default_hours: float | None = None
    waits: bool = True
    absent: frozenset[str] = frozenset()
    has_catalogue: bool = True

    def rules(self) -> list[Rule]:
        """Return the limits of a server's number of GPUs, in the order they are looked at.

        All hold, so that the strictest decides.
        """
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
        return found

    def most_gpus(self) -> int | None:
        """Return the strictest limit of a server's number of GPUs; None: there is none."""
        return min((rule.most for rule in self.rules()), default=None)


def without_absent_versions(limits: Limits, absent: Collection[str]) -> Limits:
    """Return the limits where some versions' images aren't on the machine.

    Who doesn't pick one is shown the first that is, if the usual one isn't.
    """
    present = [key for key in limits.versions if key not in absent]
    usual = limits.default_image
    default = present[0] if usual in absent and present else usual
    return replace(limits, absent=frozenset(absent), default_image=default)
