"""The spawn page as a browser without scripts sends it."""

from __future__ import annotations

import requests
from bs4 import BeautifulSoup

from .hubs import Hub


def submit(hub: Hub, session: requests.Session, **fields: str) -> requests.Response:
    """Send the form as a browser would."""
    page = BeautifulSoup(session.get(f"{hub.url}/hub/spawn").content, "html.parser")
    return session.post(hub.url + page.select_one("#spawn_form")["action"], data=fields)
