"""The spawn page and the progress page in a real browser: live, and without the script."""

from __future__ import annotations

import pytest

from .browsers import log_in
from .hubs import WAITING

pytestmark = [pytest.mark.engine, pytest.mark.browser]

LINES = (
    WAITING,
    "c.GPUSpawner.poll_interval = 1",
    "c.GPUSpawner.hour_limit = 8",
    "c.GPUSpawner.default_hours = 2",
    "c.JupyterHub.concurrent_spawn_limit = 0",
    "c.JupyterHub.tornado_settings = {'slow_spawn_timeout': 1}",
    'c.GPUSpawner.images = {"minimal": {"image": "gpuspawner/minimal:py3.11", "title": "Plain"},'
    ' "new": {"image": "lab/new:1", "title": "New", "cuda": "13.2", "min_driver": "999"}}',
)


@pytest.fixture
def hub(make_hub):
    return make_hub(*LINES)


def sentence(page):
    return page.get_by_role("status")


def says(page, words):
    page.get_by_role("status").filter(has_text=words).wait_for()


def press(page, group, name):
    page.get_by_role("group", name=group).get_by_role("radio", name=name, exact=True).check()


def test_the_line_follows_the_choice_and_the_machine_and_nothing_picked_is_lost(hub, page, picture):
    log_in(page, hub, "ada")
    says(page, "Starts now, with 1 GPU.")
    press(page, "GPUs", "2")
    says(page, "Starts now, with 2 GPUs.")
    press(page, "GPUs", "none")
    says(page, "Starts now, without GPUs.")
    press(page, "GPUs", "2")
    press(page, "For how long", "4 hours")
    page.evaluate("window.same = document.querySelector('[name=hours]:checked')")
    picture(page, "all-free")
    hub.start_server("ben", {"gpus": 3, "hours": 1, "image": "minimal"})
    says(page, "Too few GPUs are free. You would be next in line, about")
    page.get_by_role("button", name="Join the queue").wait_for()
    hub.spawn("eve", {"gpus": 2, "image": "minimal"})
    says(page, "You would be 2nd in line")
    picture(page, "taken")
    assert "ben" not in page.content()
    assert page.evaluate("window.same === document.activeElement && window.same.checked")
    hub.stop_server("eve")
    hub.stop_server("ben")
    says(page, "Starts now, with 2 GPUs.")
    page.get_by_role("button", name="Start", exact=True).wait_for()
    assert page.evaluate("window.same === document.activeElement && window.same.checked")
    press(page, "Image", "New")
    says(page, "image new needs driver 999")
    picture(page, "refused")
