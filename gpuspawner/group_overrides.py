"""Group overrides: what of a spawner's traits they set for a spawn, and how it is put back.

A spawner object is used again for the next spawn, by whoever has which rights then.
ref: https://jupyterhub.readthedocs.io/en/stable/reference/spawners.html
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import GPUSpawnerError

# In a list of what may be had, that nothing may.
NOTHING = "(nothing)"
# Under which a trait's metadata has what of two groups' values holds for a user in both; else the
# later one does.
STRICTER = "stricter"


def lower(one: float | None, other: float | None) -> float | None:
    """Return the stricter of two limits, where None is none."""
    return min((each for each in (one, other) if each is not None), default=None)


def common(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """Return what both lists allow. An empty list is no limit, so nothing is `NOTHING`."""
    if not one or not other:
        return list(one or other)
    return [each for each in one if each in other] or [NOTHING]


@dataclass(frozen=True)
class HookChange:
    """What somebody has made of a trait's value."""

    before: Any
    after: Any

    def of(self, value: Any) -> Any:
        """Return what the same change makes of another value: of a mapping, key by key.

        What else was in the mapping was an override's, whose group may have been left since.
        """
        if not all(isinstance(each, Mapping) for each in (self.before, self.after, value)):
            return self.after
        kept = {
            key: item for key, item in value.items() if key not in self.before or key in self.after
        }
        changed = {
            key: item
            for key, item in self.after.items()
            if key not in self.before or self.before[key] != item
        }
        return {**kept, **changed}


class GroupOverrides:
    """The group overrides of one spawner.

    Args:
        spawner: a spawner of a class of `UnofficialHooks`.
    """

    def __init__(self, spawner: Any) -> None:
        self._spawner = spawner
        # Trait -> the administrator's value, and what an override has made of it.
        self._configured: dict[str, Any] = {}
        self._set: dict[str, Any] = {}
        self._applying: Any = None

    async def apply(self, apply: Callable[[], Awaitable[None]]) -> None:
        """Apply all that the user's groups have, to the configured values.

        Rights end with the membership.

        Args:
            apply: JupyterHub's own `apply_group_overrides`, which calls `apply_one`.

        Raises:
            OverrideError: one can't be applied. Then none is.
        """
        self.put_back()
        try:
            await apply()
        except Exception as error:
            self.put_back()
            raise OverrideError(
                f"c.Spawner.group_overrides{self._current_key()} can't be applied: {error}."
            ) from error

    def apply_one(self, override: dict[str, Any]) -> None:
        """Apply what one override sets, trait by trait.

        Raises:
            ValueError: a trait can't be set so. The sentence names it.
        """
        self._applying = override
        for trait, value in override.items():
            try:
                self._apply_trait(trait, value(self._spawner) if callable(value) else value)
            except Exception as error:
                words = str(error).rstrip(".")
                raise ValueError(words if trait in words else f"{trait}: {words}") from error

    def put_back(self) -> None:
        """Put back what the administrator configured."""
        for trait, value in self._configured.items():
            setattr(self._spawner, trait, value)
        self._configured, self._set = {}, {}

    def changed_since(self) -> dict[str, HookChange]:
        """Return what an administrator's hook has made of overridden traits since, by trait."""
        found = {trait: (self._set[trait], getattr(self._spawner, trait)) for trait in self._set}
        return {
            trait: HookChange(before, copy.deepcopy(now))
            for trait, (before, now) in found.items()
            if before != now
        }

    def keep(self, changes: Mapping[str, HookChange]) -> None:
        """Make a hook's changes again, of what applies now, until the next `put_back`."""
        for trait, change in changes.items():
            now = getattr(self._spawner, trait)
            self._configured.setdefault(trait, copy.deepcopy(now))
            setattr(self._spawner, trait, change.of(now))

    def _apply_trait(self, trait: str, value: Any) -> None:
        spawner = self._spawner
        known = spawner.has_trait(trait)
        if known:
            stricter = spawner.traits()[trait].metadata.get(STRICTER)
            if trait in self._configured and stricter:
                # Who is in several groups is under the rules of each.
                value = stricter(getattr(spawner, trait), value)
            self._configured.setdefault(trait, copy.deepcopy(getattr(spawner, trait)))
        spawner.apply_override_as_is({trait: value})
        if known:
            # A mapping was merged into the trait's own, past every check.
            setattr(spawner, trait, getattr(spawner, trait))
            self._set[trait] = copy.deepcopy(getattr(spawner, trait))

    def _current_key(self) -> str:
        """Return the key of the override that is being applied, as "['lab']"; "" if unknown."""
        overrides = self._spawner.group_overrides
        for key, override in ({} if callable(overrides) else overrides).items():
            if override.get("spawner_override") is self._applying:
                return f"[{key!r}]"
        return ""


class OverrideError(GPUSpawnerError):
    """A group override can't be applied. `str()` names it, and the trait."""
