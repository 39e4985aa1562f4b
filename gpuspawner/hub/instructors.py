"""What instructors see of their courses, and do in them.

All of it is allowed here, in the hub's own process, and nowhere else: who asks has to be in a group
of the course's instructors, or an administrator, now; a server has to be a member's, and to run for
this course. A service that asks for somebody has authenticated them, and says no more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from ..courses.catalogue import CourseCatalogue
from ..courses.model import Course
from ..errors import Refused, Unknown
from ..gpus.memory import parts_of
from ..gpus.model import SHARED, WHOLE, Holder
from ..i18n.lazy_text import kept, lazy_gettext, lazy_ngettext
from ..leases import audit_log
from ..leases.endings import RULE as ADMINISTRATOR
from ..leases.ledger import Ledger
from ..leases.server_lease import ServerLease
from ..scheduling.queue import Queue, QueueEntry
from . import compat
from .messages import MAX_LENGTH, Messages
from .rights import Asker, CourseRights, People


class Instructors:
    """The courses of a hub, for those who teach them.

    Args:
        courses: the courses.
        people: the hub's users and groups.
        spawners: lists the spawners of all servers.
        queue: who waits.
        ledger: the nodes, and who holds what.
        messages: what is shown in JupyterLab.
        images: key -> title of the image versions.
        slot_hours: returns of some courses those that share GPUs in hours that are ahead.
        log: a logger.
    """

    def __init__(
        self,
        courses: CourseCatalogue,
        people: People,
        spawners: Callable[[], Iterable[Any]],
        queue: Queue,
        ledger: Ledger,
        messages: Messages,
        images: Mapping[str, str],
        slot_hours: Callable[[Collection[str]], Collection[str]],
        log: Any,
    ) -> None:
        self._rights = CourseRights(courses, people)
        self._people = people
        self._spawners = spawners
        self._queue = queue
        self._ledger = ledger
        self.messages = messages
        self._images = images
        self._slot_hours = slot_hours
        self._log = log

    def courses_of(self, asker: Asker) -> list[dict[str, Any]]:
        """Return the courses that somebody may act in, as JSON values."""
        return self._rights.courses_of(asker)

    def _members(self, course: Course) -> frozenset[str]:
        return self._people.members_of([*course.group, *course.instructors])

    # -- The roster ------------------------------------------------------------------------------

    async def roster(self, key: str, asker: Asker) -> dict[str, Any]:
        """Return a course's members with what they run for it, as a JSON value; times in seconds.

        Raises:
            Refused: there is no such course for them.
        """
        self._rights.of(key, asker)
        await self._apply_rules(key)
        course, rule = self._rights.of(key, asker)
        waiting = {
            entry.holder: entry
            for entry in self._queue.waiting
            if entry.waiting.request.course == key
        }
        servers: dict[str, list[dict[str, Any]]] = {}
        for spawner in self._of_course(key):
            facts = self._server(spawner, waiting.get(spawner.holder), rule)
            servers.setdefault(spawner.holder.user, []).append(facts)
        teaching = self._people.members_of(course.instructors)
        known = self._ledger.last_view
        return {
            "key": course.key,
            "title": course.name,
            "images": [
                {"key": image, "title": title}
                for image, title in self._images.items()
                if not course.images or image in course.images
            ],
            "kinds": sorted(
                {gpu.kind for gpu in (known.gpus if known else ()) if gpu.state != "mig"}
                | ({SHARED} if self._slot_hours([key]) else set())
            ),
            "repository": course.repository.path() if course.repository else "",
            "members": [
                {
                    "user": user,
                    "instructor": user in teaching,
                    "servers": sorted(servers.get(user, ()), key=lambda each: str(each["server"])),
                }
                for user in sorted(self._members(course))
            ],
        }

    def _of_course(self, key: str) -> list[Any]:
        """Return the spawners of the servers that run, start or wait for a course."""
        return [
            spawner
            for spawner in self._spawners()
            if spawner.attempt.course == key and spawner.active and compat.is_current(spawner)
        ]

    def _server(self, spawner: Any, entry: QueueEntry | None, rule: str) -> dict[str, Any]:
        lease = spawner.lease
        facts: dict[str, Any] = {
            "server": spawner.holder.server,
            "state": _state_of(spawner, entry),
            "gpus": len(lease.units),
            "kind": self._kind_of(lease),
            "image": spawner.image_title,
            **dict.fromkeys(
                ("since", "until", "idle_since", "stop", "place", "start", "waiting_since")
            ),
            "waited_for": 0,
        }
        if lease.units:
            found = lease.facts()
            same = ("since", "until", "idle_since", "stop", "waited_for")
            facts |= {name: found[name] for name in same}
            if found["stop"] and rule not in (ADMINISTRATOR, found["stop"]["rule"]):
                # What an administrator tells a user is for the two of them.
                facts["stop"] = {**found["stop"], "why": ""}
        if entry:
            request = entry.waiting.request
            facts |= {
                "gpus": request.gpus,
                "kind": request.kind,
                "place": entry.turn.place if entry.turn else None,
                "start": entry.turn.start if entry.turn else None,
                "waiting_since": entry.waiting.since,
            }
        return facts

    def _kind_of(self, lease: ServerLease) -> str:
        view = self._ledger.last_view
        kinds = {gpu.kind for gpu in view.gpus if gpu.id in lease.units} if view else set()
        if parts_of(lease.units):
            return SHARED
        return min(kinds, default=WHOLE)

    # -- What they do ----------------------------------------------------------------------------

    async def extend(
        self, key: str, asker: Asker, holder: Holder | None, hours: float | None
    ) -> dict[str, Any]:
        """Extend the lease of one server, or of all of a course.

        Others who wait bind an instructor as they bind the server's user; how early it is doesn't.

        Args:
            key: the course.
            asker: who asks.
            holder: the server; None: all of them.
            hours: the time to add; None: as much as each began with.

        Returns:
            Of each server its `user`, `server` and `until`; or, of all of them, None for that and
            `sentence`, why it can't be.

        Raises:
            Refused: they mayn't, or the one server can't be extended.
        """
        found: list[dict[str, Any]] = []
        running, rule = await self._running(key, asker, holder)
        for spawner in running:
            facts = {"user": spawner.holder.user, "server": spawner.holder.server}
            try:
                until = self._extend(spawner.lease, asker, rule, hours)
                found.append({**facts, "until": until, "sentence": None})
            except Refused as refused:
                # What makes no sense for one makes none for the others.
                if holder or (refused.key and refused.status == 400):
                    raise
                found.append({**facts, "until": None, "sentence": kept(str(refused))})
        return {"servers": found}

    def _extend(self, lease: ServerLease, asker: Asker, rule: str, hours: float | None) -> float:
        waiting = lease.waiting_requests
        if waiting and rule != ADMINISTRATOR:
            raise Refused(
                lazy_ngettext(
                    "1 other waits who could use the GPUs of %(holder)s.",
                    "%(num)s others wait who could use the GPUs of %(holder)s.",
                    waiting,
                    holder=str(lease.holder),
                ),
                status=409,
            )
        return lease.extend(hours, audit_log.user(asker.name), over_all=True)

    async def stop(self, key: str, asker: Asker, holder: Holder, why: str, minutes: float) -> None:
        """Stop a server of a course, now or later; arguments as for `extend` and `stop_for`.

        Raises:
            Refused: they mayn't, it is being stopped already, or an administrator stops it later.
        """
        (spawner,), rule = await self._running(key, asker, holder)
        if minutes > 0:
            _refuse_over_administrator(spawner.lease, rule)
        await spawner.lease.stop_for(audit_log.user(asker.name), why, minutes, rule)

    async def keep(self, key: str, asker: Asker, holder: Holder) -> None:
        """Take the announced stop of a server back; an administrator's only as an administrator.

        Raises:
            Refused: they mayn't, or none is announced.
        """
        (spawner,), rule = await self._running(key, asker, holder)
        _refuse_over_administrator(spawner.lease, rule)
        spawner.lease.take_back_stop(audit_log.user(asker.name))

    async def send(self, key: str, asker: Asker, holder: Holder | None, text: str) -> int:
        """Send a message to who has one server of a course, or all; return to how many.

        Raises:
            Refused: they mayn't, or there is nothing in it, or too much.
        """
        text = " ".join(audit_log.one_line(" ".join(text.split())).split())
        course, _ = self._rights.of(key, asker)
        if not text:
            raise Refused(lazy_gettext("The message is empty."), key="text")
        if len(text) > MAX_LENGTH:
            words = lazy_gettext(
                "The message is too long: at most %(most)s characters.", most=MAX_LENGTH
            )
            raise Refused(words, key="text")
        spawners, _ = await self._running(key, asker, holder)
        for spawner in spawners:
            self.messages.send(spawner.holder, text, course.name)
            spawner.save_state()
            by = audit_log.user(asker.name)
            spawner.lease.log_event("message", by, course=course.key, text=text)
            spawner.tell(
                "message",
                lazy_gettext(
                    "From the instructors of %(course)s: %(text)s", course=course.name, text=text
                ),
            )
        return len(spawners)

    async def move_to_front(self, key: str, asker: Asker, holder: Holder) -> int:
        """Move who waits for a course to the front of those who do; return their place among all.

        Raises:
            Refused: they mayn't, it doesn't wait, or others than the course's would start later.
        """
        self._rights.of(key, asker)
        try:
            view = await self._ledger.read()
        except Unknown as error:
            raise Refused(str(error), status=503) from error
        # What was so before may not be any more; from here on nothing is awaited.
        course, _ = self._rights.of(key, asker)
        if holder.user not in self._members(course):
            raise _no_server(course, holder)
        place = self._queue.move_to_front(holder, key, view)
        by = audit_log.user(asker.name)
        audit_log.record(self._log, "move", holder, by, course=key, place=place)
        return place

    # -- Servers ---------------------------------------------------------------------------------

    async def _apply_rules(self, key: str) -> None:
        for spawner in self._of_course(key):
            await spawner.ensure_rules_applied()

    async def _running(
        self, key: str, asker: Asker, holder: Holder | None
    ) -> tuple[list[Any], str]:
        """Return the spawners of a course's servers that hold GPUs, one or all; and the rule.

        Raises:
            Refused: they mayn't, or the one isn't such a server.
        """
        self._rights.of(key, asker)
        await self._apply_rules(key)
        # What was so before may not be any more; from here on nothing is awaited.
        course, rule = self._rights.of(key, asker)
        found = list(self._holding(course, holder))
        if holder and not found:
            raise _no_server(course, holder)
        return found, rule

    def _holding(self, course: Course, holder: Holder | None) -> Iterator[Any]:
        members = self._members(course)
        for spawner in self._of_course(course.key):
            is_meant = holder in (None, spawner.holder)
            if is_meant and spawner.lease.units and spawner.holder.user in members:
                yield spawner


def _no_server(course: Course, holder: Holder) -> Refused:
    words = lazy_gettext(
        "%(holder)s has no server with GPUs that runs now for %(course)s.",
        holder=str(holder),
        course=course.name,
    )
    return Refused(words, status=404)


def _state_of(spawner: Any, entry: QueueEntry | None) -> str:
    if entry:
        return "waits"
    return "runs" if spawner.attempt.is_up else "starts"


def _refuse_over_administrator(lease: ServerLease, rule: str) -> None:
    """Raise Refused if an administrator has announced a stop, and it isn't one who changes it."""
    if lease.announced and lease.announced.rule == ADMINISTRATOR and rule != ADMINISTRATOR:
        words = lazy_gettext("An administrator has announced its stop, which you can't change.")
        raise Refused(words, status=409)
