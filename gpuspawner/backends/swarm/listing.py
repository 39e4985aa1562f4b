"""The ledger of a Swarm, read from its services and their tasks.

A GPU is held if a service with a lease names it and has a task that may run, or is about to; and if
any task that may run reserves it: a service that is removed vanishes at once, while its container
still stops.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ...gpus.device_ids import ALL
from ...gpus.unit_names import parse
from ...leases.clock import Clock, Deadline
from ...leases.labels import LABEL_GPUS, MAX_LABEL, MAX_NAME, ServerRecord, ServerState
from ...nodes.reports import NodeContainer
from ...nodes.resources import is_kind, kind_of
from ...untrusted import bounded, parse_json
from ..docker.container_config import VISIBLE_DEVICES
from .tasks import Task, is_terminal, seconds_of

Service = Mapping[str, Any]

# The node of a server, by its name.
LABEL_NODE = "gpuspawner.node"
# The end to which a lease was extended, as `Deadline.saved` returns it.
LABEL_END = "gpuspawner.extended.end"
# The latest end, in seconds since the epoch: later would be a year that `datetime` doesn't know.
MAX_SECONDS = 1e11
# What the id of a server begins with whose service is gone, and whose task isn't.
TASK = "task:"
# What NVIDIA's toolkit takes for "no GPU".
NONE = frozenset({"", "void", "none"})


@dataclass(frozen=True)
class Listed:
    """What a Swarm lists.

    Args:
        servers: what has a lease's labels, and what else has GPUs.
        tasks: service id -> its tasks.
        services: service id -> the services with a lease.
        ends: server id -> the end of its lease, of those that were extended.
    """

    servers: list[ServerRecord]
    tasks: Mapping[str, list[Task]] = field(default_factory=dict)
    services: Mapping[str, Service] = field(default_factory=dict)
    ends: Mapping[str, Deadline] = field(default_factory=dict)


def read(
    services: Iterable[Service], tasks: Iterable[Task], of_node: Mapping[str, Iterable[str]]
) -> Listed:
    """Return the servers of a Swarm.

    Args:
        services: all of them, as the engine lists them after the tasks.
        tasks: all of them, as the engine lists them.
        of_node: node id -> the kinds of GPUs that it offers.
    """
    by_service: dict[str, list[Task]] = {}
    for task in tasks:
        by_service.setdefault(str(task.get("ServiceID") or ""), []).append(task)
    there = {str(each.get("ID") or ""): each for each in services}
    servers, leased = [], {}
    for service_id, service in there.items():
        own = by_service.get(service_id, [])
        labels = labels_of(service)
        if LABEL_GPUS in labels:
            leased[service_id] = service
            servers.append(_record(service, own))
        servers += _outsiders(service_id, _name_of(service), labels, own, of_node)
    for service_id, own in by_service.items():
        if service_id not in there:
            servers += _of_gone_service(service_id, own, of_node)
    ends = {name: end for name, each in leased.items() if (end := end_of(each, Clock()))}
    return Listed(servers, by_service, leased, ends)


def labels_of(service: Service) -> Mapping[str, str]:
    """Return the labels of a service."""
    return dict((service.get("Spec") or {}).get("Labels") or {})


def replicas_of(service: Service) -> int:
    """Return how many tasks a service is to have; 1 where that isn't a number."""
    mode = (service.get("Spec") or {}).get("Mode") or {}
    replicas = (mode.get("Replicated") or {}).get("Replicas")
    return replicas if isinstance(replicas, int) else 1


def server_state(service: Service, tasks: Iterable[Task]) -> ServerState:
    """Return the state of a service with a lease: "created" until it is to have a task."""
    own = list(tasks)
    if not all(map(is_terminal, own)):
        return "running"
    if own:
        return "ended"
    return "running" if replicas_of(service) else "created"


def end_of(service: Service, clock: Clock) -> Deadline | None:
    """Return the end to which a service's lease was extended; None if it wasn't."""
    text = labels_of(service).get(LABEL_END)
    if not text:
        return None
    with suppress(KeyError, TypeError, ValueError, OverflowError):  # written by hand
        end = Deadline.restored(parse_json(bounded(text, MAX_LABEL)), clock)
        if 0 <= end.until < MAX_SECONDS:
            return end
    return None


def as_label(end: Deadline) -> str:
    """Return what `end_of` reads."""
    return json.dumps(end.saved())


