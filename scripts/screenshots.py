"""`make screenshots`: take the handbook's pictures from a hub that runs on a simulated GPU host.

Only the `minimal` image is used. Nothing is drawn afterwards: leases and queue are those of real
requests to the hub, and the GPUs' use is what the simulated NVML reports.
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import docker

from gpuspawner.__main__ import main as gpuspawner
from gpuspawner.simulation.host import SimulatedHost, SimulationError, cache_folder
from gpuspawner.simulation.state import State, describe
from tests.support.browsers import QUIET, log_in
from tests.support.dashboards import Program, lines
from tests.support.hubs import Hub, until, write_config
from tests.support.looks import clear

from .console import ROOT, Stop, finish, say, step

PICTURES = ROOT / "docs" / "pictures"
# What is put behind a picture's name, and the language that the browser asks for.
LANGUAGES = {"": "en-GB", ".zh-CN": "zh-CN"}
# The dashboard's curves need something to show.
BUSY_SECONDS = 240

# All versions of the catalogue, as on a hub that pulls what it hasn't built.
CONFIGURATION = """
c.GPUSpawner.pull_policy = "ifnotpresent"
c.JupyterHub.allow_named_servers = True
c.GPUSpawner.gpu_limit = 2
c.GPUSpawner.hour_limit = 12
c.GPUSpawner.default_hours = 4
"""


def main() -> int:
    """Take all pictures, on the tests' engine, which has the image already."""
    os.chdir(ROOT)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        raise Stop("pictures are taken with Chromium, and there is none here")
    PICTURES.mkdir(parents=True, exist_ok=True)
    try:
        with (
            SimulatedHost(describe([("A100-40GB", 4)]), cache=cache_folder() / "tests") as host,
            _hub(host) as hub,
            _browser(chromium) as browser,
        ):
            for take in (_form, _queue, partial(_dashboard, host)):
                take(hub, browser)
    except SimulationError as error:
        raise Stop(str(error)) from error
    return 0


@contextmanager
def _hub(host: SimulatedHost) -> Iterator[Hub]:
    """Run a hub with the repository's own configuration on the simulated host."""
    os.environ.update(host.additions)
    with closing(docker.APIClient(base_url=host.docker_host, version="auto")) as engine:
        clear(engine)  # what a run that was broken off has left: a GPU out of service, homes
    with step("Building the image minimal, if it isn't there"):
        if gpuspawner(["image", "build", "minimal"]):
            raise Stop("the image can't be built; the lines above say why")
    with tempfile.TemporaryDirectory() as folder:
        write_config(Path(folder), [lines(), CONFIGURATION], shipped=True)
        hub = Hub(Path(folder), host.environment)
        try:
            hub.start()
            yield hub
            hub.stop_all_servers()
        finally:
            hub.stop()


@contextmanager
def _browser(chromium: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        yield browser
        browser.close()


def _take(hub: Hub, browser: Any, name: str, visit: Callable[[Any], None]) -> None:
    """Take a picture in each language of the page to which `visit` leads ada's browser."""
    for suffix, locale in LANGUAGES.items():
        context = browser.new_context(
            locale=locale,
            timezone_id=_where_it_is_morning(),
            viewport={"width": 1100, "height": 360},
        )
        context.set_default_timeout(60_000)
        page = context.new_page()
        log_in(page, hub, "ada")
        visit(page)
        file = PICTURES / f"{name}{suffix}.png"
        page.screenshot(path=file, full_page=True)
        say(f"  {file.relative_to(ROOT)}")
        context.close()


def _where_it_is_morning() -> str:
    """Return a time zone in which it is about ten o'clock, so that leases end on the same day."""
    east = (10 - time.gmtime().tm_hour + 11) % 24 - 11
    # POSIX counts the hours to the west.
    return f"Etc/GMT{-east:+d}"


def _form(hub: Hub, browser: Any) -> None:
    """The spawn page while three of four GPUs are taken, with a choice that has to wait."""
    hub.start_server("ben", {"gpus": 2, "hours": 3, "image": "minimal"})
    hub.start_server("eve", {"gpus": 1, "hours": 4, "image": "minimal"})

    def visit(page: Any) -> None:
        page.goto(f"{hub.url}/hub/spawn/ada")
        page.locator("input[name=gpus][value='2']").check()
        page.get_by_role("status").filter(has_text=":").first.wait_for()

    _take(hub, browser, "form", visit)


def _queue(hub: Hub, browser: Any) -> None:
    """The progress page of somebody who waits, second in line."""
    hub.spawn("gina", {"gpus": 2, "hours": 2, "image": "minimal"})
    hub.spawn("ada", {"gpus": 2, "hours": 2, "image": "minimal"})

    def visit(page: Any) -> None:
        page.goto(f"{hub.url}/hub/spawn-pending/ada")
        page.get_by_text("2").first.wait_for()
        page.wait_for_timeout(2500)

    _take(hub, browser, "queue", visit)
    hub.stop_all_servers()


def _dashboard(host: SimulatedHost, hub: Hub, browser: Any) -> None:
    """The dashboard: one's own server, somebody's, a GPU out of service, two who wait."""
    hub.start_server("ada", {"gpus": 2, "hours": 3, "image": "minimal"})
    hub.start_server("ben", {"gpus": 1, "hours": 1, "image": "minimal"})
    administrator = Program(hub, "boss")
    until(lambda: len(administrator.status()["servers"]) == 2, "both servers are seen")
    idle = next(gpu for gpu in administrator.status()["gpus"] if gpu["state"] == "free")
    why = {"why": "new fan, back on Monday"}
    assert administrator.ask("PUT", f"/gpus/{idle['uuid']}/out-of-service", why).status_code == 204
    hub.spawn("gina", {"gpus": 2, "hours": 2, "image": "minimal"})
    hub.spawn("ada", {"gpus": 1, "hours": 2, "image": "minimal"}, server="more")
    with step("Letting the GPUs work for a while"):
        _work(host, administrator)

    def visit(page: Any) -> None:
        page.goto(f"{hub.url}/services/gpus/")
        page.get_by_role("table").get_by_role("row").nth(2).wait_for()
        page.wait_for_timeout(1500)

    _take(hub, browser, "dashboard", visit)


def _work(host: SimulatedHost, watcher: Program) -> None:
    """Simulate a different use of each leased GPU while the dashboard is open."""
    deadline = time.monotonic() + BUSY_SECONDS
    for beat in itertools.count():
        if time.monotonic() > deadline:
            return
        host.change(partial(_at, beat))
        watcher.status()
        time.sleep(1)


def _at(beat: int, state: State) -> State:
    use = (
        88 + 8 * math.sin(beat / 2),
        40 + 35 * math.sin(beat / 5),
        95 if beat % 20 < 14 else 5,
        0,
    )
    memory = (33_000, 9_000 + 60 * beat, 21_000, 0)
    for index, (percent, mib) in enumerate(zip(use, memory, strict=True)):
        uuid = state.gpu(index).uuid
        state = state.with_gpu(uuid, utilization_percent=round(percent), memory_used_mib=mib)
    return state


if __name__ == "__main__":
    finish(main)
