"""The spawn page's form, read as a browser and a screen reader read it."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from bs4.element import Tag
from hypothesis import given
from hypothesis import strategies as st

import gpuspawner
from gpuspawner.choices.forecast import Forecast
from gpuspawner.choices.form import granted_phrase, render
from gpuspawner.choices.home_use import HomeUse
from gpuspawner.choices.limits import Limits, without_absent_versions
from gpuspawner.choices.options import Choice, from_fields, parse, request
from gpuspawner.gpus.model import GPU, Holder, Request
from gpuspawner.i18n.phrases import clock_time
from gpuspawner.images.catalogue import catalogue
from gpuspawner.leases.ledger import View
from gpuspawner.scheduling.plan import QueuedRequest, Turn

from ..support.shown_forms import (
    A100,
    DRIVER,
    FREE,
    LIMITS,
    MIXED,
    NO_DRIVER,
    ONE,
    T4,
    TAKEN,
    TWO,
    gpu,
    host,
    shown,
)


def page(
    limits: Limits = LIMITS,
    view: View | None = FREE,
    trouble: str = "",
    notice: str = "",
    picked: bool = False,
    **last: Any,
) -> BeautifulSoup:
    html = shown(limits, Choice(**last), view, trouble, notice, picked)
    return BeautifulSoup(html, "html.parser")


def inputs(soup: BeautifulSoup, name: str) -> list[Tag]:
    return soup.select(f'input[name="{name}"]')


def values(soup: BeautifulSoup, name: str) -> list[str]:
    return [str(each["value"]) for each in inputs(soup, name)]


def usable(soup: BeautifulSoup, name: str) -> list[str]:
    return [str(each["value"]) for each in inputs(soup, name) if not each.has_attr("disabled")]


def checked(soup: BeautifulSoup, name: str) -> list[str]:
    return [str(each["value"]) for each in inputs(soup, name) if each.has_attr("checked")]


def description(soup: BeautifulSoup, name: str, value: str) -> str:
    """What a screen reader says of an input after its label."""
    (found,) = soup.select(f'input[name="{name}"][value="{value}"]')
    ids = str(found.get("aria-describedby", "")).split()
    notes = [copy.copy(note) for each in ids for note in soup.select(f'[id="{each}"]')]
    for hidden in [each for note in notes for each in note.select('[aria-hidden="true"]')]:
        hidden.decompose()
    return " ".join(words(note) for note in notes)


def sentence(soup: BeautifulSoup) -> str:
    """What the form's last line says, to who has the script."""
    return words(soup.select_one('[role="status"]'))


def words(element: Any) -> str:
    return " ".join(element.get_text(" ").split()).replace(" .", ".")


def on_the_page(soup: BeautifulSoup) -> str:
    """What stands on the page of somebody without the script."""
    found = copy.copy(soup)
    for each in found.select("[hidden], script, style"):
        each.decompose()
    return words(found)


def listed(soup: BeautifulSoup) -> list[str]:
    return [words(item).lstrip("▮▯✕ ") for item in soup.select("ul li")]


def sent(soup: BeautifulSoup) -> dict[str, list[str]]:
    """What a browser sends when nothing is changed."""
    fields: dict[str, list[str]] = {}
    for each in soup.select("input[name]"):
        picked = each.get("type") != "radio" or each.has_attr("checked")
        if picked and not each.has_attr("disabled"):
            fields.setdefault(str(each["name"]), []).append(str(each["value"]))
    return fields


def test_an_idle_host_offers_every_count_and_shows_every_gpu() -> None:
    soup = page()
    assert values(soup, "gpus") == usable(soup, "gpus") == ["0", "1", "2", "3"]
    assert checked(soup, "gpus") == ["1"]
    assert "3 of 3 free now" in words(soup)
    assert listed(soup) == [f"GPU {n} · {A100}: free" for n in range(3)]
    assert "limit" not in words(soup)
    assert sent(soup) == {"image": ["torch"], "gpus": ["1"]}


