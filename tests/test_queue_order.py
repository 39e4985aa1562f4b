"""Whose turn it is and when the others' comes: tables of queues, and what holds for every queue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from gpuspawner.allocation import Holder, Lease, Request
from gpuspawner.order import FAIR_SECONDS, Turn, Waiting, plan

from .test_allocation import A100, T4, host

HOUR = 3600.0
NOW = 1_800_000_000.0


def waits(
    user: str,
    gpus: int,
    hours: float | None = None,
    model: str | None = None,
    groups: str = "",
    since: float = 0,
) -> Waiting:
    """One in the queue; of several whose `since` is the same the first name comes first."""
    seconds = None if hours is None else hours * HOUR
    request = Request("torch", gpus, model, seconds=seconds)
    return Waiting(Holder(user), request, NOW - HOUR + since, frozenset(groups.split()))


def holds(user: str, indexes: str, hours: float | None = None, groups: str = "") -> Lease:
    """A lease of the GPUs with these indexes that ends in so many hours, or never known."""
    until = None if hours is None else NOW + hours * HOUR
    gpus = frozenset(f"GPU-{index}" for index in indexes)
    return Lease(Holder(user), gpus, until, frozenset(groups.split()))


def told(turns: Sequence[Turn]) -> list[str]:
    """Each turn in a few words: "ann now 0,1", "bob in 2 h: gpus", "cy: never"."""
    words = []
    for turn in turns:
        user = turn.waiting.holder.user
        if turn.start == NOW:
            words.append(f"{user} now {','.join(str(gpu.index) for gpu in turn.gpus)}".rstrip())
        else:
            when = "" if turn.start is None else f" in {round((turn.start - NOW) / HOUR, 3):g} h"
            words.append(f"{user}{when}: {turn.because}")
            assert turn.gpus == ()
    return words


@dataclass
class Scenario:
    """A host, what is held on it and who waits; and what each is told, in the queue's order."""

    name: str
    gpus: str
    queue: list[Waiting]
    expected: list[str]
    leases: list[Lease] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)
    order: str = "fifo"


