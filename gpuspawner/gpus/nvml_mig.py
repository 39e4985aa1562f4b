"""What NVML says of a GPU's MIG instances. They are the administrator's: nothing is made here.

An index between two instances may have none, with an error that depends on the driver, and an
instance may be destroyed between two queries: it isn't there then. What an instance doesn't tell of
itself is unknown, and nobody else's business.

ref: https://docs.nvidia.com/deploy/nvml-api/group__nvmlMultiInstanceGPU.html
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pynvml

from .nvml_queries import count_processes, query_optional, query_text, read_memory
from .state import MIGInstance

# No GPU has as many instances: a larger number means that the library is broken.
MAX_INSTANCES = 64

# Before driver 470 an instance was called by its GPU and its numbers: MIG-GPU-…/gi/ci.
_HEX = r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_UUID = re.compile(rf"MIG-(?:{_HEX}|GPU-{_HEX}/[0-9]+/[0-9]+)\Z")
# "NVIDIA A100-SXM4-40GB MIG 1g.5gb"; "1c.3g.20gb" where GPU instances are divided once more.
_NAME = re.compile(r" MIG ((?:([1-9])c\.)?([1-9])g\.[0-9]+gb(?:\+[a-z.]+)*)\Z")


def read_instances(gpu: Any, parent_uuid: str) -> tuple[MIGInstance, ...]:
    """Return the MIG instances of a GPU in MIG mode, in NVML's order.

    Args:
        gpu: NVML's handle of the GPU.
        parent_uuid: its UUID.

    Raises:
        pynvml.NVMLError_GpuIsLost: the GPU is off the bus.
        pynvml.NVMLError_ResetRequired: the GPU has to be reset.
    """
    most = query_optional(pynvml.nvmlDeviceGetMaxMigDeviceCount, gpu) or 0
    found = []
    for index in range(most if most <= MAX_INSTANCES else 0):
        handle = query_optional(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, gpu, index)
        instance = handle and _read_instance(handle, parent_uuid, most)
        if instance:
            found.append(instance)
    # A lease couldn't name just one of several.
    times = Counter(each.uuid.lower() for each in found)
    return tuple(each for each in found if times[each.uuid.lower()] == 1)


def _read_instance(handle: Any, parent_uuid: str, most: int) -> MIGInstance | None:
    """Return an instance; None if it doesn't say which it is, or isn't there any more."""
    uuid = query_optional(query_text, pynvml.nvmlDeviceGetUUID, handle)
    if not uuid or not _UUID.match(uuid):
        return None
    attributes = query_optional(pynvml.nvmlDeviceGetAttributes_v2, handle)
    name = query_optional(query_text, pynvml.nvmlDeviceGetName, handle) or ""
    profile, slices = _profile(name, attributes)
    total, used = query_optional(_memory, handle) or (None, None)
    found = MIGInstance(
        uuid=uuid,
        parent_uuid=parent_uuid,
        gi=query_optional(pynvml.nvmlDeviceGetGpuInstanceId, handle),
        ci=query_optional(pynvml.nvmlDeviceGetComputeInstanceId, handle),
        profile=profile,
        memory_total_mib=total or (attributes and int(attributes.memorySizeMB)) or None,
        memory_used_mib=used,
        processes=query_optional(count_processes, handle),
        slices=slices if 0 < slices <= most else most,
        of_slices=most,
    )
    # A handle may be another instance's by now, or none's.
    again = query_optional(query_text, pynvml.nvmlDeviceGetUUID, handle)
    return found if again == uuid else None


def _memory(handle: Any) -> tuple[int | None, int | None]:
    try:
        return read_memory(handle)
    except ValueError:  # figures that can't be
        return None, None


def _profile(name: str, attributes: Any) -> tuple[str, int]:
    """Return an instance's profile and its compute slices; "" and 0 if they aren't known."""
    found = _NAME.search(name)
    if attributes is None:
        return (found[1], int(found[2] or found[3])) if found else ("", 0)
    of_gpu = int(attributes.gpuInstanceSliceCount)
    slices = int(attributes.computeInstanceSliceCount)
    if found:
        return found[1], slices
    if not (0 < slices <= of_gpu <= MAX_INSTANCES):
        return "", 0
    # A profile is named by the memory, rounded up to whole GB.
    size = f"{of_gpu}g.{-(-int(attributes.memorySizeMB) // 1024)}gb"
    return (size if slices == of_gpu else f"{slices}c.{size}"), slices