def test_each_version_is_shown_with_its_title_and_what_is_known_of_it() -> None:
    soup = page()
    labels = [
        words(soup.select_one(f'label[for="{each["id"]}"]')) for each in inputs(soup, "image")
    ]
    assert labels == ["PyTorch", "next"]
    assert description(soup, "image", "torch") == "CUDA 12.6 Nets"


def test_a_version_that_needs_a_newer_driver_can_be_picked_and_says_so() -> None:
    """It runs without GPUs."""
    soup = page()
    assert usable(soup, "image") == ["torch", "next"]
    reason = f"only without GPUs: needs driver 600 or newer, this machine has {DRIVER}"
    assert description(soup, "image", "next") == reason
    assert [words(each) for each in soup.select(".gs-notes .gs-no")] == [reason]
    assert description(page(view=NO_DRIVER), "image", "next") == ""


BUILT = catalogue(
    {
        "new": {"image": "lab/new", "compute_capabilities": ["9.0"], "size": "9 GB"},
        "some": {
            "image": "lab/some",
            "cuda": "12.9",
            "compute_capabilities": ["8.0"],
            "deprecated": "use new",
        },
        "torch": {"image": "lab/torch", "cuda": "12.6"},
        "next": {"image": "lab/next", "cuda": "99.0", "min_driver": "600"},
    }
)
TWO_MODELS = host(
    gpu(0, compute_capability="8.0"),
    gpu(1, compute_capability="8.0"),
    gpu(2, T4, compute_capability="7.5"),
)


def test_what_a_version_is_not_built_for_is_said_beside_it() -> None:
    soup = page(Limits(BUILT, "torch"), TWO_MODELS)
    assert sorted(usable(soup, "image")) == sorted(BUILT)
    assert description(soup, "image", "new") == (
        f"9 GB only without GPUs: isn't built for this machine's {A100} "
        f"(compute capability 8.0) or {T4} (7.5)"
    )
    assert description(soup, "image", "torch") == "CUDA 12.6"


def test_what_is_to_be_known_before_a_version_is_picked_stands_apart() -> None:
    soup = page(Limits(BUILT, "torch"), TWO_MODELS)
    warnings = [
        "deprecated: use new",
        f"doesn't run on this machine's {T4} (compute capability 7.5); made for driver 575.51.03, "
        f"with this machine's {DRIVER} new CUDA features are missing",
    ]
    assert description(soup, "image", "some") == " ".join(["CUDA 12.9", *warnings])
    assert [words(each) for each in soup.select(".gs-notes .gs-care")] == warnings


def test_no_more_gpus_are_preselected_than_the_preselected_version_can_use() -> None:
    soup = page(Limits(BUILT, "new"), TWO_MODELS)
    assert (checked(soup, "image"), checked(soup, "gpus")) == (["new"], ["0"])
    assert usable(soup, "gpus") == ["0", "1", "2", "3"]  # another version may be picked
    soup = page(Limits(BUILT, "some", default_gpus=3), TWO_MODELS, model=T4)
    assert (checked(soup, "gpus"), checked(soup, "model")) == (["2"], [""])


def test_a_host_without_a_driver_offers_versions_and_no_gpus() -> None:
    soup = page(view=NO_DRIVER)
    assert sent(soup) == {"image": ["torch"], "gpus": ["0"]}
    assert inputs(soup, "gpus")[0]["type"] == "hidden"
    assert "GPU" not in on_the_page(soup)


NO_QUEUE = replace(LIMITS, waits=False)


