"""Reserved hours that are asked for and granted: who may, what is kept, and what collides."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from gpuspawner.__main__ import main
from gpuspawner.courses.catalogue import CourseCatalogue
from gpuspawner.courses.hours import ReservedHours
from gpuspawner.courses.hours_request import TRANSITIONS
from gpuspawner.errors import Refused
from gpuspawner.hub.rights import Asker
from gpuspawner.i18n.languages import language_for
from gpuspawner.i18n.lazy_text import restored
from gpuspawner.usage.database import StoreError

from ..support.courses import COURSES, LOG, Classroom

PROF, BOSS, REMBRANDT = Asker("prof"), Asker("boss", True), Asker("rembrandt")
DAY = datetime.now().date() + timedelta(days=30)


def hours(begin: str = "10:00", end: str = "12:00", gpus: int = 2, **more: Any) -> dict[str, Any]:
    return {"begin": f"{DAY}T{begin}", "end": end, "gpus": gpus, **more}


def deep(levels: int) -> Any:
    """So many lists in lists."""
    found: Any = 1
    for _ in range(levels):
        found = [found]
    return found


@pytest_asyncio.fixture
async def room(usage_url: str) -> AsyncIterator[Classroom]:
    made = Classroom(usage_db=usage_url)
    await made.ledger.read()
    yield made
    await made.close()


async def listed(room: Classroom, asker: Asker = BOSS) -> list[tuple[int, str, str]]:
    found = await room.hours.facts(asker)
    return [(each["id"], each["course"], each["state"]) for each in found["reserved_hours"]]


async def refusal(work: Any, status: int = 409) -> str:
    with pytest.raises(Refused) as refused:
        await work
    assert refused.value.status == status, str(refused.value)
    return str(refused.value)


def promised(room: Classroom) -> list[tuple[str, int]]:
    return [(each.course, each.gpus) for each in room.reserved()]


async def test_what_is_asked_for_and_granted_is_reserved(room: Classroom, events) -> None:
    asked = await room.hours.ask(PROF, "ml", hours(), "  for the\nexam ")
    assert (asked["state"], asked["note"], asked["asked_by"]) == ("asked", "for the exam", "prof")
    assert promised(room) == []
    assert room.hours.open_for(BOSS) == 1
    assert room.hours.open_for(PROF) == 0
    granted = await room.hours.grant(BOSS, asked["id"], None)
    assert (granted["state"], granted["decided_by"]) == ("granted", "boss")
    assert promised(room) == [("ml", 2)]
    assert room.hours.open_for(BOSS) == 0
    begin = datetime.fromtimestamp(room.reserved()[0].begin)
    assert f"{begin:%Y-%m-%dT%H:%M}" == f"{DAY}T10:00"
    lines = [each for each in events() if each["event"] == "reserve"]
    assert [(each["by"], each["state"], each["rule"], each["course"]) for each in lines] == [
        ("user:prof", "asked", "an instructor", "ml"),
        ("user:boss", "granted", "an administrator", "ml"),
    ]


async def test_an_administrator_changes_and_grants(room: Classroom) -> None:
    asked = await room.hours.ask(PROF, "ml", hours(gpus=4), "")
    await room.hours.grant(BOSS, asked["id"], hours(gpus=3, begin="11:00"))
    assert promised(room) == [("ml", 3)]
    (seen,) = (await room.hours.facts(PROF))["reserved_hours"]
    assert (seen["hours"]["gpus"], seen["hours"]["begin"]) == (3, f"{DAY}T11:00")


async def test_a_refusal_has_a_reason_that_the_instructor_reads(room: Classroom) -> None:
    asked = await room.hours.ask(PROF, "ml", hours(), "")
    said = await refusal(room.hours.refuse(BOSS, asked["id"], " \n "), 400)
    assert said == "The instructors need a reason."
    await room.hours.refuse(BOSS, asked["id"], "there is a fair")
    (seen,) = (await room.hours.facts(PROF))["reserved_hours"]
    assert (seen["state"], seen["why"]) == ("refused", "there is a fair")
    assert promised(room) == []


async def test_it_is_withdrawn_and_ended(room: Classroom) -> None:
    one = await room.hours.ask(PROF, "ml", hours(), "")
    await room.hours.withdraw(PROF, one["id"])
    two = await room.hours.make(BOSS, "ml", hours())
    assert promised(room) == [("ml", 2)]
    await room.hours.end(BOSS, two["id"], "the term is over")
    assert promised(room) == []
    assert await listed(room) == [(1, "ml", "withdrawn"), (2, "ml", "ended")]


async def test_what_was_decided_is_not_decided_again(room: Classroom) -> None:
    desk = room.hours
    number = (await desk.ask(PROF, "ml", hours(), ""))["id"]
    assert "isn't granted yet" in await refusal(desk.end(BOSS, number, ""))
    await desk.withdraw(PROF, number)
    for work in (
        desk.grant(BOSS, number, None),
        desk.refuse(BOSS, number, "no"),
        desk.end(BOSS, number, ""),
        desk.withdraw(PROF, number),
    ):
        assert await refusal(work) == "It was withdrawn."
    number = (await desk.make(BOSS, "ml", hours()))["id"]
    for work in (
        desk.grant(BOSS, number, None),
        desk.refuse(BOSS, number, "no"),
        desk.withdraw(PROF, number),
    ):
        assert await refusal(work) == "It has been granted already."
    assert promised(room) == [("ml", 2)]


# -- Who may -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asker",
    [Asker("ada"), Asker("eve", True), Asker("boss"), Asker("nobody"), Asker(""), REMBRANDT],
)
async def test_nobody_else_asks_reads_or_decides(room: Classroom, events, asker: Asker) -> None:
    desk = room.hours
    number = (await desk.ask(PROF, "ml", hours(), "secret note"))["id"]
    before = (await listed(room), len(events()))
    assert "There is no such course" in await refusal(desk.ask(asker, "ml", hours(), ""), 404)
    for work in (
        desk.make(asker, "ml", hours()),
        desk.grant(asker, number, None),
        desk.grant(asker, number, hours()),
        desk.refuse(asker, number, "no"),
        desk.end(asker, number, ""),
    ):
        assert await refusal(work, 403) == "Only an administrator can do that."
    assert "no such hours" in await refusal(desk.withdraw(asker, number), 404)
    if asker is REMBRANDT:
        assert (await desk.facts(asker))["reserved_hours"] == []
    else:
        await refusal(desk.facts(asker), 404)
    assert (await listed(room), len(events())) == before


async def test_an_instructor_decides_nothing(room: Classroom) -> None:
    number = (await room.hours.ask(PROF, "ml", hours(), ""))["id"]
    for work in (
        room.hours.make(PROF, "ml", hours()),
        room.hours.grant(Asker("prof", True), number, None),
        room.hours.refuse(PROF, number, "no"),
        room.hours.end(PROF, number, ""),
    ):
        await refusal(work, 403)
    room.remove("prof", "staff")
    await refusal(room.hours.withdraw(PROF, number), 404)
    assert await listed(room) == [(1, "ml", "asked")]


async def test_those_of_another_hub_are_not_there(room: Classroom, usage_url: str) -> None:
    number = (await room.hours.make(BOSS, "ml", hours()))["id"]
    other = Classroom(usage_db=usage_url)
    other.ledger.hub = "http://other"
    other.hours._store._hub = "http://other"  # type: ignore[union-attr]
    await other.ledger.read()
    assert await listed(other) == []
    await refusal(other.hours.end(BOSS, number, ""), 404)
    assert (await other.hours.make(BOSS, "ml", hours(gpus=4)))["state"] == "granted"
    assert await listed(room) == [(number, "ml", "granted")]
    await other.close()


# -- What can't be -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "key", "says"),
    [
        ({"begin": "tomorrow"}, "begin", "a time is written as 2026-10-05T10:00"),
        ({"end": "09:00"}, "end", "has to come after begin"),
        ({"end": "x" * 100_000}, "end", "too long: at most 40"),
        ({"gpus": 0}, "gpus", "can't be 0"),
        ({"gpus": True}, "gpus", "can't be True"),
        ({"gpus": "2"}, "gpus", "can't be '2'"),
        ({"repeat": "FREQ=WEEKLY"}, "repeat", "needs an end, UNTIL or COUNT"),
        ({"repeat": "FREQ=SECONDLY;COUNT=3"}, "repeat", "isn't understood"),
        ({"repeat": "FREQ=DAILY;COUNT=3", "end": f"{DAY + timedelta(days=2)}T10:00"}, "repeat", ""),
        ({"repeat": "FREQ=WEEKLY;UNTIL=20200101"}, "repeat", "is before the begin"),
        ({"exceptions": ["2030-01-01"]}, "exceptions", "there are no such hours"),
        ({"exceptions": "2030-01-01"}, "exceptions", "can't be"),
        ({"zone": "Mars/Base"}, "zone", "there is no time zone"),
        ({"zone": "../../etc/passwd"}, "zone", "there is no time zone"),
        ({"unclaimed_minutes": -1}, "unclaimed_minutes", "can't be"),
        ({"colour": "red"}, "colour", "There is no colour here"),
        ({"slots": True}, "slots", "slots can't be True: it is a whole number."),
        ({"slots": 1.5}, "slots", "slots can't be 1.5"),
        ({"slots": "15"}, "slots", "slots can't be '15': it is a whole number."),
        ({"slots": None}, "slots", "slots can't be None"),
        ({"slots": 65}, "slots", "slots can't be 65: it is at most 64."),
        ({"slots": -1}, "slots", "slots can't be -1: it is at least 0."),
        ({"slots": 1}, "slots", "one slot of a GPU is the whole GPU: from 2 to 64, or 0"),
        ({"slots": 2, "kind": "shared"}, "slots", "only whole GPUs are divided into slots"),
        ({"slots": 2, "kind": "1g.10gb"}, "slots", "only whole GPUs are divided into slots"),
        ({"begin": "2020-10-05T10:00"}, "begin", "over already"),
        ({"begin": "2030-03-31T02:30", "end": "04:00", "zone": "Europe/Berlin"}, "begin", "clock"),
        ({"begin": None}, "begin", "can't be None"),
        ({"repeat": "FREQ=WEEKLY;UNTIL=99991231"}, "repeat", "in the years 2000 to 2099"),
        ({"model": "\ud800"}, "hours", "These hours can't be read"),
        ({"\ud800": "x"}, "hours", "These hours can't be read"),
        ({"gpus": deep(700)}, "hours", "These hours can't be read"),
        ({"gpus": deep(100_000)}, "hours", "These hours can't be read"),
        ({"gpus": 10**5000}, "hours", "These hours can't be read"),
    ],
)
async def test_what_cannot_be_is_refused_by_its_key_and_nothing_is_kept(
    room: Classroom, wrong: dict[str, Any], key: str, says: str
) -> None:
    number = (await room.hours.ask(REMBRANDT, "art", hours(), ""))["id"]
    for work in (
        room.hours.ask(PROF, "ml", {**hours(), **wrong}, ""),
        room.hours.make(BOSS, "ml", {**hours(), **wrong}),
        room.hours.grant(BOSS, number, {**hours(), **wrong}),
    ):
        with pytest.raises(Refused) as refused:
            await work
        assert (refused.value.status, refused.value.key) == (400, key)
        assert says in str(refused.value)
        assert len(str(refused.value)) < 400
    assert await listed(room) == [(1, "art", "asked")]


async def test_what_is_missing_or_too_long_is_named(room: Classroom) -> None:
    assert await refusal(room.hours.ask(PROF, "ml", {}, ""), 400) == "begin is missing."
    said = await refusal(room.hours.ask(PROF, "ml", hours(), "x" * 501), 400)
    assert said == "The text is too long: at most 500 characters."
    for _ in range(20):
        await room.hours.ask(PROF, "ml", hours(), "")
    assert "20 requests" in await refusal(room.hours.ask(PROF, "ml", hours(), ""))


async def test_a_course_asks_so_often_a_day_whatever_became_of_it(
    room: Classroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(50):
        await room.hours.withdraw(PROF, (await room.hours.ask(PROF, "ml", hours(), ""))["id"])
    words = await refusal(room.hours.ask(PROF, "ml", hours(), ""))
    assert words.startswith("50 requests of the course were made in the last 24 hours")
    chinese = language_for("zh-CN")
    assert chinese.say(words) != words
    # It is the course's limit alone, and the day's.
    await room.hours.ask(REMBRANDT, "art", hours(), "")
    await room.hours.make(BOSS, "ml", hours())
    later = time.time() + 24 * 3600 + 60
    monkeypatch.setattr("gpuspawner.hub.hours_desk.time.time", lambda: later)
    await room.hours.ask(PROF, "ml", hours(), "")


async def test_the_times_of_what_is_closed_are_not_worked_out(
    room: Classroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    weekly = hours(repeat="FREQ=WEEKLY;COUNT=3", exceptions=[str(DAY)])
    for work in (room.hours.withdraw(PROF, 1), room.hours.refuse(BOSS, 2, "no")):
        await room.hours.ask(PROF, "ml", weekly, "")
        await work
    await room.hours.make(BOSS, "ml", weekly)
    await room.hours.end(BOSS, 3, "")
    monkeypatch.setattr(ReservedHours, "times", lambda self: pytest.fail("worked out"))
    found = (await room.hours.facts(BOSS))["reserved_hours"]
    assert [each["state"] for each in found] == ["withdrawn", "refused", "ended"]
    begin = datetime.combine(DAY, datetime.min.time()).timestamp() + 10 * 3600
    assert {(each["next_begin"], each["next_end"]) for each in found} == {(begin, begin + 7200)}


async def test_over_capacity_it_says_with_which_others_it_collides(room: Classroom) -> None:
    await room.hours.make(BOSS, "ml", hours(gpus=3))
    words = await refusal(room.hours.make(BOSS, "art", hours(gpus=2, begin="11:00", end="13:00")))
    assert "there is 1 GPU too few for it" in words
    assert "Machine <learning> (3 GPUs from" in words
    assert "Reserved then" in words
    assert promised(room) == [("ml", 3)]
    asked = await room.hours.ask(REMBRANDT, "art", hours(gpus=2), "")
    (seen,) = (await room.hours.facts(REMBRANDT))["reserved_hours"]
    assert "Machine <learning> (3 GPUs from" in restored(seen["trouble"])
    await refusal(room.hours.grant(BOSS, asked["id"], None))
    # Beside it, and after it, there is room.
    await room.hours.grant(BOSS, asked["id"], hours(gpus=1))
    await room.hours.make(BOSS, "art", hours(gpus=4, begin="12:00", end="13:00"))
    words = await refusal(room.hours.make(BOSS, "art", hours(gpus=5, begin="15:00", end="16:00")))
    assert "There are 4 in all" in words
    chinese = language_for("zh-CN")
    assert chinese.say(words) != words
    assert "Reserved" not in chinese.say(words)


async def test_hours_of_a_course_do_not_overlap(room: Classroom) -> None:
    await room.hours.make(BOSS, "ml", hours(gpus=1))
    words = await refusal(room.hours.make(BOSS, "ml", hours(gpus=1, begin="11:00", end="14:00")))
    assert f"It overlaps hours of the same course: {DAY} 10:00, once." in words
    await room.hours.make(BOSS, "art", hours(gpus=1, begin="11:00", end="14:00"))


async def test_without_ends_or_a_store_nothing_is_reserved_and_it_says_so_before(
    usage_url: str,
) -> None:
    for made, says in (
        (Classroom(usage_db=usage_url, hour_limit=None), "c.GPUSpawner.hour_limit"),
        (Classroom(), "c.GPUSpawner.usage_db"),
    ):
        await made.ledger.read()
        assert says in restored((await made.hours.facts(PROF))["why_not"])
        assert says in await refusal(made.hours.ask(PROF, "ml", hours(), ""))
        assert says in await refusal(made.hours.make(BOSS, "ml", hours()))
        await made.close()


async def test_without_a_course_an_administrator_reads_what_to_set(usage_url: str) -> None:
    room = Classroom(usage_db=usage_url, courses={})
    await room.ledger.read()
    assert "c.GPUSpawner.courses" in restored((await room.hours.facts(BOSS))["why_not"])
    await room.close()


async def test_unknown_gpus_are_not_promised(room: Classroom) -> None:
    room.ledger.last_view = None
    room.engine_is_down = True
    await refusal(room.hours.make(BOSS, "ml", hours()), 503)
    room.engine_is_down = False
    assert await listed(room) == []


async def test_hours_as_slots_are_asked_for_granted_and_reserved(room: Classroom, events) -> None:
    asked = await room.hours.ask(PROF, "ml", hours(gpus=4, slots=15), "")
    granted = await room.hours.grant(BOSS, asked["id"], None)
    assert granted["hours"]["slots"] == 15
    assert [(each.gpus, each.kind, each.slots) for each in room.reserved()] == [(4, "gpu", 15)]
    # The GPUs count whole: of four none is left, as slots or not.
    for more in ({}, {"slots": 2}):
        words = await refusal(room.hours.make(BOSS, "art", hours(gpus=1, **more)))
        assert "there is 1 GPU too few for it" in words
        assert "Machine <learning> (4 GPUs from" in words
    made = await room.hours.make(BOSS, "art", hours("12:00", "13:00", gpus=1))
    lines = [each for each in events() if each["event"] == "reserve"]
    assert [each.get("slots") for each in lines] == [15, 15, None]
    # An administrator grants others in their place.
    await room.hours.end(BOSS, made["id"], "")
    asked = await room.hours.ask(REMBRANDT, "art", hours("12:00", "13:00", gpus=1, slots=30), "")
    await room.hours.grant(BOSS, asked["id"], hours("12:00", "13:00", gpus=2))
    assert [each.slots for each in room.reserved()] == [15, 0]


async def test_hours_that_were_kept_before_there_were_slots_are_whole(
    room: Classroom, usage_url: str
) -> None:
    await room.hours.make(BOSS, "ml", hours())
    with sqlite3.connect(usage_url.removeprefix("sqlite:///")) as connection:
        ((text,),) = connection.execute("SELECT hours FROM gpuspawner_reserved_hours")
        before = json.loads(text)
        assert before.pop("slots") == 0
        connection.execute("UPDATE gpuspawner_reserved_hours SET hours = ?", (json.dumps(before),))
    (seen,) = (await room.hours.facts(BOSS))["reserved_hours"]
    assert (seen["hours"]["slots"], seen["state"], seen["trouble"]) == (0, "granted", "")
    assert [each.slots for each in room.reserved()] == [0]


async def test_where_gpus_are_not_divided_slots_are_refused_at_every_door(
    usage_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A hub that has moved to a Swarm, with what was granted before."""
    before = Classroom(usage_db=usage_url)
    await before.ledger.read()
    await before.hours.make(BOSS, "ml", hours(gpus=4, slots=15))
    await before.hours.ask(PROF, "ml", hours("13:00", "14:00", slots=15), "")
    await before.close()
    entry = {**COURSES["art"], "reserved": [hours("15:00", "16:00", slots=2)]}
    room = Classroom(usage_db=usage_url, courses={**COURSES, "art": entry}, divides_gpus=False)
    await room.ledger.read()
    facts = await room.hours.facts(BOSS)
    assert facts["divides_gpus"] is False
    said = "It isn't reserved: GPUs here aren't divided into slots for some hours."
    assert [restored(each["trouble"]) for each in facts["reserved_hours"]] == [said, said]
    assert promised(room) == []
    assert (
        "Nothing is reserved by courses['art'] reserved.0: whole GPUs aren't divided into slots "
        "here, as on a Swarm"
    ) in caplog.messages
    assert await refusal(room.hours.grant(BOSS, 2, None)) == said
    for work in (
        room.hours.ask(PROF, "ml", hours(slots=15), ""),
        room.hours.make(BOSS, "ml", hours(slots=15)),
        room.hours.grant(BOSS, 2, hours(slots=15)),
    ):
        with pytest.raises(Refused, match="ask for whole ones, with 0 slots") as refused:
            await work
        assert (refused.value.key, refused.value.status) == ("slots", 400)
    # What stands in nobody's way: whole GPUs at the same time.
    await room.hours.grant(BOSS, 2, hours("13:00", "14:00"))
    await room.hours.make(BOSS, "ml", hours(gpus=4))
    assert promised(room) == [("ml", 2), ("ml", 4)]
    await room.close()


