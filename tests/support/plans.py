"""What a server would be created with, as `gpuspawner doctor` asks its spawner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jupyterhub.app import JupyterHub
from jupyterhub.objects import Hub
from traitlets.config import Config

from gpuspawner.doctor import someone
from gpuspawner.spawner import GPUSpawner


def planned(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan of a configuration with these traits of `GPUSpawner`."""
    given = someone.arguments(JupyterHub(), Hub(ip="10.0.0.1", port=8081))
    return someone.plan(GPUSpawner, Config({"GPUSpawner": dict(settings)}), given)
