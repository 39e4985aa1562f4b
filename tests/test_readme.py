"""What README says of options, keys and subcommands is what there is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from gpuspawner.__main__ import SUBCOMMANDS
from gpuspawner.choices.options import Choice
from gpuspawner.gpus.model import GPU, Node
from gpuspawner.leases.labels import LABEL_GPUS, LABEL_IMAGE, LABEL_SERVER, LABEL_USER
from gpuspawner.list_gpus import as_json
from gpuspawner.settings import GPUSettings

README = (Path(__file__).parent.parent / "README.md").read_text()
BYTES = {"8G": 8 * 1024**3}


def table(heading: str) -> dict[str, list[str]]:
    """Return first cell -> other cells of the table below a heading."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line[:3] == "| `"]
    return {row[0].strip(" `"): [cell.strip() for cell in row[1:]] for row in rows}


def our_traits() -> dict:
    """Return the traits that we add to DockerSpawner's, or change."""
    return {n: t for n, t in GPUSettings.class_own_traits(config=True).items() if t.help}


def test_every_option_is_in_the_table_and_the_other_way_round():
    assert sorted(table("Options")) == sorted(our_traits())


@pytest.mark.parametrize("name", our_traits())
def test_the_table_s_default_is_the_trait_s(name):
    written = ast.literal_eval(table("Options")[name][0].strip("`"))
    real = getattr(GPUSettings(), name)
    assert BYTES.get(written, written) == real if isinstance(written, str) else written == real


def test_every_option_has_a_sentence_in_both_places():
    for name, trait in our_traits().items():
        assert trait.help.strip().endswith("."), name
        assert table("Options")[name][1].endswith("."), name


def test_start_timeout_is_what_is_written():
    assert f"`start_timeout` {GPUSettings().start_timeout} seconds" in " ".join(README.split())


def test_every_key_of_a_choice_is_in_its_table():
    assert list(table("What a user can choose")) == list(Choice.model_fields)


def test_labels_subcommands_and_json_keys_are_named():
    for word in (LABEL_GPUS, LABEL_USER, LABEL_SERVER, LABEL_IMAGE):
        assert f"`{word}`" in README
    for name in SUBCOMMANDS:
        assert re.search(rf"gpuspawner {name}\b", README), name
    found = as_json(Node(), [GPU("GPU-0", 0, "A100")])
    for key in [*found, *found["gpus"][0]]:
        assert f"`{key}`" in README or key == "gpus"


def test_the_files_that_it_links_to_are_there():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (Path(__file__).parent.parent / target).exists(), target
