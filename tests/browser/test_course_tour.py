"""A course as a student, an outsider, a professor and an administrator see it, in both languages.

A student on a telephone, the others at a desk as well; light in English, dark in Chinese.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest

from ..support import dashboards
from ..support.browsers import assert_accessible, log_in
from ..support.hubs import PASSWORD, Hub, until

pytestmark = [pytest.mark.engine, pytest.mark.browser, pytest.mark.thorough]

# Both languages, light and dark, a telephone and a desk.
ENGLISH = {"locale": "en-GB", "color_scheme": "light", "viewport": {"width": 375, "height": 700}}
CHINESE = {"locale": "zh-CN", "color_scheme": "dark", "viewport": {"width": 1100, "height": 700}}
# The same in every language: names of this file's, and of what there is.
NAMES = r"GPUs?|UUID|NVIDIA|A100-SXM4-40GB|CUDA|GiB|GB|JSON|CSV|ics|UTC|Etc|Machine learning|ml"
NAMES += r"|JupyterHub|JupyterLab|ada|bea|eve|prof|boss|minimal"

COURSES = """
from gpuspawner.pages import TEMPLATES
c.JupyterHub.template_paths = [TEMPLATES]
c.JupyterHub.load_groups = {{
    "students": {{"users": ["ada"]}},
    "staff": {{"users": ["prof"]}},
    "others": {{"users": ["eve"]}},
}}
c.GPUSpawner.gpu_hours = {{"students": {{"hours": 6, "days": 7}}}}
c.GPUSpawner.courses = {{
    "ml": {{
        "title": "Machine learning",
        "group": "students",
        "instructors": "staff",
        "required": False,
        "reserved": [{reserved}],
    }},
}}
"""


def wall(hours: float) -> str:
    """Return the clock's time so many hours from now, as hours of a course have it."""
    return f"{datetime.fromtimestamp(time.time() + 3600 * hours):%Y-%m-%dT%H:%M}"


# From when until when a course has its hours, from now on, and what of.
LATER = (3, 6, {"gpus": 4})
CLASS = (-0.2, 2, {"gpus": 2, "slots": 15, "unclaimed_minutes": 180})


@pytest.fixture
def hub(make_hub, request) -> Hub:
    begins, ends, what = getattr(request, "param", LATER)
    reserved = {"begin": wall(begins), "end": wall(ends), **what}
    made = make_hub(dashboards.lines(), COURSES.format(reserved=reserved))
    static = f"{made.url}/services/gpus/static/dashboard.css"
    until(lambda: ".gs-page" in made.log_in("prof").get(static).text, "it answers", log=made.log)
    return made


@pytest.fixture
def open_as(browser, hub) -> Iterator[Callable[..., Any]]:
    """Open a page as somebody in a browser of their own, whose console may complain of nothing."""
    contexts = []
    complaints: list[str] = []

    def open_page(user: str, path: str, how: dict[str, Any]) -> Any:
        context = browser.new_context(bypass_csp=True, **how)
        contexts.append(context)
        context.set_default_timeout(60_000)
        tab = context.new_page()
        log_in(tab, hub, user, dashboards.ADMIN_PASSWORD if user == "boss" else PASSWORD)
        tab.wait_for_load_state("load")
        tab.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.goto(f"{hub.url}{path}")
        return tab

    yield open_page
    for context in contexts:
        context.close()
    # The browser itself says it of the page that there isn't.
    assert [each for each in complaints if "404" not in each] == []


@pytest.fixture
def looked_at(picture) -> Callable[..., None]:
    """Look at a page as it is: by axe-core, its width, its language; and take its picture."""

    def look(tab: Any, name: str, root: str = "main") -> None:
        assert_accessible(tab)
        picture(tab, name)
        wide = tab.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert wide[0] <= wide[1], name
        text = tab.locator(root).first.inner_text()
        if tab.evaluate("navigator.language") == "zh-CN":
            assert re.findall(r"[A-Za-z]{2,}", re.sub(rf"\b({NAMES})\b", "", text)) == []
        else:
            assert not re.search("[\u4e00-\u9fff]", text)

    return look