def test_where_nobody_waits_what_is_taken_cannot_be_picked_and_says_why() -> None:
    soup = page(NO_QUEUE, host(gpu(0, **TAKEN), gpu(1), gpu(2, **TAKEN)))
    assert values(soup, "gpus") == ["0", "1", "2", "3"]
    assert usable(soup, "gpus") == ["0", "1"]
    reason = "1 of 3 is free now (2 in use)"
    assert description(soup, "gpus", "2") == reason
    assert description(soup, "gpus", "1") == "Starts now, with 1 GPU."
    assert [words(each) for each in soup.select("#gpuspawner-gpus-why p")] == [reason]
    assert "1 of 3 free now" in words(soup)
    assert listed(soup)[0] == f"GPU 0 · {A100}: taken"
    assert "bob" not in words(soup)  # who else works here is nobody's business


def test_where_all_are_taken_and_nobody_waits_none_is_preselected() -> None:
    soup = page(NO_QUEUE, host(gpu(0, **TAKEN), gpu(1, **TAKEN)), gpus=2)
    assert usable(soup, "gpus") == checked(soup, "gpus") == ["0"]
    assert sent(soup)["gpus"] == ["0"]


def test_what_is_taken_can_be_waited_for_and_says_for_how_long() -> None:
    end = time.time() + 3000
    soup = page(view=host(gpu(0, until=end, **TAKEN), gpu(1), gpu(2, **TAKEN)))
    assert usable(soup, "gpus") == ["0", "1", "2", "3"]
    assert description(soup, "gpus", "1") == "Starts now, with 1 GPU."
    next_in_line = "Too few GPUs are free. You would be next in line"
    assert description(soup, "gpus", "2") == f"{next_in_line}, about {clock_time(end)}."
    assert description(soup, "gpus", "3") == f"{next_in_line}; when isn't known."
    assert [words(each) for each in soup.select(".gs-press small > [aria-hidden]")] == [
        "now",
        "now",
        clock_time(end),
        "wait",
    ]
    assert listed(soup)[0] == f"GPU 0 · {A100}: taken until about {clock_time(end)}"
    assert checked(soup, "gpus") == ["1"]


def test_why_one_would_wait_is_said_and_no_more_than_that() -> None:
    def line(because: str, start: float | None, place: int, **more: Any) -> str:
        turn = Turn(QueuedRequest(Holder("you"), Request("torch", 2), 0), place, start, (), because)
        html = render(
            LIMITS,
            Choice(gpus=2),
            FREE,
            lambda choice: Forecast("wait", choice.gpus or 0, turn, **more),
            keep=True,
        )
        return sentence(BeautifulSoup(html, "html.parser"))

    end = time.time() + 3000
    about = f", about {clock_time(end)}."
    assert (
        line("gpus", end, 2, taken=True) == f"All GPUs are taken. You would be 2nd in line{about}"
    )
    assert line("order", end, 3) == f"Others wait before you. You would be 3rd in line{about}"
    assert line("group:<b>50 %</b>", None, 1) == (
        "Your group <b>50 %</b> has as many GPUs as it may hold at a time. "
        "You would be next in line; when isn't known."
    )
    assert line("gpus", end, 1, free=1, model=T4).startswith(f"Too few {T4} are free.")
    assert line("gpus", end, 1, model=T4).startswith(f"No {T4} is free.")
    assert line("never", None, 1).startswith("This machine has too few that may be handed out")


def test_who_chose_to_wait_before_finds_that_choice_again() -> None:
    soup = page(view=host(gpu(0, **TAKEN), gpu(1, **TAKEN)), gpus=2)
    assert sent(soup)["gpus"] == ["2"]


def test_where_all_are_taken_the_default_stays_and_the_button_says_what_it_does() -> None:
    soup = page(view=host(gpu(0, **TAKEN), gpu(1, **TAKEN)))
    assert sent(soup)["gpus"] == ["1"]
    said = soup.select_one("#gpuspawner-sentence")
    assert said["data-start"] == "Join the queue (1st)"
    assert said["data-without"] == "true"  # so that the script shows the button that starts now
    assert words(soup.select_one("button#gpuspawner-without[hidden]")) == "Start without a GPU now"
    free = page().select_one("#gpuspawner-sentence")
    assert (free["data-start"], free["data-without"]) == ("", "false")


