"""Who holds what, read back from an engine's containers, and the time in which none exists yet."""

from __future__ import annotations

import asyncio
import copy
import gc
import itertools
import time
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.backends.docker.listing import server_record
from gpuspawner.errors import Contested, Refused, Unknown
from gpuspawner.gpus.model import GPU, Holder, Lease, Node, Request
from gpuspawner.leases.labels import (
    LABEL_GPUS,
    LABEL_HUB,
    LABEL_UNTIL,
    LABEL_USER,
    ServerRecord,
    lease_of,
    leases_of,
)
from gpuspawner.leases.labels import labels as labels_of
from gpuspawner.leases.ledger import OVERDUE_SECONDS, Ledger, SharedRead
from gpuspawner.scheduling.plan import Planner, QueuedRequest

from ..support.ledgers import reserve

ANN, BOB = Holder("ann"), Holder("bob", "second")
ONE, TWO = Request("torch", 1), Request("torch", 2)


# Labels


HOSTILE = ["../x", "{0}", "{username}", "A", "a", "名前", "a,b", " a ", "a\nb", "a=b", "", "?"]


@pytest.mark.parametrize("user", HOSTILE)
@pytest.mark.parametrize("server", ["", "second", "../y"])
def test_a_holder_is_read_back_as_it_was_written(user: str, server: str) -> None:
    written = labels_of(Holder(user, server), "torch", ["GPU-1", "GPU-2"])
    read = lease_of(server_record({"Labels": written, "State": "running"}))
    assert read == Lease(Holder(user, server), frozenset({"GPU-1", "GPU-2"}))


@given(st.text(), st.text(), st.sets(st.uuids().map(lambda uuid: f"GPU-{uuid}")))
def test_every_lease_is_read_back_as_it_was_written(user: str, server: str, gpus: Any) -> None:
    written = labels_of(Holder(user, server), "torch", sorted(gpus))
    assert all(isinstance(text, str) for text in written.values())
    assert lease_of(server_record({"Labels": written, "State": "created"})) == Lease(
        Holder(user, server), gpus
    )


@pytest.mark.parametrize(
    ("state", "holds"),
    [
        ("created", True),
        ("running", True),
        ("paused", True),
        ("restarting", True),
        ("exited", False),
        ("dead", False),
        ("removing", False),
        # Unknown is never free.
        ("stopping", True),
        ("", True),
        (None, True),
    ],
)
def test_a_container_holds_its_gpus_in_every_state_in_which_it_may_run(
    state: Any, holds: bool
) -> None:
    container = {"Labels": labels_of(ANN, "torch", ["GPU-1"]), "State": state}
    assert lease_of(server_record(container)) == (
        Lease(ANN, frozenset({"GPU-1"})) if holds else None
    )


def test_a_container_that_says_no_state_holds_its_gpus() -> None:
    assert lease_of(server_record({"Labels": labels_of(ANN, "torch", ["GPU-1"])})) is not None


def test_containers_of_others_hold_nothing() -> None:
    others: list[Any] = [
        {"Labels": None, "State": "running"},
        {"State": "running"},
        {"Labels": {"com.docker.compose.project": "x"}, "State": "running"},
        {"Labels": {LABEL_USER: "ann"}, "State": "running"},
    ]
    assert leases_of(map(server_record, others)) == []


def test_a_label_written_by_hand_is_understood() -> None:
    container = {"Labels": {LABEL_GPUS: " GPU-1, GPU-2,,"}, "State": "running"}
    assert lease_of(server_record(container)) == Lease(Holder("?"), frozenset({"GPU-1", "GPU-2"}))


def test_a_server_without_gpus_is_a_lease_of_none() -> None:
    written = labels_of(ANN, "torch", [])
    assert written[LABEL_GPUS] == ""
    assert lease_of(server_record({"Labels": written, "State": "running"})) == Lease(
        ANN, frozenset()
    )


# A host: its engine and its NVML


GPUS = tuple(GPU(f"GPU-{n}", n, "Tesla T4") for n in range(3))
NODES = (Node("", "570.133.20", "12.8", GPUS),)


