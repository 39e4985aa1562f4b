"""How a server starts, whoever starts it and on whatever backend: the one way there is.

Reserve, create, let go of the reservation, claim, verify, start, wait until it is ready. Whatever
goes wrong at whichever step, a cancel too, what was done is undone: by a task of its own, which
nobody can cancel.
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

# Two hubs that keep choosing the same GPUs give up after this many tries.
MAX_TRIES = 10
# How long what a failed start left is removed before its user is told.
UNDO_SECONDS = 5

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Launchable(Protocol[T_co]):
    """A server that is to be started: its steps, in their order."""

    @property
    def server_key(self) -> str:
        """Name it among all that this process starts: its next start waits for this one's end."""

    async def reserve_gpus(self) -> Reservation:
        """Return a reservation; from then on `launch` sees to its end.

        What is left of an earlier server of this name is gone before.

        Raises:
            Refused: there is none for it.
            Unknown: the host couldn't be read.
        """

    async def create_server(self, reservation: Reservation) -> str:
        """Create it with the labels of a lease, and return its id. It doesn't run yet."""

    async def verify_server(self, server_id: str, reservation: Reservation) -> None:
        """Raise where it was created with other GPUs than are reserved."""

    async def start_server(self, server_id: str) -> None:
        """Start it.

        Raises:
            StartAgain: not so, but the next try may.
        """

    async def await_server(self, server_id: str) -> T_co:
        """Return what its starter wants to know of it, once it is ready."""

    def discarder(self) -> Callable[[str], Awaitable[None]]:
        """Return what undoes `create_server`, given the server's id; called until it succeeds.

        It may be called long after this try, when others have begun.
        """

    def on_retry(self, reason: StartAgain) -> None:
        """Take note of why there is another try."""


@dataclass(frozen=True)
class Launched(Generic[T]):
    """A server that has started.

    Args:
        reservation: the GPUs that it has.
        answer: what `await_server` returned.
    """

    reservation: Reservation
    answer: T


async def launch(server: Launchable[T], ledger: Ledger, leftovers: Leftovers) -> Launched[T]:
    """Start a server with the GPUs that it reserves.

    Raises:
        Refused: there are no GPUs for it, or an earlier start isn't undone yet.
        Unknown: the host couldn't be read.
        Exception: what a step raised; then all is undone, or will be.
    """
    for _ in range(MAX_TRIES):
        await ensure_cleared(server.server_key, leftovers)
        reservation = await server.reserve_gpus()
        try:
            answer = await _start(server, reservation, ledger, leftovers)
            return Launched(reservation, answer)
        except StartAgain as reason:
            server.on_retry(reason)
    sentence = lazy_gettext("Others were quicker each time. Please try again.")
    raise Refused(sentence, "no_gpu", 503)


async def ensure_cleared(server_key: str, leftovers: Leftovers) -> None:
    """Wait until nothing is left of a server's earlier starts.

    Raises:
        Refused: something still is.
    """
    if not await leftovers.wait_until_cleared(server_key):
        raise Refused(
            lazy_gettext(
                "An earlier start of this server isn't tidied up yet. Please try again in a minute."
            ),
            "no_gpu",
            503,
        )


async def _start(
    server: Launchable[T], reservation: Reservation, ledger: Ledger, leftovers: Leftovers
) -> T:
    creating: asyncio.Future[str] | None = None
    discard = server.discarder()
    try:
        creating = asyncio.ensure_future(server.create_server(reservation))
        # Shielded: a cancelled call would go on in its thread, and nobody would know its result.
        server_id = await asyncio.shield(creating)
        # From here on its label holds the GPUs.
        ledger.release(reservation)
        await ledger.claim(server_id, reservation.uuids)
        await server.verify_server(server_id, reservation)
        await server.start_server(server_id)
        return await server.await_server(server_id)
    except BaseException as error:
        undone = leftovers.undo(server.server_key, discard, ledger, reservation, creating)
        if isinstance(error, Exception):
            # The user needn't wait for an engine that is away; the task goes on by itself.
            await asyncio.wait([undone], timeout=UNDO_SECONDS)
        raise
