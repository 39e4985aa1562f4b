"""The checks of one machine of a Swarm that only it can make: its engine and NVIDIA's toolkit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..untrusted import parse_json
from .findings import Context, Finding
from .toolkit import CONFIG_FILE, installed_version

DAEMON_JSON = Path("/etc/docker/daemon.json")
# The toolkit's setting for named resources of a Swarm, which gpuspawner doesn't use.
RESOURCE = "swarm-resource"
# It ignores that setting, and gives every container all GPUs.
# ref: https://github.com/NVIDIA/nvidia-container-toolkit/issues/1599
IGNORES_RESOURCE = (1, 18)
JOIN = "with no server running, and a new invitation: gpuspawner node join"


def swarm_node(context: Context) -> Iterator[Finding]:
    """Check this machine as a part of a Swarm, if its engine is in one."""
    if not is_in_swarm(context.engine_info):
        return
    has_gpus = context.inventory is not None and context.inventory.driver is not None
    if has_gpus:
        yield from of_runtime(context.engine_info)
    if context.engine_is_here:
        yield from of_live_restore(_text(DAEMON_JSON))
        yield from of_resource(_text(CONFIG_FILE), installed_version())


def is_in_swarm(info: Mapping[str, Any]) -> bool:
    """Return whether an engine is in a Swarm, by its `GET /info`."""
    return (info.get("Swarm") or {}).get("LocalNodeState") == "active"


def of_runtime(info: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield whether an engine gives services GPUs: they can't name a runtime themselves."""
    if info.get("DefaultRuntime") == "nvidia":
        yield Finding("ok", "its default runtime gives services their GPUs")
        return
    yield Finding(
        "failure",
        f"the default runtime is {info.get('DefaultRuntime') or 'unknown'}, and not nvidia: a "
        "service can't name another one, so servers here see no GPU",
        JOIN,
    )


def of_live_restore(text: str) -> Iterator[Finding]:
    """Yield whether an engine would start again, by its configuration file."""
    try:
        config = parse_json(text or "{}")
    except ValueError:
        return  # the engine says so itself
    if isinstance(config, Mapping) and config.get("live-restore") is True:
        yield Finding(
            "failure",
            f"{DAEMON_JSON} has live-restore, which Swarm refuses: the engine doesn't start the "
            "next time, and this machine is away",
            f'take "live-restore" out of {DAEMON_JSON}',
        )


def of_resource(text: str, version: tuple[int, ...] | None) -> Iterator[Finding]:
    """Yield what the toolkit's setting for named resources does, by its configuration file."""
    found = re.search(rf"^\s*\"?{RESOURCE}\"?\s*=\s*(.+?)\s*(?:#.*)?$", text, re.MULTILINE)
    if not found or found[1].strip("\"'") == "":
        return
    todo = f"take {RESOURCE} out of {CONFIG_FILE}, then\nsudo systemctl restart docker"
    if version and version[:2] == IGNORES_RESOURCE:
        words = ".".join(map(str, version))
        yield Finding(
            "failure",
            f"{CONFIG_FILE} has {RESOURCE} = {found[1]}, with which toolkit {words} gives every "
            "container all GPUs: servers would see those of others",
            todo,
        )
        return
    yield Finding(
        "warning",
        f"{CONFIG_FILE} has {RESOURCE} = {found[1]}, which gpuspawner doesn't use: toolkit 1.18 "
        "gives every container all GPUs with it",
        todo,
    )


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
