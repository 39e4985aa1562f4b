"""The control socket's part about reserved hours; `control_socket` lists what there is.

The hub checks whether `who` may, by `hours_desk.HoursDesk`.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from .control_socket import MAX_NAME_LENGTH, CoursesRequest, JSONRequest
from .hours_desk import HoursDesk

# The longest text that is read; shorter ones are refused with a sentence.
MAX_TEXT = 4000


class _CourseHours(CoursesRequest):
    """The body of a request for hours for a course: their fields, and a note."""

    course: str = Field(max_length=MAX_NAME_LENGTH)
    hours: dict[str, Any]
    note: str = Field(default="", max_length=MAX_TEXT)


class _Number(CoursesRequest):
    """The body of a request about hours that were asked for: their number."""

    id: int = Field(ge=1, le=2**31 - 1)


class _Grant(_Number):
    """The body of a grant: the hours, where they are others than what was asked for."""

    hours: dict[str, Any] | None = None


class _Why(_Number):
    """The body of a decision with a reason."""

    why: str = Field(default="", max_length=MAX_TEXT)


class _Desk(JSONRequest):
    """Base class."""

    @property
    def desk(self) -> HoursDesk:
        """Where hours are asked for; raises Refused where they aren't."""
        return self._control.hours


class _Hours(_Desk):
    """What was asked for and granted, as far as somebody may know it."""

    request_model = CoursesRequest

    async def answer(self, asked: CoursesRequest) -> dict[str, Any]:
        """Return it."""
        return await self.desk.facts(asked.asker)


class _Ask(_Desk):
    """A request for hours, by an instructor."""

    request_model = _CourseHours

    async def answer(self, asked: _CourseHours) -> dict[str, Any]:
        """Keep it."""
        return await self.desk.ask(asked.asker, asked.course, asked.hours, asked.note)


class _Make(_Desk):
    """Hours that an administrator reserves."""

    request_model = _CourseHours

    async def answer(self, asked: _CourseHours) -> dict[str, Any]:
        """Reserve them."""
        return await self.desk.make(asked.asker, asked.course, asked.hours)


class _Granted(_Desk):
    """The grant of a request."""

    request_model = _Grant

    async def answer(self, asked: _Grant) -> dict[str, Any]:
        """Grant it."""
        return await self.desk.grant(asked.asker, asked.id, asked.hours)


class _Refused(_Desk):
    """The refusal of a request."""

    request_model = _Why

    async def answer(self, asked: _Why) -> dict[str, Any]:
        """Refuse it."""
        return await self.desk.refuse(asked.asker, asked.id, asked.why)


class _Withdrawn(_Desk):
    """A request that isn't asked any more."""

    request_model = _Number

    async def answer(self, asked: _Number) -> dict[str, Any]:
        """Withdraw it."""
        return await self.desk.withdraw(asked.asker, asked.id)


class _Ended(_Desk):
    """The end of what was granted."""

    request_model = _Why

    async def answer(self, asked: _Why) -> dict[str, Any]:
        """End it."""
        return await self.desk.end(asked.asker, asked.id, asked.why)


HOURS_ROUTES: list[tuple[str, type[_Desk]]] = [
    ("/hours", _Hours),
    ("/hours-ask", _Ask),
    ("/hours-make", _Make),
    ("/hours-grant", _Granted),
    ("/hours-refuse", _Refused),
    ("/hours-withdraw", _Withdrawn),
    ("/hours-end", _Ended),
]
