"""What servers hold of the memory of GPUs that they share. Values, and how they follow.

Nothing divides the memory of a shared GPU by hardware: a server that holds a slot of it has its
part, and may take more. Who holds what is known for each process, and which server a process is
of, its control group says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction

from .host_processes import HostProcess
from .state import GPUMemory
from .unit_names import parse


@dataclass(frozen=True)
class MemoryUse:
    """What one server holds of the memory of a GPU that it shares.

    Args:
        used: what its processes hold, in bytes.
        part: what it may hold, in bytes: as many parts of the whole as it has slots.
        largest: its process that holds most; None where it has none on the GPU.
        held: what that one holds, in bytes.
    """

    used: int
    part: int
    largest: HostProcess | None = None
    held: int = 0

    @property
    def is_over(self) -> bool:
        """Whether it holds more than its part."""
        return self.used > self.part


def parts_of(units: Collection[str]) -> dict[str, Fraction]:
    """Return UUID of a shared GPU -> the part of it that a server has, by its units' names.

    Whole GPUs and MIG instances aren't among them: their memory is nobody else's.
    """
    parts: dict[str, Fraction] = {}
    for name in map(parse, units):
        if name.slot is not None:
            parts[name.uuid] = parts.get(name.uuid, Fraction(0)) + Fraction(1, name.of)
    return parts


@dataclass(frozen=True)
class NamedIds:
    """The process ids that the driver's library has named for a GPU.

    Args:
        known: those that are or were processes of this machine's.
        missing: those that this machine hasn't, and never had as far as anybody has looked.
    """

    known: frozenset[int] = frozenset()
    missing: frozenset[int] = frozenset()

    def named_now(self, ids: Collection[int], seen: Collection[int]) -> NamedIds:
        """Return the ids of another look.

        Args:
            ids: those that are named now.
            seen: those that this machine has now.
        """
        known = frozenset(ids) & (self.known | frozenset(seen))
        return NamedIds(known, frozenset(ids) - known)

    def are_strange(self, before: NamedIds) -> bool:
        """Return whether they are another namespace's.

        In one the driver's ids are other processes' here, or nobody's. One that is missing may have
        ended in that moment; one that is missing twice never was here. What has ended and was here
        may be named for longer.
        """
        return bool(self.missing & before.missing)


def use_of(
    units: Collection[str],
    container: str,
    containers: Collection[str],
    memory: Mapping[str, GPUMemory],
    processes: Mapping[int, HostProcess],
) -> MemoryUse | None:
    """Return what a server holds of the GPU that it shares; None if that isn't known.

    What isn't known of one of its processes isn't known of the server: another process, which is
    known, would be taken for the largest. A server that is over its part of one of several GPUs is
    over it.

    Args:
        units: the names of the server's units.
        container: its container's id.
        containers: the ids of the containers of all servers: a process is in one of them.
        memory: UUID -> the GPU's memory; not there where it isn't known.
        processes: process id -> the process, of those that this machine has.
    """
    found = [
        _use_of_one(memory.get(uuid), part, container, containers, processes)
        for uuid, part in parts_of(units).items()
    ]
    known = [use for use in found if use is not None]
    over = [use for use in known if use.is_over]
    if over:
        return max(over, key=lambda use: use.used - use.part)
    if not found or len(known) < len(found):
        return None
    return max(known, key=lambda use: Fraction(use.used, use.part or 1))


def _use_of_one(
    gpu: GPUMemory | None,
    part: Fraction,
    container: str,
    containers: Collection[str],
    processes: Mapping[int, HostProcess],
) -> MemoryUse | None:
    if gpu is None:
        return None
    own = {
        pid: held
        for pid, held in gpu.processes.items()
        if pid in processes and processes[pid].container(containers) == container
    }
    known = {pid: held for pid, held in own.items() if held is not None}
    if len(known) < len(own):
        return None
    # Of equal ones always the same, so that a second look finds the one that the first has found.
    largest = max(known, key=lambda pid: (known[pid], -pid), default=None)
    return MemoryUse(
        sum(known.values()),
        int(gpu.total * part),
        None if largest is None else processes[largest],
        0 if largest is None else known[largest],
    )