def test_versions_that_no_gpu_here_runs_are_folded_into_a_line() -> None:
    soup = page(Limits(BUILT, "torch"), TWO_MODELS)
    (folded,) = soup.select("details")
    assert words(folded.summary) == "2 more versions, which can't have GPUs here"
    assert [each["value"] for each in folded.select("input")] == ["new", "next"]
    assert not folded.has_attr("open")
    # Who had picked one finds it.
    assert page(Limits(BUILT, "torch"), TWO_MODELS, image="new").details.has_attr("open")
    absent = without_absent_versions(Limits(BUILT, "torch"), {"some"})
    assert words(page(absent, TWO_MODELS).summary).startswith("3 more versions")
    # Where no version can have a GPU, or there is no GPU, there is nothing to set apart.
    old = host(gpu(0, compute_capability="8.0"), driver="450.1")
    assert page(Limits(BUILT, "torch"), old).select("details") == []
    assert page(Limits(BUILT, "torch"), NO_DRIVER).select("details") == []


def test_who_has_a_home_that_is_kept_can_start_without_what_is_set_up_in_it() -> None:
    assert inputs(page(), "safe_mode") == []
    html = shown(LIMITS, Choice(gpus=0, safe_mode=True), FREE, safe_mode=True)
    soup = BeautifulSoup(html, "html.parser")
    assert "Your files are there as ever" in description(soup, "safe_mode", "true")
    # It is for once: the next form begins without.
    assert "safe_mode" not in {
        str(each["name"]) for each in soup.select("input[checked], input[type=hidden]")
    }
    assert parse(from_fields({"gpus": ["0"], "safe_mode": ["true"]})).safe_mode is True


def test_hours_are_offered_up_to_the_limit_and_the_default_is_preselected() -> None:
    assert inputs(page(), "hours") == []  # no limit and no default: nobody asked for ends
    soup = page(replace(LIMITS, hours=6, default_hours=2))
    assert values(soup, "hours") == ["1", "2", "4", "6"]
    assert checked(soup, "hours") == ["2"]
    assert checked(page(replace(LIMITS, hours=6)), "hours") == ["6"]
    assert checked(page(replace(LIMITS, hours=6), hours=3.5), "hours") == ["3.5"]
    assert checked(page(replace(LIMITS, hours=6), hours=48.0), "hours") == ["6"]
    assert inputs(page(replace(LIMITS, hours=6, gpus=0)), "hours") == []


@pytest.mark.parametrize("minutes", [4, 20, 40, 50, 100])
def test_hours_that_are_no_round_number_come_back_as_they_are(minutes: int) -> None:
    """A limit that was rounded up would be over itself, and a default is there once."""
    hours = minutes / 60
    limited = page(replace(LIMITS, hours=hours, default_hours=0.01))
    assert parse(from_fields({"hours": [values(limited, "hours")[-1]]})).hours == hours
    limits = replace(LIMITS, hours=8, default_hours=hours)
    (sent,) = checked(page(limits), "hours")
    again = page(limits, hours=float(sent))
    assert checked(again, "hours") == [sent]
    words = [each.get_text() for each in again.select("[for^=gpuspawner-hours]")]
    assert len(set(words)) == len(words) == 5


def test_why_the_last_server_was_stopped_is_told() -> None:
    soup = page(notice="Your server was stopped at 15:40.")
    assert "Your server was stopped at 15:40." in words(soup.select_one(".alert"))


def test_a_limit_ends_the_counts_and_is_shown() -> None:
    soup = page(replace(LIMITS, gpus=2))
    assert values(soup, "gpus") == ["0", "1", "2"]
    assert "Your limit is 2." in words(soup)


def test_a_limit_over_what_the_host_has_offers_what_it_has() -> None:
    assert values(page(replace(LIMITS, gpus=64)), "gpus") == ["0", "1", "2", "3"]


