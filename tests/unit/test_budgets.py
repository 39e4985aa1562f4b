"""Budgets of GPU hours: what is left, when it comes back, and that no door lets anybody over."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jupyterhub import orm
from tornado import web
from traitlets import TraitError
from traitlets.config import Config

from gpuspawner.choices.form import hour_items
from gpuspawner.choices.limits import Limits
from gpuspawner.choices.options import Choice
from gpuspawner.errors import Refused, Unknown
from gpuspawner.gpus.model import GPU, Holder, Lease, Request
from gpuspawner.hub.state import build_at_start
from gpuspawner.scheduling.budgets import (
    EVERYBODY,
    STEP_SECONDS,
    Budget,
    Budgets,
    NothingUsed,
    Promise,
    Standing,
    Use,
    check_budgets,
    latest_end,
    part_of_gpus,
    within_budgets,
)
from gpuspawner.scheduling.plan import QueuedRequest
from gpuspawner.scheduling.queue import RequestLimits
from gpuspawner.spawner import GPUSpawner

from ..support.spawns import Hub, begin, waiting
from ..support.usage import World, look

HOUR, DAY = 3600.0, 86400.0
NOW = 1_800_000_000.0
ADA = Holder("ada")
WEEK = Budget("students", 40, 7)


@dataclass
class Past:
    """What users have had: a list."""

    uses: list[Use] = field(default_factory=list)
    held: list[Use] = field(default_factory=list)
    trouble: str = ""

    @property
    def version(self) -> object:
        return tuple(self.uses)

    async def ensure_read(self) -> None:
        if self.trouble:
            raise Unknown(self.trouble)

    def over(self, user: str | None, group: str | None) -> Sequence[Use]:
        return [
            each
            for each in self.uses
            if (user is None or each.user == user) and (group is None or group in each.groups)
        ]

    def running(self, now: float) -> Sequence[Use]:
        if self.trouble:
            raise Unknown(self.trouble)
        return [replace(each, end=now) for each in self.held]


def had(hours: float, ago: float, user: str = "ada", share: float = 1.0, *groups: str) -> Use:
    """Return what a user had for some hours, up to some hours ago."""
    end = NOW - ago * HOUR
    return Use(user, frozenset(groups or ["students"]), share, end - hours * HOUR, end)


def standing(budget: Budget, *uses: Use, promised: Sequence[Use] = ()) -> Standing:
    past = Past(list(uses))
    budgets = Budgets([budget], past)
    promises = [
        Promise(Holder(use.user, str(n)), use.groups, int(use.share), use.end)
        for n, use in enumerate(promised)
    ]
    (found,) = budgets.standings(ADA, {budget.group}, [], promises, NOW)
    return found


# -- What is left, and when more comes back --------------------------------------------------------


def test_what_was_had_in_the_window_counts_by_its_part_of_a_gpu() -> None:
    found = standing(WEEK, had(10, 24), had(8, 48, share=1 / 8), had(5, 100, "ben"))
    assert found.left == pytest.approx(40 - 10 - 1)
    # Of what began before the window only the rest counts.
    assert standing(WEEK, had(10, 7 * 24 - 4)).left == pytest.approx(36)
    assert standing(WEEK, had(10, 7 * 24)).left == 40


def test_what_a_group_has_together_is_taken_by_each_of_its_members() -> None:
    together = replace(WEEK, together=True)
    uses = had(10, 24), had(5, 24, "ben"), had(5, 24, "cyd", 1.0, "phd")
    assert standing(together, *uses).left == pytest.approx(25)
    assert standing(replace(together, group=EVERYBODY), *uses).left == pytest.approx(20)
    assert standing(replace(WEEK, group=EVERYBODY), *uses).left == pytest.approx(30)


def test_what_is_promised_counts_up_to_its_end_and_what_has_none_is_promised_all() -> None:
    promised = Use("ada", frozenset(), 2.0, NOW, NOW + 4 * HOUR)
    assert standing(WEEK, promised=[promised]).left == pytest.approx(32)
    budgets = Budgets([WEEK], Past())
    groups = frozenset({"students"})
    endless = Lease(Holder("ada", "other"), frozenset({"GPU-a"}), None, groups)
    assert budgets.standings(ADA, groups, [endless], [], NOW)[0].left == 0
    # One that is to go at any time has no future, another hub's ada is somebody else.
    overdue = replace(endless, overdue=True)
    foreign = replace(endless, holder=Holder("ada", "", "http://other"))
    own = replace(endless, holder=ADA)
    assert budgets.standings(ADA, groups, [overdue, foreign, own], [], NOW)[0].left == 40
    # Who isn't in the group has no budget.
    assert budgets.standings(ADA, {"phd"}, [endless], [], NOW) == []


def test_an_end_that_has_changed_since_it_was_read_counts() -> None:
    lease = Lease(Holder("ada", "x"), frozenset({"GPU-a"}), NOW + HOUR, frozenset({"students"}))
    ends: dict[Holder, float | None] = {lease.holder: NOW + 5 * HOUR}
    budgets = Budgets([WEEK], Past(), lambda: ends)
    assert budgets.standings(ADA, {"students"}, [lease], [], NOW)[0].left == pytest.approx(35)


uses_drawn = st.lists(
    st.builds(
        lambda begin, hours, share: Use(
            "ada", frozenset({"students"}), share, NOW - begin * HOUR, NOW + (hours - begin) * HOUR
        ),
        st.integers(0, 400),
        st.integers(0, 30),
        st.sampled_from([0.125, 1.0, 2.0]),
    ),
    max_size=6,
)


@given(uses_drawn, st.floats(0.1, 60))
@example([had(40, 24), had(2, 3)], 1.0)
def test_more_is_back_when_it_is_said_and_no_earlier(uses: list[Use], hours: float) -> None:
    over, running = [u for u in uses if u.end <= NOW], [u for u in uses if u.end > NOW]
    seconds = sum(use.seconds_after(NOW - WEEK.seconds) for use in over)
    found = Standing(WEEK, over, seconds, running, NOW)
    at = found.back_at(hours)

    def left_at(then: float) -> float:
        """Return what is left then, if nothing else is asked for."""
        taken = sum(use.seconds_after(then - WEEK.seconds) for use in uses)
        return WEEK.hours - taken / HOUR

    if at is None:
        assert hours > WEEK.hours - found.left
        return
    assert left_at(at) >= found.left + hours - 1e-3
    if at > NOW:
        assert left_at(at - 120) <= found.left + hours + 1e-3


def test_it_is_said_what_is_left_and_when_more_comes_back(monkeypatch) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)
    assert standing(WEEK).words == "Your budget: 40 of 40 GPU hours in 7 days are left."
    words = standing(WEEK, had(10, 24), had(18, 3)).words
    assert words.startswith("Your budget: 12 of 40 GPU hours in 7 days are left. 1 more comes back")
    assert "all of it by" in words
    assert "The rest comes back by" in standing(WEEK, had(0.5, 3)).words
    together = standing(replace(WEEK, together=True, days=0.5), had(1, 2))
    assert together.words.startswith("Your group students together: 39 of 40 GPU hours in 12 hours")
    # What is left is never said to be more than it is.
    assert "39.9 of 40" in standing(WEEK, had(0.06, 3)).words


# -- What a request is given -----------------------------------------------------------------------


def asks(hours: float | None, gpus: int = 1) -> Request:
    return Request("x", gpus, seconds=None if hours is None else hours * HOUR)


def test_a_time_that_nobody_named_is_shortened_and_one_that_was_is_refused() -> None:
    left = [standing(WEEK, had(37, 24))]
    assert within_budgets(asks(3), 1, left, named=True).seconds == 3 * HOUR
    assert within_budgets(asks(8), 1, left, named=False).seconds == 3 * HOUR
    assert within_budgets(asks(None, 2), 2, left, named=False).seconds == 1.5 * HOUR
    with pytest.raises(Refused) as refused:
        within_budgets(asks(8, 2), 2, left, named=True)
    words = str(refused.value)
    assert "You asked for 2 GPUs for 8 hours, which is 16 GPU hours." in words
    assert "3 of 40 GPU hours in 7 days are left" in words
    assert "Now you can have it for 1 hour, 30 minutes." in words
    assert "Enough comes back by" in words
    assert (refused.value.status, refused.value.key) == (403, "hours")
    with pytest.raises(Refused, match="more than the whole budget"):
        within_budgets(asks(41), 1, [standing(WEEK)], named=True)
    with pytest.raises(Refused, match="0 of 40 GPU hours") as refused:
        within_budgets(asks(None), 1, [standing(WEEK, had(40, 24))], named=False)
    assert refused.value.reason == "limit"
    # Of several the strictest.
    both = [standing(replace(WEEK, hours=100)), *left]
    assert within_budgets(asks(8), 1, both, named=False).seconds == 3 * HOUR


def test_a_shortened_time_stays_as_it_was_promised() -> None:
    left = [standing(WEEK, had(37, 24))]
    assert within_budgets(asks(8), 1, left, named=False, promised=2 * HOUR).seconds == 2 * HOUR
    # Unless that isn't left any more, as by another rule.
    assert within_budgets(asks(8), 1, left, named=False, promised=4 * HOUR).seconds == 3 * HOUR


def test_parts_of_gpus_count_as_the_usage_counts_them_whatever_limits_count() -> None:
    slots = [GPU("GPU-a", 0, "A100", kind="shared", part=n, parts=8, share=1) for n in range(8)]
    request = Request("x", 1, kind="shared", unit_share=1)
    assert part_of_gpus(request, slots) == pytest.approx(1 / 8)
    assert part_of_gpus(Request("x", 2), slots) == 2
    of_hours = replace(request, course="ml", slots=15)
    assert part_of_gpus(of_hours, [*slots, GPU("GPU-b", 1, "A100")]) == pytest.approx(1 / 15)


steps_drawn = st.lists(
    st.tuples(
        st.sampled_from(["start", "start", "extend", "stop", "wait"]),
        st.integers(0, 2),
        st.sampled_from([0.25, 1.0, 3.0, 8.0]),
        st.sampled_from([1, 2]),
    ),
    max_size=40,
)


@given(steps_drawn, st.booleans())
def test_no_window_ever_has_more_than_its_budget(steps: list[Any], together: bool) -> None:
    """Whatever two users ask for, when, and whenever they stop or ask for longer."""
    budget = Budget("students", 10, 1, together)
    past, now = Past(), NOW
    running: dict[Holder, tuple[float, float, int]] = {}
    budgets = Budgets([budget], past)

    def over(holder: Holder, at: float) -> None:
        begin, _, gpus = running.pop(holder)
        groups = frozenset({"students"})
        past.uses.append(Use(holder.user, groups, gpus, begin, at))

    for what, number, hours, gpus in steps:
        holder = Holder(("ada", "ben")[number % 2], str(number))
        for each, (_, until, _) in list(running.items()):
            if until <= now:
                over(each, until)
        past.held = [
            Use(each.user, frozenset({"students"}), share, begin, now)
            for each, (begin, _, share) in running.items()
        ]
        promises = [
            Promise(each, frozenset({"students"}), share, until)
            for each, (_, until, share) in running.items()
        ]
        left = budgets.standings(holder, {"students"}, [], promises, now)
        if what == "start" and holder not in running:
            try:
                request = within_budgets(asks(hours, gpus), gpus, left, named=False)
            except Refused:
                continue
            running[holder] = now, now + (request.seconds or 0), gpus
        elif what == "extend" and holder in running:
            begin, until, share = running[holder]
            latest, why = latest_end(
                left, share, Use(holder.user, frozenset(), share, now, until), until + hours * HOUR
            )
            if not why or latest > until:
                running[holder] = (
                    begin,
                    min(latest if why else math.inf, until + hours * HOUR),
                    share,
                )
        elif what == "stop" and holder in running:
            over(holder, now)
        elif what == "wait":
            now += hours * HOUR
    for holder, (_, until, _) in list(running.items()):
        over(holder, until)
    for user in ("ada", "ben"):
        mine = [use for use in past.uses if together or use.user == user]
        for edge in {use.end for use in mine}:
            window = [replace(use, end=min(use.end, edge)) for use in mine]
            taken = sum(use.seconds_after(edge - DAY) for use in window)
            assert taken <= 10 * HOUR + 60


# -- The doors -------------------------------------------------------------------------------------


@pytest.fixture
async def hub() -> Hub:
    return Hub()


def with_budget(hub: Hub, *uses: Use, **more: Any) -> Past:
    """Give a hub's students 10 GPU hours a day, of which some are used."""
    now = time.time()
    past = Past([replace(u, begin=u.begin - NOW + now, end=u.end - NOW + now) for u in uses])
    budget = Budget(more.pop("group", "students"), 10, 1, **more)
    ends = lambda: {each.holder: each.until for each in hub.leases if each.units}  # noqa: E731
    hub.queue.budgets = Budgets([budget], past, ends)
    return past


