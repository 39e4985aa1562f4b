"""The form's script asks for the form again, for the choice that stands on the page.

It asks at the form's own address, since a hub has no other for a spawner, and with a header, since
the hub takes arguments in an address for a choice and starts a server with it. What it gets is the
form alone, now and each time that something has changed. To log somebody in costs the hub several
times what the form does, so a page that stays open does so once in a few minutes.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any
from urllib.parse import unquote

from tornado.iostream import StreamClosedError

from .open_forms import POLLED_VIEW_SECONDS, RECENT_SECONDS, ChangeWatcher

# JSON, percent-encoded.
HEADER = "X-GPUSpawner-Choice"
# After a change, pages are told one after the other within this time.
SPREAD_SECONDS = 2.0
# How often a page hears that nothing has changed.
KEEPALIVE_SECONDS = 5.0
# After this a page has to ask anew, and show who it is.
STREAM_SECONDS = 240.0

# The request that is being answered. Of two at the same moment for one server, JupyterHub's
# `Spawner.handler` names only the later one.
_handler: ContextVar[Any] = ContextVar("handler", default=None)


def remember_request(handler: Any) -> None:
    """Remember which request is being answered, for as long as it is.

    Args:
        handler: a tornado handler, or None.
    """
    _handler.set(handler)


def accept_language_of(handler: Any = None) -> str:
    """Return the Accept-Language of the request, "" where it isn't known.

    Args:
        handler: what answers it; None for the one that this was told of.
    """
    handler = handler or _handler.get()
    return handler.request.headers.get("Accept-Language", "") if handler else ""


def requested_choice() -> Any:
    """Return the choice that a script asks about, untrusted; None where a page is asked for."""
    handler = _handler.get()
    if not handler or handler.request.method != "GET":
        return None
    sent = handler.request.headers.get(HEADER)
    try:
        return None if sent is None else json.loads(unquote(sent))
    except (ValueError, RecursionError):
        return {}


async def answer(
    form: Callable[[float], Awaitable[str]], watch: ChangeWatcher, over: Callable[[], bool]
) -> str:
    """Answer a script, and return what is still to be written: nothing, where all has been.

    Args:
        form: makes the form as it is now, or was so many seconds ago at most.
        watch: notices that it may be another one.
        over: whether there is nothing to choose any more.
    """
    handler = _handler.get()
    # The browser mustn't show it for the page, which has the same address.
    handler.set_header("Cache-Control", "no-store")
    handler.set_header("Vary", HEADER)
    if "text/event-stream" not in handler.request.headers.get("Accept", ""):
        handler.set_header("Content-Type", "text/html; charset=utf-8")
        return await form(RECENT_SECONDS)
    handler.set_header("Content-Type", "text/event-stream")
    # For nginx, which would keep it until it is a page long.
    handler.set_header("X-Accel-Buffering", "no")
    with suppress(StreamClosedError), watch.watching():
        await _stream(handler, form, watch, over)
    return ""


async def _stream(
    handler: Any,
    form: Callable[[float], Awaitable[str]],
    watch: ChangeWatcher,
    over: Callable[[], bool],
) -> None:
    end = time.monotonic() + STREAM_SECONDS * random.uniform(0.8, 1.2)  # noqa: S311
    told = ""
    while not over() and time.monotonic() < end:
        now = await form(POLLED_VIEW_SECONDS)
        handler.write(f"data: {json.dumps(now)}\n\n" if now != told else ":\n\n")
        await handler.flush()
        told = now
        while not await watch.wait_for_change(KEEPALIVE_SECONDS):
            handler.write(":\n\n")
            await handler.flush()
            if over() or time.monotonic() > end:
                return
        await asyncio.sleep(SPREAD_SECONDS * random.random())  # noqa: S311
