"""Reports: sums over the leases of a period, by user, group, course, GPU model or image version."""

from __future__ import annotations

import csv
import io
import itertools
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Float, case, cast, func, select
from sqlalchemy.sql.elements import ColumnElement

from ..errors import Refused
from ..i18n.lazy_text import lazy_gettext
from .schema import groups, leases, units

DIMENSIONS = ("user", "group", "course", "model", "image", "why")
# The most bars of a chart.
MAX_BARS = 40
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Period:
    """A span of time: from `begin` on, and not `end` any more, in seconds since the epoch."""

    begin: float
    end: float


@dataclass(frozen=True)
class Scope:
    """Whose leases a report is of; None: everybody's, of all hubs, of all courses."""

    user: str | None = None
    hub: str | None = None
    course: str | None = None


@dataclass(frozen=True)
class Sums:
    """One row of a report. None: nobody could measure it, or nothing is known of it.

    Args:
        name: the user, group, course, model, image version or reason of the end; None: none.
        leases: how many there were in the period, also those that began before.
        gpu_hours: hours times parts of GPUs.
        idle_gpu_hours: those of them in which the GPUs were held and did nothing.
        measured_gpu_hours: those of which it is known whether they did something.
        utilization_percent: the mean utilization, of what has one of its own.
        memory_mean_mib, memory_peak_mib: the memory in use on a lease's GPUs.
        wait_mean_seconds, wait_longest_seconds: of the leases that began in the period.
    """

    name: str | None
    leases: int
    gpu_hours: float
    idle_gpu_hours: float | None
    measured_gpu_hours: float | None
    utilization_percent: float | None
    memory_mean_mib: float | None
    memory_peak_mib: int | None
    wait_mean_seconds: float | None
    wait_longest_seconds: float | None


COLUMNS = tuple(each.name for each in fields(Sums))
_NAMES: dict[str, Any] = {
    "user": leases.c.user,
    "group": groups.c.name,
    "course": leases.c.course,
    "model": units.c.model,
    "image": leases.c.image,
    "why": leases.c.why,
}


def report(connection: Connection, period: Period, by: str, scope: Scope) -> list[Sums]:
    """Return the sums of a period, the most GPU hours first.

    A lease that began before the period or ended after it counts by the part that lies in it. By
    group a lease counts for each of its user's groups, so that these add up to more than all.

    Args:
        connection: of a store.
        period: the period.
        by: one of `DIMENSIONS`.
        scope: whose leases.
    """
    name = _NAMES[by]
    # By model each GPU counts by itself.
    of = units if by == "model" else leases
    found = _sums(period, scope, cast(of.c.share_part, Float) / of.c.share_of, name)
    if by in ("group", "model"):
        other = groups if by == "group" else units
        found = found.outerjoin(other, other.c.lease == leases.c.id)
    rows = [_row(row) for row in connection.execute(found.group_by(name))]
    return sorted(rows, key=lambda row: (-row.gpu_hours, row.name or ""))


def total(connection: Connection, period: Period, scope: Scope) -> Sums:
    """Return the sums over all leases of a period."""
    share = cast(leases.c.share_part, Float) / leases.c.share_of
    return _row(connection.execute(_sums(period, scope, share, None)).one())


def _sums(period: Period, scope: Scope, share: ColumnElement[Any], name: Any) -> Any:
    began, until, length = leases.c.began, leases.c.until, leases.c.seconds
    begin = case((began < period.begin, period.begin), else_=began)
    end = case((until > period.end, period.end), else_=until)
    part = case((length > 0, (end - begin) / length), else_=0.0)
    of_share = part * share
    is_new = began >= period.begin
    columns = [
        func.count(func.distinct(leases.c.id)).label("leases"),
        func.sum((end - begin) * share).label("held"),
        func.sum(leases.c.idle * of_share).label("idle"),
        func.sum(leases.c.measured * of_share).label("measured"),
        func.sum(leases.c.used * of_share).label("used"),
        func.sum(leases.c.used_of * of_share).label("used_of"),
        func.sum(leases.c.memory * part).label("memory"),
        func.sum(leases.c.memory_of * part).label("memory_of"),
        func.max(leases.c.memory_peak).label("memory_peak"),
        func.sum(case((is_new, leases.c.waited))).label("waited"),
        func.count(case((is_new, leases.c.waited))).label("waits"),
        func.max(case((is_new, leases.c.waited))).label("longest"),
    ]
    chosen: Any = select(*columns, *([] if name is None else [name.label("name")]))
    return held_in(chosen.select_from(leases), period, scope)


