"""Reserved hours as calendars: what is written others read, and what others write is read."""

from __future__ import annotations

import io
import logging
import os
import re
import time
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from dateutil import rrule, tz
from hypothesis import example, given
from hypothesis import strategies as st

from gpuspawner.courses import calendar_feed
from gpuspawner.courses.calendar_file import MAX_FILE, read_calendar
from gpuspawner.courses.catalogue import CourseCatalogue
from gpuspawner.courses.hours import ReservedHours
from gpuspawner.courses.model import Course, CourseCalendar
from gpuspawner.courses.reading import read_courses

from ..support.boards import HOSTILE

BERLIN = "Europe/Berlin"
ML = Course("ml", ("students",), "Maschinelles Lernen")
OF_ML = CourseCalendar("ml.ics", 2)
LOG = logging.getLogger("calendars")
Times = list[tuple[int, int]]


def written(*hours: ReservedHours, course: Course = ML) -> str:
    """Return a calendar's text."""
    pairs = [(course, each) for each in hours]
    zones = [calendar_feed.zone_lines(each) for each in calendar_feed.spans(pairs)]
    events = [
        {**event, "summary": course.name, "category": course.key}
        for _, each in pairs
        for event in calendar_feed.events_of(course, each, "hub")
    ]
    return calendar_feed.calendar("Reserved GPUs", zones, events, 0)


def unfolded(text: str) -> list[str]:
    return re.sub(r"\r\n[ \t]", "", text).split("\r\n")


def understood(text: str) -> Times:
    """Return what another program makes of a calendar: by dateutil's rules and time zones."""
    block = "\r\n".join(unfolded(text))
    zones = tz.tzical(io.StringIO(block)) if "VTIMEZONE" in block else None
    found: Times = []
    for event in re.findall(r"BEGIN:VEVENT\r\n(.*?)END:VEVENT", block, re.DOTALL):
        lines = dict(re.findall(r"^(DTSTART|DTEND|RRULE)[^:\r\n]*:(.*?)\r?$", event, re.MULTILINE))
        (name,) = set(re.findall(r"^DTSTART;TZID=([^:]+):", event, re.MULTILINE))
        assert zones is not None
        zone = zones.get(name)
        begin, end = (
            datetime.strptime(lines[each], "%Y%m%dT%H%M%S").replace(tzinfo=zone)
            for each in ("DTSTART", "DTEND")
        )
        length = end.timestamp() - begin.timestamp()
        starts = [begin]
        if "RRULE" in lines:
            starts = list(rrule.rrulestr(lines["RRULE"], dtstart=begin))
        out = re.findall(r"^EXDATE;TZID=[^:]+:(.*?)\r?$", event, re.MULTILINE)
        walls = {datetime.strptime(each, "%Y%m%dT%H%M%S") for each in out}
        found += [
            (round(each.timestamp()), round(each.timestamp() + length))
            for each in starts
            if each.replace(tzinfo=None) not in walls
        ]
    return sorted(found)


def meant(*hours: ReservedHours) -> Times:
    return sorted((round(begin), round(end)) for each in hours for begin, end in each.times())


ZONES = [
    BERLIN,
    "America/New_York",
    "Australia/Lord_Howe",
    "UTC",
    "Asia/Shanghai",
    "Africa/Casablanca",
]
RULES = ["DAILY", "WEEKLY", "WEEKLY;INTERVAL=2;BYDAY=MO,WE", "MONTHLY;BYDAY=+1TU,-1FR", "MONTHLY"]


@st.composite
def drawn_hours(draw: Any) -> ReservedHours:
    """Hours of the years to come, which can be."""
    first = draw(st.datetimes(datetime(2030, 1, 1), datetime(2037, 1, 1)))
    begin = first.replace(second=0, microsecond=0)
    end = begin + timedelta(minutes=draw(st.integers(1, 1000)))
    zone = draw(st.sampled_from(ZONES))
    rule = draw(st.sampled_from(["", *RULES]))
    if rule:
        until = f"{begin + timedelta(days=draw(st.integers(0, 400))):%Y%m%d}"
        bound = draw(st.sampled_from([f"COUNT={draw(st.integers(1, 40))}", f"UNTIL={until}"]))
        rule = f"FREQ={rule};{bound}"
    hours = ReservedHours(f"{begin:%Y-%m-%dT%H:%M}", f"{end:%Y-%m-%dT%H:%M}", 2, rule, zone=zone)
    try:
        days = sorted({each.date().isoformat() for each in hours.wall_times()[0]})
        out = draw(st.sets(st.sampled_from(days), max_size=3)) if rule and len(days) > 3 else set()
        hours = ReservedHours(hours.begin, hours.end, 2, rule, tuple(sorted(out)), zone=zone)
        list(hours.times())
    except ValueError:  # the clock changes, or it means no time at all
        return ReservedHours("2030-01-07T10:00", "12:00", 2, zone=zone)
    return hours


