"""The catalogue of image versions, and what a host's driver can run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from traitlets.config import Config

from gpuspawner.images.catalogue import (
    MAX_TEXT,
    ImageVersion,
    catalogue,
    default_key,
    load_catalogue,
)

from ..support.paths import ROOT

DIGEST = f"sha256:{'0123456789abcdef' * 4}"
SHIPPED = ROOT / "image" / "catalogue.yaml"


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
    ({"torch": "lab/torch 2.7"}, "image: must name an image, as name:tag or name@sha256:…, got"),
    ({"torch": "lab/Torch"}, "images['torch']: image: must name an image"),
    ({"torch": "lab/torch:"}, "images['torch']: image: must name an image"),
    ({"torch": "lab/torch:2.7\n"}, "images['torch']: image: must name an image"),
    ({"torch": "https://lab/torch"}, "images['torch']: image: must name an image"),
    # A digest of which a part was lost on the way would name no image at all.
    ({"torch": f"lab/torch@sha256:{'a' * 63}"}, "images['torch']: image: must name an image"),
    ({"torch": "lab/torch@latest"}, "images['torch']: image: must name an image"),
    ({"torch": {"image": "  "}}, "images['torch']: image: must name an image"),
    ({"torch": {"title": "PyTorch"}}, "images['torch']: image: Field required"),
    ({"torch": {"image": "lab/torch", "gpu": 1}}, "images['torch']: gpu: Extra inputs"),
    (
        {"torch": {"image": "lab/torch", "python": 3.1}},
        "images['torch']: python: must be text, in quotes, got 3.1",
    ),
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
        "images['torch']: toolkit_driver: must be a driver version, as 525.60.13, got '560.28.03 '",
    ),
    (
        {"torch": {"image": "lab/torch", "compute_capabilities": ["8.0", "sm_90"]}},
        'images[\'torch\']: compute_capabilities: must be a list of texts, as ["8.0", "9.0+PTX"], '
        "got 'sm_90'",
    ),
    (
        {"torch": {"image": "lab/torch", "compute_capabilities": [7.5]}},
        "images['torch']: compute_capabilities.0: must be text, in quotes, got 7.5",
    ),
    (
        {"torch": {"image": "lab/torch", "compute_capabilities": "8.0"}},
        'images[\'torch\']: compute_capabilities: must be a list of texts, as ["8.0", "9.0+PTX"], '
        "got '8.0'",
    ),
    (
        {"torch": {"image": "lab/torch", "deprecated": True}},
        "images['torch']: deprecated: must be text, in quotes, got True",
    ),
    (
        {"torch": {"image": "lab/torch", "size": 6.4}},
        "images['torch']: size: must be text, in quotes, got 6.4",
    ),
]


@pytest.mark.parametrize(("entries", "sentence"), BROKEN)
def test_a_broken_entry_is_refused_by_its_key_and_field(entries: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        catalogue(entries)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "reference",
    [
        "torch",
        "lab/torch:2.7",
        f"lab/torch@{DIGEST}",
        f"lab/torch:2.7@{DIGEST}",
        f"images.example.org/lab/a__b/c-d.e@{DIGEST}",
        "localhost:5000/lab/torch:2.7_cu12.6",
        "[::1]:5000/torch",
        DIGEST,
        "0123456789ab",
    ],
)
def test_an_image_is_named_by_tag_or_digest(reference: str) -> None:
    assert catalogue({"torch": reference})["torch"].image == reference


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
        "plain": {"image": "lab/p"},
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


FILE = """
torch: {image: lab/torch:2.7, title: PyTorch, cuda: "12.6", default: true}
plain: lab/plain:1
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "catalogue.yaml").write_text(FILE)
    return tmp_path / "catalogue.yaml"


def test_an_administrator_adds_a_version(file: Path) -> None:
    versions = catalogue(load_catalogue(file, add={"own": {"image": f"lab/own@{DIGEST}"}}))
    assert list(versions) == ["torch", "plain", "own"]
    assert versions["own"] == ImageVersion(image=f"lab/own@{DIGEST}", title="own")
    assert default_key(versions, "") == "torch"
    same = load_catalogue(file, add={"own": f"lab/own@{DIGEST}"})
    assert catalogue(same) == versions
    assert catalogue(load_catalogue(file, add={"own": versions["own"]})) == versions


def test_an_added_version_can_be_the_default_and_then_is_the_only_one(file: Path) -> None:
    own = {"own": {"image": "lab/own", "default": True}}
    versions = catalogue(load_catalogue(file, add=own, change={"torch": {"title": "Old"}}))
    assert [key for key, version in versions.items() if version.default] == ["own"]
    versions = catalogue(load_catalogue(file, change={"plain": {"default": True}}))
    assert [key for key, version in versions.items() if version.default] == ["plain"]


