"""`python -m gpuspawner.gpus.nvml_events`: prints NVML's events of this machine, as JSON lines.

It is a program of its own, with a session of NVML's of its own. In the hub's process an event set
would keep alive the session that the reader shuts down, for a GPU's reset, a reloaded driver or
another set of MIG instances; ended, it has let go of every GPU, whatever the driver does meanwhile.
It ends with the hub: its standard input is closed then.

ref: https://docs.nvidia.com/deploy/nvml-api/group__nvmlEvents.html
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
from typing import Any

import pynvml

from .nvml_mig import read_instances
from .nvml_queries import query_optional, query_text

# ref: nvmlEventTypes. Older nvidia-ml-py hasn't all of these names.
ECC, XID, MIG, RECOVERY = 0x2, 0x8, 0x100, 0x8000
WANTED = ECC | XID | MIG | RECOVERY
KINDS = {ECC: "ecc", XID: "xid", MIG: "mig", RECOVERY: "recovery"}
NOBODY = 0xFFFFFFFF
WAIT_MILLISECONDS = 1000

# How it ends: no GPU here has events; or NVML, or a GPU, has failed.
EXIT_NO_EVENTS, EXIT_FAILED = 3, 4


def register(events: Any) -> dict[int | None, str]:
    """Register for the events of each GPU that has some; return its handle's address -> UUID."""
    found: dict[int | None, str] = {}
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid = query_text(pynvml.nvmlDeviceGetUUID, handle)
            kinds = pynvml.nvmlDeviceGetSupportedEventTypes(handle) & WANTED
            if kinds:
                pynvml.nvmlDeviceRegisterEvents(handle, kinds, events)
                found[address(handle)] = uuid
        except pynvml.NVMLError:  # the others have theirs
            continue
    return found


def address(handle: Any) -> int | None:
    """Return what tells handles apart."""
    return ctypes.cast(handle, ctypes.c_void_p).value


def instances_of(data: Any, uuid: str) -> list[str]:
    """Return the UUIDs of the MIG instances that an event is of; []: of the whole GPU."""
    gi, ci = data.gpuInstanceId, data.computeInstanceId
    if gi == NOBODY:
        return []
    there = query_optional(read_instances, data.device, uuid) or ()
    return [each.uuid for each in there if each.gi == gi and ci in (NOBODY, each.ci)]


def say(facts: dict[str, Any]) -> None:
    """Print one line, at once."""
    print(json.dumps(facts), flush=True)


def watch() -> int:
    """Print events until NVML or a GPU fails; return the exit status."""
    pynvml.nvmlInitWithFlags(pynvml.NVML_INIT_FLAG_NO_GPUS)
    events = pynvml.nvmlEventSetCreate()
    gpus = register(events)
    if not gpus:
        return EXIT_NO_EVENTS
    say({"watching": sorted(gpus.values())})
    while True:
        try:
            data = pynvml.nvmlEventSetWait_v2(events, WAIT_MILLISECONDS)
        except pynvml.NVMLError_Timeout:
            continue
        uuid, kind = gpus.get(address(data.device)), KINDS.get(data.eventType)
        if uuid is None or kind is None:
            continue
        xid = int(data.eventData) if kind == "xid" else 0
        parts = instances_of(data, uuid) if kind == "xid" else []
        say({"gpu": uuid, "kind": kind, "xid": xid, "instances": parts})
        if kind == "mig":
            # Only a new session sees which instances there are now.
            return EXIT_FAILED


def main() -> None:
    """Print events until standard input is closed, or there is nothing to wait for."""

    def end_with_the_hub() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=end_with_the_hub, daemon=True).start()
    try:
        status = watch()
    except pynvml.NVMLError as error:
        is_missing = isinstance(
            error, pynvml.NVMLError_NotSupported | pynvml.NVMLError_FunctionNotFound
        )
        status = EXIT_NO_EVENTS if is_missing else EXIT_FAILED
    # Not by way of the interpreter's end, which may wait for a driver that hangs.
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
