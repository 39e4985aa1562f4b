"""Units: what is handed out of a GPU, what it is called, and which of them exclude each other."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpuspawner.errors import Contested
from gpuspawner.gpus.allocation import apply_leases, choose, with_leases
from gpuspawner.gpus.model import GPU, SHARED, WHOLE, Holder, Lease, Node, Outsider, Request
from gpuspawner.gpus.share_hints import environment
from gpuspawner.gpus.state import MIGInstance
from gpuspawner.gpus.unit_names import (
    MAX_SLOTS,
    UnitName,
    exclude_each_other,
    parse,
    share_of,
    uuids_of,
)
from gpuspawner.gpus.units import divided_as_held, split
from gpuspawner.leases.labels import LABEL_GPUS, ServerRecord, labels, lease_of
from gpuspawner.leases.ledger import Ledger
from gpuspawner.scheduling.plan import Planner, QueuedRequest

from ..support.units import A100, gpu, instance, partitioned, shared

# -- What a GPU is split into ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trait", "slots"),
    [
        ({}, 1),
        ({A100: 8}, 8),
        ({A100.lower(): 8}, 8),
        ({"GPU-0": 4}, 4),
        ({"gpu-0": 4}, 4),
        ({A100: 8, "GPU-0": 1}, 1),
        ({A100: 8, "GPU-0": 2}, 2),
        ({"GPU-1": 4, "Tesla T4": 2}, 1),
    ],
)
def test_a_gpu_is_shared_as_its_model_is_and_before_that_as_it_is_itself(
    trait: dict[str, int], slots: int
) -> None:
    units = split(gpu(0), trait, ())
    assert len(units) == slots
    assert {unit.kind for unit in units} == {SHARED if slots > 1 else WHOLE}
    assert sum(unit.share for unit in units) == 1
    assert len({unit.id for unit in units}) == slots


def test_a_gpu_that_does_not_tell_its_uuid_is_not_split() -> None:
    assert split(replace(gpu(0), uuid=None, state="unknown"), {A100: 8}, ()) == [
        replace(gpu(0), uuid=None, state="unknown")
    ]


def test_a_gpu_in_mig_mode_is_its_instances_whatever_is_shared() -> None:
    parts = [instance(0, 0, "3g.20gb"), instance(0, 1, "1g.5gb", processes=2)]
    whole, large, small = split(gpu(0, state="mig"), {A100: 8}, parts)
    assert (whole.state, whole.kind) == ("mig", WHOLE)
    assert (large.id, large.share) == ("MIG-0-0#3g.20gb/7@GPU-0", Fraction(3, 7))
    assert (large.state, large.utilization_percent) == ("free", None)
    assert (small.state, str(small.reason)) == ("foreign", "2 processes compute on it.")


def test_an_instance_can_be_kept_out_by_its_own_uuid() -> None:
    parts = [instance(0, 0), instance(0, 1)]
    _, one, other = split(gpu(0, state="mig"), {}, parts, excluded={"mig-0-0"})
    assert (one.state, other.state) == ("excluded", "free")


def test_from_how_much_memory_on_an_instance_is_in_use_is_the_administrator_s() -> None:
    seen = replace(instance(0, 0), memory_used_mib=600)
    assert split(gpu(0, state="mig"), {}, [seen])[1].state == "free"
    assert split(gpu(0, state="mig"), {}, [seen], memory_threshold_mib=500)[1].state == "foreign"


def test_a_part_of_a_gpu_without_a_uuid_has_no_name() -> None:
    assert replace(shared(0, 2)[0], uuid=None).id is None
    assert replace(partitioned(0, "1g.5gb")[1], uuid=None).id is None


def test_what_is_wrong_with_a_gpu_is_wrong_with_each_instance_of_it() -> None:
    sick = gpu(0, state="unhealthy", reason="It is hot.")
    assert [(unit.state, unit.reason) for unit in split(sick, {}, [instance(0, 0)])] == [
        ("unhealthy", "It is hot.")
    ] * 2


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"profile": ""}, "which part of its GPU it is"),
        ({"processes": None, "memory_used_mib": None}, "can't tell whether it is in use"),
    ],
)
def test_an_instance_of_which_too_little_is_known_is_not_handed_out(
    said: dict[str, Any], why: str
) -> None:
    _, unit = split(gpu(0, state="mig"), {}, [replace(instance(0, 0), **said)])
    assert unit.state == "unknown"
    assert why in str(unit.reason)


# -- Names -----------------------------------------------------------------------------------------

UUIDS = st.sampled_from(["GPU-a", "GPU-b"])
PROFILES = st.sampled_from(["1g.5gb", "3g.20gb", "1c.3g.20gb", "1g.10gb+me", "1g.10gb-me", ""])


@st.composite
def names(draw: st.DrawFn) -> UnitName:
    uuid = draw(UUIDS)
    if draw(st.booleans()):
        of = draw(st.integers(2, MAX_SLOTS))
        return UnitName(uuid, draw(st.integers(0, of - 1)), of=of)
    if draw(st.booleans()):
        profile = draw(PROFILES)
        number = draw(st.sampled_from("12"))
        return UnitName(f"MIG-{number}", profile=profile, of=7 if profile else 1, parent=uuid)
    return UnitName(uuid)


@given(names())
def test_a_name_is_read_as_it_was_written(name: UnitName) -> None:
    assert parse(str(name)) == name


@given(st.text() | st.text("GPU-MIG#/@0123456789gc.").map("GPU-{}".format))
@example("GPU-a#8/8")
@example("GPU-a#0/0")
@example("GPU-a#1/65")
@example("GPU-a#1/8@GPU-b")
@example("MIG-a#1/8")
def test_whatever_a_label_says_its_units_are_of_at_most_one_gpu(text: str) -> None:
    name = parse(text)
    assert 0 < name.share <= 1
    assert name.excludes(name)
    assert exclude_each_other([text], [name.gpu])


@given(names(), names())
def test_exclusion_goes_both_ways(one: UnitName, other: UnitName) -> None:
    assert one.excludes(other) == other.excludes(one)


@pytest.mark.parametrize(
    ("one", "other", "excluded"),
    [
        ("GPU-a", "GPU-a", True),
        ("GPU-a", "GPU-b", False),
        ("GPU-a", "GPU-a#0/8", True),
        ("GPU-a#0/8", "GPU-a#0/8", True),
        ("GPU-a#0/8", "GPU-a#1/8", False),
        ("GPU-a#0/8", "GPU-b#0/8", False),
        # The number of slots was changed: one half is two quarters.
        ("GPU-a#1/2", "GPU-a#1/4", False),
        ("GPU-a#1/2", "GPU-a#2/4", True),
        ("GPU-a#1/2", "GPU-a#3/4", True),
        ("GPU-a#1/3", "GPU-a#0/2", True),
        ("MIG-1#1g.5gb/7@GPU-a", "GPU-a", True),
        ("MIG-1#1g.5gb/7@GPU-a", "GPU-b", False),
        ("MIG-1#1g.5gb/7@GPU-a", "MIG-2#1g.5gb/7@GPU-a", False),
        # Made again with another size, or on another GPU.
        ("MIG-1#1g.5gb/7@GPU-a", "MIG-1#2g.10gb/7@GPU-a", True),
        ("MIG-1#1g.5gb/7@GPU-a", "MIG-1#1g.5gb/7@GPU-b", True),
        ("MIG-1#1g.5gb/7@GPU-a", "GPU-a#0/8", True),
        ("MIG-GPU-a/7/0", "MIG-GPU-a/7/0#1g.5gb/7@GPU-a", True),
    ],
)
def test_which_units_two_servers_can_not_have_at_once(one: str, other: str, excluded: bool) -> None:
    assert exclude_each_other([one], [other]) is excluded
    assert exclude_each_other([other], [one]) is excluded


@given(st.lists(names(), max_size=12))
def test_units_that_do_not_exclude_each_other_are_never_more_than_the_gpu(
    drawn: list[UnitName],
) -> None:
    held: list[UnitName] = []
    for name in drawn:
        if not any(name.excludes(other) for other in held):
            held.append(name)
    slots = Counter[str]()
    for name in held:
        if not name.is_instance:  # of those the driver sees to it
            slots[name.gpu] += name.share  # type: ignore[assignment]
    assert all(share <= 1 for share in slots.values())


def test_what_is_held_by_several_slots_is_one_device_for_the_driver() -> None:
    assert uuids_of(["GPU-a#0/8", "GPU-a#1/8", "MIG-1#1g.5gb/7@GPU-b", "GPU-c"]) == [
        "GPU-a",
        "MIG-1",
        "GPU-c",
    ]


@pytest.mark.parametrize(
    ("held", "share"),
    [
        (["GPU-a", "GPU-b"], 2),
        (["GPU-a#0/8"], Fraction(1, 8)),
        (["MIG-1#3g.20gb/7@GPU-a"], Fraction(3, 7)),
        (["MIG-1#4g.24gb/4@GPU-a"], 1),
        (["MIG-1#1c.3g.20gb/7@GPU-a"], Fraction(1, 7)),
        (["MIG-1"], 1),
        ([], 0),
    ],
)
def test_how_much_of_a_gpu_units_are(held: list[str], share: Any) -> None:
    assert share_of(held) == share


def test_frameworks_on_a_shared_gpu_are_told_their_part_of_its_memory() -> None:
    assert environment(shared(0, 8)[:1]) == {
        "GPUSPAWNER_GPU_SHARE": "1/8",
        "GPUSPAWNER_MEMORY_GUARD": "off",
        "GPUSPAWNER_GPU_MEMORY_FRACTION": "0.113",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.113",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    }
    assert environment(shared(0, 8)[:1], 60.0)["GPUSPAWNER_MEMORY_GUARD"] == "60"
    # What hardware divides, and what is one's own, is all there for the taking.
    assert environment(partitioned(0, "1g.5gb")[1:]) == environment([gpu(0), gpu(1)]) == {}
    assert environment([]) == {}


def test_a_label_of_the_version_before_is_a_lease_of_whole_gpus() -> None:
    before = ServerRecord("1", {LABEL_GPUS: "GPU-0,GPU-1"})
    lease = lease_of(before)
    assert lease
    assert lease.gpus == {"GPU-0", "GPU-1"}
    assert lease.share == 2
    # And what is written for whole GPUs is the same as then.
    assert labels(Holder("ada"), "torch", [gpu(0).id, gpu(1).id])[LABEL_GPUS] == "GPU-0,GPU-1"


# -- Who has them ----------------------------------------------------------------------------------


def lease(*held: str, until: float | None = None, user: str = "ada") -> Lease:
    return Lease(Holder(user), frozenset(held), until)


def taken(units: Sequence[GPU], *leases: Lease) -> str:
    """Return one letter for each unit: its holder's first, "." if it is free."""
    applied = apply_leases(units, leases)
    return "".join(unit.holder.user[0] if unit.holder else "." for unit in applied)


