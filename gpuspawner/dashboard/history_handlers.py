"""The page of what GPUs did, and its part of the JSON API."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from itertools import groupby
from typing import Any

from tornado import web

from ..errors import Refused
from ..i18n.lazy_text import lazy_gettext
from ..i18n.phrases import wall_day, wall_time
from ..usage.history import DAY, LONG, SHORT
from ..usage.report import Period, midnight
from .facts import status
from .handlers import API
from .history_facts import AskedHistory, ask, history, question, read_history
from .pages import cards_of, lanes, line_points
from .usage_handlers import UsageHandler

# Of a curve's picture.
WIDTH, HEIGHT = 600, 64
# How far the page looks back: in days, and what it is called.
LOOKS_BACK = {
    "day": (1, lazy_gettext("24 hours")),
    "week": (7, lazy_gettext("7 days")),
    "month": (30, lazy_gettext("30 days")),
}
# How many points are a line of the table: an hour, four hours, a day.
TOGETHER = {SHORT: 12, LONG: 8}
OTHERWISE_TOGETHER = 12
# The most GPUs of which the page has pictures; the others are picked.
MAX_PICTURES = 16

Facts = Mapping[str, Any]


class HistoryAPI(API, UsageHandler):
    """JSON."""

    async def get(self) -> None:
        """Answer."""
        self.finish(await self.answer(self._read()))

    async def _read(self) -> dict[str, Any]:
        asked = ask(self.argument)
        read = await read_history(self.usage, asked)
        return history(await self.monitor.snapshot(), self.person, asked, read)


class HistoryPage(UsageHandler):
    """Curves of each GPU with who held it, the hours of the last days, and tables of the same."""

    @web.authenticated
    async def get(self) -> None:
        """Show them, or why not."""
        snapshot, person, refusal = await self.monitor.snapshot(), self.person, ""
        found: Facts = {"gpus": [], "hours": []}
        last = self.argument("last") or "day"
        try:
            asked = self._asked(last)
            read = await read_history(self.usage, asked)
            found = history(snapshot, person, asked, read)
        except Refused as error:
            self.set_status(error.status)
            refusal = self.language.say(str(error))
        await self.find_courses()
        facts = status(snapshot, person, history=False)
        named = {
            card["gpu"]["parent"] or card["gpu"]["uuid"]: card["gpu"]
            for card in cards_of(facts["gpus"])
        }
        gpus = found["gpus"]
        self.finish(
            self.page(
                "history.html",
                {"you": facts["you"], "nodes": facts["nodes"]},
                page="history",
                refusal=refusal,
                last=last,
                looks_back=LOOKS_BACK,
                asked_gpu=self.argument("gpu"),
                named=named,
                pictures=[Picture(each, found, named) for each in gpus[:MAX_PICTURES]],
                left_out=max(0, len(gpus) - MAX_PICTURES),
                size=(WIDTH, HEIGHT),
                hours=found["hours"],
                hour_range=range(24),
                when=lambda seconds: wall_time(seconds, self.language, None),
                weekday=lambda day: wall_day(
                    midnight(date.fromisoformat(day)), self.language, None
                ),
            )
        )

    def _asked(self, last: str) -> AskedHistory:
        if last not in LOOKS_BACK:
            words = lazy_gettext("last must be one of %(names)s.", names=", ".join(LOOKS_BACK))
            raise Refused(words, key="last")
        now = time.time()
        period = Period(now - LOOKS_BACK[last][0] * DAY, now)
        return question(period, self.argument("gpu"), now)


class Picture:
    """One GPU's curves, the band below them, and the lines of its table.

    Args:
        did: the GPU in `history_facts.history`.
        found: all of that.
        named: UUID -> the GPU in `facts.status`, where there is such a one now.
    """

    def __init__(self, did: Facts, found: Facts, named: Mapping[str, Facts]) -> None:
        self._did, self._found = did, found
        self._begin, self._end = _epoch(found["from"]), _epoch(found["to"])
        self.uuid = did["uuid"]
        self.gpu = named.get(did["uuid"])
        use, memory = did["utilization_percent"], did["memory_used_mib"]
        most = (self.gpu and self.gpu["memory_total_mib"]) or max(filter(None, memory), default=0)
        self.memory_total_mib = most
        self.use = line_points(use, 100, WIDTH, HEIGHT)
        self.memory = line_points(memory, most, WIDTH, HEIGHT)
        self.gaps = [self._place(*each) for each in self._gaps(use, memory)]
        self.is_known = bool(self.use or self.memory)
        self.held = [self._bar(each) for each in did["held"]]
        self.leases = [{**self._bar(each), "lease": each} for each in did["leases"]]
        # Slots of one GPU are held at the same time.
        self.lanes = lanes(self.leases)

    def _gaps(
        self, use: Sequence[int | None], memory: Sequence[int | None]
    ) -> Iterator[tuple[float, float]]:
        """Yield when nothing is known of the GPU; the last span may have just begun."""
        step = self._found["seconds_per_point"]
        unknown = [pair == (None, None) for pair in zip(use, memory, strict=True)]
        unknown[-1:] = []
        for is_gap, run in groupby(range(len(unknown)), key=unknown.__getitem__):
            numbers = list(run)
            if is_gap:
                yield self._begin + numbers[0] * step, self._begin + (numbers[-1] + 1) * step

    def _bar(self, span: Facts) -> dict[str, Any]:
        begin, end = _epoch(span["from"]), _epoch(span["to"])
        return {**self._place(begin, end), "begin": begin, "end": end}

    def _place(self, begin: float, end: float) -> dict[str, Any]:
        """Return where a time is in the picture, in percent of its width."""
        length = self._end - self._begin
        first = 100 * (max(begin, self._begin) - self._begin) / length
        width = max(0.2, 100 * (min(end, self._end) - self._begin) / length - first)
        return {"x": f"{min(first, 100 - width):.2f}%", "width": f"{width:.2f}%"}

    @property
    def marks(self) -> Iterator[tuple[str, float]]:
        """Yield where the times are that the axis has: (place, when)."""
        for number in range(5):
            at = self._begin + number * (self._end - self._begin) / 4
            yield f"{25 * number}%", at

    @property
    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of the table: when, the means, and who held the GPU."""
        step = self._found["seconds_per_point"]
        together = TOGETHER.get(step, OTHERWISE_TOGETHER)
        use, memory = self._did["utilization_percent"], self._did["memory_used_mib"]
        for first in range(0, len(use), together):
            begin = self._begin + first * step
            end = min(self._end, begin + together * step)
            yield {
                "begin": begin,
                "use": _mean(use[first : first + together]),
                "memory": _mean(memory[first : first + together]),
                "held": any(each["begin"] < end and each["end"] > begin for each in self.held),
                "leases": [
                    each["lease"]
                    for each in self.leases
                    if each["begin"] < end and each["end"] > begin
                ],
            }


def _mean(values: Sequence[int | None]) -> int | None:
    known = [each for each in values if each is not None]
    return round(sum(known) / len(known)) if known else None


def _epoch(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
