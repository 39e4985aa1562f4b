"""The hub's home page: each server of a user with its state, in both languages."""

from __future__ import annotations

from typing import Any

import pytest
from bs4 import BeautifulSoup

from ..support.hubs import WAITING, until, with_groups

pytestmark = pytest.mark.engine

IMAGES = {"minimal": {"image": "gpuspawner/minimal:py3.11", "title": "Plain <b>"}}
LINES = (
    WAITING,
    f"c.GPUSpawner.images = {IMAGES!r}",
    "c.GPUSpawner.poll_interval = 1",
    "c.GPUSpawner.hour_limit = 8",
    "c.GPUSpawner.default_hours = 2",
    "c.GPUSpawner.mem_limit = '16G'",
    "c.GPUSpawner.ssh_path = 'sshd'",
    "c.JupyterHub.concurrent_spawn_limit = 0",
    "c.JupyterHub.tornado_settings = {'slow_spawn_timeout': 1}",
    "from gpuspawner.pages import TEMPLATES",
    "c.JupyterHub.template_paths = [TEMPLATES]",
    with_groups({"lab": {"user_gpu_limit": 3}}),
)


@pytest.fixture
def hub(module_hub):
    """In these tests the hub is the one with these lines."""
    return module_hub


def home(hub: Any, user: str, language: str = "en") -> BeautifulSoup:
    """Return somebody's home page."""
    answer = hub.log_in(user).get(f"{hub.url}/hub/home", headers={"Accept-Language": language})
    assert answer.status_code == 200, answer.text
    return BeautifulSoup(answer.content, "html.parser")


def servers(page: BeautifulSoup) -> list[str]:
    """Return what the page says of each server."""
    return [" ".join(each.get_text(" ").split()) for each in page.select(".gs-says")]


def links(page: BeautifulSoup) -> list[str]:
    """Return where the servers' own links lead."""
    return [each["href"] for each in page.select(".gs-buttons a")]


def test_each_server_is_there_with_its_state_its_image_its_gpus_and_its_time(hub):
    hub.add_to_group("lab", "ada")
    assert servers(home(hub, "ada")) == ["Default server not running"]
    hub.start_server("ada", {"gpus": 1})
    hub.start_server("ada", {"gpus": 2}, "my-2nd-server")
    hub.start_server("ada", {"gpus": 0}, "off")
    hub.stop_server("ada", "off")
    hub.start_server("ben", {"gpus": 1})
    page = home(hub, "ada")
    first, second, off = servers(page)
    model = "(NVIDIA A100-SXM4-40GB)"
    assert first.startswith(f"Default server running Plain <b> GPU 0 {model} until ")
    assert second.startswith(f"my-2nd-server running Plain <b> GPU 1, GPU 2 {model} until ")
    assert off == "off not running"
    where = "/user/ada/my-2nd-server/"
    assert links(page) == ["/user/ada/", where, "/hub/spawn/ada/off"]
    table = page.select_one(".gs-may").get_text(" ", strip=True)
    assert "GPUs of all your servers 3 3 held or waited for" in table
    assert "Memory of one server 16 GB" in table
    assert f"asyncio: ws://{hub.url.removeprefix('http://')}{where}sshd" not in table
    lines = [each.text for each in page.select("#gpuspawner-ssh pre")]
    assert f"asyncstdio: ws://{hub.url.removeprefix('http://')}{where}sshd" in lines[1]
    assert page.select_one("a[href='/hub/token']")
    # The same after a restart of the hub.
    hub.stop()
    hub.start()
    until(lambda: servers(home(hub, "ada"))[0] == first, "it knows them again", log=hub.log)


@pytest.mark.thorough
def test_who_waits_reads_the_place_and_what_was_asked_for(hub):
    hub.start_server("ben", {"gpus": 4, "hours": 1})
    assert hub.spawn("ada", {"gpus": 2}).status_code == 202
    page = home(hub, "ada")
    (said,) = servers(page)
    assert said.startswith("Default server waiting for GPUs You are next in line for 2 GPUs. Your")
    assert said.endswith("You asked for 2 GPUs, image Plain <b>, 2 hours.")
    assert links(page) == ["/hub/spawn-pending/ada"]
    assert page.select_one("noscript meta[http-equiv=refresh]")
    assert "ben" not in page.select_one("#gpuspawner-home").text


@pytest.mark.thorough
def test_it_is_in_the_reader_s_language(hub):
    hub.start_server("ada", {"gpus": 1})
    (said,) = servers(home(hub, "ada", "zh-CN"))
    assert said.startswith("默认服务器 运行中 Plain <b> GPU 0（NVIDIA A100-SXM4-40GB） 到 ")


@pytest.mark.thorough
def test_why_a_named_server_was_stopped_is_still_there(hub):
    hub.start_server("ada", {"gpus": 1, "hours": 3 / 3600}, "short")
    until(lambda: not hub.server("ada", "short"), "its time is over", log=hub.log)
    default, short = servers(home(hub, "ada"))
    assert default == "Default server not running"
    assert short.startswith("short not running Your server was stopped at ")
