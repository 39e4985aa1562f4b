"""The facts that one user may see, as the JSON value of the API, which the pages show, too.

Pages show nothing else. Names of other users are for administrators, unless `--names everybody` is
set; all users see GPUs, states, ends of leases and places in the queue.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from ..choices.home_use import HomeUse
from ..gpus.model import GPU, WHOLE, Holder, Node
from ..gpus.names import part_name
from ..gpus.out_of_service import OutOfServiceMark
from ..gpus.unit_names import UnitIndex
from ..i18n.lazy_text import restored
from ..leases.gpu_trouble import GPUTrouble
from .health_facts import gpu_health
from .history import SECONDS_PER_POINT
from .monitor import Snapshot


@dataclass(frozen=True)
class Person:
    """The user who asks.

    Args:
        name: the user's name; "" for a service of the hub.
        administrator: whether they may stop all servers.
        sees_names: whether they may see the names of other users.
        groups: the user's groups.
        may_teach: whether they may act as an instructor, where they are one: the hub knows that.
    """

    name: str
    administrator: bool = False
    sees_names: bool = False
    groups: frozenset[str] = frozenset()
    may_teach: bool = False

    def is_user(self, name: str) -> bool:
        """Return whether they are this user."""
        return bool(self.name) and self.name == name

    def sees(self, name: str) -> bool:
        """Return whether they may read this user's name."""
        return self.sees_names or self.is_user(name)

    def sees_holder(self, name: str, *, other_hub: bool) -> bool:
        """Return whether they may read whose a lease is; another hub's users are other people."""
        return self.sees_names if other_hub else self.sees(name)


def status(snapshot: Snapshot, person: Person, *, history: bool = True) -> dict[str, Any]:
    """Return all facts as a JSON value; `openapi.yaml` describes it.

    Args:
        snapshot: the state of the nodes and the hub.
        person: who asks.
        history: whether to include the GPUs' last minutes.
    """
    now = time.time()
    leases = list(snapshot.hub["leases"]) if snapshot.hub else _leases_by_label(snapshot)
    ends = {uuid: each["until"] for each in leases for uuid in each["gpus"]}
    offers = _offers(snapshot)
    is_ours, holders = _ours(snapshot, offers), _Holders(leases)
    names_machines = snapshot.names_machines_for(person.administrator)
    # With one node this is all that there is to say of it.
    nodes = snapshot.machines.nodes(snapshot.nodes)
    first = next((node for node in nodes if node.driver), Node())
    return {
        "now": iso_time(now),
        "read_at": iso_time(snapshot.at),
        "known": snapshot.is_known(now),
        "trouble": snapshot.trouble,
        "driver": first.driver,
        "cuda": first.cuda,
        "nodes": [
            {
                "name": snapshot.machines.known_as(node.name, names_machines),
                "driver": node.driver,
                "cuda": node.cuda,
                "images": _images(snapshot, node.name) if person.administrator else None,
            }
            for node in nodes
        ],
        "you": {
            "user": person.name,
            "administrator": person.administrator,
            "sees_names": person.sees_names,
        },
        "gpus": [
            _gpu(
                _as_offered(gpu, offers),
                holders.of(gpu) if is_ours(gpu) else None,
                snapshot,
                person,
                ends,
                now,
                history,
            )
            for gpu in snapshot.machines.gpus(snapshot.gpus)
        ],
        "servers": [_server(each, person) for each in leases if person.sees(each["user"])],
        "stopped": _stopped(snapshot, person),
        "requests": [
            request_facts(each) for each in _requests(snapshot) if person.sees(each["user"])
        ],
        "queue": _queue(snapshot, person),
        "homes": _homes(snapshot, person),
        "messages": _messages(snapshot, person),
        # Whose they are is in their containers' names too.
        "orphans": _orphans(snapshot) if person.administrator else [],
        "outsiders": _outsiders(snapshot) if person.administrator else [],
    }


def _images(snapshot: Snapshot, node: str) -> list[dict[str, Any]] | None:
    """Return the catalogue's image versions and whether a node has each; None: not known."""
    there = snapshot.images.get(node)
    if there is None:
        return None
    return [
        {"key": key, "title": title, "there": key in there}
        for key, title in snapshot.versions.items()
    ]


