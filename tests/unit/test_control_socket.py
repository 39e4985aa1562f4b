"""The hub's control socket: what services of the hub ask it, and what nobody else can."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gpuspawner.errors import Refused
from gpuspawner.gpus.model import Holder, Request
from gpuspawner.hub import control_socket
from gpuspawner.hub.control_socket import MAX_READ_BYTES, MAX_REQUEST_BYTES, ControlSocket, ask
from gpuspawner.hub.switches import Switches
from gpuspawner.i18n.languages import language_for
from gpuspawner.i18n.lazy_text import lazy_gettext, restored
from gpuspawner.leases.endings import Ending
from gpuspawner.scheduling.plan import QueuedRequest, Turn

LOG = logging.getLogger("hub")


class Server:
    """A server with GPUs, as far as the socket knows one."""

    def __init__(self, user: str, name: str = "") -> None:
        self.holder = Holder(user, name)
        self.rules_known = False
        self.was_here = False

    async def ensure_rules_applied(self) -> None:
        await asyncio.sleep(0)
        self.rules_known = True

    def facts(self) -> dict[str, Any]:
        assert self.rules_known
        return {"user": self.holder.user, "server": self.holder.server}

    def extend(self, hours: float | None, by: str, over_all: bool) -> float:
        assert self.rules_known
        self.extended_by = by, over_all
        if hours is not None and not 0 < hours < 10:
            raise Refused(lazy_gettext("At most %(most)s.", most=10), status=403, key="hours")
        return 1000.0 + 3600 * (hours or 1)

    def keep_alive(self) -> None:
        self.was_here = True

    async def stop_for(self, by: str, why: str, minutes: float) -> None:
        assert self.rules_known
        self.stopped_by = by, why, minutes

    def take_back_stop(self, by: str) -> None:
        self.kept_by = by

    def note_devices(self, gone: bool) -> None:
        self.gone = gone


def waiting(user: str, place: int | None = None) -> Any:
    request = QueuedRequest(Holder(user), Request("torch", 2, model="A100"), 5.0)
    turn = Turn(request, place, 60.0, (), "gpus") if place else None
    return SimpleNamespace(holder=request.holder, waiting=request, turn=turn)


class Reconciler:
    """Knows one server that the hub doesn't."""

    def __init__(self) -> None:
        self.stopped: list[tuple[str, str]] = []

    def facts(self) -> list[dict[str, Any]]:
        return [{"id": "7f3a", "user": "ada"}]

    async def stop(self, server_id: str, by: str) -> None:
        if server_id != "7f3a":
            raise Refused(
                lazy_gettext(
                    "It has ended, or JupyterHub knows it by now: stop it as other servers."
                ),
                status=404,
            )
        self.stopped.append((server_id, by))


class RunningServer:
    """A server without GPUs, as far as the socket knows one."""

    has_news = is_restarting = False

    def __init__(self) -> None:
        self.holder = Holder("cyd")
        self.done: list[tuple[Any, ...]] = []

    async def ask(self, gpus: int, model: str | None, by: str, kind: str | None) -> None:
        if gpus > 4:
            raise Refused(lazy_gettext("At most %(most)s.", most=4), status=403, key="gpus")
        self.done.append(("ask", gpus, model, by, kind))

    async def leave(self, by: str) -> None:
        self.done.append(("leave", by))

    async def switch(self, by: str) -> None:
        self.done.append(("switch", by))

    async def give_back(self, by: str) -> None:
        self.done.append(("give_back", by))

    def facts(self) -> dict[str, Any]:
        return {"user": "cyd", "gpus": len(self.done)}


