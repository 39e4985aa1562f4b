"""A course's page and its API: for who teaches it, and in both languages."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import pytest
import pytest_asyncio
from bs4 import BeautifulSoup
from tornado.httpclient import HTTPResponse

from gpuspawner.dashboard.courses import course_facts
from gpuspawner.hub.messages import MAX_LENGTH

from ..support.boards import HOSTILE
from ..support.courses import PEOPLE, Classroom
from ..support.dashboards import check
from ..support.services import PREFIX, Service, model_of, served

ML = "api/courses/ml"
NO_SUCH = "There is no such course, or you don't teach it."


@pytest_asyncio.fixture
async def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    """The service, as its application is, beside a hub's control socket."""
    room = Classroom(people={**PEOPLE, HOSTILE: ("students",)})
    path = str(tmp_path / "hub.sock")
    control = room.control(path)
    await control.begin()
    async with served(path, monkeypatch, "admins", model_of) as url:
        yield Service(room, url)
    control.close()
    await room.close()


def answered(answer: HTTPResponse, name: str, code: int = 200) -> Any:
    assert answer.code == code, answer.body
    return check(name, json.loads(answer.body))


SERVER = f"{ML}/users/ada/server"
ACTS: list[tuple[str, str, Any]] = [
    ("GET", ML, None),
    ("GET", f"{ML}/link", None),
    ("POST", f"{ML}/extend", {}),
    ("POST", f"{ML}/message", {"text": "hello"}),
    ("DELETE", SERVER, None),
    ("DELETE", SERVER, {"why": "x", "minutes": 10}),
    ("DELETE", f"{SERVER}/stop", None),
    ("POST", f"{SERVER}/extend", {}),
    ("POST", f"{SERVER}/message", {"text": "hello"}),
    ("POST", f"{SERVER}/front", None),
]


@pytest.mark.parametrize(
    ("who", "status"),
    [
        ("ada", 404),
        ("rembrandt", 404),
        ("eve", 404),
        # What runs in a server of an instructor's isn't the instructor.
        ("server-of-prof", 403),
        ("server-of-ada", 403),
        ("culler", 403),
    ],
)
async def test_nobody_else_reads_or_does_anything(service: Service, who: str, status: int) -> None:
    ada = await service.room.start("ada", course="ml")
    until = ada.lease.until
    for method, path, body in ACTS:
        answer = await service.send(method, who, path, body)
        refusal = answered(answer, "Refusal", status)
        assert (refusal["message"] == NO_SUCH) is (status == 404), path
    for path in ("courses/ml", "courses/ml/live"):
        answer = await service.get(who, path)
        assert answer.code in (403, 404)
        assert "cyd" not in answer.body.decode()
    fields = urlencode({"do": "stop", "user": "ada", "server": ""})
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    assert (await service.send("POST", who, "courses/ml", fields, **kind)).code == 303
    assert ada.lease.units
    assert ada.lease.until == pytest.approx(until, abs=1)
    assert (ada.lease.announced, service.room.messages.facts()) == (None, [])
    assert await service.page("ada", "courses")


@pytest.mark.parametrize(
    "key", ["none", "ML", "ml%2f", "..", "%00", quote(HOSTILE, safe=""), "x" * 300]
)
async def test_a_key_that_is_no_course_s_is_a_sentence(service: Service, key: str) -> None:
    for method, path, body in ACTS:
        answer = await service.send(method, "prof", path.replace("/ml", f"/{key}", 1), body)
        assert answer.code == 404, path
    answer = await service.get("prof", f"courses/{key}")
    assert answer.code == 404
    assert "alert('x')" not in answer.body.decode()


async def test_who_is_taken_out_is_out_with_the_next_press(service: Service) -> None:
    await service.room.start("ada", course="ml")
    assert answered(await service.get("prof", ML), "Course")["totals"]["runs"] == 1
    service.room.remove("prof", "staff")
    for method, path, body in ACTS:
        assert (await service.send(method, "prof", path, body)).code == 404
    assert answered(await service.get("prof", "api/courses"), "Courses") == {"courses": []}


