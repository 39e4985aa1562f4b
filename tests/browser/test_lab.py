"""A server's GPUs and time in JupyterLab itself, in a real browser on a hub with the dashboard."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime

import pytest

from ..support.browsers import assert_accessible
from ..support.dashboards import LAB_MAY_ASK, Visitor, lines
from ..support.hubs import IMAGES_OWN, PASSWORD, until, with_groups
from ..support.looks import inside

pytestmark = [pytest.mark.engine, pytest.mark.browser]

# GPUs that idle soon.
MORE = """
c.GPUSpawner.extend_minutes = 60
c.GPUSpawner.home_volume = "lab-{username}"
c.GPUSpawner.idle_minutes = 0.1
c.GPUSpawner.idle_warning_minutes = 30
from gpuspawner.pages import TEMPLATES
c.JupyterHub.template_paths = [TEMPLATES]
"""
# A home that is full from the start, and a memory that is told with its limit.
# One that can't start with a GPU.
FAILS = 'if [ -n "$GPUSPAWNER_GPUS" ]; then sleep 2; exit 3; fi; exec jupyterhub-singleuser'
# One that has a lot to save.
SAVES = "trap 'trap \"\" TERM; sleep 5; exit' TERM; jupyterhub-singleuser & wait"
MORE += with_groups(
    {
        "full": {"home_size": "1K"},
        "limited": {"mem_limit": "4G"},
        "fails": {"cmd": ["bash", "-c", FAILS]},
        "slow": {"cmd": ["bash", "-c", SAVES]},
    }
)
# Long enough for a browser to come before the warning, which is given after half of it.
SHORT_HOURS = 70 / 3600


@pytest.fixture(scope="module")
def _hub(hubs_of_run, minimal_image):
    running = hubs_of_run(lines(), LAB_MAY_ASK, IMAGES_OWN, MORE)
    yield running
    running.stop()


@pytest.fixture
def hub(idle_host, _hub):
    """A hub with the dashboard, without servers."""
    yield _hub
    _hub.stop_all_servers()


def use(host, percent, *, mib=0):
    """Let all GPUs do something."""
    host.change(
        lambda state: replace(
            state,
            gpus=tuple(
                replace(gpu, utilization_percent=percent, memory_used_mib=mib) for gpu in state.gpus
            ),
        )
    )


def open_lab(page, hub, user, path="lab"):
    """Log in and open JupyterLab, or another page of the server's."""
    page.goto(f"{hub.url}/hub/login?next=/hub/user/{user}/{path}")
    page.get_by_label("Username").fill(user)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name=re.compile("sign in", re.I)).click()
    page.locator("#jp-top-panel, #top-panel").first.wait_for()


def item(page):
    """What the status bar says."""
    return page.get_by_role("button", name="GPUs of this server")


def without(page, what):
    """What the status bar says of a server without GPUs."""
    return page.get_by_role("button", name=f"no GPU · {what}")


def panel(page):
    """What a press on it opens."""
    return page.get_by_role("dialog", name="GPUs of this server")


def notice(page, text):
    """A notification."""
    return page.locator(".Toastify__toast").filter(has_text=text)


def lease(hub, user):
    """What the hub says of a server, and `left`, the seconds until its end."""
    session = hub.log_in(user)
    session.get(f"{hub.url}/services/gpus/")
    status = session.get(f"{hub.url}/services/gpus/api/status").json()
    server = status["servers"][0]
    now, end = (datetime.fromisoformat(each) for each in (status["now"], server["until"]))
    return {**server, "left": (end - now).total_seconds()}


@contextmanager
def another(browser, **how):
    """Another browser's tab."""
    context = browser.new_context(viewport={"width": 1100, "height": 660}, **how)
    context.set_default_timeout(60_000)
    yield context.new_page()
    context.close()


