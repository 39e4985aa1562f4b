"""The pages of courses for those who teach them, and their part of the JSON API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from markupsafe import Markup
from tornado import web

from ..errors import Refused
from ..gpus.model import Holder
from ..hub.messages import MAX_LENGTH
from ..i18n.lazy_text import lazy_gettext, lazy_ngettext
from ..i18n.phrases import clock_time
from .courses import link_choice, qr_code, start_link
from .facts import iso_time
from .handlers import API, Handler
from .hours_handlers import WITH_FIELDS, HoursHandler


class CoursesPage(Handler):
    """The list of one's courses."""

    @web.authenticated
    async def get(self) -> None:
        """Show it, or why not."""
        refusal = ""
        try:
            self._taught, self._open_hours = await self.courses.taught(self.person)
        except Refused as error:
            self.set_status(error.status)
            refusal = self.language.say(str(error))
        you = {"user": self.person.name}
        self.finish(self.page("courses.html", {"you": you}, page="courses", refusal=refusal))


class _Course(HoursHandler):
    """What all parts of a course's page have."""

    async def _shown(self, template: str, key: str, **more: Any) -> str:
        """Return the page, or the part of it that changes.

        Raises:
            Refused: there is no such course for them.
        """
        person = self.person
        course = await self.courses.roster(person, key)
        you = {"user": person.name, "administrator": person.administrator}
        form, refusal = more.pop("form", None), more.pop("hours_refusal", "")
        if template == "course.html":
            more |= {**self._link(course), **await self.hours_shown(key, form, refusal)}
        return self.page(
            template,
            {"you": you},
            page="courses",
            course=course,
            action=self._address(key),
            xsrf=self.xsrf,
            longest=MAX_LENGTH,
            **more,
        )

    def _address(self, key: str) -> str:
        return f"{self.hub_auth.base_url}courses/{quote(key, safe='')}"

    def _link(self, course: dict[str, Any]) -> dict[str, Any]:
        """Return the start link that the address asks for, what its form shows, or why not."""
        given = {
            name: self.get_query_argument(name, "")[:100]
            for name in ("image", "gpus", "kind", "hours", "repository")
        }
        try:
            choice = link_choice(course, lambda name: given[name], bool(self.request.query))
        except Refused as refusal:
            self.set_status(refusal.status)
            said = self.language.say(str(refusal))
            return {"asked": given, "link": "", "picture": "", "refusal": said}
        link = self.start_link(course, choice)
        asked = {**given, "repository": choice.repository}
        picture = Markup(qr_code(link))  # noqa: S704 - ours: what the link has is drawn
        return {"asked": asked, "link": link, "picture": picture, "refusal": ""}

    def start_link(self, course: dict[str, Any], choice: Any) -> str:
        """Return a start link of the hub's, as who asks has found the hub."""
        hub = self.hub_auth.hub_host or f"{self.request.protocol}://{self.request.host}"
        return start_link(hub, self.hub_auth.hub_prefix, course, choice)


class CoursePage(_Course):
    """A course, and the forms on its page."""

    @web.authenticated
    async def get(self, key: str) -> None:
        """Show it."""
        await self._show(key, **self.take_message())

    async def _show(self, key: str, **more: Any) -> None:
        await self.find_courses()
        try:
            shown = await self._shown("course.html", key, **more)
        except Refused as refusal:
            raise web.HTTPError(refusal.status, "%s", self.language.say(str(refusal))) from None
        self.finish(shown)

    @web.authenticated
    async def post(self, key: str) -> None:
        """Perform a form's action, and show the page again with the result."""
        what = self.get_body_argument("do", "")
        try:
            done = await self._do(key, what)
            self.keep_message("done", self.language.say(done))
        except Refused as refusal:
            said = self.language.say(str(refusal))
            if what in WITH_FIELDS and refusal.status != 404:
                self.set_status(refusal.status)
                form = self.hours_form()
                await self._show(key, form=form, hours_refusal=said, said="")
                return
            self.keep_message("refused", said)
        self.redirect(self._address(key), status=303)

    async def _do(self, key: str, what: str) -> str:
        user, server = self.get_body_argument("user", ""), self.get_body_argument("server", "")
        who = str(Holder(user, server))
        if what == "extend":
            until = await self.courses.extend(self.person, key, user, server, None)
            return lazy_gettext(
                "The server of %(name)s now ends at %(time)s.", name=who, time=clock_time(until)
            )
        if what == "extend-all":
            return await self._extend_all(key)
        if what == "stop":
            minutes = self.minutes()
            why = self.get_body_argument("why", "")
            await self.courses.stop(self.person, key, user, server, why, minutes)
            if minutes:
                return lazy_gettext(
                    "The server is stopped in %(minutes)s minutes.", minutes=minutes
                )
            return lazy_gettext("The server stops, once what runs in it has saved.")
        if what == "keep":
            await self.courses.keep(self.person, key, user, server)
            return lazy_gettext("The server goes on.")
        if what in ("message", "message-all"):
            to = {"user": user, "server": server} if what == "message" else {}
            text = self.get_body_argument("text", "")
            sent = await self.courses.say(self.person, key, text, **to)
            return lazy_ngettext(
                "The message appears in 1 JupyterLab.",
                "The message appears in %(num)s JupyterLabs.",
                sent,
            )
        if what == "front":
            place = await self.courses.move_to_front(self.person, key, user, server)
            return lazy_gettext(
                "%(name)s is first of the course now: place %(place)s of all.",
                name=who,
                place=place,
            )
        return await self.do_hours(what)

    async def _extend_all(self, key: str) -> str:
        found = await self.courses.extend_all(self.person, key, None)
        reasons = [each for each in found if each["message"]]
        extended = len(found) - len(reasons)
        if not reasons:
            return lazy_ngettext(
                "1 server has more time.", "%(num)s servers have more time.", extended
            )
        first = reasons[0]
        return lazy_gettext(
            "%(number)s of %(all)s servers have more time. %(name)s doesn't: %(why)s",
            number=extended,
            all=len(found),
            name=str(Holder(first["user"], first["server"])),
            why=first["message"],
        )