class Hub:
    """A hub's socket, its servers and its queue."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ada, self.ben = Server("ada"), Server("ben", "second")
        self.queue: Any = SimpleNamespace(settings=SimpleNamespace(order="fair"), waiting=[])
        self.reconciler: Any = Reconciler()
        self.control = ControlSocket(
            str(path),
            self.queue,
            lambda: [self.ada, self.ben],
            LOG,
            {"excluded": ["GPU-9"]},
            self.reconciler,
            cast(Any, None),
            {Holder("eve", "x"): Ending(5.0, "an administrator", "too hot")},
            switches=Switches(tuple),
        )
        self.cyd = RunningServer()
        self.control.switches.add(self.cyd)

    async def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        return await ask(str(self.path), {"do": do, **fields})

    async def send(self, *parts: bytes) -> tuple[int, dict[str, Any]]:
        """Send bytes as they are; return the status and the body, {} where there is none."""
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        for part in parts:
            writer.write(part)
        head, _, body = (await asyncio.wait_for(reader.read(), 20)).partition(b"\r\n\r\n")
        writer.close()
        return int(head.split()[1]), json.loads(body or b"{}")

    async def post(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        head = f"POST {path} HTTP/1.1\r\nHost: hub\r\nContent-Length: {len(body)}\r\n\r\n"
        return await self.send(head.encode(), body)


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    made = Hub(tmp_path / "hub.sock")
    await made.control.begin()
    yield made
    made.control.close()


async def test_it_tells_who_waits_and_whose_time_ends(hub: Hub) -> None:
    hub.queue.waiting += [waiting("eve", 1), waiting("joe")]
    answer = await hub.ask("status")
    assert answer["order"] == "fair"
    assert answer["reading"] == {"excluded": ["GPU-9"]}
    assert [each["user"] for each in answer["leases"]] == ["ada", "ben"]
    assert answer["queue"][0] == {
        "user": "eve", "server": "", "kind": "gpu",
            "gpus": 2, "model": "A100", "seconds": None, "since": 5.0,
        "place": 1, "start": 60.0, "because": "gpus",
    }  # fmt: skip
    assert (answer["queue"][1]["place"], answer["queue"][1]["because"]) == (None, "")


async def test_a_server_says_whether_its_devices_are_gone(hub: Hub) -> None:
    for gone in (True, False):
        assert await hub.ask("devices", user="ada", gone=gone) == {}
        assert hub.ada.gone is gone
    assert (await hub.ask("devices", user="joe", gone=True))["status"] == 404
    for bad in ({}, {"gone": 1}, {"gone": "true"}, {"gone": True, "why": "x"}):
        assert (await hub.ask("devices", user="ada", **bad))["status"] == 400


async def test_it_stops_a_server_for_an_administrator_and_tells_how_others_were(hub: Hub) -> None:
    assert await hub.ask("stop", user="ada", by="user:boss") == {}
    assert hub.ada.stopped_by == ("user:boss", "", 0)
    assert await hub.ask("stop", user="ada", by="user:boss", why="hot", minutes=10) == {}
    assert hub.ada.stopped_by == ("user:boss", "hot", 10)
    assert await hub.ask("keep", user="ada", by="user:boss") == {}
    assert hub.ada.kept_by == "user:boss"
    assert (await hub.ask("stop", user="joe", by="user:boss"))["status"] == 404
    for bad in ({"why": "x" * 201}, {"minutes": -1}, {"minutes": 1e9}, {"minutes": "10"}):
        assert (await hub.ask("stop", user="ada", by="user:boss", **bad))["status"] == 400
    assert (await hub.ask("status"))["stopped"] == [
        {"user": "eve", "server": "x", "at": 5.0, "rule": "an administrator", "why": "too hot"}
    ]


async def test_it_stops_a_server_that_the_hub_does_not_know(hub: Hub) -> None:
    assert (await hub.ask("status"))["orphans"] == [{"id": "7f3a", "user": "ada"}]
    assert await hub.ask("stop-orphan", id="7f3a", by="boss") == {}
    assert hub.reconciler.stopped == [("7f3a", "boss")]
    refused = await hub.ask("stop-orphan", id="other", by="boss")
    assert (refused["status"], refused["error"][:12]) == (404, "It has ended")
    assert (await hub.post("/stop-orphan", b'{"id": "7f3a"}'))[0] == 400
    assert (await hub.post("/stop-orphan", b'{"id": "7f3a", "by": "x", "user": "ada"}'))[0] == 400


async def test_it_gives_more_time_and_takes_a_user_s_word(hub: Hub) -> None:
    assert await hub.ask("extend", user="ada", server="", hours=2) == {"until": 8200.0}
    assert await hub.ask("extend", user="ada", server="", hours=0.5) == {"until": 2800.0}
    assert await hub.ask("extend", user="ada") == {"until": 4600.0}
    assert hub.ada.extended_by == ("", False)
    assert await hub.ask("extend", user="ada", by="boss", over_all=True) == {"until": 4600.0}
    assert hub.ada.extended_by == ("boss", True)
    assert await hub.ask("here", user="ben", server="second") == {}
    assert (hub.ada.was_here, hub.ben.was_here) == (False, True)


async def test_a_refusal_is_an_answer_with_its_status_and_a_sentence_for_any_language(
    hub: Hub,
) -> None:
    answer = await hub.ask("extend", user="ada", hours=10**400)
    assert (answer["error"], answer["status"]) == ("At most 10.", 403)
    assert answer["key"] == "hours"
    answer = await hub.ask("here", user="ada", server="second")
    assert answer["status"] == 404
    assert answer["error"].endswith("has no server with GPUs that runs now.")
    chinese = language_for("zh").say(restored(answer["sentence"]))
    assert chinese != answer["error"]
    status, body = await hub.post("/extend", b'{"user": "ada", "hours": 99}')
    assert (status, body["status"]) == (403, 403)


NONSENSE = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"\xff\xfe",
    b"[" * 5000,
    b'{"user": "ada", "hours": ' + b"[" * 5000,
    b"{}",
    b'{"user": 1}',
    b'{"user": null}',
    b'{"user": "ada", "server": ["second"]}',
    b'{"user": "ada", "hours": "2"}',
    b'{"user": "ada", "hours": true}',
    b'{"user": "ada", "hours": {}}',
    b'{"user": "ada", "minutes": 2}',
    b'{"user": "ada", "%s %(x)s": 2}',
    b'{"user": "' + b"a" * 256 + b'"}',
    b'{"user": "ada", "server": "' + b"a" * 5000 + b'"}',
]


@pytest.mark.parametrize("body", NONSENSE, ids=lambda body: repr(body[:30]))
async def test_nonsense_is_refused_in_one_line_of_the_log(
    hub: Hub, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    status, answer = await hub.post("/extend", body)
    assert (status, answer["status"]) == (400, 400)
    assert answer["error"]
    assert ("%s %(x)s" in answer["error"]) == (b"%s" in body)
    assert len(json.dumps(answer)) < 1000
    assert [record.exc_info for record in caplog.records if record.exc_info] == []
    assert [text for text in caplog.messages if len(text) > 1000 or "\n" in text] == []


async def test_a_name_as_long_as_jupyterhub_s_is_looked_for(hub: Hub) -> None:
    name = "😀" * 255
    assert (await hub.ask("here", user=name, server=name))["status"] == 404


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET /nothing", 404),
        ("GET /", 404),
        ("GET /../etc/passwd", 404),
        ("GET /extend", 405),
        ("POST /status", 405),
        ("DELETE /here", 405),
        ("BREW /status", 405),
        ("nonsense", 400),
    ],
)
async def test_what_there_isn_t_is_an_error_of_http(
    hub: Hub, request_line: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    head = f"{request_line} HTTP/1.1\r\nHost: hub\r\nContent-Length: 0\r\n\r\n"
    found, answer = await hub.send(head.encode())
    assert found == status
    assert answer.get("status", status) == status
    assert [record.exc_info for record in caplog.records if record.exc_info] == []


TOO_LARGE = f"A request has at most {MAX_REQUEST_BYTES} bytes."


async def test_what_is_too_large_is_told_so(hub: Hub) -> None:
    body = b'{"user": "ada"}'.ljust(MAX_REQUEST_BYTES + 1)
    assert (await hub.post("/here", body[:-1]))[0] == 200
    assert await hub.post("/here", body) == (413, {"error": TOO_LARGE, "status": 413})
    assert await hub.post("/nothing", body) == (413, {"error": TOO_LARGE, "status": 413})
    chunked = b"POST /here HTTP/1.1\r\nHost: hub\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n" % len(body)
    assert (await hub.send(chunked, chunk, body + b"\r\n0\r\n\r\n"))[1]["error"] == TOO_LARGE
    long = b"GET /%s HTTP/1.1\r\nHost: hub\r\n\r\n" % (b"x" * MAX_REQUEST_BYTES)
    assert (await hub.send(long))[1]["error"] == TOO_LARGE


async def test_what_is_far_too_large_isn_t_read(hub: Hub) -> None:
    large = MAX_READ_BYTES + 1
    head = f"POST /here HTTP/1.1\r\nHost: hub\r\nContent-Length: {large}\r\n\r\n"
    assert (await hub.send(head.encode()))[0] == 400
    chunked = b"POST /here HTTP/1.1\r\nHost: hub\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert (await hub.send(chunked, b"%x\r\n" % large))[0] == 400
    assert (await hub.ask("status"))["leases"]


def descriptors() -> int:
    """Return how many files and connections this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


