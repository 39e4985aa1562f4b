"""Several nodes: whatever is promised or handed out, one node alone has it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.queue import Job, Run, simulate
from gpuspawner.gpus.allocation import (
    POLICIES,
    apply_leases,
    availability,
    choose,
    explain_shortage,
    with_leases,
)
from gpuspawner.gpus.model import GPU, Holder, Lease, Node, Request
from gpuspawner.leases.ledger import View
from gpuspawner.scheduling.calendar import Calendar
from gpuspawner.scheduling.phrases import turn_words
from gpuspawner.scheduling.plan import ORDERS, Planner, QueuedRequest, QueueSnapshot, Turn

A100, T4 = "NVIDIA A100-SXM4-40GB", "Tesla T4"
HOUR = 3600.0
NOW = 1_800_000_000.0
STATES = {"L": "leased", "F": "foreign", "S": "unhealthy", "E": "excluded", "M": "mig"}


def cluster(*letters: str, names: str = "pqr") -> list[GPU]:
    """The GPUs of nodes p, q and r, one letter each: "a" and "t" are free, " " is a gap."""
    return [
        GPU(f"GPU-{name}{index}", index, T4 if letter == "t" else A100, node=name, state=state)
        for name, drawn in zip(names, letters, strict=False)
        for index, letter in enumerate(drawn)
        if letter != " "
        if (state := STATES.get(letter, "free"))  # type: ignore[assignment]
    ]


def names(gpus: Any) -> str | None:
    """The node's name and the indexes of GPUs: "p 0 1"."""
    if gpus is None:
        return None
    (node,) = {gpu.node for gpu in gpus}
    return " ".join([node, *(str(gpu.index) for gpu in gpus)])


# Which GPUs a request gets.


@pytest.mark.parametrize(
    ("nodes", "count", "model", "packed", "spread"),
    [
        # Two halves are no whole.
        (("aa", "aa"), 3, None, None, None),
        (("aaLL", "LLaa"), 3, None, None, None),
        (("aa", "aaa"), 3, None, "q 0 1 2", "q 0 1 2"),
        # Packing leaves the emptier node whole, spreading takes it.
        (("aaaa", "aaLL"), 1, None, "q 0", "p 0"),
        (("aaaa", "aaLL"), 2, None, "q 0 1", "p 0 3"),
        (("aaaa", "aaLL"), 3, None, "p 0 1 2", "p 0 1 3"),
        # What is left of the model that was asked for counts.
        (("ttta", "aaLL"), 1, A100, "p 3", "q 0"),
        (("ttta", "aaLL"), 1, T4, "p 0", "p 0"),
        # Of equal nodes the first by name.
        (("aa", "aa", "aa"), 1, None, "p 0", "p 0"),
        # One model where one node has enough of it, however full the others are.
        (("at", "aaaa"), 2, None, "q 0 1", "q 0 3"),
        (("at", "aLLL"), 2, None, "p 0 1", "p 0 1"),
        # A node on which nothing runs, and one without a GPU.
        (("", "aa"), 1, None, "q 0", "q 0"),
        # Neighbours of another node are none: q's own leased GPU is what to keep away from.
        (("LLLL", "aaaL"), 1, None, "q 0", "q 0"),
    ],
)
def test_choose_takes_all_from_one_node(
    nodes: tuple[str, ...], count: int, model: str | None, packed: str | None, spread: str | None
) -> None:
    request = Request("torch", count, model)
    assert names(choose(request, cluster(*nodes), "pack")) == packed
    assert names(choose(request, cluster(*nodes), "spread")) == spread


@pytest.mark.parametrize(
    ("nodes", "count", "sentence"),
    [
        (("aaaa", "aa"), 6, "You asked for 6 GPUs, and no machine here has more than 4."),
        (
            ("aaaL", "aaLL"),
            4,
            "You asked for 4 GPUs, and at most 3 are free on one machine now.",
        ),
        (("aL", "LL"), 2, "You asked for 2 GPUs, and at most 1 is free on one machine now."),
        (
            ("LL", "LF"),
            1,
            "You asked for 1 GPU, and 0 of 4 are free now (1 in use outside the hub, 3 in use).",
        ),
        # Of one node people never hear.
        (("aaaL",), 4, "You asked for 4 GPUs, and 3 of 4 are free now (1 in use)."),
        (("aaaa",), 6, "You asked for 6 GPUs, and this machine has 4."),
    ],
)
def test_why_there_is_nothing_counts_what_one_node_has(
    nodes: tuple[str, ...], count: int, sentence: str
) -> None:
    assert explain_shortage(Request("torch", count), cluster(*nodes)) == sentence


