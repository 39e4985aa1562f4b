"""The moment in which who has waited says that they are there, before their GPUs are used."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from hmac import compare_digest

from .leases.clock import Deadline
from .timeouts import within

# How often the clock is looked at: it goes on while the machine sleeps, and a timeout doesn't.
TICK_SECONDS = 1.0


@dataclass(eq=False)
class CheckIn:
    """A turn that has come, for which GPUs are held until its user says that they are there.

    Args:
        deadline: until when.
        token: what the page that says so has to send; no other site knows it.
    """

    deadline: Deadline
    token: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    _present: asyncio.Event = field(default_factory=asyncio.Event)

    def confirm(self) -> None:
        """Note that the user is there."""
        self._present.set()

    def confirm_by(self, token: str) -> None:
        """Note it if what was sent is the token."""
        if compare_digest(self.token.encode(), token.encode("utf-8", "replace")):
            self.confirm()

    async def wait(self) -> bool:
        """Wait until the user is there, or time has run out; return whether they are."""
        while not self._present.is_set() and self.deadline.remaining > 0:
            with suppress(asyncio.TimeoutError):
                await within(min(TICK_SECONDS, self.deadline.remaining), self._present.wait())
        return self._present.is_set()