def student(hub: Hub, **traits: Any) -> GPUSpawner:
    return hub.spawner(("students",), hour_limit=8, **traits)


async def test_a_choice_by_form_link_or_rest_is_held_to_the_budget(hub):
    with_budget(hub, had(8, 3))
    one = student(hub)
    with pytest.raises(web.HTTPError, match="2 of 10 GPU hours in 1 day are left") as refused:
        await begin(one, gpus=1, hours=4)
    assert refused.value.status_code == 403
    await begin(one, gpus=1, hours=2)
    assert one.attempt.request.seconds == 2 * HOUR
    await begin(one, gpus=2)
    assert one.attempt.request.seconds == HOUR
    # Without GPUs there is nothing to count.
    await begin(one, gpus=0)
    assert one.attempt.request.seconds is None
    # Nobody else is in that group.
    other = hub.spawner(("phd",), hour_limit=8)
    await begin(other, gpus=2, hours=8)


async def test_without_an_hour_limit_the_budget_is_the_end(hub):
    with_budget(hub)
    one = hub.spawner(("students",))
    await begin(one, gpus=2)
    assert one.attempt.request.seconds == 5 * HOUR


async def test_a_saved_choice_that_is_over_the_budget_is_shortened(hub):
    with_budget(hub, had(8, 3))
    one = student(hub)
    kept = await one._check_saved({"gpus": 1, "hours": 4})
    assert kept == {"gpus": 1}
    assert one.attempt.request.seconds == 2 * HOUR