# -- The order, and what changes around it -------------------------------------------------------


async def test_what_is_configured_comes_first_then_what_was_granted_first(usage_url: str) -> None:
    room = Classroom(usage_db=usage_url)
    await room.ledger.read()
    await room.hours.make(BOSS, "art", hours(gpus=2))
    await room.hours.make(BOSS, "ml", hours(gpus=2))
    assert promised(room) == [("art", 2), ("ml", 2)]
    room.gpus = 3
    await room.ledger.read()
    assert promised(room) == [("art", 2)]
    facts = (await room.hours.facts(BOSS))["reserved_hours"]
    assert [bool(each["trouble"]) for each in facts] == [False, True]
    room.gpus = 4
    await room.ledger.read()
    assert len(promised(room)) == 2
    # A configuration that is loaded anew has hours of its own.
    entry = {**COURSES["ml"], "reserved": [{**hours(gpus=3, begin="11:00", end="13:00")}]}
    room.courses = CourseCatalogue({**COURSES, "ml": entry}, "", LOG)
    room.reserved._courses = room.courses
    assert promised(room) == [("ml", 3)]
    await room.close()


async def test_a_hub_that_is_started_again_and_one_beside_it_know_it(usage_url: str) -> None:
    room = Classroom(usage_db=usage_url)
    await room.ledger.read()
    await room.hours.make(BOSS, "ml", hours())
    beside = Classroom(usage_db=usage_url)
    await beside.ledger.read()
    assert not beside.hours.is_known
    woken = []
    beside.hours.on_change = lambda: woken.append(True)
    task = asyncio.ensure_future(beside.hours.run())
    await beside.hours.ensure_read()
    assert promised(beside) == [("ml", 2)]
    assert woken == [True]
    task.cancel()
    # What one has decided, the other doesn't decide again.
    await beside.hours.end(BOSS, 1, "")
    await refusal(room.hours.end(BOSS, 1, ""))
    await room.hours.facts(BOSS)
    assert promised(room) == []
    await room.close()
    await beside.close()


