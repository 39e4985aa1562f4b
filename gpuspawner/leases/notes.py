"""What a backend keeps that no label can say, since a server's labels can't be changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from ..gpus.health import HealthMark
from ..gpus.out_of_service import OutOfServiceMark
from .clock import Deadline
from .labels import ServerRecord


@dataclass(frozen=True)
class Notes:
    """The notes of a backend, as of one moment.

    Args:
        marks: UUID -> mark of the GPUs that are out of service.
        ends: server id -> the end of its lease, of those that were extended.
        lifted: (unit, cause) of marks of health that an administrator has ended by hand.
    """

    marks: Mapping[str, OutOfServiceMark] = field(default_factory=dict)
    ends: Mapping[str, Deadline] = field(default_factory=dict)
    lifted: frozenset[tuple[str, str]] = frozenset()

    @property
    def health(self) -> tuple[HealthMark, ...]:
        """The marks of GPUs' health."""
        return tuple(each for mark in self.marks.values() for each in mark.health)

    def with_ends(self, servers: Iterable[ServerRecord]) -> list[ServerRecord]:
        """Return servers with the ends to which their leases were extended."""
        return [
            replace(server, extended=self.ends[server.id]) if server.id in self.ends else server
            for server in servers
        ]
