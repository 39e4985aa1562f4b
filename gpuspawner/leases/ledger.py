"""The ledger: which server holds which GPUs, read back from the labels of the servers.

A lease is a set of labels on a server's container. Until the container has started, its GPUs are
held by a reservation in this process's memory as well. Nothing else is remembered: a restarted hub,
a second hub on the same engine and the command line all read the same leases.
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
from ..gpus.allocation import LeasedNodes, with_leases
from ..gpus.device_ids import gpus_named
from ..gpus.machine_names import MachineNames
from ..gpus.model import GPU, Holder, Lease, Node, Outsider
from ..gpus.out_of_service import with_marks
from ..gpus.unit_names import Share, exclude_each_other, uuids_of
from .clock import Clock, Moment
from .labels import ServerRecord, lease_of, leases_of
from .notes import Notes

T = TypeVar("T")

# A server whose end is longer past ends no more by it: whoever is to stop it is away, or gave it
# more time. A hub's own late warning leaves half of this.
OVERDUE_SECONDS = 600.0


@dataclass(eq=False)
class Reservation:
    """GPUs that are held in memory for a server until it has started.

    `ended_tick` is None while the reservation is in force. Then it is the tick at which the server
    had been started or given up: a listing that began before that tick can't tell which, so the
    reservation still counts for it.
    """

    holder: Holder
    gpus: tuple[GPU, ...]
    until: float | None = None
    groups: frozenset[str] = frozenset()
    ended_tick: int | None = None

    def begin(self, at: float, seconds: float | None) -> None:
        """Set the end of what is asked for `seconds` and begins at a time, in seconds; None: none.

        Slots for reserved hours end with these at the latest.
        """
        length = self.seconds(at, seconds)
        self.until = None if length is None else at + length

    def seconds(self, at: float, asked: float | None) -> float | None:
        """Return for how long a server has them that begins at a time and asks for so many seconds.

        None: without an end.
        """
        # At least a moment: none at all would be taken for no end.
        left = [max(1.0, gpu.ends - at) for gpu in self.gpus if gpu.ends is not None]
        return min([*left, *([] if asked is None else [asked])], default=None)

    @property
    def units(self) -> frozenset[str]:
        """The names of the reserved units."""
        return frozenset(gpu.id for gpu in self.gpus if gpu.id)

    @property
    def uuids(self) -> list[str]:
        """The UUIDs by which the driver knows the reserved units, in their order."""
        return uuids_of(gpu.id for gpu in self.gpus if gpu.id)

    @property
    def share(self) -> Share:
        """How much of a GPU limits count them."""
        return sum((gpu.share for gpu in self.gpus), 0)


@dataclass
class View:
    """A snapshot of the nodes, with the holders of their GPUs, and of the leases.

    `outsiders` are what has GPUs and no lease.
    """

    nodes: tuple[Node, ...] = ()
    leases: tuple[Lease, ...] = ()
    outsiders: tuple[Outsider, ...] = ()

    @cached_property
    def gpus(self) -> tuple[GPU, ...]:
        """The GPUs of all nodes."""
        return tuple(gpu for node in self.nodes for gpu in node.gpus)

    @cached_property
    def machines(self) -> MachineNames:
        """What the nodes are called, by who reads it."""
        return MachineNames(self.nodes)

    def with_leases(self, leases: Sequence[Lease]) -> View:
        """Return the view with more leases, of units that are free in it."""
        if not leases:
            return self
        return replace(self, nodes=with_leases(self.nodes, leases), leases=(*self.leases, *leases))


@dataclass(frozen=True)
class Listing:
    """One listing of the servers.

    Args:
        began: when it began, by the steady clock: what it shows to run did so then or later.
        at: when it was there.
        servers: what it shows.
    """

    began: float
    at: Moment
    servers: Sequence[ServerRecord]


def _ignore(listing: Listing) -> None:
    """Tell nobody of a listing."""


def _as_one(gpu: GPU) -> GPU:
    """Return a unit that limits count as one, whatever its part of a GPU is."""
    return gpu if gpu.share == 1 else replace(gpu, share=1)


async def _no_notes() -> Notes:
    """Return the notes of a backend that keeps none."""
    return Notes()


@dataclass
class Ledger:
    """The leases and reservations on all nodes of a backend.

    Args:
        list_servers: lists every server with the label `LABEL_GPUS`, ended ones too,
            and whatever else runs with GPUs.
        read_inventory: reads the nodes from NVML, their GPUs without holders.
        explain_error: makes a sentence for users of an error that one of those that read raises.
        hub: this hub's address, as in the label of its servers; "": there is no other hub.
        on_read: called after each read that succeeded.
        read_notes: reads which GPUs are out of service, and which leases were extended.
        counts_units: whether limits count units, each as one, and not parts of a GPU.
        on_release: called when a reservation has ended of which nobody has the GPUs.
        is_out_of_order: says whether one of some units (by name) is in quarantine by now.
        on_listing: called with each listing, whatever it was made for.
        clock: the machine's.
    If one of these that read raises, nothing is handed out: `Unknown` is raised.
    """

    list_servers: Callable[[], Awaitable[Sequence[ServerRecord]]]
    read_inventory: Callable[[], Awaitable[Sequence[Node]]]
    explain_error: Callable[[Exception], str] = str
    hub: str = ""
    on_read: Callable[[], None] = lambda: None
    read_notes: Callable[[], Awaitable[Notes]] = _no_notes
    counts_units: bool = False
    on_release: Callable[[], None] = lambda: None
    is_out_of_order: Callable[[Collection[str]], bool] = lambda units: False
    on_listing: Callable[[Listing], None] = _ignore
    clock: Clock = field(default_factory=Clock)
    _ticks: Iterable[int] = field(default_factory=itertools.count, repr=False)
    _reservations: list[Reservation] = field(default_factory=list)
    _reads_under_way: set[int] = field(default_factory=set)
    # Server id -> when its lease ends, if that has changed since the server was created.
    ends: dict[str, float | None] = field(default_factory=dict)
    # The view of the last read, and when it was made, by the monotonic clock.
    last_view: View | None = None
    last_view_at: float = 0.0
    # The notes of the last read.
    last_notes: Notes = field(default_factory=Notes)
    # When the last listing began, by the ticks, and what it showed.
    _last_listing: tuple[int, Sequence[ServerRecord]] = field(default=(-1, ()), repr=False)
    _last_inventory: Sequence[Node] = field(default=(), repr=False)
    _last_outsiders: Sequence[Outsider] = field(default=(), repr=False)
    # The read for display that is under way, or the last one.
    _recent: asyncio.Future[View] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._listing = SharedRead(self._list)
        self._inventory = SharedRead(self._read_counted)
        self._notes = SharedRead(self.read_notes)
        self._leased_nodes = LeasedNodes()

    async def _read_counted(self) -> Sequence[Node]:
        nodes = await self.read_inventory()
        if not self.counts_units:
            return nodes
        return [node.with_gpus(map(_as_one, node.gpus)) for node in nodes]

    async def read(self, except_for: Holder | None = None) -> View:
        """Read the nodes and the leases as they are now; reservations count as leases.

        Args:
            except_for: a holder whose leases aren't counted, as its server is about to be replaced.

        Raises:
            Unknown: NVML or the engine couldn't be read.
        """
        began = self._tick()
        self._reads_under_way.add(began)
        try:
            # NVML first: a server that starts in between is in the listing then.
            inventory, notes = await asyncio.gather(self._inventory(), self._notes())
            listed_at, listed = await self._listing()
        except Exception as error:
            raise Unknown(self.explain_error(error)) from error
        finally:
            self._reads_under_way.discard(began)
        servers = notes.with_ends(listed)
        inventory = with_marks(inventory, notes.marks, notes.lifted)
        there = {server.id for server in servers}
        self.ends = {name: end for name, end in self.ends.items() if name in there}
        overdue = time.time() - OVERDUE_SECONDS
        leases = [
            self._counted(
                replace(lease, until=None, overdue=True)
                if lease.until is not None and lease.until < overdue
                else lease
            )
            for lease in self._with_reserved(leases_of(servers, self.ends, self.hub), listed_at)
        ]
        self._drop_ended_reservations()
        self._last_inventory, self.last_notes = inventory, notes
        self._last_outsiders = outsiders_of(servers, inventory)
        self.last_view, self.last_view_at = self._view(leases), time.monotonic()
        self.on_read()
        return self._last_view_without(except_for)

    def _counted(self, lease: Lease) -> Lease:
        return replace(lease, count=len(lease.gpus)) if self.counts_units else lease

    async def read_recent(self, seconds: float, except_for: Holder | None = None) -> View:
        """Return the last view if it is no older than `seconds`, else read. Only for display.

        Concurrent callers share one read and its view, also one that is under way already.

        Raises:
            Unknown: NVML or the engine couldn't be read.
        """
        if self.last_view is None or time.monotonic() - self.last_view_at > seconds:
            if self._recent is None or self._recent.done():
                self._recent = asyncio.ensure_future(self.read())
                self._recent.add_done_callback(_retrieve_exception)
            # Shielded: a caller that is cancelled must not cancel the read that others wait for.
            await asyncio.shield(self._recent)
        return self._last_view_without(except_for)

    def leases_now(self) -> list[Lease]:
        """Return the leases of the last read, with those of what was reserved since."""
        known = list(self.last_view.leases) if self.last_view else []
        return self._with_reserved(known, self._last_listing[0])

    def moment(self) -> int:
        """Return this moment, for `servers`."""
        return self._tick()

    async def servers(self, since: int | None = None) -> Sequence[ServerRecord]:
        """Return every server that the backend lists, from a listing that begins now.

        Concurrent callers share one. Raises what `list_servers` raises.

        Args:
            since: a moment; the last listing will do if it began after that.
        """
        if since is not None and self._last_listing[0] > since:
            return self._last_listing[1]
        return (await self._listing())[1]

    async def servers_with_ends(self) -> Sequence[ServerRecord]:
        """Return the same, each with the end to which its lease was extended.

        Raises what `list_servers` and `read_notes` raise.
        """
        notes = await self._notes()
        return notes.with_ends(await self.servers())

    def _last_view_without(self, holder: Holder | None) -> View:
        """Return the last view without the leases of a holder."""
        assert self.last_view is not None
        others = [lease for lease in self.last_view.leases if lease.holder != holder]
        return self.last_view if len(others) == len(self.last_view.leases) else self._view(others)

    def _view(self, leases: Sequence[Lease]) -> View:
        outsiders = tuple(self._last_outsiders)
        nodes = self._leased_nodes.of(self._last_inventory, leases, outsiders)
        return View(nodes, tuple(leases), outsiders)

    def reserve(self, reservation: Reservation) -> Reservation:
        """Reserve GPUs that a read has just shown to be free.

        The caller mustn't await anything between that read and this call: another spawn would
        choose the same GPUs.
        """
        self._reservations.append(reservation)
        return reservation

    def release(self, reservation: Reservation) -> None:
        """End a reservation whose server never will be started. Idempotent."""
        if reservation.ended_tick is None:
            reservation.ended_tick = self._tick()
            self.on_release()

    def settle(self, reservation: Reservation) -> None:
        """End a reservation whose server has been started, and has a lease. Idempotent."""
        if reservation.ended_tick is None:
            reservation.ended_tick = self._tick()

    async def claim(self, server_id: str, units: Collection[str], timeout: float = 5.0) -> None:
        """Make sure that no other hub's server has the GPUs of a server that is about to start.

        Two hubs may have chosen the same GPU. Each creates its server first and lists all servers
        then, so at least one of them sees the other's, and a server only starts if its hub has seen
        no other. The server that was created later (or has the higher id) gives way at once. The
        earlier one waits for that; it gives way, too, if the other one has been started or isn't
        removed in time, as its hub may be dead. Nor may somebody without a lease use one by now:
        since they were reserved, an image may have been fetched for minutes.

        Args:
            server_id: our server; it has been created and not started.
            units: the names of its units.
            timeout: how long to wait for other servers to give way, in seconds.

        Raises:
            Contested: our server has to be removed and other GPUs chosen, as one was claimed by
                another, has failed since it was reserved, or is used by somebody.
            Unknown: the engine couldn't be read.
        """
        if self.is_out_of_order(units):
            raise Contested("one of these GPUs has failed meanwhile")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while rivals := await self._rivals(server_id, frozenset(units)):
            if any(rivals) or loop.time() > deadline:
                raise Contested("another hub was given one of these GPUs at the same moment")
            await asyncio.sleep(0.02)
        if await self._are_used(frozenset(units)):
            raise Contested("somebody without a lease uses one of these GPUs by now")

    async def _are_used(self, units: frozenset[str]) -> bool:
        """Return whether some units that nobody else has a lease of are in use, as NVML says now.

        False where it can't be read: who has been granted GPUs goes on.
        """
        if not units:
            return False
        try:
            nodes = await self._inventory()
        except Exception:
            return False
        # Of a shared GPU others have slots, and may use them.
        others = [each for each in self.leases_now() if not each.gpus & units]
        gpus = (gpu for node in with_leases(nodes, others) for gpu in node.gpus)
        # A slot for reserved hours is of a GPU that is read as a whole one.
        used = [gpu.id for gpu in gpus if gpu.id and gpu.state == "foreign"]
        return exclude_each_other(used, units)

    async def _rivals(self, server_id: str, units: frozenset[str]) -> list[bool]:
        """Return for each other server with one of these GPUs whether it takes precedence."""
        if not units:
            return []
        try:
            servers = await self.servers()
        except Exception as error:
            raise Unknown(self.explain_error(error)) from error
        ours = next((each for each in servers if each.id == server_id), None)
        if ours is None:
            raise Contested("the server was removed before it was started")
        others = ((each, lease_of(each)) for each in servers if each.id != server_id)
        rivals = [
            other.state != "created" or _creation_order(other) < _creation_order(ours)
            for other, lease in others
            if lease and exclude_each_other(lease.gpus, units)
        ]
        # What has no lease gives way to nobody.
        outsiders = outsiders_of(servers, self._last_inventory)
        return rivals + [True for outsider in outsiders if exclude_each_other(outsider.gpus, units)]

    def _with_reserved(self, leases: list[Lease], listed_at: int) -> list[Lease]:
        """Return leases with those of the reservations whose servers aren't listed yet."""
        if not self._reservations:
            return leases
        listed = {(lease.holder, lease.gpus) for lease in leases}
        return leases + [
            Lease(reservation.holder, reservation.units, reservation.until, reservation.groups)
            for reservation in self._reservations
            if (reservation.ended_tick is None or reservation.ended_tick > listed_at)
            and (reservation.holder, reservation.units) not in listed
        ]

    def _drop_ended_reservations(self) -> None:
        """Drop the ended reservations that no read under way still needs."""
        oldest = min(self._reads_under_way, default=self._tick())
        self._reservations = [
            reservation
            for reservation in self._reservations
            if reservation.ended_tick is None or reservation.ended_tick >= oldest
        ]

    async def _list(self) -> tuple[int, Sequence[ServerRecord]]:
        began, steady = self._tick(), self.clock.steady()
        self._last_listing = began, await self.list_servers()
        self.on_listing(Listing(steady, Moment.now(self.clock), self._last_listing[1]))
        return self._last_listing

    def _tick(self) -> int:
        return next(self._ticks)  # type: ignore[call-overload]


