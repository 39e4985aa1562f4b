"""One transaction of the store: what a hub has seen of its leases, written so that it may be again.

What is written depends on what is there and on what was seen, and on nothing else that is
remembered: a hub that is killed anywhere, or doesn't know whether its transaction was committed,
writes the same once more, and nothing is lost or doubled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from ..gpus.model import user_groups
from ..gpus.unit_names import exclude_each_other, parse, share_of
from ..leases.clock import Moment
from ..leases.labels import (
    LABEL_COURSE,
    LABEL_GPUS,
    LABEL_IMAGE,
    LABEL_WAITED,
    MAX_NAME,
    lease_of,
)
from ..untrusted import bounded
from .endings import why_of
from .schema import groups, leases, readings, settled, units
from .sightings import Sighting, running
from .spans import Span, begin

# The longest name of a unit, a model or a group that is kept, in characters.
MAX_SHORT = 255
# More isn't asked for in one statement.
CHUNK = 500


@dataclass(frozen=True)
class Seen:
    """What a hub has seen since it last wrote.

    Args:
        hub: the hub's address.
        at: the moment of the last listing.
        batch: the leases.
        ended: ids of servers that have ended and are listed still.
        models: UUID of a GPU -> its model.
    """

    hub: str
    at: Moment
    batch: Sequence[Sighting]
    ended: frozenset[str] = frozenset()
    models: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Added:
    """What a transaction has added, without names.

    Args:
        seconds: GPU model -> GPU seconds; "": unknown.
        idle: the same of what was held and did nothing.
        ends: why leases ended -> how many.
    """

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    idle: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    ends: dict[str, int] = field(default_factory=lambda: defaultdict(int))


@dataclass(frozen=True)
class _Other:
    """Another lease of the same units: its hub, whether it is over, and its time."""

    hub: str
    is_over: bool
    span: Span


def write(connection: Connection, seen: Seen) -> Added:
    """Write what was seen, in the transaction of a connection."""
    return _Writing(connection, seen).write()


class _Writing:
    def __init__(self, connection: Connection, seen: Seen) -> None:
        self._connection = connection
        self._seen = seen
        self._added = Added()

    def write(self) -> Added:
        open_rows = {
            row.server_id: row
            for row in self._connection.execute(
                select(leases).where(~leases.c.is_over, leases.c.hub == self._seen.hub)
            )
        }
        mark = self._mark()
        done = self._settled()
        # What is over first, in its order: what comes after on the same GPU begins later.
        for each in sorted(self._seen.batch, key=_order):
            # One that was started again since is another lease of the same server.
            is_over = each.over_at is not None
            row = (open_rows.pop if is_over else open_rows.get)(each.server.id, None)
            had_ended = each.is_first and is_over and row is None
            # It had ended before this process came: it is settled, or of before the store.
            if had_ended and (mark is None or each.server.id in done):
                continue
            self._write_one(each, row, mark)
        self._fill_in_models()
        self._keep_settled(done)
        self._keep_mark(mark)
        return self._added

    # -- One lease -------------------------------------------------------------------------------

    def _write_one(self, seen: Sighting, row: Row[Any] | None, mark: Moment | None) -> None:
        if row is None:
            never_ran = seen.run is not None and seen.run.started is None and seen.ran is None
            if never_ran or LABEL_GPUS not in seen.server.labels:
                return
            row = self._same_run(seen) or self._insert(seen, mark)
            if row.is_over and seen.over_at is not None:
                return  # written by a transaction of which this hub doesn't know
        before = Span(row.began, row.seconds, row.boot, row.until_steady)
        now = self._span_now(seen, before)
        values = {
            "seconds": now.seconds,
            "until": now.until,
            "boot": now.boot,
            "until_steady": now.until_steady,
            "is_over": seen.over_at is not None,
            "why": seen.why or row.why,
            **self._sampled(seen, row),
        }
        if seen.over_at is not None:
            now = self._cut(row.id, now)
            values |= {
                "seconds": now.seconds,
                "until": now.until,
                "until_steady": now.until_steady,
                "why": why_of(seen.why or row.why or "", seen.run),
                "exit_code": seen.run.exit_code if seen.run else None,
            }
            self._added.ends[values["why"]] += 1
        self._connection.execute(update(leases).where(leases.c.id == row.id).values(values))
        self._count(row, now.seconds - row.seconds, (values["idle"] or 0.0) - (row.idle or 0.0))

    @staticmethod
    def _span_now(seen: Sighting, span: Span) -> Span:
        if seen.ran is not None and seen.ran_at is not None:
            span = span.held_at(seen.ran, seen.ran_at)
        if seen.over_at is not None and seen.run and seen.run.ended is not None:
            span = span.ended_at(seen.run.ended, seen.over_at)
        return span

    def _same_run(self, seen: Sighting) -> Row[Any] | None:
        """Return the row of a lease that is over, as far as is written; None: there is none."""
        mine = (leases.c.hub == self._seen.hub, leases.c.server_id == seen.server.id)
        same = select(leases).where(*mine, leases.c.started == seen.started)
        return self._connection.execute(same).one_or_none()

    def _insert(self, seen: Sighting, mark: Moment | None) -> Row[Any]:
        labels, hub = seen.server.labels, self._seen.hub
        lease = lease_of(running(seen.server), hub)
        assert lease
        names, share = sorted(lease.gpus), Fraction(share_of(lease.gpus))
        known = seen.run.started if seen.run else None
        began = seen.at.wall - (seen.at.steady - seen.first) if known is None else known
        span = begin(began, seen.at, seen.after or mark)
        ends = [each.span.until_steady for each in self._before(names, seen, span)]
        span = span.moved_to(max(ends, default=0.0))
        made = self._connection.execute(
            insert(leases).values(
                hub=hub,
                server_id=seen.server.id,
                started=seen.started,
                user=lease.holder.user,
                server=lease.holder.server,
                course=bounded(labels.get(LABEL_COURSE, ""), MAX_NAME) or None,
                image=bounded(labels.get(LABEL_IMAGE, ""), MAX_NAME),
                share_part=share.numerator,
                share_of=share.denominator,
                waited=_seconds(labels.get(LABEL_WAITED)),
                began=span.began,
                seconds=0.0,
                until=span.until,
                boot=span.boot,
                until_steady=span.until_steady,
                is_over=False,
            )
        )
        (key,) = made.inserted_primary_key or (None,)
        parts = [(name, parse(name), Fraction(parse(name).share)) for name in names]
        self._connection.execute(
            insert(units),
            [
                {
                    "lease": key,
                    "unit": bounded(name, MAX_SHORT),
                    "gpu": bounded(part.gpu, MAX_SHORT),
                    "model": self._model(part.gpu),
                    "share_part": of_gpu.numerator,
                    "share_of": of_gpu.denominator,
                }
                for name, part, of_gpu in parts
            ],
        )
        if own := user_groups(lease.groups):
            kept = {bounded(name, MAX_SHORT) for name in own}
            self._connection.execute(
                insert(groups), [{"lease": key, "name": name} for name in sorted(kept)]
            )
        return self._connection.execute(select(leases).where(leases.c.id == key)).one()

    # -- Others on the same GPUs -----------------------------------------------------------------

    def _before(self, names: Collection[str], seen: Sighting, span: Span) -> list[_Other]:
        """Return leases of the same units that were over before one began, as far as is written.

        What this hub has written began earlier than what it first sees now. What runs now began
        later than all others; what is over, earlier than what another hub has seen to run.
        """
        return [
            each
            for each in self._on_same_gpus(names, -1, span.boot, span.until_steady)
            if each.hub == self._seen.hub
            or seen.over_at is None
            or (each.is_over and each.span.began_steady <= span.until_steady)
        ]

    def _cut(self, key: int, span: Span) -> Span:
        """Return the span of a lease that is over, up to the beginning of the next one."""
        found = self._connection.execute(select(units.c.unit).where(units.c.lease == key))
        names = [row.unit for row in found]
        later = [
            each.span.began_steady
            for each in self._on_same_gpus(names, key, span.boot, span.began_steady)
            if each.span.began_steady >= span.began_steady
            or (not each.is_over and each.hub != self._seen.hub)
        ]
        return span.cut(min(later)) if later else span

    def _on_same_gpus(
        self, names: Collection[str], but: int, boot: str, after: float
    ) -> list[_Other]:
        """Return leases of the same units that were held after a time of a boot's steady clock."""
        found = self._connection.execute(
            select(leases, units.c.unit)
            .join(units, units.c.lease == leases.c.id)
            .where(
                leases.c.until_steady > after,
                leases.c.boot == boot,
                leases.c.id != but,
                units.c.gpu.in_({parse(name).gpu for name in names}),
            )
        )
        return [
            _Other(row.hub, row.is_over, Span(row.began, row.seconds, row.boot, row.until_steady))
            for row in found
            if exclude_each_other([row.unit], names) and (row.seconds or not row.is_over)
        ]

    # -- What was sampled ------------------------------------------------------------------------

    @staticmethod
    def _sampled(seen: Sighting, row: Row[Any]) -> dict[str, Any]:
        """Return the sums of a lease with the samples that aren't in them yet."""
        names = ("measured", "idle", "used_of", "used", "memory_of", "memory", "memory_peak")
        sums: dict[str, Any] = {name: getattr(row, name) for name in names}
        upto = row.sampled_steady if row.boot == seen.at.boot else None
        for each in seen.samples:
            if upto is not None and each.until <= upto:
                continue
            upto = each.until
            if each.is_idle is not None:
                sums["measured"] = (sums["measured"] or 0.0) + each.seconds
                sums["idle"] = (sums["idle"] or 0.0) + each.seconds * each.is_idle
            if each.used is not None:
                sums["used_of"] = (sums["used_of"] or 0.0) + each.seconds
                sums["used"] = (sums["used"] or 0.0) + each.seconds * each.used
            if each.memory_mib is not None:
                sums["memory_of"] = (sums["memory_of"] or 0.0) + each.seconds
                sums["memory"] = (sums["memory"] or 0.0) + each.seconds * each.memory_mib
                sums["memory_peak"] = max(sums["memory_peak"] or 0, each.memory_mib)
        return {**sums, "sampled_steady": upto}

    # -- Beside the leases -----------------------------------------------------------------------

    def _model(self, gpu: str) -> str | None:
        model = self._seen.models.get(gpu)
        return bounded(model, MAX_SHORT) if model else None

    def _fill_in_models(self) -> None:
        """Write the models that weren't known as the leases began, as after a hub's restart."""
        if not self._seen.models:
            return
        unknown = self._connection.execute(
            select(units.c.lease, units.c.unit, units.c.gpu)
            .join(leases, leases.c.id == units.c.lease)
            .where(~leases.c.is_over, leases.c.hub == self._seen.hub, units.c.model.is_(None))
        ).all()
        for row in unknown:
            if model := self._model(row.gpu):
                here = (units.c.lease == row.lease, units.c.unit == row.unit)
                self._connection.execute(update(units).where(*here).values(model=model))

    def _count(self, row: Row[Any], seconds: float, idle: float) -> None:
        """Count what a lease has had since it was last written."""
        found = self._connection.execute(select(units).where(units.c.lease == row.id))
        for each in found:
            share = each.share_part / each.share_of
            self._added.seconds[each.model or ""] += share * max(0.0, seconds)
            self._added.idle[each.model or ""] += share * max(0.0, idle)

    def _mark(self) -> Moment | None:
        mine = readings.c.hub == self._seen.hub
        row = self._connection.execute(select(readings).where(mine)).one_or_none()
        return Moment(row.wall, row.steady, row.boot) if row else None

    def _keep_mark(self, mark: Moment | None) -> None:
        at, hub = self._seen.at, self._seen.hub
        values = {"wall": at.wall, "steady": at.steady, "boot": at.boot}
        if mark is None:
            self._connection.execute(insert(readings).values(hub=hub, **values))
        else:
            self._connection.execute(update(readings).where(readings.c.hub == hub).values(**values))

    def _settled(self) -> frozenset[str]:
        mine = select(settled.c.server_id).where(settled.c.hub == self._seen.hub)
        return frozenset(self._connection.execute(mine).scalars())

    def _keep_settled(self, before: Collection[str]) -> None:
        hub, now = self._seen.hub, self._seen.ended
        if new := sorted(now - frozenset(before)):
            self._connection.execute(
                insert(settled), [{"hub": hub, "server_id": each} for each in new]
            )
        for some in _chunks(sorted(frozenset(before) - now)):
            gone = (settled.c.hub == hub, settled.c.server_id.in_(some))
            self._connection.execute(delete(settled).where(*gone))


def _order(seen: Sighting) -> tuple[bool, float]:
    return seen.over_at is None, seen.started or 0.0


def _seconds(text: str | None) -> float | None:
    try:
        found = float(bounded(text or "", 32))
    except ValueError:
        return None
    return found if 0 <= found < 1e9 else None


def _chunks(names: Sequence[str]) -> Iterable[Sequence[str]]:
    return (names[at : at + CHUNK] for at in range(0, len(names), CHUNK))
