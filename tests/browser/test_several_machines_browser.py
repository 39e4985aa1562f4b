"""Several machines in a real browser: a simulated cluster with the shipped hub, and homes for all.

The homes are on what all machines have, as with a file server. Which machine it is users read
nowhere; the model that they pick says it.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker
import pytest

from ..support import plain_image
from ..support.browsers import assert_accessible, log_in
from ..support.dashboards import ADMIN_PASSWORD
from ..support.hubs import PASSWORD, until
from ..support.swarms import THREE_MODELS, Swarm, SwarmHub, every_gpu, open_swarm

pytestmark = [
    pytest.mark.engine,
    pytest.mark.browser,
    pytest.mark.thorough,
    pytest.mark.timeout(600),
]

A100, H100 = "NVIDIA A100-SXM4-40GB", "NVIDIA H100 80GB HBM3"
NAME = re.compile(r"\bnode-[123]\b")
NOTE = "/home/jovyan/note.txt"
SHARED = """
c.GPUSwarmSpawner.volume_driver = "local"
c.GPUSwarmSpawner.volume_driver_options = {{
    "type": "none",
    "o": "bind",
    "device": "{folder}/{{volume}}",
}}
c.GPUSwarmSpawner.shared_homes = True
# Of this test's own: the machines keep volumes, and with them whose folder they are.
c.GPUSwarmSpawner.home_volume = "{name}-{{username}}"
c.GPUSwarmSpawner.course_volumes = {{}}
"""
# Servers are what the image itself starts, JupyterLab.
LAB = """
c.GPUSwarmSpawner.images = {{"minimal": {image!r}}}
c.GPUSwarmSpawner.cmd = None
c.GPUSwarmSpawner.default_url = "/lab"
c.GPUSwarmSpawner.mem_limit = None
"""
# The user of our images, and the group.
JOVYAN = 1000, 100


@pytest.fixture(scope="module")
def swarm(tmp_path_factory) -> Iterator[Swarm]:
    with open_swarm(THREE_MODELS, tmp_path_factory.mktemp("swarm")) as made:
        yield made


@pytest.fixture
def file_server(swarm) -> Iterator[Path]:
    """A folder with homes; /dev is what the simulated machines have in common."""
    folder = Path(tempfile.mkdtemp(prefix="gpuspawner-homes-", dir="/dev/shm"))
    (folder / f"{folder.name}-ada").mkdir()
    yield folder

    def forgotten() -> bool:
        # A machine removes a service's container a little after it has ended.
        with suppress(docker.errors.APIError):
            for client in swarm.clients:
                with suppress(docker.errors.NotFound):
                    client.remove_volume(f"{folder.name}-ada", force=True)
            return True
        return False

    until(forgotten, "no machine has the volume")
    shutil.rmtree(folder)


@pytest.fixture
def hub(swarm, tmp_path, file_server) -> Iterator[SwarmHub]:
    with swarm.started(
        swarm.shipped_hub(tmp_path, SHARED.format(folder=file_server, name=file_server.name))
    ) as running:
        yield running


@pytest.fixture
def lab_hub(swarm, tmp_path, file_server, engine, minimal_image) -> Iterator[SwarmHub]:
    """A hub whose servers are JupyterLabs, on the machines that have their image."""
    _, image = minimal_image
    swarm.take_over(engine, image, 1, 3)
    os.chown(file_server / f"{file_server.name}-ada", *JOVYAN)
    homes = SHARED.format(folder=file_server, name=file_server.name)
    with swarm.started(swarm.shipped_hub(tmp_path, homes, LAB.format(image=image))) as running:
        yield running


def form(hub: SwarmHub, page: Any, user: str) -> str:
    """Open the form, and return what is read there."""
    page.goto(f"{hub.url}/hub/spawn/{user}")
    page.locator("#gpuspawner-fresh time[datetime]").wait_for()
    return str(page.locator("#gpuspawner").inner_text())


def start_with(page: Any, model: str) -> None:
    """Pick one GPU of a model, and have the server."""
    page.locator("input[name=gpus][value='1']").check()
    page.locator(f"input[name=model][value='{model}']").check()
    page.get_by_text("What you have picked is on 1 machine.").wait_for()
    page.get_by_role("status").filter(has_text="Starts now").wait_for()
    page.get_by_role("button", name="Start", exact=True).click()
    page.wait_for_url("**/user/ada/**")


def test_a_user_has_the_model_of_one_machine_and_the_files_on_all(
    swarm, hub, file_server, browser, page, picture
):
    gpus = every_gpu(swarm.cluster)
    log_in(page, hub, "ada", PASSWORD)
    text = form(hub, page, "ada")
    assert {f"machine {number}" for number in (1, 2, 3)} <= {*re.findall(r"machine \d", text)}
    assert "5 of 5 free now · on 3 machines" in text
    assert "1 of 1 free now · on 1 machine\n" in f"{text}\n"
    assert not NAME.search(page.content())
    # Homes that all machines have are nothing to be told of.
    assert "Your files" not in text
    picture(page, "machines-form")
    start_with(page, H100)
    page.get_by_text("plain", exact=True).wait_for()
    assert swarm.node_of("ada") == 3
    assert swarm.leased()["ada"] == swarm.seen("ada") == gpus["node-3"]
    swarm.inside("ada", *plain_image.FILE, NOTE, "kept")
    assert (file_server / f"{file_server.name}-ada" / "note.txt").read_text() == "kept"

    page.goto(f"{hub.url}/services/gpus/")
    page.locator(".gs-says", has_text="yours").wait_for()
    assert page.locator(".gs-gpu").count() == 5
    assert page.locator("#machines li").count() == 0
    assert not NAME.search(page.content())
    picture(page, "machines-dashboard")
    page.get_by_text("Stop…").click()
    page.get_by_role("button", name="Stop the server").click()
    page.get_by_text("The server stops, once what runs in it has saved.").wait_for()
    until(lambda: not hub.server("ada"), "it is stopped", log=hub.log)

    form(hub, page, "ada")
    start_with(page, A100)
    page.get_by_text("plain", exact=True).wait_for()
    assert swarm.node_of("ada") == 1
    (held,) = swarm.seen("ada")
    assert held in gpus["node-1"]
    assert swarm.inside("ada", *plain_image.FILE, NOTE) == "kept"

    context = browser.new_context(locale="zh-CN", bypass_csp=True)
    context.set_default_timeout(60_000)
    boss = context.new_page()
    log_in(boss, hub, "boss", ADMIN_PASSWORD)
    assert {*NAME.findall(form(hub, boss, "boss"))} == {"node-1", "node-2", "node-3"}
    assert_accessible(boss)
    boss.goto(f"{hub.url}/services/gpus/")
    boss.locator(".gs-gpu").first.wait_for()
    # Which images each one has, administrators read there.
    boss.locator("#machines li", has_text="已有镜像：plain").nth(2).wait_for()
    assert {*NAME.findall(boss.locator("main").inner_text())} == {"node-1", "node-2", "node-3"}
    assert_accessible(boss)
    picture(boss, "machines-administrator")
    context.close()


def in_lab(page: Any, gpus: str) -> None:
    """Be in JupyterLab, whose status bar says which GPUs there are."""
    page.locator("#jp-top-panel").wait_for()
    page.get_by_role("button", name="GPUs of this server").get_by_text(gpus).wait_for()


def test_jupyterlab_has_the_one_gpu_of_its_machine_and_the_files_of_another(
    swarm, lab_hub, file_server, page, picture
):
    gpus = every_gpu(swarm.cluster)
    log_in(page, lab_hub, "ada", PASSWORD)
    form(lab_hub, page, "ada")
    start_with(page, H100)
    in_lab(page, "H100 · 3 h")
    assert swarm.node_of("ada") == 3
    assert swarm.leased()["ada"] == swarm.seen("ada") == gpus["node-3"]
    assert not NAME.search(page.content())
    # A new file, which JupyterLab asks the name of as it is saved.
    page.locator(".jp-LauncherCard", has_text="Text File").click()
    page.locator(".jp-FileEditor .cm-content").click()
    page.keyboard.type("kept")
    page.keyboard.press("Control+s")
    page.get_by_placeholder("File name").fill("note.txt")
    page.keyboard.press("Enter")
    note = file_server / f"{file_server.name}-ada" / "note.txt"
    until(lambda: note.exists() and note.read_text().strip() == "kept", "it is saved")
    picture(page, "machines-lab-node-3")
    lab_hub.stop_server("ada")
    until(lambda: swarm.leased() == {}, "nothing is held", log=lab_hub.log)

    form(lab_hub, page, "ada")
    start_with(page, A100)
    in_lab(page, "A100 · 3 h")
    assert swarm.node_of("ada") == 1
    (held,) = swarm.seen("ada")
    assert [held] == swarm.leased()["ada"]
    assert held in gpus["node-1"]
    page.goto(f"{lab_hub.url}/user/ada/lab/tree/note.txt")
    page.locator(".jp-FileEditor .cm-content").get_by_text("kept", exact=True).wait_for()
    picture(page, "machines-lab-node-1")
