"""The log-in through the hub, with a size for whatever a request has of it."""

from __future__ import annotations

import re
from collections import deque
from typing import Any

from jupyterhub.services.auth import HubOAuth

# What a token may be; the hub's have 32 characters, an administrator's own may have more.
TOKEN = re.compile(r"[!-~]{1,1000}")
# The hub's have 32, too.
MAX_SESSION_ID = 200
# How many answers of the hub about tokens are kept, and how many log-ins may be under way.
MAX_KNOWN = 1000
MAX_LOGINS = 5000
# What stands after our address in those of the pages, and how long one may be to be kept.
PAGES = re.compile(r"|usage|week|reserved|courses(/[A-Za-z0-9_.-]{1,63})?")
MAX_NEXT = 300


class Login(HubOAuth):
    """JupyterHub's log-in for services, which keeps what it was sent for minutes: here a little."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._logins: deque[str] = deque()

    def get_token(self, handler: Any, in_cookie: bool = True) -> str:
        """Return a request's token; "" for what can be none."""
        token = super().get_token(handler, in_cookie=in_cookie)
        return token if token and TOKEN.fullmatch(token) else ""

    def get_session_id(self, handler: Any) -> str:
        """Return the id of a browser's session at the hub, by which answers are kept."""
        session_id = super().get_session_id(handler) or ""
        return session_id if len(session_id) <= MAX_SESSION_ID else ""

    def user_for_token(self, *args: Any, **kwargs: Any) -> Any:
        """Return whose a token is; forget what was known of others where that is too much."""
        if len(self.cache) >= MAX_KNOWN:
            self.cache.clear()
        return super().user_for_token(*args, **kwargs)

    def generate_state(self, next_url: str | None = None, **extra_state: Any) -> str:
        """Begin a log-in, which leads to the page that was asked for, as far as it is one."""
        while len(self._logins) >= MAX_LOGINS:
            self.clear_oauth_state(self._logins.popleft())
        asked = next_url or ""
        path = asked.partition("?")[0]
        is_page = path.startswith(self.base_url) and PAGES.fullmatch(path[len(self.base_url) :])
        leads_to = asked if is_page and len(asked) <= MAX_NEXT else self.base_url
        state: str = super().generate_state(leads_to, **extra_state)
        self._logins.append(state)
        return state
