"""Volumes of doctor's own, which stand in for users' and go once no container has them."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import docker.errors

# The beginning of their names.
OWN = "gpuspawner-doctor-"
# Whole: a user's volume may begin like that, and one that no container has is a user's files.
_NAME = re.compile(re.escape(OWN) + r"[0-9a-f]{8}([0-9a-f]{8})?(-[0-9]+)?")


def remove_unused(api: Any) -> list[str]:
    """Remove those on an engine that no container has; return the names of the others."""
    for name in _names(api, {"name": OWN, "dangling": True}):
        with suppress(docker.errors.APIError):  # another doctor uses it by now
            api.remove_volume(name)
    return _names(api, {"name": OWN})


def _names(api: Any, filters: dict[str, Any]) -> list[str]:
    found = api.volumes(filters=filters)["Volumes"] or []
    return [str(each["Name"]) for each in found if _NAME.fullmatch(each["Name"])]