def form(hub: Hub, tab: Any, user: str, server: str = "") -> None:
    tab.goto(f"{hub.url}/hub/spawn/{user}/{server}".rstrip("/"))
    tab.locator("#gpuspawner-fresh time[datetime]").wait_for()


def says(tab: Any, words: str) -> None:
    tab.get_by_role("status").filter(has_text=words).wait_for()


FORM = ".container:has(#gpuspawner)"


def test_a_student_has_hours_and_a_budget_and_an_outsider_reads_why_not(hub, open_as, looked_at):
    tabs = {
        (user, tag): open_as(user, f"/hub/spawn/{user}", how)
        for user in ("ada", "eve")
        for tag, how in (("en", ENGLISH), ("zh", CHINESE))
    }
    for (user, _), tab in tabs.items():
        form(hub, tab, user)
        tab.locator("input[name=gpus][value='1']").check()
        tab.locator("input[name=hours][value='4']").check()
    # Who isn't in the course reads that GPUs are kept, until when there is one, and since when.
    words = {
        "en": (
            "Reserved for course Machine learning from",
            "With less time, until",
            "You would be next in line",
        ),
        "zh": ("已为课程 Machine learning 预留", "如果把时间缩短到", "下一个就轮到您"),
    }
    for tag, sentences in words.items():
        tab = tabs["eve", tag]
        for each in sentences:
            says(tab, each)
        assert tab.locator("input[name=course]").count() == 0
        assert "GPU hours in" not in tab.locator(FORM).inner_text()
        looked_at(tab, f"outsider-form-{tag}", FORM)
    # A student starts now, into the hours, within what is left.
    left = {
        "en": ("Your budget: 6 of 6 GPU hours in 7 days are left.", "Starts now, with 1 GPU."),
        "zh": ("的 6 GPU 小时还剩 6。", "立即启动，带 1 个 GPU。"),
    }
    for tag, (budget, now) in left.items():
        tab = tabs["ada", tag]
        tab.locator("input[name=course][value='ml']").check()
        says(tab, now)
        tab.get_by_text(budget).wait_for()
        # With more GPUs there is less time.
        tab.locator("input[name=gpus][value='2']").check()
        tab.locator("input[name=hours][value='4']").wait_for(state="detached")
        tab.locator("input[name=gpus][value='1']").check()
        tab.locator("input[name=hours][value='4']").check()
        says(tab, now)
        looked_at(tab, f"student-form-{tag}", FORM)
    tab = tabs["ada", "en"]
    tab.get_by_role("button", name="Start", exact=True).click()
    tab.wait_for_url("**/user/ada/**")
    (server,) = hub.api("GET", "/users/ada").json()["servers"].values()
    assert server["user_options"]["course"] == "ml"
    # What it is promised isn't left, and the form says when it comes back.
    left_now = {
        "en": r"Your budget: (2|1\.9) of 6 GPU hours in 7 days are left\. 1 more comes back by",
        "zh": "还剩 (2|1.9)。.+ 前会再恢复 1，.+ 前全部恢复。",
    }
    for tag, sentence in left_now.items():
        tab = tabs["ada", tag]
        form(hub, tab, "ada", "more")
        tab.locator("input[name=gpus][value='1']").check()
        tab.get_by_text(re.compile(sentence)).wait_for()
        offered = tab.locator("input[name=hours]").evaluate_all("all => all.map(e => +e.value)")
        assert offered
        assert max(offered) <= 2
        looked_at(tab, f"student-budget-{tag}", FORM)
    # In the time before the hours there is a GPU for everybody.
    tab = tabs["eve", "en"]
    # Once it is picked, it is a time like others.
    tab.get_by_label(re.compile("^until ")).click()
    says(tab, "Starts now, with 1 GPU.")
    tab.get_by_role("button", name="Start", exact=True).click()
    tab.wait_for_url("**/user/eve/**")


