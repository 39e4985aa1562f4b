"""Budgets: how many GPU hours users may have in a rolling window, what is left, and until when.

What a server is promised counts from its grant on, up to its end: so what is granted within a
budget stays within it, at any later time, whatever else its user asks for meanwhile.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, Protocol

from ..errors import Refused
from ..gpus.allocation import request_phrase
from ..gpus.model import GPU, Holder, Lease, Request
from ..gpus.unit_names import Share, share_of
from ..i18n.lazy_text import join_sentences, lazy_gettext, lazy_ngettext
from ..i18n.phrases import clock_time, hours_words

HOUR, DAY = 3600.0, 86400.0
# The name of the budget that isn't a group's.
EVERYBODY = "*"
MAX_DAYS, MAX_GPU_HOURS = 366.0, 1e6
# A time that is cut to a budget is a multiple of it: less isn't worth a start.
STEP_SECONDS = 300.0
# For how long a sum of what is over is used again. Meanwhile it is too high, never too low.
SUM_SECONDS = 10.0
# What clocks and sums may differ by, in seconds.
CLOSE_SECONDS = 1.0


@dataclass(frozen=True)
class Budget:
    """The GPU hours of a group's members in a rolling window.

    Args:
        group: the group; `EVERYBODY`: all users.
        hours: the GPU hours.
        days: the length of the window.
        together: whether all members share them; else each has so many.
    """

    group: str
    hours: float
    days: float
    together: bool = False

    @property
    def seconds(self) -> float:
        """The length of the window in seconds."""
        return self.days * DAY

    def is_for(self, groups: Collection[str]) -> bool:
        """Return whether it is for a user in these groups."""
        return self.group == EVERYBODY or self.group in groups


def check_budgets(given: Mapping[Any, Any]) -> tuple[Budget, ...]:
    """Return the budgets of `c.GPUSpawner.gpu_hours`.

    Raises:
        ValueError: one is none; the message names it.
    """
    return tuple(_budget(group, entry) for group, entry in given.items())


def _budget(group: Any, entry: Any) -> Budget:
    name = f"gpu_hours[{group!r}]"
    if not isinstance(group, str) or not group:
        raise ValueError(f"{name}: the key must be the name of a group, or {EVERYBODY!r} for all")
    if not isinstance(entry, Mapping) or not {"hours", "days"} <= entry.keys():
        raise ValueError(
            f'{name} must be a mapping with hours and days, {{"hours": 40, "days": 7}}'
        )
    if unknown := sorted(map(str, entry.keys() - {"hours", "days", "together"})):
        raise ValueError(f"{name} has the key {unknown[0]!r}, and may have hours, days, together")
    for key, most in (("hours", MAX_GPU_HOURS), ("days", MAX_DAYS)):
        value = entry[key]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value <= most:
            raise ValueError(
                f"{name}: {key} must be a number, more than 0 and at most {most:g}, got {value!r}"
            )
    together = entry.get("together", False)
    if not isinstance(together, bool):
        raise ValueError(f"{name}: together must be True or False, got {together!r}")
    return Budget(group, float(entry["hours"]), float(entry["days"]), together)


@dataclass(frozen=True)
class Use:
    """GPU time that a server had, or is promised.

    Args:
        user: its user.
        groups: the user's groups at the spawn.
        share: its part of a GPU: 2 GPUs are 2, a slot of eight is 1/8.
        begin, end: from when until when, in seconds since the epoch.
    """

    user: str
    groups: frozenset[str]
    share: float
    begin: float
    end: float

    def seconds_after(self, begin: float) -> float:
        """Return its GPU seconds after a time."""
        return self.share * max(0.0, self.end - max(self.begin, begin))


class PastUse(Protocol):
    """What users have had, as the store of the usage has it, and what the hub has seen since."""

    @property
    def version(self) -> object:
        """Another one as soon as more is over."""

    async def ensure_read(self) -> None:
        """Read the store, if it never has been. Raises Unknown if it can't be."""

    def over(self, user: str | None, group: str | None) -> Sequence[Use]:
        """Return what is over, of a user, or of a group's members; None and None: everybody's.

        Raises Unknown if the store has never been read.
        """

    def running(self, now: float) -> Sequence[Use]:
        """Return what is held now, up to now. Raises Unknown as `over` does."""