def test_how_many_are_free_is_told_of_the_best_node() -> None:
    assert availability(cluster("aaL", "aaa")) == "at most 3 are free on one machine now"


def test_an_image_that_runs_on_one_node_only_is_placed_there() -> None:
    only = Request("torch", 1, places=frozenset({("q", A100)}))
    assert names(choose(only, cluster("aaaa", "taaa"))) == "q 1"
    assert choose(only, cluster("aaaa", "tLLL")) is None


# One UUID.


def test_a_uuid_that_two_nodes_claim_is_nobodys() -> None:
    nodes = tuple(
        Node(
            name, "570.1", "12.8", (GPU("GPU-0", 0, A100, node=name), GPU(name, 1, A100, node=name))
        )
        for name in "pq"
    )
    found = with_leases(nodes, [Lease(Holder("ann"), frozenset({"GPU-0", "q"}))])
    assert [(gpu.uuid, gpu.state) for node in found for gpu in node.gpus] == [
        (None, "unknown"),
        ("p", "free"),
        (None, "unknown"),
        ("q", "leased"),
    ]
    assert found[0].gpus[0].reason == "Another GPU has the same UUID."
    assert names(choose(Request("torch", 1), View(found).gpus)) == "p 1"


def test_a_view_has_the_gpus_of_all_nodes_and_one_more_lease_is_seen_in_it() -> None:
    gpus = cluster("aa", "a")
    nodes = tuple(Node(name, gpus=tuple(g for g in gpus if g.node == name)) for name in "pq")
    view = View(nodes)
    assert list(view.gpus) == gpus
    lease = Lease(Holder("ann"), frozenset({"GPU-q0"}), 5.0)
    after = view.with_leases([lease])
    assert [(gpu.state, gpu.until) for gpu in after.gpus] == [
        ("free", None),
        ("free", None),
        ("leased", 5.0),
    ]
    assert after.leases == (lease,)
    assert [gpu.state for gpu in view.gpus] == ["free"] * 3


# What holds for all nodes.

policies = st.sampled_from(sorted(POLICIES))
orders = st.sampled_from(sorted(ORDERS))
letters = st.lists(st.text(alphabet="aattLFSEM ", max_size=5), min_size=2, max_size=3)
clusters = letters.map(lambda drawn: cluster(*drawn))
places = st.frozensets(st.tuples(st.sampled_from("pqr"), st.sampled_from([A100, T4])))
requests = st.builds(
    Request,
    st.just("torch"),
    st.integers(0, 6),
    st.sampled_from([None, None, A100, T4]),
    st.sampled_from([None, None, None, frozenset({A100})]),
    places=st.none() | st.none() | places,
)


def of_nodes(gpus: Sequence[GPU]) -> list[list[GPU]]:
    return [[gpu for gpu in gpus if gpu.node == name] for name in "pqr"]


@given(requests, clusters, policies)
def test_something_is_chosen_where_one_node_alone_would_do_and_as_it_would_there(
    request: Request, gpus: list[GPU], policy: str
) -> None:
    alone = [choose(request, node, policy) for node in of_nodes(gpus)]
    chosen = choose(request, gpus, policy)
    if request.gpus == 0:
        assert chosen == ()
    elif chosen is None:
        assert set(alone) == {None}
    else:
        assert chosen in alone
        if len({gpu.model for gpu in chosen}) > 1:
            assert all(len({gpu.model for gpu in each}) > 1 for each in alone if each)


@given(requests, clusters, policies, st.randoms(use_true_random=False))
def test_the_order_in_which_nodes_are_listed_does_not_matter(
    request: Request, gpus: list[GPU], policy: str, chance: random.Random
) -> None:
    shuffled = list(gpus)
    chance.shuffle(shuffled)
    assert choose(request, shuffled, policy) == choose(request, gpus, policy)


# The queue: days on clusters, on which everybody can be served by one node.


@dataclass
class Day:
    """Nodes, and what is asked of them in the course of a day."""

    gpus: list[GPU]
    jobs: list[Job]
    limits: dict[str, int]


