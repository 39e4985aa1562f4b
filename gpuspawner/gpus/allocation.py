"""Allocation policies: pure functions that choose the units for a request.

They work on values that the NVML readers and the ledger have read. This module imports only the
standard library and our translations, so that each rule can be tested as a table of values.

GPUs may be on any number of nodes (`GPU.node`). All GPUs of one request are on the same node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf
from operator import is_

from ..i18n.lazy_text import lazy_gettext, lazy_ngettext, listed
from .links import choose_linked
from .model import GPU, NAMELESS, SHARED, WHOLE, Lease, Node, Outsider, Request
from .unit_names import Share, UnitName, parse

# Called with a node's free GPUs sorted by index, the indexes of its busy GPUs, and a count.
Policy = Callable[[Sequence[GPU], Sequence[int], int], Sequence[GPU]]


def choose(request: Request, gpus: Sequence[GPU], policy: str = "pack") -> tuple[GPU, ...] | None:
    """Choose the units to hand out for a request; return None if too few are free.

    All of them are on one node. Only GPUs in state "free" whose UUID is known are handed out. GPUs
    of one model are preferred, since a training step takes as long as its slowest GPU; models are
    mixed only if the request names none and no single model has enough.

    Args:
        request: how many GPUs, of which model and on which nodes.
        gpus: every GPU of every node, in any order.
        policy: a key of `POLICIES`.

    Raises:
        ValueError: there is no such policy, or two GPUs have the same UUID.
    """
    check_policy_and_gpus("policy", policy, POLICIES, gpus)
    if request.gpus <= 0:
        return ()
    nodes = by_node(gpus)
    free = {
        name: [gpu for gpu in node if _is_free(gpu) and request.takes(gpu)]
        for name, node in nodes.items()
    }
    name = choose_node(free, request.gpus, policy, request.home_node, request.rank)
    return (
        None
        if name is None
        else pick_on_node(free[name], busy_indexes(nodes[name]), request.gpus, policy)
    )


def choose_node(
    free: Mapping[str, Sequence[GPU]],
    count: int,
    policy: str = "pack",
    home: str = "",
    rank: Callable[[str], tuple[bool, ...]] = lambda name: (),
) -> str | None:
    """Choose the node for a request; return None if no node has enough free GPUs.

    The node with the user's files comes before all others. Nodes with enough GPUs of one model come
    before nodes that would have to mix models, and among those the ones that the request prefers.
    Of what is left, "pack" takes the node with the fewest free GPUs, so that whole nodes stay free,
    and "spread" the one with the most; the node's name decides a tie.

    Args:
        free: node name -> the free GPUs that the request could have.
        count: how many GPUs it asks for, at least 1.
        policy: a key of `POLICIES`.
        home: the name of the node with the user's files; "": none.
        rank: returns a key of a node's name that is the less the more it is preferred.
    """
    if len(free.get(home, ())) >= count:
        return home
    least = 1 if policy == "pack" else -1
    fitting = sorted(
        (rank(name), least * len(gpus), name) for name, gpus in free.items() if len(gpus) >= count
    )
    names = [name for _, _, name in fitting]
    of_one_model = (name for name in names if _has_pool(free[name], count))
    return next(of_one_model, names[0] if names else None)


def _has_pool(gpus: Sequence[GPU], count: int) -> bool:
    return max(Counter(gpu.model for gpu in gpus).values()) >= count


def pick_on_node(
    free: Sequence[GPU], busy: Sequence[int], count: int, policy: str = "pack"
) -> tuple[GPU, ...]:
    """Choose the GPUs to hand out on one node, of a single model if possible.

    Args:
        free: the node's free GPUs that the request could have, by index; at least `count`.
        busy: the indexes of the node's GPUs that are in use.
        count: how many GPUs to return.
        policy: a key of `POLICIES`.
    """
    pools = [pool for pool in by_model(free) if len(pool) >= count]
    if free[0].kind != WHOLE:
        return tuple(_pick_parts(free, busy, count, policy))
    # "pack" takes from the model with the fewest GPUs left, "spread" from the one with the most.
    pool = (min if policy == "pack" else max)(pools, key=len) if pools else free
    # "spread" keeps single GPUs apart; several of one server are always to be close.
    linked = choose_linked(pool, count) if count > 1 or policy == "pack" else None
    return linked or tuple(POLICIES[policy](pool, busy, count))


def _pick_parts(free: Sequence[GPU], busy: Sequence[int], count: int, policy: str) -> Sequence[GPU]:
    """Choose slots or MIG instances: of the emptiest GPU ("spread"), or of the fullest ("pack")."""
    taken = Counter(busy)
    fuller = 1 if policy == "spread" else -1
    order = sorted(
        free, key=lambda gpu: (fuller * taken[gpu.index] / gpu.parts, gpu.index, gpu.part or 0)
    )
    return order[:count]


def busy_indexes(gpus: Iterable[GPU]) -> list[int]:
    """Return the index of each unit in use, by a server or by a foreign program."""
    return [gpu.index for gpu in gpus if gpu.state in ("leased", "foreign")]


def check_policy_and_gpus(
    option: str, value: str, known: Mapping[str, object], gpus: Sequence[GPU]
) -> None:
    """Check a configured policy's name and that no two GPUs have the same UUID.

    Args:
        option: the option's name, for the error message.
        value: its value.
        known: the valid values are its keys.
        gpus: every GPU of every node.

    Raises:
        ValueError: the value isn't one of the known ones, or two GPUs have the same UUID.
    """
    if value not in known:
        raise ValueError(f"{option} must be one of {', '.join(known)}, got {value!r}")
    named = [gpu.id for gpu in gpus if gpu.uuid]
    if len(named) != len(set(named)):
        raise ValueError("two GPUs have the same UUID: nothing can be told apart")


def explain_shortage(request: Request, gpus: Sequence[GPU]) -> str:
    """Return a sentence that says why `choose` finds no GPUs for a request now.

    Args:
        request: the request that can't be granted.
        gpus: every GPU of every node.
    """
    fitting = [gpu for gpu in gpus if request.takes(gpu)]
    of_kind = [gpu for gpu in gpus if gpu.kind == request.kind]
    most = most_on_one_node(fitting)
    wanted = request_phrase(request)
    if len(fitting) < len(of_kind) and request.model is None:
        wanted = lazy_gettext("%(gpus)s of those you can have with your image", gpus=wanted)
    if most < request.gpus:
        if span_several_nodes(gpus):
            return lazy_gettext(
                "You asked for %(gpus)s, and no machine here has more than %(total)s.",
                gpus=wanted,
                total=most,
            )
        return lazy_gettext(
            "You asked for %(gpus)s, and this machine has %(total)s.", gpus=wanted, total=most
        )
    there = availability(fitting)
    return lazy_gettext("You asked for %(gpus)s, and %(there)s.", gpus=wanted, there=there)


def availability(gpus: Sequence[GPU]) -> str:
    """Return how many GPUs are free and why the others aren't: "1 of 4 is free now (3 in use)".

    For several nodes: how many are free on one of them, "at most 3 are free on one machine now".
    """
    free = sum(map(_is_free, gpus))
    if free and span_several_nodes(gpus):
        most = most_on_one_node(filter(_is_free, gpus))
        return lazy_ngettext(
            "at most %(num)s is free on one machine now",
            "at most %(num)s are free on one machine now",
            most,
        )
    counts = Counter(gpu.state for gpu in gpus if not _is_free(gpu))
    others = listed([_counted(state, number) for state, number in sorted(counts.items())])
    now = lazy_ngettext(
        "%(num)s of %(total)s is free now",
        "%(num)s of %(total)s are free now",
        free,
        total=len(gpus),
    )
    return lazy_gettext("%(now)s (%(others)s)", now=now, others=others) if others else now


def _counted(state: str, number: int) -> str:
    return lazy_gettext("%(number)s %(state)s", number=number, state=_STATE_PHRASES[state])


_STATE_PHRASES: dict[str, str] = {
    "leased": lazy_gettext("in use"),
    "foreign": lazy_gettext("in use outside the hub"),
    "mig": lazy_gettext("in MIG mode"),
    "unhealthy": lazy_gettext("out of order"),
    "excluded": lazy_gettext("kept out"),
    "unknown": lazy_gettext("in an unknown state"),
    "free": lazy_gettext("without a UUID"),
}


def pack(pool: Sequence[GPU], busy: Sequence[int], count: int) -> Sequence[GPU]:
    """Choose the shortest run of neighbouring GPUs that fits, so that long runs stay whole.

    On most boards, GPUs with neighbouring indexes share a PCIe switch or a bridge.
    """
    runs = [run for run in _runs(pool) if len(run) >= count]
    if runs:
        return min(runs, key=len)[:count]
    largest_first = sorted(_runs(pool), key=len, reverse=True)
    return sorted((gpu for run in largest_first for gpu in run), key=_rank(largest_first))[:count]


def spread(pool: Sequence[GPU], busy: Sequence[int], count: int) -> Sequence[GPU]:
    """Choose GPUs as far as possible, by index, from those in use and from each other.

    Neighbours share cooling and bandwidth, which matters for many small servers.
    """
    chosen: list[GPU] = []
    taken = list(busy)
    left = list(pool)
    while len(chosen) < count:
        farthest = max(
            left,
            key=lambda gpu: (min((abs(gpu.index - b) for b in taken), default=0), -gpu.index),
        )
        left.remove(farthest)
        chosen.append(farthest)
        taken.append(farthest.index)
    return sorted(chosen, key=lambda gpu: gpu.index)


POLICIES: dict[str, Policy] = {"pack": pack, "spread": spread}


def apply_leases(gpus: Iterable[GPU], leases: Iterable[Lease]) -> tuple[GPU, ...]:
    """Return the units with their holders and the ends of their leases filled in.

    A lease overrides what NVML reports: a leased GPU is "leased" even while a program computes on
    it. An unhealthy GPU keeps its state, since its holder has to read why it doesn't answer. A
    lease takes all units that nobody else can have beside it (`UnitName.excludes`): a GPU that was
    handed out whole, and is shared from now on, has no free slot until that lease ends.
    """
    there = tuple(gpus)
    return _apply(there, _by_unit(there, leases))


def with_leases(
    nodes: Sequence[Node], leases: Iterable[Lease], outsiders: Iterable[Outsider] = ()
) -> tuple[Node, ...]:
    """Return the nodes with the holder of each unit filled in, as `apply_leases` does.

    A GPU without a lease that an outsider was given is "foreign", used by it or not. If two nodes
    report the same UUID, neither GPU keeps it, and neither is handed out.
    """
    return LeasedNodes().of(nodes, leases, outsiders)


class LeasedNodes:
    """The nodes with their leases, read after read: of a node without a change the same object.

    On a cluster a decision changes one node, and whoever compares needn't look at the others.
    """

    def __init__(self) -> None:
        self._nodes: tuple[Node, ...] = ()
        self._duplicates: set[str] = set()
        self._outside: set[str] = set()
        # Of each of the nodes the leases of its units, and what was made of it.
        self._made: list[tuple[list[Lease | None], Node]] = []

    def of(
        self, nodes: Sequence[Node], leases: Iterable[Lease], outsiders: Iterable[Outsider] = ()
    ) -> tuple[Node, ...]:
        """Return what `with_leases` returns; arguments as there."""
        found = _by_unit([gpu for node in nodes for gpu in node.gpus], leases)
        outside = {uuid for outsider in outsiders for uuid in outsider.gpus}
        same = len(nodes) == len(self._nodes) and all(map(is_, nodes, self._nodes))
        duplicates = self._duplicates if same else _duplicate_uuids(nodes)
        if (outside, duplicates) != (self._outside, self._duplicates):
            self._nodes, self._made = (), []
        made = []
        for number, node in enumerate(nodes):
            held = [found.get(gpu.id) for gpu in node.gpus]
            if number < len(self._nodes) and self._nodes[number] is node:
                before, known = self._made[number]
                if before == held:
                    made.append((before, known))
                    continue
            gpus = _given_outside(_without_duplicate_uuids(node.gpus, duplicates), outside)
            made.append((held, node.with_gpus(_apply(gpus, found))))
        self._nodes, self._duplicates, self._outside = tuple(nodes), duplicates, outside
        self._made = made
        return tuple(node for _, node in made)


def _duplicate_uuids(nodes: Sequence[Node]) -> set[str]:
    """Return the UUIDs that several GPUs have. All slots of one GPU have the same."""
    places: dict[str, tuple[str, int]] = {}
    return {
        gpu.uuid
        for node in nodes
        for gpu in node.gpus
        if gpu.uuid
        and places.setdefault(gpu.uuid, (node.name, gpu.index)) != (node.name, gpu.index)
    }


def _without_duplicate_uuids(gpus: Sequence[GPU], duplicates: Collection[str]) -> Sequence[GPU]:
    if not duplicates:
        return gpus
    why = lazy_gettext("Another GPU has the same UUID.")
    return [
        replace(gpu, uuid=None, state="unknown", reason=why) if gpu.uuid in duplicates else gpu
        for gpu in gpus
    ]


GIVEN_OUTSIDE = lazy_gettext("A container outside the hub was given it.")


def _given_outside(gpus: Sequence[GPU], uuids: Collection[str]) -> Sequence[GPU]:
    if not uuids:
        return gpus
    return [
        replace(gpu, state="foreign", reason=GIVEN_OUTSIDE)
        if (gpu.uuid in uuids or gpu.parent in uuids) and gpu.state in ("free", "foreign")
        else gpu
        for gpu in gpus
    ]


def _apply(gpus: Sequence[GPU], leases: Mapping[str | None, Lease]) -> tuple[GPU, ...]:
    applied = tuple(
        gpu if (lease := leases.get(gpu.id)) is None else _lease(gpu, lease) for gpu in gpus
    )
    shared = {gpu.uuid for gpu in applied if gpu.kind == SHARED and gpu.holder}
    return (
        tuple(_beside_holders(gpu) if gpu.uuid in shared else gpu for gpu in applied)
        if (shared)
        else applied
    )


def _beside_holders(gpu: GPU) -> GPU:
    """Return a slot of a GPU of which others are leased: what computes there may be theirs."""
    if gpu.state == "foreign" and gpu.reason != GIVEN_OUTSIDE:
        return replace(gpu, state="free", reason="")
    return gpu


def _by_unit(gpus: Sequence[GPU], leases: Iterable[Lease]) -> dict[str | None, Lease]:
    """Return unit -> lease. If two leases exclude it, the one that ends later counts."""
    found: dict[str | None, Lease] = {}
    every = list(leases)
    for lease in every:
        for name in lease.gpus:
            if name not in found or _end(lease) >= _end(found[name]):
                found[name] = lease
    split = any(gpu.kind != WHOLE for gpu in gpus)
    if split or any("#" in name or name.startswith("MIG-") for name in found if name):
        found |= _by_part(gpus, [(parse(name), lease) for lease in every for name in lease.gpus])
    return found


def _by_part(
    gpus: Sequence[GPU], held: Sequence[tuple[UnitName, Lease]]
) -> dict[str | None, Lease]:
    """Return unit -> lease where GPUs are shared, partitioned, or were when they were leased."""
    # An instance of which nobody wrote down the GPU.
    parents = {gpu.uuid: gpu.parent for gpu in gpus if gpu.parent}
    on_gpu: dict[str | None, list[GPU]] = {}
    for gpu in gpus:
        on_gpu.setdefault(gpu.gpu_uuid, []).append(gpu)
    found: dict[str | None, Lease] = {}
    for name, lease in sorted(held, key=lambda each: _end(each[1])):
        for gpu in on_gpu.get(parents.get(name.uuid, name.gpu), ()):
            if gpu.name is not None and gpu.name.excludes(name):
                found[gpu.id] = lease
    return found


def _end(lease: Lease) -> float:
    return inf if lease.until is None else lease.until


def offered_nodes(
    nodes: Sequence[Node],
    models: frozenset[str] | None = None,
    kinds: frozenset[str] | None = None,
) -> tuple[Node, ...]:
    """Return the nodes with only those units that may be handed out, now or later.

    Args:
        nodes: the nodes with all their units.
        models: the GPU models that the user may have; None: all.
        kinds: the kinds of units that the user may have; None: all.
    """
    # Nobody waits for an excluded GPU, or for the whole of one in MIG mode.
    return tuple(
        replace(
            node,
            gpus=tuple(
                gpu
                for gpu in node.gpus
                if gpu.state not in ("excluded", "mig")
                and gpu.kind != NAMELESS
                and (models is None or gpu.model in models)
                and (kinds is None or gpu.kind in kinds)
            ),
        )
        for node in nodes
    )


def model_counts(gpus: Iterable[GPU]) -> dict[str, tuple[int, int]]:
    """Return model -> (number of free GPUs, number of GPUs), in the order of the GPUs."""
    counts: dict[str, tuple[int, int]] = {}
    for gpu in gpus:
        free, total = counts.get(gpu.model, (0, 0))
        counts[gpu.model] = (free + _is_free(gpu), total + 1)
    return counts


def kind_shares(gpus: Iterable[GPU]) -> dict[str, Share]:
    """Return kind -> how much of a GPU such a unit is at most, from the smallest to whole GPUs."""
    shares: dict[str, Share] = {}
    for gpu in gpus:
        shares[gpu.kind] = max(shares.get(gpu.kind, 0), gpu.share)
    # Limits may count each unit as one: whole GPUs come last even so.
    order = sorted(shares, key=lambda kind: (kind == WHOLE, kind != SHARED, shares[kind], kind))
    return {kind: shares[kind] for kind in order}


TAKEN_REASON = lazy_gettext("taken")


def _has(gpu: GPU, lease: Lease) -> bool:
    """Return whether a lease has been applied to a unit."""
    return (
        (gpu.holder is lease.holder or gpu.holder == lease.holder)
        and gpu.until == lease.until
        and gpu.overdue == lease.overdue
        and gpu.state not in ("free", "foreign")
    )


def _lease(gpu: GPU, lease: Lease) -> GPU:
    if gpu.holder is not None and _has(gpu, lease):
        return gpu
    # Does what `dataclasses.replace` does, several times as fast: every read of the ledger does
    # this for every leased GPU.
    leased = object.__new__(GPU)
    values = leased.__dict__
    values |= gpu.__dict__
    values["holder"], values["until"] = lease.holder, lease.until
    values["overdue"] = lease.overdue
    if gpu.state in ("free", "foreign"):
        values["state"], values["reason"] = "leased", TAKEN_REASON
    return leased


def _is_free(gpu: GPU) -> bool:
    return gpu.state == "free" and bool(gpu.uuid)


def by_model(gpus: Iterable[GPU]) -> list[list[GPU]]:
    """Return the GPUs grouped by model, models in the order of their first GPU."""
    pools: dict[str, list[GPU]] = {}
    for gpu in gpus:
        pools.setdefault(gpu.model, []).append(gpu)
    return list(pools.values())


def by_node(gpus: Iterable[GPU]) -> dict[str, list[GPU]]:
    """Return node name -> its GPUs, sorted by name and by index."""
    nodes: dict[str, list[GPU]] = {}
    for gpu in sorted(gpus, key=lambda gpu: (gpu.node, gpu.index)):
        nodes.setdefault(gpu.node, []).append(gpu)
    return nodes


def span_several_nodes(gpus: Iterable[GPU]) -> bool:
    """Return whether the GPUs are on more than one node, so that messages have to name nodes."""
    return len({gpu.node for gpu in gpus}) > 1


def most_on_one_node(gpus: Iterable[GPU]) -> int:
    """Return the number of these GPUs on the node that has the most of them; 0 for no GPUs."""
    return max(Counter(gpu.node for gpu in gpus).values(), default=0)


def nodes_with(count: int, gpus: Iterable[GPU]) -> set[str]:
    """Return the names of the nodes that have at least so many of these GPUs."""
    return {name for name, number in Counter(gpu.node for gpu in gpus).items() if number >= count}


def _runs(gpus: Sequence[GPU]) -> list[list[GPU]]:
    """Split GPUs sorted by index into runs of GPUs with consecutive indexes."""
    runs: list[list[GPU]] = []
    for gpu in gpus:
        if runs and runs[-1][-1].index + 1 == gpu.index:
            runs[-1].append(gpu)
        else:
            runs.append([gpu])
    return runs


def _rank(runs: Sequence[Sequence[GPU]]) -> Callable[[GPU], tuple[int, int]]:
    place = {gpu.index: number for number, run in enumerate(runs) for gpu in run}
    return lambda gpu: (place[gpu.index], gpu.index)


def request_phrase(request: Request) -> str:
    """Return what a request asks for: "2 GPUs", "1 shared GPU", "1 MIG instance 1g.10gb"."""
    return gpu_count_phrase(request.gpus, request.model, request.kind)


def units_phrase(gpus: Sequence[GPU]) -> str:
    """Return what these units are: "2 GPUs", "1 shared GPU"."""
    return gpu_count_phrase(len(gpus), kind=gpus[0].kind if gpus else WHOLE)


def names_phrase(names: Collection[str]) -> str:
    """Return what units are, by their names alone: "2 GPUs", "1 shared GPU"."""
    said = [parse(name) for name in names]
    kinds = {each.profile or (WHOLE if each.slot is None else SHARED) for each in said}
    return gpu_count_phrase(len(said), kind=kinds.pop() if len(kinds) == 1 else WHOLE)


def gpu_count_phrase(number: int, model: str | None = None, kind: str = WHOLE) -> str:
    """Return "2 GPUs", or "2 NVIDIA A100 GPUs" if a model is given, with the kind of the units."""
    if kind == SHARED and model:
        return lazy_ngettext(
            "%(num)s shared %(model)s GPU", "%(num)s shared %(model)s GPUs", number, model=model
        )
    if kind == SHARED:
        return lazy_ngettext("%(num)s shared GPU", "%(num)s shared GPUs", number)
    if kind != WHOLE and model:
        return lazy_ngettext(
            "%(num)s %(profile)s instance of %(model)s",
            "%(num)s %(profile)s instances of %(model)s",
            number,
            profile=kind,
            model=model,
        )
    if kind != WHOLE:
        return lazy_ngettext(
            "%(num)s %(profile)s instance", "%(num)s %(profile)s instances", number, profile=kind
        )
    if model:
        return lazy_ngettext("%(num)s %(model)s GPU", "%(num)s %(model)s GPUs", number, model=model)
    return lazy_ngettext("%(num)s GPU", "%(num)s GPUs", number)


def reserved_phrase(gpus: int, model: str | None, kind: str, slots: int) -> str:
    """Return what hours reserve: "2 GPUs", or "4 GPUs, 15 slots each: 60 seats".

    Args:
        gpus: how many units.
        model: their GPU model; None: any.
        kind: their kind.
        slots: into how many slots each is divided; 0: they are whole.
    """
    units = gpu_count_phrase(gpus, model, kind)
    if not slots:
        return units
    return lazy_ngettext(
        "%(units)s, %(slots)s slots: %(seats)s seats",
        "%(units)s, %(slots)s slots each: %(seats)s seats",
        gpus,
        units=units,
        slots=slots,
        seats=gpus * slots,
    )
