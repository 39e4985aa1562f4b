"""Whether this machine can hand out GPUs itself: driver, Docker Engine, NVIDIA's toolkit."""

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
    """`lacks` says, in words, why GPUs must be simulated; "" if there are real ones to hand out."""

    lacks: str = ""
    needs_root: bool = False


def inspect_machine() -> Host:
    """Look at this machine."""
    gpus = _gpus()
    if not gpus:
        return Host("there is no working NVIDIA driver here")
    found = f"there are {gpus} NVIDIA GPUs here"
    try:
        about = _engine_info()
    except PermissionError:
        # Who may not speak with the engine may ask sudo; whether it has the toolkit shows then.
        return Host(needs_root=True) if _has_hook() else Host(f"{found}, but {_NO_TOOLKIT}")
    except (OSError, ValueError, http.client.HTTPException):
        return Host(f"{found}, but no Docker Engine answers")
    if not (_has_hook() or "nvidia" in about.get("Runtimes", {}) or _has_devices(about)):
        return Host(f"{found}, but {_NO_TOOLKIT}")
    return Host()


_NO_TOOLKIT = "Docker has no NVIDIA Container Toolkit to hand them out"


def _gpus() -> int:
    """How many GPUs the driver knows; 0 without a driver that works."""
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
        raise ValueError(address)  # an engine elsewhere has other GPUs than this machine
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