async def test_two_servers_of_one_user_that_ask_in_the_same_moment_share_the_budget(hub):
    with_budget(hub)
    queue = hub.queue

    def ask(name: str, hours: float) -> Any:
        request = Request("x", 1, seconds=hours * HOUR)
        joining = QueuedRequest(
            Holder("ada", name), request, queue.join_time(), frozenset({"students"})
        )
        return queue.wait(joining, RequestLimits(), print)

    results = await asyncio.gather(ask("a", 6), ask("b", 6), return_exceptions=True)
    assert [type(each).__name__ for each in results] == ["Reservation", "Refused"]
    results = await asyncio.gather(ask("c", 3), ask("d", 3), return_exceptions=True)
    assert [type(each).__name__ for each in results] == ["Reservation", "Refused"]


async def test_what_waits_counts_once_against_those_who_come(hub):
    with_budget(hub)
    hub.occupy()
    waiting = []
    for name in ("a", "b"):
        request, groups = Request("x", 1, seconds=4 * HOUR), frozenset({"students"})
        joining = QueuedRequest(Holder("ada", name), request, hub.queue.join_time(), groups)
        task = hub.queue.wait(joining, RequestLimits(), lambda turn: None)
        waiting.append(asyncio.ensure_future(task))
        for _ in range(50):
            await asyncio.sleep(0)
    # 4 hours of 10 that wait, and 4 more: the second one's plan counts the first once.
    assert len(hub.queue.waiting) == 2
    hub.free_all()
    assert all([(await each).gpus for each in waiting])


