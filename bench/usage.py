"""The store of the usage after a year of 200,000 leases: its size, a month's report, the history.

No server is started: the leases are drawn at random, and in the order of no time. The file is as
large as after a year in which each lease was written several times. Times are the processor's, the
worst of several rounds, with their goals.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from gpuspawner.gpus.model import Holder
from gpuspawner.leases.labels import ServerRecord
from gpuspawner.scheduling.budgets import Budget, Budgets
from gpuspawner.usage.history import LONG, SHORT, SHORT_KEPT_SECONDS
from gpuspawner.usage.lately import PastUses
from gpuspawner.usage.report import DIMENSIONS, Period, Scope, parse_period
from gpuspawner.usage.schema import groups, history, leases, units
from gpuspawner.usage.sightings import Sightings
from gpuspawner.usage.store import Store

# The goals, in seconds and MB.
REPORT_GOAL, SIZE_GOAL = 1.0, 200.0
READ_GOAL, FORM_GOAL = 1.0, 0.05
# What eight GPUs did in a year, and what its page reads of it.
HISTORY_GPUS, HISTORY_SIZE_GOAL, HISTORY_GOAL = 8, 20.0, 0.25
DAY = 86400.0
LEASES = 200_000
YEAR, MONTH = ("2026-01-01", "2027-01-01"), ("2026-11-01", "2026-12-01")
HUB = "http://172.18.0.1:8081/hub/api"
IMAGES = ("pytorch-2.7", "tensorflow-2.18", "jax-0.6", "minimal")
WHYS = ("user", "time limit", "idle GPUs", "service", "out of memory")
# Written together.
AT_ONCE = 5_000


def fill(store: Store, number: int, seed: int = 1) -> None:
    """Write so many leases of one year."""
    chance = random.Random(seed)  # noqa: S311 # a simulation, no secret
    year = parse_period(*YEAR, now=0)
    gpus = [f"GPU-{uuid.UUID(int=chance.getrandbits(128))}" for _ in range(64)]
    for first in range(1, number + 1, AT_ONCE):
        rows: dict[Any, list[dict[str, Any]]] = {leases: [], units: [], groups: []}
        for key in range(first, min(first + AT_ONCE, number + 1)):
            _draw(rows, key, year, gpus, chance)
        with store.engine.begin() as connection:
            for table, some in rows.items():
                connection.execute(insert(table), some)


def _draw(
    rows: dict[Any, list[dict[str, Any]]],
    key: int,
    year: Period,
    gpus: Sequence[str],
    chance: random.Random,
) -> None:
    began = chance.uniform(year.begin, year.end)
    seconds, count = chance.expovariate(1 / 7200), chance.choices((1, 2, 4), (80, 15, 5))[0]
    user = chance.randrange(300)
    server = ServerRecord(f"{chance.getrandbits(256):064x}", {})
    measured = seconds * 0.98
    rows[leases].append(
        {
            "id": key,
            "hub": HUB,
            "server_id": server.id,
            "started": began,
            "user": f"student-{user:03}@university.example",
            "server": "",
            "course": f"course-{user % 12}",
            "image": chance.choice(IMAGES),
            "share_part": count,
            "share_of": 1,
            "waited": chance.expovariate(1 / 600),
            "began": began,
            "seconds": seconds,
            "until": began + seconds,
            "boot": "7f0ffb3e-2c0c-4d0a-9b53-0e7c7c1c8f11",
            "until_steady": began - year.begin + seconds,
            "is_over": True,
            "why": chance.choice(WHYS),
            "exit_code": 0,
            "sampled_steady": began - year.begin + measured,
            "measured": measured,
            "idle": measured * chance.random(),
            "used_of": measured,
            "used": measured * chance.random(),
            "memory_of": measured,
            "memory": measured * 20_000,
            "memory_peak": 30_000,
        }
    )
    for gpu in chance.sample(gpus, count):
        model = "NVIDIA A100-SXM4-40GB"
        part = {"lease": key, "unit": gpu, "gpu": gpu, "model": model}
        rows[units].append({**part, "share_part": 1, "share_of": 1})
    for name in ("students", f"course-{user % 12}-participants"):
        rows[groups].append({"lease": key, "name": name})


def measure(number: int, rounds: int) -> dict[str, tuple[float, float, str]]:
    """Return name of the figure -> (figure, goal, unit)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "usage.sqlite"
        store = Store(f"sqlite:///{path}")
        store.open()
        fill(store, number)
        store.close()
        size = _bytes_in(folder) / 1e6
        found = {f"the store after {number} leases": (size, SIZE_GOAL, "MB")}
        store = Store(f"sqlite:///{path}", writes=False)
        month = parse_period(*MONTH, now=0)
        for by in DIMENSIONS:
            taken = max(_timed(store, month, by) for _ in range(rounds))
            found[f"a month's report with its chart, by {by}"] = (taken, REPORT_GOAL, "s")
        year = _timed(store, parse_period(*YEAR, now=0), "user")
        found["the whole year's, by user"] = (year, float("inf"), "s")
        found |= _budgets(store, parse_period(*YEAR, now=0).end, rounds)
        store.close()
        return found


