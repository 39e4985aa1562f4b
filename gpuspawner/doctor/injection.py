"""The check of the way in which containers are given their GPUs: by CDI, or by NVIDIA's hook."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..backends.docker.injection import GENERATE, EngineCDI, cdi_of
from . import cdi_files
from .engine import find_program
from .findings import Context, Finding
from .toolkit import SIMULATION_VARIABLE

HOOK, CDI_HOOK = "nvidia-container-runtime-hook", "nvidia-cdi-hook"
# From this one on the engine's `nvidia` requests may be served by CDI, too.
# ref: https://github.com/moby/moby/pull/50228 and /52704, which differ in what goes first
FIRST_WITH_BOTH = (29, 2)
# From 25 to the one before this, CDI has to be turned on, and devices aren't listed.
FIRST_WITH_LIST = (28, 2)
TURN_ON = (
    'in /etc/docker/daemon.json: "features": {"cdi": true}    then: sudo systemctl restart docker'
)
BY_HOOK = "sudo apt-get install nvidia-container-toolkit && sudo systemctl restart docker"
# How many of a specification's mistakes are named.
NAMED = 3


def injection(context: Context) -> Iterator[Finding]:
    """Say by which way servers are given GPUs, and why; check that this way is there."""
    if context.inventory is None or context.inventory.driver is None:
        return
    uuids = [gpu.uuid for gpu in context.inventory.gpus if gpu.uuid]
    if not uuids or context.engine is None:
        return
    engine = cdi_of(context.engine_info, str(context.engine.api.api_version))
    wanted, where = _wanted(context)
    lacks = engine.lacks(uuids)
    some_listed = wanted == "auto" and len(lacks) < len(uuids)
    if wanted == "cdi":
        yield _by_cdi(context, engine, lacks, where)
    elif some_listed:
        yield _listed(len(uuids), lacks)
    else:
        yield _by_hook(context, engine, wanted, where)
    uses_cdi = wanted == "cdi" or some_listed
    if uses_cdi or _takes_cdi_itself(context):
        yield from _specifications(context, uuids, uses_cdi)


def _wanted(context: Context) -> tuple[str, str]:
    """Return the trait's value, and where it is set."""
    given = context.configuration
    if given is None or not given.spawner.get("gpu_injection"):
        return "auto", "c.GPUSpawner.gpu_injection"
    return str(given.spawner["gpu_injection"]), given.where("gpu_injection")


def _version(context: Context) -> tuple[int, ...]:
    words = str(context.engine_info.get("ServerVersion") or "")
    return tuple(map(int, re.findall(r"\d+", words)[:2]))


def _by_cdi(context: Context, engine: EngineCDI, lacks: Sequence[str], where: str) -> Finding:
    if engine.is_on is False:
        advice = TURN_ON if _version(context) >= (25, 0) else "update Docker to 25 or newer"
        return Finding(
            "failure",
            f"{where} is 'cdi', and this Docker knows no CDI",
            f'{advice}\nor c.GPUSpawner.gpu_injection = "auto"',
        )
    if engine.devices is None:
        return Finding(
            "ok",
            f"by CDI, as {where} says; this Docker doesn't list its devices, so the container with "
            "a GPU below shows whether they are there",
        )
    if lacks:
        # nvidia-ctk of long ago named devices by their index only.
        more = "; those that it has have other names" if engine.devices else ""
        what = f"{where} is 'cdi', and Docker has no device {lacks[0]}{more}"
        return Finding("failure", what, GENERATE)
    return Finding("ok", f"by CDI, as {where} says")


def _listed(gpus: int, lacks: Sequence[str]) -> Finding:
    if not lacks:
        return Finding("ok", f"by CDI: Docker lists {'it' if gpus == 1 else f'all {gpus}'}")
    return Finding(
        "warning",
        f"by CDI, but by NVIDIA's hook where a server has one that Docker doesn't list: "
        f"{', '.join(lacks)}",
        GENERATE,
    )


def _by_hook(context: Context, engine: EngineCDI, wanted: str, where: str) -> Finding:
    """Return the finding for the hook: whether it is there, and why it is the way."""
    version = _version(context)
    if wanted == "hook":
        why = f"as {where} says"
    elif engine.devices is not None:
        why = "Docker lists no CDI devices of these GPUs"
    elif engine.is_on:
        why = "Docker before 28.2 doesn't list CDI devices"
    else:
        why = "Docker knows no CDI"
    if not context.engine_is_here or SIMULATION_VARIABLE in os.environ:
        return Finding("ok", f"by NVIDIA's hook: {why}")
    hook, other = find_program(HOOK), find_program(CDI_HOOK)
    if other and version >= FIRST_WITH_BOTH:
        order = "CDI or the hook, whichever this Docker tries first" if hook else "CDI"
        return Finding(
            "note",
            f"by a request for `nvidia`, for which Docker takes {order} ({CDI_HOOK} is there). "
            "With CDI NVIDIA_VISIBLE_DEVICES is `void` in a server: GPUSPAWNER_GPUS says what it "
            "has",
            "" if hook else GENERATE,
        )
    if hook:
        return Finding("ok", f"by NVIDIA's hook: {why}")
    return Finding(
        "failure",
        f"by NVIDIA's hook ({why}), and {HOOK} isn't installed, so Docker has no device driver "
        "`nvidia`: the toolkit's base package alone doesn't have it",
        f"{BY_HOOK}\n{_how_to_cdi(version)}",
        blocks=False,
    )


def _how_to_cdi(version: tuple[int, ...]) -> str:
    if version < (25, 0):
        return "or update Docker to 28.2 or newer, which needs only CDI"
    if version < FIRST_WITH_LIST:
        return (
            f"or by CDI: {GENERATE}\n{TURN_ON}\n"
            'and in the configuration: c.GPUSpawner.gpu_injection = "cdi"'
        )
    return f"or by CDI: {GENERATE}"


def _takes_cdi_itself(context: Context) -> bool:
    return _version(context) >= FIRST_WITH_BOTH and find_program(CDI_HOOK) is not None


def _specifications(context: Context, uuids: Sequence[str], is_used: bool) -> Iterator[Finding]:
    """Compare the specifications with the machine's devices, where both can be seen."""
    folders = [Path(str(each)) for each in context.engine_info.get("CDISpecDirs") or []]
    if not folders or not context.engine_is_here:
        return
    found = cdi_files.read(folders)
    for path, why in found.unread.items():
        yield Finding("note", f"{path} can't be read: {why}", "run this as root")
    for name, files in found.twice.items():
        what = f"{name} is in {files[0]} and in {files[1]}, so Docker takes neither"
        yield Finding("warning", what, f"remove one of them: {files[0]}")
    told = {uuid.lower() for uuid in uuids}
    devices = [each for name, each in found.devices.items() if name.lower() in told]
    wrong = cdi_files.problems(devices, cdi_files.device_numbers())
    for file, words in wrong.items():
        more = f" (and {len(words) - NAMED} more)" if words[NAMED:] else ""
        yield Finding(
            "failure" if is_used else "warning",
            f"{file} isn't of this machine as it is now: {'; '.join(words[:NAMED])}{more}",
            f"sudo nvidia-ctk cdi generate --output={file}",
            blocks=False,
        )
    if devices and not wrong:
        files_read = ", ".join(sorted({str(each.file) for each in devices}))
        yield Finding("ok", f"the devices in {files_read} are this machine's")
