"""Whether this machine can hand out GPUs: its driver, Docker Engine and NVIDIA's toolkit."""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import shutil
import socket
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Host:
    """This machine. `lacks` is why GPUs have to be simulated; "" if it can hand out real ones."""

    lacks: str = ""
    needs_root: bool = False


def inspect_machine() -> Host:
    """Return the facts of this machine."""
    gpus = count_gpus()
    if not gpus:
        return Host("there is no working NVIDIA driver here")
    found = f"there are {gpus} NVIDIA GPUs here"
    try:
        about = _engine_info()
    except PermissionError:
        # A user without access to the engine may have sudo; whether it has the toolkit shows then.
        return Host(needs_root=True) if _has_hook() else Host(f"{found}, but {_NO_TOOLKIT}")
    except (OSError, ValueError, http.client.HTTPException):
        return Host(f"{found}, but no Docker Engine answers")
    if not (_has_hook() or "nvidia" in about.get("Runtimes", {}) or _has_devices(about)):
        return Host(f"{found}, but {_NO_TOOLKIT}")
    return Host()


_NO_TOOLKIT = "Docker has no NVIDIA Container Toolkit to hand them out"


def count_gpus() -> int:
    """Return the number of the driver's GPUs; 0 without a working driver."""
    count = ctypes.c_uint()
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return 0
        nvml.nvmlShutdown()
    except (OSError, AttributeError):
        return 0
    return count.value


def _has_hook() -> bool:
    return shutil.which("nvidia-container-runtime-hook") is not None


def _has_devices(about: dict[str, Any]) -> bool:
    devices = about.get("DiscoveredDevices") or []
    return any(str(device.get("ID", "")).startswith("nvidia.com/gpu") for device in devices)


def _engine_info() -> dict[str, Any]:
    address = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    scheme, _, path = address.partition("://")
    if scheme != "unix":
        raise ValueError(address)  # a remote engine doesn't have this machine's GPUs
    connection = _Connection(path)
    try:
        connection.request("GET", "/info")
        about: dict[str, Any] = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return about


class _Connection(http.client.HTTPConnection):
    """HTTP over the engine's socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