def test_the_status_bar_says_what_is_left_and_a_press_shows_what_the_gpus_do(
    hub, host, page, picture
):
    hub.add_to_group("limited", "ada")
    hub.start_server("ada", {"gpus": 2, "hours": 3.2})
    use(host, 87, mib=33 * 1024)
    open_lab(page, hub, "ada")
    item(page).get_by_text(re.compile(r"^2 \u00d7 A100 · 3 h (1\d|[1-9]) min left$")).wait_for()
    # By the keyboard alone, once JupyterLab has put the focus where it begins.
    page.wait_for_function("document.activeElement.matches('.jp-Launcher')")
    item(page).focus()
    page.keyboard.press("Enter")
    panel(page).get_by_text("87 %").first.wait_for()
    picture(page, "lab-panel")
    page.locator("#gpuspawner-memory").get_by_text(
        re.compile(r"^Memory 0\.\d of 4\.0 GB$")
    ).wait_for()
    assert_accessible(page, ".gpuspawner-item", "#gpuspawner-panel")
    shown = panel(page).inner_text()
    assert shown.count("NVIDIA A100-SXM4-40GB") == shown.count("33 of 40 GB") == 2
    assert re.search(r"Your time ends at (\w+, \w+ \d+, )?\d+:\d\d", shown)
    assert re.search(r"It can be extended from (\w+, \w+ \d+, )?\d+:\d\d on\.", shown)
    assert not panel(page).get_by_role("button", name="Extend").is_visible()
    assert item(page).get_attribute("aria-expanded") == "true"
    use(host, 12)
    panel(page).get_by_text("12 %").first.wait_for()
    page.keyboard.press("Escape")
    panel(page).wait_for(state="hidden")
    assert page.evaluate("document.activeElement.className") == "gpuspawner-button"


@pytest.mark.thorough
def test_the_warning_says_why_not_and_extends_once_nobody_waits(hub, host, page, picture):
    use(host, 50)
    hub.start_server("ada", {"gpus": 4, "hours": SHORT_HOURS})
    waits = hub.spawn("ben", {"gpus": 1})
    assert waits.status_code == 202, waits.text
    open_lab(page, hub, "ada")
    item(page).click()  # who looks at it is told at once
    warning = notice(page, "when its time ends. Save your work")
    why = "Others wait for its GPUs (1), so it can't be extended."
    warning.get_by_text(why).wait_for()
    picture(page, "lab-refused")
    assert warning.get_by_role("button", name="Extend").count() == 0
    panel(page).get_by_text(why).wait_for()
    assert not panel(page).get_by_role("button", name="Extend").is_visible()
    hub.stop_server("ben")
    warning.get_by_role("button", name="Extend").click()
    notice(page, re.compile(r"This server now ends at \d+:\d\d")).wait_for()
    assert lease(hub, "ada")["left"] > SHORT_HOURS * 3600
    warning.wait_for(state="hidden")


@pytest.mark.thorough
def test_the_warning_of_idle_gpus_is_answered_with_i_m_still_here(hub, page, picture):
    hub.start_server("ada", {"gpus": 1})
    open_lab(page, hub, "ada")
    item(page).click()
    warning = notice(page, "The GPUs of this server have done nothing since")
    warning.wait_for()
    picture(page, "lab-idle")
    before = lease(hub, "ada")["idle_since"]
    warning.get_by_role("button", name="I'm still here").click()
    notice(page, "The GPUs stay yours.").wait_for()
    assert lease(hub, "ada")["idle_since"] != before


RUNS_OUT = """
held = open("/dev/nvidia0")
class OutOfMemoryError(RuntimeError): pass
raise OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB. GPU 0 has …")
"""


@pytest.mark.thorough
def test_a_full_gpu_and_a_full_home_are_explained(hub, host, engine, page, picture):
    hub.add_to_group("full", "cyd")
    hub.start_server("cyd", {"gpus": 1})
    use(host, 50, mib=39 * 1024)
    cell = {"cell_type": "code", "source": RUNS_OUT, "metadata": {}, "outputs": []}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python", "language": "python"}}
    notebook = {"cells": [{**cell, "execution_count": None}], "metadata": kernel}
    text = json.dumps({**notebook, "nbformat": 4, "nbformat_minor": 4})
    inside(engine, "cyd", f"cat > ~/work/train.ipynb <<'END'\n{text}\nEND")
    open_lab(page, hub, "cyd", "lab/tree/work/train.ipynb")
    page.locator(".jp-CodeCell .cm-content").first.click()
    page.get_by_text("| Idle").first.wait_for()
    page.keyboard.press("Shift+Enter")
    notice(page, "The GPU's 40 GB are full, 39 GB by this kernel alone.").wait_for()
    item(page).click()
    # The hub measures it after it was asked for the first time.
    full = notice(page, re.compile(r"Your files take [\d.]+ of 0\.0 GB\."))
    full.wait_for()
    picture(page, "lab-full")
    panel(page).get_by_text("Your files take").wait_for()
    page.keyboard.press("Escape")
    full.get_by_role("button", name="How?").click()
    page.get_by_role("dialog").get_by_text("du -sh ~/* ~/.[!.]* | sort -h").wait_for()
    picture(page, "lab-home")
    assert_accessible(page, ".jp-Dialog-content")