@pytest.mark.parametrize(
    ("units", "leases", "expected"),
    [
        (shared(0, 4), [lease("GPU-0#1/4")], ".a.."),
        (shared(0, 4), [lease("GPU-0#1/4"), lease("GPU-0#3/4", user="bob")], ".a.b"),
        # It was handed out whole before it was shared.
        (shared(0, 4), [lease("GPU-0")], "aaaa"),
        # It was shared before it was handed out whole: the one who stays longest counts.
        ([gpu(0)], [lease("GPU-0#1/4", until=1), lease("GPU-0#3/4", until=2, user="bob")], "b"),
        ([gpu(0)], [lease("GPU-0#1/4"), lease("GPU-0#3/4", until=2, user="bob")], "a"),
        # The number of slots was changed.
        (shared(0, 4), [lease("GPU-0#0/2")], "aa.."),
        (shared(0, 2), [lease("GPU-0#5/8")], ".a"),
        (shared(0, 3), [lease("GPU-0#0/2")], "aa."),
        # The whole of a GPU in MIG mode is nobody's, and was somebody's.
        (partitioned(0, "1g.5gb", "1g.5gb"), [lease("GPU-0")], "aaa"),
        (partitioned(0, "1g.5gb", "1g.5gb"), [lease("MIG-0-1#1g.5gb/7@GPU-0")], "a.a"),
        # An instance that was made again with another size, and one whose GPU nobody wrote down.
        (partitioned(0, "2g.10gb", "1g.5gb"), [lease("MIG-0-0#1g.5gb/7@GPU-0")], "aa."),
        (partitioned(0, "2g.10gb", "1g.5gb"), [lease("MIG-0-0")], ".a."),
        # Who had an instance of a GPU that isn't partitioned any more can open all of it.
        ([gpu(0), gpu(1)], [lease("MIG-0-0#1g.5gb/7@GPU-0")], "a."),
        (shared(0, 2), [lease("GPU-9"), lease("MIG-9")], ".."),
    ],
)
def test_a_lease_takes_what_nobody_can_have_beside_it(
    units: list[GPU], leases: list[Lease], expected: str
) -> None:
    assert taken(units, *leases) == expected


