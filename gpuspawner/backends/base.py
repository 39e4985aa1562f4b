"""What a backend is: it starts servers, and keeps the labels on them that are the leases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ..gpus.out_of_service import OutOfServiceMark
from ..leases.labels import ServerRecord

# Told how far the getting of an image is, from 0 to 1, and in words.
Report = Callable[[float, str], None]


class Watcher(Protocol):
    """Listens between `begin` and `end`."""

    def begin(self) -> None:
        """Begin to listen, and return at once."""

    def end(self) -> None:
        """Stop listening."""


class Backend(Protocol):
    """What starts servers. Each call raises what its engine raises, but where it says more.

    What a server is created with differs from one backend to the next, so `launch` asks whoever
    starts one to create it; whatever is common to all is here.
    """

    async def list(self) -> Sequence[ServerRecord]:
        """Return every server with a lease's labels, of all hubs, ended ones too."""

    async def start(self, server_id: str) -> None:
        """Start a server that was created."""

    async def remove(self, server_id: str) -> None:
        """Remove a server, running or not, and return when it is gone. Gone already is fine."""

    async def remove_unstarted(self, server_id: str) -> None:
        """Remove a server unless it has been started. It may be gone."""

    def watch(self, notice: Callable[[], None]) -> Watcher:
        """Return what calls `notice` on the event loop whenever a server may have ended."""

    async def out_of_service(self) -> Mapping[str, OutOfServiceMark]:
        """Return UUID -> mark of the GPUs that are out of service."""

    async def has_image(self, image: str) -> bool:
        """Return whether an image is there; True where that can't be told."""

    def close(self) -> None:
        """Let go of the engine; what runs there goes on."""

    async def pull(self, image: str, policy: str, report: Report) -> None:
        """Have an image, as DockerSpawner's `pull_policy` wants it."""