async def test_what_waits_has_its_time_kept_for_its_turn(hub):
    with_budget(hub, had(6, 3))
    hub.occupy()
    one = student(hub)
    await begin(one, gpus=1, hours=4)
    task = await waiting(one, hub)
    other = student(hub, row=orm.Spawner(name="second"))
    with pytest.raises(web.HTTPError, match="0 of 10 GPU hours"):
        await begin(other, gpus=1)
    hub.free_all()
    await task
    assert one.attempt.granted.until == pytest.approx(time.time() + 4 * HOUR, abs=60)


async def test_a_shortened_wait_ends_although_more_comes_back_meanwhile(hub):
    """What is left grows while it waits; its end stays, or it would ask anew for ever."""
    past = with_budget(hub, had(8, 3))
    hub.occupy()
    one = student(hub)
    await begin(one, gpus=1)
    task = await waiting(one, hub)
    past.uses = [replace(past.uses[0], end=past.uses[0].end - 2 * HOUR)]
    hub.free_all()
    await asyncio.wait_for(task, 30)
    assert one.attempt.request.seconds == 2 * HOUR


async def test_at_its_turn_a_choice_is_checked_by_the_budget_of_then(hub):
    past = with_budget(hub)
    hub.occupy()
    one = student(hub)
    await begin(one, gpus=1, hours=4)
    task = await waiting(one, hub)
    now = time.time()
    past.uses = [Use("ada", frozenset(), 1.0, now - 9 * HOUR, now)]
    hub.free_all()
    with pytest.raises(web.HTTPError, match="1 of 10 GPU hours"):
        await task
    assert hub.held() == 0


