"""What a simulated host and a simulated cluster have in common: they are context managers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TypeVar

Self = TypeVar("Self", bound="Simulation")


class Simulation(ABC):
    """Something simulated that is up between `start` and `stop`; a context manager."""

    def __enter__(self: Self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @abstractmethod
    def start(self) -> None:
        """Set everything up.

        Raises:
            SimulationError: that failed, and nothing of it is left; the message says what to do.
        """

    @abstractmethod
    def stop(self) -> None:
        """Take everything down, unless it is down already."""
