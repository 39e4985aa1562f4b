"""Messages to users who are elsewhere: real Apprise, and a web server that takes them."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from tornado import web
from traitlets import TraitError
from traitlets.config import Config

from gpuspawner.gpus.model import GPU, Holder
from gpuspawner.i18n.languages import ENGLISH, Language, language_for
from gpuspawner.i18n.lazy_text import lazy_gettext
from gpuspawner.i18n.phrases import clock_time
from gpuspawner.leases.clock import Clock
from gpuspawner.leases.server_lease import ServerLease
from gpuspawner.notifications import addresses, notifier, sending
from gpuspawner.notifications.notifier import Notifier, problems
from gpuspawner.spawner import GPUSpawner

from ..support.messages import WebServer
from ..support.spawns import Hub, begin, waiting

WORDS = lazy_gettext("Your server runs, with %(gpus)s.", gpus="2 GPUs")


@pytest.fixture
def service() -> Iterator[WebServer]:
    one = WebServer()
    yield one
    one.close()


@pytest.fixture
def sender(caplog: pytest.LogCaptureFixture) -> Notifier:
    caplog.set_level(logging.DEBUG)
    return Notifier(logging.getLogger("hub"))


def server(
    urls: Any, user: str = "ada", name: str = "", language: Language = ENGLISH, link: str = ""
) -> Any:
    who = {"notify_urls": urls, "holder": Holder(user, name)}
    return SimpleNamespace(**who, language_seen=language, public_link=link)


async def test_a_message_is_in_the_language_and_at_the_address_of_its_user(service, sender):
    sender.tell(server([f"{service.address}/to/{{username}}"]), "turn", WORDS)
    where, link = [f"{service.address}/all"], "https://hub.example/user/ben/big"
    sender.tell(server(where, "ben", "big", language_for("zh-CN"), link), "stopped", WORDS)
    await sender.told()
    one, other = sorted(service.said(), reverse=True)
    assert one == ("/to/ada", "It's your turn", "Your server runs, with 2 GPUs.")
    title, message = other[1:]
    assert title not in ("", "Your server was stopped (big)")
    assert "big" in title
    assert message.splitlines()[1] == "https://hub.example/user/ben/big"
    assert "Your server" not in message


async def test_there_is_one_message_of_an_occasion_for_each_server(service, sender, monkeypatch):
    for occasion in ("idle", "idle", "end"):
        sender.tell(server([service.address]), occasion, WORDS)
    sender.tell(server([service.address], name="other"), "idle", WORDS)
    await sender.told()
    assert sorted(title for _, title, _ in service.said()) == [
        "Your server's GPUs do nothing",
        "Your server's GPUs do nothing (other)",
        "Your server's time is nearly over",
    ]
    sender.begin(Holder("ada"))  # another start
    for name in ("", "other"):
        sender.tell(server([service.address], name=name), "idle", WORDS)
    await sender.told()
    assert len(service.taken) == 4
    monkeypatch.setattr(notifier, "AGAIN_SECONDS", 0.0)
    sender.tell(server([service.address]), "idle", WORDS)
    await sender.told()
    assert len(service.taken) == 5


async def test_a_service_that_takes_nothing_is_logged_once_and_without_its_password(
    service, sender, caplog, monkeypatch
):
    monkeypatch.setattr(notifier, "AGAIN_SECONDS", 0.0)
    service.status = 500
    for _ in range(3):
        sender.tell(server([service.address]), "turn", WORDS)
        await sender.told()
    said = [each.getMessage() for each in caplog.records]
    assert [each for each in said if "json://…" in each] == [
        "Messages to users (c.GPUSpawner.notify_urls): json://… doesn't take a message; Apprise's "
        "own command tells more"
    ]
    assert not [each for each in said if "hunter2" in each]
    service.status = 200
    sender.tell(server([service.address]), "turn", WORDS)
    await sender.told()
    service.status = 500
    sender.tell(server([service.address]), "turn", WORDS)
    await sender.told()
    assert len([each for each in caplog.records if "json://…" in each.getMessage()]) == 2


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_function_gives_the_addresses_of_a_user(service, sender, is_async):
    def urls(spawner: Any) -> list[str]:
        return [f"{service.address}/{spawner.holder.user}-at-uni"]

    async def later(spawner: Any) -> list[str]:
        return urls(spawner)

    sender.tell(server(later if is_async else urls), "turn", WORDS)
    sender.tell(server(lambda spawner: None, "ben"), "turn", WORDS)
    await sender.told()
    assert [path for path, _, _ in service.said()] == ["/ada-at-uni"]


async def test_a_function_that_fails_is_logged_by_its_line_and_not_by_its_words(sender, caplog):
    def broken(spawner: Any) -> list[str]:
        raise RuntimeError("slack://hunter2")

    for urls in (broken, lambda spawner: ["hunter2"], lambda spawner: {"mailto://hunter2": 1}):
        sender._troubles.clear()
        sender._told.clear()
        sender.tell(server(urls), "turn", WORDS)
        await sender.told()
    said = [each.getMessage().partition("notify_urls): ")[2] for each in caplog.records]
    assert said[0].startswith(
        "the function failed with RuntimeError in test_notifications.py, line "
    )
    assert said[1:] == [
        "what the function returned: address 1 isn't an Apprise URL as mailto://…",
        "what the function returned: must be a list of Apprise's URLs, not dict",
    ]


@pytest.mark.parametrize(
    "name", ["ada,eve@evil.example", "a/b", "..", "a?to=eve", "名前", "a@b.example", "a b", "a%2Cb"]
)
async def test_no_name_adds_a_recipient_or_leaves_its_folder(name, service, sender, caplog):
    """Whoever may choose a name would choose where messages go, or whose are read."""
    both = [f"{service.address}/{{username}}", f"{service.address}/everybody"]
    sender.tell(server(both, name), "turn", WORDS)
    await sender.told()
    assert [path for path, _, _ in service.said()] == ["/everybody"]
    (said,) = [each.getMessage() for each in caplog.records if "letters" in each.getMessage()]
    assert "a function as notify_urls" in said


async def test_services_that_do_not_answer_hold_nothing_up(caplog, monkeypatch):
    monkeypatch.setattr(notifier, "SEND_SECONDS", 0.01)
    monkeypatch.setattr(notifier, "AGAIN_SECONDS", 0.0)
    stuck, calls = threading.Event(), []

    def hang(*message: Any) -> list[bool]:
        calls.append(message)
        stuck.wait()
        return [True]

    one = Notifier(logging.getLogger("hub"), hang)
    for _ in range(notifier.MAX_HANGING + 5):
        one.tell(server(["slow://service"]), "turn", WORDS)
        await one.told()
    assert len(calls) == notifier.MAX_HANGING
    assert [each.getMessage()[-60:] for each in caplog.records] == [
        "slow://… doesn't take a message; Apprise's own command tells more"[-60:]
    ]
    stuck.set()
    for thread in one._hanging:
        thread.join()
    one.tell(server(["slow://service"]), "turn", WORDS)
    await one.told()
    assert len(calls) == notifier.MAX_HANGING + 1


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (7, "notify_urls: must be a list of Apprise's URLs, not int"),
        (["mailto://ok", "hunter2"], "address 2 isn't an Apprise URL"),
        (["slack://hunter2/{raw_username}"], "(slack://…) has {raw_username}, and only {username}"),
        ([7], "address 1 isn't"),
    ],
)
def test_a_wrong_address_is_named_without_what_is_in_it(value, says):
    with pytest.raises(TraitError) as error:
        GPUSpawner(config=Config({"GPUSpawner": {"notify_urls": value}}))
    assert says in str(error.value)
    assert "hunter2" not in str(error.value)


def test_addresses_may_be_one_or_several_or_none():
    def given(value: Any) -> Any:
        return GPUSpawner(config=Config({"GPUSpawner": {"notify_urls": value}})).notify_urls

    assert given("json://a") == ["json://a"]
    assert given(["json://a", "json://{username}"]) == ["json://a", "json://{username}"]
    assert (given([]), given(len)) == ([], len)
    assert addresses.shown("MailTo://x:hunter2@y") == "mailto://…"


def test_what_is_missing_is_told_at_the_hub_s_start(monkeypatch):
    assert problems(None) == problems(["json://127.0.0.1/{username}"]) == problems(len) == []
    ((found, _),) = problems(["json://127.0.0.1", "slack://hunter2"])
    assert found == (
        "address 2 of c.GPUSpawner.notify_urls (slack://…) isn't one that Apprise takes"
    )
    monkeypatch.setattr(sending, "PACKAGE", "apprise_that_is_not_there")
    ((found, cure),) = problems(len)
    assert "the package apprise_that_is_not_there isn't installed" in found
    assert cure == "Run pip install 'gpuspawner[notify]'"
    assert problems(None) == []


async def test_without_the_package_nothing_is_sent_and_it_is_said_once(sender, caplog, monkeypatch):
    monkeypatch.setattr(sending, "PACKAGE", "apprise_that_is_not_there")
    for occasion in ("turn", "end"):
        sender.tell(server(["json://127.0.0.1:1"]), occasion, WORDS)
        await sender.told()
    said = [each.getMessage() for each in caplog.records if each.name == "hub"]
    assert [each.partition("urls): ")[2] for each in said] == [
        "the package apprise_that_is_not_there isn't installed"
    ]


# -- What a server's user is told of -------------------------------------------------------------


@pytest.fixture
async def hub() -> Hub:
    return Hub()


async def test_who_has_waited_is_told_that_the_start_failed_and_others_read_it(hub, service):
    one = hub.spawner(notify_urls=[service.address], longest_wait_minutes=0.0001)
    hub.occupy()
    await begin(one, gpus=2)
    with pytest.raises(web.HTTPError):
        await one.run_pre_spawn_hook()
    await hub.notifier.told()
    ((_, title, message),) = service.said()
    assert title == "Your server didn't start"
    assert message.startswith("You have waited for 2 GPUs for ")
    assert message.endswith("\nhttps://hub.example/user/ada/")
    # Who is refused at once is there.
    two = hub.spawner(notify_urls=[service.address], longest_wait_minutes=0)
    await begin(two, gpus=2)
    with pytest.raises(web.HTTPError):
        await two.run_pre_spawn_hook()
    await hub.notifier.told()
    assert len(service.taken) == 1


async def test_a_message_that_can_not_be_sent_fails_no_start(hub):
    def broken(spawner: Any) -> list[str]:
        raise RuntimeError

    one = hub.spawner(notify_urls=broken)
    hub.occupy()
    await begin(one, gpus=1)
    task = await waiting(one, hub)
    hub.free_all()
    await task
    assert one.attempt.has_waited
    one.tell("turn", WORDS)
    await hub.notifier.told()
    one.user.public_url = None
    one.tell("end", WORDS)
    assert not await asyncio.sleep(0)


class Hours:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.clock = Clock(lambda: self.now, lambda: self.now, lambda: "boot")


async def test_a_user_is_told_of_the_end_of_idle_gpus_and_of_a_stop(hub, service, monkeypatch):
    one, at = hub.spawner(notify_urls=[service.address], idle_minutes=30), Hours()
    one.lease = ServerLease(one, at.clock)
    one.lease.begin_term(4 * 3600)
    one.lease.hold(["GPU-0"])

    async def stopped() -> None:
        one.lease.end()

    monkeypatch.setattr(one, "stop_through_hub", stopped)
    idle = [GPU("GPU-0", 0, "A100", 40960, 100, 0)]

    async def passes(minutes: float) -> list[tuple[str, str]]:
        before = len(service.taken)
        at.now += 60 * minutes
        one.lease.measure(idle)
        await one.lease.enforce()
        await hub.notifier.told()
        return [(title, text.partition("\n")[0]) for _, title, text in service.said()[before:]]

    def clock(minutes: float) -> str:
        return clock_time(at.now + 60 * minutes)

    assert await passes(0) == []
    ((title, text),) = await passes(31)
    assert title == "Your server's GPUs do nothing"
    assert text.startswith(f"Your server is stopped at {clock(10)}, unless its GPUs are used by")
    one.lease.keep_alive()
    idle = []
    ((title, text),) = await passes(4 * 60 - 31 - 15)
    assert title == "Your server's time is nearly over"
    assert text.startswith(f"Your server is stopped at {clock(15)}, in 15 minutes. Save your work")
    await one.lease.stop_for("user:boss", "new driver", 5)
    assert await passes(1) == [
        (
            "Your server is stopped soon",
            f"An administrator stops your server at {clock(4)}: new driver. Save your work before.",
        )
    ]
    ((title, text),) = await passes(5)
    assert title == "Your server was stopped"
    assert text.endswith(": new driver. Your files are kept.")


async def test_the_language_outlives_a_restart_of_the_hub(hub):
    one = hub.spawner()
    one.language_seen = language_for("zh-CN")
    assert "gpuspawner" not in one.get_state()
    one.lease.notice = WORDS
    other = hub.spawner()
    other.load_state(one.get_state())
    assert other.language_seen.tag == "zh-CN"
