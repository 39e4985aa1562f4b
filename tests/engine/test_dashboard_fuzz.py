"""Every call that the dashboard's description names, with whatever its parameters can't be."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuspawner.dashboard.handlers import MAX_BODY_BYTES, MAX_READ_BYTES

from ..support.dashboards import OPENAPI, Program, Visitor, check
from ..support.measured import dashboard_of, variable_of
from ..support.raw_http import send

pytestmark = pytest.mark.engine

METHODS = ("get", "put", "post", "delete", "options", "patch", "head")
DEEP = "[" * 1000 + "]" * 1000
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["ada", "boss", "..", "a/b", "a\nb", "\x00", "%", "{0}", "<script>", "n" * 5000, "学生" * 200]
)
# How a part of an address is sent: each byte but letters and digits escaped.
ESCAPED = TEXT.map(
    lambda text: re.sub(b"[^A-Za-z0-9]", lambda b: b"%%%02X" % b[0][0], text.encode())
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


@dataclass(frozen=True)
class Call:
    """A call of the description, with the names of its query's arguments and of its body's.

    `answer` is the name of what it answers with, where that is JSON.
    """

    method: str
    path: str
    arguments: tuple[str, ...]
    fields: tuple[str, ...]
    answer: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def described() -> list[Call]:
    """Return the calls of the dashboard's own description."""
    found = []
    for path, each in OPENAPI["paths"].items():
        for method in METHODS:
            if method in each:
                call = each[method]
                queries = [one for one in call.get("parameters", ()) if one.get("in") == "query"]
                content = call.get("requestBody", {}).get("content", {})
                fields = [name for one in content.values() for name in one["schema"]["properties"]]
                names = tuple(one["name"] for one in queries)
                done = call["responses"].get("200", {}).get("content", {})
                reference = done.get("application/json", {}).get("schema", {}).get("$ref", "")
                answer = reference.rpartition("/")[2]
                found.append(Call(method, path, names, tuple(fields), answer))
    return found


CALLS = described()


def path_of(call: Call, part: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Return what a call's address can be, with anything in the place of its parameters."""
    parts = [
        part if each.startswith("{") else st.just(each.encode())
        for each in re.split(r"({\w+})", call.path)
    ]
    return st.tuples(*parts).map(b"".join)


def query_of(call: Call) -> st.SearchStrategy[bytes]:
    """Return what stands after an address: its own arguments, and what there isn't."""
    name = st.sampled_from([*call.arguments, "token", "x"])
    value = ESCAPED | st.sampled_from([b"%FF", b"%", b"x" * 3000, b"", b"true"])
    pairs = st.lists(
        st.tuples(name, value).map(lambda pair: b"%s=%s" % (pair[0].encode(), pair[1]))
    )
    return st.sampled_from([b"", b"?", b"?" + b"&" * 200, b"?" + b"x" * 9000]) | pairs.map(
        lambda each: b"?" + b"&".join(each[:4])
    )


def body_of(call: Call) -> st.SearchStrategy[bytes]:
    """Return what a call's body can be."""
    names = st.sampled_from([*call.fields, "x"]) | TEXT
    deep = b'{"%s": %s}' % ((call.fields or ("x",))[0].encode(), DEEP.encode())
    large = [DEEP.encode(), deep, b"1" * 5000, b'"' + b"x" * 70_000 + b'"', b"x" * 130_000]
    values = st.dictionaries(names, JSON, max_size=3)
    return (
        st.binary(max_size=100)
        | st.sampled_from(large)
        | values.map(lambda value: json.dumps(value).encode())
    )


# Whatever a header can have: no line break, since that ends it.
WORDS = st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=60)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            *("Accept", "Accept-Language", "Content-Type", "Cookie", "If-None-Match", "Origin"),
            *(
                "Range",
                "Referer",
                "Sec-Fetch-Mode",
                "Sec-Fetch-Site",
                "X-Forwarded-For",
                "X-Scheme",
            ),
            *("X-Forwarded-Proto", "X-Real-Ip", "X-XSRFToken", "X-Forwarded-Host", "X", "Expect"),
        ]
    ),
    WORDS
    | st.sampled_from(
        [
            *("zh", "q=", ",;" * 400, "en;q=9" * 50, "http://[", "http://a:99999", "websocket"),
            *("said=1", "_xsrf=2|x", "service-gpus=x|y", "=;=", '"', "jupyterhub-session-id=x"),
            *("multipart/form-data", "application/x-www-form-urlencoded", "application/json"),
            *("bytes=-1", '"x"', "W/*", "x" * 20_000, "jupyterhub-session-id=" + "x" * 20_000),
        ]
    ),
    max_size=4,
)
AUTHORIZATION = st.sampled_from(
    ["ada", "boss", "token x", "bearer \xe9", "token " + "x" * 20_000, ""]
)


@pytest.fixture(scope="module")
def tokens(_dashboard_hub: Any) -> dict[str, str]:
    """The tokens of a user and of an administrator."""
    return {
        user: Program(_dashboard_hub, user).session.headers["Authorization"]
        for user in ("ada", "boss")
    }


