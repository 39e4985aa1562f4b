"""What a dashboard has read of made-up hosts, and its page of that."""

from __future__ import annotations

import time
from typing import Any

from gpuspawner.dashboard import pages
from gpuspawner.dashboard.facts import Person
from gpuspawner.dashboard.monitor import Snapshot
from gpuspawner.gpus.model import GPU, Holder, Node
from gpuspawner.i18n.languages import ENGLISH, Language

HOSTILE = "<script>alert('x')</script>\"&{{ 7*7 }}%s %(num)s"
UNTIL = 4_000_000_000.0
ADA, BOSS = Person("ada"), Person("boss", administrator=True, sees_names=True)


def gpu(index: int, holder: Holder | None = None, **values: Any) -> GPU:
    state = {"state": "leased", "holder": holder, "reason": "taken"} if holder else {}
    return GPU(**{"uuid": f"GPU-{index}", "index": index, "model": "A100", **state, **values})


def lease(holder: Holder, *uuids: str, **values: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("hours", "hour_limit", "idle_since", "idle_until", "stop"))
    named = {"user": holder.user, "server": holder.server, "gpus": list(uuids), "until": UNTIL}
    now = {"warned": False, "extend_from": 0.0, "waited_for": 0}
    now |= {"image": "Plain", "since": 1.0}
    return {**nothing, **named, **now, **values}


def waits(holder: Holder, **values: Any) -> dict[str, Any]:
    entry = {"user": holder.user, "server": holder.server, "gpus": 1, "model": None, "since": 1.0}
    return {**entry, "place": 1, "start": None, "because": f"group:{holder.user}", **values}


def picture(*gpus: GPU, queue: Any = (), leases: Any = (), **values: Any) -> Snapshot:
    hub = {"queue": list(queue), "leases": list(leases), "order": "fifo"}
    driver, cuda = values.pop("driver", "570.1"), values.pop("cuda", "12.8")
    known = {"at": time.time(), "nodes": (Node("", driver, cuda, gpus),), "hub": hub}
    ours = frozenset(each.uuid for each in gpus if each.holder and each.uuid)
    return Snapshot(**{**known, "ours": ours, **values})


def render(seen: dict[str, Any], language: Language = ENGLISH) -> str:
    return pages.render(
        "live.html", language, seen, hub="/hub/", base="/services/gpus/", xsrf="secret"
    )