def outsiders_of(servers: Iterable[ServerRecord], nodes: Sequence[Node]) -> tuple[Outsider, ...]:
    """Return what has GPUs without a lease.

    Args:
        servers: what a backend lists.
        nodes: with all their GPUs, of which the names mean some.
    """
    gpus = [gpu for node in nodes for gpu in node.gpus]
    found = (
        Outsider(each.id, each.name, gpus_named(each.gpu_names, gpus))
        for each in servers
        if each.gpu_names
    )
    return tuple(outsider for outsider in found if outsider.gpus)


def _creation_order(server: ServerRecord) -> tuple[float, str]:
    """Return a sort key for servers of several hubs: all are dated by the engine's clock."""
    return server.created, server.id


class SharedRead(Generic[T]):
    """An asynchronous read whose results concurrent callers share.

    At most one read runs at a time. A call during a read gets the result of the next one, so that
    each caller's read began after its call, and 60 concurrent callers cost two reads.
    """

    def __init__(self, read: Callable[[], Awaitable[T]]) -> None:
        self._read = read
        self._running: asyncio.Future[T] | None = None
        self._next: asyncio.Future[T] | None = None

    async def __call__(self) -> T:
        """Return the result of a read that began after this call; raises what the read raises."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._after(self._running))
            self._next.add_done_callback(_retrieve_exception)
        # Shielded: a caller that is cancelled must not cancel the read that others wait for.
        return await asyncio.shield(self._next)

    async def _after(self, running: asyncio.Future[T] | None) -> T:
        if running is not None:
            await asyncio.wait([running])
        self._running, self._next = self._next, None
        return await self._read()


def _retrieve_exception(read: asyncio.Future[Any]) -> None:
    """Retrieve a read's exception: asyncio logs it if all callers were cancelled and none did."""
    if not read.cancelled():
        read.exception()
