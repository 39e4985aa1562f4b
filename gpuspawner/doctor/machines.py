"""Checks of the other machines of a hub, as their daemons answer it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module

from ..errors import GPUSpawnerError
from ..nodes.addresses import AddressError, hub_folder, read_addresses
from ..nodes.identity import IDENTITY_FILE, load
from .findings import Context, Finding

# Loaded where there are such machines: it needs tornado, and the others' first line comes sooner.
EXAMINATION = "gpuspawner.nodes.examination"


def machines(context: Context) -> Iterator[Finding]:
    """Check the machines that the hub knows, if it knows any."""
    folder = hub_folder(context.folder)
    try:
        addresses = read_addresses(folder)
        identity = load(folder / IDENTITY_FILE) if addresses else None
    except AddressError as error:
        yield Finding("failure", str(error), "write it anew: gpuspawner node invite, for each")
        return
    except GPUSpawnerError as error:
        yield Finding("failure", str(error))
        return
    if addresses:
        context.nodes, findings = import_module(EXAMINATION).examine(addresses, identity)
        for found in findings:
            yield Finding(*found)


def remove_leftovers(context: Context) -> Mapping[str, Sequence[str]]:
    """Have all machines that the hub knows remove the volumes that doctors have left.

    Returns:
        The name of each that could be asked -> those of them that are still in use there.
    """
    folder = hub_folder(context.folder)
    try:
        addresses = read_addresses(folder)
        identity = load(folder / IDENTITY_FILE) if addresses else None
    except GPUSpawnerError:  # `machines` tells of it
        return {}
    if not addresses:
        return {}
    left: Mapping[str, Sequence[str]] = import_module(EXAMINATION).remove_leftovers(
        addresses, identity
    )
    return left
