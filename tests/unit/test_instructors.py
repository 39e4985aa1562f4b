"""What instructors see and do in their course, and nobody else: the hub's own check."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import text as sql

from gpuspawner.errors import Refused
from gpuspawner.gpus.model import Holder
from gpuspawner.hub.messages import KEPT_SECONDS, MAX_KEPT, MAX_LENGTH, Messages
from gpuspawner.hub.rights import Asker
from gpuspawner.leases.labels import LABEL_COURSE, LABEL_HUB, ServerRecord, labels

from ..support.boards import HOSTILE
from ..support.courses import COURSES, PEOPLE, Classroom, of

PROF, BOSS = Asker("prof"), Asker("boss", as_administrator=True)


@pytest_asyncio.fixture
async def room() -> AsyncIterator[Classroom]:
    made = Classroom()
    yield made
    await made.close()


async def members(room: Classroom, asker: Asker = PROF) -> dict[str, list[dict[str, Any]]]:
    roster = await room.instructors.roster("ml", asker)
    return {each["user"]: each["servers"] for each in roster["members"]}


async def every_act(room: Classroom, key: str, asker: Asker, holder: Holder) -> list[Exception]:
    """Try all there is, and return why nothing of it is done."""
    teach = room.instructors
    acts = [
        teach.roster(key, asker),
        teach.extend(key, asker, holder, None),
        teach.extend(key, asker, None, None),
        teach.stop(key, asker, holder, "because", 0),
        teach.stop(key, asker, holder, "because", 10),
        teach.keep(key, asker, holder),
        teach.send(key, asker, holder, "hello"),
        teach.send(key, asker, None, "hello"),
        teach.move_to_front(key, asker, holder),
    ]
    refusals = []
    for act in acts:
        with pytest.raises(Refused) as refused:
            await act
        refusals.append(refused.value)
    return refusals


# -- Who may -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "asker"),
    [
        ("ml", Asker("ada")),
        ("ml", Asker("rembrandt")),
        ("ml", Asker("eve")),
        ("ml", Asker("nobody-here")),
        ("ml", Asker("Prof")),
        ("ml", Asker("")),
        # Who says so isn't an administrator by it.
        ("ml", Asker("eve", as_administrator=True)),
        ("ml", Asker("ada", as_administrator=True)),
        # Who is one, with a token that doesn't go so far, isn't one here.
        ("ml", Asker("boss")),
        ("none", PROF),
        ("", PROF),
        ("ML", PROF),
        ("course\x1fml", PROF),
        ("../ml", PROF),
        (HOSTILE, PROF),
        ("none", BOSS),
    ],
)
async def test_nobody_else_sees_or_does_anything(room: Classroom, events, key, asker) -> None:
    ada = await room.start("ada", course="ml")
    until, before = ada.lease.until, len(events())
    refusals = await every_act(room, key, asker, of("ada"))
    # Whether there is such a course isn't told either.
    assert {(str(each), each.status) for each in refusals} == {
        ("There is no such course, or you don't teach it.", 404)
    }
    assert ada.lease.until == pytest.approx(until, abs=1)
    assert (ada.lease.announced, room.messages.facts()) == (None, [])
    assert len(events()) == before


async def test_who_was_taken_out_of_the_group_is_out_at_once(room: Classroom) -> None:
    await room.start("ada", course="ml")
    assert (await members(room))["ada"]
    room.remove("prof", "staff")
    assert room.instructors.courses_of(PROF) == []
    assert len(await every_act(room, "ml", PROF, of("ada"))) == 9


async def test_each_has_their_courses_and_an_administrator_all(room: Classroom) -> None:
    def keys(asker: Asker) -> list[str]:
        return [each["key"] for each in room.instructors.courses_of(asker)]

    assert keys(PROF) == ["ml"]
    assert keys(Asker("rembrandt")) == ["art"]
    assert keys(Asker("ada")) == keys(Asker("boss")) == keys(Asker("eve", True)) == []
    assert keys(BOSS) == ["ml", "art"]


async def test_other_servers_of_its_members_are_nobody_s_business(room: Classroom, events) -> None:
    """For another course, for none, or of somebody who isn't in the course."""
    cyd = await room.start("cyd", course="art")
    ben = await room.start("ben", course="none")
    eve = await room.start("eve")
    seen = await members(room)
    assert seen == {"ada": [], "ben": [], "cyd": [], "prof": []}
    before = len(events())
    for name in ("cyd", "ben", "eve", "nobody-here", HOSTILE):
        for act in (
            room.instructors.extend("ml", PROF, of(name), None),
            room.instructors.stop("ml", PROF, of(name), "", 0),
            room.instructors.stop("ml", PROF, of(name), "", 10),
            room.instructors.keep("ml", PROF, of(name)),
            room.instructors.send("ml", PROF, of(name), "hello"),
        ):
            with pytest.raises(Refused, match="has no server with GPUs that runs now for") as said:
                await act
            assert said.value.status == 404
    assert (await room.instructors.extend("ml", PROF, None, None)) == {"servers": []}
    assert await room.instructors.send("ml", PROF, None, "hello") == 0
    assert len(events()) == before
    assert all(each.lease.units and not each.lease.announced for each in (cyd, ben, eve))


