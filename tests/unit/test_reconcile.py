"""Servers that run with a hub's label and that it doesn't know: what is done about which."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.errors import Refused
from gpuspawner.gpus.model import Holder, Lease
from gpuspawner.leases.labels import LABEL_GPUS, LABEL_HUB, LABEL_UNTIL, ServerRecord, labels
from gpuspawner.leases.reconciler import MIN_SIGHTINGS, Orphan, Reconciler, compare

HUB, OTHER = "http://10.0.0.1:8081/hub/api", "http://10.0.0.2:8081/hub/api"
NOW, GRACE = 2_000_000_000.0, 60.0
ADA, BEN = Holder("ada"), Holder("ben", "two")


@dataclass
class Known:
    """A server as a hub's spawner tells of it."""

    holder: Holder
    server_id: str = ""
    is_known: bool = True


def server(
    holder: Holder = ADA, until: float | None = NOW - 1, hub: str = HUB, **values: Any
) -> ServerRecord:
    bears = {**labels(holder, "torch", ["GPU-0"], until), LABEL_HUB: hub}
    return ServerRecord(**{"id": "one", "labels": bears, "name": "jupyter-ada", **values})


class Looks:
    """Looks of a hub, one after the other."""

    def __init__(self, grace: float | None = GRACE, hub: str = HUB) -> None:
        self.grace = grace
        self.hub = hub
        self.orphans: Any = {}
        self.steady = 100.0
        self.announced: list[str] = []
        self.stopped: list[str] = []

    def look(
        self, servers: Iterable[ServerRecord], known: Iterable[Any] = (), now: float = NOW
    ) -> None:
        found = compare(
            servers,
            list(known),
            self.hub,
            self.orphans,
            now=now,
            steady=self.steady,
            grace=self.grace,
        )
        self.orphans = found.orphans
        self.announced += [each.server.id for each in found.announce]
        self.stopped += [each.server.id for each in found.stop]
        self.steady += 20


def test_what_is_past_its_end_and_unknown_is_announced_and_then_stopped() -> None:
    hub = Looks()
    seen = []
    for _ in range(6):
        hub.look([server()])
        seen.append((list(hub.announced), list(hub.stopped)))
        if hub.stopped:
            break
    assert seen == [
        ([], []),
        (["one"], []),
        (["one"], []),
        (["one"], []),
        (["one"], ["one"]),
    ]


@pytest.mark.parametrize("until", [None, NOW + 1])
def test_what_is_not_past_its_end_is_shown_and_never_stopped(until: float | None) -> None:
    hub = Looks()
    for _ in range(20):
        hub.look([server(until=until)])
    assert hub.orphans["one"].is_certain
    assert (hub.announced, hub.stopped) == ([], [])


def test_where_nobody_is_to_stop_it_by_itself_it_is_shown_only() -> None:
    hub = Looks(grace=None)
    for _ in range(20):
        hub.look([server()])
    assert hub.orphans["one"].is_certain
    assert (hub.announced, hub.stopped) == ([], [])


FOREIGN = {
    "another hub's": server(hub=OTHER),
    "doctor's": server(hub="gpuspawner doctor"),
    "by hand, with a lease's labels": server(hub="", labels={LABEL_GPUS: "GPU-0"}),
    "by hand, with no hub's name": server(hub=""),
    "DockerSpawner's": ServerRecord("one", {}, gpu_names=frozenset({"all"})),
    "by hand, with this hub's name and no lease": ServerRecord("one", {LABEL_HUB: HUB}),
    "ended": server(state="ended"),
    "about to be started": server(state="created"),
}


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("hub", [HUB, ""])
def test_what_is_not_this_hub_s_running_server_is_no_orphan(what: str, hub: str) -> None:
    looks = Looks(hub=hub)
    for _ in range(20):
        looks.look([FOREIGN[what]])
    assert looks.orphans == {}


def test_a_hub_without_an_address_has_no_orphans() -> None:
    looks = Looks(hub="")
    for _ in range(20):
        looks.look([server(hub=""), server(hub=HUB, id="two")])
    assert looks.orphans == {}


