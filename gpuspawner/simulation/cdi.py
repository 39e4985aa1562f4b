"""The Container Device Interface of a simulated host: its specification, and the stand-in's hook.

A real specification is what `nvidia-ctk cdi generate` writes, with the same device names.

ref: https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import hook

# What NVIDIA's specifications call. Where it is on an engine's PATH, Docker Engine 29.2 and newer
# may take CDI devices for the requests of `docker run --gpus`, too.
CDI_HOOK = "nvidia-cdi-hook"
# The first engine that reads specifications; from 28.2 on without being told to.
FIRST_ENGINE = (25, 0)

# Every GPU's device files are those of /dev/null, which each container may open.
HOST_PATH = "/dev/null"
MAJOR, MINOR = 1, 3
# The device files that each container with a GPU has.
COMMON = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")


def settings(directory: Path, engine_version: tuple[int, int]) -> dict[str, Any]:
    """Return the settings of CDI in an engine's daemon.json; {} if the engine doesn't know it.

    ref: https://docs.docker.com/build/building/cdi/
    """
    if engine_version < FIRST_ENGINE:
        return {}
    return {"features": {"cdi": True}, "cdi-spec-dirs": [str(directory / "cdi")]}


def write(directory: Path, text: str) -> None:
    """Write a simulated host's specification, where its engine and no other looks for it.

    Nobody writes it anew when MIG instances are made or destroyed: that is how it is with NVIDIA's.
    ref: https://github.com/NVIDIA/nvidia-container-toolkit/issues/1828

    Args:
        directory: the simulated host's folder.
        text: as for `specification`.
    """
    folder = directory / "cdi"
    folder.mkdir(exist_ok=True)
    new = folder / "nvidia.new"  # no engine reads a file of this name
    new.write_text(json.dumps(specification(directory, text), indent=1))
    new.replace(folder / "nvidia.json")


def specification(directory: Path, text: str) -> dict[str, Any]:
    """Return the specification of GPUs and MIG instances: by UUID, by index and as `all`.

    Like NVIDIA's, which calls the second instance of the first GPU 0:1.

    Args:
        directory: the simulated host's folder, with the hook.
        text: a state file's text.
    """
    units = [(str(index), gpu["uuid"]) for index, gpu in enumerate(hook.gpus(text))]
    units += [(f"{each.gpu}:{each.index}", each.uuid) for each in hook.instances(text)]
    names = [(uuid, [uuid]) for _, uuid in units] + [(index, [uuid]) for index, uuid in units]
    names += [("all", [uuid for _, uuid in units])] if units else []
    path = str(directory / "hook" / CDI_HOOK)
    devices = []
    for name, meant in names:
        # One call for each: only the hook knows what the container has already.
        hooks = [
            {"hookName": "createRuntime", "path": path, "args": [CDI_HOOK, "cdi", uuid]}
            for uuid in meant
        ]
        nodes = [_node(each) for each in hook.devices_of(text, meant)]
        devices.append({"name": name, "containerEdits": {"deviceNodes": nodes, "hooks": hooks}})
    return {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "devices": devices,
        "containerEdits": {
            "env": ["NVIDIA_VISIBLE_DEVICES=void"],
            "deviceNodes": [_node(name) for name in COMMON],
        },
    }


def _node(name: str) -> dict[str, Any]:
    return {
        "path": f"/dev/{name}",
        "hostPath": HOST_PATH,
        "type": "c",
        "major": MAJOR,
        "minor": MINOR,
        "permissions": "rw",
    }
