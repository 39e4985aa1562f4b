"""Reserved hours in a hub: who starts, who waits and reads why, and what can't be kept."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import pytest

from gpuspawner.courses.catalogue import CourseCatalogue
from gpuspawner.errors import Refused
from gpuspawner.gpus.model import GPU, Holder, Lease, Node, course_group
from gpuspawner.hub.reserved_hours import ReservedTimes
from gpuspawner.i18n.languages import language_for
from gpuspawner.leases.ledger import View
from gpuspawner.scheduling.phrases import turn_words

from ..support.spawns import Hub, begin, waiting

HOUR = 3600.0
TITLE = "Machine <learning>"
LOG = logging.getLogger("reserved-hours")


def wall(hours: float) -> str:
    """A time so many hours from now, as a configuration has it."""
    return f"{datetime.fromtimestamp(time.time() + hours * HOUR):%Y-%m-%dT%H:%M}"


def course(begin: float, end: float, gpus: int = 2, **more: Any) -> dict[str, Any]:
    reserved = {"begin": wall(begin), "end": wall(end), "gpus": gpus, **more}
    return {"title": TITLE, "group": "students", "instructors": "staff", "reserved": [reserved]}


async def started(one: Any) -> Any:
    await one.run_pre_spawn_hook()
    assert one.attempt.reservation
    return one.attempt.reservation


async def kept_waiting(one: Any, hub: Hub) -> str:
    """Return what one who has to wait is told."""
    task = await waiting(one, hub)
    (entry,) = hub.queue.waiting
    assert entry.turn
    said = turn_words(entry.turn)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return f"{entry.turn.because}: {said}"


async def test_others_end_before_the_hours_or_wait_and_members_start() -> None:
    hub = Hub()
    rules = {"courses": {"ml": course(2, 4)}, "hour_limit": 12}
    other = hub.spawner((), **rules)
    await begin(other, gpus=1, hours=3)
    said = await kept_waiting(other, hub)
    assert said.startswith("reserved: ")
    assert f"Reserved for course {TITLE} from" in said
    assert "A server that ends by" in said
    await begin(other, gpus=1, hours=1.5)
    assert len((await started(other)).gpus) == 1
    member = hub.spawner(("students",), **rules)
    await begin(member, gpus=1, hours=3)
    reservation = await started(member)
    assert course_group("ml") in reservation.groups


async def test_in_the_hours_what_is_reserved_is_the_course_s_alone() -> None:
    hub = Hub()
    rules = {"courses": {"ml": course(-0.1, 4, unclaimed_minutes=60)}, "hour_limit": 12}
    other = hub.spawner((), **rules)
    await begin(other, gpus=1, hours=0.1)
    said = await kept_waiting(other, hub)
    assert f"Reserved for course {TITLE} from" in said
    assert "could start now" not in said
    member = hub.spawner(("students",), **rules)
    await begin(member, gpus=1, hours=1)
    assert await started(member)


async def test_an_empty_choice_is_for_the_course_whose_hours_they_are() -> None:
    hub = Hub()
    courses = {"cv": {"group": "students"}, "ml": course(-0.1, 4), "nlp": course(1, 2)}
    one = hub.spawner(("students",), courses=courses, hour_limit=12)
    await hub.ledger.read()
    assert one.limits().course_now == "ml"
    await begin(one)
    assert one.attempt.request
    assert one.attempt.request.course == "ml"
    lazy = hub.spawner(("staff",), courses={"ml": course(2, 4)}, hour_limit=12)
    await begin(lazy)
    assert lazy.attempt.request
    assert lazy.attempt.request.course == ""


async def test_without_ends_nothing_is_promised_and_the_log_names_the_trait(caplog: Any) -> None:
    hub = Hub()
    one = hub.spawner((), courses={"ml": course(2, 4)}, hour_limit=None)
    await begin(one, gpus=2)
    assert await started(one)
    named = [each.message for each in caplog.records if "hour_limit" in each.message]
    assert len(named) == 1
    assert named[0].endswith("Set c.GPUSpawner.hour_limit")


def reserved_by(
    courses: dict[str, Any], gpus: Sequence[GPU], leases: Sequence[Lease] = ()
) -> tuple[ReservedTimes, View]:
    hub = Hub()
    view = View((Node("", "570", "12.8", tuple(gpus)),), tuple(leases))
    hub.ledger.last_view = view
    return ReservedTimes(CourseCatalogue(courses, "", LOG), hub.ledger, 12, LOG), view


def machine(*states: str) -> list[GPU]:
    return [GPU(f"GPU-{n}", n, "A100", state=state) for n, state in enumerate(states)]  # type: ignore[arg-type]


def test_what_is_more_than_there_is_is_refused_and_named(caplog: Any) -> None:
    courses = {"ml": course(2, 4, 1), "nlp": course(3, 5, 2), "cv": course(4, 6, 2)}
    found, _ = reserved_by(courses, machine("free", "unhealthy", "excluded"))
    assert [each.course for each in found()] == ["ml", "cv"]
    assert found() is found()
    (said,) = [record.message for record in caplog.records]
    assert said.startswith("Nothing is reserved by courses['nlp'] reserved.0: on ")
    assert "there are 1 too few" in said


def test_what_cannot_be_kept_is_told_once_to_log_and_instructors(caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    found, view = reserved_by({"ml": course(2, 4)}, machine("free", "unhealthy"))
    told: list[str] = []
    found.tell = lambda course, words: told.append(str(words))
    (missing,) = found.look(view)
    assert missing.gpus == 1
    found.look(view)
    assert len(told) == 1
    assert told[0].startswith(f"Reserved for course {TITLE} from ")
    assert "2 GPUs, of which 1 can't be had as things are" in told[0]
    lines = re.findall(r"gpuspawner (\{.*\})$", caplog.text, re.M)
    (line,) = [json.loads(each) for each in lines]
    assert (line["event"], line["rule"], line["course"], line["gpus"]) == (
        "warn",
        "reserved hours",
        "ml",
        1,
    )
    # It can be kept again, and then not: that is news.
    well = View((Node("", "570", "12.8", tuple(machine("free", "free"))),))
    assert found.look(well) == []
    found.look(view)
    assert len(told) == 2


def test_what_cannot_be_kept_of_hours_as_slots_says_how_many_seats_are_left() -> None:
    found, view = reserved_by({"ml": course(2, 4, 2, slots=15)}, machine("free", "unhealthy"))
    told: list[str] = []
    found.tell = lambda course, words: told.append(words)
    (missing,) = found.look(view)
    assert (missing.gpus, missing.reserved.slots) == (1, 15)
    (words,) = told
    assert str(words).endswith("can't be had as things are. That leaves 15 of 30 seats.")
    chinese = language_for("zh-CN").say(words)
    assert chinese.endswith("因此 30 个席位中只剩 15 个。")


@pytest.mark.parametrize(
    ("groups", "asked", "granted"),
    [
        (frozenset[str](), 1.5, 1.5),
        (frozenset[str](), 3, 2 - 300 / HOUR),
        (frozenset({course_group("ml")}), 3, 3),
    ],
)
def test_time_is_added_up_to_the_hours(
    groups: frozenset[str], asked: float, granted: float
) -> None:
    now = time.time()
    lease = Lease(Holder("ada"), frozenset({"GPU-0"}), now + 0.5 * HOUR, groups)
    held = machine("leased", "free")
    found, _ = reserved_by({"ml": course(2, 4)}, held, [lease])
    end, whose = found.latest_end(Holder("ada"), now + asked * HOUR)
    assert (end - now) / HOUR == pytest.approx(granted, abs=0.02)
    assert (f"course {TITLE} afterwards" in str(whose)) == (granted < asked)


def test_a_course_s_whole_gpu_is_not_kept_into_its_hours_as_slots() -> None:
    now = time.time()
    mine = frozenset({course_group("ml")})
    lease = Lease(Holder("ada"), frozenset({"GPU-0"}), now + 0.5 * HOUR, mine)
    found, _ = reserved_by({"ml": course(2, 4, slots=15)}, machine("leased", "free"), [lease])
    end, why = found.latest_end(Holder("ada"), now + 3 * HOUR)
    assert (end - now) / HOUR == pytest.approx(2 - 300 / HOUR, abs=0.02)
    assert f"course {TITLE} afterwards" in str(why)


@pytest.mark.parametrize(
    "courses",
    [
        {},
        {"ml": {"title": TITLE, "group": "students"}},
        {"ml": course(-1, -0.1, slots=4)},
        {"ml": course(-1, 3, slots=8)},
        {"ml": course(-1, 3)},
        {"ml": course(2, 3, slots=4)},
        {"cv": course(-1, 3, slots=4)},
        {"ml": course(-1, 0.2, slots=4)},
    ],
)
def test_a_slot_of_hours_that_have_been_changed_is_kept_no_longer_than_granted(
    courses: dict[str, Any],
) -> None:
    now = time.time()
    mine = frozenset({course_group("ml")})
    lease = Lease(Holder("ada"), frozenset({"GPU-0#1/4"}), now + 0.5 * HOUR, mine)
    found, _ = reserved_by(courses, machine("leased", "free"), [lease])
    end, why = found.latest_end(Holder("ada"), now + HOUR)
    assert (end, bool(why)) == (lease.until, True)


def test_nothing_is_added_before_it_is_known_what_is_reserved() -> None:
    now = time.time()
    lease = Lease(Holder("ada"), frozenset({"GPU-0"}), now + 0.5 * HOUR)
    found, view = reserved_by({"ml": course(2, 4)}, machine("leased", "free"), [lease])
    ledger = found._ledger
    ledger.last_view = None
    end, why = found.latest_end(Holder("ada"), now + HOUR)
    assert (end < lease.until, "has just started" in str(why)) == (True, True)
    ledger.last_view = view
    assert found.latest_end(Holder("ada"), now + HOUR) == (now + HOUR, "")


async def test_it_is_known_soon_though_nobody_asks_for_anything() -> None:
    found, view = reserved_by({}, machine("free"))
    ledger = found._ledger
    ledger.last_view = None

    async def read_recent(seconds: float) -> View:
        ledger.last_view = view
        return view

    ledger.read_recent = read_recent  # type: ignore[method-assign]
    watching = asyncio.ensure_future(found.watch())
    await asyncio.sleep(0)
    assert found.is_known
    watching.cancel()


async def test_an_extension_into_the_hours_is_refused_with_a_sentence() -> None:
    hub = Hub()
    one = hub.spawner((), courses={"ml": course(1, 4)}, hour_limit=12, extend_minutes=None)
    await begin(one, gpus=1, hours=0.95)
    reservation = await started(one)
    await hub.ledger.read()
    one.on_extended = lambda end: None  # type: ignore[method-assign]
    one.lease.hold(reservation.units)
    with pytest.raises(Refused, match=f"are reserved for course {TITLE} afterwards"):
        one.lease.extend(1)
    assert one.lease.until == pytest.approx(reservation.until, abs=5)
