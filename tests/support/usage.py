"""A world with servers, an engine's memory of them and clocks, in which real recorders write."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import event, select

from gpuspawner.gpus.model import GPU, Holder, Node
from gpuspawner.leases.clock import Clock
from gpuspawner.leases.labels import LABEL_HUB, LABEL_WAITED, ServerRecord, labels
from gpuspawner.leases.ledger import Ledger
from gpuspawner.leases.server_run import ServerRun
from gpuspawner.usage.recorder import Recorder
from gpuspawner.usage.schema import leases
from gpuspawner.usage.store import Store

# What it is at the beginning, in seconds since the epoch.
EPOCH = 1_800_000_000.0


class Killed(Exception):
    """The process ends here."""


@dataclass
class Box:
    """A server: when it ran in truth (by the steady clock), and what the engine has noted."""

    id: str
    hub: str
    user: str
    unit: str
    began: float
    started: float
    over: float | None = None
    ended: float | None = None
    exit_code: int = 0
    is_listed: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        assert self.over is not None
        return self.over - self.began


@dataclass
class World:
    """The machine, its engine, and a database.

    Args:
        url: the address of the store.
        events: whether the engine remembers ends of servers that are gone.
        window: how far back a hub looks for what users have had, in seconds.
        shared: the groups of which it looks for what all members have had.
        history_days: for how many days it is kept what GPUs did.
    """

    url: str
    events: bool = True
    steady: float = 100.0
    shift: float = 0.0
    boot: str = "boot-0"
    boxes: list[Box] = field(default_factory=list)
    gpus: list[GPU] = field(default_factory=list)
    retention_days: float | None = None
    window: float = 0
    shared: Sequence[str] = ()
    history_days: float = 0

    @property
    def wall(self) -> float:
        return EPOCH + self.steady + self.shift

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.steady, lambda: self.boot)

    def start(self, hub: str, unit: str = "GPU-a", user: str = "ada", **more: Any) -> Box:
        number = len(self.boxes)
        named = labels(Holder(user), more.pop("image", "pytorch"), [unit], None, more.pop("of", ()))
        waited = {LABEL_WAITED: str(more.pop("waited", 0))}
        bears = {**named, LABEL_HUB: hub, **waited, **more}
        box = Box(f"box-{number}", hub, user, unit, self.steady, self.wall, labels=bears)
        self.boxes.append(box)
        return box

    def end(self, box: Box, exit_code: int = 0, is_listed: bool = False) -> None:
        box.over, box.ended, box.exit_code = self.steady, self.wall, exit_code
        box.is_listed = is_listed

    def record_of(self, box: Box) -> ServerRecord:
        state: Any = "running" if box.over is None else "ended"
        return ServerRecord(box.id, box.labels, state, float(int(box.started)))

    async def list(self) -> Sequence[ServerRecord]:
        return [self.record_of(box) for box in self.boxes if box.is_listed]

    async def inventory(self) -> Sequence[Node]:
        return [Node(gpus=tuple(self.gpus))]

    async def runs(self, server_ids: Collection[str]) -> Mapping[str, ServerRun]:
        return {
            box.id: ServerRun(box.started, box.ended, None if box.over is None else box.exit_code)
            for box in self.boxes
            if box.id in server_ids and (box.is_listed or self.events)
        }

    def recorder(self, hub: str = "hub") -> Recorder:
        """Return the recorder of a new process of a hub."""
        ledger = Ledger(self.list, self.inventory, hub=hub, clock=self.clock)
        log = logging.getLogger("usage")
        no_runs: dict[str, ServerRun] = {}
        days = self.retention_days
        return Recorder(
            self.url,
            ledger,
            self.runs,
            lambda: no_runs,
            5,
            days,
            lambda added: None,
            log,
            self.window,
            self.shared,
            self.history_days,
        )


async def look(recorder: Recorder) -> None:
    """List the servers, and write what was seen."""
    await recorder._ledger.servers()
    await recorder.record()


def rows(url: str) -> list[Any]:
    """Return the rows of all leases."""
    store = Store(url, writes=False)
    with store.engine.begin() as connection:
        found = connection.execute(select(leases).order_by(leases.c.id)).all()
    store.close()
    return list(found)


def held(url: str) -> list[Any]:
    """Return each unit of each lease that the store has, with the lease's own columns."""
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        connection.row_factory = sqlite3.Row
        return connection.execute(
            "SELECT *, u.share_part AS part, u.share_of AS of FROM gpuspawner_leases AS l"
            " JOIN gpuspawner_units AS u ON u.lease = l.id ORDER BY l.id"
        ).fetchall()


@contextmanager
def killed_after(store: Store | None, statements: int | None) -> Iterator[list[str]]:
    """Have a store's process end before its next statement but so many; None: never.

    Yields the statements that it has come to; the commit is one.
    """
    assert store
    engine, done = store.engine, []

    def before(*facts: Any) -> None:
        done.append(str(facts[2]) if len(facts) > 2 else "commit")
        if statements is not None and len(done) > statements:
            raise Killed

    event.listen(engine, "before_cursor_execute", before)
    event.listen(engine, "commit", before)
    try:
        yield done
    finally:
        event.remove(engine, "before_cursor_execute", before)
        event.remove(engine, "commit", before)
