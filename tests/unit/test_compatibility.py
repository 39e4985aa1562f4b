"""Which image versions can use a host's GPUs: NVIDIA's two levels of drivers, and architectures."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.choices.limits import Limits
from gpuspawner.choices.options import Choice, request
from gpuspawner.errors import Refused
from gpuspawner.gpus.model import GPU, Node, Request
from gpuspawner.images.catalogue import ImageVersion, catalogue, load_catalogue
from gpuspawner.images.compatibility import (
    MIN_DRIVER,
    TOOLKIT_DRIVER,
    Fit,
    fit,
    min_driver_of,
    toolkit_driver_of,
)

from ..support.paths import ROOT

SHIPPED = ROOT / "image" / "catalogue.yaml"
A100, T4, V100, H100 = "NVIDIA A100", "Tesla T4", "Tesla V100", "NVIDIA H100"
CAPABILITIES = {A100: "8.0", T4: "7.5", V100: "7.0", H100: "9.0"}

# One real release of each branch, oldest first.
DRIVERS = [
    "470.256.02",
    "525.147.05",
    "535.183.01",
    "550.54.14",
    "570.133.20",
    "580.65.06",
    "590.48.01",
]
# What each driver means for a CUDA release: - can't start, ~ runs without what is new, + runs.
LEVELS = {
    "11.8": "~++++++",
    "12.0": "-++++++",
    "12.1": "-~+++++",
    "12.2": "-~+++++",
    "12.3": "-~~++++",
    "12.4": "-~~++++",
    "12.5": "-~~~+++",
    "12.6": "-~~~+++",
    "12.8": "-~~~+++",
    "12.9": "-~~~~++",
    "13.0": "-----++",
    "13.1": "-----~+",
    "13.2": "-----~~",
}


def nodes(gpus: list[GPU], driver: str | None = "570.133.20") -> tuple[Node, ...]:
    return (Node("", driver, "12.8", tuple(gpus)),)


def gpus(*models: str) -> list[GPU]:
    return [
        GPU(f"GPU-{n}", n, model, compute_capability=CAPABILITIES.get(model))
        for n, model in enumerate(models)
    ]


def version(**fields: object) -> ImageVersion:
    return catalogue({"torch": {"image": "lab/torch", **fields}})["torch"]


def level(found: Fit) -> str:
    return "-" if found.reason else "~" if found.note else "+"


@pytest.mark.parametrize("cuda", TOOLKIT_DRIVER)
def test_a_release_of_cuda_has_a_floor_and_a_driver_of_its_own(cuda: str) -> None:
    """The table of drivers against what an administrator's entry says with `cuda` alone."""
    levels = [level(fit(version(cuda=cuda), driver, gpus(A100))) for driver in DRIVERS]
    assert "".join(levels) == LEVELS[cuda]


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("key", load_catalogue(SHIPPED))
def test_a_shipped_version_says_what_nvidia_s_table_says(key: str, driver: str) -> None:
    shipped = catalogue(load_catalogue(SHIPPED))[key]
    found = fit(shipped, driver, gpus(A100))
    if shipped.cuda:
        cuda = ".".join(shipped.cuda.split(".")[:2])
        assert level(found) == LEVELS[cuda][DRIVERS.index(driver)]
        assert min_driver_of(shipped) == MIN_DRIVER[cuda.split(".")[0]]
        assert toolkit_driver_of(shipped) == TOOLKIT_DRIVER[cuda]
    else:
        assert found == Fit()


def test_the_reason_and_the_note_name_both_drivers() -> None:
    thirteen, twelve = version(cuda="13.0"), version(cuda="12.6")
    reason = "needs driver 580.65.06 or newer, this machine has 570.133.20"
    assert fit(thirteen, "570.133.20", gpus(A100)) == Fit(frozenset(), reason)
    note = "made for driver 560.28.03, with this machine's 550.54.14 new CUDA features are missing"
    assert fit(twelve, "550.54.14", gpus(A100)) == Fit(note=note)


