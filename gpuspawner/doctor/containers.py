"""Checks by trial containers: with a GPU, without one, and the connection to the hub."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Iterator
from contextlib import closing, nullcontext
from typing import Any

from ..backends.docker.network import HOST_NETWORK, shares_host_network
from ..errors import GPUSpawnerError, Refused
from ..gpus.allocation import kind_shares, offered_nodes
from ..gpus.model import WHOLE, Node
from ..gpus.names import part_name
from ..gpus.units import split
from . import toolkit
from .engine import is_rootless
from .findings import Configuration, Context, Finding
from .trial import NoServer, TrialContainer, run_trial

NO_IMAGE = Finding("skipped", "no image version is on this machine: see Images")

# Prints the UUIDs of all GPUs that NVML shows, where the image has no nvidia-smi.
NVML = """
import ctypes
try:
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
except OSError:
    raise SystemExit
count, text, handle = ctypes.c_uint(), ctypes.create_string_buffer(96), ctypes.c_void_p()
if nvml.nvmlInit_v2() == 0 and nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0:
    for index in range(count.value):
        nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
        nvml.nvmlDeviceGetUUID(handle, text, 96)
        print(text.value.decode())
        part, most = ctypes.c_void_p(), ctypes.c_uint()
        nvml.nvmlDeviceGetMaxMigDeviceCount(handle, ctypes.byref(most))
        for number in range(most.value):
            if not nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number, ctypes.byref(part)):
                nvml.nvmlDeviceGetUUID(part, text, 96)
                print(text.value.decode())
"""
SEE_GPUS = (
    "if command -v nvidia-smi >/dev/null; then nvidia-smi -L; "
    'elif command -v python3 >/dev/null; then python3 -c "$1"; '
    "else echo no-program; fi; ls /dev/nvidia[0-9]* 2>/dev/null; true"
)
CONNECT_SECONDS = 5
CONNECT_PYTHON = (
    f"import socket, sys; socket.create_connection(sys.argv[1:3], {CONNECT_SECONDS}).close()"
)
CONNECT = (
    f'if command -v python3 >/dev/null; then python3 -c \'{CONNECT_PYTHON}\' "$1" "$2" 2>&1; '
    f"elif command -v bash >/dev/null; then timeout {CONNECT_SECONDS} "
    'bash -c \'</dev/tcp/"$0"/"$1"\' "$1" "$2" 2>&1; '
    "else exit 99; fi"
)


def with_gpu(context: Context) -> Iterator[Finding]:
    """Check that a container with one GPU, or a part of one, sees that and no other.

    One unit of each kind is tried that servers can have.
    """
    if context.trial_image is None:
        yield NO_IMAGE
        return
    for kind in kinds_to_try(context):
        what = "none" if kind == WHOLE else f"none of the kind {kind}"
        try:
            yield run_trial(context, 1, lambda here: _compare(context, here), kind=kind)
        except Refused as error:
            words = f"not tried, as {what} is free: {error}"
            yield Finding("note", words, "run this again later")
        except GPUSpawnerError as error:
            yield not_started(context, error)
            return


def kinds_to_try(context: Context) -> list[str]:
    """Return the kinds of units that there are, whole GPUs first."""
    given = context.configuration
    shared = (given.spawner.get("shared_gpus") or {}) if given else {}
    units = [
        unit
        for gpu in context.gpus
        for unit in (split(gpu, shared, ()) if gpu.kind == WHOLE and gpu.state != "mig" else [gpu])
    ]
    (offered,) = offered_nodes([Node(gpus=tuple(units))])
    kinds = list(kind_shares(offered.gpus)) or [WHOLE]
    return sorted(kinds, key=lambda kind: kind != WHOLE)


def _compare(context: Context, here: TrialContainer) -> Finding:
    seen, _, said = _visible_gpus(here)
    (gpu,) = here.gpus
    # An instance is seen with the GPU that it is a part of.
    wanted = sorted(uuid for uuid in (gpu.uuid, gpu.parent) if uuid)
    part = f"{part_name(gpu)}, " if part_name(gpu) else ""
    name = f"GPU {gpu.index} ({part}{gpu.uuid})"
    if seen == wanted:
        return Finding("ok", f"one that was granted {name} sees exactly that")
    if said == "no-program":
        what = "the image has neither nvidia-smi nor Python to look with"
        return Finding("note", what, "look yourself: see docs/tutorials/gpu-machine.md")
    if len(seen) > len(wanted):
        what = f"one that was granted {gpu.uuid} sees {', '.join(seen)}"
        return Finding(
            "failure", what, "see c.GPUSpawner.extra_host_config: privileged, devices, runtime"
        )
    what = f"one that was granted {name} sees {', '.join(seen) or 'none'}"
    if context.variable_accepted is False:
        advice = toolkit.setting_line(toolkit.SETTING, "true")
        return Finding("failure", f"{what}: {toolkit.SETTING} is false", advice)
    what += f" ({' '.join(said.split())[:200]})" if said else ""
    return Finding("failure", what, toolkit.CONFIGURE)


def _visible_gpus(here: TrialContainer) -> tuple[list[str], list[str], str]:
    """Return the UUIDs and device files that a container sees, and the output of its programs."""
    _, said = here.run(["sh", "-c", SEE_GPUS, "sh", NVML])
    uuids = re.findall(r"(?:GPU|MIG)-[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", said)
    return sorted(set(uuids)), re.findall(r"^/dev/nvidia\d+$", said, re.MULTILINE), said


def not_started(context: Context, error: GPUSpawnerError) -> Finding:
    """Return the finding for a trial container that didn't start, with what to do about it."""
    if isinstance(error, NoServer):
        return Finding("skipped", str(error))
    reason = str(error).rstrip(".")
    low = reason.lower()
    advice = next((cure for words, cure in CURES if any(word in low for word in words)), "")
    return Finding("failure", reason, advice or ASK_ENGINE)


