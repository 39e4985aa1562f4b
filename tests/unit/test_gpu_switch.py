"""A server that runs asks for GPUs: its wait, its offer, and that nothing reserved is lost."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gpuspawner import wait_while_running
from gpuspawner.errors import Refused, Unknown
from gpuspawner.gpu_switch import GPUSwitch
from gpuspawner.gpus.model import Holder, Node, Request
from gpuspawner.gpus.units import split
from gpuspawner.hub.server_page import ServerPage
from gpuspawner.leases import audit_log
from gpuspawner.leases.clock import Clock
from gpuspawner.leases.labels import ServerRecord, labels, lease_of
from gpuspawner.scheduling.plan import QueuedRequest
from gpuspawner.scheduling.queue import RequestLimits
from gpuspawner.spawner import GPUSpawner

from ..support.spawns import Hub, Spawner, begin, lab

MINUTE = 60.0


class Restartable(Spawner):
    """JupyterHub stops and starts it: it drops the spawner, and makes another."""

    async def restart_through_hub(
        self, choice: dict[str, Any], starts_again: Callable[[], bool]
    ) -> None:
        hub: Any = self.hub_state
        await asyncio.sleep(0)  # it saves
        self.server = None
        self.clear_state()
        if not starts_again():
            return
        hub.next = hub.spawner(tuple(self.groups), **hub.traits)
        await begin(hub.next, **choice)
        await hub.next.run_pre_spawn_hook()
        # The hub has dropped this one, which has the server's row in the database still.
        self.user.spawners.clear()
        self.server = hub.next.server = object()
        hub.started(hub.next)


class Machine(Hub):
    """A hub with two GPUs, a clock that a test sets, and servers of ada's."""

    def __init__(self, **traits: Any) -> None:
        super().__init__()
        self.spawner_class = Restartable
        self.traits = traits
        self.now = 1_800_000_000.0
        self.next: Any = None

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.now, lambda: self.now, lambda: "boot")

    async def running(self, groups: tuple[str, ...] = (), **options: Any) -> GPUSpawner:
        """Return the spawner of a server that runs, of itself without GPUs."""
        one = self.spawner(groups, **self.traits)
        one.gpu_switch = GPUSwitch(one, self.clock)
        await begin(one, **{"gpus": 0, **options})
        await one.run_pre_spawn_hook()
        one.server = object()
        self.started(one)
        return one

    def started(self, one: GPUSpawner) -> None:
        """Do what a start does: from now on the container's label holds the GPUs."""
        granted, one.attempt.reservation = one.attempt.granted, None
        if granted and granted.gpus:
            found = labels(one.holder, "plain", sorted(granted.units), granted.until)
            self.servers.append(ServerRecord("ada-s", found))
            self.ledger.release(granted)
            one.lease.hold(granted.units)
            one.attempt.is_up = True

    def ben_waits(self) -> asyncio.Task[Any]:
        """Have another user ask for both GPUs."""
        since = self.queue.join_time()
        asked = Request("plain", 2, seconds=3600)
        waiting = QueuedRequest(Holder("ben"), asked, since)
        return asyncio.ensure_future(self.queue.wait(waiting, RequestLimits(), lambda turn: None))


