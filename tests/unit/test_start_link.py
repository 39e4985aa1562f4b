"""A link with a choice starts a server from our own pages; from elsewhere it fills the form."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

from gpuspawner.choices import start_link

HUB = "https://gpu.example.org"


def pressed(uri: str = "/hub/spawn?opt-gpus=2", method: str = "GET", **headers: str) -> Any:
    """Return the handler of a request for a link."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = HTTPServerRequest(
        headers=HTTPHeaders({"Host": "gpu.example.org", **names}),
        start_line=RequestStartLine(method, uri, "HTTP/1.1"),
    )
    return SimpleNamespace(request=request, hub=SimpleNamespace(base_url="/hub/"))


def starts(handler: Any) -> bool:
    """Return whether the hub would start a server now."""
    start_link.remember_link(handler)
    arguments = handler.request.query_arguments
    assert bool(start_link.linked_choice()) is not ("opt-gpus" in arguments)
    return "opt-gpus" in arguments


@pytest.mark.parametrize("page", ["/hub/home", "/hub/spawn/ada", "/hub/spawn-pending/ada?a=b"])
@pytest.mark.parametrize("browser", [{}, {"Sec_Fetch_Site": "same-origin"}])
def test_from_the_hub_s_own_pages_it_starts(page: str, browser: dict[str, str]) -> None:
    assert starts(pressed(Referer=HUB + page, **browser))
    assert starts(pressed(Referer=f"{HUB}/services/portal/", **browser))
    assert starts(pressed(Referer=f"{HUB}/user/ada/lab", **browser))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Referer": "https://elsewhere.example.org/hub/home"},
        {"Referer": "https://gpu.example.org.elsewhere.org/hub/home"},
        {"Referer": "https://gpu.example.org:444/hub/home"},
        {"Referer": "https://gpu.example.org@elsewhere.org/hub/home"},
        {"Referer": "https://[/hub/home"},
        {"Referer": "about:blank"},
        # Whatever link led to a log-in, the log-in leads on to it.
        {"Referer": f"{HUB}/hub/login?next=%2Fhub%2Fspawn%3Fopt-gpus%3D2"},
        {"Referer": f"{HUB}/hub/login?next=x", "Sec_Fetch_Site": "same-origin"},
        {"Referer": f"{HUB}/hub/oauth_callback"},
        {"Sec_Fetch_Site": "same-origin"},
        {"Sec_Fetch_Site": "none"},  # typed, a bookmark, or pressed in a mail
        {"Referer": f"{HUB}/hub/home", "Sec_Fetch_Site": "cross-site"},
        {"Referer": f"{HUB}/hub/home", "Sec_Fetch_Site": "same-site"},
        {"Referer": f"{HUB}/hub/home", "Sec_Fetch_Site": "none"},
    ],
)
def test_from_anywhere_else_it_fills_the_form(headers: dict[str, str]) -> None:
    handler = pressed("/hub/spawn?opt-gpus=2&next=%2Fx%3Fa%3Db&opt-gpus=3", **headers)
    assert not starts(handler)
    assert start_link.linked_choice() == {"opt-gpus": ["2", "3"]}
    # What is the hub's stays, and the form's own address has no choice in it.
    assert handler.request.uri == "/hub/spawn?next=%2Fx%3Fa%3Db"
    assert handler.request.query_arguments == {"next": [b"/x?a=b"]}


def test_without_a_choice_nothing_is_changed() -> None:
    for uri in ("/hub/spawn", "/hub/spawn?next=%2Fx"):
        handler = pressed(uri)
        start_link.remember_link(handler)
        assert start_link.linked_choice() is None
        assert handler.request.uri == uri
    start_link.remember_link(pressed())
    start_link.remember_link(None)
    assert start_link.linked_choice() is None
    start_link.remember_link(pressed(method="POST"))
    assert start_link.linked_choice() is None


@given(st.text(st.characters(codec="latin-1", exclude_categories=["Cc"])), st.text("seam-orignc"))
def test_no_header_makes_it_fail(referer: str, site: str) -> None:
    starts(pressed(Referer=referer.strip(), Sec_Fetch_Site=site))


def test_what_isn_t_utf_8_is_text_all_the_same() -> None:
    link = "/hub/spawn?opt-image=%FF&opt-x=%E5%AD&next=%FF"
    handler = pressed(link, Referer=f"{HUB}/hub/home")
    assert start_link.remember_link(handler) is None
    assert handler.request.query_arguments["opt-image"] == ["\ufffd".encode()]
    assert all(one.decode() for each in handler.request.query_arguments.values() for one in each)
    handler = pressed(link)
    start_link.remember_link(handler)
    assert start_link.linked_choice() == {"opt-image": ["\ufffd"], "opt-x": ["\ufffd"]}
    assert handler.request.query_arguments["next"][0].decode() == "\ufffd"


def test_a_choice_is_carried_by_a_form_that_has_none_of_its_own() -> None:
    fields = start_link.hidden_fields({"opt-gpus": ["2"], 'x"><script>': ["a", "<b>"]})
    assert '<input type="hidden" name="gpus" value="2">' in fields
    assert "<script>" not in fields
    assert fields.count("<input") == 3
