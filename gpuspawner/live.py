"""The form's script asks for the form again, for the choice that stands on the page.

It asks at the form's own address, since a hub has no other for a spawner, and with a header, since
the hub takes arguments in an address for a choice and starts a server with it. The answer is the
form alone: the page around it costs the hub more than all that is in it.
"""

from __future__ import annotations

import json
from contextvars import ContextVar
from typing import Any
from urllib.parse import unquote

from tornado import web

# JSON, percent-encoded.
HEADER = "X-GPUSpawner-Choice"

# The request that is being answered. Of two at the same moment for one server, JupyterHub's
# `Spawner.handler` names only the later one.
_handler: ContextVar[Any] = ContextVar("handler", default=None)


def begin(handler: Any) -> None:
    """Remember which request is being answered, for as long as it is.

    Args:
        handler: a tornado handler, or None.
    """
    _handler.set(handler)


def language_asked() -> str:
    """Return the Accept-Language of the request, "" where it isn't known."""
    handler = _handler.get()
    return handler.request.headers.get("Accept-Language", "") if handler else ""


def choice_asked() -> Any:
    """Return the choice that a script asks about, untrusted; None where a page is asked for."""
    handler = _handler.get()
    if not handler or handler.request.method != "GET":
        return None
    sent = handler.request.headers.get(HEADER)
    try:
        return None if sent is None else json.loads(unquote(sent))
    except (ValueError, RecursionError):
        return {}


def answer(html: str) -> web.Finish:
    """Return what to raise for a script to get this and nothing around it."""
    handler = _handler.get()
    handler.set_header("Content-Type", "text/html; charset=utf-8")
    # The browser mustn't show it for the page, which has the same address.
    handler.set_header("Cache-Control", "no-store")
    handler.set_header("Vary", HEADER)
    return web.Finish(html)
