"""The store: opened, written, and what is kept in it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, delete, func, select, true, update
from sqlalchemy.exc import SQLAlchemyError

from ..scheduling.budgets import Use
from . import database, history
from .database import StoreError, transaction
from .history import Curves, Held
from .lately import StoredUse
from .readings import Reading
from .report import Period, Scope, Sums, held_in, over_time, report, total
from .schema import groups, leases, reserved_hours, units
from .writing import Added, Seen, write

_OF_USES = (
    leases.c.id,
    leases.c.user,
    leases.c.share_part,
    leases.c.share_of,
    leases.c.server_id,
    leases.c.started,
    leases.c.is_over,
    leases.c.began,
    leases.c.until,
)


class Store:
    """The store of one address. Its methods block, and raise `StoreError`.

    Args:
        url: its address, as in `c.GPUSpawner.usage_db`.
        writes: whether something is to be written.

    Raises:
        ValueError: the address is none of a store.
    """

    def __init__(self, url: str, *, writes: bool = True) -> None:
        self.url = database.check(url)
        self.engine: Engine = database.engine_for(self.url, writes=writes)
        self._is_open = False

    def open(self) -> None:
        """Make the tables, or bring them up to date, if this object hasn't yet."""
        if self._is_open:
            return
        with self.explained():
            database.create_file(self.url)
            database.migrate(self.engine)
        self._is_open = True

    def check_revision(self) -> None:
        """Raise StoreError unless the tables are of this version."""
        with self.explained(), self.engine.begin() as connection:
            found = database.revision_of(connection)
        if found != (known := database.newest_revision()):
            raise StoreError(
                f"{database.shown(self.url)} is of revision {found}, and this version of "
                f"gpuspawner knows {known}: a hub of this version brings it up to date"
            )

    def report(self, period: Period, by: str, scope: Scope) -> tuple[list[Sums], Sums]:
        """Return the rows of a report, and the sums over all leases."""
        with self.explained(), self.engine.begin() as connection:
            return report(connection, period, by, scope), total(connection, period, scope)

    def over_time(self, period: Period, scope: Scope) -> list[tuple[Period, Sums]]:
        """Return the sums of each of a period's spans."""
        with self.explained(), self.engine.begin() as connection:
            return over_time(connection, period, scope)

    def close(self) -> None:
        """Close its connections."""
        self.engine.dispose()

    def open_leases(self, hub: str) -> dict[str, float]:
        """Return which of a hub's leases aren't over, as far as is written: server's id -> start.

        The start is `started` of the schema, by which the lease is known.
        """
        with self.explained(), self.engine.begin() as connection:
            mine = select(leases.c.server_id, leases.c.started)
            found = connection.execute(mine.where(~leases.c.is_over, leases.c.hub == hub))
            return {row.server_id: row.started for row in found}

    def uses(self, hub: str, since: float, names: Collection[str]) -> list[StoredUse]:
        """Return the leases of a hub that were held after a time.

        Args:
            hub: the hub's address.
            since: the time, in seconds since the epoch.
            names: the groups of which it is to be known whether a lease's user was in them.
        """
        period, scope = Period(since, math.inf), Scope(hub=hub)
        of: dict[int, set[str]] = defaultdict(set)
        no_groups = frozenset[str]()
        with self.explained(), self.engine.begin() as connection:
            if names:
                in_one = select(groups.c.lease, groups.c.name).join(leases)
                found = held_in(in_one.where(groups.c.name.in_(names)), period, scope)
                for key, name in connection.execute(found):
                    of[key].add(name)
            held = connection.execute(held_in(select(*_OF_USES), period, scope))
            return [
                StoredUse(
                    Use(user, frozenset(of[key]) if key in of else no_groups, part / whole, *times),
                    server_id,
                    started,
                    is_over,
                )
                for key, user, part, whole, server_id, started, is_over, *times in held
            ]

    def write(self, seen: Seen) -> Added:
        """Write what a hub has seen, all of it or nothing; twice is as once."""
        with self.explained(), transaction(self.engine) as connection:
            return write(connection, seen)

    def expire(self, before: float) -> int:
        """Remove leases that were over before a time; return how many."""
        with self.explained(), transaction(self.engine) as connection:
            return self._remove(connection, leases.c.is_over & (leases.c.until < before))

    def write_history(self, readings: Sequence[Reading], now: float) -> None:
        """Write what GPUs were read to do, all of it or nothing; twice is as once."""
        with self.explained(), transaction(self.engine) as connection:
            history.write(connection, readings, now)

    def thin_history(self, now: float, days: float) -> None:
        """Thin what GPUs did, and remove what is older than so many days."""
        with self.explained(), transaction(self.engine) as connection:
            history.thin(connection, now, days)

    def curves(self, period: Period, step: int, gpus: Collection[str] | None = None) -> Curves:
        """Return what GPUs did in a period, by UUID or all, in points of so many seconds."""
        with self.explained(), self.engine.begin() as connection:
            return history.curves(connection, period, step, gpus)

    def held(self, period: Period, gpus: Collection[str] | None = None) -> list[Held]:
        """Return who held GPUs in a period, by UUID or all."""
        with self.explained(), self.engine.begin() as connection:
            return history.held(connection, period, gpus)

    def forget(self, user: str, hub: str | None = None) -> tuple[int, int]:
        """Remove a user's leases that are over; return how many, and how many aren't yet.

        Of reserved hours that the user has asked for or decided the name is removed, and the note.

        Args:
            user: the user's name.
            hub: the address of the user's hub; None: of all that share the store.
        """
        with self.explained(), transaction(self.engine) as connection:
            whose = _whose(user, hub)
            removed = self._remove(connection, leases.c.is_over & whose)
            forget_in_hours(connection, user, hub)
            left = connection.execute(select(func.count()).select_from(leases).where(whose))
            return removed, int(left.scalar_one())

    def rows_of(self, user: str, hub: str | None = None) -> list[dict[str, Any]]:
        """Return all that is kept of a user, a JSON value for each lease, oldest first."""
        with self.explained(), self.engine.begin() as connection:
            whose = _whose(user, hub)
            rows = connection.execute(select(leases).where(whose).order_by(leases.c.began))
            found = {row.id: {**row._mapping, "units": [], "groups": []} for row in rows}
            for table in (units, groups):
                mine = select(table).join(leases, leases.c.id == table.c.lease).where(whose)
                for row in connection.execute(mine):
                    of_lease = found[row.lease][table.name.rpartition("_")[2]]
                    of_lease.append(row.name if table is groups else _unit(row))
        for each in found.values():
            del each["id"]
        return list(found.values())

    def hours_of(self, user: str, hub: str | None = None) -> list[dict[str, Any]]:
        """Return the reserved hours that a user has asked for or decided, a JSON value each."""
        with self.explained(), self.engine.begin() as connection:
            asked = reserved_hours.c.asked_by == user
            mine = asked | (reserved_hours.c.decided_by == user)
            found = select(reserved_hours).where(mine & _of_hub(hub))
            return [dict(row._mapping) for row in connection.execute(found)]

    @staticmethod
    def _remove(connection: Any, which: Any) -> int:
        ids = select(leases.c.id).where(which)
        for table in (units, groups):
            connection.execute(delete(table).where(table.c.lease.in_(ids)))
        return int(connection.execute(delete(leases).where(which)).rowcount)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raise `StoreError` for what the database or its file raises."""
        try:
            yield
        except (SQLAlchemyError, OSError) as error:
            words = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
            raise StoreError(f"{database.shown(self.url)}: {words}") from error


def _whose(user: str, hub: str | None) -> Any:
    mine = leases.c.user == user
    return mine if hub is None else mine & (leases.c.hub == hub)


def _of_hub(hub: str | None) -> Any:
    return true() if hub is None else reserved_hours.c.hub == hub


def forget_in_hours(connection: Connection, user: str, hub: str | None) -> None:
    """Remove a user's name, and what they wrote, from reserved hours, which stay."""
    columns = reserved_hours.c
    for column, written in ((columns.asked_by, columns.note), (columns.decided_by, columns.why)):
        mine = update(reserved_hours).where((column == user) & _of_hub(hub))
        connection.execute(mine.values({column: "", written: ""}))


def _unit(row: Any) -> dict[str, Any]:
    return {name: value for name, value in row._mapping.items() if name != "lease"}
