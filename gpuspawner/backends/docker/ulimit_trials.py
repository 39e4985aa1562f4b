"""Which limits an engine may set is found out by one start, and not by each of many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

# How long others wait for the one that finds out. Then they find out by themselves.
PATIENCE_SECONDS = 10.0


class UlimitTrial:
    """A start that is the first with its limits; others wait for what it finds out."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._time = loop.time
        self._deadline = loop.time() + PATIENCE_SECONDS
        self._known: asyncio.Future[bool] = loop.create_future()

    def succeeded(self) -> None:
        """Take note that a container has started with these limits, or without those refused."""
        if not self._known.done():
            self._known.set_result(True)

    def given_up(self) -> None:
        """Take note that this start won't tell; after `succeeded` nothing changes."""
        if not self._known.done():
            self._known.set_result(False)

    @property
    def is_known(self) -> bool:
        """Whether it is known what the engine sets."""
        return self._known.done() and self._known.result()

    @property
    def is_lost(self) -> bool:
        """Whether nobody is to wait for it: it was given up, or takes too long."""
        return not self.is_known and (self._known.done() or self._time() >= self._deadline)

    async def wait(self) -> bool:
        """Return True once it has ended; False where it takes too long."""
        left = max(0.0, self._deadline - self._time())
        return bool((await asyncio.wait([self._known], timeout=left))[0])


class UlimitTrials:
    """The first start with each set of limits.

    An engine that may not set one says so when a container starts. Of many that are created at
    once with the same limits, all would be created in vain.
    """

    def __init__(self) -> None:
        self._trials: dict[frozenset[tuple[str, int]], UlimitTrial] = {}

    async def join(self, limits: Mapping[str, int]) -> UlimitTrial | None:
        """Return a trial whose end the caller tells; None where there is nothing to find out.

        Args:
            limits: name -> value, as the container will have them.
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
