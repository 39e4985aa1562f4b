"""Whose turn it is and when the others' comes: tables of queues, and what holds for every queue."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import queue as bench
from bench.queue import Job, Run, simulate
from gpuspawner.gpus.allocation import POLICIES, apply_leases, choose
from gpuspawner.gpus.model import GPU, Holder, Lease, Request
from gpuspawner.scheduling.plan import (
    FAIR_SECONDS,
    ORDERS,
    USED_SECONDS,
    Planner,
    QueuedRequest,
    QueueSnapshot,
    Turn,
    UserShare,
    UserShares,
    by_share,
    by_use,
    within_courses,
)

from ..support.drawn_hosts import A100, T4, host, requests
from ..support.paths import ROOT

HOUR = 3600.0
NOW = 1_800_000_000.0


def waits(
    user: str,
    gpus: int,
    hours: float | None = None,
    model: str | None = None,
    groups: str = "",
    since: float = 0,
    later: float = 0,
) -> QueuedRequest:
    """One in the queue; of several whose `since` is the same the first name comes first.

    It isn't to start for `later` hours.
    """
    seconds = None if hours is None else hours * HOUR
    request = Request("torch", gpus, model, seconds=seconds)
    begins = NOW + later * HOUR if later else 0.0
    return QueuedRequest(
        Holder(user), request, NOW - HOUR + since, frozenset(groups.split()), begins
    )


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
    queue: list[QueuedRequest]
    expected: list[str]
    leases: list[Lease] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)
    order: str = "fifo"
    shares: UserShares = field(default_factory=dict)


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
        "a gap that is long enough, but not from when the other GPU is free",
        "ata",
        [waits("a", 2, 1, A100), waits("b", 2, 2)],
        ["a in 3 h: gpus", "b in 4 h: gpus"],
        leases=[holds("x", "1", 2), holds("y", "2", 3)],
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
        "a GPU in use outside the hub or sick may never come back: nothing is kept for it",
        "aFSU",
        [waits("a", 2, 1), waits("b", 1, 1)],
        ["a: never", "b now 0"],
    ),
    Scenario(
        "past its end but still there: any moment now, not free",
        "aa",
        [waits("a", 2, 1), waits("b", 1, 1)],
        ["a in 0 h: gpus", "b in 1 h: order"],
        leases=[holds("x", "0", -1)],
    ),
    Scenario(
        "no time at all still keeps a GPU from others",
        "a",
        [waits("a", 1, 0), waits("b", 1, 1e-9)],
        ["a now 0", "b in 0 h: gpus"],
    ),
    Scenario(
        "not to start yet: others have the GPU until then, if they are done by then",
        "a",
        [waits("a", 1, 1, later=5), waits("b", 1, 6), waits("c", 1, 5), waits("d", 1, 1)],
        ["a in 5 h: time", "b in 6 h: order", "c now 0", "d in 12 h: gpus"],
    ),
    Scenario(
        "a GPU that isn't free by its time delays it, and what it needn't have goes on",
        "aa",
        [waits("a", 2, 1, later=2), waits("b", 1, 1), waits("c", 1)],
        ["a in 3 h: time", "b now 1", "c in 4 h: gpus"],
        leases=[holds("x", "0", 3)],
    ),
    Scenario(
        "its time has come: it is at its place by when it was made",
        "a",
        [waits("a", 1, 1, later=-1), waits("b", 1, 1)],
        ["a now 0", "b in 1 h: gpus"],
    ),
    Scenario(
        "it gathers GPUs for a time that nobody knows from its own time on",
        "aa",
        [waits("a", 2, 1, later=2), waits("b", 1, 2), waits("c", 1, 3)],
        ["a: time", "b now 1", "c: gpus"],
        leases=[holds("x", "0")],
    ),
    Scenario(
        "nobody has as many at any time",
        "a",
        [waits("a", 2, 1, later=2), waits("b", 0, later=2)],
        ["a: never", "b in 2 h: time"],
    ),
    Scenario(
        "of its group's share, others use until then what they give back",
        "aaa",
        [
            waits("a", 2, 1, groups="g", later=2),
            waits("b", 1, 2, groups="g"),
            waits("c", 1, 3, groups="g"),
        ],
        ["a in 2 h: time", "b now 0", "c in 3 h: order"],
        limits={"g": 2},
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
        "who used less lately goes first",
        "a",
        [waits("a", 1, 1), waits("b", 1, 1), waits("c", 1, 1)],
        ["b in 4 h: gpus", "c in 5 h: gpus", "a in 6 h: gpus"],
        leases=[holds("y", "0", 4)],
        order="share",
        shares={("", "a"): UserShare(31), ("", "c"): UserShare(2)},
    ),
    Scenario(
        "but only for so long, and a weight makes it shorter",
        "a",
        [
            waits("a", 1, 1),
            waits("b", 1, 1, since=6 * USED_SECONDS - 1),
            waits("c", 1, 1, since=3 * USED_SECONDS + 1),
        ],
        ["a in 4 h: gpus", "c in 5 h: gpus", "b in 6 h: gpus"],
        leases=[holds("y", "0", 4)],
        order="share",
        shares={("", "a"): UserShare(6, weight=2)},
    ),
    Scenario(
        "what one's earlier request is promised counts for the next",
        "a",
        [waits("a", 1, 2), waits("a", 1, 2, since=1), waits("b", 1, 1, since=USED_SECONDS)],
        ["a in 4 h: gpus", "b in 6 h: gpus", "a in 7 h: gpus"],
        leases=[holds("y", "0", 4)],
        order="share",
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
    turns = Planner().plan(
        scenario.queue,
        host(scenario.gpus),
        scenario.leases,
        NOW,
        order=scenario.order,
        group_limits=scenario.limits,
        shares=scenario.shares,
    )
    assert told(turns) == scenario.expected
    assert [turn.place for turn in turns] == list(range(1, len(turns) + 1))


@pytest.mark.parametrize(
    ("option", "known"), [("order", "fifo, fair, share"), ("policy", "pack, spread")]
)
def test_an_unknown_order_or_policy_is_named_together_with_the_known_ones(
    option: str, known: str
) -> None:
    with pytest.raises(ValueError, match=f"{option} must be one of {known}, got 'best'"):
        Planner().plan([], [], [], NOW, **{option: "best"})  # type: ignore[arg-type]


def test_two_gpus_with_one_uuid_are_refused_also_where_nobody_waits() -> None:
    with pytest.raises(ValueError, match="same UUID"):
        Planner().plan([], [GPU("GPU-0", 0, A100), GPU("GPU-0", 1, A100)], [], NOW)


@pytest.mark.parametrize(("policy", "indexes"), [("pack", "0,1"), ("spread", "0,3")])
def test_the_policy_chooses_among_what_can_be_handed_out(policy: str, indexes: str) -> None:
    turns = Planner().plan([waits("a", 2, 1)], host("aaaa"), [], NOW, policy=policy)
    assert told(turns) == [f"a now {indexes}"]


def test_spreading_keeps_distance_also_from_what_is_handed_out_just_now() -> None:
    turns = Planner().plan(
        [waits("a", 1, 1), waits("b", 1, 1)], host("aaaa"), [], NOW, policy="spread"
    )
    assert told(turns) == ["a now 0", "b now 3"]


def test_the_policy_gives_way_where_its_choice_would_make_somebody_start_later() -> None:
    """Spreading would give a GPU 1, b both T4s at once, and c nothing for 3 hours."""
    queue = [waits("a", 1, 5), waits("b", 2, 3, T4), waits("c", 1, 1, T4)]
    turns = Planner().plan(queue, host("tataa"), [holds("x", "4", 3)], NOW, policy="spread")
    assert told(turns) == ["a now 0", "b in 5 h: gpus", "c now 2"]


def test_the_policy_stands_where_its_choice_makes_somebody_start_earlier() -> None:
    """In one order for all a would get an A100, and b wait for it; c takes what b leaves."""
    queue = [waits("a", 1, 5), waits("b", 2, 3, A100), waits("c", 1, 3)]
    turns = Planner().plan(queue, host("aatt"), [], NOW, policy="spread")
    assert told(turns) == ["a now 2", "b now 0,1", "c now 3"]


# What holds for every queue. The days of simulated hosts are short and full of coincidences: times
# are small multiples of one length, so that much begins and ends at once.


@dataclass
class Hosts:
    """A host and what is asked of it in the course of a day."""

    gpus: list[GPU]
    jobs: list[Job]
    limits: dict[str, int]


@st.composite
def days(
    draw: st.DrawFn,
    *,
    letters: str = "aaat",
    groups: bool = True,
    counts: Sequence[int] = (1, 1, 2, 3, 4),
    gaps: Sequence[int] = (0, 0, 0, 1, 1, 2, 5),
    early: bool = False,
    endless: bool = False,
    later: bool = False,
) -> Hosts:
    """Days on which everybody can be served.

    Args:
        letters: the host's GPUs, as `host` draws them.
        groups: whether there are limits for groups.
        counts: how many GPUs may be asked for.
        gaps: how much may lie between one who comes and the next.
        early: whether some end before their time is over.
        endless: whether some say no time.
        later: whether some aren't to start at once.
    """
    gpus = host(draw(st.text(alphabet=letters, min_size=1, max_size=6)))
    limits = draw(st.dictionaries(st.sampled_from("gh"), st.integers(1, 4))) if groups else {}
    unit = draw(st.sampled_from([1.0, 1.1, 3600.0, 4567.89]))
    since = NOW
    jobs = []
    for number in range(draw(st.integers(1, 12))):
        since += unit * draw(st.sampled_from(gaps))
        model = draw(st.sampled_from([None, None, *{gpu.model for gpu in gpus}]))
        members = draw(st.frozensets(st.sampled_from("gh"), max_size=2)) if groups else frozenset()
        most = [sum(model in (None, gpu.model) for gpu in gpus)]
        most += [limits[name] for name in members & limits.keys()]
        length = draw(st.integers(1, 8))
        seconds = None if endless and draw(st.booleans()) else unit * length
        uses = unit * draw(st.integers(1, length)) if early else unit * length
        request = Request("torch", min([draw(st.sampled_from(counts)), *most]), model)
        holder = Holder(draw(st.sampled_from("abc")), f"{number:02}")
        begins = since + unit * draw(st.integers(0, 9)) if later and draw(st.booleans()) else 0.0
        request = replace(request, seconds=seconds)
        waiting = QueuedRequest(holder, request, since, members, begins)
        jobs.append(Job(waiting, uses))
    return Hosts(gpus, jobs, limits)


@dataclass
class ChangeWatcher:
    """Decides as the hub does, and keeps what everybody was told each time."""

    day: Hosts
    order: str = "fifo"
    policy: str = "pack"
    plans: list[tuple[float, tuple[Turn, ...]]] = field(default_factory=list)
    so_far: bench.SoFar = field(default_factory=bench.SoFar)

    def run(self) -> list[Run]:
        """Run the day; it ends only if everybody is served."""
        return simulate(self.day.jobs, self.day.gpus, self.decide)

    def decide(self, queue: Any, gpus: Any, leases: Any, now: float) -> list[Any]:
        """Ask for the turns; keep them; grant what they say."""
        turns = Planner().plan(
            queue,
            gpus,
            leases,
            now,
            order=self.order,
            policy=self.policy,
            group_limits=self.day.limits,
            shares=self.so_far.shares(leases, now),
        )
        self.plans.append((now, turns))
        granted = [(turn.waiting, turn.gpus) for turn in turns if turn.start == now]
        self.so_far.started(bench.lease_of(*each, now) for each in granted)
        return granted

    def told(self) -> dict[Holder, list[Turn]]:
        """Return each one's turns, from the first until it started."""
        turns: dict[Holder, list[Turn]] = {}
        for _, planned in self.plans:
            for turn in planned:
                turns.setdefault(turn.waiting.holder, []).append(turn)
        return turns


