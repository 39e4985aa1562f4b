"""The reader of a Swarm's nodes: what their daemons say of GPUs, as far as Swarm can use it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from ...gpus.memory import GPUMemory
from ...gpus.model import Node
from ...gpus.reader import NodeReader
from ...leases.audit_log import one_line
from .cluster import SwarmNode, check_managers, disagreements, with_swarm


class SwarmReader:
    """Reader of all nodes of a Swarm.

    Args:
        inventory: reads the nodes' GPUs, by the nodes' hostnames.
        list_nodes: lists the nodes of the Swarm.
        log: told once whatever the two say differently.
    """

    def __init__(
        self,
        inventory: NodeReader,
        list_nodes: Callable[[], Awaitable[Sequence[SwarmNode]]],
        log: Any,
    ) -> None:
        self._inventory = inventory
        self._list_nodes = list_nodes
        self._log = log
        self._told: frozenset[str] = frozenset()

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

    def why_no_driver(self) -> str:
        """Return why no machine has a driver, as far as the hub knows."""
        return (
            "no machine with GPUs answers the hub: gpuspawner node invite lets one join, and "
            "gpuspawner node status says how they are"
        )

    async def __call__(self) -> tuple[Node, ...]:
        """Read the nodes.

        Raises:
            EngineTooOld: a manager's engine is too old to be trusted with GPUs.
            docker.errors.DockerException: the Swarm can't be read.
        """
        nodes, inventory = await asyncio.gather(self._list_nodes(), self._inventory())
        check_managers(nodes)
        self._tell(disagreements(inventory, nodes))
        return with_swarm(inventory, nodes)

    def _tell(self, sentences: Iterable[str]) -> None:
        found = list(sentences)
        for sentence in found:
            if sentence not in self._told:
                self._log.warning("%s", one_line(sentence))
        self._told = frozenset(found)
