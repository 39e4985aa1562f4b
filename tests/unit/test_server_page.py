"""What JupyterHub's pages say of one server: its place, its choice, and what else can be done."""

from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs

import pytest

from gpuspawner.gpus.machine_names import MachineNames
from gpuspawner.gpus.model import GPU, Holder, Node, Request
from gpuspawner.gpus.names import gpu_names
from gpuspawner.i18n.languages import LOG, language_for
from gpuspawner.leases.labels import ServerRecord, labels
from gpuspawner.scheduling.phrases import asked_words, turn_words, while_away_words
from gpuspawner.scheduling.plan import QueuedRequest, Turn
from gpuspawner.settings import bytes_of

from ..support.paths import ROOT
from ..support.spawns import Hub, begin, waiting

CHINESE = language_for("zh-CN")
IMAGES = {"plain": {"image": "ref/plain", "title": "Plain & simple"}}


@pytest.fixture
async def hub() -> Hub:
    return Hub()


async def waits(hub: Hub, **choice: Any) -> Any:
    """Return a spawner that waits in the queue."""
    hub.occupy()
    one = hub.spawner(images=IMAGES, default_hours=4)
    await begin(one, **choice)
    return one, await waiting(one, hub)


@pytest.mark.parametrize(
    ("place", "of", "said"),
    [
        (1, 1, "You are next in line for 2 GPUs. Expected any moment."),
        (1, 2, "You are next in line for 2 GPUs; 1 other waits after you. Expected any moment."),
        (1, 6, "You are next in line for 2 GPUs; 5 others wait after you. Expected any moment."),
        (3, 6, "You are 3rd of 6 in line for 2 GPUs. Expected any moment."),
    ],
)
def test_a_place_is_one_of_so_many(place: int, of: int, said: str) -> None:
    queued = QueuedRequest(Holder("ada"), Request("plain", 2), 0.0)
    assert turn_words(Turn(queued, place, time.time(), of=of)) == said


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request("x", 2, seconds=14400), "You asked for 2 GPUs, image Plain, 4 hours."),
        (Request("x", 1, "Tesla T4"), "You asked for 1 Tesla T4 GPU, image Plain."),
        (Request("x", 0), "You asked for no GPU, image Plain."),
    ],
)
def test_what_was_asked_for(request_: Request, said: str) -> None:
    assert asked_words(request_, "Plain") == said
    assert asked_words(request_, "") == said.replace(", image Plain", "")


def test_what_happens_while_nobody_is_there() -> None:
    stays = "You may close this page: you keep your place, and your server starts when it is your"
    assert while_away_words(Request("x", 1)) == f"{stays} turn."
    begins = "Its 4 hours begin then, whether you are here or not."
    assert while_away_words(Request("x", 1, seconds=14400)) == f"{stays} turn. {begins}"


async def test_a_server_that_waits_says_its_place_and_its_choice_with_the_image_s_title(hub):
    one, task = await waits(hub, gpus=2)
    assert (one.page.place["place"], one.page.place["nth"]) == (1, "1st")
    assert one.page.place["line_said"] == {"zh-CN": CHINESE.say(one.page.place["line"])}
    assert one.page.asked == "You asked for 2 GPUs, image Plain & simple, 4 hours."
    assert one.page.while_away.endswith("Its 4 hours begin then, whether you are here or not.")
    assert parse_qs(one.page.link_without_gpus()) == {"opt-gpus": ["0"], "opt-image": ["plain"]}
    hub.free_all()
    await task
    assert one.page.place is None
    assert one.page.asked


async def test_one_that_never_started_says_nothing(hub):
    page = hub.spawner().page
    assert (page.place, page.asked, page.while_away, page.steps) == (None, "", "", [])


@pytest.mark.parametrize(
    ("named", "limit", "allowed", "name"),
    [
        ([], 0, True, "without-gpu"),
        (["a"], 2, True, "without-gpu"),
        (["a", "b"], 2, True, ""),
        (["a", "without-gpu"], 2, True, "without-gpu"),
        ([], 0, False, ""),
    ],
)
async def test_another_server_is_offered_where_there_is_room_for_one(
    hub, named, limit, allowed, name
):
    one = hub.spawner()
    servers = {each: SimpleNamespace(name=each) for each in ["", *named]}
    one.user.orm_user = SimpleNamespace(orm_spawners=servers)

    class Handler:
        current_user = one.user
        allow_named_servers = allowed

        async def get_current_user_named_server_limit(self) -> int:
            return limit

        def static_url(self, path: str) -> str:
            return path

    assert await one.page.meanwhile(Handler().static_url) == name
    # Somebody else who looks at the page has another limit.
    Handler.current_user = None
    assert await one.page.meanwhile(Handler().static_url) == ""