def _record(service: Service, tasks: Iterable[Task]) -> ServerRecord:
    return ServerRecord(
        str(service.get("ID") or ""),
        labels_of(service),
        server_state(service, tasks),
        seconds_of(service.get("CreatedAt")) or 0.0,
        _name_of(service),
    )


def _name_of(service: Service) -> str:
    name = (service.get("Spec") or {}).get("Name") or service.get("ID") or ""
    return bounded(str(name), MAX_NAME)


def _outsiders(
    server_id: str,
    name: str,
    labels: Mapping[str, str],
    tasks: Iterable[Task],
    of_node: Mapping[str, Iterable[str]],
) -> Iterator[ServerRecord]:
    """Yield what tasks have of GPUs beyond the lease in these labels."""
    names = {each for task in tasks if not is_terminal(task) for each in gpu_names(task, of_node)}
    leased = {kind_of(parse(unit).uuid) for unit in _units(labels)}
    if beyond := frozenset(each for each in names if kind_of(each) not in leased):
        yield ServerRecord(f"{server_id}+", {}, "running", 0.0, name, beyond)


def _units(labels: Mapping[str, str]) -> list[str]:
    text = bounded(labels.get(LABEL_GPUS, ""), MAX_LABEL)
    return [each.strip() for each in text.split(",") if each.strip()]


def _of_gone_service(
    service_id: str, tasks: Iterable[Task], of_node: Mapping[str, Iterable[str]]
) -> Iterator[ServerRecord]:
    """Yield the servers of tasks whose service is gone, by what their containers are labelled."""
    for task in tasks:
        if is_terminal(task):
            continue
        server_id, container = f"{TASK}{task.get('ID')}", _container_of(task)
        labels = {str(key): str(value) for key, value in (container.get("Labels") or {}).items()}
        if LABEL_GPUS not in labels:
            labels = {}
        else:
            made = seconds_of(task.get("CreatedAt")) or 0.0
            yield ServerRecord(server_id, labels, "running", made, service_id)
        yield from _outsiders(server_id, service_id, labels, [task], of_node)


def beside_tasks(
    containers: Iterable[tuple[str, NodeContainer]], tasks: Iterable[Task]
) -> Iterator[ServerRecord]:
    """Yield what runs on nodes with GPUs and is no task that may run.

    Somebody has made it by hand, or a machine that was away hasn't ended it yet.

    Args:
        containers: what the nodes' daemons have told, each with its node.
        tasks: all of them, from a listing that began after that.
    """
    alive = {str(task.get("ID")) for task in tasks if not is_terminal(task)}
    for node, each in containers:
        if each.gpus and each.task not in alive:
            name = bounded(f"{each.name} ({node})", MAX_NAME)
            yield ServerRecord(f"{node}:{each.name}", {}, "running", 0.0, name, each.gpus)


def _container_of(task: Task) -> Mapping[str, Any]:
    return dict((task.get("Spec") or {}).get("ContainerSpec") or {})


def gpu_names(task: Task, of_node: Mapping[str, Iterable[str]]) -> frozenset[str]:
    """Return the GPUs that a task has, or may have: those that it reserves, and its variable's.

    The variable counts wherever the node's default runtime is NVIDIA's, which it is on nodes with
    GPUs.

    Args:
        task: the task.
        of_node: node id -> the kinds of GPUs that it offers.

    Returns:
        Names for `gpus.device_ids.gpus_named`: UUIDs in lower case, or `ALL` where a node is
        unknown.
    """
    found = set(reserved_kinds(task))
    for line in _container_of(task).get("Env") or []:
        name, _, value = str(line).partition("=")
        if name == VISIBLE_DEVICES:
            for word in (each.strip().lower() for each in value.split(",")):
                if is_kind(word):
                    found.add(word)
                elif word not in NONE:
                    # By number, or all of them: which those are, the node knows.
                    found |= set(of_node.get(str(task.get("NodeID") or ""), [ALL]))
    return frozenset(found)


def reserved_kinds(task: Task) -> list[str]:
    """Return the kinds of GPUs that a task reserves."""
    resources = (task.get("Spec") or {}).get("Resources") or {}
    wanted = (resources.get("Reservations") or {}).get("GenericResources") or []
    specs = [
        (each.get("DiscreteResourceSpec") or each.get("NamedResourceSpec") or {}) for each in wanted
    ]
    kinds = (str(spec.get("Kind") or "").lower() for spec in specs)
    return [kind for kind in kinds if is_kind(kind)]
