"""Courses: how they are declared and read again, and what they mean for a choice."""

from __future__ import annotations

import ast
import asyncio
import logging
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from traitlets import TraitError
from traitlets.config import Config

from gpuspawner.choices import form
from gpuspawner.choices.check import check_choice, forecast_choice
from gpuspawner.choices.course_choice import courses_offered, within_course
from gpuspawner.choices.forecast import Forecast
from gpuspawner.choices.limits import Limits
from gpuspawner.choices.options import Choice, parse, request
from gpuspawner.courses.catalogue import CourseCatalogue
from gpuspawner.courses.model import Course, Repository
from gpuspawner.courses.reading import read_courses, read_file
from gpuspawner.errors import Refused
from gpuspawner.gpus.model import WHOLE, Holder, Node, Request, course_group
from gpuspawner.images.catalogue import catalogue
from gpuspawner.leases.labels import LABEL_COURSE, ServerRecord, labels, lease_of
from gpuspawner.leases.ledger import View
from gpuspawner.scheduling.phrases import turn_words
from gpuspawner.scheduling.plan import Planner, QueuedRequest
from gpuspawner.scheduling.queue import RequestLimits
from gpuspawner.scheduling.reserved import ReservedTime
from gpuspawner.spawner import GPUSpawner

from ..support.paths import ROOT
from ..support.shown_forms import host, shown
from ..support.spawns import Hub, begin, waiting
from ..support.units import gpu, shared

LOG = logging.getLogger("courses")
ML = """\
ml-101:
  title: Machine learning
  group: [students, guests]
  instructors: staff
  images: [torch]
  limits: {gpus_per_student: 1, gpus: 6, hours: 4}
  material: {volume: ml-101, path: /home/jovyan/ml-101}
  shared: {volume: ml-101-all, path: /home/jovyan/all}
  teams: {volume: ml-101, path: /home/jovyan/team, groups: [red, blue]}
  repository: {url: "https://git.example/ml/notebooks.git", branch: main, open: week-1.ipynb}
"""
VERSIONS = catalogue({"plain": "ref/plain", "torch": "ref/torch"})


def courses(text: str = ML) -> tuple[Course, ...]:
    read = read_file(text, "courses.yaml")
    assert not read.problems
    return tuple(read.courses.values())


def limits(text: str = ML, taught: str = "", **more: Any) -> Limits:
    given = {"versions": VERSIONS, "default_image": "plain", "courses": courses(text)}
    return Limits(**{**given, "taught_courses": frozenset(taught.split()), **more})


def test_a_course_is_declared_once() -> None:
    (course,) = courses()
    assert (course.name, course.group, course.instructors) == (
        "Machine learning",
        ("students", "guests"),
        ("staff",),
    )
    assert [*course.folders()] == [
        ("ml-101", "/home/jovyan/ml-101"),
        ("ml-101-all", "/home/jovyan/all"),
        ("ml-101-red", "/home/jovyan/team/red"),
        ("ml-101-blue", "/home/jovyan/team/blue"),
    ]
    assert course.limits.hours == 4


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("a: 3", "line 1: course 'a': a course must be a mapping with 'group', got 3"),
        ("a: {}", "line 1: course 'a': group: "),
        ("a:\n  group: g\n  limits:\n    hours: x", "line 4: course 'a': limits.hours: "),
        ("a:\n  group: g\n  hourss: 3", "line 3: course 'a': hourss: there is no such key"),
        ("a:\n  group: []", "line 2: course 'a': group: "),
        ("a: {group: g, material: {volume: v, path: home}}", "material.path: "),
        ("a: {group: g, material: {volume: ../v, path: /home}}", "material.volume: "),
        ("a: {group: g, teams: {volume: v, path: /t, groups: [../x]}}", "teams.groups.0: "),
        ("none: {group: g}", "course 'none': 'none' is what users send"),
        ("a: {group: g, key: b}", "'key' is what stands before the entry"),
        ("../a: {group: g}", "key: "),
        ("7: {group: g}", "line 1: course 7: key: "),
        (
            "b: {group: g, material: {volume: v, path: /m}}\n"
            "a: {group: g, material: {volume: w, path: /m/x}}",
            "line 2: course 'a': /m/x lies where course 'b' has its own folder, /m",
        ),
        ("a: {group: g, repository: {url: 'javascript:alert(1)'}}", "repository.url: "),
    ],
)
def test_an_entry_that_is_wrong_is_named_with_its_line_and_no_other_is_lost(
    entry: str, says: str
) -> None:
    read = read_file(f"{entry}\nlast: {{group: g}}", "courses.yaml")
    (problem,) = read.problems.values()
    assert problem.startswith("courses.yaml, line ")
    assert says in problem
    assert "last" in read.courses


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "line 1"),
        ("a: {group: g}\na: {group: h}", "line 2: 'a' is there twice"),
        ("a: &x {group: g}\nb: *x", "write it out"),
        ("- a", "must be a mapping of keys to courses"),
        ("[" * 5000, "too deep"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=r"courses\.yaml") as error:
        read_file(text, "courses.yaml")
    assert says in str(error.value)


