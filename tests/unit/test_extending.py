"""More time for a server: who may have it, from when, and what a refusal changes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gpuspawner.errors import Refused
from gpuspawner.gpus.allocation import apply_leases
from gpuspawner.gpus.model import GPU, Holder, Lease, Request
from gpuspawner.leases import audit_log
from gpuspawner.leases.clock import Clock, Deadline
from gpuspawner.leases.server_lease import ServerLease
from gpuspawner.scheduling.plan import Planner, QueuedRequest, could_use

HOUR = 3600.0


class Server:
    """A server of ada's with four hours, of which a test lets some pass."""

    def __init__(self, **rules: Any) -> None:
        self.now = 1_800_000_000.0
        self.waiting_requests = 0
        self.holder = Holder("ada")
        self.longest_hours: float | None = 12
        self.warning_minutes, self.extend_minutes = 15.0, 60.0
        self.idle_minutes = 0.0
        self.pending = None
        self.log = SimpleNamespace()
        self.saved = 0
        # What the backend has.
        self.kept: Deadline | None = None
        vars(self).update(rules)
        clock = Clock(lambda: self.now, lambda: self.now, lambda: "boot")
        self.lease = ServerLease(self, clock)  # type: ignore[arg-type]
        self.lease.begin_term(4 * HOUR)
        self.lease.hold(["GPU-0"])

    def on_lease_begin(self) -> None:
        pass

    def save_state(self) -> None:
        self.saved += 1

    def tell(self, occasion: str, words: str) -> None:
        pass

    def latest_end(self, until: float) -> tuple[float, str]:
        return until, ""

    def budgeted_end(self, until: float) -> tuple[float, str]:
        return until, ""

    def on_extended(self, end: Deadline) -> None:
        self.kept = end

    async def read_extended_end(self) -> Deadline | None:
        return self.kept

    def on_end_changed(self, until: float) -> None:
        pass

    async def ensure_rules_applied(self) -> None:
        pass

    @property
    def left(self) -> float:
        assert self.lease.until is not None
        return self.lease.until - self.now


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, dict[str, Any]]]:
    found: list[tuple[str, str, dict[str, Any]]] = []
    monkeypatch.setattr(
        audit_log,
        "record",
        lambda log, event, holder, by, **facts: found.append((event, by, facts)),
    )
    return found


def test_seven_minutes_after_the_start_nobody_takes_four_hours_more(events) -> None:
    ada = Server()
    ada.now += 7 * 60
    begins = ada.lease.extend_from
    with pytest.raises(Refused, match="too early") as refused:
        ada.lease.extend()
    assert refused.value.status == 409
    assert ada.left == 4 * HOUR - 7 * 60
    assert begins == ada.now + ada.left - HOUR
    ada.now = begins
    ada.lease.extend()
    assert ada.left == 5 * HOUR
    assert ada.lease.extend_from == ada.now + 4 * HOUR


def test_who_is_warned_can_extend_whatever_extend_minutes_says() -> None:
    ada = Server(extend_minutes=0.0)
    assert ada.lease.extend_from == ada.now + 4 * HOUR - 15 * 60


def test_at_any_time_where_extend_minutes_is_none(events) -> None:
    ada = Server(extend_minutes=None)
    assert ada.lease.extend_from == ada.now
    ada.lease.extend(1)
    assert ada.left == 5 * HOUR


@pytest.mark.parametrize(
    ("rules", "hours"),
    [
        ({}, 1e-5),
        ({}, 0),
        ({}, 1e9),
        ({"longest_hours": 0.05}, 1),
        ({"waiting_requests": 2}, 1),
    ],
)
async def test_a_refusal_changes_nothing_and_warns_nobody_again(events, rules, hours) -> None:
    ada = Server(**rules)
    ada.groups: frozenset[str] = frozenset()
    ada.now += 4 * HOUR - 5 * 60
    await ada.lease.enforce()
    assert [event for event, *_ in events] == ["warn"]
    before = ada.lease.saved()
    with pytest.raises(Refused):
        ada.lease.extend(hours)
    assert ada.lease.saved() == before
    await ada.lease.enforce()
    assert [event for event, *_ in events] == ["warn"]


def test_an_administrator_extends_over_the_queue_and_at_any_time_up_to_the_limit(events) -> None:
    ada = Server(waiting_requests=6)
    ada.lease.extend(2, by="boss", over_all=True)
    assert ada.left == 6 * HOUR
    assert events == [
        ("extend", "boss", {"until": round(ada.lease.until), "added": 2 * HOUR, "held": 0.0})
    ]
    ada.lease.extend(100, by="boss", over_all=True)
    with pytest.raises(Refused, match="The server of ada has 12 hours left, and its limit is 12"):
        ada.lease.extend(1, by="boss", over_all=True)


async def test_an_extension_that_the_database_has_lost_holds(events) -> None:
    """A database that was put back as it was some time ago has an earlier end."""
    ada = Server(extend_minutes=None)
    ada.groups: frozenset[str] = frozenset()
    before = ada.lease.saved()
    ada.lease.extend(6)
    end = ada.lease.until
    ada.lease = ServerLease(ada, Clock(lambda: ada.now, lambda: ada.now, lambda: "boot"))
    ada.lease.restore(before)
    assert ada.left == 4 * HOUR
    ada.now += 5 * HOUR
    await ada.lease.enforce()
    assert ada.lease.until == end
    assert [event for event, *_ in events] == ["extend"]
    assert ada.saved == 2


