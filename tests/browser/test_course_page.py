"""A course's page in a real browser: both languages, light and dark, a phone, the keyboard."""

from __future__ import annotations

import re

import pytest

from ..support import courses, dashboards
from ..support.browsers import assert_accessible
from ..support.hubs import PASSWORD, until
from ..support.queues import ask

pytestmark = [pytest.mark.engine, pytest.mark.browser, pytest.mark.thorough]


@pytest.fixture
def hub(make_hub):
    """A hub with two courses and the dashboard, which answers."""
    made = make_hub(dashboards.lines(), courses.LINES)
    static = f"{made.url}/services/gpus/static/dashboard.css"
    until(lambda: ".gs-page" in made.log_in("prof").get(static).text, "it answers", log=made.log)
    return made


def test_a_professor_in_a_browser(hub, browser):
    hub.start_server("ada", {"gpus": 3, "hours": 1, "course": "ml"})
    hub.start_server("eve", {"gpus": 1, "hours": 1})
    ask(hub, "ben", {"gpus": 1, "hours": 1, "course": "ml"})
    until(lambda: hub.server("ben").get("pending") == "spawn", "ben waits", log=hub.log)
    complaints: list[str] = []
    for language, scheme, size, script in (
        ("en", "light", (1280, 900), True),
        ("zh-CN", "dark", (390, 844), True),
        ("en", "light", (390, 844), False),
    ):
        context = browser.new_context(
            locale=language,
            color_scheme=scheme,
            viewport={"width": size[0], "height": size[1]},
            java_script_enabled=script,
            # axe-core is put into the page; what the policy forbids, the other tests see.
            bypass_csp=script,
        )
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        # The log-in leads back to the course.
        page.goto(f"{hub.url}/services/gpus/courses/ml")
        page.get_by_label("Username").fill("prof")
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name=re.compile("sign in", re.I)).click()
        page.wait_for_url("**/services/gpus/courses/ml")
        page.get_by_role("heading", level=1, name="Machine learning").wait_for()
        wide = page.locator("html").evaluate("each => each.scrollWidth") if script else 0
        assert wide <= size[0]
        if script:
            assert_accessible(page)
            # Each pop-up opens and closes by the keyboard, and fits.
            summaries = page.locator(".gs-more > summary")
            assert summaries.count() == 3
            for number in range(summaries.count()):
                summaries.nth(number).focus()
                page.keyboard.press("Enter")
                popped = page.locator("details[open] form")
                popped.wait_for()
                box = popped.bounding_box()
                assert box
                assert box["x"] >= 0
                assert box["x"] + box["width"] <= size[0]
                assert_accessible(page)
                page.keyboard.press("Escape")
                page.locator("details[open]").wait_for(state="detached")
        else:
            page.locator("#member-0 summary").first.click()
            page.locator("#member-0 details[open] input[name=text]").fill("Without a script")
            page.locator("#member-0 details[open] button").click()
            page.get_by_text("The message appears in 1 JupyterLab.").wait_for()
        context.close()
    assert complaints == []
