"""The monitor, which reads the nodes and the hub in the background, once for all pages."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import docker

from ..backends.docker import errors as engine_errors
from ..backends.docker import notes
from ..backends.docker.listing import Listing
from ..errors import Unknown
from ..gpus.allocation import with_leases
from ..gpus.machine_names import MachineNames, may_know
from ..gpus.model import GPU, Node, Outsider
from ..gpus.out_of_service import OutOfServiceMark
from ..gpus.reader import Reader
from ..gpus.units import divided_as_held
from ..hub import control_socket
from ..hub.nodes import read_answer
from ..i18n.lazy_text import lazy_gettext, restored
from ..leases.labels import LABEL_HUB, ServerRecord, lease_of
from ..leases.ledger import Ledger, View
from ..leases.notes import Notes
from ..timeouts import within
from .history import SECONDS_PER_POINT, History

PERIOD_SECONDS = 2.0
# The readings end when no page has been requested for this time.
IDLE_SECONDS = 30.0
# Older readings count as unknown.
STALE_SECONDS = 15.0
# How long a page waits for the first reading, and for a new one if there is an old one to show.
FIRST_READING_SECONDS = 12.0
NEXT_READING_SECONDS = 1.0
NVML_SECONDS = 10.0
ENGINE_SECONDS = 20
# How long a hub may take to read the two.
HUB_SECONDS = NVML_SECONDS + ENGINE_SECONDS
HUB_IS_SILENT = lazy_gettext("JupyterHub doesn't answer, and only it knows of the GPUs.")


@dataclass(frozen=True)
class Snapshot:
    """The result of the last reading.

    Args:
        at: when the nodes were last read completely, in seconds since the epoch; None: never.
        tried_at: when the last reading began, by the monotonic clock.
        trouble: why the nodes couldn't be read then; "" if they could.
        nodes: as they were at `at`.
        ours: UUIDs of the GPUs that servers of this hub hold.
        marks: the GPUs out of service.
        outsiders: what has GPUs and no lease.
        hub: the hub's status (`control_socket.ControlSocket.status`); None if it doesn't answer.
        hub_trouble: why it doesn't answer.
        history: the history of every GPU.
        versions, images: as of `hub.nodes.NodesAnswer`; {} where the hub doesn't tell of the nodes.
    """

    at: float | None = None
    tried_at: float = -math.inf
    trouble: str = ""
    nodes: tuple[Node, ...] = ()
    ours: frozenset[str] = frozenset()
    marks: Mapping[str, OutOfServiceMark] = field(default_factory=dict)
    outsiders: tuple[Outsider, ...] = ()
    hub: Mapping[str, Any] | None = None
    hub_trouble: str = ""
    history: History = field(default_factory=History)
    versions: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, frozenset[str] | None] = field(default_factory=dict)

    @property
    def gpus(self) -> tuple[GPU, ...]:
        """The GPUs of all nodes."""
        return tuple(gpu for node in self.nodes for gpu in node.gpus)

    @cached_property
    def machines(self) -> MachineNames:
        """What the nodes are called, by who reads it."""
        return MachineNames(self.nodes)

    def names_machines_for(self, is_administrator: bool) -> bool:
        """Return whether somebody may know the machines' names, as the hub has it."""
        return may_know(str((self.hub or {}).get("name_machines", "")), is_administrator)

    def is_known(self, now: float) -> bool:
        """Return whether the nodes' state is known at a time (in seconds since the epoch)."""
        return not self.trouble and self.at is not None and abs(now - self.at) <= STALE_SECONDS


def _as_held(view: View) -> tuple[Node, ...]:
    """Return the nodes, with the slots of GPUs of which servers have slots for some hours."""
    divided = [
        replace(node, gpus=tuple(divided_as_held(node.gpus, view.leases))) for node in view.nodes
    ]
    return with_leases(divided, view.leases, view.outsiders)


class HostReader:
    """Reads the nodes and one hub.

    Args:
        socket: the path of the hub's control socket.
        hub: the hub's address, as in the label of its containers.
    """

    def __init__(self, socket: str, hub: str) -> None:
        self._socket = socket
        self._hub = hub
        self._client: docker.APIClient | None = None
        self._listing = Listing()
        self._servers: Sequence[ServerRecord] = ()
        self._settings: Mapping[str, Any] = {}
        self._configure_reader({})

    def _configure_reader(self, settings: Mapping[str, Any]) -> None:
        """Configure the reader as the hub's: with the same excluded GPUs and memory threshold."""
        self._settings = settings
        self._reader = Reader(NVML_SECONDS, **settings)
        self._ledger = Ledger(
            self._list_servers,
            self._reader,
            engine_errors.explain_read_error,
            # Another hub's user of somebody's name is somebody else.
            hub=self._hub,
            read_notes=self._read_notes,
        )

    async def read(self, last: Snapshot) -> Snapshot:
        """Read the state now; if that fails, return the last one with the reason."""
        now, began = time.time(), time.monotonic()
        hub, hub_trouble = await ask_status(self._socket)
        if hub and hub.get("reading", {}) != self._settings:
            self._configure_reader(hub.get("reading", {}))
        tried = replace(last, tried_at=began, hub=hub, hub_trouble=hub_trouble)
        try:
            view = await self._ledger.read()
        except Unknown as error:
            return replace(tried, trouble=str(error))
        last.history.add(now, view.gpus)
        return replace(
            tried,
            at=time.time(),
            trouble="",
            nodes=_as_held(view),
            ours=self._ours(),
            marks=self._ledger.last_notes.marks,
            outsiders=view.outsiders,
        )

    async def sample(self, history: History) -> None:
        """Add what the GPUs do now to the history; raises what the read raises."""
        nodes = await self._reader()
        history.add(time.time(), [gpu for node in nodes for gpu in node.gpus])

    async def _list_servers(self) -> Sequence[ServerRecord]:
        self._servers = await self._call(self._listing)
        return self._servers

    async def _read_notes(self) -> Notes:
        found = notes.parse(await self._call(notes.list_notes))
        # A GPU that is out of service may be about to be reset.
        self._reader.lets_go = bool(found.marks)
        return found

    async def _call(self, call: Callable[[docker.APIClient], Any]) -> Any:
        def run() -> Any:
            if self._client is None:
                self._client = docker.from_env(timeout=ENGINE_SECONDS, version="auto").api
            return call(self._client)

        return await asyncio.get_running_loop().run_in_executor(None, run)

    def _ours(self) -> frozenset[str]:
        leases = [
            lease_of(each) for each in self._servers if each.labels.get(LABEL_HUB) == self._hub
        ]
        return frozenset(uuid for lease in leases if lease for uuid in lease.gpus)