@pytest.mark.parametrize("view", [FREE, MIXED], ids=["one model", "two models"])
def test_who_may_have_no_gpu_is_not_asked_about_them(view: View) -> None:
    soup = page(replace(LIMITS, gpus=0), view)
    assert sent(soup) == {"image": ["torch"], "gpus": ["0"]}
    assert inputs(soup, "gpus")[0]["type"] == "hidden"
    assert inputs(soup, "model") == []


def test_a_sick_gpu_is_shown_with_its_reason_and_not_counted_as_free() -> None:
    sick = gpu(1, state="unhealthy", reason="fell off the bus")
    soup = page(view=host(gpu(0), sick))
    assert usable(soup, "gpus") == ["0", "1", "2"]  # it may be mended
    asked = "This machine has too few that may be handed out at the moment."
    assert description(soup, "gpus", "2").startswith(asked)
    assert listed(soup)[1] == f"GPU 1 · {A100}: fell off the bus"
    assert "1 of 2 free now" in words(soup)


def test_a_gpu_that_is_kept_out_is_shown_and_never_offered() -> None:
    kept = gpu(0, T4, "excluded", reason="kept for the screen")
    soup = page(NO_QUEUE, host(kept, gpu(1), gpu(2, "H100", "mig"), gpu(3, **TAKEN)))
    assert values(soup, "gpus") == ["0", "1", "2"]
    assert inputs(soup, "model") == []
    assert "1 of 2 free now" in words(soup)
    asked = "1 of 2 is free now (1 in use)"
    assert description(soup, "gpus", "2") == asked
    shown = [line.rpartition(": ")[2] for line in listed(soup)]
    assert shown == ["kept for the screen", "free", "mig", "taken"]


def test_why_a_gpu_is_out_of_service_stands_apart_from_the_end_of_who_holds_it() -> None:
    end = time.time() + 3000
    held = gpu(0, state="excluded", reason="fan is loud", holder=Holder("bob"), until=end)
    expected = f"GPU 0 · {A100}: fan is loud; in use until about {clock_time(end)}"
    assert listed(page(view=host(held, gpu(1))))[0] == expected


def test_a_gpu_whose_memory_is_unknown_is_shown_without() -> None:
    assert listed(page(view=host(GPU("GPU-0", 0, A100)))) == [f"GPU 0 · {A100}: free"]


def test_where_the_host_cannot_be_read_the_trouble_is_told_and_no_gpu_offered() -> None:
    soup = page(view=None, trouble="NVML didn't answer within 10 seconds.")
    alert = soup.select_one(".alert")
    assert words(alert).startswith("NVML didn't answer within 10 seconds.")
    assert sent(soup) == {"image": ["torch"], "gpus": ["0"]}
    assert description(soup, "image", "next") == ""


def test_the_trouble_is_told_also_where_there_is_nothing_to_choose() -> None:
    soup = page(Limits(ONE, "torch"), None, "The engine can't be reached.")
    assert "The engine can't be reached." in words(soup)
    assert sent(soup) == {"gpus": ["0"]}


def test_models_are_offered_where_there_are_several_with_what_is_free() -> None:
    assert inputs(page(view=FREE), "model") == []
    soup = page(view=MIXED)
    assert values(soup, "model") == ["", A100, T4]
    assert checked(soup, "model") == [""]
    assert description(soup, "model", A100) == "40 GB · 1 of 2 free now"
    assert sent(soup) == {"image": ["torch"], "gpus": ["1"], "model": [""]}


def test_a_model_of_which_none_is_free_says_so_and_when_one_will_be() -> None:
    end = time.time() + 3000
    soup = page(view=host(gpu(0), gpu(1, T4, until=end, **TAKEN)), model=T4)
    assert usable(soup, "model") == ["", A100, T4]
    assert checked(soup, "model") == [T4]
    note = f"40 GB · 0 of 1 free now · next about {clock_time(end)}"
    assert description(soup, "model", T4) == note


