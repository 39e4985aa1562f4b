"""Parts of a GPU in what users are offered, ask for and read."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from bs4 import BeautifulSoup

from gpuspawner.choices.limits import Limits
from gpuspawner.choices.options import Choice, from_fields, parse, request
from gpuspawner.errors import Refused
from gpuspawner.gpus.allocation import with_leases
from gpuspawner.gpus.model import GPU, NAMELESS, SHARED, WHOLE, Holder, Lease, Node, Request
from gpuspawner.gpus.unit_names import parse as parse_name
from gpuspawner.gpus.units import split
from gpuspawner.images.catalogue import catalogue
from gpuspawner.leases.ledger import View
from gpuspawner.scheduling.plan import Planner, QueuedRequest
from gpuspawner.scheduling.queue import over_user_limit

from ..support.shown_forms import shown
from ..support.units import A100, gpu, instance, partitioned, shared

LIMITS = Limits(catalogue({"torch": "lab/torch"}), "torch")
MIXED = [gpu(0), gpu(1), *shared(2, 8), *partitioned(3, "3g.20gb", "1g.5gb", "1g.5gb")]


def nodes(units: Any) -> tuple[Node, ...]:
    return (Node("", "570.133.20", "12.8", tuple(units)),)


def asked(raw: dict[str, Any], limits: Limits = LIMITS, units: Any = MIXED) -> Request:
    return request(parse(raw), limits, nodes(units))


@pytest.mark.parametrize(
    ("raw", "kind", "count", "share"),
    [
        ({}, WHOLE, 1, 1),
        ({"gpus": 2}, WHOLE, 2, 2),
        ({"kind": "gpu"}, WHOLE, 1, 1),
        ({"kind": "gpu", "gpus": 2}, WHOLE, 2, 2),
        ({"kind": "shared"}, SHARED, 1, Fraction(1, 8)),
        ({"kind": "shared", "gpus": 1, "model": A100}, SHARED, 1, Fraction(1, 8)),
        ({"kind": "3g.20gb"}, "3g.20gb", 1, Fraction(3, 7)),
        ({"kind": "1g.5gb"}, "1g.5gb", 1, Fraction(1, 7)),
        ({"kind": "shared", "gpus": 0}, WHOLE, 0, 0),
    ],
)
def test_what_is_asked_for(raw: dict[str, Any], kind: str, count: int, share: Any) -> None:
    found = asked(raw)
    assert (found.kind, found.gpus, found.share) == (kind, count, share)


@pytest.mark.parametrize(
    ("units", "kind"),
    [
        (MIXED, WHOLE),
        ([*shared(0, 4), *partitioned(1, "1g.5gb")], SHARED),
        (partitioned(0, "3g.20gb", "1g.5gb"), "1g.5gb"),
        ([gpu(0, state="unhealthy"), *shared(1, 4)], WHOLE),
    ],
)
def test_who_names_no_kind_gets_a_whole_gpu_where_there_is_one(units: Any, kind: str) -> None:
    assert asked({}, units=units).kind == kind


def test_an_administrator_says_what_is_usual_and_what_may_be_had() -> None:
    students = replace(LIMITS, kinds=frozenset({"shared", "1g.5gb"}))
    assert asked({}, students).kind == SHARED
    assert asked({}, replace(students, default_kind="1g.5gb")).kind == "1g.5gb"
    assert asked({}, replace(LIMITS, default_kind="shared")).kind == SHARED
    # A number means whole ones where there are any, and what isn't there is nobody's default.
    assert asked({"gpus": 1}, replace(LIMITS, default_kind="shared")).kind == WHOLE
    assert asked({"gpus": 1}, students).kind == SHARED
    assert asked({"gpus": 2}, replace(LIMITS, default_kind="shared")).kind == WHOLE
    assert asked({}, replace(LIMITS, default_kind="7g.80gb")).kind == WHOLE


@pytest.mark.parametrize(
    ("raw", "limits", "says", "key", "status"),
    [
        (
            {"kind": "7g.80gb"},
            {},
            'You asked for the kind of GPU "7g.80gb", and here there are: '
            "shared, 1g.5gb, 3g.20gb, gpu.",
            "kind",
            400,
        ),
        (
            {"kind": "gpu"},
            {"kinds": frozenset({"shared"})},
            'You asked for the kind of GPU "gpu", and the kinds you may have are: shared.',
            "kind",
            403,
        ),
        (
            {"gpus": 2},
            {"kinds": frozenset({"shared"})},
            'You asked for the kind of GPU "gpu", and the kinds you may have are: shared.',
            "kind",
            403,
        ),
        (
            {"kind": "shared", "gpus": 2},
            {},
            'A server can have one part of a GPU of the kind "shared", and not several',
            "gpus",
            400,
        ),
        (
            {"kind": "1g.5gb", "gpus": 7},
            {},
            'A server can have one part of a GPU of the kind "1g.5gb", and not several',
            "gpus",
            400,
        ),
        ({"kind": "shared"}, {"gpus": 0}, "You asked for 1 GPU, and your limit is 0.", "gpus", 403),
        (
            {"kind": "shared", "model": "Tesla T4"},
            {},
            'You asked for the GPU model "Tesla T4", and this machine has no such GPU',
            "model",
            400,
        ),
        ({"kind": 7}, {}, "The kind of GPU must be", "kind", 400),
    ],
)
def test_what_cannot_be_had_is_refused_with_what_can(
    raw: dict[str, Any], limits: dict[str, Any], says: str, key: str, status: int
) -> None:
    with pytest.raises(Refused) as refused:
        asked(raw, replace(LIMITS, **limits))
    assert str(refused.value).startswith(says)
    assert (refused.value.key, refused.value.status) == (key, status)
    assert key in str(refused.value.keyed)


def test_the_form_s_one_question_is_how_many_or_which_part() -> None:
    assert from_fields({"gpus": ["shared"]}) == {"kind": "shared"}
    assert from_fields({"gpus": ["1g.5gb"]}) == {"kind": "1g.5gb"}
    assert from_fields({"gpus": ["2"], "kind": ["gpu"]}) == {"gpus": 2, "kind": "gpu"}
    assert from_fields({"gpus": ["many"]}) == {"gpus": "many"}
    # A link that says both means what it says.
    for order in (("gpus", "kind"), ("kind", "gpus")):
        both = {"gpus": ["shared"], "kind": ["1g.5gb"]}
        assert from_fields({key: both[key] for key in order})["kind"] == "1g.5gb"


# -- The form --------------------------------------------------------------------------------------


def form(last: Choice, limits: Limits = LIMITS, units: Any = MIXED, *leases: Lease) -> Any:
    view = View(with_leases(nodes(units), leases), leases)
    return BeautifulSoup(shown(limits, last, view), "html.parser")


def presses(page: Any) -> list[str]:
    return [each["value"] for each in page.find_all("input", attrs={"name": "gpus"})]


def pressed(page: Any) -> str:
    return str(page.find("input", attrs={"name": "gpus"}, checked=True)["value"])


def test_the_form_offers_none_then_parts_from_the_smallest_then_whole_gpus() -> None:
    page = form(Choice())
    assert presses(page) == ["0", "shared", "1g.5gb", "3g.20gb", "1", "2"]
    assert pressed(page) == "1"
    text = " ".join(page.text.split())
    assert "up to 7 others compute on the same GPU, by turns" in text
    assert "which nothing divides by hardware" in text
    assert "Nothing limits who takes more, and others' programs fail then." in text
    assert "1g.5gb: a part of a GPU with its own memory (4.8 GB) and cores." in text


def test_the_form_says_what_comes_of_taking_more_than_one_s_part() -> None:
    text = " ".join(form(Choice(), replace(LIMITS, guard_seconds=60.0)).text.split())
    assert "Who takes more for 1 minute is warned. After as long again the largest process" in text
    assert "Nothing limits" not in text


@pytest.mark.parametrize(
    ("last", "limits", "units", "expected"),
    [
        (Choice(kind="shared"), {}, MIXED, "shared"),
        (Choice(kind="1g.5gb", gpus=1), {}, MIXED, "1g.5gb"),
        (Choice(gpus=2), {}, MIXED, "2"),
        (Choice(gpus=0), {}, MIXED, "0"),
        # What was had last isn't there any more.
        (Choice(kind="7g.80gb"), {}, MIXED, "1"),
        (Choice(), {"default_kind": "shared"}, MIXED, "shared"),
        (Choice(), {"default_kind": "1g.5gb"}, MIXED, "1g.5gb"),
        (Choice(gpus=2), {"default_kind": "shared"}, MIXED, "2"),
        (Choice(gpus=1), {"default_kind": "shared"}, MIXED, "1"),
        (Choice(gpus=1), {"kinds": frozenset({"shared"})}, MIXED, "shared"),
        (Choice(), {"kinds": frozenset({"shared"})}, MIXED, "shared"),
        (Choice(gpus=2), {"kinds": frozenset({"shared"})}, MIXED, "0"),
        (Choice(), {"default_gpus": 0}, MIXED, "0"),
        (Choice(), {}, shared(0, 4), "shared"),
        (Choice(), {"gpus": 0}, MIXED, None),
    ],
)
def test_what_is_preselected(
    last: Choice, limits: dict[str, Any], units: Any, expected: str | None
) -> None:
    page = form(last, replace(LIMITS, **limits), units)
    if expected is None:
        assert presses(page) in ([], ["0"])
    else:
        assert pressed(page) == expected


def test_a_default_number_is_of_whole_gpus() -> None:
    """Nobody has two slots for want of two GPUs, which would be no more than one."""
    for limits in (
        replace(LIMITS, default_gpus=2, default_kind="shared"),
        replace(LIMITS, default_gpus=2, kinds=frozenset({"shared"})),
    ):
        found = asked({}, limits)
        assert (found.kind, found.gpus) == (SHARED, 1)
        assert pressed(form(Choice(), limits)) == "shared"
    assert asked({}, replace(LIMITS, default_gpus=2)).gpus == 2
    assert asked({}, replace(LIMITS, default_gpus=0, default_kind="shared")).gpus == 0


def test_the_kind_is_one_that_the_model_has() -> None:
    units = [*shared(0, 4), gpu(1, "NVIDIA H100")]
    students = replace(LIMITS, default_kind="shared")
    assert asked({"model": "NVIDIA H100"}, students, units).kind == WHOLE
    assert asked({"model": A100}, LIMITS, units).kind == SHARED


def test_an_instance_without_a_profile_is_nobody_s() -> None:
    nameless = split(gpu(0, state="mig"), {}, [instance(0, 0, profile="1g.5gb")])
    unknown = [replace(unit, kind=NAMELESS) if unit.parent else unit for unit in nameless]
    assert presses(form(Choice(), LIMITS, [*unknown, *shared(1, 2)])) == ["0", "shared"]
    with pytest.raises(Refused, match="and here there are: shared"):
        asked({"kind": NAMELESS}, LIMITS, [*unknown, *shared(1, 2)])


def test_what_the_form_offers_is_granted_as_it_is() -> None:
    for limits in (
        LIMITS,
        replace(LIMITS, default_kind="shared"),
        replace(LIMITS, kinds=frozenset({"shared", "3g.20gb"})),
    ):
        for value in presses(form(Choice(), limits)):
            found = request(parse(from_fields({"gpus": [value]})), limits, nodes(MIXED))
            if value.isdigit():
                assert (found.gpus, found.kind) == (int(value), WHOLE)
            else:
                assert (found.gpus, found.kind) == (1, value)


def test_a_slot_that_is_taken_makes_the_next_one_wait_only_where_none_is_left() -> None:
    units = shared(0, 2)
    one = Lease(Holder("ada"), frozenset({"GPU-0#0/2"}), until=9e9)
    page = form(Choice(), LIMITS, units, one)
    assert "Starts now, with 1 shared GPU." in " ".join(page.text.split())
    assert "1 of 2 free" in " ".join(page.find(id="gpuspawner-machine").text.split())
    sick = [replace(gpu, state="excluded", reason="It is out of service: fan.") for gpu in units]
    page = form(Choice(), LIMITS, [*sick, *shared(1, 2)])
    said = " ".join(page.find(id="gpuspawner-machine").text.split())
    assert ": 0 of 2 free; It is out of service: fan." in said
    other = Lease(Holder("bob"), frozenset({"GPU-0#1/2"}), until=9e9)
    page = form(Choice(), LIMITS, units, one, other)
    assert pressed(page) == "shared"
    assert "Starts now" not in page.find(id="gpuspawner-sentence").text


# -- Limits ----------------------------------------------------------------------------------------


def queue(*asking: Request, units: list[GPU], held: list[Lease], limit: int) -> list[Any]:
    waiting = [
        QueuedRequest(Holder(f"u{n}"), each, n, frozenset({"class"}))
        for n, each in enumerate(asking)
    ]
    return list(Planner().plan(waiting, units, held, 0, group_limits={"class": limit}))


def test_a_group_s_limit_counts_a_slot_as_its_part() -> None:
    slot = Request("torch", 1, kind=SHARED, unit_share=Fraction(1, 4))
    units = [*shared(0, 4), *shared(1, 4)]
    turns = queue(*[slot] * 6, units=units, held=[], limit=1)
    assert [bool(turn.gpus) for turn in turns] == [True] * 4 + [False] * 2
    assert turns[4].because == "group:class"
    taken = [turn.gpus[0] for turn in turns if turn.gpus]
    # Fair: on the emptiest each time.
    assert sorted(unit.uuid or "" for unit in taken) == ["GPU-0", "GPU-0", "GPU-1", "GPU-1"]


def test_a_group_s_limit_counts_what_its_members_hold() -> None:
    slot = Request("torch", 1, kind=SHARED, unit_share=Fraction(1, 4))
    held = [
        Lease(Holder("ada"), frozenset({"MIG-1#4g.20gb/7@GPU-9"}), groups=frozenset({"class"})),
        Lease(Holder("bob"), frozenset({"GPU-8#0/4"}), groups=frozenset({"class"})),
    ]
    assert sum(each.share for each in held) == Fraction(23, 28)
    (turn,) = queue(slot, units=shared(0, 4), held=held, limit=1)
    assert turn.because == "group:class"
    (turn,) = queue(slot, units=shared(0, 4), held=held[:1], limit=1)
    assert turn.gpus


def test_a_user_s_limit_is_told_in_parts() -> None:
    one = Request("torch", 1, kind=SHARED, unit_share=Fraction(1, 8))
    assert "have or wait for 1 1/8, and your limit is 1" in str(
        over_user_limit(one, Fraction(9, 8), 1)
    )


def test_the_queue_plans_requests_for_parts_and_for_whole_gpus_side_by_side() -> None:
    units = [gpu(0), *shared(1, 2), *partitioned(2, "1g.5gb")]
    asking = [
        Request("torch", 1, seconds=60),
        Request("torch", 1, seconds=60),
        Request("torch", 1, kind=SHARED, seconds=60),
        Request("torch", 1, kind="1g.5gb", seconds=60),
        Request("torch", 1, kind="1g.5gb", seconds=60),
        Request("torch", 1, kind=SHARED, seconds=60),
        Request("torch", 1, kind=SHARED, seconds=60),
    ]
    turns = Planner().plan(
        [QueuedRequest(Holder(f"u{n}"), each, n) for n, each in enumerate(asking)], units, [], 0
    )
    assert [turn.start for turn in turns] == [0, 60, 0, 0, 60, 0, 60]
    given = [unit.id for turn in turns for unit in turn.gpus]
    assert len(given) == len(set(given)) == 4
    assert all(parse_name(str(name)).gpu != "GPU-2" or "MIG" in str(name) for name in given)
