"""What labels, variables and pages say of the memory guard."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gpuspawner.dashboard.facts import Person, status
from gpuspawner.gpus.host_processes import HostProcess
from gpuspawner.gpus.memory import MemoryUse
from gpuspawner.gpus.model import SHARED, Holder
from gpuspawner.hub.server_page import ServerPage
from gpuspawner.i18n.languages import ENGLISH, language_for
from gpuspawner.leases.labels import LABEL_MEMORY_GUARD

from ..support import boards, dashboards
from ..support.boards import ADA, BOSS
from ..support.spawns import Hub

CHINESE = language_for("zh-CN")
GIB = 1024**3
UNIT = "GPU-0#0/2"


def label(spawner: Any, *units: str) -> str | None:
    """Return what the label of a server with these units says of the guard."""
    granted: Any = SimpleNamespace(gpus=[SimpleNamespace(id=name) for name in units], until=None)
    return spawner.lease_labels(granted).get(LABEL_MEMORY_GUARD)


@pytest.mark.parametrize(
    ("traits", "sees", "says"),
    [
        ({}, True, "on"),
        ({}, False, "off"),
        ({"memory_guard": False}, True, "off"),
        ({"memory_guard_seconds": 20}, True, "on"),
    ],
)
def test_the_label_says_whether_the_guard_looks(traits: dict[str, Any], sees: bool, says: str):
    hub = Hub()
    hub.backend.sees_processes = sees
    one = hub.spawner(shared_gpus={"A100": 2}, **traits)
    assert label(one, UNIT) == says
    # What is one's own isn't looked at, and no label says that it is.
    assert label(one, "GPU-0") is None
    assert label(one) is None
    seconds = traits.get("memory_guard_seconds", 60.0) if says == "on" else None
    assert one.limits().guard_seconds == seconds


@pytest.mark.parametrize(("sees", "says"), [(True, "on"), (False, "off")])
async def test_slots_of_reserved_hours_are_guarded_though_nothing_is_shared_otherwise(
    sees: bool, says: str
) -> None:
    hub = Hub()
    hub.backend.sees_processes = sees
    hours = {"begin": "2090-10-02T10:00", "end": "12:00", "gpus": 1, "slots": 2}
    courses = {"ml": {"group": "students", "reserved": [hours]}}
    one = hub.spawner(("students",), courses=courses, hour_limit=12)
    await hub.ledger.read()
    assert label(one, UNIT) == says
    assert one.limits().guard_seconds == (60.0 if sees else None)
    others = hub.spawner((), courses=courses, hour_limit=12)
    assert others.limits().guard_seconds is None


def test_where_nothing_is_shared_nobody_asks_whether_processes_can_be_seen() -> None:
    hub = Hub()  # its backend doesn't say
    assert hub.spawner().limits().guard_seconds is None


@pytest.mark.parametrize("seconds", [0, -1, 3601])
def test_a_time_that_makes_no_sense_is_refused_by_its_name(seconds: float) -> None:
    with pytest.raises(Exception, match="memory_guard_seconds"):
        Hub().spawner(memory_guard_seconds=seconds)


def test_the_home_page_says_who_holds_too_much_and_what_comes_of_it() -> None:
    hub = Hub()
    hub.backend.sees_processes = True
    one = hub.spawner(shared_gpus={"A100": 2})
    page = ServerPage(one)
    assert page.memory_words == ""
    one.lease.hold([UNIT])
    share = one.lease.memory
    share.add_measurement(MemoryUse(30 * GIB, 20 * GIB, HostProcess(7, 1), 30 * GIB), 60)
    assert page.memory_words == ""
    for step, words in (("warn", "its largest process is ended."), ("end", "it is stopped: save")):
        share.note(step)  # type: ignore[arg-type]
        assert words in str(page.memory_words)
        assert "It holds 30 GB of the memory of a GPU that it shares" in str(page.memory_words)
        assert "30 GB" in CHINESE.say(page.memory_words)
    one.memory_guard = False
    assert page.memory_words == ""


def held(**more: Any) -> dict[str, Any]:
    nothing = {"next": None, "until": None, "ended": None}
    return {"guarded": True, "used": 8 * GIB, "part": 20 * GIB, **nothing, **more}


def seen(person: Person, memory: Any) -> dict[str, Any]:
    ada = Holder("ada")
    slots = [
        boards.gpu(0, holder, kind=SHARED, part=part, parts=2, memory_total_mib=40960)
        for part, holder in enumerate((ada, None))
    ]
    lease = boards.lease(ada, UNIT, memory=memory)
    return dashboards.check("Status", status(boards.picture(*slots, leases=[lease]), person))


ENDED = {"process": "python<b>", "held": 14 * GIB, "at": 4e9}


def test_the_dashboard_says_what_a_server_holds_and_what_comes_of_it() -> None:
    facts = seen(ADA, held(used=30 * GIB, next="end", until=4e9))
    (server,) = facts["servers"]
    assert server["memory"] == {
        **{"guarded": True, "used_bytes": 30 * GIB, "part_bytes": 20 * GIB, "next": "end"},
        **{"at": "2096-10-02T07:06:40+00:00", "ended": None},
    }
    page = boards.render(facts)
    assert "It holds 30 GB of the shared GPU's memory, and its part is 20 GB." in page
    assert "its largest process is ended." in page
    assert "it is stopped. Save" in boards.render(seen(ADA, held(next="stop", until=4e9)))
    assert "它占用了共享 GPU 的 30 GB 显存" in boards.render(facts, CHINESE)


def test_which_process_was_ended_only_its_user_and_administrators_read() -> None:
    everybody = Person("ben", sees_names=True)
    for person, told in ((ADA, True), (BOSS, True), (everybody, False)):
        ended = seen(person, held(ended=ENDED))["servers"][0]["memory"]["ended"]
        assert bool(ended) is told
    page = boards.render(seen(ADA, held(ended=ENDED)))
    assert "python&lt;b&gt; was ended at" in page
    assert "it held 14 GB of the shared GPU's memory." in page


def test_that_nothing_limits_a_server_is_said_where_it_is_so() -> None:
    words = "Nothing limits what it takes of the shared GPU's memory."
    assert words in boards.render(seen(ADA, held(guarded=False, used=None, part=None)), ENGLISH)
    assert words not in boards.render(seen(ADA, held()))
    assert words not in boards.render(seen(ADA, None))
    # An earlier hub says nothing of it.
    assert words not in boards.render(seen(ADA, None))
    assert "8.0 of its 20 GB" in boards.render(seen(BOSS, held()))
