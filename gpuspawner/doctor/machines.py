"""Checks of the other machines of a hub, as their daemons answer it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from ..errors import GPUSpawnerError
from ..nodes.addresses import FOLDER, AddressError, NodeAddress, read_addresses
from ..nodes.client import CLOCK_SECONDS, NodesReader
from ..nodes.exchange import NodeError
from ..nodes.identity import IDENTITY_FILE, load
from .findings import Context, Finding


def machines(context: Context) -> Iterator[Finding]:
    """Check the machines that the hub knows, if it knows any."""
    folder = context.folder / FOLDER
    try:
        addresses = read_addresses(folder)
        if not addresses:
            return
        reader = NodesReader(addresses, load(folder / IDENTITY_FILE))
    except AddressError as error:
        yield Finding("failure", str(error), "write it anew: gpuspawner node invite, for each")
        return
    except GPUSpawnerError as error:
        yield Finding("failure", str(error))
        return
    yield from asyncio.run(_examine(reader, addresses))


async def _examine(reader: NodesReader, addresses: tuple[NodeAddress, ...]) -> list[Finding]:
    await reader()
    found = []
    for address in addresses:
        problem = reader.problems.get(address.name)
        if problem:
            what = f"{address.name} is unknown, so nothing is handed out there: {problem}"
            found.append(Finding("failure", what, "there: sudo gpuspawner node status"))
        else:
            found += await _of_one(reader, address)
    found += [
        Finding(
            "failure",
            f"{uuid} is on {' and '.join(names)}, as they say: it isn't handed out on any",
            "look where it is: nvidia-smi -L",
        )
        for uuid, names in reader.contested.items()
    ]
    return found


async def _of_one(reader: NodesReader, address: NodeAddress) -> list[Finding]:
    report, name = reader.reports[address.name], address.name
    found = [Finding("ok", f"{name}: {len(report.node.gpus)} GPUs, driver {report.node.driver}")]
    offset = reader.clock_offset(name) or 0.0
    if abs(offset) > CLOCK_SECONDS:
        way = "ahead of" if offset > 0 else "behind"
        what = f"{name}: its clock is {abs(offset):.0f} seconds {way} the hub's"
        found.append(Finding("warning", what, "there: sudo timedatectl set-ntp true"))
    try:
        of_node = await reader.doctor(name)
    except NodeError as error:
        what = f"{name}: its own doctor can't be asked: {error.technical}"
        return [*found, Finding("warning", what, "there: systemctl status gpuspawner-node-engine")]
    for each in of_node:
        if each["state"] in ("warning", "failure"):
            what = f"{name}: {each['check']}: {each['found']}"
            found.append(Finding(each["state"], what, each["advice"]))  # type: ignore[arg-type]
    return found
