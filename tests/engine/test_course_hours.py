"""A course's hours on a real hub and engine: who has GPUs before, in and after them."""

from __future__ import annotations

import asyncio
import re
import time
from datetime import datetime
from typing import Any

import pytest

from gpuspawner.hub import control_socket

from ..support.clocks import Clock
from ..support.hubs import WAITING, until
from ..support.looks import inside, labelled
from ..support.queues import ask, audit_lines, message

pytestmark = pytest.mark.engine

COURSES = """
from gpuspawner.pages import TEMPLATES
c.JupyterHub.template_paths = [TEMPLATES]
c.GPUSpawner.poll_interval = 1
c.GPUSpawner.hour_limit = 8
c.GPUSpawner.gpu_limit = 4
c.JupyterHub.tornado_settings = {{'slow_spawn_timeout': 1}}
c.JupyterHub.load_groups = {{"students": {{"users": []}}, "staff": {{"users": []}}}}
c.GPUSpawner.courses = {{
    "ml-101": {{
        "title": "Machine learning",
        "group": "students",
        "instructors": "staff",
        "limits": {{"gpus_per_student": 2}},
        "material": {{"volume": "ml-101", "path": "/home/jovyan/ml-101"}},
        "repository": {{"url": "https://git.example/ml.git"}},
        "reserved": [{{"begin": "{begin}", "end": "{end}", "gpus": 4, "unclaimed_minutes": 30}}],
    }},
}}
"""


def wall(hours: float) -> str:
    return f"{datetime.fromtimestamp(time.time() + 3600 * hours):%Y-%m-%dT%H:%M}"


def course_of(engine: Any, user: str) -> str | None:
    found = engine.containers(filters={"label": f"gpuspawner.user={user}"})
    return next(each["Labels"].get("gpuspawner.course") for each in found)


def test_others_before_the_hours_members_in_them_and_all_after_what_nobody_claims(
    make_hub, engine, idle_host, tmp_path
):
    clock = Clock(tmp_path)
    lines = COURSES.format(begin=wall(2), end=wall(6))
    hub = make_hub(WAITING, lines, environment=clock.environment(idle_host.environment))
    hub.add_user("ben")
    hub.add_to_group("students", "ben")

    # Before: who would go on in the hours waits, and reads why; a short one runs.
    ask(hub, "ada", {"gpus": 1, "hours": 3})
    assert "Reserved for course Machine learning from" in message(hub, "ada")
    hub.stop_server("ada")
    hub.start_server("ada", {"gpus": 1, "hours": 1})
    assert course_of(engine, "ada") is None
    hub.stop_server("ada")

    # In the hours: the course's student starts at once, with its material, by its limits.
    clock.set(2.1)
    ask(hub, "ada", {"gpus": 1, "hours": 0.5})
    assert "Reserved for course Machine learning" in message(hub, "ada")
    hub.start_server("ben", {"gpus": 2, "hours": 1})
    assert len(labelled(engine)["ben"]) == 2
    assert course_of(engine, "ben") == "ml-101"
    (mounted,) = [
        each
        for found in engine.containers(filters={"label": "gpuspawner.user=ben"})
        for each in found["Mounts"]
        if each.get("Name") == "ml-101"
    ]
    assert (mounted["Destination"], mounted["RW"]) == ("/home/jovyan/ml-101", False)
    assert "ada" not in labelled(engine)
    page = hub.log_in("ben").get(f"{hub.url}/hub/home").text
    assert "Machine learning" in page
    assert "user-redirect/git-pull?repo=https%3A%2F%2Fgit.example%2Fml.git" in page
    refused = hub.spawn("cy", {"gpus": 1, "course": "ml-101"})
    assert refused.status_code == 403
    assert "you are in none" in refused.json()["message"]
    assert "cy" not in labelled(engine)

    # After what nobody claims is free.
    clock.set(2.6)
    until(lambda: hub.ready("ada"), "who isn't in the course has a GPU", log=hub.log)
    granted = {each["user"]: each for each in audit_lines(hub) if each["event"] == "grant"}
    assert granted["ben"]["course"] == "ml-101"
    assert "course" not in granted["ada"]


SLOTS = """
from gpuspawner.pages import TEMPLATES
c.JupyterHub.template_paths = [TEMPLATES]
c.GPUSpawner.poll_interval = 1
c.GPUSpawner.hour_limit = 8
c.GPUSpawner.default_hours = 8
c.GPUSpawner.extend_minutes = None
c.GPUSpawner.gpu_limit = 4
c.JupyterHub.tornado_settings = {{'slow_spawn_timeout': 1}}
c.JupyterHub.load_groups = {{"students": {{"users": []}}}}
c.GPUSpawner.courses = {{
    "ml-101": {{
        "title": "Machine learning",
        "group": "students",
        "reserved": [{{
            "begin": "{begin}", "end": "{end}", "gpus": 1, "slots": 2, "unclaimed_minutes": 30,
        }}],
    }},
}}
"""


def test_a_class_shares_a_gpu_in_its_hours_and_nobody_else_has_it(
    make_hub, engine, idle_host, tmp_path
):
    clock = Clock(tmp_path)
    lines = SLOTS.format(begin=wall(2), end=wall(6))
    hub = make_hub(WAITING, lines, environment=clock.environment(idle_host.environment))
    for user in ("ben", "cy", "dan"):
        hub.add_user(user)
        hub.add_to_group("students", user)

    # Whoever comes before the hours reads from when.
    ask(hub, "ben", {"kind": "shared"})
    assert "in the next reserved hours of your course" in message(hub, "ben")
    assert labelled(engine) == {}

    # In them two share a GPU, with the empty choice too, and the third waits.
    clock.set(2.1)
    until(lambda: hub.ready("ben"), "the first of the class", log=hub.log)
    hub.start_server("cy", {})
    held = labelled(engine)
    (one,), (other,) = held["ben"], held["cy"]
    uuid = one.partition("#")[0]
    assert {one, other} == {f"{uuid}#0/2", f"{uuid}#1/2"}
    for user in ("ben", "cy"):
        assert re.findall(r"GPU-[0-9a-f-]+", inside(engine, user, "nvidia-smi -L")) == [uuid]
    ask(hub, "dan", {"kind": "shared"})
    assert "Others of your course have all of its slots now" in message(hub, "dan")
    hub.stop_server("dan")

    # The hub is killed: what they have stays theirs, and so does the GPU, while nobody claims more.
    hub.kill()
    clock.set(2.7)
    hub.start()
    question = {"do": "extend", "user": "ben", "server": "", "hours": 1}
    refused = asyncio.run(control_socket.ask(str(hub.folder / "gpuspawner.sock"), question))
    assert "ends with these" in refused["error"]
    hub.start_server("eve", {"gpus": 3, "hours": 1})
    assert uuid not in labelled(engine)["eve"]
    ask(hub, "ada", {"gpus": 4, "hours": 1})
    hub.stop_server("cy")
    hub.start_server("dan", {"kind": "shared"})
    assert labelled(engine)["dan"] == [other]

    # It ends with the hours, however long it was asked for, and then the GPU is everybody's.
    granted = {each["user"]: each for each in audit_lines(hub) if each["event"] == "grant"}
    assert granted["dan"]["until"] == pytest.approx(time.time() + 3600 * 6, abs=300)
    for user in ("ben", "dan", "eve"):
        hub.stop_server(user)
    assert not hub.ready("ada")
    clock.set(6.1)
    until(lambda: hub.ready("ada"), "who isn't in the course has a GPU", log=hub.log)
    assert uuid in labelled(engine)["ada"]
