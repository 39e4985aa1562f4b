"""The dashboard in a real browser: it refreshes itself, works without its script, fits a phone."""

from __future__ import annotations

import re
from typing import Any

import pytest

from gpuspawner.simulation.state import describe

from ..support.dashboards import ADMIN_PASSWORD, Visitor
from ..support.hubs import PASSWORD, until

pytestmark = [pytest.mark.engine, pytest.mark.browser]


@pytest.fixture
def hub(dashboard_hub):
    """In these tests the hub is the one with the dashboard."""
    return dashboard_hub


@pytest.fixture
def open_page(browser, hub):
    """Open the dashboard as somebody, in a browser of their own; nothing may be complained of."""
    contexts = []
    complaints: list[str] = []

    def open_as(user: str, **how: Any) -> Any:
        context = browser.new_context(**how)
        contexts.append(context)
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{hub.url}/hub/login?next=/services/gpus/")
        page.get_by_label("Username").fill(user)
        page.get_by_label("Password").fill(ADMIN_PASSWORD if user == "boss" else PASSWORD)
        page.get_by_role("button", name=re.compile("sign in", re.I)).click()
        page.get_by_role("heading", name="Queue").wait_for()
        return page

    yield open_as
    for context in contexts:
        context.close()
    # What a test keeps from being loaded.
    assert [each for each in complaints if "net::ERR_FAILED" not in each] == []


@pytest.mark.thorough
def test_it_follows_the_machine_and_says_aloud_what_changed(hub, open_page):
    page = open_page("ada")
    until(lambda: page.locator(".gs-says", has_text="free").count() == 4, "all are free")
    hub.start_server("ben", {"gpus": 4})
    page.locator(".gs-says", has_text="in use until about").first.wait_for()
    until(lambda: page.locator(".gs-says", has_text="in use").count() == 4, "all are taken")
    assert "GPU 0: in use until about" in page.locator("#news").text_content()
    hub.spawn("ada", {"gpus": 1})
    page.get_by_role("row").filter(has_text="you").wait_for()
    page.get_by_role("button", name="Leave").click()
    page.get_by_text("You have left the queue.").wait_for()
    page.get_by_text("Nobody waits.").wait_for()


def test_extend_and_stop_by_a_press(hub, open_page):
    hub.start_server("ada", {"gpus": 1, "hours": 1})
    page = open_page("ada")
    page.get_by_role("button", name="Extend").click()
    page.get_by_text("Your server now ends at").wait_for()
    page.get_by_text("Stop…").click()
    page.get_by_role("button", name="Stop the server").click()
    page.get_by_text("The server stops, once what runs in it has saved.").wait_for()
    until(lambda: not hub.ready("ada"), "it is stopped", log=hub.log)


@pytest.mark.thorough
def test_an_open_pop_up_stays_while_the_page_refreshes(hub, open_page):
    page = open_page("boss")
    page.get_by_text("Out of service…").first.click()
    page.get_by_label("Why? Everybody reads it.").first.fill("new")
    hub.start_server("ben", {"gpus": 4})
    page.locator(".gs-says", has_text="in use until about").first.wait_for()
    why = page.get_by_label("Why? Everybody reads it.").first
    assert why.input_value() == "new"
    why.fill("new fan")
    page.get_by_role("button", name="Take out of service").first.click()
    page.get_by_text("The GPU is out of service.").wait_for()
    assert page.locator(".gs-gpu").first.get_by_text("new fan").is_visible()
    page.get_by_role("button", name="Back into service").click()
    page.get_by_text("The GPU is in service again.").wait_for()


@pytest.mark.thorough
def test_without_the_script_it_shows_and_does_the_same(hub, open_page):
    hub.start_server("ada", {"gpus": 1, "hours": 1})
    page = open_page("ada", java_script_enabled=False)
    assert 'http-equiv="refresh"' in page.content()
    page.locator(".gs-says", has_text="yours until").wait_for()
    page.get_by_role("button", name="Extend").click()
    page.get_by_text("Your server now ends at").wait_for()


def test_times_are_the_reader_s_own(hub, open_page):
    hub.start_server("ada", {"gpus": 1, "hours": 1})
    far = open_page("ada", timezone_id="Asia/Kathmandu", locale="de-DE")
    element = far.locator(".gs-says time").first
    element.wait_for()
    expected = far.evaluate(
        "moment => new Date(moment).toLocaleTimeString('de-DE',"
        "{hour: '2-digit', minute: '2-digit', timeZone: 'Asia/Kathmandu'})",
        element.get_attribute("datetime"),
    )
    assert element.text_content().endswith(expected)


@pytest.mark.parametrize("gpus", [1, 4, 64])
def test_it_fits_a_phone(hub, idle_host, open_page, gpus):
    idle_host.write(describe([("A100-40GB", gpus)]))
    watcher = Visitor(hub, "boss")
    until(lambda: len(watcher.status()["gpus"]) == gpus, "they are seen", log=hub.log)
    hub.start_server("ada", {"gpus": 1})
    page = open_page("boss", viewport={"width": 375, "height": 700})
    assert page.locator(".gs-gpu").count() == gpus
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


@pytest.mark.thorough
def test_when_the_service_is_away_the_page_says_so_and_comes_back(hub, open_page):
    page = open_page("ada")
    page.route("**/services/gpus/live", lambda route: route.abort())
    page.get_by_text("The connection is lost.").wait_for()
    page.unroute("**/services/gpus/live")
    page.get_by_text("The connection is lost.").wait_for(state="hidden")
