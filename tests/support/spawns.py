"""One user's spawner on a hub whose engine is a list, and what JupyterHub does with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from jupyterhub import orm
from jupyterhub.utils import maybe_future
from traitlets.config import Config

from gpuspawner.backends.leftovers import Leftovers
from gpuspawner.choices.open_forms import OpenForms
from gpuspawner.courses.catalogue import CourseCatalogue
from gpuspawner.courses.hours_request import HoursRequest
from gpuspawner.gpus.model import GPU, Holder, Node
from gpuspawner.hub.messages import Messages
from gpuspawner.hub.reserved_hours import ReservedTimes
from gpuspawner.hub.switches import Switches
from gpuspawner.leases.labels import ServerRecord, labels
from gpuspawner.leases.ledger import Ledger
from gpuspawner.notifications.notifier import Notifier
from gpuspawner.scheduling.queue import Queue, QueueSettings
from gpuspawner.spawner import GPUSpawner

from .ledgers import NoWatcher

IMAGES = {"plain": "ref/plain", "secret": {"image": "ref/secret", "default": True}}


class Hub:
    """What a hub's spawners share, with two GPUs, and what runs on them."""

    name_machines = "administrators"

    def __init__(self) -> None:
        self.servers: list[ServerRecord] = []
        self.ledger = Ledger(self._list, self._read)
        log = logging.getLogger("hub-of-one-spawn")
        self.courses = CourseCatalogue({}, "", log)
        self.granted: Callable[[], Sequence[HoursRequest]] = tuple
        self.reserved = ReservedTimes(self.courses, self.ledger, 12, log, lambda: self.granted())
        self.queue = Queue(
            self.ledger,
            QueueSettings(),
            NoWatcher,
            lambda: self.reserved(),
            course_title=lambda key: self.courses.title_of(key),
        )
        self.leftovers = Leftovers()
        self.open_forms = OpenForms(self.ledger, self.queue)
        self.leases: set[Any] = set()
        self.spawners: list[Any] = []
        self.switches = Switches(lambda: self.spawners)
        self.endings: dict[Holder, Any] = {}
        self.messages = Messages()
        self.spawner_class: type[GPUSpawner] = Spawner
        self.turns: dict[Holder, Any] = {}
        self.pulled: list[str] = []
        self.removed: list[str] = []
        self.reclaimer = self.memory_guard = SimpleNamespace(start=lambda: None)
        self.notifier = Notifier(logging.getLogger("hub-of-one-spawn"))
        self.backend = SimpleNamespace(pull=self._pull, remove=self._remove, sees_processes=False)

    async def _list(self) -> list[ServerRecord]:
        return list(self.servers)

    async def _read(self) -> tuple[Node, ...]:
        gpus = tuple(GPU(f"GPU-{n}", n, "A100", 40960, 0, 0) for n in range(2))
        return (Node(driver="570.133.20", cuda="12.8", gpus=gpus),)

    async def _pull(self, image: str, policy: str, report: Any) -> None:
        self.pulled.append(image)

    async def _remove(self, server_id: str) -> None:
        self.removed.append(server_id)

    def occupy(self) -> None:
        """Have somebody else hold the GPUs."""
        self.servers.append(ServerRecord("other", labels(Holder("else"), "x", ["GPU-0", "GPU-1"])))

    def free_all(self) -> None:
        """End what others hold."""
        self.servers.clear()
        self.queue.wake()

    def forget_last(self, holder: Holder) -> None:
        self.endings.pop(holder, None)
        self.messages.forget(holder)

    def remember_ending(self, holder: Holder, ending: Any) -> None:
        self.endings[holder] = ending

    def spawner(
        self,
        groups: tuple[str, ...] = (),
        row: orm.Spawner | None = None,
        name: str = "ada",
        **traits: Any,
    ) -> GPUSpawner:
        """Return a user's spawner on this hub, whose engine has nothing of theirs.

        Args:
            groups: the user's.
            row: what the hub's database has of it.
            name: the user's.
            traits: its configuration.
        """
        user = SimpleNamespace(
            name=name,
            groups=[SimpleNamespace(name=each) for each in groups],
            public_url=lambda server: f"https://hub.example/user/{name}/{server}",
        )
        config = Config({"GPUSpawner": {"images": IMAGES, **traits}})
        # Traitlets' own logger is whatever application another test has made in this process.
        log = logging.getLogger("hub-of-one-spawn")
        known = {} if row is None else {"orm_spawner": row}
        one = self.spawner_class(user=user, config=config, log=log, **known)
        if one.courses or one.courses_file:
            self.courses = CourseCatalogue(one.courses, one.courses_file, log)
            self.reserved = ReservedTimes(
                self.courses, self.ledger, one.hour_limit, log, lambda: self.granted()
            )
        one._hub_state = self  # type: ignore[assignment]
        self.spawners.append(one)
        user.spawners = {"": one}
        return one

    def held(self) -> int:
        """Return how many reservations are open."""
        return len([each for each in self.ledger._reservations if each.ended_tick is None])


class Spawner(GPUSpawner):
    """Its engine has nothing of its user's."""

    @property
    def backend(self) -> Any:
        return self.hub_state.backend

    async def remove_leftovers(self, request: Any) -> None:
        pass


async def begin(one: GPUSpawner, **options: Any) -> None:
    """Do what JupyterHub does before the pre-spawn stage."""
    one.user_options = options
    one.clear_state()
    if one.authenticator:
        await maybe_future(one.authenticator.pre_spawn_start(one.user, one))
    await one.run_auth_state_hook(None)
    await one.apply_group_overrides()
    await one._run_apply_user_options(options)


async def waiting(one: GPUSpawner, hub: Hub) -> asyncio.Task[None]:
    """Begin the pre-spawn stage of one who has to wait."""
    task = asyncio.ensure_future(one.run_pre_spawn_hook())
    for _ in range(50):
        await asyncio.sleep(0)
    assert hub.queue.waiting
    return task


def lab(**overrides: Any) -> dict[str, Any]:
    return {"lab": {"groups": ["lab"], "spawner_override": overrides}}
