"""A link with a choice, pressed in a browser: on another site, in a mail, and on the hub's home."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from ..support.browsers import log_in
from ..support.hubs import until
from ..support.looks import containers, labelled

pytestmark = [pytest.mark.engine, pytest.mark.browser]

FILLED_IN = "A link has filled in this form. Nothing starts until you press Start."


@pytest.fixture
def elsewhere(hub) -> Iterator[str]:
    """The address of a page on another site, with a link that asks for two GPUs."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(f'<a href="{hub.url}/hub/spawn?opt-gpus=2">go</a>'.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_a_link_on_another_site_starts_nothing_before_start_is_pressed(
    hub, page, elsewhere, engine
) -> None:
    # Who isn't logged in is led through the log-in, and then to the form as well.
    page.goto(elsewhere)
    page.get_by_role("link").click()
    page.get_by_label("Username").wait_for()
    log_in_here = page.url
    assert "next=" in log_in_here
    page.get_by_label("Username").fill("ada")
    page.get_by_label("Password").fill("a password for tests")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text(FILLED_IN).wait_for()
    # Who is, sees it at once; and so does who follows it from a mail, or has it as a bookmark.
    for way in ("another site", "a mail"):
        page.goto(elsewhere if way == "another site" else "about:blank")
        if way == "another site":
            page.get_by_role("link").click()
        else:
            page.goto(f"{hub.url}/hub/spawn?opt-gpus=2")
        page.get_by_text(FILLED_IN).wait_for()
        assert page.get_by_role("group", name="GPUs").get_by_label("2", exact=True).is_checked()
    assert containers(engine) == []
    page.get_by_role("button", name="Start").click()
    until(lambda: hub.ready("ada"), "the server is ready", log=hub.log)
    assert len(labelled(engine)["ada"]) == 2


@pytest.mark.thorough
def test_a_link_on_the_hub_s_own_page_starts_at_once(hub, page, engine) -> None:
    log_in(page, hub, "ben")
    page.goto(f"{hub.url}/hub/home")
    page.evaluate("location = '/hub/spawn?opt-gpus=1'")
    until(lambda: hub.ready("ben"), "the server is ready", log=hub.log)
    assert len(labelled(engine)["ben"]) == 1
