"""The reader of a Swarm's nodes: what their daemons say of GPUs, as far as Swarm can use it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from ...gpus.memory import GPUMemory
from ...gpus.model import Node
from ...gpus.reader import NodeReader
from ...leases.audit_log import one_line
from ...nodes.reports import NodeContainer
from .cluster import SwarmNode, check_managers, disagreements, unusable, with_swarm


class NodesInventory(NodeReader, Protocol):
    """A reader of all nodes that knows what runs there with GPUs."""

    @property
    def containers(self) -> Mapping[str, Sequence[NodeContainer] | None]:
        """Node -> what runs there with GPUs; None: its engine can't be asked."""


class SwarmReader:
    """Reader of all nodes of a Swarm.

    Args:
        inventory: reads the nodes' GPUs, by the nodes' hostnames.
        list_nodes: lists the nodes of the Swarm.
        log: told once whatever the two say differently.
    """

    def __init__(
        self,
        inventory: NodesInventory,
        list_nodes: Callable[[], Awaitable[Sequence[SwarmNode]]],
        log: Any,
    ) -> None:
        self._inventory = inventory
        self._list_nodes = list_nodes
        self._log = log
        self._told: frozenset[str] = frozenset()

    def containers(self) -> Iterable[tuple[str, NodeContainer]]:
        """Yield what runs with GPUs on the nodes, each with its node, as of the last reading."""
        for node, found in self._inventory.containers.items():
            for each in found or ():
                yield node, each

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
        self._tell((*unusable(nodes), *disagreements(inventory, nodes)))
        silent = [node for node, each in self._inventory.containers.items() if each is None]
        return with_swarm(inventory, nodes, silent)

    def _tell(self, sentences: Iterable[str]) -> None:
        found = list(sentences)
        for sentence in found:
            if sentence not in self._told:
                self._log.warning("%s", one_line(sentence))
        self._told = frozenset(found)