async def test_a_server_that_is_started_anew_for_another_course_is_gone(room: Classroom) -> None:
    await room.start("cyd", course="ml")
    assert (await members(room))["cyd"]
    room.spawners.clear()
    room.end("cyd")
    await room.start("cyd", course="art")
    assert (await members(room))["cyd"] == []


async def test_who_has_left_the_course_is_not_on_its_roster(room: Classroom) -> None:
    await room.start("ada", course="ml")
    room.remove("ada", "students")
    assert "ada" not in await members(room)
    assert (await room.instructors.extend("ml", PROF, None, None)) == {"servers": []}
    assert await room.instructors.send("ml", PROF, None, "hello") == 0
    with pytest.raises(Refused, match="has no server"):
        await room.instructors.stop("ml", PROF, of("ada"), "", 0)


async def test_another_hub_s_user_of_the_same_name_is_somebody_else(room: Classroom) -> None:
    """Whatever its container says: it runs on the same engine, for a course of the same key."""
    written = labels(Holder("ada"), "plain", ["GPU-3"], 4e9, (), "ml")
    room.servers.append(ServerRecord("theirs", {**written, LABEL_HUB: "http://other/hub/api"}))
    assert written[LABEL_COURSE] == "ml"
    assert (await members(room))["ada"] == []
    with pytest.raises(Refused, match="has no server"):
        await room.instructors.stop("ml", PROF, of("ada"), "", 0)
    assert [each.id for each in room.servers] == ["theirs"]


# -- The roster --------------------------------------------------------------------------------


async def test_the_roster_has_seats_to_link_to_where_the_course_has_hours_with_slots() -> None:
    now = datetime.now()
    begin, end = (f"{now + timedelta(hours=each):%Y-%m-%dT%H:%M}" for each in (24, 26))
    hours = [{"begin": begin, "end": end, "gpus": 1, "slots": 15}]
    room = Classroom(courses={**COURSES, "ml": {**COURSES["ml"], "reserved": hours}})
    assert (await room.instructors.roster("ml", PROF))["kinds"] == ["shared"]
    await room.ledger.read()
    assert (await room.instructors.roster("ml", PROF))["kinds"] == ["gpu", "shared"]
    await room.close()