def most(request: Request, gpus: Sequence[GPU]) -> int:
    """How many GPUs the node has that has most of them: told without the code under test."""
    return max(
        sum(
            gpu.state in ("free", "leased")
            and request.model in (None, gpu.model)
            and (request.places is None or (gpu.node, gpu.model) in request.places)
            for gpu in node
        )
        for node in of_nodes(gpus)
    )


@st.composite
def days(
    draw: st.DrawFn,
    *,
    groups: bool = True,
    counts: Sequence[int] = (1, 1, 2, 3, 4),
    gaps: Sequence[int] = (0, 0, 0, 1, 1, 2, 5),
    early: bool = False,
    endless: bool = False,
) -> Day:
    """Days.

    Args:
        groups: whether there are limits for groups.
        counts: how many GPUs may be asked for.
        gaps: how much may lie between one who comes and the next.
        early: whether some end before their time is over.
        endless: whether some say no time.
    """
    sizes = st.text(alphabet="aaat", min_size=1, max_size=4)
    gpus = cluster(*draw(st.lists(sizes, min_size=2, max_size=3)))
    limits = draw(st.dictionaries(st.sampled_from("gh"), st.integers(1, 4))) if groups else {}
    unit = draw(st.sampled_from([1.0, 1.1, 3600.0, 4567.89]))
    since = NOW
    jobs = []
    for number in range(draw(st.integers(1, 12))):
        since += unit * draw(st.sampled_from(gaps))
        model = draw(st.sampled_from([None, None, *sorted({gpu.model for gpu in gpus})]))
        pairs = sorted({(gpu.node, gpu.model) for gpu in gpus if model in (None, gpu.model)})
        only = draw(st.none() | st.none() | st.frozensets(st.sampled_from(pairs), min_size=1))
        length = draw(st.integers(1, 8))
        seconds = None if endless and draw(st.booleans()) else unit * length
        request = Request("torch", 1, model, seconds=seconds, places=only)
        members = draw(st.frozensets(st.sampled_from("gh"), max_size=2)) if groups else frozenset()
        allowed = [limits[name] for name in members & limits.keys()]
        count = min([draw(st.sampled_from(counts)), most(request, gpus), *allowed])
        holder = Holder(draw(st.sampled_from("abc")), f"{number:02}")
        waiting = QueuedRequest(holder, replace(request, gpus=count), since, members)
        uses = unit * draw(st.integers(1, length)) if early else unit * length
        jobs.append(Job(waiting, uses))
    return Day(gpus, jobs, limits)


@dataclass
class Hub:
    """Decides as the hub does, and keeps what everybody was told each time."""

    day: Day
    order: str = "fifo"
    policy: str = "pack"
    plans: list[tuple[Turn, ...]] = field(default_factory=list)

    def run(self) -> list[Run]:
        """Run the day; it ends only if everybody is served."""
        return simulate(self.day.jobs, self.day.gpus, self.decide)

    def decide(self, queue: Any, gpus: Any, leases: Any, now: float) -> list[Any]:
        """Ask for the turns; keep them; grant what they say."""
        limits = self.day.limits
        turns = Planner().plan(
            queue, gpus, leases, now, order=self.order, policy=self.policy, group_limits=limits
        )
        self.plans.append(turns)
        return [(turn.waiting, turn.gpus) for turn in turns if turn.start == now]

    def told(self) -> list[list[Turn]]:
        """Return each one's turns, from the first until it started."""
        turns: dict[Holder, list[Turn]] = {}
        for planned in self.plans:
            for turn in planned:
                turns.setdefault(turn.waiting.holder, []).append(turn)
        return list(turns.values())


def start(turn: Turn) -> float:
    return inf if turn.start is None else turn.start


def joined(run: Run) -> tuple[float, Holder]:
    return run.job.waiting.since, run.job.waiting.holder


@given(days(early=True, endless=True), orders, policies)
def test_everybody_is_served_on_one_node_and_nothing_is_had_twice(
    day: Day, order: str, policy: str
) -> None:
    runs = Hub(day, order, policy).run()
    assert Counter(run.job for run in runs) == Counter(day.jobs)
    for run in runs:
        request = run.job.waiting.request
        assert len({gpu.uuid for gpu in run.gpus}) == request.gpus == len(run.gpus)
        assert len({gpu.node for gpu in run.gpus}) == 1
        assert all(map(request.takes, run.gpus))
        together = [other for other in runs if other.start <= run.start < other.end]
        held = Counter(gpu.uuid for other in together for gpu in other.gpus)
        assert set(held.values()) == {1}
        for name, limit in day.limits.items():
            members = [other for other in together if name in other.job.waiting.groups]
            assert sum(len(other.gpus) for other in members) <= limit