@pytest.mark.thorough
def test_a_full_home_is_told_of_without_gpus_too(hub, page):
    hub.add_to_group("full", "dee")
    hub.start_server("dee", {"gpus": 0})
    until(lambda: Visitor(hub, "dee").status()["homes"], "it is measured", log=hub.log)
    open_lab(page, hub, "dee")
    notice(page, re.compile(r"Your files take [\d.]+ of 0\.0 GB\.")).wait_for()


def test_a_server_without_gpus_says_so_and_asks_the_hub_once_when_somebody_comes(
    hub, page, picture
):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    hub.start_server("ada", {"gpus": 0})
    open_lab(page, hub, "ada")
    page.locator(".jp-LauncherCard").first.wait_for()
    without(page, "get one").wait_for()
    picture(page, "lab-no-gpu")
    assert any("labextensions/gpuspawner" in url or "extensions/gpuspawner" in url for url in asked)
    assert len([url for url in asked if "/services/" in url]) == 1
    # Nor is jupyter-server-proxy loaded for tiles that there aren't.
    assert not [url for url in asked if "/server-proxy/" in url]


@pytest.mark.thorough
def test_it_gets_a_gpu_while_it_runs_and_gives_it_back(hub, engine, page, picture):
    hub.start_server("ben", {"gpus": 4})
    hub.start_server("ada", {"gpus": 0})
    open_lab(page, hub, "ada")
    inside(engine, "ada", "echo kept > ~/work/note")
    # By the keyboard alone, once JupyterLab has put the focus where it begins.
    page.wait_for_function("document.activeElement.matches('.jp-Launcher')")
    without(page, "get one").focus()
    page.keyboard.press("Enter")
    asks = page.get_by_role("dialog", name="A GPU for this server")
    asks.get_by_label("How many?").wait_for()
    assert_accessible(page, ".gpuspawner-item", "#gpuspawner-panel")
    asks.get_by_label("How many?").fill("5")
    asks.get_by_role("button", name="Get a GPU").click()
    asks.get_by_text("You asked for 5 GPUs, and this machine has 4.").wait_for()
    asks.get_by_label("How many?").fill("1")
    asks.get_by_role("button", name="Get a GPU").click()
    asks.get_by_text("It goes on while it waits for GPUs: place 1 of 1.").wait_for()
    picture(page, "lab-waits")
    page.keyboard.press("Escape")
    asks.wait_for(state="hidden")
    hub.stop_server("ben")
    offer = notice(page, "A GPU is reserved for you until")
    offer.wait_for()
    picture(page, "lab-offer")
    assert offer.get_by_role("button", name="Not now").is_visible()
    offer.get_by_role("button", name="Switch now").click()
    notice(page, "This page comes back with it").wait_for()
    item(page).click()
    assert inside(engine, "ada", "nvidia-smi -L | wc -l; cat ~/work/note") == "1\nkept"
    panel(page).get_by_text("Give the GPUs back…").click()
    picture(page, "lab-give-back")
    assert_accessible(page, "#gpuspawner-panel")
    panel(page).get_by_role("button", name="Give them back").click()
    without(page, "get one").wait_for()
    assert inside(engine, "ada", "cat ~/work/note") == "kept"


