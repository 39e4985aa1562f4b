"""What a course's members may pick for reserved hours in which they share GPUs, and get."""

from __future__ import annotations

import time
from datetime import datetime
from fractions import Fraction
from typing import Any

import pytest

from gpuspawner.gpus.model import GPU, SHARED, WHOLE, Holder, Node
from gpuspawner.gpus.units import slots_of
from gpuspawner.hub.server_page import ServerPage
from gpuspawner.leases.labels import labels
from gpuspawner.leases.ledger import Reservation, ServerRecord

from ..support.spawns import Hub, begin, waiting

HOUR = 3600.0


def wall(hours: float) -> str:
    """A time so many hours from now, as a configuration has it."""
    return f"{datetime.fromtimestamp(time.time() + hours * HOUR):%Y-%m-%dT%H:%M}"


def rules(begins: float, ends: float, gpus: int = 1, slots: int = 3, **more: Any) -> dict[str, Any]:
    reserved = {"begin": wall(begins), "end": wall(ends), "gpus": gpus, "slots": slots}
    course = {"group": "students", "instructors": "staff", "reserved": [reserved], **more}
    return {"courses": {"ml": course}, "hour_limit": 12}


async def asked(hub: Hub, groups: tuple[str, ...] = ("students",), **traits: Any) -> Any:
    """Return the request of a choice; its options are the traits' `options`."""
    options = traits.pop("options", {})
    one = hub.spawner(groups, **traits)
    await begin(one, **options)
    return one.attempt.request


async def test_whoever_picks_nothing_in_the_hours_has_a_slot_until_they_end() -> None:
    hub = Hub()
    one = hub.spawner(("students",), **rules(-0.1, 2))
    assert set(one.limits().slot_hours) == {"ml"}  # before anybody has read the nodes
    await begin(one)
    await one.run_pre_spawn_hook()
    reservation = one.attempt.reservation
    assert reservation
    assert reservation.units == {"GPU-0#0/3"}
    assert reservation.until == pytest.approx(time.time() + 2 * HOUR, abs=61)
    assert one.lease.until == pytest.approx(reservation.until, abs=1)


@pytest.mark.parametrize(("begins", "kind"), [(-0.1, SHARED), (0.4, SHARED), (2, WHOLE)])
async def test_what_the_empty_choice_is_depends_on_whether_the_hours_are_near(
    begins: float, kind: str
) -> None:
    request = await asked(Hub(), **rules(begins, 4))
    assert (request.kind, request.slots) == (kind, 3 if kind == SHARED else 0)
    named = await asked(Hub(), options={"kind": "shared"}, **rules(begins, 4))
    assert (named.kind, named.slots, named.unit_share * 3) == (SHARED, 3, 1)


@pytest.mark.parametrize("options", [{"kind": "shared"}, {"kind": "shared", "course": "none"}])
async def test_nobody_else_has_slots(options: dict[str, Any]) -> None:
    hub = Hub()
    groups = ("students",) if "course" in options else ()
    with pytest.raises(Exception, match="here there are: gpu"):
        await asked(hub, groups, options=options, **rules(-0.1, 2, required=False))


async def test_hours_give_slots_to_those_whose_kinds_are_limited() -> None:
    request = await asked(Hub(), allowed_kinds=["gpu"], **rules(-0.1, 2))
    assert request.slots == 3
    limited = rules(-0.1, 2, limits={"slots_per_student": 1})
    assert (await asked(Hub(), **limited)).slots == 3
    with pytest.raises(Exception, match="gpu"):
        await asked(Hub(), options={"kind": "gpu"}, **limited)


async def test_a_student_has_as_many_slots_as_the_course_gives() -> None:
    hub = Hub()
    limited = rules(-0.1, 2, limits={"slots_per_student": 1})
    theirs = labels(Holder("ada", "other"), "x", ["GPU-0#0/3"], time.time() + HOUR)
    hub.servers.append(ServerRecord("one", theirs))
    with pytest.raises(Exception, match="1"):
        await asked(hub, options={"kind": "shared"}, **limited)