ASK_ENGINE = "see what the engine says: sudo journalctl -u docker --since -5min"
# Part of a message of the engine or of ours -> what to do. The first match counts.
CURES = (
    (("can't hand out gpus",), toolkit.INSTALL),
    (
        ("unknown device", "cdi device"),
        "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
    ),
    (
        ("nvml error", "driver/library", "driver rpc", "driver not loaded"),
        "restart the machine, as after an update of the driver; then: nvidia-smi",
    ),
    (("no space left", "disk is full"), "docker system df; docker image prune"),
    (
        ("volume specification", "invalid mode", "mount", "bind source", "volume"),
        "mend c.GPUSpawner.volumes and mounts, and binds and mounts in extra_host_config",
    ),
    (
        ("logging plugin", "logging driver", "log opt"),
        "mend c.GPUSpawner.log_driver and log_options",
    ),
    (("gathering device information",), "mend devices in c.GPUSpawner.extra_host_config"),
    (("unable to find user",), "mend user in c.GPUSpawner.extra_create_kwargs"),
    (
        ("c.gpuspawner.", "runtime", "invalid", "sysctl", "capabilit"),
        "mend c.GPUSpawner.extra_host_config and extra_create_kwargs",
    ),
)


def without_gpu(context: Context) -> Iterator[Finding]:
    """Check that a container without GPUs sees none, whatever its image asks for."""
    if context.trial_image is None:
        yield NO_IMAGE
        return

    def examine(here: TrialContainer) -> Finding:
        seen, devices, _ = _visible_gpus(here)
        if seen or devices:
            what = f"one that was granted no GPU sees {', '.join(seen or devices)}"
            advice = "see c.GPUSpawner.extra_host_config: privileged, devices, runtime"
            return Finding("failure", what, advice)
        names = ", ".join(here.refused_ulimits)
        limits = f"; the engine may not set its limits {names}" if names else ""
        return Finding("ok", f"one that was granted none sees none{limits}")

    try:
        yield run_trial(context, 0, examine)
    except GPUSpawnerError as error:
        yield not_started(context, error)


# ---- The way to the hub --------------------------------------------------------------------------


