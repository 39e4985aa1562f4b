"""`gpuspawner gpus`: list this machine's GPUs and their holders."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import docker
import docker.errors

from .backends.docker import notes
from .backends.docker.errors import explain
from .backends.docker.listing import Listing
from .gpus.allocation import with_leases
from .gpus.health import VERDICTS, todo, worst
from .gpus.missing_driver import without_driver
from .gpus.model import GPU, Node
from .gpus.names import part_name
from .gpus.nvml import InventoryError
from .gpus.out_of_service import OutOfServiceMark, apply_marks, causes_now
from .gpus.reader import read_node
from .gpus.units import divided_as_held
from .leases.labels import leases_of
from .leases.ledger import outsiders_of
from .simulation.running_host import join_hint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this subcommand's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print this machine's GPUs; return 0, or 1 if NVML or the engine can't be read."""
    try:
        found = read_node()
        gpus, outside, marks = with_ledger(found) if found.gpus else ((), {}, {})
    except InventoryError as error:
        print(f"gpuspawner: {error}", file=sys.stderr)
        return 1
    except (docker.errors.DockerException, OSError) as error:
        print(f"gpuspawner: {explain(error)}", file=sys.stderr)
        return 1
    if found.driver is None and (not arguments.json or without_driver().is_error):
        return _without_driver()
    if arguments.json:
        print(json.dumps(as_json(found, gpus, outside, marks), indent=2))
    else:
        print(as_text(found, gpus, outside, marks))
    return 0


def _without_driver() -> int:
    """Print why there is no driver; return 1 unless this is a machine without GPUs."""
    why = without_driver()
    print(why.words, file=sys.stderr if why.is_error else sys.stdout)
    if words := join_hint("gpus"):
        print(f"{words[:1].upper()}{words[1:]}")
    return int(why.is_error)


# UUID -> the names of the containers that have the GPU without a lease.
Outside = Mapping["str | None", Sequence[str]]
Marks = Mapping[str, OutOfServiceMark]


def with_ledger(found: Node) -> tuple[Sequence[GPU], Outside, Marks]:
    """Return the units with their holders, UUID -> containers without a lease, and the marks.

    Raises:
        docker.errors.DockerException: the engine can't be read. So may OSError.
    """
    client = docker.from_env(timeout=20)
    try:
        noted = notes.parse(notes.list_notes(client.api))
        marked = replace(found, gpus=apply_marks(found.gpus, noted.marks, noted.lifted))
        servers = Listing()(client.api)
    finally:
        client.close()
    outsiders = outsiders_of(servers, [marked])
    leases = leases_of(servers)
    units = tuple(divided_as_held(marked.gpus, leases))
    (node,) = with_leases([replace(marked, gpus=units)], leases, outsiders)
    names = {
        gpu.uuid: [each.name for each in outsiders if {gpu.uuid, gpu.parent} & each.gpus]
        for gpu in node.gpus
    }
    return node.gpus, names, noted.marks


def as_json(
    found: Node, gpus: Sequence[GPU], outside: Outside, marks: Marks | None = None
) -> dict[str, Any]:
    """Return the documented JSON value."""
    entries = [
        {**_entry(gpu, outside.get(gpu.uuid, ())), "health": _health(gpu, marks or {})}
        for gpu in gpus
    ]
    return {"driver": found.driver, "cuda": found.cuda, "gpus": entries}


def _entry(gpu: GPU, containers: Sequence[str]) -> dict[str, Any]:
    holder = gpu.holder
    return {
        "node": gpu.node,
        "id": gpu.id,
        "uuid": gpu.uuid,
        "kind": gpu.kind,
        "part": part_name(gpu),
        "index": gpu.index,
        "name": gpu.model,
        "memory_total_mib": gpu.memory_total_mib,
        "memory_used_mib": gpu.memory_used_mib,
        "utilization_percent": gpu.utilization_percent,
        "compute_capability": gpu.compute_capability,
        "state": gpu.state,
        "holder": {"user": holder.user, "server": holder.server} if holder else None,
        "containers": list(containers),
        "reason": gpu.reason,
    }


def _health(gpu: GPU, marks: Marks) -> dict[str, Any]:
    """Return the verdict on a unit's GPU, why, and what to do."""
    mark = marks.get(gpu.uuid or "") or marks.get(gpu.parent)
    causes = [*(mark.causes if mark else causes_now(gpu))]
    cause = worst(causes)
    return {
        "verdict": cause.verdict if cause else VERDICTS[0],
        "causes": causes,
        "todo": todo(cause.remedy, gpu.index) if cause else "",
    }


def as_text(found: Node, gpus: Sequence[GPU], outside: Outside, marks: Marks | None = None) -> str:
    """Return a table for a terminal."""
    names = ("GPU", "MODEL", "MEMORY MiB", "USE", "STATE", "HOLDER", "REASON")
    rows: list[tuple[str, ...]] = [names]
    for gpu in gpus:
        memory = f"{_known(gpu.memory_used_mib)}/{_known(gpu.memory_total_mib)}"
        use = "?" if gpu.utilization_percent is None else f"{gpu.utilization_percent} %"
        reason = "" if gpu.state in ("free", "leased") else gpu.reason
        reason = f"{reason} {_health(gpu, marks or {})['todo']}".strip()
        holder = str(gpu.holder or ", ".join(outside.get(gpu.uuid, ())))
        number = f"{gpu.index} {part_name(gpu)}".strip()
        cells = (number, gpu.model, memory, use, gpu.state, holder, reason)
        rows.append(tuple(map(_printable, cells)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([f"Driver {found.driver}, CUDA {found.cuda or '?'}", *lines])


def _printable(cell: str) -> str:
    """Return text without control characters: names may contain any."""
    return "".join(letter if letter.isprintable() else "?" for letter in cell)


def _known(value: int | None) -> str:
    return "?" if value is None else str(value)
