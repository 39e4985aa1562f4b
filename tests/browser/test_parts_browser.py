"""Parts of a GPU in a real browser: picked in the form, and seen on the dashboard."""

from __future__ import annotations

import re

import pytest

from ..support import dashboards
from ..support.browsers import assert_accessible, log_in
from ..support.dashboards import ADMIN_PASSWORD
from ..support.hubs import PASSWORD, until
from ..support.looks import labelled

pytestmark = [pytest.mark.engine, pytest.mark.browser]

LINES = (
    dashboards.lines(),
    "from gpuspawner.gpus import nvml",
    # The first two are shared, the others aren't.
    "c.GPUSpawner.shared_gpus = {gpu.uuid: 4 for gpu in nvml.read().gpus if gpu.index < 2}",
    "c.GPUSpawner.default_kind = 'shared'",
)


@pytest.fixture
def hub(module_hub):
    """In these tests the hub is the one with these lines."""
    return module_hub


@pytest.mark.thorough
def test_a_slot_is_picked_in_the_form_and_the_dashboard_shows_each_gpu_s_slots(
    hub, engine, browser, page, picture
):
    for user in ("ben", "eve"):
        hub.start_server(user, {"kind": "shared"})
    hub.start_server("cyd", {"gpus": 1})
    hub.add_user("ada")
    log_in(page, hub, "ada", PASSWORD)
    page.get_by_role("status").filter(has_text="Starts now, with 1 shared GPU.").wait_for()
    assert page.get_by_label("1/4 shared").is_checked()
    page.get_by_text("up to 3 others compute on the same GPU, by turns").wait_for()
    picture(page, "form")
    page.get_by_label("2", exact=True).check()
    page.get_by_role("status").filter(has_text="You would be next in line").wait_for()
    page.get_by_label("1/4 shared").check()
    page.get_by_role("status").filter(has_text="Starts now, with 1 shared GPU.").wait_for()
    page.set_viewport_size({"width": 375, "height": 700})
    picture(page, "form-phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.get_by_role("button", name="Start").click()
    until(lambda: hub.ready("ada"), "ada's server", log=hub.log)
    held = labelled(engine)
    # Each on the emptiest, and the last where one place is as good as the other.
    assert [name.partition("#")[2] for name in held["ada"]] == ["1/4"]
    assert len({held[user][0].partition("#")[0] for user in ("ben", "eve")}) == 2

    page = browser.new_page(viewport={"width": 1100, "height": 800}, bypass_csp=True)
    log_in(page, hub, "boss", ADMIN_PASSWORD)
    page.get_by_role("link", name="Admin").wait_for()
    page.goto(f"{hub.url}/services/gpus/")
    page.get_by_text("shared by up to 4 servers").first.wait_for()
    assert page.locator(".gs-gpu").count() == 4
    assert page.locator(".gs-parts li").count() == 8
    shown = page.locator(".gs-parts li").all_inner_texts()
    assert [bool(re.search("in use until", each)) for each in shown].count(True) == 3
    assert_accessible(page)
    picture(page, "dashboard")
