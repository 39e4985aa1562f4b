"""A planner that keeps what it can from plan to plan plans as one that has seen nothing before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.backends.swarm.cluster import SwarmNode, with_swarm
from gpuspawner.gpus.allocation import LeasedNodes, with_leases
from gpuspawner.gpus.model import GPU, Holder, Lease, Node, Outsider, Request, counted_in
from gpuspawner.leases.labels import ServerRecord, labels
from gpuspawner.leases.ledger import Ledger
from gpuspawner.nodes.resources import kind_of
from gpuspawner.scheduling import plan as plans
from gpuspawner.scheduling.plan import ORDERS, Planner, QueuedRequest, Turn, UserShare
from gpuspawner.scheduling.reserved import ReservedTime, admitted

from ..support.drawn_hosts import A100, T4

NOW = 1_800_000_000.0
HOUR = 3600.0
spans = st.sampled_from([None, 0.0, 0.5, 1.0, 2.0, 3.0])


def nodes_of(letters: Sequence[str]) -> list[Node]:
    """Nodes of which each letter is a GPU, "a" an A100 and "t" a T4; "s" are two slots of one."""
    return [
        Node(f"n{number}", gpus=tuple(_units(f"n{number}", each)))
        for number, each in enumerate(letters)
    ]


def _units(node: str, letters: str) -> list[GPU]:
    found = []
    for index, letter in enumerate(letters):
        one = GPU(f"GPU-{node}-{index}", index, T4 if letter == "t" else A100, node=node)
        slots = [replace(one, kind="shared", part=part, parts=2, share=1) for part in range(2)]
        found += slots if letter == "s" else [one]
    return found


class Site:
    """Nodes on which servers come and go, with a queue, and a planner that has seen all of it."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.nodes = nodes_of(draw(st.lists(st.sampled_from(["a", "aa", "at", "aas"]), min_size=1)))
        self.now = NOW
        self.leases: list[Lease] = []
        self.queue: list[QueuedRequest] = []
        self.order = draw(st.sampled_from(sorted(ORDERS)))
        self.policy = draw(st.sampled_from(["pack", "spread"]))
        self.limits: dict[str, int] = {}
        self.reserved: list[ReservedTime] = []
        self.shares = {("", "a"): UserShare(3.0, 5.0), ("", "b"): UserShare(9.0, 9.0, 2.0)}
        self.planner, self.leased = Planner(), LeasedNodes()
        self.number = 0

    def join(self) -> None:
        """Somebody joins the queue, at its end or before others."""
        draw, self.number = self.draw, self.number + 1
        kind = draw(st.sampled_from(["gpu", "gpu", "gpu", "shared"]))
        model = draw(st.sampled_from([None, None, A100, T4])) if kind == "gpu" else None
        course = draw(st.sampled_from(["", "", "c"]))
        seconds = draw(spans)
        request = Request(
            "x",
            draw(st.integers(0, 3)),
            model,
            kind=kind,
            course=course,
            seconds=None if seconds is None else seconds * HOUR,
            home_node=draw(st.sampled_from(["", "", "n1"])),
        )
        if course and draw(st.booleans()):
            request = replace(request, gpus=1, model=None, kind="shared", slots=2)
        groups = counted_in(draw(st.frozensets(st.sampled_from("gh"))), course)
        later = draw(st.sampled_from([0.0, 0.0, 0.0, 1.0, 1.5])) * HOUR
        since = self.now + self.number / 1000 - draw(st.sampled_from([0, 0, 0, HOUR]))
        holder = Holder(draw(st.sampled_from("abc")), str(self.number))
        self.queue.append(
            QueuedRequest(holder, request, since, groups, self.now + later if later else 0.0)
        )

    def pass_time(self) -> None:
        """A while passes, in which nothing may happen."""
        self.now += self.draw(st.sampled_from([0.0, 1.0, 60.0, 0.5 * HOUR, HOUR, 3 * HOUR]))

    def end(self) -> None:
        """A server ends, or is given another end."""
        if self.leases:
            lease = self.leases.pop(self.draw(st.integers(0, len(self.leases) - 1)))
            if self.draw(st.booleans()) and lease.until:
                self.leases.append(replace(lease, until=lease.until + HOUR))

    def leave(self) -> None:
        """Who waits leaves, or is moved to the front of their course."""
        if self.queue:
            number = self.draw(st.integers(0, len(self.queue) - 1))
            one = self.queue.pop(number)
            if self.draw(st.booleans()):
                # Another object, as when its user's groups are read again.
                moved = self.draw(st.sampled_from([one.moved, 1]))
                self.queue.insert(number, replace(one, moved=moved))

    def change_rules(self) -> None:
        """Limits, reserved hours or what users have had become others."""
        draw = self.draw
        self.limits = draw(st.dictionaries(st.sampled_from("gh"), st.integers(0, 3)))
        begin = self.now + draw(st.sampled_from([-1.0, 0.5, 2.0])) * HOUR
        slots = draw(st.sampled_from([0, 2]))
        hours = [ReservedTime("c", begin, begin + HOUR, draw(st.integers(1, 2)), slots=slots)]
        units = [gpu for node in self.nodes for gpu in node.gpus]
        self.reserved = admitted(hours if draw(st.booleans()) else [], units)[0]
        self.shares = {("", "a"): UserShare(draw(st.sampled_from([0.0, 20.0])), 1.0)}

    def break_one(self) -> None:
        """A GPU fails or is well again, or a node goes."""
        number = self.draw(st.integers(0, len(self.nodes) - 1))
        node = self.nodes[number]
        if self.draw(st.integers(0, 5)) == 0:
            self.nodes[number] = replace(node, gpus=node.gpus[1:])
        elif node.gpus:
            state = self.draw(st.sampled_from(["free", "unhealthy", "foreign"]))
            first = replace(node.gpus[0], state=state)
            self.nodes[number] = replace(node, gpus=(first, *node.gpus[1:]))

    def plan(self) -> tuple[Turn, ...]:
        """Return the turns, which are the same as of a plan from nothing; grant what starts."""
        nodes = self.leased.of(self.nodes, self.leases)
        assert nodes == with_leases(self.nodes, self.leases)
        units = [gpu for node in nodes for gpu in node.gpus]
        settings: dict[str, Any] = {
            "order": self.order,
            "policy": self.policy,
            "group_limits": self.limits,
            "reserved": self.reserved,
            "shares": self.shares,
        }
        turns = self.planner.plan(self.queue, units, self.leases, self.now, **settings)
        assert turns == Planner().plan(self.queue, units, self.leases, self.now, **settings)
        for turn in turns:
            if turn.start == self.now:
                self.queue.remove(turn.waiting)
                self.grant(turn)
        return turns

    def grant(self, turn: Turn) -> None:
        waiting, names = turn.waiting, frozenset(str(gpu.id) for gpu in turn.gpus)
        seconds = waiting.request.seconds
        until = turn.until or (None if seconds is None else self.now + seconds)
        if names:
            self.leases.append(Lease(waiting.holder, names, until, waiting.groups))


