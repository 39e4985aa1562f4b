"""The engine's notes: empty volumes that say what no label can, all of them read in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...leases.clock import Clock
from ...leases.notes import Notes
from . import extended_ends, health_marks, out_of_service

Volume = Mapping[str, Any]

# The engine's own takes names that have one of these in them anywhere.
FILTER = {
    "name": [extended_ends.PREFIX, out_of_service.PREFIX, health_marks.PREFIX_LIFTED],
}


def list_notes(client: Any) -> Sequence[Volume]:
    """Return the volumes that are notes, and maybe others, for `parse`. Blocks.

    Args:
        client: a `docker.APIClient`.
    """
    return client.volumes(filters=FILTER)["Volumes"] or ()


def parse(volumes: Iterable[Volume]) -> Notes:
    """Return what volumes say that are notes."""
    found = list(volumes)
    ends = extended_ends.latest(filter(extended_ends.container_of, found), Clock())
    lifted = frozenset(health_marks.lifted_of(found))
    return Notes(out_of_service.parse_marks(found), ends, lifted)
