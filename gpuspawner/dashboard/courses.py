"""Courses on the dashboard: what the hub says of one to who teaches it, and what it does for them.

Who teaches a course, the hub decides at each question (`hub.instructors`). What is decided here is
only what a token may be used for.
"""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import segno

from ..choices.limits import MAX_HOURS
from ..errors import Refused
from ..i18n.lazy_text import lazy_gettext, listed, restored
from .actions import STOP_SECONDS, Actions, check_names
from .facts import Person, iso_time

# From when on GPUs that do nothing are called idle; between two cells of a notebook they aren't.
IDLE_SECONDS = 300.0
# The states of a course's members, in the order of the roster.
STATES = ("runs", "idle", "starts", "waits", "away")
# The most GPUs that a link can name.
MAX_GPUS = 1000


@dataclass(frozen=True)
class CourseActions:
    """What instructors do, by way of the hub.

    Args:
        actions: the dashboard's way to the hub.
    """

    actions: Actions

    async def of(self, person: Person) -> list[dict[str, Any]]:
        """Return the courses that somebody teaches, or of an administrator all: `key`, `title`."""
        return (await self.taught(person))[0]

    async def taught(self, person: Person) -> tuple[list[dict[str, Any]], int]:
        """Return the same, and how many requests for reserved hours wait for their decision."""
        if not may_ask(person):
            return [], 0
        answer = await self.actions.ask({"do": "courses", **asker(person)})
        return list(answer["courses"]), int(answer.get("open_hours", 0))

    async def roster(self, person: Person, key: str) -> dict[str, Any]:
        """Return a course as a JSON value of the API.

        Raises:
            Refused: there is no such course for them.
        """
        question = {"do": "course", **_question(person, key)}
        return course_facts(await self.actions.ask(question), time.time())

    async def extend(
        self, person: Person, key: str, user: str, server: str, hours: float | None
    ) -> float:
        """Extend a server's lease; return its new end, in seconds since the epoch."""
        found = await self._extend(person, key, hours, user=user, server=server)
        return float(found[0]["until"])

    async def extend_all(
        self, person: Person, key: str, hours: float | None
    ) -> list[dict[str, Any]]:
        """Extend all leases; return of each `user`, `server`, `until`, and `message`: why not."""
        return [
            {
                "user": each["user"],
                "server": each["server"],
                "until": iso_time(each["until"]),
                "message": restored(each["sentence"]) or "",
            }
            for each in await self._extend(person, key, hours)
        ]

    async def _extend(
        self, person: Person, key: str, hours: float | None, **server: str
    ) -> list[dict[str, Any]]:
        question = {**_question(person, key, *server.values()), **server, "hours": hours}
        return list((await self.actions.send({"do": "course-extend", **question}))["servers"])

    async def stop(
        self, person: Person, key: str, user: str, server: str, why: str, minutes: float
    ) -> None:
        """Stop a server, for a reason that its user reads, now or in some minutes."""
        question = _question(person, key, user, server)
        more = {"user": user, "server": server, "why": why, "minutes": minutes}
        await self.actions.send({"do": "course-stop", **question, **more}, STOP_SECONDS)

    async def keep(self, person: Person, key: str, user: str, server: str) -> None:
        """Take the announced stop of a server back."""
        question = _question(person, key, user, server)
        await self.actions.send({"do": "course-keep", **question, "user": user, "server": server})

    async def say(self, person: Person, key: str, text: str, **server: str) -> int:
        """Send a message to who has a server (`user`, `server`), or to all; return to how many."""
        question = {**_question(person, key, *server.values()), **server, "text": text}
        return int((await self.actions.send({"do": "course-message", **question}))["sent"])

    async def move_to_front(self, person: Person, key: str, user: str, server: str) -> int:
        """Move who waits to the front of the course's; return their place among all."""
        question = _question(person, key, user, server)
        more = {"user": user, "server": server}
        return int((await self.actions.send({"do": "course-front", **question, **more}))["place"])


def may_ask(person: Person) -> bool:
    """Return whether the hub may be asked for what somebody teaches."""
    return bool(person.name) and (person.may_teach or person.administrator)


def asker(person: Person) -> dict[str, Any]:
    """Return who asks, for a question to the hub."""
    return {"who": person.name, "administrator": person.administrator}


def require_instructor(person: Person) -> None:
    """Raise Refused where the hub isn't asked for what somebody teaches."""
    if not person.name:
        raise Refused(lazy_gettext("A service teaches no course: ask as a user."), status=403)
    if not may_ask(person):
        words = lazy_gettext(
            "To act as an instructor a token needs the scope %(scope)s.", scope="read:users:groups"
        )
        raise Refused(words, status=403)


def _question(person: Person, key: str, *names: str) -> dict[str, Any]:
    require_instructor(person)
    check_names(key, *names)
    return {"course": key, **asker(person)}


# -- Facts -----------------------------------------------------------------------------------------


