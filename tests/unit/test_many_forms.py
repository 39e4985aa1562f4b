"""What the forms of a class cost the hub that opens them in the same moment: counts, no times."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from functools import wraps
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from tornado import web

from gpuspawner.choices import form, form_stream
from gpuspawner.choices.home_use import HomeUse
from gpuspawner.gpus.model import Holder, Request
from gpuspawner.scheduling.plan import QueuedRequest, QueueSnapshot
from gpuspawner.scheduling.queue import RequestLimits
from gpuspawner.spawner import GPUSpawner

from ..support.spawns import Hub, begin

USERS = 60
GIB = 1 << 30


class CountingHub(Hub):
    """A hub whose engine and driver count how often they are asked, and take a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.ledger.on_read = lambda: self.calls.update(["view"])

    async def _list(self) -> Any:
        self.calls["engine"] += 1
        await asyncio.sleep(0.001)
        return await super()._list()

    async def _read(self) -> Any:
        self.calls["NVML"] += 1
        await asyncio.sleep(0.001)
        return await super()._read()

    def count(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        """Count the calls of a function that goes on as it is."""
        function: Callable[..., Any] = getattr(owner, name)

        @wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)


@pytest.fixture
async def hub(monkeypatch: pytest.MonkeyPatch) -> CountingHub:
    """All GPUs are taken, and somebody waits; no minute ends, since pages show times."""
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0)
    hub = CountingHub()
    hub.occupy()
    hub.count(monkeypatch, form, "render")
    hub.count(monkeypatch, QueueSnapshot, "__init__")
    hub.count(monkeypatch, QueueSnapshot, "forecast_turn")
    return hub


def a_class(hub: Hub, **traits: Any) -> list[GPUSpawner]:
    found = []
    for number in range(USERS):
        one = hub.spawner(**traits)
        one.user.name = f"user{number}"
        found.append(one)
    return found


async def opened(one: GPUSpawner, choice: Any = None, language: str = "en") -> str:
    """Return the form of a page that is opened; with a choice, what its script is sent."""
    headers = {"Accept-Language": language, "Accept": "text/html"}
    if choice is not None:
        headers[form_stream.HEADER] = quote(json.dumps(choice))
    request = SimpleNamespace(method="GET", headers=headers, query_arguments={}, path="/hub/spawn")
    one.handler = SimpleNamespace(
        request=request, hub=SimpleNamespace(base_url="/hub/"), set_header=lambda name, value: None
    )
    if choice is None:
        return str(await one.render_form())
    with pytest.raises(web.Finish) as answer:
        await one.render_form()
    return str(answer.value.args[0])


async def all_open(users: list[GPUSpawner], choice: Any = None) -> list[str]:
    # Each in a task of its own, as requests are.
    return await asyncio.gather(*(asyncio.create_task(opened(one, choice)) for one in users))


async def test_forms_opened_in_one_moment_share_one_reading_and_are_made_once(hub):
    pages = await all_open(a_class(hub))
    assert len(set(pages)) == 1
    assert "All GPUs are taken." in pages[0]
    # One queue, and a forecast of each number of GPUs: of one form.
    assert hub.calls == {
        "engine": 1,
        "NVML": 1,
        "view": 1,
        "render": 1,
        "__init__": 1,
        "forecast_turn": 2,
    }


async def test_a_change_is_told_to_all_open_forms_for_the_cost_of_one(hub):
    users = a_class(hub)
    await all_open(users)
    told = await all_open(users, {"gpus": 1})
    hub.calls.clear()
    assert await all_open(users, {"gpus": 1}) == told
    assert hub.calls == {}
    hub.servers.clear()
    await hub.ledger.read()
    hub.calls.clear()
    again = await all_open(users, {"gpus": 1})
    assert len(set(again)) == 1
    assert "Starts now, with 1 GPU." in again[0]
    assert hub.calls == {"render": 1, "__init__": 1, "forecast_turn": 2}


async def test_which_traits_are_rules_is_looked_up_once_for_each_server(hub, monkeypatch):
    """traitlets looks through all of a class's traits for that, at each call."""
    users = a_class(hub, auth_state_hook=lambda one, state: setattr(one, "idle_minutes", 7))
    hub.count(monkeypatch, GPUSpawner, "traits")
    for _ in range(3):
        await all_open(users)
    assert hub.calls["traits"] == USERS
    first = users[0]
    await begin(first, gpus=0)
    assert [first.get_state()["gpuspawner"]["hooks"] for _ in range(3)]
    # And for what outlives a restart of the hub.
    assert hub.calls["traits"] == USERS + 1


async def test_who_waits_for_something_else_is_not_shown_the_forms_of_others(hub):
    """Their own place doesn't count for their forecast, and others' do."""
    users = a_class(hub, user_gpu_limit=2)
    waits, elsewhere, *others = users
    for one, name in ((waits, ""), (elsewhere, "other")):
        request = QueuedRequest(
            Holder(one.user.name, name), Request("plain", 1), hub.queue.join_time()
        )
        hub.queue_tasks = getattr(hub, "queue_tasks", [])
        hub.queue_tasks.append(
            asyncio.ensure_future(hub.queue.wait(request, RequestLimits(), lambda turn: None))
        )
    while len(hub.queue.waiting) < 2:
        await asyncio.sleep(0)
    own, limited, usual, same = await all_open([waits, elsewhere, *others[:2]])
    assert "You would be 2nd in line" in own
    assert "You would be 3rd in line" in limited
    assert "your limit is 2 for all of them together" in limited
    assert "your limit is 2 for all of them together" not in own + usual
    assert "You would be 3rd in line" in usual
    assert usual == same
    for task in hub.queue_tasks:
        task.cancel()


async def test_how_full_a_home_is_stands_on_its_user_s_page_alone(hub, monkeypatch):
    """And the rest of the form is made once all the same."""
    users = a_class(hub)
    for number, one in enumerate(users):
        use = HomeUse((1 + number) * GIB, 100 * GIB, enforced=False, at=0)
        monkeypatch.setattr(one, "home_use", lambda allowed, use=use: use)
    pages = await all_open(users)
    for number, text in enumerate(pages):
        assert text.count("Your files take") == 1
        assert f"Your files take {1 + number} GB of 100 GB." in text
        assert "own -->" not in text
    assert hub.calls["render"] == 1
    assert "Your files take" not in await opened(users[0], {"gpus": 1})


async def test_each_language_and_each_rule_has_a_form_of_its_own(hub):
    wide, narrow = a_class(hub)[0], a_class(hub, gpu_limit=1)[0]
    english = await opened(wide)
    chinese = await opened(wide, language="zh-CN")
    limited = await opened(narrow)
    assert 'lang="en"' in english
    assert 'lang="zh-CN"' in chinese
    assert "Your limit is 1." in limited
    assert "Your limit is 1." not in english
    assert await opened(wide) == english


async def test_why_somebody_s_server_was_stopped_is_read_by_them_alone(hub):
    told, other = a_class(hub)[:2]
    told.lease.notice = "Its time was over."
    pages = await all_open([told, other])
    assert ["Its time was over." in text for text in pages] == [True, False]