@pytest.mark.parametrize("earlier", [0, 1, 100])
async def test_what_was_kept_of_an_earlier_extension_takes_no_time_away(events, earlier) -> None:
    ada = Server(extend_minutes=None)
    ada.groups: frozenset[str] = frozenset()
    ada.lease.extend(6)
    saved, end = ada.lease.saved(), ada.lease.until
    assert ada.kept is not None
    ada.kept = Deadline(ada.kept.at - earlier, ada.kept.clock)
    ada.lease.restore(saved)
    await ada.lease.enforce()
    assert ada.lease.until == end
    assert ada.saved == 1


async def test_an_end_that_cannot_be_read_yet_ends_nothing(events) -> None:
    ada = Server(extend_minutes=None)
    ada.groups: frozenset[str] = frozenset()
    before = ada.lease.saved()
    ada.lease.extend(6)
    there, ada.lease = ada.read_extended_end, ServerLease(ada, ada.kept.clock)
    ada.lease.restore(before)

    async def fails() -> None:
        raise OSError("the engine is away")

    ada.read_extended_end = fails
    ada.now += 5 * HOUR
    with pytest.raises(OSError, match="away"):
        await ada.lease.enforce()
    ada.read_extended_end = there
    await ada.lease.enforce()
    assert ada.left == 5 * HOUR
    assert [event for event, *_ in events] == ["extend"]


def test_ada_s_own_name_is_in_the_log_where_she_did_it(events) -> None:
    ada = Server(extend_minutes=None)
    ada.lease.extend(1)
    assert events[0][1] == "user:ada"


def gpus(*states: str, model: str = "A100", node: str = "", first: int = 0) -> list[GPU]:
    return [
        GPU(f"GPU-{number}", number, model, state=state, node=node)
        for number, state in enumerate(states, first)
    ]


def helped(there: list[GPU], request: Request) -> bool:
    """Return whether one who waits would be helped by GPU-0, which is held."""
    leases = [Lease(Holder("ada"), frozenset({"GPU-0"}))]
    waiting = QueuedRequest(Holder("ben"), request, 1.0)
    (turn,) = Planner().plan([waiting], there, leases, 10.0)
    assert not turn.gpus
    return could_use(turn, apply_leases(there, leases), leases, {"GPU-0"}, 10.0)


TWO = Request("image", 2)
STUDENTS = frozenset({"students"})


@pytest.mark.parametrize(
    ("there", "request_", "is_helped"),
    [
        (gpus("free"), Request("image", 1), True),
        (gpus("free", "free"), TWO, True),
        # Too few are left, whoever goes.
        (gpus("free", "unhealthy"), TWO, False),
        (gpus("free", "unhealthy", "free", "free"), Request("image", 4), False),
        # They wait for another model, which is sick.
        (
            gpus("free", "free", "free") + gpus("unhealthy", model="H100", first=3),
            Request("image", 1, model="H100"),
            False,
        ),
        # On this node there never are so many.
        (
            gpus("free", node="a") + gpus("foreign", "free", node="b", first=1),
            TWO,
            False,
        ),
        # What is sick or kept out itself helps nobody.
        (gpus("excluded", "foreign"), Request("image", 1), False),
        (gpus("unhealthy", "foreign"), Request("image", 1), False),
    ],
)
def test_only_who_could_use_these_gpus_counts(there, request_, is_helped) -> None:
    assert helped(there, request_) is is_helped


@pytest.mark.parametrize(("mine", "is_helped"), [(frozenset(), False), (STUDENTS, True)])
def test_who_waits_for_the_share_of_a_group_waits_for_its_gpus(mine, is_helped) -> None:
    there = gpus("free", "free", "free")
    limits = {"students": 1}
    leases = [
        Lease(Holder("ada"), frozenset({"GPU-0"}), None, mine),
        Lease(Holder("eve"), frozenset({"GPU-1"}), None, STUDENTS),
    ]
    waiting = QueuedRequest(Holder("ben"), Request("image", 1), 1.0, STUDENTS)
    (turn,) = Planner().plan([waiting], there, leases, 10.0, group_limits=limits)
    assert turn.because == "group:students"
    assert could_use(turn, there, leases, {"GPU-0"}, 10.0) is is_helped


@pytest.mark.parametrize(("minutes", "is_helped"), [(-5, True), (30, True), (61, False)])
def test_who_is_not_to_start_for_an_hour_needs_no_gpu_back_now(minutes, is_helped) -> None:
    there = gpus("free")
    leases = [Lease(Holder("ada"), frozenset({"GPU-0"}))]
    at = 10.0 + 60 * minutes
    (turn,) = Planner().plan(
        [QueuedRequest(Holder("ben"), Request("image", 1), 1.0, not_before=at)], there, leases, 10.0
    )
    back = {"GPU-0"}
    assert could_use(turn, apply_leases(there, leases), leases, back, 10.0) is is_helped
