"""A start that isn't to be before a time: what is one, and a request that waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st
from jupyterhub import orm
from tornado import web

from gpuspawner.choices import later
from gpuspawner.choices.check import Applicant, forecast_choice
from gpuspawner.choices.form import render
from gpuspawner.choices.options import Choice, from_fields, parse
from gpuspawner.errors import Refused
from gpuspawner.gpus.model import Holder, Request
from gpuspawner.scheduling import queue as queues
from gpuspawner.scheduling.plan import QueuedRequest
from gpuspawner.scheduling.queue import RequestLimits

from ..support.shown_forms import FREE, LIMITS
from ..support.spawns import Hub, begin, waiting

WEEK = 7 * 24 * 3600.0
# Sunday, 20:15:30 in Berlin.
NOW = datetime(2026, 11, 29, 19, 15, 30, tzinfo=timezone.utc).timestamp()


@pytest.fixture(autouse=True)
def berlin(in_zone: Callable[[str], None]) -> None:
    in_zone("Europe/Berlin")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of day, which a test sets."""
    at = [NOW]
    monkeypatch.setattr(time, "time", lambda: at[0])
    return at


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("20:16", 0.5 / 60),
        ("8:00", 11.7417),
        ("08:00", 11.7417),
        ("20:15", 24 - 0.5 / 60),  # the next one
        ("2026-11-30T08:00", 11.7417),
        ("2026-11-30 08:00:00", 11.7417),
        ("2026-11-30T07:00Z", 11.7417),
        ("2026-11-30T07:00:00.000Z", 11.7417),
        ("2026-11-30T15:00+08:00", 11.7417),
        ("2026-12-06T20:15", WEEK / 3600 - 0.5 / 60),
        (None, None),
        ("", None),
        # Whoever picks this minute is late by no more than that.
        ("2026-11-29T20:15", None),
    ],
)
def test_what_is_taken_for_a_time(now, text, hours):
    at = later.not_before(text, WEEK)
    assert at == (0.0 if hours is None else pytest.approx(NOW + 3600 * hours, abs=1))