SCENARIOS = [
    Scenario("nobody waits", "aa", [], []),
    Scenario("no GPU asked for: no wait, whatever the host", "E", [waits("a", 0)], ["a now"]),
    Scenario("a free GPU", "aa", [waits("a", 1, 2)], ["a now 0"]),
    Scenario(
        "several at once, each its own",
        "aaaa",
        [waits("a", 1, 2), waits("b", 2, 1), waits("c", 1)],
        ["a now 0", "b now 1,2", "c now 3"],
    ),
    Scenario(
        "first come, first served",
        "a",
        [waits("a", 1, 1, since=9), waits("b", 1, 2, since=8), waits("c", 1, 1, since=10)],
        ["b now 0", "a in 2 h: gpus", "c in 3 h: gpus"],
    ),
    Scenario(
        "the start is the end of a lease",
        "aa",
        [waits("a", 1, 1), waits("b", 2, 1)],
        ["a in 3 h: gpus", "b in 7 h: gpus"],
        leases=[holds("x", "0", 7), holds("y", "1", 3)],
    ),
    Scenario(
        "GPUs gather for a large one, and a short one may use them until then",
        "aaaa",
        [waits("a", 4, 1), waits("b", 1, 2)],
        ["a in 2 h: gpus", "b now 1"],
        leases=[holds("x", "0", 2)],
    ),
    Scenario(
        "one that would take too long may not",
        "aaaa",
        [waits("a", 4, 1), waits("b", 1, 2.5), waits("c", 1)],
        ["a in 2 h: gpus", "b in 3 h: order", "c in 3 h: order"],
        leases=[holds("x", "0", 2)],
    ),
    Scenario(
        "one that takes long may have what those before don't need",
        "aaaa",
        [waits("a", 3, 1), waits("b", 1, 9)],
        ["a in 2 h: gpus", "b now 3"],
        leases=[holds("x", "01", 2)],
    ),
    Scenario(
        "nobody but the first can say when: leases without an end",
        "aaa",
        [waits("a", 2, 1), waits("b", 1, 1), waits("c", 1, 1)],
        ["a: gpus", "b: order", "c: order"],
        leases=[holds("x", "01")],
    ),
    Scenario(
        "what gathers may be used until those before need it",
        "aaa",
        [waits("a", 2, 1), waits("b", 3, 1), waits("c", 1, 4), waits("d", 1, 5.5)],
        ["a in 5 h: gpus", "b: gpus", "c now 1", "d: gpus"],
        leases=[holds("x", "0"), holds("y", "2", 5)],
    ),
    Scenario(
        "a model nobody else wants is not kept for anybody",
        "aatt",
        [waits("a", 2, 1, A100), waits("b", 1, None, T4), waits("c", 1, None)],
        ["a: gpus", "b now 2", "c now 3"],
        leases=[holds("x", "0")],
    ),
    Scenario(
        "one model where one suffices, else mixed",
        "aatt",
        [waits("a", 2, 1), waits("b", 2, 1)],
        ["a now 1,2", "b in 1 h: gpus"],
        leases=[holds("x", "0", 9), holds("y", "3", 9)],
    ),
    Scenario(
        "more than the host has is never served, and keeps nothing",
        "aaE",
        [waits("a", 3, 1), waits("b", 2, 1)],
        ["a: never", "b now 0,1"],
    ),
    Scenario(
        "a GPU in use outside the hub or sick may come back, nobody knows when",
        "aFSU",
        [waits("a", 2, 1), waits("b", 1, 1)],
        ["a: gpus", "b: order"],
    ),
    Scenario(
        "past its end but still there: any moment now, not free",
        "aa",
        [waits("a", 2, 1), waits("b", 1, 1)],
        ["a in 0 h: gpus", "b in 1 h: order"],
        leases=[holds("x", "0", -1)],
    ),
    Scenario(
        "who holds less goes first",
        "aaa",
        [waits("a", 1, 1, since=0), waits("b", 1, 1, since=FAIR_SECONDS + 1), waits("c", 1, 1)],
        ["c in 4 h: gpus", "a in 5 h: gpus", "b in 6 h: gpus"],
        leases=[holds("a", "0", 4), holds("y", "12", None)],
        order="fair",
    ),
    Scenario(
        "but only for so long",
        "aaa",
        [waits("a", 1, 1, since=0), waits("b", 1, 1, since=FAIR_SECONDS - 1)],
        ["b in 4 h: gpus", "a in 5 h: gpus"],
        leases=[holds("a", "0", 4), holds("y", "12", None)],
        order="fair",
    ),
    Scenario(
        "a group holds no more than it may, and others go on",
        "aaaa",
        [waits("a", 1, 1, groups="g"), waits("b", 1, 1, groups="other"), waits("c", 3, 1)],
        ["a in 3 h: group:g", "b now 2", "c in 3 h: gpus"],
        leases=[holds("x", "01", 3, groups="g")],
        limits={"g": 2},
    ),
    Scenario(
        "who waits for its group keeps no GPU when nobody knows for how long",
        "aaaa",
        [waits("a", 2, 1, groups="g"), waits("b", 3, groups="h")],
        ["a: group:g", "b now 1,2,3"],
        leases=[holds("x", "0", groups="g")],
        limits={"g": 2},
    ),
    Scenario(
        "but the others of its group don't overtake it",
        "aaaa",
        [waits("a", 2, 1, groups="g"), waits("b", 1, 1, groups="g")],
        ["a: group:g", "b: order"],
        leases=[holds("x", "0", groups="g")],
        limits={"g": 2},
    ),
    Scenario(
        "unless they are done before it can start",
        "aaaa",
        [
            waits("a", 2, 1, groups="g"),
            waits("b", 1, 3, groups="g"),
            waits("c", 1, 3.5, groups="g"),
        ],
        ["a in 3 h: group:g", "b now 1", "c in 4 h: group:g"],
        leases=[holds("x", "0", 3, groups="g")],
        limits={"g": 2},
    ),
    Scenario(
        "of several groups the strictest counts",
        "aaaa",
        [waits("a", 2, 1, groups="g h"), waits("b", 2, 1, groups="g")],
        ["a in 3 h: group:h", "b now 1,2"],
        leases=[holds("x", "0", 3, groups="h")],
        limits={"g": 4, "h": 2},
    ),
    Scenario(
        "more than its group may ever hold",
        "aaaa",
        [waits("a", 3, 1, groups="g"), waits("b", 2, 1, groups="g")],
        ["a: group:g", "b now 0,1"],
        limits={"g": 2},
    ),
    Scenario(
        "a group's share is free, its GPUs aren't",
        "aaaa",
        [waits("a", 2, 1, groups="g"), waits("b", 1, 4, groups="g"), waits("c", 1, 9)],
        ["a in 2 h: gpus", "b now 3", "c in 2 h: gpus"],
        leases=[holds("x", "012", 2)],
        limits={"g": 3},
    ),
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.name)
def test_plan(scenario: Scenario) -> None:
    turns = plan(
        scenario.queue,
        host(scenario.gpus),
        scenario.leases,
        NOW,
        order=scenario.order,
        group_limits=scenario.limits,
    )
    assert told(turns) == scenario.expected
    assert [turn.place for turn in turns] == list(range(1, len(turns) + 1))
