"""The event stream that updates open spawn forms.

The form's script requests the form again, for the choice that the user has made so far. It uses
the spawn page's URL, since a spawner has no URL of its own, and sends the choice in a header, since
JupyterHub would take URL arguments for a choice and start a server. It gets the form without the
page, at once and whenever something has changed. A stream lasts some minutes, since authenticating
a request costs the hub several times as much as rendering the form.
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

from ..i18n.languages import MAX_HEADER_LENGTH
from ..untrusted import parse_json
from .open_forms import POLLED_VIEW_SECONDS, RECENT_SECONDS, ChangeWatcher

# The header with the choice, as percent-encoded JSON.
HEADER = "X-GPUSpawner-Choice"
# After a change, the open pages are updated within this time, spread evenly.
SPREAD_SECONDS = 2.0
# How often a comment is sent while nothing changes.
KEEPALIVE_SECONDS = 5.0
# How long a stream lasts at most; the script opens another one, which is authenticated again.
STREAM_SECONDS = 240.0

# The handler of the current request. If a server has two concurrent requests, JupyterHub's
# `Spawner.handler` is the later one's for both.
_handler: ContextVar[Any] = ContextVar("handler", default=None)


def remember_request(handler: Any) -> None:
    """Store the handler of the current request in this context.

    Args:
        handler: a tornado handler; None: no request.
    """
    _handler.set(handler)


def current_request() -> Any:
    """Return the handler of `remember_request`; None: there is no request."""
    return _handler.get()


def has_request() -> bool:
    """Return whether a request is being handled that `remember_request` was called for."""
    return _handler.get() is not None


def is_rest_request() -> bool:
    """Return whether that request came by the REST API, and not from a page or a link."""
    handler = _handler.get()
    return bool(handler) and handler.request.path.startswith(f"{handler.hub.base_url}api/")


def accept_language_of(handler: Any = None) -> str:
    """Return a request's Accept-Language header, cut to `MAX_HEADER_LENGTH`; "" if unknown.

    Args:
        handler: the request's handler; None: the one of `remember_request`.
    """
    handler = handler or _handler.get()
    header = handler.request.headers.get("Accept-Language", "") if handler else ""
    return str(header)[:MAX_HEADER_LENGTH]


def requested_choice() -> Any:
    """Return the choice that the form's script has sent, unchecked; None for any other request."""
    handler = _handler.get()
    if not handler or handler.request.method != "GET":
        return None
    sent = handler.request.headers.get(HEADER)
    try:
        return None if sent is None else parse_json(unquote(sent))
    except ValueError:
        return {}


async def answer(
    form: Callable[[float], Awaitable[str]], watch: ChangeWatcher, over: Callable[[], bool]
) -> str:
    """Answer the form's script, once or with a stream; return what is still to be written.

    Args:
        form: renders the form from a view that is at most so many seconds old.
        watch: notices changes of the nodes and the queue.
        over: returns whether the server has been started, so that the stream ends.
    """
    handler = _handler.get()
    # The browser mustn't cache it as the spawn page, which has the same URL.
    handler.set_header("Cache-Control", "no-store")
    handler.set_header("Vary", HEADER)
    if "text/event-stream" not in handler.request.headers.get("Accept", ""):
        handler.set_header("Content-Type", "text/html; charset=utf-8")
        return await form(RECENT_SECONDS)
    handler.set_header("Content-Type", "text/event-stream")
    # Else nginx buffers the stream.
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