class HubReader:
    """Reads one hub, which tells of the nodes too: for a dashboard without GPUs and engine.

    Args:
        socket: the path of the hub's control socket.
    """

    def __init__(self, socket: str) -> None:
        self._socket = socket

    async def read(self, last: Snapshot) -> Snapshot:
        """Read the state now; if that fails, return the last one with the reason."""
        now, began = time.time(), time.monotonic()
        hub, hub_trouble = await ask_status(self._socket)
        tried = replace(last, tried_at=began, hub=hub, hub_trouble=hub_trouble)
        if hub is None:  # for one that hangs, nobody waits twice
            return replace(tried, trouble=HUB_IS_SILENT)
        try:
            answer = await control_socket.ask(self._socket, {"do": "nodes"}, HUB_SECONDS)
            if "error" in answer:
                return replace(tried, trouble=restored(answer.get("sentence")) or answer["error"])
            told = read_answer(answer)
        except (OSError, ValueError, asyncio.TimeoutError) as error:
            trouble = f"{type(error).__name__}: {error}"
            return replace(tried, trouble=HUB_IS_SILENT, hub_trouble=trouble)
        snapshot = replace(
            tried,
            at=time.time(),
            trouble="",
            nodes=told.nodes,
            ours=told.ours,
            marks=told.marks,
            outsiders=told.outsiders,
            versions=told.versions,
            images=told.images,
        )
        last.history.add(now, snapshot.gpus)
        return snapshot

    async def sample(self, history: History) -> None:
        """Add what the GPUs do now to the history; raises OSError or ValueError: it isn't known."""
        answer = await control_socket.ask(self._socket, {"do": "nodes"}, HUB_SECONDS)
        told = read_answer(answer)
        history.add(time.time(), [gpu for node in told.nodes for gpu in node.gpus])


async def ask_status(socket: str) -> tuple[Mapping[str, Any] | None, str]:
    """Return the hub's status; None and the reason if it doesn't answer."""
    try:
        answer = await control_socket.ask(socket, {"do": "status"})
    except (OSError, ValueError, asyncio.TimeoutError) as error:
        return None, f"{type(error).__name__}: {error}"
    if "queue" not in answer or "leases" not in answer:
        return None, str(answer.get("error", "no answer"))
    return answer, ""


class Monitor:
    """Reads in the background while pages are requested, equally often for one page or many.

    Args:
        read: returns a new snapshot, given the last one.
        sample: adds to a history what the GPUs do now.
    """

    def __init__(
        self,
        read: Callable[[Snapshot], Awaitable[Snapshot]],
        sample: Callable[[History], Awaitable[None]],
    ) -> None:
        self._read = read
        self._sample = sample
        self._snapshot = Snapshot()
        self._wanted_at = 0.0
        self._task: asyncio.Task[None] | None = None
        # Set, and replaced by a new event, when a reading ends.
        self._news = asyncio.Event()

    @property
    def last(self) -> Snapshot:
        """The last snapshot, however old."""
        return self._snapshot

    async def snapshot(self) -> Snapshot:
        """Return the last snapshot, or the next one if it is too old."""
        loop = asyncio.get_running_loop()
        self._wanted_at = loop.time()
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run())
        if time.monotonic() - self._snapshot.tried_at > 2 * PERIOD_SECONDS:
            first = self._snapshot.tried_at == -math.inf
            patience = FIRST_READING_SECONDS if first else NEXT_READING_SECONDS
            with suppress(asyncio.TimeoutError):
                await within(patience, self._news.wait())
        return self._snapshot

    async def keep_history(self) -> None:
        """Sample what the GPUs do while no page is requested, for who comes; until cancelled."""
        while True:
            if self._task is None or self._task.done():
                with suppress(Exception):  # whoever comes reads what is wrong
                    await self._sample(self._snapshot.history)
            await asyncio.sleep(SECONDS_PER_POINT)

    async def refresh(self) -> Snapshot:
        """Read now and return the snapshot, e.g. after an action."""
        await self.snapshot()
        self._keep_newer(await self._read(self._snapshot))
        return self._snapshot

    def _keep_newer(self, snapshot: Snapshot) -> None:
        # A reading that began earlier may end later.
        if snapshot.tried_at >= self._snapshot.tried_at:
            self._snapshot = snapshot

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() - self._wanted_at < IDLE_SECONDS:
            try:
                self._keep_newer(await self._read(self._snapshot))
            except Exception as error:  # pages show it
                trouble = f"{type(error).__name__}: {error}"
                self._snapshot = replace(self._snapshot, tried_at=time.monotonic(), trouble=trouble)
            news, self._news = self._news, asyncio.Event()
            news.set()
            await asyncio.sleep(PERIOD_SECONDS)
