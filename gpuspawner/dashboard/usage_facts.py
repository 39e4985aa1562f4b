"""What the dashboard says of the usage, by who asks; read from the store, never from the hub."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..errors import Refused
from ..hub import control_socket
from ..i18n.lazy_text import lazy_gettext
from ..usage.report import DIMENSIONS, Period, Scope, Sums, parse_period
from ..usage.store import Store, StoreError
from .facts import Person

T = TypeVar("T")

OWN, ALL = "own", "all"
NOTHING_KEPT = lazy_gettext("It isn't kept here who used what.")
NOT_READ = lazy_gettext("What was used can't be read now: the hub's log says why.")


@dataclass(frozen=True)
class Asked:
    """A question about the usage.

    Args:
        period: the time.
        by: what the rows are, of `report.DIMENSIONS`.
        whose: `OWN` or `ALL`.
    """

    period: Period
    by: str
    whose: str


@dataclass(frozen=True)
class Answer:
    """The answer.

    Args:
        rows: the report.
        total: the sums over all leases.
        days: the sums of each span of the period; empty where they weren't asked for.
        courses: key -> what users call a course.
    """

    rows: list[Sums]
    total: Sums
    days: list[tuple[Period, Sums]]
    courses: Mapping[str, str] = field(default_factory=dict)


def ask(person: Person, get: Callable[[str], str]) -> Asked:
    """Return what is asked, of a request's arguments.

    Args:
        person: who asks.
        get: returns an argument; "" where there is none.

    Raises:
        Refused: it makes no sense, or isn't for this person.
    """
    by, whose = get("by") or "user", get("whose") or (ALL if person.administrator else OWN)
    if by not in DIMENSIONS:
        words = lazy_gettext("by must be one of %(names)s.", names=", ".join(DIMENSIONS))
        raise Refused(words, key="by")
    if whose not in (OWN, ALL):
        words = lazy_gettext("whose must be one of %(names)s.", names=f"{OWN}, {ALL}")
        raise Refused(words, key="whose")
    if whose == ALL and not person.administrator:
        words = lazy_gettext("Only administrators see what everybody used.")
        raise Refused(words, status=403, key="whose")
    if whose == OWN and not person.name:
        raise Refused(lazy_gettext("A service holds no GPUs of its own."), status=403, key="whose")
    return Asked(parse_period(get("from"), get("to"), time.time()), by, whose)


class UsageReader:
    """Reads the store of one hub.

    Args:
        socket: the path of the hub's control socket, which says where the store is.
    """

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._store: Store | None = None
        self._url = ""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="usage")

    async def answer(self, asked: Asked, person: Person, *, days: bool) -> Answer:
        """Return the answer to a question that this person may ask.

        Raises:
            Refused: it isn't kept, or can't be read.
        """

        def answer(store: Store, hub: str) -> Answer:
            # A user of another hub that has this one's name is somebody else.
            scope = Scope(None if asked.whose == ALL else person.name, hub)
            rows, total = store.report(asked.period, asked.by, scope)
            over_time = store.over_time(asked.period, scope) if days else []
            return Answer(rows, total, over_time, where.get("courses") or {})

        where = await self._where()
        return await self._read(where, answer)

    async def read(self, question: Callable[[Store, str], T]) -> T:
        """Return what a question reads from the store, given the hub's address in it.

        Raises:
            Refused: nothing is kept, or it can't be read.
        """
        return await self._read(await self._where(), question)

    async def _read(self, where: Mapping[str, Any], question: Callable[[Store, str], T]) -> T:
        if not where.get("url"):
            raise Refused(NOTHING_KEPT, status=404)

        def read() -> T:
            store = self._store_at(str(where["url"]))
            store.check_revision()
            return question(store, str(where["hub"]))

        try:
            return await self._in_thread(read)
        except (StoreError, ValueError) as error:
            raise Refused(NOT_READ, status=503) from error

    async def _where(self) -> Mapping[str, Any]:
        try:
            return await control_socket.ask(self._socket, {"do": "usage"})
        except (OSError, ValueError, asyncio.TimeoutError) as error:
            raise Refused(NOT_READ, status=503) from error

    def _store_at(self, url: str) -> Store:
        if self._store is None or url != self._url:
            if self._store:
                self._store.close()
            self._store, self._url = Store(url, writes=False), url
        return self._store

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)