@pytest.mark.thorough
@pytest.mark.parametrize("group", ["fails", "slow"])
def test_a_restart_that_does_not_come_back_is_told_of_at_once(hub, page, picture, group):
    hub.add_to_group(group, "fay")
    hub.start_server("fay", {"gpus": 0})
    open_lab(page, hub, "fay")
    without(page, "get one").click()
    page.get_by_role("button", name="Get a GPU").click()
    notice(page, "A GPU is reserved for you until").wait_for()
    page.get_by_role("button", name="Switch now").first.click()
    notice(page, "This page comes back with it").wait_for()
    if group == "slow":
        until(lambda: hub.server("fay").get("pending") == "stop", "it stops", log=hub.log)
        assert hub.api("DELETE", "/users/fay/server").status_code == 202
    told = notice(page, "The server isn't running: the home page says why.")
    told.wait_for()
    asks = page.get_by_role("dialog", name="A GPU for this server")
    asks.get_by_text("The server isn't running: the home page says why.").wait_for()
    picture(page, "lab-not-back")
    # JupyterLab itself asks whether to start the server again, above all else, once it has looked.
    page.add_locator_handler(
        page.get_by_role("dialog", name="Server unavailable"),
        lambda dialog: dialog.get_by_role("button", name="Dismiss").click(),
    )
    told.get_by_role("button", name="Home page").click()
    page.wait_for_url("**/hub/home")
    page.locator(".gs-state", has_text="not running").wait_for()
    why = page.get_by_text("Your server was stopped to be started with other GPUs, and that")
    assert why.count() == (1 if group == "fails" else 0)


@pytest.mark.thorough
def test_chinese_is_for_those_whose_browser_speaks_it(hub, host, browser):
    use(host, 50)
    hub.start_server("ada", {"gpus": 1, "hours": 2.5})
    with another(browser, locale="zh-CN") as page:
        open_lab(page, hub, "ada")
        page.get_by_role("button", name=re.compile(r"此服务器的 GPU.*剩余 2 小时 \d+ 分钟")).click()
        page.get_by_role("dialog", name="此服务器的 GPU").get_by_text("利用率").wait_for()


@pytest.mark.thorough
def test_notebook_has_it_in_its_header(hub, host, page, picture):
    use(host, 50)
    hub.start_server("ada", {"gpus": 2, "hours": 2.5})
    open_lab(page, hub, "ada", "tree")
    item(page).get_by_text("2 \u00d7 A100 · 2 h").click()
    panel(page).get_by_text("50 %").first.wait_for()
    picture(page, "notebook-panel")


@pytest.mark.thorough
def test_who_is_stopped_by_an_administrator_is_told_before_and_afterwards(hub, host, page, picture):
    use(host, 50)
    hub.start_server("ben", {"gpus": 1, "hours": 2})
    hub.start_server("ada", {"gpus": 1, "hours": 2})
    open_lab(page, hub, "ada")
    item(page).click()
    # By the dashboard's name, and as it is counted inside.
    panel(page).get_by_text("GPU 1", exact=True).wait_for()
    panel(page).get_by_text("nvidia-smi: 0").wait_for()
    boss, why = Visitor(hub, "boss"), "The room is hot"
    boss.press(do="stop", user="ada", server="", why=why, when="10")
    notice(page, "Save your work: an administrator stops this server at").wait_for()
    panel(page).get_by_text(why).wait_for()
    assert not panel(page).get_by_role("button", name="Extend").is_visible()
    picture(page, "lab-announced")
    boss.press(do="stop", user="ada", server="", why=why)
    stopped = re.compile(r"An administrator stopped this server at .*: The room is hot")
    notice(page, stopped).wait_for()
    item(page).get_by_text("stopped").wait_for()
    panel(page).get_by_text("An administrator stopped this server at").wait_for()
    picture(page, "lab-stopped")


@pytest.mark.thorough
def test_a_dashboard_that_goes_away_leaves_what_was_known(hub, host, page):
    use(host, 50)
    hub.start_server("ada", {"gpus": 2, "hours": 2.5})
    open_lab(page, hub, "ada")
    item(page).get_by_text("2 \u00d7 A100").wait_for()
    page.route("**/services/gpus/**", lambda route: route.abort())
    item(page).click()
    panel(page).get_by_text("JupyterHub doesn't answer. What is shown is from").wait_for()
    assert not panel(page).get_by_role("button", name="Extend").is_visible()
    assert re.match(r"2 \u00d7 A100 · 2 h \d+ min left", item(page).inner_text())