@given(st.data())
def test_whatever_happens_the_plan_is_that_of_a_planner_that_has_seen_nothing(
    data: st.DataObject,
) -> None:
    site = Site(data.draw)
    happens = [site.join] * 5 + [site.pass_time] * 2 + [site.end, site.leave]
    happens += [site.change_rules, site.break_one]
    for _ in range(data.draw(st.integers(1, 25))):
        data.draw(st.sampled_from(happens))()
        site.plan()


@given(st.data())
def test_so_it_is_where_all_is_held_and_requests_only_join(data: st.DataObject) -> None:
    """Where most is kept: nobody can start, and time passes up to the first start."""
    site = Site(data.draw)
    units = [gpu for node in site.nodes for gpu in node.gpus]
    for number, gpu in enumerate(units):
        until = data.draw(st.sampled_from([None, NOW - 1, NOW + 60, NOW + HOUR, NOW + 2 * HOUR]))
        held = frozenset([str(gpu.id)])
        site.leases.append(Lease(Holder(f"held-{number}"), held, until, frozenset("g")))
    site.limits = data.draw(st.dictionaries(st.sampled_from("gh"), st.integers(0, 3)))
    for _ in range(data.draw(st.integers(1, 15))):
        site.join()
        site.now += data.draw(st.sampled_from([0.0, 0.0, 1.0, 60.0, HOUR / 2]))
        site.plan()


def waits(user: str, gpus: int = 1, hours: float = 1, **known: Any) -> QueuedRequest:
    """One that joins after all whose names come before."""
    request = Request("x", gpus, seconds=hours * HOUR)
    return QueuedRequest(Holder(user), request, NOW - 100 + ord(user[0]) - ord("a"), **known)


