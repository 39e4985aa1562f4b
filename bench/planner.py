"""The time of a plan of the queue on many nodes, which a hub makes at each change.

No server is started. The figures are processor times, the best of several rounds, with their goals.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

from gpuspawner.gpus.allocation import apply_leases
from gpuspawner.gpus.model import GPU, SHARED, Holder, Lease, Request
from gpuspawner.scheduling.plan import Planner, QueuedRequest, QueueSnapshot
from gpuspawner.scheduling.reserved import ReservedTime

HOUR = 3600.0
NOW = 1_800_000_000.0
# The goals, in milliseconds.
PLAN_GOAL, LEASES_GOAL, FORECAST_GOAL = 150.0, 1.0, 1.0
COURSES_GOAL = 100.0
# Into how many slots each GPU is divided in the hours of a class that shares it.
SLOTS = 15
COUNTS, WEIGHTS = (1, 2, 4, 8), (60, 20, 12, 8)
HOURS = (1, 2, 4, 8, 24)


def nodes_of(number: int, size: int) -> list[GPU]:
    """Return the GPUs, of one model, of `number` nodes with `size` GPUs each."""
    return [
        GPU(f"GPU-{node}-{index}", index, "NVIDIA A100-SXM4-40GB", 40960, 0, 0, node=f"{node:03}")
        for node in range(number)
        for index in range(size)
    ]


def leases_on(gpus: Sequence[GPU], number: int, seed: int) -> list[Lease]:
    """Return `number` leases of one GPU each that end within a day, at random."""
    chance = random.Random(seed)  # noqa: S311 # a simulation, no secret
    return [
        Lease(Holder(f"holder-{n}"), frozenset([str(gpu.uuid)]), NOW + chance.uniform(0, 24) * HOUR)
        for n, gpu in enumerate(gpus[:number])
    ]


def queue_of(number: int, seed: int) -> list[QueuedRequest]:
    """Return queued requests: most for one GPU, some for a whole node, for the form's durations."""
    chance = random.Random(seed)  # noqa: S311 # a simulation, no secret
    return [
        QueuedRequest(
            Holder(f"waits-{n}"),
            Request("any", chance.choices(COUNTS, WEIGHTS)[0], seconds=chance.choice(HOURS) * HOUR),
            NOW - number + n,
        )
        for n in range(number)
    ]


def reserved_by(courses: int, number: int, seed: int) -> list[ReservedTime]:
    """Return the hours of a term, 15 weeks of `number` weekly lessons of so many courses."""
    chance = random.Random(seed)  # noqa: S311 # a simulation, no secret
    times = []
    for lesson in range(number):
        first = NOW + chance.randrange(7 * 24) * HOUR
        length, count = chance.choice((1, 2, 4)) * HOUR, chance.choice((2, 4, 8))
        times += [
            ReservedTime(f"course-{lesson % courses}", begin, begin + length, count)
            for begin in (first + week * 7 * 24 * HOUR for week in range(15))
        ]
    return times


def members(queue: Sequence[QueuedRequest], courses: int) -> list[QueuedRequest]:
    """Return a queue of which every second one waits for a course."""
    return [
        replace(each, request=replace(each.request, course=f"course-{n % courses}"))
        if n % 2
        else each
        for n, each in enumerate(queue)
    ]


def best(call: Callable[[], object], rounds: int) -> float:
    """Return the least processor time of a call in several rounds, in milliseconds."""
    taken = []
    for _ in range(rounds):
        began = time.process_time()
        call()
        taken.append(time.process_time() - began)
    return min(taken) * 1000


def measure(nodes: int, waiting: int, rounds: int, seed: int = 1) -> dict[str, tuple[float, float]]:
    """Return name of the figure -> (milliseconds, goal)."""
    gpus = nodes_of(nodes, 8)
    leases = leases_on(gpus, min(1000, len(gpus)), seed)
    queue = queue_of(waiting, seed)
    # No request can start now, so the queue doesn't change.
    standing = QueueSnapshot(queue, gpus, leases_on(gpus, len(gpus), seed), NOW, {})
    one_more = [
        QueuedRequest(Holder("you"), Request("any", count, seconds=HOUR), NOW + 1)
        for count in range(1, 9)
    ]

    def forecasts() -> None:
        for each in one_more:
            assert standing.forecast_turn(each, {}) is not None

    planned = f"plan for {len(gpus)} GPUs on {nodes} nodes, {waiting} waiting"
    return {
        planned: (best(lambda: Planner().plan(queue, gpus, leases, NOW), rounds), PLAN_GOAL),
        f"applying {len(leases)} leases": (
            best(lambda: apply_leases(gpus, leases), 10 * rounds),
            LEASES_GOAL,
        ),
        "forecasts for one more, 1 to 8 GPUs": (best(forecasts, rounds), FORECAST_GOAL),
    }


def measure_courses(
    nodes: int, waiting: int, rounds: int, seed: int = 1
) -> dict[str, tuple[float, float]]:
    """Return the same for a plan with reserved hours."""
    gpus = nodes_of(nodes, 8)
    leases = leases_on(gpus, len(gpus), seed)
    reserved = reserved_by(50, 200, seed)
    queue = members(queue_of(waiting, seed), 50)
    name = f"plan for {len(gpus)} GPUs, 50 courses, 200 weekly hours, {waiting} waiting"
    taken = best(lambda: Planner().plan(queue, gpus, leases, NOW, reserved=reserved), rounds)
    shared = [replace(each, slots=SLOTS) for each in reserved]
    seats = [_for_slots(each) if each.request.course else each for each in queue]
    of_slots = best(lambda: Planner().plan(seats, gpus, leases, NOW, reserved=shared), rounds)
    return {
        name: (taken, COURSES_GOAL),
        f"the same with {SLOTS} slots of each of their GPUs": (of_slots, COURSES_GOAL),
    }


def _for_slots(waiting: QueuedRequest) -> QueuedRequest:
    """Return a request of a course's as one for a slot in its hours."""
    asked, share = waiting.request, Fraction(1, SLOTS)
    slot = Request(
        asked.image,
        1,
        seconds=asked.seconds,
        kind=SHARED,
        unit_share=share,
        course=asked.course,
        slots=SLOTS,
    )
    return replace(waiting, request=slot)


def main(arguments: Sequence[str] = ()) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench planner", description=__doc__)
    parser.add_argument("--nodes", type=int, default=128)
    parser.add_argument("--waiting", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    print("\nThe queue's plan, in milliseconds of the processor's time")
    print(f"{'':70} {'best':>8} {'goal':>8}")
    figures = measure(options.nodes, options.waiting, options.rounds)
    figures |= measure_courses(8, 500, options.rounds)
    for name, (found, goal) in figures.items():
        print(f"{name:70} {found:8.2f} {goal:8.0f} {'met' if found <= goal else 'missed'}")
    return 0
