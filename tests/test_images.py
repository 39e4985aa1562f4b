"""The catalogue of image versions, and what a host's driver can run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gpuspawner.images import (
    MAX_TEXT,
    ImageVersion,
    catalogue,
    default_key,
    load_catalogue,
)

SHIPPED = Path(__file__).parent.parent / "image" / "catalogue.yaml"


@pytest.mark.parametrize(
    ("entry", "version"),
    [
        ("lab/torch:2.7", ImageVersion(image="lab/torch:2.7", title="torch")),
        ({"image": "lab/torch:2.7"}, ImageVersion(image="lab/torch:2.7", title="torch")),
        (
            {"image": "lab/torch:2.7", "title": "PyTorch", "cuda": "12.6", "default": True},
            ImageVersion(image="lab/torch:2.7", title="PyTorch", cuda="12.6", default=True),
        ),
        # What is an entry already stays one, so that a catalogue can be checked twice.
        (ImageVersion(image="lab/torch:2.7"), ImageVersion(image="lab/torch:2.7")),
    ],
)
def test_an_entry_is_a_reference_or_a_mapping_titled_by_its_key(
    entry: Any, version: ImageVersion
) -> None:
    assert catalogue({"torch": entry}) == {"torch": version}


def test_a_catalogue_keeps_its_order() -> None:
    assert list(catalogue({"b": "lab/b", "a": "lab/a", "c": "lab/c"})) == ["b", "a", "c"]


BROKEN = [
    ({"": "lab/torch"}, "images: the key '' must be a text of 1 to 200 letters"),
    ({2.7: "lab/torch"}, "images: the key 2.7 must be a text of 1 to 200 letters"),
    ({"k" * (MAX_TEXT + 1): "lab/torch"}, "must be a text of 1 to 200 letters"),
    ({"torch": None}, "images['torch'] must be an image reference or a mapping"),
    ({"torch": ["lab/torch"]}, "images['torch'] must be an image reference or a mapping"),
    ({"torch": ""}, "images['torch']: image: must name an image"),
    ({"torch": {"image": "  "}}, "images['torch']: image: must name an image"),
    ({"torch": {"title": "PyTorch"}}, "images['torch']: image: Field required"),
    ({"torch": {"image": "lab/torch", "gpu": 1}}, "images['torch']: gpu: Extra inputs"),
    # YAML makes a number of what isn't quoted, and 3.10 would become 3.1.
    ({"torch": {"image": "lab/torch", "python": 3.1}}, "images['torch']: python: Input should be"),
    ({"torch": {"image": "lab/torch", 1: "x"}}, "images['torch']: "),
    ({"torch": {"image": "lab/torch", "default": "maybe"}}, "images['torch']: default: "),
    (
        {"torch": {"image": "lab/torch", "description": "x" * (MAX_TEXT + 1)}},
        "images['torch']: description: String should have at most 200",
    ),
    ({"fine": "lab/fine", "torch": 1}, "images['torch'] must be"),
    ({"torch": {"image": "lab/torch", "min_driver": ">=525"}}, "images['torch']: min_driver: "),
    ({"torch": {"image": "lab/torch", "min_driver": "12.6 or so"}}, "['torch']: min_driver: "),
    (
        {"torch": {"image": "lab/torch", "toolkit_driver": "560.28.03 "}},
        "images['torch']: toolkit_driver: String should match",
    ),
    (
        {"torch": {"image": "lab/torch", "compute_capabilities": ["8.0", "sm_90"]}},
        "images['torch']: compute_capabilities.1: String should match",
    ),
    (
        {"torch": {"image": "lab/torch", "compute_capabilities": [7.5]}},
        "images['torch']: compute_capabilities.0: Input should be a valid string",
    ),
    (
        {"torch": {"image": "lab/torch", "compute_capabilities": "8.0"}},
        "images['torch']: compute_capabilities: Input should be a valid tuple",
    ),
    (
        {"torch": {"image": "lab/torch", "deprecated": True}},
        "images['torch']: deprecated: Input should be a valid string",
    ),
    (
        {"torch": {"image": "lab/torch", "size": 6.4}},
        "images['torch']: size: Input should be a valid string",
    ),
]


@pytest.mark.parametrize(("entries", "sentence"), BROKEN)
def test_a_broken_entry_is_refused_by_its_key_and_field(entries: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        catalogue(entries)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("versions", "image", "key"),
    [
        ({"a": "lab/a", "b": "lab/b"}, "jupyterhub/singleuser", "a"),
        ({"a": "lab/a", "b": "lab/b"}, "lab/b", "b"),
        ({"a": "lab/a", "b": {"image": "lab/b", "default": True}}, "lab/a", "b"),
        ({"a": "lab/a", "b": "lab/same", "c": "lab/same"}, "lab/same", "b"),
    ],
    ids=["the first", "the spawner's own", "the marked one", "the first of two alike"],
)
def test_an_empty_choice_means(versions: Any, image: str, key: str) -> None:
    assert default_key(catalogue(versions), image) == key


def test_what_is_known_of_a_version_is_one_line() -> None:
    known = ImageVersion(image="x", framework="PyTorch 2.7.0", cuda="12.6", python="3.11")
    assert known.facts() == "PyTorch 2.7.0 · CUDA 12.6 · Python 3.11"
    assert ImageVersion(image="x", cuda="12.6", size="6.4 GB").facts() == "CUDA 12.6 · 6.4 GB"
    assert ImageVersion(image="x", python="3.11").facts() == "Python 3.11"
    assert ImageVersion(image="x").facts() == ""


def test_a_catalogue_file_is_what_the_setting_takes(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.yaml"
    path.write_text('torch:\n  image: lab/torch\n  title: Größe\n  python: "3.10"\nplain: lab/p\n')
    entries = {
        "torch": {"image": "lab/torch", "title": "Größe", "python": "3.10"},
        "plain": "lab/p",
    }
    assert load_catalogue(path) == load_catalogue(str(path)) == entries


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "can't be read: .*No such file"),
        (b"torch: [", "can't be read: "),
        (b"torch: \xff\xfe", "can't be read: "),
        (b"torch: !!python/object/apply:os.getcwd []", "can't be read: "),
        (b"", "must map each version's key to its entry"),
        (b"{}", "must map each version's key to its entry"),
        (b"- lab/torch", "must map each version's key to its entry"),
        (b"torch: 1", r"images\['torch'\] must be an image reference"),
    ],
)
def test_a_catalogue_file_that_cannot_be_used_is_named(
    tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    path = tmp_path / "our-catalogue.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"the catalogue .*our-catalogue\.yaml.*{sentence}"):
        load_catalogue(path)


def test_the_shipped_catalogue_can_be_used_as_it_is() -> None:
    versions = catalogue(load_catalogue(SHIPPED))
    assert [key for key, version in versions.items() if version.default] == ["pytorch-2.7"]
    # A tag says which: what is pulled tomorrow is what was tested today.
    assert all(":" in version.image for version in versions.values())
    # Whatever uses CUDA needs a driver, and says which.
    assert all(bool(version.cuda) == bool(version.min_driver) for version in versions.values())
