"""Reserved hours on the dashboard: for who teaches and who decides, in both languages."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import pytest_asyncio
from bs4 import BeautifulSoup
from sqlalchemy import update
from tornado.httpclient import HTTPResponse

from gpuspawner.courses.hours import ReservedHours
from gpuspawner.courses.hours_request import hours_as_text
from gpuspawner.dashboard.hours import FORM, fields_of, form_of, sent
from gpuspawner.errors import Refused
from gpuspawner.usage.schema import reserved_hours

from ..support.boards import HOSTILE
from ..support.courses import PEOPLE, Classroom
from ..support.dashboards import check
from ..support.services import Service, model_of, served

DAY = datetime.now().date() + timedelta(days=30)
API = "api/reserved-hours"
ASK = "api/courses/ml/reserved-hours"


def hours(begin: str = "10:00", end: str = "12:00", gpus: Any = 2, **more: Any) -> dict[str, Any]:
    return {"begin": f"{DAY}T{begin}", "end": end, "gpus": gpus, **more}


def typed(**more: str) -> dict[str, str]:
    given = {"day": str(DAY), "begin": "10:00", "end": "12:00", "gpus": "2", "course": "ml"}
    return {**FORM, **given, **more}


@pytest_asyncio.fixture
async def service(
    tmp_path: Path, usage_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Service]:
    room = Classroom(people=PEOPLE, usage_db=usage_url)
    await room.ledger.read()
    control = room.control(str(tmp_path / "hub.sock"))
    await control.begin()
    async with served(str(tmp_path / "hub.sock"), monkeypatch, "admins", model_of) as url:
        yield Service(room, url)
    control.close()
    await room.close()


def answered(answer: HTTPResponse, name: str, code: int = 200) -> Any:
    assert answer.code == code, answer.body
    return check(name, json.loads(answer.body))


async def listed(service: Service, who: str = "boss") -> list[tuple[int, str]]:
    found = answered(await service.get(who, API), "HoursRequests")
    return [(each["id"], each["state"]) for each in found["reserved_hours"]]


async def test_a_request_goes_its_way_by_the_api(service: Service) -> None:
    asked = answered(
        await service.send("POST", "prof", ASK, {"hours": hours(), "note": "exam"}),
        "HoursRequest",
        201,
    )
    assert (asked["state"], asked["note"], asked["decided_by"]) == ("asked", "exam", None)
    one = f"{API}/{asked['id']}"
    changed = await service.send("POST", "boss", f"{one}/grant", {"hours": hours(gpus=3)})
    granted = answered(changed, "HoursRequest")
    assert (granted["state"], granted["hours"]["gpus"]) == ("granted", 3)
    week = json.loads((await service.get("ada", f"api/week?from={DAY}")).body)
    assert [(each["course"], each["gpus"]) for each in week["reserved"]] == [("ml", 3)]
    calendar = (await service.get("boss", "api/reserved.ics")).body.decode()
    assert f"DTSTART;TZID=UTC:{DAY:%Y%m%d}T100000".replace("UTC", "") in calendar.replace(
        "Etc/UTC", ""
    ).replace("UTC", "")
    ended = await service.send("POST", "boss", f"{one}/end", {"why": "over"})
    assert answered(ended, "HoursRequest")["why"] == "over"
    again = answered(await service.send("POST", "boss", f"{one}/end"), "Refusal", 409)
    assert again["message"] == "It has been ended already."
    made = await service.send("POST", "boss", API, {"course": "art", "hours": hours()})
    assert answered(made, "HoursRequest", 201)["state"] == "granted"
    refused = answered(
        await service.send("POST", "boss", API, {"course": "ml", "hours": hours(gpus=3)}),
        "Refusal",
        409,
    )
    assert "art (2 GPUs from" in refused["message"]
    assert await listed(service) == [(1, "ended"), (2, "granted")]


@pytest.mark.parametrize(
    ("who", "status"),
    [("ada", 404), ("eve", 404), ("server-of-prof", 403), ("culler", 403)],
)
async def test_nobody_else_reads_or_does_anything(service: Service, who: str, status: int) -> None:
    answered(
        await service.send("POST", "prof", ASK, {"hours": hours(), "note": "a secret"}),
        "HoursRequest",
        201,
    )
    acts: list[tuple[str, Any, int]] = [
        (ASK, {"hours": hours()}, status),
        (API, {"course": "ml", "hours": hours()}, 403),
        (f"{API}/1/grant", {}, 403),
        (f"{API}/1/refuse", {"why": "no"}, 403),
        (f"{API}/1/withdraw", None, status),
        (f"{API}/1/end", {}, 403),
    ]
    for path, body, code in acts:
        answered(await service.send("POST", who, path, body), "Refusal", code)
    answered(await service.get(who, API), "Refusal", status)
    page = await service.page(who, "reserved")
    assert "a secret" not in page.get_text()
    assert not page.select("form[method=post]")
    assert await listed(service) == [(1, "asked")]


async def test_without_its_token_a_form_does_nothing(service: Service) -> None:
    """A log-in's cookie alone isn't enough, as a page elsewhere could send it."""
    body = urlencode(typed(do="hours-make"))
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await service.send(
        "POST", "boss", "reserved", body, **kind, **{"Authorization": "", "Cookie": "x=y"}
    )
    assert answer.code in (302, 403)
    assert await listed(service) == []


@pytest.mark.parametrize(
    ("body", "key"),
    [
        (hours(gpus="2"), "gpus"),
        (hours(end="09:00"), "end"),
        ({**hours(), "exceptions": "x"}, "exceptions"),
        (hours(colour="red"), "colour"),
        ({}, "begin"),
        (hours(repeat="FREQ=WEEKLY"), "repeat"),
        (hours(slots=1), "slots"),
        (hours(slots=65), "slots"),
        (hours(slots=2, kind="shared"), "slots"),
    ],
)
async def test_what_is_wrong_is_named_by_its_key(service: Service, body: Any, key: str) -> None:
    sent = {"hours": body}
    refusal = answered(await service.send("POST", "prof", ASK, sent), "Refusal", 400)
    assert refusal["key"] == key
    again = await service.send("POST", "prof", ASK, sent, **{"Accept-Language": "zh-CN"})
    assert answered(again, "Refusal", 400)["message"] != refusal["message"]
    assert await listed(service) == []


async def test_other_methods_and_numbers_are_refused(service: Service) -> None:
    for method, path, code in (
        ("GET", f"{API}/1/grant", 405),
        ("DELETE", API, 405),
        ("GET", ASK, 405),
        ("POST", f"{API}/1/forget", 404),
        ("POST", f"{API}/-1/grant", 404),
        ("POST", f"{API}/99999999999/grant", 404),
        ("POST", f"{API}/7/grant", 404),
    ):
        assert (await service.send(method, "boss", path)).code == code, path
    for body in ("[]", "x", '{"note": 1}', '{"hours": []}', '{"hours": "x"}'):
        assert (await service.send("POST", "prof", ASK, body)).code == 400


# -- Pages -------------------------------------------------------------------------------------


async def test_an_instructor_asks_on_the_course_s_page_and_an_administrator_grants(
    service: Service,
) -> None:
    said = await service.press(
        "prof", "courses/ml", do="hours-ask", **typed(note=HOSTILE, exceptions="", repeat="")
    )
    assert said == "You have asked for it. An administrator decides."
    bar = (await service.page("boss", "week")).select_one("nav .badge")
    assert bar
    assert bar.get_text() == "11 open request"
    assert not (await service.page("prof", "week")).select("nav .badge")
    page = await service.page("boss", "reserved")
    card = page.select_one("#hours-1")
    assert card
    assert HOSTILE in card.get_text()
    assert "asked for by prof" in card.get_text()
    assert not card.select("script")
    done = await service.press("boss", "reserved", do="hours-grant", id="1")
    assert done == "It is granted."
    mine = (await service.page("prof", "courses/ml")).select_one("#hours-1")
    assert mine
    assert "reserved" in mine.get_text()
    assert not mine.select("button")


async def test_a_reason_is_read_and_what_is_asked_is_withdrawn(service: Service) -> None:
    for _ in range(2):
        await service.press("prof", "reserved", do="hours-ask", **typed())
    assert "refused" in await service.press(
        "boss", "reserved", do="hours-refuse", id="1", why=HOSTILE
    )
    assert HOSTILE in (await service.page("prof", "courses/ml")).get_text()
    assert "isn't asked for" in await service.press(
        "prof", "courses/ml", do="hours-withdraw", id="2"
    )
    assert await listed(service) == [(1, "refused"), (2, "withdrawn")]


@pytest.mark.parametrize("path", ["reserved", "courses/ml"])
async def test_what_was_typed_in_is_there_again_where_it_is_refused(
    service: Service, path: str
) -> None:
    fields = typed(do="hours-ask", gpus="many", note="exam", repeat="weekly", until=str(DAY))
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await service.send("POST", "prof", path, urlencode(fields), **kind)
    assert answer.code == 400
    page = BeautifulSoup(answer.body, "html.parser")
    assert "gpus can't be 'many'" in page.select_one("[role=alert]").get_text()  # type: ignore[union-attr]
    values = {each["name"]: each.get("value") for each in page.select("form.gs-ask input[name]")}
    assert (values["gpus"], values["note"], values["until"]) == ("many", "exam", str(DAY))
    chosen = page.select_one("select[name=repeat] option[selected]")
    assert chosen
    assert chosen["value"] == "weekly"
    assert await listed(service) == []


async def test_a_change_that_collides_says_so_beside_its_form(service: Service) -> None:
    await service.press("boss", "reserved", do="hours-make", **typed(course="art", gpus="3"))
    await service.press("prof", "reserved", do="hours-ask", **typed())
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    fields = urlencode({**typed(gpus="4"), "do": "hours-change", "id": "2"})
    answer = await service.send("POST", "boss", "reserved", fields, **kind)
    assert answer.code == 409
    card = BeautifulSoup(answer.body, "html.parser").select_one("#hours-2")
    assert card
    assert "art (3 GPUs from" in card.select_one("[role=alert]").get_text()  # type: ignore[union-attr]
    assert card.select_one("details[open] input[name=gpus]")["value"] == "4"  # type: ignore[index]
    done = await service.press("boss", "reserved", do="hours-change", id="2", **typed(gpus="1"))
    assert done == "It is granted, as you have changed it."


async def test_why_nothing_can_be_reserved_is_said_in_place_of_the_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Classroom(hour_limit=None)
    control = room.control(str(tmp_path / "hub.sock"))
    await control.begin()
    async with served(str(tmp_path / "hub.sock"), monkeypatch, "admins", model_of) as url:
        service = Service(room, url)
        for path in ("reserved", "courses/ml"):
            page = await service.page("prof", path)
            assert "c.GPUSpawner.hour_limit" in page.get_text()
            assert not page.select("input[name=begin]")
    control.close()
    await room.close()


async def test_hours_as_slots_go_through_form_list_and_api(service: Service) -> None:
    said = await service.press(
        "prof", "courses/ml", do="hours-ask", **typed(gpus="4", slots="15", unclaimed_minutes="")
    )
    assert said == "You have asked for it. An administrator decides."
    card = (await service.page("boss", "reserved")).select_one("#hours-1")
    assert card
    assert "4 GPUs, 15 slots each: 60 seats" in card.get_text()
    assert card.select_one("input[name=slots]")["value"] == "15"  # type: ignore[index]
    chinese = await service.page("boss", "reserved", **{"Accept-Language": "zh-CN"})
    assert "4 个 GPU，每个分成 15 份：60 个席位" in chinese.get_text()
    await service.press("boss", "reserved", do="hours-grant", id="1")
    found = answered(await service.get("boss", API), "HoursRequests")
    assert found["divides_gpus"] is True
    assert found["reserved_hours"][0]["hours"]["slots"] == 15
    # A form without the field, as where GPUs aren't divided, and one left empty ask for whole GPUs.
    for slots in ("", "0"):
        fields = typed(begin="13:00", end="14:00", slots=slots)
        await service.press("prof", "courses/ml", do="hours-ask", **fields)
    found = answered(await service.get("boss", API), "HoursRequests")
    assert [each["hours"]["slots"] for each in found["reserved_hours"]] == [15, 0, 0]


@pytest.mark.parametrize(
    ("slots", "says"),
    [
        ("1", "one slot of a GPU is the whole GPU"),
        ("65", "slots can't be 65: it is at most 64."),
        ("-1", "slots can't be '-1': it is a whole number."),
        ("1.5", "slots can't be '1.5'"),
        ("true", "slots can't be 'true'"),
        ("१५", "slots can't be '१५'"),
        (HOSTILE, "slots can't be "),
    ],
)
async def test_slots_that_can_not_be_are_refused_with_what_was_typed(
    service: Service, slots: str, says: str
) -> None:
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    fields = urlencode({**typed(slots=slots), "do": "hours-ask"})
    answer = await service.send("POST", "prof", "courses/ml", fields, **kind)
    assert answer.code == 400
    page = BeautifulSoup(answer.body, "html.parser")
    assert says in page.select_one("[role=alert]").get_text()  # type: ignore[union-attr]
    typed_in = page.select_one("form.gs-ask input[name=slots]")
    assert typed_in
    assert typed_in["value"] == slots
    assert await listed(service) == []


async def test_where_gpus_are_not_divided_there_is_no_field_for_slots(
    tmp_path: Path, usage_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Classroom(usage_db=usage_url, divides_gpus=False)
    await room.ledger.read()
    control = room.control(str(tmp_path / "hub.sock"))
    await control.begin()
    async with served(str(tmp_path / "hub.sock"), monkeypatch, "admins", model_of) as url:
        service = Service(room, url)
        page = await service.page("prof", "courses/ml")
        assert page.select("form.gs-ask input[name=gpus]")
        assert not page.select("[name=slots], output")
        sent = {"hours": hours(slots=15)}
        refusal = answered(await service.send("POST", "prof", ASK, sent), "Refusal", 400)
        assert refusal["key"] == "slots"
        assert "ask for whole ones, with 0 slots" in refusal["message"]
        found = answered(await service.get("prof", API), "HoursRequests")
        assert (found["divides_gpus"], found["reserved_hours"]) == (False, [])
    control.close()
    await room.close()


async def test_every_field_has_a_label_and_every_id_is_there_once(service: Service) -> None:
    await service.press("prof", "reserved", do="hours-ask", **typed())
    for who, path in (("boss", "reserved"), ("prof", "reserved"), ("prof", "courses/ml")):
        page = await service.page(who, path)
        ids = [each["id"] for each in page.select("[id]")]
        assert len(ids) == len(set(ids))
        for each in page.select("input:not([type=hidden]), select"):
            of_label = each.get("id") and page.select(f"label[for={each['id']}]")
            assert each.find_parent("label") or of_label, each
        for each in page.select("[aria-describedby]"):
            assert each["aria-describedby"] in ids


async def test_in_chinese_nothing_is_left_in_english(service: Service) -> None:
    await service.press("prof", "reserved", do="hours-ask", **typed())
    page = await service.page("boss", "reserved", **{"Accept-Language": "zh-CN"})
    for word in ("Grant", "Refuse", "asked for", "once", "Reserve", "Why"):
        assert word not in page.select_one("main").get_text()  # type: ignore[union-attr]


async def test_a_row_whose_rule_has_no_near_end_costs_itself_alone(service: Service) -> None:
    """Such a row could be kept once, and made the page fail for everybody."""
    forever = "FREQ=MONTHLY;INTERVAL=99;UNTIL=99991231"
    for _ in range(3):
        await service.press("prof", "reserved", do="hours-ask", **typed())
    await service.press("prof", "reserved", do="hours-withdraw", id="2")
    store = service.room.hours._store
    assert store
    with store._store.engine.begin() as connection:
        asked = ReservedHours(f"{DAY}T10:00", "12:00", 1, forever)
        values = {"hours": hours_as_text(asked)}
        connection.execute(update(reserved_hours).where(reserved_hours.c.id < 3).values(values))
    for who, path in (("boss", "reserved"), ("prof", "reserved"), ("prof", "courses/ml")):
        answer = await service.get(who, path)
        assert answer.code == 200
        page = BeautifulSoup(answer.body, "html.parser")
        assert [each["id"] for each in page.select("li.gs-server[id^=hours-]")] == [
            "hours-3",
            "hours-2",
        ]


async def test_many_exceptions_go_through_the_form_whole(service: Service) -> None:
    days = [str(DAY + timedelta(days=number)) for number in range(1, 121)]
    fields = typed(repeat="FREQ=DAILY;COUNT=200", exceptions=" ".join(days))
    await service.press("prof", "reserved", do="hours-ask", **fields)
    (made,) = json.loads((await service.get("prof", API)).body)["reserved_hours"]
    assert made["hours"]["exceptions"] == days
    assert sent(fields.__getitem__) == fields
    assert fields_of(sent(form_of(made).__getitem__))["exceptions"] == days


def test_the_form_of_hours_sends_the_same_hours() -> None:
    for given in (
        {"end": "12:00"},
        {"end": f"{DAY}T23:00", "repeat": "FREQ=WEEKLY;UNTIL=20300101", "exceptions": [str(DAY)]},
        {"repeat": "FREQ=DAILY;COUNT=3", "unclaimed_minutes": 7.5, "zone": "Europe/Berlin"},
        {"slots": 15},
    ):
        whole = {
            **hours(),
            "repeat": "",
            "exceptions": [],
            "kind": "gpu",
            "model": "",
            "zone": "",
            "unclaimed_minutes": 15.0,
            "slots": 0,
            **given,
        }
        assert fields_of(form_of({"course": "ml", "hours": whole})) == whole
    for missing in ("day", "begin", "end"):
        with pytest.raises(Refused) as refused:
            fields_of({**typed(), missing: ""})
        assert refused.value.key == missing
    with pytest.raises(Refused, match="Until which day"):
        fields_of(typed(repeat="weekly"))
    assert fields_of(typed(exceptions="2026-12-21, 2026-12-28"))["exceptions"] == [
        "2026-12-21",
        "2026-12-28",
    ]
