"""`gpuspawner image spread` and `push`: images that were built here, for a hub's other machines."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import docker.errors

from ..backends.docker.pull import explain_push_failure, size_of, split
from ..errors import GPUSpawnerError
from ..images.catalogue import is_reference
from ..nodes.addresses import NodeAddress, read_addresses
from ..nodes.client import NodesReader
from ..nodes.exchange import NodeError
from ..nodes.identity import IDENTITY_FILE, load
from .engine import engine, image
from .recipe import BuildingError, recipes

# The most of an archive that is sent at once, in bytes.
PART_BYTES = 2**20
STEP_PERCENT = 10


@dataclass(frozen=True)
class Spread:
    """An image that is to be on the nodes.

    Args:
        name: as people call it.
        id: the engine's id of it.
        size: in bytes.
    """

    name: str
    id: str
    size: int


def spread(arguments: argparse.Namespace) -> int:
    """Send images to the nodes that lack them; return 1 if a node hasn't got one afterwards."""
    try:
        known = read_addresses(arguments.hub_folder)
        chosen = _chosen(known, arguments.node)
        identity = load(arguments.hub_folder / IDENTITY_FILE)
    except GPUSpawnerError as error:
        raise BuildingError(str(error)) from None
    with engine() as client:
        images = list(_images(client, arguments.keys, arguments.folder))
        reader = NodesReader(chosen, identity, log=_Quiet())
        failed = asyncio.run(_spread(client, reader, [each.name for each in chosen], images))
    return int(failed > 0)


def _chosen(known: Sequence[NodeAddress], names: Sequence[str]) -> Sequence[NodeAddress]:
    if not known:
        raise BuildingError("no machine was invited yet: gpuspawner node invite")
    by_name = {each.name: each for each in known}
    for name in names:
        if name not in by_name:
            there = ", ".join(by_name)
            raise BuildingError(f"the hub knows no machine {name!r}; there are: {there}")
    return [by_name[name] for name in dict.fromkeys(names)] if names else known


def _images(
    client: docker.DockerClient, names: Sequence[str], folder: Path | None
) -> Iterator[Spread]:
    """Yield the images of keys or references; without any, those of the catalogue that are here."""
    catalogue = {each.key: each.version.image for each in recipes(folder).values()}
    for name in dict.fromkeys(names or catalogue):
        reference = catalogue.get(name, name)
        found = image(client, reference) if is_reference(reference) else None
        if found is not None:
            yield Spread(reference, str(found.id), int(found.attrs["Size"]) or 1)
        elif names:
            raise BuildingError(
                f"{reference} isn't on this machine's Docker Engine: build or pull it first"
            )


async def _spread(
    client: docker.DockerClient, reader: NodesReader, nodes: Sequence[str], images: Sequence[Spread]
) -> int:
    """Return on how many nodes something is missing."""
    if not images:
        raise BuildingError("no image of the catalogue is on this machine's Docker Engine")
    failed = 0
    for node in nodes:
        try:
            for each in images:
                await _send(client, reader, node, each)
        except NodeError as error:
            failed += 1
            _tell(f"! {node}: {error.technical}")
    return failed


async def _send(client: docker.DockerClient, reader: NodesReader, node: str, what: Spread) -> None:
    found = await reader.images(node, [what.id])
    if found[what.id] is not None:
        print(f"{node}: {what.name} is there", flush=True)
        return
    archive = await asyncio.to_thread(client.api.get_image, what.id, PART_BYTES)
    parts = _parts(archive, _progress(node, what))
    await reader.load(node, what.id, what.size, parts)
    print(f"{node}: {what.name} was sent, {size_of(what.size)}", flush=True)


async def _parts(archive: Iterable[bytes], report: Callable[[int], None]) -> AsyncIterator[bytes]:
    parts = iter(archive)
    while part := await asyncio.to_thread(next, parts, b""):
        report(len(part))
        yield part


def _progress(node: str, what: Spread) -> Callable[[int], None]:
    done, told = 0, -1

    def report(more: int) -> None:
        nonlocal done, told
        done += more
        step = min(100, 100 * done // what.size) // STEP_PERCENT
        if step > told:
            told = step
            _tell(f"  {node}: {what.name}: {size_of(done)} of about {size_of(what.size)}")

    return report


def built_here() -> Sequence[Spread]:
    """Return the images of the catalogue that are on this machine; () if no engine answers."""
    with suppress(BuildingError), engine() as client:
        return tuple(_images(client, (), None))
    return ()


async def words_of(reader: NodesReader, node: str, images: Sequence[Spread]) -> str:
    """Return how many of some images a node has, and which are missing; "" if there are none.

    Args:
        reader: asks the nodes.
        node: the node's name.
        images: those that are on this machine.
    """
    if not images:
        return ""
    try:
        found = await reader.images(node, [each.id for each in images])
    except NodeError as error:
        return f"its images aren't known: {error.technical}"
    missing = [each.name for each in images if found[each.id] is None]
    there = f"{len(images) - len(missing)} of {len(images)} images that are built here"
    return f"{there}, without {', '.join(missing)}: gpuspawner image spread" if missing else there


def push(arguments: argparse.Namespace) -> int:
    """Push images into a registry, and print how a configuration names each, by its digest."""
    with engine() as client:
        catalogue = {each.key: each.version.image for each in recipes(arguments.folder).values()}
        for name in dict.fromkeys(arguments.keys):
            reference = catalogue.get(name, name)
            found = image(client, reference) if is_reference(reference) else None
            if found is None:
                raise BuildingError(
                    f"{reference} isn't on this machine's Docker Engine: build or pull it first"
                )
            print(_push(client, found, reference, arguments.registry))
    return 0


def _push(client: docker.DockerClient, found: Any, reference: str, registry: str) -> str:
    """Push an image; return its name with the digest."""
    repository, tag = split(reference)
    first, _, rest = repository.partition("/")
    # The name in its own registry, without that: "reg:5000/lab" is "lab".
    name = rest if rest and ("." in first or ":" in first) else repository
    target = f"{registry.rstrip('/')}/{name}"
    tag = tag if ":" not in tag else "latest"
    if not is_reference(f"{target}:{tag}"):
        raise BuildingError(f"{target}:{tag} is no name for an image")
    found.tag(target, tag)
    _tell(f"{reference}: pushing {target}:{tag}")
    digest = ""
    for event in client.api.push(target, tag=tag, stream=True, decode=True):
        if "error" in event:
            raise BuildingError(explain_push_failure(f"{target}:{tag}", str(event["error"])))
        digest = str((event.get("aux") or {}).get("Digest") or digest)
        if event.get("status") == "Pushed":
            _tell(f"  layer {event.get('id', '')} is there")
    if not digest:
        raise BuildingError(f"the registry says no digest of {target}:{tag}")
    return f"{target}@{digest}"


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


class _Quiet:
    """A log for a command that says itself what is wrong."""

    def warning(self, *words: object) -> None:
        """Say nothing."""

    info = exception = warning
