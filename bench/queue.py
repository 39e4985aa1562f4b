"""A simulated week of one host's queue: the waiting times under each order.

No server is started. `scheduling.plan.Planner` decides as in the hub, and every order gets the same
requests. Two others are compared: a strict queue, in which no request passes the first one, and no
queue at all, as on most hubs, where a refused user tries again.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from gpuspawner.gpus.allocation import apply_leases, choose
from gpuspawner.gpus.model import GPU, Holder, Lease, Request
from gpuspawner.scheduling.budgets import Use
from gpuspawner.scheduling.plan import Planner, QueuedRequest, UserShare, UserShares, by_time
from gpuspawner.scheduling.shares import decayed

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
STRICT = "strict: nobody passes"

# (queue, the host's GPUs, leases, time) -> the requests that start now, with their GPUs.
Decide = Callable[
    [Sequence[QueuedRequest], Sequence[GPU], Sequence[Lease], float],
    Iterable[tuple[QueuedRequest, Sequence[GPU]]],
]


@dataclass(frozen=True)
class Job:
    """A request that joins at `waiting.since`; its server uses its GPUs for `uses` seconds."""

    waiting: QueuedRequest
    uses: float


@dataclass(frozen=True)
class Run:
    """A job that got GPUs, with the begin and the end of its use, in seconds."""

    job: Job
    gpus: tuple[GPU, ...]
    start: float
    end: float

    @property
    def wait(self) -> float:
        """The seconds from the request to the grant."""
        return self.start - self.job.waiting.since


def simulate(
    jobs: Iterable[Job],
    gpus: Sequence[GPU],
    decide: Decide,
    wake: Callable[[], float | None] = lambda: None,
) -> list[Run]:
    """Simulate jobs; return their runs in the order of the starts.

    Args:
        jobs: the jobs, each with another holder.
        gpus: the host's GPUs, all free.
        decide: called whenever a job joins or ends.
        wake: returns when to call `decide` next if nothing happens before; None: not at all.

    Raises:
        RuntimeError: a job waits for ever.
    """
    coming = sorted(jobs, key=lambda job: job.waiting.since, reverse=True)
    by_holder = {job.waiting.holder: job for job in coming}
    queue: list[QueuedRequest] = []
    running: dict[Holder, tuple[Run, Lease]] = {}
    runs: list[Run] = []
    now = 0.0
    while coming or queue:
        times = [each.not_before for each in queue if each.not_before > now]
        times += [run.end for run, _ in running.values()]
        times += [coming[-1].waiting.since] if coming else []
        times += filter(None, [wake()])
        if not times:
            raise RuntimeError(f"{len(queue)} wait for ever, first {queue[0]}")
        now = min(times)
        running = {holder: both for holder, both in running.items() if both[0].end > now}
        while coming and coming[-1].waiting.since <= now:
            queue.append(coming.pop().waiting)
        leases = [lease for _, lease in running.values()]
        for waiting, granted in decide(queue, gpus, leases, now):
            queue.remove(waiting)
            job = by_holder[waiting.holder]
            runs.append(Run(job, tuple(granted), now, now + job.uses))
            running[waiting.holder] = (runs[-1], lease_of(waiting, granted, now))
    return runs


def lease_of(waiting: QueuedRequest, gpus: Iterable[GPU], now: float) -> Lease:
    """Return the lease of a request that starts now, as in the hub."""
    seconds = waiting.request.seconds
    until = None if seconds is None else now + seconds
    return Lease(
        waiting.holder, frozenset(gpu.uuid for gpu in gpus if gpu.uuid), until, waiting.groups
    )


def ours(order: str) -> Decide:
    """Return a function that decides as the hub does, in an order of `plan.ORDERS`."""

    def decide(
        queue: Sequence[QueuedRequest], gpus: Sequence[GPU], leases: Sequence[Lease], now: float
    ) -> list[tuple[QueuedRequest, Sequence[GPU]]]:
        turns = Planner().plan(queue, gpus, leases, now, order=order)
        return [(turn.waiting, turn.gpus) for turn in turns if turn.start == now]

    return decide


class SoFar:
    """What users have had so far in a simulation, as the hub's store would say.

    Args:
        half_life: after how many seconds an hour counts as half of one.
    """

    def __init__(self, half_life: float = 7 * DAY) -> None:
        self._half_life = half_life
        self._at = 0.0
        self._running: Sequence[Lease] = ()
        # Person -> GPU hours, of which those of long ago count for less.
        self._hours: dict[tuple[str, str], float] = {}

    def shares(self, leases: Sequence[Lease], now: float) -> UserShares:
        """Return what users have had, which is asked for whenever something begins or ends."""
        fade = 2 ** (-(now - self._at) / self._half_life)
        self._hours = {person: hours * fade for person, hours in self._hours.items()}
        for each in self._running:
            person = each.holder.person
            had = Use(each.holder.user, each.groups, float(each.share), self._at, now)
            more = decayed([had], now, self._half_life)
            self._hours[person] = self._hours.get(person, 0.0) + more
        self._at, self._running = now, leases
        return {person: UserShare(hours) for person, hours in self._hours.items()}

    def started(self, leases: Iterable[Lease]) -> None:
        """Note what has begun by it."""
        self._running = [*self._running, *leases]


def by_shares() -> Decide:
    """Return a function that decides as the hub does in the order "share", for one simulation."""
    so_far = SoFar()

    def decide(
        queue: Sequence[QueuedRequest], gpus: Sequence[GPU], leases: Sequence[Lease], now: float
    ) -> list[tuple[QueuedRequest, Sequence[GPU]]]:
        shares = so_far.shares(leases, now)
        turns = Planner().plan(queue, gpus, leases, now, order="share", shares=shares)
        granted = [(turn.waiting, turn.gpus) for turn in turns if turn.start == now]
        so_far.started(lease_of(*each, now) for each in granted)
        return granted

    return decide


def strict(
    queue: Sequence[QueuedRequest], gpus: Sequence[GPU], leases: Sequence[Lease], now: float
) -> list[tuple[QueuedRequest, Sequence[GPU]]]:
    """Decide first come, first served: the first request that can't start blocks all later ones."""
    started: list[tuple[QueuedRequest, Sequence[GPU]]] = []
    leases = list(leases)
    for waiting in by_time(queue):
        chosen = choose(waiting.request, apply_leases(gpus, leases))
        if chosen is None:
            break
        leases.append(lease_of(waiting, chosen, now))
        started.append((waiting, chosen))
    return started


