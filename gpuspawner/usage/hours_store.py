"""Where it is kept which reserved hours were asked for, and what became of it.

The database is the usage's: it outlives the hub, several hub processes can write it, each change is
one transaction, and an administrator has backed it up already. Labels, which say who has a GPU, are
no place for what isn't a lease.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, insert, or_, select, update

from ..courses.hours_request import (
    CLOSED,
    STATES,
    HoursRequest,
    hours_as_text,
    hours_of_text,
)
from .database import transaction
from .schema import reserved_hours
from .store import Store

# For how long what is over or was decided is shown, in seconds.
SHOWN_SECONDS = 90 * 24 * 3600.0

Decide = Callable[[Sequence[HoursRequest]], HoursRequest]


class HoursStore:
    """The requests of one hub. Its methods block, and raise `StoreError`.

    Args:
        store: the database.
        hub: the hub's address.
        broken: called with the number of a request that this version can't read.
    """

    def __init__(self, store: Store, hub: str, broken: Callable[[int], None]) -> None:
        self._store = store
        self._hub = hub
        self._broken = broken

    def read(self, now: float) -> list[HoursRequest]:
        """Return what is open or granted, and what was so lately; oldest first.

        Args:
            now: in seconds since the epoch.
        """
        self._store.open()
        with self._store.explained(), self._store.engine.begin() as connection:
            return self._read(connection, now)

    def change(self, decide: Decide, now: float) -> HoursRequest:
        """Make one change, which nobody else's comes between.

        Args:
            decide: returns the request that is new, with 0 as its id, or is another one now; it is
                told what there is. What it raises changes nothing.
            now: in seconds since the epoch.

        Returns:
            The request as it is kept.
        """
        self._store.open()
        with self._store.explained(), transaction(self._store.engine) as connection:
            known = self._read(connection, now)
            changed = decide(known)
            values = {
                **{name: getattr(changed, name) for name in _SAME},
                "hours": hours_as_text(changed.hours),
            }
            if changed.id:
                row = update(reserved_hours).where(
                    reserved_hours.c.id == changed.id, reserved_hours.c.hub == self._hub
                )
                connection.execute(row.values(values))
                return changed
            made = connection.execute(insert(reserved_hours).values(hub=self._hub, **values))
            assert made.inserted_primary_key
            return replace(changed, id=made.inserted_primary_key[0])

    def close(self) -> None:
        """Close its connections."""
        self._store.close()

    def _read(self, connection: Connection, now: float) -> list[HoursRequest]:
        columns, since = reserved_hours.c, now - SHOWN_SECONDS
        lately = or_(
            columns.state == "asked",
            (columns.state == "granted") & (columns.over_at > since),
            columns.decided_at > since,
        )
        rows = select(reserved_hours).where(columns.hub == self._hub, lately)
        found = []
        for row in connection.execute(rows.order_by(columns.id)):
            try:
                found.append(_request(row))
            except ValueError:
                self._broken(row.id)
        return found


_SAME = (
    "course",
    "state",
    "asked_by",
    "asked_at",
    "over_at",
    "note",
    "decided_by",
    "decided_at",
    "why",
    "rank",
)


def _request(row: Any) -> HoursRequest:
    if row.state not in STATES:
        raise ValueError(f"the state {row.state!r} isn't known")
    hours = hours_of_text(row.hours)
    if row.state in CLOSED:  # there may be many, and nothing needs each of their times
        hours.declared()
    else:
        for _ in hours.times():
            pass
    return HoursRequest(row.id, hours=hours, **{name: getattr(row, name) for name in _SAME})
