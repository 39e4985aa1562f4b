"""What the form's script asks a real hub, without a browser."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import pytest
import requests

from gpuspawner.choices.form_stream import HEADER

from ..support.hubs import WAITING, until, with_groups
from ..support.looks import containers

pytestmark = pytest.mark.engine

LINES = (
    WAITING,
    "c.GPUSpawner.poll_interval = 1",
    "c.GPUSpawner.hour_limit = 8",
    with_groups({"without-gpus": {"gpu_limit": 0}}),
)


@pytest.fixture
def hub(module_hub):
    """In these tests the hub is the one with these lines."""
    return module_hub


def asking(choice: Any, **more: str) -> dict[str, str]:
    return {HEADER: quote(json.dumps(choice)), **more}


class Listener:
    """A page that is open: the forms it was sent so far."""

    def __init__(self, session: Any, url: str, choice: Any) -> None:
        headers = asking(choice, Accept="text/event-stream")
        self.answer = session.get(url, headers=headers, stream=True, timeout=60)
        self.forms: list[str] = []
        self.ended = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with suppress(requests.RequestException):  # the hub ended
            for line in self.answer.iter_lines(chunk_size=1, decode_unicode=True):
                if line.startswith("data: "):
                    self.forms.append(json.loads(line[6:]))
            self.ended.set()

    def says(self, words: str) -> bool:
        return bool(self.forms) and words in self.forms[-1]


def test_a_script_gets_the_form_for_its_choice_and_nothing_around_it(hub, engine):
    session = hub.log_in("ada")
    page = f"{hub.url}/hub/spawn"
    answer = session.get(page, headers=asking({"gpus": 3, "hours": 2}))
    assert "Starts now, with 3 GPUs." in answer.text
    assert "<html" not in answer.text
    assert "<script" not in answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    same = asking({"gpus": 3, "hours": 2}, **{"If-None-Match": answer.headers["ETag"]})
    again = session.get(page, headers=same)
    assert (again.status_code, again.text) in [(304, ""), (200, again.text)]  # a minute may end
    assert "Starts now, with 2 GPUs." in session.get(page, headers=asking({"gpus": 2})).text
    for nonsense in ("{", "%", quote("[" * 5000), "null", quote('{"gpus": "<b>", "device": 1}')):
        assert "<b>" not in session.get(page, headers={HEADER: nonsense}).text
    assert "<html" in session.get(page).text
    assert containers(engine) == []


def test_a_script_never_starts_a_server_also_where_there_is_nothing_to_choose(hub):
    hub.add_to_group("without-gpus", "ada")
    session = hub.log_in("ada")
    answer = session.get(f"{hub.url}/hub/spawn", headers=asking({}))
    assert (answer.status_code, answer.text) == (200, "")
    assert hub.api("GET", "/users/ada").json()["servers"] == {}


def test_open_pages_are_told_what_changes_until_the_server_starts(hub):
    session = hub.log_in("ada")
    page = Listener(session, f"{hub.url}/hub/spawn", {"gpus": 2, "hours": 2})
    other = Listener(hub.log_in("eve"), f"{hub.url}/hub/spawn", {"gpus": 1, "hours": 2})
    until(lambda: page.says("Starts now, with 2 GPUs."), "the first form", log=hub.log)
    hub.start_server("ben", {"gpus": 3, "hours": 1})
    until(lambda: page.says("Too few GPUs are free."), "what ben took", log=hub.log)
    until(lambda: other.says("1 of 4 free now"), "the same for eve", log=hub.log)
    assert other.says("Starts now, with 1 GPU.")
    assert "ben" not in "".join(page.forms)
    hub.start_server("ada", {"gpus": 1})
    assert page.ended.wait(60)
    # The next one leads to the server.
    answer = session.get(
        f"{hub.url}/hub/spawn",
        headers=asking({}, Accept="text/event-stream"),
        allow_redirects=False,
    )
    assert answer.status_code == 302


def test_two_tabs_of_one_user_get_what_each_asked_for(make_hub):
    """JupyterHub notes on the spawner which request is answered, and the later one wins."""
    hub = make_hub(
        *LINES,
        "import asyncio",
        "c.GPUSpawner.auth_state_hook = lambda spawner, state: asyncio.sleep(0.5)",
    )
    session = hub.log_in("ada")
    page = f"{hub.url}/hub/spawn"
    answers: dict[str, str] = {}

    def get(name: str, headers: dict[str, str]) -> None:
        answers[name] = session.get(page, headers=headers).text

    threads = [
        threading.Thread(target=get, args=("page", {})),
        threading.Thread(target=get, args=("script", asking({"gpus": 2}))),
        threading.Thread(target=get, args=("page again", {})),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "<html" in answers["page"]
    assert "<html" in answers["page again"]
    assert "<html" not in answers["script"]
    assert "Starts now, with 2 GPUs." in answers["script"]


# What open pages share
