"""Sends messages to the users of a hub's servers, and holds nothing up."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol

from ..gpus.model import Holder
from ..i18n.languages import Language
from ..i18n.lazy_text import lazy_gettext
from ..leases.audit_log import one_line
from ..timeouts import within
from . import addresses, sending

Occasion = Literal[
    "turn",
    "check in",
    "failed",
    "end",
    "idle",
    "memory",
    "process ended",
    "announced",
    "stopped",
    "trouble",
    "reserved",
    "hours",
    "message",
]

# After a message, how long there is no other one of the same occasion for the same start.
AGAIN_SECONDS = 300.0
# Those each of which says something else.
ALWAYS_NEWS: frozenset[Occasion] = frozenset({"hours"})
# How long a message may take, and how many are sent at a time.
SEND_SECONDS = 60.0
AT_A_TIME = 4
# Services that don't answer keep a thread each. With so many of them nothing more is sent.
MAX_HANGING = 8
TRAIT = "c.GPUSpawner.notify_urls"

TITLES: dict[Occasion, str] = {
    "turn": lazy_gettext("It's your turn"),
    "check in": lazy_gettext("It's your turn: are you there?"),
    "failed": lazy_gettext("Your server didn't start"),
    "end": lazy_gettext("Your server's time is nearly over"),
    "idle": lazy_gettext("Your server's GPUs do nothing"),
    "memory": lazy_gettext("Your server takes too much of a shared GPU's memory"),
    "process ended": lazy_gettext("A process of your server was ended"),
    "announced": lazy_gettext("Your server is stopped soon"),
    "stopped": lazy_gettext("Your server was stopped"),
    "trouble": lazy_gettext("Something is wrong with your server"),
    "reserved": lazy_gettext("Reserved hours can't be kept"),
    "hours": lazy_gettext("Reserved hours of a course"),
    "message": lazy_gettext("From your course's instructors"),
}


class NotifiedServer(Protocol):
    """A server whose user gets messages, as its spawner implements it."""

    notify_urls: Any

    @property
    def holder(self) -> Holder:
        """The server and its user."""

    @property
    def language_seen(self) -> Language:
        """The language that its user's browser was last seen with."""

    @property
    def public_link(self) -> str:
        """Where its user finds it, or the page on which they wait for it; "" if unknown."""


Send = Callable[[Sequence[str], str, str], list[bool]]