def test_slots_beside_a_holder_are_free_though_something_computes_there() -> None:
    units = [replace(unit, state="foreign", reason="busy") for unit in shared(0, 3)]
    assert {unit.state for unit in apply_leases(units, ())} == {"foreign"}
    applied = apply_leases(units, [lease("GPU-0#1/3")])
    assert [unit.state for unit in applied] == ["free", "leased", "free"]


def test_who_looks_sees_the_slots_of_a_whole_gpu_that_servers_share() -> None:
    leases = [lease("GPU-0#1/3"), lease("GPU-1")]
    (seen,) = with_leases([Node("", gpus=(gpu(0), gpu(1), gpu(2)))], leases)
    for before in (seen.gpus, (gpu(0), gpu(1), gpu(2))):
        (shown,) = with_leases([Node("", gpus=tuple(divided_as_held(before, leases)))], leases)
        assert [(unit.id, unit.state) for unit in shown.gpus] == [
            ("GPU-0#0/3", "free"),
            ("GPU-0#1/3", "leased"),
            ("GPU-0#2/3", "free"),
            ("GPU-1", "leased"),
            ("GPU-2", "free"),
        ]
    ill = replace(seen.gpus[0], state="unhealthy", reason="Xid 79")
    (shown,) = with_leases([Node("", gpus=tuple(divided_as_held([ill], leases)))], leases)
    assert {unit.state for unit in shown.gpus} == {"unhealthy"}
    assert [bool(unit.holder) for unit in shown.gpus] == [False, True, False]