@pytest.fixture
async def hub(monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(wait_while_running, "LOOK_SECONDS", 0.001)
    return Machine()


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """The audit log's events, with who and the rule."""
    found: list[tuple[str, str, str]] = []

    def record(log: Any, event: str, holder: Holder, by: str, **facts: Any) -> None:
        if holder.user == "ada":
            found.append((event, by, facts.get("rule", "")))

    monkeypatch.setattr(audit_log, "record", record)
    return found


async def settle() -> None:
    for _ in range(60):
        await asyncio.sleep(0)


async def offered(one: GPUSpawner) -> Any:
    """Wait for its offer, and return that."""
    while one.gpu_switch.offer is None:
        assert one.gpu_switch.asked, one.gpu_switch.notice
        await asyncio.sleep(0)
    return one.gpu_switch.offer


async def ended(one: GPUSpawner) -> None:
    """Wait until nothing is asked for and nothing restarted."""
    while one.gpu_switch.asked or one.gpu_switch.is_restarting:
        await asyncio.sleep(0.001)


def only(events: list[tuple[str, str, str]], *kinds: str) -> list[tuple[str, str, str]]:
    return [each for each in events if each[0] in kinds]


async def test_it_waits_at_its_place_while_it_runs_and_switches_with_exactly_what_was_offered(
    hub, events
):
    hub.occupy()
    one = await hub.running(image="plain")
    await one.gpu_switch.ask(1)
    assert one.gpu_switch.place.startswith("You are next in line for 1 GPU. ")
    facts = one.gpu_switch.facts()
    assert (facts["gpus"], facts["place"], facts["of"], facts["offer"]) == (1, 1, 1, None)
    behind = hub.ben_waits()
    hub.free_all()
    offer = await offered(one)
    assert one.gpu_switch.facts()["offer"] == {
        "gpus": sorted(offer.reservation.units),
        "until": hub.now + 10 * MINUTE,
    }
    await settle()
    assert not behind.done()
    await one.gpu_switch.switch("user:ada")
    await ended(one)
    assert hub.next.lease.units == offer.reservation.units
    assert hub.next.attempt.granted_at == offer.granted_at
    assert hub.next.user_options == {"gpus": 1, "image": "plain"}
    assert hub.held() == 0  # the label has it
    assert not behind.done()
    assert hub.switches.facts() == []
    assert hub.switches.find(one.holder) is hub.next.gpu_switch
    assert only(events, "wait", "grant", "release", "leave") == [
        ("wait", "gpuspawner", "gpus"),
        ("grant", "gpuspawner", "fifo"),
    ]
    behind.cancel()


async def test_a_free_gpu_is_offered_at_once(hub):
    one = await hub.running()
    await one.gpu_switch.ask()
    assert one.gpu_switch.offer is not None
    assert hub.held() == 1


async def test_what_is_not_claimed_in_time_the_next_has_and_the_user_reads_so(hub, events):
    hub.occupy()
    one = await hub.running()
    await one.gpu_switch.ask(2)
    behind = hub.ben_waits()
    hub.free_all()
    await offered(one)
    hub.now += 10 * MINUTE - 1
    await asyncio.sleep(0.01)
    assert one.gpu_switch.offer
    hub.now += 1
    assert len((await behind).units) == 2
    assert one.gpu_switch.asked is None
    assert one.gpu_switch.notice.startswith("2 GPUs were reserved for you until ")
    assert one.server is not None
    with pytest.raises(Refused, match="No GPU is reserved for this server now"):
        await one.gpu_switch.switch()
    assert only(events, "release") == [("release", "gpuspawner", "not claimed in time")]
    (told,) = hub.switches.facts()
    assert told["notice"]
    await one.gpu_switch.leave()  # read
    assert hub.switches.facts() == []


@pytest.mark.parametrize("is_offered", [False, True])
async def test_who_leaves_gives_up_the_place_or_the_offer_and_goes_on(hub, events, is_offered):
    hub.occupy()
    one = await hub.running()
    await one.gpu_switch.ask(1)
    if is_offered:
        hub.free_all()
        await offered(one)
    await one.gpu_switch.leave("user:ada")
    await settle()
    assert (hub.held(), hub.queue.waiting, one.gpu_switch.asked) == (0, (), None)
    ending = only(events, "leave", "release")
    assert ending == [("release" if is_offered else "leave", "user:ada", "given up")]
    await one.gpu_switch.ask(1)  # and may ask anew


@pytest.mark.parametrize("is_offered", [False, True])
async def test_what_was_reserved_is_free_once_when_the_server_ends(hub, events, is_offered):
    hub.occupy()
    one = await hub.running()
    await one.gpu_switch.ask(1)
    if is_offered:
        hub.free_all()
        await offered(one)
    one.lease.will_stop("jupyterhub", "stopped")
    one.clear_state()
    one.clear_state()
    await settle()
    assert (hub.held(), hub.queue.waiting, hub.switches.facts()) == (0, (), [])
    kind = "release" if is_offered else "leave"
    assert only(events, "leave", "release") == [(kind, "jupyterhub", "stopped")]


async def test_a_refusal_is_told_at_once_and_leaves_nothing(hub):
    hub.traits = {"gpu_limit": 1}
    hub.occupy()
    one = await hub.running()
    for asked, words in (
        ({"gpus": 2}, "You asked for 2 GPUs, and your limit is 1."),
        ({"gpus": 0}, "Ask for at least one GPU."),
        ({"model": "H100"}, "H100"),
    ):
        with pytest.raises(Refused, match=words):
            await one.gpu_switch.ask(**asked)
    one.longest_wait_minutes = 0
    with pytest.raises(Refused, match="0 of 2 are free now"):
        await one.gpu_switch.ask(1)
    assert (one.gpu_switch.has_news, hub.held(), hub.queue.waiting) == (False, 0, ())


async def test_who_has_gpus_has_asked_or_does_not_run_is_refused(hub):
    one = await hub.running()
    one.claim_minutes = 0
    with pytest.raises(Refused, match="Servers that run can't get GPUs here"):
        await one.gpu_switch.ask()
    one.claim_minutes = 10
    first, second = await asyncio.gather(
        one.gpu_switch.ask(), one.gpu_switch.ask(), return_exceptions=True
    )
    assert (first, str(second)) == (None, "This server has asked for GPUs already.")
    one.lease.hold(["GPU-0"])
    with pytest.raises(Refused, match="has GPUs already"):
        await one.gpu_switch.ask()
    one.server = None
    with pytest.raises(Refused, match="doesn't run now"):
        await one.gpu_switch.ask()


async def test_one_server_counts_once_for_its_user_s_limit(hub):
    hub.traits = {"user_gpu_limit": 2}
    one = await hub.running()
    await one.gpu_switch.ask(2)
    await offered(one)
    await one.gpu_switch.switch()
    await ended(one)
    assert len(hub.next.lease.units) == 2


async def test_rules_that_have_changed_at_the_turn_refuse_it_and_the_gpu_is_free(hub, events):
    hub.occupy()
    one = await hub.running(("lab",))
    await one.gpu_switch.ask(2)
    one.group_overrides = lab(gpu_limit=1)
    hub.free_all()
    while one.gpu_switch.asked:
        await asyncio.sleep(0)
    assert one.gpu_switch.notice == "You asked for 2 GPUs, and your limit is 1."
    assert hub.held() == 0
    assert [each[0] for each in only(events, "grant", "release", "refuse")] == [
        "grant",
        "release",
        "refuse",
    ]


async def test_a_request_that_is_another_one_by_the_rules_of_the_turn_is_granted_as_that(
    hub, events
):
    hub.occupy()
    one = await hub.running(("lab",))
    await one.gpu_switch.ask(1)
    one.group_overrides = lab(hour_limit=2)
    hub.free_all()
    offer = await offered(one)
    assert offer.reservation.until == hub.now + 10 * MINUTE + 120 * MINUTE
    grants = [each[0] for each in only(events, "grant", "release")]
    assert grants == ["grant", "release", "grant"]
    assert hub.held() == 1


async def test_rules_that_have_changed_at_the_switch_refuse_it_and_the_server_goes_on(hub, events):
    one = await hub.running(("lab",))
    await one.gpu_switch.ask(2)
    await offered(one)
    one.group_overrides = lab(gpu_limit=1)
    with pytest.raises(Refused, match="your limit is 1"):
        await one.gpu_switch.switch()
    assert one.server is not None
    assert (hub.held(), one.gpu_switch.asked, hub.next) == (0, None, None)
    assert [each[0] for each in only(events, "grant", "release")] == ["grant", "release"]


async def test_who_has_changed_groups_waits_again_at_the_place_of_before(hub, events):
    one = await hub.running(("lab",))
    await one.gpu_switch.ask(2)
    since = one.gpu_switch.asked.since
    await offered(one)
    behind = hub.ben_waits()
    await settle()
    one.user.groups.clear()
    with pytest.raises(Refused, match="You wait again, at your place"):
        await one.gpu_switch.switch()
    offer = await offered(one)
    assert offer.reservation.groups == frozenset()
    assert one.gpu_switch.asked.since == since
    assert not behind.done()
    await one.gpu_switch.switch()
    await ended(one)
    assert len(hub.next.lease.units) == 2
    grants = [each[0] for each in only(events, "grant", "release")]
    assert grants == ["grant", "release", "grant"]
    behind.cancel()


async def test_a_gpu_that_another_hub_has_taken_meanwhile_is_not_switched_to(hub):
    one = await hub.running()
    await one.gpu_switch.ask(2)
    await offered(one)
    # Another hub on the engine doesn't see what this one has reserved.
    hub.occupy()
    with pytest.raises(Refused, match="You wait again, at your place"):
        await one.gpu_switch.switch()
    await settle()
    assert one.gpu_switch.offer is None
    assert one.gpu_switch.asked
    assert hub.next is None
    hub.free_all()
    await offered(one)


async def test_an_offer_stays_while_it_is_taken_up(hub):
    one = await hub.running()
    await one.gpu_switch.ask(1)
    offer = await offered(one)
    hub.now += 10 * MINUTE
    await one.gpu_switch.switch()
    with pytest.raises(Refused, match="being restarted"):
        await one.gpu_switch.switch()
    with pytest.raises(Refused, match="being restarted"):
        await one.gpu_switch.leave()
    await ended(one)
    assert hub.next.lease.units == offer.reservation.units


async def test_who_has_it_stopped_while_it_is_restarted_has_it_off(hub, events):
    one = await hub.running()
    await one.gpu_switch.ask(1)
    await offered(one)
    await one.gpu_switch.switch()
    hub.switches.stay_off(one.holder)
    await ended(one)
    assert (hub.next, hub.held(), hub.switches.facts()) == (None, 0, [])
    assert only(events, "release") == [
        ("release", "gpuspawner", "the start failed, or was given up")
    ]


async def test_a_stop_of_before_keeps_no_later_restart_from_starting_it(hub):
    one = await hub.running()
    one.gpu_switch.stay_off()
    await one.gpu_switch.ask(1)
    await offered(one)
    await one.gpu_switch.switch()
    await ended(one)
    assert hub.next.lease.units


async def test_a_start_that_fails_gives_the_gpu_back_once(hub, events):
    one = await hub.running()
    await one.gpu_switch.ask(1)
    await offered(one)

    async def hook(spawner: Any) -> None:
        raise RuntimeError("a hook of an administrator's")

    hub.traits = {"pre_spawn_hook": hook}
    await one.gpu_switch.switch()
    await ended(one)
    assert (hub.held(), hub.switches.facts()) == (0, [])
    assert only(events, "release") == [
        ("release", "gpuspawner", "the start failed, or was given up")
    ]


async def test_a_start_that_asks_for_something_else_releases_it(hub, events):
    """A hook makes another request of it, or somebody has started the server in between."""
    hub.traits = {"allowed_models": []}
    one = await hub.running()
    await one.gpu_switch.ask(1)
    await offered(one)
    hub.traits = {"hour_limit": 1}
    await one.gpu_switch.switch()
    await ended(one)
    assert len(hub.next.lease.units) == 1
    assert [each[0] for each in only(events, "grant", "release")] == ["grant", "release", "grant"]


async def test_its_time_begins_with_the_switch_and_until_then_plans_count_on_the_latest(hub):
    hub.traits = {"hour_limit": 1}
    one = await hub.running()
    await one.gpu_switch.ask(1)
    offer = await offered(one)
    assert offer.reservation.until == hub.now + 10 * MINUTE + 60 * MINUTE
    before = time.time()
    await one.gpu_switch.switch()
    await ended(one)
    (record,) = hub.servers
    # A label has whole seconds.
    assert before - 1 <= lease_of(record).until - 60 * MINUTE <= time.time() + 1
    assert hub.next.lease.until is not None


async def test_another_default_image_or_a_hook_s_is_no_reason_to_change_the_server_s_own(hub):
    one = await hub.running(image="plain")
    one.user_options = {}  # the saved choice named none, and the default is another one by now
    await one.gpu_switch.ask(1)
    await offered(one)
    assert one.image == "ref/plain"
    await one.gpu_switch.switch()
    await ended(one)
    assert hub.next.image == "ref/plain"


async def test_gpus_are_given_back_at_once_and_the_next_has_them(hub, events):
    one = await hub.running(gpus=2, image="plain", hours=2)
    behind = hub.ben_waits()
    await settle()
    assert not behind.done()
    clear = one.clear_state

    def cleared() -> None:
        clear()
        hub.free_all()

    one.clear_state = cleared
    await one.gpu_switch.give_back("user:ada")
    await ended(one)
    assert hub.next.lease.units == frozenset()
    assert hub.next.user_options == {"gpus": 0, "image": "plain", "hours": 2}
    assert len((await behind).units) == 2
    assert only(events, "release") == [("release", "user:ada", "given back")]
    with pytest.raises(Refused, match="no GPUs to give back"):
        await hub.next.gpu_switch.give_back()


async def test_a_restart_of_the_hub_loses_the_place_and_says_so(hub):
    hub.occupy()
    one = await hub.running()
    assert not json.loads(json.dumps(one.get_state())).get("gpuspawner", {}).get("asked")
    await one.gpu_switch.ask(1)
    kept = json.loads(json.dumps(one.get_state()))
    later = hub.spawner()
    later.load_state(kept)
    assert later.gpu_switch.notice.startswith("JupyterHub was restarted while you waited for GPUs")
    later.server = object()
    hub.switches.remove(one.gpu_switch)
    hub.spawners.remove(one)
    assert hub.switches.find(one.holder) is later.gpu_switch
    assert [each["gpus"] for each in hub.switches.facts()] == [0]
    one.clear_state()


async def test_a_hub_that_ends_in_the_midst_of_a_restart_leaves_a_reason(hub):
    one = await hub.running()
    await one.gpu_switch.ask(1)
    await offered(one)
    await one.gpu_switch.switch()
    one.clear_state()  # as JupyterHub does before it saves the state of a server that is off
    assert one.get_state()["gpuspawner"]["starting"]
    assert not one.get_state()["gpuspawner"].get("asked")
    await ended(one)


async def test_trouble_at_the_turn_keeps_the_turn(hub, monkeypatch):
    monkeypatch.setattr(wait_while_running, "PERIOD_SECONDS", 0.001)
    hub.occupy()
    one = await hub.running()
    await one.gpu_switch.ask(1)
    checks = []

    async def fails_once(raw: Any, applicant: Any) -> Any:
        checks.append(raw)
        if len(checks) == 1:
            raise Unknown("NVML has gone.")
        return await check(raw, applicant)

    check, one.check_choice = one.check_choice, fails_once
    hub.free_all()
    await offered(one)
    assert len(checks) == 2


async def test_a_number_of_gpus_is_asked_for_whatever_part_the_server_was_started_with(hub):
    """The kind of what it had last isn't the kind of what it asks for now."""
    one = await hub.running(kind="shared")
    await one.gpu_switch.ask(2)
    offer = await offered(one)
    assert {gpu.kind for gpu in offer.reservation.gpus} == {"gpu"}
    assert len(offer.reservation.gpus) == 2


async def test_a_release_is_recorded_before_the_grant_of_what_was_released(hub, monkeypatch):
    """The engine says that a server has ended before the hub is through with stopping it."""
    recorded: list[tuple[str, str]] = []
    monkeypatch.setattr(
        audit_log,
        "record",
        lambda log, event, holder, by, **facts: recorded.append((event, holder.user)),
    )
    one = await hub.running(gpus=2)
    hub.leases.add(one.lease)
    one.lease.will_stop("ada", "stopped")
    hub.servers.clear()  # the engine has it no more
    other = hub.spawner()
    other.user.name = "ben"
    await begin(other, gpus=1)
    await other.run_pre_spawn_hook()
    one.lease.end()
    assert [each for each in recorded if each[0] in ("grant", "release")] == [
        ("grant", "ada"),
        ("release", "ada"),
        ("grant", "ben"),
    ]


# ---- Parts of GPUs -------------------------------------------------------------------------------


class SharingMachine(Machine):
    """Its second GPU is shared by two."""

    async def _read(self) -> tuple[Node, ...]:
        (node,) = await super()._read()
        whole, other = node.gpus
        return (replace(node, gpus=(whole, *split(other, {"GPU-1": 2}, ()))),)


async def test_a_running_server_asks_for_a_part_of_a_gpu(caplog: pytest.LogCaptureFixture) -> None:
    machine = SharingMachine(claim_minutes=5)
    one = await machine.running()
    most, kinds, models = await ServerPage(one).gpus_to_ask_for()
    assert (most, [(kind, str(words)) for kind, words in kinds], models) == (
        1,
        [("shared", "1 shared GPU")],
        [],
    )
    machine.servers += [
        ServerRecord(f"other-{slot}", labels(Holder("else", str(slot)), "x", [f"GPU-1#{slot}/2"]))
        for slot in range(2)
    ]
    with caplog.at_level(logging.INFO):
        await one.gpu_switch.ask(1, kind="shared")
    facts = one.gpu_switch.facts()
    assert (facts["gpus"], facts["kind"], facts["offer"]) == (1, "shared", None)
    (waits,) = [each for each in caplog.messages if '"event": "wait"' in each]
    assert '"gpus": 1, "kind": "shared"' in waits
    machine.free_all()
    await offered(one)
    assert one.gpu_switch.facts()["offer"]["gpus"] == ["GPU-1#0/2"]
    assert str(one.gpu_switch.asked.what) == "1 shared GPU"
    machine.now += 6 * MINUTE
    while not one.gpu_switch.notice:
        await asyncio.sleep(0.01)
    assert str(one.gpu_switch.notice).startswith("1 shared GPU was reserved for you until ")


async def test_a_kind_that_there_is_not_is_refused() -> None:
    one = await SharingMachine(claim_minutes=5).running()
    with pytest.raises(Refused, match="You asked for the kind of GPU"):
        await one.gpu_switch.ask(1, kind="1g.5gb")
    assert one.gpu_switch.asked is None