def test_a_mapping_is_checked_like_a_file(file: Path) -> None:
    mine = {"torch": {"image": "lab/torch", "title": "PyTorch"}, "plain": "lab/plain:1"}
    assert load_catalogue(mine) == {**mine, "plain": {"image": "lab/plain:1"}}
    changed = load_catalogue(mine, change={"torch": {"title": "Own"}}, hide=["plain"])
    assert changed == {"torch": {"image": "lab/torch", "title": "Own"}}
    changed["torch"]["title"] = "Another"
    assert mine["torch"] == {"image": "lab/torch", "title": "PyTorch"}
    with pytest.raises(ValueError, match=r"^the catalogue: images\['own'\]: image: must name"):
        load_catalogue({"own": "lab/own@latest"})
    with pytest.raises(ValueError, match=r"^the catalogue must map"):
        load_catalogue({})


def test_an_administrator_replaces_a_version_in_its_place(file: Path) -> None:
    versions = catalogue(load_catalogue(file, add={"torch": "lab/other:1"}))
    assert list(versions) == ["torch", "plain"]
    assert versions["torch"] == ImageVersion(image="lab/other:1", title="torch")


def test_an_administrator_changes_some_fields_and_the_others_stay(file: Path) -> None:
    pinned = {"torch": {"image": f"lab/torch@{DIGEST}"}, "plain": {"title": "Plain"}}
    versions = catalogue(load_catalogue(file, change=pinned))
    assert versions == {
        "torch": ImageVersion(
            image=f"lab/torch@{DIGEST}", title="PyTorch", cuda="12.6", default=True
        ),
        "plain": ImageVersion(image="lab/plain:1", title="Plain"),
    }


@pytest.mark.parametrize("hide", [["torch"], {"torch"}, "torch"])
def test_an_administrator_hides_a_version(file: Path, hide: Any) -> None:
    versions = catalogue(load_catalogue(file, hide=hide))
    assert list(versions) == ["plain"]
    assert default_key(versions, "") == "plain"


def test_a_catalogue_is_a_plain_mapping_to_work_on(file: Path) -> None:
    images = load_catalogue(file)
    del images["torch"]
    images["plain"]["image"] = f"lab/plain@{DIGEST}"
    images["own"] = "lab/own:1"
    assert [version.image for version in catalogue(images).values()] == [
        f"lab/plain@{DIGEST}",
        "lab/own:1",
    ]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hide": ["tensorflow"]}, "there is no version 'tensorflow'; there are: torch, plain"),
        ({"hide": ["torch", "plain"]}, "no version is left"),
        ({"change": {"tensorflow": {}}}, "there is no version 'tensorflow'"),
        ({"change": {"torch": "lab/torch:2"}}, "change['torch'] must be a mapping"),
        ({"change": {"torch": {"imag": "lab/torch"}}}, "images['torch']: imag: Extra inputs"),
        ({"add": {"own": {"title": "Own"}}}, "images['own']: image: Field required"),
        ({"add": {"own": 7}}, "images['own'] must be an image reference or a mapping"),
        ({"add": {"own": "lab/own@sha256:0"}}, "images['own']: image: must name an image"),
    ],
)
def test_a_change_that_cannot_be_made_is_named(file: Path, changes: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"the catalogue {file}: {sentence}")):
        load_catalogue(file, **changes)


def test_the_handbook_s_example_works(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (SHIPPED.parent.parent / "docs" / "how-to" / "image-versions.md").read_text()
    (example,) = re.findall(r"```python\n(from gpuspawner .*?)```", page, re.DOTALL)
    monkeypatch.chdir(SHIPPED.parent.parent)
    c = Config()
    exec(example.replace("sha256:…", DIGEST), {"c": c})
    versions = catalogue(c.GPUSpawner.images)
    assert versions["pytorch-2.7"].image.endswith(DIGEST)
    assert versions["pytorch-2.7"].framework
    assert "minimal" not in versions
    assert versions["lab"].cuda == "12.8"


CONFIG = """
from gpuspawner.images import load_catalogue
c = get_config()
c.JupyterHub.spawner_class = "gpu"
c.GPUSpawner.images = load_catalogue({source!r})
"""


@pytest.mark.parametrize(
    "from_file",
    [True, pytest.param(False, marks=pytest.mark.thorough)],
    ids=["file", "mapping"],
)
def test_a_broken_entry_stops_the_hub_at_its_start(tmp_path: Path, from_file: bool) -> None:
    (tmp_path / "catalogue.yaml").write_text("torch: {image: lab/torch, toolkit_driver: '>=560'}")
    source = {"torch": {"image": "lab/torch", "toolkit_driver": ">=560"}}
    config = CONFIG.format(source="catalogue.yaml" if from_file else source)
    (tmp_path / "jupyterhub_config.py").write_text(config)
    ended = subprocess.run(
        [sys.executable, "-m", "jupyterhub"], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 1
    sentence = "images['torch']: toolkit_driver: must be a driver version, as 525.60.13, got"
    assert sentence in ended.stderr.strip().splitlines()[-1]
