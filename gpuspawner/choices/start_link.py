"""Links with a choice, `/hub/spawn?opt-gpus=2`, which start a server only from the hub's own pages.

Anybody can put such a link on a page or into a mail. Opened from there, it only fills in the form,
and its reader presses Start. The browser tells where a link was opened: by `Referer`, in which no
other site can name a page of ours, and by `Sec-Fetch-Site`, which it sends if the hub has TLS.
ref: https://www.w3.org/TR/fetch-metadata/
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlencode, urlsplit

from markupsafe import Markup

# The arguments of a link that are the hub's own. ref: SpawnHandler in jupyterhub/handlers
RESERVED = frozenset({"next", "display_name"})
# The hub's pages from which users start servers. Not the log-in page, which redirects to any link.
STARTING_PAGES = frozenset({"home", "spawn", "spawn-pending", "user"})

_linked: ContextVar[Mapping[str, list[str]] | None] = ContextVar("linked", default=None)


def remember_link(handler: Any) -> None:
    """Remove the choice from a request for the spawn page if its link is from elsewhere; keep it.

    Args:
        handler: a tornado handler, or None.
    """
    _linked.set(None)
    if handler is None or handler.request.method != "GET":
        return
    request = handler.request
    # The hub takes them for UTF-8, and what isn't for a fault of its own.
    for each in request.query_arguments.values():
        each[:] = [one.decode("utf-8", "replace").encode() for one in each]
    choice = {key: each for key, each in request.query_arguments.items() if key not in RESERVED}
    if not choice or is_from_this_hub(request, handler.hub.base_url):
        return
    _linked.set({key: [one.decode() for one in each] for key, each in choice.items()})
    # Else the hub would start a server with it, and the form's URL would still have it.
    others = {key: each for key, each in request.query_arguments.items() if key in RESERVED}
    request.query_arguments = others
    request.query = urlencode(others, doseq=True)
    request.uri = request.path + (f"?{request.query}" if others else "")


def linked_choice() -> Mapping[str, list[str]] | None:
    """Return the untrusted arguments of this request's link from elsewhere; None: no such link."""
    return _linked.get()


def is_from_this_hub(request: Any, hub_prefix: str) -> bool:
    """Return whether a link was opened on a page of this hub, or of a server or service of it.

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
    """Return a choice as hidden fields of a form."""
    field = Markup('<input type="hidden" name="{}" value="{}">')
    return Markup("").join(
        field.format(key.removeprefix("opt-"), one) for key, each in choice.items() for one in each
    )