@pytest.mark.parametrize(
    ("text", "says", "status"),
    [
        ("tomorrow", "must be a time as 08:00, or with a date as 2026-12-24T08:00, got", 400),
        ("24:00", 'got "24:00"', 400),
        ("8", 'got "8"', 400),
        ("08:00Z", 'got "08:00Z"', 400),
        ("2026-02-30T08:00", 'got "2026-02-30T08:00"', 400),
        ("9999-12-31T23:59-23:59", "got", 400),
        ("٠٨:٠٠", "got", 400),
        # With its day, where that isn't the day on which the tests run.
        ("2026-11-29T20:14", "no start before (.*, )?20:14, and that is past", 400),
        ("2020-01-01T00:00Z", "and that is past", 400),
        ("2026-12-06T20:16", "and it can be at most 168 hours ahead", 403),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_sentence(now, text, says, status):
    with pytest.raises(Refused, match=says) as refused:
        later.not_before(text, WEEK)
    assert refused.value.status in (status, 403)
    assert refused.value.key == "not_before"


def test_where_it_can_t_be_asked_for_it_is_refused(now):
    with pytest.raises(Refused, match="can't be asked for here"):
        later.not_before("08:00", 0)
    assert later.not_before(None, 0) == 0


@given(st.text(max_size=30) | st.from_regex(r"\d{4}-\d\d-\d\dT\d\d:\d\d[+-]\d\d:\d\d"))
def test_no_text_breaks_it(text: str) -> None:
    at = later.moment_of(text)
    assert at is None or isinstance(at, float)


def test_the_night_in_which_the_clock_is_changed_has_an_eight_o_clock_too(now):
    now[0] = datetime(2026, 3, 28, 22, 0, tzinfo=timezone.utc).timestamp()
    assert later.not_before("08:00", WEEK) == now[0] + 8 * 3600
    now[0] = datetime(2026, 10, 24, 21, 0, tzinfo=timezone.utc).timestamp()
    assert later.not_before("08:00", WEEK) == now[0] + 10 * 3600


def test_a_link_and_a_form_send_the_same_as_a_program():
    assert from_fields({"not_before": ["08:00"], "gpus": ["1"]}) == {
        "not_before": "08:00",
        "gpus": 1,
    }
    assert parse({"not_before": "08:00"}).not_before == "08:00"
    assert from_fields({"not_before": [""]}) == {}
    with pytest.raises(Refused, match="The earliest start must be a time as 08:00"):
        parse({"not_before": 8})


# -- A request that waits for its time -----------------------------------------------------------


@pytest.fixture
async def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(queues, "PERIOD_SECONDS", 0.001)
    return Hub()


def message(one: Any) -> str:
    return one.progress_steps.so_far()[-1]["message"]


async def test_it_isn_t_granted_before_and_others_have_the_gpus_until_then(hub, now):
    one = hub.spawner(default_hours=1)
    await begin(one, gpus=2, not_before="08:00")
    task = await waiting(one, hub)
    assert message(one).startswith(
        "You are next in line for 2 GPUs. It starts later, as you asked. Expected about"
    )
    assert "08:00, in 11 hours, 44 minutes at the latest." in message(one)
    wanted = QueuedRequest(Holder("ben"), Request("plain", 2, seconds=3600), hub.queue.join_time())
    granted = await hub.queue.wait(wanted, RequestLimits(), lambda turn: None)
    assert len(granted.gpus) == 2
    hub.ledger.release(granted)
    now[0] = NOW + 3600 * 11.7
    await asyncio.sleep(0.05)
    assert not task.done()
    now[0] = NOW + 3600 * 11.75
    await task
    assert one.attempt.reservation.until == pytest.approx(now[0] + 3600)
    assert hub.held() == 1


async def test_who_came_later_is_served_later_and_who_would_delay_it_waits(hub, now):
    one = hub.spawner(default_hours=1)
    await begin(one, gpus=2, not_before="2026-11-29T20:30:00Z")
    task = await waiting(one, hub)
    told: list[Any] = []
    wanted = QueuedRequest(Holder("ben"), Request("plain", 1, seconds=7200), hub.queue.join_time())
    ben = asyncio.ensure_future(hub.queue.wait(wanted, RequestLimits(), told.append))
    await asyncio.sleep(0.01)
    assert (told[0].place, told[0].because) == (2, "order")
    starts = datetime(2026, 11, 29, 20, 30, tzinfo=timezone.utc).timestamp()
    assert told[0].start == starts + 3600
    now[0] = starts + 1
    await task
    assert not ben.done()
    ben.cancel()


async def test_the_time_to_wait_for_it_is_not_counted_as_a_wait(hub, now):
    """The longest wait is for GPUs."""
    one = hub.spawner(longest_wait_minutes=0.0001)
    await begin(one, gpus=1, not_before="20:16")
    task = await waiting(one, hub)
    await asyncio.sleep(1.1)
    assert not task.done()
    now[0] += 60
    await task
    assert hub.held() == 1


async def test_who_gives_up_before_has_nothing(hub, now):
    one = hub.spawner()
    await begin(one, gpus=1, not_before="08:00")
    task = await waiting(one, hub)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (hub.held(), hub.queue.waiting) == (0, ())


async def test_it_is_of_one_start_and_the_next_one_is_without(hub, now):
    """At its turn the choice is checked again, and then that time is past."""
    row = orm.Spawner(name="", user_options={"gpus": 1, "not_before": "08:00"})
    one = hub.spawner(row=row)
    await begin(one, gpus=1, not_before="08:00")
    assert (one.user_options, row.user_options) == ({"gpus": 1}, {"gpus": 1})
    assert one.attempt.not_before == pytest.approx(NOW + 3600 * 11.7417, abs=1)
    one.clear_state()
    assert one.attempt.not_before == 0


@pytest.mark.parametrize("traits", [{"not_before_hours": 0}, {"longest_wait_minutes": 0}])
async def test_an_administrator_can_leave_it_out(hub, now, traits):
    with pytest.raises(web.HTTPError, match="not_before: A later start can't be asked for here"):
        await begin(hub.spawner(**traits), gpus=1, not_before="08:00")


async def test_a_server_without_gpus_starts_at_once(hub, now):
    one = hub.spawner()
    await begin(one, gpus=0, not_before="08:00")
    await one.run_pre_spawn_hook()


async def test_who_changes_the_choice_finds_the_time_on_the_form(hub, now):
    one = hub.spawner()
    await begin(one, gpus=1, not_before="2026-11-30T08:00")
    task = await waiting(one, hub)
    one.attempt.changing_until = time.monotonic() + 60
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    one.clear_state()
    field = BeautifulSoup(await one.render_form(), "html.parser").find(id="gpuspawner-not-before")
    assert field["value"] == "2026-11-30T08:00"
    assert float(field["data-at"]) == pytest.approx(NOW + 3600 * 11.7417, abs=1)
    assert field.find_parent("details").has_attr("open")


# -- What the form says of it --------------------------------------------------------------------


async def test_a_forecast_knows_the_time(hub, now):
    limits = replace(LIMITS, ahead=WEEK)
    applicant = Applicant(Holder("ada"), frozenset(), limits, RequestLimits())
    view = await hub.ledger.read()

    def forecast(**choice: Any) -> Any:
        return forecast_choice(Choice(**choice), applicant, hub.queue, view)

    found = forecast(gpus=1, not_before="08:00")
    assert (found.kind, found.turn.because, found.turn.place) == ("wait", "time", 1)
    assert found.turn.start == pytest.approx(NOW + 3600 * 11.7417, abs=1)
    assert forecast(gpus=1).kind == "now"
    assert forecast(gpus=0, not_before="08:00").kind == "now"
    assert "that is past" in forecast(gpus=1, not_before="2020-01-01T00:00").refusal


def test_the_field_is_there_where_it_can_be_asked_for():
    def page(limits: Any, last: Choice) -> BeautifulSoup:
        html = render(limits, last, FREE, lambda choice: SimpleForecast(choice))
        return BeautifulSoup(html, "html.parser")

    class SimpleForecast(SimpleNamespace):
        def __init__(self, choice: Choice) -> None:
            super().__init__(kind="now", gpus=choice.gpus, turn=None, group="", part="")

    limits = replace(LIMITS, ahead=WEEK)
    assert page(LIMITS, Choice()).find(id="gpuspawner-not-before") is None
    field = page(limits, Choice(not_before="nonsense")).find(id="gpuspawner-not-before")
    assert (field["type"], field["value"], field.has_attr("data-at")) == (
        "datetime-local",
        "",
        False,
    )
    assert "CET" in field.find_parent("details").noscript.text
