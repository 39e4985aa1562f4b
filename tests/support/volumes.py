"""An engine's socket, as far as volumes without files go."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import docker.errors


class VolumeEngine:
    """Makes, lists and removes volumes.

    Args:
        names: volumes that there are at first, without labels.
    """

    def __init__(self, *names: str) -> None:
        self.there: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        # The engine's answer to everything, while it can't be read.
        self.away: Exception | None = None
        # Of volumes that a container uses.
        self.used: set[str] = set()
        self.running: list[dict[str, Any]] = []
        # What the engine measures, in bytes.
        self.sizes: dict[str, int] = {}
        self.base_url, self.api_version = "http+docker://socket", "1.41"
        for name in names:
            self.create_volume(name)
        self.asked.clear()

    def create_volume(
        self,
        name: str,
        driver: str | None = None,
        driver_opts: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Make a volume, or return the one of that name as it is."""
        self._ask("create")
        made = {
            "Name": name,
            "Driver": "local",
            "Labels": dict(labels) if labels else None,
            "Options": dict(driver_opts) if driver_opts else None,
        }
        return self.there.setdefault(name, made)

    def volumes(self, filters: Mapping[str, list[str]] | None = None) -> dict[str, Any]:
        """List volumes; as with the engine, a name is a regular expression."""
        self._ask("list")
        wanted = (filters or {}).get("name", [""])
        found = [
            about
            for name, about in self.there.items()
            if any(re.search(each, name) for each in wanted)
        ]
        return {"Volumes": found or None, "Warnings": None}

    def remove_volume(self, name: str) -> None:
        """Remove a volume that no container uses."""
        self._ask("remove")
        if name in self.used:
            raise refusal(409, "volume is in use")
        if self.there.pop(name, None) is None:
            raise docker.errors.NotFound("no such volume")

    def run(self, name: str, volume: str, writes: bool = True, **labels: str) -> None:
        """Have a container that mounts a volume."""
        mount = {"Type": "volume", "Name": volume, "RW": writes}
        names = {f"gpuspawner.{label}": value for label, value in labels.items()}
        self.running.append(
            {"Id": "c" * 64, "Names": [f"/{name}"], "Labels": names, "Mounts": [mount]}
        )
        self.used.add(volume)

    def containers(
        self, all: bool = False, filters: Mapping[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """List containers; those that mount a volume, or one whose name begins so."""
        wanted = (filters or {}).get("volume", "")
        return [c for c in self.running if c["Mounts"][0]["Name"].startswith(wanted)]

    def get(self, address: str, params: Any = None, timeout: float = 0) -> Any:
        """Answer as the engine does when it has measured all."""
        self._ask("measure")
        assert address == "http+docker://socket/v1.41/system/df"
        sizes = [{"Name": each, "UsageData": {"Size": self.sizes[each]}} for each in self.sizes]
        return SimpleNamespace(raise_for_status=lambda: None, json=lambda: {"Volumes": sizes})

    def close(self) -> None:
        """End nothing."""

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.away:
            raise self.away


def refusal(status: int, words: str) -> docker.errors.APIError:
    """Return what docker-py raises where an engine refuses."""

    class Response:
        status_code, reason, url = status, words, ""

    return docker.errors.APIError(words, response=Response(), explanation=words)
