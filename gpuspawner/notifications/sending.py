"""The only module that imports Apprise, which is there where an administrator has installed it."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

PACKAGE = "apprise"
INSTALL = "pip install 'gpuspawner[notify]'"


def is_installed() -> bool:
    """Return whether messages can be sent at all."""
    return importlib.util.find_spec(PACKAGE) is not None


@lru_cache(maxsize=1)
def _apprise() -> Any:
    import apprise

    # What it logs may have parts of an address in it, passwords too.
    logging.getLogger(PACKAGE).propagate = False
    return apprise


def is_understood(address: str) -> bool:
    """Return whether Apprise knows an address's scheme, and finds in it what that needs."""
    return _apprise().Apprise.instantiate(address) is not None


def send(addresses: Sequence[str], title: str, body: str) -> list[bool]:
    """Send a message; return for each address whether it was taken. Blocks, in a thread of its own.

    Args:
        addresses: with the user's name in them.
        title: a line of plain text.
        body: plain text.
    """
    apprise = _apprise()
    asset = apprise.AppriseAsset(app_id="JupyterHub", app_desc="JupyterHub", async_mode=False)
    taken = []
    for address in addresses:
        one = apprise.Apprise(asset=asset)
        sent = one.add(address) and one.notify(
            title=title, body=body, body_format=apprise.NotifyFormat.TEXT
        )
        taken.append(bool(sent))
    return taken
