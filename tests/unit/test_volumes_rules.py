"""Which volumes a user gets, and which settings are refused before anybody gets one."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

import pytest

from gpuspawner.backends.docker.volumes import (
    Volume,
    check_courses,
    check_earlier,
    check_home,
    check_template,
    fitting_name,
    user_volumes,
)


@pytest.mark.parametrize(
    "template",
    [
        "",
        "home-{username}",
        "{username}",
        "{prefix}-{username}-{servername}",
        "h-{username}-{imagename}",
    ],
)
def test_a_home_of_ones_own_is_allowed(template: str) -> None:
    assert check_home(template) == template


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("home-{raw_username}", "{raw_username} isn't escaped, .*. Write {username} instead."),
        ("{username}-{raw_servername}", "{raw_servername} isn't escaped, .*. Write {servername} "),
        # However str.format is made to write it.
        ("{username}-{raw_username!s}", "{raw_username} isn't escaped"),
        ("{username}-{raw_username:>9}", "{raw_username} isn't escaped"),
        ("/srv/homes/{username}", "name a volume, not a folder"),
        ("homes/{username}", "name a volume, not a folder"),
        ("home", "without {username} all users would share one volume"),
        ("home-{servername}", "without {username} all users would share one volume"),
    ],
)
def test_a_home_that_leads_to_somebody_elses_files_is_refused(template: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=rf"home_volume = {re.escape(repr(template))}: {sentence}"):
        check_home(template)


def test_a_name_that_is_too_long_for_a_volume_is_shortened_and_one_s_own() -> None:
    for name in ("home-ada", "h" * 255, "home-学"):
        assert fitting_name(name) == name
    long = ["h" * 256, "h" * 255 + "x", "h" * 5000, "学" * 86, "学" * 87]
    names = [fitting_name(name) for name in long]
    assert len(set(names)) == len(long)
    for name, whole in zip(names, long, strict=True):
        assert len(name.encode()) <= 255
        assert whole.startswith(name.rpartition("-")[0])
        assert fitting_name(whole) == name


def test_a_volume_for_all_may_be_named_without_a_user() -> None:
    assert check_template("course_volumes", "ml-101", per_user=False) == "ml-101"
    assert check_template("course_volumes", "", per_user=True) == ""


@pytest.mark.parametrize(
    ("entry", "checked"),
    [
        ("/home/jovyan/ml", {"path": "/home/jovyan/ml", "instructors": []}),
        ({"path": "/ml"}, {"path": "/ml", "instructors": []}),
        ({"path": "/ml", "instructors": None}, {"path": "/ml", "instructors": []}),
        ({"path": "/ml", "instructors": "staff"}, {"path": "/ml", "instructors": ["staff"]}),
        ({"path": "/ml", "instructors": ("a", "b")}, {"path": "/ml", "instructors": ["a", "b"]}),
        ({"path": "/ml", "instructors": {"staff"}}, {"path": "/ml", "instructors": ["staff"]}),
        ({"path": "/ml", "readers": None}, {"path": "/ml", "instructors": []}),
        ({"path": "/ml", "readers": "a"}, {"path": "/ml", "instructors": [], "readers": ["a"]}),
        ({"path": "/ml", "readers": []}, {"path": "/ml", "instructors": [], "readers": []}),
    ],
)
def test_a_course_is_a_folder_and_who_may_write_to_it(entry: Any, checked: Any) -> None:
    assert check_courses({"ml-101": entry}) == {"ml-101": checked}
    assert check_courses({"ml-101": checked}) == {"ml-101": checked}  # checking twice is harmless


def test_there_may_be_no_course() -> None:
    assert check_courses({}) == {}


@pytest.mark.parametrize(
    ("courses", "sentence"),
    [
        ({"ml": {}}, "course_volumes['ml']: 'path' must be a folder in the container"),
        ({"ml": ""}, "course_volumes['ml']: 'path' must be a folder in the container"),
        ({"ml": "ml"}, "course_volumes['ml']: 'path' must be a folder in the container"),
        ({"ml": {"path": None}}, "course_volumes['ml']: 'path' must be a folder"),
        ({"ml": {"path": PurePosixPath("/ml")}}, "course_volumes['ml']: 'path' must be a folder"),
        (
            {"ml": {"path": "/ml", "mode": "rw"}},
            "course_volumes['ml']: 'mode' is neither 'path' nor",
        ),
        ({"ml": {"path": "/ml", 1: 2}}, "course_volumes['ml']: '1' is neither 'path' nor"),
        ({"ml": None}, "course_volumes['ml'] must be a folder, or a mapping with 'path'"),
        ({"ml": ["/ml"]}, "course_volumes['ml'] must be a folder, or a mapping with 'path'"),
        (
            {"ml": {"path": "/ml", "instructors": 5}},
            "course_volumes['ml']: 'instructors' must be a list of groups, got 5",
        ),
        (
            {"ml": {"path": "/ml", "instructors": ["staff", None]}},
            "course_volumes['ml']: 'instructors' must be a list of groups, got ['staff', None]",
        ),
        (
            {"ml": {"path": "/ml", "readers": {"vision": True}}},
            "course_volumes['ml']: 'readers' must be a list of groups, got {'vision': True}",
        ),
        ({"/srv/ml": "/ml"}, "course_volumes['/srv/ml'] = '/srv/ml': name a volume, not a folder"),
        (
            {"ml-{raw_username}": "/ml"},
            "course_volumes['ml-{raw_username}'] = 'ml-{raw_username}': {raw_username} isn't",
        ),
        ({"": "/ml"}, "course_volumes['']: a volume's name must be a text"),
        ({7: "/ml"}, "course_volumes[7]: a volume's name must be a text"),
        ({"fine": "/fine", "ml": "ml"}, "course_volumes['ml']: 'path' must be"),
    ],
)
def test_a_broken_course_is_refused_by_its_name(courses: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        check_courses(courses)


COURSES = check_courses(
    {
        "ml-101": {"path": "/home/jovyan/ml", "instructors": ["ml-staff", "deans"]},
        "open": "/home/jovyan/open",
    }
)
HOME = Volume("home-{username}", "/home/jovyan/work", True, own=True)


@pytest.mark.parametrize(
    ("groups", "writes"),
    [
        ([], False),
        (["students"], False),
        (["students", "ml-staff"], True),
        (["deans"], True),
        (["ml"], False),
        (["ML-STAFF"], False),
    ],
)
def test_everybody_reads_a_course_and_its_instructors_write(groups: Any, writes: bool) -> None:
    assert user_volumes(HOME.name, HOME.path, {}, COURSES, groups) == [
        HOME,
        Volume("ml-101", "/home/jovyan/ml", writes),
        Volume("open", "/home/jovyan/open", False),
    ]


@pytest.mark.parametrize(
    ("groups", "has"),
    [
        ([], {}),
        (["students"], {}),
        (["vision"], {"data": False}),
        (["vision", "curators"], {"data": True, "drafts": True}),
        (["curators"], {"data": True, "drafts": True}),
        (["Vision"], {}),
    ],
)
def test_a_volume_with_readers_is_mounted_for_members_only(groups: Any, has: Any) -> None:
    volumes = check_courses(
        {
            "data": {"path": "/data", "readers": ["vision"], "instructors": ["curators"]},
            "drafts": {"path": "/drafts", "readers": [], "instructors": ["curators"]},
        }
    )
    found = user_volumes("", "", {}, volumes, groups)
    assert {each.name: each.writable for each in found} == has


def test_without_a_home_volume_there_are_the_courses_and_without_both_nothing() -> None:
    assert [volume.name for volume in user_volumes("", "/home/x", {}, COURSES, [])] == [
        "ml-101",
        "open",
    ]
    assert user_volumes("", "/home/x", {}, {}, ["deans"]) == []
    assert user_volumes(HOME.name, HOME.path, {}, {}, []) == [HOME]


def test_volumes_of_an_earlier_configuration_are_the_user_s_own() -> None:
    old = {"old-{username}": "/home/jovyan/work"}
    assert user_volumes("home-{username}", "/home/jovyan", old, {}, []) == [
        Volume("home-{username}", "/home/jovyan", True, own=True),
        Volume("old-{username}", "/home/jovyan/work", True, own=True, earlier=True),
    ]


@pytest.mark.parametrize(
    ("earlier", "says"),
    [
        ({"old": "/home/jovyan/work"}, "without {username} all users would share one volume"),
        ({"old-{raw_username}": "/x"}, "isn't escaped"),
        ({"/srv/{username}": "/x"}, "name a volume, not a folder"),
        ({"old-{username}": "work"}, "must be a folder in the container"),
        ({"old-{username}": None}, "must be a folder in the container"),
    ],
)
def test_a_wrong_earlier_volume_is_refused_with_its_name(earlier: Any, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        check_earlier(earlier)
    assert f"earlier_home_volumes[{next(iter(earlier))!r}]" in str(error.value)