@dataclass
class Host:
    """An engine's containers and a host's GPUs, each read of which can be held up or fail.

    A listing shows what there was when it began, however late it is answered.
    """

    nodes: tuple[Node, ...] = NODES
    containers: list[dict[str, Any]] = field(default_factory=list)
    broken: dict[str, Exception] = field(default_factory=dict)
    held: dict[str, asyncio.Event] = field(default_factory=dict)
    reads: list[str] = field(default_factory=list)
    ids: Any = field(default_factory=itertools.count)

    async def listing(self) -> list[ServerRecord]:
        return [server_record(each) for each in await self._read("engine", self.containers)]

    async def nvml(self) -> tuple[Node, ...]:
        return await self._read("nvml", self.nodes)

    async def _read(self, what: str, value: Any) -> Any:
        self.reads.append(what)
        value = copy.deepcopy(value)
        if what in self.held:
            await self.held[what].wait()
        if what in self.broken:
            raise self.broken[what]
        return value

    def hold(self, what: str) -> asyncio.Event:
        self.held[what] = asyncio.Event()
        return self.held[what]

    def create(
        self, holder: Holder, gpus: Any, state: str = "created", created: int = 100, id: str = ""
    ) -> dict[str, Any]:
        container = {
            "Id": id or f"id-{next(self.ids)}",
            "State": state,
            "Created": created,
            "Labels": labels_of(holder, "torch", gpus),
        }
        self.containers.append(container)
        return container

    def ledger(self, **more: Any) -> Ledger:
        """The ledger of one hub; each call is another hub's."""
        return Ledger(self.listing, self.nvml, **more)


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
async def ledger(host: Host) -> Ledger:
    return host.ledger()


async def until(ready: Callable[[], Any]) -> None:
    for _ in range(100):
        if ready():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to that")


async def holders(ledger: Ledger, **more: Any) -> dict[str, str]:
    """UUID -> holder, of the GPUs that aren't free."""
    view = await ledger.read(**more)
    return {str(gpu.uuid): str(gpu.holder) for gpu in view.gpus if gpu.state != "free"}


# Looking


async def test_a_look_shows_the_host_with_its_holders(host: Host, ledger: Ledger) -> None:
    host.create(ANN, ["GPU-0"], "running")
    host.create(BOB, ["GPU-2"], "created")
    host.create(BOB, ["GPU-1"], "exited")
    view = await ledger.read()
    assert [(node.driver, node.cuda) for node in view.nodes] == [("570.133.20", "12.8")]
    assert [gpu.state for gpu in view.gpus] == ["leased", "free", "leased"]
    assert [gpu.holder for gpu in view.gpus] == [ANN, None, BOB]


async def test_nvml_is_read_before_the_engine(host: Host, ledger: Ledger) -> None:
    """A container that starts in between is then seen as one, not as a program of others."""
    await ledger.read()
    assert host.reads == ["nvml", "engine"]


async def test_a_server_about_to_be_replaced_is_shown_its_own_gpus_as_free(
    host: Host, ledger: Ledger
) -> None:
    host.create(ANN, ["GPU-0"], "running")
    host.create(Holder("ann", "second"), ["GPU-1"], "running")
    await reserve(ledger, ANN, ONE)
    assert await holders(ledger, except_for=ANN) == {"GPU-1": "ann/second"}


async def test_many_pages_are_shown_what_a_look_has_just_seen(host: Host, ledger: Ledger) -> None:
    host.create(ANN, ["GPU-0"], "running")
    seen = [await ledger.read_recent(60) for _ in range(5)]
    assert host.reads == ["nvml", "engine"]
    assert all(view is seen[0] for view in seen)
    assert [gpu.state for gpu in (await ledger.read_recent(60, ANN)).gpus] == ["free"] * 3
    await ledger.read_recent(0)
    assert host.reads == ["nvml", "engine"] * 2
    host.broken["nvml"] = OSError("gone")
    with pytest.raises(Unknown, match="gone"):
        await ledger.read_recent(0)


async def test_pages_that_come_while_one_reads_for_another_get_the_same_view(host: Host) -> None:
    made: list[str] = []
    ledger = host.ledger(on_read=lambda: made.append("view"))
    goes_on = host.hold("engine")
    first = asyncio.ensure_future(ledger.read_recent(1))
    await until(lambda: host.reads == ["nvml", "engine"])
    gives_up, *others = [asyncio.ensure_future(ledger.read_recent(1)) for _ in range(4)]
    # Who is about to hand out something has to see what is so after they asked.
    strict = asyncio.ensure_future(ledger.read())
    await until(lambda: host.reads == ["nvml", "engine", "nvml"])
    first.cancel()
    gives_up.cancel()
    goes_on.set()
    views = await asyncio.gather(*others)
    assert all(view is views[0] for view in views)
    assert await strict is not views[0]
    assert host.reads == ["nvml", "engine"] * 2
    assert made == ["view"] * 2


