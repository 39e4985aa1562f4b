"""The oldest Docker Engine that servers with GPUs can be on, where there are several machines."""

from __future__ import annotations

import re

# An older one ends running servers with GPUs at every change of a machine of the Swarm.
# ref: https://github.com/moby/moby/issues/44378
OLDEST = (25, 0, 3)
OLDEST_WORDS = ".".join(map(str, OLDEST))


def is_too_old(version: str) -> bool:
    """Return whether an engine's version, "25.0.3", is older than `OLDEST`, or isn't known."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    return not found or tuple(int(each or 0) for each in found.groups()) < OLDEST
