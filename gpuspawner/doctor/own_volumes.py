"""Volumes of doctor's own, which stand in for users' and go once no container has them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import docker.errors

# The beginning of their names.
OWN = "gpuspawner-doctor-"


def remove_unused(api: Any) -> list[str]:
    """Remove those on an engine that no container has; return the names of the others."""
    for name in _names(api, {"name": OWN, "dangling": True}):
        with suppress(docker.errors.APIError):  # another doctor uses it by now
            api.remove_volume(name)
    return _names(api, {"name": OWN})


def _names(api: Any, filters: dict[str, Any]) -> list[str]:
    found = api.volumes(filters=filters)["Volumes"] or []
    return [str(each["Name"]) for each in found if each["Name"].startswith(OWN)]