def by_time(run: Run) -> tuple[float, Holder]:
    return run.job.waiting.since, run.job.waiting.holder


def asked(run: Run) -> float:
    return run.job.waiting.request.seconds or inf


orders = st.sampled_from(sorted(ORDERS))
policies = st.sampled_from(sorted(POLICIES))


def start(turn: Turn) -> float:
    return inf if turn.start is None else turn.start


@given(days(early=True, endless=True, later=True), orders, policies)
def test_everybody_is_served_and_nothing_is_had_twice(day: Hosts, order: str, policy: str) -> None:
    runs = ChangeWatcher(day, order, policy).run()
    assert sorted(run.job.waiting.holder for run in runs) == sorted(
        job.waiting.holder for job in day.jobs
    )
    for run in runs:
        request = run.job.waiting.request
        assert run.start >= run.job.waiting.not_before
        assert len({gpu.uuid for gpu in run.gpus}) == request.gpus == len(run.gpus)
        assert all(request.takes(gpu) for gpu in run.gpus)
        together = [other for other in runs if other.start <= run.start < other.end]
        held = Counter(gpu.uuid for other in together for gpu in other.gpus)
        assert set(held.values()) == {1}
        for name, limit in day.limits.items():
            members = [other for other in together if name in other.job.waiting.groups]
            assert sum(len(other.gpus) for other in members) <= limit


