"""The watch over the GPUs' health: what NVML reads and reports becomes marks, and holders are told.

Every reading of the nodes and of the backend's notes in the hub goes through here, so that a form
that is opened sees what has just happened, and a few more are made while nobody comes. What is
known and not yet written keeps a GPU out as well: between an event and its mark nothing is leased.
Several hubs on one engine write and end the same marks; that is harmless.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ..backends.base import Backend
from ..gpus import health
from ..gpus.driver_load import driver_load
from ..gpus.event_watch import EventWatch
from ..gpus.health import (
    VERDICTS,
    Cause,
    HealthEvent,
    HealthMark,
    Hysteresis,
    Now,
    Verdict,
    cause_of,
    words_of,
    worst,
)
from ..gpus.health_facts import OF_CLOCKS, OF_RECOVERY
from ..gpus.model import GPU, Holder, Node
from ..gpus.nvml import DriverNotLoaded, InventoryError
from ..gpus.out_of_service import OutOfServiceMark, with_health
from ..gpus.reader import NodeReader
from ..gpus.unit_names import parse
from ..leases import audit_log
from ..leases.audit_log import one_line
from ..leases.notes import Notes

# How often the GPUs are looked at while nobody comes.
POLL_SECONDS = 10.0
# For how long an application's own error is shown.
SHOWN_SECONDS = 3600.0
# As many of a GPU's last events are remembered.
MAX_EVENTS = 8


class Lease(Protocol):
    """The lease of a server with GPUs, as the watch needs it: a `ServerLease`."""

    @property
    def holder(self) -> Holder:
        """The server."""

    @property
    def units(self) -> frozenset[str]:
        """The names of its units."""

    def note_trouble(self, trouble: Sequence[Mapping[str, Any]]) -> None:
        """Note what is wrong with its GPUs, and tell its user where that is new."""


@dataclass
class _Watched:
    """What is known of one GPU beside its readings: its last events, and what comes and goes."""

    events: deque[tuple[float, HealthEvent]] = field(
        default_factory=lambda: deque(maxlen=MAX_EVENTS)
    )
    lasting: dict[str, Hysteresis] = field(
        default_factory=lambda: {key: Hysteresis() for key in sorted(OF_CLOCKS)}
    )

    def causes(self, now: float) -> set[str]:
        """Return what of it is worth watching now."""
        found = {key for key, each in self.lasting.items() if each.is_on}
        for at, event in self.events:
            cause = event.cause
            if cause and cause.verdict == "watch" and now - at < SHOWN_SECONDS:
                found.add(cause.key)
        return found


class HealthWatch:
    """Watches the health of a hub's GPUs.

    Args:
        reader: reads the nodes.
        backend: keeps the marks.
        leases: lists the leases of this hub's servers.
        log: a logger.
        events: makes the watch for events of what is to be called with each.
        load: says which load of the driver this is.
    """

    def __init__(
        self,
        reader: NodeReader,
        backend: Backend,
        leases: Callable[[], Iterable[Lease]],
        log: Any,
        events: Callable[[Callable[[HealthEvent], None]], EventWatch] = EventWatch,
        load: Callable[[], str] = driver_load,
    ) -> None:
        self._reader = reader
        self._backend = backend
        self._leases = leases
        self._log = log
        self.events = events(self._on_event)
        self._load = load
        # UUID of a physical GPU -> it, as of the last reading, and as it has been watched.
        self._gpus: dict[str, GPU] = {}
        self._watched: dict[str, _Watched] = {}
        self._notes = Notes()
        # What isn't in the last notes yet, and what was written since they were asked for.
        self._unwritten: dict[tuple[str, str], HealthMark] = {}
        self._written: dict[tuple[str, str], HealthMark] = {}
        self._ended: set[tuple[str, str]] = set()
        # Events whose marks wait for a reading of what they have left.
        self._arrived: list[HealthEvent] = []
        # (unit, cause) that an administrator has lifted, and that an event has come of since.
        self._anew: set[tuple[str, str]] = set()
        # (unit, cause) of an event's mark -> what was read of its GPU since.
        self._later: dict[tuple[str, str], set[str]] = {}
        self._unloaded_at: float | None = None
        self._settling: asyncio.Task[None] | None = None
        self._logged: set[tuple[str, str]] = set()
        self._trouble = ""
        self._has_notes = False
        # When the notes were last read, by the monotonic clock, and the last reading was begun.
        self._read_at = -math.inf
        self._looked_at = -math.inf
        # (unit, cause, "mark" or "lifted") -> since when, by that clock, this hub knows of it.
        self._known_at: dict[tuple[str, str, str], float] = {}

    # -- Readings --------------------------------------------------------------------------------

    async def read_nodes(self) -> tuple[Node, ...]:
        """Read the nodes, as the reader does, and see to what follows."""
        nodes = await self._read()
        self.settle_soon()
        return nodes

    async def _read(self) -> tuple[Node, ...]:
        began = time.monotonic()
        try:
            nodes = await self._reader()
        except DriverNotLoaded:
            self._unloaded_at = time.time()
            self.events.turn_off()
            raise
        # Readings overlap, and one that hung has nothing to say against a later one.
        if began >= self._looked_at:
            self._looked_at = began
            self._see(nodes)
        return nodes

    async def read_notes(self) -> Notes:
        """Read the backend's notes; what isn't written yet is among them.

        NVML is let go of while a GPU is out of service, which may be reset or replaced.
        """
        written, ended = set(self._written), set(self._ended)
        notes = await self._backend.notes()
        for key in written:
            self._written.pop(key, None)
        # A listing that was begun before a mark was removed may show it still.
        for key in self._ended - ended:
            notes = replace(notes, marks=_without(notes.marks, key))
        self._ended -= ended
        self._notes, self._has_notes, self._read_at = notes, True, time.monotonic()
        self._note_known()
        found = with_health(notes.marks, self._own_marks())
        self._reader.lets_go = bool(found)
        self.settle_soon()
        return replace(notes, marks=found)

    def _note_known(self) -> None:
        """Note since when what is marked or lifted now is known here."""
        there = {(*mark.key, "mark") for mark in self.marks}
        there |= {(*key, "lifted") for key in self._notes.lifted}
        now = time.monotonic()
        self._known_at = {key: self._known_at.get(key, now) for key in there}

    def _was_read_since(self, uuid: str, cause: str, kind: str) -> bool:
        """Return whether the last reading is newer than what it would end.

        Another hub's mark may be of what has happened after this hub's last reading.
        """
        return self._known_at.get((uuid, cause, kind), math.inf) <= self._looked_at

    def _see(self, nodes: Sequence[Node]) -> None:
        at, monotonic = time.time(), time.monotonic()
        gpus = {gpu.gpu_uuid: gpu for node in nodes for gpu in reversed(node.gpus)}
        there = sorted(gpus.items(), key=lambda each: each[1].index)
        self._gpus = {uuid: gpu for uuid, gpu in there if uuid}
        for uuid, gpu in self._gpus.items():
            watched = self._watched.setdefault(uuid, _Watched())
            for key, each in watched.lasting.items():
                each.add(key in gpu.health.causes, monotonic)
        for mark in self.marks:
            if cause_of(mark.cause).is_event and mark.gpu in self._gpus:
                read = self._gpus[mark.gpu].health.causes
                self._later.setdefault(mark.key, set()).update(read)
        arrived, self._arrived = self._arrived, []
        for event in arrived:
            reading = self._gpus[event.gpu].health if event.gpu in self._gpus else None
            self._add(health.marks_of_event(event, reading, at, self._load()))
            if event.kind == "recovery" and reading:
                self._anew |= {(event.gpu, key) for key in reading.causes & OF_RECOVERY}
        self._turn_events()

    def _turn_events(self) -> None:
        """Hear of events while no GPU is to be let go of."""
        waits = any(
            gpu.needs_reset or not gpu.health.answers or gpu.state in ("unhealthy", "unknown")
            for gpu in self._gpus.values()
        )
        if self.marks or self._notes.marks or waits or not self._gpus:
            self.events.turn_off()
        else:
            self.events.turn_on()

    # -- Events ----------------------------------------------------------------------------------

    def _on_event(self, event: HealthEvent) -> None:
        cause = event.cause
        if cause is not None:
            self._watched.setdefault(event.gpu, _Watched()).events.append((time.time(), event))
            self._record(event, cause)
        if cause is not None and not health.keeps_out(cause):
            self.settle_soon()
            return
        # Whoever asks meanwhile isn't given it; a reading then says what it has left.
        self._arrived.append(event)
        self._reader.lets_go = True
        self.settle_soon(anew=True)

    def _record(self, event: HealthEvent, cause: Cause) -> None:
        self._log.warning(
            "GPU %s reports %s (verdict: %s): %s",
            one_line(self._number(event.gpu)),
            one_line(cause.key),
            one_line(cause.verdict),
            one_line(cause.words),
        )

    def _number(self, uuid: str) -> int | str:
        return self._gpus[uuid].index if uuid in self._gpus else uuid

    # -- What follows ----------------------------------------------------------------------------

    @property
    def marks(self) -> list[HealthMark]:
        """The marks of health that are kept, or will be in a moment."""
        found = {mark.key: mark for mark in self._notes.health}
        for mark in self._own_marks():
            found.setdefault(mark.key, mark)
        return list(found.values())

    def _own_marks(self) -> list[HealthMark]:
        waiting = [
            mark
            for event in self._arrived
            for mark in health.marks_of_event(event, None, time.time(), "")
        ]
        return [*self._written.values(), *self._unwritten.values(), *waiting]

    def _add(self, marks: Iterable[HealthMark]) -> None:
        there = {mark.key for mark in self.marks}
        for mark in marks:
            if mark.key not in there:
                self._unwritten[mark.key] = mark
                self._known_at |= {(*mark.key, "mark"): time.monotonic()}

    def settle_soon(self, anew: bool = False) -> None:
        """Have the marks brought up to date, beside whatever goes on; `anew`: after a reading."""
        if self._settling is None or self._settling.done():
            self._settling = asyncio.ensure_future(self._settle(anew))
        elif anew:
            self._settling.add_done_callback(lambda _: self.settle_soon(anew=True))

    async def settled(self) -> None:
        """Wait until what is known by now has become marks, as far as the backend takes them."""
        while self._settling is not None and not self._settling.done():
            await asyncio.wait([self._settling])
            await asyncio.sleep(0)  # it may have begun another

    async def _settle(self, anew: bool) -> None:
        try:
            if anew:
                await self._read()
            if not self._has_notes:
                return
            await self._forget({*self._notes.lifted} & self._anew)
            self._anew.clear()
            due = health.changes(self.marks, self._notes.lifted, self._now())
            if due.put and self._looked_at < self._read_at:
                # Another hub may have ended these by what it has read since.
                await self._read()
                due = health.changes(self.marks, self._notes.lifted, self._now())
            self._add(due.put)
            await self._write()
            # What is read of a GPU says that an event's is over: the event's mark goes first.
            end = [mark for mark in due.end if self._was_read_since(*mark.key, "mark")]
            for mark in sorted(end, key=lambda mark: not cause_of(mark.cause).is_event):
                await self._end(mark)
            await self._forget(key for key in due.forget if self._was_read_since(*key, "lifted"))
            self._trouble = ""
        except InventoryError:
            pass  # who asks for GPUs reads it
        except Exception as error:  # the engine's: it is tried again
            if (said := one_line(error)) != self._trouble:
                self._trouble = said
                self._log.warning("Marks of GPUs' health can't be kept: %s", said)
        finally:
            self._turn_events()
            self._tell_holders()

    def _now(self) -> Now:
        readings = {uuid: gpu.health for uuid, gpu in self._gpus.items()}
        return Now(readings, time.time(), self._load(), self._unloaded_at, self._later)

    async def _write(self) -> None:
        for key, mark in list(self._unwritten.items()):
            if cause_of(mark.cause).is_event or key not in self._notes.lifted:
                await self._backend.keep_health_mark(mark)
                self._written[key] = mark
                self._log_once(mark)
            self._unwritten.pop(key, None)

    def _log_once(self, mark: HealthMark) -> None:
        if mark.key in self._logged:
            return
        self._logged.add(mark.key)
        cause = cause_of(mark.cause)
        index = self._gpus[mark.gpu].index if mark.gpu in self._gpus else None
        self._log.warning(
            "GPU %s isn't handed out (verdict: %s): %s",
            one_line(self._number(mark.gpu)),
            one_line(cause.verdict),
            one_line(words_of([mark.cause], index, with_todo=True)),
        )
        self._audit(mark, cause.verdict)

    async def _forget(self, lifted: Iterable[tuple[str, str]]) -> None:
        for uuid, cause in lifted:
            await self._backend.forget_lifted(uuid, cause)
            self._notes = replace(self._notes, lifted=self._notes.lifted - {(uuid, cause)})

    async def _end(self, mark: HealthMark) -> None:
        await self._backend.end_health_mark(mark)
        self._written.pop(mark.key, None)
        self._unwritten.pop(mark.key, None)
        self._later.pop(mark.key, None)
        self._logged.discard(mark.key)
        self._ended.add(mark.key)
        self._notes = replace(self._notes, marks=_without(self._notes.marks, mark.key))
        self._reader.lets_go = bool(self.marks or self._notes.marks)
        number, said = self._number(mark.gpu), one_line(mark.cause)
        self._log.warning("GPU %s: %s reads clear", one_line(number), said)
        self._audit(mark, "ok")

    def _audit(self, mark: HealthMark, verdict: Verdict) -> None:
        holder = next(
            (lease.holder for lease in self._leases() if mark.gpu in _gpus_of(lease)), Holder("")
        )
        audit_log.record(
            self._log,
            "health",
            holder,
            audit_log.RULES,
            gpus=[mark.uuid],
            verdict=verdict,
            rule=mark.cause,
        )

    # -- What others ask -------------------------------------------------------------------------

    def is_out_of_order(self, units: Collection[str]) -> bool:
        """Return whether one of some units (by name) is in quarantine, as far as is known now."""
        names = {name.uuid for name in map(parse, units)} | {name.gpu for name in map(parse, units)}
        return any(
            each.uuid in names and cause_of(each.cause).verdict == "quarantine"
            for each in self.marks
        )

    def causes_of(self, uuid: str, gpu: str, with_watched: bool = True) -> set[str]:
        """Return what a unit suffers from.

        Args:
            uuid: the unit's.
            gpu: its physical GPU's.
            with_watched: whether what is only watched is among it.
        """
        found = {mark.cause for mark in self.marks if mark.uuid in (uuid, gpu)}
        if gpu in self._gpus:
            read = self._gpus[gpu].health.causes
            found |= {
                key
                for key in read
                if health.keeps_out(cause_of(key)) and (gpu, key) not in self._notes.lifted
            }
        if with_watched and gpu in self._watched:
            found |= self._watched[gpu].causes(time.time())
        return found

    def facts(self) -> list[dict[str, Any]]:
        """Return what is known of each GPU's health, as JSON values for the hub's services."""
        return [self._facts_of(uuid, gpu) for uuid, gpu in self._gpus.items()]

    def _facts_of(self, uuid: str, gpu: GPU) -> dict[str, Any]:
        found = self.causes_of(uuid, uuid)
        parts = {mark.cause for mark in self.marks if mark.gpu == uuid}
        cause = worst(found | parts)
        return {
            "uuid": uuid,
            "verdict": cause.verdict if cause else "ok",
            "causes": sorted(found | parts),
            "events": [
                {"at": at, "kind": event.kind, "xid": event.xid, "instances": [*event.instances]}
                for at, event in self._watched.get(uuid, _Watched()).events
            ],
        }

    def count(self) -> dict[str, int]:
        """Return verdict -> how many physical GPUs have it."""
        found = [each["verdict"] for each in self.facts()]
        return {verdict: found.count(verdict) for verdict in VERDICTS}

    def _tell_holders(self) -> None:
        for lease in list(self._leases()):
            lease.note_trouble([*self._troubles_of(lease)])

    def _troubles_of(self, lease: Lease) -> Iterable[dict[str, Any]]:
        for name in sorted(map(parse, lease.units), key=str):
            cause = worst(self.causes_of(name.uuid, name.gpu, with_watched=False))
            if cause is not None:
                index = self._gpus[name.gpu].index if name.gpu in self._gpus else None
                yield {
                    "gpu": str(name),
                    "index": index,
                    "verdict": cause.verdict,
                    "cause": cause.key,
                }

    # -- Its work --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look at the GPUs now and then, until cancelled."""
        while True:
            # Whoever starts a server has both read, and nobody needs to ask again so soon.
            rest = self._read_at + POLL_SECONDS - time.monotonic()
            if rest <= 0:
                # What can't be read is told to who asks for GPUs.
                with suppress(Exception):
                    await self.read_notes()
                    await self.read_nodes()
                rest = POLL_SECONDS
            await asyncio.sleep(rest)

    def close(self) -> None:
        """End the watch for events."""
        self.events.turn_off()


def _gpus_of(lease: Lease) -> set[str]:
    return {each for name in map(parse, lease.units) for each in (name.uuid, name.gpu)}


def _without(
    marks: Mapping[str, OutOfServiceMark], ended: tuple[str, str]
) -> dict[str, OutOfServiceMark]:
    """Return marks without one of health, by unit and cause."""
    found = dict(marks)
    if before := found.get(ended[0]):
        left = tuple(mark for mark in before.health if mark.key != ended)
        if left or before.is_own:
            found[ended[0]] = replace(before, health=left)
        else:
            del found[ended[0]]
    return found