def page_request(user: Any, **headers: str) -> Any:
    """Return the `static_url` of a page that somebody has opened, with headers."""

    class Handler:
        current_user = user
        request = SimpleNamespace(headers=headers)

        def static_url(self, path: str) -> str:
            return path

    return Handler().static_url


@pytest.mark.parametrize(
    ("header", "own", "kept"),
    [
        ("X-GPUSpawner-Change", True, True),
        ("X-GPUSpawner-Change", False, False),
        ("X", True, False),
    ],
)
async def test_the_place_is_kept_for_who_has_said_that_they_change_their_choice(
    hub, header, own, kept
):
    one, task = await waits(hub, gpus=2)
    since = one.attempt.since
    static_url = page_request(one.user if own else None, **{header: "1"})
    assert one.page.hear_of_change(static_url) == ""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    place = hub.queue.kept_place(one.holder)
    assert (place.since if place else None) == (since if kept else None)
    one.clear_state()
    await begin(one, gpus=1)
    assert (one.attempt.since == since) is kept


async def test_what_was_said_long_ago_keeps_no_place(hub, monkeypatch):
    one, task = await waits(hub, gpus=2)
    one.page.hear_of_change(page_request(one.user, **{"X-GPUSpawner-Change": "1"}))
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 31)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert hub.queue.kept_place(one.holder) is None


# -- A server on the home page ---------------------------------------------------------------------


def opened(one: Any, host: str = "hub.example", protocol: str = "https") -> Any:
    """Return the `static_url` of a page that a server's user has opened under some address."""

    class Handler:
        current_user = one.user
        request = SimpleNamespace(headers={}, host=host, protocol=protocol)

        def static_url(self, path: str) -> str:
            return path

    return Handler().static_url


def at(one: Any, url: str, name: str = "") -> Any:
    """Have JupyterHub's user say where a server is."""
    one.orm_spawner = SimpleNamespace(name=name, server=None)
    one.user.server_url = lambda server: url
    return one


async def test_the_gpus_of_a_server_have_the_dashboard_s_names(hub):
    one = hub.spawner()
    assert await one.page.gpus() == ""
    one.lease.hold({"GPU-1"})
    assert await one.page.gpus() == "GPU 1 (A100)"
    one.lease.hold({"GPU-0", "GPU-1"})
    assert await one.page.gpus() == "GPU 0, GPU 1 (A100)"
    # What the driver doesn't see now is counted all the same.
    one.lease.hold({"GPU-0", "GPU-7"})
    assert await one.page.gpus() == "2 GPUs"


def test_gpus_of_several_nodes_and_models_are_told_apart() -> None:
    gpus = [GPU("a", 0, "A100", node="p"), GPU("b", 1, "T4", node="p"), GPU("c", 2, "A100")]
    alone, two = MachineNames(()), MachineNames((Node("p", gpus=(gpus[0],)), Node("", gpus=gpus)))
    said = gpu_names(gpus[:2], two)
    assert LOG.say(said) == "p · GPU 0 (A100), p · GPU 1 (T4)"
    number = said.split()[1]
    assert said == f"machine {number} · GPU 0 (A100), machine {number} · GPU 1 (T4)"
    assert gpu_names(gpus, alone) == "GPU 0, GPU 2 (A100), GPU 1 (T4)"
    assert gpu_names([], alone) == ""


@pytest.mark.parametrize(
    ("pending", "runs", "state"),
    [
        (None, False, "stopped"),
        (None, True, "running"),
        ("check", True, "running"),
        ("spawn", False, "starting"),
        ("stop", True, "stopping"),
    ],
)
async def test_the_state_of_a_server(hub, monkeypatch, pending, runs, state):
    one = hub.spawner()
    monkeypatch.setattr(type(one), "pending", pending)
    monkeypatch.setattr(type(one), "server", SimpleNamespace() if runs else None)
    assert one.page.state == state


