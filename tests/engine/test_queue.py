"""Waiting for GPUs, on a real hub and engine: in order, at once, and with a way out."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ..support.flaky import flaky_engine
from ..support.hubs import WAITING, until, with_groups
from ..support.looks import containers, inside, labelled
from ..support.messages import WebServer
from ..support.queues import ask, audit_lines, message

pytestmark = pytest.mark.engine

# What those in a group have.
GROUPS = {
    "hasty": {"longest_wait_minutes": 0},
    "short-of-time": {"longest_wait_minutes": 0.2},
    "limited": {"user_gpu_limit": 3},
}
LINES = (
    WAITING,
    "c.GPUSpawner.poll_interval = 1",
    "c.JupyterHub.concurrent_spawn_limit = 0",
    "c.JupyterHub.tornado_settings = {'slow_spawn_timeout': 0}",
    with_groups(GROUPS),
    # Where messages go is in a file, where there is one.
    "from pathlib import Path",
    "c.GPUSpawner.notify_urls = lambda spawner: [*map(Path.read_text, Path('.').glob('messages'))]",
)
# For who is told with the answer of being refused at the start.
PATIENT = "c.JupyterHub.tornado_settings = {'slow_spawn_timeout': 4}"


@pytest.fixture
def hub(module_hub):
    """In these tests the hub is the one with these lines."""
    return module_hub


def test_who_comes_too_late_waits_with_a_place_and_is_served_when_a_gpu_is_back(hub, engine):
    hub.start_server("ada", {"gpus": 3, "hours": 2})
    ask(hub, "ben", {"gpus": 2})
    ask(hub, "cyd", {"gpus": 4})
    until(lambda: "next in line for 2 GPUs" in message(hub, "ben"), "ben's place", log=hub.log)
    times = r"(\w+, \w+ \d+, )?\d\d:\d\d, in (2 hours|1 hour, 59 minutes) at the latest"
    expected = f"Expected about {times}"
    assert re.search(expected, message(hub, "ben"))
    assert message(hub, "cyd").startswith("You are 2nd of 2 in line for 4 GPUs.")
    # Servers without GPUs don't wait.
    hub.start_server("eve", {"gpus": 0})
    hub.stop_server("ada")
    until(lambda: hub.ready("ben"), "ben's server", log=hub.log)
    until(lambda: "next in line" in message(hub, "cyd"), "cyd is next", log=hub.log)
    hub.stop_server("ben")
    until(lambda: hub.ready("cyd"), "cyd's server", log=hub.log)
    assert len(labelled(engine)["cyd"]) == 4
    events = dict.fromkeys((line["event"], line["user"]) for line in audit_lines(hub))
    # A first start may be made twice, where the engine refuses a limit.
    assert [each for each in events if each[0] in ("grant", "wait")] == [
        ("grant", "ada"),
        ("wait", "ben"),
        ("wait", "cyd"),
        ("grant", "ben"),
        ("grant", "cyd"),
    ]


def test_who_has_waited_gets_a_message_when_the_server_has_started(hub):
    service = WebServer()
    where = hub.folder / "messages"
    where.write_text(service.address)
    try:
        hub.start_server("ada", {"gpus": 4, "hours": 2})  # at once: no message
        ask(hub, "ben", {"gpus": 2, "hours": 1})
        until(lambda: "next in line for 2 GPUs" in message(hub, "ben"), "ben's place", log=hub.log)
        hub.stop_server("ada")
        until(service.said, "a message", log=hub.log)
        ((_, title, words),) = service.said()
        assert title == "It's your turn"
        assert words.startswith("Your server runs, with 2 GPUs. Its time ends at ")
        assert "hunter2" not in hub.log()
    finally:
        where.unlink()
        service.close()


@pytest.mark.thorough
def test_20_users_for_4_gpus_are_served_in_order_and_none_twice(hub, engine):
    users = [f"user-{number:02}" for number in range(20)]
    for user in users:
        ask(hub, user, {"gpus": 1})
    double: list[Any] = []
    waiting = {*users}

    def serve() -> bool:
        ready = hub.ready_users() & waiting
        held = [uuid for uuids in labelled(engine).values() for uuid in uuids]
        double.extend(held if len(held) != len(set(held)) else [])
        with ThreadPoolExecutor(4) as at_once:
            list(at_once.map(hub.stop_server, ready))
        waiting.difference_update(ready)
        return not waiting

    until(serve, "all are served", seconds=250, log=hub.log)
    assert double == []
    grants = dict.fromkeys(line["user"] for line in audit_lines(hub) if line["event"] == "grant")
    assert list(grants) == users
    assert containers(engine) == []


def test_a_cancel_leaves_the_queue_and_the_next_moves_up(hub):
    hub.start_server("ada", {"gpus": 4})
    ask(hub, "ben", {"gpus": 4})
    ask(hub, "cyd", {"gpus": 1})
    until(lambda: "2nd of 2 in line" in message(hub, "cyd"), "cyd waits", log=hub.log)
    hub.stop_server("ben")
    until(lambda: "next in line" in message(hub, "cyd"), "cyd moved up", log=hub.log)
    hub.stop_server("ada")
    until(lambda: hub.ready("cyd"), "cyd's server", log=hub.log)
    (left,) = [line for line in audit_lines(hub) if line["event"] == "leave"]
    assert (left["user"], left["gpus"]) == ("ben", 4)
    assert left["waited"] > 0


@pytest.mark.thorough
def test_no_wait_a_full_queue_and_the_longest_wait_are_refusals_with_a_sentence(make_hub):
    hub = make_hub(*LINES, PATIENT, "c.GPUSpawner.queue_length = 1")
    hub.add_to_group("hasty", "ada")
    hub.add_to_group("short-of-time", "dan")
    hub.start_server("eve", {"gpus": 4})
    refused = hub.spawn("ada", {"gpus": 2})
    assert (refused.status_code, refused.json()["message"]) == (
        503,
        "You asked for 2 GPUs, and 0 of 4 are free now (4 in use).",
    )
    ask(hub, "dan", {"gpus": 1})
    full = hub.spawn("ben", {"gpus": 1})
    assert full.status_code == 503
    assert full.json()["message"].startswith("The queue is full: 1 wait already.")
    until(lambda: not hub._has("dan", ""), "dan gave up", log=hub.log)
    assert "which is the longest wait here" in hub.log()


def test_a_user_limit_counts_other_servers_and_those_that_wait(make_hub):
    hub = make_hub(*LINES, PATIENT)
    hub.add_to_group("limited", "ada")
    hub.start_server("ada", {"gpus": 2}, "one")
    refused = hub.spawn("ada", {"gpus": 2}, "two")
    assert refused.status_code == 403
    assert (
        "gpus: You asked for 2 GPUs, your other servers have or wait for 2, and your limit is 3"
        in refused.text
    )
    hub.start_server("ben", {"gpus": 2})
    ask(hub, "ada", {"gpus": 1}, "two")
    again = hub.spawn("ada", {"gpus": 1}, "three")
    assert again.status_code == 403
    assert "have or wait for 3" in again.text


@pytest.mark.thorough
def test_a_restart_ends_waits_with_a_clear_message_and_keeps_servers_and_ends(hub, engine):
    hub.start_server("ada", {"gpus": 4, "hours": 3})
    end = inside(engine, "ada", "echo $GPUSPAWNER_UNTIL")
    ask(hub, "ben", {"gpus": 1})
    until(lambda: "next in line" in message(hub, "ben"), "ben waits", log=hub.log)
    hub.kill()
    hub.start()
    assert hub.ready("ada")
    page = hub.log_in("ben").get(f"{hub.url}/hub/spawn/ben").text
    assert "JupyterHub was restarted while you waited for GPUs" in page
    ask(hub, "cyd", {"gpus": 1})
    until(lambda: "next in line" in message(hub, "cyd"), "cyd waits", log=hub.log)
    expected = re.search(r"Expected about (?:\w+, \w+ \d+, )?(\d\d):(\d\d)", message(hub, "cyd"))
    assert expected, message(hub, "cyd")
    assert end.startswith("20")


@pytest.mark.thorough
def test_where_events_fail_a_listing_notices_and_a_stream_that_broke_is_opened_again(
    make_hub, idle_host, tmp_path
):
    with flaky_engine(idle_host.socket, tmp_path / "flaky.sock") as flaky:
        environment = {**idle_host.environment, "DOCKER_HOST": flaky.url}
        hub = make_hub(*LINES, environment=environment)
        hub.start_server("ada", {"gpus": 4})
        flaky.refuse("/events")
        ask(hub, "ben", {"gpus": 4})
        until(lambda: "next in line" in message(hub, "ben"), "ben waits", log=hub.log)
        hub.stop_server("ada")
        until(lambda: hub.ready("ben"), "a listing noticed", log=hub.log)
        flaky.refuse(None)
        ask(hub, "cyd", {"gpus": 4})
        until(lambda: flaky.times("/events") == 1, "events are followed", log=hub.log)
        flaky.cut("/events")
        until(lambda: flaky.times("/events") == 2, "they are followed again", log=hub.log)
        hub.stop_server("ben")
        until(lambda: hub.ready("cyd"), "cyd's server", log=hub.log)


@pytest.mark.thorough
def test_four_gpus_are_gathered_among_a_stream_of_single_ones(hub, engine):
    """Who comes later and would stay longer than the wait doesn't overtake."""
    for number in range(4):
        hub.start_server(f"first-{number}", {"gpus": 1, "hours": 1})
    ask(hub, "big", {"gpus": 4, "hours": 1})
    until(lambda: "next in line for 4 GPUs" in message(hub, "big"), "it waits", log=hub.log)
    for number in range(4):
        ask(hub, f"later-{number}", {"gpus": 1, "hours": 4})
    for number in range(4):
        hub.stop_server(f"first-{number}")
    until(lambda: hub.ready("big"), "the large one is served", log=hub.log)
    assert list(labelled(engine)) == ["big"]
    hub.stop_server("big")
    until(lambda: all(hub.ready(f"later-{n}") for n in range(4)), "the others", log=hub.log)
