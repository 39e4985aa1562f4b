"""The first start with some limits finds out for all what the engine may set."""

from __future__ import annotations

import asyncio

import pytest

from gpuspawner.backends.docker import ulimit_trials
from gpuspawner.backends.docker.ulimit_trials import UlimitTrial, UlimitTrials

LIMITS = {"memlock": -1, "stack": 64}


async def first(trials: UlimitTrials) -> UlimitTrial:
    """Return the trial of somebody who needn't wait."""
    trial = await asyncio.wait_for(trials.join(LIMITS), 20)
    assert trial is not None
    return trial


async def waiting(trials: UlimitTrials, number: int) -> list[asyncio.Task[UlimitTrial | None]]:
    """Return so many others, who wait."""
    others = [asyncio.ensure_future(trials.join(LIMITS)) for _ in range(number)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert not any(other.done() for other in others)
    return others


async def test_all_others_wait_for_the_first_and_then_nobody_waits_any_more() -> None:
    trials = UlimitTrials()
    trial = await first(trials)
    others = await waiting(trials, 29)
    trial.succeeded()
    trial.given_up()  # which every start says at its end
    assert await asyncio.gather(*others) == [None] * 29
    assert await trials.join(LIMITS) is None


async def test_one_with_other_limits_waits_for_nobody() -> None:
    trials = UlimitTrials()
    await first(trials)
    assert await trials.join({"memlock": 4096}) is not None


async def test_where_the_first_fails_one_other_takes_its_place() -> None:
    trials = UlimitTrials()
    trial = await first(trials)
    others = await waiting(trials, 5)
    trial.given_up()
    (done, *more), still = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
    assert (len(more), len(still)) == (0, 4)
    following = done.result()
    assert following is not None
    following.succeeded()
    assert await asyncio.gather(*still) == [None] * 4


async def test_one_that_gives_up_waiting_keeps_nobody_from_it() -> None:
    trials = UlimitTrials()
    trial = await first(trials)
    leaving, staying = await waiting(trials, 2)
    leaving.cancel()
    trial.given_up()
    assert await staying is not None


async def test_a_first_that_never_tells_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ulimit_trials, "PATIENCE_SECONDS", 0.2)
    trials = UlimitTrials()
    await first(trials)
    (other,) = await waiting(trials, 1)
    assert await asyncio.wait_for(other, 20) is None
    assert await first(trials)  # and whoever comes now finds out