@given(days(), policies)
def test_what_is_promised_is_kept_while_all_use_their_time(day: Day, policy: str) -> None:
    hub = Hub(day, policy=policy)
    hub.run()
    for turns in hub.told():
        starts = [start(turn) for turn in turns]
        assert starts == sorted(starts, reverse=True)
        assert starts[-1] < inf


@given(days(early=True), policies)
def test_the_first_never_starts_later_than_told_however_early_others_end(
    day: Day, policy: str
) -> None:
    hub = Hub(day, policy=policy)
    hub.run()
    for turns in hub.told():
        starts = [start(turn) for turn in turns if turn.place == 1]
        assert starts == sorted(starts, reverse=True)


@given(days(early=True), policies)
def test_nobody_waits_longer_than_if_all_before_ran_one_by_one(day: Day, policy: str) -> None:
    before: list[Run] = []
    for run in sorted(Hub(day, policy=policy).run(), key=joined):
        came = run.job.waiting.since
        left = [
            (other.job.waiting.request.seconds or inf) - max(came - other.start, 0)
            for other in before
        ]
        assert run.wait <= sum(max(each, 0) for each in left) + 1e-3
        before.append(run)


@given(days(early=True, endless=True, counts=[1, 2]), policies)
def test_who_asks_for_the_same_is_served_in_the_order_of_coming(day: Day, policy: str) -> None:
    served = sorted(Hub(day, policy=policy).run(), key=joined)
    for run, later in combinations(served, 2):
        first, second = run.job.waiting, later.job.waiting
        if (first.request, first.groups) == (second.request, second.groups):
            assert run.start <= later.start


@dataclass
class Moment:
    """Nodes in any state with what waits for them, at NOW."""

    gpus: list[GPU]
    leases: list[Lease]
    queue: list[QueuedRequest]
    limits: dict[str, int]

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
        )


members = st.frozensets(st.sampled_from("gh"), max_size=2)
ends = st.sampled_from([None, NOW - 5, NOW, NOW + 1, NOW + 2, NOW + 3, NOW + 7])
spans = st.sampled_from([None, 0.0, 1.0, 2.0, 3.0, 3.5, 7.0])


@st.composite
def moments(draw: st.DrawFn, drawn: st.SearchStrategy[list[GPU]] = clusters) -> Moment:
    gpus = draw(drawn)
    pool = draw(st.permutations([str(gpu.uuid) for gpu in gpus]))
    leases = []
    for number in range(draw(st.integers(0, 5))):
        node = {uuid[:5] for uuid in pool[:1]}
        held = [uuid for uuid in pool if uuid[:5] in node][: draw(st.integers(0, 3))]
        pool = [uuid for uuid in pool if uuid not in held]
        holder = Holder(draw(st.sampled_from("abx")), f"l{number}")
        leases.append(Lease(holder, frozenset(held), draw(ends), draw(members)))
    queue = [
        QueuedRequest(
            Holder(draw(st.sampled_from("abc")), str(number)),
            replace(draw(requests), seconds=draw(spans)),
            NOW - 1800 * draw(st.integers(0, 4)),
            draw(members),
        )
        for number in range(draw(st.integers(0, 8)))
    ]
    limits = draw(st.dictionaries(st.sampled_from("gh"), st.integers(0, 4)))
    return Moment(gpus, leases, queue, limits)


@given(moments(), orders, policies)
def test_what_is_handed_out_is_free_and_on_one_node_and_what_is_promised_fits_one(
    moment: Moment, order: str, policy: str
) -> None:
    turns = moment.plan(order, policy)
    assert Counter(turn.waiting for turn in turns) == Counter(moment.queue)
    seen = apply_leases(moment.gpus, moment.leases)
    free = {gpu.uuid for gpu in seen if gpu.state == "free"}
    given_out = [gpu.uuid for turn in turns for gpu in turn.gpus]
    assert len(set(given_out)) == len(given_out)
    assert set(given_out) <= free
    for turn in turns:
        request = turn.waiting.request
        assert len({gpu.node for gpu in turn.gpus}) <= 1
        assert all(map(request.takes, turn.gpus))
        assert len(turn.gpus) == (request.gpus if turn.start == NOW else 0)
        fitting = [gpu for gpu in seen if request.takes(gpu)]
        if most(request, fitting) < request.gpus:
            assert turn.start is None
            assert turn.because == "never" or turn.because.startswith("group:")
        else:
            assert turn.because != "never" or any(
                moment.limits.get(name, inf) < request.gpus for name in turn.waiting.groups
            )


