"""The reader of a Swarm's nodes: what their daemons say of GPUs, as far as Swarm can use it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from ...gpus.memory import GPUMemory
from ...gpus.model import Node
from ...gpus.reader import NodeReader
from .cluster import SwarmNode, check_managers, with_swarm


class SwarmReader:
    """Reader of all nodes of a Swarm.

    Args:
        inventory: reads the nodes' GPUs, by the nodes' hostnames.
        list_nodes: lists the nodes of the Swarm.
    """

    def __init__(
        self, inventory: NodeReader, list_nodes: Callable[[], Awaitable[Sequence[SwarmNode]]]
    ) -> None:
        self._inventory = inventory
        self._list_nodes = list_nodes

    @property
    def lets_go(self) -> bool:
        """Whether NVML is shut down after each read."""
        return self._inventory.lets_go

    @lets_go.setter
    def lets_go(self, value: bool) -> None:
        self._inventory.lets_go = value

    async def memory_of(self, uuids: Collection[str]) -> Mapping[str, GPUMemory]:
        """Return nothing: only a machine itself knows its processes."""
        return {}

    async def __call__(self) -> tuple[Node, ...]:
        """Read the nodes.

        Raises:
            EngineTooOld: a manager's engine is too old to be trusted with GPUs.
            docker.errors.DockerException: the Swarm can't be read.
        """
        nodes, inventory = await asyncio.gather(self._list_nodes(), self._inventory())
        check_managers(nodes)
        return with_swarm(inventory, nodes)