AUTUMN = ReservedHours("2030-10-26T22:00", "2030-10-27T06:00", 2, "FREQ=DAILY;COUNT=3", zone=BERLIN)
WEEKLY = ReservedHours(
    "2030-10-07T10:00", "12:00", 2, "FREQ=WEEKLY;UNTIL=20310207", ("2030-12-23",), zone=BERLIN
)


@given(drawn_hours())
@example(AUTUMN)
@example(WEEKLY)
def test_what_is_written_others_read_as_it_is_meant(hours: ReservedHours) -> None:
    assert understood(written(hours)) == meant(hours)


@given(drawn_hours())
@example(AUTUMN)
@example(WEEKLY)
def test_what_is_written_is_read_again_as_it_was(hours: ReservedHours) -> None:
    found = read_calendar(written(hours).encode(), OF_ML, 0)
    assert meant(*found) == meant(hours)
    assert {(each.gpus, each.kind, each.model) for each in found} == {(2, "gpu", "")}


def test_a_rule_is_kept_and_an_event_keeps_its_name() -> None:
    lines = unfolded(written(WEEKLY))
    assert "RRULE:FREQ=WEEKLY;UNTIL=20310207T225959Z" in lines
    assert "EXDATE;TZID=Europe/Berlin:20301223T100000" in lines
    uid = [each for each in lines if each.startswith("UID:")]
    longer = ReservedHours(
        WEEKLY.begin, "13:00", 3, "FREQ=WEEKLY;UNTIL=20310301", zone=BERLIN, model="A100"
    )
    assert uid == [each for each in unfolded(written(longer)) if each.startswith("UID:")]
    other = ReservedHours("2030-10-08T10:00", "12:00", 2, zone=BERLIN)
    names = re.findall(r"UID:(\S+)", written(WEEKLY, other, AUTUMN))
    assert len(set(names)) == len(names) == 2 + 3


@given(st.text(max_size=400))
@example("ä" * 200)
@example("🎓" * 60)
def test_lines_are_short_and_no_letter_is_torn_apart(title: str) -> None:
    course = Course("ml", ("g",), title or "x")
    text = written(WEEKLY, course=course)
    for line in text.encode("utf-8", "surrogatepass").split(b"\r\n"):
        assert len(line) <= 75
        line.decode("utf-8", "surrogatepass")
    # Whatever a title has, the calendar has one event, and its lines are as many.
    assert text.count("BEGIN:VEVENT\r\n") == 1
    assert len(unfolded(text)) == len(unfolded(written(WEEKLY)))
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", text)


def test_a_machine_s_zone_without_a_name_is_written_as_well(in_zone) -> None:
    in_zone("CET-1CEST,M3.5.0,M10.5.0/3")
    hours = ReservedHours("2030-10-07T10:00", "12:00", 2, "FREQ=WEEKLY;COUNT=6")
    text = written(hours)
    assert "TZID:local" in text
    assert understood(text) == meant(hours)
    begins = [datetime.fromtimestamp(each, ZoneInfo(BERLIN)) for each, _ in meant(hours)]
    assert {each.hour for each in begins} == {10}


# A timetable's file -------------------------------------------------------------------------------


def ics(*lines: str, head: str = "") -> bytes:
    """A calendar with one event."""
    event = ["BEGIN:VEVENT", "UID:1", "SUMMARY:Lecture\\, part 1", *lines, "END:VEVENT"]
    return "\r\n".join(
        ["BEGIN:VCALENDAR", *filter(None, [head]), *event, "END:VCALENDAR", ""]
    ).encode()


START, END = (
    "DTSTART;TZID=Europe/Berlin:20301007T100000",
    "DTEND;TZID=Europe/Berlin:20301007T120000",
)


