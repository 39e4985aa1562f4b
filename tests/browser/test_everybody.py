"""Each page in its states for everybody: both languages, light and dark, a phone, a screen reader.

axe-core looks for what WCAG 2.2 AA forbids and a program can see; the screenshots are for people.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import pytest
from docker.types import DeviceRequest

from gpuspawner.leases.labels import LABEL_GPUS, LABEL_UNTIL, LABEL_USER
from gpuspawner.simulation.state import State, describe

from ..support import dashboards
from ..support.browsers import assert_accessible, log_in
from ..support.dashboards import ADMIN_PASSWORD, Visitor
from ..support.hubs import PASSWORD, Hub, until
from ..support.looks import container_of

pytestmark = [pytest.mark.engine, pytest.mark.browser]

MINIMAL = "gpuspawner/minimal:py3.11"
IMAGES = {
    "minimal": {"image": MINIMAL, "title": "Plain", "python": "3.11", "size": "1 GB"},
    "NEXT": {"image": MINIMAL, "title": "Next", "cuda": "13.2", "min_driver": "999"},
    "old": {"image": MINIMAL, "title": "Old", "cuda": "12.6", "deprecated": "2027"},
    "gone": {"image": "gpuspawner/gone:1", "title": "Gone"},
    "broken": {"image": "gpuspawner/broken:1", "title": "Broken"},
}
LANGUAGES = {"en": "en-GB", "zh-CN": "zh-CN"}
# Names that are the same in every language, those of this file's among them, and NVML's own words.
NAMES = r"GPUs?|CUDA|Python|NVIDIA|NVML|UUID|MIG|MiB|GB|JupyterHub|JupyterLab|Docker|Engine"
NAMES += r"|A100-SXM4-40GB|Tesla"
NAMES += r"|Plain|Next|NEXT|Old|Gone|Broken|UTC|ada|ben|boss|eve|fan|nvidia-smi|Unknown Error"
NAMES += r"|SSH|VS Code|second|third"
NAMES += r"|jupyter-fay|fay|zoe|docker stop|ML|JSON|ics|Etc"
# Hours that no form looks ahead to.
LESSON = date.today() + timedelta(days=20)
COURSES = {
    "ml": {
        "title": "ML",
        "group": "nobody",
        "reserved": [{"begin": f"{LESSON}T10:00", "end": "14:00", "gpus": 4}],
    }
}


@pytest.fixture(scope="module")
def _hub(hubs_of_run, minimal_image) -> Iterator[Hub]:
    client, _ = minimal_image
    words = 'ENTRYPOINT ["bash", "-c", "sleep 3; echo \'last words\'; exit 3"]'
    client.images.build(fileobj=_dockerfile(words), tag="gpuspawner/broken:1", rm=True)
    hub = hubs_of_run(
        dashboards.lines(),
        f"c.GPUSpawner.images = {IMAGES!r}",
        f"c.GPUSpawner.courses = {COURSES!r}",
        "c.GPUSpawner.pull_policy = 'never'",
        "c.GPUSpawner.user_gpu_limit = 3",
        "c.GPUSpawner.mem_limit = '16G'",
        "c.GPUSpawner.ssh_path = 'sshd'",
        "c.GPUSpawner.unknown_server_minutes = 0.05",
        "from gpuspawner.pages import TEMPLATES",
        "c.JupyterHub.template_paths = [TEMPLATES]",
    )
    yield hub
    hub.stop()


def _dockerfile(last: str) -> Any:
    import io

    return io.BytesIO(f"FROM {MINIMAL}\n{last}\n".encode())


@pytest.fixture
def hub(idle_host, _hub) -> Iterator[Hub]:
    yield _hub
    _hub.stop_all_servers()


@pytest.fixture
def readers(browser, hub) -> Iterator[Any]:
    """Return tag -> a tab of somebody's whose browser has that language."""
    contexts = []

    def log_in_as(user: str) -> dict[str, Any]:
        tabs = {}
        for tag, locale in LANGUAGES.items():
            # axe is a script of the test's, which the pages' own policy would refuse.
            context = browser.new_context(locale=locale, bypass_csp=True)
            context.set_default_timeout(60_000)
            contexts.append(context)
            tabs[tag] = context.new_page()
            log_in(tabs[tag], hub, user, ADMIN_PASSWORD if user == "boss" else PASSWORD)
            tabs[tag].wait_for_load_state("load")
        return tabs

    yield log_in_as
    for context in contexts:
        context.close()