@pytest.mark.parametrize("what", ["nvml", "engine"])
async def test_nothing_is_handed_out_while_either_cannot_be_read(host: Host, what: str) -> None:
    ledger = host.ledger(explain_error=lambda error: f"{what} is away: {error}")
    host.broken[what] = OSError("gone")
    with pytest.raises(Unknown, match=f"{what} is away: gone"):
        await ledger.read()
    with pytest.raises(Unknown, match=f"{what} is away: gone"):
        await reserve(ledger, ANN, ONE)
    host.broken.clear()
    assert await holders(ledger) == {}


async def test_an_error_is_told_as_it_is_where_nobody_explains_it(
    host: Host, ledger: Ledger
) -> None:
    host.broken["engine"] = OSError("gone")
    with pytest.raises(Unknown, match=r"^gone$"):
        await ledger.read()


async def test_what_has_gpus_without_a_lease_holds_them(host: Host) -> None:
    async def listing() -> list[ServerRecord]:
        by_hand = ServerRecord("x", {}, name="by-hand", gpu_names=frozenset({"1"}))
        return [*await host.listing(), by_hand]

    ledger = Ledger(listing, host.nvml)
    host.create(ANN, ["GPU-0"], "running")
    for view in (await ledger.read(), await ledger.read_recent(60, BOB)):
        assert [gpu.state for gpu in view.gpus] == ["leased", "foreign", "free"]
        assert [each.name for each in view.outsiders] == ["by-hand"]
    view = await ledger.read_recent(60, ANN)
    assert [gpu.state for gpu in view.gpus] == ["free", "foreign", "free"]
    assert (await reserve(ledger, BOB, ONE)).units == {"GPU-2"}
    with pytest.raises(Refused, match="1 in use outside the hub"):
        await reserve(ledger, Holder("eve"), ONE)


async def test_who_was_created_for_what_an_outsider_has_got_meanwhile_gives_way(
    host: Host,
) -> None:
    outside: list[ServerRecord] = []

    async def listing() -> list[ServerRecord]:
        return [*await host.listing(), *outside]

    ledger = Ledger(listing, host.nvml)
    reservation = await reserve(ledger, ANN, TWO)
    ours = host.create(ANN, sorted(reservation.units))["Id"]
    await ledger.claim(ours, reservation.units)
    outside.append(ServerRecord("x", {}, gpu_names=frozenset({"0"})))
    with pytest.raises(Contested):
        await ledger.claim(ours, reservation.units)


@pytest.mark.parametrize(
    ("past", "waits"), [(5, "order"), (OVERDUE_SECONDS - 60, "order"), (3600, "")]
)
async def test_nothing_is_kept_for_who_would_need_what_is_long_past_its_end(
    host: Host, past: float, waits: str
) -> None:
    """Nobody may ever stop it: as with what programs outside use."""
    now = time.time()
    host.create(ANN, ["GPU-0"], "running")["Labels"][LABEL_UNTIL] = str(round(now - past))
    view = await host.ledger().read()
    large = QueuedRequest(Holder("large"), Request("torch", 3, seconds=3600.0), now - 10)
    small = QueuedRequest(Holder("small"), Request("torch", 1, seconds=3600.0), now - 5)
    first, second = Planner().plan([large, small], view.gpus, view.leases, now)
    assert (second.gpus == ()) == bool(waits)
    if waits:
        assert second.because == waits
    else:
        assert (first.start, first.because) == (None, "never")
        assert [gpu.until for gpu in view.gpus] == [None] * 3


# Reserving


async def test_a_reservation_holds_its_gpus_before_any_container_does(ledger: Ledger) -> None:
    reservation = await reserve(ledger, ANN, TWO)
    assert (reservation.holder, reservation.units) == (ANN, {"GPU-0", "GPU-1"})
    assert await holders(ledger) == {"GPU-0": "ann", "GPU-1": "ann"}


