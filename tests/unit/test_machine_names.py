"""Who reads the machines' names: administrators, unless everybody may; users nowhere at all."""

from __future__ import annotations

import ast
import asyncio
import json
import logging
import pickle
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tornado.httpclient import HTTPResponse

from gpuspawner.choices.forecast import UNKNOWN
from gpuspawner.choices.form import render
from gpuspawner.choices.limits import Limits
from gpuspawner.choices.options import Choice
from gpuspawner.dashboard.handlers import routes
from gpuspawner.gpus.machine_names import AUDIENCES, MachineNames, may_know
from gpuspawner.gpus.model import GPU, Holder, Node, Request
from gpuspawner.hub import metrics
from gpuspawner.hub.control_socket import ControlSocket
from gpuspawner.hub.metrics import HostMetrics
from gpuspawner.hub.nodes import NodeFacts
from gpuspawner.i18n.languages import ENGLISH, LOG, Language, language_for, translations
from gpuspawner.i18n.lazy_text import (
    join_sentences,
    kept,
    lazy_gettext,
    restored,
)
from gpuspawner.images.catalogue import catalogue
from gpuspawner.leases.labels import LABEL_HUB, ServerRecord, labels
from gpuspawner.leases.ledger import Ledger, View
from gpuspawner.nodes.addresses import NodeAddress
from gpuspawner.nodes.exchange import silent
from gpuspawner.scheduling.plan import QueuedRequest, Turn
from gpuspawner.scheduling.queue import QueueEntry, RequestLimits

from ..support import boards
from ..support.paths import ROOT
from ..support.services import PREFIX, serving
from ..support.spawns import Hub

HUB = "http://172.31.99.1:8081/hub/api"
NAMES = ("zeus-3", "atlas-7", "mars")
SILENT = str(silent(NodeAddress("mars", "10.0.0.9", 8413, "0" * 64), "nothing").args[0])
NODES = tuple(
    Node(
        name,
        "570.1",
        "12.8",
        tuple(
            GPU(
                f"GPU-{machine}{index}",
                index,
                "A100",
                40960,
                node=name,
                state="unknown" if name == "mars" else "free",
                reason=SILENT if name == "mars" else "",
            )
            for index in range(2)
        ),
    )
    for machine, name in enumerate(NAMES)
)
CHINESE = language_for("zh-CN")


def named_in(text: str) -> list[str]:
    """Return the machines that a text names."""
    return [name for name in NAMES if re.search(rf"\b{name}\b", text, re.IGNORECASE)]


# -- Text ------------------------------------------------------------------------------------------


def test_text_names_a_machine_only_to_who_may_know_it() -> None:
    text = join_sentences(SILENT, lazy_gettext("Please try again."))
    assert str(text) == "The machine doesn't answer. Please try again."
    assert ENGLISH.say(text) == str(text)
    assert LOG.say(text) == "Machine mars doesn't answer. Please try again."
    assert named_in(CHINESE.say(text)) == []
    assert named_in(CHINESE.naming(True).say(text)) == ["mars"]
    assert translations(text)["zh-CN"] == CHINESE.say(text)
    # Whatever asks nobody names nothing.
    for said in (json.dumps({"a": text}), f"{text}", text.upper(), text + "!"):
        assert named_in(said) == []


def test_text_is_kept_for_who_reads_it_later() -> None:
    text = join_sentences(SILENT, "x")
    for again in (restored(json.loads(json.dumps(kept(text)))), pickle.loads(pickle.dumps(text))):
        assert again == text
        assert LOG.say(again) == LOG.say(text)
    for broken in ({"named": 1, "unnamed": "x"}, {"named": "x"}, {"named": {}, "unnamed": []}):
        assert restored(broken) == ""


@pytest.mark.parametrize(
    ("audience", "is_administrator", "may"),
    [
        ("administrators", False, False),
        ("administrators", True, True),
        ("everybody", False, True),
        ("", False, False),
        ("EVERYBODY", False, False),
    ],
)
def test_who_may_know(audience: str, is_administrator: bool, may: bool) -> None:
    assert may_know(audience, is_administrator) is may


def test_numbers_tell_machines_apart_and_nothing_of_their_names() -> None:
    machines = MachineNames(NODES)
    shown = [ENGLISH.say(machines.of(name)) for name in NAMES]
    assert sorted(shown) == ["machine 1", "machine 2", "machine 3"]
    assert [LOG.say(machines.of(name)) for name in NAMES] == [*NAMES]
    assert shown == [ENGLISH.say(MachineNames(NODES[::-1]).of(name)) for name in NAMES]
    # Nor does the order.
    many = [
        Node(f"gpu{n:02}", gpus=(GPU(f"GPU-{n}", 0, "T4", node=f"gpu{n:02}"),)) for n in range(20)
    ]
    ordered = [each.node for each in MachineNames(many).gpus(each.gpus[0] for each in many)]
    assert any(one > other for one, other in pairwise(ordered))
    assert MachineNames(NODES[:1]).of("zeus-3") == ""


