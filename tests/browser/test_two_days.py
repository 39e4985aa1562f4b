"""A student's two days and the next version, from the log-in on: with nothing lost.

In both languages, on a telephone where a page is the hub's, and by keyboard alone until the server
starts. The hub's clock is moved for the second day.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest

from ..support.browsers import assert_accessible
from ..support.clocks import Clock
from ..support.dashboards import LAB_MAY_ASK, lines
from ..support.hubs import IMAGES_OWN, PASSWORD, Hub, until
from ..support.looks import container_of, inside, labelled
from ..support.wheels import FROM_TEST, hand_over, wheel

pytestmark = [pytest.mark.engine, pytest.mark.browser, pytest.mark.thorough]

PHONE, DESK = {"width": 375, "height": 700}, {"width": 1100, "height": 700}
MINIMAL, OTHER = "gpuspawner/minimal:py3.11", "gpuspawner/other:1"
IMAGES = {
    "minimal": {"image": MINIMAL, "title": "Plain"},
    "other": {"image": OTHER, "title": "Next"},
}
# Long enough for JupyterLab to be there before the warning, which is given after half of it.
TERM_MINUTES = 4
LINES = (
    lines(),
    LAB_MAY_ASK,
    IMAGES_OWN,
    f"c.GPUSpawner.images = {IMAGES!r}",
    "c.GPUSpawner.home_volume = 'days-{username}'",
    "c.GPUSpawner.home_path = c.GPUSpawner.notebook_dir = '/home/jovyan'",
    f"c.GPUSpawner.default_hours = {TERM_MINUTES} / 60",
    "from gpuspawner.pages import TEMPLATES",
    "c.JupyterHub.template_paths = [TEMPLATES]",
)
# JupyterHub gives a service little of its environment.
SAME_CLOCK = "c.JupyterHub.services[0]['environment'] = {environment!r}"
WHEELS = dict([wheel("lesson", "answer = 42")])


@dataclass(frozen=True)
class Words:
    """What a student reads in a language, as patterns."""

    locale: str
    queue: str
    next_in_line: str
    kept: str
    left: str
    warning: str
    extend: str
    extended: str
    running: str
    stop: str
    off: str
    choose: str
    unseen: str


ENGLISH = Words(
    locale="en-GB",
    queue=r"Join the queue \(1st\)",
    next_in_line="You are next in line for 1 GPU.",
    kept="Kept when this server stops: your home (~). Gone then: everything else",
    left=r"A100 · ([1-4] min|less than 1 min) left",
    warning="when its time ends. Save your work",
    extend="Extend",
    extended="This server now ends at",
    running="running",
    stop="Stop",
    off="not running",
    choose="Choose and start",
    unseen="Your packages are in minimal. This server runs other, without them.",
)
CHINESE = Words(
    locale="zh-CN",
    queue=r"排队（第 1 位）",
    next_in_line="下一个就轮到您",
    kept="此服务器停止后会保留：主目录（~）。其余都会消失",
    left=r"A100 · 剩余 ([1-4] 分钟|不到 1 分钟)",
    warning="届时会被停止",
    extend="延长时间",
    extended="此服务器的使用时间已延长到",
    running="运行中",
    stop="停止",
    off="未运行",
    choose="选择并启动",
    unseen="您的软件包装在 minimal 中；此服务器运行的是 other，用不到它们。",
)


@pytest.fixture
def clock(tmp_path) -> Clock:
    """The hub's clock."""
    return Clock(tmp_path)


@pytest.fixture
def hub(make_hub, idle_host, clock, engine):
    """A hub with this clock, the dashboard, and two image versions."""
    made = engine.create_container(MINIMAL)["Id"]
    changes = ["ENV GPUSPAWNER_IMAGE_VERSION=other"]
    engine.commit(made, *OTHER.split(":"), changes=changes)
    engine.remove_container(made)
    environment = clock.environment(idle_host.environment)
    passed = ("DOCKER_", "GPUSPAWNER_", "LD_PRELOAD", "SHIFTED_CLOCK")
    kept = {name: value for name, value in environment.items() if name.startswith(passed)}
    yield make_hub(*LINES, SAME_CLOCK.format(environment=kept), environment=environment)
    engine.remove_image(OTHER, force=True)


