"""What tests need of the machine that they run on."""

from __future__ import annotations

import os

import pytest

IN_CI = bool(os.environ.get("CI"))


def cannot(reason: str) -> None:
    """Skip a test whose surroundings are missing; in CI they must not be."""
    if IN_CI:
        pytest.fail(f"in CI nothing is skipped: {reason}")
    pytest.skip(reason)
