"""Who has waited long says that they are there, or the next in line has the GPUs."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from tornado import web

from gpuspawner import check_in
from gpuspawner.gpus.model import Holder, Request
from gpuspawner.hub.control_socket import ControlSocket, _KeepAlive, _ServerRequest
from gpuspawner.i18n.languages import language_for
from gpuspawner.i18n.phrases import clock_time
from gpuspawner.leases import audit_log
from gpuspawner.leases.clock import Clock
from gpuspawner.leases.server_lease import ServerLease
from gpuspawner.scheduling import queue
from gpuspawner.scheduling.phrases import while_away_words
from gpuspawner.scheduling.plan import QueuedRequest
from gpuspawner.scheduling.queue import RequestLimits
from gpuspawner.spawner import GPUSpawner
from gpuspawner.wait_in_queue import WaitInQueue

from ..support.spawns import Hub, begin, lab, waiting


class Hours:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.clock = Clock(self.wall, lambda: 5000 + self.passed, lambda: "boot")

    def wall(self) -> float:
        return self.began + self.passed

    began = time.time()


@pytest.fixture
async def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(check_in, "TICK_SECONDS", 0.001)
    return Hub()


@pytest.fixture
def hours() -> Hours:
    return Hours()


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    monkeypatch.setattr(
        audit_log,
        "record",
        lambda log, event, holder, by, **facts: found.append((event, facts.get("rule"))),
    )
    return found


def spawner(hub: Hub, hours: Hours, groups: tuple[str, ...] = (), **traits: Any) -> GPUSpawner:
    one = hub.spawner(groups, check_in_minutes=10, hour_limit=4, **traits)
    one.waiting, one.lease = WaitInQueue(one, hours.clock), ServerLease(one, hours.clock)
    return one


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def asked(hub: Hub, hours: Hours, one: GPUSpawner, minutes: float = 60) -> asyncio.Task[None]:
    """Have somebody wait so long until it is their turn."""
    hub.occupy()
    await begin(one, gpus=2)
    task = await waiting(one, hub)
    hours.passed += 60 * minutes
    hub.free_all()
    await settle()
    return task


def said(one: GPUSpawner) -> str:
    return one.progress_steps.so_far()[-1]["message"]


async def test_who_says_that_they_are_there_has_the_gpus_and_the_whole_time(hub, hours, events):
    one = spawner(hub, hours)
    task = await asked(hub, hours, one)
    hours.passed += 9 * 60
    await settle()
    assert not task.done()
    until = hours.wall() + 60
    assert said(one).startswith(
        f"It's your turn: 2 GPUs are held for you until {clock_time(until)}"
    )
    turn = one.page.check_in
    assert (turn, turn.deadline.until) == (hub.turns[Holder("ada")], pytest.approx(until))
    # The plan reckons with the latest end.
    (held,) = hub.ledger._reservations
    assert held.until == pytest.approx(until + 4 * 3600)
    turn.confirm_by("not" + turn.token)
    await settle()
    assert not task.done()
    turn.confirm_by(turn.token)
    await task
    assert (one.page.check_in, hub.turns, hub.held()) == (None, {}, 1)
    assert one.lease.until == held.until == pytest.approx(hours.wall() + 4 * 3600)
    assert ("warn", "check in") in events


async def test_of_who_is_not_there_the_next_in_line_has_the_gpus(hub, hours, events, monkeypatch):
    monkeypatch.setattr(queue, "PERIOD_SECONDS", 3600.0)  # nothing else has the queue look again
    one = spawner(hub, hours)
    task = await asked(hub, hours, one)
    came = hours.wall()
    wanted = QueuedRequest(Holder("ben"), Request("plain", 2), hub.queue.join_time())
    next_one = asyncio.ensure_future(hub.queue.wait(wanted, RequestLimits(), lambda turn: None))
    await settle()
    assert not next_one.done()
    hours.passed += 10 * 60 + 1
    with pytest.raises(web.HTTPError) as refused:
        await task
    words = (
        f"Your turn came at {clock_time(came)}, and nobody said within 10 minutes that they were "
        "there, so that the next in line has the GPUs. Please join the queue again."
    )
    assert refused.value.status_code == 503
    assert refused.value.sentence == words
    one.clear_state()
    assert str(one.notice) == words
    assert "轮到您" in language_for("zh-CN").say(one.notice)
    assert len((await asyncio.wait_for(next_one, 60)).gpus) == 2
    assert (hub.held(), hub.turns) == (1, {})
    assert [rule for event, rule in events if event == "leave"] == ["nobody was there"]
    assert len([event for event, _ in events if event == "release"]) == 1
    # The next start says it no more.
    hub.free_all()
    await begin(one)
    assert one.notice == ""


async def test_who_gives_up_while_they_are_asked_gives_the_gpus_back_once(hub, hours, events):
    one = spawner(hub, hours)
    task = await asked(hub, hours, one)
    assert hub.held() == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    one.clear_state()
    assert (hub.held(), hub.turns, one.page.check_in) == (0, {}, None)
    assert len([event for event, _ in events if event == "release"]) == 1


async def test_the_rules_are_those_of_the_moment_in_which_they_are_there(hub, hours):
    one = spawner(hub, hours, ("lab",), gpu_limit=1, group_overrides=lab(gpu_limit=2))
    task = await asked(hub, hours, one)
    one.user.groups = []
    one.page.check_in.confirm()
    with pytest.raises(web.HTTPError, match="your limit is 1"):
        await task
    assert hub.held() == 0


async def test_who_has_not_waited_longer_than_that_is_not_asked(hub, hours):
    task = await asked(hub, hours, spawner(hub, hours), minutes=9)
    await task
    assert hub.held() == 1


async def test_nobody_is_asked_where_it_is_off_or_no_gpu_is_at_stake(hub, hours):
    one = hub.spawner()
    assert one.check_in_minutes == 0
    one.waiting = WaitInQueue(one, hours.clock)
    await (await asked(hub, hours, one))
    two = spawner(hub, hours)
    await begin(two, gpus=0)
    await two.run_pre_spawn_hook()


def page_of(user: Any, **arguments: str) -> Any:
    """Return a template's `static_url`, on the page that this user has opened."""

    class Handler:
        current_user = user

        def get_argument(self, name: str, default: str) -> str:
            return arguments.get(name, default)

        def static_url(self) -> str:
            return ""

    return Handler().static_url


