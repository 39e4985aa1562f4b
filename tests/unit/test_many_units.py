"""What is asked of thousands of units, at each page and each grant, isn't asked of each pair."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.dashboard import pages
from gpuspawner.dashboard.facts import status
from gpuspawner.dashboard.monitor import Snapshot
from gpuspawner.gpus.allocation import with_leases
from gpuspawner.gpus.model import GPU, SHARED, Holder, Lease, Node, Request
from gpuspawner.gpus.unit_names import UnitIndex, UnitName, parse
from gpuspawner.scheduling.plan import QueuedRequest, Turn, could_use

from ..support.boards import BOSS, UNTIL, lease, picture, render
from ..support.units import shared

UUIDS = st.sampled_from(["GPU-a", "GPU-b"])
NAMES = st.one_of(
    UUIDS,
    st.builds("{}#{}/{}".format, UUIDS, st.integers(0, 3), st.integers(4, 6)),
    st.builds("MIG-{}#1g.5gb/7@{}".format, st.sampled_from("xy"), UUIDS),
    st.sampled_from(["MIG-x", "MIG-y#1g.5gb/7"]),
)


@given(st.lists(NAMES, max_size=12, unique=True), NAMES)
def test_an_index_finds_what_a_look_at_all_of_them_does(names: list[str], name: str) -> None:
    unit = parse(name)
    found = UnitIndex(names).excluded_by(unit)
    assert sorted(found) == sorted(each for each in names if unit.excludes(parse(each)))
    assert len(set(found)) == len(found)


@pytest.fixture
def comparisons(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], int]:
    """Counts how many pairs of units a call compares."""
    excludes, counted = UnitName.excludes, [0]

    def count(self: UnitName, other: UnitName) -> bool:
        counted[0] += 1
        return excludes(self, other)

    monkeypatch.setattr(UnitName, "excludes", count)

    def counting(call: Callable[[], object]) -> int:
        before = counted[0]
        call()
        return counted[0] - before

    return counting


def slots(gpus: int) -> list[GPU]:
    return [slot for number in range(gpus) for slot in shared(number, 4)]


def seen_of(gpus: int, called: str) -> Snapshot:
    """A dashboard's reading of shared GPUs, of which each has a holder with another name for it."""
    there = slots(gpus)
    names = [called.format(number) for number in range(gpus)]
    held = [(Holder(f"user-{number}"), name) for number, name in enumerate(names)]
    leases = [Lease(holder, frozenset([name]), UNTIL) for holder, name in held]
    (node,) = with_leases([Node("", "570.1", "12.8", tuple(there))], leases)
    told = [lease(holder, name) for holder, name in held]
    return picture(*node.gpus, leases=told, ours=frozenset(names))


# A slot by its name of now, one of another division, and what was whole.
@pytest.mark.parametrize("called", ["GPU-{}#0/4", "GPU-{}#0/8", "GPU-{}"])
@pytest.mark.parametrize("hub", [True, False])
def test_a_page_of_eight_times_the_units_compares_eight_times_as_many(
    comparisons: Callable[[Callable[[], object]], int], called: str, hub: bool
) -> None:
    from dataclasses import replace

    few, many = (seen_of(number, called) for number in (8, 64))
    if not hub:
        few, many = (replace(each, hub=None) for each in (few, many))
    first, then = (
        comparisons(lambda seen=seen: render(status(seen, BOSS))) for seen in (few, many)
    )
    assert 0 < then <= 10 * first


def test_what_comes_back_is_looked_up(
    comparisons: Callable[[Callable[[], object]], int],
) -> None:
    turn = Turn(QueuedRequest(Holder("you"), Request("any", 1, kind=SHARED), 0.0), 1, None)

    def ask(gpus: int) -> None:
        back = {f"GPU-{number}#0/8" for number in range(1000, 1000 + gpus)}
        assert not could_use(turn, slots(gpus), (), back, 0.0)
        assert could_use(turn, slots(gpus), (), {*back, "GPU-1#0/8"}, 0.0)

    few, many = comparisons(lambda: ask(8)), comparisons(lambda: ask(64))
    assert 0 < many <= 10 * few


def test_the_gpus_of_a_server_are_found_by_all_that_they_were_called() -> None:
    facts = status(seen_of(3, "GPU-{}#0/8"), BOSS)
    servers = pages.Servers(facts)
    second = facts["servers"][1]
    assert [gpu["id"] for gpu in servers.gpus(second)] == ["GPU-1#0/4"]
    assert servers.of(servers.gpus(second)[0]) == second