async def test_the_bar_leads_instructors_to_their_courses(service: Service) -> None:
    def links(page: BeautifulSoup) -> list[str]:
        return [str(each["href"]) for each in page.select("nav a.nav-link")]

    for path in ("", "usage?from=2026-01-01", "courses"):
        answer = await service.get("prof", path)
        page = BeautifulSoup(answer.body, "html.parser")
        assert f"{PREFIX}courses" in links(page), path
        plain = BeautifulSoup((await service.get("ada", path)).body, "html.parser")
        assert f"{PREFIX}courses" not in links(plain), path
    page = await service.page("prof", "courses")
    assert [each["href"] for each in page.select("main a")] == [f"{PREFIX}courses/ml"]
    assert "Machine <learning>" in page.get_text()
    assert "You teach no course here" in (await service.page("ada", "courses")).get_text()
    assert len((await service.page("boss", "courses")).select("main a")) == 2


async def test_the_api_is_as_it_is_described(service: Service) -> None:
    room = service.room
    room.gpus = 2
    ada = await room.start("ada", course="ml", hours=1)
    await room.start(HOSTILE, course="ml", hours=1)
    await room.wait("eve")
    await room.wait("ben", course="ml")
    await room.wait("cyd", course="ml")
    course = answered(await service.get("prof", ML), "Course")
    assert course["totals"] == {
        "members": 5, "runs": 2, "idle": 0, "starts": 0, "waits": 2, "away": 1, "gpus": 2,
    }  # fmt: skip
    places = {each["user"]: each["servers"][0]["place"] for each in course["members"][2:4]}
    assert places == {"ben": 2, "cyd": 3}
    assert "eve" not in json.dumps(course)
    answer = await service.send("POST", "prof", f"{ML}/users/cyd/server/front")
    assert answered(answer, "Place") == {"place": 2}
    assert await room.planned() == ["eve", "cyd", "ben"]
    # While others wait nobody is extended.
    answer = await service.send("POST", "prof", f"{SERVER}/extend", {"hours": 1})
    assert "others wait who could use" in answered(answer, "Refusal", 409)["message"]
    answer = await service.send("POST", "prof", f"{ML}/extend", **{"Accept-Language": "zh"})
    for each in answered(answer, "ExtendedServers")["servers"]:
        assert each["until"] is None
        assert "人" in each["message"]
    room.tasks[0].cancel()
    await room.close_waits()
    answered(await service.send("POST", "prof", f"{SERVER}/extend", {"hours": 1}), "Extended")
    answer = await service.send("POST", "prof", f"{ML}/message", {"text": "Time is up"})
    assert answered(answer, "Sent") == {"sent": 2}
    answer = await service.send("POST", "prof", f"{SERVER}/message", {"text": "For you"})
    assert answered(answer, "Sent") == {"sent": 1}
    answer = await service.send("DELETE", "prof", SERVER, {"why": "over", "minutes": 10})
    assert answer.code == 204
    assert ada.lease.announced
    assert (await service.send("DELETE", "prof", f"{SERVER}/stop")).code == 204
    assert (await service.send("DELETE", "prof", SERVER)).code == 204
    assert not ada.lease.units
    hostile = f"{ML}/users/{quote(HOSTILE, safe='')}/server"
    assert (await service.send("DELETE", "prof", hostile, {"why": HOSTILE[:200]})).code == 204


