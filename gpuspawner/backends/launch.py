"""The start of a server, on any backend: shared by the spawners and doctor's trial containers.

Reserve GPUs, create the server, claim the GPUs, verify, start, end the reservation, wait until the
server is ready. If a step fails or is cancelled, a task that nobody can cancel undoes the earlier
steps. Whoever is only to be tried again keeps the reservation, so that nobody gets the GPUs
meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ..errors import Refused, StartAgain
from ..i18n.lazy_text import lazy_gettext
from ..leases.ledger import Ledger, Reservation
from .leftovers import Leftovers

# How often a start is tried, e.g. if two hubs keep choosing the same GPUs.
MAX_TRIES = 10
# How long a failed start waits until it is undone, in seconds, before the user is told.
UNDO_SECONDS = 5

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Launchable(Protocol[T_co]):
    """A server to be started: the steps of the start, in their order."""

    @property
    def server_key(self) -> str:
        """A name of the server, unique in this process: its starts wait for earlier cleanups."""

    async def reserve_gpus(self) -> Reservation:
        """Reserve GPUs; `launch` ends the reservation.

        Removes the containers of earlier starts first.

        Raises:
            Refused: the request can't be granted.
            Unknown: the nodes couldn't be read.
        """

    async def create_server(self, reservation: Reservation) -> str:
        """Create the server with the labels of a lease, without starting it; return its id."""

    async def verify_server(self, server_id: str, reservation: Reservation) -> None:
        """Raise an exception if the server was created with other GPUs than were reserved."""

    async def start_server(self, server_id: str) -> None:
        """Start the server.

        Raises:
            StartAgain: this try failed, but the next one may succeed.
        """

    async def await_server(self, server_id: str) -> T_co:
        """Wait until the server is ready; return e.g. its address."""

    def discarder(self) -> Callable[[str], Awaitable[None]]:
        """Return a function that undoes `create_server`, given the server's id.

        It is called until it succeeds, which may be long after this try.
        """

    def on_retry(self, reason: StartAgain) -> None:
        """Log why the start is tried again."""


@dataclass(frozen=True)
class Launched(Generic[T]):
    """A server that has been started.

    Args:
        reservation: its GPUs.
        answer: the result of `await_server`.
    """

    reservation: Reservation
    answer: T


async def launch(server: Launchable[T], ledger: Ledger, leftovers: Leftovers) -> Launched[T]:
    """Start a server.

    Args:
        server: its steps.
        ledger: who holds what.
        leftovers: undoes failed starts.

    Raises:
        Refused: the request can't be granted, or an earlier start isn't undone yet.
        Unknown: the nodes couldn't be read.
        Exception: a step's own; the start is being undone.
    """
    kept: Reservation | None = None
    for _ in range(MAX_TRIES):
        if kept is None:
            await ensure_cleared(server.server_key, leftovers)
            reservation = await server.reserve_gpus()
        else:
            reservation = kept
            await _clear_for(reservation, server.server_key, ledger, leftovers)
        try:
            answer = await _start(server, reservation, ledger, leftovers)
            return Launched(reservation, answer)
        except StartAgain as reason:
            kept = reservation if _keeps(reservation, reason) else None
            server.on_retry(reason)
    if kept is not None:
        ledger.release(kept)
    sentence = lazy_gettext("Others were quicker each time. Please try again.")
    raise Refused(sentence, "no_gpu", 503)


async def ensure_cleared(server_key: str, leftovers: Leftovers) -> None:
    """Wait until a server's earlier starts are undone.

    Raises:
        Refused: they aren't within `leftovers.CLEAR_TIMEOUT_SECONDS`.
    """
    if not await leftovers.wait_until_cleared(server_key):
        raise Refused(
            lazy_gettext(
                "An earlier start of this server isn't tidied up yet. Please try again in a minute."
            ),
            "no_gpu",
            503,
        )


async def _clear_for(
    reservation: Reservation, server_key: str, ledger: Ledger, leftovers: Leftovers
) -> None:
    """Wait until the last try is undone; end the reservation of the next one if it never is."""
    try:
        await ensure_cleared(server_key, leftovers)
    except BaseException:
        ledger.release(reservation)
        raise


def _keeps(reservation: Reservation, error: BaseException) -> bool:
    """Return whether the next try has the same reservation. One without GPUs holds nothing."""
    return isinstance(error, StartAgain) and error.keeps_gpus and bool(reservation.gpus)


async def _start(
    server: Launchable[T], reservation: Reservation, ledger: Ledger, leftovers: Leftovers
) -> T:
    creating: asyncio.Future[str] | None = None
    discard = server.discarder()
    try:
        creating = asyncio.ensure_future(server.create_server(reservation))
        # Shielded: the call goes on in its thread, and its result is needed to undo it.
        server_id = await asyncio.shield(creating)
        await _both(
            ledger.claim(server_id, reservation.units), server.verify_server(server_id, reservation)
        )
        await server.start_server(server_id)
        # Its label has held the GPUs since it was created, and now it isn't replaced any more.
        ledger.settle(reservation)
        return await server.await_server(server_id)
    except BaseException as error:
        if _keeps(reservation, error):
            # Nothing is awaited here: the reservation is the next try's.
            if creating is not None and creating.done() and not creating.exception():
                leftovers.remove_later(server.server_key, discard, creating.result())
            raise
        undone = leftovers.undo(server.server_key, discard, ledger, reservation, creating)
        if isinstance(error, Exception):
            # Not longer: the engine may be unreachable. The task goes on.
            await asyncio.wait([undone], timeout=UNDO_SECONDS)
        raise


async def _both(one: Awaitable[None], other: Awaitable[None]) -> None:
    """Wait until both have ended, so that none goes on beside the undoing; raise what one raises.

    The first one's error, if both do.
    """
    for result in await asyncio.gather(one, other, return_exceptions=True):
        if result is not None:
            raise result