def test_who_sees_what_of_a_course(hub, open_as, looked_at):
    hub.start_server("ada", {"gpus": 2, "hours": 2, "course": "ml"})
    hub.start_server("eve", {"gpus": 1, "hours": 1})
    pages = "/services/gpus/"
    # User -> whose names are theirs to read in week, history and usage.
    reads: dict[str, set[str]] = {"ada": set(), "eve": set(), "prof": set(), "boss": {"ada", "eve"}}
    for tag, how in (("en", ENGLISH), ("zh", CHINESE)):
        mine = {"en": "your course", "zh": "您的课程"}[tag]
        for user, names in reads.items():
            tab = open_as(user, f"{pages}week", how)
            hours = tab.get_by_role("row").filter(has_text="Machine learning")
            hours.first.wait_for()
            assert hours.count() == 1
            assert (mine in hours.inner_text()) is (user in ("ada", "prof")), user
            looked_at(tab, f"tour-week-{user}-{tag}")
            # On a phone no day is on two lines.
            tab.set_viewport_size({"width": 390, "height": 700})
            days = tab.locator("table .gs-day")
            lines = days.evaluate_all("all => all.map(each => each.getClientRects().length)")
            assert lines
            assert {*lines} == {1}
            looked_at(tab, f"tour-week-phone-{user}-{tag}")
            tab.set_viewport_size(how["viewport"])
            seen = [tab.locator("main").text_content()]
            for page in ("history", "usage"):
                tab.goto(f"{hub.url}{pages}{page}")
                tab.get_by_role("heading", level=1).wait_for()
                looked_at(tab, f"tour-{page}-{user}-{tag}")
                seen.append(tab.locator("main").text_content())
            told = {each for each in ("ada", "eve") if re.search(rf"\b{each}\b", " ".join(seen))}
            assert told - {user} == names, user
            assert (tab.locator("select[name=whose]").count() == 1) is (user == "boss")
            links = tab.locator("nav a.nav-link[href$='/courses']").count()
            assert links == (user in ("prof", "boss")), user
            answer = tab.goto(f"{hub.url}{pages}courses/ml")
            if user in ("prof", "boss"):
                tab.locator("main", has_text="ada").wait_for()
                assert "eve" not in tab.locator("main").inner_text()
            else:
                assert answer.status == 404
                looked_at(tab, f"tour-course-{user}-{tag}")
                no = {"en": "There is no such course", "zh": "没有这门课程"}[tag]
                tab.get_by_text(no).wait_for()
                assert "Machine learning" not in tab.locator("main").inner_text()


@pytest.mark.parametrize("hub", [CLASS], indirect=True)
def test_a_student_takes_a_seat_in_the_hours_and_the_professor_sees_who_has_one(
    hub, open_as, looked_at
):
    hub.add_to_group("students", "bea")
    hub.start_server("bea", {"kind": "shared", "hours": 1})
    said = {
        "en": ("1/15 shared", "Starts now, with 1 shared GPU.", "for the reserved hours of your"),
        "zh": ("共享 1/15", "立即启动", "用于您课程"),
    }
    for tag, how in (("en", ENGLISH), ("zh", CHINESE)):
        tab = open_as("ada", "/hub/spawn/ada", how)
        form(hub, tab, "ada")
        title, now, note = said[tag]
        # Nothing need be picked: in the hours it is a seat.
        assert tab.locator("input[name=gpus]:checked").get_attribute("value") == "shared"
        tab.get_by_text(title).first.wait_for()
        says(tab, now)
        assert note in tab.locator(FORM).text_content()
        looked_at(tab, f"class-form-{tag}", FORM)
    tab = open_as("ada", "/hub/spawn/ada", ENGLISH)
    tab.get_by_role("button", name="Start", exact=True).click()
    tab.wait_for_url("**/user/ada/**")
    for tag, how in (("en", ENGLISH), ("zh", CHINESE)):
        for user, page in (("prof", "courses/ml"), ("prof", "week"), ("boss", ""), ("ada", "")):
            tab = open_as(user, f"/services/gpus/{page}", how)
            tab.locator("main h1, main h2").first.wait_for()
            if user == "boss" or page == "courses/ml":
                tab.locator("main", has_text="ada").wait_for()
            if not page:
                seats = {"en": "shared by up to 15 servers", "zh": "最多由 15 台服务器共享"}[tag]
                assert tab.get_by_text(seats).count() == 2
            looked_at(tab, f"class-{user}-{page.replace('/', '-') or 'now'}-{tag}")
