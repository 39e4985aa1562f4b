"""A version is checked against the driver and the GPUs before the spawn, through every door."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import requests
from bs4 import BeautifulSoup

from gpuspawner.choices.open_forms import RECENT_SECONDS
from gpuspawner.simulation.state import State, describe

from ..support.forms import submit
from ..support.hubs import Hub, until
from ..support.looks import container_of, containers, gpus, inside, labelled

pytestmark = pytest.mark.engine

REFERENCE = "gpuspawner/minimal:py3.11"
VERSIONS = {
    "plain": {"image": REFERENCE},
    "twelve": {"image": REFERENCE, "title": "CUDA 12", "cuda": "12.6"},
    "thirteen": {"image": REFERENCE, "title": "CUDA 13", "cuda": "13.0"},
    "ampere": {"image": REFERENCE, "compute_capabilities": ["8.0", "8.6"]},
    "hopper": {"image": REFERENCE, "compute_capabilities": ["9.0"]},
    "old": {"image": REFERENCE, "size": "310 MB", "deprecated": "use CUDA 13"},
}
# What is said of a version that can't have GPUs.
REFUSED = {
    ("470.256.02", "twelve"): "needs driver 525.60.13 or newer, this machine has 470.256.02",
    ("470.256.02", "thirteen"): "needs driver 580.65.06 or newer, this machine has 470.256.02",
    ("550.54.14", "thirteen"): "needs driver 580.65.06 or newer, this machine has 550.54.14",
}
NOT_BUILT = "isn't built for this machine's NVIDIA A100-SXM4-40GB (compute capability 8.0)"


def press(hub, session, choice):
    """Open a link with a choice, from a page of the hub's."""
    return session.get(f"{hub.url}/hub/spawn?{choice}", headers={"Referer": f"{hub.url}/hub/home"})


@pytest.fixture(scope="module")
def _hub(hubs_of_run, minimal_image) -> Hub:
    return hubs_of_run(
        f"c.GPUSpawner.images = {VERSIONS!r}",
    )


@pytest.fixture
def checked(idle_host, _hub) -> Iterator[Hub]:
    yield _hub
    _hub.stop_all_servers()


def with_driver(host, driver: str) -> None:
    """Let the host have another driver, as after an upgrade."""
    host.change(lambda state: replace(state, driver=driver, cuda="", loads=state.loads + 1))
    time.sleep(RECENT_SECONDS)  # pages may be so old


def form(hub: Hub, session: requests.Session) -> BeautifulSoup:
    return BeautifulSoup(session.get(f"{hub.url}/hub/spawn").content, "html.parser")


def beside(page: BeautifulSoup, key: str) -> str:
    """What the form says beside a version."""
    found = page.select_one(f'input[name="image"][value="{key}"]')
    assert not found.has_attr("disabled")
    notes = [page.select_one(f'[id="{each}"]') for each in found["aria-describedby"].split()]
    return " | ".join(" ".join(note.text.split()) for note in notes)


def error_of(page: requests.Response) -> str:
    assert page.status_code == 400
    soup = BeautifulSoup(page.content, "html.parser")
    return " ".join(soup.select_one(".spawn-error-msg").text.split())


@pytest.mark.parametrize(("driver", "key"), REFUSED)
def test_a_version_whose_cuda_does_not_start_is_refused_through_every_door(
    checked, idle_host, engine, driver, key
):
    with_driver(idle_host, driver)
    session = checked.log_in("ada")
    assert beside(form(checked, session), key).endswith(
        f" only without GPUs: {REFUSED[driver, key]}"
    )
    words = f"{REFUSED[driver, key]}. Without GPUs it can be used."
    sentence = f"Image {VERSIONS[key]['title']} {words}"
    rest = checked.spawn("ada", {"image": key, "gpus": 1})
    assert (rest.status_code, rest.json()["message"]) == (400, f"image: Image {key} {words}")
    link = press(checked, session, f"opt-image={key}&opt-gpus=1")
    assert sentence in error_of(link)
    assert sentence in error_of(submit(checked, session, image=key, gpus="1"))
    assert containers(engine) == []


