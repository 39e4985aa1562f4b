"""Orphans: servers that run with this hub's label, but that this hub doesn't know.

They appear when the hub's database is lost, or when the engine is away while a server stops.
Without this module nobody would enforce the end of their lease. Only the hub's label decides:
servers of other hubs and containers that somebody started by hand are left alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..errors import Refused
from ..gpus.model import Holder, Lease
from ..i18n.lazy_text import lazy_gettext
from . import audit_log
from .audit_log import one_line
from .labels import LABEL_HUB, ServerRecord, lease_of

# The time between two comparisons, in seconds; less if the grace period is short.
PERIOD_SECONDS = 15.0
# In how many comparisons in a row a server must be unknown: in the first one, its start or its
# adoption may be under way.
MIN_SIGHTINGS = 2
# After how many seconds an administrator is answered whose orphan takes its time to save.
ANSWER_SECONDS = 10


class KnownServer(Protocol):
    """A server that the hub has a spawner for."""

    @property
    def holder(self) -> Holder:
        """The server as the holder of its GPUs."""

    @property
    def server_id(self) -> str:
        """The backend's id of the server; "" if it has none."""

    @property
    def is_known(self) -> bool:
        """Whether the server runs, starts or stops for the hub, or holds a lease."""


@dataclass(frozen=True)
class Orphan:
    """A server that the hub doesn't know.

    Args:
        server: the server as its backend lists it.
        lease: its lease, from its labels.
        sightings: the number of comparisons in a row in which it was unknown.
        stops_at: when it is stopped, by the monotonic clock; None: its stop isn't announced.
    """

    server: ServerRecord
    lease: Lease
    sightings: int = 1
    stops_at: float | None = None

    @property
    def is_certain(self) -> bool:
        """Whether it has been unknown often enough to act on it."""
        return self.sightings >= MIN_SIGHTINGS

    def overdue(self, now: float) -> float:
        """Return how long ago its lease ended, in seconds; 0.0 if it hasn't, or never does."""
        return max(0.0, now - self.lease.until) if self.lease.until else 0.0


@dataclass(frozen=True)
class Found:
    """The result of a comparison: all orphans by id, and those to announce and to stop."""

    orphans: Mapping[str, Orphan]
    announce: Sequence[Orphan] = ()
    stop: Sequence[Orphan] = ()


def compare(
    servers: Iterable[ServerRecord],
    known: Collection[KnownServer],
    hub: str,
    before: Mapping[str, Orphan],
    *,
    now: float,
    steady: float,
    grace: float | None,
) -> Found:
    """Compare the servers that run with those that the hub knows.

    An orphan is stopped only if every comparison since its announcement has found it unknown and
    past its end.

    Args:
        servers: the servers that a backend lists.
        known: the servers that the hub has spawners for.
        hub: the hub's address, as in its servers' labels; "": there are no orphans.
        before: the orphans of the last comparison.
        now: the time, in seconds since the epoch.
        steady: the time by the monotonic clock, in seconds.
        grace: seconds from the announcement to the stop; None: orphans are neither announced nor
            stopped.
    """
    ids = {each.server_id for each in known if each.is_known}
    holders = {each.holder for each in known if each.is_known}
    orphans: dict[str, Orphan] = {}
    announce, stop = [], []
    for server in servers:
        lease = lease_of(server, hub)
        if not hub or lease is None or server.labels.get(LABEL_HUB) != hub:
            continue
        # By id as well, as the user may have been renamed.
        if server.state != "running" or server.id in ids or lease.holder in holders:
            continue
        last = before.get(server.id)
        orphan = Orphan(server, lease, *((last.sightings + 1, last.stops_at) if last else ()))
        if grace is None or not orphan.is_certain or not orphan.overdue(now):
            orphan = replace(orphan, stops_at=None)
        elif orphan.stops_at is None:
            orphan = replace(orphan, stops_at=steady + grace)
            announce.append(orphan)
        elif orphan.stops_at <= steady:
            stop.append(orphan)
        orphans[server.id] = orphan
    return Found(orphans, announce, stop)