PARTS = [
    b"",
    b"GET /sta",
    b"GET /status HTTP/1.1\r\nHost: hub\r\n",
    b"GET /status HTTP/1.1\r\nHost: hub\r\n\r\n",
    b'POST /here HTTP/1.1\r\nHost: hub\r\nContent-Length: 15\r\n\r\n{"user"',
    b"GET /status HTTP/1.1\r\n" + b"X: " + b"x" * 100_000,
]


@pytest.mark.parametrize("part", PARTS, ids=range(len(PARTS)))
async def test_who_closes_in_the_middle_leaves_nothing(
    hub: Hub, part: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    before = descriptors()
    for _ in range(20):
        _, writer = await asyncio.open_unix_connection(str(hub.path))
        writer.write(part)
        writer.close()
    assert (await hub.ask("status"))["leases"]
    for _ in range(100):
        if descriptors() <= before:
            break
        await asyncio.sleep(0.02)
    assert descriptors() <= before
    assert not hub.ada.was_here
    assert [record for record in caplog.records if record.exc_info] == []


async def test_who_says_nothing_more_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_socket, "TIMEOUT_SECONDS", 0.2)
    made = Hub(tmp_path / "hub.sock")
    await made.control.begin()
    try:
        for part in PARTS[:3] + PARTS[4:5]:
            reader, writer = await asyncio.open_unix_connection(str(made.path))
            writer.write(part)
            assert await asyncio.wait_for(reader.read(), 20) == b""
            writer.close()
    finally:
        made.control.close()


