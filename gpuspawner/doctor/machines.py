"""Checks of the other machines of a hub, as their daemons answer it."""

from __future__ import annotations

from collections.abc import Iterator
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
