"""The page of reserved hours, its part of a course's page, and its part of the JSON API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tornado import web

from ..courses.hours_request import MAX_NOTE, MAX_WHY
from ..courses.week import zone_of
from ..errors import Refused
from ..i18n.lazy_text import lazy_gettext
from ..i18n.phrases import wall_moment
from .handlers import API, Handler
from .hours import FORM, WEEKLY, HoursActions, fields_of, form_of, sent
from .week_handlers import _epoch

# What a page's form does with hours that are typed in.
WITH_FIELDS = ("hours-ask", "hours-make", "hours-change")
# The order of the list: what waits for a decision first.
ORDER = ("asked", "granted", "refused", "withdrawn", "ended")


class HoursHandler(Handler):
    """What the pages that have reserved hours share."""

    @property
    def hours(self) -> HoursActions:
        """What is done with reserved hours."""
        return HoursActions(self.actions)

    async def hours_shown(
        self, course: str = "", form: Mapping[str, str] | None = None, refusal: str = ""
    ) -> dict[str, Any]:
        """Return what a page with reserved hours needs.

        Args:
            course: of which course; "": of all.
            form: what was sent and is refused, with `do` and `id`; None: nothing was.
            refusal: why it is.
        """
        try:
            found = await self.hours.all(self.person)
        except Refused as error:
            return {"hours": None, "hours_trouble": self.language.say(str(error))}
        listed = [each for each in found["reserved_hours"] if course in ("", each["course"])]
        # Of what is over as of what is decided, the newest is first.
        listed.sort(key=lambda each: (ORDER.index(each["state"]), each["over"], -each["id"]))
        for each in listed:
            each["trouble"] = self.language.say(each["trouble"])
        found["why_not"] = self.language.say(found["why_not"])
        zone = zone_of(found["zone"] or "")
        return {
            "hours": found,
            "hours_trouble": "",
            "listed": listed,
            "form": form,
            "new_form": form if form and not form["id"] else {**FORM, "course": course},
            "form_of": form_of,
            "of_course": course,
            "hours_refusal": refusal,
            "weekly": lambda rule: WEEKLY.fullmatch(rule),
            "moment": lambda text: wall_moment(_epoch(text), self.language, zone),
            "max_note": MAX_NOTE,
            "max_why": MAX_WHY,
        }

    def hours_form(self) -> dict[str, str]:
        """Return what was sent, to be shown again."""
        form = sent(lambda name: self.get_body_argument(name, ""))
        return {**form, "do": self.get_body_argument("do", ""), "id": self._number_sent()}

    def _number_sent(self) -> str:
        text = self.get_body_argument("id", "")
        return text if text.isascii() and text.isdigit() and len(text) < 10 else ""

    async def do_hours(self, what: str) -> str:
        """Perform an action of a form; return what is done.

        Raises:
            Refused: it is refused, and nothing is done.
        """
        person, number = self.person, int(self._number_sent() or 0)
        why = self.get_body_argument("why", "")
        if what in WITH_FIELDS:
            form = self.hours_form()
            fields = fields_of(form)
            if what == "hours-ask":
                await self.hours.ask(person, form["course"], fields, form["note"])
                return lazy_gettext("You have asked for it. An administrator decides.")
            if what == "hours-make":
                await self.hours.make(person, form["course"], fields)
                return lazy_gettext("These hours are reserved.")
            await self.hours.grant(person, number, fields)
            return lazy_gettext("It is granted, as you have changed it.")
        if what == "hours-grant":
            await self.hours.grant(person, number, None)
            return lazy_gettext("It is granted.")
        if what == "hours-refuse":
            await self.hours.decide(person, "refuse", number, why)
            return lazy_gettext("It is refused. The instructors read why.")
        if what == "hours-withdraw":
            await self.hours.decide(person, "withdraw", number, "")
            return lazy_gettext("It isn't asked for any more.")
        if what == "hours-end":
            await self.hours.decide(person, "end", number, why)
            return lazy_gettext("These hours aren't reserved any more.")
        raise Refused(lazy_gettext("That can't be done here."))


class HoursPage(HoursHandler):
    """The list, and the forms on it."""

    @web.authenticated
    async def get(self) -> None:
        """Show it."""
        await self._show(**self.take_message())

    @web.authenticated
    async def post(self) -> None:
        """Perform a form's action; what is refused is shown with what was typed in."""
        what = self.get_body_argument("do", "")
        try:
            self.keep_message("done", self.language.say(await self.do_hours(what)))
        except Refused as refusal:
            said = self.language.say(str(refusal))
            if what in WITH_FIELDS:
                self.set_status(refusal.status)
                await self._show(self.hours_form(), said, said="")
                return
            self.keep_message("refused", said)
        self.redirect(f"{self.hub_auth.base_url}reserved", status=303)

    async def _show(
        self, form: Mapping[str, str] | None = None, refusal: str = "", **more: Any
    ) -> None:
        await self.find_courses()
        shown = await self.hours_shown("", form, refusal)
        you = {"user": self.person.name, "administrator": self.person.administrator}
        self.finish(
            self.page(
                "reserved.html",
                {"you": you},
                page="reserved",
                action=f"{self.hub_auth.base_url}reserved",
                xsrf=self.xsrf,
                **shown,
                **more,
            )
        )