@pytest.mark.parametrize(
    "known",
    [
        Known(ADA),
        Known(ADA, "one"),
        # The user has another name by now, and the server runs on.
        Known(Holder("ada-lovelace"), "one"),
        # Its container isn't known to the spawner yet.
        Known(ADA, "another"),
    ],
)
def test_what_a_spawner_takes_up_in_the_last_moment_is_not_stopped(known: Known) -> None:
    hub = Looks()
    for _ in range(4):
        hub.look([server()])
    hub.look([server()], [known])
    assert (hub.stopped, hub.orphans) == ([], {})
    # Were it forgotten again, all would begin anew.
    hub.look([server()])
    assert (hub.announced, hub.stopped) == (["one"], [])


@pytest.mark.parametrize("known", [Known(ADA, "one", False), Known(Holder("ada", "two"), "two")])
def test_a_spawner_that_has_no_server_knows_none(known: Known) -> None:
    hub = Looks()
    for _ in range(5):
        hub.look([server()], [known])
    assert hub.stopped == ["one"]


def test_a_clock_that_was_wrong_for_a_while_stops_nothing() -> None:
    hub = Looks()
    for _ in range(4):
        hub.look([server(until=NOW + 10)], now=NOW + 1000)
    assert hub.announced == ["one"]
    for _ in range(10):
        hub.look([server(until=NOW + 10)])
    assert hub.stopped == []


holders = st.sampled_from([ADA, BEN, Holder("ada", "two"), Holder("eve")])
records = st.builds(
    server,
    holder=holders,
    until=st.sampled_from([None, 0.0, NOW - 1e6, NOW - 1, NOW, NOW + 1, NOW + 1e6]),
    hub=st.sampled_from([HUB, OTHER, "", "gpuspawner doctor"]),
    id=st.sampled_from(["one", "two", "three"]),
    state=st.sampled_from(["created", "running", "ended"]),
)
knowing = st.builds(
    Known, holder=holders, server_id=st.sampled_from(["", "one", "two"]), is_known=st.booleans()
)
moments = st.lists(
    st.tuples(
        st.lists(records, unique_by=lambda each: each.id),
        st.lists(knowing),
        st.sampled_from([NOW, NOW + 2, NOW - 2e6, NOW + 2e6]),
    ),
    max_size=12,
)


@given(moments, st.sampled_from([None, 0.0, 10.0, 60.0]))
def test_whatever_happens_only_what_is_this_hub_s_unknown_and_past_its_end_is_stopped(
    moments: Any, grace: float | None
) -> None:
    hub = Looks(grace)
    history: list[dict[str, ServerRecord]] = []
    announced_at: dict[str, float] = {}
    for servers, known, now in moments:
        before, steady = len(hub.stopped), hub.steady
        told = len(hub.announced)
        hub.look(servers, known, now)
        unknown = {
            each.id: each
            for each in servers
            if each.labels[LABEL_HUB] == HUB
            and each.state == "running"
            and not any(
                one.is_known
                and (
                    one.server_id == each.id
                    or one.holder
                    == Holder(each.labels["gpuspawner.user"], each.labels["gpuspawner.server"])
                )
                for one in known
            )
        }
        assert hub.orphans.keys() == unknown.keys()
        history.append(unknown)
        for id in hub.announced[told:]:
            announced_at[id] = steady
        for id in hub.stopped[before:]:
            assert grace is not None
            until = unknown[id].labels[LABEL_UNTIL]
            assert until
            assert float(until) < now
            assert all(id in each for each in history[-MIN_SIGHTINGS:])
            assert len(history) >= MIN_SIGHTINGS
            assert steady - announced_at[id] >= grace


# What a hub makes of it ---------------------------------------------------------------------------


class Backend:
    """A backend whose stops can be held up, and fail."""

    def __init__(self, *servers: ServerRecord) -> None:
        self.servers = {each.id: each for each in servers}
        self.stopped: list[str] = []
        self.trouble: Exception | None = None

    async def list(self) -> list[ServerRecord]:
        await asyncio.sleep(0)
        if self.trouble:
            raise self.trouble
        return list(self.servers.values())

    async def stop(self, server_id: str) -> None:
        await asyncio.sleep(0)
        if self.trouble:
            raise self.trouble
        self.stopped.append(server_id)
        del self.servers[server_id]