async def test_a_server_that_waits_is_waiting(hub, monkeypatch):
    one, task = await waits(hub, gpus=2)
    monkeypatch.setattr(type(one), "pending", "spawn")
    assert one.page.state == "waiting"
    task.cancel()


async def test_the_image_of_a_server_is_known_after_a_restart_of_the_hub(hub):
    one = hub.spawner(images=IMAGES)
    await begin(one, gpus=0)
    assert one.page.image == "Plain & simple"
    again = hub.spawner(images=IMAGES)
    again.load_state(json.loads(json.dumps(one.get_state())))
    assert again.page.image == "Plain & simple"
    assert again.get_state()["gpuspawner"]["image"] == "Plain & simple"
    again.clear_state()
    assert again.page.image == ""


@pytest.mark.parametrize(
    ("url", "name", "alias", "found"),
    [
        ("/user/ada/", "", "gpus", "wss://hub.example/user/ada/sshd"),
        ("/jupyter/user/ada/", "", "gpus", "wss://hub.example/jupyter/user/ada/sshd"),
        # SSH reads a per cent sign as one of its own.
        ("/user/a%20b/", "", "gpus", "wss://hub.example/user/a%%20b/sshd"),
        ("/user/ada/my-2nd/", "my-2nd", "gpus-my-2nd", "wss://hub.example/user/ada/my-2nd/sshd"),
        ("/user/ada/x%20%22y/", 'x "y', "gpus-x-y", "wss://hub.example/user/ada/x%%20%%22y/sshd"),
        ("https://ada.hub.example/user/ada/", "", "gpus", "wss://ada.hub.example/user/ada/sshd"),
    ],
)
async def test_the_lines_for_ssh_are_those_of_the_user_and_the_server(hub, url, name, alias, found):
    one = at(hub.spawner(ssh_path="sshd"), url, name)
    lines = one.page.ssh_lines(opened(one)).splitlines()
    assert lines[0] == f"Host {alias}"
    assert lines[-1].endswith(f'-H="Authorization: token TOKEN" asyncstdio: {found}')


async def test_the_lines_for_ssh_are_as_the_page_was_opened_and_as_the_handbook_s(hub):
    one = at(hub.spawner(ssh_path="sshd"), "/user/NAME/")
    assert "ws://10.0.0.7:8000/user/" in one.page.ssh_lines(opened(one, "10.0.0.7:8000", "http"))
    handbook = (ROOT / "docs" / "how-to" / "ssh.md").read_text()
    assert one.page.ssh_lines(opened(one, "hub.example.org")) in handbook


async def test_a_hub_without_ssh_shows_no_lines(hub):
    one = at(hub.spawner(), "/user/ada/")
    assert one.page.ssh_lines(opened(one)) == ""


async def test_what_a_user_may_have_and_uses(hub):
    rules = {
        "gpu_limit": 2,
        "user_gpu_limit": 3,
        "group_gpu_limits": {"lab": 4, "others": 1},
        "hour_limit": 12,
        "mem_limit": "16G",
        "cpu_limit": 2.5,
        "home_size": "50G",
    }
    hub.servers = [
        ServerRecord("1", labels(Holder("ada", "x"), "x", ["GPU-0"], groups=["lab"])),
        ServerRecord("2", labels(Holder("ben"), "x", ["GPU-1"], groups=["lab"])),
        ServerRecord("3", labels(Holder("eve"), "x", ["GPU-2"], groups=["others"])),
    ]
    found = await hub.spawner(("lab",), **rules).home.allowances()
    assert [(each.what, each.most, each.used) for each in found] == [
        ("GPUs of one server", "2", ""),
        ("GPUs of all your servers", "3", "1 held or waited for"),
        ("GPUs of your group lab", "4", "2 held"),
        ("Time of a server with GPUs", "12 hours", ""),
        ("Memory of one server", "16 GB", ""),
        ("Processors of one server", "2.5", ""),
        ("Your files", "50 GB", ""),
    ]
    assert await Hub().spawner().home.allowances() == []


@pytest.mark.parametrize(
    ("size", "found"),
    [
        ("16G", 16 << 30),
        ("1.5g", 3 << 29),
        ("512M", 512 << 20),
        (1 << 30, 1 << 30),
        ("1024", 1024),
        ("2GiB", 2 << 30),
        (0, None),
        (None, None),
        ("all", None),
    ],
)
def test_an_amount_of_memory(size: Any, found: int | None) -> None:
    assert bytes_of(size) == found
