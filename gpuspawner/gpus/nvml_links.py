"""What NVML says of how this machine's GPUs are connected.

A query that fails leaves that connection unknown, and never fails anything else.

ref: https://docs.nvidia.com/deploy/nvml-api/group__NvLink.html
ref: https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pynvml

from .links import closeness

# UUID -> pairs of another GPU's UUID and how close it is.
Links = dict[str, tuple[tuple[str, int], ...]]
MAX_LINKS = 18
# Above this number of GPUs the pairs would be too many to ask for.
MAX_GPUS = 64


def read_links(uuids: Sequence[str]) -> Links:
    """Return how close these GPUs are to each other; {} if nothing is known.

    Args:
        uuids: of GPUs that NVML knows, initialised as it is.
    """
    if not 1 < len(uuids) <= MAX_GPUS:
        return {}
    try:
        handles = {uuid: pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids}
        places = {uuid: pynvml.nvmlDeviceGetPciInfo(handle) for uuid, handle in handles.items()}
        of_bus_id = {_bus_id(pci): uuid for uuid, pci in places.items()}
        targets = {uuid: _targets(handle, of_bus_id) for uuid, handle in handles.items()}
        near: dict[str, dict[str, int]] = {uuid: {} for uuid in uuids}
        for one, other in combinations(uuids, 2):
            level = _level(handles[one], handles[other])
            links = _between(targets[one], targets[other], one, other)
            near[one][other] = near[other][one] = closeness(links, level)
    except Exception:  # of whatever kind: an old driver, a library gone wrong, a lost GPU
        return {}
    if not any(value for each in near.values() for value in each.values()):
        return {}
    return {uuid: tuple(each.items()) for uuid, each in near.items()}


def _bus_id(pci: Any) -> str:
    text = pci.busId
    text = text.decode("ascii", "replace") if isinstance(text, bytes) else str(text)
    # A domain has four digits or eight.
    return text.lower()[-12:]


def _level(one: Any, other: Any) -> int | None:
    try:
        return int(pynvml.nvmlDeviceGetTopologyCommonAncestor(one, other))
    except pynvml.NVMLError:
        return None


def _targets(handle: Any, of_bus_id: dict[str, str]) -> Counter[str]:
    """Return UUID -> number of active NVLinks to that GPU; "" -> of those that go to a switch."""
    found: Counter[str] = Counter()
    for link in range(MAX_LINKS):
        try:
            if not pynvml.nvmlDeviceGetNvLinkState(handle, link):
                continue
            remote = _bus_id(pynvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link))
        except pynvml.NVMLError:
            continue  # no such link, or one that doesn't tell
        found[of_bus_id.get(remote, "")] += 1
    return found


def _between(ones: Counter[str], others: Counter[str], one: str, other: str) -> int:
    """Return the number of NVLinks between two GPUs, also where only one of them tells."""
    return max(ones[other], others[one]) + min(ones[""], others[""])
