"""GPUs' health over whatever happens: events, repairs, hubs that come and go, administrators.

The real watches, ledgers and volumes' labels of one or two hubs, over an engine's volumes in memory
and a machine that reads as the rules say. What each GPU should be is kept beside, in another way:
what is the case of it, and whether it was repaired since an event that somebody heard of.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from gpuspawner.backends.docker import notes, out_of_service
from gpuspawner.gpus.health import HealthEvent
from gpuspawner.gpus.model import GPU

from ..support.health import Engine, Hub, Machine

UUIDS = ("GPU-0", "GPU-1")
# What can be read, and whether a reset clears it.
BY_RESET = ("remap-pending", "pages-pending", "recovery-reset", "recovery-drain-and-reset")
FACTS = {**dict.fromkeys(BY_RESET, True), "remap-failed": False, "fabric-failed": False}
XIDS = {48: "quarantine", 79: "quarantine", 95: "quarantine", 119: "quarantine"}
XIDS |= {63: "after-use", 94: "after-use"}
OWN = (13, 31, 43, 45, 68, 109)

uuids = st.sampled_from(UUIDS)


@dataclass
class Truth:
    """What is the case of one GPU.

    Args:
        facts: what can be read of it.
        events: Xid -> whether something was read since that only a reset clears.
        lifted: the facts that an administrator has lifted.
        by_hand: whether an administrator has taken it out.
    """

    facts: set[str] = field(default_factory=set)
    events: dict[int, bool] = field(default_factory=dict)
    lifted: set[str] = field(default_factory=set)
    by_hand: bool = False

    @property
    def is_out(self) -> bool:
        return bool(self.by_hand or self.events or self.facts - self.lifted)

    def see(self) -> None:
        """Note that it was looked at: only who looks can tell that something was clear."""
        if self.facts & set(BY_RESET):
            self.events = dict.fromkeys(self.events, True)
        self.lifted &= self.facts

    def repaired(self, loaded: bool) -> None:
        """Note a reset, or that the driver was loaded anew."""
        self.facts = {each for each in self.facts if not FACTS[each]}
        if not self.facts:
            self.events = {x: seen for x, seen in self.events.items() if not (loaded or seen)}


class HealthMachine(RuleBasedStateMachine):
    """Everything that happens to a machine's GPUs."""

    hubs_known = Bundle("hubs")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.engine = Engine()
        self.machine = Machine([GPU(uuid, n, "A100") for n, uuid in enumerate(UUIDS)])
        self.truth = {uuid: Truth() for uuid in UUIDS}
        self.hubs: list[Hub] = []

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def look(self) -> None:
        """Have all hubs look, as they do now and then."""
        for hub in self.hubs:
            self.run(hub.look())
        if self.hubs and not self.engine.fails:
            for each in self.truth.values():
                each.see()

    @initialize(number=st.integers(1, 2))
    def begin(self, number: int) -> None:
        for _ in range(number):
            self.hubs.append(self.new_hub())
        self.look()

    def new_hub(self) -> Hub:
        async def make() -> Hub:
            return Hub(self.engine, self.machine)

        hub: Hub = self.run(make())
        return hub

    @rule(uuid=uuids, fact=st.sampled_from(sorted(FACTS)))
    def something_is_the_case(self, uuid: str, fact: str) -> None:
        self.machine.causes[uuid].add(fact)
        self.truth[uuid].facts.add(fact)
        self.look()

    @rule(uuid=uuids)
    def it_is_another_s_business(self, uuid: str) -> None:
        """The fabric comes up, which is no reset."""
        self.machine.causes[uuid].discard("fabric-failed")
        self.truth[uuid].facts.discard("fabric-failed")
        self.look()

    @rule(uuid=uuids, xid=st.sampled_from(sorted(XIDS)), told=st.booleans())
    def an_event(self, uuid: str, xid: int, told: bool) -> None:
        """A newer driver tells at once that a reset is due."""
        if told:
            self.machine.causes[uuid].add("recovery-reset")
            self.truth[uuid].facts.add("recovery-reset")
        self.report(uuid, xid)
        self.look()

    @rule(uuid=uuids, xid=st.sampled_from(OWN))
    def a_program_s_own_error(self, uuid: str, xid: int) -> None:
        for hub in self.hubs:
            self.call(hub.report, HealthEvent(uuid, "xid", xid))
        self.look()

    def report(self, uuid: str, xid: int) -> None:
        event = HealthEvent(uuid, "xid", xid)
        heard = [hub for hub in self.hubs if hub.hears]
        for hub in heard:
            self.call(hub.report, event)
        if heard:
            # What is read then counts as well.
            seen = bool(self.truth[uuid].facts & set(BY_RESET))
            self.truth[uuid].events.setdefault(xid, seen)

    def call(self, function: Any, *args: Any) -> None:
        async def do() -> None:
            function(*args)

        self.run(do())

    @precondition(lambda self: self.hubs)
    @rule(uuid=uuids, xid=st.sampled_from(sorted(XIDS)))
    def a_hub_is_killed_after_it_has_heard(self, uuid: str, xid: int) -> None:
        """Before it has written anything: another hub has heard as well, or nobody has."""
        hub = self.hubs.pop()
        if hub.hears and not self.engine.fails:
            self.engine.fails = True
            self.call(hub.report, HealthEvent(uuid, "xid", xid))
            self.engine.fails = False
        hub.close()
        self.report(uuid, xid)
        self.look()

    @precondition(lambda self: self.hubs)
    @rule()
    def a_hub_ends(self) -> None:
        self.hubs.pop().close()

    @precondition(lambda self: len(self.hubs) < 2)
    @rule()
    def a_hub_starts(self) -> None:
        self.hubs.append(self.new_hub())
        self.look()

    @rule(uuid=uuids)
    def a_reset(self, uuid: str) -> None:
        self.machine.causes[uuid] = {f for f in self.machine.causes[uuid] if not FACTS[f]}
        self.truth[uuid].repaired(loaded=False)
        self.look()

    @rule()
    def the_driver_is_loaded_anew(self) -> None:
        boot, module = self.machine.load.split(":")
        self.machine.load = f"{boot}:{int(module) + 1}"
        for uuid, each in self.truth.items():
            self.machine.causes[uuid] = {f for f in self.machine.causes[uuid] if not FACTS[f]}
            each.repaired(loaded=True)
        self.look()

    @rule(uuid=uuids)
    def a_gpu_is_silent_for_a_while(self, uuid: str) -> None:
        self.machine.silent.add(uuid)
        self.look()
        for hub in self.hubs:
            assert uuid not in self.run(hub.free())
        self.machine.silent.discard(uuid)
        self.look()

    @rule(uuid=uuids)
    def the_engine_is_away_for_a_while(self, uuid: str) -> None:
        self.engine.fails = True
        self.machine.causes[uuid].add("remap-pending")
        self.truth[uuid].facts.add("remap-pending")
        self.look()
        self.engine.fails = False
        self.look()

    @rule(uuid=uuids)
    def an_administrator_takes_it_out(self, uuid: str) -> None:
        out_of_service.take_out(self.engine, uuid, "boss", "a fan")
        self.truth[uuid].by_hand = True
        self.look()

    @rule(uuid=uuids)
    def an_administrator_puts_it_back(self, uuid: str) -> None:
        """Whatever it is out for; what was never marked isn't lifted."""
        truth = self.truth[uuid]
        if self.hubs:
            truth.lifted |= truth.facts
        else:
            marked = {mark.cause for mark in self.noted().health if mark.gpu == uuid}
            truth.lifted |= marked & set(FACTS)
        truth.events, truth.by_hand = {}, False
        out_of_service.put_back(self.engine, uuid)
        self.look()

    def noted(self) -> Any:
        return notes.parse(notes.list_notes(self.engine))

    @invariant()
    def who_is_out_is_leased_to_nobody_and_who_is_well_to_whoever_comes(self) -> None:
        for hub in self.hubs:
            free = self.run(hub.free())
            assert free == {uuid for uuid, each in self.truth.items() if not each.is_out}
            for uuid, each in self.truth.items():
                failed = any(XIDS[xid] == "quarantine" for xid in each.events)
                assert not failed or hub.watch.is_out_of_order([uuid])

    @invariant()
    def what_an_administrator_has_marked_stays_marked(self) -> None:
        by_hand = {uuid for uuid, mark in self.noted().marks.items() if mark.is_own}
        assert by_hand == {uuid for uuid, each in self.truth.items() if each.by_hand}

    @invariant()
    def nvml_is_let_go_of_while_something_is_out(self) -> None:
        out = any(each.is_out for each in self.truth.values())
        for hub in self.hubs:
            assert hub.hears is not out
            assert hub.reader.lets_go is out

    def teardown(self) -> None:
        for hub in self.hubs:
            hub.close()
        self.run(self.end())
        self.loop.close()

    async def end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


HealthMachine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestHealth = HealthMachine.TestCase
