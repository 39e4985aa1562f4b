"""The units of all nodes as plans book them, kept from one plan to the next.

A hub plans at each change, and between two changes hardly a unit of a cluster is another. So which
units requests of one kind can have, and in which order they are looked at, is found once; a plan
begins with what is free now and when the rest is free again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from operator import is_

from ..gpus.model import GPU, Request
from .node_calendar import NodeCalendar, NodePool


class Units:
    """The calendars of all nodes, and the units of each that requests of one kind can have."""

    def __init__(self) -> None:
        self._gpus: tuple[GPU, ...] = ()
        # Their numbers in the order in which they are looked at, and those of each node in it.
        self._order: list[int] = []
        self._of_node: dict[str, list[int]] = {}
        self.nodes: dict[str, NodeCalendar] = {}
        # `Request.accepts` -> one that accepts these, and node -> its pool, by rank.
        self._kinds: dict[Hashable, tuple[Request, dict[str, NodePool]]] = {}
        # The kinds that this plan has asked for: in the next one these are there.
        self._asked: set[Hashable] = set()

    def begin(self, gpus: Sequence[GPU], now: float) -> None:
        """Begin a plan, in which nothing is booked yet.

        Args:
            gpus: every GPU of every node, with the leases on them.
            now: in seconds, on the clock of `Lease.until`.
        """
        self._kinds = {kind: each for kind, each in self._kinds.items() if kind in self._asked}
        self._asked = set()
        before, there = self._gpus, tuple(gpus)
        self._gpus = ()  # if this fails half-way, all is made anew
        changed = [number for number, is_same in enumerate(map(is_, before, there)) if not is_same]
        if len(before) != len(there) or any(
            _place(before[number]) != _place(there[number]) for number in changed
        ):
            self._arrange(there, now)
        else:
            again = {there[number].node for number in changed}
            for name, node in self.nodes.items():
                if name not in again:
                    node.begin(now)
            for name in again:
                self._make(name, there, now)
        self._gpus = there

    def _arrange(self, gpus: tuple[GPU, ...], now: float) -> None:
        """Make everything anew, as other units are there."""
        totals = Counter(gpu.model for gpu in gpus)
        # Rarer models first, and always in the same order: a request that was booked ahead gets
        # the same GPUs when its turn comes, so that the bookings around it stay valid.
        keys = [(totals[gpu.model], gpu.model, gpu.node, gpu.index, gpu.part or 0) for gpu in gpus]
        self._order = sorted(range(len(gpus)), key=keys.__getitem__)
        self._of_node = {}
        for number in self._order:
            self._of_node.setdefault(gpus[number].node, []).append(number)
        self._kinds, self.nodes = {}, {}
        for name in self._of_node:
            self._make(name, gpus, now)

    def _make(self, name: str, gpus: tuple[GPU, ...], now: float) -> None:
        """Make a node's calendar and its pools anew, as one of its units is another."""
        self.nodes[name] = NodeCalendar(name, now)
        for number in self._of_node[name]:
            self.nodes[name].add(gpus[number])
        for request, pools in self._kinds.values():
            if name in pools:
                pools[name] = self._pool(request, name, gpus, pools[name].rank)

    def _pool(self, request: Request, name: str, gpus: tuple[GPU, ...], rank: int) -> NodePool:
        pool = NodePool(self.nodes[name], rank)
        for number in self._of_node[name]:
            if request.takes(gpus[number]):
                pool.add(gpus[number])
        return pool

    def pools(self, request: Request) -> list[NodePool]:
        """Return for each node the pool of GPUs that a request can have, by rank."""
        self._asked.add(request.accepts)
        if request.accepts not in self._kinds:
            # The rank is the place of the node's first one in the order.
            names = dict.fromkeys(
                self._gpus[number].node
                for number in self._order
                if request.takes(self._gpus[number])
            )
            pools = {
                name: self._pool(request, name, self._gpus, rank) for rank, name in enumerate(names)
            }
            self._kinds[request.accepts] = request, pools
        return list(self._kinds[request.accepts][1].values())


def _place(gpu: GPU) -> Hashable:
    """Return what the order and the kinds of requests that accept a unit depend on."""
    return gpu.node, gpu.model, gpu.index, gpu.part, gpu.parts, gpu.kind, gpu.ends
