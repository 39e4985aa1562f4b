"""The page of the usage and its API: each reads their own, administrators everybody's."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import AsyncIterator, Callable
from html import escape
from pathlib import Path
from typing import Any, cast

import jsonschema
import pytest
import pytest_asyncio
from bs4 import BeautifulSoup
from tornado.httpclient import HTTPResponse

from gpuspawner.dashboard import usage_facts
from gpuspawner.dashboard.facts import Person
from gpuspawner.dashboard.usage_facts import UsageReader
from gpuspawner.errors import Refused
from gpuspawner.hub.control_socket import ControlSocket
from gpuspawner.leases.labels import LABEL_COURSE

from ..support.boards import HOSTILE
from ..support.dashboards import OPENAPI
from ..support.services import serving
from ..support.usage import World, look

HOUR = 3600.0
TITLE = "Machine <learning>"
RANGE = "from=2026-01-01&to=2028-01-01"


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Two hubs with users of one name, and one of another with a name that is none."""
    return World(f"sqlite:///{tmp_path / 'usage.sqlite'}")


async def fill(world: World) -> None:
    recorders = [world.recorder(hub) for hub in ("hub", "other")]
    for recorder in recorders:
        await look(recorder)
    world.start("hub", "GPU-a", "ada", of=["ml"], waited=60, **{LABEL_COURSE: "ml"})
    world.start("hub", "GPU-b", HOSTILE)
    world.start("other", "GPU-c", "ada")
    for recorder in recorders:
        await look(recorder)
    world.steady += 2 * HOUR
    for box in world.boxes:
        world.end(box)
    for recorder in recorders:
        await look(recorder)
        recorder.close()


@pytest_asyncio.fixture
async def ask(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Any]]:
    """The service, beside a hub whose control socket says where the store is."""
    await fill(world)
    path = str(tmp_path / "hub.sock")
    none: Any = None
    log = logging.getLogger("usage")

    async def where() -> dict[str, Any]:
        return {"url": world.url, "hub": "hub", "courses": {"ml": TITLE}}

    control = ControlSocket(path, none, tuple, log, {}, none, none, {}, usage=where)
    await control.begin()
    async with serving(path, monkeypatch) as get:
        yield get
    control.close()


def checked(answer: HTTPResponse) -> Any:
    found = json.loads(answer.body)
    schema = {"$ref": "#/components/schemas/Usage", "components": OPENAPI["components"]}
    jsonschema.validate(found, schema)
    return found


async def test_each_reads_their_own_and_an_administrator_everybody_s(ask) -> None:
    own = checked(await ask("ada", f"api/usage?{RANGE}"))
    assert [(row["name"], row["gpu_hours"]) for row in own["rows"]] == [("ada", 2.0)]
    assert (own["whose"], own["total"]["gpu_hours"]) == ("own", 2.0)
    every = checked(await ask("boss", f"api/usage?{RANGE}"))
    # Of this hub: another one's user of the same name is somebody else.
    assert {row["name"]: row["gpu_hours"] for row in every["rows"]} == {"ada": 2.0, HOSTILE: 2.0}
    groups = checked(await ask("boss", f"api/usage?{RANGE}&by=group"))
    assert {row["name"] for row in groups["rows"]} == {"ml", None}
    assert checked(await ask("boss", f"api/usage?{RANGE}&whose=own"))["rows"] == []


@pytest.mark.parametrize("who", ["ada", "eve", "Ada", "culler"])
@pytest.mark.parametrize("by", ["user", "group", "image", "model", "course", "why"])
async def test_nobody_else_reads_of_others(ask, who: str, by: str) -> None:
    for query in (f"{RANGE}&by={by}&whose=all", f"{RANGE}&by={by}", f"{RANGE}&by={by}&user=ada"):
        for path in (f"api/usage?{query}", f"api/usage?{query}&format=csv", f"usage?{query}"):
            answer = await ask(who, path)
            said = answer.body.decode()
            assert "alert('x')" not in said
            if who != "ada":
                assert "2.0" not in said
                assert ">ada<" not in said
            if "whose=all" in query:
                assert answer.code == 403


