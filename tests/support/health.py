"""What the tests of GPUs' health share: an engine's volumes, and a node that reads and reports."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import docker.errors

from gpuspawner.backends.docker.backend import DockerBackend
from gpuspawner.gpus.health import HealthEvent
from gpuspawner.gpus.health_facts import ALL_TOLD, HealthReading
from gpuspawner.gpus.model import GPU, Node
from gpuspawner.gpus.nvml import DriverNotLoaded
from gpuspawner.hub.health_watch import HealthWatch
from gpuspawner.leases.ledger import Ledger

LOG = logging.getLogger("tests of health")
LOG.setLevel(logging.CRITICAL)


class Engine:
    """An engine's volumes, which outlive every hub; `fails` is whether it can't be reached."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, Any]] = {}
        self.containers_there: list[dict[str, Any]] = []
        self.fails = False
        # How many more volumes can be removed; None: all.
        self.removals: int | None = None
        # Called after the volumes are listed, and before the answer is there.
        self.meanwhile: Callable[[], None] = lambda: None

    def _check(self) -> None:
        if self.fails:
            raise docker.errors.APIError("the engine is away")

    def create_volume(self, name: str, labels: Mapping[str, str]) -> None:
        self._check()
        self.kept.setdefault(name, {"Name": name, "Labels": dict(labels)})

    def remove_volume(self, name: str) -> None:
        self._check()
        if self.removals is not None:
            self.removals -= 1
            self.fails = self.removals < 0
            self._check()
        if self.kept.pop(name, None) is None:
            raise docker.errors.NotFound("no such volume")

    def volumes(self, filters: Mapping[str, Any]) -> dict[str, Any]:
        self._check()
        names = filters["name"]
        parts = [names] if isinstance(names, str) else names
        found = [each for name, each in self.kept.items() if any(part in name for part in parts)]
        self.meanwhile()
        return {"Volumes": found or None}

    def containers(self, all: bool) -> list[dict[str, Any]]:
        self._check()
        return list(self.containers_there)

    def close(self) -> None:
        """Nothing is open."""


class Machine:
    """A node whose GPUs read as they are set; `load` is which load of the driver it has."""

    def __init__(self, gpus: Sequence[GPU]) -> None:
        self.gpus = list(gpus)
        self.causes: dict[str, set[str]] = {gpu.uuid or "": set() for gpu in gpus if not gpu.parent}
        self.load = "boot:1"
        self.is_loaded = True
        self.silent: set[str] = set()

    def nodes(self) -> tuple[Node, ...]:
        if not self.is_loaded:
            raise DriverNotLoaded("its driver isn't loaded")
        return (Node("", "580.65.06", "13.0", tuple(map(self._read, self.gpus))),)

    def _read(self, gpu: GPU) -> GPU:
        uuid = gpu.gpu_uuid or ""
        if uuid in self.silent:
            reading = HealthReading(frozenset({"unreachable"}), ALL_TOLD, answers=False)
            return replace(gpu, state="unknown", reason="it doesn't answer", health=reading)
        return replace(gpu, health=HealthReading(frozenset(self.causes[uuid])))


class Reader:
    """Reads a machine for one hub."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.lets_go = False

    async def __call__(self) -> tuple[Node, ...]:
        return self.machine.nodes()


class Events:
    """What is heard of events while it is on."""

    def __init__(self, on_event: Callable[[HealthEvent], None]) -> None:
        self.on_event = on_event
        self.is_on = False

    def turn_on(self) -> None:
        self.is_on = True

    def turn_off(self) -> None:
        self.is_on = False


class Lease:
    """A server's lease, and what it was told."""

    def __init__(self, holder: Any, units: Collection[str]) -> None:
        self.holder = holder
        self.units = frozenset(units)
        self.trouble: list[Mapping[str, Any]] = []

    def note_trouble(self, trouble: Sequence[Mapping[str, Any]]) -> None:
        self.trouble = list(trouble)


class Hub:
    """What a hub does with health: its watch and its ledger, over an engine and a machine."""

    def __init__(self, engine: Engine, machine: Machine, leases: Sequence[Lease] = ()) -> None:
        self.backend = DockerBackend(lambda: engine, LOG)
        self.reader = Reader(machine)
        self.leases = list(leases)
        self.watch = HealthWatch(
            self.reader,  # type: ignore[arg-type]
            self.backend,
            lambda: self.leases,
            LOG,
            Events,  # type: ignore[arg-type]
            lambda: machine.load,
        )
        self.ledger = Ledger(
            self.backend.list,
            self.watch.read_nodes,
            read_notes=self.watch.read_notes,
            is_out_of_order=self.watch.is_out_of_order,
        )

    @property
    def hears(self) -> bool:
        """Whether it hears of events now."""
        return self.watch.events.is_on

    def report(self, event: HealthEvent) -> None:
        """Let it hear of an event, if it does."""
        if self.hears:
            self.watch.events.on_event(event)  # type: ignore[attr-defined]

    async def look(self) -> None:
        """Look, as it does now and then, until all that follows is done."""
        for _ in range(2):
            for read in (self.watch.read_notes, self.watch.read_nodes):
                with suppress(DriverNotLoaded, docker.errors.APIError):
                    await read()
            await self.watch.settled()

    async def free(self) -> set[str]:
        """Return the UUIDs of what could be leased now."""
        view = await self.ledger.read()
        return {gpu.uuid or "" for gpu in view.gpus if gpu.state == "free"}

    def close(self) -> None:
        self.watch.close()
        self.backend.close()
