"""Fixtures of several unit tests."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuspawner.usage.store import Store


@pytest.fixture(scope="session")
def _empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables, which take longer to make than a test."""
    path = tmp_path_factory.mktemp("empty") / "usage.sqlite"
    store = Store(f"sqlite:///{path}")
    store.open()
    store.close()
    return path


@pytest.fixture
def usage_url(tmp_path: Path, _empty_store: Path) -> str:
    """The address of a store of this test's own, with its tables."""
    return f"sqlite:///{shutil.copy(_empty_store, tmp_path / 'usage.sqlite')}"


@pytest.fixture
def events(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    """Return the audit log's lines so far."""
    caplog.set_level(logging.INFO)

    def found() -> list[dict[str, Any]]:
        lines = [each.getMessage() for each in caplog.records if each.name.endswith(".gpuspawner")]
        return [json.loads(each.removeprefix("gpuspawner ")) for each in lines]

    return found
