"""What `make bench` prints of what it measured."""

from __future__ import annotations

from bench import handover, pages
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
    assert found[f"{OURS} : {FLOOR}"] == ["1.50", "1.50", "met"]
    assert found[f"{OURS_LARGE} : {OURS}"] == ["1.00", "1.10", "met"]
    assert found[f"{OURS_BARE} : {STOCK_ASKS}"] == ["0.50"]


def test_a_missed_goal_is_called_so(capsys) -> None:
    found = measured()
    found.starts[FLOOR] = [Start(0.5, 0.5)] * 3
    show(found)
    assert lines(capsys)[f"{OURS} : {FLOOR}"] == ["2.00", "1.50", "missed"]


def test_a_crowd_must_be_ready_to_the_last(capsys) -> None:
    found = measured()
    name = f"8 at once, {OURS} : {STOCK_PLAIN}"
    found.rushes = {OURS: [Rush(4, 8)], STOCK: [Rush(8, 8)], STOCK_PLAIN: [Rush(30, 2)]}
    show(found)
    assert lines(capsys)[name] == ["0.13", "0.50", "met"]
    found.rushes[OURS] = [Rush(4, 7)]
    show(found)
    assert lines(capsys)[name] == ["0.13", "0.50", "missed"]


def test_idle_time_is_from_a_death_to_the_next_grant_of_the_same_gpu() -> None:
    log = "\n".join(
        f'[I 2026-11-26 07:00:0{second} GPUSpawner journal:30] gpuspawner {{"event": "{event}", '
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


def test_reads_of_a_file_are_counted_also_after_it_was_exchanged(tmp_path) -> None:
    path = tmp_path / "state"
    path.write_text("1")
    with pages.Reads(path) as reads:
        path.read_text()
        (tmp_path / "other").write_text("2")
        (tmp_path / "other").replace(path)
        path.read_text()
        until(lambda: reads.count() == 2, "both are counted")
