"""The stand-in for `nvidia-container-runtime`: an OCI runtime that adds the hook, and is runc else.

Where it is an engine's default runtime, a container gets GPUs by `NVIDIA_VISIBLE_DEVICES` alone. So
do the tasks of Swarm's services, which carry no device requests.

It is run by itself, without the package (`python -I -S runtime.py HOOK …`), hence imports nothing
of it. HOOK is the stand-in hook's path.

ref: https://github.com/NVIDIA/nvidia-container-toolkit, cmd/nvidia-container-runtime
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RUNTIME = "nvidia-container-runtime"
# Its name in daemon.json.
NAME = "nvidia"


def bundle_of(words: Sequence[str]) -> Path | None:
    """Return the folder of the container that a command line of runc's creates; None: it doesn't.

    ref: runc-create(8)
    """
    if "create" not in words:
        return None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word in ("--bundle", "-b"):
            return Path(following)
        if word.startswith("--bundle="):
            return Path(word.removeprefix("--bundle="))
    return Path.cwd()


def with_hook(config: dict[str, Any], hook: str) -> dict[str, Any]:
    """Return a container's config.json with the hook, unless it has one."""
    hooks = dict(config.get("hooks") or {})
    before = list(hooks.get("prestart") or [])
    if any(each.get("path") == hook for each in before):
        return config
    ours = {"path": hook, "args": [Path(hook).name, "prestart"]}
    return {**config, "hooks": {**hooks, "prestart": [*before, ours]}}


def main(hook: str, *words: str) -> None:
    """Add the hook to a container that is created, and become runc."""
    bundle = bundle_of(words)
    if bundle is not None:
        path = bundle / "config.json"
        path.write_text(json.dumps(with_hook(json.loads(path.read_text()), hook)))
    os.execvp("runc", ["runc", *words])  # noqa: S606


if __name__ == "__main__":
    main(*sys.argv[1:])