async def test_more_time_for_a_server_that_runs_is_held_to_the_budget(hub):
    with_budget(hub, had(5, 3))
    one = student(hub, extend_minutes=None)
    await begin(one, gpus=1, hours=4)
    await one.run_pre_spawn_hook()
    one.lease.hold(one.attempt.granted.units)
    hub.leases.add(one.lease)
    began = one.lease.until
    # An hour is left, of the three that were asked for.
    until = one.lease.extend(3)
    assert until == pytest.approx(began + HOUR, abs=5)
    for over_all in (False, True):
        with pytest.raises(Refused, match="0 of 10 GPU hours in 1 day are left") as refused:
            one.lease.extend(3, over_all=over_all)
        assert (refused.value.status, refused.value.key) == (403, "hours")
    # To say that the GPUs are needed still gives no time.
    one.lease.keep_alive()
    assert one.lease.until == pytest.approx(until, abs=1)


async def test_another_server_of_the_user_counts_as_soon_as_it_was_extended(hub):
    with_budget(hub)
    one = student(hub, extend_minutes=None)
    await begin(one, gpus=1, hours=4)
    await one.run_pre_spawn_hook()
    one.lease.hold(one.attempt.granted.units)
    hub.leases.add(one.lease)
    one.lease.extend(4)
    other = student(hub, row=orm.Spawner(name="second"))
    await begin(other, gpus=1)
    assert other.attempt.request.seconds == 2 * HOUR


async def test_a_budget_that_cannot_be_read_is_no_budget_that_is_left(hub):
    past = with_budget(hub)
    past.trouble = "It can't be read."
    one = student(hub)
    with pytest.raises(web.HTTPError, match=re.escape("It can't be read.")) as refused:
        await begin(one, gpus=1, hours=1)
    assert refused.value.status_code == 503
    await begin(one, gpus=0)
    assert "It can&#39;t be read." in await one.render_form()
    # Who has no budget isn't concerned.
    await begin(hub.spawner(("phd",), hour_limit=8), gpus=1)


# -- The form --------------------------------------------------------------------------------------


async def test_the_form_says_what_is_left_and_offers_no_longer_time(hub):
    with_budget(hub, had(7.5, 3))
    one = student(hub)
    shown = await one.render_form()
    assert "Your budget: 2.5 of 10 GPU hours in 1 day are left. 1 more comes back by" in shown
    hours = re.findall(r'name="hours"[^>]* value="([0-9.]+)"( checked)?', shown)
    assert hours == [("1", ""), ("2", ""), ("2.5", " checked")]
    assert "Starts now, with 1 GPU." in shown