@given(days(letters="aatt", later=True), policies)
def test_nobody_starts_later_than_first_told_while_all_use_their_time(
    day: Hosts, policy: str
) -> None:
    watch = ChangeWatcher(day, policy=policy)
    watch.run()
    for turns in watch.told().values():
        starts = [start(turn) for turn in turns]
        assert starts == sorted(starts, reverse=True)
        assert starts[-1] < inf


@given(days(early=True, endless=True, letters="aatFS", later=True), policies)
def test_one_more_is_told_what_the_whole_plan_would_say(day: Hosts, policy: str) -> None:
    """Pages ask `QueueSnapshot`, which books one more behind those who wait, without a new plan."""

    class Asking(ChangeWatcher):
        def decide(self, queue: Any, gpus: Any, leases: Any, now: float) -> list[Any]:
            if not queue:
                return []
            *others, last = sorted(queue, key=lambda each: (each.since, each.holder))
            standing = QueueSnapshot(others, gpus, leases, now, day.limits)
            turn = standing.forecast_turn(last, day.limits)
            assert standing.forecast_turn(last, day.limits) == turn  # to ask books nothing
            granted = super().decide(queue, gpus, leases, now)
            _, turns = self.plans[-1]
            if turn is not None:
                planned = turns[-1]
                assert replace(turn, gpus=()) == replace(planned, gpus=())
                assert len(turn.gpus) == len(planned.gpus)
            return granted

    # Where a GPU is sick some are never served, and then the day has no end.
    usable = [job for job in day.jobs if _could_run(job, day)]
    Asking(replace(day, jobs=usable), policy=policy).run()