async def test_a_hub_that_closes_its_socket_is_away_for_who_asks(hub: Hub) -> None:
    asked = asyncio.ensure_future(hub.ask("status"))
    await asyncio.sleep(0)
    hub.control.close()
    with suppress(OSError):  # or it was answered just before
        await asked
    with pytest.raises(OSError):  # noqa: PT011 - whichever of its kinds
        await hub.ask("status")


async def test_an_error_of_ours_is_answered_and_logged(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    hub.ada.facts = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    answer = await hub.ask("status")
    assert answer == {"error": "Internal Server Error", "status": 500}
    assert [record for record in caplog.records if record.exc_info]


async def test_many_can_ask_at_once(hub: Hub) -> None:
    answers = await asyncio.gather(*(hub.ask("status") for _ in range(50)))
    assert all(answer["leases"] for answer in answers)


# ---- The socket itself ---------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
async def test_only_the_hub_s_own_account_can_open_it(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        made = Hub(tmp_path / "hub.sock")
        await made.control.begin()
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    assert (await made.ask("status"))["leases"]
    made.control.close()


async def test_one_that_a_killed_hub_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
        left.listen()
    made = Hub(path)
    await made.control.begin()
    assert (await made.ask("status"))["leases"]
    made.control.close()
    assert not path.exists()


async def test_one_of_a_living_hub_isn_t(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    other = Hub(hub.path)
    other.queue.settings.order = "fifo"
    await other.control.begin()
    assert "Another hub answers on" in caplog.text
    other.control.close()
    assert (await hub.ask("status"))["order"] == "fair"


async def test_nor_one_of_a_hub_that_is_too_busy_to_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "hub.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(str(path))
        busy.listen(0)
        first.connect(str(path))
        await Hub(path).control.begin()
        assert "Another hub answers on" in caplog.text
        busy.accept()[0].close()


async def test_a_file_of_somebody_s_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "hub.sock"
    path.write_text("mine")
    await Hub(path).control.begin()
    assert "can't be opened (a file that isn't a socket is there)" in caplog.text
    assert path.read_text() == "mine"


async def test_a_path_that_can_t_be_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await Hub(tmp_path / "no folder" / "hub.sock").control.begin()
    await Hub(tmp_path / ("long" * 40)).control.begin()
    assert caplog.text.count("pages won't show who waits") == 2


# ---- Who asks ------------------------------------------------------------------------------------


async def test_without_a_hub_that_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await ask(str(tmp_path / "hub.sock"), {"do": "status"})
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "left.sock"))
    with pytest.raises(ConnectionRefusedError):
        await ask(str(tmp_path / "left.sock"), {"do": "status"})


@pytest.mark.parametrize("said", [b"", b"nonsense\n", b"HTTP/1.1 200 OK\r\n\r\n[]"])
async def test_what_answers_and_is_no_hub_is_an_error(tmp_path: Path, said: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.close()

    path = str(tmp_path / "other.sock")
    async with await asyncio.start_unix_server(answer, path):
        with pytest.raises((OSError, ValueError)):
            await ask(path, {"do": "status"})


async def test_a_hub_that_says_nothing_isn_t_waited_for_without_end(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "silent.sock")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(path)
        silent.listen()
        with pytest.raises(OSError, match="the hub doesn't answer"):
            await ask(path, {"do": "status"}, 0.2)


async def test_a_running_server_asks_for_gpus_switches_and_gives_them_back(hub: Hub) -> None:
    who = {"user": "cyd", "server": "", "by": "user:cyd"}
    assert await hub.ask("ask", **who, gpus=2, model="A100", kind="shared") == {
        "user": "cyd",
        "gpus": 1,
    }
    for do in ("leave", "switch", "give-back"):
        assert await hub.ask(do, **who) == {}
    assert hub.cyd.done == [
        ("ask", 2, "A100", "user:cyd", "shared"),
        ("leave", "user:cyd"),
        ("switch", "user:cyd"),
        ("give_back", "user:cyd"),
    ]
    assert (await hub.ask("ask", **who, gpus=5))["key"] == "gpus"
    for bad in (-1, 1.5, "2", True, [], None, 10**400):
        assert (await hub.ask("ask", **who, gpus=bad))["status"] == 400
    nobody = await hub.ask("switch", user="dan", by="user:dan")
    assert (nobody["status"], nobody["error"]) == (404, "dan has no server that runs now.")
    assert len(hub.cyd.done) == 4
    assert (await hub.ask("status"))["requests"] == []
    hub.cyd.has_news = True
    assert (await hub.ask("status"))["requests"] == [{"user": "cyd", "gpus": 4}]


# -- Courses ---------------------------------------------------------------------------------------


async def test_without_courses_nobody_teaches_one(hub: Hub) -> None:
    for do, more in (("courses", {}), ("course", {"course": "ml"})):
        answer = await hub.ask(do, who="prof", **more)
        assert (answer["status"], answer["error"]) == (
            404,
            "There is no such course, or you don't teach it.",
        )


@pytest.mark.parametrize(
    ("do", "fields"),
    [
        ("courses", {}),
        ("courses", {"who": ""}),
        ("courses", {"who": 1}),
        ("courses", {"who": "prof", "administrator": "yes"}),
        ("course", {"who": "prof"}),
        ("course", {"who": "prof", "course": 1}),
        ("course", {"who": "prof", "course": "x" * 256}),
        ("course-extend", {"who": "prof", "course": "ml", "hours": "1"}),
        ("course-extend", {"who": "prof", "course": "ml", "over_all": True}),
        ("course-stop", {"who": "prof", "course": "ml"}),
        ("course-stop", {"who": "prof", "course": "ml", "user": "ada", "minutes": -1}),
        ("course-stop", {"who": "prof", "course": "ml", "user": "ada", "minutes": 1441}),
        ("course-stop", {"who": "prof", "course": "ml", "user": "ada", "why": "x" * 201}),
        ("course-stop", {"who": "prof", "course": "ml", "user": "ada", "by": "user:boss"}),
        ("course-keep", {"who": "prof", "course": "ml"}),
        ("course-message", {"who": "prof", "course": "ml"}),
        ("course-message", {"who": "prof", "course": "ml", "text": 1}),
        ("course-front", {"who": "prof", "course": "ml", "user": None}),
    ],
)
async def test_a_question_of_an_instructor_s_that_is_none(hub: Hub, do: str, fields: Any) -> None:
    answer = await hub.ask(do, **fields)
    assert answer["status"] == 400
    assert "error" in answer
