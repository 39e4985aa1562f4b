"""Trials of ulimits: of many starts at once, one finds out which the engine is allowed to set."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

# How long other starts wait for a trial; then one of them begins another.
PATIENCE_SECONDS = 10.0


class UlimitTrial:
    """The first start with its ulimits, for whose result other starts wait."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._time = loop.time
        self._deadline = loop.time() + PATIENCE_SECONDS
        self._known: asyncio.Future[bool] = loop.create_future()

    def succeeded(self) -> None:
        """Record that a container has started with these ulimits, or without the refused ones."""
        if not self._known.done():
            self._known.set_result(True)

    def given_up(self) -> None:
        """Record that this start has no result; no effect after `succeeded`."""
        if not self._known.done():
            self._known.set_result(False)

    @property
    def is_known(self) -> bool:
        """Whether it is known which ulimits the engine sets."""
        return self._known.done() and self._known.result()

    @property
    def is_lost(self) -> bool:
        """Whether it has no result and won't be waited for: it was given up, or takes too long."""
        return not self.is_known and (self._known.done() or self._time() >= self._deadline)

    async def wait(self) -> bool:
        """Wait for the result; return whether the trial has ended in time."""
        left = max(0.0, self._deadline - self._time())
        return bool((await asyncio.wait([self._known], timeout=left))[0])


class UlimitTrials:
    """The trials of an engine, one per set of ulimits.

    An engine refuses a ulimit only when a container starts. Without trials, many containers that
    are created at once with the same ulimits would all be created in vain.
    """

    def __init__(self) -> None:
        self._trials: dict[frozenset[tuple[str, int]], UlimitTrial] = {}

    async def join(self, limits: Mapping[str, int]) -> UlimitTrial | None:
        """Return a trial, whose result the caller has to record; None if the result is known.

        Args:
            limits: the container's ulimits, name -> value.
        """
        key = frozenset(limits.items())
        while True:
            trial = self._trials.get(key)
            if trial is None or trial.is_lost:
                trial = self._trials[key] = UlimitTrial()
                return trial
            if trial.is_known:
                return None
            if not await trial.wait():
                return None
