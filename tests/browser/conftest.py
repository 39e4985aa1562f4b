"""Fixtures: Chromium, and its tabs and pictures."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ..support.browsers import QUIET
from ..support.requirements import cannot


# Of a module and not of the run: while Playwright is there, its event loop runs, and no test that
# is a coroutine can.
@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if not path:
        cannot("needs Chromium (make test installs it)")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield running
        running.close()


@pytest.fixture
def page(browser):
    """A tab of somebody who was never here."""
    context = browser.new_context(viewport={"width": 1100, "height": 660})
    context.set_default_timeout(60_000)
    yield context.new_page()
    context.close()


@pytest.fixture
def picture(tmp_path, thorough):
    """Take a screenshot, where all is tried or SCREENSHOTS names a folder for them."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)

    def take(page, name):
        if thorough or "SCREENSHOTS" in os.environ:
            page.screenshot(path=folder / f"{name}.png", full_page=True)

    return take
