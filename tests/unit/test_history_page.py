"""The page of what GPUs did and its API: who had a GPU is read by who may read it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from bs4 import BeautifulSoup
from tornado.httpclient import HTTPResponse

from gpuspawner.gpus.model import GPU, Node
from gpuspawner.hub.control_socket import ControlSocket
from gpuspawner.hub.nodes import NodeFacts
from gpuspawner.leases.ledger import Ledger
from gpuspawner.usage.history import SHORT
from gpuspawner.usage.readings import Reading
from gpuspawner.usage.store import Store

from ..support.boards import HOSTILE
from ..support.dashboards import check
from ..support.services import serving
from ..support.usage import EPOCH, World, look

HUB = "http://172.31.99.1:8081/hub/api"
LOG = logging.getLogger("history")
HOUR = 3600.0
# Of which node it is.
GPUS = (
    GPU("GPU-0", 0, "A100", 40960, 0, 0),
    GPU("GPU-1", 1, "A100", 40960, 0, 0),
)


@pytest.fixture
def world(tmp_path: Path, in_zone: Callable[[str], None]) -> World:
    """What two hubs have seen, up to now."""
    in_zone("Europe/Berlin")
    made = World(f"sqlite:///{tmp_path / 'usage.sqlite'}")
    made.shift = time.time() - EPOCH - 5 * HOUR - made.steady
    return made


async def fill(world: World) -> None:
    """GPU-0: ada for an hour, then zacharias. GPU-1: somebody of another hub, called ada too."""
    ours, other = world.recorder(HUB), world.recorder("other")
    for recorder in (ours, other):
        await look(recorder)
    begin = world.wall
    ada = world.start(HUB, "GPU-0", "ada")
    world.start("other", "GPU-1", "ada")
    for recorder in (ours, other):
        await look(recorder)
    world.steady += HOUR
    world.end(ada)
    world.start(HUB, "GPU-0#1/2", "zacharias")
    world.start(HUB, "GPU-0#0/2", HOSTILE)
    await look(ours)
    world.steady += HOUR
    for box in world.boxes:
        if box.over is None:
            world.end(box)
    for recorder in (ours, other):
        await look(recorder)
        recorder.close()
    store = Store(world.url)
    # Nobody measured in the second hour.
    for hour in (0, 2, 3, 4):
        read = [
            Reading(begin + hour * HOUR + at, {"GPU-0": (80, 20480)}) for at in range(0, 3600, 60)
        ]
        store.write_history(read, time.time())
    store.close()


class Service:
    """The dashboard's service beside a hub with these GPUs."""

    def __init__(self, world: World, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self._url, self._monkeypatch = path, world.url, monkeypatch

    async def begin(self, gpus: Sequence[GPU] = GPUS) -> ControlSocket:
        async def no_servers() -> Sequence[Any]:
            return []

        async def nodes() -> Sequence[Node]:
            return (Node("", "570", "12.8", tuple(gpus)),)

        async def where() -> dict[str, str]:
            return {"url": self._url, "hub": HUB}

        ledger, none = Ledger(no_servers, nodes, str, HUB), None
        queue: Any = SimpleNamespace(settings=SimpleNamespace(order="fifo"), waiting=[])
        orphans: Any = SimpleNamespace(facts=list)
        nothing: Any = none
        facts = NodeFacts(ledger, nothing)
        control = ControlSocket(self.path, queue, tuple, LOG, {}, orphans, facts, {}, usage=where)
        await control.begin()
        return control


@pytest_asyncio.fixture
async def ask(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Any]]:
    await fill(world)
    service = Service(world, str(tmp_path / "hub.sock"), monkeypatch)
    control = await service.begin()
    async with serving(service.path, monkeypatch, "admins") as get:
        yield get
    control.close()


def checked(answer: HTTPResponse) -> dict[str, Any]:
    assert answer.code == 200, answer.body
    found: dict[str, Any] = check("History", json.loads(answer.body))
    return found


def seconds(spans: Sequence[Any]) -> float:
    times = [[datetime.fromisoformat(each[key]) for key in ("from", "to")] for each in spans]
    return sum((end - begin).total_seconds() for begin, end in times)