async def test_the_form_s_own_choice_is_granted(hub):
    with_budget(hub, had(7.37, 3))
    one = student(hub)
    for gpus in ("1", "2"):
        limits = replace(one.limits(), gpu_hours=2.63)
        items = hour_items(limits, Choice(gpus=int(gpus)), int(gpus))
        (checked,) = [item.value for item in items if item.checked]
        await begin(one, **one.options_from_query({"gpus": [gpus], "hours": [checked]}))


def test_the_times_of_the_form_are_within_the_budget() -> None:
    limits = Limits({}, "", hours=8, gpu_hours=3)
    last = Choice(hours=8)
    for part, longest in ((0, 8), (1, 3), (2, 1.5), (0.125, 8)):
        assert max(float(item.value) for item in hour_items(limits, last, part)) == longest
    # Where nothing is left the forecast says so; the times stay.
    empty = replace(limits, gpu_hours=0.01)
    assert max(float(item.value) for item in hour_items(empty, last, 1)) == 8
    assert STEP_SECONDS <= HOUR


# -- What the store has ----------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(f"sqlite:///{tmp_path / 'usage.sqlite'}")
    world.window, world.shared = 7 * DAY, ["students"]
    return world


def left(world: World, recorder: Any, user: str = "ada", **more: Any) -> float:
    budgets = Budgets([Budget(more.pop("group", "*"), 10, 1, **more)], recorder.past)
    found = budgets.standings(Holder(user, "new"), {"students"}, [], [], world.wall)
    return found[0].left


async def test_what_was_had_is_known_before_and_after_it_is_written_and_after_a_restart(world):
    recorder = world.recorder()
    await look(recorder)
    assert left(world, recorder) == 10
    box = world.start("hub", of=["students"])
    recorder.began(world.record_of(box))
    world.steady += HOUR
    assert left(world, recorder) == pytest.approx(9, abs=0.01)  # not written yet
    await look(recorder)
    world.steady += HOUR
    assert left(world, recorder) == pytest.approx(8, abs=0.01)
    recorder.close()
    again = world.recorder()
    await again.past.ensure_read()
    assert left(world, again) == pytest.approx(9, abs=0.01)  # as far as it is written
    await look(again)
    assert left(world, again) == pytest.approx(8, abs=0.01)
    world.end(box)
    await look(again)
    world.steady += 60  # too soon to be read again for its age
    box = world.start("hub", "GPU-b", of=["students"])
    await look(again)
    world.steady += 360
    world.end(box)
    await look(again)
    assert left(world, again) == pytest.approx(7.9, abs=0.01)
    world.steady += HOUR
    await look(again)
    assert left(world, again) == pytest.approx(7.9, abs=0.01)
    assert left(world, again, "ben") == 10
    assert left(world, again, "ben", group="students", together=True) == pytest.approx(
        7.9, abs=0.01
    )
    world.steady += DAY
    assert left(world, again) == 10
    again.close()


async def test_a_store_that_fails_while_the_hub_runs_loses_nothing(world, monkeypatch):
    recorder = world.recorder()
    await look(recorder)
    box = world.start("hub")
    recorder.began(world.record_of(box))
    broken = SimpleNamespace(**{"write": _fail, "uses": _fail, "open": _fail})
    store, recorder.store = recorder.store, broken
    world.steady += HOUR
    world.end(box)
    with pytest.raises(OSError, match="gone"):
        await look(recorder)
    world.steady += HOUR
    assert left(world, recorder) == pytest.approx(9, abs=0.01)
    recorder.store = store
    await look(recorder)
    assert left(world, recorder) == pytest.approx(9, abs=0.01)
    recorder.close()


