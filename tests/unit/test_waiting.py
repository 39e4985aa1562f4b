"""The queue over a ledger whose engine is a list: thousands of joins, cancels and ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuspawner.choices.check import Applicant, check_choice
from gpuspawner.choices.limits import Limits
from gpuspawner.errors import Refused, Unknown
from gpuspawner.gpus.model import GPU, Holder, Node, Request
from gpuspawner.images.catalogue import catalogue
from gpuspawner.leases.labels import ServerRecord, labels
from gpuspawner.leases.ledger import Ledger, Reservation
from gpuspawner.scheduling.plan import QueuedRequest, Turn
from gpuspawner.scheduling.queue import (
    KEPT_PLACE_SECONDS,
    Queue,
    QueueSettings,
    RequestLimits,
)

GPUS = 4
VERSIONS = catalogue({"torch": "lab/torch:2.7"})


@dataclass
class Engine:
    """An engine's containers as the ledger lists them, and an inventory that may fail."""

    containers: dict[str, ServerRecord] = field(default_factory=dict)
    broken: str = ""
    looks: int = 0

    async def list(self) -> list[ServerRecord]:
        await asyncio.sleep(0)
        return list(self.containers.values())

    async def read(self) -> Any:
        self.looks += 1
        await asyncio.sleep(0)
        if self.broken:
            raise RuntimeError(self.broken)
        gpus = tuple(GPU(f"GPU-{n}", n, "A100", 40960, 0, 0) for n in range(GPUS))
        return (Node("", "570.133.20", "12.8", gpus),)

    def start(self, ledger: Ledger, reservation: Reservation) -> str:
        """Make the container of a reservation, as a start does."""
        holder = reservation.holder
        name = f"{holder}-{time.monotonic_ns()}"
        found = labels(holder, "image", sorted(reservation.units), reservation.until)
        self.containers[name] = ServerRecord(name, found, created=1)
        ledger.release(reservation)
        return name


class EndWatcher:
    """The engine's events: who listens now."""

    listening: list[Callable[[], None]]

    def __init__(self) -> None:
        self.listening = []

    def __call__(self, notice: Callable[[], None]) -> Any:
        return SimpleNamespace(
            begin=lambda: self.listening.append(notice),
            end=lambda: self.listening.remove(notice),
        )

    def happen(self) -> None:
        for notice in self.listening:
            notice()


def make(rules: QueueSettings | None = None) -> tuple[Engine, Ledger, Queue, EndWatcher]:
    engine, endings = Engine(), EndWatcher()
    ledger = Ledger(engine.list, engine.read)
    return engine, ledger, Queue(ledger, rules or QueueSettings(), endings), endings


def joins(
    queue: Queue,
    user: str,
    gpus: int,
    limits: RequestLimits | None = None,
    told: list[Any] | None = None,
) -> asyncio.Task[Reservation]:
    waiting = QueuedRequest(Holder(user), Request("image", gpus, seconds=3600), queue.join_time())
    told = [] if told is None else told
    return asyncio.ensure_future(queue.wait(waiting, limits or RequestLimits(), told.append))


async def settle() -> None:
    for _ in range(40):
        await asyncio.sleep(0)


async def test_a_wait_that_ends_in_the_same_moment_as_its_turn_gives_the_gpus_back():
    """The cancel comes after the reservation and before the waiter runs."""
    _, ledger, queue, _ = make()
    task = joins(queue, "ada", 4)
    while not ledger._reservations:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await joins(queue, "ben", 4)).units == {f"GPU-{n}" for n in range(GPUS)}


async def test_trouble_is_told_to_those_who_wait_and_refuses_those_who_come():
    engine, ledger, queue, endings = make()
    engine.start(ledger, await joins(queue, "ada", 4))
    told: list[Any] = []
    waiting = joins(queue, "ben", 1, told=told)
    await settle()
    assert isinstance(told[0], Turn)
    engine.broken = "NVML has gone."
    with pytest.raises(Unknown, match="NVML has gone"):
        await joins(queue, "cyd", 1)
    assert told[-1] == "You keep your place. NVML has gone."
    engine.broken = ""
    endings.happen()
    await settle()
    assert told[1:] == ["You keep your place. NVML has gone.", told[0]], "the place is told again"
    engine.containers.clear()
    endings.happen()
    assert (await waiting).gpus


