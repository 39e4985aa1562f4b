"""Check of the memory guard: whether a hub here would see which server holds what of a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..backends.docker.process_view import sees_processes
from .findings import Context, Finding

PAGE = "see docs/how-to/parts.md"
HERE = (
    "run the hub on the machine itself, with the engine's own socket, by an account that sees /proc"
)
IN_CONTAINER = "start the hub's container with --pid=host    (in a compose file: pid: host)"


def memory_guard(context: Context) -> Iterator[Finding]:
    """Check whether something limits what servers take of shared GPUs' memory, if there are any."""
    given, engine = context.configuration, context.engine
    if given is None or engine is None or not given.is_ours:
        return
    if not _shares(given.spawner):
        return
    nothing = "nothing limits what a server takes of a shared GPU's memory"
    if not given.spawner.get("memory_guard", True):
        yield Finding("note", f"{nothing}: {given.where('memory_guard')} = False", PAGE)
        return
    try:
        sees = sees_processes(engine.api)
    except OSError as error:
        yield Finding("warning", f"{nothing}: the engine's socket can't be opened ({error})", PAGE)
        return
    if sees:
        yield Finding("ok", "servers that share a GPU are kept to their part of its memory")
        return
    advice = HERE if context.own_container is None else IN_CONTAINER
    yield Finding("warning", f"{nothing}: the machine's processes can't be seen from here", advice)


def _shares(spawner: Mapping[str, Any]) -> bool:
    """Return whether servers share GPUs by these traits: at any time, or in reserved hours."""
    if any(number != 1 for number in (spawner.get("shared_gpus") or {}).values()):
        return True
    return bool(spawner.get("has_course_slots"))