async def test_the_roster_says_what_each_of_them_does(room: Classroom) -> None:
    room.gpus = 1
    await room.start("ada", course="ml", hours=2)
    await room.wait("eve")
    await room.wait("ben", course="ml")
    roster = await room.instructors.roster("ml", PROF)
    assert [(each["user"], each["instructor"]) for each in roster["members"]] == [
        ("ada", False), ("ben", False), ("cyd", False), ("prof", True),
    ]  # fmt: skip
    assert (roster["title"], roster["kinds"]) == ("Machine <learning>", ["gpu"])
    assert roster["images"] == [{"key": "plain", "title": "Plain <image>"}]
    assert roster["repository"].startswith("user-redirect/git-pull?repo=https%3A%2F%2Fgit.example")
    (ada,), (ben,) = (servers for servers in (await members(room)).values() if servers)
    assert (ada["state"], ada["gpus"], ada["kind"], ada["place"]) == ("runs", 1, "gpu", None)
    assert ada["until"] - ada["since"] == pytest.approx(7200, abs=5)
    # Eve waits before ben: where she is is told by his place alone.
    assert (ben["state"], ben["place"], ben["until"]) == ("waits", 2, None)
    assert ben["start"] >= ada["until"]
    assert "eve" not in json.dumps(roster)


async def test_why_an_administrator_stops_a_server_is_between_the_two(room: Classroom) -> None:
    ada = await room.start("ada", course="ml")
    await ada.lease.stop_for("user:boss", "private", 10)
    ((server,),) = (servers for servers in (await members(room)).values() if servers)
    assert (server["stop"]["rule"], server["stop"]["why"]) == ("an administrator", "")
    ((server,),) = (servers for servers in (await members(room, BOSS)).values() if servers)
    assert server["stop"]["why"] == "private"


async def test_a_restart_of_the_hub_does_not_forget_the_course(room: Classroom) -> None:
    ada = await room.start("ada", course="ml")
    state = json.loads(json.dumps(ada.get_state()))
    room.spawners.clear()
    again = room.spawner(("students",), name="ada")
    again.load_state(state)
    again.attempt.is_up = True
    ((server,),) = (servers for servers in (await members(room)).values() if servers)
    assert (server["state"], server["gpus"]) == ("runs", 1)


# -- What they do ------------------------------------------------------------------------------


async def test_one_is_extended_and_all_are(room: Classroom, events) -> None:
    ada = await room.start("ada", course="ml", hours=1)
    ben = await room.start("ben", course="ml", hours=2)
    other = await room.start("cyd", course="art", hours=1)
    ends = {each: each.lease.until for each in (ada, ben, other)}
    answer = await room.instructors.extend("ml", PROF, of("ada"), 1)
    assert answer["servers"][0]["until"] == pytest.approx(ends[ada] + 3600, abs=2)
    answer = await room.instructors.extend("ml", PROF, None, 1)
    assert [each["user"] for each in answer["servers"]] == ["ada", "ben"]
    assert ben.lease.until == pytest.approx(ends[ben] + 3600, abs=2)
    assert other.lease.until == pytest.approx(ends[other], abs=1)
    assert [(each["user"], each["by"]) for each in events() if each["event"] == "extend"] == [
        ("ada", "user:prof"), ("ada", "user:prof"), ("ben", "user:prof"),
    ]  # fmt: skip


async def test_nobody_is_extended_over_those_who_wait_or_over_the_limit(room: Classroom) -> None:
    room.gpus = 2
    ada = await room.start("ada", course="ml", hours=1)
    ben = await room.start("ben", course="ml", hours=12)
    answer = await room.instructors.extend("ml", PROF, None, 1)
    assert [each["until"] is None for each in answer["servers"]] == [False, True]
    assert "its limit is" in str(answer["servers"][1]["sentence"])
    await room.wait("eve")
    until = ada.lease.until
    answer = await room.instructors.extend("ml", PROF, None, 1)
    assert [each["until"] for each in answer["servers"]] == [None, None]
    with pytest.raises(Refused, match="1 other waits who could use the GPUs of ada"):
        await room.instructors.extend("ml", PROF, of("ada"), 1)
    assert ada.lease.until == pytest.approx(until, abs=1)
    # An administrator isn't bound by who waits, here as elsewhere.
    await room.instructors.extend("ml", BOSS, of("ada"), 1)
    assert ada.lease.until == pytest.approx(until + 3600, abs=2)
    assert ben.lease.units


