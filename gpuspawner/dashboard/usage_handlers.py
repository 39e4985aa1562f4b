"""The page of the usage, and its part of the JSON API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from tornado import web

from ..errors import Refused
from ..i18n.lazy_text import lazy_gettext
from ..usage import report
from ..usage.endings import WHYS
from ..usage.report import Sums
from .facts import iso_time
from .handlers import API, Handler
from .usage_facts import Answer, Asked, UsageReader, ask

# Of the chart.
WIDTH, HEIGHT = 600, 160
# What the rows are, for people.
TITLES = {
    "user": lazy_gettext("user"),
    "group": lazy_gettext("group"),
    "course": lazy_gettext("course"),
    "model": lazy_gettext("GPU model"),
    "image": lazy_gettext("image version"),
    "why": lazy_gettext("why it ended"),
}


class UsageHandler(Handler):
    """What all have that read the store."""

    @property
    def usage(self) -> UsageReader:
        """The reader, which all requests share."""
        reader: UsageReader = self.settings.setdefault("usage", UsageReader(self.actions.socket))
        return reader

    def argument(self, name: str) -> str:
        """Return an argument of the address; "" where there is none."""
        return self.get_query_argument(name, "")


class UsagePage(UsageHandler):
    """Charts and tables."""

    @web.authenticated
    async def get(self) -> None:
        """Show them, or why not."""
        person, answer, asked, refusal = self.person, None, None, ""
        try:
            asked = ask(person, self.argument)
            answer = await self.usage.answer(asked, person, days=True)
        except Refused as error:
            self.set_status(error.status)
            refusal = self.language.say(str(error))
        await self.find_courses()
        you = {"user": person.name, "administrator": person.administrator}
        self.finish(
            self.page(
                "usage.html",
                {"you": you},
                page="usage",
                refusal=refusal,
                asked=self._form(asked),
                answer=answer,
                titles=TITLES,
                names=_names(answer, asked) if answer and asked else {},
                cells=report.cells,
                bars=bars(answer) if answer else [],
                highest=report.hours(highest_of(answer)) if answer else "",
                chart=(WIDTH, HEIGHT),
                day=day,
            )
        )

    def _form(self, asked: Asked | None) -> dict[str, str]:
        """Return what the form shows: what was asked for, right or wrong."""
        given = {name: self.argument(name)[:32] for name in ("from", "to", "by", "whose")}
        if asked is None:
            return given
        period = asked.period
        dates = {"from": day(period.begin), "to": day(period.end)}
        return {**given, **dates, "by": asked.by, "whose": asked.whose}


class UsageAPI(API, UsageHandler):
    """JSON or CSV."""

    async def get(self) -> None:
        """Answer."""
        form = self.argument("format") or "json"
        if form not in ("json", "csv"):
            words = lazy_gettext("format must be one of %(names)s.", names="json, csv")
            await self.answer(_refused(Refused(words, key="format")))
        found, asked = await self.answer(self._read())
        if form == "csv":
            self.set_header("Content-Type", "text/csv; charset=utf-8")
            self.set_header("Content-Disposition", 'attachment; filename="usage.csv"')
            self.finish(report.as_csv(found.rows))
        else:
            self.finish(as_json(found, asked))

    async def _read(self) -> tuple[Answer, Asked]:
        asked = ask(self.person, self.argument)
        return await self.usage.answer(asked, self.person, days=False), asked


def _names(answer: Answer, asked: Asked) -> Mapping[str, str]:
    """Return what users call the rows of a report, by what the store has; {}: just that."""
    return {"why": WHYS, "course": answer.courses}.get(asked.by, {})


async def _refused(error: Refused) -> None:
    raise error


def as_json(answer: Answer, asked: Asked) -> dict[str, Any]:
    """Return the answer as a JSON value; `openapi.yaml` describes it."""
    (total,) = report.as_json([answer.total])
    del total["name"]
    return {
        "from": iso_time(asked.period.begin),
        "to": iso_time(asked.period.end),
        "by": asked.by,
        "whose": asked.whose,
        "total": total,
        "rows": report.as_json(answer.rows),
    }


def day(seconds: float) -> str:
    """Return the date of a time, as a form takes it."""
    return datetime.fromtimestamp(seconds).date().isoformat()


def bars(answer: Answer) -> Sequence[Mapping[str, Any]]:
    """Return the bars of the chart: for each span its date, its hours, and where its parts are."""
    highest = highest_of(answer) or 1.0
    width = WIDTH / max(1, len(answer.days))
    found = []
    for number, (span, sums) in enumerate(answer.days):
        parts, y = [], float(HEIGHT)
        for name, hours in _parts(sums).items():
            height = HEIGHT * hours / highest
            y -= height
            box = {"y": f"{y:.1f}", "height": f"{height:.1f}"}
            parts.append({"name": name, **box})
        place = {"x": f"{number * width + 1:.1f}", "width": f"{max(1.0, width - 2):.1f}"}
        found.append({"day": day(span.begin), "sums": sums, "parts": parts, **place})
    return found


def highest_of(answer: Answer) -> float:
    """Return the GPU hours of the chart's highest bar."""
    return max((sums.gpu_hours for _, sums in answer.days), default=0.0)


def _parts(sums: Sums) -> dict[str, float]:
    measured, idle = sums.measured_gpu_hours or 0.0, sums.idle_gpu_hours or 0.0
    used = max(0.0, measured - idle)
    return {"used": used, "idle": idle, "unknown": max(0.0, sums.gpu_hours - used - idle)}
