"""A link with a choice, as `/hub/spawn?opt-gpus=2`: it starts a server from our own pages only.

Anybody can put such a link on a page, or into a mail. From there it fills in the form, and its
reader presses Start. Where a link was pressed is what the browser says: the page in `Referer`,
which no other site can name, and `Sec-Fetch-Site`, which browsers send where the hub has TLS.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlencode, urlsplit

from markupsafe import Markup

# What the hub keeps for itself of a link's arguments. ref: SpawnHandler in jupyterhub/handlers
RESERVED = frozenset({"next", "display_name"})
# Of the hub's own pages those on which somebody starts a server. A log-in leads on to whatever link
# led to it, so it counts for nothing.
STARTING_PAGES = frozenset({"home", "spawn", "spawn-pending", "user"})

_linked: ContextVar[Mapping[str, list[str]] | None] = ContextVar("linked", default=None)


def remember_link(handler: Any) -> None:
    """Take the choice out of a request for the spawn page that a link from elsewhere led to.

    Args:
        handler: a tornado handler, or None.
    """
    _linked.set(None)
    if handler is None or handler.request.method != "GET":
        return
    request = handler.request
    choice = {key: each for key, each in request.query_arguments.items() if key not in RESERVED}
    if not choice or is_from_this_hub(request, handler.hub.base_url):
        return
    _linked.set({key: [one.decode("utf-8", "replace") for one in choice[key]] for key in choice})
    # The hub would start a server with it now, and the form's own address would have it still.
    others = {key: each for key, each in request.query_arguments.items() if key in RESERVED}
    request.query_arguments = others
    request.query = urlencode(others, doseq=True)
    request.uri = request.path + (f"?{request.query}" if others else "")


def linked_choice() -> Mapping[str, list[str]] | None:
    """Return the arguments of a link from elsewhere that led to this request, untrusted."""
    return _linked.get()


def is_from_this_hub(request: Any, hub_prefix: str) -> bool:
    """Return whether a link was pressed on a page of this hub, or of a server or service of it.

    Args:
        request: a tornado request.
        hub_prefix: the path below which the hub's own pages are: "/hub/".
    """
    if request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
        return False
    try:
        page = urlsplit(request.headers.get("Referer", ""))
    except ValueError:
        return False
    if not page.netloc or page.netloc.lower() != request.host.lower():
        return False
    if not page.path.startswith(hub_prefix):
        return True
    return page.path.removeprefix(hub_prefix).partition("/")[0] in STARTING_PAGES


def hidden_fields(choice: Mapping[str, Any]) -> Markup:
    """Return a choice as fields of a form that nobody sees."""
    field = Markup('<input type="hidden" name="{}" value="{}">')
    return Markup("").join(
        field.format(key.removeprefix("opt-"), one) for key, each in choice.items() for one in each
    )