def test_every_sentence_with_a_machine_s_name_has_one_without() -> None:
    """Whoever writes one more is told here."""
    loose = []
    for file in (ROOT / "gpuspawner").rglob("*.py"):
        tree = ast.parse(file.read_text())
        inside = {
            id(each)
            for call in ast.walk(tree)
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "MachineText"
            for each in ast.walk(call.args[0])
        }
        loose += [
            f"{file.name}:{call.lineno}"
            for call in ast.walk(tree)
            if isinstance(call, ast.Call) and id(call) not in inside and _names_a_machine(call)
        ]
    assert loose == []


def _names_a_machine(call: ast.Call) -> bool:
    """Return whether a sentence gets what may be a machine's name as it is."""
    if getattr(call.func, "id", "") not in ("lazy_gettext", "lazy_ngettext"):
        return False
    values = [each.value for each in call.keywords if each.arg in ("node", "nodes", "hostname")]
    return any(
        not (isinstance(each, ast.Call) and ast.unparse(each.func).endswith("machines.of"))
        for each in values
    )


def test_templates_show_machines_by_what_they_are_called() -> None:
    for file in (ROOT / "gpuspawner").rglob("*.html"):
        text = file.read_text().replace("machines.of(gpu.node)", "")
        if "dashboard" not in file.parts:  # which is given what its reader may know
            assert not re.search(r"\.node\b|hostname", text), file


# -- The form --------------------------------------------------------------------------------------


def form(language: Language) -> str:
    limits = Limits(catalogue({"torch": "lab/torch"}), "torch")
    return render(
        limits, Choice(gpus=1), View(NODES), lambda choice: UNKNOWN, language=language, keep=True
    )


def test_the_form_names_machines_to_administrators() -> None:
    for language in (ENGLISH, CHINESE):
        assert named_in(form(language)) == []
        assert named_in(form(language.naming(True))) == [*NAMES]
    assert "machine 2 · GPU 0" in form(ENGLISH)


def request_by(*scopes: str) -> Any:
    """Return a handler of a page that somebody with these scopes has asked for."""
    headers = {"Accept-Language": "en"}
    asked = SimpleNamespace(headers=headers, path="/hub/spawn", method="GET", query_arguments={})
    made = SimpleNamespace(request=asked, expanded_scopes=set(scopes))
    made.static_url = static_url.__get__(made)
    return made


def static_url(self: Any) -> str:
    """JupyterHub's templates have this method of a handler."""
    return ""


@pytest.mark.parametrize("audience", AUDIENCES)
async def test_the_hub_s_pages_go_by_the_scopes_of_who_asks(audience: str) -> None:
    hub = Hub()
    hub.name_machines = audience
    one = hub.spawner()
    for scopes, may in (
        (["delete:servers"], True),
        (["delete:servers!user=ada", "self"], audience == "everybody"),
        ([], audience == "everybody"),
    ):
        handler = request_by(*scopes)
        assert one.language(handler.static_url).names_machines is may
        one.on_request(handler)
        assert one.language_of_form().names_machines is may
        # What stays when the request is over is for all who look at the server.
        assert one.language().names_machines is (audience == "everybody")
    one.on_request(None)
    assert one.language_of_form().names_machines is (audience == "everybody")


@pytest.mark.parametrize("audience", AUDIENCES)
async def test_progress_is_for_all_who_may_see_the_start(audience: str) -> None:
    hub = Hub()
    hub.name_machines = audience
    one = hub.spawner()
    # A group override that says otherwise changes nothing.
    one.name_machines = "everybody"
    one.progress_steps.begin()
    one.progress_steps.add(60, SILENT)
    events = json.dumps(one.progress_steps.so_far(), ensure_ascii=False)
    assert named_in(events) == (["mars"] if audience == "everybody" else [])
    # The page says them in its reader's language.
    (step,) = one.progress_steps.so_far()
    reader = CHINESE.naming(audience == "everybody")
    assert reader.say(step["message"]) == reader.say(SILENT)


# -- Metrics ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("may", [True, False])
def test_metrics_have_numbers_where_nobody_is_asked_who_reads_them(may: bool) -> None:
    ledger: Any = SimpleNamespace(last_view=View(NODES), last_view_at=time.monotonic())
    loop = asyncio.new_event_loop()
    gauges = list(
        HostMetrics(ledger, SimpleNamespace(waiting=()), loop, names_machines=may).collect()  # type: ignore[arg-type]
    )
    loop.close()
    said = repr(gauges)
    assert named_in(said) == ([*NAMES] if may else [])
    assert (
        len({each.labels["node"] for g in gauges for each in g.samples if "node" in each.labels})
        == 3
    )
    assert metrics.NODE_LABELS[-1] == "node"


# -- The dashboard ---------------------------------------------------------------------------------