async def test_the_engine_is_listened_to_and_looked_at_only_while_somebody_waits():
    engine, ledger, queue, endings = make()
    name = engine.start(ledger, await joins(queue, "ada", 4))
    await settle()
    assert endings.listening == []
    waiting = joins(queue, "ben", 1)
    await settle()
    looks = engine.looks
    del engine.containers[name]
    await settle()
    assert engine.looks == looks  # nothing is looked at between events, within the period
    endings.happen()
    await waiting
    await settle()
    assert endings.listening == []


async def test_a_grant_and_the_places_of_those_behind_are_one_plan():
    engine, ledger, queue, endings = make()
    name = engine.start(ledger, await joins(queue, "ada", 4))
    told: list[Any] = []
    first = joins(queue, "ben", 4)
    await settle()
    second = joins(queue, "cyd", 4, told=told)
    await settle()
    looks = engine.looks
    del engine.containers[name]
    endings.happen()
    await first
    await settle()
    assert (told[-1].place, told[-1].of) == (1, 1)
    assert engine.looks == looks + 1
    second.cancel()


async def test_a_queue_of_its_length_is_full_and_no_wait_is_no_wait():
    engine, ledger, queue, _ = make(QueueSettings(length=2))
    engine.start(ledger, await joins(queue, "ada", 4))
    waiting = [joins(queue, "ben", 1), joins(queue, "cyd", 1)]
    await settle()
    with pytest.raises(Refused, match="The queue is full: 2 wait already"):
        await joins(queue, "dan", 1)
    with pytest.raises(Refused, match=r"0 of 4 are free now \(4 in use\)"):
        await joins(queue, "eve", 1, RequestLimits(max_wait_seconds=0))
    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    with pytest.raises(Refused, match="which is the longest wait here"):
        await joins(queue, "fay", 1, RequestLimits(max_wait_seconds=0.01))
    waiting[1].cancel()


async def test_a_user_over_the_limit_is_refused_whatever_comes_first():
    """Two servers of one user ask in the same moment; each alone would be within the limit."""
    _, _, queue, _ = make()
    limits = RequestLimits(user_limit=3)
    asks = [
        asyncio.ensure_future(
            queue.wait(
                QueuedRequest(Holder("ada", name), Request("image", 2), queue.join_time()),
                limits,
                print,
            )
        )
        for name in ("one", "two")
    ]
    results = await asyncio.gather(*asks, return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["Refused", "Reservation"]
    assert issubclass(Refused, Exception)


async def test_what_a_server_itself_still_holds_is_not_counted_as_another_s():
    """It is asked for again while the engine still lists what it had."""
    engine, ledger, queue, _ = make()
    limits = RequestLimits(user_limit=2)
    engine.start(ledger, await joins(queue, "ada", 2, limits))
    assert len((await joins(queue, "ada", 2, limits)).units) == 2


async def test_a_choice_over_its_user_s_limit_is_refused_before_it_waits():
    engine, ledger, queue, _ = make()
    engine.start(ledger, await joins(queue, "ada", 2))
    second = Applicant(
        Holder("ada", "second"), frozenset(), Limits(VERSIONS, "torch"), RequestLimits(user_limit=3)
    )
    with pytest.raises(Refused, match="your other servers have or wait for 2") as refused:
        await check_choice({"gpus": 2}, second, ledger, queue)
    assert refused.value.status == 403
    assert (await check_choice({"gpus": 1}, second, ledger, queue)).request.gpus == 1


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.integers(1, GPUS)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("end"), st.integers(0, 30)),
        st.tuples(st.just("break"), st.integers(0, 1)),
        st.tuples(st.just("pass"), st.integers(0, 12)),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(ACTIONS, st.sampled_from(["fifo", "fair"]))
