"""What an image's server says of itself to the page: from what it was started with."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from ..support.paths import ROOT

SITE = ROOT / "image/rootfs/opt/jupyter/lib/python3.11/site-packages"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The image's server extension, imported as its Python does."""
    monkeypatch.syspath_prepend(SITE)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield importlib.import_module("gpuspawner_server")
    for name in [each for each in sys.modules if each.startswith("gpuspawner_")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("environment", "gpus"),
    [
        ({"NVIDIA_VISIBLE_DEVICES": "GPU-1,GPU-2"}, 2),
        ({"NVIDIA_VISIBLE_DEVICES": "void"}, 0),
        ({}, 0),
        # By CDI, and with an older hub.
        ({"NVIDIA_VISIBLE_DEVICES": "void", "GPUSPAWNER_GPUS": "GPU-1"}, 1),
        ({"NVIDIA_VISIBLE_DEVICES": "GPU-1", "GPUSPAWNER_GPUS": ""}, 1),
    ],
)
def test_a_server_knows_how_many_gpus_it_has(server, environment: dict[str, str], gpus: int):
    assert server.start_facts(environment)["gpus"] == gpus


def test_a_server_knows_what_is_kept_where_the_hub_says_it(server) -> None:
    told = {"HOME": "/home/jovyan", "GPUSPAWNER_KEPT": "/home/jovyan/work:/data"}
    kept = {"home": False, "folders": ("/data", "~/work"), "on_one_machine": False}
    assert server.start_facts(told)["kept"] == kept
    told["GPUSPAWNER_KEPT_ON_ONE_MACHINE"] = "1"
    assert server.start_facts(told)["kept"] == {**kept, "on_one_machine": True}
    assert server.start_facts({})["kept"] is None