def _could_run(job: Job, day: Hosts) -> bool:
    fitting = [gpu for gpu in day.gpus if gpu.state == "free"]
    return sum(map(job.waiting.request.takes, fitting)) >= job.waiting.request.gpus


def test_one_more_whose_group_is_under_a_stricter_rule_takes_a_new_plan() -> None:
    first, second = waits("a", 1, 1, since=-60), waits("b", 1, 1)
    lease = holds("x", "0", 1)
    standing = QueueSnapshot([first], host("a"), [lease], NOW, {"g": 2})
    member = replace(second, groups=frozenset("g"))
    assert standing.forecast_turn(member, {"g": 2}) is not None
    assert standing.forecast_turn(member, {"g": 1}) is None
    assert standing.forecast_turn(member, {"other": 1}) is None
    assert standing.forecast_turn(replace(second, since=first.since - 1), {}) is None
    # Who gets GPUs now isn't booked yet as they will be.
    assert QueueSnapshot([first], host("aa"), [lease], NOW, {}).forecast_turn(second, {}) is None


def test_booked_ahead_means_the_same_gpus_when_the_time_has_come() -> None:
    """A day on which taking from the model with least left would break what another was told."""
    asked = [
        (1, 2, T4, 7),
        (2, 3, A100, 6),
        (4, 2, None, 3),
        (5, 1, T4, 1),
        (5, 1, T4, 6),
        (5, 3, A100, 7),
        (6, 1, T4, 2),
    ]
    queue = [
        waits(f"{number}", gpus, hours, model, since=hour * HOUR)
        for number, (hour, gpus, model, hours) in enumerate(asked)
    ]
    jobs = [Job(each, each.request.seconds or 0) for each in queue]
    watch = ChangeWatcher(Hosts(host("atatat"), jobs, {}), policy="spread")
    watch.run()
    for turns in watch.told().values():
        assert {turn.start for turn in turns} == {turns[0].start}


