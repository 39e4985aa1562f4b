"""A hub with two courses, their people in its database, and what they run or wait for."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

from jupyterhub import orm, roles
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from gpuspawner.courses.catalogue import CourseCatalogue
from gpuspawner.gpus.model import GPU, Holder, Node
from gpuspawner.hub import compat
from gpuspawner.hub.control_socket import ControlSocket
from gpuspawner.hub.hours_desk import HoursDesk
from gpuspawner.hub.instructors import Instructors
from gpuspawner.hub.nodes import NodeFacts
from gpuspawner.hub.reserved_hours import ReservedTimes
from gpuspawner.hub.rights import CourseRights
from gpuspawner.hub.week import WeekFacts
from gpuspawner.leases.labels import ServerRecord, labels
from gpuspawner.scheduling.queue import Queue, QueueSettings
from gpuspawner.spawner import GPUSpawner

from .ledgers import NoWatcher
from .spawns import Hub, Spawner, begin

COURSES = {
    "ml": {
        "title": "Machine <learning>",
        "group": "students",
        "instructors": "staff",
        "required": False,
        "images": ["plain"],
        "repository": {"url": "https://git.example/ml.git", "open": "week 1.ipynb"},
    },
    "art": {
        "group": "artists",
        "instructors": "painters",
        "required": False,
        "limits": {"hours": 3},
    },
}
# Who is in which groups.
PEOPLE: dict[str, tuple[str, ...]] = {
    "prof": ("staff",),
    "ada": ("students",),
    "ben": ("students",),
    "cyd": ("students", "artists"),
    "rembrandt": ("painters",),
    "eve": (),
}
LOG = logging.getLogger("classroom")

# The same for a real hub's configuration.
LINES = """
c.JupyterHub.load_groups = {
    "students": {"users": ["ada", "ben"]},
    "staff": {"users": ["prof"]},
    "others": {"users": ["eve"]},
}
c.GPUSpawner.courses = {
    "ml": {
        "title": "Machine learning",
        "group": "students",
        "instructors": "staff",
        "required": False,
        "repository": {"url": "https://git.example/ml.git"},
    },
    "art": {"group": "others", "instructors": "others"},
}
"""


class Classroom(Hub):
    """A hub with some GPUs; its engine is a list, its database is JupyterHub's own.

    Args:
        gpus: how many GPUs there are.
        people: name -> groups.
        usage_db: where requests for reserved hours are kept; "": nowhere.
        hour_limit: the longest time of a server, in hours; None: it has no end.
        courses: as in a configuration.
        divides_gpus: whether its backend divides whole GPUs into slots.
    """

    def __init__(
        self,
        gpus: int = 4,
        people: dict[str, tuple[str, ...]] | None = None,
        usage_db: str = "",
        hour_limit: float | None = 12,
        courses: dict[str, Any] = COURSES,
        divides_gpus: bool = True,
    ) -> None:
        self.gpus, self.engine_is_down = gpus, False
        super().__init__()
        self.spawner_class = CourseSpawner
        self.courses = CourseCatalogue(courses, "", LOG)
        engine = create_engine("sqlite://", poolclass=StaticPool)
        orm.Base.metadata.create_all(engine)
        self.db = Session(engine, expire_on_commit=False)
        for role in roles.get_default_roles():
            roles.create_role(self.db, role)
        for name, groups in (PEOPLE if people is None else people).items():
            self.add(name, *groups)
        self.add("boss", administrator=True)
        known = compat.People({"db": self.db})
        self.hours = HoursDesk(
            usage_db,
            self.courses,
            CourseRights(self.courses, known),
            self.ledger,
            hour_limit,
            LOG,
            divides_gpus,
        )
        self.granted = self.hours.granted
        self.reserved = ReservedTimes(
            self.courses,
            self.ledger,
            hour_limit,
            LOG,
            self.hours.granted,
            lambda: self.hours.is_known,
            divides_gpus,
        )
        self.queue = Queue(
            self.ledger,
            QueueSettings(),
            NoWatcher,
            lambda: self.reserved(),
            ready=self.hours.ensure_read,
            course_title=self.courses.title_of,
        )
        self.instructors = Instructors(
            self.courses,
            known,
            lambda: list(self.spawners),
            self.queue,
            self.ledger,
            self.messages,
            {"plain": "Plain <image>", "secret": "Secret"},
            self.reserved.slot_hours,
            LOG,
        )
        self.tasks: list[asyncio.Task[None]] = []

    async def _list(self) -> list[ServerRecord]:
        if self.engine_is_down:
            raise RuntimeError("no engine")
        return await super()._list()

    async def _read(self) -> tuple[Node, ...]:
        gpus = tuple(GPU(f"GPU-{n}", n, "A100", 40960, 0, 0) for n in range(self.gpus))
        return (Node(driver="570.133.20", cuda="12.8", gpus=gpus),)

    def add(self, name: str, *groups: str, administrator: bool = False) -> None:
        """Make a user, in these groups."""
        user = orm.User(name=name, admin=administrator)
        self.db.add(user)
        for each in groups:
            group = orm.Group.find(self.db, each) or orm.Group(name=each)
            group.users.append(user)
            self.db.add(group)
        self.db.commit()
        roles.assign_default_roles(self.db, user)

    def remove(self, name: str, group: str) -> None:
        """Take a user out of a group."""
        found = orm.Group.find(self.db, group)
        found.users.remove(orm.User.find(self.db, name))
        self.db.commit()

    async def _begun(self, name: str, choice: dict[str, Any]) -> GPUSpawner:
        user = orm.User.find(self.db, name)
        groups = tuple(each.name for each in user.groups)
        courses = self.courses
        one = self.spawner(groups, name=name, courses=COURSES, hour_limit=12)
        self.courses = courses
        await begin(one, **{"image": "plain", "gpus": 1, "hours": 1, **choice})
        return one

    async def start(self, name: str, **choice: Any) -> GPUSpawner:
        """Start a server of somebody's, which runs then."""
        one = await self._begun(name, choice)
        await one.run_pre_spawn_hook()
        reservation = one.attempt.reservation
        assert reservation
        one.attempt.reservation = None
        one.lease.hold(reservation.units)
        found = labels(one.holder, "plain", sorted(reservation.units), one.lease.until)
        self.servers.append(ServerRecord(name, found))
        self.ledger.release(reservation)
        one.attempt.is_up = True
        return one

    async def wait(self, name: str, **choice: Any) -> GPUSpawner:
        """Have somebody wait for GPUs."""
        one = await self._begun(name, choice)
        self.tasks.append(asyncio.ensure_future(one.run_pre_spawn_hook()))
        for _ in range(200):
            await asyncio.sleep(0)
            if any(each.holder == one.holder for each in self.queue.waiting):
                return one
        raise AssertionError(f"{name} doesn't wait")

    def end(self, name: str) -> None:
        """End somebody's server."""
        self.servers[:] = [each for each in self.servers if each.id != name]
        self.queue.wake()

    async def planned(self) -> list[str]:
        """Return who waits, in the order of a new plan."""
        self.queue.wake()
        for _ in range(50):
            await asyncio.sleep(0)
        return [each.holder.user for each in self.queue.waiting]

    def control(self, path: str) -> ControlSocket:
        """Return the hub's control socket, which isn't open yet."""
        none: Any = None
        queue: Any = self.queue
        orphans: Any = _NoOrphans()
        nodes = NodeFacts(self.ledger, none)
        leases = [each.lease for each in self.spawners]
        return ControlSocket(
            path,
            queue,
            lambda: leases,
            LOG,
            {},
            orphans,
            nodes,
            {},
            week=WeekFacts(self.courses, self.reserved, "http://hub"),
            instructors=self.instructors,
            hours=self.hours,
        )

    async def close_waits(self) -> None:
        """Give up what waits."""
        while self.tasks:
            task = self.tasks.pop()
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    async def close(self) -> None:
        """End it."""
        await self.close_waits()
        self.hours.close()
        self.db.close()


class _NoOrphans:
    """Knows of no server that the hub doesn't."""

    def facts(self) -> list[Any]:
        return []


class CourseSpawner(Spawner):
    """A server that runs once its GPUs are held, and ends when it is stopped."""

    @property
    def active(self) -> bool:
        return bool(self.attempt.course or self.attempt.is_up)

    async def stop_through_hub(self) -> None:
        hub: Any = self.hub_state
        hub.end(self.holder.user)
        self.clear_state()

    def save_state(self) -> None:
        """The hub's database has no row of it."""

    def on_extended(self, end: Any) -> None:
        """Its engine keeps no end."""

    def tell(self, occasion: Any, words: str) -> None:
        """Keep it for the test."""
        self.told = [*getattr(self, "told", []), (occasion, words)]


def of(name: str, server: str = "") -> Holder:
    """Return a server."""
    return Holder(name, server)
