"""Reservations as a hub makes them: by way of its queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpuspawner.gpus.model import Holder, Request
from gpuspawner.leases.ledger import Ledger, Reservation
from gpuspawner.scheduling.plan import QueuedRequest
from gpuspawner.scheduling.queue import Queue, QueueSettings, RequestLimits


class NoWatcher:
    """Hears of no end; the queue looks for itself."""

    def __init__(self, notice: Callable[[], None]) -> None:
        pass

    def begin(self) -> None:
        """Hear nothing."""

    def end(self) -> None:
        """Hear nothing."""


async def reserve(
    ledger: Ledger, holder: Holder, request: Request, policy: str = "pack"
) -> Reservation:
    """Return a reservation of what is free now; raise what the queue raises where it isn't."""
    queue = Queue(ledger, QueueSettings(policy=policy), NoWatcher)
    joining = QueuedRequest(holder, request, queue.join_time())
    if request.gpus == 0:
        return Reservation(holder, ())
    return await queue.wait(joining, RequestLimits(max_wait_seconds=0), _hear)


def _hear(turn: Any) -> None:
    """Hear of one's turn."""
