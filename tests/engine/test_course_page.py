"""A course's page on a real hub: a professor, a student, and somebody who is neither."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

import pytest

from ..support import courses, dashboards
from ..support.dashboards import Program, Visitor, check
from ..support.hubs import until
from ..support.looks import labelled
from ..support.queues import audit_lines

pytestmark = pytest.mark.engine


@pytest.fixture
def hub(make_hub):
    """A hub with two courses and the dashboard, which answers."""
    made = make_hub(dashboards.lines(), courses.LINES)
    static = f"{made.url}/services/gpus/static/dashboard.css"
    until(lambda: ".gs-page" in made.log_in("prof").get(static).text, "it answers", log=made.log)
    return made


def roster(program: Program) -> dict[str, Any]:
    answer = program.ask("GET", "/courses/ml")
    assert answer.status_code == 200, answer.text
    course: dict[str, Any] = check("Course", answer.json())
    return {each["user"]: each for each in course["members"]}


def test_a_professor_looks_after_the_course_and_nobody_else_does(hub, engine):
    hub.start_server("ada", {"gpus": 1, "hours": 1, "course": "ml"})
    hub.start_server("ben", {"gpus": 1, "hours": 1, "course": "none"})
    hub.start_server("eve", {"gpus": 1, "hours": 1})
    prof, ada, eve = Program(hub, "prof"), Program(hub, "ada"), Program(hub, "eve")

    # What runs for the course is on the roster, and nothing else.
    seen = roster(prof)
    assert {user: each["state"] for user, each in seen.items()} == {
        "ada": "runs", "ben": "away", "prof": "away",
    }  # fmt: skip
    for nobody in (ada, eve):
        assert nobody.ask("GET", "/courses/ml").status_code == 404
        assert nobody.ask("DELETE", "/courses/ml/users/ada/server").status_code == 404
    assert eve.ask("GET", "/courses").json() == {"courses": [{"key": "art", "title": "art"}]}
    assert prof.ask("GET", "/courses/art").status_code == 404
    # A professor is no administrator, neither here nor on the hub.
    for user in ("ben", "eve"):
        assert prof.ask("DELETE", f"/courses/ml/users/{user}/server").status_code == 404
        assert prof.ask("DELETE", f"/users/{user}/server").status_code == 404
    assert prof.ask("DELETE", "/users/ada/server", {"why": "x"}).status_code == 403
    assert prof.ask("POST", "/users/ada/server/extend").status_code == 403

    # The browser's log-in goes as far, without a script.
    visitor = Visitor(hub, "prof")
    assert 'href="/services/gpus/courses"' in visitor.page()
    assert "/services/gpus/courses" not in Visitor(hub, "ada").page()
    url = f"{visitor.url}courses/ml"
    page = visitor.session.get(url)
    assert page.status_code == 200, page.text
    xsrf = re.search(r'data-xsrf="([^"]+)"', page.text)
    assert xsrf
    fields = {"do": "message", "user": "ada", "server": "", "text": "Save your work"}
    said = visitor.session.post(url, data={**fields, "_xsrf": xsrf[1]}).text
    assert "The message appears in 1 JupyterLab." in said
    assert visitor.session.post(url, data=fields).status_code == 403
    until(lambda: ada.status()["messages"], "the message is there", log=hub.log)
    assert [each["text"] for each in ada.status()["messages"]] == ["Save your work"]
    assert prof.status()["messages"] == []

    before = ada.status()["servers"][0]["until"]
    more = prof.ask("POST", "/courses/ml/users/ada/server/extend", {"hours": 1}).json()
    assert check("Extended", more)["until"] > before

    # The link leads whoever is in the course to the form, and then to the notebooks.
    link = prof.ask("GET", "/courses/ml/link?gpus=0&repository=true").json()["url"]
    assert link.startswith(f"{hub.url}/hub/spawn?opt-course=ml&opt-gpus=0&next=%2Fhub%2Fuser-redi")
    hub.stop_server("ben")
    ben = hub.log_in("ben")
    # From elsewhere it fills in the form; there one press starts.
    form = ben.get(link, headers={"Referer": "https://elsewhere.example/"})
    assert form.status_code == 200
    assert "git-pull" in unquote(form.url)
    assert hub.server("ben") == {}
    opened = ben.get(link, headers={"Referer": f"{hub.url}/hub/home"})
    assert "git-pull" in unquote(opened.url)
    until(lambda: hub.ready("ben"), "ben's server is ready", log=hub.log)
    (its,) = roster(prof)["ben"]["servers"]
    assert (its["state"], its["gpus"]) == ("runs", 0)

    assert prof.ask("DELETE", "/courses/ml/users/ada/server", {"why": "Over"}).status_code == 204
    until(lambda: "ada" not in labelled(engine), "ada's server is gone", log=hub.log)
    until(lambda: hub.server("ada") == {}, "the hub has seen it", log=hub.log)
    shown = hub.log_in("ada").get(f"{hub.url}/hub/spawn/ada").text
    assert "An instructor of your course stopped your server at " in shown
    assert "eve" in labelled(engine)
    done = {(each["event"], each["by"]) for each in audit_lines(hub) if each["user"] == "ada"}
    assert {("message", "user:prof"), ("extend", "user:prof"), ("stop", "user:prof")} <= done

    # Who isn't an instructor any more is none with the next question, whatever the log-in.
    answer = hub.api("DELETE", "/groups/staff/users", {"users": ["prof"]})
    assert answer.status_code == 200, answer.text
    assert prof.ask("GET", "/courses/ml").status_code == 404
    assert visitor.session.get(url).status_code == 404
