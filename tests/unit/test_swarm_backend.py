"""What a hub changes of a service, while others change it as well."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from docker.errors import APIError

from gpuspawner.backends.swarm.backend import LABEL_ABANDONED, SwarmBackend
from gpuspawner.backends.swarm.listing import LABEL_END
from gpuspawner.backends.swarm.service_spec import service_spec
from gpuspawner.errors import Contested
from gpuspawner.gpus.health import HealthMark
from gpuspawner.gpus.model import Holder
from gpuspawner.leases.clock import Clock, Deadline
from gpuspawner.leases.labels import labels
from gpuspawner.leases.server_run import ServerRun

from ..support.raft import RaftInMemory

UUID = "GPU-01b2c3d4-0000-0000-0000-000000000000"


class Meanwhile(RaftInMemory):
    """A Swarm in which something happens between a hub's look at a service and its change."""

    def __init__(self) -> None:
        super().__init__({UUID.lower(): 1})
        self.happens: list[Callable[[], Any]] = []

    def inspect_service(self, id: str) -> Any:
        found = super().inspect_service(id)
        while self.happens:
            self.happens.pop()()
        return found


@pytest.fixture
def swarm() -> Meanwhile:
    return Meanwhile()


@pytest.fixture
def backend(swarm) -> Any:
    made = SwarmBackend(lambda: swarm, logging.getLogger("tests"))
    yield made
    made.close()


async def created(backend: SwarmBackend) -> str:
    """Return a service that has no task yet."""
    lease = labels(Holder("ann"), "torch", [UUID], 2e9)
    spec = service_spec(
        {"image": "sha256:1"},
        name="jupyter-ann",
        labels=lease,
        uuids=[UUID],
        kinds={UUID.lower(): 1},
        node_id="n1",
        network="net",
    )
    return await backend.create(spec)


def change(swarm: Meanwhile, **spec: Any) -> None:
    """Change the service as somebody else does."""
    (service,) = swarm.kept.values()
    service["Spec"].update(spec)
    service["Version"]["Index"] += 1000


REPLICAS = {"Replicated": {"Replicas": 1}}


async def test_what_is_about_to_be_removed_is_not_started(swarm, backend):
    server_id = await created(backend)
    abandoned = {**swarm.kept[server_id]["Spec"]["Labels"], LABEL_ABANDONED: "1"}
    swarm.happens.append(lambda: change(swarm, Labels=abandoned))
    with pytest.raises(Contested):
        await backend.start(server_id)
    swarm.orchestrate()
    assert swarm.tasks() == []


async def test_what_is_started_meanwhile_is_not_removed(swarm, backend):
    server_id = await created(backend)
    swarm.happens.append(lambda: change(swarm, Mode=REPLICAS))
    await backend.remove_unstarted(server_id)
    assert list(swarm.kept) == [server_id]
    assert LABEL_ABANDONED not in swarm.kept[server_id]["Spec"]["Labels"]


async def test_what_was_never_started_is_marked_and_removed(swarm, backend):
    server_id = await created(backend)
    marked: list[Any] = []
    swarm.remove_service = lambda id: marked.append(swarm.kept.pop(id)["Spec"]["Labels"])  # type: ignore[method-assign]
    await backend.remove_unstarted(server_id)
    assert [each[LABEL_ABANDONED] for each in marked] == ["1"]
    await backend.remove_unstarted(server_id)


async def test_an_extension_takes_nothing_back_that_changes_meanwhile(swarm, backend):
    server_id = await created(backend)
    others = {**swarm.kept[server_id]["Spec"]["Labels"], "by": "somebody"}
    swarm.happens.append(lambda: change(swarm, Labels=others, Mode=REPLICAS))
    end = Deadline.after(7200, Clock())
    await backend.keep_end(server_id, end)
    spec = swarm.kept[server_id]["Spec"]
    assert spec["Labels"]["by"] == "somebody"
    assert LABEL_END in spec["Labels"]
    assert spec["Mode"] == REPLICAS
    (server,) = (await backend.notes()).with_ends(await backend.list())
    assert server.extended is not None
    assert server.extended.until == pytest.approx(end.until, abs=1)
    await backend.keep_end(server_id, Deadline.after(60, Clock()))
    (server,) = (await backend.notes()).with_ends(await backend.list())
    assert server.extended.until == pytest.approx(end.until, abs=1)


async def test_a_service_that_is_gone_is_no_error_where_it_is_to_be_gone(swarm, backend):
    await backend.remove("nothing")
    await backend.remove_unstarted("nothing")
    with pytest.raises(APIError):
        await backend.start("nothing")


async def test_a_removal_waits_for_the_container_but_not_for_a_machine_that_is_away(swarm, backend):
    server_id = await created(backend)
    await backend.start(server_id)
    swarm.orchestrate()
    swarm.place()
    nodes = swarm.nodes()
    nodes[0]["Status"]["State"] = "down"
    swarm.nodes = lambda: nodes  # type: ignore[method-assign]
    await backend.remove(server_id)
    (left,) = await backend.list()
    assert left.state == "running"
    assert left.labels["gpuspawner.user"] == "ann"


async def test_marks_of_health_stand_beside_an_administrators_and_what_is_lifted_is_kept(backend):
    instance = "MIG-01b2c3d4-0000-0000-0000-000000000000"
    read = HealthMark(UUID, "remap-pending", UUID, 100.0, (), "boot:1")
    event = HealthMark(instance, "xid-94", UUID, 101.0, ("remap-pending",), "boot:1")
    for mark in (read, event, read):  # a second hub writes the same
        await backend.keep_health_mark(mark)
    await backend.take_out_of_service(UUID, "root", "fan")
    notes = await backend.notes()
    assert set(notes.health) == {read, event}
    assert (notes.marks[UUID].why, notes.marks[UUID].is_own) == ("fan", True)
    assert not notes.marks[instance].is_own
    await backend.end_health_mark(event)
    await backend.end_health_mark(event)
    assert (await backend.notes()).health == (read,)
    await backend.put_into_service(UUID)
    notes = await backend.notes()
    assert (notes.marks, notes.lifted) == ({}, {(UUID, "remap-pending")})
    await backend.forget_lifted(UUID, "remap-pending")
    assert (await backend.notes()).lifted == frozenset()


async def test_when_a_server_ran_as_far_as_swarm_remembers(swarm, backend):
    server_id = await created(backend)
    assert await backend.runs([server_id]) == {}
    at = "2026-11-30T10:00:00.5Z"
    task = {"ID": "t", "ServiceID": server_id, "Version": {"Index": 1}}
    swarm.all_tasks.append({**task, "Status": {"State": "running", "Timestamp": at}})
    assert await backend.runs([server_id, "other"]) == {server_id: ServerRun(started=1796032800.5)}
    ended = {"State": "failed", "Timestamp": at, "ContainerStatus": {"ExitCode": 137}}
    swarm.all_tasks[:] = [{**task, "Status": ended}]
    run = (await backend.runs([server_id]))[server_id]
    assert (run.started, run.ended, run.exit_code) == (None, 1796032800.5, 137)
