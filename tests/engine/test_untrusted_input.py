"""Untrusted input has a size at every door: what is too large is refused, and nothing keeps it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.engine

TOO_LONG = "The options are too long: at most 8192 characters can be sent."
LARGE = {"gpus": "9" * 500_000}
DEEP = '{"gpus": ' + "[" * 900 + "]" * 900 + "}"


def size(hub: Any) -> int:
    """Return how large the hub's database is: what was written and deleted counts as well."""
    return (hub.folder / "jupyterhub.sqlite").stat().st_size


def ask(hub: Any, method: str, path: str, body: Any) -> Any:
    return hub._admin.request(method, f"{hub.url}/hub/api{path}", data=body, timeout=60)


@pytest.mark.parametrize("choice", [LARGE, DEEP], ids=["long", "deep"])
def test_a_choice_that_is_too_large_is_refused_before_anything_keeps_it(hub, choice):
    hub.add_user("ada")
    hub.start_server("ada", {"gpus": 0})
    hub.stop_server("ada")
    before, bytes_before = hub.log().count("Traceback"), size(hub)
    body = choice if isinstance(choice, str) else None
    refused = ask(hub, "POST", "/users/ada/server", body) if body else hub.spawn("ada", choice)
    assert (refused.status_code, refused.json()["message"]) == (400, TOO_LONG)
    assert size(hub) < bytes_before + 100_000
    assert "9999999999" not in hub.log()
    assert hub.log().count("Traceback") == before
    # What was chosen before is the choice still.
    hub.start_server("ada")
    assert hub.server("ada")["user_options"] == {"gpus": 0}


def test_nor_is_one_that_is_only_to_be_saved(hub):
    hub.add_user("ben")
    before = size(hub)
    made = hub.api("PUT", "/users/ben/servers/large", {"display_name": "x", "user_options": LARGE})
    if made.status_code == 405:
        pytest.skip("JupyterHub 5 saves no choice but that of a start")
    assert (made.status_code, made.json()["message"]) == (400, TOO_LONG)
    hub.api("PUT", "/users/ben/servers/small", {"display_name": "x", "user_options": {"gpus": 1}})
    more = hub.api("PATCH", "/users/ben/servers/small", {"user_options": LARGE})
    assert (more.status_code, more.json()["message"]) == (400, TOO_LONG)
    assert size(hub) < before + 100_000


TEXT = st.text(max_size=30) | st.sampled_from(["\x00", "\ud800", "%s", "{0}", "a\nb", "x" * 300])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OURS = st.sampled_from(["image", "gpus", "model", "hours"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(OURS | TEXT, JSON, max_size=4))
def test_no_choice_is_answered_by_a_fault(hub, choice):
    hub.add_user("eve")
    before = len(hub.log())
    # One key that there isn't, so that none starts a server.
    body = json.dumps({**choice, "gpu_ids": [0]})
    answer = ask(hub, "POST", "/users/eve/server", body)
    assert answer.status_code == 400, answer.text
    assert len(answer.json()["message"]) < 500
    said = hub.log()[before:]
    assert "Traceback" not in said
    assert all(len(line) < 1000 for line in said.splitlines())