@given(moments(), orders, policies)
def test_the_first_gets_at_once_what_one_node_has_free(
    moment: Moment, order: str, policy: str
) -> None:
    for turn in moment.plan(order, policy)[:1]:
        request, groups = turn.waiting.request, turn.waiting.groups & moment.limits.keys()
        seen = apply_leases(moment.gpus, moment.leases)
        possible = most(request, [g for g in seen if g.state == "free" and request.takes(g)])
        held = {
            name: sum(len(each.gpus) for each in moment.leases if name in each.groups)
            for name in groups
        }
        allowed = all(held[name] + request.gpus <= moment.limits[name] for name in groups)
        at_once = request.gpus == 0 or (possible >= request.gpus and allowed)
        assert (turn.start == NOW) == at_once


@given(moments(), policies)
def test_who_is_alone_starts_when_the_best_node_alone_would_say(
    moment: Moment, policy: str
) -> None:
    for waiting in moment.queue:
        alone = replace(moment, queue=[waiting])
        (turn,) = alone.plan(policy=policy)
        each = [replace(alone, gpus=node).plan(policy=policy)[0] for node in of_nodes(moment.gpus)]
        assert start(turn) == min(map(start, each))


@given(moments(), orders, policies)
def test_who_waits_for_nobody_knows_how_long_has_one_node_kept_for_it(
    moment: Moment, order: str, policy: str
) -> None:
    turns = moment.plan(order, policy)
    if turns and turns[0].start is None and turns[0].because == "gpus":
        wanted = turns[0].waiting.request
        lost = {gpu.node for turn in turns for gpu in turn.gpus if wanted.takes(gpu)}
        seen = apply_leases(moment.gpus, moment.leases)
        assert any(
            most(wanted, [gpu for gpu in node if wanted.takes(gpu)]) >= wanted.gpus
            for node in of_nodes(seen)
            if node and node[0].node not in lost
        )


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
def test_the_order_in_which_things_are_listed_changes_no_turn(
    moment: Moment, order: str, policy: str, chance: random.Random
) -> None:
    turns = moment.plan(order, policy)
    for listed in (moment.gpus, moment.leases, moment.queue):
        chance.shuffle(listed)  # type: ignore[arg-type]
    assert moment.plan(order, policy) == turns


@given(moments(), st.integers(0, 8), spans, members)
def test_one_more_is_told_what_the_whole_plan_would_say(
    moment: Moment, count: int, seconds: float | None, groups: frozenset[str]
) -> None:
    standing = QueueSnapshot(moment.queue, moment.gpus, moment.leases, NOW, moment.limits)
    waiting = QueuedRequest(Holder("z"), Request("torch", count, seconds=seconds), NOW + 1, groups)
    turn = standing.forecast_turn(waiting, moment.limits)
    if turn is not None:
        assert standing.forecast_turn(waiting, moment.limits) == turn  # to ask books nothing
        planned = replace(moment, queue=[*moment.queue, waiting]).plan()[-1]
        assert replace(turn, gpus=()) == replace(planned, gpus=())
        assert len(turn.gpus) == len(planned.gpus)


ONE = st.text(alphabet="aaaattFSEM ", max_size=7)


@given(moments(ONE.map(cluster)), orders, policies, ONE)
def test_a_node_that_can_serve_nobody_changes_nothing_for_the_other(
    moment: Moment, order: str, policy: str, others: str
) -> None:
    idle = [replace(gpu, state="excluded") for gpu in cluster("", others)]
    # Of a rarer model more are given to who may have any; so that isn't to change.
    idle = [replace(gpu, model="another") for gpu in idle]
    turns = moment.plan(order, policy)
    more = replace(moment, gpus=[*idle, *moment.gpus]).plan(order, policy)
    assert [replace(turn, several=False, machines=0) for turn in more] == list(turns)