@pytest.mark.parametrize(
    ("method", "path", "body", "key"),
    [
        ("POST", f"{SERVER}/extend", {"hours": "1"}, "hours"),
        ("POST", f"{SERVER}/extend", {"hours": 0}, "hours"),
        ("POST", f"{ML}/extend", {"hours": -1}, "hours"),
        ("POST", f"{ML}/message", {"text": 1}, "text"),
        ("POST", f"{ML}/message", {"text": "x" * (MAX_LENGTH + 1)}, "text"),
        ("POST", f"{ML}/message", {}, "text"),
        ("DELETE", SERVER, {"why": ["x"]}, "why"),
        ("DELETE", SERVER, {"minutes": "10"}, "minutes"),
        ("DELETE", SERVER, {"minutes": -1}, None),
        ("DELETE", SERVER, {"why": "x" * 201}, None),
        ("GET", f"{ML}/link?image=secret", None, "image"),
        ("GET", f"{ML}/link?image={quote(HOSTILE)}", None, "image"),
        ("GET", f"{ML}/link?gpus=-1", None, "gpus"),
        ("GET", f"{ML}/link?gpus=99999999999999999999", None, "gpus"),
        ("GET", f"{ML}/link?gpus=%C2%B2", None, "gpus"),
        ("GET", f"{ML}/link?hours=nan", None, "hours"),
        ("GET", f"{ML}/link?hours=inf", None, "hours"),
        ("GET", f"{ML}/link?hours=0", None, "hours"),
        ("GET", f"{ML}/link?kind=tpu", None, "kind"),
        ("GET", f"{ML}/link?repository=1", None, "repository"),
        ("GET", f"{ML}/link?format=png", None, "format"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_the_name_of_its_key(
    service: Service, method: str, path: str, body: Any, key: str | None
) -> None:
    ada = await service.room.start("ada", course="ml")
    refusal = answered(await service.send(method, "prof", path, body), "Refusal", 400)
    assert refusal.get("key") == key
    assert ada.lease.units
    assert ada.lease.announced is None
    if method == "GET" and key != "format":
        page = await service.get("prof", path.removeprefix("api/").replace("/link", ""))
        assert page.code == 400
        assert BeautifulSoup(page.body, "html.parser").select_one("section .alert")


async def test_the_link_starts_a_server_for_the_course_with_its_notebooks(service: Service) -> None:
    await service.room.ledger.read()
    path = f"{ML}/link?image=plain&gpus=1&hours=1.5&kind=gpu&repository=true"
    link = urlsplit(answered(await service.get("prof", path), "Link")["url"])
    assert (link.scheme, link.path) == ("http", "/hub/spawn")
    asked = {name: value for name, (value,) in parse_qs(link.query).items()}
    repository = asked.pop("next")
    assert asked == {
        "opt-course": "ml", "opt-image": "plain", "opt-gpus": "1", "opt-kind": "gpu",
        "opt-hours": "1.5",
    }  # fmt: skip
    assert repository.startswith("/hub/user-redirect/git-pull?repo=https%3A%2F%2Fgit.example")
    assert parse_qs(urlsplit(repository).query)["urlpath"] == ["lab/tree/ml/week 1.ipynb"]
    plain = answered(await service.get("prof", f"{ML}/link?repository=false"), "Link")["url"]
    assert plain.endswith("/hub/spawn?opt-course=ml")
    first = answered(await service.get("prof", f"{ML}/link"), "Link")["url"]
    assert "next=" in first
    picture = await service.get("prof", f"{ML}/link?format=svg")
    assert picture.headers["Content-Type"] == "image/svg+xml"
    assert picture.body.startswith(b"<svg")
    page = await service.page("prof", "courses/ml")
    shown = page.select_one("input#link")
    assert shown
    assert shown["value"] == first
    drawn = page.select_one("figure[role=img][aria-label] svg")
    assert drawn
    # The policy lets no style of its own be there.
    assert "style" not in str(drawn)


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("en", ["runs", "waits", "not here", "Extend all", "To the course's front", "instructor"]),
        ("zh-CN", ["运行中", "排队中", "不在", "全部延长", "移到课程最前", "教师"]),
    ],
)
async def test_the_page_shows_who_does_what(service: Service, language, words) -> None:
    room = service.room
    room.gpus = 1
    await room.start(HOSTILE, course="ml", hours=1)
    await room.wait("ben", course="ml")
    page = await service.page("prof", "courses/ml", **{"Accept-Language": language})
    assert page.html["lang"].startswith(language[:2])
    said = page.get_text()
    for each in words:
        assert each in said
    # What users have chosen is text, and so is the course's title.
    assert HOSTILE in said
    assert "Machine <learning>" in page.select_one("h1").get_text()
    assert not page.select("main script")
    # Each form has its token, a label for each field, and leads to this page.
    for form in page.select("main form[method=post]"):
        assert form.select_one("input[name=_xsrf]")
        assert form["action"] == f"{PREFIX}courses/ml"
    for field in page.select("main input:not([type=hidden]), main select"):
        named = field.find_parent("label") or page.select_one(f"label[for='{field.get('id')}']")
        assert named, field
    names = [each["id"] for each in page.select("[id]")]
    assert len(names) == len(set(names))
    live = await service.page("prof", "courses/ml/live", **{"Accept-Language": language})
    assert [each["id"] for each in live.select("[data-part]")] == [
        each["id"] for each in page.select("#live [data-part]")
    ]


async def test_the_page_s_buttons_do_what_they_say(service: Service) -> None:
    room = service.room
    room.gpus = 1
    ada = await room.start("ada", course="ml", hours=1)
    to = {"user": "ada", "server": ""}
    assert "now ends at" in await service.press("prof", "courses/ml", do="extend", **to)
    assert await service.press("prof", "courses/ml", do="extend-all") == "1 server has more time."
    said = await service.press("prof", "courses/ml", do="stop", why="Over", when="10", **to)
    assert said == "The server is stopped in 10 minutes."
    page = await service.page("prof", "courses/ml")
    assert "An instructor stops it at" in page.get_text()
    said = await service.press("prof", "courses/ml", do="extend-all")
    assert said.startswith(
        "0 of 1 servers have more time. ada doesn't: An instructor of its course"
    )
    assert await service.press("prof", "courses/ml", do="keep", **to) == "The server goes on."
    said = await service.press("prof", "courses/ml", do="message", text="Hello", **to)
    assert said == "The message appears in 1 JupyterLab."
    said = await service.press("prof", "courses/ml", do="message-all", text="")
    assert said == "The message is empty."
    await room.wait("ben", course="ml")
    said = await service.press("prof", "courses/ml", do="front", user="ben", server="")
    assert said == "ben is first of the course now: place 1 of all."
    said = await service.press("prof", "courses/ml", do="take-over")
    assert said == "That can't be done here."
    assert ada.lease.units
    said = await service.press("prof", "courses/ml", do="stop", **to)
    assert said == "The server stops, once what runs in it has saved."
    assert not ada.lease.units


async def test_a_message_is_read_by_whom_it_is_for(service: Service) -> None:
    room = service.room
    await room.start("ada", course="ml")
    await room.start("ben", course="ml")
    await service.send("POST", "prof", f"{SERVER}/message", {"text": "For ada"})
    for who, texts in (
        ("server-of-ada", ["For ada"]),
        ("server-of-ben", []),
        ("prof", []),
        ("boss", []),
    ):
        answer = await service.get(who, "api/status")
        assert [each["text"] for each in answered(answer, "Status")["messages"]] == texts


def test_who_does_nothing_for_long_is_idle() -> None:
    empty = dict.fromkeys(("since", "until", "stop", "place", "start", "waiting_since"))
    server = {
        **empty, "server": "", "state": "runs", "gpus": 1, "kind": "gpu", "image": "",
        "waited_for": 0,
    }  # fmt: skip

    def state(idle_since: float | None) -> str:
        one = {
            "user": "ada",
            "instructor": False,
            "servers": [{**server, "idle_since": idle_since}],
        }
        answer = {"key": "ml", "title": "ML", "images": [], "kinds": [], "repository": ""}
        facts = check("Course", course_facts({**answer, "members": [one]}, 10_000.0))
        return str(facts["members"][0]["state"])

    assert [state(each) for each in (None, 9_990.0, 9_000.0)] == ["runs", "runs", "idle"]


async def test_where_the_hub_is_silent_the_page_says_so(service: Service) -> None:
    for path in ("courses", "courses/ml"):
        service.room.instructors._rights._courses = None  # type: ignore[assignment]
        answer = await service.get("prof", path)
        assert answer.code >= 500
        assert "Traceback" not in answer.body.decode()


def test_a_log_in_leads_back_to_a_course_and_nowhere_else() -> None:
    from gpuspawner.dashboard.login import PAGES

    for page in ("", "usage", "reserved", "courses", "courses/ml-101"):
        assert PAGES.fullmatch(page)
    for page in ("courses/", "courses/ml/live", "courses/../x", "courses/%2e", "api/status", "x"):
        assert not PAGES.fullmatch(page)