async def test_nobody_has_more_hours_left_than_the_course_allows(room: Classroom) -> None:
    cyd = await room.start("cyd", course="art", hours=1)
    assert cyd.lease.facts()["hour_limit"] == 3
    began = cyd.lease.until - 3600
    assert cyd.lease.extend(8, over_all=True) == pytest.approx(began + 3 * 3600, abs=2)
    teacher = Asker("rembrandt")
    with pytest.raises(Refused, match="its limit is 3 hours"):
        await room.instructors.extend("art", teacher, of("cyd"), 1)
    # Who teaches it is bound by their own limit alone.
    own = await room.start("rembrandt", course="art", hours=1)
    assert own.lease.facts()["hour_limit"] == 12


@pytest.mark.parametrize("hours", [0, -1, float("nan"), 1e9])
async def test_hours_that_make_no_sense_change_nothing(room: Classroom, hours: float) -> None:
    ada = await room.start("ada", course="ml", hours=1)
    until = ada.lease.until
    for holder in (None, of("ada")):
        with pytest.raises(Refused) as refused:
            await room.instructors.extend("ml", PROF, holder, hours)
        assert refused.value.key == "hours"
    assert ada.lease.until == pytest.approx(until, abs=1)


async def test_one_is_stopped_for_a_reason_now_or_later(room: Classroom, events) -> None:
    ada = await room.start("ada", course="ml")
    ben = await room.start("ben", course="ml")
    await room.instructors.stop("ml", PROF, of("ada"), "The class is over.", 10)
    assert ada.lease.units
    ((seen,), _) = (servers for servers in (await members(room)).values() if servers)
    assert (seen["stop"]["rule"], seen["stop"]["why"]) == ("an instructor", "The class is over.")
    with pytest.raises(Refused, match="An instructor of its course stops this server at"):
        ada.lease.extend()
    assert "An instructor of your course stops your server at" in ada.told[-1][1]
    await room.instructors.keep("ml", PROF, of("ada"))
    assert ada.lease.announced is None
    await room.instructors.stop("ml", PROF, of("ada"), "", 0)
    assert "An instructor of your course stopped your server at" in ada.lease.notice
    assert not ada.lease.units
    assert ben.lease.units
    found = [(each["event"], each["by"], each.get("rule")) for each in events()]
    assert ("warn", "user:prof", "an instructor") in found
    assert ("keep", "user:prof", None) in found
    assert ("stop", "user:prof", "an instructor") in found


async def test_an_administrator_s_stop_is_not_an_instructor_s_to_change(room: Classroom) -> None:
    ada = await room.start("ada", course="ml")
    await ada.lease.stop_for("user:boss", "maintenance", 10)
    for act in (
        room.instructors.keep("ml", PROF, of("ada")),
        room.instructors.stop("ml", PROF, of("ada"), "", 1000),
        room.instructors.stop("ml", PROF, of("ada"), "", 5),
        room.instructors.extend("ml", PROF, of("ada"), 1),
    ):
        with pytest.raises(Refused) as refused:
            await act
        assert refused.value.status == 409
    assert ada.lease.announced
    assert ada.lease.announced.by == "user:boss"
    await room.instructors.keep("ml", BOSS, of("ada"))
    assert ada.lease.announced is None


async def test_an_announced_stop_of_an_instructor_outlives_the_hub(room: Classroom) -> None:
    ada = await room.start("ada", course="ml")
    await room.instructors.stop("ml", PROF, of("ada"), "over", 10)
    saved = json.loads(json.dumps(ada.lease.saved()))
    again = room.spawner(("students",), name="ada")
    again.lease.restore(saved)
    assert again.lease.announced
    assert again.lease.announced.rule == "an instructor"
    # What an earlier version has saved is an administrator's.
    del saved["stop"]["rule"]
    again.lease.restore(saved)
    assert again.lease.announced.rule == "an administrator"