async def test_a_day_has_its_curve_its_gap_and_who_held_the_gpu(ask) -> None:
    found = checked(await ask("boss", "api/history"))
    assert found["seconds_per_point"] == SHORT
    first, second = found["gpus"]
    assert (first["uuid"], second["uuid"]) == ("GPU-0", "GPU-1")
    use, memory = first["utilization_percent"], first["memory_used_mib"]
    assert len(use) == len(memory) == pytest.approx(288, abs=1)
    assert {each for each in use if each is not None} == {80}
    assert {each for each in memory if each is not None} == {20480}
    # What nobody measured isn't 0: the second of the last five hours.
    known = [number for number, each in enumerate(use) if each is not None]
    gap = set(range(known[0], known[-1])) - set(known)
    assert len(gap) == pytest.approx(12, abs=1)
    assert set(second["utilization_percent"]) == {None}
    users = [(each["user"], each["unit"], each["other_hub"]) for each in first["leases"]]
    assert users == [
        ("ada", "GPU-0", False),
        ("zacharias", "GPU-0#1/2", False),
        (HOSTILE, "GPU-0#0/2", False),
    ]
    assert [(each["user"], each["other_hub"]) for each in second["leases"]] == [("ada", True)]
    assert seconds(first["held"]) == pytest.approx(2 * HOUR, abs=2 * SHORT)


async def test_who_may_not_read_a_name_reads_no_lease_of_it(ask) -> None:
    found = checked(await ask("ada", "api/history"))
    first, second = found["gpus"]
    assert [(each["user"], each["yours"]) for each in first["leases"]] == [("ada", True)]
    # Another hub's user of the same name is somebody else.
    assert second["leases"] == []
    # Nothing says when one lease ended and the next began.
    assert len(first["held"]) == len(second["held"]) == 1
    begin = datetime.fromisoformat(first["held"][0]["from"]).timestamp()
    assert begin % SHORT == 0
    boss = checked(await ask("boss", "api/history"))
    assert [each["held"] for each in found["gpus"]] == [each["held"] for each in boss["gpus"]]
    for who in ("ada", "eve", "culler"):
        for path in ("api/history", "history", "api/history?gpu=GPU-0", "history?last=week"):
            said = (await ask(who, path)).body.decode()
            assert "zacharias" not in said
            assert "alert(" not in said
            if who != "ada":
                assert '"user"' not in said
    assert "zacharias" in (await ask("boss", "history")).body.decode()


