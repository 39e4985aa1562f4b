"""What users and administrators read of several nodes; of one node they never read the word."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.choices.forecast import UNKNOWN, Forecast
from gpuspawner.choices.form import render
from gpuspawner.choices.limits import Limits
from gpuspawner.choices.options import Choice, request
from gpuspawner.dashboard import pages
from gpuspawner.dashboard.facts import Person, status
from gpuspawner.dashboard.history import History
from gpuspawner.dashboard.monitor import Snapshot
from gpuspawner.errors import Refused
from gpuspawner.gpus.model import GPU, SHARED, Holder, Node, Request
from gpuspawner.hub.metrics import HostMetrics
from gpuspawner.i18n.languages import ENGLISH, Language, language_for
from gpuspawner.images.catalogue import ImageVersion, catalogue
from gpuspawner.images.compatibility import Fit, fit, fit_nodes
from gpuspawner.leases.ledger import View
from gpuspawner.scheduling.phrases import turn_words
from gpuspawner.scheduling.plan import QueuedRequest, Turn

from ..support.dashboards import check

A100, T4, H100 = "NVIDIA A100", "Tesla T4", "NVIDIA H100"
CAPABILITIES = {A100: "8.0", T4: "7.5", H100: "9.0"}
CHINESE = language_for("zh-CN")
OLD, NEW = "535.183.01", "570.133.20"


def node(name: str, *models: str, driver: str | None = NEW, **values: Any) -> Node:
    gpus = tuple(
        GPU(
            f"GPU-{name}{n}",
            n,
            model,
            40960,
            compute_capability=CAPABILITIES[model],
            node=name,
            **values,
        )
        for n, model in enumerate(models)
    )
    return Node(name, driver, "12.8" if driver == NEW else "12.2", gpus)


BOTH = (node("p", A100, A100, A100, A100), node("q", A100, A100))
PLAIN = Limits(catalogue({"torch": "lab/torch"}), "torch")


def limits(**version: Any) -> Limits:
    return Limits(catalogue({"torch": {"image": "lab/torch", **version}}), "torch")


def refusal(choice: Choice, rules: Limits, nodes: tuple[Node, ...]) -> str:
    with pytest.raises(Refused) as caught:
        request(choice, rules, nodes)
    return str(caught.value)


# What may be asked for.


@pytest.mark.parametrize(
    ("choice", "rules", "nodes", "sentence"),
    [
        (
            Choice(gpus=6),
            PLAIN,
            BOTH,
            "You asked for 6 GPUs, and no machine here has more than 4.",
        ),
        (
            Choice(gpus=3, model=T4),
            PLAIN,
            (node("p", A100, T4), node("q", T4, T4)),
            "You asked for 3 Tesla T4 GPUs, and no machine here has more than 2.",
        ),
        (
            Choice(gpus=2),
            replace(PLAIN, models=frozenset({T4})),
            (node("p", A100, A100, T4), node("q", T4)),
            "You asked for 2 GPUs, and no machine here has more than 1 that you may have.",
        ),
        (
            Choice(gpus=3),
            limits(cuda="12.8", min_driver=NEW),
            (node("p", A100, A100, A100, driver=OLD), node("q", A100, A100)),
            "You asked for 3 GPUs, and no machine here has more than 2 that image torch runs on.",
        ),
        (
            Choice(gpus=1, model=H100),
            PLAIN,
            BOTH,
            f'You asked for the GPU model "{H100}", and no machine here has it: there are {A100}.',
        ),
        (
            Choice(gpus=1, model=H100),
            PLAIN,
            (node("p"), node("q")),
            f'You asked for the GPU model "{H100}", and no machine here has a GPU.',
        ),
        (
            Choice(gpus=1, model=A100),
            replace(PLAIN, models=frozenset({H100})),
            BOTH,
            f'You asked for the GPU model "{A100}", and the models you may have are: none of those '
            "here.",
        ),
        (
            Choice(gpus=1),
            limits(min_driver="600"),
            (node("p", A100, driver=OLD), node("q", A100)),
            f"Image torch needs driver 600 or newer, and the newest here is {NEW}. "
            "Without GPUs it can be used.",
        ),
    ],
)
def test_a_refusal_counts_what_one_machine_has(
    choice: Choice, rules: Limits, nodes: tuple[Node, ...], sentence: str
) -> None:
    assert refusal(choice, rules, nodes) == sentence


def test_who_says_no_number_gets_no_more_than_one_node_has() -> None:
    rules = replace(PLAIN, default_gpus=9)
    assert request(Choice(), rules, BOTH).gpus == 4


def test_an_image_is_asked_for_only_where_the_driver_is_new_enough() -> None:
    nodes = (node("p", A100, A100, driver=OLD), node("q", A100))
    granted = request(Choice(gpus=1), limits(min_driver=NEW), nodes)
    assert granted.places == frozenset({("q", A100)})
    assert [granted.takes(gpu) for gpu in View(nodes).gpus] == [False, False, True]


def test_where_the_model_alone_decides_the_node_does_not() -> None:
    nodes = (node("p", A100, T4), node("q", T4, A100))
    granted = request(Choice(gpus=1), limits(compute_capabilities=["8.0"], cuda="12.6"), nodes)
    assert (granted.models, granted.places) == (frozenset({A100}), None)


@pytest.mark.parametrize(
    ("made", "nodes", "expected"),
    [
        ({}, BOTH, Fit()),
        ({"min_driver": OLD}, BOTH, Fit()),
        (
            {"min_driver": NEW, "toolkit_driver": NEW},
            (node("p", A100, driver=OLD), node("q", A100, T4)),
            Fit(
                frozenset({A100, T4}),
                note="doesn't run on every machine here",
                places=frozenset({("q", A100), ("q", T4)}),
            ),
        ),
        (
            {"cuda": "12.8"},
            (node("p", A100, driver=OLD), node("q", A100)),
            Fit(note="made for driver 570.26, and where it is older new CUDA features are missing"),
        ),
        (
            {"compute_capabilities": ("8.0",)},
            (node("p", A100), node("q", T4)),
            Fit(
                frozenset({A100}), note="doesn't run on the Tesla T4 (compute capability 7.5) here"
            ),
        ),
        (
            {"compute_capabilities": ("7.0",)},
            (node("p", A100), node("q", H100)),
            Fit(
                frozenset(),
                "isn't built for the NVIDIA A100 (compute capability 8.0) or NVIDIA H100 (9.0) "
                "here",
            ),
        ),
        (
            {"compute_capabilities": ("8.0",), "min_driver": NEW},
            (node("p", A100, driver=OLD), node("q", T4)),
            Fit(
                frozenset(),
                f"needs driver {NEW} or newer, and where there is one it isn't built for "
                "Tesla T4 (compute capability 7.5)",
            ),
        ),
        # PTX is compiled for what is newer by a driver that is as new as its toolkit.
        (
            {"compute_capabilities": ("8.0+PTX",), "toolkit_driver": NEW},
            (node("p", H100, driver=OLD), node("q", H100)),
            Fit(
                frozenset({H100}),
                note="doesn't run on every machine here; made for driver 570.133.20, and where it "
                "is older new CUDA features are missing",
                places=frozenset({("q", H100)}),
            ),
        ),
    ],
)
def test_driver_and_architecture_are_looked_at_on_each_node(
    made: dict[str, Any], nodes: tuple[Node, ...], expected: Fit
) -> None:
    assert fit_nodes(ImageVersion(image="x", **made), nodes) == expected


some_nodes = st.lists(
    st.tuples(
        st.sampled_from([None, "470.256.02", OLD, NEW, "580.65.06"]),
        st.lists(st.sampled_from([A100, T4, H100]), max_size=3),
    ),
    min_size=1,
    max_size=3,
).map(
    lambda drawn: tuple(
        node(name, *(models if driver else ()), driver=driver)
        for name, (driver, models) in zip("pqr", drawn, strict=False)
    )
)
versions = st.builds(
    ImageVersion,
    image=st.just("x"),
    cuda=st.sampled_from(["", "11.8", "12.6", "12.8", "13.0"]),
    compute_capabilities=st.lists(
        st.sampled_from(["7.5", "8.0", "8.0+PTX", "9.0"]), max_size=2
    ).map(tuple),
)


@given(versions, some_nodes)
def test_what_runs_on_nodes_is_what_runs_on_each(
    version: ImageVersion, nodes: tuple[Node, ...]
) -> None:
    found = fit_nodes(version, nodes)
    wanted = Request("x", 1, None, found.models, places=found.places)
    for each in nodes:
        alone = fit(version, each.driver, each.gpus)
        for gpu in each.gpus:
            assert (not found.reason and wanted.takes(gpu)) == alone.takes(gpu.model)
    if any(each.gpus for each in nodes):
        assert bool(found.reason) == all(
            bool(fit(version, each.driver, each.gpus).reason) for each in nodes if each.gpus
        )


# The form.


def form(view: View, told: Forecast = UNKNOWN, rules: Limits = PLAIN) -> BeautifulSoup:
    html = render(rules, Choice(gpus=1), view, lambda choice: told, language=ENGLISH, keep=True)
    return BeautifulSoup(html, "html.parser")


def words(soup: BeautifulSoup, selector: str) -> str:
    return " ".join(" ".join(soup.select_one(selector).stripped_strings).split())  # type: ignore[union-attr]


def test_as_many_gpus_are_offered_as_the_largest_node_has() -> None:
    soup = form(View(BOTH))
    assert [each["value"] for each in soup.select('input[name="gpus"]')] == list("01234")
    assert "6 of 6 free now" in soup.text
    machines = words(soup, "#gpuspawner-machine")
    assert machines.count("machine 1 · GPU 0") == machines.count("machine 2 · GPU 0") == 1


def test_models_are_counted_over_all_nodes() -> None:
    soup = form(View((node("p", A100, T4), node("q", T4))))
    assert [each["value"] for each in soup.select('input[name="model"]')] == ["", A100, T4]
    assert "2 of 2 free now" in words(soup, "#gpuspawner-model-1-note")


def counted(nodes: tuple[Node, ...], choice: Choice, language: Language = ENGLISH) -> list[str]:
    """Return what the form says of where the GPUs are, a model is, and what is picked is."""
    html = render(PLAIN, choice, View(nodes), lambda each: UNKNOWN, language=language, keep=True)
    soup = BeautifulSoup(html, "html.parser")
    places = ("#gpuspawner-gpus-hint", "#gpuspawner-model-0-note", "#gpuspawner-gpus-why")
    # The page's script takes each of them anew.
    assert all(each.has_attr("data-part") for place in places for each in soup.select(place))
    return [words(soup, each) if soup.select(each) else "" for each in places]


def test_the_form_says_on_how_many_machines_is_what_can_be_picked() -> None:
    three = (node("p", A100, A100, T4), node("q", A100), node("r", T4))
    assert counted(three, Choice(gpus=1)) == [
        "5 of 5 free now · on 3 machines",
        "40 GB · 3 of 3 free now · on 2 machines",
        "What you have picked is on 3 machines.",
    ]
    picked = {
        Choice(gpus=1, model=A100): "What you have picked is on 2 machines.",
        Choice(gpus=2, model=A100): "What you have picked is on 1 machine.",
        Choice(gpus=3): "What you have picked is on 1 machine.",
        # What can't be had at all, another sentence says.
        Choice(gpus=3, model=A100): "",
        Choice(gpus=0): "",
    }
    assert {choice: counted(three, choice)[2] for choice in picked} == picked
    chinese = counted(three, Choice(gpus=1, model=A100), CHINESE)
    assert chinese[0].endswith(" · 在 3 台机器上")
    assert chinese[2] == "在 2 台机器上有您选择的配置。"
    # Of one machine nobody reads the word.
    alone = (node("p", A100, A100, T4), node("q"))
    assert "machine" not in " ".join(counted(alone, Choice(gpus=1)))


def test_the_image_decides_too_on_how_many_machines_it_is() -> None:
    nodes = (node("p", A100, driver=OLD), node("q", A100))
    soup = form(View(nodes), rules=limits(min_driver=NEW))
    assert words(soup, "#gpuspawner-gpus-why") == "What you have picked is on 1 machine."


def test_a_part_of_a_gpu_is_said_to_be_on_so_many_machines() -> None:
    slots = [
        replace(gpu, kind=SHARED, part=part, parts=2, share=Fraction(1, 2))
        for each in (node("p", A100), node("q", A100))
        for gpu in each.gpus
        for part in range(2)
    ]
    nodes = [
        Node(name, NEW, "12.8", tuple(gpu for gpu in slots if gpu.node == name)) for name in "pq"
    ]
    said = form(View((*nodes, node("r", T4)))).text
    assert "1/2 shared, on 2 machines: up to 1 others compute on the same GPU" in said


def test_few_machines_are_named_to_who_may_know_and_many_are_counted() -> None:
    four = tuple(node(f"<{name}>", A100) for name in "pqrs")
    reader = ENGLISH.naming(True)
    assert counted(four[:2], Choice(gpus=1), reader)[0].endswith("now · on <p> and <q>")
    assert counted(four, Choice(gpus=1), reader)[0].endswith("now · on 4 machines")
    assert "<p>" not in render(
        PLAIN, Choice(gpus=1), View(four), lambda each: UNKNOWN, language=reader
    )


def test_where_nobody_waits_more_than_one_node_has_free_cannot_be_picked() -> None:
    taken = replace(BOTH[0], gpus=tuple(replace(g, state="leased") for g in BOTH[0].gpus))
    soup = form(View((taken, BOTH[1])), rules=replace(PLAIN, waits=False))
    offered = soup.select('input[name="gpus"]:not([disabled])')
    assert [each["value"] for each in offered] == list("012")
    assert "at most 2 are free on one machine now" in soup.text


@pytest.mark.parametrize(
    ("turn", "told", "sentence"),
    [
        (
            {"because": "gpus"},
            {"free": 2, "scattered": True},
            "Enough GPUs are free, but not on one machine.",
        ),
        (
            {"because": "never"},
            {},
            "No machine here has as many that may be handed out at the moment.",
        ),
    ],
)
def test_the_form_says_that_one_machine_is_what_counts(
    turn: dict[str, Any], told: dict[str, Any], sentence: str
) -> None:
    waiting = QueuedRequest(Holder("you"), Request("torch", 2), 0)
    ahead = Turn(waiting, 1, None, several=True, **turn)
    assert sentence in form(View(BOTH), Forecast("wait", 2, ahead, **told)).text
    alone = Forecast("wait", 2, replace(ahead, several=False), **told)
    assert sentence not in form(View(BOTH[:1]), alone).text


def test_who_waits_for_what_no_machine_has_is_told_so() -> None:
    waiting = QueuedRequest(Holder("you"), Request("torch", 2), 0)
    said = turn_words(Turn(waiting, 1, None, because="never", several=True))
    assert said == (
        "You are next in line for 2 GPUs. "
        "No machine here has as many that may be handed out at the moment."
    )


# The dashboard.

BOSS = Person("boss", administrator=True, sees_names=True)


def facts(*nodes: Node, administrator: bool = True, **more: Any) -> dict[str, Any]:
    holder = Holder("ada")
    found = []
    for each in nodes:
        first, *rest = each.gpus
        taken = replace(first, state="leased", holder=holder)
        found.append(replace(each, gpus=(taken, *rest)))
    lease = {"user": "ada", "server": "", "gpus": [found[-1].gpus[0].uuid], "until": None}
    return status(
        Snapshot(
            at=time.time(),
            nodes=tuple(found),
            ours=frozenset(str(each.gpus[0].uuid) for each in found),
            hub={"queue": [], "leases": [lease], "order": "fifo"},
            **more,
        ),
        Person("ada", administrator),
    )


def drawn(seen: dict[str, Any]) -> str:
    html = pages.render("live.html", ENGLISH, seen, hub="/hub/", base="/services/gpus/", xsrf="x")
    return " ".join(BeautifulSoup(html, "html.parser").text.split())


def test_the_api_tells_each_node_and_each_gpu_s() -> None:
    seen = check("Status", facts(*BOTH[:1], node("q", T4, driver=OLD)))
    assert seen["nodes"] == [
        {"name": "p", "driver": NEW, "cuda": "12.8", "images": None},
        {"name": "q", "driver": OLD, "cuda": "12.2", "images": None},
    ]
    assert [gpu["node"] for gpu in seen["gpus"]] == list("ppppq")
    told = check("Status", facts(*BOTH, administrator=False))
    assert {gpu["node"] for gpu in told["gpus"]} == {"machine 1", "machine 2"}
    assert (seen["driver"], seen["cuda"]) == (NEW, "12.8")
    assert json.dumps(seen)


def test_the_page_tells_gpus_of_several_nodes_apart() -> None:
    seen = drawn(facts(*BOTH[:1], node("q", T4, driver=OLD)))
    assert f"driver {NEW} driver {OLD} CUDA 12.8 CUDA 12.2" in seen
    assert "p · GPU 0 NVIDIA A100" in seen
    assert "Default server q · GPU 0 without an end" in seen


TOLD = {
    "versions": {"torch": "PyTorch <2>", "plain": "Plain"},
    "images": {"p": frozenset({"torch", "gone"}), "q": None, "r": frozenset({"torch", "plain"})},
}


def test_administrators_read_which_images_each_machine_has() -> None:
    three = (*BOTH, node("r", T4))
    seen = check("Status", facts(*three, **TOLD))
    there = {
        each["name"]: each["images"] and {one["key"]: one["there"] for one in each["images"]}
        for each in seen["nodes"]
    }
    assert there == {
        "p": {"torch": True, "plain": False},
        "q": None,
        "r": {"torch": True, "plain": True},
    }
    html = pages.render("live.html", ENGLISH, seen, hub="/hub/", base="/services/gpus/", xsrf="x")
    soup = BeautifulSoup(html, "html.parser")
    lines = [" ".join(each.stripped_strings) for each in soup.select("#machines li")]
    assert sorted(lines) == [
        "p driver 570.133.20 CUDA 12.8 Images there: PyTorch <2> Not there: Plain",
        "q driver 570.133.20 CUDA 12.8 Which images are there isn't known now.",
        "r driver 570.133.20 CUDA 12.8 Images there: PyTorch <2>, Plain",
    ]
    assert "gpuspawner image spread sends what was built" in words(soup, "#machines")
    # Where all is there nothing has to be done.
    complete = {"images": dict.fromkeys("pqr", frozenset(TOLD["versions"]))}
    assert "image spread" not in drawn(facts(*three, **{**TOLD, **complete}))


def test_nobody_else_reads_it_nor_does_one_machine_say_so() -> None:
    seen = check("Status", facts(*BOTH, administrator=False, **TOLD))
    assert [each["images"] for each in seen["nodes"]] == [None, None]
    assert "Images there" not in drawn(seen)
    assert "isn't known now" not in drawn(seen)
    assert "Which images" not in drawn(facts(BOTH[0]))


@pytest.mark.parametrize("administrator", [False, True])
def test_the_page_of_one_node_never_names_it(administrator: bool) -> None:
    named = node("the-only-one", A100, A100)
    seen = drawn(facts(named, administrator=administrator))
    assert "the-only-one" not in seen
    assert "Default server GPU 0 without an end" in seen
    assert "the-only-one" not in form(View((named,))).text


def test_nodes_without_drivers_or_gpus_are_no_trouble() -> None:
    bare = Snapshot(at=time.time(), nodes=(Node("p"), Node("q")))
    assert "No machine here has an NVIDIA driver" in drawn(status(bare, BOSS))
    empty = Snapshot(at=time.time(), nodes=(Node("p", NEW, "12.8"), Node("q", NEW, "12.8")))
    assert "see no GPU on any machine here" in drawn(status(empty, BOSS))


def test_gpus_that_tell_no_uuid_have_a_history_of_their_own_on_each_node() -> None:
    history = History()
    first, second = (
        GPU(None, 0, A100, utilization_percent=10, node="p"),
        GPU(None, 0, A100, utilization_percent=90, node="q"),
    )
    history.add(0, [first, second])
    assert (history.points(first, 0)[0][-1], history.points(second, 0)[0][-1]) == (10, 90)


# Metrics.


def series(*nodes: Node) -> dict[tuple[tuple[str, str], ...], float]:
    ledger: Any = SimpleNamespace(last_view=View(nodes), last_view_at=time.monotonic())
    queue: Any = SimpleNamespace(waiting=())
    loop = asyncio.new_event_loop()
    gauges = list(HostMetrics(ledger, queue, loop).collect())
    loop.close()
    (gpus,) = [gauge for gauge in gauges if gauge.name == "gpuspawner_gpus"]
    return {tuple(sorted(each.labels.items())): each.value for each in gpus.samples}


def test_gpus_are_counted_by_node_where_there_are_several() -> None:
    assert series(*BOTH) == {
        (("model", A100), ("node", "p"), ("state", "free")): 4,
        (("model", A100), ("node", "q"), ("state", "free")): 2,
    }


def test_the_series_of_one_node_have_no_label_for_it() -> None:
    assert series(BOTH[0]) == {(("model", A100), ("state", "free")): 4}