def walls(content: bytes, zone: str = "", now: float = 0) -> list[str]:
    """The times as a clock in Berlin shows them."""
    found = read_calendar(content, CourseCalendar("ml.ics", 2, zone=zone), now)
    return [
        f"{datetime.fromtimestamp(begin, ZoneInfo(BERLIN)):%m-%dT%H:%M}-"
        f"{datetime.fromtimestamp(end, ZoneInfo(BERLIN)):%H:%M}"
        for begin, end in meant(*found)
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (ics(START, END), ["10-07T10:00-12:00"]),
        (ics(START, "DURATION:PT1H30M"), ["10-07T10:00-11:30"]),
        (ics("DTSTART:20301007T080000Z", "DTEND:20301007T100000Z"), ["10-07T10:00-12:00"]),
        # As Outlook, and as Evolution name a zone.
        (
            ics(
                "DTSTART;TZID=W. Europe Standard Time:20301007T100000",
                "DTEND;TZID=W. Europe Standard Time:20301007T120000",
                "RRULE:FREQ=WEEKLY;UNTIL=20301028T090000Z;INTERVAL=1;BYDAY=MO;WKST=SU",
            ),
            ["10-07T10:00-12:00", "10-14T10:00-12:00", "10-21T10:00-12:00", "10-28T10:00-12:00"],
        ),
        (
            ics(
                'DTSTART;TZID="/freeassociation.sourceforge.net/Europe/Berlin":20301007T100000',
                "DTEND;TZID=/freeassociation.sourceforge.net/Europe/Berlin:20301007T120000",
            ),
            ["10-07T10:00-12:00"],
        ),
        # Its end in another zone than its begin.
        (ics(START, "DTEND;TZID=America/New_York:20301007T060000"), ["10-07T10:00-12:00"]),
        (
            ics(
                START,
                END,
                "RRULE:FREQ=WEEKLY;COUNT=4",
                "EXDATE;TZID=Europe/Berlin:20301014T100000",
                "EXDATE:20301021T080000Z,20991224T100000Z",
            ),
            ["10-07T10:00-12:00", "10-28T10:00-12:00"],
        ),
        (
            ics(START, END, "RRULE:FREQ=WEEKLY;COUNT=2", "EXDATE;VALUE=DATE:20301007"),
            ["10-14T10:00-12:00"],
        ),
        # What is no hour: whole days, what is cancelled, what takes no time, what is left out.
        (ics("DTSTART;VALUE=DATE:20301007", "DTEND;VALUE=DATE:20301008"), []),
        (ics(START, END, "STATUS:CANCELLED"), []),
        (ics(START, END, "TRANSP:TRANSPARENT"), []),
        (ics(START, END, "RRULE:FREQ=WEEKLY;COUNT=1", "EXDATE:20301007T080000Z"), []),
        # An alarm has properties of its own.
        (
            ics(START, END, "BEGIN:VALARM", "TRIGGER:-PT15M", "DURATION:PT5M", "END:VALARM"),
            ["10-07T10:00-12:00"],
        ),
        # Folded, in the middle of a letter too, with other ends of lines, and with a mark before.
        (ics(START, "DTEND;TZID=Europe/Ber\r\n lin:20301007T\r\n\t120000"), ["10-07T10:00-12:00"]),
        (
            ics(START, END, "X-WHERE:Hörsaal").replace(b"\xc3\xb6", b"\xc3\r\n \xb6"),
            ["10-07T10:00-12:00"],
        ),
        (b"\xef\xbb\xbf" + ics(START, END).replace(b"\r\n", b"\n"), ["10-07T10:00-12:00"]),
        (b"BEGIN:VCALENDAR\nEND:VCALENDAR\n", []),
    ],
)
def test_what_a_timetable_s_program_writes(content: bytes, expected: list[str]) -> None:
    assert walls(content) == expected


def test_a_lesson_that_is_moved_is_where_it_was_moved_to() -> None:
    series = ics(START, END, "RRULE:FREQ=WEEKLY;COUNT=3").decode().replace("END:VCALENDAR\r\n", "")
    moved = (
        "BEGIN:VEVENT\r\nUID:1\r\nRECURRENCE-ID:20301014T080000Z\r\n"
        "DTSTART:20301015T120000Z\r\nDTEND:20301015T140000Z\r\nEND:VEVENT\r\n"
        "BEGIN:VEVENT\r\nUID:1\r\nRECURRENCE-ID;TZID=Europe/Berlin:20301021T100000\r\n"
        "DTSTART;TZID=Europe/Berlin:20301021T100000\r\nSTATUS:CANCELLED\r\nEND:VEVENT\r\n"
    )
    content = f"{series}{moved}END:VCALENDAR\r\n".encode()
    assert walls(content) == ["10-07T10:00-12:00", "10-15T14:00-16:00"]


