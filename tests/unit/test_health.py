"""What follows from a GPU's health: each cause, its verdict, and when it is over."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpuspawner.backends.docker import health_marks, notes, out_of_service
from gpuspawner.errors import Contested, Unknown
from gpuspawner.gpus import health
from gpuspawner.gpus.driver_load import driver_load
from gpuspawner.gpus.health import (
    CAUSES,
    OWN_XIDS,
    HealthEvent,
    HealthMark,
    Hysteresis,
    Now,
    cause_of,
    changes,
    is_over,
    marks_of_event,
    todo,
    words_of,
    worst,
)
from gpuspawner.gpus.health_facts import ALL_TOLD, HealthReading
from gpuspawner.gpus.model import GPU, Holder
from gpuspawner.i18n.languages import TRANSLATED

from ..support.health import LOG, Engine, Hub, Lease, Machine, Reader

ONE, TWO = "GPU-1", "GPU-2"
CLEAR = HealthReading()
LOAD = "boot:1"


def reads(*causes: str, unread: tuple[str, ...] = (), answers: bool = True) -> HealthReading:
    return HealthReading(frozenset(causes), frozenset(unread), answers)


def now(reading: HealthReading, **more: Any) -> Now:
    return Now({ONE: reading}, 1000.0, **{"driver": LOAD, **more})


def mark(cause: str, since: float = 500.0, seen: tuple[str, ...] = ()) -> HealthMark:
    return HealthMark(ONE, cause, ONE, since, seen, LOAD)


# Causes -------------------------------------------------------------------------------------------

VERDICTS = {
    **{f"xid-{number}": "watch" for number in (13, 31, 43, 45, 68, 109)},
    **{f"xid-{number}": "watch" for number in (1, 12, 32, 74, 154, 9999)},
    "xid-63": "after-use",
    "xid-94": "after-use",
    "ecc": "after-use",
    "remap-pending": "after-use",
    "pages-pending": "after-use",
    "recovery-drain-and-reset": "after-use",
    "recovery-drain-p2p": "after-use",
    "recovery-other": "after-use",
    "fabric-setting-up": "after-use",
    "xid-48": "quarantine",
    "xid-79": "quarantine",
    "xid-95": "quarantine",
    "xid-119": "quarantine",
    "remap-failed": "quarantine",
    "lost": "quarantine",
    "reset-required": "quarantine",
    "recovery-reset": "quarantine",
    "recovery-reboot": "quarantine",
    "fabric-failed": "quarantine",
    "hot": "watch",
    "power-brake": "watch",
    "ecc-errors": "ok",
    "unreachable": "ok",
}


def test_each_cause_has_its_verdict() -> None:
    assert {key: cause_of(key).verdict for key in VERDICTS} == VERDICTS
    assert set(CAUSES) <= set(VERDICTS)
    assert {13, 31, 43, 45, 68, 109} == OWN_XIDS


@pytest.mark.parametrize("key", sorted(VERDICTS))
def test_who_reads_of_a_cause_reads_why_and_an_administrator_what_to_do(key: str) -> None:
    cause = cause_of(key)
    assert bool(words_of([key])) == (cause.verdict != "ok")
    said = str(words_of([key], 3, with_todo=True))
    if health.keeps_out(cause):
        assert todo(cause.remedy, 3)
        assert said.endswith(str(todo(cause.remedy, 3)))
    for language in TRANSLATED:
        translated = str(language.say(words_of([key], 3, with_todo=True)))
        assert not said or translated != said


def test_a_reset_is_of_the_gpu_that_is_meant() -> None:
    assert "--gpu-reset -i 1`" in str(todo("reset", 1))
    assert "--gpu-reset -i N`" in str(todo("reset"))


def test_the_worst_of_several_causes_counts() -> None:
    assert worst(["xid-31", "remap-pending", "xid-79", "xid-95"]) == CAUSES["xid-79"]
    assert worst(["hot", "xid-63"]) == CAUSES["xid-63"]
    assert worst([]) is None


def test_a_cause_of_a_newer_version_keeps_its_gpu_out_until_somebody_lifts_it() -> None:
    assert cause_of("melted").verdict == "quarantine"
    assert not is_over(mark("melted"), [], now(CLEAR, driver="other:2"))


# Marks --------------------------------------------------------------------------------------------

KEPT_FACTS = [
    cause.key
    for cause in CAUSES.values()
    if cause.is_kept and not cause.is_event and health.keeps_out(cause)
]
EVENTS = [cause.key for cause in CAUSES.values() if cause.is_event]


@pytest.mark.parametrize("key", KEPT_FACTS)
def test_what_is_read_is_marked_until_it_reads_clear(key: str) -> None:
    (put,) = changes([], [], now(reads(key))).put
    assert (put.uuid, put.cause, put.since) == (ONE, key, 1000.0)
    assert not changes([put], [], now(reads(key))).put
    assert not changes([put], [], now(reads(key))).end
    assert changes([put], [], now(CLEAR)).end == (put,)
    assert not changes([put], [], now(reads(unread=tuple(ALL_TOLD), answers=False))).end
    assert not changes([put], [], Now({}, 2000.0)).end, "what can't be read isn't clear"
    if key in ALL_TOLD:
        untold = reads(unread=(key,))
        assert not changes([put], [], now(untold)).end, "what isn't told isn't clear"
        assert changes([put], [], now(untold, driver="boot:2")).end == (put,)


@pytest.mark.parametrize("key", KEPT_FACTS)
def test_what_an_administrator_has_lifted_is_marked_again_only_once_it_was_clear(key: str) -> None:
    lifted = [(ONE, key)]
    assert changes([], lifted, now(reads(key))) == health.Changes()
    assert changes([], lifted, now(reads(unread=tuple(ALL_TOLD), answers=False))).forget == ()
    assert changes([], lifted, now(CLEAR)).forget == ((ONE, key),)
    assert changes([], [], now(reads(key))).put


@pytest.mark.parametrize("key", ["hot", "power-brake", "fabric-setting-up", "ecc-errors"])
def test_what_comes_and_goes_is_never_marked(key: str) -> None:
    assert changes([], [], now(reads(key))) == health.Changes()


@pytest.mark.parametrize("key", EVENTS)
def test_time_alone_ends_no_event(key: str) -> None:
    late = replace(now(CLEAR), at=1e12)
    assert not is_over(mark(key), [mark(key)], late)


@pytest.mark.parametrize("key", EVENTS)
@pytest.mark.parametrize("load", ["other:1", "boot:2", "other:2"])
def test_a_load_of_the_driver_ends_an_event_once_the_gpu_answers(key: str, load: str) -> None:
    assert is_over(mark(key), [], now(CLEAR, driver=load))
    assert not is_over(mark(key), [], now(reads(answers=False), driver=load))
    assert not is_over(mark(key), [], now(reads("recovery-reset"), driver=load))
    assert not is_over(mark(key), [], Now({}, 1000.0, load))


@pytest.mark.parametrize("load", [LOAD, ":", "", "boot:", ":1"])
def test_what_is_not_known_of_the_driver_is_no_load_of_it(load: str) -> None:
    assert not is_over(mark("xid-119"), [], now(CLEAR, driver=load))
    assert not is_over(replace(mark("xid-119"), driver=load), [], now(CLEAR))


def test_a_driver_that_was_seen_unloaded_was_loaded_anew() -> None:
    unknown = replace(mark("xid-119"), driver="boot:")
    assert is_over(unknown, [], now(CLEAR, driver="boot:", unloaded_at=501.0))
    assert not is_over(unknown, [], now(CLEAR, driver="boot:", unloaded_at=499.0))
    # Where its module is the same, what looked like it was something else.
    assert not is_over(mark("xid-119"), [], now(CLEAR, unloaded_at=501.0))


RESET_ONLY = [
    "lost",
    "reset-required",
    "remap-pending",
    "pages-pending",
    "recovery-reset",
    "recovery-reboot",
    "recovery-drain-and-reset",
]


@pytest.mark.parametrize("key", EVENTS)
@pytest.mark.parametrize("trace", RESET_ONLY)
def test_what_only_a_reset_clears_says_that_there_was_one(key: str, trace: str) -> None:
    by_event = mark(key, seen=(trace,))
    beside = [mark(key), mark(trace, since=500.0)]
    before = [mark(key), mark(trace, since=499.0)]
    later = now(CLEAR, later={(ONE, key): {trace}})
    assert is_over(by_event, [by_event], now(CLEAR))
    assert is_over(beside[0], beside, now(CLEAR))
    assert is_over(mark(key), [], later)
    assert not is_over(before[0], before, now(CLEAR)), "it was reset before the event, maybe"
    assert not is_over(by_event, [by_event], now(reads(trace)))
    if trace in ALL_TOLD:
        assert not is_over(by_event, [by_event], now(reads(unread=(trace,))))


@pytest.mark.parametrize(
    "trace", ["remap-failed", "fabric-failed", "recovery-drain-p2p", "hot", "unreachable"]
)
def test_what_clears_in_another_way_says_nothing_of_a_reset(trace: str) -> None:
    event = mark("xid-119", seen=(trace,))
    assert not is_over(event, [event], now(CLEAR))


def test_the_count_of_memory_errors_tells_only_of_those_that_a_new_start_repairs() -> None:
    seen = ("ecc-errors",)
    over = {key: is_over(mark(key, seen=seen), [], now(CLEAR)) for key in EVENTS}
    assert {key for key, each in over.items() if each} == {"xid-48", "xid-63", "xid-94", "ecc"}


def test_another_gpu_s_reset_ends_nothing_here() -> None:
    other = HealthMark(TWO, "recovery-reset", TWO, 600.0, (), LOAD)
    assert not is_over(mark("xid-79"), [other], now(CLEAR))


# Events -------------------------------------------------------------------------------------------


def test_an_event_marks_what_it_concerns_with_what_was_read_then() -> None:
    (put,) = marks_of_event(HealthEvent(ONE, "xid", 79), reads("lost", "hot"), 7.0, LOAD)
    assert put == HealthMark(ONE, "xid-79", ONE, 7.0, ("hot", "lost"), LOAD)
    contained = HealthEvent(ONE, "xid", 94, ("MIG-1", "MIG-2"))
    found = marks_of_event(contained, None, 7.0, LOAD)
    assert [(each.uuid, each.gpu) for each in found] == [("MIG-1", ONE), ("MIG-2", ONE)]
    whole = marks_of_event(HealthEvent(ONE, "xid", 95, ("MIG-1",)), None, 7.0, LOAD)
    assert [each.uuid for each in whole] == [ONE], "what has failed, has failed for all parts"


@pytest.mark.parametrize(
    "event",
    [
        *(HealthEvent(ONE, "xid", number) for number in sorted(OWN_XIDS)),
        HealthEvent(ONE, "recovery"),
        HealthEvent(ONE, "mig"),
    ],
)
def test_a_program_s_own_error_marks_nothing(event: HealthEvent) -> None:
    assert marks_of_event(event, CLEAR, 7.0, LOAD) == []


def test_heat_counts_after_a_while_and_until_it_was_away_for_longer() -> None:
    heat = Hysteresis()
    assert [heat.add(there, at) for there, at in [(True, 0), (False, 30), (True, 40)]] == [
        False
    ] * 3
    assert not heat.add(True, 99)
    assert heat.add(True, 100)
    assert heat.add(False, 110)
    assert heat.add(True, 120)
    assert heat.add(False, 130)
    assert heat.add(False, 249)
    assert not heat.add(False, 250)


def test_a_load_of_the_driver_is_told_by_boot_and_module(tmp_path: Path) -> None:
    boot, module = tmp_path / "boot_id", tmp_path / "nvidia"
    assert driver_load(boot, module) == ":"
    boot.write_text("6b5e-1\n")
    assert driver_load(boot, module) == "6b5e-1:"
    module.mkdir()
    first = driver_load(boot, module)
    assert first == driver_load(boot, module) == f"6b5e-1:{module.stat().st_ino}"


# Volumes ------------------------------------------------------------------------------------------


def noted(engine: Engine) -> Any:
    return notes.parse(notes.list_notes(engine))


def test_a_mark_is_read_back_as_it_was_kept() -> None:
    engine = Engine()
    kept = HealthMark("MIG-GPU-1/3/0", "xid-94", ONE, 1234.0, ("hot", "remap-pending"), LOAD)
    health_marks.keep(engine, replace(kept, since=1234.9))
    assert noted(engine).health == (kept,)
    (found,) = noted(engine).marks.values()
    assert (found.by, found.is_own, found.causes) == ("health", False, ("xid-94",))
    assert found.said == CAUSES["xid-94"].words
    health_marks.end(engine, kept)
    health_marks.end(engine, kept)
    assert engine.kept == {}


def test_an_administrator_s_mark_and_those_of_health_stand_beside_each_other() -> None:
    engine = Engine()
    health_marks.keep(engine, mark("xid-79"))
    out_of_service.take_out(engine, ONE, "boss", "a fan")
    health_marks.keep(engine, mark("remap-pending"))
    (found,) = noted(engine).marks.values()
    assert (found.by, found.said, found.causes) == ("boss", "a fan", ("xid-79", "remap-pending"))
    for each in found.health:
        health_marks.end(engine, each)
    (found,) = noted(engine).marks.values()
    assert (found.by, found.why, found.health) == ("boss", "a fan", ())


def test_a_mark_of_health_stands_for_no_administrator_s(monkeypatch) -> None:
    engine = Engine()
    health_marks.keep(engine, mark("xid-79"))
    monkeypatch.setattr(engine, "create_volume", lambda name, labels: None)
    with pytest.raises(Unknown):
        out_of_service.take_out(engine, ONE, "boss", "a fan")


def test_a_user_called_health_takes_gpus_out_as_others_do() -> None:
    engine = Engine()
    out_of_service.take_out(engine, ONE, "health", "I say so")
    (found,) = noted(engine).marks.values()
    assert found.is_own
    assert noted(engine).health == ()


def test_who_lifts_a_mark_lifts_all_that_is_read_of_it() -> None:
    engine = Engine()
    for cause in ("xid-79", "remap-pending"):
        health_marks.keep(engine, mark(cause))
    out_of_service.take_out(engine, ONE, "boss", "")
    health_marks.keep(engine, HealthMark(TWO, "remap-pending", TWO))
    out_of_service.put_back(engine, ONE)
    assert {each.uuid for each in noted(engine).health} == {TWO}
    assert noted(engine).lifted == {(ONE, "remap-pending")}, "an event can't be read again"
    health_marks.forget_lifted(engine, ONE, "remap-pending")
    assert noted(engine).lifted == frozenset()


@pytest.mark.parametrize(
    "labels",
    [
        {"gpuspawner.out-of-service.cause": "../xid"},
        {"gpuspawner.out-of-service.cause": "XID 79"},
        {"gpuspawner.out-of-service.cause": "xid-48"},
        {"gpuspawner.out-of-service": ""},
    ],
)
def test_a_volume_that_is_not_quite_ours_still_keeps_its_gpu_out(labels: dict[str, str]) -> None:
    engine = Engine()
    health_marks.keep(engine, mark("xid-79"))
    (volume,) = engine.kept.values()
    volume["Labels"].update(labels)
    (found,) = [each for uuid, each in noted(engine).marks.items() if uuid.startswith(ONE)][:1]
    assert found.is_own, "as one that was made by hand: nothing but a hand ends it"


# A hub --------------------------------------------------------------------------------------------


@pytest.fixture
def machine() -> Machine:
    return Machine([GPU(ONE, 0, "A100"), GPU(TWO, 1, "A100")])


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
async def hub(engine: Engine, machine: Machine) -> Any:
    found = Hub(engine, machine)
    await found.look()
    yield found
    found.close()


async def test_from_an_event_on_its_gpu_is_leased_to_nobody(hub: Hub, engine: Engine) -> None:
    assert await hub.free() == {ONE, TWO}
    assert hub.hears
    engine.fails = True
    hub.report(HealthEvent(ONE, "xid", 79))
    assert hub.watch.is_out_of_order([ONE])
    assert not hub.watch.is_out_of_order([TWO])
    with pytest.raises(Contested, match="has failed meanwhile"):
        await hub.ledger.claim("container", {f"{ONE}#0/2"})
    await hub.watch.settled()
    engine.fails = False
    assert await hub.free() == {TWO}, "before its mark is kept"
    await hub.look()
    assert [each.cause for each in noted(engine).health] == ["xid-79"]
    assert not hub.hears
    assert hub.reader.lets_go, "so that it can be reset"


async def test_a_mark_outlives_the_hub_and_ends_when_its_cause_reads_clear(
    hub: Hub, engine: Engine, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.causes[ONE] = {"recovery-reset"}
    hub.report(HealthEvent(ONE, "xid", 119))
    await hub.look()
    hub.close()
    later = Hub(engine, machine)
    await later.look()
    assert await later.free() == {TWO}
    machine.causes[ONE] = set()
    with caplog.at_level(logging.WARNING, logger=LOG.name):
        await later.look()
    assert "GPU 0: xid-119 reads clear" in caplog.text
    assert engine.kept == {}
    assert await later.free() == {ONE, TWO}
    await later.look()
    assert later.hears, "and NVML is listened to again"
    assert not later.reader.lets_go
    later.close()


async def test_after_use_who_has_it_keeps_it_and_nobody_else_gets_it(
    engine: Engine, machine: Machine
) -> None:
    lease = Lease(Holder("ada"), {ONE})
    hub = Hub(engine, machine, [lease])
    machine.causes[ONE] = {"remap-pending"}
    await hub.look()
    assert not hub.watch.is_out_of_order([ONE])
    assert [each["verdict"] for each in lease.trouble] == ["after-use"]
    assert await hub.free() == {TWO}
    machine.causes[ONE] = {"recovery-reboot"}
    await hub.look()
    assert [(each["verdict"], each["index"]) for each in lease.trouble] == [("quarantine", 0)]
    machine.causes[ONE] = set()
    await hub.look()
    assert lease.trouble == []
    hub.close()


async def test_an_instance_s_own_error_leaves_the_others_alone(engine: Engine) -> None:
    parts = [GPU(f"MIG-{n}", 0, "A100", kind="1g.5gb", part=n, parent=ONE) for n in range(2)]
    machine = Machine([GPU(ONE, 0, "A100", state="mig"), *parts])
    hub = Hub(engine, machine)
    await hub.look()
    assert await hub.free() == {"MIG-0", "MIG-1"}
    hub.report(HealthEvent(ONE, "xid", 94, ("MIG-1",)))
    await hub.look()
    assert await hub.free() == {"MIG-0"}
    out_of_service.put_back(engine, ONE)
    await hub.look()
    assert await hub.free() == {"MIG-0", "MIG-1"}
    hub.report(HealthEvent(ONE, "xid", 48, ("MIG-1",)))
    await hub.look()
    assert await hub.free() == set(), "what the GPU suffers from concerns all its parts"
    hub.close()


async def test_what_was_lifted_comes_back_with_a_new_event(
    hub: Hub, engine: Engine, machine: Machine
) -> None:
    machine.causes[ONE] = {"recovery-drain-and-reset"}
    await hub.look()
    out_of_service.put_back(engine, ONE)
    await hub.look()
    await hub.look()
    assert await hub.free() == {ONE, TWO}
    assert hub.hears
    hub.report(HealthEvent(ONE, "recovery"))
    await hub.look()
    assert await hub.free() == {TWO}


async def test_a_program_s_own_error_is_shown_for_a_while(hub: Hub, engine: Engine) -> None:
    hub.report(HealthEvent(TWO, "xid", 31))
    await hub.look()
    assert engine.kept == {}
    assert await hub.free() == {ONE, TWO}
    first, second = hub.watch.facts()
    assert (first["verdict"], second["verdict"]) == ("ok", "watch")
    assert (second["causes"], second["events"][0]["xid"]) == (["xid-31"], 31)
    assert hub.watch.count() == {"ok": 1, "watch": 1, "after-use": 0, "quarantine": 0}


async def test_a_driver_that_goes_and_comes_back_ends_what_no_reading_tells(
    hub: Hub, engine: Engine, machine: Machine
) -> None:
    machine.load = ":"
    hub.report(HealthEvent(ONE, "xid", 95))
    await hub.look()
    await hub.look()
    assert await hub.free() == {TWO}
    await asyncio.sleep(0.01)
    machine.is_loaded = False
    await hub.look()
    machine.is_loaded = True
    await hub.look()
    assert await hub.free() == {ONE, TWO}


async def test_a_gpu_that_does_not_answer_ends_nothing(
    hub: Hub, engine: Engine, machine: Machine
) -> None:
    machine.causes[ONE] = {"remap-pending"}
    await hub.look()
    machine.causes[ONE] = set()
    machine.silent.add(ONE)
    await hub.look()
    assert [each.cause for each in noted(engine).health] == ["remap-pending"]
    assert not hub.hears, "it may be reset"


async def listed_slowly(hub: Hub, engine: Engine, do: Any) -> None:
    """Have a hub list its notes, and do something between the listing and its answer."""
    reached, answered = threading.Event(), threading.Event()

    def wait() -> None:
        engine.meanwhile = lambda: None
        reached.set()
        answered.wait()

    engine.meanwhile = wait
    listing = asyncio.ensure_future(hub.watch.read_notes())
    while not reached.is_set():
        await asyncio.sleep(0.01)
    try:
        await do()
    finally:
        answered.set()
        await listing


async def test_a_listing_of_before_brings_no_mark_back_and_takes_none_away(
    hub: Hub, engine: Engine, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.causes[ONE] = {"remap-pending"}
    await hub.look()

    async def other_causes() -> None:
        machine.causes[ONE] = {"recovery-reset"}
        await hub.watch.read_nodes()
        await hub.watch.settled()

    await listed_slowly(hub, engine, other_causes)
    assert [each.cause for each in hub.watch.marks] == ["recovery-reset"]
    view = await hub.ledger.read()
    assert [gpu.state for gpu in view.gpus] == ["excluded", "free"]


async def test_what_is_written_while_notes_are_listed_keeps_its_gpu_out(
    hub: Hub, engine: Engine, machine: Machine
) -> None:
    async def an_event() -> None:
        hub.report(HealthEvent(ONE, "xid", 119))
        await hub.watch.settled()

    await listed_slowly(hub, engine, an_event)
    assert [each.cause for each in hub.watch.marks] == ["xid-119"]


@pytest.mark.parametrize("is_lifted", [False, True])
async def test_what_a_hub_has_read_before_it_knew_of_a_mark_ends_nothing(
    hub: Hub, engine: Engine, machine: Machine, is_lifted: bool
) -> None:
    """Another hub's mark is of what has happened since."""
    other = Hub(engine, machine)
    await other.look()
    machine.causes[ONE] = {"recovery-reset"}
    hub.report(HealthEvent(ONE, "xid", 79))
    await hub.look()
    if is_lifted:
        out_of_service.put_back(engine, ONE)
    kept = dict(engine.kept)
    await other.watch.read_notes()
    await other.watch.settled()
    assert {key: each for key, each in engine.kept.items() if key in kept} == kept
    machine.causes[ONE] = set()
    await other.look()
    assert engine.kept == {}, "what is read then does"
    other.close()


