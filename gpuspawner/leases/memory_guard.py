"""The memory guard: keeps servers that share a GPU to their part of its memory, after a warning.

The rule itself is a plain value: `MemoryShare`. What isn't known ends nothing.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol

from ..errors import GPUSpawnerError
from ..gpus import host_processes
from ..gpus.host_processes import HostProcess
from ..gpus.memory import MemoryUse, NamedIds, parts_of, use_of
from ..gpus.model import Holder
from ..gpus.state import GPUMemory
from ..i18n.lazy_text import lazy_gettext
from ..i18n.phrases import clock_time, hours_words, memory_words
from .audit_log import Event, one_line
from .memory_share import MemoryShare

# The rule in the audit log.
RULE = "GPU memory"
# How often is looked, in seconds, and how often in the time that a server may be over its part.
LOOK_SECONDS = 5.0
LOOKS = 5

ReadMemory = Callable[[Collection[str]], Awaitable[Mapping[str, GPUMemory]]]
# Called with a server's id, the id that a process has inside, and a signal.
SignalInside = Callable[[str, int, int], Awaitable[None]]


class GuardedServer(Protocol):
    """A server that holds GPUs, as the guard needs it: a `ServerLease`."""

    memory: MemoryShare

    @property
    def holder(self) -> Holder:
        """The server and its user."""

    @property
    def units(self) -> frozenset[str]:
        """The names of its units."""

    @property
    def server_id(self) -> str:
        """The id of its container; "" if it has none."""

    @property
    def guard_seconds(self) -> float | None:
        """For how long it may hold more than its part of a GPU's memory; None: nobody looks."""

    @property
    def held(self) -> float | None:
        """For how many seconds the server has had its GPUs; None if unknown."""

    @property
    def is_changing(self) -> bool:
        """Whether it is starting or stopping."""

    async def ensure_rules_applied(self) -> None:
        """Apply the rules for a server that an earlier hub process has started."""

    def log_event(self, event: Event, **facts: Any) -> None:
        """Write an event to the audit log."""

    def tell(self, occasion: Literal["memory", "process ended"], words: str) -> None:
        """Send its user a message."""

    def stop_by_rule(self, rule: str, sentence: str) -> None:
        """Stop it; its user reads the sentence."""


