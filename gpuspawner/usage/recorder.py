"""The recorder: a background task of the hub that writes into the store what is seen of its leases.

It decides nothing. Where the store can't be written servers start and stop as ever, the log says so
once, and what has been seen is written when it can be again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from ..errors import Unknown
from ..gpus.model import GPU
from ..leases.audit_log import one_line
from ..leases.clock import Moment
from ..leases.labels import ServerRecord
from ..leases.ledger import Ledger, Listing
from ..leases.server_run import ServerRun
from ..timeouts import within
from .database import StoreError
from .lately import NEVER_READ, PastUses, StoredUse
from .readings import Readings, reading_of
from .sightings import Sightings
from .store import Store
from .writing import Added, Seen

T = TypeVar("T")

# How often there is something to write at least, and the pause after it, in seconds.
PERIOD_SECONDS = 15.0
PAUSE_SECONDS = 1.0
# After how long GPUs are read for the samples, and for the history, if nobody else has read them.
SAMPLE_SECONDS = 60.0
# How often the history is written. Nothing is lost with a hub that is killed meanwhile, and comes
# back before `history.LONGEST_SECONDS` are over.
HISTORY_SECONDS = 60.0
# How often what is too old is removed.
EXPIRE_SECONDS = 3600.0
# How often what users have had is read anew although nothing has ended.
REREAD_SECONDS = 600.0
DAY = 86400.0


class Recorder:
    """Writes the leases of one hub into a store.

    Args:
        url: the store's address; "": nothing is written.
        ledger: who holds what. Its listings are what is seen.
        runs: asks the backend when servers ran.
        known_runs: returns the same as far as spawners know it.
        idle_percent: up to which utilization a GPU counts as doing nothing.
        retention_days: after how many days a lease that is over is removed; None: never.
        added: called with what has been written.
        log: a logger.
        window: how far back somebody asks for what users have had, in seconds; 0: nobody does.
        shared: the groups of which somebody asks for what all members have had.
        history_days: for how many days it is kept what GPUs did; 0: it isn't.
    """

    def __init__(
        self,
        url: str,
        ledger: Ledger,
        runs: Callable[[Collection[str]], Awaitable[Mapping[str, ServerRun]]],
        known_runs: Callable[[], Mapping[str, ServerRun]],
        idle_percent: float,
        retention_days: float | None,
        added: Callable[[Added], None],
        log: Any,
        window: float = 0,
        shared: Collection[str] = (),
        history_days: float = 0,
    ) -> None:
        self.store = Store(url) if url else None
        self.hub = ledger.hub
        self._ledger = ledger
        self._runs = runs
        self._known_runs = known_runs
        self._idle_percent = idle_percent
        self._retention_days = retention_days
        self._added = added
        self._log = log
        self._sightings = Sightings(ledger.hub)
        self.past = PastUses(ledger.hub, self._sightings, self._read_past)
        self._window, self._shared = window, frozenset(shared)
        self._past_read_at = 0.0
        self._news = asyncio.Event()
        # One thread: what is written has an order, and SQLite one who writes.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="usage")
        self._trouble = ""
        # Ids of servers whose leases the store has; None: it hasn't been asked yet.
        self._stored: set[str] | None = None
        self._sampled_view_at = 0.0
        self._history_days = history_days
        self._readings = Readings()
        self._history_written_at: float | None = None
        self._expired_at: float | None = None
        if self.store:
            ledger.on_listing = self._see

    async def where(self) -> dict[str, str]:
        """Return where the store is, and this hub's address in it, for who reads it.

        Its tables are made first, as far as they can be: a hub that has just been started has
        written nothing yet.
        """
        if self.store is None:
            return {"url": "", "hub": self.hub}
        try:
            await self._in_thread(self.store.open)
        except StoreError as error:
            self._tell(str(error))
        url = self.store.url.render_as_string(hide_password=False)
        return {"url": url, "hub": self.hub}

    # -- What the hub tells ----------------------------------------------------------------------

    def began(self, server: ServerRecord) -> None:
        """Note a server that has just been started, with the labels of its lease."""
        if self.store and self._sightings.began(server, Moment.now(self._ledger.clock)):
            self._news.set()

    def note_why(self, server_id: str, why: str) -> None:
        """Note why a server is about to end, one of `endings.WHYS`; the first reason counts."""
        if self.store and server_id:
            self._sightings.note_why(server_id, why)
            self._news.set()

    def _see(self, listing: Listing) -> None:
        if self._sightings.see(listing):
            self._news.set()

    # -- The task --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write periodically, and when a lease begins or ends; until cancelled."""
        if self._window:
            with suppress(Unknown):  # it is in the log, and tried again
                await self.past.ensure_read()
        while self.store:
            with suppress(asyncio.TimeoutError):
                await within(PERIOD_SECONDS, self._news.wait())
            self._news.clear()
            try:
                await self.record()
            except StoreError as error:
                self._tell(str(error))
            except Exception as error:  # the engine's; it is reported to those who ask for servers
                self._log.debug("Recording usage failed, and is tried again: %s", one_line(error))
            await asyncio.sleep(PAUSE_SECONDS)

    async def record(self) -> None:
        """Write what has been seen.

        Raises:
            StoreError: the store can't be read or written.
            Exception: the backend's.
        """
        store = self.store
        if store is None or self._sightings.last is None:
            return
        await self._sample()
        await self._in_thread(store.open)
        if self._stored is None:
            stored = await self._in_thread(lambda: store.open_leases(self.hub))
            self._sightings.expect(stored)
            self._stored = set(stored)
        await self._learn()
        # Nothing is awaited between these.
        last, batch = self._sightings.last, self._sightings.batch()
        seen = Seen(self.hub, last, batch, self._sightings.ended, self._models())
        added, uses = await self._in_thread(lambda: self._write(store, seen))
        self._sightings.written(batch)
        if uses is not None:
            self.past.take(uses)
        self._stored = {each.server.id for each in batch if each.over_at is None}
        self._tell("")
        self._added(added)
        await self._keep_history(store)
        await self._expire(store)

    def _write(self, store: Store, seen: Seen) -> tuple[Added, Sequence[StoredUse] | None]:
        """Write what was seen, and read what users have had; None where that is as it was."""
        added, steady = store.write(seen), self._ledger.clock.steady()
        is_old = steady - self._past_read_at > REREAD_SECONDS
        if not self._window or not (added.ends or is_old or self.past.version is None):
            return added, None
        self._past_read_at = steady
        return added, self._uses(store)

    def _uses(self, store: Store) -> Sequence[StoredUse]:
        since = self._ledger.clock.wall() - self._window
        return store.uses(self.hub, since, self._shared)

    async def _read_past(self) -> None:
        """Read what users have had.

        Raises:
            Unknown: it can't be read.
        """
        store = self.store
        if store is None:
            raise Unknown(NEVER_READ)

        def read() -> Sequence[StoredUse]:
            store.open()
            return self._uses(store)

        try:
            uses = await self._in_thread(read)
        except StoreError as error:
            self._tell(str(error))
            raise Unknown(NEVER_READ) from error
        if self.past.version is None:
            self.past.take(uses)

    async def _learn(self) -> None:
        """Learn when servers ran: from spawners, else from the backend."""
        known = self._known_runs()
        self._sightings.learn(known.get)
        # What has ended may have been started again, as another lease.
        stored = (self._stored or set()) - {each.server.id for each in self._sightings.over}
        unknown = {
            each.server.id
            for each in self._sightings.unwritten
            if each.needs_run and (each.over_at is not None or each.server.id not in stored)
        }
        if unknown:
            self._sightings.learn(dict(await self._runs(unknown)).get)

    async def _sample(self) -> None:
        """Add a sample of the last reading of the GPUs, which is made for it only if none is."""
        ledger = self._ledger
        if self._sightings.running or self._history_days:
            with suppress(Unknown):  # whoever wants a GPU reads why
                await ledger.read_recent(SAMPLE_SECONDS)
        if ledger.last_view is None or ledger.last_view_at == self._sampled_view_at:
            return
        self._sampled_view_at = ledger.last_view_at
        age = time.monotonic() - ledger.last_view_at
        if age > SAMPLE_SECONDS:
            return
        if self._history_days:
            self._readings.add(reading_of(ledger.clock.wall() - age, ledger.last_view.gpus))
        found: dict[str, GPU] = {}
        for gpu in ledger.last_view.gpus:
            found |= {name: gpu for name in (gpu.uuid, gpu.id) if name}
        self._sightings.sample(found, Moment.now(ledger.clock), self._idle_percent)

    def _models(self) -> dict[str, str]:
        view = self._ledger.last_view
        return {gpu.gpu_uuid: gpu.model for gpu in view.gpus if gpu.gpu_uuid} if view else {}

    async def _keep_history(self, store: Store) -> None:
        """Write what GPUs were read to do, now and then."""
        clock, written_at = self._ledger.clock, self._history_written_at
        batch = self._readings.batch()
        is_due = written_at is None or clock.steady() - written_at >= HISTORY_SECONDS
        if not batch or not is_due:
            return
        await self._in_thread(lambda: store.write_history(batch, clock.wall()))
        self._readings.written(batch)
        self._history_written_at = clock.steady()

    async def _expire(self, store: Store) -> None:
        clock, days = self._ledger.clock, self._retention_days
        if self._expired_at is not None and clock.steady() - self._expired_at < EXPIRE_SECONDS:
            return
        self._expired_at = clock.steady()
        await self._in_thread(lambda: store.thin_history(clock.wall(), self._history_days))
        if days is None:
            return
        before = clock.wall() - days * DAY
        if removed := await self._in_thread(lambda: store.expire(before)):
            self._log.info("Removed %d leases older than %g days from the usage", removed, days)

    def _tell(self, trouble: str) -> None:
        """Say in the log once that the store can't be written, and once that it can be again."""
        if bool(trouble) == bool(self._trouble):
            return
        if trouble:
            self._log.warning(
                "c.GPUSpawner.usage_db can't be written (%s): servers start and stop as ever, and "
                "their usage is written once it can be",
                one_line(trouble),
            )
        else:
            self._log.warning("c.GPUSpawner.usage_db is written again, with what was missing")
        self._trouble = trouble

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def close(self) -> None:
        """Close the store; what isn't written, the next hub process writes."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self.store:
            self.store.close()