def test_without_gpus_it_starts_through_every_door(checked, idle_host, engine):
    with_driver(idle_host, "470.256.02")
    session = checked.log_in("ada")
    doors = [
        lambda: checked.spawn("ada", {"image": "thirteen", "gpus": 0}),
        lambda: press(checked, session, "opt-image=thirteen&opt-gpus=0"),
        lambda: submit(checked, session, image="thirteen", gpus="0"),
    ]
    for door in doors:
        door()
        until(lambda: checked.ready("ada"), "the server is ready", log=checked.log)
        assert labelled(engine) == {"ada": []}
        checked.stop_server("ada")


def test_what_the_toolkit_s_own_driver_would_add_is_only_noted(checked, idle_host, engine):
    with_driver(idle_host, "550.54.14")
    page = form(checked, checked.log_in("ada"))
    assert beside(page, "twelve") == (
        "CUDA 12.6 "
        "made for driver 560.28.03, with this machine's 550.54.14 new CUDA features are missing"
    )
    checked.start_server("ada", {"image": "twelve", "gpus": 1})
    assert len(labelled(engine)["ada"]) == 1


def test_a_new_driver_is_noticed_while_the_hub_runs(checked, idle_host):
    with_driver(idle_host, "590.48.01")
    page = form(checked, checked.log_in("ada"))
    assert [beside(page, key) for key in ("twelve", "thirteen")] == ["CUDA 12.6", "CUDA 13.0"]
    checked.start_server("ada", {"image": "thirteen", "gpus": 1})


def test_a_framework_without_the_gpu_s_architecture_is_refused_through_every_door(checked, engine):
    session = checked.log_in("ada")
    assert beside(form(checked, session), "hopper") == f"only without GPUs: {NOT_BUILT}"
    sentence = f"Image hopper {NOT_BUILT}. Without GPUs it can be used."
    rest = checked.spawn("ada", {"image": "hopper", "gpus": 1})
    assert (rest.status_code, rest.json()["message"]) == (400, f"image: {sentence}")
    link = press(checked, session, "opt-image=hopper&opt-gpus=1")
    assert sentence in error_of(link)
    assert sentence in error_of(submit(checked, session, image="hopper", gpus="1"))
    assert containers(engine) == []


def test_a_deprecated_version_can_be_picked_and_says_so(checked):
    assert beside(form(checked, checked.log_in("ada")), "old") == ("310 MB deprecated: use CUDA 13")
    checked.start_server("ada", {"image": "old", "gpus": 1})


def test_on_a_host_of_two_models_a_version_gets_those_that_it_runs_on(checked, idle_host, engine):
    mixed = describe([("T4", 1), ("A100-40GB", 2)])
    idle_host.change(lambda state: State(gpus=mixed.gpus, loads=state.loads + 1))
    time.sleep(RECENT_SECONDS)  # pages may be so old
    assert [gpu["compute_capability"] for gpu in gpus()] == ["7.5", "8.0", "8.0"]
    page = form(checked, checked.log_in("ada"))
    assert beside(page, "ampere") == (
        "doesn't run on this machine's Tesla T4 (compute capability 7.5)"
    )
    refused = checked.spawn("ada", {"image": "ampere", "gpus": 1, "model": "Tesla T4"})
    assert refused.json()["message"] == (
        'model: You asked for the GPU model "Tesla T4", and image ampere isn\'t built for it: '
        "it runs on NVIDIA A100-SXM4-40GB."
    )
    refused = checked.spawn("ada", {"image": "ampere", "gpus": 3})
    assert refused.json()["message"] == (
        "gpus: You asked for 3 GPUs, and this machine has 2 that image ampere runs on."
    )
    # Packing alone would hand out the T4, of which least is left.
    checked.start_server("ada", {"image": "ampere", "gpus": 1})
    assert (
        inside(engine, "ada", "nvidia-smi --query-gpu=compute_cap --format=csv,noheader") == "8.0"
    )
    checked.start_server("ben", {"image": "plain", "gpus": 1})
    assert labelled(engine)["ben"] == [mixed.gpus[0].uuid]


def test_a_version_by_its_digest_starts(make_hub, engine):
    """Nobody can move a digest to another image, as they can a tag."""
    digest = engine.inspect_image(REFERENCE)["Id"]
    hub = make_hub(f"c.GPUSpawner.images = {{'pinned': {digest!r}}}")
    hub.start_server("ada", {"image": "pinned", "gpus": 1})
    found = engine.inspect_container(container_of(engine, "ada"))
    assert (found["Config"]["Image"], found["Image"]) == (digest, digest)