def test_times_without_a_zone_are_those_of_the_calendar() -> None:
    content = ics("DTSTART:20301007T100000", "DTEND:20301007T120000")
    assert walls(content, BERLIN) == ["10-07T10:00-12:00"]
    assert walls(content, "America/New_York") == ["10-07T16:00-18:00"]
    (of_the_machine,) = read_calendar(content, OF_ML, 0)
    assert of_the_machine.zone == ""


def test_what_is_over_is_left_out() -> None:
    content = ics(START, END, "RRULE:FREQ=WEEKLY;COUNT=2")
    after = datetime(2030, 10, 8, tzinfo=timezone.utc).timestamp()
    assert len(walls(content, now=after)) == 2
    assert walls(content, now=after + 8 * 24 * 3600) == []


def many(number: int, *lines: str) -> bytes:
    """A calendar with so many events."""
    event = ["BEGIN:VEVENT", "DTSTART:20300101T000000Z", "DURATION:PT1H", *lines, "END:VEVENT"]
    return "\n".join(["BEGIN:VCALENDAR", *(event * number), "END:VCALENDAR"]).encode()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", None),
        (b"<html>", "line 1: a calendar begins with BEGIN:VCALENDAR"),
        (b"\xff\xfeB\x00", "line 1: it isn't UTF-8"),
        (ics(START, END).replace(b"Lecture", b"\xe4"), "line 4: it isn't UTF-8"),
        (ics(START, END)[:-15], "it ends before END:VCALENDAR"),
        (ics(START, END).replace(b"END:VEVENT", b"END:VTODO"), "ends what hasn't begun"),
        (ics(END), "line 2: event 'Lecture, part 1': it has no DTSTART"),
        (ics(START), "it has no end"),
        (ics(START, "DURATION:soon"), "DURATION: 'soon' isn't understood"),
        (ics(START, "DURATION:P"), "DURATION: 'P' isn't understood"),
        (ics(START, "DURATION:-PT1H"), "isn't understood"),
        (ics(START, "DURATION:PT0S"), "end: 2030-10-07T10:00 has to come after begin"),
        (ics(START, "DURATION:P99W"), "within 168 hours"),
        (ics(START, END.replace("1007T12", "1007T09")), "has to come after begin"),
        (ics(START, START, END), "it has DTSTART more than once"),
        (ics("DTSTART:20301341T100000Z", END), "DTSTART: '20301341T100000Z' is no time"),
        (ics("DTSTART:tomorrow", END), "DTSTART: 'tomorrow' is no time"),
        (ics("DTSTART:20301007T100030Z", "DURATION:PT1H"), "it begins at 10:00:30"),
        (ics("DTSTART:19700101T100000Z", "DURATION:PT1H"), "isn't in this century"),
        (
            ics("DTSTART;TZID=Mars/North:20301007T100000", "DURATION:PT1H"),
            "there is no time zone 'Mars/North'",
        ),
        (
            ics("DTSTART;TZID=../../../etc/passwd:20301007T100000", "DURATION:PT1H"),
            "there is no time zone '../../../etc/passwd'",
        ),
        (
            ics("DTSTART;TZID=Europe/Berlin:20310330T023000", "DURATION:PT1H"),
            "there is no 02:30: the clock changes",
        ),
        (ics(START, END, "RRULE:FREQ=WEEKLY"), "needs an end, UNTIL or COUNT"),
        (ics(START, END, "RRULE:FREQ=WEEKLY;UNTIL=20200101"), "is before the begin"),
        (ics(START, END, "RRULE:FREQ=SECONDLY;COUNT=3"), "isn't understood"),
        (ics(START, END, "RRULE:FREQ=YEARLY;COUNT=3"), "isn't understood"),
        (ics(START, END, "RRULE:FREQ=WEEKLY;COUNT=3;BYMONTHDAY=31"), "isn't understood"),
        (ics(START, END, "RRULE:FREQ=DAILY;UNTIL=20990101"), "more than 1000 times"),
        (ics(START, END, "RDATE:20301008T100000Z"), "RDATE can't be read"),
        (ics(START, END, "RECURRENCE-ID;RANGE=THISANDFUTURE:20301007T080000Z"), "with RANGE"),
        (ics(START, END, "RRULE:FREQ=DAILY;COUNT=2", "EXDATE:never"), "EXDATE: 'never' is no time"),
        (ics(START.replace("=Eur", '="Eur'), END), "isn't understood"),
        (many(500, "RRULE:FREQ=DAILY;COUNT=999"), "with it there are more than 5000 times"),
        (many(501), "there are more than 500 events"),
        (b"BEGIN:VCALENDAR\n" * 100, "it ends before END:VCALENDAR"),
        (b"BEGIN:VCALENDAR\n" + b" x" * MAX_FILE, "it is larger than 1048576 bytes"),
        (ics(f"DTSTART:{'9' * 100_000}", END), "is no time"),
        (ics(START, END, f"RRULE:FREQ=DAILY;COUNT={'9' * 5000}"), "repeat: 'COUNT=999"),
    ],
)
def test_what_cannot_be_read_is_named_and_nothing_of_it_is_taken(content, says) -> None:
    if says is None:
        assert walls(content) == []
        return
    with pytest.raises(ValueError, match=r"^[^\n]{1,500}$") as error:
        walls(content)
    assert says in str(error.value)