@pytest.mark.parametrize(("limits_count", "share"), [("gpus", Fraction(1, 3)), ("units", 1)])
async def test_limits_count_a_slot_as_they_count_others(limits_count: str, share: Any) -> None:
    hub = Hub()
    one = hub.spawner(("students",), limits_count=limits_count, **rules(-0.1, 2))
    await begin(one)
    await one.run_pre_spawn_hook()
    assert one.attempt.reservation
    assert one.attempt.request.share == one.attempt.reservation.share == share


def shared_all_day() -> Hub:
    hub = Hub()

    async def read() -> tuple[Node, ...]:
        whole = [GPU(f"GPU-{n}", n, "A100", 40960, 0, 0) for n in range(3)]
        return (Node(driver="570", cuda="12.8", gpus=(*whole[:2], *slots_of(whole[2], 8))),)

    hub.ledger.read_inventory = hub._read = read  # type: ignore[method-assign]
    hub.ledger.__post_init__()
    return hub


@pytest.mark.parametrize(("begins", "slots"), [(-0.1, 3), (2, 0)])
async def test_where_gpus_are_shared_all_day_shared_means_these_until_the_hours_are_near(
    begins: float, slots: int
) -> None:
    request = await asked(shared_all_day(), options={"kind": "shared"}, **rules(begins, 4))
    assert request.slots == slots
    assert request.unit_share * (slots or 8) == 1


async def test_the_form_says_for_when_slots_are_and_when_a_server_would_end() -> None:
    hub = Hub()
    one = hub.spawner(("students",), default_hours=8, **rules(-0.1, 2))
    await hub.ledger.read()
    page = await one.render_form()
    assert "1/3 shared" in page
    assert "are for the reserved hours of your course" in page
    assert "Starts now, with 1 shared GPU" in page
    later = hub.spawner(("students",), **rules(3, 5))
    page = await later.render_form()
    assert "Starts now, with 1 GPU" in page
    other = hub.spawner((), **rules(-0.1, 2))
    assert "1/3 shared" not in await other.render_form()


async def test_who_waits_for_the_hours_reads_so_in_the_queue_and_starts_in_them() -> None:
    hub = Hub()
    one = hub.spawner(("students",), **rules(0.3, 2))
    await begin(one)
    task = await waiting(one, hub)
    (entry,) = hub.queue.waiting
    assert entry.turn
    assert entry.turn.because == "hours"
    assert entry.turn.start == pytest.approx(time.time() + 0.3 * HOUR, abs=61)
    task.cancel()


async def test_a_lease_of_a_slot_ends_with_the_hours_however_it_is_extended() -> None:
    hub = Hub()
    one = hub.spawner(("students",), **rules(-0.1, 2))
    await begin(one, hours=1)
    await one.run_pre_spawn_hook()
    await hub.ledger.read()
    now = time.time()
    end, why = one.latest_end(now + 1.5 * HOUR)
    assert (end, why) == (now + 1.5 * HOUR, "")
    end, why = one.latest_end(now + 3 * HOUR)
    assert end == pytest.approx(now + 2 * HOUR, abs=61)
    assert "ends with these" in str(why)


async def test_who_runs_without_a_gpu_is_offered_a_seat_in_the_hours() -> None:
    hub = Hub()
    one = hub.spawner(("students",), claim_minutes=5, **rules(-0.1, 2))
    await hub.ledger.read()
    _, kinds, _ = await ServerPage(one).gpus_to_ask_for()
    assert [kind for kind, _ in kinds] == [SHARED]
    other = hub.spawner((), claim_minutes=5, **rules(-0.1, 2))
    assert (await ServerPage(other).gpus_to_ask_for())[1] == []


def test_what_has_ended_while_its_user_was_asked_isn_t_without_an_end() -> None:
    slot = slots_of(GPU("GPU-0", 0, "A100"), 2, ends=1000.0)[0]
    granted = Reservation(Holder("ada"), (slot,))
    assert granted.seconds(2000.0, None) == granted.seconds(2000.0, 60.0) == 1.0
    granted.begin(900.0, 3600.0)
    assert granted.until == 1000.0
    assert Reservation(Holder("ada"), (GPU("GPU-0", 0, "A100"),)).seconds(0.0, None) is None
