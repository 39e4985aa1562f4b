"""Reserved hours in a real browser and a real hub: asked for by keyboard, granted, kept."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

import pytest

from ..support import courses, dashboards
from ..support.browsers import assert_accessible
from ..support.hubs import PASSWORD, until

pytestmark = [pytest.mark.engine, pytest.mark.browser, pytest.mark.thorough]

DAY = datetime.now().date() + timedelta(days=30)


@pytest.fixture
def hub(make_hub):
    made = make_hub(dashboards.lines(), courses.LINES)
    static = f"{made.url}/services/gpus/static/dashboard.css"
    until(lambda: ".gs-page" in made.log_in("prof").get(static).text, "it answers", log=made.log)
    return made


def log_in(hub, browser, user: str, path: str, **context):
    """Open a page as somebody; return it, and what its console complains of."""
    complaints: list[str] = []
    opened = browser.new_context(bypass_csp=True, **context)
    opened.set_default_timeout(60_000)
    page = opened.new_page()
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{hub.url}/services/gpus/{path}")
    page.get_by_label("Username").fill(user)
    password = dashboards.ADMIN_PASSWORD if user == "boss" else PASSWORD
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name=re.compile("sign in", re.I)).click()
    page.wait_for_url(f"**/services/gpus/{path}")
    return page, complaints


def test_hours_are_asked_for_by_keyboard_and_granted(hub, browser):
    page, complaints = log_in(
        hub, browser, "prof", "courses/ml", viewport={"width": 390, "height": 844}
    )
    page.get_by_text("Ask for hours…").focus()
    page.keyboard.press("Enter")
    page.get_by_label("day", exact=True).fill(str(DAY))
    page.get_by_label("begin", exact=True).fill("10:00")
    page.get_by_label("end", exact=True).fill("12:00")
    page.get_by_label("number", exact=True).fill("99")
    page.get_by_label("What is it for?").fill("the exam")
    assert_accessible(page)
    assert page.locator("html").evaluate("each => each.scrollWidth") <= 390
    page.keyboard.press("Enter")
    page.get_by_text("You have asked for it. An administrator decides.").wait_for()
    page.get_by_text("too few for it").wait_for()
    assert_accessible(page)
    # In Chinese, dark, and without what only a script does.
    boss, more = log_in(
        hub,
        browser,
        "boss",
        "reserved",
        locale="zh-CN",
        color_scheme="dark",
        viewport={"width": 1280, "height": 900},
    )
    assert_accessible(boss)
    boss.get_by_role("button", name="批准", exact=True).click()
    boss.locator("[role=status]", has_text="GPU").wait_for()
    boss.locator("#hours-1 details.gs-wide > summary").focus()
    boss.keyboard.press("Enter")
    number = boss.locator("#hours-1 input[name=gpus]")
    number.fill("2")
    assert_accessible(boss)
    number.press("Enter")
    boss.get_by_text("已按您的修改批准。").wait_for()
    assert boss.locator("nav .badge").count() == 0
    page.reload()
    page.locator("#hours-1", has_text="2 GPUs").get_by_text("reserved", exact=True).wait_for()
    assert [each for each in complaints + more if "409" not in each] == []
    # It outlives the hub, also one that is killed: until it is back, its pages can't ask.
    hub.kill()
    hub.start()
    until(
        lambda: hub.log_in("ada").get(f"{hub.url}/services/gpus/week").status_code == 200,
        "it answers again",
        log=hub.log,
    )
    # Who looks has the hub read its GPUs.
    page.goto(f"{hub.url}/services/gpus/courses/ml")
    page.locator("#hours-1").get_by_text("reserved", exact=True).wait_for()
    ada = hub.log_in("ada")
    ada.get(f"{hub.url}/services/gpus/week")
    answer = ada.get(f"{hub.url}/services/gpus/api/week?from={DAY}").json()
    assert [(each["course"], each["gpus"], each["refused"]) for each in answer["reserved"]] == [
        ("ml", 2, "")
    ]


def test_a_class_is_seated_in_slots_and_the_number_of_seats_is_said_while_one_types(
    hub, browser, picture
):
    page, complaints = log_in(
        hub, browser, "prof", "courses/ml", viewport={"width": 390, "height": 844}
    )
    page.get_by_text("Ask for hours…").focus()
    page.keyboard.press("Enter")
    page.get_by_label("day", exact=True).fill(str(DAY))
    page.get_by_label("begin", exact=True).fill("10:00")
    page.get_by_label("end", exact=True).fill("12:00")
    slots = page.get_by_label("slots per GPU, 0 for whole GPUs")
    # A reader of screens hears what it means with the field, and the seats as they change.
    explained = page.locator(f"#{slots.get_attribute('aria-describedby')}")
    assert "each server gets one slot" in explained.inner_text()
    seats = page.locator("form.gs-ask").get_by_role("status")
    assert seats.inner_text() == ""
    number = page.get_by_label("number", exact=True)
    number.focus()
    for keys, said in (("4", ""), ("2", "")):
        page.keyboard.press("Control+a")
        page.keyboard.type(keys)
        assert seats.inner_text() == said
    while not slots.evaluate("each => each === document.activeElement"):
        page.keyboard.press("Tab")
    for keys, said in (
        ("15", "Seats: 30"),
        ("1", ""),
        ("65", ""),
        ("many", ""),
        ("64", "Seats: 128"),
        ("15", "Seats: 30"),
    ):
        page.keyboard.press("Control+a")
        page.keyboard.type(keys)
        assert seats.inner_text() == said, keys
    assert_accessible(page)
    picture(page, "slots-asked-en-390")
    # A kind that isn't divided seats nobody, as the hub would say.
    kind = page.locator("form.gs-ask select[name=kind]").last
    kind.evaluate("each => each.add(new Option('shared', 'shared'))")
    kind.select_option("shared")
    assert seats.inner_text() == ""
    kind.select_option("gpu")
    assert seats.inner_text() == "Seats: 30"
    slots.focus()
    assert page.locator("html").evaluate("each => each.scrollWidth") <= 390
    page.keyboard.press("Enter")
    page.get_by_text("You have asked for it. An administrator decides.").wait_for()
    page.locator("#hours-1").get_by_text("2 GPUs, 15 slots each: 30 seats").wait_for()
    # What can't be is refused with what was typed, and the script says no seats for it.
    page.get_by_text("Ask for hours…").click()
    page.get_by_label("day", exact=True).fill(str(DAY))
    page.get_by_label("begin", exact=True).fill("14:00")
    page.get_by_label("end", exact=True).fill("15:00")
    slots.fill("1")
    slots.press("Enter")
    page.get_by_role("alert").get_by_text("one slot of a GPU is the whole GPU").wait_for()
    assert slots.input_value() == "1"
    assert_accessible(page)
    boss, more = log_in(
        hub,
        browser,
        "boss",
        "reserved",
        locale="zh-CN",
        color_scheme="dark",
        viewport={"width": 1280, "height": 900},
    )
    boss.locator("#hours-1").get_by_text("2 个 GPU，每个分成 15 份：30 个席位").wait_for()
    boss.locator("#hours-1 details.gs-wide > summary").focus()
    boss.keyboard.press("Enter")
    changed = boss.locator("#hours-1").get_by_label("每个 GPU 分成的份数，0 表示整个 GPU")
    said = boss.locator("#hours-1").get_by_role("status")
    assert (changed.input_value(), said.inner_text()) == ("15", "席位数：30")
    changed.fill("8")
    assert said.inner_text() == "席位数：16"
    # Another form on the page has its own.
    boss.get_by_text("预留时段…").click()
    assert boss.locator("form.gs-ask:has([name=course])").get_by_role("status").inner_text() == ""
    assert_accessible(boss)
    picture(boss, "slots-changed-zh-1280-dark")
    changed.press("Enter")
    boss.get_by_text("已按您的修改批准。").wait_for()
    boss.goto(f"{hub.url}/services/gpus/week?from={DAY}")
    boss.locator("table").get_by_text("2 个 GPU，每个分成 8 份：16 个席位").wait_for()
    bar = boss.locator("svg.gs-week-reserved.gs-week-bar span")
    assert "16 个席位" in (bar.text_content() or "")
    assert_accessible(boss)
    picture(boss, "slots-week-zh-1280-dark")
    assert [each for each in complaints + more if "400" not in each] == []


def test_without_a_script_the_slots_are_asked_for_all_the_same(hub, browser):
    opened = browser.new_context(java_script_enabled=False)
    page = opened.new_page()
    page.goto(f"{hub.url}/services/gpus/courses/ml")
    page.get_by_label("Username").fill("prof")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name=re.compile("sign in", re.I)).click()
    page.get_by_text("Ask for hours…").click()
    page.get_by_label("day", exact=True).fill(str(DAY))
    page.get_by_label("begin", exact=True).fill("10:00")
    page.get_by_label("end", exact=True).fill("12:00")
    page.get_by_label("slots per GPU, 0 for whole GPUs").fill("15")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.locator("#hours-1").get_by_text("1 GPU, 15 slots: 15 seats").wait_for()
    opened.close()