@pytest.fixture
def calendars(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One more for each calendar that a plan makes."""
    made: list[int] = []

    class Counted(plans.Calendar):
        def __init__(self, *given: Any) -> None:
            made.append(1)
            super().__init__(*given)

    monkeypatch.setattr(plans, "Calendar", Counted)
    return made


def test_who_joins_at_the_end_is_booked_behind_the_others_without_a_new_plan(
    calendars: list[int],
) -> None:
    (node,) = nodes_of(["aa"])
    names = frozenset(str(gpu.id) for gpu in node.gpus)
    leases = [Lease(Holder("x"), names, NOW + HOUR)]
    planner = Planner()
    queue = [waits("a"), waits("b", 2)]
    planner.plan(queue, node.gpus, leases, NOW)
    assert len(calendars) == 1
    for number, user in enumerate("cdef", 1):
        queue.append(waits(user, hours=2))
        turns = planner.plan(list(queue), node.gpus, list(leases), NOW + number)
        assert len(calendars) == 1
        assert turns[-1].waiting is queue[-1]
    assert turns == Planner().plan(queue, node.gpus, leases, NOW + 4)


@pytest.mark.parametrize(
    "change",
    [
        "time",
        "a lease",
        "a GPU",
        "a limit",
        "reserved",
        "reserved no more",
        "not before",
        "who was there",
        "home",
    ],
)
def test_the_plan_is_a_new_one_as_soon_as_anything_else_is_new(
    calendars: list[int], change: str
) -> None:
    (node,) = nodes_of(["aa"])
    names = frozenset(str(gpu.id) for gpu in node.gpus)
    leases = [Lease(Holder("x"), names, NOW + HOUR)]
    begins = NOW + HOUR / 2 if change == "not before" else 0.0
    queue = [waits("a", not_before=begins), waits("b", 2, groups=frozenset("g"))]
    planner, units, now = Planner(), list(node.gpus), NOW + 1
    settings: dict[str, Any] = {}
    hours = [ReservedTime("c", NOW + HOUR, NOW + 2 * HOUR, 1)]
    before_that = {"reserved": hours} if change == "reserved no more" else {}
    planner.plan(queue, units, leases, NOW, **before_that)
    if change == "time":
        now = NOW + HOUR
    elif change == "a lease":
        leases = [replace(leases[0], groups=frozenset("g"))]
    elif change == "a GPU":
        units[1] = replace(units[1], state="unhealthy")
    elif change == "a limit":
        settings = {"group_limits": {"g": 1}}
    elif change == "reserved":
        settings = {"reserved": hours}
    elif change == "not before":
        now = NOW + HOUR / 2
    elif change == "who was there":
        queue = queue[1:]
    elif change == "home":
        queue[0] = replace(queue[0], request=replace(queue[0].request, home_node="n0"))
    queue = [*queue, waits("z")]
    before = len(calendars)
    assert planner.plan(queue, units, leases, now, **settings) == Planner().plan(
        queue, units, leases, now, **settings
    )
    assert len(calendars) == before + 2


def test_who_may_start_at_once_is_planned_with_all_others() -> None:
    """One that fits where those before don't: the policy chooses its GPU."""
    (node,) = nodes_of(["aaa"])
    leases = [Lease(Holder("x"), frozenset(["GPU-n0-0"]), NOW + HOUR)]
    planner, queue = Planner(), [waits("a", 3)]
    (first,) = planner.plan(queue, node.gpus, leases, NOW, policy="spread")
    assert first.start == NOW + HOUR
    queue.append(waits("b", hours=0.5))
    turns = planner.plan(queue, node.gpus, leases, NOW + 1, policy="spread")
    assert [gpu.index for gpu in turns[1].gpus] == [2]
    assert turns == Planner().plan(queue, node.gpus, leases, NOW + 1, policy="spread")


# -- Nodes with their leases -----------------------------------------------------------------------

ends = st.sampled_from([None, NOW, NOW + HOUR])


@given(st.data())
def test_nodes_with_leases_are_the_same_whatever_was_made_before(data: st.DataObject) -> None:
    nodes = nodes_of(["aa", "as", "t"])
    twin = Node("n9", gpus=(replace(nodes[0].gpus[0], node="n9"),))
    names = [str(gpu.id) for node in nodes for gpu in node.gpus]
    kept = LeasedNodes()
    for _ in range(5):
        held = data.draw(st.lists(st.tuples(st.sampled_from(names), ends), max_size=4))
        leases = [
            Lease(Holder(f"u{n}"), frozenset([name]), end) for n, (name, end) in enumerate(held)
        ]
        there = [*nodes, twin] if data.draw(st.booleans()) else nodes
        others = [Outsider("o", "o", frozenset([names[-1]]))] if data.draw(st.booleans()) else []
        assert kept.of(there, leases, others) == with_leases(there, leases, others)


async def test_of_a_node_without_a_change_nothing_is_made_anew_from_read_to_read() -> None:
    """Between them are Swarm, marks of health, and limits that count units."""
    reports, servers = nodes_of(["a", "a"]), [server("x", "GPU-n0-0")]
    swarm = [
        SwarmNode("", each.name, version="29.0.0", offered={kind_of(str(each.gpus[0].uuid)): 1})
        for each in reports
    ]

    async def read() -> tuple[Node, ...]:
        return with_swarm(reports, swarm)

    async def listed() -> list[ServerRecord]:
        return list(servers)

    ledger = Ledger(listed, read, counts_units=True)
    before = await ledger.read()
    assert [gpu.state for gpu in before.gpus] == ["leased", "free"]
    servers.append(server("y", "GPU-n1-0"))
    after = await ledger.read()
    assert after.nodes[0] is before.nodes[0]
    assert after.gpus[1].holder == Holder("y")


def server(user: str, unit: str) -> ServerRecord:
    return ServerRecord(user, labels(Holder(user), "image", [unit], NOW + 1e9))


def test_of_a_node_whose_leases_are_the_same_nothing_is_made_anew() -> None:
    nodes, kept = nodes_of(["a", "a"]), LeasedNodes()
    lease = Lease(Holder("x"), frozenset(["GPU-n0-0"]), NOW)
    before = kept.of(nodes, [lease])
    after = kept.of(nodes, [lease, Lease(Holder("y"), frozenset(["GPU-n1-0"]), NOW)])
    assert after[0] is before[0]
    assert after[1].gpus[0].holder == Holder("y")
