"""The nodes of a Swarm: which there are, and what of the inventory can be handed out on them.

The inventory says what GPUs a node has, and Swarm whether it runs servers and which GPUs a service
can reserve there. Both have to agree: unknown is never free.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import GPUSpawnerError
from ...gpus.model import GPU, GPUState, Node
from ...i18n.lazy_text import lazy_gettext
from ...nodes.resources import is_kind, kind_of
from ...untrusted import bounded

# An older engine ends running servers with GPUs at every change of a node.
# ref: https://github.com/moby/moby/issues/44378
OLDEST = (25, 0, 3)
# The names of machines are as long at most. ref: hostname(7)
MAX_NAME = 255


class EngineTooOld(GPUSpawnerError):
    """An engine that decides for the Swarm is too old. `str()` is a sentence."""

    def __init__(self, name: str, version: str) -> None:
        super().__init__(
            lazy_gettext(
                "Docker Engine %(version)s of machine %(node)s ends running servers with GPUs "
                "whenever a machine of the Swarm changes: it takes %(oldest)s or newer.",
                version=version or "?",
                node=name,
                oldest=".".join(map(str, OLDEST)),
            )
        )


@dataclass(frozen=True)
class SwarmNode:
    """One node as Swarm knows it.

    Args:
        id: Swarm's id of it.
        name: its hostname.
        state: "ready", "down", "disconnected" or "unknown".
        availability: "active", "pause" or "drain".
        version: its engine's version.
        is_manager: whether it is one of those that decide.
        offered: kind -> how many of it it offers, of GPUs and MIG instances.
    """

    id: str
    name: str
    state: str = "ready"
    availability: str = "active"
    version: str = ""
    is_manager: bool = False
    offered: Mapping[str, int] = field(default_factory=dict)

    @property
    def takes_servers(self) -> bool:
        """Whether a service can be started on it now."""
        return self.state == "ready" and self.availability == "active"


def is_too_old(version: str) -> bool:
    """Return whether an engine's version, "25.0.3", is older than `OLDEST`, or isn't known."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    return not found or tuple(int(each or 0) for each in found.groups()) < OLDEST


def parse_nodes(listed: Iterable[Mapping[str, Any]]) -> list[SwarmNode]:
    """Return the nodes of the engine's list."""
    return [_node(each) for each in listed]


def _node(found: Mapping[str, Any]) -> SwarmNode:
    about = found.get("Description") or {}
    resources = (about.get("Resources") or {}).get("GenericResources") or []
    offered: dict[str, int] = {}
    for each in resources:
        spec = each.get("DiscreteResourceSpec") or {}
        kind, number = str(spec.get("Kind") or "").lower(), spec.get("Value")
        if is_kind(kind) and isinstance(number, int) and number > 0:
            offered[kind] = number
    return SwarmNode(
        str(found.get("ID") or ""),
        bounded(str(about.get("Hostname") or ""), MAX_NAME),
        str((found.get("Status") or {}).get("State") or "unknown"),
        str((found.get("Spec") or {}).get("Availability") or ""),
        str((about.get("Engine") or {}).get("EngineVersion") or ""),
        (found.get("Spec") or {}).get("Role") == "manager",
        offered,
    )


def check_managers(nodes: Iterable[SwarmNode]) -> None:
    """Raise `EngineTooOld` if a manager's engine is: any of them may decide next."""
    for node in nodes:
        if node.is_manager and is_too_old(node.version):
            raise EngineTooOld(node.name, node.version)


def with_swarm(inventory: Sequence[Node], nodes: Sequence[SwarmNode]) -> tuple[Node, ...]:
    """Return the nodes of the inventory as Swarm lets them be used.

    What has a holder keeps it: states are of GPUs that could be handed out else. A node of Swarm
    that isn't in the inventory has no GPUs.

    Args:
        inventory: by the nodes' hostnames.
        nodes: those of Swarm.
    """
    times = Counter(each.name for each in nodes)
    by_name = {each.name: each for each in nodes}
    found = []
    for node in inventory:
        known = by_name.get(node.name) if times[node.name] == 1 else None
        found.append(replace(node, gpus=tuple(_gpu(each, known) for each in node.gpus)))
    there = {node.name for node in inventory}
    return (*found, *(Node(each.name) for each in nodes if each.name not in there))


def _gpu(gpu: GPU, node: SwarmNode | None) -> GPU:
    """Return a unit with why it can't be handed out on its node, if it could be else."""
    if gpu.state not in ("free", "foreign"):
        return gpu
    state, reason = _trouble(gpu, node)
    return replace(gpu, state=state, reason=reason) if state else gpu


def _trouble(gpu: GPU, node: SwarmNode | None) -> tuple[GPUState | None, str]:
    if node is None:
        return "unknown", lazy_gettext("Its machine isn't in the Swarm.")
    if node.state != "ready":
        return "unknown", lazy_gettext("Its machine doesn't answer the Swarm.")
    if node.availability != "active":
        return "excluded", lazy_gettext("Its machine takes no servers now.")
    if is_too_old(node.version):
        return "excluded", str(EngineTooOld(node.name, node.version))
    if not gpu.uuid or not node.offered.get(kind_of(gpu.uuid)):
        return "excluded", lazy_gettext(
            "Its machine's Docker Engine doesn't offer it to the Swarm."
        )
    return None, ""
