"""Every call that the dashboard's description names, with whatever its parameters can't be."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ..support.dashboards import OPENAPI, Program, Visitor, check

pytestmark = pytest.mark.engine

METHODS = ("get", "put", "post", "delete")
CALLS = [
    (method, path)
    for path, each in OPENAPI["paths"].items()
    for method in METHODS
    if method in each
]
DEEP = "[" * 1000 + "]" * 1000
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["ada", "boss", "..", "a/b", "a\nb", "\x00", "%", "{0}", "<script>", "n" * 5000, "学生" * 200]
)
# What a path's parameter is sent as. What isn't UTF-8 the proxy answers itself, with 500.
PART = TEXT.map(lambda text: re.sub(b"[^A-Za-z0-9]", lambda b: b"%%%02X" % b[0][0], text.encode()))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
BODY = st.one_of(
    st.binary(max_size=100),
    st.sampled_from([DEEP.encode(), b'{"hours": ' + DEEP.encode() + b"}", b"1" * 5000]),
    st.dictionaries(st.sampled_from(["hours", "why", "x"]), JSON).map(
        lambda value: json.dumps(value).encode()
    ),
)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "Accept-Language": st.sampled_from(["zh", "q=", ",;" * 400, "en;q=9" * 50]),
        "Cookie": st.sampled_from(["said=1", "_xsrf=2|x", "service-gpus=x|y", "=;=", '"']),
    },
)


@pytest.fixture(scope="module")
def ask(_dashboard_hub: Any) -> Any:
    program = Program(_dashboard_hub, "ada")

    def call(method: str, path: bytes, **more: Any) -> Any:
        url = f"{program.url.removesuffix('/api')}{path.decode('ascii')}"
        return program.session.request(method, url, timeout=60, allow_redirects=False, **more)

    return call


@pytest.mark.parametrize(("method", "path"), CALLS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_call_is_answered_by_a_fault(
    dashboard_hub: Any, ask: Any, method: str, path: str, data: Any
) -> None:
    before = dashboard_hub.log()
    where = b"".join(
        data.draw(PART) if part.startswith("{") else part.encode()
        for part in re.split(r"({\w+})", path)
    )
    query = data.draw(
        st.sampled_from(["", "?history=%FF", "?history=" + "x" * 3000, "?" + "&" * 200])
    )
    answer = ask(
        method,
        where + query.encode(),
        data=None if method == "get" else data.draw(BODY),
        headers=data.draw(HEADERS),
    )
    assert answer.status_code < 500, answer.text
    assert len(answer.content) < 100_000
    if answer.headers.get("Content-Type", "").startswith("application/json"):
        check("Status" if answer.status_code == 200 else "Refusal", answer.json())
    said = dashboard_hub.log()[len(before) :]
    assert "Traceback" not in said
    assert all(len(line) < 1000 for line in said.splitlines())


def test_nor_is_what_its_page_s_forms_send_or_the_log_in_s_return(dashboard_hub: Any) -> None:
    ada = Visitor(dashboard_hub, "ada")
    before = len(dashboard_hub.log())
    for do in ("extend", "here", "stop", "leave", "out-of-service", "nonsense", "x" * 9000):
        for name in ("n" * 5000, "\x00", "学生" * 200, "<script>"):
            page = ada.press(do=do, user=name, server=name, gpu=name, why=name)
            assert "<script>" not in page
    for state in ("", "x", DEEP, "W1tb", "e30="):
        answer = ada.session.get(f"{ada.url}oauth_callback", params={"code": "x", "state": state})
        assert answer.status_code < 500
    said = dashboard_hub.log()[before:]
    assert "Traceback" not in said
    assert all(len(line) < 1000 for line in said.splitlines())