def course_facts(answer: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Return a course as a JSON value of the API; `openapi.yaml` describes it.

    Args:
        answer: what the hub says.
        now: in seconds since the epoch.
    """
    members = [_member(each, now) for each in answer["members"]]
    members.sort(key=_order)
    states = Counter(each["state"] for each in members)
    servers = [each for member in members for each in member["servers"]]
    return {
        "key": answer["key"],
        "title": answer["title"],
        "images": answer["images"],
        "kinds": answer["kinds"],
        "repository": answer["repository"],
        "totals": {
            "members": len(members),
            **{state: states[state] for state in STATES},
            "gpus": sum(each["gpus"] for each in servers if each["state"] in ("runs", "idle")),
        },
        "members": members,
    }


def _member(member: Mapping[str, Any], now: float) -> dict[str, Any]:
    servers = [_server(each, now) for each in member["servers"]]
    state = min((each["state"] for each in servers), key=STATES.index, default="away")
    return {
        "user": member["user"],
        "instructor": member["instructor"],
        "state": state,
        "servers": servers,
    }


def _server(server: Mapping[str, Any], now: float) -> dict[str, Any]:
    since, stop = server["idle_since"], server["stop"]
    is_idle = since is not None and now - since >= IDLE_SECONDS
    same = ("server", "gpus", "kind", "image", "waited_for", "place")
    return {
        **{name: server[name] for name in same},
        "state": "idle" if is_idle else server["state"],
        "since": iso_time(server["since"]),
        "until": iso_time(server["until"]),
        "idle_since": iso_time(since) if is_idle else None,
        "stop": stop and {**stop, "at": iso_time(stop["at"])},
        "waiting_since": iso_time(server["waiting_since"]),
        "expected": iso_time(server["start"]),
    }


def _order(member: Mapping[str, Any]) -> tuple[int, int, str]:
    places = [each["place"] for each in member["servers"] if each["place"] is not None]
    return STATES.index(member["state"]), min(places, default=0), member["user"]


# -- The start link --------------------------------------------------------------------------------


@dataclass(frozen=True)
class LinkChoice:
    """What a start link asks for; "" is left to the form.

    Args:
        image: the key of an image version.
        gpus: how many GPUs.
        kind: of which kind.
        hours: for how long.
        repository: whether the course's notebooks are brought.
    """

    image: str = ""
    gpus: str = ""
    kind: str = ""
    hours: str = ""
    repository: bool = False


def link_choice(course: Mapping[str, Any], get: Callable[[str], str], given: bool) -> LinkChoice:
    """Return what a start link is to ask for, of a request's arguments.

    Args:
        course: `course_facts`.
        get: returns an argument; "" where there is none.
        given: whether there are any; else the course's notebooks are brought.

    Raises:
        Refused: it makes no sense.
    """
    image, kind = get("image"), get("kind")
    _one_of("image", image, [each["key"] for each in course["images"]])
    _one_of("kind", kind, course["kinds"])
    repository = get("repository") or ("" if given else "true")
    _one_of("repository", repository, ["true", "false"])
    gpus, hours = get("gpus"), get("hours")
    if gpus and not (gpus.isascii() and gpus.isdigit() and int(gpus[:5]) <= MAX_GPUS):
        words = lazy_gettext("gpus must be a number from 0 to %(most)s.", most=MAX_GPUS)
        raise Refused(words, key="gpus")
    if hours and not 0 < _number(hours) <= MAX_HOURS:
        words = lazy_gettext(
            "hours must be more than 0 and at most %(most)s.", most=f"{MAX_HOURS:g}"
        )
        raise Refused(words, key="hours")
    brings = repository == "true" and course["repository"]
    return LinkChoice(image, gpus, kind, hours, bool(brings))


def _one_of(key: str, value: str, values: Sequence[str]) -> None:
    if value and value not in values:
        if not values:
            raise Refused(lazy_gettext("Here nothing can be picked as %(key)s.", key=key), key=key)
        words = lazy_gettext("%(key)s must be one of %(names)s.", key=key, names=listed(values))
        raise Refused(words, key=key)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def start_link(hub: str, prefix: str, course: Mapping[str, Any], choice: LinkChoice) -> str:
    """Return the link with which a course's members start.

    Args:
        hub: the hub's own address, as "https://hub.example".
        prefix: the path of its pages, as "/hub/".
        course: `course_facts`.
        choice: what it asks for.
    """
    named = {
        "opt-course": course["key"],
        "opt-image": choice.image,
        "opt-gpus": choice.gpus,
        "opt-kind": choice.kind,
        "opt-hours": choice.hours,
        "next": f"{prefix}{course['repository']}" if choice.repository else "",
    }
    query = urlencode({name: value for name, value in named.items() if value})
    return f"{hub}{prefix}spawn?{query}"


def qr_code(link: str) -> str:
    """Return a link as a QR code: an SVG picture, black on white in light and dark."""
    picture = io.BytesIO()
    code = segno.make(link, micro=False, error="m", boost_error=False)
    code.save(picture, kind="svg", dark="#000", light="#fff", scale=4, xmldecl=False, omitsize=True)
    return picture.getvalue().decode()
