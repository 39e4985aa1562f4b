"""Orphans: servers that run with this hub's label, and that this hub knows nothing of.

So it is where the hub's database was lost, or the engine was away while a server stopped. Nobody
would keep the end that is written on them. Another hub's servers and whatever somebody started by
hand are none of ours: the hub's label alone decides.
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

# How often what runs is compared with what is known; more often where there is less time.
PERIOD_SECONDS = 15.0
# In how many looks a server must be unknown: what a hub has just begun it knows in the next one.
LOOKS = 2


class KnownServer(Protocol):
    """A server as its spawner tells of it."""

    @property
    def holder(self) -> Holder:
        """Whose it is."""

    @property
    def server_id(self) -> str:
        """The backend's name for it; "" where there is none."""

    @property
    def is_known(self) -> bool:
        """Whether the hub takes it to run, to start or to stop, or looks after its GPUs."""


@dataclass(frozen=True)
class Orphan:
    """A server that the hub doesn't know.

    Args:
        server: it.
        lease: what its labels say.
        looks: in how many looks on end it was unknown.
        stops_at: when it is to be stopped, by the monotonic clock; None: that isn't announced.
    """

    server: ServerRecord
    lease: Lease
    looks: int = 1
    stops_at: float | None = None

    @property
    def is_certain(self) -> bool:
        """Whether it was unknown often enough."""
        return self.looks >= LOOKS

    def overdue(self, now: float) -> float:
        """Return for how long its end is past, in seconds; 0.0 where it isn't, or has none."""
        return max(0.0, now - self.lease.until) if self.lease.until else 0.0


@dataclass(frozen=True)
class Found:
    """What follows from one look: all orphans by id, and which are to be announced or stopped."""

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
    """Compare what runs with what the hub knows.

    An orphan is stopped only where it was unknown in each look since it was announced, and its end
    is still past.

    Args:
        servers: what a backend lists.
        known: the servers that the hub has.
        hub: its address, as on its servers' labels; "": it has none, and so no orphans.
        before: the orphans of the last look.
        now: in seconds since the epoch.
        steady: by the monotonic clock, in seconds.
        grace: seconds from the announcement to the stop; None: neither comes.
    """
    ids = {each.server_id for each in known if each.is_known}
    holders = {each.holder for each in known if each.is_known}
    orphans: dict[str, Orphan] = {}
    announce, stop = [], []
    for server in servers:
        lease = lease_of(server, hub)
        if not hub or lease is None or server.labels.get(LABEL_HUB) != hub:
            continue
        # By its id as well: a user may have another name by now.
        if server.state != "running" or server.id in ids or lease.holder in holders:
            continue
        last = before.get(server.id)
        orphan = Orphan(server, lease, *((last.looks + 1, last.stops_at) if last else ()))
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
    """Look for orphans for as long as the hub runs.

    Args:
        list_servers: lists what the backend has; may raise, and then nothing is decided.
        known: the servers that this hub has had since it started.
        stop: stops one by its id.
        hub: the hub's address.
        grace: seconds from the announcement of a stop to the stop; None: only administrators stop.
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
        """Look again and again."""
        period = PERIOD_SECONDS if self._grace is None else min(PERIOD_SECONDS, self._grace / 2)
        while True:
            try:
                await self.look()
            except Exception as error:
                # Where the backend is away, others say so: to whoever wants something of it.
                said = one_line(error)
                self._log.debug("Looking for servers that the hub doesn't know failed: %s", said)
            await asyncio.sleep(max(period, 0.1))

    async def look(self) -> None:
        """Look once: announce what is to be stopped, and stop what was."""
        servers = await self._list_servers()
        # From here to the stops nothing may await: what is known now is so then.
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
        """Return what administrators see of the orphans, for JSON; times since the epoch."""
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

        Args:
            server_id: the backend's name for it.
            by: who wants it, for the log.

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
        await asyncio.wait([task])
        if not task.cancelled() and task.exception():
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
