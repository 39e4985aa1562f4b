"""What sets a spawner's traits for one spawn, in which order, and how it is put back.

In this order, each over what was before: the configuration; hooks that JupyterHub runs before the
group overrides; group overrides; the image that the choice means; hooks that run after them. While
somebody waits, group overrides and image are set anew by the rules of then, below what the later
hooks have set. A spawner object is used again for the next spawn, by whoever has which rights then.
ref: https://jupyterhub.readthedocs.io/en/stable/reference/spawners.html
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .errors import GPUSpawnerError

# The only item of a list that allows nothing, since an empty list is no limit.
NOTHING = "(nothing)"
# The metadata key of a trait's function that returns the stricter of two values, for users in
# several groups. Without one, the later override counts.
STRICTER = "stricter"
# Under which a trait's metadata says that it counts while a server runs, and so after a restart of
# the hub: no hook runs then that could set it again.
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
    """What hooks have made of a trait's value.

    Args:
        before: what it was; where nobody had read it, its default.
        after: what it is.
        was_unread: whether nobody had read it.
    """

    before: Any
    after: Any
    was_unread: bool = False

    def of(self, value: Any) -> Any:
        """Return what the same change makes of another value.

        What else was in a mapping or a list was an override's, whose group may have been left
        since: of a mapping it is made key by key, of a list that was made longer at its end.
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
    """The group overrides of one spawner, between what was set before them and after.

    Args:
        spawner: the spawner, an instance of `hub.compat.UnofficialHooks`.
    """

    def __init__(self, spawner: Any) -> None:
        self._spawner = spawner
        # Each is trait -> value, of those that had one: when the spawn began; before anything was
        # set here; and as that was left, before the later hooks. None: it isn't so far.
        self._configured: dict[str, Any] | None = None
        self._below: dict[str, Any] | None = None
        self._above: dict[str, Any] | None = None
        # What this spawn has set here.
        self._touched: set[str] = set()
        # What hooks have assigned, be it the value that was there.
        self._assigned: set[str] = set()

    def was_assigned(self, trait: str) -> None:
        """Take note that a trait is assigned."""
        self._assigned.add(trait)

    def begin(self) -> None:
        """Begin a spawn: put back what the last one had set, before any hook of this one runs."""
        self.put_back()
        self._configured = self._snapshot()
        self._assigned = set()

    def apply(self, overrides: Sequence[Mapping[str, Any]]) -> None:
        """Set what all of these set, and nothing of others: rights end with the membership.

        What hooks have made of the traits since the last time holds all the same.

        Args:
            overrides: each `spawner_override` that applies now, in its order.

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
        """Set what the choice means for a trait; what a hook has set goes before."""
        with self.without_hooks():
            self._touched.add(trait)
            setattr(self._spawner, trait, value)

    def put_back(self) -> None:
        """Put back what the administrator configured: the spawn is over."""
        if self._below is not None:
            self._restore()
        self._touched, self._below, self._above = set(), None, None

    def by_hooks(self) -> dict[str, Change]:
        """Return what hooks have made of traits since `apply`, by trait."""
        if self._above is None:
            return {}
        return self._changes(self._above, self._snapshot(), self._assigned)

    def before_overrides(self) -> dict[str, Change]:
        """Return what hooks had made of traits before `apply`, by trait."""
        if self._configured is None or self._below is None:
            return {}
        return self._changes(self._configured, self._below)

    @contextmanager
    def without_hooks(self) -> Iterator[None]:
        """Have the traits without what hooks have made of them since `apply`; nothing may await.

        The check of a choice comes before these hooks, and so it does when it is made again.
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
                # A rule is what they have made it, not that and what a group has.
                is_rule = STRICTER in self._spawner.traits()[trait].metadata
                now = change.after if is_rule else change.of(getattr(self._spawner, trait))
                setattr(self._spawner, trait, now)
            self._assigned = assigned

    def _restore(self) -> None:
        """Have the traits as they were before anything was set here."""
        assert self._below is not None
        # A default that was made since may have been made of what an override had set.
        made = self._snapshot().keys() - self._below.keys()
        for trait in self._touched | made:
            self._put_back(trait)

    def _put_back(self, trait: str) -> None:
        assert self._below is not None
        if trait in self._below:
            setattr(self._spawner, trait, copied(self._below[trait]))
        else:
            self._forget(trait)

    def _forget(self, trait: str) -> None:
        # traitlets has no other way to have a default made anew.
        self._spawner._trait_values.pop(trait, None)

    def _apply_one(self, override: Mapping[str, Any], strict: set[str]) -> None:
        """Apply what one override sets; raise ValueError with a sentence that names the trait."""
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
                # Who is in several groups is under the rules of each.
                value = stricter(getattr(spawner, trait), value)
            strict.add(trait)
            self._touched.add(trait)
            # What it was is merged into, and may be the default of every spawner.
            setattr(spawner, trait, copied(getattr(spawner, trait)))
        # A copy, since a hook may add to it, and the override is everybody's. JupyterHub calls what
        # can be called, so that a trait which is a function itself is made by one.
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
        """Return the traits that can be configured, as they are; of what nobody has read, nothing.

        Reading it would make a default of what a hook has yet to set.
        """
        spawner = self._spawner
        return {
            name: copied(getattr(spawner, name))
            for name in {*spawner.traits(config=True), *self._touched}
            if spawner.trait_has_value(name)
        }


def copied(value: Any) -> Any:
    """Return a value that stays as it is where somebody changes mappings and lists in it."""
    if type(value) is dict:
        return {key: copied(item) for key, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(copied(item) for item in value)
    return value


class OverrideError(GPUSpawnerError):
    """A group override can't be applied. `str()` names it, and the trait.

    Args:
        error: what is wrong.
        key: its own key, as "['lab']"; "" if unknown.
    """

    def __init__(self, error: Exception, key: str = "") -> None:
        super().__init__(f"c.Spawner.group_overrides{key} can't be applied: {error}.")