class Retries:
    """Decisions without a queue: a user who is refused tries again some minutes later."""

    def __init__(self, seed: int, mean: float = 15 * MINUTE) -> None:
        self._random = random.Random(seed)  # noqa: S311 # a simulation, no secret
        self._mean = mean
        self._next: dict[Holder, float] = {}
        self.tries = 0

    def wake(self) -> float | None:
        """Return the time of the next try."""
        return min(self._next.values(), default=None)

    def decide(
        self,
        queue: Sequence[QueuedRequest],
        gpus: Sequence[GPU],
        leases: Sequence[Lease],
        now: float,
    ) -> list[tuple[QueuedRequest, Sequence[GPU]]]:
        """Give free GPUs to the users who try now."""
        started: list[tuple[QueuedRequest, Sequence[GPU]]] = []
        leases = list(leases)
        for waiting in queue:
            if self._next.get(waiting.holder, now) <= now:
                self.tries += 1
                chosen = choose(waiting.request, apply_leases(gpus, leases))
                if chosen is None:
                    self._next[waiting.holder] = now + self._random.expovariate(1 / self._mean)
                else:
                    self._next.pop(waiting.holder, None)
                    leases.append(lease_of(waiting, chosen, now))
                    started.append((waiting, chosen))
        return started


def week(number: int = 1000, seed: int = 1) -> tuple[list[Job], list[GPU]]:
    """Return a week's requests, about as many as 8 GPUs can serve by day, and the GPUs.

    Fewer than 1,000 come in a shorter week, so that they have to wait as well. Most come on working
    days by daylight and want one GPU. A tenth of the users make half of the requests. Two in five
    stop long before the time they asked for, one in three when it is over.
    """
    chance = random.Random(seed)  # noqa: S311 # a simulation, no secret
    drawn = []
    for _ in range(number):
        midnight = DAY * chance.choices(range(7), [5, 5, 5, 5, 5, 1, 1])[0]
        since = midnight + min(max(chance.gauss(14 * HOUR, 4 * HOUR), 0), DAY)
        heavy = chance.random() < 0.5
        user = f"heavy-{chance.randrange(4)}" if heavy else f"light-{chance.randrange(36)}"
        count = chance.choices([1, 2, 4, 8], [78, 14, 6, 2])[0]
        hours = chance.choices([0.5, 1, 2, 4], [45, 35, 15, 5])[0]
        early, late = chance.uniform(0.02, 0.3), chance.uniform(0.3, 1)
        used = chance.choices([early, late, 1.0], [6, 4, 5])[0]
        drawn.append((since * number / 1000, user, count, hours * HOUR, used))
    jobs = [
        Job(
            QueuedRequest(Holder(user, str(n)), Request("any", count, seconds=asked), since),
            asked * used,
        )
        for n, (since, user, count, asked, used) in enumerate(sorted(drawn))
    ]
    return jobs, [GPU(f"GPU-{index}", index, "NVIDIA A100-SXM4-40GB") for index in range(8)]