class Cluster:
    """A hub with three machines, as its control socket and its services see it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.ledger = Ledger(self._list, self._nodes, str, HUB)

    async def _list(self) -> Sequence[ServerRecord]:
        named = {"GPU-00": "ada", "GPU-10": "ben"}
        return [
            ServerRecord(
                user, {**labels(Holder(user), "x", [gpu], time.time() + 900), LABEL_HUB: HUB}
            )
            for gpu, user in named.items()
        ]

    async def _nodes(self) -> Sequence[Node]:
        return NODES

    async def serve(self, audience: str) -> ControlSocket:
        """Open the control socket."""

        async def nothing() -> None:
            pass

        leases = [
            SimpleNamespace(
                holder=Holder(user),
                ensure_rules_applied=nothing,
                facts=lambda user=user, gpu=gpu: boards.lease(Holder(user), gpu),
            )
            for user, gpu in (("ada", "GPU-00"), ("ben", "GPU-10"))
        ]
        waits = QueuedRequest(Holder("eve"), Request("x", 1), 5.0)
        turn = Turn(waits, 1, time.time() + 900, because="gpus", several=True)
        answer: Any = None
        entry = QueueEntry(waits, RequestLimits(), lambda _: None, answer, turn=turn)
        queue: Any = SimpleNamespace(settings=SimpleNamespace(order="fifo"), waiting=[entry])
        backend: Any = None
        control = ControlSocket(
            self.path,
            queue,
            lambda: leases,
            logging.getLogger("hub"),
            {},
            SimpleNamespace(facts=list),  # type: ignore[arg-type]
            NodeFacts(self.ledger, backend),
            {},
            name_machines=audience,
        )
        await control.begin()
        return control


def paths() -> Iterator[str]:
    """Yield each path that the dashboard serves, from the table of its handlers."""
    for route in routes(PREFIX, "/", {}):
        pattern = str(route[0])
        if pattern == ".*" or "oauth_callback" in pattern:
            yield "no/such/page"
            continue
        path = re.sub(r"^\(\?:(.+?)\|.+?\)(?=api/)", r"\1", pattern)
        path = path.removeprefix(re.escape(PREFIX)).replace("(?:/([^/]+))?", "")
        path = path.replace("server(?:s/([^/]+))?", "server").replace("([^/]+)", "ada")
        path = path.replace("([0-9]{1,9})", "1")
        path = re.sub(r"\((\w+)\|[^)]*\)", r"\1", path)  # one of several words
        yield path.replace("\\", "").replace("(?:s/ada)?", "")


@asynccontextmanager
async def served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, audience: str
) -> AsyncIterator[Callable[..., Any]]:
    cluster = Cluster(str(tmp_path / "hub.sock"))
    control = await cluster.serve(audience)
    try:
        async with serving(cluster.path, monkeypatch) as get:
            yield get
    finally:
        control.close()


def whole(answer: HTTPResponse) -> str:
    """Return all that an answer tells, its headers too."""
    return f"{answer.body.decode()} {dict(answer.headers)}"


@pytest.mark.parametrize("audience", AUDIENCES)
async def test_the_dashboard_names_no_machine_to_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, audience: str
) -> None:
    everything = sorted(set(paths()))
    assert {"", "live", "week", "api/status", "api/week"} <= {*everything}
    assert all(re.fullmatch(r"[\w/.-]*", path) for path in everything), everything
    told: dict[str, set[str]] = {}
    async with served(tmp_path, monkeypatch, audience) as get:
        for who in ("ada", "eve", "culler", "boss"):
            for path in everything:
                for language in ("en", "zh-CN"):
                    answer = await get(who, path, **{"Accept-Language": language})
                    assert answer.code < 500 or answer.code == 503, (path, answer.body)
                    if named_in(whole(answer)):
                        told.setdefault(who, set()).add(path)
    all_of_them = {"", "live", "history", "week", "api/status", "api/week"}
    assert told.pop("boss") == all_of_them
    assert told == (
        dict.fromkeys(("ada", "eve", "culler"), all_of_them) if audience == "everybody" else {}
    )


async def test_users_tell_the_machines_apart_and_administrators_read_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path, monkeypatch, "administrators") as get:
        status = json.loads((await get("ada", "api/status")).body)
        page = (await get("boss", "live")).body.decode()
        ours = (await get("ada", "live")).body.decode()
        chinese = (await get("ada", "week", **{"Accept-Language": "zh-CN"})).body.decode()
    assert {gpu["node"] for gpu in status["gpus"]} == {f"machine {n}" for n in (1, 2, 3)}
    assert [each["name"] for each in status["nodes"]] == [f"machine {n}" for n in (1, 2, 3)]
    assert "Machine mars doesn&#39;t answer" in page
    assert "The machine doesn&#39;t answer" in ours
    assert "machine 1 · GPU 0" in ours
    assert "machine 1" not in chinese