def iso_time(seconds: float | None) -> str | None:
    """Return seconds since the epoch as ISO 8601 in UTC."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def _gpu(
    gpu: GPU,
    ours: Sequence[Holder] | None,
    snapshot: Snapshot,
    person: Person,
    ends: Mapping[str, float | None],
    now: float,
    history: bool,
) -> dict[str, Any]:
    known = snapshot.is_known(now)
    names_machines = snapshot.names_machines_for(person.administrator)
    mark = snapshot.marks.get(gpu.uuid or "") or snapshot.marks.get(gpu.parent)
    holder = gpu.holder
    held_here = holder is not None and ours is not None and not holder.hub
    until = ends.get(gpu.id or "", gpu.until) if held_here else gpu.until
    # Of a GPU that was shared, and is whole now, several servers may have slots still.
    found = [each for each in ours or () if holder and each != holder]
    mine = [holder, *found] if holder and held_here else found
    seen = [each for each in mine if person.sees(each.user)]
    if holder and not held_here and person.sees_holder(holder.user, other_hub=True):
        seen.insert(0, holder)
    facts = {
        "node": snapshot.machines.known_as(gpu.node, names_machines),
        "id": gpu.id,
        "uuid": gpu.uuid,
        "kind": gpu.kind,
        "part": part_name(gpu),
        "parent": gpu.parent or None,
        "index": gpu.index,
        "model": gpu.model,
        "memory_total_mib": gpu.memory_total_mib,
        "memory_used_mib": gpu.memory_used_mib if known else None,
        "utilization_percent": gpu.utilization_percent if known else None,
        # What can't be read now isn't what it was: never free.
        "state": gpu.state if known else "unknown",
        "reason": "" if gpu.state in ("free", "leased") or not known else gpu.reason,
        "in_use": holder is not None,
        "yours": any(person.is_user(each.user) for each in mine),
        "holder": _holder(holder) if holder in seen else None,
        "holders": [_holder(each) for each in seen],
        "other_hub": bool(holder and not held_here),
        "until": iso_time(until) if holder else None,
        "out_of_service": _mark(mark, person),
    }
    sees_watched = person.administrator or bool(facts["yours"])
    facts["health"] = gpu_health(gpu, mark, snapshot, sees_watched)
    if history:
        use, memory = snapshot.history.points(gpu, now)
        facts["history"] = {
            "seconds_per_point": SECONDS_PER_POINT,
            "utilization_percent": use,
            "memory_used_mib": memory,
        }
    return facts


def _ours(snapshot: Snapshot, others: Collection[str] = ()) -> Callable[[GPU], bool]:
    """Return what says whether this hub's servers have a unit, or it is one of others."""
    index = UnitIndex(snapshot.ours)
    return lambda gpu: gpu.id in others or bool(gpu.name and index.excluded_by(gpu.name))


class _Holders:
    """This hub's servers by the units that they hold, called as they were when they were leased.

    Args:
        leases: as the hub tells them.
    """

    def __init__(self, leases: Sequence[Mapping[str, Any]]) -> None:
        self._by_name = {
            name: Holder(each["user"], each["server"]) for each in leases for name in each["gpus"]
        }
        self._index = UnitIndex(self._by_name)

    def of(self, gpu: GPU) -> list[Holder]:
        """Return the servers that hold a unit, or what excludes it."""
        names = self._index.excluded_by(gpu.name) if gpu.name else []
        return list(dict.fromkeys(self._by_name[name] for name in names))


def _requests(snapshot: Snapshot) -> list[dict[str, Any]]:
    return list(snapshot.hub.get("requests", ())) if snapshot.hub else []


def _offers(snapshot: Snapshot) -> dict[str, tuple[Holder, float]]:
    """Return unit -> (holder, until) of what the hub has reserved for servers that run."""
    return {
        name: (Holder(each["user"], each["server"]), each["offer"]["until"])
        for each in _requests(snapshot)
        if each["offer"]
        for name in each["offer"]["gpus"]
    }


def _as_offered(gpu: GPU, offers: Mapping[str, tuple[Holder, float]]) -> GPU:
    """Return a GPU that is free for the engine as the one of whom it is reserved for."""
    offer = offers.get(gpu.id or "")
    if offer is None or gpu.state != "free":
        return gpu
    return replace(gpu, state="leased", holder=offer[0], until=offer[1])


