"""The ends of extended leases, as the engine keeps them: what is read of what volumes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpuspawner.backends.docker import extended_ends
from gpuspawner.leases.clock import Clock, Deadline
from gpuspawner.leases.labels import LABEL_GPUS, LABEL_UNTIL, ServerRecord, lease_of

NOW = 1_800_000_000.0
CLOCK = Clock(lambda: NOW, lambda: 500.0, lambda: "this boot")


class Engine:
    """An engine's volumes."""

    def __init__(self, keeps: bool = True) -> None:
        self.found: dict[str, dict[str, Any]] = {}
        self.keeps = keeps
        # After each call, how many ends there are.
        self.numbers: list[int] = []

    def create_volume(self, name: str, labels: dict[str, str]) -> None:
        if self.keeps:
            self.found.setdefault(name, {"Name": name, "Labels": labels})
        self.numbers.append(len(self.found))

    def remove_volume(self, name: str) -> None:
        del self.found[name]
        self.numbers.append(len(self.found))

    def volumes(self, filters: dict[str, str]) -> dict[str, Any]:
        return {"Volumes": [*self.found.values()]}

    def ends(self, clock: Clock = CLOCK) -> dict[str, float]:
        found = extended_ends.latest(extended_ends.listed(self), clock)
        return {name: end.until for name, end in found.items()}


def test_the_latest_end_holds_and_there_is_always_one() -> None:
    engine = Engine()
    for seconds in (100, 200, 200, 300):
        extended_ends.keep(engine, "one", Deadline.after(seconds, CLOCK))
    extended_ends.keep(engine, "two", Deadline.after(50, CLOCK))
    assert engine.ends() == {"one": NOW + 300, "two": NOW + 50}
    assert len(engine.found) == 2
    assert 0 not in engine.numbers


def test_an_earlier_extension_that_comes_late_takes_nothing_away() -> None:
    engine = Engine()
    for seconds in (300, 100):
        extended_ends.keep(engine, "one", Deadline.after(seconds, CLOCK))
    assert engine.ends() == {"one": NOW + 300}


def test_a_clock_that_is_set_moves_no_end() -> None:
    engine = Engine()
    extended_ends.keep(engine, "one", Deadline.after(100, CLOCK))
    later = Clock(lambda: NOW + 3600, lambda: 540.0, lambda: "this boot")
    assert engine.ends(later) == {"one": NOW + 3660}
    another_boot = Clock(lambda: NOW + 3600, lambda: 540.0, lambda: "another boot")
    assert engine.ends(another_boot) == {"one": NOW + 100}


def test_where_the_engine_keeps_nothing_that_is_an_error() -> None:
    with pytest.raises(Exception, match="doesn't keep"):
        extended_ends.keep(Engine(keeps=False), "one", Deadline.after(1, CLOCK))


END = {"at": 600.0, "boot": "", "until": NOW + 100}


@pytest.mark.parametrize(
    "end",
    [
        "",
        "[" * 100_000,
        "null",
        "7",
        "{}",
        json.dumps({**END, "until": "soon"}),
        json.dumps({**END, "until": 1e300}),
        json.dumps({**END, "until": -1e300}),
        '{"at": 1, "boot": "", "until": NaN}',
        '{"at": 1, "boot": "", "until": Infinity}',
        json.dumps({**END, "until": int("9" * 400)}),
        json.dumps({**END, "boot": "this boot", "at": float("nan")}),
    ],
)
def test_what_somebody_made_by_hand_is_no_end_and_no_error(end: str) -> None:
    name = f"{extended_ends.PREFIX}x"
    bears = {extended_ends.LABEL: "one", extended_ends.LABEL_END: end}
    assert extended_ends.latest([{"Name": name, "Labels": bears}], CLOCK) == {}


def test_volumes_of_others_are_neither_read_nor_removed() -> None:
    good = {extended_ends.LABEL: "gone", extended_ends.LABEL_END: json.dumps(END)}
    engine = Engine()
    engine.found = {
        name: {"Name": name, "Labels": bears}
        for name, bears in {
            "home-gpuspawner-extended-x": good,
            "gpuspawner-extended-unlabelled": None,
            "gpuspawner-extended-other": {"theirs": "yes"},
            "gpuspawner-extended-one": good,
        }.items()
    }
    volumes = extended_ends.listed(engine)
    assert extended_ends.of_others_than(volumes, ["there"]) == ["gpuspawner-extended-one"]
    assert extended_ends.of_others_than(volumes, ["gone"]) == []


@pytest.mark.parametrize(
    ("labelled", "extended", "until"),
    [
        (NOW + 10, None, NOW + 10),
        (NOW + 10, 100, NOW + 100),
        (NOW + 10, 5, NOW + 10),
        ("", 100, None),
    ],
)
def test_a_lease_ends_at_the_later_of_its_label_and_its_extension(labelled, extended, until):
    end = None if extended is None else Deadline.after(extended, CLOCK)
    bears = {LABEL_GPUS: "GPU-1", LABEL_UNTIL: str(labelled and round(labelled))}
    lease = lease_of(ServerRecord("one", bears, extended=end))
    assert lease is not None
    assert lease.until == until