def held_in(chosen: Any, period: Period, scope: Scope) -> Any:
    """Return a query of leases with those of a period and a scope alone."""
    for column in ("user", "course"):
        if (value := getattr(scope, column)) is not None:
            chosen = chosen.where(leases.c[column] == value)
    if scope.hub is not None:
        # Not by an index, which SQLite would take for it: nearly all leases are of one hub.
        chosen = chosen.where(leases.c.hub.concat("") == scope.hub)
    # Else whatever has ended since the beginning of the period would have to be looked at.
    longest = select(func.coalesce(func.max(leases.c.seconds), 0.0)).scalar_subquery()
    return chosen.where(
        leases.c.began < period.end,
        leases.c.until > period.begin,
        leases.c.began >= period.begin - longest - 1,
    )


def _row(row: Any) -> Sums:
    def hours(seconds: float | None) -> float | None:
        return None if seconds is None else seconds / 3600

    def mean(total: float | None, number: float | None, times: float = 1) -> float | None:
        return total * times / number if total is not None and number else None

    return Sums(
        getattr(row, "name", None),
        row.leases,
        (row.held or 0.0) / 3600,
        hours(row.idle),
        hours(row.measured),
        mean(row.used, row.used_of, 100),
        mean(row.memory, row.memory_of),
        row.memory_peak,
        mean(row.waited, row.waits),
        row.longest,
    )


# ---- over time -----------------------------------------------------------------------------------