async def test_a_store_that_fails_is_said_and_what_was_known_stays(
    room: Classroom, usage_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await room.hours.make(BOSS, "ml", hours())
    with sqlite3.connect(usage_url.removeprefix("sqlite:///")) as connection:
        connection.execute("ALTER TABLE gpuspawner_reserved_hours RENAME TO elsewhere")
    for work in (room.hours.make(BOSS, "art", hours()), room.hours.end(BOSS, 1, "")):
        assert "couldn't be kept, and nothing has changed" in await refusal(work, 503)
    await refusal(room.hours.facts(BOSS), 503)
    assert promised(room) == [("ml", 2)]
    assert len([each for each in caplog.messages if "stays as it was known" in each]) == 1
    with sqlite3.connect(usage_url.removeprefix("sqlite:///")) as connection:
        connection.execute("ALTER TABLE elsewhere RENAME TO gpuspawner_reserved_hours")
    assert await listed(room) == [(1, "ml", "granted")]
    assert "can be read again" in caplog.text


async def test_a_row_of_another_version_costs_itself_alone(
    room: Classroom, usage_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await room.hours.make(BOSS, "ml", hours())
    await room.hours.make(BOSS, "art", hours())
    with sqlite3.connect(usage_url.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE gpuspawner_reserved_hours SET hours = '[[' WHERE id = 1")
    assert await listed(room) == [(2, "art", "granted")]
    await listed(room)
    assert len([each for each in caplog.messages if "number 1 of the dashboard" in each]) == 1


async def test_who_is_forgotten_is_named_nowhere_and_the_hours_stay(
    room: Classroom, usage_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = await room.hours.ask(PROF, "ml", hours(), "a note of the prof's")
    await room.hours.grant(BOSS, asked["id"], None)
    db = ["usage", "--db", usage_url]
    assert main([*db, "--give-out", "prof"]) == 0
    (given,) = json.loads(capsys.readouterr().out)
    assert (given["asked_by"], given["note"]) == ("prof", "a note of the prof's")
    for name in ("prof", "boss"):
        assert main([*db, "--forget", name, "--yes"]) == 0
        assert main([*db, "--forget", name, "--yes"]) == 1
    (seen,) = (await room.hours.facts(BOSS))["reserved_hours"]
    assert (seen["asked_by"], seen["note"], seen["decided_by"]) == ("", "", None)
    assert promised(room) == [("ml", 2)]


async def test_no_start_is_granted_before_it_is_known_what_was_reserved(
    room: Classroom, usage_url: str
) -> None:
    soon = datetime.fromtimestamp(time.time() + 1800)
    end = soon + timedelta(hours=2)
    fields = {"begin": f"{soon:%Y-%m-%dT%H:%M}", "end": f"{end:%Y-%m-%dT%H:%M}", "gpus": 4}
    await room.hours.make(BOSS, "ml", fields)
    again = Classroom(usage_db=usage_url)
    eve = asyncio.ensure_future(again.wait("eve", hours=2))
    await asyncio.sleep(0.05)
    assert not eve.done()
    reading = asyncio.ensure_future(again.hours.run())
    assert not (await eve).attempt.reservation
    assert [each.holder.user for each in again.queue.waiting] == ["eve"]
    reading.cancel()
    await again.close()


async def test_a_start_waits_for_the_first_reading_and_no_longer(
    usage_url: str, monkeypatch
) -> None:
    monkeypatch.setattr("gpuspawner.hub.hours_desk.FIRST_SECONDS", 0.01)
    room = Classroom(usage_db=usage_url)
    await room.hours.ensure_read()

    def fail(now: float) -> Any:
        raise StoreError("no disk")

    monkeypatch.setattr(room.hours._store, "read", fail)
    task = asyncio.ensure_future(room.hours.run())
    await room.hours.ensure_read()
    await room.ledger.read()
    assert not room.reserved.is_known
    task.cancel()
    await room.close()


async def test_what_is_asked_is_told_to_administrators_and_what_is_decided_to_instructors(
    room: Classroom,
) -> None:
    told: list[tuple[str, str]] = []
    room.hours.tell_administrators = lambda words: told.append(("boss", words))
    room.hours.tell_instructors = lambda course, words: told.append((course.key, words))
    one = await room.hours.ask(PROF, "ml", hours(), "")
    await room.hours.refuse(BOSS, one["id"], "there is a fair")
    two = await room.hours.ask(PROF, "ml", hours(), "")
    await room.hours.grant(BOSS, two["id"], None)
    await room.hours.end(BOSS, two["id"], "")
    assert [to for to, _ in told] == ["boss", "ml", "boss", "ml", "ml"]
    assert told[1][1].endswith("aren't reserved. Why: there is a fair")
    assert "prof asks for reserved hours for Machine <learning>" in told[0][1]


async def test_others_wait_for_what_was_granted_and_start_when_it_is_ended(usage_url: str) -> None:
    room = Classroom(usage_db=usage_url)
    await room.ledger.read()
    room.hours.on_change = room.queue.wake
    soon = datetime.fromtimestamp(time.time() + 1800)
    made = await room.hours.make(
        BOSS,
        "ml",
        {
            "begin": f"{soon:%Y-%m-%dT%H:%M}",
            "end": f"{soon + timedelta(hours=2):%Y-%m-%dT%H:%M}",
            "gpus": 4,
        },
    )
    waiting = await room.wait("eve", hours=2)
    assert [each.holder.user for each in room.queue.waiting] == ["eve"]
    member = await room.start("ada", course="ml", hours=2)
    assert member.lease.units
    await room.hours.end(BOSS, made["id"], "")
    for _ in range(200):
        await asyncio.sleep(0)
        if waiting.attempt.reservation:
            break
    assert waiting.attempt.reservation
    await room.close()


# -- Two hubs, and a kill at any moment ----------------------------------------------------------


class Killed(BaseException):
    """A process ends, in the middle of something."""


STEPS = st.one_of(
    st.tuples(
        st.sampled_from(["ask", "make"]),
        st.sampled_from(["ml", "art"]),
        st.tuples(
            st.integers(8, 14), st.integers(1, 4), st.integers(1, 5), st.sampled_from([0, 15])
        ),
    ),
    st.tuples(
        st.sampled_from(["grant", "refuse", "withdraw", "end"]),
        st.integers(1, 8),
        st.none(),
    ),
)


async def act(room: Classroom, step: tuple[Any, Any, Any]) -> Any:
    desk, (what, of, value) = room.hours, step
    if what in ("ask", "make"):
        begin, length, gpus, slots = value
        fields = hours(f"{begin:02}:00", f"{begin + length:02}:00", gpus, slots=slots)
        if what == "make":
            return await desk.make(BOSS, of, fields)
        return await desk.ask(PROF if of == "ml" else REMBRANDT, of, fields, "")
    if what == "grant":
        return await desk.grant(BOSS, of, None)
    if what == "withdraw":
        return await desk.withdraw(PROF, of)
    return await (desk.refuse if what == "refuse" else desk.end)(BOSS, of, "why")


def kept_rows(usage_url: str) -> list[Any]:
    with sqlite3.connect(usage_url.removeprefix("sqlite:///")) as connection:
        found = connection.execute(
            "SELECT id, course, hours, state, rank, decided_by FROM gpuspawner_reserved_hours"
        )
        return found.fetchall()


def check_rows(before: list[Any], after: list[Any]) -> None:
    """No more is granted than there is, nothing is lost or half-made, and no state is skipped."""
    old, new = {row[0]: row for row in before}, {row[0]: row for row in after}
    assert old.keys() <= new.keys()
    changed = [key for key in new if old.get(key) != new[key]]
    assert len(changed) <= 1
    for key in changed:
        state = new[key][3]
        assert state in (TRANSITIONS[old[key][3]] if key in old else ("asked", "granted"))
        assert bool(new[key][5]) == (state != "asked")
    granted = [(row[1], json.loads(row[2]), row[4]) for row in after if row[3] == "granted"]
    assert len({rank for _, _, rank in granted}) == len(granted)
    for hour in range(8, 20):
        now = [
            (course, each["gpus"])
            for course, each, _ in granted
            if int(each["begin"][11:13]) <= hour < int(each["end"][:2])
        ]
        assert sum(gpus for _, gpus in now) <= 4
        assert len({course for course, _ in now}) == len(now)


def test_two_hubs_and_a_kill_at_any_moment_promise_no_more_than_there_is(usage_url: str) -> None:
    loop = asyncio.new_event_loop()
    rooms: list[Classroom] = []

    async def build() -> None:
        for _ in range(2):
            rooms.append(Classroom(usage_db=usage_url))
            await rooms[-1].ledger.read()
            await rooms[-1].hours.facts(BOSS)

    loop.run_until_complete(build())
    path = usage_url.removeprefix("sqlite:///")

    @settings(deadline=None)
    @given(
        st.lists(
            st.tuples(st.integers(0, 1), st.booleans(), STEPS, st.none() | st.integers(0, 2)),
            max_size=8,
        )
    )
    def play(steps: list[Any]) -> None:
        with sqlite3.connect(path) as connection:
            connection.execute("DELETE FROM gpuspawner_reserved_hours")
        for number, together, step, dies_at in steps:
            room, before = rooms[number], kept_rows(usage_url)
            store = room.hours._store
            assert store
            engine, left = store._store.engine, dies_at

            def die(_connection: Any, cursor: Any, statement: str, *_: Any) -> None:
                nonlocal left
                if left is not None and not statement.startswith("BEGIN"):
                    left -= 1
                    if left < 0:
                        # A process that ends leaves no statement open, as this one would.
                        cursor.close()
                        raise Killed

            event.listen(engine, "after_cursor_execute", die)
            with suppress(Refused, Killed):
                loop.run_until_complete(act(room, step))
            event.remove(engine, "after_cursor_execute", die)
            after = kept_rows(usage_url)
            check_rows(before, after)
            if together:
                # Both at once: one of them is first.

                async def both(step: Any = step) -> None:
                    await asyncio.gather(
                        *(act(each, step) for each in rooms), return_exceptions=True
                    )

                loop.run_until_complete(both())
                check_rows_of_two(after, kept_rows(usage_url))
        loop.run_until_complete(rooms[0].hours.facts(BOSS))
        # What the hub promises is what is kept.
        granted = [row for row in kept_rows(usage_url) if row[3] == "granted"]
        assert len(rooms[0].reserved()) == len(granted)

    play()
    for room in rooms:
        loop.run_until_complete(room.close())
    loop.close()


def check_rows_of_two(before: list[Any], after: list[Any]) -> None:
    """Of two that do the same, none undoes what the other has done."""
    new = [row for row in after if row not in before]
    if len(new) < 2:
        check_rows(before, after)
        return
    _, second = sorted(new, key=lambda row: (row[4], row[0]))
    between = [row for row in after if row != second]
    between += [row for row in before if row[0] == second[0]]
    check_rows(before, sorted(between))
    check_rows(sorted(between), after)
