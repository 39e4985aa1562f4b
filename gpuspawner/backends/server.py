"""What a spawner does by its backend: the methods that a subclass for a backend implements."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from ..choices.home_use import HomeUse
from ..gpus.model import Request
from ..gpus.reader import HubReader, Reader
from ..leases.ledger import Reservation
from ..leases.server_run import ServerRun
from .base import Backend, ImagesOfNodes


class ServerOfBackend:
    """One server, as its backend creates, starts and removes it."""

    nvml_timeout: Any

    @abstractmethod
    def make_backend(self) -> Backend:
        """Make the backend for all spawners of this hub."""

    def make_reader(self, backend: Backend, settings: Mapping[str, Any]) -> HubReader:
        """Make the reader of the nodes: of this machine, unless the backend has others.

        Args:
            backend: of `make_backend`.
            settings: the arguments of `gpus.reader.read_node`.
        """
        return Reader(self.nvml_timeout, **settings)

    def refused_settings(self) -> Sequence[str]:
        """Return sentences about configured traits that the backend can't carry.

        A hub doesn't start with one.
        """
        return ()

    @abstractmethod
    def explain(self, error: BaseException) -> str:
        """Return what an error of the backend means, as a sentence for users."""

    @abstractmethod
    def explain_unknown(self, error: BaseException) -> str:
        """Return why the nodes or leases couldn't be read, as a sentence for users."""

    @property
    @abstractmethod
    def server_key(self) -> str:
        """A name of this server that is unique on this hub."""

    @property
    @abstractmethod
    def server_id(self) -> str:
        """The backend's id of the server; "" if there is none."""

    @abstractmethod
    async def remove_leftovers(self, request: Request) -> None:
        """Remove the containers of earlier starts of this server before its GPUs are reserved."""

    async def nodes_with_image(self) -> frozenset[str]:
        """Return the names of the nodes that have the server's image, as far as that is known."""
        return frozenset()

    def images_of_nodes(self, backend: Backend) -> ImagesOfNodes | None:
        """Return what asks the nodes for images of the catalogue; None: the form says it.

        Args:
            backend: of `make_backend`.
        """
        return None

    async def prepare_node(self, reservation: Reservation) -> None:
        """Have the node of a reservation ready for the server, before its start."""

    @abstractmethod
    async def create_server(self, reservation: Reservation) -> str:
        """Create the server and return its id. A step of `launch`, as are the next ones."""

    @abstractmethod
    async def verify_server(self, server_id: str, reservation: Reservation) -> None:
        """Raise an exception if the server was created with other GPUs than were reserved."""

    @abstractmethod
    async def start_server(self, server_id: str) -> None:
        """Start the server."""

    @abstractmethod
    async def await_server(self, server_id: str) -> tuple[str, int]:
        """Wait until the server answers; return its (ip, port)."""

    @abstractmethod
    async def stop_server(self, now: bool) -> None:
        """Stop the server; `now`: without waiting for it to end by itself."""

    def known_run(self) -> ServerRun | None:
        """Return when the server ran, as far as that is known without asking; None: it isn't."""
        return None

    def keeps_settings(self) -> bool:
        """Return whether what a user has set up outlives the server, so that it may break one."""
        return False

    def home_use(self, allowed: int | None) -> HomeUse | None:
        """Return how much the user keeps at home, at once; None where that isn't known.

        Args:
            allowed: how many bytes they may keep; None: no limit.
        """
        return None

    def home_node(self) -> str:
        """Return the name of the node with the user's files; "": they are on all, or on none."""
        return ""

    def home_words(self) -> str:
        """Return where the user's files are, as sentences; "" where that makes no difference."""
        return ""

    def home_facts(self) -> dict[str, Any] | None:
        """Return the same as a JSON value, for a server that runs."""
        return None

    async def clean_up_ended(self) -> None:
        """Clean up after a server that has ended, for whatever reason."""

    def last_lines(self) -> list[str]:
        """Return the last lines of the server's output during its start."""
        return []

    def explain_end(self) -> str:
        """Return why the server has ended by itself, as sentences for its user; "" if unknown."""
        return ""


def unimplemented(cls: type) -> list[str]:
    """Return the names of the abstract methods that a class lacks."""
    return [name for name in dir(cls) if _is_abstract(cls, name)]


def _is_abstract(cls: type, name: str) -> bool:
    return name in vars(ServerOfBackend) and getattr(
        inspect.getattr_static(cls, name), "__isabstractmethod__", False
    )
