"""Getting an image: its progress out of what engines said, one pull for many, and why it failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import docker.errors
import pytest

from gpuspawner.pulling import Progress, Teller, split, why

RECORDED = Path(__file__).parent / "recorded"


def recorded(name: str) -> list[dict[str, Any]]:
    """Read what Docker Engine 20.10 said during a pull, from a real registry."""
    return [json.loads(line) for line in (RECORDED / f"{name}.jsonl").read_text().splitlines()]


def story(events: list[dict[str, Any]], seconds: float = 0.1) -> list[str]:
    """Return what is told of a pull whose events come so many seconds apart."""
    progress, teller, told = Progress(), Teller(), []
    for number, event in enumerate(events):
        progress = progress.after(event)
        if new := teller.tell(progress, number * seconds):
            told.append(f"{100 * new[0]:.0f}: {new[1]}")
    return told


def test_a_pull_is_told_in_percent_and_size_and_then_its_unpacking() -> None:
    assert story(recorded("pull")) == [
        "1: Getting the image: 1 %, 0.6 of 53.0 MB",
        "8: Getting the image: 15 %, 8.4 of 53.0 MB",
        "16: Getting the image: 31 %, 16.9 of 53.0 MB",
        "17: Getting the image: 34 %, 18.4 of 53.0 MB",
        "19: Getting the image: 38 %, 20.4 of 53.0 MB",
        "25: Getting the image: 50 %, 26.6 of 53.0 MB",
        "27: Getting the image: 53 %, 28.1 of 53.0 MB",
        "36: Getting the image: 71 %, 38.0 of 53.0 MB",
        "47: Getting the image: 93 %, 49.8 of 53.0 MB",
        "50: Unpacking the image: 0 %, 0.0 of 53.0 MB",
        "69: Unpacking the image: 38 %, 20.3 of 53.0 MB",
        "78: Unpacking the image: 56 %, 30.0 of 53.0 MB",
        "81: Unpacking the image: 62 %, 33.0 of 53.0 MB",
        "100: Unpacking the image: 100 %, 53.0 of 53.0 MB",
    ]


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("debian", ("debian", "latest")),
        ("lab/torch:2.7", ("lab/torch", "2.7")),
        ("host:5000/name", ("host:5000/name", "latest")),
        ("host:5000/name:1", ("host:5000/name", "1")),
        ("name@sha256:0123", ("name", "sha256:0123")),
        ("host:5000/name@sha256:0123", ("host:5000/name", "sha256:0123")),
        ("host:5000/name:1@sha256:0123", ("host:5000/name:1", "sha256:0123")),
    ],
)
def test_a_reference_is_taken_apart_where_the_engine_does(
    reference: str, parts: tuple[str, str]
) -> None:
    assert split(reference) == parts


def test_a_registry_is_named_in_the_sentence() -> None:
    error = docker.errors.APIError("dial tcp 10.0.0.9:5000: connect: connection refused")
    assert why("10.0.0.9:5000/torch:2.7", error) == (
        "The image 10.0.0.9:5000/torch:2.7 can't be had: the registry 10.0.0.9:5000 can't be "
        "reached from the GPU machine."
    )