GOOD = ics(START, END, "RRULE:FREQ=WEEKLY;COUNT=3", "EXDATE:20301014T080000Z")


@given(st.data())
def test_whatever_a_file_has_is_hours_or_a_sentence(data: Any) -> None:
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content)))
        end = place + data.draw(st.integers(0, 6))
        content[place:end] = data.draw(
            st.one_of(
                st.binary(max_size=6), st.sampled_from([b":", b";", b'"', b"\n ", b"Z", b"=", b"T"])
            )
        )
    with suppress(ValueError):
        found = read_calendar(bytes(content), OF_ML, 0)
        assert all(begin < end for begin, end in meant(*found))


# Courses ------------------------------------------------------------------------------------------


def entry(file: Path, **more: Any) -> dict[str, Any]:
    return {
        "ml": {"group": "g", "calendar": {"file": str(file), "gpus": 2, "zone": BERLIN}, **more}
    }


def touch(file: Path, content: bytes) -> None:
    """Write it so that its time is another one."""
    file.write_bytes(content)
    os.utime(file, ns=(0, time.time_ns()))


def begins(catalogue: CourseCatalogue) -> list[str]:
    return [each.begin for each in catalogue.current()["ml"].reserved]


def test_a_calendar_is_read_again_when_it_changes_and_a_broken_one_changes_nothing(
    tmp_path: Path, caplog
) -> None:
    file = tmp_path / "ml.ics"
    own = {"begin": "2030-10-08T10:00", "end": "12:00", "gpus": 1, "zone": BERLIN}
    catalogue = CourseCatalogue(entry(file, reserved=[own]), "", LOG)
    assert begins(catalogue) == ["2030-10-08T10:00"]
    (said,) = [each.getMessage() for each in caplog.records]
    assert (
        said
        == f"The calendar of course 'ml': {file}: No such file or directory. It reserves nothing"
    )
    touch(file, ics(START, END))
    assert begins(catalogue) == ["2030-10-08T10:00", "2030-10-07T10:00"]
    assert catalogue.current() is catalogue.current()
    caplog.clear()
    touch(file, ics(START, END, "RRULE:FREQ=WEEKLY"))
    for _ in range(3):
        assert begins(catalogue) == ["2030-10-08T10:00", "2030-10-07T10:00"]
    (said,) = [each.getMessage() for each in caplog.records]
    assert said.startswith(
        f"The calendar of course 'ml': {file}, line 2: event 'Lecture, part 1': "
    )
    assert said.endswith("needs an end, UNTIL or COUNT, and not both. The hours of before stay")
    # Of what overlaps the course's other hours nothing is taken either.
    touch(file, ics(START.replace("1007", "1008"), "DURATION:PT1H"))
    assert begins(catalogue) == ["2030-10-08T10:00", "2030-10-07T10:00"]
    assert "the hours from 2030-10-08T10:00 on overlap those from" in caplog.text
    file.unlink()
    assert begins(catalogue) == ["2030-10-08T10:00", "2030-10-07T10:00"]
    touch(file, ics(START.replace("1007", "1009"), "DURATION:PT1H"))
    assert begins(catalogue) == ["2030-10-08T10:00", "2030-10-09T10:00"]


