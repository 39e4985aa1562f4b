"""Reserved hours in the plan: what holds for every day of reservations, members and others."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpuspawner.gpus.model import GPU, Holder, Lease, Request, course_group
from gpuspawner.scheduling.calendar import Calendar
from gpuspawner.scheduling.node_calendar import NodeCalendar
from gpuspawner.scheduling.plan import Planner, QueuedRequest, QueueSnapshot, Turn
from gpuspawner.scheduling.reserved import ReservedTime, admitted, ahead, place

A, T = "A100", "T4"
NOW = 1_000_000.0
HOUR = 3600.0


def gpus(letters: str, size: int = 8) -> list[GPU]:
    """Free GPUs, one for each letter, on nodes of so many."""
    models = {"a": A, "t": T}
    return [
        GPU(f"GPU-{n}", n % size, models[letter], node=f"node-{n // size}")
        for n, letter in enumerate(letters)
    ]


def hours(
    course: str, begin: float, end: float, number: int, model: str = "", unclaimed: float = inf
) -> ReservedTime:
    """Reserved hours, in hours from now on."""
    times = NOW + begin * HOUR, NOW + end * HOUR
    return ReservedTime(course, *times, number, model=model, unclaimed_seconds=unclaimed * HOUR)


def waits(user: str, number: int, length: float, course: str = "", since: float = 0):
    request = Request("x", number, seconds=length * HOUR, course=course)
    groups = frozenset({course_group(course)} if course else ())
    return QueuedRequest(Holder(user), request, NOW - HOUR + since, groups)


def holds(user: str, number: int, until: float | None, course: str = "") -> Lease:
    groups = frozenset({course_group(course)} if course else ())
    end = None if until is None else NOW + until * HOUR
    return Lease(Holder(user), frozenset({f"GPU-{number}"}), end, groups)


def starts(turns: Sequence[Turn]) -> dict[str, float | None]:
    """User -> in how many hours they start."""
    return {
        turn.waiting.holder.user: None if turn.start is None else (turn.start - NOW) / HOUR
        for turn in turns
    }


@pytest.mark.parametrize(
    ("queue", "reserved", "leases", "expected"),
    [
        # Who isn't in the course gets an end before the hour, or waits until it is over.
        ([waits("ann", 1, 2)], [hours("ml", 2, 4, 2)], [], {"ann": 0}),
        ([waits("ann", 1, 2.1)], [hours("ml", 2, 4, 2)], [], {"ann": 4}),
        # Of two GPUs one is reserved.
        (
            [waits("ann", 1, 9), waits("bob", 1, 9, since=1)],
            [hours("ml", 2, 4, 1)],
            [],
            {"ann": 0, "bob": 4},
        ),
        # Held is the GPU that is free last.
        ([waits("ann", 1, 9)], [hours("ml", 2, 4, 1)], [holds("x", 0, 1)], {"ann": 0}),
        ([waits("ann", 1, 9)], [hours("ml", 2, 4, 1)], [holds("x", 1, 1)], {"ann": 0}),
        # Members go first in the hour, also those who came last, and up to what is reserved.
        (
            [waits("ann", 1, 1), waits("m", 1, 1, "ml", 1), waits("n", 1, 1, "ml", 2)],
            [hours("ml", 0, 4, 2)],
            [],
            {"ann": 4, "m": 0, "n": 0},
        ),
        (
            [waits("m", 1, 1, "ml"), waits("n", 1, 1, "ml", 1)],
            [hours("ml", 0, 4, 1), hours("nlp", 0, 4, 1)],
            [],
            {"m": 0, "n": 1},
        ),
        # What one of them leaves of the hours is kept for the others of theirs.
        (
            [waits("m", 1, 1, "ml"), waits("ann", 1, 1, since=1)],
            [hours("ml", 0, 4, 2)],
            [],
            {"m": 0, "ann": 4},
        ),
        # Another course is as everybody else.
        ([waits("m", 1, 1, "nlp")], [hours("ml", 0, 4, 2)], [], {"m": 4}),
        # A member may begin before the hour, and go on after it.
        ([waits("m", 1, 9, "ml")], [hours("ml", 2, 4, 2)], [], {"m": 0}),
        # What members have is part of what is reserved.
        ([waits("ann", 1, 1)], [hours("ml", 0, 4, 1)], [holds("m", 0, 9, "ml")], {"ann": 0}),
        # When their time is over before the hour is, what they had is kept for others of theirs.
        (
            [waits("ann", 1, 9), waits("m", 1, 2, "ml", 1)],
            [hours("ml", 0, 4, 1)],
            [holds("n", 0, 1, "ml"), holds("y", 1, 3)],
            {"ann": 3, "m": 1},
        ),
        # What isn't claimed is for all.
        ([waits("ann", 1, 1)], [hours("ml", -1, 4, 2, unclaimed=1)], [], {"ann": 0}),
        ([waits("ann", 1, 1)], [hours("ml", -1, 4, 2, unclaimed=1.1)], [], {"ann": 4}),
        # What is over keeps nobody.
        ([waits("ann", 2, 9)], [hours("ml", -2, 0, 2)], [], {"ann": 0}),
    ],
)
def test_who_starts_when(queue, reserved, leases, expected) -> None:
    turns = Planner().plan(queue, gpus("aa"), leases, NOW, reserved=reserved)
    assert starts(turns) == expected


def test_one_that_would_join_is_told_the_same() -> None:
    reserved = [hours("ml", 2, 4, 2)]
    busy = [holds("x", 0, 1), holds("y", 1, 1)]
    snapshot = QueueSnapshot([], gpus("aa"), busy, NOW, {}, reserved)
    for one in (waits("ann", 1, 2), waits("m", 1, 2, "ml"), waits("bob", 1, 1)):
        (planned,) = Planner().plan([one], gpus("aa"), busy, NOW, reserved=reserved)
        told = snapshot.forecast_turn(one, {})
        assert told
        assert (told.start, told.because) == (planned.start, planned.because)


def test_how_long_there_would_be_until_the_hour() -> None:
    host = gpus("aa")
    calendar = Calendar(host, (), NOW, {}, ahead([hours("ml", 2, 4, 1)], NOW))
    assert calendar.longest_now(Request("x", 2)) == 2 * HOUR
    assert calendar.longest_now(Request("x", 1)) == inf
    assert calendar.longest_now(Request("x", 3)) == 0


def test_a_gpu_that_is_ill_is_missing_and_no_other_is_promised_twice() -> None:
    host = gpus("aa")
    ill = [host[0], GPU("GPU-1", 1, A, state="unhealthy", node="node-0")]
    calendar = Calendar(ill, (), NOW, {}, ahead([hours("ml", 2, 4, 2)], NOW))
    (missing,) = calendar.missing
    assert (missing.reserved.course, missing.gpus) == ("ml", 1)
    assert Calendar(host, (), NOW, {}, ahead([hours("ml", 2, 4, 2)], NOW)).missing == []


# -- For every day -------------------------------------------------------------------------------


@dataclass
class Job:
    """One who comes at a time, for a course or none, and stays for as long as they asked."""

    waiting: QueuedRequest
    granted: float | None = None
    gpus: tuple[GPU, ...] = ()

    @property
    def course(self) -> str:
        return self.waiting.request.course

    @property
    def end(self) -> float:
        return (self.granted or 0) + (self.waiting.request.seconds or 0)


@dataclass
class Day:
    """Reservations, and who comes."""

    host: list[GPU]
    reserved: list[ReservedTime]
    jobs: list[Job]
    policy: str = "pack"
    order: str = "fifo"
    planned: list[tuple[float, tuple[Turn, ...]]] = field(default_factory=list)

    def run(self) -> None:
        """Grant what the plan says, whenever something changes, until all have been served."""
        now = NOW
        for _ in range(1000):
            running = [job for job in self.jobs if job.granted is not None and job.end > now]
            queue = [job for job in self.jobs if job.granted is None and job.waiting.since <= now]
            self.check(now, running, queue)
            turns = self.plan(now, running, queue)
            by_holder = {job.waiting.holder: job for job in queue}
            for turn in turns:
                if turn.gpus:
                    job = by_holder[turn.waiting.holder]
                    job.granted, job.gpus = now, turn.gpus
            running = [job for job in self.jobs if job.granted is not None and job.end > now]
            self.check(now, running, [job for job in queue if job.granted is None])
            later = [job.end for job in running]
            later += [job.waiting.since for job in self.jobs if job.waiting.since > now]
            for each in self.reserved:
                later += [each.begin, each.begin + each.unclaimed_seconds, each.end]
            later = [time for time in later if now < time < inf]
            if not later:
                return
            now = min(later)
        raise AssertionError("this day has no end")

    def plan(self, now: float, running: list[Job], queue: list[Job]) -> tuple[Turn, ...]:
        leases = [
            Lease(
                job.waiting.holder,
                frozenset(str(gpu.id) for gpu in job.gpus),
                job.end,
                job.waiting.groups,
            )
            for job in running
        ]
        turns = Planner().plan(
            [job.waiting for job in queue],
            self.host,
            leases,
            now,
            order=self.order,
            policy=self.policy,
            reserved=self.reserved,
        )
        self.planned.append((now, turns))
        return turns

    def check(self, now: float, running: list[Job], queue: list[Job]) -> None:
        """What holds at every moment: no GPU twice, no more promised than there is."""
        had = [gpu.id for job in running for gpu in job.gpus]
        assert len(had) == len(set(had))
        by_course: dict[str, int] = {}
        for job in running:
            by_course[job.course] = by_course.get(job.course, 0) + len(job.gpus)
        # Of one course's hours those that are the same at a moment add up.
        kept: dict[str, int] = {}
        for each in self.reserved:
            if each.begin <= now and each.is_kept(now):
                kept[each.course] = kept.get(each.course, 0) + each.gpus
        courses = by_course.keys() | kept.keys()
        promised = sum(max(by_course.get(key, 0), kept.get(key, 0)) for key in courses)
        assert promised <= len(self.host)


lengths = st.sampled_from([0.5, 1, 2, 3, 5])


@st.composite
def days(draw: st.DrawFn) -> Day:
    size = draw(st.integers(1, 4))
    host = gpus("a" * size, draw(st.sampled_from([1, 2, 8])))
    wanted = [
        hours(course, begin, begin + draw(lengths), draw(st.integers(1, size)), "", unclaimed)
        for course, begin, unclaimed in draw(
            st.lists(
                st.tuples(
                    st.sampled_from(["ml", "nlp"]),
                    st.sampled_from([0, 1, 2, 2.5, 4]),
                    st.sampled_from([0.25, 1, inf]),
                ),
                max_size=4,
            )
        )
    ]
    # One course's own hours that overlap would be counted by its members in either of them.
    apart: list[ReservedTime] = []
    for each in wanted:
        mine = [other for other in apart if other.course == each.course]
        if all(each.end <= other.begin or other.end <= each.begin for other in mine):
            apart.append(each)
    kept, _ = admitted(apart, host)
    most = max(sum(gpu.node == name for gpu in host) for name in {gpu.node for gpu in host})
    jobs = [
        Job(
            waits(
                f"user-{number}",
                min(count, most) if not course else 1,
                length,
                course,
                HOUR + since * HOUR + number,
            )
        )
        for number, (count, length, course, since) in enumerate(
            draw(
                st.lists(
                    st.tuples(
                        st.integers(1, 3),
                        lengths,
                        st.sampled_from(["", "", "ml", "nlp"]),
                        st.sampled_from([0, 0.5, 1, 2, 3, 4]),
                    ),
                    max_size=7,
                )
            )
        )
    ]
    for job in jobs:
        job.waiting = QueuedRequest(
            job.waiting.holder, job.waiting.request, job.waiting.since, job.waiting.groups
        )
    policy, order = (
        draw(st.sampled_from(["pack", "spread"])),
        draw(st.sampled_from(["fifo", "fair"])),
    )
    return Day(host, kept, jobs, policy, order)


@given(days())
def test_never_more_is_promised_than_there_is_and_everybody_gets_their_turn(day: Day) -> None:
    day.run()
    assert [job for job in day.jobs if job.granted is None] == []


@given(days())
def test_nobody_is_booked_into_hours_that_they_are_not_part_of(day: Day) -> None:
    day.run()
    for each in day.reserved:
        # Until it may be free for others.
        last = min(each.end, each.begin + each.unclaimed_seconds)
        moments = {each.begin} | {
            job.granted for job in day.jobs if job.granted and each.begin <= job.granted < last
        }
        for moment in moments:
            others = [
                gpu
                for job in day.jobs
                if job.granted is not None and job.granted <= moment < job.end
                if job.course != each.course
                for gpu in job.gpus
            ]
            assert len(others) + each.gpus <= len(day.host)


@given(days())
def test_members_of_a_course_are_served_first_in_its_hours(day: Day) -> None:
    """As long as fewer have something than is reserved, nobody of the course waits in its hours."""
    day.run()
    for each in day.reserved:
        last = min(each.end, each.begin + each.unclaimed_seconds)
        for now, turns in day.planned:
            if not each.begin <= now < last:
                continue
            has = sum(
                len(job.gpus)
                for job in day.jobs
                if job.course == each.course and job.granted is not None
                if job.granted <= now < job.end
            )
            waiting = [
                turn
                for turn in turns
                if turn.waiting.request.course == each.course and not turn.gpus
            ]
            # A longer server may run into another course's hours, and wait for these to be over.
            waiting = [
                turn for turn in waiting if now + (turn.waiting.request.seconds or 0) <= each.end
            ]
            assert not waiting or has >= each.gpus


# -- Against brute force -------------------------------------------------------------------------

small = st.lists(
    st.tuples(
        st.integers(0, 3), st.integers(1, 3), st.integers(1, 2), st.sampled_from(["", "", A, T])
    ),
    min_size=1,
    max_size=3,
)


def can_be_placed(reserved: Sequence[ReservedTime], host: Sequence[GPU]) -> bool:
    """Try every way to give each its units."""

    def fits(left: Sequence[ReservedTime], taken: list[tuple[GPU, ReservedTime]]) -> bool:
        if not left:
            return True
        each = left[0]
        free = [
            gpu
            for gpu in host
            if each.takes(gpu)
            and not any(
                gpu is other and each.begin < one.end and one.begin < each.end
                for other, one in taken
            )
        ]
        return any(
            fits(left[1:], [*taken, *((gpu, each) for gpu in some)])
            for some in itertools.combinations(free, each.gpus)
        )

    return fits(reserved, [])


@given(small, st.sampled_from(["a", "aa", "aaa"]))
def test_what_can_be_placed_is_placed(drawn, letters: str) -> None:
    host = gpus(letters)
    reserved = [
        hours(f"c{n}", begin, begin + length, count)
        for n, (begin, length, count, _) in enumerate(drawn)
    ]
    kept, refused = admitted(reserved, host)
    assert can_be_placed(kept, host)
    assert (refused == []) == can_be_placed(reserved, host)


@given(small, st.sampled_from(["aa", "at", "aatt"]), st.integers(0, 6), st.booleans())
def test_what_was_admitted_before_needs_no_second_look(drawn, letters, number, named) -> None:
    host = gpus(letters)
    reserved = [
        hours(f"c{n}", begin, begin + length, count, model if named else "")
        for n, (begin, length, count, model) in enumerate(drawn)
    ]
    kept, refused = admitted(reserved, host)
    first, lost = admitted(reserved[:number], host)
    more, later = admitted(reserved[number:], host, first)
    assert [*first, *more] == kept
    assert [*lost, *later] == refused


@given(small, st.sampled_from(["at", "aat", "aatt"]))
# What takes any unit has to leave the one that a later hour names, and share with an earlier hour.
@example([(0, 1, 1, ""), (0, 2, 2, ""), (1, 1, 1, "A100")], "aat")
def test_what_is_admitted_can_be_placed_where_models_are_named(drawn, letters: str) -> None:
    host = gpus(letters)
    reserved = [
        hours(f"c{n}", begin, begin + length, count, model)
        for n, (begin, length, count, model) in enumerate(drawn)
    ]
    kept, refused = admitted(reserved, host)
    assert can_be_placed(kept, host)
    assert (refused == []) == can_be_placed(reserved, host)
    nodes: dict[str, NodeCalendar] = {}
    for gpu in host:
        nodes.setdefault(gpu.node, NodeCalendar(gpu.node, NOW)).add(gpu)
    assert place(ahead(kept, NOW), nodes, (), NOW).missing == []
    for each in refused:
        assert each.gpus > 0


def test_a_search_that_finds_nothing_is_given_up() -> None:
    """Each GPU is free from another time on, so that no two are alike."""
    host = [
        replace(gpu, state="leased", until=NOW + 60.0 * number)
        for number, gpu in enumerate(gpus("a" * 18 + "t" * 12), 1)
    ]
    reserved = [hours("c0", 1, 4, 15), hours("c1", 2, 3, 15, "A100"), hours("c2", 3, 4, 6, "T4")]
    nodes: dict[str, NodeCalendar] = {}
    for gpu in host:
        nodes.setdefault(gpu.node, NodeCalendar(gpu.node, NOW)).add(gpu)
    placed = place(ahead(reserved, NOW), nodes, (), NOW)
    assert len(placed.holds) + sum(each.gpus for each in placed.missing) == 36