class Student:
    """A student with a telephone and a desk, whose browser has a language."""

    def __init__(self, hub: Hub, engine: Any, tab: Any, name: str, words: Words, picture: Any):
        self.hub, self.engine, self.tab = hub, engine, tab
        self.name, self.words, self.picture = name, words, picture

    def look(self, name: str) -> None:
        """Look at a page of the hub's on the telephone: nothing sticks out."""
        self.tab.set_viewport_size(PHONE)
        self.picture(self.tab, f"days-{self.words.locale}-{name}")
        assert self.tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert_accessible(self.tab)

    def log_in(self) -> None:
        """Log in by keyboard alone."""
        self.tab.set_viewport_size(PHONE)
        self.tab.goto(f"{self.hub.url}/hub/login")
        self.tab.get_by_label("Username").wait_for()
        self.to("username")
        self.tab.keyboard.type(self.name)
        self.to("password")
        self.tab.keyboard.type(PASSWORD)
        self.tab.keyboard.press("Enter")

    def to(self, *names: str) -> str:
        """Press Tab until a field of these names has the focus, or a button of that kind."""
        focused = "document.activeElement"
        for _ in range(60):
            reached = self.tab.evaluate(f"{focused}.name || {focused}.type || {focused}.localName")
            if reached in names:
                return str(reached)
            self.tab.keyboard.press("Tab")
        raise AssertionError(f"no {names} can be reached by keyboard")

    def choose(self, **keys: str) -> None:
        """Fill in the form by keyboard alone, and send it.

        Args:
            keys: field -> the key that is pressed on it.
        """
        self.tab.locator("#gpuspawner-fresh time[datetime]").wait_for()
        for field, key in keys.items():
            self.to(field)
            self.tab.keyboard.press(key)
        self.to("submit")
        self.tab.keyboard.press("Enter")

    def wait_and_be_served(self, before: str) -> None:
        """Wait on the telephone, until somebody's server is stopped and one's own is there."""
        self.tab.locator("#gpuspawner-line", has_text=self.words.next_in_line).wait_for()
        self.look("waiting")
        self.hub.stop_server(before)

    def work(self) -> None:
        """Sit down at the desk, where JupyterLab is open, with what was open there last."""
        self.tab.wait_for_url(f"**/user/{self.name}/lab**")
        self.tab.set_viewport_size(DESK)
        self.tab.locator(".jp-LauncherCard:visible, .jp-Terminal:visible").first.wait_for()

    def type(self, command: str) -> str:
        """Run a command in a new terminal, typed as people do; return what it prints."""
        hand_over(self.engine, container_of(self.engine, self.name), WHEELS)
        terminals = self.tab.locator(".jp-Terminal:visible .xterm")
        if not terminals.count():
            cards = self.tab.locator(".jp-LauncherCard:visible")
            cards.filter(has_text="Terminal").first.click()
        terminals.first.click()
        self.tab.keyboard.type(f"{{ {command}; }} > /tmp/said 2>&1; touch /tmp/typed")
        self.tab.keyboard.press("Enter")
        typed = "rm /tmp/typed 2>/dev/null && echo yes"
        until(lambda: inside(self.engine, self.name, typed) == "yes", "it has run", 120)
        return inside(self.engine, self.name, "cat /tmp/said")

    def notice(self, text: str) -> Any:
        """A notification of JupyterLab's."""
        return self.tab.locator(".Toastify__toast").filter(has_text=text)

    def extend(self) -> None:
        """Wait for the warning, and ask for more time."""
        warning = self.notice(self.words.warning)
        warning.wait_for(timeout=60_000 * TERM_MINUTES)
        self.picture(self.tab, f"days-{self.words.locale}-warning")
        warning.get_by_role("button", name=self.words.extend).click()
        self.notice(self.words.extended).wait_for()

    def stop(self) -> None:
        """Stop the server on the home page, on the telephone and by keyboard."""
        self.tab.goto(f"{self.hub.url}/hub/home")
        state = self.tab.locator(".gs-state")
        state.filter(has_text=re.compile(rf"^\s*{self.words.running}\s*$")).wait_for()
        self.look("home")
        self.tab.get_by_role("button", name=self.words.stop, exact=True).focus()
        self.tab.keyboard.press("Enter")
        state.filter(has_text=self.words.off).wait_for()
        until(lambda: self.name not in labelled(self.engine), "it is gone", log=self.hub.log)

    def to_the_form(self) -> None:
        """Go on from the home page to the form, by keyboard."""
        self.look("home-off")
        self.tab.get_by_role("link", name=self.words.choose).focus()
        self.tab.keyboard.press("Enter")
        self.tab.wait_for_url(f"**/hub/spawn/{self.name}**")


@pytest.mark.parametrize("words", [ENGLISH, CHINESE], ids=["English", "Chinese"])
def test_a_student_s_two_days(hub, engine, browser, picture, clock, words):
    hub.start_server("ben", {"gpus": 4, "hours": 1})
    context = browser.new_context(locale=words.locale, viewport=PHONE, bypass_csp=True)
    context.set_default_timeout(90_000)
    ada = Student(hub, engine, context.new_page(), "ada", words, picture)

    # The first day, on which all GPUs are taken.
    ada.log_in()
    ada.tab.get_by_role("button", name=re.compile(words.queue)).wait_for()
    ada.look("form")
    ada.choose()
    ada.wait_and_be_served("ben")
    ada.work()
    ada.tab.locator(".gpuspawner-kept", has_text=words.kept).wait_for()
    picture(ada.tab, f"days-{words.locale}-launcher")
    item = ada.tab.locator(".gpuspawner-item", has_text=re.compile(words.left))
    item.wait_for()
    assert ada.type("nvidia-smi -L | wc -l; echo mine > notes.txt") == "1"
    picture(ada.tab, f"days-{words.locale}-terminal")
    ada.extend()
    assert ada.type(f"pip install {FROM_TEST} lesson") == ""
    ada.stop()

    # A day later: another GPU, and everything else is there.
    clock.set(24)
    ada.tab.reload()
    ada.to_the_form()
    ada.look("form-next-day")
    ada.choose(gpus="ArrowRight")
    ada.work()
    item.wait_for()
    see = "import lesson; print(lesson.answer)"
    said = ada.type(f"nvidia-smi -L | wc -l; cat notes.txt; python -c '{see}'")
    assert said.split() == ["2", "mine", "42"]
    ada.stop()

    # The other version has the files, and says that it hasn't the packages.
    ada.to_the_form()
    ada.choose(image="ArrowDown")
    ada.work()
    ada.notice(words.unseen).wait_for()
    picture(ada.tab, f"days-{words.locale}-other-version")
    said = ada.type(f"cat notes.txt; python -c '{see}'")
    assert said.startswith("mine\n")
    assert "No module named 'lesson'" in said
    ada.stop()
    context.close()
