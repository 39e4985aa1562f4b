"""What the engine's volumes say that no label can, and what becomes of it in the ledger."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import pytest

from gpuspawner.backends.docker import extended_ends, out_of_service
from gpuspawner.backends.docker.backend import DockerBackend
from gpuspawner.errors import Unknown
from gpuspawner.gpus.model import GPU, Holder, Node
from gpuspawner.gpus.out_of_service import OutOfServiceMark
from gpuspawner.leases.clock import Clock, Deadline
from gpuspawner.leases.labels import ServerRecord, labels
from gpuspawner.leases.ledger import Ledger
from gpuspawner.leases.notes import Notes

UNTIL = 2_000_000_000.0
END = json.dumps({"at": 600.0, "boot": "", "until": UNTIL})


def end_of(container_id: str) -> dict[str, Any]:
    bears = {extended_ends.LABEL: container_id, extended_ends.LABEL_END: END}
    return {"Name": f"{extended_ends.PREFIX}{container_id}-1", "Labels": bears}


class Engine:
    """An engine's volumes and containers, and what it was asked."""

    def __init__(self, *container_ids: str) -> None:
        mark = {"Name": f"{out_of_service.PREFIX}GPU-1", "Labels": {}}
        self.found = [mark, {"Name": "home", "Labels": None}]
        self.ids = list(container_ids)
        self.asked: list[str] = []
        # What a container that is created while containers are listed is extended to.
        self.meanwhile: list[dict[str, Any]] = []

    def volumes(self, filters: dict[str, Sequence[str]]) -> dict[str, Any]:
        self.asked.append("volumes")
        some = [
            each for each in self.found if any(part in each["Name"] for part in filters["name"])
        ]
        return {"Volumes": some or None}

    def containers(self, all: bool) -> list[dict[str, Any]]:
        self.asked.append("containers")
        self.found += self.meanwhile
        return [{"Id": each, "State": "exited"} for each in self.ids]

    def remove_volume(self, name: str) -> None:
        self.asked.append(f"remove {name}")
        self.found = [each for each in self.found if each["Name"] != name]


def backend_of(engine: Engine) -> DockerBackend:
    return DockerBackend(lambda: engine, logging.getLogger("test"))


async def test_the_engine_is_asked_once_for_all_notes() -> None:
    engine = Engine("one")
    engine.found.append(end_of("one"))
    notes = await backend_of(engine).notes()
    assert [*notes.marks] == ["GPU-1"]
    assert {server: round(end.until) for server, end in notes.ends.items()} == {"one": UNTIL}
    assert engine.asked == ["volumes"]


async def test_the_ends_of_those_who_are_gone_are_forgotten_and_no_others() -> None:
    engine = Engine("one")
    engine.found += [end_of("one"), end_of("gone")]
    engine.meanwhile = [end_of("created after the listing began")]
    backend = backend_of(engine)
    await backend.notes()
    for _ in range(2):
        await backend.list()
    forgotten = end_of("gone")["Name"]
    assert engine.asked == ["volumes", "containers", f"remove {forgotten}", "containers"]


async def test_what_is_to_be_listed_alone_takes_one_call() -> None:
    engine = Engine("one")
    await backend_of(engine).list()
    assert engine.asked == ["containers"]


class Backend:
    """A server with a GPU on a node of two."""

    def __init__(self) -> None:
        self.told = Notes()
        self.trouble: Exception | None = None
        self.asked: list[str] = []

    async def list(self) -> list[ServerRecord]:
        self.asked.append("servers")
        return [ServerRecord("one", labels(Holder("ada"), "torch", ["GPU-0"], UNTIL - 60))]

    async def nodes(self) -> list[Node]:
        return [Node(gpus=(GPU("GPU-0", 0, "T4"), GPU("GPU-1", 1, "T4")))]

    async def notes(self) -> Notes:
        self.asked.append("notes")
        if self.trouble:
            raise self.trouble
        return self.told

    def ledger(self) -> Ledger:
        return Ledger(self.list, self.nodes, read_notes=self.notes)


async def test_notes_say_what_is_out_of_service_and_until_when_a_lease_lasts() -> None:
    backend = Backend()
    ledger = backend.ledger()
    view = await ledger.read()
    assert [gpu.state for gpu in view.gpus] == ["leased", "free"]
    assert [lease.until for lease in view.leases] == [UNTIL - 60]
    later = Deadline.after(UNTIL - Clock().wall(), Clock())
    backend.told = Notes({"GPU-1": OutOfServiceMark("GPU-1")}, {"one": later})
    view = await ledger.read()
    assert [gpu.state for gpu in view.gpus] == ["leased", "excluded"]
    assert [lease.until for lease in view.leases] == [pytest.approx(UNTIL, abs=5)]
    assert ledger.last_notes is backend.told
    (server,) = await ledger.servers_with_ends()
    assert server.extended == later


async def test_what_may_be_out_of_service_is_not_handed_out() -> None:
    backend = Backend()
    backend.trouble = OSError("gone")
    with pytest.raises(Unknown, match="gone"):
        await backend.ledger().read()


async def test_the_last_listing_will_do_if_it_began_after_a_moment() -> None:
    backend = Backend()
    ledger = backend.ledger()
    began = ledger.moment()
    before = await ledger.servers(began)
    assert await ledger.servers(began) is before
    assert backend.asked == ["servers"]
    assert await ledger.servers(ledger.moment()) is not before
    assert await ledger.servers() is not before
    assert backend.asked == ["servers"] * 3