@pytest.mark.parametrize(
    ("fields", "floor", "own"),
    [
        ({"cuda": "12.6"}, "525.60.13", "560.28.03"),
        ({"cuda": "12.6.3"}, "525.60.13", "560.28.03"),
        ({"cuda": "11.3"}, "450.80.02", ""),
        ({"cuda": "12.99"}, "525.60.13", ""),
        # Of a CUDA that isn't in the table nothing is known.
        ({"cuda": "10.2"}, "", ""),
        ({"cuda": "99.0"}, "", ""),
        ({"cuda": "12"}, "", ""),
        ({"cuda": "none"}, "", ""),
        ({}, "", ""),
        # What an entry says itself goes before the table.
        ({"cuda": "12.6", "min_driver": "550"}, "550", "560.28.03"),
        ({"cuda": "12.6", "toolkit_driver": "565"}, "525.60.13", "565"),
        ({"min_driver": "550", "toolkit_driver": "565"}, "550", "565"),
    ],
)
def test_the_drivers_of_an_entry_are_its_own_or_follow_from_its_cuda(
    fields: dict[str, str], floor: str, own: str
) -> None:
    assert (min_driver_of(version(**fields)), toolkit_driver_of(version(**fields))) == (floor, own)


@pytest.mark.parametrize(
    ("least", "driver", "runs"),
    [
        ("525.60.13", "525.60.13", True),
        ("525.60.13", "525.60.2", False),
        ("525.60.13", "525.105.17", True),  # numbers, not letters: 105 is more than 60
        ("525.60.13", "470", False),
        ("525", "525.60.13", True),
        ("", "390.157", True),
        ("525.60.13", None, True),  # no driver: no GPU either, and the version runs without
    ],
)
def test_drivers_are_compared_by_number(least: str, driver: str | None, runs: bool) -> None:
    assert (fit(version(min_driver=least), driver, gpus(A100)).reason == "") is runs


@pytest.mark.parametrize(
    ("built", "runs_on"),
    [
        ([], [A100, T4, V100, H100]),
        (["8.0"], [A100]),
        (["7.0"], [T4, V100]),
        (["7.5"], [T4]),
        (["8.6"], []),
        (["7.0", "8.0"], [A100, T4, V100]),
        (["8.0+PTX"], [A100, H100]),
        (["7.0+PTX"], [A100, T4, V100, H100]),
        (["10.0"], []),  # numbers, not letters: 10 is more than 9
        (["7.5", "9.0+PTX"], [T4, H100]),
    ],
)
def test_machine_code_runs_on_its_own_major_version_and_ptx_on_all_that_is_newer(
    built: list[str], runs_on: list[str]
) -> None:
    made = version(cuda="12.6", compute_capabilities=built)
    found = fit(made, "570.133.20", gpus(*CAPABILITIES))
    assert [model for model in CAPABILITIES if found.takes(model)] == runs_on
    for model in CAPABILITIES:
        alone = fit(made, "570.133.20", gpus(model))
        assert alone.takes(model) == (model in runs_on)
        assert level(alone) == ("+" if model in runs_on else "-")


def test_ptx_is_only_compiled_by_a_driver_as_new_as_the_toolkit() -> None:
    made = version(cuda="12.6", compute_capabilities=["8.0+PTX"])
    assert fit(made, "560.28.03", gpus(H100)) == Fit(frozenset({H100}))
    old = fit(made, "550.54.14", gpus(H100, A100))
    assert old.models == {A100}
    assert old.note.startswith("doesn't run on this machine's NVIDIA H100 (compute capability 9.0)")


def test_what_a_version_isn_t_built_for_is_named() -> None:
    made = version(compute_capabilities=["8.0"])
    reason = "isn't built for this machine's Tesla T4 (compute capability 7.5)"
    assert fit(made, "570.133.20", gpus(T4, T4)) == Fit(frozenset(), reason)
    assert fit(made, "570.133.20", gpus(T4, V100)).reason == f"{reason} or Tesla V100 (7.0)"
    note = "doesn't run on this machine's Tesla T4 (compute capability 7.5)"
    assert fit(made, "570.133.20", gpus(T4, A100)) == Fit(frozenset({A100}), note=note)


def test_a_gpu_that_does_not_tell_its_compute_capability_is_not_ruled_out() -> None:
    made = version(compute_capabilities=["8.0"])
    silent = GPU("GPU-9", 9, "unknown GPU")
    assert fit(made, "570.133.20", [silent]).takes("unknown GPU")
    # Unless another of its model tells.
    twin = GPU("GPU-8", 8, T4)
    assert not fit(made, "570.133.20", [*gpus(T4), twin]).takes(T4)


def test_of_an_unknown_image_nothing_is_ruled_out() -> None:
    assert fit(None, "390.157", gpus(T4)) == Fit()


# The one place that form, link and REST share.