def test_slots_of_a_gpu_that_somebody_gave_a_container_by_hand_stay_taken() -> None:
    node = Node("", gpus=tuple(shared(0, 3)))
    by_hand = [Outsider("1", "by-hand", frozenset({"GPU-0"}))]
    (seen,) = with_leases([node], [lease("GPU-0#1/3")], by_hand)
    assert [unit.state for unit in seen.gpus] == ["foreign", "leased", "foreign"]
    instances = Node("", gpus=tuple(partitioned(0, "1g.5gb", "1g.5gb")))
    (seen,) = with_leases([instances], (), by_hand)
    assert [unit.state for unit in seen.gpus] == ["mig", "foreign", "foreign"]
    one = [Outsider("1", "by-hand", frozenset({"MIG-0-0"}))]
    (seen,) = with_leases([instances], (), one)
    assert [unit.state for unit in seen.gpus] == ["mig", "foreign", "free"]


def test_slots_of_one_gpu_are_no_duplicates_and_one_of_two_nodes_are() -> None:
    one = Node("p", gpus=tuple(replace(unit, node="p") for unit in shared(0, 2)))
    assert [unit.state for unit in with_leases([one], ())[0].gpus] == ["free", "free"]
    other = Node("q", gpus=tuple(replace(unit, node="q") for unit in shared(0, 2)))
    seen = with_leases([one, other], ())
    assert {unit.state for node in seen for unit in node.gpus} == {"unknown"}


# -- Which one is handed out -----------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "expected"), [("spread", "GPU-1#0/4"), ("pack", "GPU-0#2/4")])
def test_a_slot_is_one_of_the_emptiest_gpu_or_of_the_fullest(policy: str, expected: str) -> None:
    units = apply_leases([*shared(0, 4), *shared(1, 4)], [lease("GPU-0#0/4"), lease("GPU-0#1/4")])
    chosen = choose(Request("torch", 1, kind=SHARED), units, policy)
    assert chosen
    assert [unit.id for unit in chosen] == [expected]


def test_the_emptiest_is_so_for_its_number_of_slots() -> None:
    units = apply_leases(
        [*split(gpu(0), {"GPU-0": 2}, ()), *split(gpu(1), {"GPU-1": 8}, ())],
        [lease("GPU-0#0/2"), lease("GPU-1#0/8"), lease("GPU-1#1/8")],
    )
    chosen = choose(Request("torch", 1, kind=SHARED), units, "spread")
    assert chosen
    assert chosen[0].uuid == "GPU-1"


@pytest.mark.parametrize("kind", [WHOLE, SHARED, "1g.5gb", "3g.20gb"])
def test_only_what_was_asked_for_is_chosen(kind: str) -> None:
    units = [gpu(0), *shared(1, 2), *partitioned(2, "3g.20gb", "1g.5gb")]
    chosen = choose(Request("torch", 1, kind=kind), units)
    assert chosen
    assert {unit.kind for unit in chosen} == {kind}
    assert choose(Request("torch", 2, kind="3g.20gb"), units) is None


# -- Two hubs, whose administrators change what is shared ------------------------------------------


@dataclass
class Sharer:
    """A hub as far as it decides: it sees labels, and what it shares is its own."""

    trait: dict[str, int] = field(default_factory=dict)