class MemoryGuard:
    """A background task that looks at this hub's servers that share GPUs, while there are any.

    Args:
        read: reads what processes hold of the memory of GPUs, given their UUIDs.
        servers: lists the servers that hold GPUs, also whole ones.
        log: a logger.
        signal_inside: sends a signal to a process of a server by way of its backend, where the
            hub's account may not send it itself.
        proc: where the machine's processes are.
    """

    def __init__(
        self,
        read: ReadMemory,
        servers: Callable[[], Iterable[GuardedServer]],
        log: Any,
        signal_inside: SignalInside | None = None,
        proc: Path = host_processes.PROC,
    ) -> None:
        self._read = read
        self._servers = servers
        self._log = log
        self._signal_inside = signal_inside
        self._proc = proc
        self._task: asyncio.Task[None] | None = None
        # UUID -> the process ids that the driver's library has named for it.
        self._ids: dict[str, NamedIds] = {}
        # The containers of which processes were seen, and those of which the log says that what
        # they hold isn't.
        self._seen: set[str] = set()
        self._told: set[str] = set()

    def start(self) -> None:
        """Start the task unless it runs. It ends when no server is left that shares a GPU."""
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while guarded := [each for each in self._servers() if parts_of(each.units)]:
            pause = LOOK_SECONDS
            try:
                await asyncio.gather(*(each.ensure_rules_applied() for each in guarded))
                limits = [s for s in (each.guard_seconds for each in guarded) if s is not None]
                pause = min([pause, *(seconds / LOOKS for seconds in limits)])
                await self.look()
            except Exception:  # the next look may be better
                self._log.exception("Looking after the memory of shared GPUs failed")
            await asyncio.sleep(pause)

    async def look(self) -> None:
        """Look once at all servers that share a GPU, and do what is due."""
        there = list(self._servers())
        containers = {each.server_id for each in there} - {""}
        guarded = [
            (each, seconds)
            for each in there
            if (seconds := each.guard_seconds) is not None and not each.is_changing
        ]
        uuids = sorted({uuid for each, _ in guarded for uuid in parts_of(each.units)})
        if not uuids:
            return
        asked_at = time.clock_gettime(time.CLOCK_BOOTTIME)
        try:
            memory = await self._read(uuids)
        except GPUSpawnerError:  # the log has it once, from those who read what GPUs there are
            for server, seconds in guarded:
                server.memory.add_measurement(None, seconds)
            return
        processes = await asyncio.to_thread(self._find, memory, asked_at)
        trusted = self._trusted(memory, processes)
        self._seen &= containers
        self._told &= containers
        unseen = {each.server_id for each, _ in guarded} - self._seen - {""}
        self._seen |= await asyncio.to_thread(self._with_processes, unseen)
        for server, seconds in guarded:
            mine = server.server_id
            use = None
            if mine in self._seen:
                use = use_of(server.units, mine, containers, trusted, processes)
            self._note_seen(server, use is not None)
            server.memory.add_measurement(use, seconds)
            # It may have begun to stop while others were looked at.
            if use is not None and use.is_over and not server.is_changing:
                await self._enforce(server, use, seconds, containers)

    def _find(self, memory: Mapping[str, GPUMemory], asked_at: float) -> dict[int, HostProcess]:
        pids = {pid for gpu in memory.values() for pid in gpu.processes}
        found = ((pid, host_processes.find(pid, self._proc)) for pid in pids)
        # Who began later has the id of one that has ended, and held that memory.
        return {pid: each for pid, each in found if each is not None and each.began_at <= asked_at}

    def _trusted(
        self, memory: Mapping[str, GPUMemory], processes: Collection[int]
    ) -> dict[str, GPUMemory]:
        """Return the GPUs whose process ids are this machine's."""
        before, nothing = self._ids, NamedIds()
        self._ids = {
            uuid: before.get(uuid, nothing).named_now(gpu.processes.keys(), processes)
            for uuid, gpu in memory.items()
        }
        return {
            uuid: gpu
            for uuid, gpu in memory.items()
            if not self._ids[uuid].are_strange(before.get(uuid, nothing))
        }

    def _with_processes(self, containers: Collection[str]) -> set[str]:
        return {each for each in containers if host_processes.has_processes(each, self._proc)}

    def _note_seen(self, server: GuardedServer, is_seen: bool) -> None:
        server.memory.is_seen = is_seen
        if not is_seen and server.server_id not in self._told:
            self._told.add(server.server_id)
            self._log.warning(
                "Which process of %s holds how much of its shared GPU's memory can't be seen: "
                "nothing limits it",
                one_line(server.holder),
            )

    async def _enforce(
        self, server: GuardedServer, use: MemoryUse, seconds: float, containers: Collection[str]
    ) -> None:
        share = server.memory
        if share.ending and share.ending[1].remaining <= 0:
            (process, _), share.ending = share.ending, None
            with suppress(OSError, GPUSpawnerError):
                await self._send(process, signal.SIGKILL, server, containers)
        step = share.step(seconds)
        if step == "warn":
            share.note(step)
            self._warn(server, use, seconds)
        elif step == "end":
            await self._end_largest(server, use, seconds, containers)
        elif step == "stop":
            server.stop_by_rule(RULE, _stopped_words(share.clock.wall(), use))

    def _warn(self, server: GuardedServer, use: MemoryUse, seconds: float) -> None:
        until = server.memory.clock.wall() + seconds
        sizes = {"memory": use.used, "part": use.part}
        server.log_event("warn", rule=RULE, until=round(until), held=server.held, **sizes)
        words = lazy_gettext(
            "Your server takes %(used)s of the memory of a GPU that it shares, and its part is "
            "%(part)s. If it still does in %(duration)s, at %(time)s, its largest process is "
            "ended; then the server is stopped.",
            used=memory_words(use.used),
            part=memory_words(use.part),
            duration=hours_words(seconds),
            time=clock_time(until),
        )
        server.tell("memory", words)

    async def _end_largest(
        self, server: GuardedServer, use: MemoryUse, seconds: float, containers: Collection[str]
    ) -> None:
        process = use.largest
        assert process is not None
        try:
            if not await self._send(process, signal.SIGTERM, server, containers):
                return  # it has ended by itself: the next look says what is so now
        except (OSError, GPUSpawnerError) as error:
            self._log.warning(
                "Process %d of %s can't be ended: %s",
                process.pid,
                one_line(server.holder),
                one_line(error),
            )
            server.memory.note("end")
            return
        server.memory.note_ended(use, seconds)
        facts = {"process": process.name, "pid": process.pid, "process_memory": use.held}
        sizes = {"memory": use.used, "part": use.part}
        server.log_event("end", rule=RULE, held=server.held, **facts, **sizes)
        words = lazy_gettext(
            "The process %(process)s of your server was ended, which took %(held)s of the memory "
            "of a GPU that it shares. Your server's part is %(part)s, and all of its processes "
            "together took %(used)s.",
            process=process.name,
            held=memory_words(use.held),
            part=memory_words(use.part),
            used=memory_words(use.used),
        )
        server.tell("process ended", words)

    async def _send(
        self,
        process: HostProcess,
        number: signal.Signals,
        server: GuardedServer,
        containers: Collection[str],
    ) -> bool:
        """Send a signal to a process of a server; False: that one is no more."""
        mine = server.server_id
        try:
            return host_processes.send_signal(process, number, mine, containers, self._proc)
        except OSError:
            if self._signal_inside is None or process.inside is None:
                raise
        # Whatever has the id meanwhile is in the same container.
        if not host_processes.is_same(process, mine, containers, self._proc):
            return False
        await self._signal_inside(mine, process.inside, number)
        return True


def _stopped_words(at: float, use: MemoryUse) -> str:
    return lazy_gettext(
        "Your server was stopped at %(time)s: it took %(used)s of the memory of a GPU that others "
        "use too, and its part was %(part)s. Your files are kept.",
        time=clock_time(at),
        used=memory_words(use.used),
        part=memory_words(use.part),
    )
