"""What hubs that died have left is removed, and nothing that runs or is kept on purpose."""

from __future__ import annotations

import asyncio
import logging

import pytest

from gpuspawner.backends import leftovers
from gpuspawner.backends.leftovers import Leftovers, StaleServerReaper
from gpuspawner.leases.labels import LABEL_HUB, LABEL_REMOVE, ServerRecord

OURS = {LABEL_HUB: "http://hub"}
REMOVABLE = {**OURS, LABEL_REMOVE: "1"}
SERVERS = [
    ServerRecord("not started", OURS, "created"),
    ServerRecord("by hand", {}, "created"),
    ServerRecord("ended", REMOVABLE, "ended"),
    ServerRecord("kept", OURS, "ended"),
    ServerRecord("runs", REMOVABLE, "running"),
]


async def test_stale_servers_are_removed_once_they_have_been_so_for_a_while(monkeypatch) -> None:
    removed: list[str] = []

    async def remove(server_id: str) -> None:
        removed.append(server_id)

    reaper = StaleServerReaper(remove, logging.getLogger(__name__))
    reaper.reap(SERVERS)
    reaper.reap(SERVERS)
    await asyncio.sleep(0)
    assert removed == []
    monkeypatch.setattr(leftovers, "STALE_SECONDS", -1)
    reaper.reap(SERVERS)
    await asyncio.sleep(0)
    assert removed == ["not started", "ended"]


async def test_a_server_is_removed_as_soon_as_its_engine_is_back(monkeypatch) -> None:
    monkeypatch.setattr(leftovers, "RETRY_SECONDS", 0)
    tries: list[str] = []

    async def remove(server_id: str) -> None:
        tries.append(server_id)
        if len(tries) < 5:
            raise OSError("the engine is away")

    cleanup = Leftovers()
    cleanup.remove_later("ada", remove, "1")
    assert await cleanup.wait_until_cleared("ada")
    assert tries == ["1"] * 5


@pytest.mark.parametrize("state", ["created", "ended"])
async def test_what_is_gone_meanwhile_counts_anew(state, monkeypatch) -> None:
    """A server of the same name that comes later has its own time."""
    removed: list[str] = []

    async def remove(server_id: str) -> None:
        removed.append(server_id)

    reaper = StaleServerReaper(remove, logging.getLogger(__name__))
    now = [0.0]
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now[0])
    server = ServerRecord("1", REMOVABLE, state)
    for seen in ([server], [], [server]):
        reaper.reap(seen)
        now[0] += leftovers.STALE_SECONDS - 1
    await asyncio.sleep(0)
    assert removed == []