@given(moments(ONE.map(cluster)), orders, policies)
def test_with_one_node_its_name_changes_nothing(moment: Moment, order: str, policy: str) -> None:
    nameless = [replace(gpu, node="") for gpu in moment.gpus]
    anywhere = [replace(each, request=replace(each.request, places=None)) for each in moment.queue]
    turns = replace(moment, queue=anywhere).plan(order, policy)
    again = replace(moment, queue=anywhere, gpus=nameless).plan(order, policy)
    assert [
        replace(turn, gpus=tuple(replace(gpu, node="") for gpu in turn.gpus)) for turn in turns
    ] == list(again)
    assert not any(turn.several for turn in turns)


# Where one more could start, as somebody would find out who looks at every GPU at every time.


@dataclass
class Booked:
    """From when until when each GPU is taken, and how many of each group's share are."""

    gpus: list[GPU]
    limits: dict[str, int]
    busy: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    shares: dict[str, list[tuple[float, float, int]]] = field(default_factory=dict)

    def take(self, uuids: Iterable[str], groups: Iterable[str], begin: float, end: float) -> None:
        """Book, or take in a lease."""
        taken = list(uuids)
        for uuid in taken:
            self.busy.setdefault(uuid, []).append((begin, end))
        for name in groups:
            self.shares.setdefault(name, []).append((begin, end, len(taken)))

    def ready(self, request: Request, start: float) -> list[list[GPU]]:
        """Return the GPUs of each node that a request could have at a time."""
        end = start + (request.seconds or inf)
        return [
            [
                gpu
                for gpu in node
                if gpu.state == "free" and request.takes(gpu)
                if not any(a < end and start < b for a, b in self.busy.get(str(gpu.uuid), ()))
            ]
            for node in of_nodes(self.gpus)
        ]

    def allows(self, request: Request, groups: Iterable[str], start: float) -> bool:
        """Return whether a request is within its groups' limits for as long as it takes."""
        end = start + (request.seconds or inf)
        return all(
            sum(count for a, b, count in self.shares.get(name, ()) if a <= time < b) + request.gpus
            <= self.limits[name]
            for name in groups
            for time in {start, *(a for a, _, _ in self.shares.get(name, ()) if start < a < end)}
        )

    def earliest(self, request: Request, groups: frozenset[str]) -> float:
        """Return when a request can start; infinite where it never can."""
        ends = [b for each in self.busy.values() for _, b in each]
        ends += [b for each in self.shares.values() for _, b, _ in each]
        for time in sorted({NOW, *ends}):
            enough = any(len(node) >= request.gpus for node in self.ready(request, time))
            if enough and self.allows(request, groups & self.limits.keys(), time):
                return time
        return inf


@given(
    st.lists(st.text(alphabet="aatE", max_size=4), min_size=2, max_size=3),
    st.lists(st.sampled_from([NOW + 1, NOW + 2, NOW + 5, None]), max_size=8),
    st.lists(
        st.tuples(
            st.builds(
                Request,
                st.just("torch"),
                st.sampled_from([1, 1, 2, 3]),
                st.sampled_from([None, None, None, None, T4]),
                seconds=st.sampled_from([1.0, 2.0, 4.0, 9.0]),
                places=st.sampled_from([None, None, None, frozenset({("q", A100)})]),
            ),
            st.sampled_from([frozenset(), frozenset(), frozenset("g"), frozenset("gh")]),
        ),
        max_size=12,
    ),
    st.dictionaries(st.sampled_from("gh"), st.integers(1, 5)),
)
def test_each_is_booked_for_the_first_time_at_which_one_node_has_enough(
    letters: list[str],
    until: list[float | None],
    asked: list[tuple[Request, frozenset[str]]],
    limits: dict[str, int],
) -> None:
    gpus = cluster(*letters)
    leases = [
        Lease(Holder("x"), frozenset({str(gpu.uuid)}), end)
        for gpu, end in zip(gpus, until, strict=False)
        if gpu.state == "free"
    ]
    calendar = Calendar(apply_leases(gpus, leases), leases, NOW, limits)
    booked = Booked(gpus, limits)
    for lease in leases:
        booked.take(lease.gpus, (), NOW, inf if lease.until is None else lease.until)
    for request, groups in asked:
        start = booked.earliest(request, groups)
        found = calendar.find_earliest(request, groups)
        assert found.start == start
        if start == inf:
            continue
        assert calendar.book(request, groups) == found
        there = booked.ready(request, start)
        assert any({gpu.uuid for gpu in found.gpus} <= {gpu.uuid for gpu in node} for node in there)
        assert len(found.gpus) == request.gpus
        if any(max(Counter(g.model for g in n).values(), default=0) >= request.gpus for n in there):
            assert len({gpu.model for gpu in found.gpus}) == 1
        uuids = [str(gpu.uuid) for gpu in found.gpus]
        booked.take(uuids, groups, start, start + (request.seconds or inf))


