"""What users have had lately, as the queue's order "share" counts it: of long ago less and less."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ..errors import Unknown
from ..gpus.model import Holder
from .budgets import DAY, HOUR, PastUse, Use
from .plan import UserShare

WEEK = 7 * DAY
# After so many half-lives nothing is left that would matter: 1/256.
HALF_LIVES = 8


def check_weights(given: Mapping[Any, Any]) -> Mapping[str, float]:
    """Return the weights of `c.GPUSpawner.share_weights`.

    Raises:
        ValueError: one is none; the message names it.
    """
    for group, weight in given.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not isinstance(group, str) or not is_number or not 0 < weight <= 1000:
            raise ValueError(
                f"share_weights[{group!r}] must be the name of a group and a number, more than 0 "
                f"and at most 1000, got {weight!r}"
            )
    return given


def decayed(uses: Iterable[Use], now: float, half_life: float) -> float:
    """Return GPU hours that count for less the longer ago they were.

    Args:
        uses: what was had, up to now.
        now: the time, in seconds since the epoch.
        half_life: after how many seconds an hour counts as half of one.
    """
    rate = math.log(2) / half_life
    seconds = sum(
        use.share
        * (math.exp(rate * (min(use.end, now) - now)) - math.exp(rate * (use.begin - now)))
        for use in uses
        if use.begin < min(use.end, now)
    )
    return seconds / rate / HOUR


class Shares:
    """What the users of a hub have had lately.

    Args:
        past: what users have had.
        half_life: after how many seconds an hour counts as half of one.
        weights: group -> how many times as much its members may have as others.
    """

    def __init__(self, past: PastUse, half_life: float, weights: Mapping[str, float]) -> None:
        self._past = past
        self._half_life = half_life
        self._weights = weights
        # User -> of what version and when it was made, what is over, decayed and of a week.
        self._over: dict[str, tuple[object, float, float, float]] = {}

    def of(
        self, people: Iterable[tuple[Holder, Collection[str]]], now: float
    ) -> dict[tuple[str, str], UserShare]:
        """Return person -> what that user has had lately, of servers and their users' groups.

        Where that can't be read nobody has had anything: then who came first goes first.
        """
        running: dict[str, list[Use]] = defaultdict(list)
        try:
            for use in self._past.running(now):
                running[use.user].append(use)
            return {
                holder.person: self._share(holder.user, groups, running[holder.user], now)
                for holder, groups in people
            }
        except Unknown:  # the log has it
            return {}

    def _share(
        self, user: str, groups: Collection[str], running: Sequence[Use], now: float
    ) -> UserShare:
        version, (made_of, at, count, week) = (
            self._past.version,
            self._over.get(user, (None, -math.inf, 0.0, 0.0)),
        )
        if made_of is not version or not 0 <= now - at < HOUR:
            over = self._past.over(user, None)
            at, count = now, decayed(over, now, self._half_life)
            week = sum(use.seconds_after(now - WEEK) for use in over)
            self._over[user] = version, at, count, week
        count *= 2 ** (-(now - at) / self._half_life)
        weights = [self._weights[name] for name in groups if name in self._weights]
        return UserShare(
            count + decayed(running, now, self._half_life),
            (week + sum(use.seconds_after(now - WEEK) for use in running)) / HOUR,
            max(weights, default=1.0),
        )