def test_times_of_a_file_are_texts_and_no_numbers() -> None:
    problem = read_file("a: {group: g, title: 10:00}", "f").problems
    assert not problem


def rewrite(file: Path, text: str) -> None:
    """Write a file as editors do, in place of the old one."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


def test_a_file_is_read_again_and_what_was_right_stays(tmp_path: Path, caplog: Any) -> None:
    file = tmp_path / "courses.yaml"
    found = CourseCatalogue({"c": {"group": "g"}}, str(file), LOG)
    assert list(found.current()) == ["c"]
    assert "No such file" in caplog.text
    rewrite(file, "a: {group: one}\nb: {group: two}")
    assert list(found.current()) == ["a", "b", "c"]
    assert found.current() is found.current()
    caplog.clear()
    rewrite(file, "a: {group: 5}\nb: {group: three}\nd: 1\nc: {group: x}")
    for _ in range(3):
        now = found.current()
    assert {key: each.group for key, each in now.items()} == {
        "a": ("one",),
        "b": ("three",),
        "c": ("g",),
    }
    said = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert len(said) == 3
    assert f"{file}, line 1: course 'a': group" in said[0]
    assert said[0].endswith("What it said before stays")
    assert said[1].endswith("It is left out")
    assert "is in c.GPUSpawner.courses as well" in said[2]
    rewrite(file, "a: [")
    assert found.current() == now
    file.unlink()
    assert found.current() == now
    rewrite(file, "")
    assert list(found.current()) == ["c"]


def test_a_wrong_entry_of_the_configuration_is_refused_at_the_start() -> None:
    config = Config({"GPUSpawner": {"courses": {"a": {"group": "g", "limits": {"gpus": -1}}}}})
    with pytest.raises(TraitError, match=r"c.GPUSpawner.courses\['a'\]: limits.gpus: "):
        GPUSpawner(config=config)


def test_the_link_brings_the_repository_and_opens_it() -> None:
    (course,) = courses()
    assert course.repository
    assert course.repository.path() == (
        "user-redirect/git-pull?repo=https%3A%2F%2Fgit.example%2Fml%2Fnotebooks.git"
        "&urlpath=lab%2Ftree%2Fnotebooks%2Fweek-1.ipynb&branch=main"
    )
    plain = Repository("https://git.example/x")
    assert plain.path().endswith("&urlpath=lab%2Ftree%2Fx")


# -- The course of a choice ----------------------------------------------------------------------

TWO = "a: {group: g, limits: {hours: 2}}\nb: {group: g}"


@pytest.mark.parametrize(
    ("text", "taught", "named", "found"),
    [
        (ML, "", None, "ml-101"),
        (ML, "", "ml-101", "ml-101"),
        (ML, "", "none", "Your servers are for a course: pick one of Machine learning."),
        (ML, "", "x", 'You asked for course "x", and those you may pick are: Machine learning.'),
        (ML, "ml-101", None, ""),
        (ML, "ml-101", "ml-101", "ml-101"),
        (ML, "ml-101", "none", ""),
        (TWO, "", None, "a"),
        (TWO, "", "b", "b"),
        (TWO, "a", None, "a"),
        (TWO, "a", "none", "Your servers are for a course: pick one of a, b."),
        ("a: {group: g, required: false}", "", None, ""),
        ("a: {group: g, required: false}", "", "none", ""),
        ("", "", None, ""),
        ("", "", "none", ""),
        ("", "", "x", 'You asked for course "x", and you are in none.'),
    ],
)
def test_which_course_a_choice_is_for(text: str, taught: str, named: Any, found: str) -> None:
    try:
        key = within_course(named, limits(text, taught)).course
    except Refused as error:
        key = f"{error}"
    assert key == found


# What a sentence may call a course by: its name, or the key that somebody has sent.
CALLED = re.compile(
    r"(\w+\.)*(course\.name|turn\.course_name|course_name)|name|quoted\(named\)"
    r"|(\w+\.)*title_of\(.+\)"
)


def test_every_sentence_calls_a_course_by_its_title() -> None:
    """Whoever writes one more is told here."""
    found, loose = 0, []
    for file in (ROOT / "gpuspawner").rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text())):
            if not isinstance(call, ast.Call):
                continue
            if getattr(call.func, "id", "") not in ("lazy_gettext", "lazy_ngettext"):
                continue
            values = [ast.unparse(each.value) for each in call.keywords if each.arg == "course"]
            found += len(values)
            loose += [f"{file.name}: {each}" for each in values if not CALLED.fullmatch(each)]
    for file in (ROOT / "gpuspawner").rglob("*.html"):
        values = re.findall(r"\bcourse=([^,)]+)[,)]", file.read_text())
        found += len(values)
        loose += [f"{file.name}: {each}" for each in values if not CALLED.fullmatch(each)]
    assert found > 10
    assert loose == []


def test_a_refusal_says_titles_to_users_and_keys_to_programs() -> None:
    for named, of_users in (("x", "are: Machine learning."), ("none", "one of Machine learning.")):
        with pytest.raises(Refused) as caught:
            within_course(named, limits())
        assert str(caught.value).endswith(of_users)
        assert str(caught.value.keyed).endswith(of_users.replace("Machine learning", "ml-101"))
        assert str(caught.value.keyed).startswith("course: ")


@pytest.mark.parametrize(
    ("hub", "course", "most", "hours"),
    [
        ({"gpus": 4, "hours": 12.0}, "{gpus_per_student: 2, gpus: 8, hours: 4}", 2, 4),
        ({"gpus": 1, "hours": 2.0}, "{gpus_per_student: 2, gpus: 8, hours: 4}", 1, 2),
        ({"gpus": 4}, "{gpus_per_student: 3, gpus: 2}", 2, None),
        ({"gpus": 4, "group_gpus": {"lab": 1}}, "{gpus_per_student: 3}", 1, None),
        ({}, "{}", None, None),
    ],
)
def test_the_strictest_limit_wins(hub: Any, course: str, most: Any, hours: Any) -> None:
    found = within_course(None, limits(f"a: {{group: g, limits: {course}}}", **hub))
    assert (found.most_gpus(), found.hours) == (most, hours)


def test_who_teaches_a_course_is_not_under_its_limits_for_students() -> None:
    text = "a: {group: g, limits: {gpus_per_student: 1, hours: 1, gpus: 6}}"
    found = within_course("a", limits(text, "a", hours=9.0))
    assert (found.most_gpus(), found.hours) == (6, 9)


def test_a_course_has_its_image_versions_alone() -> None:
    found = within_course(None, limits())
    assert (list(found.versions), found.default_image) == (["torch"], "torch")
    node = (Node("", "570", "12.8", (gpu(0),)),)
    assert request(parse({}), limits(), node).image == "torch"
    with pytest.raises(Refused, match="the images you may have are: torch"):
        request(parse({"image": "plain"}), limits(), node)


def test_slots_for_each_student() -> None:
    text = "a: {group: g, limits: {slots_per_student: 1}}"
    node = (Node("", "570", "12.8", (gpu(0), *shared(1, 8))),)
    asked = request(parse({}), limits(text), node)
    assert (asked.kind, asked.course) == ("shared", "a")
    with pytest.raises(Refused, match="kinds you may have are: shared"):
        request(parse({"gpus": 1, "kind": WHOLE}), limits(text), node)
    of_student = RequestLimits(per_student={course_group("a"): (None, 1)})
    assert of_student.most_of_user(asked) == asked.unit_share
    assert of_student.most_of_user(Request("x", 1)) is None


def test_a_label_has_the_course_and_its_lease_counts_in_it() -> None:
    found = labels(Holder("ada"), "x", ["GPU-0"], None, ["g"], "ml-101")
    assert found[LABEL_COURSE] == "ml-101"
    lease = lease_of(ServerRecord("1", found))
    assert lease
    assert (lease.course, lease.groups) == ("ml-101", {"g", course_group("ml-101")})
    none = labels(Holder("ada"), "x", ["GPU-0"], None, ["g"])
    assert LABEL_COURSE not in none
    lease = lease_of(ServerRecord("1", none))
    assert lease
    assert lease.course == ""


# -- In a hub ------------------------------------------------------------------------------------


def declared(**limits: Any) -> dict[str, Any]:
    of_ml = {"title": "Machine <learning>", "group": "g", "limits": limits}
    return {"ml": of_ml, "nlp": {"group": "g"}}


async def test_the_course_at_a_time_is_a_limit_of_all_its_servers() -> None:
    hub = Hub()
    running = labels(Holder("bob"), "x", ["GPU-0"], None, (), "ml")
    hub.servers.append(ServerRecord("other", running))
    one = hub.spawner(("g",), courses=declared(gpus=1))
    await begin(one, course="ml")
    task = await waiting(one, hub)
    (entry,) = hub.queue.waiting
    assert entry.turn
    assert entry.turn.because == "course:ml"
    assert "Course Machine <learning> has as many GPUs" in turn_words(entry.turn)
    applicant = hub.spawner(("g",), name="eve", courses=declared(gpus=1)).applicant()
    told = forecast_choice(
        Choice(course="ml", gpus=1), applicant, hub.queue, await hub.ledger.read()
    )
    page = form.render(Limits(VERSIONS, "torch"), Choice(), View(), lambda each: told)
    assert "Course Machine &lt;learning&gt; has as many GPUs" in page
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await begin(one, course="nlp")
    await one.run_pre_spawn_hook()
    assert one.attempt.reservation
    assert one.attempt.reservation.groups == {"g", course_group("nlp")}


async def test_a_student_who_leaves_a_course_while_waiting_has_the_rules_of_then() -> None:
    hub = Hub()
    hub.occupy()
    one = hub.spawner(("g",), courses=declared())
    await begin(one, course="ml")
    task = await waiting(one, hub)
    one.user.groups = []
    hub.free_all()
    with pytest.raises(Exception, match="you are in none"):
        await task
    assert hub.held() == 0


async def test_a_key_of_hooks_of_that_name_stays_theirs_where_there_is_no_course() -> None:
    hub = Hub()
    one = hub.spawner(apply_user_options=lambda spawner, options: None)
    checked = await check_choice({"course": ["x"]}, one.applicant(), hub.ledger, hub.queue)
    assert checked.request.course == ""


def mounts(groups: str) -> Mapping[str, str]:
    text = {"ml": {**read_yaml(ML)["ml-101"]}}
    one = Hub().spawner(tuple(groups.split()), courses=text)
    return {
        each.path.removeprefix("/home/jovyan/"): "rw" if each.writable else "ro"
        for each in one.volumes_of_user()
    }


def read_yaml(text: str) -> Any:
    from gpuspawner.untrusted import parse_yaml

    return parse_yaml(text)


def test_who_has_which_folder() -> None:
    assert mounts("") == {}
    assert mounts("students") == {"ml-101": "ro", "all": "rw"}
    assert mounts("students red") == {"ml-101": "ro", "all": "rw", "team/red": "rw"}
    assert mounts("staff") == {"ml-101": "rw", "all": "rw", "team/red": "rw", "team/blue": "rw"}


def test_who_is_in_two_courses_picks_one_and_who_is_in_none_sees_nothing() -> None:
    node = host(gpu(0))
    assert 'name="course"' not in shown(limits(""), Choice(), node)
    assert 'name="course"' not in shown(limits(), Choice(), node)
    assert courses_offered(limits(TWO)) == ["a", "b"]
    page = shown(limits(TWO), Choice(course="b"), node)
    assert page.count('name="course"') == 2
    assert 'value="b" checked' in page
    assert 'name="course"' in shown(limits(ML, "ml-101"), Choice(course="gone"), node)


def test_the_form_says_what_is_reserved_and_offers_the_time_before() -> None:
    now = time.time()
    reserved = [ReservedTime("ml-101", now + 2 * 3600, now + 4 * 3600, 1)]
    view = host(gpu(0))
    one = Request("torch", 1, seconds=4 * 3600.0)
    (turn,) = Planner().plan(
        [QueuedRequest(Holder("ada"), one, now)], view.gpus, (), now, reserved=reserved
    )
    assert turn.because == "reserved"
    assert turn.hours
    turn = replace(turn, course_title="Machine <learning>")
    page = form.render(
        Limits(VERSIONS, "torch", hours=8, default_hours=4),
        Choice(gpus=1),
        view,
        lambda each: Forecast("wait", 1, turn, free=1) if each.gpus else Forecast("now"),
    )
    soup = BeautifulSoup(page, "html.parser")
    said = soup.find(id="gpuspawner-sentence").get_text(" ", strip=True)  # type: ignore[union-attr]
    assert "Reserved for course Machine <learning> from" in said
    assert "Machine &lt;learning&gt;" in page
    assert "With less time, until" in said
    times = {each["value"]: each for each in soup.find_all("input", attrs={"name": "hours"})}
    (shorter,) = [each for each in times if each not in ("1", "2", "4", "8")]
    assert float(shorter) == pytest.approx(115 / 60, abs=0.02)
    sent = Request("torch", 1, seconds=float(shorter) * 3600)
    (again,) = Planner().plan(
        [QueuedRequest(Holder("ada"), sent, now)], view.gpus, (), now, reserved=reserved
    )
    assert again.gpus


def test_the_trait_and_the_file_read_alike() -> None:
    assert read_courses({"a": {"group": ("g",)}}, "courses").courses == {
        "a": read_file("a: {group: [g]}", "f").courses["a"]
    }
