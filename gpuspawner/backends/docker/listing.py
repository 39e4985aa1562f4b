"""The listing of an engine's containers: servers with a lease, and others that have GPUs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import docker.errors

from ...gpus.device_ids import ALL
from ...gpus.missing_driver import own_container_id
from ...leases.labels import LABEL_GPUS, LABEL_HUB, MAX_NAME, ServerRecord, ServerState
from ...untrusted import bounded
from .container_config import VISIBLE_DEVICES
from .device_requests import (
    CDI_ANNOTATION,
    DEVICE_FILE,
    DEVICE_RULE,
    GPU_NAME,
    asks_for_gpus,
)

# What the names of a lease's labels begin with.
OUR_LABELS = "gpuspawner."
# Whoever is in another state may run, now or in a moment.
# ref: StateString in moby's container/state.go
ENDED_STATES = frozenset({"exited", "dead", "removing"})
# In these the variable does nothing. Any other may be NVIDIA's, whatever it is called.
PLAIN_RUNTIMES = frozenset({"", "runc", "crun", "io.containerd.runc.v2"})
# Of how many images the labels are remembered, beyond those that containers have.
MAX_IMAGES = 100
# What the toolkit takes for "no GPU".
NONE = frozenset({"", "void", "none"})


class Listed(NamedTuple):
    """What an engine lists.

    Args:
        servers: what has a lease's labels, and what else has GPUs.
        ids, names: of all containers that there are.
    """

    servers: list[ServerRecord]
    ids: frozenset[str]
    names: frozenset[str]


class Listing:
    """Lists an engine's containers; blocks.

    The engine's list doesn't say what a container was given, so each that has no lease is inspected
    once: that never changes. The container that this process is in, without a lease, is left out: a
    hub in it only watches its GPUs.
    """

    def __init__(self) -> None:
        self._gpu_names: dict[str, frozenset[str]] = {}
        # Image id -> its labels, of images that containers with a hub's label have or had: the id
        # is a digest of them, too. None: there was no such image.
        self._image_labels: dict[str, Mapping[str, str] | None] = {}
        self._own = own_container_id()

    def __call__(self, client: Any) -> list[ServerRecord]:
        """Return every server with a lease's labels, ended ones too, and what else has GPUs.

        Args:
            client: a `docker.APIClient`.

        Raises:
            docker.errors.APIError: the engine can't tell.
        """
        return self.list(client).servers

    def list(self, client: Any) -> Listed:
        """Return the same with what all containers are called."""
        servers, known = [], {}
        entries = client.containers(all=True)
        self._forget_images({each.get("ImageID") for each in entries})
        for entry in map(partial(self._with_own_labels, client), entries):
            if LABEL_GPUS in (entry.get("Labels") or {}):
                servers.append(server_record(entry))
            elif entry.get("State") in ENDED_STATES | {"created"} or entry["Id"] == self._own:
                continue
            else:
                with suppress(docker.errors.NotFound):  # gone meanwhile
                    names = self._names(client, entry["Id"])
                    known[entry["Id"]] = names
                    if names:
                        servers.append(server_record(entry, names))
        self._gpu_names = known
        ids = frozenset(each["Id"] for each in entries)
        names = frozenset(name for each in entries for name in names_of(each))
        return Listed(servers, ids, names)

    def _with_own_labels(self, client: Any, entry: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return an entry without the lease that its container has of its image.

        `docker commit` of a server makes an image with the server's labels, and so has whatever
        somebody starts of that by hand.
        """
        found = entry.get("Labels") or {}
        if LABEL_HUB not in found:
            return entry
        image = entry.get("ImageID") or ""
        if image not in self._image_labels:
            self._image_labels[image] = None
            with suppress(docker.errors.NotFound):  # gone, or the container is
                about = client.inspect_image(image)
                self._image_labels[image] = (about.get("Config") or {}).get("Labels") or {}
        ours = {name: value for name, value in found.items() if name.startswith(OUR_LABELS)}
        if not ours.items() <= (self._image_labels[image] or {}).items():
            return entry
        return {**entry, "Labels": {k: v for k, v in found.items() if k not in ours}}

    def _forget_images(self, used: Collection[str | None]) -> None:
        """Forget which images there weren't, and the rest if it becomes much, but for the used."""
        few = len(self._image_labels) <= MAX_IMAGES
        self._image_labels = {
            image: labels
            for image, labels in self._image_labels.items()
            if image in used or (few and labels is not None)
        }

    def _names(self, client: Any, container_id: str) -> frozenset[str]:
        if container_id in self._gpu_names:
            return self._gpu_names[container_id]
        return gpu_names(client.inspect_container(container_id))


