"""What the dashboard says of what GPUs did, and who had them: read from the store, by who asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

from ..errors import Refused
from ..i18n.lazy_text import lazy_gettext
from ..usage.history import DAY, LONG, NOTHING, Curves, Held, step_of
from ..usage.report import Period, midnight, parse_moment
from ..usage.store import Store
from .facts import Person, iso_time
from .monitor import Snapshot
from .usage_facts import UsageReader

# Of how many days the hours of a day are compared, today with them.
DAYS = 7
# The longest name of a GPU that a refusal quotes, in characters.
MAX_QUOTED = 60


@dataclass(frozen=True)
class AskedHistory:
    """A question about what GPUs did.

    Args:
        period: the time.
        gpu: the UUID of a GPU; "": of all.
        step: of how many seconds a point is.
    """

    period: Period
    gpu: str
    step: int


@dataclass(frozen=True)
class ReadHistory:
    """The answer, as the store has it.

    Args:
        hub: the address of the hub that the dashboard is of.
        curves: what the GPUs did.
        held: who held them.
        week: the same curves of the last days, each point half an hour.
    """

    hub: str
    curves: Curves
    held: Sequence[Held]
    week: Curves


def ask(get: Callable[[str], str]) -> AskedHistory:
    """Return what is asked, of a request's arguments: of the last day, where no time is given.

    Args:
        get: returns an argument; "" where there is none.

    Raises:
        Refused: it makes no sense.
    """
    now = time.time()
    end = parse_moment("to", get("to")) if get("to") else now
    begin = parse_moment("from", get("from")) if get("from") else end - DAY
    return question(Period(begin, end), get("gpu"), now)


def question(period: Period, gpu: str, now: float) -> AskedHistory:
    """Return the question about a period.

    Args:
        period: the period.
        gpu: the UUID of a GPU; "": of all.
        now: the time, in seconds since the epoch.

    Raises:
        Refused: it is none, or too long.
    """
    if period.begin >= period.end:
        words = lazy_gettext("No time lies from the first date on and before the second.")
        raise Refused(words, key="to")
    try:
        return AskedHistory(period, gpu, step_of(period, now))
    except ValueError:
        words = lazy_gettext("from and to lie more than a year apart.")
        raise Refused(words, key="from") from None


async def read_history(reader: UsageReader, asked: AskedHistory) -> ReadHistory:
    """Return the answer to a question.

    Raises:
        Refused: it isn't kept, or can't be read.
    """
    gpus = [asked.gpu] if asked.gpu else None
    now = time.time()
    today = datetime.fromtimestamp(now).date()
    week = Period(midnight(today - timedelta(days=DAYS - 1)), now)

    def read(store: Store, hub: str) -> ReadHistory:
        found = store.curves(asked.period, asked.step, gpus)
        held = store.held(found.period, gpus)
        return ReadHistory(hub, found, held, store.curves(week, LONG, gpus))

    return await reader.read(read)


def history(
    snapshot: Snapshot, person: Person, asked: AskedHistory, read: ReadHistory
) -> dict[str, Any]:
    """Return what GPUs did, and who had them, as a JSON value; `openapi.yaml` describes it.

    Whose a lease was, and when it began and ended, is for who may read the holder's name now. For
    others a GPU was held or not at each point, and nothing says where one lease ended and the next
    began.

    Args:
        snapshot: the state of the nodes and the hub.
        person: who asks.
        asked: the question.
        read: its answer.

    Raises:
        Refused: there is no such GPU, and never was.
    """
    there = dict.fromkeys(gpu.gpu_uuid for gpu in snapshot.gpus if gpu.gpu_uuid)
    known = {**there, **dict.fromkeys(sorted({*read.curves.gpus, *(e.gpu for e in read.held)}))}
    if asked.gpu and asked.gpu not in known:
        words = lazy_gettext("There is no GPU %(uuid)s.", uuid=repr(asked.gpu[:MAX_QUOTED]))
        raise Refused(words, status=404, key="gpu")
    period = read.curves.period
    held: dict[str, list[Held]] = {}
    for each in read.held:
        held.setdefault(each.gpu, []).append(each)
    return {
        "from": iso_time(period.begin),
        "to": iso_time(period.end),
        "seconds_per_point": read.curves.step,
        "gpus": [
            _gpu(uuid, read, held.get(uuid, ()), person)
            for uuid in known
            if asked.gpu in ("", uuid)
        ],
        "hours": list(_hours(read.week)),
    }


def _gpu(uuid: str, read: ReadHistory, held: Sequence[Held], person: Person) -> dict[str, Any]:
    found = read.curves.gpus.get(uuid, {})
    points = [found.get(number, NOTHING) for number in range(read.curves.points)]
    return {
        "uuid": uuid,
        "utilization_percent": [each.utilization_percent for each in points],
        "memory_used_mib": [each.memory_used_mib for each in points],
        "held": list(_spans(read.curves, held)),
        "leases": list(_leases(held, read.hub, person)),
    }


def _spans(of: Curves, held: Sequence[Held]) -> Iterator[dict[str, Any]]:
    """Yield when a GPU was held, in whole points."""
    is_held = [False] * of.points
    for each in held:
        first = max(0, int((each.period.begin - of.period.begin) // of.step))
        last = min(of.points, -int(-(each.period.end - of.period.begin) // of.step))
        is_held[first:last] = [True] * max(0, last - first)
    for held_now, run in groupby(range(of.points), key=is_held.__getitem__):
        numbers = list(run)
        if held_now:
            begin, end = numbers[0], numbers[-1] + 1
            yield {
                "from": iso_time(of.period.begin + begin * of.step),
                "to": iso_time(of.period.begin + end * of.step),
            }


def _leases(held: Sequence[Held], hub: str, person: Person) -> Iterator[dict[str, Any]]:
    for each in held:
        is_other = each.hub != hub
        if person.sees_holder(each.user, other_hub=is_other):
            yield {
                "unit": each.unit,
                "user": each.user,
                "server": each.server,
                "yours": not is_other and person.is_user(each.user),
                "other_hub": is_other,
                "from": iso_time(each.period.begin),
                "to": iso_time(each.period.end),
            }


def _hours(week: Curves) -> Iterator[dict[str, Any]]:
    """Yield each day of a week: of each of its hours the mean utilization of all GPUs."""
    found: dict[Any, dict[int, Any]] = {}
    for number in range(week.points):
        at = datetime.fromtimestamp(week.period.begin + number * week.step)
        hours = found.setdefault(at.date(), dict.fromkeys(range(24), NOTHING))
        for gpu in week.gpus.values():
            hours[at.hour] += gpu.get(number, NOTHING)
    for day, hours in found.items():
        percents = [hours[hour].utilization_percent for hour in range(24)]
        yield {"day": day.isoformat(), "utilization_percent": percents}
