"""The rules of a server that an earlier hub process has started."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any

from tornado import web
from traitlets import TraitError

from .group_overrides import WHILE_RUNNING
from .leases.audit_log import one_line

Rules = Mapping[str, Mapping[str, Any]]


class KeptRules:
    """What hooks have set for a server's `WHILE_RUNNING` traits, over a restart of the hub.

    JupyterHub applies group overrides and runs hooks only at a spawn.

    Args:
        spawner: the server's `BaseGPUSpawner`.
    """

    def __init__(self, spawner: Any) -> None:
        self._spawner = spawner
        # What an earlier hub process saved, until it is applied. None: this process knows them.
        self._earlier: Rules | None = None

    def restore(self, saved: Rules | None) -> None:
        """Take what `saved` of an earlier hub process returned, to be applied when asked for."""
        self._earlier = saved or {}

    def forget(self) -> None:
        """Leave out what an earlier process saved: this one applies the rules itself."""
        self._earlier = None

    def saved(self) -> Rules | None:
        """Return "before" and "after" (the overrides) -> trait -> value; None: hooks set none."""
        rules = self._by_hooks() if self._earlier is None else self._earlier
        return rules if any(rules.values()) else None

    async def ensure_applied(self) -> None:
        """Apply the rules for a server that an earlier hub process has started."""
        earlier, self._earlier = self._earlier, None
        if earlier is None:
            return
        spawner = self._spawner
        overrides: list[dict[str, Any]] = []
        with suppress(web.HTTPError):  # an invalid override, which has been logged
            overrides = await spawner.overrides_of_groups()
        spawner.overrides.begin()
        self._set(earlier.get("before", {}))
        with suppress(web.HTTPError):
            spawner.apply_overrides_of(overrides)
        self._set(earlier.get("after", {}))

    def _by_hooks(self) -> dict[str, dict[str, Any]]:
        overrides = self._spawner.overrides
        both = {"before": overrides.before_overrides(), "after": overrides.by_hooks()}
        return {
            when: {name: change.after for name, change in changes.items() if name in self._names}
            for when, changes in both.items()
        }

    @cached_property
    def _names(self) -> frozenset[str]:
        """The traits whose values are kept."""
        # traitlets looks through all traits each time, and a start saves its state several times.
        return frozenset(self._spawner.traits(config=True, **{WHILE_RUNNING: True}))

    def _set(self, rules: Mapping[str, Any]) -> None:
        spawner = self._spawner
        for name, value in rules.items():
            try:
                setattr(spawner, name, value)
            except TraitError as error:
                spawner.log.warning("What a hook had set can't be set again: %s", one_line(error))
