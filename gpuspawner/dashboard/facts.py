"""What one person may know of the host: the value that the JSON API answers and the pages show.

What isn't in here is on no page of theirs. Names of others are for administrators, unless the
dashboard was told otherwise; GPUs, states, ends and places in the queue are everybody's business.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from ..gpus.model import GPU, Holder, Node
from ..gpus.out_of_service import Mark
from .history import SECONDS_PER_POINT
from .monitor import Picture


@dataclass(frozen=True)
class Person:
    """Who asks.

    Args:
        name: a user's name; "" for a service of the hub's, whatever it is called.
        administrator: whether they may stop everybody's servers.
        sees_names: whether they may read who the others are.
    """

    name: str
    administrator: bool = False
    sees_names: bool = False

    def is_user(self, name: str) -> bool:
        """Return whether they are this user."""
        return bool(self.name) and self.name == name

    def sees(self, name: str) -> bool:
        """Return whether they may read this user's name."""
        return self.sees_names or self.is_user(name)


def status(picture: Picture, person: Person, *, history: bool = True) -> dict[str, Any]:
    """Return everything, as a value for JSON; `api/openapi.yaml` says what is what."""
    now = time.time()
    leases = list(picture.hub["leases"]) if picture.hub else _leases_by_label(picture)
    ends = {uuid: each["until"] for each in leases for uuid in each["gpus"]}
    # With one node this is all that there is to say of it.
    first = next((node for node in picture.nodes if node.driver), Node())
    return {
        "now": moment(now),
        "read_at": moment(picture.at),
        "known": picture.is_known(now),
        "trouble": picture.trouble,
        "driver": first.driver,
        "cuda": first.cuda,
        "nodes": [
            {"name": node.name, "driver": node.driver, "cuda": node.cuda} for node in picture.nodes
        ],
        "you": {
            "user": person.name,
            "administrator": person.administrator,
            "sees_names": person.sees_names,
        },
        "gpus": [_gpu(gpu, picture, person, ends, now, history) for gpu in picture.gpus],
        "servers": [_server(each) for each in leases if person.sees(each["user"])],
        "queue": _queue(picture, person),
    }


def moment(seconds: float | None) -> str | None:
    """Return seconds since the epoch as ISO 8601 in UTC."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def _gpu(
    gpu: GPU,
    picture: Picture,
    person: Person,
    ends: Mapping[str, float | None],
    now: float,
    history: bool,
) -> dict[str, Any]:
    known = picture.is_known(now)
    held_here = gpu.uuid in picture.ours
    until = ends.get(gpu.uuid or "", gpu.until) if held_here else gpu.until
    holder = gpu.holder
    facts = {
        "node": gpu.node,
        "uuid": gpu.uuid,
        "index": gpu.index,
        "model": gpu.model,
        "memory_total_mib": gpu.memory_total_mib,
        "memory_used_mib": gpu.memory_used_mib if known else None,
        "utilization_percent": gpu.utilization_percent if known else None,
        # What can't be read now isn't what it was: never free.
        "state": gpu.state if known else "unknown",
        "reason": "" if gpu.state in ("free", "leased") or not known else gpu.reason,
        "in_use": holder is not None,
        "yours": bool(holder and held_here and person.is_user(holder.user)),
        "holder": _holder(holder) if holder and _may_see(holder, held_here, person) else None,
        "other_hub": bool(holder and not held_here),
        "until": moment(until) if holder else None,
        "out_of_service": _mark(picture.marks.get(gpu.uuid or ""), person),
    }
    if history:
        use, memory = picture.history.points(gpu, now)
        facts["history"] = {
            "seconds_per_point": SECONDS_PER_POINT,
            "utilization_percent": use,
            "memory_used_mib": memory,
        }
    return facts


def _may_see(holder: Holder, held_here: bool, person: Person) -> bool:
    # Another hub's user of one's own name is somebody else.
    return person.sees(holder.user) if held_here else person.sees_names


def _holder(holder: Holder) -> dict[str, str]:
    return {"user": holder.user, "server": holder.server}


def _mark(mark: Mark | None, person: Person) -> dict[str, Any] | None:
    if mark is None:
        return None
    by = mark.by if person.sees(mark.by) else None
    return {"why": mark.why, "since": moment(mark.since), "by": by}


def _leases_by_label(picture: Picture) -> list[dict[str, Any]]:
    """Return this hub's servers as far as the engine knows them, while the hub says nothing."""
    held = [gpu for gpu in picture.gpus if gpu.uuid in picture.ours and gpu.holder]
    return [
        {
            **_holder(holder),
            "gpus": [gpu.uuid for gpu in held if gpu.holder == holder],
            "until": max((gpu.until for gpu in held if gpu.holder == holder), key=_known_first),
        }
        for holder in dict.fromkeys(gpu.holder for gpu in held if gpu.holder)
    ]


def _known_first(until: float | None) -> float:
    return until or 0.0


def _server(lease: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "user": lease["user"],
        "server": lease["server"],
        "gpus": lease["gpus"],
        "until": moment(lease["until"]),
        "hours": lease.get("hours"),
        "hour_limit": lease.get("hour_limit"),
        "warned": bool(lease.get("warned")),
        "extend_from": moment(lease.get("extend_from")),
        "waited_for": lease.get("waited_for", 0),
        "idle_since": moment(lease.get("idle_since")),
        "idle_until": moment(lease.get("idle_until")),
    }


def _queue(picture: Picture, person: Person) -> dict[str, Any]:
    if picture.hub is None:
        return {"known": False, "order": None, "waiting": []}
    waiting = [
        {
            "place": entry["place"],
            "yours": person.is_user(entry["user"]),
            "holder": _holder(Holder(entry["user"], entry["server"]))
            if person.sees(entry["user"])
            else None,
            "gpus": entry["gpus"],
            "model": entry["model"],
            "since": moment(entry["since"]),
            "expected": moment(entry["start"]),
        }
        for entry in picture.hub["queue"]
    ]
    return {"known": True, "order": picture.hub["order"], "waiting": waiting}
