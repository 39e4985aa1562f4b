"""What a hub last knew of its nodes' GPUs, in a file beside their list: it outlives the hub.

So a node that hasn't answered since the hub's start has GPUs that aren't known at the moment, in
place of none. Nothing in the file is ever free.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..i18n.lazy_text import lazy_gettext
from ..untrusted import parse_json
from .addresses import NodeAddress, replace_file
from .reports import MAX_REPORT_BYTES, NodeReport, read_report, written

LAST_KNOWN_FILE = "last_known.json"
MAX_FILE_BYTES = 8 * MAX_REPORT_BYTES
_REASON = lazy_gettext("It isn't known at the moment.")


@dataclass(frozen=True)
class LastKnown:
    """What a node has told at last.

    Args:
        address: the node.
        report: of its GPUs.
        at: when it came, in seconds since the epoch.
    """

    address: NodeAddress
    report: NodeReport
    at: float

    @property
    def hardware(self) -> Mapping[str, Any]:
        """What of it is kept: what there is, and not what it did at that moment."""
        gpus = tuple(
            replace(
                gpu,
                state="unknown",
                reason=_REASON,
                memory_used_mib=None,
                utilization_percent=None,
            )
            for gpu in self.report.node.gpus
        )
        node = replace(self.report.node, gpus=gpus)
        return {
            "name": self.address.name,
            "fingerprint": self.address.fingerprint,
            "report": written(replace(self.report, node=node, time=0.0, age=0.0)),
        }


def read_last_known(folder: Path, addresses: Iterable[NodeAddress]) -> Mapping[str, LastKnown]:
    """Return what was last known of some nodes, by their names; of none if it can't be read.

    Args:
        folder: the hub's folder of its nodes.
        addresses: the nodes; one that was set up anew is another one.
    """
    try:
        with (folder / LAST_KNOWN_FILE).open("rb") as file:
            entries = parse_json(file.read(MAX_FILE_BYTES))["nodes"]
        by_key = {(each["name"], each["fingerprint"]): each for each in entries}
    except (OSError, KeyError, TypeError, ValueError):
        return {}
    found = {}
    for address in addresses:
        entry = by_key.get((address.name, address.fingerprint))
        try:
            if entry is not None:
                found[address.name] = _read(entry, address)
        except (KeyError, TypeError, ValueError):
            continue
    return found


def _read(entry: Mapping[str, Any], address: NodeAddress) -> LastKnown:
    at = entry["at"]
    if not isinstance(at, int | float) or not math.isfinite(at) or not 0 <= at < 1e12:
        raise ValueError("no time")
    last = LastKnown(address, read_report(entry["report"], address.name), float(at))
    if any(gpu.state != "unknown" for gpu in last.report.node.gpus):
        raise ValueError("what is in a file isn't known")
    return last


def write_last_known(folder: Path, known: Iterable[LastKnown]) -> None:
    """Write down what is known of the nodes; raises `OSError` if that fails."""
    nodes = [{**each.hardware, "at": each.at} for each in known]
    text = json.dumps({"nodes": nodes}) + "\n"
    replace_file(folder / LAST_KNOWN_FILE, text.encode(), 0o644)