class CourseLivePart(_Course):
    """The part of a course's page that changes, for the script."""

    async def get(self, key: str) -> None:
        """Send it."""
        if not self.current_user:
            raise web.HTTPError(403)
        try:
            shown = await self._shown("course_live.html", key)
        except Refused as refusal:
            # The script loads the page anew, which says why.
            status = 403 if refusal.status == 404 else refusal.status
            raise web.HTTPError(status, "%s", self.language.say(str(refusal))) from None
        self.finish(shown)


class CoursesAPI(API):
    """The courses that one teaches."""

    async def get(self) -> None:
        """Answer with them."""
        self.finish({"courses": await self.answer(self.courses.of(self.person))})


class CourseAPI(API):
    """One course."""

    async def get(self, key: str) -> None:
        """Answer with its members, and what they run for it."""
        course = await self.answer(self.courses.roster(self.person, key))
        self.finish(course)


class CourseLinkAPI(API, _Course):
    """The start link of a course."""

    async def get(self, key: str) -> None:
        """Answer with it, as JSON or as a QR code."""
        form = self.get_query_argument("format", "json")
        link = await self.answer(self._read(key, form))
        if form == "svg":
            self.set_header("Content-Type", "image/svg+xml")
            self.finish(qr_code(link))
        else:
            self.finish({"url": link})

    async def _read(self, key: str, form: str) -> str:
        if form not in ("json", "svg"):
            words = lazy_gettext("format must be one of %(names)s.", names="json, svg")
            raise Refused(words, key="format")
        course = await self.courses.roster(self.person, key)
        given = any(name != "format" for name in self.request.query_arguments)
        choice = link_choice(course, lambda name: self.get_query_argument(name, ""), given)
        return self.start_link(course, choice)


class ExtendAll(API):
    """More time for all servers of a course."""

    async def post(self, key: str) -> None:
        """Give it."""
        hours = self.number(self.body(), "hours")
        work = self.courses.extend_all(self.person, key, hours)
        servers = await self.answer(work)
        for each in servers:
            each["message"] = self.language.say(each["message"])
        self.finish({"servers": servers})


class MessageAll(API):
    """A message to all whose servers run for a course."""

    async def post(self, key: str) -> None:
        """Send it."""
        text = self.text(self.body(), "text")
        self.finish({"sent": await self.answer(self.courses.say(self.person, key, text))})


class CourseServer(API):
    """One server of a course."""

    async def delete(self, key: str, user: str, server: str | None = None) -> None:
        """Stop it, for a reason and later where that is asked for."""
        body = self.body()
        why, minutes = self.text(body, "why"), self.number(body, "minutes") or 0
        work = self.courses.stop(self.person, key, user, server or "", why, minutes)
        await self.answer(work)
        self.set_status(204)


class CourseKeep(API):
    """The announced stop of a course's server."""

    async def delete(self, key: str, user: str, server: str | None = None) -> None:
        """Take it back."""
        await self.answer(self.courses.keep(self.person, key, user, server or ""))
        self.set_status(204)


class CourseExtend(API):
    """More time for one server of a course."""

    async def post(self, key: str, user: str, server: str | None = None) -> None:
        """Give it."""
        hours = self.number(self.body(), "hours")
        work = self.courses.extend(self.person, key, user, server or "", hours)
        self.finish({"until": iso_time(await self.answer(work))})


class CourseMessage(API):
    """A message to who has one server of a course."""

    async def post(self, key: str, user: str, server: str | None = None) -> None:
        """Send it."""
        text = self.text(self.body(), "text")
        work = self.courses.say(self.person, key, text, user=user, server=server or "")
        self.finish({"sent": await self.answer(work)})


class CourseFront(API):
    """The front of those who wait for a course."""

    async def post(self, key: str, user: str, server: str | None = None) -> None:
        """Move somebody there."""
        work = self.courses.move_to_front(self.person, key, user, server or "")
        self.finish({"place": await self.answer(work)})


_COURSE = "api/courses/([^/]+)"
_SERVER = rf"{_COURSE}/users/([^/]+)/server(?:s/([^/]+))?"
# What is where, below the service's prefix.
COURSE_ROUTES: list[tuple[str, Callable[..., Any]]] = [
    ("courses", CoursesPage),
    ("courses/([^/]+)", CoursePage),
    ("courses/([^/]+)/live", CourseLivePart),
    ("api/courses", CoursesAPI),
    (_COURSE, CourseAPI),
    (f"{_COURSE}/link", CourseLinkAPI),
    (f"{_COURSE}/extend", ExtendAll),
    (f"{_COURSE}/message", MessageAll),
    (_SERVER, CourseServer),
    (f"{_SERVER}/extend", CourseExtend),
    (f"{_SERVER}/stop", CourseKeep),
    (f"{_SERVER}/message", CourseMessage),
    (f"{_SERVER}/front", CourseFront),
]
