"""Whatever a hub on several machines answers: users read the machines' names nowhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import requests
from jupyterhub.apihandlers import default_handlers as api_handlers
from jupyterhub.handlers import default_handlers as page_handlers

from gpuspawner.choices.form_stream import HEADER
from gpuspawner.dashboard.handlers import routes
from gpuspawner.hub import switch_page
from gpuspawner.simulation.switch import plug

from ..support.dashboards import ADMIN_PASSWORD
from ..support.hubs import until
from ..support.swarms import THREE_MODELS, Swarm, SwarmHub, open_swarm

pytestmark = [pytest.mark.engine, pytest.mark.thorough, pytest.mark.timeout(600)]

H100 = "NVIDIA H100 80GB HBM3"
NAME = re.compile(r"\bnode-[123]\b")
# Somebody has to wait.
WAIT = """
c.GPUSwarmSpawner.longest_wait_minutes = 60
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 1}
"""


@pytest.fixture(scope="module")
def swarm(tmp_path_factory) -> Iterator[Swarm]:
    with open_swarm(THREE_MODELS, tmp_path_factory.mktemp("swarm")) as made:
        yield made


@pytest.fixture
def hub(swarm, tmp_path) -> Iterator[SwarmHub]:
    with swarm.started(swarm.shipped_hub(tmp_path, WAIT)) as running:
        yield running


def filled(pattern: str, user: str) -> str:
    """Return an address of a handler's pattern, with a user's name for each of its groups."""
    path = pattern.removesuffix("$").removesuffix("/?")
    path = path.replace("(?P<user_name>[^/]+)(?P<user_path>/.*)?", user)
    path = path.replace("(?:s/([^/]+))?", "").replace("(?:/([^/]+))?", "").replace("(.*)?", "")
    path = path.replace(r"(\d+)", "503").replace("([0-9]{1,9})", "1")
    path = re.sub(r"\((\w+)\|[^)]*\)", r"\1", path)  # one of several words
    path = re.sub(r"\(\[\^/\][*+]\)", user, path).replace("\\", "")
    assert not re.search(r"[()\[\]?*+]", path), pattern
    return path


def addresses(user: str) -> list[str]:
    """Return every address that hub and dashboard answer, from the tables of their handlers."""
    of_hub = [(pattern, each) for pattern, each in (*page_handlers, *api_handlers)]
    ours = [(f"/{switch_page.PATH}", switch_page.SwitchHandler)]
    found = {f"/hub{filled(pattern, user)}" for pattern, _ in (*of_hub, *ours)}
    prefix = "/services/gpus/"
    for pattern, *_ in routes(prefix, "/", {}):
        path = re.sub(r"^\(\?:(.+?)\|.+?\)(?=api/)", r"\1", pattern)
        found.add(filled(path, user) if pattern != ".*" else f"{prefix}none")
    # Which log out.
    return sorted(found - {"/hub/logout"})


@dataclass
class Reader:
    """Somebody who reads all that there is, and where machines were named to them."""

    session: requests.Session
    url: str
    told: set[str] = field(default_factory=set)
    codes: dict[str, int] = field(default_factory=dict)

    def note(self, path: str, text: str) -> None:
        if NAME.search(text):
            self.told.add(path)

    def read(self, path: str, **headers: str) -> None:
        """Read one, at most some lines of what has no end."""
        answer = self.session.get(
            f"{self.url}{path}", headers=headers, timeout=30, stream=True, allow_redirects=False
        )
        self.codes[path] = answer.status_code
        self.note(path, json.dumps(dict(answer.headers)))
        if "event-stream" in answer.headers.get("Content-Type", ""):
            for number, line in enumerate(answer.iter_lines(chunk_size=1, decode_unicode=True)):
                self.note(path, line)
                if number >= 3:
                    break
            answer.close()
        else:
            self.note(path, answer.text)

    def read_all(self, *users: str) -> None:
        """Read everything of some users, in both languages, and live."""
        live = {HEADER: "%7B%22gpus%22%3A1%7D", "Accept": "text/event-stream"}
        for user in users:
            for path in addresses(user):
                if "progress" not in path:
                    self.read(path)
                self.read(path, **{"Accept-Language": "zh-CN", "Accept": "text/event-stream"})
        self.read("/hub/spawn", **live)
        for user in users:
            self.read(f"/hub/spawn/{user}", **live)
        self.read("/services/gpus/")  # which logs in at the dashboard
        for path in ("", "live", "week", "api/status", "api/week"):
            self.read(f"/services/gpus/{path}")


def reader(hub: SwarmHub, user: str) -> Reader:
    session = hub.log_in(user, ADMIN_PASSWORD) if user == "boss" else hub.log_in(user)
    # The log-in at the dashboard leads back and forth.
    assert session.get(f"{hub.url}/services/gpus/").ok
    return Reader(session, hub.url)


def test_users_read_no_machine_s_name_anywhere_and_administrators_do(swarm, hub):
    hub.start_server("ada", {"gpus": 1, "model": H100})
    # One that runs without, one that waits, and one whose start was refused.
    hub.start_server("ben", {"gpus": 0})
    hub.spawn("eve", {"gpus": 1, "model": H100})
    assert hub.spawn("dan", {"gpus": 9}).status_code == 403
    switch = swarm.cluster.facts.switch
    plug(switch, 2, False)
    try:
        boss = reader(hub, "boss")
        status = f"{hub.url}/services/gpus/api/status"
        until(
            lambda: "doesn't answer" in boss.session.get(status).text,
            "one machine is away",
            log=hub.log,
        )
        for user in ("ada", "ben", "eve", "dan"):
            one = reader(hub, user)
            one.read_all(user)
            assert one.told == set(), (user, sorted(one.told))
            # What there is to read was read.
            assert one.codes["/services/gpus/api/status"] == 200, one.codes
            assert one.codes["/services/gpus/week"] == 200
            assert one.codes["/hub/home"] == 200
            assert one.codes[f"/hub/api/users/{user}"] == 200
        boss.read_all("boss", "ada", "eve")
        ours = {"", "live", "week", "api/status", "api/week"}
        assert {f"/services/gpus/{path}" for path in ours} | {"/hub/spawn/boss"} <= boss.told
    finally:
        plug(switch, 2, True)