def test_no_gpu_is_held_twice_and_in_the_end_all_who_stayed_were_served(
    actions: list[tuple[str, int]], order: str
) -> None:
    asyncio.run(_run(actions, order))


async def _run(actions: list[tuple[str, int]], order: str) -> None:
    engine, ledger, queue, endings = make(QueueSettings(order=order))
    tasks: list[asyncio.Task[Reservation]] = []
    served: dict[asyncio.Task[Reservation], str] = {}

    def take() -> None:
        """Start what was granted, and look that nothing is held twice."""
        for task in tasks:
            if task.done() and not task.cancelled() and not task.exception() and task not in served:
                served[task] = engine.start(ledger, task.result())
        held = [
            uuid
            for container in engine.containers.values()
            for uuid in container.labels["gpuspawner.gpus"].split(",")
        ]
        held += [
            uuid for each in ledger._reservations if each.ended_tick is None for uuid in each.units
        ]
        assert len(held) == len(set(held))

    for action, number in actions:
        if action == "join":
            tasks.append(joins(queue, f"user-{len(tasks)}", number))
        elif action == "cancel" and tasks:
            tasks[number % len(tasks)].cancel()
        elif action == "end" and engine.containers:
            del engine.containers[sorted(engine.containers)[number % len(engine.containers)]]
            endings.happen()
        elif action == "break":
            engine.broken = "away" * number
        for _ in range(number if action == "pass" else 1):
            await asyncio.sleep(0)
            take()
    engine.broken = ""
    for _ in range(200):
        if all(task.done() for task in tasks):
            break
        engine.containers.clear()
        endings.happen()
        queue.wake()
        await settle()
        take()
    stayed = [task for task in tasks if not task.cancelled()]
    assert all(task.done() for task in stayed)
    assert all(not task.exception() or isinstance(task.exception(), Unknown) for task in stayed)
    assert [each for each in ledger._reservations if each.ended_tick is None] == []