@pytest.fixture
def looked_at(picture, thorough) -> Any:
    """Look at a page in both languages, as it is after the block.

    Each language is seen light and dark where all is looked at, else one light and the other dark.
    """
    schemes = {"en": ["light"], "zh-CN": ["dark"]}
    if thorough:
        schemes = {tag: ["light", "dark"] for tag in LANGUAGES}

    @contextmanager
    def look(tabs: dict[str, Any], name: str, root: str) -> Iterator[None]:
        yield
        for tag, tab in tabs.items():
            for scheme in schemes[tag]:
                tab.emulate_media(color_scheme=scheme, reduced_motion="reduce")
                tab.locator(f"html[data-bs-theme={scheme}]").wait_for()
                tab.set_viewport_size({"width": 1100, "height": 700})
                assert_accessible(tab)
                picture(tab, f"{name}-{tag}-{scheme}")
            tab.set_viewport_size({"width": 375, "height": 700})
            picture(tab, f"{name}-{tag}-phone")
            assert tab.evaluate("document.documentElement.scrollWidth") <= 375
            tab.set_viewport_size({"width": 1100, "height": 700})
            tab.emulate_media(color_scheme="light")
        text = tabs["zh-CN"].locator(root).first.inner_text()
        assert re.search("[\u4e00-\u9fff]", text)
        assert re.findall(r"[A-Za-z]{2,}", re.sub(rf"\b({NAMES})\b", "", text)) == []
        assert not re.search("[\u4e00-\u9fff]", tabs["en"].locator(root).first.inner_text())

    return look


def form(hub: Hub, tabs: dict[str, Any]) -> None:
    for tab in tabs.values():
        tab.goto(f"{hub.url}/hub/spawn/ada")
        tab.locator("#gpuspawner-fresh time[datetime]").wait_for()


def board(hub: Hub, tabs: dict[str, Any]) -> None:
    for tab in tabs.values():
        tab.goto(f"{hub.url}/services/gpus/")
        tab.locator("#queue").wait_for()


def test_the_history(hub, readers, looked_at):
    tabs = readers("ada")
    hub.start_server("ada", {"gpus": 1, "hours": 1, "image": "minimal"})
    with looked_at(tabs, "history", "main"):
        for tab in tabs.values():
            tab.goto(f"{hub.url}/services/gpus/")
            # By the keyboard, from the card of a GPU.
            tab.locator("#gpu-0 .gs-measures a").focus()
            tab.keyboard.press("Enter")
            tab.locator("svg.gs-curve").first.wait_for()
            assert tab.locator("svg.gs-curve").count() == 1
            for summary in tab.locator("main summary").all():
                summary.focus()
                tab.keyboard.press("Enter")


def test_the_form(hub, idle_host, readers, looked_at):
    tabs = readers("ada")
    with looked_at(tabs, "form-free", ".container:has(#gpuspawner)"):
        form(hub, tabs)
    with looked_at(tabs, "form-taken", ".container:has(#gpuspawner)"):
        hub.start_server("ben", {"gpus": 3, "hours": 1, "image": "minimal"})
        hub.start_server("eve", {"gpus": 1, "hours": 2, "image": "minimal"})
        form(hub, tabs)
    hub.stop_all_servers()
    before = idle_host.read()
    sick = tuple(
        replace(gpu, fault="lost") if number == 0 else gpu for number, gpu in enumerate(before.gpus)
    )
    idle_host.change(lambda state: replace(state, gpus=sick))
    with looked_at(tabs, "form-sick", ".container:has(#gpuspawner)"):
        form(hub, tabs)
        tabs["zh-CN"].get_by_text("它已从总线上掉线").wait_for()
    idle_host.write(replace(before, fault="unknown"))
    with looked_at(tabs, "form-no-nvml", ".container:has(#gpuspawner)"):
        form(hub, tabs)
        tabs["zh-CN"].get_by_text("可以启动不带 GPU 的服务器。").wait_for()
    idle_host.write(describe([]))
    with looked_at(tabs, "form-empty", ".container:has(#gpuspawner)"):
        form(hub, tabs)
    idle_host.write(replace(describe([("T4", 2), ("A100-40GB", 6)]), loads=before.loads + 1))
    with looked_at(tabs, "form-models", ".container:has(#gpuspawner)"):
        form(hub, tabs)
        tabs["zh-CN"].get_by_text("GPU 型号").wait_for()


