"""A wait with a timeout: its result, its time, and cancels, in whatever moment they come."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from gpuspawner.timeouts import within


async def test_what_comes_in_time_is_returned_or_raised() -> None:
    async def soon() -> int:
        await asyncio.sleep(0)
        return 5

    async def wrong() -> None:
        raise LookupError("x")

    assert await within(60, soon()) == 5
    with pytest.raises(LookupError):
        await within(60, wrong())


async def test_what_takes_too_long_is_cancelled() -> None:
    event = asyncio.Event()
    waits = asyncio.ensure_future(event.wait())
    with pytest.raises(asyncio.TimeoutError):
        await within(0.01, waits)
    await asyncio.wait([waits])
    assert waits.cancelled()


@pytest.mark.parametrize("ticks", range(6))
@pytest.mark.parametrize("ends", [True, False])
async def test_a_cancel_arrives_whenever_it_comes(ticks: int, ends: bool) -> None:
    """Also where what was waited for ends, or its time does, in the same moment."""
    event = asyncio.Event()

    async def waits() -> None:
        with suppress(asyncio.TimeoutError):
            await within(60 if ends else 0, event.wait())
        await asyncio.Event().wait()

    task = asyncio.ensure_future(waits())
    for _ in range(2):
        await asyncio.sleep(0)
    event.set()
    for _ in range(ticks):
        await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=20)
    assert task in done
    assert task.cancelled()