async def test_a_server_that_is_listed_and_reserved_still_is_counted_once(
    host: Host, ledger: Ledger
) -> None:
    reservation = await reserve(ledger, ANN, TWO)
    host.create(ANN, sorted(reservation.units))
    (lease,) = (await ledger.read()).leases
    assert (lease.holder, lease.gpus) == (ANN, reservation.units)
    # It is created anew, with the same GPUs.
    host.containers.clear()
    assert await holders(ledger) == {"GPU-0": "ann", "GPU-1": "ann"}


async def test_a_reservation_follows_the_policy(ledger: Ledger) -> None:
    assert (await reserve(ledger, ANN, TWO, "spread")).units == {"GPU-0", "GPU-2"}


async def test_many_at_the_same_moment_get_different_gpus(host: Host, ledger: Ledger) -> None:
    """And one of four finds none left, since there are three."""
    tries = [reserve(ledger, Holder(f"user-{n}"), ONE) for n in range(4)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    given = [result.units for result in results if not isinstance(result, BaseException)]
    assert sorted(map(sorted, given)) == [["GPU-0"], ["GPU-1"], ["GPU-2"]]
    (refused,) = [result for result in results if isinstance(result, BaseException)]
    assert isinstance(refused, Refused)
    assert str(refused) == "You asked for 1 GPU, and 0 of 3 are free now (3 in use)."


async def test_who_is_refused_holds_nothing(host: Host, ledger: Ledger) -> None:
    host.create(BOB, ["GPU-0", "GPU-1"], "running")
    with pytest.raises(Refused):
        await reserve(ledger, ANN, TWO)
    assert await holders(ledger, except_for=BOB) == {}


async def test_who_gives_up_while_the_host_is_read_holds_nothing(
    host: Host, ledger: Ledger
) -> None:
    answer = host.hold("engine")
    waiting = asyncio.ensure_future(reserve(ledger, ANN, TWO))
    await until(lambda: "engine" in host.reads)
    waiting.cancel()
    answer.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await holders(ledger) == {}


async def test_a_server_without_gpus_needs_neither_nvml_nor_engine(
    host: Host, ledger: Ledger
) -> None:
    host.broken = {"nvml": OSError(), "engine": OSError()}
    reservation = await reserve(ledger, ANN, Request("torch", 0))
    assert (reservation.gpus, host.reads) == ((), [])


async def test_gpus_are_free_again_when_their_container_will_never_exist(ledger: Ledger) -> None:
    reservation = await reserve(ledger, ANN, TWO)
    ledger.release(reservation)
    assert await holders(ledger) == {}
    ledger.release(reservation)
    assert await holders(ledger) == {}


async def test_a_listing_begun_before_the_container_existed_does_not_free_its_gpus(
    host: Host, ledger: Ledger
) -> None:
    reservation = await reserve(ledger, ANN, TWO)
    answer = host.hold("engine")
    early = [asyncio.ensure_future(holders(ledger)) for _ in range(3)]
    await until(lambda: host.reads.count("engine") == 2)
    host.create(ANN, sorted(reservation.units))
    ledger.release(reservation)
    answer.set()
    # Three share the listing: the first to be answered forgets nothing that the others need.
    assert await asyncio.gather(*early) == [{"GPU-0": "ann", "GPU-1": "ann"}] * 3
    assert await holders(ledger) == {"GPU-0": "ann", "GPU-1": "ann"}


async def test_a_second_release_does_not_prolong_a_reservation(host: Host, ledger: Ledger) -> None:
    reservation = await reserve(ledger, ANN, TWO)
    ledger.release(reservation)
    answer = host.hold("engine")
    later = asyncio.ensure_future(holders(ledger))
    await until(lambda: host.reads.count("engine") == 2)
    ledger.release(reservation)
    answer.set()
    assert await later == {}


async def test_from_its_creation_on_the_container_alone_holds_the_gpus(
    host: Host, ledger: Ledger
) -> None:
    reservation = await reserve(ledger, ANN, TWO)
    container = host.create(ANN, sorted(reservation.units))
    ledger.release(reservation)
    for state in ("created", "running"):
        container["State"] = state
        assert await holders(ledger) == {"GPU-0": "ann", "GPU-1": "ann"}
    container["State"] = "exited"
    assert await holders(ledger) == {}


async def test_a_hub_that_was_restarted_knows_all_that_the_containers_say(host: Host) -> None:
    first = host.ledger()
    reservation = await reserve(first, ANN, TWO)
    host.create(ANN, sorted(reservation.units))
    second = host.ledger()
    assert await holders(second) == {"GPU-0": "ann", "GPU-1": "ann"}
    assert (await reserve(second, BOB, ONE)).units == {"GPU-2"}


async def test_nothing_is_kept_of_a_reservation_that_nobody_can_need_any_more(
    host: Host, ledger: Ledger
) -> None:
    """A hub runs for months. Looks that failed or were given up need nothing either."""
    reservation = weakref.ref(await reserve(ledger, ANN, TWO))
    host.broken["engine"] = OSError("gone")
    with pytest.raises(Unknown):
        await ledger.read()
    host.broken.clear()
    given_up = asyncio.ensure_future(ledger.read())
    await asyncio.sleep(0)
    given_up.cancel()
    ledger.release(reservation())  # type: ignore[arg-type]
    await ledger.read()
    gc.collect()
    assert reservation() is None


# Claiming


US = "id-us"


@pytest.mark.parametrize(
    "rival",
    [
        pytest.param({"created": 99}, id="created earlier, not started"),
        pytest.param({"created": 1}, id="created long ago by a hub that died"),
        pytest.param({"created": 100, "id": "id-ur"}, id="created in the same second, lower id"),
        pytest.param({"created": 101, "state": "running"}, id="created later and already running"),
        pytest.param({"created": 101, "state": "paused"}, id="created later and paused"),
    ],
)
async def test_the_container_that_came_second_gives_way(
    host: Host, ledger: Ledger, rival: Any
) -> None:
    host.create(ANN, ["GPU-0", "GPU-1"], id=US)
    host.create(BOB, ["GPU-1"], **rival)
    with pytest.raises(Contested, match="another hub"):
        await ledger.claim(US, {"GPU-0", "GPU-1"}, timeout=3600)
    assert host.reads == ["engine"]  # at once


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"gpus": ["GPU-2"]}, id="of other GPUs"),
        pytest.param({"gpus": []}, id="of no GPU"),
        pytest.param({"gpus": ["GPU-1"], "state": "exited"}, id="that ended"),
        pytest.param({"gpus": ["GPU-1"], "state": "removing"}, id="that is being removed"),
    ],
)
async def test_a_container_that_holds_none_of_the_gpus_is_no_rival(
    host: Host, ledger: Ledger, other: Any
) -> None:
    host.create(ANN, ["GPU-0", "GPU-1"], id=US)
    host.create(BOB, created=1, **other)
    await ledger.claim(US, {"GPU-0", "GPU-1"}, timeout=-1)


