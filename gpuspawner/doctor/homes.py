"""The check of users' homes: whether anything limits them, and how their sizes are measured."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker.errors

from ..backends.docker.errors import UNREACHABLE, engine_message, explain
from ..backends.docker.volume_folders import QUOTA
from ..i18n.phrases import memory_words
from .findings import Context, Finding
from .own_volumes import OWN

PAGE = "see docs/how-to/files.md, Limit the disk"


def homes(context: Context) -> Iterator[Finding]:
    """Check whether `home_size` is enforced, by making a volume with a quota."""
    given = context.configuration
    if not given or not given.is_ours or not given.spawner.get("home_volume"):
        return
    size = given.spawner.get("home_size")
    if size and context.engine is not None:
        said = f"{given.where('home_size')} = {memory_words(size)}"
        try:
            refusal = _refusal(context.engine.api, size)
        except UNREACHABLE as error:
            yield Finding("note", f"whether {said} is enforced can't be told: {explain(error)}")
        else:
            yield _of_limit(said, refusal)
    if context.engine is not None and not _is_readable(context):
        yield Finding(
            "note",
            "how much users keep at home is asked of the Docker Engine, once an hour: its folder "
            "can't be read from here",
        )


def _of_limit(said: str, refusal: str) -> Finding:
    if refusal:
        what = f"{said} is told to users, and isn't enforced: {refusal}"
        return Finding("warning", what, PAGE)
    what = f"{said} is enforced for new volumes; those of before have no limit"
    return Finding("ok", what)


def _refusal(client: Any, size: int) -> str:
    """Return why the engine makes no volume with a quota; "" if it does."""
    name = f"{OWN}{secrets.token_hex(4)}"
    try:
        client.create_volume(name, driver_opts={QUOTA: str(size)})
    except docker.errors.APIError as error:
        if error.status_code != 400:
            raise
        return engine_message(error)
    with suppress(docker.errors.NotFound):
        client.remove_volume(name)
    return ""


def _is_readable(context: Context) -> bool:
    root = context.engine_info.get("DockerRootDir") if context.engine_is_here else None
    return bool(root) and os.access(Path(str(root)) / "volumes", os.R_OK | os.X_OK)