def main(arguments: Sequence[str] = ()) -> int:
    """Simulate the same week under each order, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench queue", description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    jobs, gpus = week(options.requests, options.seed)
    print(f"\nThe wait for GPUs in a week of {len(jobs)} requests on {len(gpus)} GPUs, in hours")
    show(compare(jobs, gpus, options.seed))
    return 0


def compare(
    jobs: Sequence[Job], gpus: Sequence[GPU], seed: int
) -> dict[str, tuple[list[Run], float]]:
    """Return order -> (runs, mean number of tries per request)."""
    orders = {
        'ours, "fifo"': ours("fifo"),
        'ours, "fair"': ours("fair"),
        'ours, "share"': by_shares(),
        STRICT: strict,
    }
    found = {name: (simulate(jobs, gpus, decide), 1.0) for name, decide in orders.items()}
    retries = Retries(seed)
    runs = simulate(jobs, gpus, retries.decide, retries.wake)
    return found | {"no queue: try again": (runs, retries.tries / len(jobs))}


def show(found: dict[str, tuple[list[Run], float]]) -> None:
    """Print a line for each order.

    "to strict" is the mean wait's ratio to the strict queue's, "in use" a share of the GPUs' time.
    Two more ratios of mean waits tell how fair an order is, 1 being even: of users with few
    requests to users with many, and of requests for 4 or more GPUs to those for 1.
    """
    titles = ["mean", "median", "95 %", "longest", "to strict", "in use"]
    titles += ["light:heavy", "large:small", "tries"]
    print(f"{'':23}", *(title.rjust(9) for title in titles))
    for name, (runs, tries) in found.items():
        waits = sorted(run.wait / HOUR for run in runs)
        light = [run for run in runs if run.job.waiting.holder.user.startswith("light")]
        heavy = [run for run in runs if run.job.waiting.holder.user.startswith("heavy")]
        large = [run for run in runs if len(run.gpus) >= 4]
        small = [run for run in runs if len(run.gpus) == 1]
        figures = [
            f"{statistics.mean(waits):.2f}",
            f"{statistics.median(waits):.2f}",
            f"{waits[len(waits) * 95 // 100]:.2f}",
            f"{waits[-1]:.2f}",
            ratio(runs, found[STRICT][0]),
            f"{in_use(runs):.0%}",
            ratio(light, heavy),
            ratio(large, small),
            f"{tries:.1f}",
        ]
        cells = (text.rjust(max(9, len(t))) for text, t in zip(figures, titles, strict=True))
        print(f"{name:23}", *cells)


def ratio(some: Sequence[Run], others: Sequence[Run]) -> str:
    """Return the ratio of two mean waits; "-" where nobody is in one of them, or none waited."""
    wait, other = (sum(run.wait for run in runs) / max(len(runs), 1) for runs in (some, others))
    return f"{wait / other:.2f}x" if some and other else "-"


def in_use(runs: Sequence[Run]) -> float:
    """Return the share of the GPUs' time that was used, from the first start to the last end."""
    host = {gpu.uuid for run in runs for gpu in run.gpus}
    used = sum(len(run.gpus) * (run.end - run.start) for run in runs)
    return used / len(host) / (max(run.end for run in runs) - min(run.start for run in runs))