async def test_a_message_is_for_those_whose_servers_run_for_the_course(
    room: Classroom, events
) -> None:
    ada = await room.start("ada", course="ml")
    await room.start("ben", course="ml")
    await room.start("cyd", course="art")
    assert await room.instructors.send("ml", PROF, None, "  Save\nyour   work\x1b[31m ") == 2
    assert await room.instructors.send("ml", PROF, of("ada"), HOSTILE) == 1
    found = {(each["user"], each["text"]) for each in room.messages.facts()}
    said = "Save your work\\x1b[31m"
    assert found == {("ada", said), ("ben", said), ("ada", HOSTILE)}
    assert ada.told[-1] == ("message", f"From the instructors of Machine <learning>: {HOSTILE}")
    lines = [each for each in events() if each["event"] == "message"]
    assert {(each["by"], each["course"]) for each in lines} == {("user:prof", "ml")}
    assert [each["text"] for each in lines] == [said, said, HOSTILE]
    for text, words in (
        ("", "The message is empty"),
        (" \n\t ", "The message is empty"),
        ("x" * (MAX_LENGTH + 1), f"at most {MAX_LENGTH} characters"),
    ):
        with pytest.raises(Refused, match=words) as refused:
            await room.instructors.send("ml", PROF, None, text)
        assert refused.value.key == "text"
    # The next server begins without what was said to the last one.
    await room.start("ben", course="none")
    assert {each["user"] for each in room.messages.facts()} == {"ada"}


async def test_a_message_outlives_the_hub_and_not_its_server(room: Classroom) -> None:
    ada = await room.start("ada", course="ml")
    ada.object_id = "box"
    saved: list[Any] = []
    ada.save_state = lambda: saved.append(json.loads(json.dumps(ada.get_state())))
    await room.instructors.send("ml", PROF, of("ada"), "Save your work")
    before = room.messages.facts()
    room.messages.forget(of("ada"))
    again = room.spawner(("students",), name="ada")
    again.load_state(saved[-1])
    assert room.messages.facts() == before
    # What this process has been told is newer.
    room.messages.send(of("ada"), "Now", "ML")
    again.load_state(saved[0])
    assert [each["text"] for each in room.messages.facts()] == ["Save your work", "Now"]
    room.messages.forget(of("ada"))
    again.load_state({name: each for name, each in saved[-1].items() if name == "gpuspawner"})
    assert room.messages.facts() == []


def test_messages_are_kept_for_an_hour_and_not_too_many() -> None:
    now = [1000.0]
    messages = Messages(lambda: now[0])
    for number in range(MAX_KEPT + 3):
        messages.send(of("ada"), str(number), "ML")
    found = messages.facts()
    assert [each["text"] for each in found] == [str(n) for n in range(3, MAX_KEPT + 3)]
    assert len({each["id"] for each in found}) == MAX_KEPT
    now[0] += KEPT_SECONDS
    messages.send(of("ben"), "late", "ML")
    assert [each["text"] for each in messages.facts()] == ["late"]


# -- The front of the course -------------------------------------------------------------------


async def test_the_front_is_that_of_the_course_and_nobody_else_s_place_changes(
    room: Classroom, events
) -> None:
    room.gpus = 1
    await room.start("prof", course="none")
    for name, course in (("eve", None), ("ada", "ml"), ("rembrandt", "art"), ("ben", "ml")):
        await room.wait(name, **({"course": course} if course else {}))
    await room.wait("cyd", course="ml")
    assert await room.planned() == ["eve", "ada", "rembrandt", "ben", "cyd"]
    assert await room.instructors.move_to_front("ml", PROF, of("cyd")) == 2
    assert await room.planned() == ["eve", "cyd", "rembrandt", "ada", "ben"]
    assert await room.instructors.move_to_front("ml", PROF, of("ben")) == 2
    assert await room.planned() == ["eve", "ben", "rembrandt", "cyd", "ada"]
    moved = [each for each in events() if each["event"] == "move"]
    assert [(each["user"], each["by"], each["course"], each["place"]) for each in moved] == [
        ("cyd", "user:prof", "ml", 2),
        ("ben", "user:prof", "ml", 2),
    ]
    for name in ("eve", "rembrandt", "prof"):
        with pytest.raises(Refused):
            await room.instructors.move_to_front("ml", PROF, of(name))
    with pytest.raises(Refused):
        await room.instructors.move_to_front("ml", Asker("rembrandt"), of("ada"))
    assert await room.planned() == ["eve", "ben", "rembrandt", "cyd", "ada"]


