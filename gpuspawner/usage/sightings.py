"""What this hub process has seen of its leases, and the store doesn't have yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from ..gpus.model import GPU
from ..gpus.unit_names import parse
from ..leases.clock import Moment
from ..leases.labels import LABEL_HUB, ServerRecord, lease_of
from ..leases.ledger import Listing
from ..leases.server_run import ServerRun

# For how long what a GPU was seen to do is taken to go on, in seconds.
LONGEST_SAMPLE_SECONDS = 120.0
# How many samples of one lease wait at the most for a store that can't be written.
MAX_SAMPLES = 10_000
# Of how many servers that haven't been listed it is remembered why they end.
MAX_WHYS = 1000


@dataclass(frozen=True)
class Sample:
    """What a lease's GPUs did in a span of time.

    Args:
        until: its end, by the steady clock.
        seconds: its length.
        used: the mean utilization, from 0 to 1; None: it can't be measured.
        is_idle: whether all of the GPUs did nothing; None: that can't be told.
        memory_mib: the memory in use on all of them; None: it can't be measured.
    """

    until: float
    seconds: float
    used: float | None
    is_idle: bool | None
    memory_mib: int | None


def sample_of(units: Collection[GPU], until: float, seconds: float, idle_percent: float) -> Sample:
    """Return what a lease's units do.

    What a shared GPU does is nobody's alone: only that it does nothing is known of each slot.

    Args:
        units: the lease's, as NVML reports them.
        until, seconds: as of a `Sample`.
        idle_percent: up to which utilization a GPU counts as doing nothing.
    """
    percents = [gpu.utilization_percent for gpu in units]
    memory = [gpu.memory_used_mib for gpu in units]
    is_shared = any(gpu.name is not None and gpu.name.slot is not None for gpu in units)
    used = is_idle = memory_mib = None
    known = [each for each in percents if each is not None]
    if units and len(known) == len(percents):
        is_idle = max(known) <= idle_percent
        used = None if is_shared else sum(known) / len(known) / 100
    sizes = [each for each in memory if each is not None]
    if units and len(sizes) == len(memory) and not is_shared:
        memory_mib = sum(sizes)
    return Sample(until, seconds, used, is_idle, memory_mib)


@dataclass
class Sighting:
    """What was seen of one lease.

    Args:
        server: its server, as it was listed.
        after: the moment of the last listing in which the server didn't run; None: unknown.
        at: the moment of the first in which it did, or had ended.
        first: when it was first seen to run by the steady clock, or else when it had ended.
        ran: when it was last seen to run, by the steady clock; None: never.
        ran_at: the moment of that listing.
        over_at: the moment of the first listing in which it didn't run any more; None: it runs.
        run: when it ran, as its backend knows it; None: that isn't known yet.
        started: when it started, in seconds since the epoch, as the store was first told; None: it
            hasn't been told. A lease is known there by it, so it stays: the store may have been
            told although its answer was lost.
        why: why it ends, where the hub knows.
        is_first: whether the first listing of this process has shown it.
        samples: what its GPUs did.
    """

    server: ServerRecord
    after: Moment | None
    at: Moment
    first: float
    ran: float | None = None
    ran_at: Moment | None = None
    over_at: Moment | None = None
    run: ServerRun | None = None
    started: float | None = None
    why: str = ""
    is_first: bool = False
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    sampled: float | None = None

    @property
    def needs_run(self) -> bool:
        """Whether the backend is to be asked when it ran."""
        return self.run is None or (self.over_at is not None and self.run.ended is None)


class Sightings:
    """The leases of one hub, as its listings show them.

    Args:
        hub: the hub's address, as in the label of its servers.
    """

    def __init__(self, hub: str) -> None:
        self._hub = hub
        self._last: Moment | None = None
        # What runs, and what has ended and isn't written.
        self.running: dict[str, Sighting] = {}
        self.over: list[Sighting] = []
        # Ids of servers that have ended and are listed still.
        self.ended: frozenset[str] = frozenset()
        # Why a server is about to end that may not have been seen yet.
        self._whys: dict[str, str] = {}

    @property
    def last(self) -> Moment | None:
        """The last listing: its moment, with the beginning as `steady`; None: there was none."""
        return self._last

    @property
    def unwritten(self) -> list[Sighting]:
        """What there is to write: what runs, and what has ended since."""
        return [*self.over, *self.running.values()]

    def see(self, listing: Listing) -> bool:
        """Take in a listing, later than the last one; return whether a lease has begun or ended."""
        ours = [each for each in listing.servers if self._is_ours(each)]
        runs = {each.id: each for each in ours if each.state == "running"}
        ended = {each.id: each for each in ours if each.state == "ended"}
        known = self.ended | {each.server.id for each in self.over} | self.running.keys()
        for seen in list(self.running.values()):
            # A listing that was begun before a start doesn't show it.
            is_later = seen.server.id in ended or (seen.ran or 0.0) < listing.began
            if seen.server.id not in runs and is_later:
                del self.running[seen.server.id]
                seen.over_at = listing.at
                self.over.append(seen)
        begun = [
            self._begin(each, listing) for name, each in runs.items() if name not in self.running
        ]
        self.running.update({each.server.id: each for each in begun})
        for name in runs:
            seen = self.running[name]
            seen.ran, seen.ran_at = max(seen.ran or 0.0, listing.began), listing.at
        unseen = [self._begin(each, listing) for name, each in ended.items() if name not in known]
        for each in unseen:
            each.over_at = listing.at
        self.over += unseen
        self.ended = frozenset(ended)
        self._last = Moment(listing.at.wall, listing.began, listing.at.boot)
        return bool(begun) or any(each.over_at == listing.at for each in self.over)

    def began(self, server: ServerRecord, at: Moment) -> bool:
        """Take in a server that has just been started; return whether it is a lease of this hub."""
        if not self._is_ours(server) or server.id in self.running:
            return False
        why = self._whys.pop(server.id, "")
        self.running[server.id] = Sighting(
            server, self._last, at, at.steady, at.steady, at, why=why
        )
        return True

    def expect(self, stored: Mapping[str, float]) -> None:
        """Take in what an earlier process has seen to run: what isn't listed is over.

        Args:
            stored: server's id -> when it started, as the store was told then. There has to have
                been a listing.
        """
        last = self._last
        assert last is not None
        known = {each.server.id for each in self.unwritten}
        for name in stored.keys() - known:
            server = ServerRecord(name, {})
            gone = Sighting(server, None, last, last.steady, over_at=last, is_first=True)
            self.over.append(gone)
        for each in self.unwritten:
            each.started = stored.get(each.server.id)

    def _begin(self, server: ServerRecord, listing: Listing) -> Sighting:
        last, why = self._last, self._whys.pop(server.id, "")
        first = listing.began if server.state == "running" else listing.at.steady
        return Sighting(server, last, listing.at, first, why=why, is_first=last is None)

    def _is_ours(self, server: ServerRecord) -> bool:
        if server.labels.get(LABEL_HUB, "") != self._hub:
            return False
        lease = lease_of(running(server), self._hub)
        return bool(lease and lease.gpus)

    def note_why(self, server_id: str, why: str) -> None:
        """Note why a server is about to end; the first reason counts."""
        seen = self.running.get(server_id)
        if seen is None:
            while len(self._whys) >= MAX_WHYS:
                del self._whys[next(iter(self._whys))]
            self._whys.setdefault(server_id, why)
        elif not seen.why:
            seen.why = why

    def sample(self, gpus: Mapping[str, GPU], at: Moment, idle_percent: float) -> None:
        """Add what the GPUs of all running leases do.

        Args:
            gpus: name of a unit, or UUID -> the unit as NVML reports it.
            at: the moment.
            idle_percent: as for `sample_of`.
        """
        for seen in self.running.values():
            since = seen.sampled if seen.sampled is not None else seen.at.steady
            seconds = min(at.steady - since, LONGEST_SAMPLE_SECONDS)
            seen.sampled = at.steady
            lease = lease_of(seen.server, self._hub)
            assert lease
            found = [gpus.get(name) or gpus.get(parse(name).uuid) for name in lease.gpus]
            units = [each for each in found if each is not None]
            if seconds > 0 and len(units) == len(found):
                seen.samples.append(sample_of(units, at.steady, seconds, idle_percent))

    def learn(self, runs: Callable[[str], ServerRun | None]) -> None:
        """Take over what is known of when servers ran, of those of which it isn't yet.

        Args:
            runs: returns when a server ran; None: unknown.
        """
        for seen in self.unwritten:
            if seen.needs_run and (found := runs(seen.server.id)) is not None:
                # One that was started again meanwhile has had its GPUs all the time.
                started = (seen.run and seen.run.started) or found.started
                seen.run = replace(found, started=started)

    def batch(self) -> list[Sighting]:
        """Return what there is to write, as it is now."""
        for seen in self.unwritten:
            if seen.started is None:
                known = seen.run.started if seen.run else None
                seen.started = float(seen.server.created if known is None else known)
        return [replace(seen, samples=deque(seen.samples)) for seen in self.unwritten]

    def written(self, batch: Iterable[Sighting]) -> None:
        """Forget what has been written: `batch` as it was."""
        for done in batch:
            for seen in self.unwritten:
                if seen.server.id == done.server.id and seen.at == done.at:
                    for _ in done.samples:
                        seen.samples.popleft()
            if done.over_at is not None:
                self.over = [
                    seen
                    for seen in self.over
                    if seen.server.id != done.server.id or seen.at != done.at
                ]


def running(server: ServerRecord) -> ServerRecord:
    """Return a server as if it ran, since one that has ended has no lease any more."""
    return ServerRecord(server.id, server.labels, "running", server.created, server.name)
