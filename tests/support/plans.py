"""What a server would be created with, as `gpuspawner doctor` asks its spawner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jupyterhub.app import JupyterHub
from jupyterhub.objects import Hub
from traitlets.config import Config

from gpuspawner.doctor import example_user
from gpuspawner.spawner import GPUSpawner


def planned(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan of a configuration with these traits of `GPUSpawner`."""
    given = example_user.arguments(JupyterHub(), Hub(ip="10.0.0.1", port=8081))
    return example_user.plan(GPUSpawner, Config({"GPUSpawner": dict(settings)}), given)
