"""The interface of a backend, which starts servers and keeps the labels that are their leases."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Protocol

from ..gpus.health import HealthMark
from ..leases.clock import Deadline
from ..leases.labels import ServerRecord
from ..leases.notes import Notes
from ..leases.server_run import ServerRun

# Called with the progress of a pull: a fraction from 0 to 1, and a sentence.
Report = Callable[[float, str], None]
# Returns node -> those of the catalogue's images that it has; None: that isn't known of it now.
ImagesOfNodes = Callable[[], Awaitable[Mapping[str, frozenset[str] | None]]]


class Watcher(Protocol):
    """A listener for events of the backend."""

    def begin(self) -> None:
        """Start listening; return at once."""

    def end(self) -> None:
        """Stop listening."""


class Backend(Protocol):
    """The interface of a backend. Its methods raise the engine's errors unless stated otherwise.

    There is no method to create a server, as its arguments differ between backends: that is a
    step of `launch.Launchable`.
    """

    @property
    def sees_processes(self) -> bool:
        """Whether servers' processes can be seen from here, with the containers that they are in.

        Without that nobody knows which server holds how much of a shared GPU's memory.
        """

    @property
    def divides_gpus(self) -> bool:
        """Whether a GPU that is handed out whole at one time can be in slots at another."""

    async def signal_inside(self, server_id: str, pid: int, number: int) -> None:
        """Send a signal to a process in a server, by the id that it has there.

        Raises also `errors.GPUSpawnerError` if it wasn't sent.
        """

    async def list(self) -> Sequence[ServerRecord]:
        """Return every server with the labels of a lease, of all hubs, ended ones too.

        And what else runs with GPUs, whose `gpu_names` say which.
        """

    async def notes(self) -> Notes:
        """Return which GPUs are out of service, and the ends that `keep_end` has kept."""

    async def start(self, server_id: str) -> None:
        """Start a server that has been created."""

    async def remove(self, server_id: str) -> None:
        """Remove a server, running or not, and wait until it is gone. Idempotent."""

    async def stop(self, server_id: str) -> None:
        """Stop a server as its user would, with the time that programs have to end by themselves.

        What is left of it is removed, unless the administrator keeps what has stopped. It may be
        gone already.
        """

    async def remove_unstarted(self, server_id: str) -> None:
        """Remove a server unless it has been started. Idempotent."""

    async def keep_end(self, server_id: str, end: Deadline) -> None:
        """Keep until when a server's lease was extended, for as long as there is the server.

        It outlives the hub and its database, as labels do.
        """

    async def runs(self, server_ids: Collection[str]) -> Mapping[str, ServerRun]:
        """Return when servers ran, as far as that is known, those that are gone too.

        Raises what the engine does.
        """

    def watch(self, notice: Callable[[], None]) -> Watcher:
        """Return a watcher that calls `notice` on the event loop when a server may have ended."""

    async def take_out_of_service(self, uuid: str, by: str, why: str) -> None:
        """Mark a GPU as out of service.

        Args:
            uuid: the GPU's.
            by: the name of the administrator, shown to administrators.
            why: the reason, shown to everybody.

        Raises:
            errors.Unknown: it isn't out of service afterwards.
        """

    async def put_into_service(self, uuid: str) -> None:
        """Remove a GPU's mark, of an administrator's and of its health.

        What can be read of its health is lifted with it: it isn't to be marked for that again.

        Raises:
            errors.Unknown: it is out of service still.
        """

    async def keep_health_mark(self, mark: HealthMark) -> None:
        """Keep a mark of a GPU's health, beside an administrator's. One that is kept stays so.

        Raises `errors.Unknown` if it isn't kept.
        """

    async def end_health_mark(self, mark: HealthMark) -> None:
        """Remove a mark of a GPU's health, and no other one. Idempotent."""

    async def forget_lifted(self, uuid: str, cause: str) -> None:
        """Forget that an administrator has lifted a cause, as it reads clear. Idempotent."""

    async def has_image(self, image: str) -> bool:
        """Return whether the engine has an image; True if that can't be determined."""

    def close(self) -> None:
        """Close the connection to the engine; servers keep running."""

    async def pull(self, image: str, policy: str, report: Report) -> None:
        """Pull an image if DockerSpawner's `pull_policy` requires it.

        Args:
            image: the image reference.
            policy: "always", "ifnotpresent", "never" or "skip".
            report: called with the progress.

        Raises:
            errors.GPUSpawnerError: the image can't be pulled.
        """
