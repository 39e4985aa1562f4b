"""Which GPUs are meant by the names that engines take: UUIDs, indexes, "all"."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from .model import GPU

ALL = "all"


def gpus_named(names: Collection[str], gpus: Sequence[GPU]) -> frozenset[str]:
    """Return the UUIDs of the GPUs that some names mean, or may mean: unknown is never free.

    A UUID that isn't here means none of these. An index is NVML's when its container was started:
    while each GPU tells its UUID it is taken for today's, else it may be any. So may be whatever
    isn't understood.

    Args:
        names: "all", UUIDs, indexes, and MIG instances ("0:1", "MIG-…").
        gpus: every GPU of the node.
    """
    known = {gpu.uuid.lower(): gpu.uuid for gpu in gpus if gpu.uuid}
    of_index = {gpu.index: gpu.uuid for gpu in gpus}
    found: set[str] = set()
    for name in names:
        low = name.strip().lower()
        if low.startswith("gpu-"):
            found |= {known[low]} if low in known else set()
        elif low.startswith("mig-"):
            # A GPU in MIG mode isn't handed out anyway.
            found |= {gpu.uuid for gpu in gpus if gpu.uuid and gpu.state == "mig"}
        else:
            index = re.fullmatch(r"(?:gpu)?([0-9]{1,4})(?::[0-9]+)?", low)
            uuid = of_index.get(int(index[1])) if index else None
            if uuid is None or None in of_index.values():
                return frozenset(known.values())
            found.add(uuid)
    return frozenset(found)