LATER = [{"created": 101}, {"created": 100, "id": "id-ut"}]


@pytest.mark.parametrize("rival", LATER, ids=["a second later", "by id"])
async def test_the_container_that_came_first_waits_for_the_other_to_give_way(
    host: Host, ledger: Ledger, rival: Any
) -> None:
    host.create(ANN, ["GPU-1"], id=US)
    other = host.create(BOB, ["GPU-1"], **rival)
    claim = asyncio.ensure_future(ledger.claim(US, {"GPU-1"}, timeout=3600))
    await until(lambda: host.reads)
    await asyncio.sleep(0.05)
    assert not claim.done()
    host.containers.remove(other)
    await asyncio.wait_for(claim, 20)


async def test_the_container_that_came_first_gives_way_to_one_that_started(
    host: Host, ledger: Ledger
) -> None:
    """The other's hub may have looked before ours existed."""
    host.create(ANN, ["GPU-1"], id=US)
    other = host.create(BOB, ["GPU-1"], created=101)
    claim = asyncio.ensure_future(ledger.claim(US, {"GPU-1"}, timeout=3600))
    await until(lambda: host.reads)
    other["State"] = "running"
    with pytest.raises(Contested):
        await asyncio.wait_for(claim, 20)


async def test_the_container_that_came_first_gives_way_to_one_that_does_not_move(
    host: Host, ledger: Ledger
) -> None:
    host.create(ANN, ["GPU-1"], id=US)
    host.create(BOB, ["GPU-1"], created=101)
    with pytest.raises(Contested):
        await ledger.claim(US, {"GPU-1"}, timeout=-1)