def test_a_gpu_that_cannot_tell_its_model_is_none_to_pick() -> None:
    lost = GPU(None, 1, "unknown GPU", state="unhealthy", reason="It has fallen off the bus.")
    soup = page(view=host(gpu(0), lost, gpu(2, T4)))
    assert values(soup, "model") == ["", A100, T4]
    assert listed(soup)[1] == "GPU 1 · unknown GPU: It has fallen off the bus."


def test_a_model_that_a_user_may_not_have_cannot_be_picked() -> None:
    soup = page(replace(LIMITS, models=frozenset({A100})), MIXED, model=T4)
    assert usable(soup, "model") == ["", A100]
    assert checked(soup, "model") == [""]
    assert values(soup, "gpus") == ["0", "1", "2"]


def test_the_last_choice_is_preselected() -> None:
    soup = page(view=MIXED, image="torch", gpus=2, model=A100)
    assert sent(soup) == {"image": ["torch"], "gpus": ["2"], "model": [A100]}
    # There is one T4.
    assert sent(page(view=MIXED, gpus=2, model=T4))["gpus"] == ["1"]
    assert sent(page(image="next", gpus=0)) == {"image": ["next"], "gpus": ["0"]}
    assert sent(page(gpus=0)) == {"image": ["torch"], "gpus": ["0"]}


def test_a_last_choice_that_can_no_longer_be_had_gives_way_to_what_can() -> None:
    soup = page(replace(LIMITS, gpus=2), MIXED, image="gone", gpus=9, model="H100")
    assert sent(soup) == {"image": ["torch"], "gpus": ["2"], "model": [""]}


def test_the_default_count_is_preselected_as_far_as_it_can_be_had() -> None:
    assert checked(page(replace(LIMITS, default_gpus=0)), "gpus") == ["0"]
    assert checked(page(replace(LIMITS, default_gpus=2)), "gpus") == ["2"]
    assert checked(page(replace(LIMITS, default_gpus=9)), "gpus") == ["3"]
    assert checked(page(replace(LIMITS, default_gpus=3), MIXED), "gpus") == ["3"]  # in its turn
    assert checked(page(replace(NO_QUEUE, default_gpus=3), MIXED), "gpus") == ["2"]
    sick = host(gpu(0, **TAKEN), gpu(1, state="unhealthy", reason="fell off the bus"))
    assert checked(page(replace(LIMITS, default_gpus=2), sick), "gpus") == ["1"]


def test_any_image_is_a_text_to_type_with_the_last_one_in_it() -> None:
    limits = replace(LIMITS, any_image=True)
    (field,) = inputs(page(limits), "image")
    assert (field["value"], field.has_attr("required")) == ("torch", True)
    assert sent(page(limits, NO_DRIVER, image="debian:12"))["image"] == ["debian:12"]


def test_one_image_is_not_asked_about() -> None:
    assert sent(page(Limits(ONE, "torch"))) == {"gpus": ["1"]}
    assert sent(page(replace(LIMITS, image_can_be_chosen=False))) == {"gpus": ["1"]}


@pytest.mark.parametrize(
    ("limits", "view"),
    [
        (Limits(ONE, "torch"), NO_DRIVER),
        (Limits(ONE, "torch", gpus=0), FREE),
        (Limits(ONE, "torch", gpus=0), MIXED),
        (Limits(ONE, "torch"), host(gpu(0, state="excluded"))),
        (replace(LIMITS, image_can_be_chosen=False), NO_DRIVER),
    ],
)
def test_where_there_is_nothing_to_choose_there_is_no_form(limits: Limits, view: View) -> None:
    """JupyterHub then starts the server at once."""
    assert shown(limits, Choice(), view) == ""


SCRIPT = (Path(gpuspawner.__file__).parent / "choices" / "static" / "form.js").read_text()
HOSTILE = '%s "><script>alert(1)</script><img src=x onerror=alert(1)>&amp;{{ 7 * 7 }}'