@pytest.mark.thorough
def test_the_form_again_where_a_choice_was_refused(hub, readers, looked_at):
    tabs = readers("ada")
    with looked_at(tabs, "form-refused", ".container:has(#gpuspawner)"):
        form(hub, tabs)
        for tab in tabs.values():
            tab.locator(".gs-folded > summary").first.click()
            tab.locator("input[value=NEXT]").check()
            tab.locator("input[name=gpus][value='1']").check()
            tab.locator("button[type=submit]").click()
            tab.locator(".spawn-error-msg").wait_for()


@pytest.mark.thorough
def test_the_page_of_a_start(hub, readers, looked_at):
    tabs = readers("ada")
    hub.start_server("ben", {"gpus": 3, "hours": 1, "image": "minimal"})
    hub.start_server("eve", {"gpus": 1, "hours": 2, "image": "minimal"})
    with looked_at(tabs, "waiting", "#gpuspawner-starting"):
        assert hub.spawn("ada", {"gpus": 2, "image": "minimal"}).status_code == 202
        for tab in tabs.values():
            tab.goto(f"{hub.url}/hub/spawn-pending/ada")
            tab.locator("#gpuspawner-line:not(:empty)").wait_for()
    hub.stop_all_servers()
    assert hub.spawn("ada", {"gpus": 2, "image": "broken"}).status_code == 202
    for tab in tabs.values():
        tab.goto(f"{hub.url}/hub/spawn-pending/ada")
    with looked_at(tabs, "failed", "#gpuspawner-failed p >> nth=0"):
        tabs["en"].get_by_text("The server stopped while starting (exit 3). Its last").wait_for()
        tabs["zh-CN"].get_by_text("服务器在启动时停止（退出码 3）。它最后的输出：").wait_for()
    with looked_at(tabs, "failed-again", "h1"):
        for tab in tabs.values():
            tab.reload()
        tabs["zh-CN"].get_by_text("返回选择页面").wait_for()
    with looked_at(tabs, "not-running", "h1"):
        hub.start_server("ada", {"gpus": 0, "image": "minimal"})
        hub.stop_server("ada")
        for tab in tabs.values():
            tab.goto(f"{hub.url}/hub/user/ada/")
            tab.locator("#start").wait_for()


@pytest.mark.thorough
def test_the_home_page(hub, readers, looked_at, picture):
    tabs = readers("ada")
    visitor = Visitor(hub, "boss")

    def home() -> None:
        for tab in tabs.values():
            tab.goto(f"{hub.url}/hub/home")
            tab.locator("#gpuspawner-servers section").first.wait_for()

    with looked_at(tabs, "home-off", "#gpuspawner-home"):
        home()
    hub.start_server("ben", {"gpus": 2, "hours": 1, "image": "minimal"})
    hub.start_server("ada", {"gpus": 1, "hours": 1, "image": "minimal"})
    hub.start_server("ada", {"gpus": 0, "image": "minimal"}, "third")
    hub.stop_server("ada", "third")
    assert hub.spawn("ada", {"gpus": 2, "image": "minimal"}, "second").status_code == 202
    until(lambda: visitor.status()["servers"], "it is seen", log=hub.log)
    visitor.press(do="stop", user="ada", server="", why="fan", when="10")
    with looked_at(tabs, "home", "#gpuspawner-home"):
        home()
    tab = tabs["en"]
    tab.locator("#gpuspawner-ssh summary").click()
    assert_accessible(tab)
    picture(tab, "home-ssh")
    visitor.press(do="stop", user="ada", server="", why="fan")
    with looked_at(tabs, "home-stopped", "#gpuspawner-home"):
        home()
        tabs["zh-CN"].get_by_text("管理员已在").wait_for()


