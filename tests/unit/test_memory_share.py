"""What a server holds of a shared GPU's memory, and what follows when, as values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.gpus.host_processes import HostProcess
from gpuspawner.gpus.memory import MemoryUse, NamedIds, parts_of, use_of
from gpuspawner.gpus.state import GPUMemory
from gpuspawner.leases.clock import Clock
from gpuspawner.leases.memory_share import MemoryShare

GIB = 1024**3
GPU, OTHER = "GPU-0", "GPU-1"


# -- Who holds what --------------------------------------------------------------------------------


def process(pid: int, *containers: str, began: int = 1) -> HostProcess:
    return HostProcess(pid, began, f"program-{pid}", (containers,) if containers else ())


def test_only_slots_are_parts() -> None:
    assert parts_of([]) == parts_of([GPU, f"MIG-1#1g.10gb/7@{OTHER}"]) == {}
    assert parts_of([f"{GPU}#3/8", OTHER]) == {GPU: Fraction(1, 8)}
    # One server has one slot; another hub's rules may have been others.
    assert parts_of([f"{GPU}#3/8", f"{GPU}#0/4"]) == {GPU: Fraction(3, 8)}


def test_what_a_server_holds_is_what_its_own_processes_hold_and_no_others() -> None:
    memory = {GPU: GPUMemory(40 * GIB, {1: 3 * GIB, 2: 4 * GIB, 3: 20 * GIB, 4: 9 * GIB, 5: GIB})}
    # Another server's, one of the machine's own, and one that has ended meanwhile.
    found = {1: process(1, "ada"), 2: process(2, "ada"), 3: process(3, "ben"), 4: process(4)}
    use = use_of([f"{GPU}#0/8"], "ada", {"ada", "ben"}, memory, found)
    assert use == MemoryUse(7 * GIB, 5 * GIB, found[2], 4 * GIB)
    assert use.is_over
    assert not replace(use, used=5 * GIB).is_over


def test_a_user_cannot_have_their_memory_counted_as_anothers() -> None:
    """Below their own container's group they can make one that is called like another's."""
    memory, forged = {GPU: GPUMemory(40 * GIB, {1: 30 * GIB})}, {1: process(1, "ada", "ben")}
    containers = {"ada", "ben"}
    assert use_of([f"{GPU}#0/2"], "ben", containers, memory, forged) == MemoryUse(0, 20 * GIB)
    assert use_of([f"{GPU}#1/2"], "ada", containers, memory, forged).used == 30 * GIB  # type: ignore[union-attr]


def test_what_is_not_known_of_one_of_its_processes_is_not_known_of_the_server() -> None:
    found = {1: process(1, "ada"), 2: process(2, "ada"), 3: process(3, "ben")}
    memory = {GPU: GPUMemory(40 * GIB, {1: 30 * GIB, 2: None, 3: 1})}
    assert use_of([f"{GPU}#0/8"], "ada", {"ada", "ben"}, memory, found) is None
    # It is nobody else's concern.
    assert use_of([f"{GPU}#1/8"], "ben", {"ada", "ben"}, memory, found) == MemoryUse(
        1, 5 * GIB, found[3], 1
    )
    assert use_of([f"{GPU}#0/8"], "ada", {"ada"}, {}, found) is None
    assert use_of([GPU], "ada", {"ada"}, memory, found) is None


UNITS = st.lists(
    st.builds("{}#{}/8".format, st.sampled_from([GPU, OTHER]), st.integers(0, 7)), max_size=2
)
HELD = st.dictionaries(st.integers(1, 9), st.none() | st.integers(0, 40 * GIB), max_size=9)
MEMORY = st.dictionaries(
    st.sampled_from([GPU, OTHER]), st.builds(GPUMemory, st.just(40 * GIB), HELD)
)
WHERE = st.dictionaries(
    st.integers(1, 9), st.lists(st.sampled_from(["ada", "ben", "else"]), max_size=2), max_size=9
)


@given(UNITS, MEMORY, WHERE)
def test_whatever_is_read_the_largest_process_is_one_of_the_servers_own(units, memory, where):
    found = {pid: process(pid, *containers) for pid, containers in where.items()}
    use = use_of(units, "ada", {"ada", "ben"}, memory, found)
    if use is None:
        return
    ours = {pid for pid, names in where.items() if [n for n in names if n != "else"][:1] == ["ada"]}
    held = {
        uuid: {pid: gpu.processes[pid] for pid in ours & set(gpu.processes)}
        for uuid, gpu in memory.items()
        if uuid in parts_of(units)
    }
    assert use.used in [sum(each.values()) for each in held.values() if None not in each.values()]
    if use.is_over:
        assert use.largest
        assert use.largest.pid in ours
        most = {each.get(use.largest.pid) for each in held.values()}
        assert use.held in most
        assert any(use.held == max(each.values(), default=-1) for each in held.values())


def looks(*named_and_seen: tuple[set[int], set[int]]) -> list[bool]:
    """Return for each look whether the ids are strange."""
    ids, found = NamedIds(), []
    for named, seen in named_and_seen:
        before, ids = ids, ids.named_now(named, seen)
        found.append(ids.are_strange(before))
    return found


def test_ids_of_another_namespace_are_noticed_at_the_second_look() -> None:
    assert looks(({7, 8}, {7}), ({7, 8}, {7}), ({7}, {7})) == [False, True, False]
    # Nor are those that say nothing of a process.
    assert looks(({0}, {7}), ({0}, {7})) == [False, True]
    # One that has just ended isn't named again, or was here.
    assert looks(({7, 8}, {7}), ({7, 6}, {7}), ({7, 9}, {7})) == [False] * 3
    assert looks(({7, 8}, {7, 8}), ({7, 8}, {7}), ({7, 8}, {7}), ({8}, set())) == [False] * 4


# -- What follows when -----------------------------------------------------------------------------

SECONDS = 60.0
LARGEST = process(41, "ada")
OVER = MemoryUse(6, 5, LARGEST, 6)
KEPT = MemoryUse(5, 5, LARGEST, 5)


@dataclass
class Times:
    """Clocks that a test moves."""

    now: float = 1000.0

    def clock(self) -> Clock:
        return Clock(lambda: self.now + 1e9, lambda: self.now, lambda: "boot")


@dataclass
class Watched:
    """A server that is looked at; what was done, and when."""

    times: Times
    share: MemoryShare
    done: list[tuple[str, float]]

    def look(self, use: MemoryUse | None, after: float = 5.0) -> None:
        self.times.now += after
        self.share.add_measurement(use, SECONDS)
        if step := self.share.step(SECONDS):
            assert use is not None
            assert use.is_over
            self.done.append((step, self.times.now - 1000.0))
            if step == "end":
                self.share.note_ended(use, SECONDS)
            else:
                self.share.note(step)


@pytest.fixture
def watched() -> Watched:
    return make()


def make() -> Watched:
    times = Times()
    return Watched(times, MemoryShare(times.clock()), [])


def test_who_is_over_for_as_long_is_warned_then_loses_a_process_then_is_stopped(watched) -> None:
    for _ in range(50):
        watched.look(OVER)
    assert watched.done == [("warn", 65), ("end", 125), ("stop", 185)]
    assert watched.share.step(SECONDS) is None


def test_who_frees_memory_in_time_is_left_alone_and_warned_again_much_later(watched) -> None:
    for use in [*[OVER] * 14, *[KEPT] * 13]:
        watched.look(use)
    assert watched.done == [("warn", 65)]
    for _ in range(14):
        watched.look(OVER)
    assert [step for step, _ in watched.done] == ["warn", "warn"]


def test_who_frees_memory_for_a_moment_only_goes_on_from_where_they_were(watched) -> None:
    """Else a program that lets go for a moment, again and again, keeps others from computing."""
    for use in [*[OVER] * 14, KEPT, *[OVER] * 14, KEPT, *[OVER] * 13]:
        watched.look(use)
    assert [step for step, _ in watched.done] == ["warn", "end", "stop"]
    assert watched.done[1][1] == 5 * 15 + 65


def test_what_is_not_known_is_a_break_and_ends_nothing(watched) -> None:
    for _ in range(4):
        for use in [*[OVER] * 12, None]:
            watched.look(use)
    assert watched.done == []
    # Nor does it count as keeping to one's part.
    for use in [*[OVER] * 13, *[None] * 30, *[OVER] * 13]:
        watched.look(use)
    assert [step for step, _ in watched.done] == ["warn", "end"]


def test_a_process_has_time_to_end_before_the_server_is_stopped(watched) -> None:
    for _ in range(26):
        watched.look(OVER)
    process, deadline = watched.share.ending
    assert process is LARGEST
    assert 0 < deadline.remaining < SECONDS
    facts = watched.share.facts(SECONDS)
    assert facts["ended"] == {"process": "program-41", "held": 6, "at": 1e9 + 1000 + 125}
    assert facts["next"] == "stop"
    assert facts["until"] == 1e9 + 1000 + 185


def test_a_time_in_which_nobody_looked_is_no_time_over_the_part(watched) -> None:
    watched.look(OVER)
    watched.look(OVER, after=SECONDS + 1)
    assert watched.done == []
    # One look may be missed.
    for _ in range(6):
        watched.look(OVER, after=12)
    assert watched.done == [("warn", 5 + 61 + 60)]


def test_what_pages_are_told(watched) -> None:
    nothing = {"guarded": True, "used": None, "part": None, "next": None, "until": None}
    assert watched.share.facts(SECONDS) == {**nothing, "ended": None}
    assert watched.share.facts(None)["guarded"] is False
    watched.look(OVER)
    # Nobody is alarmed by what may be over in a moment.
    assert watched.share.facts(SECONDS) == {**nothing, "used": 6, "part": 5, "ended": None}
    for _ in range(13):
        watched.look(OVER)
    facts = watched.share.facts(SECONDS)
    assert (facts["next"], facts["until"]) == ("end", watched.times.now + 1e9 + SECONDS - 5)
    watched.look(KEPT)
    assert (watched.share.facts(SECONDS)["next"], watched.share.facts(SECONDS)["until"]) == (
        None,
    ) * 2
    watched.share.is_seen = False
    assert watched.share.facts(SECONDS)["guarded"] is False


LOOKS = st.lists(
    st.tuples(
        st.sampled_from([OVER, OVER, OVER, KEPT, None]), st.sampled_from([1.0, 12.0, 30.0, 90.0])
    ),
    max_size=60,
)


@given(LOOKS)
def test_nothing_is_done_to_who_was_not_over_all_the_time(looks) -> None:
    watched = make()
    seen: list[tuple[float, MemoryUse | None]] = []
    for use, after in looks:
        before = len(watched.done)
        watched.look(use, after)
        now = watched.times.now - 1000.0
        seen.append((now, use))
        if len(watched.done) == before:
            continue
        # Every look in the last minute, and the last one before it, has found it over its part.
        lately = [each for at, each in seen if at > now - SECONDS]
        earlier = [each for at, each in seen if at <= now - SECONDS]
        assert all(each is OVER for each in lately)
        assert earlier
        assert earlier[-1] is OVER
    times = [at for _, at in watched.done]
    assert all(later - sooner >= SECONDS for sooner, later in pairwise(times))
    order = {"": "warn", "warn": "end", "end": "stop"}
    steps = ["", *(step for step, _ in watched.done)]
    for sooner, later in pairwise(steps):
        assert later in (order.get(sooner), "warn")