@pytest.fixture(scope="module")
def addresses(_dashboard_hub: Any) -> dict[str, tuple[str, int]]:
    """Where a request comes in: by way of the proxy, and from a server, past it."""
    own = urlsplit(variable_of(dashboard_of(_dashboard_hub), "JUPYTERHUB_SERVICE_URL"))
    return {"proxy": ("127.0.0.1", _dashboard_hub.port), "direct": (own.hostname, own.port)}


def short(log: str) -> None:
    """Hold a log to it that it has no traceback, and that no line of the dashboard's is long."""
    assert "Traceback" not in log, log[-3000:]
    # The proxy and the hub write whole addresses, where they answer for the dashboard.
    assert [line for line in log.splitlines() if " dashboard] " in line and len(line) > 1000] == []


@pytest.mark.parametrize("way", ["proxy", "direct"])
@pytest.mark.parametrize("call", CALLS, ids=str)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_call_is_answered_by_a_fault(
    dashboard_hub: Any, tokens: Any, addresses: Any, way: str, call: Call, data: Any
) -> None:
    before = len(dashboard_hub.log())
    # What isn't UTF-8 the proxy answers itself, with 500.
    part = ESCAPED | st.sampled_from([b"%FF", b"a%2Fb%"]) if way == "direct" else ESCAPED
    path = b"/services/gpus" + data.draw(path_of(call, part)) + data.draw(query_of(call))
    who = data.draw(AUTHORIZATION)
    headers = {**data.draw(HEADERS), "Authorization": tokens.get(who, who)}
    body = b"" if call.method == "get" else data.draw(body_of(call))
    answer = send(addresses[way], call.method, path, headers, body)
    # Of a request that is far too large the dashboard doesn't read the rest: the proxy says 503.
    too_large = way == "proxy" and len(body) > MAX_READ_BYTES
    assert answer.status < 500 or too_large, (answer, dashboard_hub.log()[before:][-2000:])
    assert len(answer.body) < 200_000
    if answer.kind == "application/json" and answer.body and answer.status < 500:
        check(call.answer if answer.status == 200 else "Refusal", json.loads(answer.body))
    short(dashboard_hub.log()[before:])


@pytest.mark.parametrize("method", METHODS)
def test_nor_is_a_method_that_there_isn_t(tokens: Any, addresses: Any, method: str) -> None:
    for call in CALLS:
        named = call.path.replace("{id}", "1")
        path = b"/services/gpus" + re.sub(r"{\w+}", "ada", named).encode()
        answer = send(addresses["direct"], method, path, {"Authorization": tokens["ada"]})
        assert answer.status < 500, (answer, call)
        if answer.status == 405:
            (allowed,) = re.findall(r"^Allow: (.*)$", answer.head, re.M)
            assert call.method.upper() in allowed
            assert method.upper() not in allowed


def test_what_the_description_does_not_allow_is_refused_by_name(
    tokens: Any, addresses: Any
) -> None:
    for path in ("/api/status?history=null", "/api/status?history=false&history="):
        answer = send(
            addresses["direct"],
            "get",
            f"/services/gpus{path}".encode(),
            {"Authorization": tokens["ada"]},
        )
        assert (answer.status, json.loads(answer.body)["key"]) == (400, "history")


@pytest.mark.parametrize("path", ["/", "/api/status", "/hours", "/no-such-page"])
def test_a_request_of_which_two_things_are_wrong_is_answered(
    dashboard_hub: Any, addresses: Any, path: str
) -> None:
    """The page that says the first asks who reads it, which the second keeps it from knowing."""
    before = len(dashboard_hub.log())
    # JupyterHub looks for a token in the address of what a browser says is a websocket.
    mode = {"Sec-Fetch-Mode": "websocket"}
    for who in ({}, {"Cookie": "service-gpus=x"}, {"Authorization": "token x"}):
        address = f"/services/gpus{path}?token=%FF".encode()
        large = b"x" * (MAX_BODY_BYTES + 1)
        answer = send(addresses["direct"], "post", address, {**mode, **who}, large)
        assert (answer.status, bool(answer.body)) == (413, True)
        assert send(addresses["direct"], "get", address, {**mode, **who}).status < 500
    short(dashboard_hub.log()[before:])


def test_nor_is_what_its_page_s_forms_send_or_the_log_in_s_return(dashboard_hub: Any) -> None:
    ada = Visitor(dashboard_hub, "ada")
    before = len(dashboard_hub.log())
    names = ("n" * 5000, "n" * 30_000, "\x00", "学生" * 200, "<script>")
    for do in ("extend", "here", "stop", "leave", "out-of-service", "nonsense", "x" * 9000):
        for name in names:
            page = ada.press(do=do, user=name, server=name[:5000], gpu=name[:5000], why=name[:5000])
            assert "<script>" not in page
            assert "answer. Please try again" not in page
    for state in ("", "x", DEEP, "W1tb", "e30="):
        answer = ada.session.get(f"{ada.url}oauth_callback", params={"code": "x", "state": state})
        assert answer.status_code < 500
    short(dashboard_hub.log()[before:])
