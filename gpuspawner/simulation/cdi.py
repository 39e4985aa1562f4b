"""The Container Device Interface of a simulated host: its specification, and the stand-in's hook.

A real specification is what `nvidia-ctk cdi generate` writes, with the same device names.

ref: https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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


def write(directory: Path, gpus: Sequence[Mapping[str, Any]]) -> None:
    """Write a simulated host's specification, where its engine and no other looks for it.

    Args:
        directory: the simulated host's folder.
        gpus: as for `specification`.
    """
    folder = directory / "cdi"
    folder.mkdir(exist_ok=True)
    text = json.dumps(specification(directory, gpus), indent=1)
    new = folder / "nvidia.new"  # no engine reads a file of this name
    new.write_text(text)
    new.replace(folder / "nvidia.json")


def specification(directory: Path, gpus: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the specification of GPUs: by UUID, by index and as `all`, like NVIDIA's.

    Args:
        directory: the simulated host's folder, with the hook.
        gpus: each has a `uuid` and a `minor_number`.
    """
    names = [(str(gpu["uuid"]), [gpu]) for gpu in gpus]
    names += [(str(index), [gpu]) for index, gpu in enumerate(gpus)]
    names += [("all", list(gpus))] if gpus else []
    path = str(directory / "hook" / CDI_HOOK)
    devices = []
    for name, meant in names:
        # One call for each GPU: only the hook knows what the container has already.
        hooks = [
            {"hookName": "createRuntime", "path": path, "args": [CDI_HOOK, "cdi", str(gpu["uuid"])]}
            for gpu in meant
        ]
        nodes = [_node(f"nvidia{gpu['minor_number']}") for gpu in meant]
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
