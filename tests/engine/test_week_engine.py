"""Reserved hours on a real hub's dashboard: a timetable's file, and whose courses they are."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ..support import dashboards
from ..support.dashboards import Program, check
from ..support.hubs import Hub, until

pytestmark = pytest.mark.engine

LESSON = date.today() + timedelta(days=10)


def timetable(file: Path, begin: str, rule: str = "") -> None:
    """Write a timetable of one event, two hours long, in one go."""
    lines = ["BEGIN:VCALENDAR", "BEGIN:VEVENT", "UID:1", "SUMMARY:Lecture", f"DTSTART:{begin}"]
    written = file.with_suffix(".new")
    written.write_text(
        "\r\n".join([*lines, "DURATION:PT2H", rule, "END:VEVENT", "END:VCALENDAR", ""])
    )
    written.replace(file)


@pytest.fixture
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("timetable") / "ml.ics"
    timetable(made, f"{LESSON:%Y%m%d}T100000Z", "RRULE:FREQ=WEEKLY;COUNT=3")
    return made


@pytest.fixture
def hub(make_hub, minimal_image, file: Path) -> Hub:
    course = {
        "title": "Machine learning",
        "group": "students",
        "calendar": {"file": str(file), "gpus": 3},
    }
    groups = {"students": {"users": []}}
    return make_hub(
        dashboards.lines(),
        f"c.JupyterHub.load_groups = {groups!r}",
        f"c.GPUSpawner.courses = { ({'ml': course})!r}",
    )


def hours(program: Program) -> list[tuple[str, bool]]:
    """Return when something is reserved, and whether it is for a course of this user's."""
    week: Any = check("Week", program.ask("GET", f"/week?from={LESSON}").json())
    assert {(each["title"], each["gpus"]) for each in week["reserved"]} <= {("Machine learning", 3)}
    return [
        (f"{datetime.fromisoformat(each['begin']):%dT%H:%M}", each["yours"])
        for each in week["reserved"]
    ]


def test_a_timetable_is_on_the_dashboard_and_is_read_again(hub: Hub, file: Path) -> None:
    hub.add_user("ben")
    hub.add_to_group("students", "ben")
    ben, ada, boss = (Program(hub, user) for user in ("ben", "ada", "boss"))
    day = f"{LESSON:%d}"
    until(lambda: hours(ben), "the nodes are read", log=hub.log)
    assert hours(ben) == [(f"{day}T10:00", True)]
    assert hours(ada) == hours(boss) == [(f"{day}T10:00", False)]
    for program, has_it in ((ben, True), (ada, False), (boss, True)):
        text = program.ask("GET", "/reserved.ics").text
        assert ("SUMMARY:Machine learning (3 GPUs)" in text) is has_it
        assert ("RRULE:FREQ=WEEKLY;COUNT=3" in text) is has_it
    timetable(file, f"{LESSON:%Y%m%d}T140000Z")
    assert hours(ben) == [(f"{day}T14:00", True)]
    timetable(file, f"{LESSON:%Y%m%d}T150000Z", "RRULE:FREQ=WEEKLY")
    assert hours(ben) == [(f"{day}T14:00", True)]
    assert "event 'Lecture': repeat: FREQ=WEEKLY needs an end" in hub.log()
    assert "Traceback" not in hub.log()