@given(days(early=True, later=True), policies)
def test_the_first_never_starts_later_than_told_however_early_others_end(
    day: Hosts, policy: str
) -> None:
    watch = ChangeWatcher(day, policy=policy)
    watch.run()
    for turns in watch.told().values():
        starts = [start(turn) for turn in turns if turn.place == 1]
        assert starts == sorted(starts, reverse=True)


@given(days(early=True, letters="a", groups=False, counts=[1]), policies)
def test_nobody_starts_later_than_told_where_all_want_one_gpu_of_one_model(
    day: Hosts, policy: str
) -> None:
    watch = ChangeWatcher(day, policy=policy)
    watch.run()
    for turns in watch.told().values():
        starts = [start(turn) for turn in turns]
        assert starts == sorted(starts, reverse=True)


@given(days(early=True), policies)
def test_nobody_waits_longer_than_if_all_before_ran_one_by_one(day: Hosts, policy: str) -> None:
    """However the others end, that is as bad as it gets: a large request isn't passed for ever."""
    before: list[Run] = []
    for run in sorted(ChangeWatcher(day, policy=policy).run(), key=by_time):
        joined = run.job.waiting.since
        left = [asked(other) - max(joined - other.start, 0) for other in before]
        assert run.wait <= sum(max(each, 0) for each in left) + 1e-3
        before.append(run)


@given(days(gaps=[1, 1, 2, 5]), policies)
def test_who_is_first_starts_when_it_would_if_nobody_came_after(day: Hosts, policy: str) -> None:
    among = sorted(ChangeWatcher(day, policy=policy).run(), key=by_time)
    number = next((n for n, run in enumerate(among) if run.wait > 0), 0)
    jobs = [run.job for run in among[: number + 1]]
    alone = sorted(ChangeWatcher(replace(day, jobs=jobs), policy=policy).run(), key=by_time)
    assert among[number].start == alone[number].start


@given(days(letters="aatt", later=True, gaps=[1, 1, 2, 5]), policies)
def test_who_is_not_to_start_yet_keeps_nobody_waiting_who_came_before(
    day: Hosts, policy: str
) -> None:
    """Those who start at once get what they would if who came after them weren't there."""
    *before, last = day.jobs
    waiting = replace(last.waiting, not_before=last.waiting.since + 3600)
    among = ChangeWatcher(
        replace(day, jobs=[*before, replace(last, waiting=waiting)]), policy=policy
    ).run()
    alone = ChangeWatcher(replace(day, jobs=before), policy=policy).run()
    starts = {run.job.waiting.holder: run.start for run in among}
    assert all(starts[run.job.waiting.holder] <= run.start for run in alone)


@given(days(early=True, endless=True, counts=[1, 2]), policies)
def test_who_asks_for_the_same_is_served_in_the_order_of_coming(day: Hosts, policy: str) -> None:
    served = sorted(ChangeWatcher(day, policy=policy).run(), key=by_time)
    for run, later in combinations(served, 2):
        first, second = run.job.waiting, later.job.waiting
        if (first.request, first.groups) == (second.request, second.groups):
            assert run.start <= later.start


@dataclass
class Moment:
    """A host in any state with what waits for it, at NOW."""

    gpus: list[GPU]
    leases: list[Lease]
    queue: list[QueuedRequest]
    limits: dict[str, int]
    shares: UserShares = field(default_factory=dict)

    def plan(self, order: str = "fifo", policy: str = "pack") -> tuple[Turn, ...]:
        """Return the turns."""
        return Planner().plan(
            self.queue,
            self.gpus,
            self.leases,
            NOW,
            order=order,
            policy=policy,
            group_limits=self.limits,
            shares=self.shares,
        )