async def test_a_container_that_was_removed_is_not_claimed(host: Host, ledger: Ledger) -> None:
    with pytest.raises(Contested, match="removed"):
        await ledger.claim(US, {"GPU-1"})


async def test_nothing_is_claimed_while_the_engine_cannot_be_read(host: Host) -> None:
    host.create(ANN, ["GPU-1"], id=US)
    host.broken["engine"] = OSError("gone")
    with pytest.raises(Unknown, match="the engine: gone"):
        await host.ledger(explain_error=lambda error: f"the engine: {error}").claim(US, {"GPU-1"})


def with_use(state: str, *units: str) -> tuple[Node, ...]:
    """The host's GPUs, some of which are in a state by now."""
    return tuple(
        replace(
            node,
            gpus=tuple(
                replace(gpu, state=state) if gpu.id in units else gpu  # type: ignore[arg-type]
                for gpu in node.gpus
            ),
        )
        for node in NODES
    )


async def test_what_somebody_uses_since_it_was_reserved_is_not_claimed(host: Host) -> None:
    ledger = host.ledger()
    reservation = await reserve(ledger, ANN, ONE)
    host.create(ANN, sorted(reservation.units), id=US)
    # Another one, or what isn't known: who was granted GPUs goes on.
    for state, unit in (("foreign", "GPU-1"), ("unknown", "GPU-0"), ("free", "GPU-0")):
        host.nodes = with_use(state, unit)
        await ledger.claim(US, reservation.units)
    host.broken["nvml"] = OSError("gone")
    await ledger.claim(US, reservation.units)
    host.broken.clear()
    host.nodes = with_use("foreign", *reservation.units)
    with pytest.raises(Contested, match="uses one of these GPUs by now"):
        await ledger.claim(US, reservation.units)


async def test_no_slot_is_claimed_of_a_gpu_that_somebody_uses_without_a_lease(host: Host) -> None:
    ledger = host.ledger()
    host.create(ANN, ["GPU-0#1/4"], id=US)
    await ledger.read()
    host.nodes = with_use("foreign", "GPU-1")
    await ledger.claim(US, {"GPU-0#1/4"})
    host.nodes = with_use("foreign", "GPU-0")
    with pytest.raises(Contested, match="uses one of these GPUs by now"):
        await ledger.claim(US, {"GPU-0#1/4"})
    # Unless it may be another one of those who share it.
    host.create(BOB, ["GPU-0#2/4"], id="other")
    await ledger.read()
    await ledger.claim(US, {"GPU-0#1/4"})


async def test_a_server_without_gpus_has_nothing_to_claim(host: Host, ledger: Ledger) -> None:
    host.broken["engine"] = OSError("gone")
    await ledger.claim(US, set())


@pytest.mark.parametrize("created", [(100, 100), (100, 101), (101, 100)])
async def test_of_two_hubs_that_chose_the_same_gpu_one_starts(
    host: Host, created: tuple[int, int]
) -> None:
    """Neither sees the other's reservation, which is in another process's memory."""
    started: list[Holder] = []

    async def start(holder: Holder, second: int) -> None:
        ledger = host.ledger()
        reservation = await reserve(ledger, holder, ONE)
        assert reservation.units == {"GPU-0"}
        container = host.create(holder, ["GPU-0"], created=second)
        ledger.release(reservation)
        try:
            await ledger.claim(container["Id"], reservation.units, timeout=3600)
        except Contested:
            host.containers.remove(container)
        else:
            container["State"] = "running"
            started.append(holder)

    await asyncio.wait_for(asyncio.gather(start(ANN, created[0]), start(BOB, created[1])), 20)
    assert started == [BOB if created[1] < created[0] else ANN]


# Sharing reads


class Source:
    """Something slow to read: the number of the read, once it is let through."""

    def __init__(self) -> None:
        self.running: dict[int, asyncio.Future[int]] = {}
        self.numbers = itertools.count()
        self.most_at_once = 0

    async def __call__(self) -> int:
        number = next(self.numbers)
        self.running[number] = asyncio.get_running_loop().create_future()
        self.most_at_once = max(self.most_at_once, len(self.running))
        try:
            return await self.running[number]
        finally:
            del self.running[number]

    async def let_through(self, number: int, error: Exception | None = None) -> None:
        await until(lambda: number in self.running)
        if error:
            self.running[number].set_exception(error)
        else:
            self.running[number].set_result(number)


