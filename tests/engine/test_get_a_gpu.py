"""A server that runs gets a GPU by a restart with the same files, and gives it back."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from bs4 import BeautifulSoup

from ..support import dashboards
from ..support.dashboards import Program, Visitor
from ..support.hubs import PLAIN, until, with_groups
from ..support.looks import inside, labelled
from ..support.queues import audit_lines

pytestmark = pytest.mark.engine

# A server that has a lot to save.
SAVES = f"trap 'trap \"\" TERM; sleep 5; exit' TERM; python -I -S -c {shlex.quote(PLAIN)} & wait"
LINES = (
    dashboards.lines(),
    "from gpuspawner.pages import TEMPLATES",
    "c.JupyterHub.template_paths = [TEMPLATES]",
    "c.GPUSpawner.home_volume = 'home-{username}'",
    "c.GPUSpawner.claim_minutes = 30",
    "c.JupyterHub.named_server_limit_per_user = 3",
    with_groups({"hasty": {"claim_minutes": 0.05}, "slow": {"cmd": ["bash", "-c", SAVES]}}),
)


@pytest.fixture
def hub(module_hub):
    """In these tests the hub is the one with these lines."""
    return module_hub


class Home:
    """Somebody's home page, in a browser without scripts."""

    def __init__(self, hub: Any, user: str) -> None:
        self.hub = hub
        self.browser = hub.log_in(user)

    def page(self) -> BeautifulSoup:
        answer = self.browser.get(f"{self.hub.url}/hub/home")
        assert answer.status_code == 200, answer.text
        return BeautifulSoup(answer.content, "html.parser")

    def says(self) -> str:
        return " ".join(self.page().select_one(".gs-says").get_text(" ").split())

    def press(self, label: str, **fields: str) -> str:
        """Send the form with a button, and return what the page says then."""
        (form,) = [
            each for each in self.page().select("form[method=post]") if label == each.button.text
        ]
        sent = {each["name"]: each["value"] for each in form.select("input")} | fields
        answer = self.browser.post(f"{self.hub.url}{form['action']}", data=sent)
        assert answer.status_code == 200, answer.text
        return self.says()


def events(hub: Any, user: str) -> list[tuple[str, str, str]]:
    kinds = ("wait", "grant", "leave", "release")
    return [
        (line["event"], line["by"], line.get("rule", ""))
        for line in audit_lines(hub)
        if line["user"] == user and line["event"] in kinds
    ]


def started_again(hub: Any, user: str, before: dict[str, Any]) -> bool:
    now = hub.server(user)
    return bool(now.get("ready")) and now["started"] != before["started"]


def test_who_runs_without_a_gpu_asks_for_one_switches_and_gives_it_back(hub, engine):
    hub.start_server("ada", {"gpus": 0})
    hub.start_server("ben", {"gpus": 3})
    hub.start_server("eve", {"gpus": 1})
    inside(engine, "ada", "echo kept > ~/work/note")
    home = Home(hub, "ada")
    assert "without GPUs" in home.says()
    assert "You may have 3 servers with names." in home.page().text
    waiting = home.press("Get GPUs", gpus="1")
    assert "It goes on while it waits for GPUs. You are next in line for 1 GPU." in waiting
    ada = Program(hub, "ada")
    (asked,) = ada.status()["requests"]
    assert (asked["gpus"], asked["place"], asked["offer"]) == (1, 1, None)
    assert [each["yours"] for each in ada.status()["queue"]["waiting"]] == [True]
    assert hub.spawn("cyd", {"gpus": 1}).status_code == 202
    (freed,) = labelled(engine)["eve"]
    hub.stop_server("eve")
    until(lambda: "is reserved for it until" in home.says(), "ada's turn", log=hub.log)
    assert not hub.ready("cyd")
    until(lambda: ada.status()["requests"][0]["offer"], "the dashboard shows it", log=hub.log)
    status = ada.status()
    assert status["requests"][0]["offer"]["gpus"] == [freed]
    (shown,) = [each for each in status["gpus"] if each["uuid"] == freed]
    assert (shown["state"], shown["yours"]) == ("leased", True)
    before = hub.server("ada")
    home.press("Switch now")
    until(lambda: started_again(hub, "ada", before), "ada's server is back", log=hub.log)
    assert labelled(engine)["ada"] == [freed]
    assert inside(engine, "ada", "nvidia-smi -L | wc -l; cat ~/work/note") == "1\nkept"
    assert "GPU " in home.says()
    until(lambda: ada.status()["requests"] == [], "nothing is asked for", log=hub.log)
    assert not hub.ready("cyd")
    before = hub.server("ada")
    home.press("Give them back")
    until(lambda: hub.ready("cyd"), "cyd has the GPU", log=hub.log)
    until(lambda: started_again(hub, "ada", before), "ada's server is back", log=hub.log)
    assert labelled(engine)["cyd"] == [freed]
    assert labelled(engine)["ada"] == []
    assert inside(engine, "ada", "cat ~/work/note") == "kept"
    assert events(hub, "ada") == [
        ("wait", "gpuspawner", "gpus"),
        ("grant", "gpuspawner", "fifo"),
        ("release", "user:ada", "given back"),
    ]


