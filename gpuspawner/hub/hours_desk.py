"""Where reserved hours are asked for, granted and refused, beside what a configuration declares.

All of it is allowed here, in the hub's own process: an instructor asks for their courses alone, and
only an administrator makes, grants, refuses and ends. Each change is one transaction, in which what
there is by then is looked at again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from ..courses.catalogue import CourseCatalogue
from ..courses.hours import ReservedHours
from ..courses.hours_request import (
    CLOSED,
    MAX_NOTE,
    MAX_WHY,
    HoursRequest,
    State,
    hours_as_fields,
    read_hours,
)
from ..courses.model import Course, title_of
from ..courses.week import local_zone_name
from ..errors import Refused, Unknown
from ..gpus.model import GPU, Holder
from ..i18n.lazy_text import kept, lazy_gettext
from ..i18n.phrases import clock_time
from ..leases import audit_log
from ..leases.audit_log import one_line
from ..leases.endings import INSTRUCTOR
from ..leases.endings import RULE as ADMINISTRATOR
from ..leases.ledger import Ledger
from ..timeouts import within
from ..usage.database import StoreError
from ..usage.hours_store import HoursStore
from ..usage.store import Store
from .admission import Claim, Verdict, claims_of, collision, judge
from .rights import NO_SUCH_COURSE, Asker, CourseRights

T = TypeVar("T")

# How often what other hub processes have changed is read, and for how long the first start of a
# server waits for the first reading, in seconds.
READ_SECONDS = 15.0
FIRST_SECONDS = 15.0
# How old a reading of the nodes may be by which it is decided, in seconds.
RECENT_SECONDS = 30.0
# How many requests of a course can be open.
MAX_OPEN = 20
# How many a course can have that were made in the last day, whatever has become of them.
MAX_A_DAY = 50
DAY_SECONDS = 24 * 3600.0

NO_ENDS = lazy_gettext(
    "No hours can be reserved here: servers have no end, and nobody can say when a GPU is free. An "
    "administrator can set c.GPUSpawner.hour_limit."
)
NOT_KEPT = lazy_gettext(
    "No hours can be reserved on this page: they couldn't be kept. An administrator can set "
    "c.GPUSpawner.usage_db."
)
NO_COURSES = lazy_gettext(
    "Hours are reserved for courses, and there is none yet. An administrator can set "
    "c.GPUSpawner.courses."
)
NO_SLOTS = lazy_gettext(
    "GPUs here can't be divided into slots for some hours: ask for whole ones, with 0 slots."
)
NO_STORE = lazy_gettext("It couldn't be kept, and nothing has changed. Please try again later.")
NOT_READ = lazy_gettext("What is reserved can't be read now. Please try again later.")
NO_SUCH_HOURS = lazy_gettext("There are no such hours, or you don't teach the course.")


class HoursDesk:
    """The requests for reserved hours of one hub.

    Args:
        url: the address of the database; "": nothing is kept, and nothing can be asked for.
        courses: the courses.
        rights: who may act in them.
        ledger: the nodes.
        hour_limit: the longest time of a server, in hours; None: servers have no end.
        log: a logger.
        divides_gpus: whether the backend divides whole GPUs into slots (`Backend.divides_gpus`).
    """

    def __init__(
        self,
        url: str,
        courses: CourseCatalogue,
        rights: CourseRights,
        ledger: Ledger,
        hour_limit: float | None,
        log: Any,
        divides_gpus: bool,
    ) -> None:
        self._store = HoursStore(Store(url), ledger.hub, self._on_broken) if url else None
        self._courses = courses
        self._rights = rights
        self._ledger = ledger
        self._has_ends = hour_limit is not None
        self._divides_gpus = divides_gpus
        self._log = log
        # Called with a course and a sentence for its instructors; with one for administrators.
        self.tell_instructors: Callable[[Course, str], None] = lambda course, words: None
        self.tell_administrators: Callable[[str], None] = lambda words: None
        # Called when others are granted than before.
        self.on_change: Callable[[], None] = lambda: None
        # One thread: what is read after a change has it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reserved-hours")
        # What was read last; None: nothing yet.
        self._known: tuple[HoursRequest, ...] | None = None
        self._granted: tuple[HoursRequest, ...] = ()
        self._tried = asyncio.Event()
        self._trouble = ""
        self._broken: set[int] = set()

    # -- What is kept ----------------------------------------------------------------------------

    def granted(self) -> Sequence[HoursRequest]:
        """Return what is granted, as it was read last: the same object until that is another."""
        return self._granted

    @property
    def is_known(self) -> bool:
        """Whether it is known what is granted."""
        return self._store is None or self._known is not None

    async def ensure_read(self) -> None:
        """Wait until it was tried to read what is granted: a start may be in its way."""
        if self._store is None or self._tried.is_set():
            return
        try:
            await within(FIRST_SECONDS, self._tried.wait())
        except asyncio.TimeoutError:
            self._tell("the database doesn't answer")

    async def run(self) -> None:
        """Read again and again what is kept; until cancelled."""
        while self._store:
            try:
                await self._read(self._store)
            except StoreError:
                pass  # it is in the log
            except Exception:
                self._log.exception("What was reserved on the dashboard can't be read")
            self._tried.set()
            await asyncio.sleep(READ_SECONDS)

    async def _read(self, store: HoursStore) -> tuple[HoursRequest, ...]:
        """Read what is kept; raises StoreError."""
        try:
            found = await self._in_thread(lambda: store.read(time.time()))
        except StoreError as error:
            self._tell(str(error))
            raise
        self._tell("")
        self._known = tuple(found)
        self._tried.set()
        granted = tuple(each for each in found if each.state == "granted")
        if granted != self._granted:
            self._granted = granted
            self.on_change()
        return self._known

    def _on_broken(self, number: int) -> None:
        if number not in self._broken:
            self._broken.add(number)
            self._log.error(
                "Reserved hours number %d of the dashboard aren't kept: this version of gpuspawner "
                "can't read them",
                number,
            )

    def _tell(self, trouble: str) -> None:
        """Say in the log once that the database can't be read, and once that it can be again."""
        if bool(trouble) == bool(self._trouble):
            return
        if trouble and self._known is None:
            self._log.warning(
                "c.GPUSpawner.usage_db can't be read (%s): what was reserved on the dashboard "
                "isn't kept free until it can be",
                one_line(trouble),
            )
        elif trouble:
            self._log.warning(
                "c.GPUSpawner.usage_db can't be read (%s): what was reserved on the dashboard "
                "stays as it was known",
                one_line(trouble),
            )
        else:
            self._log.warning("What was reserved on the dashboard can be read again")
        self._trouble = trouble

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def close(self) -> None:
        """Close the database."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._store:
            self._store.close()

    # -- What is shown ---------------------------------------------------------------------------

    def why_not(self) -> str:
        """Return why nothing can be reserved here at all; "" if something can be."""
        if not self._has_ends:
            return NO_ENDS
        if not self._store:
            return NOT_KEPT
        return "" if self._courses.current() else NO_COURSES

    def open_for(self, asker: Asker) -> int:
        """Return how many requests wait for somebody's decision, who has to be administrator."""
        if self._known is None or not self._rights.is_administrator(asker):
            return 0
        return sum(each.state == "asked" for each in self._known)

    async def facts(self, asker: Asker) -> dict[str, Any]:
        """Return what somebody may know of requests, as a JSON value; times in seconds.

        Raises:
            Refused: they act in no course, or it can't be read.
        """
        mine = {each["key"] for each in self._rights.courses_of(asker)}
        is_administrator, taught = self._rights.is_administrator(asker), self._taught(asker)
        if not mine and not is_administrator:
            raise Refused(NO_SUCH_COURSE, status=404)
        found: Sequence[HoursRequest] = ()
        if self._store:
            try:
                found = await self._read(self._store)
            except StoreError as error:
                raise Refused(NOT_READ, status=503) from error
        with suppress(Unknown):  # which is in the log already
            await self._ledger.read_recent(RECENT_SECONDS)
        courses, gpus = self._courses.current(), self._units()
        troubles = await self._in_thread(lambda: self._troubles(found, courses, gpus))
        usable = [gpu for gpu in gpus if gpu.state not in ("excluded", "mig")]
        return {
            "zone": local_zone_name(),
            "why_not": kept(self.why_not()),
            "administrator": is_administrator,
            "courses": self._rights.courses_of(asker),
            "kinds": sorted({gpu.kind for gpu in usable}),
            "models": sorted({gpu.model for gpu in usable}),
            "divides_gpus": self._divides_gpus,
            "reserved_hours": [
                {
                    **_facts(each, title_of(courses, each.course), troubles.get(each.id, "")),
                    "yours": each.course in taught,
                }
                for each in found
                if is_administrator or each.course in mine
            ],
        }

    def _troubles(
        self,
        found: Sequence[HoursRequest],
        courses: Mapping[str, Course],
        gpus: Sequence[GPU],
    ) -> dict[int, str]:
        """Return number -> why it can't be kept, or couldn't be granted now."""
        now = time.time()
        granted = [each for each in found if each.state == "granted"]
        claims = list(claims_of(courses, granted))
        verdicts = self._judge(claims, gpus, now) if gpus else []
        troubles = {
            each.claim.request.id: collision(each, courses, gpus)
            for each in verdicts
            if each.claim.request and each.refused
        }
        for each in found:
            if each.state == "asked" and gpus and each.course in courses:
                troubles[each.id] = self._collision(each, granted, courses, gpus, now)
        return troubles

    def _collision(
        self,
        asked: HoursRequest,
        granted: Sequence[HoursRequest],
        courses: Mapping[str, Course],
        gpus: Sequence[GPU],
        now: float,
    ) -> str:
        """Return why hours couldn't be granted beside what there is; "" if they could be."""
        claim = Claim(courses[asked.course], asked.hours, "", asked)
        claims = [*claims_of(courses, granted), claim]
        verdict = self._judge(claims, gpus, now)[-1]
        return collision(verdict, courses, gpus) if verdict.refused else ""

    def _judge(self, claims: Iterable[Claim], gpus: Sequence[GPU], now: float) -> list[Verdict]:
        return judge(claims, gpus, now, has_ends=self._has_ends, divides_gpus=self._divides_gpus)

    def _units(self) -> tuple[GPU, ...]:
        view = self._ledger.last_view
        return tuple(view.gpus) if view else ()

    # -- What is done ----------------------------------------------------------------------------

    async def ask(
        self, asker: Asker, key: str, fields: Mapping[str, Any], note: str
    ) -> dict[str, Any]:
        """Ask for hours for a course, as one of its instructors.

        Args:
            asker: who asks.
            key: the course.
            fields: those of `ReservedHours`.
            note: for the administrator.

        Returns:
            The request, as of `facts`.

        Raises:
            Refused: they don't teach it, it can't be, or it couldn't be kept.
        """
        course, rule = self._rights.of(key, asker)
        asked = self._new(asker, course, fields, note)

        def decide(known: Sequence[HoursRequest]) -> HoursRequest:
            open_ones = [each for each in known if each.course == key and each.state == "asked"]
            if len(open_ones) >= MAX_OPEN:
                words = lazy_gettext(
                    "%(num)s requests of the course are open already, which is the most.",
                    num=len(open_ones),
                )
                raise Refused(words, status=409)
            since = asked.asked_at - DAY_SECONDS
            lately = [each for each in known if each.course == key and each.asked_at > since]
            if len(lately) >= MAX_A_DAY:
                words = lazy_gettext(
                    "%(num)s requests of the course were made in the last 24 hours, which is the "
                    "most. Please ask again tomorrow.",
                    num=len(lately),
                )
                raise Refused(words, status=409)
            return asked

        return await self._change(decide, asker, rule, course)

    async def make(self, asker: Asker, key: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Reserve hours for a course, as an administrator; arguments as for `ask`."""
        self._rights.require_administrator(asker)
        course, _ = self._rights.of(key, asker)
        asked = self._new(asker, course, fields, "")
        grant = await self._granting(asker, asked.hours)
        return await self._change(lambda known: grant(known, asked), asker, ADMINISTRATOR, course)

    async def grant(
        self, asker: Asker, number: int, fields: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Grant what was asked for, as an administrator.

        Args:
            asker: who grants it.
            number: of the request.
            fields: those of `ReservedHours`, where it is granted otherwise; None: as it is.

        Raises:
            Refused: they are no administrator, there is no such request, it was decided already,
                it can't be, or it couldn't be kept.
        """
        self._rights.require_administrator(asker)
        hours = None if fields is None else self._hours(fields)
        grant = await self._granting(asker, hours)
        return await self._change(
            lambda known: grant(known, _find(known, number)), asker, ADMINISTRATOR
        )

    async def refuse(self, asker: Asker, number: int, why: str) -> dict[str, Any]:
        """Refuse what was asked for, as an administrator; the instructors read why."""
        self._rights.require_administrator(asker)
        why = _text(why, MAX_WHY, "why")
        if not why:
            raise Refused(lazy_gettext("The instructors need a reason."), key="why")
        return await self._decide(asker, number, "refused", ADMINISTRATOR, why)

    async def end(self, asker: Asker, number: int, why: str) -> dict[str, Any]:
        """End what was granted, from now on, as an administrator."""
        self._rights.require_administrator(asker)
        why = _text(why, MAX_WHY, "why")
        return await self._decide(asker, number, "ended", ADMINISTRATOR, why)

    async def withdraw(self, asker: Asker, number: int) -> dict[str, Any]:
        """Withdraw what was asked for, as an instructor of its course."""
        return await self._decide(asker, number, "withdrawn", INSTRUCTOR)

    async def _decide(
        self, asker: Asker, number: int, state: State, rule: str, why: str = ""
    ) -> dict[str, Any]:
        taught = self._taught(asker)

        def decide(known: Sequence[HoursRequest]) -> HoursRequest:
            found = _find(known, number)
            if rule == INSTRUCTOR and found.course not in taught:
                raise Refused(NO_SUCH_HOURS, status=404)
            return found.becomes(state, asker.name, time.time(), why)

        return await self._change(decide, asker, rule)

    def _taught(self, asker: Asker) -> frozenset[str]:
        """Return the keys of the courses that somebody teaches."""
        courses = self._courses.current().values()
        return frozenset(
            each.key for each in courses if self._rights.rule_of(each, asker) == INSTRUCTOR
        )

    def _hours(self, fields: Mapping[str, Any]) -> ReservedHours:
        """Return hours that can be reserved; raises Refused."""
        if why := self.why_not():
            raise Refused(why, status=409)
        # What is asked for by the machine's clock stays so, where the machine gets another.
        zone = fields.get("zone") or local_zone_name()
        hours = read_hours({**fields, "zone": zone})
        if hours.slots and not self._divides_gpus:
            raise Refused(NO_SLOTS, key="slots")
        if max(end for _, end in hours.times()) <= time.time():
            raise Refused(lazy_gettext("These hours are over already."), key="begin")
        return hours

    def _new(
        self, asker: Asker, course: Course, fields: Mapping[str, Any], note: str
    ) -> HoursRequest:
        note, hours = _text(note, MAX_NOTE, "note"), self._hours(fields)
        last = max(end for _, end in hours.times())
        return HoursRequest(0, course.key, hours, "asked", asker.name, time.time(), last, note)

    async def _granting(
        self, asker: Asker, hours: ReservedHours | None
    ) -> Callable[[Sequence[HoursRequest], HoursRequest], HoursRequest]:
        """Return what grants a request beside all that there is then, or raises Refused."""
        if why := self.why_not():
            raise Refused(why, status=409)
        try:
            await self._ledger.read_recent(RECENT_SECONDS)
        except Unknown as error:
            raise Refused(str(error), status=503) from error
        courses, gpus = self._courses.current(), self._units()

        def grant(known: Sequence[HoursRequest], asked: HoursRequest) -> HoursRequest:
            now = time.time()
            wanted = hours or asked.hours
            last = max(end for _, end in wanted.times())
            rank = 1 + max((each.rank for each in known), default=0)
            granted = asked.becomes(
                "granted", asker.name, now, hours=wanted, over_at=last, rank=rank
            )
            if asked.course not in courses:
                raise Refused(NO_SUCH_COURSE, status=404)
            if last <= now:
                raise Refused(lazy_gettext("These hours are over already."), key="begin")
            others = [each for each in known if each.state == "granted"]
            if words := self._collision(granted, others, courses, gpus, now):
                raise Refused(words, status=409)
            return granted

        return grant

    async def _change(
        self,
        decide: Callable[[Sequence[HoursRequest]], HoursRequest],
        asker: Asker,
        rule: str,
        course: Course | None = None,
    ) -> dict[str, Any]:
        """Make a change, log it, and tell whom it concerns."""
        store = self._store
        if store is None:
            raise Refused(NOT_KEPT, status=409)
        try:
            changed = await self._in_thread(lambda: store.change(decide, time.time()))
        except StoreError as error:
            self._tell(str(error))
            raise Refused(NO_STORE, status=503) from error
        course = course or self._courses.current().get(changed.course)
        audit_log.record(
            self._log,
            "reserve",
            Holder(""),
            audit_log.user(asker.name),
            rule=rule,
            number=changed.id,
            course=changed.course,
            state=changed.state,
            **{name: value for name, value in hours_as_fields(changed.hours).items() if value},
            **({"why": changed.why} if changed.why else {}),
        )
        self._tell_of(changed, course)
        with suppress(StoreError):  # it is in the log, and read again soon
            await self._read(store)
        return _facts(changed, self._courses.title_of(changed.course), "")

    def _tell_of(self, changed: HoursRequest, course: Course | None) -> None:
        if course is None:
            return
        words = _told(changed, course)
        if changed.why:
            words = lazy_gettext("%(sentence)s Why: %(why)s", sentence=words, why=changed.why)
        if changed.state in ("asked", "withdrawn"):
            self.tell_administrators(words)
        else:
            self.tell_instructors(course, words)


def _told(changed: HoursRequest, course: Course) -> str:
    """Return what they are told whom it concerns."""
    name, begin = course.name, clock_time(_next(changed, time.time())[0])
    if changed.state == "asked":
        return lazy_gettext(
            "%(user)s asks for reserved hours for %(course)s, from %(begin)s on.",
            user=changed.asked_by,
            course=name,
            begin=begin,
        )
    if changed.state == "granted":
        return lazy_gettext(
            "Hours are reserved for %(course)s, from %(begin)s on.", course=name, begin=begin
        )
    if changed.state == "refused":
        return lazy_gettext(
            "The hours asked for %(course)s, from %(begin)s on, aren't reserved.",
            course=name,
            begin=begin,
        )
    if changed.state == "withdrawn":
        return lazy_gettext(
            "Reserved hours for %(course)s, from %(begin)s on, aren't asked for any more.",
            course=name,
            begin=begin,
        )
    return lazy_gettext(
        "The hours of %(course)s, from %(begin)s on, aren't reserved any more.",
        course=name,
        begin=begin,
    )


def _find(known: Sequence[HoursRequest], number: int) -> HoursRequest:
    for each in known:
        if each.id == number:
            return each
    raise Refused(NO_SUCH_HOURS, status=404)


def _next(request: HoursRequest, now: float) -> tuple[float, float]:
    """Return the next of its times, or the one that it is now; the last one where all are over."""
    times = list(request.hours.times())
    return next((each for each in times if each[1] > now), times[-1])


def _text(text: str, most: int, key: str) -> str:
    """Return a text of one line, which isn't too long."""
    text = " ".join(audit_log.one_line(" ".join(text.split())).split())
    if len(text) > most:
        words = lazy_gettext("The text is too long: at most %(most)s characters.", most=most)
        raise Refused(words, key=key)
    return text


def _facts(request: HoursRequest, title: str, trouble: str) -> dict[str, Any]:
    now = time.time()
    is_closed = request.state in CLOSED
    begin, end = request.hours.declared() if is_closed else _next(request, now)
    return {
        "id": request.id,
        "course": request.course,
        "title": title,
        "hours": hours_as_fields(request.hours),
        "state": request.state,
        "over": request.over_at <= now,
        "next_begin": begin,
        "next_end": end,
        "asked_by": request.asked_by,
        "asked_at": request.asked_at,
        "note": request.note,
        "decided_by": request.decided_by or None,
        "decided_at": request.decided_at,
        "why": request.why,
        "trouble": kept(trouble),
    }