class NothingUsed:
    """Nobody has used anything: nothing is kept, or there are no budgets."""

    version: object = None

    async def ensure_read(self) -> None:
        """Read nothing."""

    def over(self, user: str | None, group: str | None) -> Sequence[Use]:
        """Return nothing."""
        return ()

    def running(self, now: float) -> Sequence[Use]:
        """Return nothing."""
        return ()


@dataclass(frozen=True)
class Promise:
    """GPU time that a server is promised from now on.

    Args:
        holder: the server.
        groups: the groups that it counts in.
        share: its part of a GPU.
        until: up to when, in seconds since the epoch; None: it has no end.
    """

    holder: Holder
    groups: frozenset[str]
    share: Share
    until: float | None


def promise_of(lease: Lease, ends: Mapping[Holder, float | None], now: float) -> Promise:
    """Return what a lease is promised.

    Args:
        lease: the lease.
        ends: when leases end by now, where that may have changed since it was read.
        now: the time, in seconds since the epoch.
    """
    until = ends.get(lease.holder, now if lease.overdue else lease.until)
    return Promise(lease.holder, lease.groups, share_of(lease.gpus), until)


@dataclass(frozen=True)
class Standing:
    """What of a budget is used, promised and left.

    Args:
        budget: the budget.
        over: what is over.
        over_seconds: the GPU seconds of that which count.
        open: what runs, and what is promised.
        now: the time, in seconds since the epoch.
    """

    budget: Budget
    over: Sequence[Use]
    over_seconds: float
    open: Sequence[Use]
    now: float

    @cached_property
    def taken(self) -> float:
        """The GPU hours that are used or promised."""
        begin = self.now - self.budget.seconds
        return (self.over_seconds + sum(each.seconds_after(begin) for each in self.open)) / HOUR

    @property
    def left(self) -> float:
        """The GPU hours that are left."""
        return max(0.0, self.budget.hours - self.taken)

    def back_at(self, hours: float) -> float | None:
        """Return when so many GPU hours more are left, in seconds since the epoch; None: never."""
        if hours > self.budget.hours - self.left:
            return None
        owed = (hours + max(0.0, self.taken - self.budget.hours)) * HOUR
        if owed <= CLOSE_SECONDS:
            return self.now
        window = self.budget.seconds
        steps: dict[float, float] = defaultdict(float)
        for each in [*self.over, *self.open]:
            if each.end + window > self.now and each.end > each.begin:
                steps[max(self.now, each.begin + window)] += each.share
                steps[each.end + window] -= each.share
        at, rate = self.now, 0.0
        for step in sorted(steps):
            back = rate * (step - at)
            if back >= owed - CLOSE_SECONDS:
                return at + owed / rate
            at, rate, owed = step, rate + steps[step], owed - back
        return at

    @property
    def left_words(self) -> str:
        """What is left, as a sentence for users."""
        return lazy_gettext(
            "%(whose)s: %(left)s of %(hours)s GPU hours in %(days)s are left.",
            whose=self.whose,
            left=shown_hours(self.left),
            hours=shown_hours(self.budget.hours),
            days=_days_words(self.budget),
        )

    @property
    def words(self) -> str:
        """What is left, and when more comes back, as sentences for users."""
        left = self.left_words
        missing = self.budget.hours - self.left
        if missing < 0.1:
            return left
        first = self.back_at(some := min(1.0, missing))
        every = self.back_at(missing)
        if first is None or every is None:
            return left
        if missing <= 1:
            more = lazy_gettext("The rest comes back by %(time)s.", time=_minute(every))
        else:
            more = lazy_gettext(
                "%(some)s more comes back by %(time)s, all of it by %(end)s.",
                some=shown_hours(some),
                time=_minute(first),
                end=_minute(every),
            )
        return join_sentences(left, more)

    @property
    def whose(self) -> str:
        """Whose budget it is, as the beginning of a sentence."""
        if not self.budget.together:
            return lazy_gettext("Your budget")
        if self.budget.group == EVERYBODY:
            return lazy_gettext("Everybody's budget together")
        return lazy_gettext("Your group %(group)s together", group=self.budget.group)