async def test_what_another_hub_has_ended_is_not_marked_again_by_an_older_reading(
    hub: Hub, engine: Engine, machine: Machine
) -> None:
    machine.causes[ONE] = {"remap-pending"}
    await hub.look()
    other = Hub(engine, machine)
    await other.look()
    machine.causes[ONE] = set()
    await other.look()
    assert engine.kept == {}
    await hub.watch.read_notes()
    await hub.watch.settled()
    assert engine.kept == {}
    assert hub.watch.marks == []
    other.close()


async def test_a_reading_that_took_long_says_nothing_against_a_later_one(
    hub: Hub, engine: Engine, machine: Machine
) -> None:
    before, go_on = machine.nodes(), asyncio.Event()

    async def hangs(self: Reader) -> Any:
        await go_on.wait()
        return before

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reader, "__call__", hangs)
        hanging = asyncio.ensure_future(hub.watch.read_nodes())
        await asyncio.sleep(0)
    machine.causes[ONE] = {"remap-failed"}
    await hub.look()
    go_on.set()
    await hanging
    await hub.watch.settled()
    assert [each.cause for each in noted(engine).health] == ["remap-failed"]
    assert await hub.free() == {TWO}


async def test_an_event_s_mark_goes_before_what_says_that_it_is_over(
    hub: Hub, engine: Engine, machine: Machine
) -> None:
    """Else a hub that is killed between the two would leave it there for good."""
    machine.causes[ONE] = {"recovery-reset"}
    hub.report(HealthEvent(ONE, "xid", 119))
    await hub.look()
    machine.causes[ONE] = set()
    engine.removals = 1
    await hub.look()
    assert [each.cause for each in hub.watch.marks] == ["recovery-reset"]
    hub.close()
    engine.removals, engine.fails = None, False
    later = Hub(engine, machine)
    await later.look()
    assert engine.kept == {}
    later.close()