@pytest.mark.thorough
def test_the_home_page_of_who_gets_a_gpu_while_the_server_runs(hub, readers, looked_at):
    tabs = readers("ada")
    tab = tabs["en"]

    def home(unfold: bool = False) -> None:
        for each in tabs.values():
            each.goto(f"{hub.url}/hub/home")
            each.locator("#gpuspawner-servers section").first.wait_for()
            if unfold:
                each.locator(".gs-switch summary").click()

    hub.start_server("ben", {"gpus": 3, "hours": 1, "image": "minimal"})
    hub.start_server("eve", {"gpus": 1, "hours": 1, "image": "minimal"})
    hub.start_server("ada", {"gpus": 0, "image": "minimal"})
    with looked_at(tabs, "home-ask", "#gpuspawner-home"):
        home(unfold=True)
    tab.get_by_label("How many?").select_option("1")
    tab.get_by_role("button", name="Get GPUs").focus()
    tab.keyboard.press("Enter")
    tab.get_by_text("You are next in line for 1 GPU.").wait_for()
    with looked_at(tabs, "home-asked", "#gpuspawner-home"):
        home()
    hub.stop_server("eve")
    # The page finds out by itself.
    tab.get_by_text("1 GPU is reserved for it until").wait_for()
    with looked_at(tabs, "home-offer", "#gpuspawner-home"):
        home()
    tab.get_by_role("button", name="Switch now").focus()
    tab.keyboard.press("Enter")
    tab.locator(".gs-says", has_text="GPU 3").wait_for()
    with looked_at(tabs, "home-give-back", "#gpuspawner-home"):
        home(unfold=True)


def strangers(engine: Any, uuid: str) -> None:
    """Start a server with the hub's label that it doesn't know, and a container past all hubs."""
    bears = engine.inspect_container(container_of(engine, "ada"))["Config"]["Labels"]
    label = {**bears, LABEL_USER: "fay", LABEL_GPUS: "", LABEL_UNTIL: "4000000000"}
    request = DeviceRequest(device_ids=[uuid], capabilities=[["gpu"]])
    host = engine.create_host_config(device_requests=[request])
    for name, more in (("jupyter-fay", {"labels": label}), ("zoe", {"host_config": host})):
        engine.start(engine.create_container(MINIMAL, ["sleep", "1000"], name=name, **more)["Id"])


@pytest.mark.thorough
def test_the_dashboard(hub, idle_host, readers, looked_at, engine):
    ada, boss = readers("ada"), readers("boss")
    with looked_at(ada, "dashboard-free", "body"):
        board(hub, ada)
    hub.start_server("ada", {"gpus": 1, "hours": 1, "image": "minimal"})
    hub.start_server("ben", {"gpus": 2, "hours": 2, "image": "minimal"})
    assert hub.spawn("eve", {"gpus": 2, "image": "minimal"}).status_code == 202
    visitor = Visitor(hub, "boss")
    until(lambda: visitor.status()["servers"], "they are seen", log=hub.log)
    visitor.press(do="stop", user="ada", server="", why="fan", when="10")
    free = [gpu["uuid"] for gpu in visitor.status()["gpus"] if gpu["state"] == "free"]
    visitor.press(do="out-of-service", gpu=free[0], why="fan")
    strangers(engine, free[0])
    until(lambda: visitor.status()["orphans"], "the hub tells of it", log=hub.log)
    with looked_at(ada, "dashboard-user", "body"):
        board(hub, ada)
    with looked_at(boss, "dashboard-administrator", "body"):
        board(hub, boss)
        for tab in boss.values():
            tab.locator("#outsiders", has_text="zoe").wait_for()
            tab.locator("#orphans summary").click()
    with looked_at(boss, "dashboard-stop", "body"):
        board(hub, boss)
        for tab in boss.values():
            tab.locator(".gs-gpu .gs-more summary").first.click()
            tab.locator("input[name=when]").first.wait_for()
    hub.stop_all_servers()
    before = idle_host.read()
    idle_host.write(replace(before, fault="unknown"))
    with looked_at(ada, "dashboard-no-nvml", "body"):
        board(hub, ada)
        tabs = [tab.locator("#trouble .alert") for tab in ada.values()]
        for alert in tabs:
            alert.wait_for()
    visitor.press(do="in-service", gpu=free[0])
    idle_host.write(State())
    with looked_at(ada, "dashboard-no-gpu", "body"):
        board(hub, ada)
        until(lambda: _without_gpus(ada), "it shows none")


def _without_gpus(tabs: dict[str, Any]) -> bool:
    for tab in tabs.values():
        tab.reload()
    return all(tab.locator(".gs-gpu").count() == 0 for tab in tabs.values())


