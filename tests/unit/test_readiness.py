"""When a server is ready, asked of real servers on loopback; and what the progress page shows."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any

import pytest

from gpuspawner.backends.docker.poll_interval import ATTEMPTS_PER_SECOND, POLL_SECONDS, PollInterval
from gpuspawner.backends.docker.readiness import wait_until_answering
from gpuspawner.hub.progress import Steps

# How long a server is waited for, where that isn't the point; and how long a test waits for that.
LONG, PATIENCE = 3600, 20


class Server:
    """A server that gives one answer after another, the last one for ever.

    An answer is an HTTP status, "close" for a connection that is closed without a word, "hang" for
    one that stays open, "flood" for a status with a body without end, or "line" for such a line.
    """

    def __init__(self, *script: int | str) -> None:
        self.script = list(script)
        self.asked: list[str] = []
        self.connected = asyncio.Event()
        self.sent = 0
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))  # and not yet listening: connections are refused
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/user/ann/api"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.connected.set()
            request = await reader.readline()
            if not request:  # only looked whether somebody listens
                return
            self.asked.append(request.decode().split()[1])
            answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            if answer == "hang":
                await reader.read()
            elif answer in ("flood", "line"):
                await self.flood(writer, b"" if answer == "line" else b"HTTP/1.1 200 OK\r\n\r\n")
            elif answer != "close":
                head = f"HTTP/1.1 {answer} -\r\nLocation: http://127.0.0.1:9/\r\n"
                writer.write(f"{head}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
                await writer.drain()
        finally:
            writer.close()

    async def flood(self, writer: asyncio.StreamWriter, head: bytes) -> None:
        """Send more and more, until the other side has enough."""
        writer.write(head)
        with suppress(OSError):
            while self.sent < 1 << 30:
                writer.write(b"x" * 65536)
                await writer.drain()
                self.sent += 65536

    async def answers(self, ended: asyncio.Event | None = None, **changes: Any) -> bool:
        arguments = {"url": self.url, "ip": "127.0.0.1", "port": self.port, "seconds": LONG}
        arguments["interval"] = PollInterval()
        waiting = wait_until_answering(**{**arguments, **changes}, ended=ended or asyncio.Event())
        return await asyncio.wait_for(waiting, PATIENCE)


@asynccontextmanager
async def serving(*script: int | str) -> AsyncIterator[Server]:
    server = Server(*script)
    async with await asyncio.start_server(server.handle, sock=server.socket):
        yield server


@pytest.fixture
def silent() -> Any:
    """A port where nobody listens."""
    server = Server()
    yield server
    server.socket.close()


@pytest.mark.parametrize("status", [200, 204, 302, 403, 404])
async def test_any_status_that_is_no_fault_of_the_server_is_an_answer(status: int) -> None:
    async with serving(status) as server:
        assert await server.answers()
        assert server.asked == ["/user/ann/api"]  # a redirect isn't followed


@pytest.mark.parametrize(("answer", "ready"), [("flood", True), ("line", False)])
async def test_of_an_answer_without_end_no_more_than_its_first_line_is_read(
    answer: str, ready: bool
) -> None:
    async with serving(answer) as server:
        assert await server.answers(seconds=0.2) == ready
        await asyncio.sleep(0.1)
        # What the two sockets hold back, of each time that it was asked.
        assert server.sent < len(server.asked) * (16 << 20)


@pytest.mark.parametrize("first", [500, 503, "close"])
async def test_a_server_that_is_not_ready_yet_is_asked_again(first: int | str) -> None:
    async with serving(first, first, 200) as server:
        assert await server.answers()
        assert len(server.asked) == 3


@pytest.mark.parametrize("script", [500, "close"])
async def test_time_runs_out_for_a_server_that_never_answers(script: int | str) -> None:
    async with serving(script) as server:
        assert not await server.answers(seconds=0.3)
        assert server.asked


async def test_time_runs_out_where_nobody_listens(silent: Server) -> None:
    assert not await silent.answers(seconds=0.1)


async def test_a_server_that_begins_to_listen_is_noticed(silent: Server) -> None:
    silent.script = [200]
    waiting = asyncio.ensure_future(silent.answers())
    await asyncio.sleep(0.1)
    assert not waiting.done()
    async with await asyncio.start_server(silent.handle, sock=silent.socket):
        assert await waiting


async def test_without_an_address_to_ask_a_connection_is_enough() -> None:
    async with serving("hang") as server:
        assert await server.answers(url="")
        assert server.asked == []


async def test_a_container_that_ended_is_not_asked() -> None:
    ended = asyncio.Event()
    ended.set()
    async with serving(200) as server:
        assert not await server.answers(ended)
        assert not server.connected.is_set()


async def test_waiting_ends_with_the_container_where_nobody_listens(silent: Server) -> None:
    ended = asyncio.Event()
    waiting = asyncio.ensure_future(silent.answers(ended))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    ended.set()
    assert not await waiting


async def test_waiting_ends_with_the_container_while_the_server_fails() -> None:
    ended = asyncio.Event()
    async with serving(500) as server:
        waiting = asyncio.ensure_future(server.answers(ended))
        await server.connected.wait()
        ended.set()
        assert not await waiting


def test_a_server_that_starts_alone_is_looked_at_most_often_and_many_no_more_in_all() -> None:
    interval = PollInterval()
    with interval.one_more():
        assert interval.seconds == POLL_SECONDS
        with ExitStack() as others:
            for _ in range(29):
                others.enter_context(interval.one_more())
            assert interval.seconds > POLL_SECONDS
            assert 30 / interval.seconds == pytest.approx(ATTEMPTS_PER_SECOND)
        assert interval.seconds == POLL_SECONDS


@pytest.mark.parametrize("how", ["answers", "ends", "is given up"])
async def test_who_waits_no_more_slows_down_nobody(silent: Server, how: str) -> None:
    interval, ended = PollInterval(), asyncio.Event()
    with ExitStack() as others:
        for _ in range(ATTEMPTS_PER_SECOND):
            others.enter_context(interval.one_more())
        silent.script = [200]
        waiting = asyncio.ensure_future(silent.answers(ended, interval=interval))
        await asyncio.sleep(0.1)
        assert interval.seconds > 1
        if how == "answers":
            async with await asyncio.start_server(silent.handle, sock=silent.socket):
                assert await waiting
        elif how == "ends":
            ended.set()
            assert not await waiting
        else:
            waiting.cancel()
            await asyncio.wait([waiting])
        assert interval.seconds == 1


class Follower:
    """A progress page: what it was sent so far."""

    def __init__(self, steps: Steps) -> None:
        self.seen: list[tuple[int, str]] = []
        self.task = asyncio.ensure_future(self.follow(steps))

    async def follow(self, steps: Steps) -> None:
        async for event in steps.follow():
            self.seen.append((event["progress"], event["message"]))


@pytest.fixture
async def steps() -> Steps:
    return Steps()


@pytest.fixture
async def follow(steps: Steps) -> AsyncIterator[Callable[[], Follower]]:
    """Follow the steps; ends with the test."""
    followers: list[Follower] = []

    def begin() -> Follower:
        followers.append(Follower(steps))
        return followers[-1]

    yield begin
    assert not any(follower.task.done() for follower in followers)  # it never ends by itself
    for follower in followers:
        follower.task.cancel()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_whoever_comes_late_is_told_everything_in_order(steps: Steps, follow: Any) -> None:
    steps.add(20, "GPUs")
    steps.add(40, "Container")
    late = follow()
    await settle()
    assert late.seen == [(20, "GPUs"), (40, "Container")]
    steps.add(70, "Started")
    await settle()
    assert late.seen[2:] == [(70, "Started")]


async def test_two_pages_of_one_spawn_are_told_the_same(steps: Steps, follow: Any) -> None:
    first = follow()
    await settle()
    steps.add(20, "GPUs")
    second = follow()
    await settle()
    steps.add(40, "Container")
    steps.add(70, "Started")
    await settle()
    assert first.seen == second.seen == [(20, "GPUs"), (40, "Container"), (70, "Started")]


async def test_a_new_spawn_forgets_the_steps_of_the_last(steps: Steps, follow: Any) -> None:
    steps.add(20, "the last spawn's")
    early = follow()
    await settle()
    steps.begin()
    await settle()
    steps.add(20, "GPUs")
    late = follow()
    await settle()
    assert early.seen == [(20, "the last spawn's"), (20, "GPUs")]
    assert late.seen == [(20, "GPUs")]


async def test_a_new_spawn_is_followed_from_its_beginning_also_when_it_begins_at_once(
    steps: Steps, follow: Any
) -> None:
    steps.add(20, "the last spawn's")
    early = follow()
    await settle()
    steps.begin()
    for percent in (10, 20, 30):
        steps.add(percent, "new")
    await settle()
    assert early.seen == [(20, "the last spawn's"), (10, "new"), (20, "new"), (30, "new")]


async def test_a_step_is_told_also_if_it_comes_while_the_page_is_busy_with_the_last(
    steps: Steps,
) -> None:
    told = steps.follow()
    steps.add(20, "GPUs")
    assert (await anext(told))["progress"] == 20
    steps.add(40, "Container")
    assert (await asyncio.wait_for(anext(told), PATIENCE))["progress"] == 40


async def test_a_page_that_changes_what_it_was_told_changes_it_for_nobody_else(
    steps: Steps,
) -> None:
    """JupyterHub adds to the events that it is given."""
    steps.add(20, "GPUs")
    event = await anext(aiter(steps.follow()))
    event["ready"] = True
    assert "ready" not in await anext(aiter(steps.follow()))


async def test_a_step_says_what_it_is_about_and_when_it_was(steps: Steps) -> None:
    steps.add(15, "You are next", about="queue", place=1)
    (step,) = steps.so_far()
    assert (step["progress"], step["message"]) == (15, "You are next")
    ours = step["gpuspawner"]
    assert (ours["about"], ours["place"]) == ("queue", 1)
    assert 0 <= time.time() - ours["at"] < 60


async def test_a_step_about_the_same_takes_the_place_of_the_last_one(
    steps: Steps, follow: Any
) -> None:
    steps.add(5, "Begun")
    early = follow()
    await settle()
    for percent in (10, 20, 30):
        steps.add(percent, f"{percent} of 30", about="download")
        await settle()
    late = follow()
    await settle()
    assert early.seen == [(5, "Begun"), (10, "10 of 30"), (20, "20 of 30"), (30, "30 of 30")]
    assert late.seen == [(5, "Begun"), (30, "30 of 30")]
    steps.add(40, "Container")
    steps.add(50, "1 of 2", about="another download")
    steps.add(60, "Started", about="")
    await settle()
    assert late.seen[2:] == [(40, "Container"), (50, "1 of 2"), (60, "Started")]


async def test_a_page_that_is_busy_misses_what_has_passed_of_one_thing_and_nothing_else(
    steps: Steps,
) -> None:
    told = steps.follow()
    steps.add(5, "Begun")
    assert (await anext(told))["message"] == "Begun"
    for percent in (10, 20, 30):
        steps.add(percent, f"{percent} of 30", about="download")
    steps.add(40, "Container")
    assert (await anext(told))["message"] == "30 of 30"
    assert (await anext(told))["message"] == "Container"


async def test_the_bar_never_goes_back_in_one_spawn(steps: Steps) -> None:
    told = steps.follow()
    for percent in (60, 20, 70):
        steps.add(percent, "")
    steps.add(10, "", about="download")
    assert [(await anext(told))["progress"] for _ in range(4)] == [60, 60, 70, 70]
    steps.begin()
    steps.add(10, "")
    assert (await anext(told))["progress"] == 10
