"""The week on the dashboard: who reads what of it; picture, table and JSON say the same."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from itertools import pairwise
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import pytest_asyncio
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st
from tornado import web
from tornado.httpclient import HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_unix_socket

from gpuspawner.courses.calendar_file import read_calendar
from gpuspawner.courses.catalogue import CourseCatalogue
from gpuspawner.courses.model import CourseCalendar
from gpuspawner.courses.week import local_zone_name, midnights, parse_day
from gpuspawner.dashboard.pages import lanes
from gpuspawner.dashboard.week_facts import ask_week
from gpuspawner.errors import Refused
from gpuspawner.gpus.model import GPU, Holder, Node, Request
from gpuspawner.hub.control_socket import ControlSocket
from gpuspawner.hub.nodes import NodeFacts
from gpuspawner.hub.reserved_hours import ReservedTimes
from gpuspawner.hub.week import WeekFacts
from gpuspawner.leases.labels import LABEL_HUB, ServerRecord, labels
from gpuspawner.leases.ledger import Ledger
from gpuspawner.scheduling.plan import QueuedRequest, Turn
from gpuspawner.scheduling.queue import QueueEntry, RequestLimits

from ..support import boards
from ..support.boards import HOSTILE
from ..support.dashboards import check
from ..support.services import serving

HUB = "http://172.31.99.1:8081/hub/api"
LOG = logging.getLogger("week")
HOUR = 3600.0
ZONE = ZoneInfo("Europe/Berlin")
GROUPS = {"ada": ["students"], "prof": ["staff"]}


def monday() -> date:
    """The Monday of the week after next: all of it is to come."""
    today = datetime.now(ZONE).date()
    return today + timedelta(days=14 - today.weekday())


def hours(day: date, begin: str = "10:00", end: str = "12:00", gpus: int = 2, **more: Any) -> Any:
    return {
        "begin": f"{day}T{begin}",
        "end": end,
        "gpus": gpus,
        "zone": "Europe/Berlin",
        **more,
    }


@dataclass
class Board:
    """A hub with two GPUs, as its control socket and its services see it."""

    path: str
    courses: dict[str, Any] = field(default_factory=dict)
    hour_limit: float | None = 12
    waiting: list[QueueEntry] = field(default_factory=list)
    holders: dict[str, Holder] = field(default_factory=dict)
    until: float = 0.0
    states: Sequence[Any] = ("free", "free")

    def __post_init__(self) -> None:
        self.until = time.time() + 5 * HOUR
        backend: Any = None
        self.ledger = Ledger(self._list, self._nodes, str, HUB)
        self._nodes_facts = NodeFacts(self.ledger, backend)

    async def _list(self) -> Sequence[ServerRecord]:
        return [
            ServerRecord(str(holder), {**labels(holder, "x", [gpu], self.until), LABEL_HUB: HUB})
            for gpu, holder in self.holders.items()
        ]

    async def _nodes(self) -> Sequence[Node]:
        gpus = (GPU(f"GPU-{n}", n, "A100", state=each) for n, each in enumerate(self.states))
        return (Node("", "570", "12.8", tuple(gpus)),)

    def _leases(self) -> list[Any]:
        async def nothing() -> None:
            pass

        return [
            SimpleNamespace(
                holder=holder,
                ensure_rules_applied=nothing,
                facts=lambda holder=holder, gpu=gpu: boards.lease(
                    holder, gpu, until=self.until, since=time.time() - HOUR
                ),
            )
            for gpu, holder in self.holders.items()
        ]

    def wait(self, user: str, start: float | None, seconds: float | None) -> None:
        """Have somebody wait for two GPUs."""
        request = QueuedRequest(Holder(user), Request("x", 2, seconds=seconds), 5.0)
        turn = Turn(request, len(self.waiting) + 1, start, because="gpus")
        answer: Any = None
        self.waiting.append(QueueEntry(request, RequestLimits(), lambda _: None, answer, turn=turn))

    async def serve(self) -> ControlSocket:
        """Open the control socket, after the first reading."""
        await self.ledger.read()
        courses = CourseCatalogue(self.courses, "", LOG)
        self.reserved = ReservedTimes(courses, self.ledger, self.hour_limit, LOG)
        queue: Any = SimpleNamespace(settings=SimpleNamespace(order="fifo"), waiting=self.waiting)
        orphans: Any = SimpleNamespace(facts=list)
        week = WeekFacts(courses, self.reserved, HUB)
        control = ControlSocket(
            self.path, queue, self._leases, LOG, {}, orphans, self._nodes_facts, {}, week=week
        )
        await control.begin()
        return control


@pytest.fixture
def board(tmp_path: Path, in_zone: Callable[[str], None]) -> Board:
    in_zone("Europe/Berlin")
    made = Board(str(tmp_path / "hub.sock"))
    made.holders = {"GPU-0": Holder("ada"), "GPU-1": Holder(HOSTILE)}
    weekly = hours(monday(), repeat="FREQ=WEEKLY;COUNT=3")
    made.courses = {
        "ml": {"title": HOSTILE, "group": "students", "instructors": "staff", "reserved": [weekly]},
        # For which there are too few GPUs beside the first one.
        "cv": {"group": "staff", "reserved": [hours(monday(), "11:00", "13:00", 1)]},
    }
    made.wait("ben", made.until, 2 * HOUR)
    made.wait("eve", None, None)
    return made


@pytest_asyncio.fixture
async def ask(board: Board, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Any]]:
    control = await board.serve()
    async with serving(board.path, monkeypatch, "admins", GROUPS) as get:
        yield get
    control.close()


def checked(answer: HTTPResponse) -> dict[str, Any]:
    assert answer.code == 200, answer.body
    found: dict[str, Any] = check("Week", json.loads(answer.body))
    return found


async def test_it_says_what_is_held_expected_and_reserved(ask, board: Board) -> None:
    now = checked(await ask("boss", "api/week"))
    assert now["zone"] == "Europe/Berlin"
    assert (now["known"], now["queue_known"], now["reserved_known"]) == (True, True, True)
    assert [gpu["id"] for gpu in now["gpus"]] == ["GPU-0", "GPU-1"]
    assert [each["holders"][0]["user"] for each in now["leases"]] == ["ada", HOSTILE]
    assert all(each["since"] < now["now"] < each["until"] for each in now["leases"])
    # Of the two who wait, one is promised a time.
    (booked,) = now["bookings"]
    assert (booked["holder"]["user"], booked["gpus"], booked["place"]) == ("ben", 2, 1)
    times = [datetime.fromisoformat(booked[name]) for name in ("begin", "until")]
    assert times[1] - times[0] == timedelta(hours=2)
    assert now["reserved"] == []
    then = checked(await ask("ada", f"api/week?from={monday()}"))
    assert (then["leases"], then["bookings"]) == ([], [])
    (course,) = then["reserved"]
    assert (course["course"], course["title"], course["gpus"], course["yours"]) == (
        "ml",
        HOSTILE,
        2,
        True,
    )
    begin = datetime.fromisoformat(course["begin"]).astimezone(ZONE)
    assert f"{begin:%Y-%m-%dT%H:%M}" == f"{monday()}T10:00"
    assert course["free_from"] > course["begin"]


async def test_who_may_not_read_a_name_reads_it_nowhere(ask, board: Board) -> None:
    board.holders["GPU-1"] = Holder("zacharias", "zoo")
    board.wait("zacharias", board.until, HOUR)
    for who in ("ada", "eve", "culler"):
        for path in ("week", "api/week", f"week?from={monday()}"):
            said = (await ask(who, path)).body.decode()
            assert "zacharias" not in said
            assert "zoo" not in said
    found = checked(await ask("eve", "api/week"))
    assert [(each["holders"], each["since"], each["yours"]) for each in found["leases"]] == [
        ([], None, False)
    ] * 2
    assert "zacharias/zoo" in (await ask("boss", "week")).body.decode()


async def test_what_is_not_kept_is_for_those_whom_it_concerns(ask) -> None:
    refusals = {}
    for who in ("boss", "prof", "ada", "eve"):
        found = checked(await ask(who, f"api/week?from={monday()}"))
        refusals[who] = {each["course"]: each["refused"] for each in found["reserved"]}
    words = "It isn't reserved: there are too few GPUs for it."
    assert refusals["boss"] == refusals["prof"] == {"ml": "", "cv": words}
    assert refusals["ada"] == refusals["eve"] == {"ml": ""}
    chinese = checked(await ask("boss", f"api/week?from={monday()}", **{"Accept-Language": "zh"}))
    assert words not in json.dumps(chinese)


async def test_without_ends_all_of_it_says_so(board: Board, monkeypatch) -> None:
    board.hour_limit = None
    control = await board.serve()
    async with serving(board.path, monkeypatch, "admins", GROUPS) as get:
        found = checked(await get("boss", f"api/week?from={monday()}"))
    control.close()
    assert {each["refused"] for each in found["reserved"]} == {
        "It isn't reserved: servers here have no end."
    }


async def test_what_cannot_be_kept_says_how_many_are_missing(board: Board, monkeypatch) -> None:
    soon = datetime.now(ZONE).replace(tzinfo=None) + timedelta(hours=1)
    end = soon + timedelta(hours=1)
    board.courses = {
        "ml": {
            "group": "students",
            "reserved": [hours(soon.date(), f"{soon:%H:%M}", f"{end:%Y-%m-%dT%H:%M}")],
        }
    }
    board.states, board.holders = ("free", "unhealthy"), {}
    control = await board.serve()
    board.reserved.look(await board.ledger.read())
    async with serving(board.path, monkeypatch, "admins", GROUPS) as get:
        found = checked(await get("eve", "api/week"))
        page = (await get("eve", "week")).body.decode()
    control.close()
    assert [each["missing"] for each in found["reserved"]] == [1]
    assert "1 of them can't be had as things are." in page


async def test_the_calendar_has_the_hours_of_one_s_own_courses(ask) -> None:
    events = {}
    for who in ("boss", "prof", "ada", "eve", "culler"):
        answer = await ask(who, "api/reserved.ics")
        assert answer.code == 200
        assert answer.headers["Content-Type"] == "text/calendar; charset=utf-8"
        text = answer.body.decode()
        assert text.startswith("BEGIN:VCALENDAR\r\n")
        events[who] = re.findall(r"CATEGORIES:(\S+)", text)
        found = read_calendar(answer.body, CourseCalendar("x.ics", 2), 0)
        assert len(found) == len(events[who])
    # That of cv isn't reserved: there are too few GPUs for it.
    assert events == {"boss": ["ml"], "prof": ["ml"], "ada": ["ml"], "eve": [], "culler": []}
    text = (await ask("ada", "api/reserved.ics")).body.decode()
    assert f"RRULE:FREQ=WEEKLY;COUNT=3\r\nSUMMARY:{HOSTILE} (2 GPUs)" in text.replace("\r\n ", "")
    chinese = await ask("ada", "api/reserved.ics", **{"Accept-Language": "zh-CN"})
    assert "(2 个 GPU)" in chinese.body.decode()


async def test_hours_as_slots_say_how_many_they_seat(board: Board, monkeypatch) -> None:
    board.states, board.holders = ("free",) * 5, {}
    board.courses = {
        "ml": {"group": "students", "reserved": [hours(monday(), gpus=4, slots=15)]},
        "cv": {"group": "students", "reserved": [hours(monday(), gpus=1, slots=3)]},
        "art": {"group": "students", "reserved": [hours(monday(), "12:00", "13:00", 1)]},
    }
    control = await board.serve()
    async with serving(board.path, monkeypatch, "admins", GROUPS) as get:
        found = checked(await get("eve", f"api/week?from={monday()}"))
        assert [(each["course"], each["slots"]) for each in found["reserved"]] == [
            ("ml", 15),
            ("cv", 3),
            ("art", 0),
        ]
        for language, says in (
            (
                "en",
                ("4 GPUs, 15 slots each: 60 seats", "1 GPU, 3 slots: 3 seats", "1 GPU"),
            ),
            (
                "zh-CN",
                (
                    "4 个 GPU，每个分成 15 份：60 个席位",
                    "1 个 GPU，每个分成 3 份：3 个席位",
                    "1 个 GPU",
                ),
            ),
        ):
            headers = {"Accept-Language": language}
            answer = await get("eve", f"week?from={monday()}", **headers)
            page = BeautifulSoup(answer.body, "html.parser")
            bars = {each.get_text().strip() for each in page.select("svg.gs-week-bar span")}
            assert bars == {
                f"{name} · {words}" for name, words in zip(("ml", "cv", "art"), says, strict=True)
            }
            # Who doesn't see the picture reads it in the table.
            cells = {
                tuple(td.get_text() for td in row.select("td"))[3:]
                for row in page.select("tbody tr")
            }
            assert {each[1] for each in cells} == set(says)
            text = (await get("ada", "api/reserved.ics", **headers)).body.decode()
            summaries = re.findall(r"^SUMMARY:(.*?)\r$", text.replace("\r\n ", ""), re.M)
            assert [each.replace("\\,", ",") for each in summaries] == [
                f"{name} ({words})" for name, words in zip(("ml", "cv", "art"), says, strict=True)
            ]
    control.close()


async def test_without_a_hub_there_is_no_calendar(tmp_path: Path, monkeypatch) -> None:
    async with serving(str(tmp_path / "none.sock"), monkeypatch) as get:
        answer = await get("ada", "api/reserved.ics")
    assert answer.code == 503
    assert check("Refusal", json.loads(answer.body))["status"] == 503


@pytest.mark.parametrize(
    "bad",
    ["yesterday", "2026-02-30", "20261130", "2026-W01-1", "1999-12-31", "2100-01-01", "1" * 99],
)
async def test_what_is_no_day_is_refused_by_the_name_of_its_key(ask, bad: str) -> None:
    answer = await ask("ada", f"api/week?from={bad}")
    assert answer.code == 400
    said = check("Refusal", json.loads(answer.body))
    assert said["key"] == "from"
    assert "is no date from 2000 to 2099" in said["message"]
    page = await ask("ada", f"week?from={bad}")
    assert page.code == 400
    shown = BeautifulSoup(page.body, "html.parser")
    assert "is no date" in shown.select_one(".alert").get_text()
    # The form is there to try again.
    assert shown.select_one("input[type=date]")["value"] == str(datetime.now(ZONE).date())


@pytest.mark.parametrize(
    ("first", "length"), [("2026-10-19", 169), ("2026-03-23", 167), ("2026-06-01", 168)]
)
async def test_a_week_in_which_the_clock_changes_is_as_long_as_it_is(ask, first, length) -> None:
    found = checked(await ask("ada", f"api/week?from={first}"))
    begin, end = (datetime.fromisoformat(found[name]) for name in ("from", "to"))
    assert (end - begin).total_seconds() == length * HOUR
    page = BeautifulSoup((await ask("ada", f"week?from={first}")).body, "html.parser")
    labels = [each.get_text() for each in page.select(".gs-week-head svg svg text")]
    # Twelve is at noon, on the day too that is shorter or longer.
    week = midnights(date.fromisoformat(first), ZONE)
    noons = [each for each in page.select("text.gs-week-hour") if each.get_text() == "12"]
    for noon, number in zip(noons, range(7), strict=True):
        day = date.fromisoformat(first) + timedelta(days=number)
        there = datetime(day.year, day.month, day.day, 12, tzinfo=ZONE).timestamp() - week[0]
        share = 100 * there / (week[-1] - week[0])
        assert float(noon["x"].rstrip("%")) == pytest.approx(share, abs=0.01)
    days = [date.fromisoformat(first) + timedelta(days=number) for number in range(7)]
    assert [f"{day:%a}" for day in days] == [each[:3] for each in labels]


@pytest.mark.parametrize(("language", "says"), [("en", "reserved"), ("zh-CN", "预留")])
async def test_picture_and_table_say_the_same(ask, board: Board, language: str, says: str) -> None:
    for day in ("", str(monday())):
        headers = {"Accept-Language": language}
        facts = checked(await ask("boss", f"api/week?from={day}"))
        page = BeautifulSoup((await ask("boss", f"week?from={day}", **headers)).body, "html.parser")
        assert page.html["lang"].startswith(language[:2])
        things = [*facts["leases"], *facts["bookings"], *facts["reserved"]]
        assert len(page.select("svg.gs-week-bar")) == len(things) > 1
        rows = page.select("table tbody tr")
        assert len(rows) == len(things)
        # The words of each bar are in the table, for who doesn't see the picture.
        table = page.table.get_text()
        for bar in page.select("svg.gs-week-bar span"):
            assert bar.get_text().split(" · ")[0].strip() in table
        assert says in page.get_text()
        assert page.select_one("[role=img][aria-label]")
        assert all(each["aria-label"] for each in page.select("[role=region][tabindex='0']"))
        assert page.select_one("a[aria-current=page]")["href"].endswith("/week")
        # Where colours aren't seen, a word says what it is, and nothing here is a script.
        assert not page.select("main script")
        assert page.select("[style]") == []
        assert HOSTILE in page.get_text()


@pytest.mark.parametrize("language", ["en", "zh-CN"])
async def test_no_day_of_the_table_is_broken_across_lines(ask, language: str) -> None:
    """A line may end between any two characters of Chinese: a browser is told where not."""
    answer = await ask("boss", f"week?from={monday()}", **{"Accept-Language": language})
    page = BeautifulSoup(answer.body, "html.parser")
    for row in page.select("table tbody tr"):
        for cell in row.select("td")[:2]:
            days = [each.get_text() for each in cell.select(".gs-day")]
            assert re.sub(r"[, ]*\d\d:\d\d$", "", cell.get_text()) == days[0]
            assert str(monday().day) in days[0]
    assert page.select("table td small .gs-day")  # nor in a sentence
    # What a picture's bar is called is text.
    assert all("gs-day" not in str(each.title) for each in page.select("svg.gs-week-bar"))


async def test_the_bars_are_where_their_hours_are(ask) -> None:
    page = BeautifulSoup((await ask("ada", f"week?from={monday()}")).body, "html.parser")
    bar = page.select_one("svg.gs-week-reserved.gs-week-bar")
    week = midnights(monday(), ZONE)
    length = week[-1] - week[0]
    assert float(bar["x"].rstrip("%")) == pytest.approx(100 * 10 * HOUR / length, abs=0.01)
    assert float(bar["width"].rstrip("%")) == pytest.approx(100 * 2 * HOUR / length, abs=0.01)


async def test_a_hub_that_says_nothing_is_said_to(tmp_path: Path, monkeypatch) -> None:
    async with serving(str(tmp_path / "none.sock"), monkeypatch) as get:
        found = checked(await get("ada", "api/week"))
        page = (await get("ada", "week")).body.decode()
    assert (found["known"], found["queue_known"], found["reserved_known"]) == (False,) * 3
    assert "Which hours are reserved isn't known now." in page
    assert "Who waits isn't known" in page


TOKYO = midnights(date(2026, 11, 30), ZoneInfo("Asia/Tokyo"))
TOLD = {"days": list(TOKYO), "zone": "Asia/Tokyo", "known": True, "reserved": [], "members": []}


@pytest.mark.parametrize(
    ("answer", "understood"),
    [
        (TOLD, True),
        ({**TOLD, "days": "no"}, False),
        ({"error": "no such question", "status": 404}, False),
        ([], False),
    ],
)
async def test_the_week_is_the_hub_s_whatever_the_time_is_here(
    tmp_path: Path, answer: Any, understood: bool
) -> None:
    class Week(web.RequestHandler):
        async def post(self) -> None:
            self.finish(json.dumps(answer))

    path = str(tmp_path / "hub.sock")
    server = HTTPServer(web.Application([("/week", Week)]))
    server.add_socket(bind_unix_socket(path))
    told = await ask_week(path, "2026-11-30")
    server.stop()
    assert told.known is understood
    assert told.days == (list(TOKYO) if understood else midnights(date(2026, 11, 30), None))
    assert told.clock == (ZoneInfo("Asia/Tokyo") if understood else None)


async def test_a_calendar_is_offered_to_whom_its_hours_concern(ask) -> None:
    async def is_offered(who: str) -> bool:
        page = BeautifulSoup((await ask(who, "week")).body, "html.parser")
        return bool(page.select("a[href$='api/reserved.ics']"))

    # Also in a week without any of its hours.
    offered = {who: await is_offered(who) for who in ("boss", "prof", "ada", "eve", "culler")}
    assert offered == {"boss": True, "prof": True, "ada": True, "eve": False, "culler": False}


async def test_a_service_or_a_stranger_reads_no_page(ask) -> None:
    assert (await ask("culler", "api/week")).code == 200
    page = BeautifulSoup((await ask("culler", "week")).body, "html.parser")
    assert not page.select_one(".gs-name")


async def test_a_hub_with_more_gpus_than_fit_draws_those_that_are_held(
    board: Board, monkeypatch
) -> None:
    board.states = ("free",) * 64
    control = await board.serve()
    async with serving(board.path, monkeypatch) as get:
        page = BeautifulSoup((await get("boss", "week")).body, "html.parser")
    control.close()
    assert len(page.select("svg.gs-week-lease")) == 2 + 1  # and the legend's
    assert "62 more GPUs aren't held now" in page.get_text()


# Values ------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 8), st.one_of(st.none(), st.integers(1, 4))), max_size=12))
def test_nothing_covers_another_in_a_row_and_no_row_is_too_many(spans) -> None:
    found = [
        {"begin": begin, "end": inf if length is None else begin + length}
        for begin, length in spans
    ]
    rows = lanes(found)
    assert sorted(map(str, (each for row in rows for each in row))) == sorted(map(str, found))
    for row in rows:
        assert all(one["end"] <= other["begin"] for one, other in pairwise(row))
    deepest = max(
        (
            sum(
                begin <= moment and (length is None or moment < begin + length)
                for begin, length in spans
            )
            for moment, _ in spans
        ),
        default=0,
    )
    assert len(rows) == deepest


@given(
    st.dates(date(2000, 1, 1), date(2099, 12, 31)),
    st.sampled_from(["Europe/Berlin", "America/Asuncion", "Pacific/Apia", "UTC", "Asia/Kathmandu"]),
)
def test_seven_days_begin_each_after_the_one_before(first: date, name: str) -> None:
    zone = ZoneInfo(name)
    found = midnights(first, zone)
    assert len(found) == 8
    assert list(found) == sorted(found)
    shown = [datetime.fromtimestamp(each, zone) for each in found]
    # Where there is no midnight, the day begins an hour later.
    assert all(each.hour in (0, 1) or name == "Pacific/Apia" for each in shown)


def test_today_is_the_hub_s() -> None:
    late = datetime(2026, 11, 30, 23, 30, tzinfo=timezone.utc).timestamp()
    assert parse_day("", ZoneInfo("Asia/Tokyo"), late) == date(2026, 12, 1)
    assert parse_day("", ZoneInfo("UTC"), late) == date(2026, 11, 30)
    with pytest.raises(Refused):
        parse_day("२०२६-११-३०", None, late)


@pytest.mark.parametrize(
    ("tz", "name"),
    [
        ("Europe/Berlin", "Europe/Berlin"),
        (":/usr/share/zoneinfo/Asia/Tokyo", "Asia/Tokyo"),
        ("", "UTC"),
        ("CET-1CEST,M3.5.0,M10.5.0/3", ""),
        ("../../etc/passwd", ""),
    ],
)
def test_the_machine_s_zone_has_a_name(in_zone, tz: str, name: str) -> None:
    in_zone(tz)
    assert local_zone_name() == name


def test_what_was_is_shown_too(board: Board) -> None:
    yesterday = datetime.now(ZONE).date() - timedelta(days=1)
    board.courses = {"ml": {"group": "g", "reserved": [hours(yesterday)]}}
    asyncio.run(board.ledger.read())
    reserved = ReservedTimes(CourseCatalogue(board.courses, "", LOG), board.ledger, 12, LOG)
    week = midnights(yesterday, ZONE)
    ((told, missing, refused),) = reserved.between(week[0], week[-1])
    assert (told.course, missing, refused) == ("ml", 0, "")
    assert list(reserved.between(told.begin - 1, told.begin)) == []
    assert list(reserved.between(told.end, told.end + 1)) == []
    assert not reserved.running(["ml"])
