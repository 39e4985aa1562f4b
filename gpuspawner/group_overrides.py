"""What one spawn may change of a spawner's traits, and how it is put back.

A spawner object is used again for the next spawn, by whoever has which rights then.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from dockerspawner import DockerSpawner

from .hub import http_errors


def _lower(one: float | None, other: float | None) -> float | None:
    return min((each for each in (one, other) if each is not None), default=None)


def _shared(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """Return what both lists allow. An empty list is no limit, so nothing is `NOTHING`."""
    if not one or not other:
        return list(one or other)
    return [each for each in one if each in other] or [NOTHING]


# In a list of what may be had, that nothing may.
NOTHING = "(nothing)"
# Limit -> what of two groups' values holds for who is in both.
STRICTER: dict[str, Callable[[Any, Any], Any]] = {
    "gpu_limit": _lower,
    "user_gpu_limit": _lower,
    "hour_limit": _lower,
    "longest_wait_minutes": _lower,
    "allowed_models": _shared,
    "allowed_versions": _shared,
}


class OverridableSpawner(DockerSpawner):
    """A spawner whose traits a spawn may set for its own time, and a group override for a user's.

    ref: https://jupyterhub.readthedocs.io/en/stable/reference/spawners.html
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Trait -> the administrator's value.
        self._replaced: dict[str, Any] = {}
        self._overridden: dict[str, Any] = {}
        self._applying: Any = None

    def set_for_now(self, trait: str, value: Any) -> None:
        """Set a trait until `put_back`."""
        self._replaced.setdefault(trait, getattr(self, trait))
        setattr(self, trait, value)

    def put_back(self) -> None:
        """Undo each `set_for_now`."""
        for trait, value in self._replaced.items():
            setattr(self, trait, value)
        self._replaced = {}

    async def apply_group_overrides(self) -> None:
        """Apply group overrides to the configured values: rights end with the membership.

        For the form too, which is made before a spawn applies them.

        Raises:
            web.HTTPError: one can't be applied; its sentence names group override and trait.
        """
        self.put_back_overrides()
        try:
            await super().apply_group_overrides()
        except Exception as error:
            self.put_back_overrides()
            sentence = (
                f"c.Spawner.group_overrides{self._which_override()} can't be applied: {error}."
            )
            self.log.exception("%s", sentence)
            raise http_errors.failure(f"{sentence} Please tell an administrator.") from error

    def put_back_overrides(self) -> None:
        """Undo the last spawn's group overrides."""
        for trait, value in self._overridden.items():
            setattr(self, trait, value)
        self._overridden = {}

    def _apply_overrides(self, spawner_override: dict[str, Any]) -> None:
        self._applying = spawner_override
        for trait, value in spawner_override.items():
            try:
                self._override(trait, value(self) if callable(value) else value)
            except Exception as error:
                words = str(error).rstrip(".")
                raise ValueError(words if trait in words else f"{trait}: {words}") from error

    def _override(self, trait: str, value: Any) -> None:
        known = self.has_trait(trait)
        if known:
            if trait in self._overridden and trait in STRICTER:
                # Who is in several groups is under the rules of each.
                value = STRICTER[trait](getattr(self, trait), value)
            self._overridden.setdefault(trait, copy.deepcopy(getattr(self, trait)))
        super()._apply_overrides({trait: value})
        if known:
            # A mapping was merged into the trait's own, past every check.
            setattr(self, trait, getattr(self, trait))

    def _which_override(self) -> str:
        """Return the key of the override that is being applied, as "['lab']"; "" if unknown."""
        known = {} if callable(self.group_overrides) else self.group_overrides
        for key, override in known.items():
            if override.get("spawner_override") is self._applying:
                return f"[{key!r}]"
        return ""
