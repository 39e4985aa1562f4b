"""The Swarm's spawner, with an inventory of a simulated cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpuspawner.gpus.reader import NodeReader
from gpuspawner.swarm_spawner import GPUSwarmSpawner

from .swarms import SimulatedInventory


class SimulatedSwarmSpawner(GPUSwarmSpawner):
    """A spawner that reads each node's simulated NVML itself."""

    def make_inventory(self, settings: Mapping[str, Any]) -> NodeReader:
        return SimulatedInventory(settings)
