"""The nodes of a Swarm: which there are, and what of the inventory can be handed out on them.

The inventory says what GPUs a node has, and Swarm whether it runs servers and which GPUs a service
can reserve there. Both have to agree: unknown is never free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import GPUSpawnerError
from ...gpus.model import GPU, GPUState, Node
from ...i18n.lazy_text import MachineText, lazy_gettext
from ...nodes.oldest_engine import OLDEST_WORDS, is_too_old
from ...nodes.resources import is_kind, kind_of, offers
from ...untrusted import bounded

# The names of machines are as long at most. ref: hostname(7)
MAX_NAME = 255


class EngineTooOld(GPUSpawnerError):
    """An engine that decides for the Swarm is too old. `str()` is a sentence."""

    def __init__(self, name: str, version: str) -> None:
        said = {"version": version or "?", "oldest": OLDEST_WORDS}
        super().__init__(
            MachineText(
                lazy_gettext(
                    "Docker Engine %(version)s of machine %(node)s ends running servers with GPUs "
                    "whenever a machine of the Swarm changes: it takes %(oldest)s or newer.",
                    node=name,
                    **said,
                ),
                lazy_gettext(
                    "Docker Engine %(version)s of one machine ends running servers with GPUs "
                    "whenever a machine of the Swarm changes: it takes %(oldest)s or newer.",
                    **said,
                ),
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


def with_swarm(
    inventory: Sequence[Node], nodes: Sequence[SwarmNode], silent: Collection[str] = ()
) -> tuple[Node, ...]:
    """Return the nodes of the inventory as Swarm lets them be used.

    What has a holder keeps it: states are of GPUs that could be handed out else. A node of Swarm
    that isn't in the inventory has no GPUs.

    Args:
        inventory: by the nodes' hostnames.
        nodes: those of Swarm.
        silent: the names of nodes whose engines can't be asked what runs there.
    """
    times = Counter(each.name for each in nodes)
    by_name = {each.name: each for each in nodes}
    found = []
    for node in inventory:
        known = by_name.get(node.name) if times[node.name] == 1 else None
        is_silent = node.name in silent
        found.append(node.with_gpus(_gpu(each, known, is_silent) for each in node.gpus))
    there = {node.name for node in inventory}
    return (*found, *(Node(each.name) for each in nodes if each.name not in there))


def _gpu(gpu: GPU, node: SwarmNode | None, is_silent: bool) -> GPU:
    """Return a unit with why it can't be handed out on its node, if it could be else."""
    if gpu.state not in ("free", "foreign"):
        return gpu
    state, reason = _trouble(gpu, node)
    if state is None and is_silent:
        state = "unknown"
        reason = lazy_gettext("Which containers its machine has can't be read.")
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


def unusable(nodes: Iterable[SwarmNode]) -> Iterator[str]:
    """Yield why nodes take no servers now, as sentences for administrators."""
    for each in sorted(nodes, key=lambda node: node.name):
        if each.state != "ready":
            yield (
                f"Machine {each.name} is {each.state} for the Swarm: nothing is handed out there. "
                "What runs there goes on, and is ended when it comes back, if it was away for "
                "longer than three heartbeats"
            )
        elif each.availability != "active":
            yield (
                f"Machine {each.name} takes no servers, as its availability is "
                f"{each.availability}: docker node update --availability active {each.name}"
            )


def disagreements(inventory: Sequence[Node], nodes: Sequence[SwarmNode]) -> Iterator[str]:
    """Yield what daemons and Swarm say differently, as sentences for administrators.

    None of it is handed out: see `with_swarm`.

    Args:
        inventory: by the nodes' hostnames.
        nodes: those of Swarm.
    """
    told = {node.name: node for node in inventory}
    times = Counter(each.name for each in nodes)
    for name in sorted(told.keys() - times.keys()):
        yield f"Machine {name} was invited and isn't in the Swarm, so its GPUs aren't handed out"
    for name, number in sorted(times.items()):
        if number > 1:
            yield f"{number} machines of the Swarm are called {name}: nothing is handed out there"
    for each in sorted(nodes, key=lambda node: node.name):
        if each.name not in told and each.offered:
            yield (
                f"Machine {each.name} offers GPUs to the Swarm and wasn't invited, so they aren't "
                "handed out: gpuspawner node invite"
            )
        elif each.name in told and times[each.name] == 1:
            yield from _differences(told[each.name], each)


def _differences(node: Node, known: SwarmNode) -> Iterator[str]:
    if node.driver is None:  # its daemon has never answered, or it has no GPUs
        return
    seen, again = offers(node.gpus), "let it join again"
    for kind in sorted(seen.keys() - known.offered.keys()):
        yield f"Machine {node.name} has {kind} and doesn't offer it to the Swarm: {again}"
    for kind in sorted(known.offered.keys() - seen.keys()):
        yield f"Machine {node.name} offers {kind} to the Swarm and doesn't have it: {again}"
    for kind in sorted(seen.keys() & known.offered.keys()):
        if seen[kind] != known.offered[kind]:
            yield (
                f"Machine {node.name} offers {known.offered[kind]} of {kind} to the Swarm, and the "
                f"hub shares it in {seen[kind]}: {again}, with --shared as shared_gpus is"
            )
