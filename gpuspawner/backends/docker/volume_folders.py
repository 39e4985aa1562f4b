"""Where the files of an engine's volumes are, and how much room they take.

Of an engine of this machine, and as root, they are measured by `du`, at the lowest priority.
Elsewhere the engine is asked, which measures all that it has.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

# An option of the engine's own driver that makes no other file system of a volume.
QUOTA = "size"
# Of asking the engine, which walks through all files there are.
ENGINE_SECONDS = 1800
DU_SECONDS = 3600


def folder_of(about: Mapping[str, Any] | None) -> Path | None:
    """Return the folder of a volume's files; None where they can't be seen from here.

    Args:
        about: what the engine says of it.
    """
    # With options it is another file system, which may be mounted elsewhere, or later.
    if about is None or about.get("Driver") != "local" or set(about.get("Options") or ()) - {QUOTA}:
        return None
    try:
        folder = Path(about["Mountpoint"])
        inside, outside = os.lstat(folder), os.lstat(folder.parent)
        created = datetime.fromisoformat(about["CreatedAt"].replace("Z", "+00:00"))
    except (OSError, KeyError, ValueError):
        return None
    # The engine may be another machine's, or the hub in a container: where the folder of that
    # name is another one, it wasn't made in the same second. What engines call a volume's
    # creation is when the folder itself last changed, and since 23 the one above it.
    is_it = int(created.timestamp()) in (int(inside.st_ctime), int(outside.st_ctime))
    return folder if is_it else None


def gently(command: Sequence[str]) -> list[str]:
    """Return a command that runs when neither processor nor disk has anything else to do."""
    calm = [["nice", "-n", "19"], ["ionice", "-c", "3"]]
    return [word for words in calm if shutil.which(words[0]) for word in words] + [*command]


def measure(client: Any, volumes: Collection[Mapping[str, Any]]) -> dict[str, int]:
    """Return name -> how many bytes of the disk a volume's files take, where that is known. Blocks.

    Args:
        client: a `docker.APIClient`, of an engine that is asked only for what isn't here.
        volumes: what the engine says of them.

    Raises:
        requests.exceptions.RequestException: the engine can't be read, or refuses.
    """
    sizes: dict[str, int] = {}
    elsewhere = []
    for about in volumes:
        size = size_of(folder_of(about))
        if size is None:
            elsewhere.append(about["Name"])
        else:
            sizes[about["Name"]] = size
    if elsewhere:
        found = engines_sizes(client)
        sizes |= {name: found[name] for name in elsewhere if name in found}
    return sizes


def size_of(folder: Path | None) -> int | None:
    """Return how many bytes a folder takes on the disk; None where it can't be read. Blocks."""
    if folder is None or not os.access(folder, os.R_OK | os.X_OK):
        return None
    try:
        done = subprocess.run(
            gently(["du", "-skx", "--", str(folder)]),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=DU_SECONDS,
            check=False,
        )
        # 1: a file went away meanwhile.
        return int(done.stdout.split()[0]) * 1024 if done.returncode in (0, 1) else None
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError):
        return None


def engines_sizes(client: Any) -> dict[str, int]:
    """Return name -> how many bytes a volume's files take, as the engine measures all. Blocks.

    Raises:
        requests.exceptions.RequestException: the engine can't be read, or refuses.
    """
    # Not docker-py's `df`, which has neither a type, which newer engines take, nor enough time.
    address = f"{client.base_url}/v{client.api_version}/system/df"
    answer = client.get(address, params={"type": "volume"}, timeout=ENGINE_SECONDS)
    answer.raise_for_status()
    found = answer.json().get("Volumes") or ()
    sizes = {each["Name"]: (each.get("UsageData") or {}).get("Size", -1) for each in found}
    return {name: size for name, size in sizes.items() if size >= 0}
