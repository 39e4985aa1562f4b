"""Chromium, for tests that look at pages as people do."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from .hubs import PASSWORD, REPOSITORY

AXE = REPOSITORY / "node_modules" / "axe-core" / "axe.min.js"
# What WCAG 2.2 AA asks for and a program can see.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]

# What keeps Chromium from asking the outside world for things.
QUIET = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


# Of a module and not of the run: while Playwright is there, its event loop runs, and no test that
# is a coroutine can.
@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if not path:
        from .conftest import cannot

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
def picture(tmp_path):
    """Take a screenshot; they are kept where SCREENSHOTS names a folder."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=folder / f"{name}.png", full_page=True)


def log_in(page, hub, user, password=""):
    """Log in, and land where the hub leads."""
    shipped = hub.folder / "user-password"
    page.goto(f"{hub.url}/hub/login")
    page.get_by_label("Username").fill(user)
    page.get_by_label("Password").fill(
        password or (shipped.read_text() if shipped.exists() else PASSWORD)
    )
    page.get_by_role("button", name=re.compile("sign in", re.I)).click()


def assert_accessible(page, *selectors):
    """Fail where axe-core finds something on a page, or in those parts of one that isn't ours."""
    if not page.evaluate("'axe' in window"):
        page.add_script_tag(path=str(AXE))
    parts = {"include": [[each] for each in selectors or ("html",)]}
    how = {"runOnly": {"type": "tag", "values": RULES}}
    found = page.evaluate("([parts, how]) => axe.run(parts, how)", [parts, how])
    assert found["passes"], "axe-core has looked at nothing"
    said = [
        f"{each['id']}: {node['html'][:200]} {node['failureSummary']}"
        for each in found["violations"]
        for node in each["nodes"]
    ]
    assert said == []
