"""Traits of spawners whose servers are containers that no service can carry, with the reasons.

For administrators, in the hub's log, at its start: what can't be had isn't left out silently.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from docker.errors import DockerException
from docker.types import HostConfig

from ...courses.reading import read_courses
from ...nodes.invited import problem_of
from ..docker.checked_client import REFUSALS
from .service_spec import VOLUME, NotForServices, service_spec

# That of the oldest engine, 25.0. ref: https://docs.docker.com/reference/api/engine/#api-version-matrix
API_VERSION = "1.44"
# Networks that are an engine's own.
OWN_NETWORKS = frozenset({"", "bridge", "host", "none", "default"})

# Trait -> its value that a service can carry, and why no other.
ONLY: Mapping[str, tuple[Any, str]] = {
    "allowed_devices": ([], "Swarm gives a service no devices"),
    "deleted_user_volumes": ("keep", "volumes are on the nodes, where the hub doesn't reach them"),
    "earlier_home_volumes": ({}, "volumes are on the nodes, where the hub doesn't see which exist"),
    "gpu_injection": ("auto", "each node's default runtime gives a service its GPUs"),
    "home_size": (None, "volumes are on the nodes, where the hub doesn't see how full they are"),
    "internal_ssl": (False, "its certificates would have to be on every node"),
    "links": ({}, "Swarm has no links: servers see each other on their network"),
    "post_start_cmd": ("", "a manager can't run a command in a container of another node"),
    "remove": (True, "Swarm keeps no service that has stopped"),
    "use_internal_ip": (True, "a server is reached on the network of hub and servers"),
}


def refused(spawner: Any) -> Iterator[str]:
    """Yield a sentence for each trait of a spawner that no service can carry.

    Args:
        spawner: a `GPUSwarmSpawner`; values that are functions are looked at when a server starts.
    """
    section = f"c.{type(spawner).__name__}"
    for name, (value, reason) in ONLY.items():
        given = getattr(spawner, name)
        if given != value and not (not given and not value):
            whose = "c.JupyterHub" if name == "internal_ssl" else section
            yield f"{whose}.{name} = {given!r} can't be had on Docker Swarm: {reason}."
    if spawner.network_name in OWN_NETWORKS:
        yield (
            f"{section}.network_name = {spawner.network_name!r} can't be had on Docker Swarm: name "
            "an overlay network, made with docker network create --driver overlay --attachable, "
            "which the hub's own container is on as well."
        )
    courses = read_courses(spawner.courses, "courses").courses.values()
    for key, where in ((each.key, where) for each in courses for where in each.hours_as_slots()):
        yield (
            f"{section}.courses: {key!r} {where} with slots can't be had on Docker Swarm: a node "
            "offers each GPU whole or as slots for good. Reserve whole GPUs, or the kind 'shared'."
        )
    if problem := problem_of(Path(spawner.nodes_folder)):
        yield f"{section}.nodes_folder = {spawner.nodes_folder!r}: {problem}"
    options = spawner.volume_driver_options
    if options and not spawner.volume_driver:
        yield (
            f"{section}.volume_driver_options = {options!r} would be ignored while "
            f'{section}.volume_driver is empty: set that, to "local" for the engine\'s own.'
        )
    if VOLUME not in options.get("device", VOLUME):
        yield (
            f"{section}.volume_driver_options = {options!r}: all volumes would be one folder, and "
            f"each user would have the others' files. Write {VOLUME} into its device."
        )
    for name, as_argument in (("extra_host_config", True), ("extra_create_kwargs", False)):
        given = getattr(spawner, name)
        if isinstance(given, Mapping) and (words := _problem(given, as_argument)):
            yield f"{section}.{name}: {words}."


def _problem(given: Mapping[str, Any], as_host_config: bool) -> str:
    try:
        create = dict(given)
        if as_host_config:
            create = {"host_config": HostConfig(version=API_VERSION, **given)}
        service_spec(
            create, name="", labels={}, uuids=[], kinds={}, node_id="", network="", shm_size=None
        )
    except NotForServices as error:
        return str(error)
    except (*REFUSALS, DockerException) as error:
        return f"{type(error).__name__}: {error}"
    return ""
