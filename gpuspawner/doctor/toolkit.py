"""Checks of the NVIDIA Container Toolkit: its version and its configuration."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .engine import find_program, is_rootless
from .findings import Context, Finding

# ref: CVE-2025-23266 and CVE-2025-23267, NVIDIA's security bulletin of July 2025
SAFE_TOOLKIT = (1, 17, 8)
CONFIG_FILE = Path("/etc/nvidia-container-runtime/config.toml")
SETTING = "accept-nvidia-visible-devices-envvar-when-unprivileged"
NO_CGROUPS = "no-cgroups"
# The first version whose nvidia-ctk can change the configuration.
SETS_ITSELF = (1, 14)
PROGRAMS = ("nvidia-ctk", "nvidia-container-cli", "nvidia-container-runtime-hook")
# Set by `gpuspawner simulate`, where a stand-in takes the toolkit's place.
SIMULATION_VARIABLE = "GPUSPAWNER_HUB_IP"

INSTALL_GUIDE = (
    "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html"
)
INSTALL = (
    f"install it: {INSTALL_GUIDE}\n"
    "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"
)
CONFIGURE = "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"


def toolkit(context: Context) -> Iterator[Finding]:
    """Check that the toolkit is installed, in a version without known container escapes."""
    if not _has_gpus(context):
        return
    ways = gpu_mechanisms(context.engine_info)
    version = installed_version()
    if version is None:
        yield _without_version(context, ways)
        return
    words = ".".join(map(str, version))
    if version < SAFE_TOOLKIT:
        yield Finding(
            "failure",
            f"version {words} has known ways out of the container: it must be 1.17.8 or newer",
            "sudo apt-get update && sudo apt-get install --only-upgrade nvidia-container-toolkit "
            "libnvidia-container1 libnvidia-container-tools nvidia-container-toolkit-base\n"
            "sudo systemctl restart docker",
            blocks=False,
        )
    else:
        yield Finding("ok", f"version {words}")
    hook = find_program("nvidia-container-runtime-hook")
    if not ways and not hook:
        yield Finding("failure", "Docker doesn't know of it", CONFIGURE)
    elif hook and "CDI" not in ways and context.engine_info.get("CgroupDriver") == "systemd":
        # ref: NVIDIA's troubleshooting, "Containers losing access to GPUs"
        yield Finding(
            "note",
            "after `systemctl daemon-reload` servers that run may lose their GPUs",
            'in /etc/docker/daemon.json: "exec-opts": ["native.cgroupdriver=cgroupfs"]\n'
            "then, with no server running: sudo systemctl restart docker",
        )


def _without_version(context: Context, ways: list[str]) -> Finding:
    if ways:
        return Finding(
            "note",
            f"Docker has it ({' and '.join(ways)}); its version can't be told from here",
            "where it is installed: nvidia-ctk --version    (1.17.8 or newer)",
        )
    if SIMULATION_VARIABLE in os.environ:
        return Finding("ok", "a stand-in, as this is a simulated host")
    if not context.engine_is_here:
        return Finding(
            "note",
            "it can't be seen from here; the container with a GPU below shows whether it is there",
            "on the GPU machine: nvidia-ctk --version    (1.17.8 or newer)",
        )
    return Finding("failure", "it isn't installed, so Docker can't hand out GPUs", INSTALL)


def _has_gpus(context: Context) -> bool:
    return context.inventory is not None and context.inventory.driver is not None


def gpu_mechanisms(info: Mapping[str, Any]) -> list[str]:
    """Return the ways to GPUs that an engine's `GET /info` shows: NVIDIA's runtime, CDI devices.

    NVIDIA's hook, which is enough, isn't shown there.
    """
    devices = [str(device.get("ID", "")) for device in info.get("DiscoveredDevices") or []]
    found = ["its runtime `nvidia`"] if "nvidia" in (info.get("Runtimes") or {}) else []
    if any(device.startswith("nvidia.com/gpu") for device in devices):
        found.append("CDI")
    return found


def installed_version() -> tuple[int, ...] | None:
    """Return the installed toolkit's version, (1, 17, 8); None if unknown."""
    for name in PROGRAMS:
        program = find_program(name)
        if program is None:
            continue
        try:
            done = subprocess.run(
                [program, "--version"], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        # "NVIDIA Container Toolkit CLI version 1.17.8", "cli-version: 1.17.8"
        if numbers := re.search(r"version:? +v?(\d+)\.(\d+)\.(\d+)", done.stdout + done.stderr):
            return tuple(map(int, numbers.groups()))
    return None


def setting(context: Context) -> Iterator[Finding]:
    """Check the toolkit's setting for GPUs by a variable, by what the engine needs.

    The engine passes GPUs to NVIDIA's hook by that variable: a hook that doesn't accept it gives no
    server a GPU. Only engines that hand out GPUs by CDI alone don't need it.
    ref: setNvidiaGPUs in moby's daemon/nvidia_linux.go, getDevices in the toolkit's
    cmd/nvidia-container-runtime-hook/container_config.go
    """
    if not _has_gpus(context) or installed_version() is None:
        return
    try:
        text = CONFIG_FILE.read_text(errors="replace")
    except FileNotFoundError:
        text = ""
    except OSError as error:
        yield Finding("note", f"{CONFIG_FILE} can't be read: {error.strerror}", "run this as root")
        return
    context.variable_accepted = accepts_variable(text)
    yield from _control_groups(context, text)
    by_hook = find_program("nvidia-container-runtime-hook") is not None
    is_default = context.engine_info.get("DefaultRuntime") == "nvidia"
    in_swarm = (context.engine_info.get("Swarm") or {}).get("LocalNodeState") == "active"
    # A service can have GPUs in no other way.
    if context.variable_accepted and is_default and not in_swarm:
        yield Finding(
            "warning",
            "Docker's default runtime is `nvidia`: every container of an image that asks for GPUs "
            "by a variable gets them all (GPUSpawner's servers don't)",
            'remove "default-runtime" from /etc/docker/daemon.json, then\n'
            "sudo systemctl restart docker",
        )
    elif context.variable_accepted:
        yield Finding("ok", "devices are taken from the request that GPUSpawner makes")
    elif by_hook and "CDI" in gpu_mechanisms(context.engine_info):
        # Engines that support CDI try it first.
        yield Finding(
            "note",
            f"{SETTING} is false in {CONFIG_FILE}: fine where Docker hands out GPUs by CDI, which "
            "the container with a GPU below shows",
            f"only if that one gets no GPU: {setting_line(SETTING, 'true')}",
        )
    elif by_hook:
        yield Finding(
            "warning",
            f"{SETTING} is false in {CONFIG_FILE}: NVIDIA's hook, which this Docker uses, then "
            "gives containers no GPU",
            setting_line(SETTING, "true"),
        )
    else:
        yield Finding("ok", "devices by a variable are refused, and Docker hands out GPUs by CDI")


def _control_groups(context: Context, text: str) -> Iterator[Finding]:
    """Check that the toolkit gives containers access to devices by control groups.

    Only a rootless engine can't set these, and doesn't need to.
    ref: NVIDIA's install guide, "Rootless mode"
    """
    is_off = sets_no_cgroups(text)
    if is_off and not is_rootless(context.engine_info):
        what = (
            f"{NO_CGROUPS} is true in {CONFIG_FILE}, and Docker runs as root: containers are given "
            "GPUs that they may not use"
        )
        yield Finding("failure", what, setting_line(f"nvidia-container-cli.{NO_CGROUPS}", "false"))
    elif not is_off and is_rootless(context.engine_info) and not _by_cdi_only(context):
        what = f"{NO_CGROUPS} isn't set in {CONFIG_FILE}, and Docker runs without root"
        yield Finding("warning", what, setting_line(f"nvidia-container-cli.{NO_CGROUPS}", "true"))


def _by_cdi_only(context: Context) -> bool:
    return "CDI" in gpu_mechanisms(context.engine_info)


def sets_no_cgroups(text: str) -> bool:
    """Return whether a toolkit's configuration has `no-cgroups = true`."""
    sections = re.split(r"^\s*(\[[^]\n]*\])", text, flags=re.MULTILINE)
    for name, lines in zip(sections[1::2], sections[2::2], strict=True):
        if name.strip("[] \"'") == "nvidia-container-cli":
            found = re.search(rf"^\s*\"?{NO_CGROUPS}\"?\s*=\s*true\b", lines, re.MULTILINE)
            return found is not None
    return False


def setting_line(name: str, value: str) -> str:
    """Return how to change a setting: a command of nvidia-ctk, or the line if that is too old."""
    version = installed_version()
    if version is not None and version >= SETS_ITSELF and find_program("nvidia-ctk"):
        return f"sudo nvidia-ctk config --set {name}={value} --in-place"
    section, _, key = name.rpartition(".")
    where = f"in [{section}] of {CONFIG_FILE}" if section else f"in {CONFIG_FILE}"
    return f"{where} write: {key} = {value}"


def accepts_variable(text: str) -> bool:
    """Return whether a toolkit's configuration accepts GPUs by the variable, as by default."""
    # Only the top-level keys, before the first table.
    head = re.split(r"^\s*\[", text, maxsplit=1, flags=re.MULTILINE)[0]
    found = re.search(rf"^\s*\"?{SETTING}\"?\s*=\s*(true|false)", head, re.MULTILINE)
    return found is None or found[1] == "true"
