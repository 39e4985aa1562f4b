"""Layers of trait values for one spawn, and how the configured values are restored afterwards.

Each layer overrides the one before it: the configuration; hooks that JupyterHub runs before it
applies group overrides; the group overrides; the image of the choice; hooks that run later. After a
wait, group overrides and image are set again by the rules that apply then, and what the later hooks
have set stays. JupyterHub uses a spawner object for many spawns, and groups may change in between.
ref: https://jupyterhub.readthedocs.io/en/stable/reference/spawners.html
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .errors import GPUSpawnerError

# The only item of a list that allows nothing, since an empty list is no limit.
NOTHING = "(nothing)"
# The metadata key of a trait's function that returns the stricter of two values, for users in
# several groups. Without one, the later override counts.
STRICTER = "stricter"
# The metadata key of traits that are used while a server runs. What hooks have set for them is
# saved for a restart of the hub, after which no hook runs.
WHILE_RUNNING = "while_running"


def lower(one: float | None, other: float | None) -> float | None:
    """Return the lower of two limits; None is no limit."""
    return min((each for each in (one, other) if each is not None), default=None)


def common(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """Return the items of both lists. An empty list is no limit, so no item is `[NOTHING]`."""
    if not one or not other:
        return list(one or other)
    return [each for each in one if each in other] or [NOTHING]


@dataclass(frozen=True)
class Change:
    """A change that the administrator's hooks have made to a trait's value.

    Args:
        before: the value before the hooks; the default if the trait had no value yet.
        after: the value after the hooks.
        was_unread: whether the trait had no value before the hooks.
    """

    before: Any
    after: Any
    was_unread: bool = False

    def of(self, value: Any) -> Any:
        """Return another value with the same change applied.

        In a mapping it is applied key by key, and to a list the same items are added: its other
        items came from overrides that may not apply any more.
        """
        if all(isinstance(each, Mapping) for each in (self.before, self.after, value)):
            return self._of_mapping(value)
        if all(isinstance(each, list) for each in (self.before, self.after, value)):
            known = len(self.before)
            if self.after[:known] == self.before:
                return [*value, *(each for each in self.after[known:] if each not in value)]
            if self.after[-known:] == self.before:
                return [*(each for each in self.after[:-known] if each not in value), *value]
        return copied(self.after)

    def _of_mapping(self, value: Mapping[Any, Any]) -> dict[Any, Any]:
        kept = {
            key: item for key, item in value.items() if key not in self.before or key in self.after
        }
        changed = {
            key: item
            for key, item in self.after.items()
            if key not in self.before or self.before[key] != item
        }
        return {**kept, **copied(changed)}


class GroupOverrides:
    """The group overrides of one spawner, and the values that hooks set before and after them.

    Args:
        spawner: the spawner, an instance of `hub.compat.UnofficialHooks`.
    """

    def __init__(self, spawner: Any) -> None:
        self._spawner = spawner
        # Snapshots (trait -> value, of traits that have one): at the begin of the spawn; before the
        # first override; after the overrides and before the later hooks. None: not taken yet.
        self._configured: dict[str, Any] | None = None
        self._below: dict[str, Any] | None = None
        self._above: dict[str, Any] | None = None
        # The traits that overrides or the choice have set in this spawn.
        self._touched: set[str] = set()
        # The traits that hooks have assigned, even if to an equal value.
        self._assigned: set[str] = set()

    def was_assigned(self, trait: str) -> None:
        """Record that a trait has been assigned."""
        self._assigned.add(trait)

    def begin(self) -> None:
        """Begin a spawn: restore the values that the last one has changed, before any hook runs."""
        self.put_back()
        self._configured = self._snapshot()
        self._assigned = set()

    def apply(self, overrides: Sequence[Mapping[str, Any]]) -> None:
        """Set the traits of these overrides, and restore those of earlier ones.

        Changes that hooks have made since the last call are kept.

        Args:
            overrides: each `spawner_override` that applies now, in JupyterHub's order.

        Raises:
            OverrideError: an override can't be applied. Then none is.
        """
        with self.without_hooks():
            self._restore()
            strict: set[str] = set()
            for override in overrides:
                try:
                    self._apply_one(override, strict)
                except Exception as error:
                    self._restore()
                    raise OverrideError(error, self._key_of(override)) from error

    def choose(self, trait: str, value: Any) -> None:
        """Set a trait by the user's choice; a value that a hook has set takes precedence."""
        with self.without_hooks():
            self._touched.add(trait)
            setattr(self._spawner, trait, value)

    def put_back(self) -> None:
        """Restore the configured values at the end of a spawn."""
        if self._below is not None:
            self._restore()
        self._touched, self._below, self._above = set(), None, None

    def by_hooks(self) -> dict[str, Change]:
        """Return trait -> change that hooks have made since `apply`."""
        if self._above is None:
            return {}
        return self._changes(self._above, self._snapshot(), self._assigned)

    def before_overrides(self) -> dict[str, Change]:
        """Return trait -> change that hooks had made before `apply`."""
        if self._configured is None or self._below is None:
            return {}
        return self._changes(self._configured, self._below)

    @contextmanager
    def without_hooks(self) -> Iterator[None]:
        """Undo, within the context, what hooks have changed since `apply`. It mustn't await.

        A choice is checked before these hooks run, so it is checked again without them.
        """
        if self._below is None:
            self._below = self._snapshot()
        changes = self.by_hooks()
        assigned = self._assigned if self._above is not None else set()
        for trait, change in changes.items():
            if change.was_unread:
                self._forget(trait)
            else:
                setattr(self._spawner, trait, copied(change.before))
        self._assigned = set()
        try:
            yield
        finally:
            self._above = self._snapshot()
            for trait, change in changes.items():
                # A limit is the hooks' value, and isn't merged with a group's.
                is_rule = STRICTER in self._spawner.traits()[trait].metadata
                now = change.after if is_rule else change.of(getattr(self._spawner, trait))
                setattr(self._spawner, trait, now)
            self._assigned = assigned

    def _restore(self) -> None:
        """Restore the values from before the first override."""
        assert self._below is not None
        # Defaults that were computed since may depend on a value that an override has set.
        made = self._set_traits() - self._below.keys()
        for trait in self._touched | made:
            self._put_back(trait)

    def _put_back(self, trait: str) -> None:
        assert self._below is not None
        if trait in self._below:
            setattr(self._spawner, trait, copied(self._below[trait]))
        else:
            self._forget(trait)

    def _forget(self, trait: str) -> None:
        # traitlets has no other way to compute a default again.
        self._spawner._trait_values.pop(trait, None)

    def _apply_one(self, override: Mapping[str, Any], strict: set[str]) -> None:
        """Apply one override; raise ValueError with a sentence that names the trait."""
        for trait, value in override.items():
            try:
                self._apply_trait(trait, value(self._spawner) if callable(value) else value, strict)
            except Exception as error:
                words = str(error).rstrip(".")
                raise ValueError(words if trait in words else f"{trait}: {words}") from error

    def _apply_trait(self, trait: str, value: Any, strict: set[str]) -> None:
        spawner = self._spawner
        known = spawner.has_trait(trait)
        if known:
            stricter = spawner.traits()[trait].metadata.get(STRICTER)
            if trait in strict and stricter:
                # A user in several groups is under the rules of each.
                value = stricter(getattr(spawner, trait), value)
            strict.add(trait)
            self._touched.add(trait)
            # JupyterHub merges mappings in place, and this may be the default of all spawners.
            setattr(spawner, trait, copied(getattr(spawner, trait)))
        # A copy, since hooks may change it, and all users share the override. JupyterHub calls
        # callables, so a value that is a function itself has to be returned by one.
        spawner.apply_override({trait: lambda _spawner: copied(value)})
        if known:
            # JupyterHub merges mappings in place, which skips the trait's validation.
            setattr(spawner, trait, getattr(spawner, trait))

    def _key_of(self, override: Mapping[str, Any]) -> str:
        """Return the key of an override, as "['lab']"; "" if unknown."""
        overrides = self._spawner.group_overrides
        for key, entry in ({} if callable(overrides) else overrides).items():
            if entry.get("spawner_override") is override:
                return f"[{key!r}]"
        return ""

    def _changes(
        self, old: Mapping[str, Any], new: Mapping[str, Any], assigned: Collection[str] = ()
    ) -> dict[str, Change]:
        found = {
            trait: Change(old[trait], value)
            if trait in old
            else Change(self._spawner.trait_defaults(trait), value, was_unread=True)
            for trait, value in new.items()
        }
        return {
            trait: change
            for trait, change in found.items()
            if trait in assigned or change.before != change.after
        }

    def _snapshot(self) -> dict[str, Any]:
        """Return the values of configurable traits that have one."""
        return {name: copied(getattr(self._spawner, name)) for name in self._set_traits()}

    def _set_traits(self) -> set[str]:
        """Return the names of configurable traits that have a value.

        Reading the others would compute their defaults, which may depend on what hooks set later.
        """
        has_value = self._spawner.trait_has_value
        return {name for name in self._configurable | self._touched if has_value(name)}

    @cached_property
    def _configurable(self) -> frozenset[str]:
        # traitlets looks through all traits each time: a form would ask for them four times.
        return frozenset(self._spawner.traits(config=True))


def copied(value: Any) -> Any:
    """Return a copy of a value, with its mappings, lists, tuples and sets copied too."""
    if type(value) is dict:
        return {key: copied(item) for key, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(copied(item) for item in value)
    return value


class OverrideError(GPUSpawnerError):
    """A group override can't be applied. `str()` names it, and the trait.

    Args:
        error: the reason.
        key: the override's key, as "['lab']"; "" if unknown.
    """

    def __init__(self, error: Exception, key: str = "") -> None:
        super().__init__(f"c.Spawner.group_overrides{key} can't be applied: {error}.")