def spans(period: Period) -> list[Period]:
    """Return the days of a period by local time, or as many of them together as fit a chart."""
    first = datetime.fromtimestamp(period.begin).date()
    days = (datetime.fromtimestamp(period.end - 1e-3).date() - first).days + 1
    each = -(-days // MAX_BARS)
    edges = [midnight(first + number * DAY) for number in range(0, days, each)]
    edges = [period.begin, *edges[1:], period.end]
    return [Period(*pair) for pair in itertools.pairwise(edges)]


def over_time(connection: Connection, period: Period, scope: Scope) -> list[tuple[Period, Sums]]:
    """Return the sums of each of a period's spans."""
    parts = spans(period)
    edges = [span.begin for span in parts]
    found = [_Part() for _ in parts]
    for row in connection.execute(held_in(select(*_OF_PARTS), period, scope)):
        first = max(0, bisect_right(edges, row.began) - 1)
        for number in range(first, len(parts)):
            if parts[number].begin >= row.until:
                break
            found[number].add(row, parts[number])
    return [(span, _row(part)) for span, part in zip(parts, found, strict=True)]


# What `_Part.add` reads: a lease has twice as many columns.
_OF_PARTS = (
    leases.c.began,
    leases.c.until,
    leases.c.seconds,
    leases.c.share_part,
    leases.c.share_of,
    leases.c.idle,
    leases.c.measured,
    leases.c.used,
    leases.c.used_of,
    leases.c.memory,
    leases.c.memory_of,
    leases.c.memory_peak,
    leases.c.waited,
)


@dataclass
class _Part:
    """The sums of one span, as a row of `_sums` has them."""

    leases: int = 0
    held: float = 0.0
    idle: float | None = None
    measured: float | None = None
    used: float | None = None
    used_of: float | None = None
    memory: float | None = None
    memory_of: float | None = None
    memory_peak: int | None = None
    waited: float | None = None
    waits: int = 0
    longest: float | None = None

    def add(self, row: Any, span: Period) -> None:
        """Add what of a lease lies in the span."""
        seconds = min(row.until, span.end) - max(row.began, span.begin)
        share, part = row.share_part / row.share_of, seconds / row.seconds if row.seconds else 0.0
        self.leases += 1
        self.held += seconds * share
        for name in ("idle", "measured", "used", "used_of", "memory", "memory_of"):
            if (value := getattr(row, name)) is not None:
                of_share = 1.0 if name.startswith("memory") else share
                setattr(self, name, (getattr(self, name) or 0.0) + value * part * of_share)
        if row.memory_peak is not None:
            self.memory_peak = max(self.memory_peak or 0, row.memory_peak)
        if row.began >= span.begin and row.waited is not None:
            self.waits += 1
            self.waited = (self.waited or 0.0) + row.waited
            self.longest = max(self.longest or 0.0, row.waited)


def midnight(day: date) -> float:
    """Return when a day begins by local time, in seconds since the epoch."""
    return datetime(day.year, day.month, day.day).timestamp()


def parse_period(begin: str, end: str, now: float) -> Period:
    """Return the period between two dates, by local time: from the one on, and before the other.

    Args:
        begin: a date, 2026-11-01, also with a time of day; "": the first of this month.
        end: the same; "": tomorrow.
        now: the time, in seconds since the epoch.

    Raises:
        Refused: one is none, or they are in the wrong order.
    """
    today = datetime.fromtimestamp(now).date()
    first = parse_moment("from", begin) if begin else midnight(today.replace(day=1))
    last = parse_moment("to", end) if end else midnight(today + DAY)
    if first >= last:
        words = lazy_gettext("No time lies from the first date on and before the second.")
        raise Refused(words, key="to")
    return Period(first, last)


def parse_moment(key: str, text: str) -> float:
    """Return the time that a date is, by local time, in seconds since the epoch.

    Args:
        key: what it is of a request.
        text: a date, 2026-11-01, also with a time of day.

    Raises:
        Refused: it is none.
    """
    try:
        found = datetime.fromisoformat(text[:32])
        if not 1970 < found.year < 9999:
            raise ValueError
        return found.timestamp()
    except (ValueError, OverflowError, OSError):
        words = lazy_gettext("%(value)s is no date such as 2026-11-01.", value=repr(text[:32]))
        raise Refused(words, key=key) from None


# ---- for programs --------------------------------------------------------------------------------


def as_json(rows: Iterable[Sums]) -> list[dict[str, Any]]:
    """Return the documented JSON values of a report."""
    return [{key: _rounded(value) for key, value in asdict(row).items()} for row in rows]


def as_csv(rows: Iterable[Sums]) -> str:
    """Return a report as CSV. No name of it is a formula for who opens it in a spreadsheet."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for row in as_json(rows):
        writer.writerow(["" if value is None else _harmless(value) for value in row.values()])
    return written.getvalue()


def _harmless(value: Any) -> Any:
    # ref: https://owasp.org/www-community/attacks/CSV_Injection
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if is_formula else value


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def number(value: float | None, digits: int = 1) -> str:
    """Return a figure as a table for people has it."""
    return "–" if value is None else f"{value:,.{digits}f}"  # noqa: RUF001 - a dash


def hours(value: float | None) -> str:
    """Return GPU hours as a table for people has them: also what was held for a minute shows."""
    return number(value, 2)


def cells(row: Sums) -> Sequence[str]:
    """Return a row as a table for people has it, without its name."""

    return (
        str(row.leases),
        hours(row.gpu_hours),
        hours(row.idle_gpu_hours),
        hours(row.measured_gpu_hours),
        number(row.utilization_percent, 0),
        number(None if row.memory_mean_mib is None else row.memory_mean_mib / 1024),
        number(None if row.memory_peak_mib is None else row.memory_peak_mib / 1024),
        number(None if row.wait_mean_seconds is None else row.wait_mean_seconds / 60),
        number(None if row.wait_longest_seconds is None else row.wait_longest_seconds / 60),
    )
