"""A thousand requests that are refused leave hub, dashboard and database as they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from gpuspawner.choices.form_stream import HEADER

from ..support import dashboards
from ..support.dashboards import Program
from ..support.hubs import TOKEN
from ..support.measured import (
    dashboard_of,
    database_of,
    descriptors_of,
    memory_of,
    variable_of,
)
from ..support.raw_http import send

pytestmark = [pytest.mark.engine, pytest.mark.thorough, pytest.mark.timeout(900)]

LINES = (dashboards.lines(),)
REQUESTS = 1000
# What a process may have more afterwards, in bytes: Python's allocator gives little back. Nearly
# every kind sends several times as much.
KEPT, KEPT_IN_DATABASE = 6 << 20, 200_000
LARGE = "x" * 50_000


class Scene:
    """A hub and its dashboard, and who sends them things."""

    def __init__(self, hub: Any) -> None:
        self.hub = hub
        self.session = hub.log_in("ada")
        self.session.get(f"{hub.url}/hub/spawn")
        self.token = Program(hub, "ada").session.headers["Authorization"]
        self.dashboard = dashboard_of(hub)
        own = urlsplit(variable_of(self.dashboard, "JUPYTERHUB_SERVICE_URL"))
        self.service = (own.hostname or "", own.port or 0)

    def ask_service(self, method: str, path: str, body: str = "", **headers: str) -> int:
        """Send the dashboard a request past the proxy; return the status."""
        return send(
            self.service, method, f"/services/gpus/{path}".encode(), headers, body.encode()
        ).status

    def ask_hub(self, method: str, path: str, body: str = "", **headers: str) -> int:
        """Send the hub a request past the proxy, as servers do; return the status."""
        address = (self.service[0], self.hub.hub_port)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return send(address, method, f"/hub/{path}".encode(), named, body.encode()).status

    def kept(self) -> dict[str, int]:
        """Return what is in memory and on disk now, in bytes, and connections."""
        return {
            "hub": memory_of(self.hub.pid),
            "dashboard": memory_of(self.dashboard),
            "database": database_of(self.hub),
            "hub's connections": descriptors_of(self.hub.pid),
            "dashboard's connections": descriptors_of(self.dashboard),
        }


def _bad_token(scene: Scene, number: int) -> int:
    token = f"token {number}{'x' * 900}"
    cookie = f"jupyterhub-session-id={number}{LARGE}"
    return scene.ask_service("GET", "api/status", Authorization=token, Cookie=cookie)


def _other_session(scene: Scene, number: int) -> int:
    cookie = f"jupyterhub-session-id={number}{LARGE}"
    return scene.ask_service("POST", "api/x", Authorization=scene.token, Cookie=cookie)


def _extend(scene: Scene, number: int) -> int:
    body = json.dumps({"hours": f"{number}{LARGE}"})
    path = "api/users/ada/server/extend"
    return scene.ask_service("POST", path, body, Authorization=scene.token)


def _script(scene: Scene, number: int) -> int:
    """The form's script is answered, with a form for each choice; a minute keeps some of them."""
    choice = {"hours": 1 + number / REQUESTS, "image": "minimal"}
    headers = {HEADER: quote(json.dumps(choice))}
    answer = scene.session.get(f"{scene.hub.url}/hub/spawn", headers=headers)
    return 400 if answer.ok else int(answer.status_code)


def _choice(scene: Scene, choice: dict[str, Any]) -> int:
    body = json.dumps(choice)
    return scene.ask_hub("POST", "api/users/ada/server", body, Authorization=f"token {TOKEN}")


def _link(scene: Scene, number: int) -> int:
    """A link from elsewhere fills in the form, with a sentence why it can't be."""
    address = f"{scene.hub.url}/hub/spawn?opt-image={number}{'x' * 7000}"
    answer = scene.session.get(address)
    return 400 if answer.ok else int(answer.status_code)


KINDS: dict[str, Callable[[Scene, int], int]] = {
    "a visitor with a long address": lambda scene, number: scene.ask_service(
        "GET", f"?{number}{'x' * 7000}"
    ),
    "an address that is too long": lambda scene, number: scene.ask_service(
        "GET", f"{number}{LARGE}"
    ),
    "a token that isn't one": _bad_token,
    "a session that isn't one": _other_session,
    "hours that are none": _extend,
    "a choice that is too long": lambda scene, number: _choice(scene, {"gpus": f"{number}{LARGE}"}),
    "a choice that can't be": lambda scene, number: _choice(
        scene, {"image": f"{number}{'x' * 7000}"}
    ),
    "a choice in a form's header": _script,
    "a choice in a link": _link,
    "a token that the hub doesn't know": lambda scene, number: scene.ask_hub(
        "GET", f"api/user?{number}{'x' * 7000}", Authorization=f"token {number}{LARGE}"
    ),
    "a server's name that can't be": lambda scene, number: scene.ask_hub(
        "POST", f"api/users/ada/servers/{number}{'X' * 7000}", Authorization=f"token {TOKEN}"
    ),
}


@pytest.fixture
def scene(module_hub: Any) -> Scene:
    return Scene(module_hub)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_kept_of_a_thousand_refusals(scene: Scene, kind: str) -> None:
    refuse = KINDS[kind]
    # What a process needs for it at all, it has afterwards.
    statuses = {refuse(scene, number) for number in range(REQUESTS, 3 * REQUESTS)}
    before = scene.kept()
    statuses |= {refuse(scene, number) for number in range(REQUESTS)}
    assert all(300 <= status < 500 for status in statuses), statuses
    after = scene.kept()
    more = {what: after[what] - before[what] for what in before}
    print(f"{kind}: " + ", ".join(f"{what} {number:+d}" for what, number in more.items()))
    assert max(more["hub"], more["dashboard"]) < KEPT, more
    assert more["database"] < KEPT_IN_DATABASE, more
    assert max(more["hub's connections"], more["dashboard's connections"]) < 20, more
