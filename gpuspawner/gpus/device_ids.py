"""The GPUs that device ids of engines and of NVIDIA_VISIBLE_DEVICES name: UUIDs, indexes, "all".

ref: https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/docker-specialized.html
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from .model import GPU

ALL = "all"


def gpus_named(names: Collection[str], gpus: Sequence[GPU]) -> frozenset[str]:
    """Return the UUIDs of the GPUs that device ids name, or may name: unknown is never free.

    An unknown UUID names none of these GPUs. An index is the one that NVML had when the container
    started: it is taken for the current one if every GPU reports its UUID, else it may name any
    GPU. So may an id of an unknown form.

    Args:
        names: the device ids: "all", UUIDs, indexes, and MIG instances ("0:1", "MIG-…").
        gpus: every GPU of the node.
    """
    known = {gpu.uuid.lower(): gpu.uuid for gpu in gpus if gpu.uuid}
    of_index = {gpu.index: gpu.uuid for gpu in gpus if not gpu.parent}
    found: set[str] = set()
    for name in names:
        low = name.strip().lower()
        if low.startswith("gpu-"):
            found |= {known[low]} if low in known else set()
        elif low.startswith("mig-"):
            # One that NVML doesn't know, or by another form of its name, may be any of them.
            every = {gpu.uuid for gpu in gpus if gpu.uuid and gpu.state == "mig"}
            found |= {known[low]} if low in known else every
        else:
            # "0" and CDI's "gpu0", and the MIG instances "0:1" and "mig0:1" of GPU 0.
            index = re.fullmatch(r"(?:gpu|mig)?([0-9]{1,4})(?::[0-9]+)?", low)
            uuid = of_index.get(int(index[1])) if index else None
            if uuid is None or None in of_index.values():
                return frozenset(known.values())
            found.add(uuid)
    return frozenset(found)
