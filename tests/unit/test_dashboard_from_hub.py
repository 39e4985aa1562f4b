"""A dashboard that has neither GPUs nor the engine: the hub tells it, and does it for it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpuspawner.dashboard import monitor
from gpuspawner.dashboard.actions import Actions
from gpuspawner.dashboard.facts import status
from gpuspawner.dashboard.history import History
from gpuspawner.dashboard.monitor import HubReader, Monitor, Snapshot
from gpuspawner.errors import Refused, Unknown
from gpuspawner.gpus.model import GPU, Holder, Node, Outsider
from gpuspawner.gpus.out_of_service import OutOfServiceMark
from gpuspawner.hub import control_socket
from gpuspawner.hub.control_socket import ControlSocket
from gpuspawner.hub.nodes import NodeFacts, read_answer
from gpuspawner.i18n.languages import language_for
from gpuspawner.i18n.lazy_text import lazy_gettext
from gpuspawner.images.catalogue import catalogue
from gpuspawner.leases.labels import LABEL_HUB, ServerRecord, labels
from gpuspawner.leases.ledger import Ledger
from gpuspawner.leases.notes import Notes

from ..support.boards import ADA, BOSS

VERSIONS = {"torch": {"image": "lab/torch:2", "title": "PyTorch"}, "plain": "lab/plain:1"}
HUB = "http://172.31.99.1:8081/hub/api"
UUIDS = [f"GPU-{n}0000000-0000-0000-0000-000000000000" for n in range(5)]
SICK = lazy_gettext("It has fallen off the bus: the host needs a reboot.")
NO_NVML = lazy_gettext("NVML didn't answer within %(seconds)s seconds.", seconds="9")
UNTIL = round(time.time()) + 3600.0


def server(user: str, hub: str, *uuids: str) -> ServerRecord:
    written = labels(Holder(user), "torch", uuids, UNTIL)
    return ServerRecord(user, {**written, LABEL_HUB: hub}, name=f"jupyter-{user}")


@dataclass
class Engine:
    """The outside world: what an engine and NVML would say."""

    servers: Sequence[ServerRecord] = ()
    marks: dict[str, OutOfServiceMark] = field(default_factory=dict)
    trouble: Exception | None = None
    forgets: bool = False

    async def list(self) -> Sequence[ServerRecord]:
        return self.servers

    async def nodes(self) -> Sequence[Node]:
        if self.trouble:
            raise self.trouble
        gpus = [GPU(uuid, n, "A100", 40960, 7, 3) for n, uuid in enumerate(UUIDS)]
        gpus[4] = replace(gpus[4], state="unhealthy", reason=SICK)
        return (Node("", "570.1", "12.8", tuple(gpus)),)

    async def notes(self) -> Notes:
        return Notes(dict(self.marks))

    async def take_out_of_service(self, uuid: str, by: str, why: str) -> None:
        if self.trouble:
            raise self.trouble
        if self.forgets:
            raise Unknown(lazy_gettext("The Docker Engine keeps the GPU out of service."))
        self.marks[uuid] = OutOfServiceMark(uuid, by, why, 5.0)

    async def put_into_service(self, uuid: str) -> None:
        del self.marks[uuid]


@pytest.fixture
def engine() -> Engine:
    return Engine(
        [
            server("ada", HUB, UUIDS[0]),
            server("ada", "http://other/hub/api", UUIDS[1]),
            ServerRecord("c", {}, name="by-hand", gpu_names=frozenset({UUIDS[2]})),
        ]
    )


async def images_of_nodes() -> dict[str, frozenset[str] | None]:
    return {"one": frozenset({"lab/torch:2", "of/no:version"}), "other": None}


@pytest.fixture
async def socket(engine: Engine, tmp_path: Path) -> AsyncIterator[str]:
    path = str(tmp_path / "hub.sock")
    backend: Any = engine
    ledger = Ledger(engine.list, engine.nodes, str, HUB, read_notes=engine.notes)
    queue: Any = SimpleNamespace(settings=SimpleNamespace(order="fifo"), waiting=[])
    orphans: Any = SimpleNamespace(facts=list)
    nodes = NodeFacts(ledger, backend, catalogue(VERSIONS), images_of_nodes)
    control = ControlSocket(path, queue, list, logging.getLogger("hub"), {}, orphans, nodes, {})
    await control.begin()
    yield path
    control.close()


async def test_it_shows_what_the_hub_sees(engine: Engine, socket: str) -> None:
    engine.marks[UUIDS[3]] = OutOfServiceMark(UUIDS[3], "boss", "loud fan", 5.0)
    seen = await HubReader(socket).read(Snapshot())
    assert (seen.trouble, seen.hub_trouble) == ("", "")
    assert seen.is_known(time.time())
    first, second, third, fourth, fifth = seen.gpus
    assert (first.state, first.holder, first.until) == ("leased", Holder("ada"), UNTIL)
    assert second.holder == Holder("ada", hub="http://other/hub/api")
    assert (third.state, fourth.state, fifth.state) == ("foreign", "excluded", "unhealthy")
    assert seen.ours == {UUIDS[0]}
    assert seen.marks == engine.marks
    assert seen.versions == {"torch": "PyTorch", "plain": "plain"}
    assert seen.images == {"one": {"torch"}, "other": None}
    assert seen.outsiders == (Outsider("c", "by-hand", frozenset({UUIDS[2]})),)
    # Sentences are said in the reader's language.
    assert language_for("zh").say(fifth.reason) != SICK
    assert language_for("en").say(fifth.reason) == SICK
    # What users see is what they see of a dashboard that looks itself.
    facts = status(seen, ADA)
    assert [gpu["yours"] for gpu in facts["gpus"]] == [True, False, False, False, False]
    assert facts["nodes"] == [{"name": "", "driver": "570.1", "cuda": "12.8", "images": None}]
    assert facts["outsiders"] == []
    assert [each["name"] for each in status(seen, BOSS)["outsiders"]] == ["by-hand"]


async def test_it_keeps_the_last_minutes(socket: str) -> None:
    seen = await HubReader(socket).read(Snapshot())
    points = status(seen, ADA)["gpus"][0]["history"]["utilization_percent"]
    assert points[-1] == 3


async def test_who_comes_sees_what_the_gpus_did_while_nobody_looked(
    engine: Engine, socket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = HubReader(socket)
    samples: list[int] = []
    enough = asyncio.Event()

    async def sample(history: History) -> None:
        # The hub, which can't be read for a moment, answers again.
        engine.trouble = Unknown(NO_NVML) if not samples else None
        samples.append(len(samples))
        if len(samples) == 4:
            enough.set()
        await reader.sample(history)

    monkeypatch.setattr(monitor, "SECONDS_PER_POINT", 0.001)
    watched = Monitor(reader.read, sample)
    keeping = asyncio.ensure_future(watched.keep_history())
    await enough.wait()
    points = watched._snapshot.history.points(GPU(UUIDS[0], 0, "A100"), time.time())
    assert points[0][-1] == 3
    # While a page is open, its readings are the samples.
    await watched.snapshot()
    before = len(samples)
    await asyncio.sleep(0.05)
    assert len(samples) <= before + 1
    keeping.cancel()


async def test_what_the_hub_cannot_read_is_unknown_with_the_hub_s_reason(
    engine: Engine, socket: str
) -> None:
    reader = HubReader(socket)
    seen = await reader.read(Snapshot())
    engine.trouble = Unknown(NO_NVML)
    seen = await reader.read(seen)
    assert seen.trouble == NO_NVML
    assert language_for("zh").say(seen.trouble) != NO_NVML
    assert not seen.is_known(time.time())
    assert {gpu["state"] for gpu in status(seen, ADA)["gpus"]} == {"unknown"}
    assert seen.hub is not None


async def test_of_a_silent_hub_nothing_is_known(tmp_path: Path) -> None:
    seen = await HubReader(str(tmp_path / "none.sock")).read(Snapshot())
    assert seen.trouble == "JupyterHub doesn't answer, and only it knows of the GPUs."
    assert language_for("zh").say(seen.trouble) != seen.trouble
    assert status(seen, ADA)["queue"]["known"] is False


@pytest.mark.parametrize("answer", [{}, {"nodes": 1}, {"nodes": [{"gpus": [{"colour": 1}]}]}])
def test_another_version_s_answer_is_an_error_that_readers_expect(answer: Any) -> None:
    with pytest.raises(ValueError, match="no hub of this version"):
        read_answer(answer)


def dashboard(socket: str) -> Actions:
    reader = HubReader(socket)
    return Actions(Monitor(reader.read, reader.sample), socket, HUB, from_hub=True)


async def test_the_hub_takes_gpus_out_of_service_for_administrators(
    engine: Engine, socket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    may = dashboard(socket)
    with pytest.raises(Refused, match="Only an administrator"):
        await may.take_out(ADA, UUIDS[3], "mine")
    with pytest.raises(Refused, match="has no such GPU"):
        await may.take_out(BOSS, "GPU-none", "mine")
    with pytest.raises(Refused, match="The reason is too long: at most 200 characters"):
        await may.take_out(BOSS, UUIDS[3], "!" * control_socket.MAX_REQUEST_BYTES)
    await may.take_out(BOSS, UUIDS[3], "loud  fan\n!")
    assert engine.marks[UUIDS[3]].by == "boss"
    assert engine.marks[UUIDS[3]].why.startswith("loud fan !")
    assert set((await may.monitor.snapshot()).marks) == {UUIDS[3]}
    await may.put_back(BOSS, UUIDS[3])
    assert engine.marks == {}


@pytest.mark.parametrize(
    ("forgets", "trouble", "said"),
    [
        (True, None, "keeps the GPU out of service"),
        (False, OSError("the engine is away"), "the engine is away"),
    ],
)
async def test_what_the_engine_does_not_do_is_a_refusal(
    engine: Engine, socket: str, forgets: bool, trouble: Exception | None, said: str
) -> None:
    may = dashboard(socket)
    await may.monitor.snapshot()
    engine.forgets, engine.trouble = forgets, trouble
    with pytest.raises(Refused, match=said) as refused:
        await may.take_out(BOSS, UUIDS[3], "fan")
    assert refused.value.status == 503
    assert engine.marks == {}
