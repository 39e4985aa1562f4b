"""Reserved hours in which a course's servers share GPUs: who starts when, and with which slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.gpus.model import GPU, SHARED, Holder, Lease, Request, course_group
from gpuspawner.gpus.unit_names import exclude_each_other
from gpuspawner.scheduling.calendar import Calendar
from gpuspawner.scheduling.plan import Planner, QueuedRequest, QueueSnapshot, Turn, could_use
from gpuspawner.scheduling.reserved import ReservedTime, admitted, ahead

A, T = "A100", "T4"
NOW = 1_000_000.0
HOUR = 3600.0


def gpus(number: int, model: str = A, size: int = 8) -> list[GPU]:
    """Free GPUs, on nodes of so many."""
    return [GPU(f"GPU-{n}", n % size, model, node=f"node-{n // size}") for n in range(number)]


def hours(
    begin: float,
    end: float,
    number: int = 1,
    slots: int = 3,
    course: str = "ml",
    unclaimed: float = inf,
    model: str = "",
) -> ReservedTime:
    """Reserved hours, in hours from now on."""
    times = NOW + begin * HOUR, NOW + end * HOUR
    return ReservedTime(course, *times, number, "gpu", model, unclaimed * HOUR, slots)


def wants_slot(
    user: str, length: float, since: float = 0, course: str = "ml", slots: int = 3
) -> QueuedRequest:
    request = Request(
        "x",
        1,
        seconds=length * HOUR,
        kind=SHARED,
        unit_share=Fraction(1, slots),
        course=course,
        slots=slots,
    )
    groups = frozenset({course_group(course)})
    return QueuedRequest(Holder(user), request, NOW - HOUR + since, groups)


def wants_gpu(user: str, length: float, since: float = 0, course: str = "") -> QueuedRequest:
    request = Request("x", 1, seconds=length * HOUR, course=course)
    groups = frozenset({course_group(course)} if course else ())
    return QueuedRequest(Holder(user), request, NOW - HOUR + since, groups)


def has(user: str, unit: str, until: float, course: str = "ml") -> Lease:
    groups = frozenset({course_group(course)} if course else ())
    return Lease(Holder(user), frozenset({unit}), NOW + until * HOUR, groups)


def starts(turns: Sequence[Turn]) -> dict[str, float | None]:
    """User -> in how many hours they start."""
    return {
        turn.waiting.holder.user: None if turn.start is None else (turn.start - NOW) / HOUR
        for turn in turns
    }


def units(turns: Sequence[Turn]) -> dict[str, str]:
    """User -> the unit they get now."""
    return {turn.waiting.holder.user: str(turn.gpus[0].id) for turn in turns if turn.gpus}


@pytest.mark.parametrize(
    ("queue", "reserved", "leases", "expected"),
    [
        # As many as there are slots start, and the next one when the first of them has ended.
        (
            [wants_slot(each, 1, n) for n, each in enumerate("abcd")],
            [hours(0, 4)],
            [],
            {"a": 0, "b": 0, "c": 0, "d": 1},
        ),
        # Before the hours nobody has a slot, and everybody is told from when.
        ([wants_slot("a", 1)], [hours(2, 4)], [], {"a": 2}),
        # When they are over there are no slots; in the next ones there are.
        ([wants_slot("a", 1)], [hours(-2, 0)], [], {"a": None}),
        ([wants_slot("a", 1)], [hours(-2, 0), hours(24, 26)], [], {"a": 24}),
        # Others have the whole GPU before and after.
        (
            [wants_gpu("x", 2), wants_gpu("y", 2, 1), wants_slot("a", 9, 2)],
            [hours(2, 4)],
            [],
            {"x": 0, "y": 4, "a": 2},
        ),
        # Neither do members have it whole in the hours, however short.
        ([wants_gpu("x", 1, course="ml")], [hours(0, 4)], [], {"x": 4}),
        # The GPU of which one has a slot is the course's.
        (
            [wants_slot("a", 1), wants_slot("b", 1, 1), wants_slot("c", 1, 2)],
            [hours(0, 4)],
            [has("m", "GPU-0#1/3", 2)],
            {"a": 0, "b": 0, "c": 1},
        ),
        # So is what somebody has who had it when it was divided otherwise.
        (
            [wants_slot("a", 1)],
            [hours(0, 4)],
            [has("m", "GPU-0#0/3", 2), has("n", "GPU-0#1/2", 1)],
            {"a": 1},
        ),
        # Of another course's hours nobody has slots, and neither of another number.
        ([wants_slot("a", 1, course="nlp")], [hours(0, 4)], [], {"a": None}),
        ([wants_slot("a", 1, slots=4)], [hours(0, 4)], [], {"a": None}),
        # What isn't claimed is for all, but a GPU of which somebody has a slot.
        ([wants_gpu("x", 1)], [hours(-1, 4, unclaimed=0.5)], [], {"x": 0}),
        (
            [wants_gpu("x", 1), wants_slot("a", 1, 1)],
            [hours(-1, 4, unclaimed=0.5)],
            [has("m", "GPU-0#0/3", 2)],
            {"x": 4, "a": 0},
        ),
    ],
)
def test_who_starts_when(queue, reserved, leases, expected) -> None:
    assert starts(Planner().plan(queue, gpus(1), leases, NOW, reserved=reserved)) == expected


@pytest.mark.parametrize(
    ("reserved", "leases", "because"),
    [
        ([hours(2, 4)], [], "hours"),
        ([hours(-1, 4)], [has(f"m{n}", f"GPU-0#{n}/3", 1) for n in range(3)], "gpus"),
        ([], [], "never"),
        ([hours(-2, 0)], [], "never"),
    ],
)
def test_who_waits_for_a_slot_is_told_why(reserved, leases, because) -> None:
    waiting = wants_slot("a", 1)
    (turn,) = Planner().plan([waiting], gpus(1), leases, NOW, reserved=reserved)
    assert turn.because == because
    told = QueueSnapshot([], gpus(1), leases, NOW, {}, reserved).forecast_turn(waiting, {})
    assert told == turn


def test_a_server_ends_with_the_hours() -> None:
    turns = Planner().plan(
        [wants_slot("a", 9), wants_slot("b", 1, 1)], gpus(1), [], NOW, reserved=[hours(-1, 2)]
    )
    assert [turn.until for turn in turns] == [NOW + 2 * HOUR, None]
    assert [gpu.ends for turn in turns for gpu in turn.gpus] == [NOW + 2 * HOUR] * 2


def test_nobody_is_sent_into_hours_that_are_over_at_once() -> None:
    assert starts(
        Planner().plan([wants_slot("a", 9)], gpus(1), [], NOW, reserved=[hours(-1, 0.01)])
    ) == {"a": None}


@pytest.mark.parametrize(("policy", "used"), [("spread", 2), ("pack", 1)])
def test_the_policy_says_whether_a_class_is_spread_over_its_gpus(policy: str, used: int) -> None:
    queue = [wants_slot("a", 1), wants_slot("b", 1, 1)]
    turns = Planner().plan(queue, gpus(2), [], NOW, part_policy=policy, reserved=[hours(0, 2, 2)])
    assert len({gpu.uuid for turn in turns for gpu in turn.gpus}) == used


def test_a_slot_is_of_the_model_that_is_reserved_and_asked_for() -> None:
    host = [*gpus(1), replace(gpus(2, T)[1], index=1)]
    of_t = [hours(0, 2, model=T)]
    assert units(Planner().plan([wants_slot("a", 1)], host, [], NOW, reserved=of_t)) == {
        "a": "GPU-1#0/3"
    }
    asked = wants_slot("a", 1)
    asked = replace(asked, request=replace(asked.request, model=A))
    assert starts(Planner().plan([asked], host, [], NOW, reserved=of_t)) == {"a": None}


def test_a_gpu_that_is_ill_seats_nobody_and_another_one_does() -> None:
    ill = [replace(gpus(1)[0], state="unhealthy"), gpus(2)[1]]
    leases = [has("m", "GPU-0#0/3", 2)]
    turns = Planner().plan([wants_slot("a", 1)], ill, leases, NOW, reserved=[hours(0, 3)])
    assert units(turns) == {"a": "GPU-1#0/3"}
    calendar = Calendar(ill, leases, NOW, {}, ahead([hours(0, 3, 2)], NOW))
    assert [each.gpus for each in calendar.missing] == [1]


def test_a_limit_of_the_course_holds_in_its_hours() -> None:
    queue = [wants_slot(each, 1, n) for n, each in enumerate("ab")]
    limits = {course_group("ml"): Fraction(1, 3)}
    turns = Planner().plan(queue, gpus(1), [], NOW, group_limits=limits, reserved=[hours(0, 3)])  # type: ignore[arg-type]
    assert starts(turns) == {"a": 0, "b": 1}
    assert turns[1].because == "course:ml"


def test_who_shares_the_gpu_could_use_a_slot_that_comes_back() -> None:
    leases = [has(f"m{n}", f"GPU-0#{n}/3", 1) for n in range(3)]
    waiting = [wants_slot("a", 1), wants_gpu("x", 1, 1)]
    slot, whole = Planner().plan(waiting, gpus(1), leases, NOW, reserved=[hours(-1, 4)])
    assert could_use(slot, gpus(1), leases, {"GPU-0#1/3"}, NOW)
    assert not could_use(slot, gpus(1), leases, {"GPU-7"}, NOW)
    assert whole.because == "gpus"


# -- For every day -------------------------------------------------------------------------------


@dataclass
class Job:
    """One who comes at a time, and stays until their time or the hours of their slot end."""

    waiting: QueuedRequest
    granted: float | None = None
    end: float = inf
    gpus: tuple[GPU, ...] = ()
    announced: float = inf

    @property
    def units(self) -> frozenset[str]:
        return frozenset(str(gpu.id) for gpu in self.gpus)


@dataclass
class Day:
    """Reservations, and who comes."""

    host: list[GPU]
    reserved: list[ReservedTime]
    jobs: list[Job]
    part_policy: str
    refused: list[Job] = field(default_factory=list)

    def run(self) -> None:
        """Grant what the plan says, whenever something changes, until all have been served."""
        now = NOW
        for _ in range(1000):
            queue = [
                job
                for job in self.jobs
                if job.granted is None and job.waiting.since <= now and job not in self.refused
            ]
            by_holder = {job.waiting.holder: job for job in queue}
            for turn in self.plan(now, queue):
                job = by_holder[turn.waiting.holder]
                if turn.gpus:
                    job.granted, job.gpus = now, turn.gpus
                    asked = now + (job.waiting.request.seconds or 0)
                    job.end = min(asked, *(gpu.ends or inf for gpu in turn.gpus))
                    assert job.end == (turn.until or asked)
                elif turn.because == "never":
                    self.refused.append(job)
                # What is free for all from a time on, an earlier one may have then.
                if all(each.unclaimed_seconds == inf for each in self.reserved):
                    assert turn.start is None or turn.start <= job.announced + 1e-6
                job.announced = turn.start or job.announced
            self.check(now)
            later = [job.end for job in self.running(now)]
            later += [job.waiting.since for job in self.jobs if job.waiting.since > now]
            for each in self.reserved:
                later += [each.begin, each.begin + each.unclaimed_seconds, each.end]
            later = [time for time in later if now < time < inf]
            if not later:
                return
            now = min(later)
        raise AssertionError("this day has no end")

    def running(self, now: float) -> list[Job]:
        return [job for job in self.jobs if job.granted is not None and job.end > now]

    def plan(self, now: float, queue: list[Job]) -> tuple[Turn, ...]:
        leases = [
            Lease(job.waiting.holder, job.units, job.end, job.waiting.groups)
            for job in self.running(now)
        ]
        return Planner().plan(
            [job.waiting for job in queue],
            self.host,
            leases,
            now,
            part_policy=self.part_policy,
            reserved=self.reserved,
        )

    def check(self, now: float) -> None:
        """What holds at every moment."""
        running = self.running(now)
        for number, one in enumerate(running):
            for other in running[number + 1 :]:
                assert not exclude_each_other(one.units, other.units)
        for each in self.reserved:
            if not each.begin <= now < min(each.end, each.begin + each.unclaimed_seconds):
                continue
            taken = {
                gpu.uuid
                for job in running
                if job.waiting.request.course != each.course
                or bool(job.waiting.request.slots) != bool(each.slots)
                for gpu in job.gpus
            }
            assert len(taken) + each.gpus <= len(self.host)
            if not each.slots:
                continue
            mine = [job for job in running if job.waiting.request.course == each.course]
            mine = [job for job in mine if job.waiting.request.slots == each.slots]
            waits = [
                job
                for job in self.jobs
                if job.waiting.since <= now and job.granted is None
                if job.waiting.request.course == each.course and job not in self.refused
                if job.waiting.request.slots == each.slots
            ]
            # Whoever of the class comes has a seat while there is one.
            late = each.end - now < 60
            assert not waits or late or len(mine) >= each.gpus * each.slots


lengths = st.sampled_from([0.5, 1, 2, 3, 5])


@st.composite
def days(draw: st.DrawFn) -> Day:
    size = draw(st.integers(1, 3))
    host = gpus(size, size=draw(st.sampled_from([1, 8])))
    slots_of = {"ml": draw(st.integers(2, 3)), "nlp": draw(st.sampled_from([0, 2]))}
    apart: list[ReservedTime] = []
    for course, begin, length, number, unclaimed in draw(
        st.lists(
            st.tuples(
                st.sampled_from(["ml", "nlp"]),
                st.sampled_from([0, 1, 2, 2.5, 4]),
                lengths,
                st.integers(1, size),
                st.sampled_from([0.25, 1, inf]),
            ),
            max_size=4,
        )
    ):
        each = hours(begin, begin + length, number, slots_of[course], course, unclaimed)
        mine = [other for other in apart if other.course == course]
        if all(each.end <= other.begin or other.end <= each.begin for other in mine):
            apart.append(each)
    kept, _ = admitted(apart, host)
    jobs = []
    for number, (kind, length, since) in enumerate(
        draw(
            st.lists(
                st.tuples(
                    st.sampled_from(["", "ml", "nlp", "whole ml"]),
                    lengths,
                    st.sampled_from([0, 0.5, 1, 2, 3, 4]),
                ),
                max_size=9,
            )
        )
    ):
        user, at = f"user-{number}", HOUR + since * HOUR + number
        if slots_of.get(kind):
            jobs.append(Job(wants_slot(user, length, at, kind, slots_of[kind])))
        else:
            jobs.append(Job(wants_gpu(user, length, at, kind.removeprefix("whole "))))
    return Day(host, kept, jobs, draw(st.sampled_from(["pack", "spread"])))


@given(days())
def test_no_slot_is_given_twice_and_everybody_gets_their_turn(day: Day) -> None:
    day.run()
    for job in day.jobs:
        if job.waiting.request.slots:
            # In hours of its course, and not beyond them.
            inside = [
                each
                for each in day.reserved
                if job.granted is not None and each.course == job.waiting.request.course
                if each.begin <= job.granted and job.end <= each.end
            ]
            assert (len(inside) == 1) == (job not in day.refused)
        else:
            assert job.granted is not None