@pytest.fixture
async def source() -> Source:
    return Source()


@pytest.fixture
async def ask(source: Source) -> Callable[[], Awaitable[int]]:
    """Ask at once, and return what the answer will be."""
    read = SharedRead(source)
    return lambda: asyncio.ensure_future(read())


async def test_whoever_asks_at_the_same_moment_shares_one_read(source: Source, ask: Any) -> None:
    callers = [ask() for _ in range(60)]
    await source.let_through(0)
    assert await asyncio.gather(*callers) == [0] * 60


async def test_whoever_asks_while_a_read_runs_gets_the_next_one(source: Source, ask: Any) -> None:
    first = ask()
    await until(lambda: source.running)
    others = []
    for _ in range(59):
        others.append(ask())
        await asyncio.sleep(0)
    await source.let_through(0)
    assert await first == 0
    await source.let_through(1)
    assert await asyncio.gather(*others) == [1] * 59
    assert source.most_at_once == 1


async def test_every_answer_is_of_a_read_begun_after_it_was_asked_for(
    source: Source, ask: Any
) -> None:
    for number in range(5):
        caller = ask()
        await source.let_through(number)
        assert await caller == number


async def test_an_error_reaches_all_who_share_the_read_and_nobody_else(
    source: Source, ask: Any
) -> None:
    first = ask()
    await until(lambda: source.running)
    second, third = ask(), ask()
    await source.let_through(0)
    assert await first == 0
    await source.let_through(1, OSError("gone"))
    results = await asyncio.gather(second, third, return_exceptions=True)
    assert [str(result) for result in results] == ["gone", "gone"]
    fourth = ask()
    await source.let_through(2)
    assert await fourth == 2


async def test_a_read_that_fails_does_not_fail_those_who_wait_for_the_next(
    source: Source, ask: Any
) -> None:
    first = ask()
    await until(lambda: source.running)
    second = ask()
    await source.let_through(0, OSError("gone"))
    with pytest.raises(OSError, match="gone"):
        await first
    await source.let_through(1)
    assert await second == 1


async def test_who_gives_up_ends_the_read_for_nobody_else(source: Source, ask: Any) -> None:
    first, second = ask(), ask()
    await until(lambda: source.running)
    waiting, gone = ask(), ask()
    await asyncio.sleep(0)
    first.cancel()
    gone.cancel()
    await source.let_through(0)
    await source.let_through(1)
    assert (await second, await waiting) == (0, 1)


async def test_where_all_have_given_up_the_next_who_asks_is_answered(
    source: Source, ask: Any
) -> None:
    first = ask()
    await until(lambda: source.running)
    second = ask()
    await asyncio.sleep(0)
    first.cancel()
    second.cancel()
    await source.let_through(0)
    await source.let_through(1)
    third = ask()
    await source.let_through(2)
    assert await third == 2


async def test_where_all_have_given_up_an_error_is_nobodys(source: Source, ask: Any) -> None:
    """Else asyncio logs it with a traceback, as one that was overlooked."""
    overlooked: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: overlooked.append(context))
    caller = ask()
    await until(lambda: source.running)
    caller.cancel()
    await source.let_through(0, OSError("gone"))
    for number in (1, 2):  # until nothing remembers the read that failed
        caller = ask()
        await source.let_through(number)
        await caller
    gc.collect()
    assert overlooked == []


def test_another_hub_s_user_of_the_same_name_is_somebody_else() -> None:
    def container(hub: str | None) -> dict[str, Any]:
        label = {} if hub is None else {LABEL_HUB: hub}
        return {"State": "running", "Labels": {**labels_of(Holder("ada"), "x", ["GPU-1"]), **label}}

    for hub, whose in (
        ("http://here", Holder("ada")),
        (None, Holder("ada")),
        ("http://there", Holder("ada", "", "http://there")),
    ):
        lease = lease_of(server_record(container(hub)), "http://here")
        assert lease is not None
        assert lease.holder == whose
        assert str(lease.holder) == "ada"
    lease = lease_of(server_record(container("http://there")))
    assert lease is not None
    assert lease.holder == Holder("ada")
