"""Reserved hours: the rules, and the clock on the wall."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from itertools import pairwise
from unittest import mock
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.courses.hours import ReservedHours
from gpuspawner.courses.reading import read_courses, read_file

BERLIN = "Europe/Berlin"


def hours(begin: str, end: str, **more: object) -> ReservedHours:
    return ReservedHours(begin, end, 1, **{"zone": BERLIN, **more})  # type: ignore[arg-type]


def walls(rule: ReservedHours) -> list[str]:
    """The times as the clock on the wall shows them, with the zone's distance from UTC."""
    zone = ZoneInfo(rule.zone)
    return [
        " ".join(f"{datetime.fromtimestamp(each, zone):%m-%dT%H:%M%z}" for each in pair)
        for pair in rule.times()
    ]


def test_lessons_stay_at_their_hour_when_the_clock_changes() -> None:
    rule = hours("2026-10-19T10:00", "12:00", repeat="FREQ=WEEKLY;COUNT=3", exceptions=())
    assert walls(rule) == [
        "10-19T10:00+0200 10-19T12:00+0200",
        "10-26T10:00+0100 10-26T12:00+0100",
        "11-02T10:00+0100 11-02T12:00+0100",
    ]


def test_once_on_some_days_and_not_on_others() -> None:
    assert len(walls(hours("2026-10-05T10:00", "12:00"))) == 1
    rule = hours(
        "2026-10-05T10:00",
        "12:00",
        repeat="FREQ=WEEKLY;BYDAY=MO,WE;UNTIL=20261014",
        exceptions=("2026-10-07",),
    )
    assert [each[:5] for each in walls(rule)] == ["10-05", "10-12", "10-14"]
    night = hours("2026-10-24T22:00", "2026-10-25T06:00")
    ((begin, end),) = night.times()
    assert end - begin == 9 * 3600


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (hours("2026-10-05 10:00", "12:00"), "begin: a time is written as"),
        (hours("2026-10-05T10:00", "noon"), "end: a time is written as"),
        (hours("2026-10-05T10:00", "10:00"), "end: 10:00 has to come after begin"),
        (hours("2026-10-05T10:00", "09:00"), "end: 09:00 has to come after begin"),
        (hours("2026-10-05T10:00", "2027-10-05T10:00"), "within 168 hours"),
        (hours("2026-02-30T10:00", "12:00"), "begin: a time is written as"),
        (hours("2026-03-29T02:30", "05:00"), "begin: on 2026-03-29 there is no 02:30"),
        (hours("2026-03-29T01:30", "02:30"), "end: on 2026-03-29 there is no 02:30"),
        (
            hours("2026-03-22T02:30", "03:00", repeat="FREQ=WEEKLY;COUNT=3"),
            "begin: on 2026-03-29 there is no 02:30: the clock changes",
        ),
        (hours("2026-10-05T10:00", "12:00", zone="Mars/North"), "no time zone 'Mars/North'"),
        (hours("2026-10-05T10:00", "12:00", zone="../../etc/passwd"), "no time zone"),
        (hours("2026-10-05T10:00", "12:00", repeat="FREQ=WEEKLY"), "needs an end, UNTIL or COUNT"),
        (
            hours("2026-10-05T10:00", "12:00", repeat="FREQ=WEEKLY;UNTIL=20260101"),
            "UNTIL=20260101 is before the begin",
        ),
        (hours("2026-10-05T10:00", "12:00", repeat="FREQ=SECONDLY;COUNT=3"), "isn't understood"),
        (hours("2026-10-05T10:00", "12:00", repeat="WEEKLY"), "'WEEKLY' isn't understood"),
        (hours("2026-10-05T10:00", "12:00", repeat="COUNT=3"), "lacks FREQ"),
        (hours("2026-10-05T10:00", "12:00", repeat="FREQ=DAILY;UNTIL=20261399"), "is no time"),
        (
            hours("2026-10-05T10:00", "12:00", repeat="FREQ=DAILY;UNTIL=20400101"),
            "more than 1000 times",
        ),
        (
            hours("2026-10-05T10:00", "12:00", repeat="FREQ=MONTHLY;INTERVAL=99;UNTIL=99991231"),
            "repeat: the last time of UNTIL=99991231 has to be in the years 2000 to 2099",
        ),
        (
            hours("2026-10-05T10:00", "12:00", repeat="FREQ=WEEKLY;INTERVAL=99;COUNT=999"),
            "repeat: the last time of FREQ=WEEKLY;INTERVAL=99;COUNT=999 has to be in the years",
        ),
        (
            hours("2099-12-24T23:00", "2099-12-25T01:00", repeat="FREQ=WEEKLY;COUNT=2"),
            "repeat: the last time of FREQ=WEEKLY;COUNT=2 has to be in the years 2000 to 2099",
        ),
        (
            hours(
                "2026-10-05T10:00",
                "12:00",
                repeat="FREQ=WEEKLY;UNTIL=00010101T000000Z",
                zone="America/New_York",
            ),
            "repeat: the last time of UNTIL=00010101T000000Z has to be in the years 2000 to 2099",
        ),
        (
            hours(
                "2026-10-05T10:00",
                "12:00",
                repeat="FREQ=WEEKLY;UNTIL=99991231T235959Z",
                zone="Asia/Tokyo",
            ),
            "repeat: the last time of UNTIL=99991231T235959Z has to be in the years 2000 to 2099",
        ),
        (hours("2100-01-01T10:00", "12:00"), "begin: 2100-01-01T10:00 isn't in this century"),
        (hours("2099-12-31T22:00", "2100-01-01T01:00"), "isn't in this century"),
        (
            hours("2026-10-05T10:00", "12:00", exceptions=("9999-12-31",)),
            "exceptions: on 9999-12-31 there are no such hours",
        ),
        (
            hours("2026-10-05T10:00", "2026-10-07T10:00", repeat="FREQ=DAILY;COUNT=3"),
            "the hours of 2026-10-06 begin before the last end",
        ),
        (
            hours("2026-10-05T10:00", "12:00", exceptions=("2026-10-06",)),
            "exceptions: on 2026-10-06 there are no such hours",
        ),
        (hours("2026-10-05T10:00", "12:00", exceptions=("2026-10-05",)), "means no time at all"),
        (hours("2026-10-05T10:00", "12:00", exceptions=("monday",)), "a day is written as"),
        (hours("2026-10-05T10:00", "12:00", slots=1), "slots: one slot of a GPU is the whole GPU"),
        (
            hours("2026-10-05T10:00", "12:00", slots=15, kind="shared"),
            "slots: only whole GPUs are divided into slots, not 'shared'",
        ),
        (
            hours("2026-10-05T10:00", "12:00", slots=2, kind="1g.10gb"),
            "slots: only whole GPUs are divided into slots, not '1g.10gb'",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(rule: ReservedHours, says: str) -> None:
    with pytest.raises(ValueError, match=r"^[a-z]+: ") as error:
        list(rule.times())
    assert says in str(error.value)


@pytest.mark.parametrize("day", ["TU", "TU,SU", "1TU"])
@pytest.mark.parametrize("end", ["COUNT=1", "UNTIL=20991231"])
def test_no_rule_is_walked_through_to_the_end_of_all_years(day: str, end: str) -> None:
    """Each of every seventh days is a Monday: that none is a Tuesday is known without looking."""
    rule = hours("2000-01-03T10:00", "12:00", repeat=f"FREQ=DAILY;INTERVAL=7;BYDAY={day};{end}")
    with (
        mock.patch("gpuspawner.courses.hours.rrulestr", side_effect=AssertionError),
        pytest.raises(ValueError, match="means no time at all"),
    ):
        list(rule.times())


def test_every_seventh_day_is_the_begin_s_day_of_the_week() -> None:
    rule = hours("2000-01-03T10:00", "12:00", repeat="FREQ=DAILY;INTERVAL=7;BYDAY=TU,MO;COUNT=3")
    assert [each[:5] for each in walls(rule)] == ["01-03", "01-10", "01-17"]


def test_a_course_with_wrong_hours_is_named_and_nothing_of_it_is_taken() -> None:
    entry = {"group": "g", "reserved": [{"begin": "2026-10-05T10:00", "end": "12:00", "gpus": 2}]}
    assert read_courses({"a": entry}, "courses").courses["a"].reserved[0].gpus == 2
    for wrong, says in (
        ({"gpus": 0}, "reserved.0.gpus: "),
        ({"end": "08:00"}, "reserved.0: end: 08:00 has to come after begin"),
        ({"ends": "08:00"}, "reserved.0.ends: there is no such key"),
    ):
        made = {"group": "g", "reserved": [{**entry["reserved"][0], **wrong}]}  # type: ignore[dict-item]
        read = read_courses({"a": made}, "courses")
        assert read.courses == {}
        assert says in read.problems["a"]
    twice = {"group": "g", "reserved": [*entry["reserved"], *entry["reserved"]]}
    assert "overlaps reserved.0" in read_courses({"a": twice}, "courses").problems["a"]


SLOTS = [
    ({"slots": True}, "slots: "),
    ({"slots": 1.5}, "slots: "),
    ({"slots": "15"}, "slots: "),
    ({"slots": None}, "slots: "),
    ({"slots": [15]}, "slots: "),
    ({"slots": 65}, "slots: input should be less than or equal to 64, got 65"),
    ({"slots": 10**400}, "slots: "),
    ({"slots": -1}, "slots: input should be greater than or equal to 0, got -1"),
    ({"slots": 1}, "slots: one slot of a GPU is the whole GPU: from 2 to 64, or 0 for whole GPUs"),
    ({"slots": 2, "kind": "shared"}, "slots: only whole GPUs are divided into slots"),
    ({"slots": 2, "kind": "1g.10gb"}, "slots: only whole GPUs are divided into slots"),
]


@pytest.mark.parametrize(("wrong", "says"), SLOTS)
def test_slots_that_can_not_be_are_named_in_hours_and_calendars(
    wrong: dict[str, object], says: str
) -> None:
    hour = {"begin": "2026-10-05T10:00", "end": "12:00", "gpus": 4, **wrong}
    read = read_courses({"a": {"group": "g", "reserved": [hour]}}, "courses")
    assert read.courses == {}
    assert read.problems["a"].startswith("courses['a']: reserved.0")
    assert says in read.problems["a"]
    calendar = {"file": "ml.ics", "gpus": 4, **wrong}
    read = read_courses({"a": {"group": "g", "calendar": calendar}}, "courses")
    assert read.courses == {}
    assert read.problems["a"].startswith("courses['a']: calendar.slots: ")
    assert says in read.problems["a"]


@pytest.mark.parametrize(("slots", "seats"), [({}, 0), ({"slots": 0}, 0), ({"slots": 15}, 60)])
def test_hours_as_slots_seat_so_many(slots: dict[str, int], seats: int) -> None:
    text = f"""
a:
  group: g
  reserved: [{{begin: "2026-10-05T10:00", end: "12:00", gpus: 4, {json.dumps(slots)[1:-1]}}}]
"""
    (found,) = read_file(text, "courses.yaml").courses["a"].reserved
    assert (found.slots, found.seats) == (slots.get("slots", 0), seats)
    assert len(list(found.times())) == 1


def test_the_line_of_wrong_slots_is_named() -> None:
    text = """
a:
  group: g
  reserved:
    - begin: "2026-10-05T10:00"
      end: "12:00"
      gpus: 4
      slots: 65
b:
  group: g
  calendar:
    file: ml.ics
    gpus: 4
    slots: 1
"""
    problems = read_file(text, "courses.yaml").problems
    assert problems["a"].startswith("courses.yaml, line 8: course 'a': reserved.0.slots: ")
    assert problems["b"].startswith("courses.yaml, line 14: course 'b': calendar.slots: one slot")


@given(
    st.datetimes(datetime(2001, 1, 1), datetime(2098, 1, 1)),
    st.integers(1, 48),
    st.integers(1, 60),
    st.sampled_from(["DAILY", "WEEKLY"]),
    st.sampled_from([BERLIN, "America/New_York", "Australia/Lord_Howe", "UTC", "Asia/Shanghai"]),
)
def test_every_time_is_at_the_same_hour_and_none_overlaps_the_next(
    begin: datetime, length: int, count: int, often: str, zone: str
) -> None:
    first = begin.replace(second=0, microsecond=0)
    end = datetime.fromtimestamp(
        first.replace(tzinfo=timezone.utc).timestamp() + 1800 * length, timezone.utc
    )
    rule = ReservedHours(
        f"{first:%Y-%m-%dT%H:%M}",
        f"{end:%Y-%m-%dT%H:%M}",
        1,
        repeat=f"FREQ={often};COUNT={count}",
        zone=zone,
    )
    try:
        times = list(rule.times())
    except ValueError as error:
        refusal = str(error)
        times = []
    if not times:
        assert "the clock changes" in refusal
        return
    assert len(times) == count
    for (one, until), (other, _) in pairwise(times):
        assert one < until <= other
    assert {f"{datetime.fromtimestamp(each, ZoneInfo(zone)):%H:%M}" for each, _ in times} == {
        f"{first:%H:%M}"
    }
