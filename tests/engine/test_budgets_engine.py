"""Budgets of GPU hours on a real hub and engine, whoever is killed."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import pytest

from gpuspawner.hub import control_socket
from gpuspawner.leases.labels import LABEL_UNTIL

from ..support.hubs import until
from ..support.queues import ask, audit_lines
from ..support.usage import rows

pytestmark = pytest.mark.engine

BUDGET = """
c.GPUSpawner.hour_limit = 8
c.GPUSpawner.extend_minutes = None
c.GPUSpawner.gpu_hours = {"*": {"hours": 2, "days": 1}}
"""
LEFT = "Your budget: 2 of 2 GPU hours in 1 day are left."


def refused(hub: Any, user: str, options: dict[str, Any]) -> str:
    answer = hub.spawn(user, options)
    assert answer.status_code == 403, answer.text
    return str(answer.json()["message"])


def test_a_budget_is_held_by_rest_and_form_and_after_a_kill(make_hub, engine):
    hub = make_hub(BUDGET)
    said = refused(hub, "ada", {"gpus": 1, "hours": 3})
    assert said.startswith("hours: You asked for 1 GPU for 3 hours, which is 3 GPU hours.")
    assert LEFT in said
    page = hub.log_in("ada").get(f"{hub.url}/hub/spawn").text
    assert LEFT in page
    assert re.findall(r'name="hours"[^>]*value="([0-9.]+)"', page) == ["1", "2"]
    # What nobody names is what is left.
    ask(hub, "ada", {"gpus": 1})
    until(lambda: hub.ready("ada"), "ada's server runs", log=hub.log)
    (container,) = engine.containers(filters={"label": "gpuspawner.user=ada"})
    end = float(container["Labels"][LABEL_UNTIL])
    assert end == pytest.approx(time.time() + 7200, abs=120)
    address = f"sqlite:///{hub.folder / 'gpuspawner-usage.sqlite'}"
    until(lambda: rows(address), "it is written", log=hub.log)
    hub.kill()
    hub.start()
    until(lambda: hub.ready("ada"), "the hub has found it again", log=hub.log)
    hub.stop_server("ada")
    until(lambda: rows(address)[0].is_over, "its end is written", log=hub.log)
    hub.kill()
    hub.start()
    # What it had is known to the next hub, and what it was only promised is there again.
    assert "Your budget: 1.9 of 2 GPU hours" in refused(hub, "ada", {"gpus": 1, "hours": 2})
    assert LEFT in refused(hub, "ben", {"gpus": 1, "hours": 3})
    ask(hub, "ada", {"gpus": 1, "hours": 1.9})
    until(lambda: hub.ready("ada"), "ada's server runs", log=hub.log)
    asks = {"do": "extend", "user": "ada", "server": "", "hours": 2}
    socket = str(hub.folder / "gpuspawner.sock")
    # The few minutes that are left are given, and then none.
    given = asyncio.run(control_socket.ask(socket, asks))
    assert given["until"] < time.time() + 7200
    refusal = asyncio.run(control_socket.ask(socket, asks))
    assert refusal["status"] == 403
    assert "0 of 2 GPU hours in 1 day are left" in refusal["error"]
    grants = [line for line in audit_lines(hub) if line["event"] == "grant"]
    assert [line["user"] for line in grants] == ["ada", "ada"]


def test_a_hub_that_cannot_read_the_store_starts_servers_without_gpus_and_says_why(
    make_hub, tmp_path
):
    folder = tmp_path / "missing"
    hub = make_hub(BUDGET, f"c.GPUSpawner.usage_db = 'sqlite:///{folder / 'usage.sqlite'}'")
    answer = hub.spawn("ada", {"gpus": 1})
    assert answer.status_code == 503, answer.text
    assert "How many GPU hours you have used can't be read just now." in answer.text
    assert "usage_db can't be written" in hub.log()
    hub.start_server("ben", {"gpus": 0})
    folder.mkdir()
    hub.start_server("ada", {"gpus": 1})