members = st.frozensets(st.sampled_from("gh"), max_size=2)
had_lately = st.builds(
    UserShare, st.integers(0, 12), st.integers(0, 100), st.sampled_from([0.5, 1.0, 4.0])
)
spans = st.sampled_from([None, 0.0, 1.0, 2.0, 3.0, 3.5, 7.0])


@st.composite
def moments(draw: st.DrawFn) -> Moment:
    gpus = host(draw(st.text(alphabet="aaaattFMSEU? ", max_size=8)))
    pool = draw(st.permutations([gpu.uuid for gpu in gpus if gpu.uuid]))
    leases = []
    for number in range(draw(st.integers(0, 4))):
        size = draw(st.integers(0, 3))
        held, pool = frozenset(pool[:size]), pool[size:]
        end = draw(st.sampled_from([None, NOW - 5, NOW, NOW + 1, NOW + 2, NOW + 3, NOW + 7]))
        leases.append(
            Lease(Holder(draw(st.sampled_from("abx")), f"l{number}"), held, end, draw(members))
        )
    queue = [
        QueuedRequest(
            Holder(draw(st.sampled_from("abc")), str(number)),
            replace(draw(requests), seconds=draw(spans)),
            NOW - FAIR_SECONDS * draw(st.integers(0, 4)),
            draw(members),
            draw(st.sampled_from([0.0, 0.0, NOW, NOW + 1, NOW + 3])),
        )
        for number in range(draw(st.integers(0, 8)))
    ]
    limits = draw(st.dictionaries(st.sampled_from("gh"), st.integers(0, 4)))
    shares = draw(st.dictionaries(st.sampled_from("abc"), had_lately, max_size=3))
    return Moment(
        gpus, leases, queue, limits, {("", user): share for user, share in shares.items()}
    )


@given(moments(), orders, policies)
def test_only_free_gpus_are_handed_out_each_to_one_and_no_group_has_more_than_it_may(
    moment: Moment, order: str, policy: str
) -> None:
    turns = moment.plan(order, policy)
    assert Counter(turn.waiting for turn in turns) == Counter(moment.queue)
    leased = {uuid for lease in moment.leases for uuid in lease.gpus}
    given_out = [gpu for turn in turns for gpu in turn.gpus]
    assert len({gpu.uuid for gpu in given_out}) == len(given_out)
    assert all(gpu in moment.gpus and gpu.state == "free" and gpu.uuid for gpu in given_out)
    assert not leased & {gpu.uuid for gpu in given_out}
    held = Counter[str]()
    for lease in moment.leases:
        held.update(dict.fromkeys(lease.groups, len(lease.gpus)))
    for turn in turns:
        request = turn.waiting.request
        assert (turn.start == NOW) == (turn.because == "")
        assert len(turn.gpus) == (request.gpus if turn.start == NOW else 0)
        assert all(map(request.takes, turn.gpus))
        held.update(dict.fromkeys(turn.waiting.groups, len(turn.gpus)))
        for name in turn.waiting.groups & moment.limits.keys():
            assert not turn.gpus or held[name] <= moment.limits[name]


@given(moments(), orders, policies)
def test_the_first_gets_at_once_what_is_free(moment: Moment, order: str, policy: str) -> None:
    turns = moment.plan(order, policy)
    if turns:
        first = turns[0].waiting
        free = [gpu for gpu in apply_leases(moment.gpus, moment.leases) if gpu.state == "free"]
        held = {
            name: sum(len(lease.gpus) for lease in moment.leases if name in lease.groups)
            for name in first.groups & moment.limits.keys()
        }
        allowed = first.request.gpus == 0 or all(
            number + first.request.gpus <= moment.limits[name] for name, number in held.items()
        )
        possible = choose(first.request, free) is not None and first.not_before <= NOW
        assert (turns[0].start == NOW) == (possible and allowed)


@given(moments(), orders, policies)
def test_nobody_takes_a_gpu_that_the_first_waits_for_without_knowing_when(
    moment: Moment, order: str, policy: str
) -> None:
    turns = moment.plan(order, policy)
    if turns and turns[0].start is None and turns[0].because == "gpus":
        wanted = turns[0].waiting.request
        assert not [gpu for turn in turns for gpu in turn.gpus if wanted.takes(gpu)]