# Queues that show each rule.


def waits(user: str, gpus: int, hours: float | None = None, **more: Any) -> QueuedRequest:
    seconds = None if hours is None else hours * HOUR
    return QueuedRequest(Holder(user), Request("torch", gpus, seconds=seconds, **more), NOW - HOUR)


def holds(user: str, gpus: str, hours: float | None = None) -> Lease:
    until = None if hours is None else NOW + hours * HOUR
    return Lease(Holder(user), frozenset(f"GPU-{gpu}" for gpu in gpus.split()), until)


def told(turns: Sequence[Turn]) -> list[str]:
    """Each turn in a few words: "ann now p 0 1", "bob in 2 h: gpus", "cy: never"."""
    words = []
    for turn in turns:
        user = turn.waiting.holder.user
        if turn.start == NOW:
            words.append(f"{user} now {names(turn.gpus)}")
        else:
            when = "" if turn.start is None else f" in {(turn.start - NOW) / HOUR:g} h"
            words.append(f"{user}{when}: {turn.because}")
    return words


@pytest.mark.parametrize(
    ("nodes", "leases", "queue", "expected"),
    [
        pytest.param(
            ("aa", "aa"),
            [],
            [waits("a", 3, 1), waits("b", 2, 1)],
            ["a: never", "b now p 0 1"],
            id="more than any node has is never served, and keeps nothing",
        ),
        pytest.param(
            ("aa", "aa"),
            [holds("x", "p0", 3), holds("y", "q0", 2)],
            [waits("a", 2, 1), waits("b", 1, 1), waits("c", 1, 9)],
            ["a in 2 h: gpus", "b now p 1", "c in 1 h: order"],
            id="one free on each node are not two; the node that is free first is kept",
        ),
        pytest.param(
            ("aaa", "aaa"),
            [holds("x", "p0 p1"), holds("y", "q0")],
            [waits("a", 3, 1), waits("b", 1, 1), waits("c", 1, 1), waits("d", 3, 1)],
            ["a: gpus", "b now p 2", "c in 1 h: order", "d: gpus"],
            id="where no end is known they gather on the node with most, and the rest goes on",
        ),
        pytest.param(
            ("aa", "aa"),
            [holds("x", "p0 p1", 1), holds("y", "q0 q1", 2)],
            [waits("a", 2, 4), waits("b", 2, 4), waits("c", 2, 4)],
            ["a in 1 h: gpus", "b in 2 h: gpus", "c in 5 h: gpus"],
            id="each on the node that is free first",
        ),
        pytest.param(
            ("aa", "aa"),
            [holds("x", "p0", 5), holds("y", "q0 q1")],
            [waits("a", 2, 1), waits("b", 1, 9), waits("c", 1, 3)],
            ["a in 5 h: gpus", "b in 6 h: order", "c now p 1"],
            id="who wants less time fits before those who want more",
        ),
        pytest.param(
            ("aa", "aa"),
            [holds("x", "q0 q1", 2)],
            [waits("a", 1, 1, places=frozenset({("q", A100)})), waits("b", 2, 9)],
            ["a in 2 h: gpus", "b now p 0 1"],
            id="who can run on one node only waits for that one",
        ),
        pytest.param(
            ("at", "aa"),
            [holds("x", "p0", 1), holds("y", "q0", 1)],
            [waits("a", 2, 1), waits("b", 1, 2, model=T4)],
            ["a in 1 h: gpus", "b now p 1"],
            id="booked ahead on the node that needn't mix models",
        ),
    ],
)
def test_the_queue(
    nodes: tuple[str, ...], leases: list[Lease], queue: list[QueuedRequest], expected: list[str]
) -> None:
    turns = Planner().plan(queue, cluster(*nodes), leases, NOW)
    assert told(turns) == expected
    assert all(turn.several for turn in turns)


