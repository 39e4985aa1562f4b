"""Who holds what, read back from the engine: the containers are the ledger.

A lease is a set of labels on a server's container. Between choosing GPUs and the container existing
there is a reservation in this process's memory, and nothing else is remembered: a restarted hub, a
second hub on the same engine and the command line all read the same truth.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

from ..errors import Contested, Unknown
from ..gpus.allocation import with_leases
from ..gpus.model import GPU, Holder, Lease, Node
from .labels import ServerRecord, lease_of, leases_of

T = TypeVar("T")


@dataclass(eq=False)
class Reservation:
    """GPUs that are kept for a server in this process until the server itself can be seen.

    `ended_tick` is None while only we know of it. Then it is the tick at which the server could be
    seen, or was given up: a listing begun before that tick can't show which.
    """

    holder: Holder
    gpus: tuple[GPU, ...]
    until: float | None = None
    groups: frozenset[str] = frozenset()
    ended_tick: int | None = None

    @property
    def uuids(self) -> frozenset[str]:
        """The UUIDs of the reserved GPUs."""
        return frozenset(gpu.uuid for gpu in self.gpus if gpu.uuid)


@dataclass
class View:
    """What there was at one moment: the nodes, their GPUs with their holders, and the leases."""

    nodes: tuple[Node, ...] = ()
    leases: tuple[Lease, ...] = ()

    @cached_property
    def gpus(self) -> tuple[GPU, ...]:
        """The GPUs of all nodes."""
        return tuple(gpu for node in self.nodes for gpu in node.gpus)

    def with_lease(self, lease: Lease) -> View:
        """Return what there is once one more lease has begun."""
        return replace(self, nodes=with_leases(self.nodes, [lease]), leases=(*self.leases, lease))


@dataclass
class Ledger:
    """Hand out the GPUs of one engine's host.

    Args:
        list_servers: lists every server, ended ones too, that has the label `LABEL_GPUS`.
        read_inventory: what NVML sees: the nodes, with GPUs that are nobody's yet.
        hub: this hub's address, as on the servers that are its own; "": there is no other.
    The first two may raise: then nothing is handed out, and `Unknown` is raised with a sentence
    that `explain_error` makes of it.
    """

    list_servers: Callable[[], Awaitable[Sequence[ServerRecord]]]
    read_inventory: Callable[[], Awaitable[Sequence[Node]]]
    explain_error: Callable[[Exception], str] = str
    hub: str = ""
    _ticks: Iterable[int] = field(default_factory=itertools.count, repr=False)
    _reservations: list[Reservation] = field(default_factory=list)
    _reads_under_way: set[int] = field(default_factory=set)
    # Server id -> when its time ends, where that was changed since it began.
    ends: dict[str, float | None] = field(default_factory=dict)
    # What the last read saw, and when by the monotonic clock.
    seen: View | None = None
    seen_at: float = 0.0
    _last_inventory: Sequence[Node] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        self._listing = SharedRead(self._list)
        self._inventory = SharedRead(self.read_inventory)

    async def read(self, except_for: Holder | None = None) -> View:
        """Return the host's GPUs as they are now, with reservations counted as leases.

        Args:
            except_for: a holder whose own leases are shown as free, for a server about to be
                replaced.

        Raises:
            Unknown: NVML or the engine couldn't be read.
        """
        began = self._tick()
        self._reads_under_way.add(began)
        try:
            # NVML first: a server that starts in between is then in the listing.
            inventory = await self._inventory()
            listed_at, servers = await self._listing()
        except Exception as error:
            raise Unknown(self.explain_error(error)) from error
        finally:
            self._reads_under_way.discard(began)
        there = {server.id for server in servers}
        self.ends = {name: end for name, end in self.ends.items() if name in there}
        leases = leases_of(servers, self.ends, self.hub) + self._reserved(listed_at)
        self._drop_ended_reservations()
        self._last_inventory = inventory
        self.last_view, self.last_view_at = self._view(leases), time.monotonic()
        return self._last_view_without(except_for)

    async def read_recent(self, seconds: float, except_for: Holder | None = None) -> View:
        """Return what a read saw that is no older than this, or read: for pages, which only show.

        Raises:
            Unknown: NVML or the engine couldn't be read.
        """
        if self.last_view is None or time.monotonic() - self.last_view_at > seconds:
            return await self.read(except_for)
        return self._last_view_without(except_for)

    def _last_view_without(self, holder: Holder | None) -> View:
        """Return what was seen last, as if a holder had nothing."""
        assert self.last_view is not None
        others = [lease for lease in self.last_view.leases if lease.holder != holder]
        return self.last_view if len(others) == len(self.last_view.leases) else self._view(others)

    def _view(self, leases: Sequence[Lease]) -> View:
        return View(with_leases(self._last_inventory, leases), tuple(leases))

    def reserve(self, reservation: Reservation) -> Reservation:
        """Reserve GPUs that a read has just shown to be free.

        Between that read and this nothing may await: another spawn would choose the same.
        """
        self._reservations.append(reservation)
        return reservation

    def release(self, reservation: Reservation) -> None:
        """End a reservation: its server can be seen from now on, or it will never exist.

        Harmless when called again.
        """
        if reservation.ended_tick is None:
            reservation.ended_tick = self._tick()

    async def claim(self, server_id: str, uuids: Collection[str], timeout: float = 5.0) -> None:
        """Make sure that no other server has these GPUs, before ours is started.

        Two hubs may have chosen the same GPU. Each writes first (its server exists) and reads then,
        so at least one sees the other; whoever starts has seen nobody. The server created later
        (then by id) gives way at once. The earlier one waits for that, and gives way as well if the
        other has started meanwhile or doesn't move: its hub may be dead.

        Args:
            server_id: ours; it exists and isn't started.
            uuids: the GPUs it was given.
            timeout: how long to wait for the other to give way, in seconds.

        Raises:
            Contested: ours is to be removed, and other GPUs chosen.
            Unknown: the engine couldn't be read.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while rivals := await self._rivals(server_id, frozenset(uuids)):
            if any(rivals) or loop.time() > deadline:
                raise Contested("another hub was given one of these GPUs at the same moment")
            await asyncio.sleep(0.02)

    async def _rivals(self, server_id: str, uuids: frozenset[str]) -> list[bool]:
        """Return one value per other server with one of the GPUs: does it go before ours?"""
        if not uuids:
            return []
        try:
            _, servers = await self._listing()
        except Exception as error:
            raise Unknown(self.explain_error(error)) from error
        ours = next((each for each in servers if each.id == server_id), None)
        if ours is None:
            raise Contested("the server was removed before it was started")
        others = ((each, lease_of(each)) for each in servers if each.id != server_id)
        return [
            other.state != "created" or _creation_order(other) < _creation_order(ours)
            for other, lease in others
            if lease and lease.gpus & uuids
        ]

    def _reserved(self, listed_at: int) -> list[Lease]:
        return [
            Lease(reservation.holder, reservation.uuids, reservation.until, reservation.groups)
            for reservation in self._reservations
            if reservation.ended_tick is None or reservation.ended_tick > listed_at
        ]

    def _drop_ended_reservations(self) -> None:
        """Drop the reservations that no read under way can still need."""
        oldest = min(self._reads_under_way, default=self._tick())
        self._reservations = [
            reservation
            for reservation in self._reservations
            if reservation.ended_tick is None or reservation.ended_tick >= oldest
        ]

    async def _list(self) -> tuple[int, Sequence[ServerRecord]]:
        began = self._tick()
        return began, await self.list_servers()

    def _tick(self) -> int:
        return next(self._ticks)  # type: ignore[call-overload]


def _creation_order(server: ServerRecord) -> tuple[float, str]:
    """Sort key: who came first. One clock, the engine's, for both hubs."""
    return server.created, server.id


class SharedRead(Generic[T]):
    """A read of the outside world that many callers share.

    At most one runs at a time. Whoever asks while one runs gets the next one, so that each caller's
    answer began after it asked, and 60 callers cost two reads.
    """

    def __init__(self, read: Callable[[], Awaitable[T]]) -> None:
        self._read = read
        self._running: asyncio.Future[T] | None = None
        self._next: asyncio.Future[T] | None = None

    async def __call__(self) -> T:
        """Return what a read begun after this call found; raises what it raised."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._after(self._running))
            self._next.add_done_callback(_retrieve_exception)
        # Shielded: one caller's cancel must not end the read that others wait for.
        return await asyncio.shield(self._next)

    async def _after(self, running: asyncio.Future[T] | None) -> T:
        if running is not None:
            await asyncio.wait([running])
        self._running, self._next = self._next, None
        return await self._read()


def _retrieve_exception(read: asyncio.Future[Any]) -> None:
    """Take notice of an error: where all who asked gave up, asyncio would log it as overlooked."""
    if not read.cancelled():
        read.exception()
