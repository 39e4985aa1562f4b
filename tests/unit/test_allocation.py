"""Which GPUs a request gets: tables of hosts, and what holds for every host."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.gpus.allocation import (
    POLICIES,
    apply_leases,
    choose,
    explain_shortage,
    model_counts,
)
from gpuspawner.gpus.model import GPU, Holder, Lease, Request

from ..support.drawn_hosts import A100, T4, host, requests


def indexes(chosen: Any) -> list[int] | None:
    return None if chosen is None else [gpu.index for gpu in chosen]


@dataclass
class Scenario:
    """What each policy chooses on a host."""

    name: str
    gpus: str
    count: int
    pack: list[int] | None
    spread: list[int] | None
    model: str | None = None


SCENARIOS = [
    Scenario("no GPU asked for", "aa", 0, [], []),
    Scenario("no GPU asked for, none there", "", 0, [], []),
    Scenario("one asked for, none there", "", 1, None, None),
    Scenario("all of a host", "aaaa", 4, [0, 1, 2, 3], [0, 1, 2, 3]),
    Scenario("one more than the host has", "aaaa", 5, None, None),
    Scenario("one of an idle host", "aaaa", 1, [0], [0]),
    Scenario("two of an idle host", "aaaa", 2, [0, 1], [0, 3]),
    Scenario("three of an idle host", "aaaaa", 3, [0, 1, 2], [0, 2, 4]),
    Scenario("a gap of one is filled, or kept away from", "aLaLaaa", 1, [0], [6]),
    Scenario("a gap of two fits two exactly", "aaaLaaLa", 2, [4, 5], [0, 1]),
    Scenario("a pair is left whole for one", "aaLa", 1, [3], [0]),
    Scenario("no run is long enough: the longest first", "aLaaLa", 3, [2, 3, 0], [0, 2, 3]),
    Scenario("neighbours only by index: a missing index parts them", "a aa", 2, [2, 3], [0, 3]),
    Scenario("as far as can be from a leased GPU", "Laaa", 1, [1], [3]),
    Scenario("as far as can be from a foreign GPU", "Faaa", 1, [1], [3]),
    Scenario("a sick GPU is idle, and makes no heat", "Saaa", 1, [1], [1]),
    Scenario("every state but free is passed over", "LFMSEUa", 1, [6], [6]),
    Scenario("no state but free will do", "LFMSEU", 1, None, None),
    Scenario("a GPU without a UUID can't be named", "?a", 1, [1], [1]),
    Scenario("only a GPU without a UUID", "?", 1, None, None),
    Scenario("a model that was asked for", "aatt", 1, [2], [2], model=T4),
    Scenario("too few of the model, others free", "aatt", 3, None, None, model=T4),
    Scenario("a model that isn't there", "aa", 1, None, None, model=T4),
    Scenario("one model where one suffices", "ataat", 2, [1, 4], [0, 3]),
    Scenario("pack takes the rarer model, spread the other", "aaat", 1, [3], [0]),
    Scenario("the only model with enough left", "taaa", 3, [1, 2, 3], [1, 2, 3]),
    Scenario("models are mixed only where nothing else would do", "at", 2, [0, 1], [0, 1]),
    Scenario("mixed on a host with gaps", "aLtt", 3, [2, 3, 0], [0, 2, 3]),
]


@pytest.mark.parametrize("policy", ["pack", "spread"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.name)
def test_choose(scenario: Scenario, policy: str) -> None:
    request = Request("torch", scenario.count, scenario.model)
    chosen = choose(request, host(scenario.gpus), policy)
    assert indexes(chosen) == getattr(scenario, policy)


def test_packing_is_the_default() -> None:
    assert indexes(choose(Request("torch", 2), host("aaaa"))) == [0, 1]


def test_an_unknown_policy_is_named_together_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="must be one of pack, spread, got 'best'"):
        choose(Request("torch", 0), host("a"), "best")


def test_two_gpus_with_one_uuid_are_refused() -> None:
    """Handing out either would hand out both."""
    twins = [GPU("GPU-0", 0, A100), GPU("GPU-0", 1, A100)]
    with pytest.raises(ValueError, match="same UUID"):
        choose(Request("torch", 1), twins)


def test_several_gpus_without_a_uuid_are_no_duplicates() -> None:
    assert indexes(choose(Request("torch", 1), host("??a"))) == [2]


@pytest.mark.parametrize(
    ("gpus", "count", "model", "sentence"),
    [
        ("", 1, None, "You asked for 1 GPU, and this machine has 0."),
        ("aa", 3, None, "You asked for 3 GPUs, and this machine has 2."),
        ("aat", 2, T4, "You asked for 2 Tesla T4 GPUs, and this machine has 1."),
        ("aL", 2, None, "You asked for 2 GPUs, and 1 of 2 is free now (1 in use)."),
        (
            "LLFMSEU?",
            1,
            None,
            "You asked for 1 GPU, and 0 of 8 are free now (1 kept out, 1 in use outside the hub, "
            "1 without a UUID, 2 in use, 1 in MIG mode, 1 out of order, 1 in an unknown state).",
        ),
        ("Lt", 1, A100, f"You asked for 1 {A100} GPU, and 0 of 1 are free now (1 in use)."),
    ],
)
def test_explain_says_what_was_asked_and_what_is_there(
    gpus: str, count: int, model: str | None, sentence: str
) -> None:
    request = Request("torch", count, model)
    assert choose(request, host(gpus)) is None
    assert explain_shortage(request, host(gpus)) == sentence


ANN, BOB = Holder("ann"), Holder("bob", "second")


@pytest.mark.parametrize(
    ("letter", "state", "reason"),
    [
        ("a", "leased", "taken"),
        ("F", "leased", "taken"),  # what computes there is the lease's own program
        ("S", "unhealthy", ""),  # its holder must read why it doesn't answer
        ("U", "unknown", ""),
        ("E", "excluded", ""),
        ("M", "mig", ""),
    ],
)
def test_a_lease_decides_over_what_nvml_sees_but_not_over_sickness(
    letter: str, state: str, reason: str
) -> None:
    before = host(letter)[0]
    (after,) = apply_leases([before], [Lease(ANN, frozenset({"GPU-0"}))])
    expected = replace(before, state=state, holder=ANN, reason=reason)  # type: ignore[arg-type]
    assert after == expected


def test_each_gpu_gets_its_own_holder_and_the_rest_stay_as_they_are() -> None:
    leases = [
        Lease(ANN, frozenset({"GPU-0", "GPU-2"})),
        Lease(BOB, frozenset({"GPU-3"})),
        Lease(BOB, frozenset({"GPU-of-another-host"})),
        Lease(BOB, frozenset()),
    ]
    after = apply_leases(host("aaaa?"), leases)
    assert [gpu.holder for gpu in after] == [ANN, None, ANN, BOB, None]
    assert [gpu.state for gpu in after] == ["leased", "free", "leased", "leased", "free"]


def test_a_leased_gpu_tells_when_its_lease_ends() -> None:
    leases = [Lease(ANN, frozenset({"GPU-0"}), until=5.0), Lease(BOB, frozenset({"GPU-1"}))]
    assert [gpu.until for gpu in apply_leases(host("aaa"), leases)] == [5.0, None, None]


@pytest.mark.parametrize(("ends", "latest"), [((5.0, 9.0), 9.0), ((5.0, None), None)])
def test_where_two_leases_name_one_gpu_the_later_end_counts(
    ends: tuple[float, float | None], latest: float | None
) -> None:
    leases = [Lease(ANN, frozenset({"GPU-0"}), until=end) for end in ends]
    for listed in (leases, leases[::-1]):
        assert apply_leases(host("a"), listed)[0].until == latest


def test_a_holder_reads_as_the_user_and_a_named_server() -> None:
    assert (str(ANN), str(BOB)) == ("ann", "bob/second")


def test_models_are_counted_in_the_order_of_the_host() -> None:
    assert model_counts(host("tLaa?SF")) == {T4: (1, 1), A100: (2, 6)}
    assert list(model_counts(host("at"))) == [A100, T4]
    assert model_counts([]) == {}


def test_only_gpus_that_the_image_runs_on_are_chosen() -> None:
    """Nobody named a model, and packing alone would take the one that is left of the other."""
    only = Request("torch", 1, models=frozenset({A100}))
    assert indexes(choose(Request("torch", 1), host("taa"))) == [0]
    assert indexes(choose(only, host("taa"))) == [1]
    assert choose(only, host("tLL")) is None
    assert explain_shortage(only, host("tLL")) == (
        "You asked for 1 GPU of those you can have with your image, and 0 of 2 are free now "
        "(2 in use)."
    )
    assert explain_shortage(Request("torch", 3, models=frozenset({A100})), host("taa")) == (
        "You asked for 3 GPUs of those you can have with your image, and this machine has 2."
    )


# What holds for every host.

hosts = st.text(alphabet="aattLFMSEU? ", max_size=10).map(host)
policies = st.sampled_from(sorted(POLICIES))


def fitting(request: Request, gpus: list[GPU]) -> list[GPU]:
    """The GPUs that a request could get, told without the code under test."""
    return [
        gpu
        for gpu in gpus
        if gpu.state == "free"
        and gpu.uuid
        and (not request.model or gpu.model == request.model)
        and (request.models is None or gpu.model in request.models)
    ]


@given(requests, hosts, policies)
def test_only_free_gpus_are_chosen_each_once_and_as_many_as_asked_for(
    request: Request, gpus: list[GPU], policy: str
) -> None:
    chosen = choose(request, gpus, policy)
    if chosen is not None:
        assert all(gpu in fitting(request, gpus) for gpu in chosen)
        assert len({gpu.uuid for gpu in chosen}) == len(chosen) == request.gpus


@given(requests, hosts, policies)
def test_nothing_is_chosen_only_where_too_few_are_free(
    request: Request, gpus: list[GPU], policy: str
) -> None:
    possible = len(fitting(request, gpus)) >= request.gpus
    assert (choose(request, gpus, policy) is not None) == possible


@given(requests, hosts, policies)
def test_one_model_is_chosen_wherever_one_model_suffices(
    request: Request, gpus: list[GPU], policy: str
) -> None:
    free = [gpu.model for gpu in fitting(request, gpus)]
    if any(free.count(model) >= request.gpus for model in free):
        chosen = choose(request, gpus, policy)
        assert chosen is not None
        assert len({gpu.model for gpu in chosen}) <= 1


@given(requests, hosts, policies, st.randoms(use_true_random=False))
def test_the_order_in_which_gpus_are_listed_does_not_matter(
    request: Request, gpus: list[GPU], policy: str, order: random.Random
) -> None:
    shuffled = list(gpus)
    order.shuffle(shuffled)
    assert choose(request, shuffled, policy) == choose(request, gpus, policy)


@given(requests, hosts)
def test_packing_splits_a_run_only_where_no_run_is_long_enough(
    request: Request, gpus: list[GPU]
) -> None:
    pool = [gpu.index for gpu in fitting(request, gpus)]
    if len({gpu.model for gpu in gpus}) == 1 and request.gpus:
        runs = "".join("x" if index in pool else " " for index in range(12)).split()
        chosen = choose(request, gpus, "pack")
        if any(len(run) >= request.gpus for run in runs):
            first = indexes(chosen)[0]
            assert indexes(chosen) == list(range(first, first + request.gpus))


@given(requests, hosts)
def test_the_reason_for_nothing_adds_up(request: Request, gpus: list[GPU]) -> None:
    """Free and not free together are all that there is, so nobody wonders where one went."""
    if choose(request, gpus) is None and "this machine has" not in explain_shortage(request, gpus):
        words = explain_shortage(request, gpus).replace("(", " ").split()
        asked, free, total, *others = (int(word) for word in words if word.isdigit())
        assert asked == request.gpus
        assert free + sum(others) == total
