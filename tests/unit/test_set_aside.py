"""Which volume is a user's, where others of that name are set aside."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import docker.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traitlets.config import Config

from gpuspawner.backends.docker import set_aside, volumes
from gpuspawner.backends.docker.set_aside import FirstVolume, Listing, labels_of, list_volumes
from gpuspawner.errors import Unknown
from gpuspawner.spawner import GPUSpawner

from ..support.volumes import VolumeEngine

HUB = "http://hub"
ADA = FirstVolume("home-ada", "ada")


def spawner(name: str, **traits: Any) -> GPUSpawner:
    user = SimpleNamespace(name=name, groups=[], spawners={})
    return GPUSpawner(user=user, config=Config({"GPUSpawner": traits}))


def firsts(one: GPUSpawner) -> list[FirstVolume]:
    return [one.user_volumes.first_of(each) for each in one.volumes_of_user() if each.own]


@cache
def firsts_of(name: str, **traits: Any) -> list[FirstVolume]:
    return firsts(spawner(name, **traits))


def look(engine: VolumeEngine) -> Listing:
    return list_volumes(engine)


def start(engine: VolumeEngine, first: FirstVolume) -> str:
    """Return the volume that a start would mount, and make it as the start would."""
    listing = list_volumes(engine, [first.name])
    name = listing.current(first)
    if name not in listing.volumes:
        engine.create_volume(name, labels=labels_of(first, HUB, None))
    return name


def delete(engine: VolumeEngine, first: FirstVolume) -> None:
    set_aside.set_aside(engine, look(engine).unmarked(first), first.user)


def test_a_user_has_the_volume_of_the_template_s_name() -> None:
    assert Listing().current(ADA) == "home-ada"
    assert start(VolumeEngine("home-ada", "home-ada-2dx", "home-adam"), ADA) == "home-ada"


def test_who_comes_after_a_deleted_user_of_that_name_has_another_volume_each_time() -> None:
    engine = VolumeEngine("home-ada")
    for generation in ("home-ada.2", "home-ada.3", "home-ada.4"):
        delete(engine, ADA)
        assert start(engine, ADA) == generation
        assert start(engine, ADA) == generation


def test_without_its_mark_a_volume_is_the_user_s_again_unless_there_is_a_newer_one() -> None:
    engine = VolumeEngine("home-ada")
    delete(engine, ADA)
    set_aside.give_back(engine, ["home-ada"])
    assert start(engine, ADA) == "home-ada"
    delete(engine, ADA)
    assert start(engine, ADA) == "home-ada.2"
    set_aside.give_back(engine, ["home-ada"])
    assert start(engine, ADA) == "home-ada.2"
    # And the deletion of the next one sets both aside.
    delete(engine, ADA)
    assert set(look(engine).marks) == {"home-ada", "home-ada.2"}
    assert start(engine, ADA) == "home-ada.3"


def test_a_volume_that_is_set_aside_may_be_removed_and_a_mark_may_be_without_one() -> None:
    engine = VolumeEngine("home-ada")
    delete(engine, ADA)
    assert start(engine, ADA) == "home-ada.2"
    engine.remove_volume("home-ada")
    assert start(engine, ADA) == "home-ada.2"
    set_aside.give_back(engine, ["home-ada"])
    assert start(engine, ADA) == "home-ada.2"


def test_a_name_that_is_marked_is_nobody_s_though_there_is_no_such_volume() -> None:
    engine = VolumeEngine()
    set_aside.set_aside(engine, ["home-ada", "home-ada.2"], "ada")
    assert start(engine, ADA) == "home-ada.3"


def test_where_names_have_dots_what_says_nothing_of_itself_is_no_later_generation() -> None:
    """It may be the first volume of a user of that name, made before volumes had labels."""
    engine = VolumeEngine("home-ada", "home-ada.2")
    assert start(engine, ADA) == "home-ada.2"
    strict = FirstVolume("home-ada", "ada", strict=True)
    assert start(engine, strict) == "home-ada"
    delete(engine, strict)
    assert start(engine, strict) == "home-ada.3"


def test_a_mark_that_was_made_by_hand_does_too() -> None:
    engine = VolumeEngine("home-ada", "gpuspawner-set-aside-home-ada")
    assert start(engine, ADA) == "home-ada.2"
    (mark,) = look(engine).marks.values()
    assert (mark.volume, mark.user, mark.since) == ("home-ada", "", None)
    set_aside.give_back(engine, ["home-ada"])
    assert "gpuspawner-set-aside-home-ada" not in engine.there


def test_where_a_mark_s_name_and_label_disagree_the_name_counts() -> None:
    engine = VolumeEngine("home-ada", "home-ben")
    engine.create_volume(
        "gpuspawner-set-aside-home-ada", labels={"gpuspawner.set-aside": "home-ben"}
    )
    assert set(look(engine).marks) == {"home-ada"}


def test_a_mark_says_whose_the_volume_was_and_since_when_it_is_set_aside() -> None:
    engine = VolumeEngine("home-ada")
    delete(engine, ADA)
    mark = look(engine).marks["home-ada"]
    assert mark.user == "ada"
    assert mark.since is not None
    assert mark.since > 1.7e9
    delete(engine, ADA)
    assert look(engine).marks["home-ada"] == mark


@pytest.mark.parametrize("since", ["", "nonsense", "1e9", "-5", "9" * 30, "٣"])
def test_a_mark_s_labels_may_be_anything(since: str) -> None:
    engine = VolumeEngine()
    engine.create_volume(
        "gpuspawner-set-aside-v",
        labels={"gpuspawner.set-aside": "v", "gpuspawner.set-aside.since": since},
    )
    assert look(engine).marks["v"].since is None


@pytest.mark.parametrize("letters", [230, 240, 250])
def test_a_very_long_name_has_a_mark_that_a_start_finds_and_later_generations(letters: int) -> None:
    first = FirstVolume("home-" + "a" * letters, "a")
    twin = FirstVolume(first.name[:-1] + "b", "b")
    engine = VolumeEngine(first.name, twin.name)
    for generation in (2, 3):
        delete(engine, first)
        name = start(engine, first)
        assert first.generation(name) == generation
        assert start(engine, first) == name
        assert start(engine, twin) == twin.name
    assert len(max(engine.there, key=len)) <= volumes.MAX_NAME


def test_an_engine_that_keeps_no_mark_is_an_error() -> None:
    engine = VolumeEngine("home-ada")
    engine.create_volume = lambda *_, **__: {}  # type: ignore[method-assign]
    with pytest.raises(Unknown, match="home-ada is set aside"):
        set_aside.set_aside(engine, ["home-ada"], "ada")


def test_an_engine_that_keeps_a_mark_is_an_error() -> None:
    engine = VolumeEngine("home-ada")
    delete(engine, ADA)
    engine.remove_volume = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(Unknown, match="keeps home-ada set aside"):
        set_aside.give_back(engine, ["home-ada"])


def test_a_mark_that_is_gone_meanwhile_is_no_error() -> None:
    engine = VolumeEngine("home-ada")
    delete(engine, ADA)
    remove = engine.remove_volume

    def twice(name: str) -> None:
        remove(name)
        raise docker.errors.NotFound("another was quicker")

    engine.remove_volume = twice  # type: ignore[method-assign]
    set_aside.give_back(engine, ["home-ada"])


@pytest.mark.parametrize(
    ("name", "generation"),
    [
        ("home-ada", 1),
        ("home-ada.2", 2),
        ("home-ada.17", 17),
        ("home-ada.1", None),
        ("home-ada.0", None),
        ("home-ada.02", None),
        ("home-ada.", None),
        ("home-ada.2.2", None),
        ("home-ada.two", None),
        ("home-ada.٣", None),
        ("home-ada.9999999999", None),
        ("home-ad", None),
        (".2", None),
        ("home-ben.2", None),
        ("xhome-ada.2", None),
    ],
)
def test_a_generation_has_one_name(name: str, generation: int | None) -> None:
    assert ADA.generation(name) == generation
    if generation:
        assert ADA.name_of(generation) == name


def test_volumes_that_a_hub_made_for_a_user_are_known_by_their_labels() -> None:
    engine = VolumeEngine("unlabelled")
    for name, user, hub, server in (
        ("home-ada", "ada", HUB, None),
        ("work-ada-lab", "ada", HUB, "lab"),
        ("other-ada", "ada", "http://other", None),
        ("home-ben", "ben", HUB, None),
    ):
        engine.create_volume(name, labels=labels_of(FirstVolume(name, user), hub, server))
    # A container's labels, which a volume may have by its image's or somebody's hand.
    engine.create_volume("mine", labels={"gpuspawner.user": "ada", "gpuspawner.hub": HUB})
    assert look(engine).labelled("ada", HUB) == ["home-ada", "work-ada-lab"]
    assert look(engine).labelled("ada", HUB, "lab") == ["work-ada-lab"]
    assert look(engine).labelled("ada", HUB, "") == []
    set_aside.set_aside(engine, ["home-ada"], "ada")
    assert look(engine).labelled("ada", HUB) == ["work-ada-lab"]


def test_one_call_finds_all_of_a_user_s_volumes_and_their_marks() -> None:
    engine = VolumeEngine("home-ada", "old-ada", "course")
    set_aside.set_aside(engine, ["old-ada"], "ada")
    engine.asked.clear()
    found = list_volumes(engine, ["home-ada", "old-ada", "course"])
    assert engine.asked == ["list"]
    assert set(found.volumes) == {"home-ada", "old-ada", "course"}
    assert set(found.marks) == {"old-ada"}
    assert list_volumes(engine, []) == Listing()
    assert engine.asked == ["list"]


# ---- users' names --------------------------------------------------------------------------------

# As hubs have had them, and as somebody would choose them to get at another's files.
NAMES = st.one_of(
    st.sampled_from(["ada", "Ada", "ada.2", "ada.2.2", "ada-2e2", "ada_2e2", "2", "ada.3", "Ａda"]),
    st.text(min_size=1, max_size=8),
    st.from_regex(r"\A[a-z]{0,2}[.\-_][0-9]{1,2}\Z"),
)


@given(st.lists(NAMES, min_size=2, max_size=2, unique=True), st.integers(2, 99))
@pytest.mark.parametrize("escape", [None, "legacy"])
@pytest.mark.parametrize("template", ["{username}", "home-{username}", "{username}-{servername}"])
def test_no_escaped_name_is_that_of_somebody_s_later_volume(
    escape: str | None, template: str, names: list[str], generation: int
) -> None:
    more = {"escape": escape} if escape else {}
    (one,), (other,) = (firsts_of(name, home_volume=template, **more) for name in names)
    assert not one.strict
    assert "." not in one.name
    assert one.name_of(generation) != other.name


def plain(name: str) -> str:
    """Escape nothing that an engine takes."""
    return "".join(
        each if each.isascii() and (each.isalnum() or each in ".-_") else "-" for each in name
    )


@pytest.mark.parametrize(
    ("traits", "strict"),
    [
        ({"home_volume": "{prefix}-{username}-{servername}"}, False),
        ({"home_volume": "home.{username}"}, True),
        ({"home_volume": "{username}-{imagename}"}, True),
        ({"home_volume": "{username}", "escape": plain}, True),
        ({"home_volume": "{username}", "prefix": "a.b"}, True),
        ({"home_volume": "{username}", "course_volumes": {"ml.2": "/ml"}}, True),
        ({"home_volume": "{username}", "earlier_home_volumes": {"a.{username}": "/a"}}, True),
        (
            {
                "home_volume": "{username}",
                "format_volume_name": lambda template, one: f"{one.user.name}.2",
            },
            True,
        ),
    ],
)
def test_where_another_name_may_have_a_dot_labels_decide(traits: Any, strict: bool) -> None:
    assert {each.strict for each in firsts(spawner("ada", **traits))} == {strict}


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["start", "start", "delete", "remove volume"]),
        st.sampled_from(["ada", "ada.2", "ada.2.2", "Ada", "a", "2"]),
        st.sampled_from(["py-3", "py-3.2", "py-3.3"]),
    ),
    max_size=25,
)


@given(EVENTS)
@pytest.mark.parametrize(
    "template", ["home-{username}", "{username}-{imagename}", "{username}.2", "{username}"]
)
@pytest.mark.parametrize("escape", [None, "legacy", plain, lambda name: plain(name).lower()])
def test_nobody_finds_the_files_of_another_whatever_names_are_like(
    template: str, escape: Any, events: Any
) -> None:
    engine = VolumeEngine()
    person: dict[str, int] = {}
    # Volume -> the people who have written into it; person and image -> their volume.
    wrote: dict[str, set[tuple[str, int]]] = {}
    had: dict[tuple[str, int, str], str] = {}
    more = {"escape": escape} if escape else {}
    for what, user, image in events:
        (first,) = firsts_of(user, home_volume=template, image=image, **more)
        me = (user, person.setdefault(user, 0))
        if what == "start":
            volume = start(engine, first)
            assert wrote.setdefault(volume, set()) <= {me}
            wrote[volume].add(me)
            # And finds one's own again.
            assert had.setdefault((*me, image), volume) == volume
        elif what == "delete":
            listing = look(engine)
            found = {*listing.labelled(user, HUB), *listing.unmarked(first)}
            set_aside.set_aside(engine, found, user)
            person[user] += 1
        else:
            for volume in [name for name in look(engine).marks if name in engine.there]:
                engine.remove_volume(volume)
                wrote.pop(volume, None)
                set_aside.give_back(engine, [volume])