@pytest.mark.thorough
def test_a_hub_without_a_dashboard_shows_the_end_that_the_server_began_with(make_hub, page):
    hub = make_hub(IMAGES_OWN, "c.GPUSpawner.poll_interval = 1")
    hub.start_server("ada", {"gpus": 2, "hours": 2.5})
    said = []
    page.on("pageerror", lambda error: said.append(str(error)))
    open_lab(page, hub, "ada")
    item(page).get_by_text(re.compile(r"^2 GPUs · 2 h \d+ min left$")).wait_for()
    item(page).click()
    panel(page).get_by_text("What the GPUs do can't be shown here.").wait_for()
    page.keyboard.press("Escape")
    page.locator(".jp-LauncherCard").first.click()
    page.get_by_text("| Idle").first.wait_for()
    assert said == []
    assert page.locator(".jp-Dialog, .Toastify__toast").count() == 0


@pytest.mark.thorough
def test_who_has_packages_in_another_version_reads_so(make_hub, minimal_image, page, picture):
    client, reference = minimal_image
    packages = "/home/jovyan/.local/share/gpuspawner/packages/lab/lib/python3.11/site-packages"
    client.containers.run(
        reference,
        ["mkdir", "-p", f"{packages}/lesson-1.0.dist-info"],
        volumes={"packages-ada": {"bind": "/home/jovyan", "mode": "rw"}},
        network_mode="none",
        remove=True,
    )
    hub = make_hub(
        IMAGES_OWN,
        "c.GPUSpawner.home_volume = 'packages-{username}'",
        "c.GPUSpawner.home_path = '/home/jovyan'",
    )
    hub.start_server("ada", {"gpus": 0})
    open_lab(page, hub, "ada")
    said = "Your packages are in lab. This server runs minimal, without them."
    notice(page, said).wait_for()
    picture(page, "lab-packages")


def test_tensorboard_has_a_tile_that_shows_it(make_hub, pytorch_image, page, picture):
    hub = make_hub(IMAGES_OWN, f"c.GPUSpawner.images = {{'torch': {pytorch_image[1]!r}}}")
    hub.start_server("ada", {"gpus": 0})
    open_lab(page, hub, "ada")
    page.locator(".jp-LauncherCard").filter(has_text="TensorBoard").click()
    shown = page.frame_locator("iframe[title=TensorBoard]")
    shown.get_by_text("No dashboards are active for the current data set.").first.wait_for()
    shown.get_by_text("/home/jovyan/runs").first.wait_for()
    picture(page, "lab-tensorboard")


def test_what_is_open_and_not_saved_is_saved_when_the_server_is_stopped(hub, engine, page):
    hub.start_server("ada", {"gpus": 0})
    inside(engine, "ada", "cd ~/work; echo begun > notes.txt; echo begun > shared.txt")
    open_lab(page, hub, "ada", "lab/tree/work/notes.txt")
    write(page, "mine, ")
    page.locator(".jp-DirListing-item").filter(has_text="shared.txt").dblclick()
    page.locator(".lm-mod-current").get_by_text("shared.txt").wait_for()
    write(page, "mine, ")
    # Somebody else, in a terminal: theirs isn't overwritten.
    inside(engine, "ada", "sleep 2; echo theirs > ~/work/shared.txt")
    hub.stop_server("ada")
    hub.start_server("ada", {"gpus": 0})
    kept = inside(engine, "ada", "cd ~/work; tail -n +1 *.txt")
    assert kept.split("\n\n") == [
        "==> notes.txt <==\nmine, begun",
        "==> shared (unsaved).txt <==\nmine, begun",
        "==> shared.txt <==\ntheirs",
    ]


def write(page, text):
    """Type at the beginning of the document that is in front."""
    editor = page.locator(".jp-FileEditor .cm-content:visible")
    editor.click()
    page.keyboard.press("Control+Home")
    page.keyboard.type(text)
    editor.get_by_text(text).wait_for()