def _days_words(budget: Budget) -> str:
    if budget.days == int(budget.days):
        return lazy_ngettext("%(num)s day", "%(num)s days", int(budget.days))
    return hours_words(budget.seconds)


def shown_hours(hours: float) -> str:
    """Return GPU hours as people read them, never more than there are."""
    return f"{math.floor(hours * 10 + 1e-6) / 10:g}"


def _minute(seconds: float) -> str:
    # By the end of the minute: at its beginning it isn't back yet.
    return clock_time(math.ceil(seconds / 60) * 60)


class Budgets:
    """The budgets of a hub.

    Args:
        budgets: the administrator's.
        past: what users have had.
        ends: returns when the leases of running servers end by now.
    """

    def __init__(
        self,
        budgets: Sequence[Budget] = (),
        past: PastUse | None = None,
        ends: Callable[[], Mapping[Holder, float | None]] = lambda: {},
    ) -> None:
        self._budgets = tuple(budgets)
        self._past: PastUse = past or NothingUsed()
        self._ends = ends
        # (budget, user or "") -> when and of what it was made, what is over, its GPU seconds.
        self._sums: dict[tuple[Budget, str], tuple[float, object, Sequence[Use], float]] = {}

    def __bool__(self) -> bool:
        return bool(self._budgets)

    async def ensure_read(self, groups: Collection[str]) -> None:
        """Read what users have had, if it never was.

        Args:
            groups: those of the user who asks.

        Raises:
            Unknown: it can't be read, and there is a budget for the user.
        """
        if any(each.is_for(groups) for each in self._budgets):
            await self._past.ensure_read()

    def standings(
        self,
        holder: Holder,
        groups: Collection[str],
        leases: Iterable[Lease],
        waiting: Iterable[Promise],
        now: float,
    ) -> list[Standing]:
        """Return the standing of each budget that is for a server, without what it is promised.

        Args:
            holder: the server.
            groups: its user's groups.
            leases: what is held, as of the last read.
            waiting: what waits.
            now: the time, in seconds since the epoch.

        Raises:
            Unknown: the store has never been read.
        """
        mine = [each for each in self._budgets if each.is_for(groups)]
        if not mine:
            return []
        ends, running = self._ends(), self._past.running(now)
        promises = [*(promise_of(lease, ends, now) for lease in leases), *waiting]
        others = [each for each in promises if each.holder != holder and not each.holder.hub]
        found = []
        for budget in mine:
            promised = [_use(each, budget, now) for each in others]
            open_ = [each for each in (*running, *promised) if _counts(each, budget, holder.user)]
            over, seconds = self._over(budget, holder.user, now)
            found.append(Standing(budget, over, seconds, open_, now))
        return found

    def _over(self, budget: Budget, user: str, now: float) -> tuple[Sequence[Use], float]:
        key, version = (budget, "" if budget.together else user), self._past.version
        at, made_of, over, seconds = self._sums.get(key, (-math.inf, None, (), 0.0))
        if made_of is not version or not 0 <= now - at < SUM_SECONDS:
            together = None if budget.group == EVERYBODY else budget.group
            asked = (None, together) if budget.together else (user, None)
            begin = now - budget.seconds
            over = [each for each in self._past.over(*asked) if each.end > begin]
            seconds = sum(each.seconds_after(begin) for each in over)
            self._sums[key] = now, version, over, seconds
        return over, seconds


def _use(promise: Promise, budget: Budget, now: float) -> Use:
    until = now + budget.seconds if promise.until is None else promise.until
    share = float(promise.share)
    return Use(promise.holder.user, promise.groups, share, now, max(now, until))


def _counts(use: Use, budget: Budget, user: str) -> bool:
    if not budget.together:
        return use.user == user
    return budget.group == EVERYBODY or budget.group in use.groups