async def test_who_came_first_is_first_also_after_the_clock_was_set_back(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    _, _, queue, _ = make()
    first = queue.join_time()
    now[0] = 10.0
    joined = [first, queue.join_time(), queue.join_time()]
    assert joined == sorted(set(joined))


async def test_who_cannot_be_told_fails_alone():
    engine, ledger, queue, endings = make()
    engine.start(ledger, await joins(queue, "ada", 4))
    told: list[Any] = []

    def broken(_: Any) -> None:
        raise RuntimeError("ben's own secret")

    wanted = QueuedRequest(Holder("ben"), Request("image", 1, seconds=3600), queue.join_time())
    ben = asyncio.ensure_future(queue.wait(wanted, RequestLimits(), broken))
    cyd = joins(queue, "cyd", 1, told=told)
    with pytest.raises(RuntimeError, match="secret"):
        await ben
    await settle()
    assert isinstance(told[0], Turn)
    engine.containers.clear()
    endings.happen()
    assert (await cyd).gpus


async def test_of_members_under_different_rules_the_strictest_limit_of_their_group_holds():
    """Her rules say that the lab may hold one GPU, his that it may hold four."""
    _, _, queue, _ = make()

    def asks(user: str, most: int) -> asyncio.Task[Reservation]:
        lab = frozenset({"lab"})
        wanted = QueuedRequest(Holder(user), Request("image", 1), queue.join_time(), lab)
        limits = RequestLimits(group_limits={"lab": most})
        return asyncio.ensure_future(queue.wait(wanted, limits, lambda turn: None))

    ben, ada = asks("ben", 4), asks("ada", 1)
    await settle()
    assert (ben.done(), ada.done()) == (True, False)
    ada.cancel()


async def leaves(task: asyncio.Task[Reservation]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def changes(queue: Queue, user: str, task: asyncio.Task[Reservation]) -> None:
    """Leave to change the choice."""
    (waiting,) = [each.waiting for each in queue.waiting if each.holder.user == user]
    await leaves(task)
    queue.keep_place(waiting)


def comes_back(queue: Queue, user: str, gpus: int, told: list[Any]) -> Any:
    """Ask as one who may have a place there."""
    since = queue.join_time(Holder(user))
    waiting = QueuedRequest(Holder(user), Request("image", gpus, seconds=3600), since)
    return asyncio.ensure_future(queue.wait(waiting, RequestLimits(), told.append))


async def three_wait(queue: Queue, engine: Engine, ledger: Ledger) -> list[Any]:
    engine.start(ledger, await joins(queue, "max", 4))
    tasks = []
    for user in ("ada", "ben", "cyd"):
        tasks.append(joins(queue, user, 2))
        await settle()
    return tasks


def in_line(queue: Queue) -> list[tuple[str, int, int]]:
    """Return who waits: (user, place, of how many)."""
    return [
        (each.holder.user, each.turn.place, each.turn.of) for each in queue.waiting if each.turn
    ]


async def test_who_leaves_to_change_the_choice_has_the_same_place_again():
    engine, ledger, queue, _ = make()
    ada, ben, cyd = await three_wait(queue, engine, ledger)
    assert in_line(queue) == [("ada", 1, 3), ("ben", 2, 3), ("cyd", 3, 3)]
    await changes(queue, "ben", ben)
    await settle()
    assert in_line(queue) == [("ada", 1, 2), ("cyd", 2, 2)]
    told: list[Any] = []
    again = comes_back(queue, "ben", 1, told)
    await settle()
    assert in_line(queue) == [("ada", 1, 3), ("ben", 2, 3), ("cyd", 3, 3)]
    assert (told[0].place, told[0].waiting.request.gpus) == (2, 1)
    assert queue.kept_place(Holder("ben")) is None
    for task in (ada, again, cyd):
        task.cancel()


async def test_the_form_of_who_has_left_forecasts_the_kept_place_and_the_others_the_last():
    engine, ledger, queue, _ = make()
    tasks = await three_wait(queue, engine, ledger)
    await changes(queue, "ada", tasks[0])
    await settle()
    view = await ledger.read()

    def place(user: str) -> int:
        since = queue.join_time(Holder(user))
        wanted = QueuedRequest(Holder(user), Request("image", 2, seconds=3600), since)
        return queue.forecast(wanted, RequestLimits(), view).place

    assert [place("new"), place("ada"), place("new")] == [3, 1, 3]
    for task in tasks:
        task.cancel()


async def test_a_place_is_kept_for_a_while_and_not_for_who_just_leaves(monkeypatch):
    engine, ledger, queue, _ = make()
    tasks = await three_wait(queue, engine, ledger)
    await leaves(tasks[0])
    await changes(queue, "ben", tasks[1])
    assert queue.kept_place(Holder("ada")) is None
    kept = queue.kept_place(Holder("ben"))
    assert kept
    assert queue.join_time(Holder("ben")) == kept.since
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + KEPT_PLACE_SECONDS + 1)
    assert queue.kept_place(Holder("ben")) is None
    assert queue.join_time(Holder("ben")) > kept.since
    # What is over is forgotten with the next who leaves.
    await changes(queue, "cyd", tasks[2])
    assert list(queue._kept_places) == [Holder("cyd")]


async def test_a_kept_place_counts_where_the_queue_has_become_full():
    engine, ledger, queue, _ = make(QueueSettings(length=3))
    ada, ben, cyd = await three_wait(queue, engine, ledger)
    await changes(queue, "ada", ada)
    new = joins(queue, "new", 2)
    await settle()
    again = comes_back(queue, "ada", 1, [])
    await settle()
    assert in_line(queue)[0] == ("ada", 1, 4)
    for task in (ben, cyd, new, again):
        task.cancel()


async def test_those_who_wait_are_told_of_who_comes_after_them():
    engine, ledger, queue, _ = make()
    engine.start(ledger, await joins(queue, "max", 4))
    told: list[Any] = []
    ada = joins(queue, "ada", 2, told=told)
    await settle()
    ben = joins(queue, "ben", 2)
    await settle()
    assert [(turn.place, turn.of) for turn in told] == [(1, 1), (1, 2)]
    for task in (ada, ben):
        task.cancel()
