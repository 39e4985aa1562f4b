"""What one user may see of a GPU's health, as a JSON value of the API."""

from __future__ import annotations

from typing import Any

from ..gpus.health import VERDICTS, cause_of, todo, words_of, worst
from ..gpus.model import GPU
from ..gpus.out_of_service import OutOfServiceMark, causes_now
from .monitor import Snapshot


def gpu_health(
    gpu: GPU, mark: OutOfServiceMark | None, snapshot: Snapshot, sees_watched: bool
) -> dict[str, Any]:
    """Return the verdict on a unit's GPU, its causes, and for people why, and what to do.

    Args:
        gpu: the unit.
        mark: its mark; None if it is in service.
        snapshot: the state of the nodes and the hub.
        sees_watched: whether the user may read what is only watched, as their own program's error.
    """
    kept_out = (*mark.causes,) if mark else causes_now(gpu)
    of_hub = [
        each
        for each in (snapshot.hub or {}).get("health", ())
        if each["uuid"] == gpu.gpu_uuid and sees_watched
    ]
    watched = [
        key
        for each in of_hub
        for key in each["causes"]
        if cause_of(key).verdict == "watch" and _concerns(key, each["events"], gpu)
    ]
    causes = sorted({*kept_out, *watched})
    cause = worst(causes)
    return {
        "verdict": cause.verdict if cause else VERDICTS[0],
        "causes": causes,
        "words": words_of(causes),
        "todo": todo(cause.remedy, gpu.index) if cause else "",
    }


def _concerns(key: str, events: list[dict[str, Any]], gpu: GPU) -> bool:
    """Return whether an event was of a unit: of the whole GPU, or of this instance."""
    of_it = [each["instances"] for each in events if f"xid-{each['xid']}" == key]
    return not gpu.parent or not of_it or any(not one or gpu.uuid in one for one in of_it)