@given(moments(), orders, st.data())
def test_who_leaves_changes_nothing_for_those_before(
    moment: Moment, order: str, data: st.DataObject
) -> None:
    turns = moment.plan(order)
    if turns:
        left = data.draw(st.integers(0, len(turns) - 1))
        queue = [turn.waiting for turn in turns if turn.place != left + 1]
        after = replace(moment, queue=queue).plan(order)
        assert [(turn.waiting, turn.start) for turn in after[:left]] == [
            (turn.waiting, turn.start) for turn in turns[:left]
        ]


@given(moments(), orders, policies, st.randoms(use_true_random=False))
def test_the_order_in_which_things_are_listed_does_not_matter(
    moment: Moment, order: str, policy: str, chance: random.Random
) -> None:
    turns = moment.plan(order, policy)
    for listed in (moment.gpus, moment.leases, moment.queue):
        chance.shuffle(listed)  # type: ignore[arg-type]
    assert moment.plan(order, policy) == turns


@given(moments())
def test_the_fair_order_is_what_it_says(moment: Moment) -> None:
    """As it is told in one sentence, with no thought of speed."""
    held = Counter[str]()
    for lease in moment.leases:
        held[lease.holder.user] += len(lease.gpus)
    left = list(moment.queue)
    for waiting in by_share(moment.queue, moment.leases):
        keys = {each: each.since + held[each.holder.user] * FAIR_SECONDS for each in left}
        assert keys[waiting] == min(keys.values())
        held[waiting.holder.user] += waiting.request.gpus
        left.remove(waiting)
    assert left == []


@given(moments())
def test_the_fair_order_passes_one_only_by_so_much(moment: Moment) -> None:
    """Who came later by 30 minutes for each GPU that one's user has or gets before stays behind."""
    turns = moment.plan("fair")
    for turn in turns:
        user = turn.waiting.holder.user
        own = [lease.gpus for lease in moment.leases if lease.holder.user == user]
        before = [each.waiting for each in turns[: turn.place]]
        gpus = sum(map(len, own)) + sum(
            each.request.gpus for each in before if each.holder.user == user
        )
        assert all(each.since <= turn.waiting.since + gpus * FAIR_SECONDS for each in before)


@given(moments())
def test_the_order_by_use_is_what_it_says(moment: Moment) -> None:
    """Of those who wait the one goes first who came first, later by what was used or promised."""
    promised = Counter[str]()
    left = list(moment.queue)
    for waiting in by_use(moment.queue, moment.leases, moment.shares):

        def key(each: QueuedRequest) -> float:
            share = moment.shares.get(each.holder.person, UserShare())
            hours = (share.decayed + promised[each.holder.user]) / share.weight
            return each.since + hours * USED_SECONDS

        assert key(waiting) <= min(map(key, left)) + 1e-3
        seconds = waiting.request.seconds
        hours = 24.0 if seconds is None else max(seconds, 1.0) / HOUR
        promised[waiting.holder.user] += waiting.request.gpus * hours  # type: ignore[assignment]
        left.remove(waiting)
    assert left == []


@given(moments())
def test_of_two_equal_requests_that_with_less_use_goes_first(moment: Moment) -> None:
    """Where users wait with one request each, that came together."""
    first = {each.holder.user: each for each in moment.queue}
    moment.queue = [replace(each, since=NOW) for each in first.values()]
    used = [
        (share.decayed / share.weight, turn.place)
        for turn in moment.plan("share")
        for share in [moment.shares.get(turn.waiting.holder.person, UserShare())]
    ]
    assert used == sorted(used)
    assert all(turn.used is not None for turn in moment.plan("share"))


@given(moments())
def test_the_order_by_use_passes_one_only_by_so_much(moment: Moment) -> None:
    """Who comes later than what one has used and is promised makes up for stays behind."""
    moment.queue = [replace(each, holder=Holder(f"{n}")) for n, each in enumerate(moment.queue)]
    moment.shares = {("", str(n)): share for n, share in enumerate(moment.shares.values())}
    turns = moment.plan("share")
    for turn in turns:
        share = moment.shares.get(turn.waiting.holder.person, UserShare())
        latest = turn.waiting.since + share.decayed / share.weight * USED_SECONDS
        assert all(each.waiting.since <= latest for each in turns[: turn.place])