class Reconciler:
    """A background task that finds orphans, announces them past their end, and stops them.

    Args:
        list_servers: lists the backend's servers; if it raises, nothing is announced or stopped.
        known: returns the servers that this hub has had spawners for since it started.
        stop: stops a server by its id.
        hub: the hub's address.
        grace: seconds from the announcement to the stop; None: only administrators stop orphans.
        log: a logger.
    """

    def __init__(
        self,
        list_servers: Callable[[], Awaitable[Sequence[ServerRecord]]],
        known: Callable[[], Collection[KnownServer]],
        stop: Callable[[str], Awaitable[None]],
        hub: str,
        grace: float | None,
        log: Any,
    ) -> None:
        self._list_servers = list_servers
        self._known = known
        self._stop = stop
        self._hub = hub
        self._grace = grace
        self._log = log
        self._orphans: Mapping[str, Orphan] = {}
        self._stopping: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Compare periodically, until cancelled."""
        period = PERIOD_SECONDS if self._grace is None else min(PERIOD_SECONDS, self._grace / 2)
        while True:
            try:
                await self.reconcile()
            except Exception as error:
                # A backend that is away is reported to those who request something of it.
                said = one_line(error)
                self._log.debug("Looking for servers that the hub doesn't know failed: %s", said)
            await asyncio.sleep(max(period, 0.1))

    async def reconcile(self) -> None:
        """Compare once: announce orphans that are past their end, and stop announced ones."""
        servers = await self._list_servers()
        # Nothing may await from here to the stops: the hub could learn of a server meanwhile.
        found = self._compare(servers, self._orphans)
        self._orphans = found.orphans
        for orphan in found.announce:
            self._announce(orphan)
        for orphan in found.stop:
            if orphan.server.id not in self._stopping:
                self._log.warning(
                    "Stopping server %s, which this hub doesn't know", one_line(_named(orphan))
                )
                self._begin_stop(orphan, rule="unknown to the hub")

    def _compare(self, servers: Iterable[ServerRecord], before: Mapping[str, Orphan]) -> Found:
        return compare(
            servers,
            self._known(),
            self._hub,
            before,
            now=time.time(),
            steady=time.monotonic(),
            grace=self._grace,
        )

    def facts(self) -> list[dict[str, Any]]:
        """Return the orphans for administrators, as JSON; times in seconds since the epoch."""
        steady, now = time.monotonic(), time.time()
        return [
            {
                "id": each.server.id,
                "name": each.server.name,
                "user": each.lease.holder.user,
                "server": each.lease.holder.server,
                "gpus": sorted(each.lease.gpus),
                "until": each.lease.until,
                "stops_at": None if each.stops_at is None else now + each.stops_at - steady,
            }
            for each in self._orphans.values()
            if each.is_certain
        ]

    async def stop(self, server_id: str, by: str) -> None:
        """Stop an orphan for an administrator, past its end or not.

        It may not have ended yet when this returns, where it takes its time to save.

        Args:
            server_id: the backend's id of the server.
            by: the name of the administrator, for the audit log.

        Raises:
            Refused: there is no such orphan, or it can't be stopped.
        """
        before = self._orphans.get(server_id)
        found = self._compare(await self._list_servers(), self._orphans)
        orphan = found.orphans.get(server_id)
        if before is None or not before.is_certain or orphan is None:
            raise Refused(
                lazy_gettext(
                    "It has ended, or JupyterHub knows it by now: stop it as other servers."
                ),
                status=404,
            )
        task = self._stopping.get(server_id)
        if task is None:
            task = self._begin_stop(orphan, rule="an administrator", by=audit_log.user(by))
        await asyncio.wait([task], timeout=ANSWER_SECONDS)
        if task.done() and not task.cancelled() and task.exception():
            words = lazy_gettext("It couldn't be stopped: the hub's log says why.")
            raise Refused(words, status=503)

    def _announce(self, orphan: Orphan) -> None:
        minutes = (self._grace or 0) / 60
        self._log.warning(
            "Server %s runs with this hub's label past its end, and this hub doesn't know it: "
            "it is stopped in %.1f minutes",
            one_line(_named(orphan)),
            minutes,
        )
        self._note("warn", orphan, rule="unknown to the hub")

    def _begin_stop(self, orphan: Orphan, **why: Any) -> asyncio.Task[None]:
        self._note("stop", orphan, **why)
        task = asyncio.ensure_future(self._stop(orphan.server.id))
        self._stopping[orphan.server.id] = task
        task.add_done_callback(lambda done: self._stopped(orphan, done))
        return task

    def _stopped(self, orphan: Orphan, task: asyncio.Task[None]) -> None:
        self._stopping.pop(orphan.server.id, None)
        if task.cancelled():
            return
        if error := task.exception():
            self._log.error(
                "Stopping server %s failed; it is tried again while its end is past: %s",
                one_line(_named(orphan)),
                one_line(error),
            )
        else:
            self._orphans = {
                name: each for name, each in self._orphans.items() if name != orphan.server.id
            }

    def _note(
        self, event: audit_log.Event, orphan: Orphan, by: str = audit_log.RULES, **why: Any
    ) -> None:
        lease = orphan.lease
        audit_log.record(
            self._log,
            event,
            lease.holder,
            by,
            gpus=lease.gpus,
            container=orphan.server.name,
            until=lease.until and round(lease.until),
            overdue=round(orphan.overdue(time.time()), 1),
            **why,
        )


def _named(orphan: Orphan) -> str:
    return f"{orphan.server.name} of {str(orphan.lease.holder)!r} ({orphan.server.id[:12]})"
