"""The steps of a start that run side by side, and what becomes of both when one of them fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gpuspawner.backends.launch import launch
from gpuspawner.backends.leftovers import Leftovers
from gpuspawner.errors import Contested, StartAgain, Unknown
from gpuspawner.gpus.model import GPU, Holder, Node, Request
from gpuspawner.leases.labels import ServerRecord, labels
from gpuspawner.leases.ledger import Ledger, Reservation

from ..support.ledgers import reserve

ANN = Holder("ann")
ONE = Request("torch", 1)


class WrongGPUs(Exception):
    """The server was created with other GPUs."""


class Server:
    """A server, and its engine, which lists servers only when a test lets it."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.servers: list[ServerRecord] = []
        self.is_listed, self.is_verified = asyncio.Event(), asyncio.Event()
        self.verdict: Exception | None = None
        self.ledger = Ledger(self.list, self.nodes)
        self.trouble: Exception | None = None

    server_key = "ann"

    async def nodes(self) -> list[Node]:
        return [Node(gpus=(GPU("GPU-0", 0, "T4"),))]

    async def list(self) -> list[ServerRecord]:
        if not self.servers:
            return []
        self.steps.append("list")
        await self.is_listed.wait()
        self.steps.append("listed")
        if self.trouble:
            raise self.trouble
        return self.servers

    async def reserve_gpus(self) -> Reservation:
        return await reserve(self.ledger, ANN, ONE)

    async def create_server(self, reservation: Reservation) -> str:
        self.servers = [ServerRecord("one", labels(ANN, "torch", reservation.uuids), "created")]
        return "one"

    async def verify_server(self, server_id: str, reservation: Reservation) -> None:
        self.steps.append("verify")
        await self.is_verified.wait()
        self.steps.append("verified")
        if self.verdict:
            raise self.verdict

    async def start_server(self, server_id: str) -> None:
        self.steps.append("start")

    async def await_server(self, server_id: str) -> str:
        return "ready"

    async def remove(self, server_id: str) -> None:
        self.steps.append("remove")

    def discarder(self) -> Callable[[str], Awaitable[None]]:
        return self.remove

    def on_retry(self, reason: StartAgain) -> None:
        raise AssertionError("it isn't tried again")

    def begin(self) -> asyncio.Task[str]:
        async def start() -> str:
            return (await launch(self, self.ledger, Leftovers())).answer

        return asyncio.ensure_future(start())


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_it_is_claimed_and_verified_at_once_and_started_after_both() -> None:
    server = Server()
    task = server.begin()
    await settle()
    assert sorted(server.steps) == ["list", "verify"]
    server.is_verified.set()
    await settle()
    assert "start" not in server.steps
    server.is_listed.set()
    assert await task == "ready"
    assert server.steps[2:] == ["verified", "listed", "start"]


@pytest.mark.parametrize("listing_fails", [False, True])
async def test_where_one_fails_nothing_is_undone_before_the_other_has_ended(listing_fails) -> None:
    server = Server()
    server.verdict = None if listing_fails else WrongGPUs()
    server.trouble = OSError("gone") if listing_fails else None
    first, second = server.is_verified, server.is_listed
    if listing_fails:
        first, second = second, first
    task = server.begin()
    await settle()
    first.set()
    await settle()
    assert "remove" not in server.steps
    second.set()
    with pytest.raises(Unknown if listing_fails else WrongGPUs):
        await task
    assert server.steps[-1] == "remove"
    assert "start" not in server.steps


async def test_a_start_given_up_meanwhile_is_undone_at_once() -> None:
    server = Server()
    task = server.begin()
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await settle()
    assert server.steps[-1] == "remove"


class Contender(Server):
    """A server whose first try another hub's server stands in the way of."""

    def __init__(self) -> None:
        super().__init__()
        self.is_listed.set()
        self.is_verified.set()
        self.reservations: list[Reservation] = []

    async def reserve_gpus(self) -> Reservation:
        self.reservations.append(await super().reserve_gpus())
        return self.reservations[-1]

    async def verify_server(self, server_id: str, reservation: Reservation) -> None:
        if len(self.reservations) == 1:
            raise Contested("another hub was given one of these GPUs at the same moment")

    async def remove(self, server_id: str) -> None:
        self.servers = []

    def on_retry(self, reason: StartAgain) -> None:
        """It gets other GPUs."""


async def test_who_gives_way_to_another_hub_chooses_anew() -> None:
    server = Contender()
    launched = await launch(server, server.ledger, Leftovers())
    first, second = server.reservations
    assert launched.reservation is second
    assert first.ended_tick is not None
