"""The reserved hours of a hub's courses: what is promised, and whether it can be kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from ..choices.slot_hours import SlotHours, next_of_each
from ..courses.catalogue import CourseCatalogue
from ..courses.hours_request import HoursRequest
from ..courses.model import Course
from ..errors import Unknown
from ..gpus.allocation import apply_leases, gpu_count_phrase
from ..gpus.model import GPU, WHOLE, Holder, Lease
from ..gpus.unit_names import parse
from ..i18n.lazy_text import join_sentences, lazy_gettext
from ..i18n.phrases import clock_time
from ..leases import audit_log
from ..leases.audit_log import one_line
from ..leases.ledger import Ledger, View
from ..scheduling.calendar import Calendar
from ..scheduling.plan import MARGIN_SECONDS
from ..scheduling.reserved import Missing, ReservedTime, ahead
from .admission import Claim, Verdict, claims_of, judge

# How often it is looked whether what is promised can be kept, and how far ahead.
LOOK_SECONDS = 30.0
SOON_SECONDS = 24 * 3600.0

NO_ENDS = (
    "No hours are reserved for courses: without c.GPUSpawner.hour_limit servers have no end, and "
    "nobody can say when a GPU is free. Set c.GPUSpawner.hour_limit"
)

NOT_YET = lazy_gettext(
    "The hub has just started, and doesn't know yet what is reserved afterwards. Please try again "
    "in a minute."
)
ENDS_WITH_HOURS = lazy_gettext(
    "Your server shares a GPU in the reserved hours of your course, and ends with these."
)


class ReservedTimes:
    """What is reserved for a hub's courses, as far as there are units for it.

    Args:
        courses: the courses.
        ledger: the nodes, and who holds what.
        hour_limit: the longest time of a server, in hours; None: servers have no end.
        log: a logger.
        granted: returns the hours that were granted on the dashboard: the same object until one
            changes.
        granted_known: returns whether these could be read.
        divides_gpus: whether the backend divides whole GPUs into slots (`Backend.divides_gpus`).
    """

    def __init__(
        self,
        courses: CourseCatalogue,
        ledger: Ledger,
        hour_limit: float | None,
        log: Any,
        granted: Callable[[], Sequence[HoursRequest]] = tuple,
        granted_known: Callable[[], bool] = lambda: True,
        divides_gpus: bool = True,
    ) -> None:
        self._courses = courses
        self._granted = granted
        self._granted_known = granted_known
        self._ledger = ledger
        self._has_ends = hour_limit is not None
        self._divides_gpus = divides_gpus
        self._log = log
        # Called with a course and a sentence if something can't be kept.
        self.tell: Callable[[Course, str], None] = lambda course, words: None
        # What the times were made of: the courses, what was granted, and the units.
        self._made_of: tuple[Any, Any, Any] = (None, None, None)
        self._times: tuple[ReservedTime, ...] = ()
        self._verdicts: tuple[Verdict, ...] = ()
        self._said: set[str] = set()
        # What can't be kept -> how many units are missing.
        self._missing: dict[ReservedTime, int] = {}

    def __call__(self) -> Sequence[ReservedTime]:
        """Return what is promised, as of the last reading of the nodes."""
        courses, granted = self._courses.current(), self._granted()
        view = self._ledger.last_view
        if view is None:
            return ()
        if not self._has_any():
            self._made_of, self._times, self._verdicts = (None, None, None), (), ()
            return ()
        units = frozenset(
            (gpu.node, gpu.id, gpu.kind, gpu.model)
            for gpu in view.gpus
            if gpu.state not in ("excluded", "mig")
        )
        made_of = self._made_of
        if made_of[0] is not courses or made_of[1] is not granted or made_of[2] != units:
            self._made_of = courses, granted, units
            self._judge(claims_of(courses, granted), view.gpus)
        return self._times

    def _has_any(self) -> bool:
        return bool(self._granted()) or any(
            course.reserved for course in self._courses.current().values()
        )

    @property
    def is_known(self) -> bool:
        """Whether the nodes have been read, without which nothing is promised, and the grants."""
        return self._ledger.last_view is not None and self._granted_known()

    def between(self, begin: float, end: float) -> Iterator[tuple[ReservedTime, int, str]]:
        """Yield what is declared for a time: it, how many units it lacks, and why it isn't kept.

        Args:
            begin, end: the time, in seconds since the epoch.
        """
        self()
        for verdict in self._verdicts:
            for each in verdict.times:
                if each.begin < end and begin < each.end:
                    yield each, self._missing.get(each, 0), verdict.refused

    def promised(self) -> list[Claim]:
        """Return the hours that are promised; all there are where that isn't known."""
        if self._ledger.last_view is None:
            return list(claims_of(self._courses.current(), self._granted()))
        self()
        return [each.claim for each in self._verdicts if not each.refused]

    def running(self, courses: Iterable[str]) -> str:
        """Return the key of the first of these courses whose hours they are; "": of none."""
        now, times = time.time(), self._known()
        keys = {each.course for each in times if each.begin <= now < each.end}
        return next((key for key in courses if key in keys), "")

    def slot_hours(self, courses: Iterable[str]) -> dict[str, SlotHours]:
        """Return course -> its next hours in which servers share GPUs, of some courses."""
        keys = set(courses)
        return next_of_each((each for each in self._known() if each.course in keys), time.time())

    def _known(self) -> Sequence[ReservedTime]:
        """Return what is promised; all there is where that isn't known, as the hub has just begun.

        What a choice may ask for is read before the nodes are.
        """
        if self._ledger.last_view is not None:
            return self()
        return [time for claim in self.promised() for time in claim.times()]

    def _judge(self, claims: Iterable[Claim], gpus: Sequence[GPU]) -> None:
        """Find out which hours there are units for, and say in the log which there aren't."""
        now = time.time()
        self._verdicts = tuple(
            judge(claims, gpus, now, has_ends=self._has_ends, divides_gpus=self._divides_gpus)
        )
        self._times = tuple(
            each
            for verdict in self._verdicts
            for each in verdict.times
            if not verdict.refused and each.end > now
        )
        for verdict in self._verdicts:
            where = f"Nothing is reserved by {verdict.claim.where}"
            if first := verdict.missing:
                self._say(
                    f"{where}: on {datetime.fromtimestamp(first.reserved.begin):%Y-%m-%d %H:%M} "
                    f"there are {first.gpus} too few, with what is reserved before it"
                )
            elif verdict.clash:
                self._say(f"{where}: it overlaps the course's hours of {verdict.clash.begin}")
            elif not self._has_ends:
                self._say(NO_ENDS)
            elif verdict.refused:
                self._say(f"{where}: whole GPUs aren't divided into slots here, as on a Swarm")

    def _say(self, problem: str) -> None:
        if problem not in self._said:
            self._said.add(problem)
            self._log.error("%s", one_line(problem))

    # -- Who holds something ---------------------------------------------------------------------

    def latest_end(self, holder: Holder, until: float) -> tuple[float, str]:
        """Return the latest end that a server can have that asks for a later one.

        Args:
            holder: the server.
            until: the end that it asks for, in seconds since the epoch.

        Returns:
            The end, and a sentence on what is in the way of a later one; "": nothing is.
        """
        times, view, now = self(), self._ledger.last_view, time.time()
        if view is None or not self.is_known:
            return now, NOT_YET
        leases = self._ledger.leases_now()
        mine = [lease for lease in leases if lease.holder == holder]
        if not mine:
            return until, ""
        end = self._end_of_slot(mine[0], view, now)
        if end is not None and end < until:
            return max(end, mine[0].until or end), ENDS_WITH_HOURS
        if not times:
            return until, ""

        def broken(end: float) -> int:
            then = [
                replace(lease, until=end) if lease.holder == holder else lease for lease in leases
            ]
            return sum(each.gpus for each in _missing(view, then, times, now, until))

        own = mine[0].until or now
        before = broken(own)
        begins = sorted({each.begin for each in times if now < each.begin < until}, reverse=True)
        for end in [until, *(begin - MARGIN_SECONDS for begin in begins)]:
            if end > own and broken(end) <= before:
                break
        else:
            end = own
        # Neither are a course's whole GPUs those that it shares in its hours.
        others = [each for each in times if each.slots or each.course != mine[0].course]
        after = [each for each in others if each.begin >= end]
        blocking = min(after, key=lambda each: each.begin, default=None)
        if not blocking or end >= until:
            return end, ""
        return end, lazy_gettext(
            "Your server's GPUs are reserved for course %(course)s afterwards.",
            course=self._courses.title_of(blocking.course),
        )

    def _end_of_slot(self, lease: Lease, view: View, now: float) -> float | None:
        """Return when the hours end of which a lease has a slot; None: it has none.

        0 if there are no such hours any more: they were removed, or are others now.
        """
        whole = {gpu.uuid for gpu in view.gpus if gpu.kind == WHOLE}
        names = [name for name in map(parse, lease.gpus) if name.uuid in whole]
        slots = {name.of for name in names if name.slot is not None}
        if not slots or not lease.course:
            return None
        return max(
            (
                each.end
                for each in self()
                if each.course == lease.course and each.slots in slots and each.begin <= now
            ),
            default=0.0,
        )

    # -- Whether it can be kept ------------------------------------------------------------------

    async def watch(self) -> None:
        """Look again and again whether what is promised soon can be kept, and tell what can't."""
        while True:
            # What nothing was read of yet may be in the way of an extension.
            if self._has_any() or not self.is_known:
                try:
                    self.look(await self._ledger.read_recent(LOOK_SECONDS))
                except Unknown:  # which is in the log already
                    pass
                except Exception:
                    self._log.exception("Whether reserved hours can be kept isn't known")
            await asyncio.sleep(LOOK_SECONDS)

    def look(self, view: View) -> list[Missing]:
        """Tell what can't be kept of what is promised soon, once; return it."""
        now = time.time()
        found = _missing(view, view.leases, self(), now, now + SOON_SECONDS)
        for each in found:
            if each.reserved not in self._missing:
                self._report(each)
        self._missing = {each.reserved: each.gpus for each in found}
        return found

    def _report(self, missing: Missing) -> None:
        reserved = missing.reserved
        course = self._courses.current().get(reserved.course)
        begin = clock_time(reserved.begin)
        words: str = lazy_gettext(
            "Reserved for course %(course)s from %(time)s on: %(gpus)s, of which %(missing)s can't "
            "be had as things are.",
            course=self._courses.title_of(reserved.course),
            time=begin,
            gpus=gpu_count_phrase(reserved.gpus, reserved.model or None, reserved.kind),
            missing=missing.gpus,
        )
        if reserved.slots:
            seats = lazy_gettext(
                "That leaves %(left)s of %(seats)s seats.",
                left=(reserved.gpus - missing.gpus) * reserved.slots,
                seats=reserved.gpus * reserved.slots,
            )
            words = join_sentences(words, seats)
        self._log.warning("%s", one_line(words))
        audit_log.record(
            self._log,
            "warn",
            Holder(""),
            audit_log.RULES,
            rule="reserved hours",
            course=reserved.course,
            gpus=missing.gpus,
            until=round(reserved.end),
        )
        if course:
            self.tell(course, words)


def _missing(
    view: View,
    leases: Sequence[Lease],
    times: Iterable[ReservedTime],
    now: float,
    before: float,
) -> list[Missing]:
    """Return what can't be kept of what begins before a time, with these leases."""
    soon = [each for each in ahead(times, now, before - now) if each.begin < before]
    if not soon:
        return []
    free = [
        replace(gpu, state="free", holder=None, until=None, overdue=False)
        if gpu.state == "leased"
        else gpu
        for gpu in view.gpus
    ]
    return Calendar(apply_leases(free, leases), leases, now, {}, soon).missing
