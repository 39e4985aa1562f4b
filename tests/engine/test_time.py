"""Time on a real hub and engine: it ends, is extended, survives restarts; idle GPUs come back."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from typing import Any

import pytest

from gpuspawner.hub.control_socket import ask as ask_hub

from ..support.hubs import WAITING, until, with_groups
from ..support.looks import containers, free_gpus, inside
from ..support.queues import ask, audit_lines, message

pytestmark = pytest.mark.engine

SECONDS = 1 / 3600
# What those in a group have.
GROUPS = {
    "students": {"hour_limit": 4},
    "few": {"gpu_limit": 1},
    # A tenth of a minute before the end; who was away warns as long before as that.
    "hasty": {"warning_minutes": 0.1},
    "watched": {"idle_minutes": 0.2, "idle_warning_minutes": 0.1},
    "staff": {},
}
LINES = (
    WAITING,
    "c.GPUSpawner.poll_interval = 1",
    "c.JupyterHub.concurrent_spawn_limit = 0",
    "c.JupyterHub.tornado_settings = {'slow_spawn_timeout': 1}",
    "c.GPUSpawner.home_volume = 'home-{username}'",
    "c.GPUSpawner.hour_limit = 8",
    "c.GPUSpawner.default_hours = 2",
    "c.GPUSpawner.extend_minutes = None",
    with_groups(GROUPS),
    "c.GPUSpawner.idle_exempt_groups = ['staff']",
)


@pytest.fixture
def hub(module_hub):
    """In these tests the hub is the one with these lines."""
    return module_hub


def control(hub: Any, **question: Any) -> dict[str, Any]:
    """Ask a hub through its socket."""
    return asyncio.run(ask_hub(str(hub.folder / "gpuspawner.sock"), question))


def events(hub: Any, user: str, *kinds: str) -> list[tuple[str, str]]:
    return [
        (line["event"], line.get("rule", ""))
        for line in audit_lines(hub)
        if line["user"] == user and line["event"] in kinds
    ]


def test_a_server_whose_time_is_over_is_warned_and_stopped_and_its_user_reads_why(hub, engine):
    hub.start_server("ada", {"gpus": 1, "hours": 20 * SECONDS})
    inside(engine, "ada", "echo kept > ~/work/note")
    until(lambda: not hub._has("ada", ""), "ada's time is over", log=hub.log)
    until(lambda: containers(engine) == [], "the container is gone", log=hub.log)
    assert events(hub, "ada", "warn", "stop") == [("warn", "time limit"), ("stop", "time limit")]
    assert events(hub, "ada", "release")
    page = hub.log_in("ada").get(f"{hub.url}/hub/spawn/ada").text
    assert "of GPU time were over. Your files are kept." in page
    hub.start_server("ada", {"gpus": 1})
    assert inside(engine, "ada", "cat ~/work/note") == "kept"
    hub.stop_server("ada")
    assert "of GPU time were over" not in hub.log_in("ada").get(f"{hub.url}/hub/spawn/ada").text


def test_over_the_limit_is_refused_with_key_value_and_limit(hub):
    refused = hub.spawn("ada", {"gpus": 1, "hours": 9})
    assert (refused.status_code, refused.json()["message"]) == (
        403,
        "hours: You asked for 9 hours, and your limit is 8 hours.",
    )
    for bad in (0, -1, "8", True, [], 1e8, 10**400):
        answer = hub.spawn("ada", {"gpus": 1, "hours": bad})
        assert answer.status_code == 400, answer.text
        assert answer.json()["message"].startswith("hours must be a number of hours, more than 0")
    hub.start_server("ada", {"gpus": 0, "hours": 400})  # without GPUs there is no end
    hub.start_server("ben", {"gpus": 1})
    (lease,) = control(hub, do="status")["leases"]
    assert (lease["user"], lease["hours"]) == ("ben", 2)


def test_an_extension_holds_over_a_kill_of_the_hub_and_is_refused_while_somebody_waits(hub, engine):
    hub.start_server("ada", {"gpus": 4, "hours": 1})
    before = control(hub, do="status")["leases"][0]["until"]
    extended = control(hub, do="extend", user="ada", server="", hours=2)["until"]
    assert abs(extended - before - 2 * 3600) < 60
    most = control(hub, do="extend", user="ada", server="", hours=100)["until"]
    assert most - before > 6 * 3600
    again = control(hub, do="extend", user="ada", server="", hours=1)
    assert again["status"] == 403
    assert "and the limit is 8 hours" in again["error"]
    assert control(hub, do="extend", user="ada", server="", hours=[])["status"] == 400
    for bad in (0, -1, 1e9, 10**400):
        said = control(hub, do="extend", user="ada", server="", hours=bad)["error"]
        assert said.startswith("The hours to add must be more than 0 and at most 87600"), said
    hub.kill()
    hub.start()
    until(lambda: control(hub, do="status")["leases"], "ada's lease is known", log=hub.log)
    assert abs(control(hub, do="status")["leases"][0]["until"] - most) < 5
    ask(hub, "ben", {"gpus": 1})
    until(lambda: "in 8 hours" in message(hub, "ben") or "in 7 hours" in message(hub, "ben"), "ben")
    refused = control(hub, do="extend", user="ada", server="")
    assert refused["status"] == 409
    assert refused["error"].startswith("You can't extend while 1 other waits who could use your")
    assert control(hub, do="extend", user="ben", server="")["status"] == 404
    assert control(hub, do="nonsense", user="ada", server="")["status"] == 404


@pytest.mark.thorough
def test_group_overrides_hold_for_a_server_that_a_restarted_hub_finds(hub):
    hub.add_to_group("students", "ada")
    hub.start_server("ada", {"gpus": 1, "hours": 4})
    hub.kill()
    hub.start()
    until(lambda: control(hub, do="status")["leases"], "ada's lease is known", log=hub.log)
    # A few seconds of the four hours are over, and can be had again; the others' 8 hours can't.
    control(hub, do="extend", user="ada", server="", hours=40)
    (lease,) = control(hub, do="status")["leases"]
    assert lease["until"] - time.time() < 5 * 3600
    assert control(hub, do="status")["leases"][0]["hour_limit"] == 4


@pytest.mark.thorough
def test_a_lease_that_a_crash_has_lost_is_taken_up_from_its_container(hub):
    hub.add_to_group("hasty", "ada")
    hub.start_server("ada", {"gpus": 1, "hours": 20 * SECONDS})
    hub.kill()
    with sqlite3.connect(hub.folder / "jupyterhub.sqlite") as database:
        (state,) = database.execute("select state from spawners").fetchone()
        kept = {name: value for name, value in json.loads(state).items() if name != "gpuspawner"}
        database.execute("update spawners set state = ?", (json.dumps(kept),))
    hub.start()
    until(lambda: ("stop", "time limit") in events(hub, "ada", "stop"), "its end", 90, hub.log)
    assert events(hub, "ada", "warn") == [("warn", "time limit")]
    until(lambda: len(free_gpus()) == 4, "the GPU is back", log=hub.log)


def test_a_limit_that_changes_while_one_waits_is_held_when_its_turn_comes(hub):
    hub.start_server("ada", {"gpus": 4})
    ask(hub, "ben", {"gpus": 2})
    until(lambda: "next in line" in message(hub, "ben"), "ben waits", log=hub.log)
    hub.add_to_group("few", "ben")
    hub.stop_server("ada")
    until(
        lambda: "gpus: You asked for 2 GPUs, and your limit is 1" in hub.log(),
        "ben is refused",
        log=hub.log,
    )
    until(lambda: len(free_gpus()) == 4, "nothing stays reserved", log=hub.log)


@pytest.mark.thorough
def test_idle_gpus_are_warned_about_and_come_back_and_busy_ones_stay(hub, host):
    hub.add_to_group("watched", "ada", "ben", "eve")
    hub.add_to_group("staff", "eve")
    hub.start_server("ada", {"gpus": 1})
    hub.start_server("ben", {"gpus": 1})
    hub.start_server("eve", {"gpus": 1})
    leases = {each["user"]: each["gpus"] for each in control(hub, do="status")["leases"]}
    (index,) = [n for n, gpu in enumerate(host.read().gpus) if gpu.uuid in leases["ben"]]
    host.change(lambda state: state.with_gpu(index, utilization_percent=80))
    until(lambda: not hub._has("ada", ""), "ada's GPU is taken back", 90, hub.log)
    assert events(hub, "ada", "warn", "stop") == [("warn", "idle GPUs"), ("stop", "idle GPUs")]
    assert "its GPUs did nothing for" in hub.log_in("ada").get(f"{hub.url}/hub/spawn/ada").text
    assert hub.ready("ben")
    assert hub.ready("eve")
    assert events(hub, "ben", "warn") == events(hub, "eve", "warn") == []
