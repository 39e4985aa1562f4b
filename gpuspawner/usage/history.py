"""What each GPU did when: means over short spans, and over longer ones of what is older.

A reading counts for the time since the one before it, within its span and for at most
`LONGEST_SECONDS`. A row takes only what was read after all that is in it. So a reading that is
written twice, or by two hubs, counts once; no span has more time than it is long; and where nobody
read there is nothing, which isn't 0. Short spans become a long one in the statement that makes its
row, once: what a clock that was set back adds to such a time later is dropped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, literal, select, update
from sqlalchemy.orm import aliased

from .readings import Measures, Reading
from .report import Period, Scope, held_in
from .schema import history, leases, units

# The spans, in seconds. The longer one begins with an hour's half in nearly every time zone.
SHORT, LONG = 300, 1800
# For how long there are short ones.
SHORT_KEPT_SECONDS = 2 * 86400.0
# For how long what a GPU was read to do is taken to have gone on before.
LONGEST_SECONDS = 120.0
# Of how many seconds a point of a curve may be, and how many of them it has at the most.
STEPS = (SHORT, LONG, 7200, 21600, 86400)
MAX_POINTS = 400
DAY = 86400.0

_SUMS = ("used_of", "used", "memory_of", "memory")


@dataclass(frozen=True)
class Did:
    """What a GPU did in a span.

    Args:
        used_of: seconds with a known utilization.
        used: that many times the utilization, from 0 to 1.
        memory_of: seconds with known memory in use.
        memory: that many times MiB.
    """

    used_of: float = 0.0
    used: float = 0.0
    memory_of: float = 0.0
    memory: float = 0.0

    def __add__(self, other: Did) -> Did:
        return Did(*(getattr(self, name) + getattr(other, name) for name in _SUMS))

    @property
    def utilization_percent(self) -> int | None:
        """The mean utilization; None: nobody knows it."""
        return round(100 * self.used / self.used_of) if self.used_of else None

    @property
    def memory_used_mib(self) -> int | None:
        """The mean memory in use; None: nobody knows it."""
        return round(self.memory / self.memory_of) if self.memory_of else None


NOTHING = Did()


@dataclass(frozen=True)
class Curves:
    """What GPUs did in a period, point by point.

    Args:
        period: from the first point's beginning to the last one's end.
        step: the seconds of each point.
        gpus: UUID -> number of a point -> what the GPU did; a point that nobody read is missing.
    """

    period: Period
    step: int
    gpus: Mapping[str, Mapping[int, Did]]

    @property
    def points(self) -> int:
        """How many there are."""
        return round((self.period.end - self.period.begin) / self.step)


@dataclass(frozen=True)
class Held:
    """That a unit of a GPU was held.

    Args:
        gpu: the physical GPU's UUID.
        unit: the unit's name.
        hub: the hub's address, which user and server are of.
        user, server: the holder.
        period: when, as far as it is written.
    """

    gpu: str
    unit: str
    hub: str
    user: str
    server: str
    period: Period


# ---- writing -------------------------------------------------------------------------------------


def write(connection: Connection, readings: Sequence[Reading], now: float) -> None:
    """Write readings, in the transaction of a connection.

    Args:
        connection: of a store.
        readings: what was read. What is older than short spans are kept for is left out.
        now: the time, in seconds since the epoch.
    """
    spans: dict[int, list[Reading]] = defaultdict(list)
    for reading in sorted(readings, key=lambda each: each.at):
        if reading.at >= _edge(now):
            spans[int(reading.at // SHORT) * SHORT].append(reading)
    for began, some in spans.items():
        _write_span(connection, began, some)


def _write_span(connection: Connection, began: int, readings: Sequence[Reading]) -> None:
    span = (history.c.seconds == SHORT, history.c.began == began)
    found = connection.execute(select(history).where(*span))
    before = {row.gpu: dict(row._mapping) for row in found}
    after = dict(before)
    for reading in readings:
        for gpu, measures in reading.gpus.items():
            row = after.get(gpu) or {
                **{"gpu": gpu, "seconds": SHORT, "began": began, "until": float(began)},
                **dict.fromkeys(_SUMS, 0.0),
            }
            if reading.at > row["until"]:
                after[gpu] = _with(row, reading.at, measures)
    if new := [row for gpu, row in after.items() if gpu not in before]:
        connection.execute(insert(history), new)
    if changed := [row for gpu, row in after.items() if gpu in before and row is not before[gpu]]:
        of_gpu = update(history).where(*span, history.c.gpu == bindparam("of_gpu"))
        connection.execute(
            of_gpu.values({name: bindparam(name) for name in ("until", *_SUMS)}),
            [{"of_gpu": row["gpu"], **{n: row[n] for n in ("until", *_SUMS)}} for row in changed],
        )


def _with(row: Mapping[str, Any], at: float, measures: Measures) -> dict[str, Any]:
    """Return a row with a reading that is later than what is in it."""
    seconds, (percent, mib) = min(at - row["until"], LONGEST_SECONDS), measures
    changed = {**row, "until": at}
    if percent is not None:
        changed["used_of"] += seconds
        changed["used"] += seconds * percent / 100
    if mib is not None:
        changed["memory_of"] += seconds
        changed["memory"] += seconds * mib
    return changed


def thin(connection: Connection, now: float, days: float) -> None:
    """Make long spans of short ones that are old, and remove what is too old.

    Args:
        connection: of a store.
        now: the time, in seconds since the epoch.
        days: after how many days a span is removed.
    """
    old = (history.c.seconds == SHORT, history.c.began < _edge(now))
    # Not called as a column is: a database would group by that.
    began = (history.c.began - history.c.began % LONG).label("long_began")
    made = aliased(history)
    is_made = (
        select(made.c.gpu)
        .where(made.c.seconds == LONG, made.c.began == began, made.c.gpu == history.c.gpu)
        .exists()
    )
    sums = [func.sum(history.c[name]) for name in _SUMS]
    until = func.max(history.c.until)
    chosen = select(literal(LONG), began, history.c.gpu, until, *sums).where(*old, ~is_made)
    columns = ["seconds", "began", "gpu", "until", *_SUMS]
    long = chosen.group_by(began, history.c.gpu)
    connection.execute(insert(history).from_select(columns, long))
    connection.execute(delete(history).where(*old))
    too_old = history.c.began < int(now - days * DAY)
    for seconds in (SHORT, LONG):
        connection.execute(delete(history).where(history.c.seconds == seconds, too_old))


def _edge(now: float) -> int:
    """Return from when on there are short spans."""
    return int((now - SHORT_KEPT_SECONDS) // LONG) * LONG


# ---- reading -------------------------------------------------------------------------------------


def step_of(period: Period, now: float) -> int:
    """Return how many seconds a point of a period's curve is of.

    Raises:
        ValueError: the period is too long for any.
    """
    least = SHORT if period.begin >= _edge(now) else LONG
    length = period.end - period.begin
    for step in STEPS:
        if step >= least and length <= step * (MAX_POINTS - 1):
            return step
    raise ValueError


def curves(
    connection: Connection, period: Period, step: int, gpus: Collection[str] | None = None
) -> Curves:
    """Return what GPUs did in a period.

    Args:
        connection: of a store.
        period: the period. The curve begins and ends with a whole point.
        step: the seconds of a point, of `STEPS`.
        gpus: their UUIDs; None: of all GPUs that anything is known of.
    """
    first, last = int(period.begin // step) * step, -int(-period.end // step) * step
    number = ((history.c.began - first) // step).label("number")
    sums = [func.sum(history.c[name]) for name in _SUMS]
    chosen = select(history.c.gpu, number, *sums).where(
        history.c.seconds.in_((SHORT, LONG)),
        history.c.began >= first,
        history.c.began < last,
    )
    if gpus is not None:
        chosen = chosen.where(history.c.gpu.in_(gpus))
    found: dict[str, dict[int, Did]] = defaultdict(dict)
    for gpu, point, *did in connection.execute(chosen.group_by(history.c.gpu, number)):
        found[gpu][int(point)] = Did(*did)
    return Curves(Period(first, last), step, dict(found))


def held(connection: Connection, period: Period, gpus: Collection[str] | None = None) -> list[Held]:
    """Return who held units of GPUs in a period, the earliest first.

    Args:
        connection: of a store.
        period: the period.
        gpus: the physical GPUs' UUIDs; None: all.
    """
    columns = (leases.c.hub, leases.c.user, leases.c.server, leases.c.began, leases.c.until)
    chosen: Any = select(units.c.gpu, units.c.unit, *columns)
    chosen = held_in(chosen.join(leases, leases.c.id == units.c.lease), period, Scope())
    if gpus is not None:
        chosen = chosen.where(units.c.gpu.in_(gpus))
    found = connection.execute(chosen.order_by(leases.c.began, leases.c.id))
    return [
        Held(row.gpu, row.unit, row.hub, row.user, row.server, Period(row.began, row.until))
        for row in found
    ]
