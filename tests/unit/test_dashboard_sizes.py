"""Whatever a request to the dashboard has, has a size: what is larger is refused or not kept."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from tornado.httputil import HTTPHeaders

from gpuspawner.dashboard import command, login
from gpuspawner.dashboard.handlers import MAX_ADDRESS, MAX_BODY_BYTES, MAX_READ_BYTES
from gpuspawner.dashboard.login import MAX_SESSION_ID, Login

from ..support.dashboards import OPENAPI

PREFIX = "/services/gpus/"
ENVIRONMENT = {
    "JUPYTERHUB_API_TOKEN": "secret",
    "JUPYTERHUB_CLIENT_ID": "service-gpus",
    "JUPYTERHUB_BASE_URL": "/",
    "JUPYTERHUB_SERVICE_PREFIX": PREFIX,
    # Nobody listens there: what is asked of the hub fails.
    "JUPYTERHUB_API_URL": "http://127.0.0.1:1/hub/api",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What JupyterHub gives a service, of a hub that is away."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    Login.clear_instance()
    yield
    Login.clear_instance()


@pytest.fixture
def one(environment: None) -> Login:
    return Login(base_url=PREFIX)


def request(authorization: str = "", session: str = "") -> Any:
    """Return the handler of a request with these."""
    headers = HTTPHeaders({"Authorization": authorization} if authorization else {})
    return SimpleNamespace(
        request=SimpleNamespace(headers=headers, method="GET"),
        get_cookie=lambda name, default="": session or default,
        get_argument=lambda name, default="": default,
    )


@pytest.mark.parametrize(
    ("token", "taken"),
    [
        ("0123456789abcdef" * 2, True),
        ("an-administrator's:own/one", True),
        ("x" * 1000, True),
        ("x" * 1001, False),
        ("x" * 60_000, False),
        ("caf\xe9", False),
        ("a b", False),
        ("a\x01b", False),
        ("\u5b66", False),
    ],
)
def test_what_can_be_no_token_is_none(one: Login, token: str, taken: bool) -> None:
    assert one.get_token(request(f"token {token}"), in_cookie=False) == (token if taken else "")


def test_a_session_s_id_has_a_length(one: Login) -> None:
    for length in (0, 32, MAX_SESSION_ID, MAX_SESSION_ID + 1, 60_000):
        kept = one.get_session_id(request(session="s" * length))
        assert len(kept) == (length if length <= MAX_SESSION_ID else 0)


def test_log_ins_that_nobody_finishes_are_forgotten_the_oldest_first(
    one: Login, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login, "MAX_LOGINS", 10)
    first, *_, last = [one.generate_state(f"/{'x' * 60_000}", cookie_name="c") for _ in range(30)]
    assert one.get_state_cookie_name(last) == "c"
    assert one.get_state_cookie_name(first) != "c"
    # It leads to the page, however long the address was that it began with.
    assert one.get_next_url(last) == PREFIX
    assert len(one._oauth_states) == 10


@pytest.mark.parametrize(
    ("asked", "leads_to"),
    [
        (f"{PREFIX}usage?by=model&from=2026-11-01", f"{PREFIX}usage?by=model&from=2026-11-01"),
        (f"{PREFIX}usage", f"{PREFIX}usage"),
        (PREFIX, PREFIX),
        (f"{PREFIX}usage?by={'x' * 60_000}", PREFIX),
        (f"{PREFIX}oauth_callback?code=x", PREFIX),
        (f"{PREFIX}usage/../../../hub/logout", PREFIX),
        (f"{PREFIX}week?from=2026-11-30", f"{PREFIX}week?from=2026-11-30"),
        ("//elsewhere.example/services/gpus/usage", PREFIX),
        ("https://elsewhere.example/", PREFIX),
        (None, PREFIX),
    ],
)
def test_a_log_in_leads_to_the_page_that_was_asked_for(
    one: Login, asked: str | None, leads_to: str
) -> None:
    assert one.get_next_url(one.generate_state(asked)) == leads_to


async def test_answers_about_tokens_are_kept_for_so_many(
    one: Login, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login, "MAX_KNOWN", 10)

    async def nobody(*_: Any, **__: Any) -> None:
        """The hub knows no such token."""

    monkeypatch.setattr(one, "_api_request", nobody)
    for number in range(30):
        assert await one.user_for_token(f"token-{number}", session_id="s", sync=False) is None
        assert len(one.cache) <= 10


# ---- The service itself --------------------------------------------------------------------------


@pytest.fixture
def port(environment: None) -> Callable[[], int]:
    def begin() -> int:
        arguments = argparse.Namespace(socket="none.sock", names="admins", from_hub=False)
        server = command.server_of(command.application(arguments, ENVIRONMENT))
        server.listen(0, "127.0.0.1")
        (listening,) = server._sockets.values()
        return int(listening.getsockname()[1])

    return begin


async def answered(
    port: int, method: str, path: str, body: bytes = b"", length: int = 0
) -> tuple[int, str]:
    """Return the status and the body of an answer.

    Args:
        length: how long the body is said to be, if not as long as it is.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {length or len(body)}\r\n\r\n".encode() + body)
    first, _, said = (await asyncio.wait_for(reader.read(), 60)).partition(b"\r\n\r\n")
    writer.close()
    return int(first.split()[1]), said.decode()