class _HoursAPI(API, HoursHandler):
    """What all of them answer with."""

    async def finish_with(self, work: Awaitable[dict[str, Any]], status: int = 200) -> None:
        """Answer with a request."""
        found = self.said(await self.answer(work))
        self.set_status(status)
        self.finish(found)

    @staticmethod
    def fields(body: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the hours of a request's JSON; None where there are none."""
        found = body.get("hours")
        if found is not None and not isinstance(found, dict):
            raise web.HTTPError(400, "hours must be a JSON object.")
        return found

    def said(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return a request in the reader's language."""
        return {**found, "trouble": self.language.say(found["trouble"])}


class HoursAPI(_HoursAPI):
    """The requests for reserved hours."""

    async def get(self) -> None:
        """Answer with them."""
        found = await self.answer(self.hours.all(self.person))
        found["why_not"] = self.language.say(found["why_not"])
        self.finish(
            {**found, "reserved_hours": [self.said(each) for each in found["reserved_hours"]]}
        )

    async def post(self) -> None:
        """Reserve hours, as an administrator."""
        body = self.body()
        course, hours = self.text(body, "course"), self.fields(body) or {}
        await self.finish_with(self.hours.make(self.person, course, hours), 201)


class CourseHoursAPI(_HoursAPI):
    """The requests of one course."""

    async def post(self, key: str) -> None:
        """Ask for hours, as an instructor."""
        body = self.body()
        note, hours = self.text(body, "note"), self.fields(body) or {}
        await self.finish_with(self.hours.ask(self.person, key, hours, note), 201)


class HoursGrantAPI(_HoursAPI):
    """The grant of a request."""

    async def post(self, number: str) -> None:
        """Grant it, or other hours in its place."""
        hours = self.fields(self.body())
        await self.finish_with(self.hours.grant(self.person, int(number), hours))


class HoursDecisionAPI(_HoursAPI):
    """Another decision on a request."""

    async def post(self, number: str, what: str) -> None:
        """Make it."""
        why = self.text(self.body(), "why")
        await self.finish_with(self.hours.decide(self.person, what, int(number), why))


_HOURS = "api/reserved-hours"
_ONE = rf"{_HOURS}/([0-9]{{1,9}})"
# What is where, below the service's prefix.
HOURS_ROUTES: list[tuple[str, Callable[..., Any]]] = [
    ("reserved", HoursPage),
    (_HOURS, HoursAPI),
    (f"{_ONE}/grant", HoursGrantAPI),
    (rf"{_ONE}/(refuse|withdraw|end)", HoursDecisionAPI),
    ("api/courses/([^/]+)/reserved-hours", CourseHoursAPI),
]