async def test_what_is_written_without_an_answer_counts_once(world):
    recorder = world.recorder()
    await look(recorder)
    box = world.start("hub")
    recorder.began(world.record_of(box))
    world.steady += HOUR
    world.end(box)
    written, recorder._sightings.written = recorder._sightings.written, lambda batch: None
    await look(recorder)
    assert left(world, recorder) == pytest.approx(9, abs=0.01)
    recorder._sightings.written = written
    await look(recorder)
    assert left(world, recorder) == pytest.approx(9, abs=0.01)
    recorder.close()


def _fail(*_: Any) -> Any:
    raise OSError("gone")


async def test_a_hub_that_has_never_read_the_store_says_so_until_it_can(world, tmp_path):
    path = tmp_path / "usage.sqlite"
    path.write_bytes(b"no database" * 100)
    recorder = world.recorder()
    budgets = Budgets([WEEK], recorder.past)
    for _ in range(2):
        with pytest.raises(Unknown, match="can't be read just now"):
            await budgets.ensure_read({"students"})
    with pytest.raises(Unknown):
        budgets.standings(ADA, {"students"}, [], [], world.wall)
    path.unlink()
    await budgets.ensure_read({"students"})
    assert left(world, recorder) == 10
    recorder.close()
    # A hub without budgets reads nothing.
    await Budgets((), recorder.past).ensure_read({"students"})
    await NothingUsed().ensure_read()


# -- The trait -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"students": 40}, "must be a mapping with hours and days"),
        ({"students": {"hours": 40}}, "must be a mapping with hours and days"),
        ({"students": {"hours": 40, "days": 7, "weeks": 1}}, "has the key 'weeks'"),
        ({"students": {"hours": -1, "days": 7}}, "hours must be a number, more than 0"),
        ({"students": {"hours": True, "days": 7}}, "hours must be a number"),
        ({"students": {"hours": math.nan, "days": 7}}, "hours must be a number"),
        ({"students": {"hours": 1, "days": 400}}, "days must be a number, .* at most 366"),
        ({"students": {"hours": 1, "days": "7"}}, "days must be a number"),
        ({"students": {"hours": 1, "days": 7, "together": 1}}, "together must be True or False"),
        ({7: {"hours": 1, "days": 7}}, "the key must be the name of a group"),
    ],
)
def test_a_budget_that_is_none_is_refused_by_the_trait_s_name(given_: Any, said: str) -> None:
    with pytest.raises(TraitError, match=rf"c\.GPUSpawner\.gpu_hours\[.*{said}"):
        GPUSpawner(config=Config({"GPUSpawner": {"gpu_hours": given_}}))


class App:
    """A hub's application that starts."""

    def __init__(self, **traits: Any) -> None:
        config = Config({"GPUSpawner": traits})
        self.tornado_settings = {"spawner_class": GPUSpawner, "config": config}
        self.tornado_application, self.hub_prefix = web.Application(), "/hub/"
        self.hub = None
        self.said: list[str] = []
        self.log = SimpleNamespace(critical=lambda form, words: self.said.append(words))

    def exit(self, status: int) -> None:
        raise SystemExit(status)


@pytest.mark.parametrize(
    ("traits", "said"),
    [
        ({"gpu_hours": {"a": 1}}, r"c.GPUSpawner.gpu_hours\['a'\] must be a mapping"),
        (
            {"gpu_hours": {"a": {"hours": 1, "days": 7}}, "usage_db": ""},
            "with an empty c.GPUSpawner.usage_db nothing is kept",
        ),
        (
            {"gpu_hours": {"a": {"hours": 1, "days": 30}}, "usage_retention_days": 7},
            "looks back 30 days, and c.GPUSpawner.usage_retention_days = 7",
        ),
    ],
)
def test_a_hub_does_not_start_with_budgets_that_nobody_could_hold(traits: Any, said: str) -> None:
    app = App(**traits)
    with pytest.raises(SystemExit):
        build_at_start(app)
    assert re.search(said, " ".join(app.said))


def test_budgets_are_what_the_trait_says() -> None:
    found = check_budgets(
        {"students": {"hours": 40, "days": 7}, "*": {"hours": 9, "days": 1, "together": True}}
    )
    assert found == (WEEK, Budget(EVERYBODY, 9, 1, True))
