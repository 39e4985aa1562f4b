"""What users have had lately: how it fades, who has how much of it, and what the queue says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from traitlets import TraitError
from traitlets.config import Config

from gpuspawner.errors import Unknown
from gpuspawner.gpus.model import Holder, Request
from gpuspawner.scheduling.budgets import Use
from gpuspawner.scheduling.phrases import place_words
from gpuspawner.scheduling.plan import QueuedRequest, Turn, UserShare
from gpuspawner.scheduling.queue import Queue, QueueSettings, RequestLimits
from gpuspawner.scheduling.shares import Shares, decayed
from gpuspawner.spawner import GPUSpawner

from ..support.ledgers import NoWatcher
from ..support.spawns import Hub

HOUR, DAY = 3600.0, 86400.0
NOW = 1_800_000_000.0


@dataclass
class Past:
    """What users have had: a list."""

    uses: list[Use] = field(default_factory=list)
    held: list[Use] = field(default_factory=list)
    is_unknown: bool = False
    version: object = None

    async def ensure_read(self) -> None:
        pass

    def over(self, user: str | None, group: str | None) -> Sequence[Use]:
        return [each for each in self.uses if each.user == user]

    def running(self, now: float) -> Sequence[Use]:
        if self.is_unknown:
            raise Unknown("It can't be read.")
        return [replace(each, end=now) for each in self.held]


def had(user: str, hours: float, ago: float, now: float = NOW) -> Use:
    """Return what a user had for some hours, up to some hours ago."""
    end = now - ago * HOUR
    return Use(user, frozenset(), 1.0, end - hours * HOUR, end)


def test_an_hour_counts_as_half_of_one_after_the_half_life() -> None:
    assert decayed([had("a", 0.01, 0)], NOW, 7 * DAY) == pytest.approx(0.01, rel=1e-3)
    assert decayed([had("a", 0.01, 7 * 24)], NOW, 7 * DAY) == pytest.approx(0.005, rel=1e-3)
    assert decayed([had("a", 0.01, 14 * 24)], NOW, 7 * DAY) == pytest.approx(0.0025, rel=1e-3)
    # What is promised hasn't been used.
    assert decayed([had("a", 1, -2)], NOW, 7 * DAY) == 0


@given(
    st.lists(st.tuples(st.floats(0, 30), st.floats(0, 400)), max_size=5),
    st.floats(0.5, 30),
    st.floats(0, 0.9),
)
def test_what_is_kept_of_it_fades_as_if_it_were_counted_anew(
    spans: list[tuple[float, float]], half_life: float, later: float
) -> None:
    past = Past([had("ada", hours, ago) for hours, ago in spans])
    shares, ada = Shares(past, half_life * DAY, {}), (Holder("ada"), ())
    shares.of([ada], NOW)
    then = NOW + later * HOUR
    again, anew = shares.of([ada], then), Shares(past, half_life * DAY, {}).of([ada], then)
    assert again["", "ada"].decayed == pytest.approx(anew["", "ada"].decayed, rel=1e-6, abs=1e-6)


def test_a_user_s_share_is_what_is_over_what_runs_and_the_highest_weight() -> None:
    past = Past([had("ada", 10, 24), had("ada", 4, 200), had("ben", 1, 1)])
    past.held = [replace(had("ada", 2, 0), end=NOW)]
    shares = Shares(past, 7 * DAY, {"staff": 2, "phd": 3, "x": 9})
    found = shares.of([(Holder("ada"), {"staff", "phd"}), (Holder("cyd"), ())], NOW)
    assert found["", "ada"].week == pytest.approx(12)
    assert 8 < found["", "ada"].decayed < 14
    assert found["", "ada"].weight == 3
    assert found["", "cyd"] == UserShare()
    # As soon as more is over it counts.
    past.uses, past.version = [*past.uses, had("cyd", 5, 0)], object()
    assert shares.of([(Holder("cyd"), ())], NOW)["", "cyd"].week == pytest.approx(5)


def test_where_it_cannot_be_read_nobody_has_had_anything() -> None:
    assert Shares(Past(is_unknown=True), 7 * DAY, {}).of([(Holder("ada"), ())], NOW) == {}


# -- The queue -------------------------------------------------------------------------------------


@pytest.fixture
async def hub() -> Hub:
    hub = Hub()
    past = Past([had(user, 31, 3, time.time()) for user in ("heavy", "more")])
    shares = Shares(past, 7 * DAY, {})
    settings = QueueSettings(order="share")
    hub.queue = Queue(hub.ledger, settings, NoWatcher, hub.reserved, shares=shares)
    return hub


def joins(hub: Hub, user: str, told: list[Any]) -> asyncio.Task[Any]:
    request = Request("x", 2, seconds=HOUR)
    waiting = QueuedRequest(Holder(user), request, hub.queue.join_time())
    return asyncio.ensure_future(hub.queue.wait(waiting, RequestLimits(), told.append))


async def settled() -> None:
    for _ in range(40):
        await asyncio.sleep(0)


async def test_who_used_less_goes_first_and_the_page_says_why(hub):
    hub.occupy()
    heavy_told: list[Any] = []
    light_told: list[Any] = []
    heavy = joins(hub, "heavy", heavy_told)
    await settled()
    assert heavy_told[-1].place == 1
    light = joins(hub, "light", light_told)
    await settled()
    assert (heavy_told[-1].place, light_told[-1].place) == (2, 1)
    assert "You used 31 GPU hours in the last 7 days: the less one has" in place_words(
        heavy_told[-1]
    )
    assert "You used 0 GPU hours" in place_words(light_told[-1])
    hub.free_all()
    assert (await light).gpus
    heavy.cancel()


@pytest.mark.parametrize("user", ["heavy", "light", "other"])
async def test_the_forecast_is_the_turn_that_one_gets(hub, user):
    hub.occupy()
    first = joins(hub, "light", [])
    await settled()
    view = await hub.ledger.read()
    for who in ("light2", "heavy", user):  # forecasts of others are no one's own
        request = Request("x", 2, seconds=HOUR)
        waiting = QueuedRequest(Holder(who), request, hub.queue.join_time())
        foreseen = hub.queue.forecast(waiting, RequestLimits(), view)
    told: list[Turn] = []
    second = joins(hub, user, told)
    await settled()
    got = told[-1]
    assert (foreseen.place, foreseen.because, foreseen.used) == (got.place, got.because, got.used)
    for task in (first, second):
        task.cancel()


async def test_the_form_of_each_is_its_own(hub):
    """It is made once for all users for whom it is the same."""
    hub.occupy()
    first = joins(hub, "heavy", [])
    await settled()
    for user, said in (("more", "You would be 2nd in line"), ("ben", "You would be next in line")):
        one = hub.spawner(hour_limit=8)
        one.user.name = user
        assert said in await one.render_form()
    first.cancel()


# -- The traits ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("traits", "said"),
    [
        ({"share_half_life": 0}, "share_half_life must be more than 0"),
        ({"share_half_life": 100}, "at most 45.75 days, got 100"),
        ({"share_weights": {"a": 0}}, r"share_weights\['a'\] must be the name of a group"),
        ({"share_weights": {"a": "2"}}, r"share_weights\['a'\]"),
        ({"share_weights": {7: 2}}, r"share_weights\[7\]"),
    ],
)
def test_what_is_none_is_refused_by_the_trait_s_name(traits: Any, said: str) -> None:
    with pytest.raises(TraitError, match=rf"c\.GPUSpawner\.{said}|{said}"):
        GPUSpawner(config=Config({"GPUSpawner": traits}))


def test_an_order_by_use_needs_the_store_and_looks_back_as_far_as_it_counts() -> None:
    one = GPUSpawner(config=Config({"GPUSpawner": {"queue_order": "share", "usage_db": ""}}))
    assert "c.GPUSpawner.queue_order" in one.contradictions()[0]
    one = GPUSpawner(config=Config({"GPUSpawner": {"queue_order": "share"}}))
    assert one.contradictions() == []
    assert one.looks_back == 56 * DAY
    assert GPUSpawner().looks_back == 0