def test_names_and_titles_are_text_whatever_is_in_them() -> None:
    versions = catalogue(
        {
            HOSTILE: {"image": "lab/x", "title": HOSTILE, "description": HOSTILE},
            "torch": "lab/torch",
        }
    )
    view = host(gpu(0, HOSTILE, state="unhealthy", reason=HOSTILE), gpu(1, T4), gpu(2, HOSTILE))
    soup = page(Limits(versions, HOSTILE), view, trouble=HOSTILE)
    assert soup.select("script:not([type=module]), img, [onerror]") == []
    assert [words(each) for each in soup.select("script")] == [" ".join(SCRIPT.split())]
    assert values(soup, "image") == [HOSTILE, "torch"]
    assert values(soup, "model") == ["", HOSTILE, T4]
    label = soup.select_one(f'label[for="{inputs(soup, "image")[0]["id"]}"]')
    assert words(label) == HOSTILE
    assert HOSTILE in words(soup.select_one(".alert"))
    assert listed(soup)[0] == f"GPU 0 · {HOSTILE}: {HOSTILE}"
    (field,) = inputs(page(replace(LIMITS, any_image=True), image=HOSTILE), "image")
    assert field["value"] == HOSTILE


# What holds for every form.

states = st.sampled_from(["free", "free", "leased", "foreign", "mig", "unhealthy", "excluded"])
views = st.none() | st.lists(
    st.tuples(st.sampled_from([A100, T4, HOSTILE]), states), max_size=5
).map(lambda gpus: host(*(gpu(n, model, state) for n, (model, state) in enumerate(gpus))))
any_limits = st.builds(
    Limits,
    st.sampled_from([ONE, TWO]),
    st.just("torch"),
    image_can_be_chosen=st.booleans(),
    any_image=st.booleans(),
    default_gpus=st.integers(0, 4),
    gpus=st.none() | st.integers(0, 4),
)
choices = st.builds(
    Choice,
    image=st.sampled_from([None, "torch", "next", "gone"]),
    gpus=st.none() | st.integers(0, 6),
    model=st.sampled_from([None, A100, T4, "H100"]),
)


@given(any_limits, choices, views, st.sampled_from(["", "NVML is away."]))
def test_every_form_can_be_read_aloud_and_sent_as_it_is(
    limits: Limits, last: Choice, view: View | None, trouble: str
) -> None:
    soup = BeautifulSoup(shown(limits, last, view, trouble), "html.parser")
    ids = [str(each["id"]) for each in soup.select("[id]")]
    assert len(ids) == len(set(ids))
    for each in soup.select("input"):
        if each.get("type") != "hidden":
            assert len(soup.select(f'label[for="{each["id"]}"]')) == 1
        assert set(str(each.get("aria-describedby", "")).split()) <= set(ids)
    for group in soup.select("fieldset"):
        assert words(group.select_one("legend"))
        (one,) = [each for each in group.select("input") if each.has_attr("checked")]
        assert not one.has_attr("disabled")
    fields = sent(soup)
    assert set(fields) <= {"image", "gpus", "model", "hours"}
    assert all(len(each) == 1 for each in fields.values())
    if fields:
        choice = parse(from_fields(fields))
        assert choice.gpus is not None
        # Nobody is sent to the queue for more than they asked for.
        assert choice.gpus <= (limits.default_gpus if last.gpus is None else last.gpus)


@given(
    st.sampled_from(sorted(BUILT)),
    st.sampled_from([None, *BUILT]),
    st.none() | st.integers(0, 4),
    st.integers(0, 4),
    st.lists(st.tuples(st.sampled_from(["7.5", "8.0", "9.0", "10.0", None]), states), max_size=4),
    st.sampled_from(["470.256.02", DRIVER, "600.10"]),
)
def test_a_form_that_is_sent_as_it_is_is_granted(
    first: str, image: str | None, count: int | None, default: int, found: Any, driver: str
) -> None:
    gpus = [
        gpu(n, f"a model of {capability}", state, compute_capability=capability)
        for n, (capability, state) in enumerate(found)
    ]
    limits = Limits(BUILT, first, default_gpus=default)
    view = host(*gpus, driver=driver)
    soup = page(limits, view, image=image, gpus=count)
    choice = parse(from_fields(sent(soup)))
    assert request(choice, limits, view.nodes).gpus == choice.gpus


