"""The checks of one machine among several, which the part of its daemon runs for a hub.

No container is started: the hub says what is started there, and `gpuspawner node join` tries one.
"""

from __future__ import annotations

from . import checks
from .findings import Check

_OF_A_HUB = {
    checks.CONFIGURATION,
    checks.SETTINGS,
    checks.IMAGES,
    checks.PROXY,
    checks.NETWORK,
    checks.HUB,
    checks.MACHINES,
    checks.SWARM,
    checks.SHARED_HOMES,
    checks.WITH_GPU,
    checks.WITHOUT_GPU,
    "Connections",
    "Permissions",
}

NODE_CHECKS: tuple[Check, ...] = tuple(
    each for each in checks.CHECKS if each.title not in _OF_A_HUB
)