@pytest.mark.parametrize(
    "who",
    ["the user", pytest.param("an administrator", marks=pytest.mark.thorough)],
)
def test_who_has_it_stopped_while_it_is_restarted_has_it_off(hub, engine, who):
    hub.add_to_group("slow", "ada")
    home = Home(hub, "ada")
    if who == "the user":
        hub.start_server("ada", {"gpus": 0})
        home.press("Get GPUs", gpus="1")
        home.press("Switch now")
        until(lambda: hub.server("ada")["pending"] == "stop", "it saves", log=hub.log)
        assert hub.api("DELETE", "/users/ada/server").status_code == 202
    else:
        hub.start_server("ada", {"gpus": 1})
        boss = Visitor(hub, "boss")
        until(lambda: boss.status()["servers"], "it is seen", log=hub.log)
        home.press("Give them back")
        until(lambda: hub.server("ada")["pending"] == "stop", "it saves", log=hub.log)
        boss.press(do="stop", user="ada", server="", why="The room is hot")
    until(lambda: not hub.server("ada"), "it is off", log=hub.log)
    ada = Program(hub, "ada")
    until(lambda: ada.status()["requests"] == [], "the restart is over", log=hub.log)
    assert not hub.server("ada")
    assert "ada" not in labelled(engine)
    until(lambda: set(dashboards.states(ada.status())) == {"free"}, "its GPU is free", log=hub.log)
    said = home.says()
    assert "not running" in said
    assert ("The room is hot" in said) == (who != "the user")
    hub.start_server("ada", {"gpus": 0})


def test_nobody_else_asks_for_it_and_no_other_site_does(hub):
    hub.start_server("ada", {"gpus": 0})
    before = events(hub, "ada")
    url, asks = f"{hub.url}/hub/gpu-switch/ada", {"do": "ask", "gpus": "1"}
    eve, ada = hub.log_in("eve"), hub.log_in("ada")
    hers = eve.cookies.get("_xsrf", path="/hub/")
    assert eve.post(url, data={**asks, "_xsrf": hers}).status_code == 404
    assert (
        eve.post(f"{hub.url}/hub/gpu-switch/nobody", data={**asks, "_xsrf": hers}).status_code
        == 404
    )
    assert ada.post(url, data=asks).status_code == 403
    assert ada.post(url, data={**asks, "_xsrf": hers}).status_code == 403
    assert Program(hub, "ada").status()["requests"] == []
    assert len(events(hub, "ada")) == len(before)


@pytest.mark.thorough
def test_a_program_asks_and_what_is_not_claimed_the_next_has(hub, engine):
    hub.add_to_group("hasty", "ada")
    hub.start_server("ada", {"gpus": 0})
    ada, ben = Program(hub, "ada"), Program(hub, "ben")
    others = ben.ask("POST", "/users/ada/server/gpu-request", {"gpus": 1})
    assert others.status_code == 403
    over = ada.ask("POST", "/users/ada/server/gpu-request", {"gpus": 9})
    assert over.json()["message"] == "You asked for 9 GPUs, and this machine has 4."
    assert ada.ask("POST", "/users/ada/server/switch").status_code == 409
    assert ada.ask("DELETE", "/users/ada/server/gpus").status_code == 409
    asked = ada.ask("POST", "/users/ada/server/gpu-request", {"gpus": 4})
    assert dashboards.check("Request", asked.json())["offer"]["until"]
    assert hub.spawn("cyd", {"gpus": 4}).status_code == 202
    until(lambda: hub.ready("cyd"), "cyd has what ada didn't claim", log=hub.log)
    until(lambda: ada.status()["requests"][0]["notice"], "ada is told", log=hub.log)
    (told,) = ada.status()["requests"]
    assert told["notice"].startswith("4 GPUs were reserved for you until ")
    assert hub.ready("ada")
    assert ada.ask("DELETE", "/users/ada/server/gpu-request").status_code == 204
    assert ada.status()["requests"] == []
    assert events(hub, "ada")[-1] == ("release", "gpuspawner", "not claimed in time")


@pytest.mark.thorough
def test_a_place_is_left_on_the_dashboard_and_lost_with_a_restart_of_the_hub(hub):
    hub.start_server("ben", {"gpus": 4})
    hub.start_server("ada", {"gpus": 0})
    ada, page = Program(hub, "ada"), dashboards.Visitor(hub, "ada")
    assert ada.ask("POST", "/users/ada/server/gpu-request").status_code == 200
    page.page()
    assert page.said(do="leave", user="ada", server="") == "You have left the queue."
    assert hub.ready("ada")
    assert ada.status()["requests"] == []
    assert ada.ask("POST", "/users/ada/server/gpu-request").status_code == 200
    hub.kill()
    hub.start()
    until(lambda: hub.ready("ada"), "ada's server goes on", log=hub.log)
    assert "JupyterHub was restarted while you waited for GPUs" in Home(hub, "ada").says()