def request_facts(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the hub says of a running server's request, as a JSON value of the API."""
    offer = request["offer"]
    same = ("user", "server", "gpus", "kind", "model", "place", "of", "restarting")
    return {
        **{name: request[name] for name in same},
        "since": iso_time(request["since"]),
        "expected": iso_time(request["start"]),
        "offer": offer and {"gpus": offer["gpus"], "until": iso_time(offer["until"])},
        "notice": restored(request["notice"]) or "",
    }


def _holder(holder: Holder) -> dict[str, str]:
    return {"user": holder.user, "server": holder.server}


def _mark(mark: OutOfServiceMark | None, person: Person) -> dict[str, Any] | None:
    if mark is None:
        return None
    by = mark.by if not mark.is_own or person.sees(mark.by) else None
    return {"why": mark.said, "since": iso_time(mark.since), "by": by}


def _leases_by_label(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return this hub's servers as far as the engine knows them, while the hub says nothing."""
    is_ours = _ours(snapshot)
    held: dict[Holder, list[GPU]] = {}
    for gpu in snapshot.gpus:
        if gpu.holder and is_ours(gpu):
            held.setdefault(gpu.holder, []).append(gpu)
    return [
        {
            **_holder(holder),
            "gpus": [gpu.id for gpu in gpus],
            "until": max((gpu.until for gpu in gpus), key=_known_first),
        }
        for holder, gpus in held.items()
    ]


def _known_first(until: float | None) -> float:
    return until or 0.0


def _server(lease: Mapping[str, Any], person: Person) -> dict[str, Any]:
    return {
        "user": lease["user"],
        "server": lease["server"],
        "gpus": lease["gpus"],
        "image": lease.get("image", ""),
        "since": iso_time(lease.get("since")),
        "until": iso_time(lease["until"]),
        "hours": lease.get("hours"),
        "hour_limit": lease.get("hour_limit"),
        "warned": bool(lease.get("warned")),
        "extend_from": iso_time(lease.get("extend_from")),
        "waited_for": lease.get("waited_for", 0),
        "idle_since": iso_time(lease.get("idle_since")),
        "idle_until": iso_time(lease.get("idle_until")),
        "stop": _with_reason(lease["stop"], lease["user"], person) if lease.get("stop") else None,
        "trouble": _trouble(lease.get("trouble") or {}),
        "memory": _memory(lease["memory"], lease["user"], person) if lease.get("memory") else None,
    }


def _memory(share: Mapping[str, Any], user: str, person: Person) -> dict[str, Any]:
    """Return what a server holds of a shared GPU's memory; what runs in it, others needn't know."""
    ended = share["ended"] if person.administrator or person.is_user(user) else None
    return {
        "guarded": share["guarded"],
        "used_bytes": share["used"],
        "part_bytes": share["part"],
        "next": share["next"],
        "at": iso_time(share["until"]),
        "ended": ended
        and {
            "process": ended["process"],
            "held_bytes": ended["held"],
            "at": iso_time(ended["at"]),
        },
    }


def _trouble(trouble: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is wrong with a server's GPUs, with the words that pages have for it."""
    gone = trouble.get("devices_gone_since")
    gpus = [*trouble.get("gpus", ())]
    words = GPUTrouble(tuple(gpus), gone).words
    return {"gpus": gpus, "devices_gone_since": iso_time(gone), "words": words}


def _stopped(snapshot: Snapshot, person: Person) -> list[dict[str, Any]]:
    found = snapshot.hub.get("stopped", []) if snapshot.hub else []
    return [_with_reason(each, each["user"], person) for each in found if person.sees(each["user"])]


def _with_reason(stop: Mapping[str, Any], user: str, person: Person) -> dict[str, Any]:
    """Return the facts of a stop; the reason is for the server's user and for administrators."""
    why = stop["why"] if person.administrator or person.is_user(user) else ""
    return {**stop, "at": iso_time(stop["at"]), "why": why}


def _messages(snapshot: Snapshot, person: Person) -> list[dict[str, Any]]:
    found = snapshot.hub.get("messages", []) if snapshot.hub else []
    return [{**each, "at": iso_time(each["at"])} for each in found if person.is_user(each["user"])]


def _orphans(snapshot: Snapshot) -> list[dict[str, Any]]:
    found = snapshot.hub.get("orphans", []) if snapshot.hub else []
    return [
        {**each, "until": iso_time(each["until"]), "stops_at": iso_time(each["stops_at"])}
        for each in found
    ]


def _homes(snapshot: Snapshot, person: Person) -> list[dict[str, Any]]:
    homes = [
        {
            "user": each["user"],
            "server": each["server"],
            "used_bytes": each["used"],
            "allowed_bytes": each["allowed"],
            "enforced": each["enforced"],
            "measured_at": iso_time(each["at"]),
        }
        for each in (snapshot.hub or {}).get("homes", ())
        if person.sees(each["user"])
    ]
    homes.sort(key=lambda home: home["used_bytes"], reverse=True)
    return [{**home, "nearly_full": home_use(home).is_nearly_full} for home in homes]


def home_use(home: Mapping[str, Any]) -> HomeUse:
    """Return how full a home of the status is, and the sentences that say it."""
    at = datetime.fromisoformat(home["measured_at"]).timestamp()
    return HomeUse(home["used_bytes"], home["allowed_bytes"], home["enforced"], at)


def _outsiders(snapshot: Snapshot) -> list[dict[str, Any]]:
    return [{"name": each.name, "gpus": sorted(each.gpus)} for each in snapshot.outsiders]


def _queue(snapshot: Snapshot, person: Person) -> dict[str, Any]:
    if snapshot.hub is None:
        return {"known": False, "order": None, "waiting": []}
    waiting = [
        {
            "place": entry["place"],
            "yours": person.is_user(entry["user"]),
            "holder": _holder(Holder(entry["user"], entry["server"]))
            if person.sees(entry["user"])
            else None,
            "gpus": entry["gpus"],
            "kind": entry.get("kind", WHOLE),
            "model": entry["model"],
            "since": iso_time(entry["since"]),
            "expected": iso_time(entry["start"]),
        }
        for entry in snapshot.hub["queue"]
    ]
    return {"known": True, "order": snapshot.hub["order"], "waiting": waiting}