class Sharing(RuleBasedStateMachine):
    """What is held never excludes each other, whatever is shared, by whom and since when."""

    def __init__(self) -> None:
        super().__init__()
        self.hubs = [Sharer(), Sharer()]
        self.instances: tuple[MIGInstance, ...] = ()
        self.held: dict[int, Lease] = {}
        self.numbers = itertools.count()

    def units(self, hub: Sharer) -> list[GPU]:
        last = gpu(2, state="mig") if self.instances else gpu(2)
        parts = [split(gpu(0), hub.trait, ()), split(gpu(1), hub.trait, ())]
        return [unit for each in (*parts, split(last, hub.trait, self.instances)) for unit in each]

    @rule(
        hub=st.integers(0, 1),
        trait=st.dictionaries(st.sampled_from(["GPU-0", "GPU-1", A100]), st.integers(1, 5)),
    )
    def share(self, hub: int, trait: dict[str, int]) -> None:
        self.hubs[hub].trait = trait

    @rule(profiles=st.lists(st.sampled_from(["1g.5gb", "2g.10gb"]), max_size=3))
    def partition(self, profiles: list[str]) -> None:
        """The driver refuses to while somebody is on the GPU."""
        if not exclude_each_other(
            ["GPU-2"], [name for each in self.held.values() for name in each.gpus]
        ):
            self.instances = tuple(instance(2, n, profile) for n, profile in enumerate(profiles))

    @rule(
        hub=st.integers(0, 1),
        count=st.integers(1, 3),
        kind=st.sampled_from([WHOLE, SHARED, "1g.5gb", "2g.10gb"]),
        policy=st.sampled_from(["pack", "spread"]),
    )
    def start(self, hub: int, count: int, kind: str, policy: str) -> None:
        number = next(self.numbers)
        waiting = QueuedRequest(
            Holder(f"u{number}"), Request("torch", count if kind == WHOLE else 1, kind=kind), 0
        )
        leases = list(self.held.values())
        turns = Planner().plan(
            [waiting],
            apply_leases(self.units(self.hubs[hub]), leases),
            leases,
            0,
            policy=policy,
            part_policy=policy,
        )
        if turns[0].gpus:
            assert {unit.kind for unit in turns[0].gpus} == {kind}
            assert all(unit.state == "free" for unit in turns[0].gpus)
            granted = frozenset(str(unit.id) for unit in turns[0].gpus)
            self.held[number] = Lease(waiting.holder, granted)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 20))
    def stop(self, which: int) -> None:
        del self.held[sorted(self.held)[which % len(self.held)]]

    @invariant()
    def no_two_have_what_one_can_have(self) -> None:
        for one, other in itertools.combinations(self.held.values(), 2):
            assert not exclude_each_other(one.gpus, other.gpus), (one, other)

    @invariant()
    def nobody_has_a_gpu_in_mig_mode(self) -> None:
        if self.instances:
            assert not any("GPU-2" in each.gpus for each in self.held.values())

    @invariant()
    def slots_are_never_more_than_the_gpu(self) -> None:
        for uuid in ("GPU-0", "GPU-1", "GPU-2"):
            held = [
                parse(name)
                for each in self.held.values()
                for name in each.gpus
                if parse(name).gpu == uuid and not parse(name).is_instance
            ]
            assert sum(name.share for name in held) <= 1


TestSharing = Sharing.TestCase


@pytest.mark.parametrize(
    ("other", "gives_way"),
    [("GPU-0", True), ("GPU-0#1/2", False), ("GPU-0#0/2", True), ("GPU-0#1/4", True)],
)
async def test_who_came_later_gives_way_to_whoever_has_what_nobody_can_have_beside_it(
    other: str, gives_way: bool
) -> None:
    theirs = ServerRecord("1", labels(Holder("bob"), "torch", [other]), "created", 1.0)
    ours = ServerRecord("2", labels(Holder("ada"), "torch", ["GPU-0#0/2"]), "created", 2.0)

    async def listed() -> list[ServerRecord]:
        return [theirs, ours]

    async def read() -> list[Node]:
        return [Node("", gpus=tuple(shared(0, 2)))]

    ledger = Ledger(listed, read)
    if not gives_way:
        await ledger.claim("2", ["GPU-0#0/2"])
        return
    with pytest.raises(Contested):
        await ledger.claim("2", ["GPU-0#0/2"])


async def test_limits_may_count_each_unit_as_one() -> None:
    held = ServerRecord("1", labels(Holder("bob"), "torch", ["GPU-0#0/2"]))

    async def listed() -> list[ServerRecord]:
        return [held]

    async def read() -> list[Node]:
        return [Node("", gpus=tuple(shared(0, 2)))]

    for counts_units, share in ((False, Fraction(1, 2)), (True, 1)):
        view = await Ledger(listed, read, counts_units=counts_units).read()
        assert [each.share for each in view.leases] == [share]
        assert [unit.share for unit in view.gpus] == [share, share]