@pytest.mark.parametrize(
    ("gpus", "sentence"),
    [
        ([], "No GPU was asked for"),
        ([gpu(3, T4)], "1 GPU set aside for you: GPU 3 (Tesla T4)"),
        ([gpu(0, T4), gpu(2, T4)], "2 GPUs set aside for you: GPU 0 and 2 (Tesla T4)"),
        (
            [gpu(0, T4), gpu(1, T4), gpu(5, T4)],
            "3 GPUs set aside for you: GPU 0, 1 and 5 (Tesla T4)",
        ),
        (
            [gpu(0, T4), gpu(1, A100), gpu(2, T4)],
            f"3 GPUs set aside for you: GPU 0 and 2 (Tesla T4), GPU 1 ({A100})",
        ),
    ],
)
def test_what_was_set_aside_is_said_by_model_and_number(gpus: list[GPU], sentence: str) -> None:
    assert granted_phrase(gpus) == sentence


def test_a_version_that_is_not_on_the_machine_cannot_be_picked_and_another_is_preselected() -> None:
    soup = page(without_absent_versions(LIMITS, {"torch"}), image="torch")
    assert values(soup, "image") == ["torch", "next"]
    assert usable(soup, "image") == ["next"]
    assert checked(soup, "image") == ["next"]
    assert "isn't on this machine" in description(soup, "image", "torch")
    both = page(
        without_absent_versions(LIMITS, {"torch", "next"})
    )  # then there is nothing to fall back on
    assert usable(both, "image") == []


def test_a_saved_number_of_gpus_may_be_any_and_the_form_is_there_at_once() -> None:
    """JupyterHub saves what it is sent before anybody looks at it."""
    found = page(gpus=10**30)
    (checked,) = [each["value"] for each in inputs(found, "gpus") if each.has_attr("checked")]
    assert checked == "3"


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({}, ""),
        ({"memory": 16 << 30}, "A server may use up to 16 GB of memory."),
        (
            {"memory": 3 << 29, "processors": 1.0},
            "A server may use up to 1.5 GB of memory and 1 processor.",
        ),
        ({"processors": 4.0}, "A server may use up to 4 processors."),
        ({"processors": 0.5}, "A server may use up to 0.5 processors."),
    ],
)
def test_memory_and_processors_are_on_the_form(rules: dict[str, Any], said: str) -> None:
    page = BeautifulSoup(shown(replace(LIMITS, **rules), Choice(), FREE), "html.parser")
    assert page.select_one("#gpuspawner-size").text.strip() == said


# ---- what is kept at home ------------------------------------------------------------------------


def home_of(use: HomeUse | None, **more: Any) -> str:
    return shown(LIMITS, Choice(gpus=0), FREE, home=use, **more)


def test_the_form_says_how_much_the_user_keeps_and_warns_before_that_is_too_much() -> None:
    assert "Your files" not in home_of(None)
    said = BeautifulSoup(home_of(HomeUse(3 << 30, None, False, 0)), "html.parser")
    assert "Your files take 3 GB." in said.get_text()
    assert said.select(".alert") == []
    said = BeautifulSoup(home_of(HomeUse(46 << 30, 50 << 30, True, 0)), "html.parser")
    (alert,) = said.select(".alert-warning")
    assert "Your files take 46 GB of 50 GB. When no room is left" in alert.get_text()
    # It is no part that the script exchanges: one answer serves all who have picked the same.
    assert alert.find_parent(attrs={"data-part": True}) is None
    assert alert.find_parent(attrs={"data-block": True}) is None