def test_the_form_by_keyboard_alone(hub, readers):
    # Nobody who has chosen before: what was chosen last is what the form begins with.
    tab = readers("kim")["en"]
    tab.goto(f"{hub.url}/hub/spawn/kim")
    tab.locator("#gpuspawner-fresh time[datetime]").wait_for()
    reached = []
    tab.locator("#gpuspawner input:checked").first.focus()
    for _ in range(12):
        focused = "document.activeElement"
        reached.append(tab.evaluate(f"{focused}.name || {focused}.type || {focused}.localName"))
        if reached[-1] == "gpus":
            tab.keyboard.press("ArrowRight")
            tab.get_by_role("status").filter(has_text="Starts now, with 2 GPUs.").wait_for()
        if reached[-1] == "submit":
            break
        tab.keyboard.press("Tab")
    assert [*dict.fromkeys(reached)] == ["image", "summary", "gpus", "hours", "submit"]
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/user/kim/**")


@pytest.mark.thorough
def test_an_unknown_server_is_stopped_by_keyboard_alone(hub, readers, engine):
    hub.start_server("ada", {"gpus": 1, "hours": 1, "image": "minimal"})
    visitor = Visitor(hub, "boss")
    strangers(engine, visitor.status()["gpus"][3]["uuid"])
    until(lambda: visitor.status()["orphans"], "the hub tells of it", log=hub.log)
    tab = readers("boss")["en"]
    board(hub, {"en": tab})
    tab.locator("#orphans summary").focus()
    tab.keyboard.press("Enter")
    tab.get_by_role("button", name="Stop the server").wait_for()
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    tab.get_by_text("The server stops, once what runs in it has saved.").wait_for()
    assert visitor.status()["orphans"] == []


def test_the_dashboard_by_keyboard_alone(hub, readers):
    hub.start_server("ada", {"gpus": 1, "hours": 1, "image": "minimal"})
    tab = readers("ada")["en"]
    board(hub, {"en": tab})
    tab.get_by_role("button", name="Extend").wait_for()
    tab.locator("body").press("Tab")
    for _ in range(30):
        if tab.evaluate("document.activeElement.textContent.trim()") == "Stop…":
            break
        tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    tab.get_by_role("button", name="Stop the server").wait_for()
    tab.keyboard.press("Escape")
    tab.get_by_role("button", name="Stop the server").wait_for(state="hidden")
    assert tab.evaluate("document.activeElement.textContent.trim()") == "Stop…"
    tab.keyboard.press("Enter")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    tab.get_by_text("The server stops, once what runs in it has saved.").wait_for()


def test_the_week(hub, readers, looked_at):
    hub.start_server("ada", {"gpus": 1, "hours": 2, "image": "minimal"})
    hub.start_server("ben", {"gpus": 3, "hours": 8, "image": "minimal"})
    hub.spawn("eve", {"gpus": 1, "hours": 4, "image": "minimal"})
    for user in ("ada", "boss"):
        tabs = readers(user)
        with looked_at(tabs, f"week-{user}", "main"):
            for tab in tabs.values():
                tab.goto(f"{hub.url}/services/gpus/")
                tab.get_by_role("navigation").locator("a[href$=week]").click()
                tab.locator(".gs-week-bar.gs-week-booking").wait_for()
                assert tab.locator(".gs-week-bar.gs-week-lease").count() == 3 + (user == "boss")
                assert tab.locator(".gs-week-bar.gs-week-yours").count() == (user == "ada")
        with looked_at(tabs, f"week-reserved-{user}", "main"):
            for tab in tabs.values():
                tab.goto(f"{hub.url}/services/gpus/week?from={LESSON - timedelta(days=2)}")
                tab.locator(".gs-week-bar.gs-week-reserved").wait_for()
                assert tab.get_by_role("row").filter(has_text="ML").count() == 1
        # On a phone the picture is wider than the page, and the keyboard moves it.
        tab = tabs["en"]
        tab.set_viewport_size({"width": 375, "height": 700})
        picture = tab.get_by_role("region", name="The week as a picture")
        picture.focus()
        tab.keyboard.press("ArrowRight")
        tab.wait_for_function("document.activeElement.scrollLeft > 0")