MIXED = gpus(T4, A100, T4, A100)
LIMITS = Limits(
    catalogue(
        {
            "torch": {"image": "lab/torch", "compute_capabilities": ["8.0"]},
            "new": {"image": "lab/new", "compute_capabilities": ["10.0"]},
            "cuda13": {"image": "lab/13", "cuda": "13.0"},
            "plain": "lab/plain",
        }
    ),
    "torch",
)


@pytest.mark.parametrize(
    ("choice", "granted"),
    [
        (Choice(), Request("torch", 1, None, frozenset({A100}))),
        (Choice(gpus=2), Request("torch", 2, None, frozenset({A100}))),
        (Choice(gpus=2, model=A100), Request("torch", 2, A100, frozenset({A100}))),
        (Choice(image="plain", gpus=4), Request("plain", 4)),
        (Choice(image="plain", model=T4), Request("plain", 1, T4)),
        (Choice(gpus=0, model=T4), Request("torch", 0)),
        (Choice(image="new", gpus=0), Request("new", 0)),
        (Choice(image="cuda13", gpus=0), Request("cuda13", 0)),
    ],
)
def test_a_request_is_for_gpus_that_the_image_runs_on(choice: Choice, granted: Request) -> None:
    assert request(choice, LIMITS, nodes(MIXED)) == granted


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        (Choice(gpus=3), "You asked for 3 GPUs, and this machine has 2 that image torch runs on."),
        (
            Choice(model=T4),
            'You asked for the GPU model "Tesla T4", and image torch isn\'t built for it: it runs '
            "on NVIDIA A100.",
        ),
        (Choice(gpus=3, model=A100), "You asked for 3 NVIDIA A100 GPUs, and this machine has 2."),
        (
            Choice(image="new"),
            "Image new isn't built for this machine's NVIDIA A100 (compute capability 8.0) or "
            "Tesla T4 (7.5). Without GPUs it can be used.",
        ),
        (
            Choice(image="cuda13", gpus=1),
            "Image cuda13 needs driver 580.65.06 or newer, this machine has 570.133.20. "
            "Without GPUs it can be used.",
        ),
    ],
)
def test_gpus_that_the_image_cannot_use_are_refused(choice: Choice, sentence: str) -> None:
    with pytest.raises(Refused, match=re.escape(sentence)) as refused:
        request(choice, LIMITS, nodes(MIXED))
    assert refused.value.status == 400


def test_what_a_user_may_have_and_the_image_cannot_use_is_refused_and_not_left_out() -> None:
    """Who asked for nothing would get a server without GPUs, and no word why."""
    limits = replace(LIMITS, models=frozenset({T4}))
    sentence = "Image torch isn't built for this machine's Tesla T4 (compute capability 7.5)"
    with pytest.raises(Refused, match=re.escape(sentence)):
        request(Choice(), limits, nodes(MIXED))
    assert request(Choice(image="plain"), limits, nodes(MIXED)).gpus == 1
    assert request(Choice(gpus=0), limits, nodes(MIXED)).gpus == 0


versions = st.builds(
    ImageVersion,
    image=st.just("lab/any"),
    cuda=st.sampled_from(["", "10.2", "11.8", "12.6", "13.0", "99"]),
    min_driver=st.sampled_from(["", "1", "525.60.13", "999"]),
    toolkit_driver=st.sampled_from(["", "560.28.03", "999"]),
    compute_capabilities=st.lists(st.sampled_from(["7.0", "8.0", "9.0+PTX", "12.0"])).map(tuple),
)
hosts = st.lists(st.sampled_from([*CAPABILITIES, "unknown GPU"]), max_size=5).map(
    lambda models: gpus(*models)
)
drivers = st.none() | st.sampled_from(DRIVERS)


@given(versions, hosts, drivers)
def test_without_gpus_every_version_may_be_picked_on_every_host(
    any_version: ImageVersion, host: list[GPU], driver: str | None
) -> None:
    limits = Limits({"any": any_version}, "any")
    assert request(Choice(gpus=0), limits, nodes(host, driver)) == Request("any", 0)


@given(versions, hosts, drivers, st.none() | st.integers(0, 4))
def test_what_is_granted_runs(
    any_version: ImageVersion, host: list[GPU], driver: str | None, count: int | None
) -> None:
    if driver is None:
        host = []
    try:
        granted = request(
            Choice(gpus=count), Limits({"any": any_version}, "any"), nodes(host, driver)
        )
    except Refused:
        return
    assert sum(map(granted.takes, host)) >= granted.gpus
    for gpu in filter(granted.takes, host if granted.gpus else []):
        assert not fit(any_version, driver, [gpu]).reason