@pytest.mark.parametrize(
    ("nodes", "gpus", "words"),
    [
        (("aaa", "a", "aa"), 2, "2 machines have what you asked for."),
        (("aaa", "a", "aa"), 3, "1 machine has what you asked for."),
        (("aaE", "a", "aa"), 3, ""),
        (("aaa",), 3, ""),
    ],
)
def test_who_waits_reads_how_many_machines_have_as_much(
    nodes: tuple[str, ...], gpus: int, words: str
) -> None:
    host = cluster(*nodes)
    leases = [replace(holds("x", "p0", 5), gpus=frozenset(str(gpu.id) for gpu in host))]
    (turn,) = Planner().plan([waits("ann", gpus)], host, leases, NOW)
    assert turn.start is not None or not words
    assert (words in turn_words(turn)) if words else ("asked for" not in turn_words(turn))


def test_who_waits_for_its_group_starts_then_on_whatever_node_is_free() -> None:
    leases = [holds("x", "p0", 5), replace(holds("g", "q1", 1), groups=frozenset("g"))]
    member = replace(waits("a", 1, 1), groups=frozenset("g"))
    turns = Planner().plan([member], cluster("a", "aa"), leases, NOW, group_limits={"g": 1})
    assert told(turns) == ["a in 1 h: group:g"]


def test_what_the_policy_would_rather_give_is_given_only_where_nobody_before_has_it() -> None:
    """Spreading would give d what b has once that gives way to c: nothing may be had twice."""
    queue = [
        waits("a", 1, 7),
        waits("b", 2, 3, model=A100),
        waits("c", 2, 4, model=A100),
        waits("d", 1, 3),
    ]
    turns = Planner().plan(queue, cluster("ttaa"), [], NOW, policy="spread")
    given_out = [gpu.uuid for turn in turns for gpu in turn.gpus]
    assert len(set(given_out)) == len(given_out)
    assert told(turns) == ["a now p 0", "b now p 2 3", "c in 3 h: gpus", "d now p 1"]


@pytest.mark.parametrize(("policy", "first", "second"), [("pack", "q", "q"), ("spread", "p", "p")])
def test_the_policy_decides_between_nodes_also_after_what_is_handed_out_just_now(
    policy: str, first: str, second: str
) -> None:
    turns = Planner().plan(
        [waits("a", 1, 1), waits("b", 1, 1)], cluster("aaaaa", "aaa"), [], NOW, policy=policy
    )
    assert [turn.gpus[0].node for turn in turns] == [first, second]


P, Q, R = (frozenset(each) for each in "pqr")


@pytest.mark.parametrize("policy", ["pack", "spread"])
@pytest.mark.parametrize(
    ("nodes", "count", "preferred", "chosen"),
    [
        # Before the policy, and in their order.
        (("aaa", "aa", "a"), 1, (Q,), "q"),
        (("aaa", "aa", "a"), 1, (R, P), "r"),
        (("aaa", "aa", "a"), 1, (P | Q, Q), "q"),
        (("aaa", "aa", "LL"), 1, (R, P), "p"),
        # Only where there are enough of them, of one model if that can be.
        (("aaa", "aa", "a"), 2, (R, Q), "q"),
        (("aaa", "at", "a"), 2, (Q,), "p"),
        (("at", "a", "a"), 2, (Q,), "p"),
        # A node that isn't there is none.
        (("aa", "LL", "LL"), 1, (frozenset({"elsewhere"}),), "p"),
    ],
)
def test_a_request_has_the_node_that_it_prefers_if_that_will_do(
    nodes: tuple[str, ...],
    count: int,
    preferred: tuple[frozenset[str], ...],
    chosen: str,
    policy: str,
) -> None:
    request = Request("torch", count, preferred=preferred)
    found = choose(request, cluster(*nodes), policy)
    assert found is not None
    assert {gpu.node for gpu in found} == {chosen}
    waiting = replace(waits("a", count, 1), request=request)
    (turn,) = Planner().plan([waiting], cluster(*nodes), [], NOW, policy=policy)
    assert {gpu.node for gpu in turn.gpus} == {chosen}


def test_what_one_prefers_delays_nobody() -> None:
    """The other can only have q."""
    first = replace(waits("a", 1, 1), request=Request("torch", 1, preferred=(Q,)))
    second = waits("b", 2, 1)
    turns = Planner().plan([first, second], cluster("a", "aa"), [], NOW)
    assert [{gpu.node for gpu in turn.gpus} for turn in turns] == [{"p"}, {"q"}]


def test_requests_that_differ_in_what_they_prefer_are_the_same() -> None:
    assert Request("torch", 1, preferred=(Q,)) == Request("torch", 1)
