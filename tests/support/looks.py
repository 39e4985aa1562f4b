"""Looks at the simulated host from outside the hub: its engine's containers, its GPUs."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from typing import Any

import docker


def container_of(engine: Any, user: str, server: str = "") -> str:
    """Return the id of a user's container, in whatever state."""
    wanted = [f"gpuspawner.user={user}", f"gpuspawner.server={server}"]
    (found,) = engine.containers(all=True, filters={"label": wanted})
    return str(found["Id"])


def inside(engine: Any, user: str, command: str, server: str = "", root: bool = False) -> str:
    """Return what a command prints in a user's container, under `docker exec`."""
    name = container_of(engine, user, server)
    job = engine.exec_create(name, ["bash", "-c", command], user="0" if root else "")
    return engine.exec_start(job["Id"]).decode().strip()


def containers(engine: Any) -> list[dict[str, Any]]:
    """Return every container there is, in any state."""
    return engine.containers(all=True)


def labelled(engine: Any) -> dict[str, list[str]]:
    """Return user -> UUIDs, from the labels of the containers that run."""
    found = engine.containers(filters={"label": "gpuspawner.gpus"})
    return {
        c["Labels"]["gpuspawner.user"]: [u for u in c["Labels"]["gpuspawner.gpus"].split(",") if u]
        for c in found
    }


def gpus() -> list[dict[str, Any]]:
    """Return what `gpuspawner gpus --json` says of the GPUs."""
    command = [sys.executable, "-m", "gpuspawner", "gpus", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["gpus"]


def free_gpus() -> list[str]:
    """Return the UUIDs of the free GPUs."""
    return [gpu["uuid"] for gpu in gpus() if gpu["state"] == "free"]


def clear(engine: docker.APIClient) -> None:
    """Remove every container and volume of the simulated host's engine."""
    for container in engine.containers(all=True):
        with suppress(docker.errors.NotFound):
            engine.remove_container(container["Id"], force=True, v=True)
    for volume in engine.volumes()["Volumes"] or []:
        with suppress(docker.errors.NotFound):  # a hub that still ends may remove a mark itself
            engine.remove_volume(volume["Name"])
