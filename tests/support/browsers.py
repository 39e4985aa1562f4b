"""Chromium, for tests that look at pages as people do."""

from __future__ import annotations

import re

from .hubs import PASSWORD
from .paths import ROOT

AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
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
    # The names of hubs with a domain for each user; nobody is asked for them.
    "--host-resolver-rules=MAP *.test 127.0.0.1",
]


def log_in(page, hub, user, password=""):
    """Log in, and land where the hub leads."""
    shipped = hub.folder / "user-password"
    page.goto(f"{hub.url}/hub/login")
    page.get_by_label("Username").fill(user)
    page.get_by_label("Password").fill(
        password or (shipped.read_text() if shipped.exists() else PASSWORD)
    )
    page.get_by_role("button", name=re.compile("sign in", re.I)).click()


# A button that fades in has other colours meanwhile. What turns for ever isn't waited for.
SETTLED = """() => Promise.all(document.getAnimations()
  .filter(each => each.effect.getComputedTiming().endTime !== Infinity)
  .map(each => each.finished.catch(() => null)))"""


def assert_accessible(page, *selectors):
    """Fail where axe-core finds something on a page, or in those parts of one that isn't ours."""
    if not page.evaluate("'axe' in window"):
        page.add_script_tag(path=str(AXE))
    parts = {"include": [[each] for each in selectors or ("html",)]}
    how = {"runOnly": {"type": "tag", "values": RULES}}
    page.evaluate(SETTLED)
    found = page.evaluate("([parts, how]) => axe.run(parts, how)", [parts, how])
    assert found["passes"], "axe-core has looked at nothing"
    said = [
        f"{each['id']}: {node['html'][:200]} {node['failureSummary']}"
        for each in found["violations"]
        for node in each["nodes"]
    ]
    assert said == [], "\n".join(said)