def server_record(
    entry: Mapping[str, Any], gpu_names: frozenset[str] = frozenset()
) -> ServerRecord:
    """Convert an entry of the engine's list of containers to a record.

    Args:
        gpu_names: the GPUs that it was given without a lease.
    """
    state: ServerState = "running"
    if entry.get("State") == "created":
        state = "created"
    elif entry.get("State") in ENDED_STATES:
        state = "ended"
    names = names_of(entry)
    return ServerRecord(
        entry.get("Id", ""),
        entry.get("Labels") or {},
        state,
        entry.get("Created") or 0.0,
        bounded(names[0] if names else entry.get("Id", "")[:12], MAX_NAME),
        gpu_names,
    )


def names_of(entry: Mapping[str, Any]) -> list[str]:
    """Return the names of a container in an entry of the engine's list: one, or none for a while.

    A link to it is a name of it too, with one more "/".
    """
    return [str(name)[1:] for name in entry.get("Names") or [] if "/" not in str(name)[1:]]


def gpu_names(container: Mapping[str, Any]) -> frozenset[str]:
    """Return the GPUs that a container was given, or may have been, from an inspection of it.

    By a device request, by NVIDIA's runtime and its variable, by device files, or with all that the
    host has. A privileged container counts where its variable asks for GPUs: others are privileged
    for another reason, and count as soon as they use one.

    Returns:
        Names for `gpus.device_ids.gpus_named`; what isn't understood is `ALL`.
    """
    try:
        return frozenset(_names(container))
    except (AttributeError, KeyError, TypeError, ValueError):  # of a shape that no engine makes
        return frozenset({ALL})


def _names(container: Mapping[str, Any]) -> Iterator[str]:
    config, host = container.get("Config") or {}, container.get("HostConfig") or {}
    requested = [each for each in host.get("DeviceRequests") or [] if asks_for_gpus(each)]
    for request in requested:
        yield from _requested(request)
    variables = dict(line.partition("=")[::2] for line in config.get("Env") or [])
    wanted = [each.strip() for each in variables.get(VISIBLE_DEVICES, "").split(",")]
    is_plain = (host.get("Runtime") or "") in PLAIN_RUNTIMES and not host.get("Privileged")
    # The engine writes a request into the variable itself, in place of what was there.
    if not requested and not is_plain:
        yield from (_bare(name) for name in wanted if name.lower() not in NONE)
    if not is_plain:
        for name, value in (host.get("Annotations") or {}).items():
            if CDI_ANNOTATION.match(name):
                yield from (_bare(each) for each in value.split(",") if GPU_NAME.match(each))
    for device in host.get("Devices") or []:
        if DEVICE_FILE.fullmatch(device.get("PathOnHost") or ""):
            yield ALL
    for rule in host.get("DeviceCgroupRules") or []:
        if DEVICE_RULE.fullmatch(rule):
            yield ALL


def _requested(request: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names in a device request.

    With a count the engine gives the first so many by index.
    ref: countToDevices in moby's daemon/nvidia_linux.go
    """
    count = request.get("Count") or 0
    if count < 0 or count > 1000:
        yield ALL
    yield from map(str, range(count if count <= 1000 else 0))
    for name in request.get("DeviceIDs") or []:
        # A request may name other devices as well.
        if "=" not in name or GPU_NAME.match(name):
            yield _bare(name)


def _bare(name: str) -> str:
    """Return a name without CDI's words before it: "0" of "nvidia.com/gpu=0"."""
    return name.rpartition("=")[2]