def test_a_calendar_of_a_course_of_the_file_goes_with_it(tmp_path: Path, caplog) -> None:
    file, courses = tmp_path / "ml.ics", tmp_path / "courses.yaml"
    file.write_bytes(ics(START, END))
    own = 'reserved: [{begin: "2030-10-07T11:00", end: "13:00", gpus: 1, zone: Europe/Berlin}]'
    text = f"ml:\n  group: g\n  calendar: {{file: {file}, gpus: 2}}\n"
    touch(courses, text.encode())
    catalogue = CourseCatalogue({}, str(courses), LOG)
    assert begins(catalogue) == ["2030-10-07T10:00"]
    assert catalogue.current()["ml"].reserved[0].gpus == 2
    # Other hours of the course may be in their way later.
    touch(courses, f"{text}  {own}\n".encode())
    assert begins(catalogue) == ["2030-10-07T11:00"]
    assert (
        "the hours from 2030-10-07T10:00 on overlap those from 2030-10-07T11:00 on" in caplog.text
    )
    touch(courses, text.replace("gpus: 2", "gpus: 3").encode())
    assert [(each.begin, each.gpus) for each in catalogue.current()["ml"].reserved] == [
        ("2030-10-07T10:00", 3)
    ]
    touch(courses, b"ml: {group: g}\n")
    assert begins(catalogue) == []


def test_the_events_of_a_calendar_are_hours_as_slots(tmp_path: Path) -> None:
    file = tmp_path / "ml.ics"
    file.write_bytes(ics(START, END, "RRULE:FREQ=WEEKLY;COUNT=3"))
    as_slots = entry(file)
    as_slots["ml"]["calendar"]["slots"] = 15
    for entries, slots in ((entry(file), 0), (as_slots, 15)):
        (found,) = CourseCatalogue(entries, "", LOG).current()["ml"].reserved
        assert (found.slots, found.unclaimed_minutes, len(list(found.times()))) == (slots, 15, 3)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, caplog, make) -> None:
    file = tmp_path / "ml.ics"
    make(file)
    assert begins(CourseCatalogue(entry(file), "", LOG)) == []
    assert f"{file}: it is no file. It reserves nothing" in caplog.text


@pytest.mark.parametrize(
    ("calendar", "says"),
    [
        ({"file": "ml.ics"}, "calendar.gpus: it is missing"),
        ({"gpus": 2}, "calendar.file: it is missing"),
        ({"file": "", "gpus": 2}, "calendar.file: "),
        ({"file": "a\0b", "gpus": 2}, "calendar.file: "),
        ({"file": "ml.ics", "gpus": 0}, "calendar.gpus: "),
        ({"file": "ml.ics", "gpus": 2, "until": 1}, "calendar.until: there is no such key"),
        ("ml.ics", "calendar: "),
    ],
)
def test_a_wrong_calendar_is_named(calendar, says) -> None:
    read = read_courses({"ml": {"group": "g", "calendar": calendar}}, "courses")
    assert says in read.problems["ml"]


def test_a_zone_that_there_is_not_is_named(tmp_path: Path, caplog) -> None:
    file = tmp_path / "ml.ics"
    file.write_bytes(ics(START, END))
    wrong = entry(file)
    wrong["ml"]["calendar"]["zone"] = HOSTILE
    assert begins(CourseCatalogue(wrong, "", LOG)) == []
    assert "there is no time zone" in caplog.text


def test_hours_that_another_kind_s_stand_between_overlap_all_the_same() -> None:
    def one(begin: str, end: str, **more: Any) -> dict[str, Any]:
        return {"begin": f"2030-10-07T{begin}", "end": end, "gpus": 1, "zone": BERLIN, **more}

    hours = [one("10:00", "14:00"), one("11:00", "12:00", kind="shared"), one("13:00", "15:00")]
    read = read_courses({"ml": {"group": "g", "reserved": hours}}, "courses")
    assert "reserved.2: it overlaps reserved.0" in read.problems["ml"]
    apart = [hours[0], hours[1], one("14:00", "15:00")]
    assert read_courses({"ml": {"group": "g", "reserved": apart}}, "courses").problems == {}
