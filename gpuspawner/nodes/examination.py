"""What doctor says of the other machines of a hub: what each tells, and its own doctor."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from ..gpus.model import Node
from .addresses import NodeAddress
from .client import CLOCK_SECONDS, NodesReader
from .exchange import NodeError
from .identity import Identity

# The state of a finding, what was found, and what to do.
Found = tuple[str, str, str]


def examine(
    addresses: Sequence[NodeAddress], identity: Identity
) -> tuple[tuple[Node, ...], list[Found]]:
    """Return what all machines say of their GPUs, and the findings.

    Args:
        addresses: the machines.
        identity: the hub's.
    """
    return asyncio.run(_examine(NodesReader(addresses, identity), addresses))


async def _examine(
    reader: NodesReader, addresses: Sequence[NodeAddress]
) -> tuple[tuple[Node, ...], list[Found]]:
    nodes = await reader()
    found: list[Found] = []
    for address in addresses:
        problem = reader.problems.get(address.name)
        if problem:
            what = f"{address.name} is unknown, so nothing is handed out there: {problem}"
            found.append(("failure", what, "there: sudo gpuspawner node status"))
        else:
            found += await _of_one(reader, address)
    found += [
        (
            "failure",
            f"{uuid} is on {' and '.join(names)}, as they say: it isn't handed out on any",
            "look where it is: nvidia-smi -L",
        )
        for uuid, names in reader.contested.items()
    ]
    return nodes, found


def remove_leftovers(
    addresses: Sequence[NodeAddress], identity: Identity
) -> Mapping[str, Sequence[str]]:
    """Have machines remove the volumes that doctors have left.

    Args:
        addresses: the machines.
        identity: the hub's.

    Returns:
        The name of each machine that could be asked -> those of them that are still in use there.
    """
    return asyncio.run(_remove_leftovers(NodesReader(addresses, identity), addresses))


async def _remove_leftovers(
    reader: NodesReader, addresses: Sequence[NodeAddress]
) -> Mapping[str, Sequence[str]]:
    names = [each.name for each in addresses]
    asked = [reader.remove_leftovers(name) for name in names]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    return {
        name: answer
        for name, answer in zip(names, answers, strict=True)
        if not isinstance(answer, BaseException)
    }


async def _of_one(reader: NodesReader, address: NodeAddress) -> list[Found]:
    report, name = reader.reports[address.name], address.name
    found = [("ok", f"{name}: {len(report.node.gpus)} GPUs, driver {report.node.driver}", "")]
    offset = reader.clock_offset(name) or 0.0
    if abs(offset) > CLOCK_SECONDS:
        way = "ahead of" if offset > 0 else "behind"
        what = f"{name}: its clock is {abs(offset):.0f} seconds {way} the hub's"
        found.append(("warning", what, "there: sudo timedatectl set-ntp true"))
    try:
        of_node = await reader.doctor(name)
    except NodeError as error:
        what = f"{name}: its own doctor can't be asked: {error.technical}"
        return [*found, ("warning", what, "there: systemctl status gpuspawner-node-engine")]
    for each in of_node:
        if each["state"] in ("warning", "failure"):
            what = f"{name}: {each['check']}: {each['found']}"
            found.append((each["state"], what, each["advice"]))
    return found
