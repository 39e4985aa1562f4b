"""What `make bench` prints of what it measured."""

from __future__ import annotations

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