def hub_address(context: Context) -> Iterator[Finding]:
    """Check that a container in the servers' network reaches the hub's address.

    If the hub doesn't run, doctor listens at its address instead.
    """
    given = context.configuration
    if given is None:
        return
    listens, connects = given.hub.get("listens"), given.hub.get("connects")
    if given.spawner.get("hub_connect_url") or connects is None:
        yield Finding("note", "the configuration names a URL of its own for servers: not tried")
        return
    if connects[0] in ("127.0.0.1", "localhost", "::1"):
        where = _where_the_hub_is(given)
        what = f"{where}: the hub is at {connects[0]}, which in a container is the container itself"
        yield Finding("failure", what, HUB_IP_LINE)
        return
    if context.trial_image is None:
        yield NO_IMAGE
        return
    try:
        listener = _listen(listens)
    except OSError as error:
        where = _where_the_hub_is(given)
        what = f"{where}: the hub can't listen at {_address_text(listens)}: {error.strerror}"
        own = context.own_container
        advice = ROOTLESS_LINES if is_rootless(context.engine_info) else HUB_IP_LINE
        if own is not None and not shares_host_network(own):
            what = f"{what} in its container {str(own['Name']).lstrip('/')}"
            advice = HOST_NETWORK
        yield Finding("failure", what, advice)
        return
    with closing(listener) if listener else nullcontext():
        yield _check_reached(context, connects, hub_runs=listener is None)


HUB_IP_LINE = (
    'c.JupyterHub.hub_ip = ensure_network("gpuspawner")    (as in the shipped configuration)'
)
# The engine's networks are in another network namespace, where no hub can listen.
ROOTLESS_LINES = (
    "with rootless Docker a network's address isn't this machine's:\n"
    'c.JupyterHub.hub_ip = ""\n'
    'c.JupyterHub.hub_connect_ip = "…"    (an address of this machine that containers reach)'
)


def _where_the_hub_is(given: Configuration) -> str:
    """Return the setting of the hub's address for servers, with its line."""
    for name in ("hub_connect_ip", "hub_bind_url", "hub_ip"):
        if line := given.lines.get(("JupyterHub", name)):
            return f"c.JupyterHub.{name} (line {line})"
    return "c.JupyterHub.hub_ip"


def _address_text(place: Any) -> str:
    return f"{place[0] or '*'}:{place[1]}"


def _listen(place: Any) -> socket.socket | None:
    """Listen at the hub's address; return None if something already does, or there is none.

    Raises:
        OSError: this machine can't listen at that address.
    """
    if place is None:
        return None
    family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((place[0], place[1]))
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise
    return listener


def _check_reached(context: Context, place: Any, hub_runs: bool) -> Finding:
    given = context.configuration
    assert given is not None
    network = str(given.spawner.get("network_name") or "bridge")

    def examine(here: TrialContainer) -> Finding:
        host, port = str(place[0]), str(place[1])
        status, said = here.run(["sh", "-c", CONNECT, "sh", host, port])
        if status == 0:
            who = "a hub runs there" if hub_runs else "tried without a hub"
            return Finding(
                "ok", f"{_address_text(place)} is reached from the network {network} ({who})"
            )
        if status == 99:
            return Finding("note", "the image has neither Python nor bash to try it with")
        last = said.rpartition("\n")[2]
        what = f"{_address_text(place)} isn't reached from the network {network}: {last}"
        return Finding("failure", what, _firewall_advice(context, network, port))

    try:
        return run_trial(context, 0, examine, network)
    except GPUSpawnerError as error:
        return not_started(context, error)


def _firewall_advice(context: Context, network: str, port: str) -> str:
    """Return the command that lets a network's containers through this machine's firewall."""
    assert context.engine is not None
    bridge = "docker0"
    if network != "bridge":
        about = context.engine.api.inspect_network(network)
        options = about.get("Options") or {}
        bridge = options.get("com.docker.network.bridge.name") or f"br-{about['Id'][:12]}"
    return (
        f"let it through the firewall: sudo ufw allow in on {bridge} to any port {port} proto tcp\n"
        f"or: sudo firewall-cmd --zone=docker --add-port={port}/tcp --permanent\n"
        "and see that c.JupyterHub.hub_ip is the network's gateway"
    )