# What `make bench` measures with.


def test_every_order_of_the_bench_serves_the_whole_week_on_the_gpus_there_are() -> None:
    jobs, gpus = bench.week(60)
    for name, (runs, tries) in bench.compare(jobs, gpus, seed=1).items():
        assert Counter(run.job for run in runs) == Counter(jobs), name
        assert all(run.wait >= 0 and run.end - run.start > 0 for run in runs), name
        for run in runs:
            held = [x.gpus for x in runs if x.start <= run.start < x.end]
            assert max(Counter(gpu for each in held for gpu in each).values()) == 1, name
        assert (tries > 1) == (name == "no queue: try again")
    assert any(run.wait for run in runs), "a week in which nobody waits says nothing"


def test_a_queue_that_can_never_move_ends_the_bench() -> None:
    jobs = [Job(waits("a", 9, 1), HOUR)]
    with pytest.raises(RuntimeError, match="1 wait for ever"):
        simulate(jobs, host("aa"), bench.ours("fifo"))


@pytest.mark.thorough
def test_the_bench_prints_the_orders_side_by_side() -> None:
    command = [sys.executable, "-m", "bench", "queue", "--requests", "60"]
    root = ROOT
    printed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    title, heads, *lines = printed.strip().splitlines()
    assert "60 requests on 8 GPUs" in title
    assert heads.split("  ")[-1].strip() == "tries"
    assert [line[:22].strip() for line in lines] == [
        'ours, "fifo"',
        'ours, "fair"',
        'ours, "share"',
        "strict: nobody passes",
        "no queue: try again",
    ]
    assert {len(line) for line in [heads, *lines]} == {len(heads)}


# The front of a course ----------------------------------------------------------------------------


@st.composite
def queues_with_courses(draw: st.DrawFn) -> list[QueuedRequest]:
    """Requests of three courses and of none, some of which were moved to their course's front."""
    found = []
    for number in range(draw(st.integers(0, 12))):
        one = waits(f"u{draw(st.integers(0, 5))}", 1, 1, since=draw(st.integers(0, 3)))
        course = draw(st.sampled_from(["", "a", "b", "c"]))
        found.append(
            replace(
                one,
                holder=Holder(one.holder.user, str(number)),
                request=replace(one.request, course=course),
                moved=draw(st.integers(0, 3)),
            )
        )
    return found


@given(queues_with_courses(), st.sampled_from(sorted(ORDERS)))
def test_a_course_s_front_is_among_the_course_s_own_places(
    queue: list[QueuedRequest], order: str
) -> None:
    before = ORDERS[order](queue, ())
    after = within_courses(before)
    assert [each.request.course for each in after] == [each.request.course for each in before]
    for one, other in zip(before, after, strict=True):
        assert one == other or one.request.course
    for course in "abc":
        mine = [each for each in after if each.request.course == course]
        assert [each.moved for each in mine] == sorted((e.moved for e in mine), reverse=True)
        # Who wasn't moved keeps the order of the others.
        still = [each for each in mine if not each.moved]
        assert still == [e for e in before if e.request.course == course and not e.moved]


@given(queues_with_courses(), st.sampled_from(["", "a", "b"]))
def test_a_forecast_with_a_course_s_front_is_the_plan_s(
    queue: list[QueuedRequest], course: str
) -> None:
    gpus, leases = host("aa"), [holds("x", "01", 1)]
    joining = waits("new", 1, 1, since=10)
    joining = replace(joining, request=replace(joining.request, course=course))
    known = QueueSnapshot(queue, gpus, leases, NOW, {}).forecast_turn(joining, {})
    planned = Planner().plan([*queue, joining], gpus, leases, NOW)
    (expected,) = [turn for turn in planned if turn.waiting == joining]
    assert known is None or (known.start, known.place) == (expected.start, expected.place)