async def test_who_has_left_the_course_is_not_moved(room: Classroom) -> None:
    room.gpus = 1
    await room.start("prof", course="none")
    await room.wait("ada", course="ml")
    await room.wait("ben", course="ml")
    room.remove("ben", "students")
    with pytest.raises(Refused, match="has no server") as refused:
        await room.instructors.move_to_front("ml", PROF, of("ben"))
    assert refused.value.status == 404
    assert await room.planned() == ["ada", "ben"]


async def test_who_waits_for_another_course_is_not_moved(room: Classroom) -> None:
    room.gpus = 1
    await room.start("prof", course="none")
    await room.wait("ada", course="ml")
    await room.wait("cyd", course="art")
    with pytest.raises(Refused, match="doesn't wait any more") as refused:
        await room.instructors.move_to_front("ml", PROF, of("cyd"))
    assert refused.value.status == 409


async def test_others_do_not_start_later_for_it(room: Classroom) -> None:
    """Who asks for longer can't come to the front where somebody else waits after it."""
    room.gpus = 1
    await room.start("prof", course="none")
    await room.wait("ada", course="ml", hours=1)
    await room.wait("eve", hours=1)
    await room.wait("ben", course="ml", hours=8)
    with pytest.raises(Refused, match="keep others waiting for longer") as refused:
        await room.instructors.move_to_front("ml", PROF, of("ben"))
    assert refused.value.status == 409
    assert await room.planned() == ["ada", "eve", "ben"]
    await room.wait("cyd", course="ml", hours=1)
    assert await room.instructors.move_to_front("ml", PROF, of("cyd")) == 1
    assert await room.planned() == ["cyd", "eve", "ada", "ben"]


async def test_who_changes_their_choice_keeps_the_place_at_the_front(room: Classroom) -> None:
    room.gpus = 1
    await room.start("prof", course="none")
    await room.wait("ada", course="ml")
    ben = await room.wait("ben", course="ml")
    await room.instructors.move_to_front("ml", PROF, of("ben"))
    (entry,) = [each for each in room.queue.waiting if each.holder.user == "ben"]
    ben.attempt.changing_until = float("inf")
    task = room.tasks.pop()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await room.planned() == ["ada"]
    again = await room.wait("ben", course="ml", hours=1)
    assert again.attempt.since == entry.waiting.since
    assert await room.planned() == ["ben", "ada"]


async def test_where_the_nodes_cannot_be_read_nothing_is_moved(room: Classroom) -> None:
    room.gpus = 1
    await room.start("prof", course="none")
    await room.wait("ada", course="ml")

    room.engine_is_down = True
    with pytest.raises(Refused) as refused:
        await room.instructors.move_to_front("ml", PROF, of("ada"))
    assert refused.value.status == 503


async def test_a_class_of_hostile_names_is_a_class(room: Classroom) -> None:
    made = Classroom(people={**PEOPLE, HOSTILE: ("students",), "%s": ("students", "staff")})
    await made.start(HOSTILE, course="ml")
    roster = await made.instructors.roster("ml", Asker("%s"))
    assert {each["user"] for each in roster["members"]} >= {HOSTILE, "%s", "ada"}
    await made.instructors.stop("ml", Asker("%s"), of(HOSTILE), HOSTILE[:200], 0)
    assert made.servers == []
    await made.close()


async def test_a_database_that_cannot_be_read_refuses(room: Classroom) -> None:
    room.db.execute(sql("DROP TABLE user_group_map"))
    with pytest.raises(Refused, match="can't read its database") as refused:
        room.instructors.courses_of(PROF)
    assert refused.value.status == 503
