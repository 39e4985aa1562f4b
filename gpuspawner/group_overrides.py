"""Group overrides: how they set traits for a spawn, and how the configured values are restored.

JupyterHub uses a spawner object for many spawns, and the user's groups may change in between.
ref: https://jupyterhub.readthedocs.io/en/stable/reference/spawners.html
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import GPUSpawnerError

# The only item of a list that allows nothing, since an empty list is no limit.
NOTHING = "(nothing)"
# The metadata key of a trait's function that returns the stricter of two values, for users in
# several groups. Without one, the later override counts.
STRICTER = "stricter"


def lower(one: float | None, other: float | None) -> float | None:
    """Return the lower of two limits; None is no limit."""
    return min((each for each in (one, other) if each is not None), default=None)


def common(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """Return the items of both lists. An empty list is no limit, so no item is `[NOTHING]`."""
    if not one or not other:
        return list(one or other)
    return [each for each in one if each in other] or [NOTHING]


@dataclass(frozen=True)
class HookChange:
    """A change that an administrator's hook has made to the value of an overridden trait."""

    before: Any
    after: Any

    def of(self, value: Any) -> Any:
        """Return another value with the same change applied; in a mapping, key by key.

        Other keys of the mapping came from overrides that may not apply any more.
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
    """The group overrides that are applied to one spawner.

    Args:
        spawner: the spawner, an instance of `hub.compat.UnofficialHooks`.
    """

    def __init__(self, spawner: Any) -> None:
        self._spawner = spawner
        # Trait -> the administrator's value; trait -> the value that an override has set.
        self._configured: dict[str, Any] = {}
        self._set: dict[str, Any] = {}
        self._applying: Any = None

    async def apply(self, apply: Callable[[], Awaitable[None]]) -> None:
        """Apply the overrides of all of the user's groups to the configured values.

        Args:
            apply: JupyterHub's `apply_group_overrides`, which calls `apply_one` for each.

        Raises:
            OverrideError: an override can't be applied. Then none is.
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
        """Apply one override (trait -> value), trait by trait.

        Raises:
            ValueError: a value is invalid; the message names the trait.
        """
        self._applying = override
        for trait, value in override.items():
            try:
                self._apply_trait(trait, value(self._spawner) if callable(value) else value)
            except Exception as error:
                words = str(error).rstrip(".")
                raise ValueError(words if trait in words else f"{trait}: {words}") from error

    def put_back(self) -> None:
        """Restore the configured values."""
        for trait, value in self._configured.items():
            setattr(self._spawner, trait, value)
        self._configured, self._set = {}, {}

    def changed_since(self) -> dict[str, HookChange]:
        """Return trait -> change that hooks have made to overridden traits since they were set."""
        found = {trait: (self._set[trait], getattr(self._spawner, trait)) for trait in self._set}
        return {
            trait: HookChange(before, copy.deepcopy(now))
            for trait, (before, now) in found.items()
            if before != now
        }

    def keep(self, changes: Mapping[str, HookChange]) -> None:
        """Apply a hook's changes to the values that apply now, until the next `put_back`."""
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
                # A user in several groups is under the rules of each.
                value = stricter(getattr(spawner, trait), value)
            self._configured.setdefault(trait, copy.deepcopy(getattr(spawner, trait)))
        spawner.apply_override_as_is({trait: value})
        if known:
            # JupyterHub merges mappings in place, which skips the trait's validation.
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