def measure_history(rounds: int) -> dict[str, tuple[float, float, str]]:
    """Return the same of what GPUs did in a year."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"sqlite:///{Path(folder) / 'usage.sqlite'}")
        store.open()
        empty = _bytes_in(folder)
        year = parse_period(*YEAR, now=0)
        edge = int((year.end - SHORT_KEPT_SECONDS) // LONG) * LONG
        first = int(year.begin // LONG) * LONG
        for span, begin, end in ((LONG, first, edge), (SHORT, edge, int(year.end))):
            fill_history(store, span, range(begin, end, span))
        store.close()
        size = (_bytes_in(folder) - empty) / 1e6
        store = Store(f"sqlite:///{Path(folder) / 'usage.sqlite'}", writes=False)
        name = f"a year of what {HISTORY_GPUS} GPUs did"
        found = {name: (size, HISTORY_SIZE_GOAL, "MB")}
        for days, step in ((1, SHORT), (30, 7200)):
            taken = []
            for _ in range(rounds):
                began = time.process_time()
                store.curves(Period(year.end - days * DAY, year.end), step)
                store.curves(Period(year.end - 7 * DAY, year.end), LONG)
                taken.append(time.process_time() - began)
            found[f"what its page reads, {days} days"] = (max(taken), HISTORY_GOAL, "s")
        store.close()
        return found


def fill_history(store: Store, span: int, begins: Sequence[int], seed: int = 1) -> None:
    """Write what GPUs did in spans of so many seconds."""
    chance = random.Random(seed)  # noqa: S311 # a simulation, no secret
    gpus = [f"GPU-{uuid.UUID(int=number << 64)}" for number in range(HISTORY_GPUS)]
    for at in range(0, len(begins), AT_ONCE):
        rows = [
            {
                "seconds": span,
                "began": began,
                "gpu": gpu,
                "until": began + span - chance.uniform(0, 60),
                "used_of": span - chance.uniform(0, 60),
                "used": chance.uniform(0, span),
                "memory_of": span - chance.uniform(0, 60),
                "memory": chance.uniform(0, span) * 40_000,
            }
            for began in begins[at : at + AT_ONCE]
            for gpu in gpus
        ]
        with store.engine.begin() as connection:
            connection.execute(insert(history), rows)


def _bytes_in(folder: str) -> int:
    return sum(each.stat().st_size for each in Path(folder).iterdir())


def _budgets(store: Store, now: float, rounds: int) -> dict[str, tuple[float, float, str]]:
    """Return the same for budgets: what all have had in 30 days, and what of it is left."""
    taken = []
    for _ in range(rounds):
        began = time.process_time()
        uses = store.uses(HUB, now - 30 * DAY, ["students"])
        taken.append(time.process_time() - began)
    past = PastUses(HUB, Sightings(HUB), _nothing)
    past.take(uses)
    budgets = Budgets([Budget("students", 1e5, 30, together=True)], past)
    holder, students = Holder("student-001@university.example"), frozenset({"students"})
    began = time.process_time()
    for _ in range(10):
        budgets.standings(holder, students, [], [], now)
    left = time.process_time() - began
    return {
        f"what is read for budgets of 30 days, {len(uses)} leases": (max(taken), READ_GOAL, "s"),
        "what is left of one, for a form of ten choices": (left, FORM_GOAL, "s"),
    }


async def _nothing() -> None:
    """Read nothing: it is there."""


def _timed(store: Store, period: Period, by: str) -> float:
    began = time.process_time()
    store.report(period, by, Scope(hub=HUB))
    store.over_time(period, Scope(hub=HUB))
    return time.process_time() - began


def main(arguments: Sequence[str] = ()) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench usage", description=__doc__)
    parser.add_argument("--leases", type=int, default=LEASES)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    print("\nThe usage, a year of leases in SQLite")
    print(f"{'':55} {'is':>8} {'goal':>8}")
    measured = {**measure(options.leases, options.rounds), **measure_history(options.rounds)}
    for name, (found, goal, unit) in measured.items():
        verdict = "" if goal == float("inf") else "met" if found <= goal else "missed"
        said = "" if goal == float("inf") else f"{goal:g}"
        print(f"{name:55} {found:8.2f} {said:>8} {unit:2} {verdict}")
    return 0
