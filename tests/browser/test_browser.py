"""A person's way in a real browser: log in, pick, land in JupyterLab, see the GPUs."""

from __future__ import annotations

import pytest

from ..support.browsers import log_in
from ..support.hubs import IMAGES_OWN, until
from ..support.looks import labelled

pytestmark = [pytest.mark.engine, pytest.mark.browser]


@pytest.fixture(scope="module")
def _hub(hubs_of_run, minimal_image):
    hub = hubs_of_run(IMAGES_OWN, shipped=True)
    yield hub
    hub.stop()


@pytest.fixture
def shipped(idle_host, _hub):
    """A hub with the repository's own configuration."""
    yield _hub
    _hub.begin_anew()


def test_log_in_pick_two_gpus_and_see_them_in_a_notebook(shipped, page, picture, engine):
    log_in(page, shipped, "ada")
    page.get_by_role("heading", name="Server Options").wait_for()
    picture(page, "form")
    page.get_by_label("Plain Python").check()
    page.get_by_role("group", name="GPUs").get_by_label("2", exact=True).check()
    page.get_by_role("button", name="Start").click()
    page.wait_for_url("**/user/ada/lab**")
    granted = labelled(engine)["ada"]
    assert len(granted) == 2
    page.locator(".jp-LauncherCard[data-category=Notebook]").first.click()
    # A cell that is run before its kernel is connected isn't run at all.
    page.get_by_text("| Idle").first.wait_for()
    page.locator(".jp-Notebook .cm-content").first.click()
    page.keyboard.type("!nvidia-smi -L")
    page.keyboard.press("Shift+Enter")
    output = page.locator(".jp-OutputArea-output").first
    output.wait_for()
    picture(page, "notebook")
    listed = output.inner_text().splitlines()
    assert [line.split("UUID: ")[1].rstrip(")") for line in listed if line] == granted
    assert "Jupyter news" not in page.locator("body").inner_text()  # nobody is asked about it


@pytest.mark.thorough
def test_a_taken_gpu_can_be_waited_for_and_says_for_how_long(shipped, page, picture):
    shipped.start_server("ben", {"gpus": 2, "image": "minimal"})
    shipped.start_server("eve", {"gpus": 1, "image": "minimal"})
    log_in(page, shipped, "ada")
    group = page.get_by_role("group", name="GPUs")
    group.get_by_text("1 of 4 free now").wait_for()
    group.get_by_label("2", exact=True).check()
    line = page.get_by_role("status").filter(has_text="You would be next in line, about")
    line.wait_for()
    page.get_by_role("button", name="Join the queue").wait_for()
    assert "ben" not in page.content()  # who has them is nobody's business
    picture(page, "taken")


@pytest.mark.thorough
def test_the_form_works_without_javascript(shipped, browser, engine):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    log_in(page, shipped, "ada")
    page.get_by_label("Plain Python").check()
    page.get_by_role("group", name="GPUs").get_by_label("none").check()
    page.get_by_role("button", name="Start").click()
    until(lambda: shipped.ready("ada"), "the server is ready", log=shipped.log)
    assert labelled(engine) == {"ada": []}
    context.close()


@pytest.mark.thorough
def test_the_progress_page_says_what_happens_and_why_it_failed(make_hub, page, picture):
    hub = make_hub(
        'c.GPUSpawner.cmd = ["bash", "-c", "sleep 3; echo disk quota exceeded; exit 3"]',
        shipped=True,
    )
    log_in(page, hub, "ada")
    page.get_by_label("Plain Python").check()
    page.get_by_role("button", name="Start").click()
    page.wait_for_url("**/spawn-pending/ada**")
    page.get_by_text("Container started, waiting for JupyterLab").first.wait_for(state="attached")
    log = page.get_by_role("list").filter(has_text="set aside")
    assert "1 GPU set aside for you: GPU 0 (NVIDIA A100-SXM4-40GB)" in log.text_content()
    page.get_by_text("disk quota exceeded").first.wait_for(state="attached")
    picture(page, "failed")
    assert "stopped while starting (exit 3)" in page.content()
