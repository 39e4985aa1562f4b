"""Which GPUs go together: by NVLink, then by their way on the PCIe bus, leaving others whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.choices.form import granted_phrase
from gpuspawner.gpus.allocation import choose
from gpuspawner.gpus.links import choose_linked, closeness, connection
from gpuspawner.gpus.model import GPU, Request
from gpuspawner.simulation.topologies import DGX_1, PAIRS

Links = Mapping[tuple[int, int], int]


def bus(one: int, other: int) -> int:
    """NVML's level of two GPUs: two on each PCIe switch, four on each socket."""
    return 10 if one // 2 == other // 2 else 40 if one // 4 == other // 4 else 50


def host(number: int, links: Links, **of_gpu: dict[int, str]) -> list[GPU]:
    """GPUs with these NVLinks between pairs of them."""
    return [
        GPU(
            f"GPU-{one}",
            one,
            "A100",
            state=of_gpu.get("states", {}).get(one, "free"),  # type: ignore[arg-type]
            links=tuple(
                (
                    f"GPU-{other}",
                    closeness(links.get((min(one, other), max(one, other)), 0), bus(one, other)),
                )
                for other in range(number)
                if other != one
            ),
        )
        for one in range(number)
    ]


SWITCHED = dict.fromkeys(combinations(range(16), 2), 12)


def chosen(gpus: list[GPU], count: int, policy: str = "pack", *taken: int) -> list[int] | None:
    rest = [replace(gpu, state="leased") if gpu.index in taken else gpu for gpu in gpus]
    found = choose(Request("x", count), rest, policy)
    return None if found is None else [gpu.index for gpu in found]


@pytest.mark.parametrize(
    ("links", "count", "taken", "expected"),
    [
        # Bridges between GPUs that aren't neighbours.
        (PAIRS, 2, (), [4, 5]),
        (PAIRS, 2, (4, 5, 6, 7), [0, 2]),
        (PAIRS, 2, (0, 4, 5, 6, 7), [1, 3]),
        (PAIRS, 2, (0, 1, 4, 6), [2, 3]),
        (PAIRS, 1, (0, 4, 5), [2]),
        (PAIRS, 1, (0, 1, 2, 3, 7), [6]),
        (PAIRS, 4, (), [0, 1, 2, 3]),
        # A DGX-1: two links are closer than one, and a square of four than any other four.
        (DGX_1, 2, (), [2, 3]),
        (DGX_1, 2, (2, 3), [6, 7]),
        (DGX_1, 2, (2, 3, 6, 7), [0, 4]),
        (DGX_1, 4, (), [0, 1, 2, 3]),
        (DGX_1, 4, (0,), [4, 5, 6, 7]),
        (DGX_1, 1, (0, 1, 2), [3]),
        # NVSwitch is flat: as where nothing is known.
        (SWITCHED, 2, (), [0, 1]),
        (SWITCHED, 1, (0, 1, 3), [2]),
        # PCIe only.
        ({}, 2, (0,), [2, 3]),
        ({}, 1, (2, 5, 6, 7), [4]),
        ({}, 4, (1,), [4, 5, 6, 7]),
    ],
)
def test_what_goes_together(
    links: Links, count: int, taken: tuple[int, ...], expected: list[int]
) -> None:
    assert chosen(host(8, links), count, "pack", *taken) == expected


def test_spread_keeps_single_gpus_apart_and_those_of_one_server_together() -> None:
    gpus = host(8, PAIRS)
    assert chosen(gpus, 1, "spread", 0) == [7]
    assert chosen(gpus, 2, "spread", 4, 5, 6, 7) == [0, 2]


def test_what_is_not_known_makes_no_difference() -> None:
    unknown = [replace(gpu, links=()) for gpu in host(8, PAIRS)]
    assert chosen(unknown, 2, "pack") == [0, 1]
    partly = [replace(gpu, links=()) if gpu.index == 0 else gpu for gpu in host(8, PAIRS)]
    assert choose_linked(partly, 2) is None


def test_a_lost_gpu_is_nobodys_neighbour() -> None:
    lost = host(8, PAIRS, states={2: "unhealthy"})
    assert chosen(lost, 1, "pack", 4, 5, 6, 7) == [0], "its partner has nobody else"


closenesses = st.integers(2, 9).flatmap(
    lambda number: st.tuples(
        st.just(number),
        st.dictionaries(
            st.sampled_from(list(combinations(range(number), 2))), st.integers(0, 4), max_size=36
        ),
        st.integers(1, number),
    )
)


@given(closenesses)
def test_no_other_set_is_closer(made: tuple[int, Links, int]) -> None:
    number, links, count = made
    gpus = host(number, links)
    found = choose_linked(gpus, count)
    if found is None:
        return
    assert len({gpu.uuid for gpu in found}) == count
    near = {gpu.uuid: dict(gpu.links) for gpu in gpus}

    def within(some: tuple[GPU, ...]) -> int:
        return sum(near[one.uuid][other.uuid or ""] for one, other in combinations(some, 2))

    assert within(found) == max(within(some) for some in combinations(gpus, count))


SQUARES = {pair: 4 for n in range(0, 16, 4) for pair in combinations(range(n, n + 4), 2)}
FAR_PAIRS = {(n, n + 8): 2 for n in range(8)}
TWO_DGX_1 = {**DGX_1, **{(one + 8, other + 8): count for (one, other), count in DGX_1.items()}}


@pytest.mark.parametrize("links", [SQUARES, FAR_PAIRS, TWO_DGX_1, {}])
@pytest.mark.parametrize(("count", "taken"), [(8, (0,)), (6, (1, 7, 12)), (5, (2, 3))])
def test_of_many_gpus_not_all_sets_are_looked_at_and_the_closest_is_found(
    links: Links, count: int, taken: tuple[int, ...]
) -> None:
    gpus = [gpu for gpu in host(16, links) if gpu.index not in taken]
    found = choose_linked(gpus, count)
    assert found is not None
    near = {gpu.index: {int(uuid[4:]): value for uuid, value in gpu.links} for gpu in gpus}
    best = max(
        sum(near[one][other] for one, other in combinations(some, 2))
        for some in combinations(near, count)
    )
    assert sum(near[one.index][other.index] for one, other in combinations(found, 2)) == best


@pytest.mark.parametrize(
    ("links", "some", "what", "said"),
    [
        (PAIRS, (0, 2), "nvlink", "GPU 0 and 2 (A100), connected by NVLink"),
        (PAIRS, (0, 2, 3), "", "GPU 0, 2 and 3 (A100)"),
        (SWITCHED, (0, 5, 7), "nvlink", "GPU 0, 5 and 7 (A100), connected by NVLink"),
        ({}, (2, 3), "switch", "GPU 2 and 3 (A100), on one PCIe switch"),
        ({}, (1, 2), "", "GPU 1 and 2 (A100)"),
        (PAIRS, (0,), "", "GPU 0 (A100)"),
        (PAIRS, (), "", "No GPU was asked for"),
    ],
)
def test_a_grant_says_what_connects_its_gpus(
    links: Links, some: tuple[int, ...], what: str, said: str
) -> None:
    gpus = [host(8, links)[index] for index in some]
    assert connection(gpus) == what
    assert str(granted_phrase(gpus)).endswith(said)