def past(**values: Any) -> ServerRecord:
    return server(until=round(time.time()) - 100, **values)


def reconciler(backend: Backend, known: list[Any], grace: float | None = 0.0) -> Reconciler:
    log = logging.getLogger("hub")
    return Reconciler(backend.list, lambda: known, backend.stop, HUB, grace, log)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def events(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    found = (record.getMessage().partition("gpuspawner {") for record in caplog.records)
    return [json.loads("{" + rest) for _, brace, rest in found if brace]


async def test_an_orphan_is_announced_in_the_log_and_stopped_with_a_line_each(caplog) -> None:
    caplog.set_level(logging.INFO)
    backend = Backend(past(), server(BEN, None, id="two"))
    looking = reconciler(backend, [])
    for _ in range(4):
        await looking.reconcile()
        await settle()
    assert backend.stopped == ["one"]
    warn, stop = events(caplog)
    assert (warn["event"], stop["event"]) == ("warn", "stop")
    for line in (warn, stop):
        assert (line["user"], line["gpus"], line["container"]) == ("ada", ["GPU-0"], "jupyter-ada")
        assert line["rule"] == "unknown to the hub"
        assert line["overdue"] >= 90
    assert "jupyter-ada" in caplog.text
    assert "past its end" in caplog.text
    assert [each["user"] for each in looking.facts()] == ["ben"]


async def test_while_the_backend_is_away_nothing_is_decided(caplog) -> None:
    backend = Backend(past())
    looking = reconciler(backend, [])
    await looking.reconcile()
    await looking.reconcile()
    backend.trouble = OSError("away")
    for _ in range(5):
        with pytest.raises(OSError, match="away"):
            await looking.reconcile()
    backend.trouble = None
    backend.servers.clear()
    await looking.reconcile()
    assert (backend.stopped, looking.facts()) == ([], [])


async def test_a_stop_that_fails_is_tried_again(caplog) -> None:
    backend = Backend(past())
    looking = reconciler(backend, [])
    for _ in range(2):
        await looking.reconcile()
    listed = asyncio.ensure_future(looking.reconcile())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    backend.trouble = OSError("full")
    await listed
    await settle()
    assert "full" in caplog.text
    assert backend.stopped == []
    backend.trouble = None
    await looking.reconcile()
    await settle()
    assert backend.stopped == ["one"]


async def test_an_administrator_stops_one_that_is_not_past_its_end(caplog) -> None:
    caplog.set_level(logging.INFO)
    backend = Backend(server(until=None))
    looking = reconciler(backend, [], None)
    await looking.reconcile()
    with pytest.raises(Refused):  # it may just have begun
        await looking.stop("one", "boss")
    await looking.reconcile()
    await looking.stop("one", "boss")
    assert backend.stopped == ["one"]
    (line,) = events(caplog)
    assert (line["event"], line["rule"], line["by"]) == ("stop", "an administrator", "user:boss")
    with pytest.raises(Refused, match="It has ended"):
        await looking.stop("one", "boss")


async def test_what_is_known_by_now_is_stopped_by_no_press(caplog) -> None:
    backend, known = Backend(server(until=None)), []
    looking = reconciler(backend, known, None)
    await looking.reconcile()
    await looking.reconcile()
    known.append(Known(ADA))
    with pytest.raises(Refused, match="knows it by now") as refused:
        await looking.stop("one", "boss")
    assert refused.value.status == 404
    assert backend.stopped == []


async def test_a_stop_that_an_administrator_asked_for_and_that_fails_is_told(caplog) -> None:
    backend = Backend(server(until=None))
    looking = reconciler(backend, [], None)
    await looking.reconcile()
    await looking.reconcile()

    async def fails(server_id: str) -> None:
        raise OSError("no")

    looking._stop = fails
    with pytest.raises(Refused, match="couldn't be stopped") as refused:
        await looking.stop("one", "boss")
    assert refused.value.status == 503


def test_how_long_its_end_is_past() -> None:
    assert [
        Orphan(server(), Lease(ADA, frozenset(), until)).overdue(NOW)
        for until in (None, NOW - 5, NOW + 5)
    ] == [0.0, 5.0, 0.0]