@pytest.mark.parametrize(
    ("query", "status", "key"),
    [
        ("gpu=GPU-9", 404, "gpu"),
        ("gpu=%3Cscript%3E", 404, "gpu"),
        ("from=yesterday", 400, "from"),
        ("to=2026-13-01", 400, "to"),
        ("from=2026-02-01&to=2026-01-01", 400, "to"),
        ("from=2020-01-01&to=2026-01-01", 400, "from"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_its_key(ask, query, status, key) -> None:
    answer = await ask("ada", f"api/history?{query}")
    assert (answer.code, json.loads(answer.body)["key"]) == (status, key)
    if key == "gpu":
        page = await ask("ada", f"history?{query}")
        assert page.code == status
        assert b"<script>" not in page.body.replace(b"<script src", b"")


async def test_one_gpu_and_another_time_are_asked_for(ask, world: World) -> None:
    found = checked(await ask("ada", "api/history?gpu=GPU-0&from=2026-01-01&to=2026-01-08"))
    assert [each["uuid"] for each in found["gpus"]] == ["GPU-0"]
    assert found["seconds_per_point"] == 1800
    assert found["gpus"][0]["leases"] == []
    last = (datetime.fromtimestamp(world.wall) + timedelta(days=1)).isoformat(timespec="minutes")
    days = checked(await ask("ada", f"api/history?to={last}"))
    assert datetime.fromisoformat(days["to"]) >= datetime.fromisoformat(last).astimezone()


async def test_the_hours_of_seven_days_are_by_the_hub_s_clock(ask) -> None:
    rows = checked(await ask("ada", "api/history"))["hours"]
    today = datetime.now().date()
    days = [(today - timedelta(days=each)).isoformat() for each in range(6, -1, -1)]
    assert [row["day"] for row in rows] == days
    known = {each for row in rows for each in row["utilization_percent"]}
    assert known == {None, 80}
    last = datetime.fromtimestamp(time.time() - HOUR)
    (row,) = (each for each in rows if each["day"] == last.date().isoformat())
    assert row["utilization_percent"][last.hour] == 80


@pytest.mark.parametrize(("language", "says"), [("en", "nobody measured"), ("zh-CN", "无测量数据")])
async def test_the_page_has_pictures_and_the_same_as_tables(ask, language, says) -> None:
    answer = await ask("boss", "history", **{"Accept-Language": language})
    assert answer.code == 200
    page = BeautifulSoup(answer.body, "html.parser")
    assert page.html["lang"].startswith(language[:2])
    assert says in page.get_text()
    # The line ends where nobody measured, and begins anew.
    curve = page.select_one("svg.gs-curve")
    assert len(curve.select("polyline.gs-use")) == 2
    assert len(curve.select("rect.gs-gap")) >= 2
    assert all(each["aria-label"] for each in page.select("svg[role=img]"))
    # Two slots of one GPU are below each other.
    lanes = [
        [each.get_text() for each in lane.select(".gs-bar-words")]
        for lane in page.select("figure.gs-history")[0].select("svg.gs-band:not(.gs-held-band)")
    ]
    assert lanes == [["ada", "zacharias"], [HOSTILE]]
    assert all(" – " in each.get_text() for each in page.select("svg.gs-week-bar > title"))
    assert not page.select("main script")
    # Each picture has its table.
    hours, gpu, _other = page.select("main table")
    assert len(hours.select("tbody tr")) == 7
    assert all(len(row.select("th, td")) == 25 for row in hours.select("tr"))
    lines = [[cell.get_text() for cell in row.select("td")] for row in gpu.select("tbody tr")]
    assert len(lines) == pytest.approx(24, abs=1)
    assert {line[0] for line in lines} == {"–", "80"}
    assert any(line[2] == f"zacharias, {HOSTILE}" for line in lines)


async def test_others_read_that_it_was_held(ask) -> None:
    page = BeautifulSoup((await ask("eve", "history")).body, "html.parser")
    gpu = page.select("main table")[1]
    words = {row.select("td")[2].get_text() for row in gpu.select("tbody tr")}
    assert words == {"", "held"}
    assert len(page.select("svg.gs-held-band")[0].select("rect")) == 1


async def test_where_nothing_is_kept_the_page_says_so(ask, world: World) -> None:
    Path(world.url.removeprefix("sqlite:///")).unlink()
    answer = await ask("ada", "history")
    assert answer.code == 503
    assert "can't be read now" in BeautifulSoup(answer.body, "html.parser").get_text()


async def test_of_many_gpus_some_are_drawn_and_all_can_be_picked(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(world)
    service = Service(world, str(tmp_path / "hub.sock"), monkeypatch)
    control = await service.begin([GPU(f"GPU-{n}", n, "A100", 40960, 0, 0) for n in range(40)])
    async with serving(service.path, monkeypatch, "admins") as get:
        page = BeautifulSoup((await get("ada", "history")).body, "html.parser")
        assert len(page.select("svg.gs-curve")) == 16
        assert "24 more GPUs aren't shown" in page.get_text()
        assert len(page.select("select[name=gpu] option")) == 41
        one = BeautifulSoup((await get("ada", "history?gpu=GPU-39")).body, "html.parser")
        assert len(one.select("svg.gs-curve")) == 1
        assert one.select_one("option[selected]")["value"] == "GPU-39"
        live = BeautifulSoup((await get("ada", "")).body, "html.parser")
        links = [each["href"] for each in live.select(".gs-measures a")]
        assert "/services/gpus/history?gpu=GPU-39" in links
    control.close()