LONG = "x" * MAX_ADDRESS


def test_the_sizes_are_those_of_the_description() -> None:
    said = OPENAPI["info"]["description"]
    assert f"at most {MAX_BODY_BYTES} bytes" in said
    assert f"its address {MAX_ADDRESS} characters" in said


async def test_a_request_that_is_too_large_is_told_so(port: Callable[[], int]) -> None:
    where = port()
    large = b"x" * (MAX_BODY_BYTES + 1)
    for path in ("api/status", "api/users/ada/server/extend"):
        status, said = await answered(where, "POST", f"{PREFIX}{path}", large)
        refused = {"status": 413, "message": f"A request has at most {MAX_BODY_BYTES} bytes."}
        assert (status, json.loads(said)) == (413, refused)
        status, said = await answered(where, "GET", f"{PREFIX}{path}?{LONG}")
        assert (status, json.loads(said)["status"]) == (414, 414)
        assert len(said) < 200
    for path in ("", "live", "oauth_callback", "nonsense"):
        assert (await answered(where, "GET", f"{PREFIX}{path}?{LONG}"))[0] == 414
    status, said = await answered(where, "POST", PREFIX, large)
    assert (status, "at most 65536 bytes" in said) == (413, True)
    # What is far too large isn't read.
    assert (await answered(where, "POST", PREFIX, length=MAX_READ_BYTES + 1))[0] == 400


@pytest.mark.parametrize(
    "query",
    ["", "error=x", "error=%25s", f"error={'x' * 5000}", "code=x", "code=x&state=y", "code=%FF"],
)
async def test_a_log_in_that_goes_wrong_is_no_fault_and_a_short_line(
    port: Callable[[], int], query: str, caplog: pytest.LogCaptureFixture
) -> None:
    status, said = await answered(port(), "GET", f"{PREFIX}oauth_callback?{query}")
    assert 400 <= status < 500
    assert "<html" in said
    assert [record for record in caplog.records if record.exc_info] == []
    assert all(len(record.getMessage()) < 600 for record in caplog.records)


async def test_a_code_that_the_hub_does_not_take_is_no_fault_of_the_dashboard_s(
    port: Callable[[], int],
) -> None:
    where = port()
    reader, writer = await asyncio.open_connection("127.0.0.1", where)
    writer.write(f"GET {PREFIX} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
    head = (await reader.read()).decode()
    cookie = head.partition("Set-Cookie: service-gpus-oauth-state=")[2].partition(";")[0]
    state = head.partition("&state=")[2].split()[0]
    writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", where)
    writer.write(
        f"GET {PREFIX}oauth_callback?code=wrong&state={state} HTTP/1.1\r\nHost: h\r\n"
        f"Cookie: service-gpus-oauth-state={cookie}\r\nConnection: close\r\n\r\n".encode()
    )
    said = (await reader.read()).decode()
    writer.close()
    assert said.split()[1] == "403"
    assert "finish the log-in" in said


def test_a_line_of_the_log_has_a_length_and_is_one() -> None:
    form = command.ShortLines("[%(levelname)1.1s dashboard] %(message)s")
    for message in ("short", "x" * 60_000, "a\nb\x00" * 400, "\ud800" * 5000):
        record = logging.LogRecord("x", logging.INFO, "x", 1, "%s", (message,), None)
        line = form.format(record)
        assert line.startswith("[I dashboard] ")
        assert len(line) <= command.MAX_LINE + 1
        assert line.isprintable()