class Notifier:
    """Sends messages through Apprise, each in a thread, with a timeout.

    Args:
        log: a logger.
        send: as `sending.send`.
    """

    def __init__(self, log: Any, send: Send = sending.send) -> None:
        self._log = log
        self._send = send
        # (holder, occasion) -> when the last message was sent, by the monotonic clock.
        self._told: dict[tuple[Holder, Occasion], float] = {}
        # What has been logged and isn't over.
        self._troubles: set[str] = set()
        self._free = asyncio.Semaphore(AT_A_TIME)
        self._hanging: list[threading.Thread] = []
        # Strong references, as the event loop holds tasks only weakly.
        self._tasks: set[asyncio.Task[None]] = set()

    def tell(self, server: NotifiedServer, occasion: Occasion, words: str) -> None:
        """Send a message to a server's user, if an address is set. Returns at once, never raises.

        Args:
            server: the server.
            occasion: what it is about.
            words: sentences for the user.
        """
        try:
            if not server.notify_urls:
                return
            if occasion not in ALWAYS_NEWS and not self._is_news(server.holder, occasion):
                return
            language = server.language_seen
            title = str(language.say(_title(server.holder, occasion)))
            body = "\n".join(
                str(language.say(each)) for each in (words, server.public_link) if each
            )
            task = asyncio.ensure_future(self._tell(server, title, body))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        except Exception:
            self._log.exception("A message to %s can't be sent", one_line(server.holder))

    def begin(self, holder: Holder) -> None:
        """Note that a server is started anew: what it was told of before is over."""
        self._told = {key: at for key, at in self._told.items() if key[0] != holder}

    async def told(self) -> None:
        """Wait until all messages have been sent."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _is_news(self, holder: Holder, occasion: Occasion) -> bool:
        oldest = time.monotonic() - AGAIN_SECONDS
        self._told = {key: at for key, at in self._told.items() if at > oldest}
        is_news = (holder, occasion) not in self._told
        if is_news:
            self._told[holder, occasion] = time.monotonic()
        return is_news

    async def _tell(self, server: NotifiedServer, title: str, body: str) -> None:
        user = server.holder.user
        try:
            found = await within(SEND_SECONDS, self._addresses_of(server))
            usable, left_out = addresses.filled(found, user)
            if left_out:
                self._trouble(
                    f"name:{user}",
                    f"{user!r} has letters that an address can't take for {addresses.USERNAME}: "
                    "a function as notify_urls can give theirs",
                )
            if usable:
                await self._deliver(usable, title, body)
        except asyncio.TimeoutError:
            self._trouble("function", "the function doesn't answer")
        except ValueError as error:
            self._trouble("function", f"what the function returned: {error}")
        except Exception as error:
            self._trouble("function", f"the function failed with {_where(error)}")

    async def _addresses_of(self, server: NotifiedServer) -> tuple[str, ...]:
        given = server.notify_urls
        if callable(given):
            given = given(server)
            if inspect.isawaitable(given):
                given = await given
            found = addresses.check(given or ())
            self._troubles.discard("function")
            return found
        return addresses.check(given)

    async def _deliver(self, usable: Sequence[str], title: str, body: str) -> None:
        async with self._free:
            self._hanging = [each for each in self._hanging if each.is_alive()]
            if len(self._hanging) >= MAX_HANGING:
                return
            loop = asyncio.get_running_loop()
            answer: asyncio.Future[list[bool]] = loop.create_future()
            thread = threading.Thread(
                target=self._run, args=(loop, answer, usable, title, body), daemon=True
            )
            thread.start()
            try:
                taken = await within(SEND_SECONDS, answer)
            except asyncio.TimeoutError:
                self._hanging.append(thread)
                taken = [False] * len(usable)
        if not any(taken) and not sending.is_installed():
            self._trouble("package", f"the package {sending.PACKAGE} isn't installed")
            return
        for address, is_taken in zip(usable, taken, strict=True):
            scheme = addresses.shown(address)
            if is_taken:
                self._troubles.discard(scheme)
            else:
                self._trouble(
                    scheme, f"{scheme} doesn't take a message; Apprise's own command tells more"
                )

    def _run(
        self,
        loop: asyncio.AbstractEventLoop,
        answer: asyncio.Future[list[bool]],
        usable: Sequence[str],
        title: str,
        body: str,
    ) -> None:
        try:
            taken = self._send(usable, title, body)
        except Exception:  # a service's own fault; its words may have the address in them
            taken = [False] * len(usable)

        def resolve() -> None:
            if not answer.done():
                answer.set_result(taken)

        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(resolve)

    def _trouble(self, about: str, words: str) -> None:
        """Log what is wrong with messages, once until it is over."""
        if about not in self._troubles:
            self._troubles.add(about)
            said = one_line(words)
            self._log.warning("Messages to users (c.GPUSpawner.notify_urls): %s", said)

    async def check(self, given: Any) -> None:
        """Log at a hub's start why messages can't be sent, if they can't.

        Args:
            given: the value of `notify_urls`.
        """
        # Apprise takes seconds to load all of its services.
        for problem, cure in await asyncio.to_thread(problems, given) if given else ():
            self._log.warning("No messages to users: %s. %s", one_line(problem), one_line(cure))


def problems(given: Any) -> list[tuple[str, str]]:
    """Return (what keeps messages from being sent, what to do).

    Args:
        given: the value of `notify_urls`.
    """
    if not given:
        return []
    if not sending.is_installed():
        found = f"{TRAIT} is set, and the package {sending.PACKAGE} isn't installed"
        return [(found, f"Run {sending.INSTALL}")]
    if callable(given):
        return []
    return [
        (
            f"address {number} of {TRAIT} ({addresses.shown(each)}) isn't one that Apprise takes",
            "See how Apprise writes it, and try it with Apprise's own command",
        )
        for number, each in enumerate(addresses.check(given), 1)
        if not sending.is_understood(each.replace(addresses.USERNAME, "ada"))
    ]


def _title(holder: Holder, occasion: Occasion) -> str:
    title = TITLES[occasion]
    if not holder.server:
        return title
    return lazy_gettext("%(title)s (%(server)s)", title=title, server=holder.server)


def _where(error: Exception) -> str:
    """Return an error's kind and the line it came from: its own words may have an address in it."""
    frames = traceback.extract_tb(error.__traceback__)
    last = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{last}"