def part_of_gpus(request: Request, gpus: Iterable[GPU]) -> Share:
    """Return how much of GPUs a request asks for, whatever limits count: a slot of 8 is 1/8.

    Args:
        request: the request.
        gpus: the units that there are; of those that it accepts the largest counts.
    """
    if request.slots:
        # They are none of the units that there are: the GPUs are divided in their hours alone.
        return Fraction(request.gpus, request.slots)
    parts = [gpu.name.share for gpu in gpus if gpu.name and request.takes(gpu)]
    return request.gpus * max(parts, default=request.unit_share)


def within_budgets(
    request: Request,
    part: Share,
    standings: Sequence[Standing],
    named: bool,
    promised: float | None = None,
) -> Request:
    """Return a request with an end within its user's budgets.

    Args:
        request: the request.
        part: how much of GPUs it asks for.
        standings: of the budgets.
        named: whether the user named the time; else it is shortened to what is left.
        promised: the time that it was shortened to before, in seconds, which it keeps.

    Raises:
        Refused: too little is left.
    """
    if not standings or not part:
        return request
    standing = min(standings, key=lambda each: each.left)
    longest, wanted = standing.left * HOUR / float(part), request.seconds
    if wanted is not None and wanted <= longest + CLOSE_SECONDS:
        return request
    cut = math.floor((longest + CLOSE_SECONDS) / STEP_SECONDS) * STEP_SECONDS
    if promised is not None and STEP_SECONDS <= promised <= longest + CLOSE_SECONDS:
        cut = promised
    if named or cut < STEP_SECONDS:
        raise over_budget(request, part, standing, longest)
    return replace(request, seconds=cut)


def over_budget(request: Request, part: Share, standing: Standing, longest: float) -> Refused:
    """Return the refusal of a request over a budget.

    Args:
        request: the request.
        part: how much of GPUs it asks for.
        standing: of the budget.
        longest: how long a server as it asks for could have, in seconds.
    """
    if request.seconds is None:
        asked = lazy_gettext("You asked for %(gpus)s.", gpus=request_phrase(request))
        need = STEP_SECONDS * float(part) / HOUR
    else:
        need = request.seconds * float(part) / HOUR
        asked = lazy_gettext(
            "You asked for %(gpus)s for %(duration)s, which is %(need)s GPU hours.",
            gpus=request_phrase(request),
            duration=hours_words(request.seconds),
            need=f"{math.ceil(need * 10 - 1e-6) / 10:g}",
        )
    shorter = math.floor(longest / 60) * 60
    hint, later = "", standing.back_at(max(0.0, need - standing.left))
    if is_too_long := shorter >= STEP_SECONDS:
        hint = lazy_gettext("Now you can have it for %(time)s.", time=hours_words(shorter))
    if later is None:
        more = lazy_gettext("That is more than the whole budget.")
    else:
        more = lazy_gettext("Enough comes back by %(time)s.", time=_minute(later))
    counts = lazy_gettext("Servers that run or wait count up to their end.")
    words = join_sentences(asked, standing.left_words, counts, hint, more)
    # Another choice would be granted; else none would.
    return Refused(words, "choice" if is_too_long else "limit", 403, key="hours")


def latest_end(
    standings: Sequence[Standing], part: Share, own: Use, until: float
) -> tuple[float, str]:
    """Return the latest end that a running server can have that asks for a later one.

    Args:
        standings: of the budgets, without what the server is promised.
        part: its part of GPUs.
        own: what it is promised.
        until: the end that it asks for, in seconds since the epoch.

    Returns:
        The end, and sentences on why it can't be later; "": it can.
    """
    standing = min(standings, key=lambda each: each.left, default=None)
    if standing is None or not part:
        return until, ""
    end = standing.now + standing.left * HOUR / float(part)
    if end >= until - CLOSE_SECONDS:
        return until, ""
    words = replace(standing, open=[*standing.open, own]).words
    counts = lazy_gettext("Servers that run or wait count up to their end.")
    return end, join_sentences(words, counts)