@pytest.mark.parametrize(
    ("query", "key"),
    [
        ("from=yesterday", "from"),
        ("to=2026-13-01", "to"),
        ("from=2026-02-01&to=2026-01-01", "to"),
        ("by=colour", "by"),
        ("whose=mine", "whose"),
        ("format=xml", "format"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_the_name_of_its_key(ask, query, key) -> None:
    answer = await ask("boss", f"api/usage?{query}")
    assert answer.code == 400
    assert json.loads(answer.body)["key"] == key
    page = await ask("boss", f"usage?{query}")
    assert page.code == (200 if key == "format" else 400)


async def test_a_course_is_called_by_its_title_and_its_key_is_for_programs(ask) -> None:
    page = (await ask("boss", f"usage?{RANGE}&by=course")).body.decode()
    assert f">{escape(TITLE)}</th>" in page
    assert ">ml</th>" not in page
    rows = checked(await ask("boss", f"api/usage?{RANGE}&by=course"))["rows"]
    assert {row["name"] for row in rows} == {"ml", None}
    # A group of that name is none.
    assert ">ml</th>" in (await ask("boss", f"usage?{RANGE}&by=group")).body.decode()


async def test_csv_is_for_spreadsheets(ask) -> None:
    answer = await ask("boss", f"api/usage?{RANGE}&format=csv")
    assert answer.headers["Content-Type"].startswith("text/csv")
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(answer.body.decode()))}
    assert float(rows["ada"]["gpu_hours"]) == 2
    assert rows["ada"]["idle_gpu_hours"] == ""


@pytest.mark.parametrize(("language", "says"), [("en", "held and not used"), ("zh-CN", "占用")])
async def test_the_page_has_a_chart_with_its_numbers_beside_it(ask, language, says) -> None:
    answer = await ask("boss", f"usage?{RANGE}", **{"Accept-Language": language})
    page = BeautifulSoup(answer.body, "html.parser")
    assert page.html["lang"].startswith(language[:2])
    assert says in page.get_text()
    assert page.select_one("svg.gs-bars[role=img][aria-label]")
    assert len(page.select("svg.gs-bars rect[height]")) > 3
    # Without a number nobody knows how much a bar is.
    assert "4.00 GPU" in page.select_one("figcaption").get_text()
    heads = page.select("table")[0].select("thead th")
    (line,) = (row for row in page.select("table tbody tr") if row.th.get_text() == "ada")
    assert [each.get_text() for each in line.select("td")][:2] == ["1", "2.00"]
    assert len(heads) == len(line.select("th, td"))
    # What others have chosen is text there.
    assert not page.select("main script")
    assert HOSTILE in page.get_text()


async def test_where_nothing_is_kept_the_page_says_so(ask, world: World, tmp_path: Path) -> None:
    Path(world.url.removeprefix("sqlite:///")).unlink()
    answer = await ask("boss", "usage")
    assert answer.code == 503
    assert "can't be read now" in BeautifulSoup(answer.body, "html.parser").get_text()


@pytest.mark.parametrize("kept", [True, False])
async def test_a_hub_that_has_written_nothing_yet_has_used_nothing(
    world: World, tmp_path: Path, kept: bool, caplog: pytest.LogCaptureFixture
) -> None:
    recorder, path, none = world.recorder(), str(tmp_path / "hub.sock"), cast(Any, None)
    if not kept:
        Path(world.url.removeprefix("sqlite:///")).mkdir()
    log = logging.getLogger("usage")
    control = ControlSocket(path, none, tuple, log, {}, none, none, {}, usage=recorder.where)
    await control.begin()
    try:
        asked = usage_facts.ask(Person("boss", administrator=True), lambda name: "")
        answering = UsageReader(path).answer(asked, Person("boss"), days=True)
        if kept:
            assert (await answering).rows == []
        else:
            with pytest.raises(Refused, match="the hub's log says why"):
                await answering
            assert "c.GPUSpawner.usage_db can't be written" in caplog.text
    finally:
        control.close()
        recorder.close()