async def test_only_the_user_s_own_page_says_so(hub, hours):
    one = spawner(hub, hours)
    task = await asked(hub, hours, one)
    token = one.page.check_in.token
    assert one.page.hear_of_presence(page_of(SimpleNamespace(), present=token)) == ""
    one.page.hear_of_presence(page_of(one.user))
    one.page.hear_of_presence(page_of(one.user, present="é"))
    await settle()
    assert not task.done()
    one.page.hear_of_presence(page_of(one.user, present=token))
    await task
    one.page.hear_of_presence(page_of(one.user, present=token))


async def test_a_program_says_so_as_it_does_of_idle_gpus(hub, hours):
    one = spawner(hub, hours)
    task = await asked(hub, hours, one)
    control = SimpleNamespace(turn_of=hub.turns.get)
    handler = SimpleNamespace(_control=control)
    answer = await _KeepAlive.answer(handler, _ServerRequest(user="ada"))  # type: ignore[arg-type]
    assert answer == {}
    await task
    socket = ControlSocket("x", hub.queue, list, None, {}, None, None, {}, turns=hub.turns)  # type: ignore[arg-type]
    assert socket.turn_of(Holder("ada")) is None
    hub.turns[Holder("ada")] = "a turn"
    assert socket.turn_of(Holder("ada")) == "a turn"


async def test_who_may_close_the_page_is_told_that_they_are_asked():
    request = Request("plain", 1, seconds=3600)
    assert "begin then, whether you are here or not" in while_away_words(request)
    assert "you have 10 minutes to say here" in while_away_words(request, 600)
