"""What `make bench` prints of what it measured."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from bench import handover, lesson, load, pages
from bench.processor import calls_in
from bench.starts import (
    FLOOR,
    OURS,
    OURS_BARE,
    OURS_LARGE,
    STOCK,
    STOCK_ASKS,
    STOCK_PLAIN,
    Measured,
    Rush,
    Start,
    Use,
    show,
)

from ..support.hubs import until


def measured() -> Measured:
    """Three rounds, in seconds."""
    seconds = {
        OURS: [1.0, 3.0, 1.0],
        OURS_LARGE: [1.0, 3.0, 1.2],
        OURS_BARE: [0.5, 1.5, 0.9],
        STOCK: [2.0, 6.0, 1.5],
        STOCK_ASKS: [1.0, 3.0, 1.0],
        STOCK_PLAIN: [8.0, 12.0, 4.0],
        FLOOR: [0.5, 2.0, 1.0],
    }
    starts = {kind: [Start(each, each / 2) for each in found] for kind, found in seconds.items()}
    return Measured(starts, {})


def lines(capsys) -> dict[str, list[str]]:
    """Return the table of ratios: name -> the words after it."""
    text = capsys.readouterr().out
    rows = [row for row in text.splitlines() if " : " in row[:60]]
    return {row[:60].strip(): row[60:].split() for row in rows}


def test_each_ratio_is_the_median_of_the_rounds_and_stands_beside_its_goal(capsys) -> None:
    show(measured())
    found = lines(capsys)
    assert found[f"{OURS} : {STOCK_PLAIN}"] == ["0.25", "0.25", "met"]
    assert found[f"{OURS} : {STOCK}"] == ["0.50", "0.60", "met"]
    assert found[f"{OURS} : {FLOOR}"] == ["1.50", "0.90", "missed"]
    assert found[f"{OURS_LARGE} : {OURS}"] == ["1.00", "1.10", "met"]
    assert found[f"{OURS_BARE} : {STOCK_ASKS}"] == ["0.50"]


def test_a_goal_that_is_met_is_called_so(capsys) -> None:
    found = measured()
    found.starts[FLOOR] = [Start(1.25, 0.5)] * 3
    show(found)
    assert lines(capsys)[f"{OURS} : {FLOOR}"] == ["0.80", "0.90", "met"]


def test_a_crowd_must_be_ready_to_the_last(capsys) -> None:
    found = measured()
    name = f"8 at once, {OURS} : {STOCK_PLAIN}"
    found.rushes = {OURS: [Rush(4, 8)], STOCK: [Rush(8, 8)], STOCK_PLAIN: [Rush(30, 2)]}
    show(found)
    assert lines(capsys)[name] == ["0.13", "0.50", "met"]
    found.rushes[OURS] = [Rush(4, 7)]
    show(found)
    assert lines(capsys)[name] == ["0.13", "0.50", "missed"]


def crowded(ours: list[Rush], by_hand: list[Rush]) -> Measured:
    calls = Counter({"GET /containers/json": 60})
    return Measured(
        crowds={OURS: ours, FLOOR: by_hand},
        calls={OURS: (Counter({"POST /containers/create": 1}), calls), FLOOR: (Counter(), calls)},
        restarts=[(2.0, 2.2), (2.0, 2.2), (2.0, 9.0)],
        users=30,
    )


def test_a_crowd_is_held_against_one_by_hand_in_time_and_in_what_the_engine_works(capsys) -> None:
    use, less = Use(12, 9.0, 6.0, 3.0, 0.3), Use(15, 6.0, 6.0, 0.9)
    show(crowded([Rush(14, 30, use)] * 3, [Rush(15, 30, less)] * 3))
    text = capsys.readouterr().out
    assert re.search(rf"^{OURS} +0.400 +0.300 +0.200 +0.100 +0.010$", text, re.M)
    assert re.search(rf"^{FLOOR} +0.500 +0.200 +0.200 +0.030 +0.000$", text, re.M)
    assert re.search(rf"^{OURS} +1 +2.0$", text, re.M)
    assert re.search(r"^  GET /containers/json +0 +2.0$", text, re.M)
    ratios = {row[:60].strip(): row[60:].split() for row in text.splitlines()}
    assert ratios[f"30 at once, {OURS} : {FLOOR}"] == ["0.93", "1.00", "met"]
    assert ratios["start of a hub with 30 servers running : with none"] == ["1.10", "1.20", "met"]
    extra = ratios["dockerd's processor seconds a start, above those by hand"]
    assert extra == ["0.10", "0.16", "met"]


def test_a_crowd_of_which_one_was_not_ready_misses_its_goal(capsys) -> None:
    use = Use(1, 1, 1, 1)
    show(crowded([Rush(1, 30, use), Rush(1, 29, use)], [Rush(15, 30, use)] * 2))
    name = f"30 at once, {OURS} : {FLOOR}"
    assert lines(capsys)[name] == ["0.07", "1.00", "missed"]


@pytest.mark.parametrize(
    ("line", "call"),
    [
        ('level=debug msg="Calling GET /v1.41/containers/json?all=1"', "GET /containers/json"),
        (
            'level=debug msg="Calling POST /v1.41/containers/create?name=x"',
            "POST /containers/create",
        ),
        ('msg="Calling GET /v1.41/images/gpuspawner/minimal:py3.11/json"', "GET /images/…/json"),
        ('msg="Calling DELETE /v1.41/containers/0a1b?v=True"', "DELETE /containers/…"),
        ('msg="Calling GET /v1.41/volumes/home-ada"', "GET /volumes/…"),
        ('msg="Calling GET /v1.41/volumes?filters=%7B%7D"', "GET /volumes"),
        ('msg="Calling GET /info"', "GET /info"),
        (
            'msg="handling POST request" method=POST request-url="/v1.47/containers/0a/start"',
            "POST /containers/…/start",
        ),
        ('level=debug msg="container mounted via layerStore"', None),
    ],
)
def test_what_an_engine_was_asked_is_read_from_its_log(line: str, call: str | None) -> None:
    assert calls_in(f"before\n{line}\nafter\n") == ([call] if call else [])


def test_idle_time_is_from_a_death_to_the_next_grant_of_the_same_gpu() -> None:
    log = "\n".join(
        f'[I 2026-11-26 07:00:0{second} GPUSpawner audit_log:30] gpuspawner {{"event": "{event}", '
        f'"user": "ada", "gpus": ["{gpu}"]}}'
        for second, event, gpu in (
            ("1.000", "grant", "A"),
            ("4.500", "release", "A"),
            ("5.250", "grant", "B"),
            ("6.500", "grant", "A"),
        )
    )
    granted = handover.grants(log)
    first = granted[0][0]
    assert granted == [(first, "A"), (first + 4.25, "B"), (first + 5.5, "A")]
    deaths = [(first + 3.5, "A"), (first + 4.0, "B"), (first + 9.0, "B")]
    assert handover.idle_seconds(deaths, granted) == [2.0, 0.25]


def test_a_gpu_that_lay_idle_too_long_is_called_so(capsys) -> None:
    handover.show([0.25, 0.5, 1.5])
    assert capsys.readouterr().out.splitlines() == [
        "a GPU idle while somebody waited, 3 times",
        "median 0.50 s, longest 1.50 s (goal: 1 s): missed",
    ]


def test_what_pages_cost_is_the_difference_to_none(capsys) -> None:
    quick = [float(each) for each in range(100)]
    seen = {
        pages.NONE: pages.Seen(quick, [1.0]),
        pages.ONE: pages.Seen(quick, [2.0, 4.0]),
        pages.MANY: pages.Seen([each + 12 for each in quick], [6.0]),
    }
    pages.show(seen)
    said = capsys.readouterr().out
    assert "12.0 ms above those beside none (goal: less than 10 ms): missed" in said
    assert said.splitlines()[-1].split()[-1] == "2.00"


def crowded_hub(milliseconds: float, grown: int) -> load.Measured:
    """Five rounds, in which the hub has grown since the third."""
    sizes = [100, 120, 130, 131, 131, 131 + grown]
    memory = [load.Memory(size << 20, 50 << 20, 40 << 20, 1 << 20, 100) for size in sizes]
    came = load.Rounds(
        taken={
            # Not a page of anybody's.
            load.PROBE: [10.0] * 10_000,
            load.crowd.FORM: [milliseconds] * 100,
            # These wait for a server, and don't count.
            load.crowd.SEND: [1000.0] * 100,
            load.crowd.STOP: [1000.0] * 100,
        },
        lateness=[1.0, 2.0],
        memory=memory,
        processor={"hub": [1.0, 3.0, 2.0]},
    )
    together = load.Rounds(
        taken={load.crowd.FORM: [400.0] * 59 + [700.0]},
        lateness=[3.0, 4.0],
        memory=memory[:2],
        processor={"hub": [5.0]},
    )
    return load.Measured(
        came,
        together,
        refused=[
            load.Memory(150 << 20, 50 << 20, 40 << 20, 1 << 20, 9),
            load.Memory((150 << 20) + 2048, 50 << 20, 40 << 20, 1 << 20, 9),
        ],
        beside_refusals=[5.0, 7.0],
    )


def test_a_crowd_s_requests_count_that_wait_for_no_server(capsys) -> None:
    load.show(crowded_hub(90.0, 4), 60, 60)
    said = capsys.readouterr().out
    assert "60 users come within 60 s to 4 GPUs, 5 times" in said
    assert re.search(r"95 % take at most 90 ms \(goal: 100 ms\): met$", said, re.M)
    assert "errors: none" in said
    assert "since round 3 the hub has grown by 4.0 MiB (goal: 5 MiB): met" in said
    assert "processor seconds of a round, medians: hub 2.0" in said
    assert re.search(r"^hub, MiB +100.0 +120.0 +130.0 +131.0 +131.0 +135.0$", said, re.M)
    assert "refused requests, sent in a minute: hub +2 kB, dashboard +0 kB" in said
    assert re.search(r"^a user by REST, beside them +2 +6.0 ", said, re.M)


def test_a_crowd_that_comes_in_one_moment_stands_beside_without_a_goal(capsys) -> None:
    load.show(crowded_hub(90.0, 4), 60, 60)
    said = capsys.readouterr().out
    assert "60 users open their pages in the same moment, once" in said
    assert "of 60 forms opened in the same moment, half are there after 400 ms, 95 % after" in said
    assert said.count("(goal: 100 ms)") == 1
    alone = load.Measured(together=crowded_hub(90.0, 4).together)
    load.show(alone, 60, 60)
    assert "goal: 100 ms" not in capsys.readouterr().out


def test_a_crowd_that_waits_for_the_hub_or_makes_it_grow_misses_the_goals(capsys) -> None:
    found = crowded_hub(110.0, 6)
    found.errors = ["ada, the form: 500"]
    load.show(found, 60, 60)
    said = capsys.readouterr().out
    assert "95 % take at most 110 ms (goal: 100 ms): missed" in said
    assert "the hub has grown by 6.0 MiB (goal: 5 MiB): missed" in said
    assert "errors: 1\n  ada, the form: 500" in said


def test_reads_of_a_file_are_counted_also_after_it_was_exchanged(tmp_path) -> None:
    path = tmp_path / "state"
    path.write_text("1")
    with pages.Reads(path) as reads:
        path.read_text()
        (tmp_path / "other").write_text("2")
        (tmp_path / "other").replace(path)
        path.read_text()
        until(lambda: reads.count() == 2, "both are counted")


@pytest.mark.parametrize(("last", "seated", "verdict"), [(80.0, 2, "met"), (91.0, 2, "missed")])
def test_a_class_is_seated_when_its_last_user_is(capsys, last, seated, verdict) -> None:
    asked, ready = {"ada": 0.0, "ben": 59.0}, {"ada": 1.5, "ben": last}
    lesson.show(lesson.Lesson(asked, ready, processor={"hub": 2.0}), 60)
    text = capsys.readouterr().out
    assert re.search(rf"the last one is ready after, seconds +{last} +90 {verdict}", text)
    assert re.search(rf"seated +{seated} +2", text)
    lesson.show(lesson.Lesson(asked, {"ada": 1.5}, ["503: full"]), 60)
    assert "missed" in capsys.readouterr().out
