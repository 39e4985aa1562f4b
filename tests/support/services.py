"""The dashboard's service without a hub: who has which token, and what they may, is told here."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import pytest
from bs4 import BeautifulSoup
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

from gpuspawner.dashboard import command
from gpuspawner.dashboard.login import Login

from .courses import Classroom
from .hubs import free_port

PREFIX = "/services/gpus/"
SCOPES = {"boss": ["delete:servers"]}


@asynccontextmanager
async def served(
    socket: str, monkeypatch: pytest.MonkeyPatch, names: str, model_of: Callable[[str], Any]
) -> AsyncIterator[str]:
    """Serve it.

    Args:
        socket: the path of a hub's control socket.
        monkeypatch: a test's.
        names: as for `gpuspawner dashboard --names`.
        model_of: returns what the hub says of who has a token.

    Yields:
        Its URL.
    """
    environment = {
        "JUPYTERHUB_API_TOKEN": "secret",
        "JUPYTERHUB_CLIENT_ID": "service-gpus",
        "JUPYTERHUB_BASE_URL": "/",
        "JUPYTERHUB_SERVICE_PREFIX": PREFIX,
        "JUPYTERHUB_API_URL": "http://127.0.0.1:1/hub/api",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    Login.clear_instance()

    async def whose(self: Login, token: str, **_: Any) -> Any:
        return model_of(token)

    monkeypatch.setattr(Login, "user_for_token", whose)
    monkeypatch.setattr(Login, "check_scopes", lambda self, needed, user: user)
    service = command.application(Namespace(names=names, socket=socket, from_hub=True), environment)
    # JupyterHub reads it from the environment as it is imported.
    Login.instance().base_url = PREFIX
    server, port = command.server_of(service), free_port()
    server.listen(port, "127.0.0.1")
    try:
        yield f"http://127.0.0.1:{port}{PREFIX}"
    finally:
        server.stop()
        await server.close_all_connections()
        Login.clear_instance()


@asynccontextmanager
async def serving(
    socket: str,
    monkeypatch: pytest.MonkeyPatch,
    names: str = "everybody",
    groups: Mapping[str, Sequence[str]] | None = None,
) -> AsyncIterator[Callable[..., Any]]:
    """Serve it; a user's token is their name, and that of a service "culler".

    Args:
        socket, monkeypatch, names: as for `served`.
        groups: user -> groups.

    Yields:
        A function that gets a path as somebody: `await get("ada", "usage", Header="value")`.
    """

    def model_of(token: str) -> Any:
        kind = "service" if token == "culler" else "user"
        scopes = ["access:services", *SCOPES.get(token, [f"delete:servers!user={token}"])]
        of = list((groups or {}).get(token, ()))
        return {"kind": kind, "name": token, "scopes": scopes, "admin": False, "groups": of}

    async with served(socket, monkeypatch, names, model_of) as url:

        async def get(who: str, path: str, **headers: str) -> HTTPResponse:
            return await AsyncHTTPClient(force_instance=True).fetch(
                f"{url}{path}",
                headers={"Authorization": f"token {who}", **headers},
                raise_error=False,
            )

        yield get


class Service:
    """The dashboard beside a classroom's hub, and who asks it, with a token that is their name."""

    def __init__(self, room: Classroom, url: str) -> None:
        self.room, self._url = room, url
        self._client = AsyncHTTPClient(force_instance=True)

    async def send(
        self, method: str, who: str, path: str, body: Any = None, **headers: str
    ) -> HTTPResponse:
        """Send a request; `body`: JSON, or a form's text."""
        sent = body if body is None or isinstance(body, str) else json.dumps(body)
        return await self._client.fetch(
            f"{self._url}{path}",
            method=method,
            headers={"Authorization": f"token {who}", **headers},
            body=sent if sent is not None or method in ("GET", "DELETE") else "",
            allow_nonstandard_methods=True,
            follow_redirects=False,
            raise_error=False,
        )

    async def get(self, who: str, path: str, **headers: str) -> HTTPResponse:
        """Get a page."""
        return await self.send("GET", who, path, **headers)

    async def page(self, who: str, path: str, **headers: str) -> BeautifulSoup:
        """Return a page that must be there."""
        answer = await self.get(who, path, **headers)
        assert answer.code == 200, answer.body
        return BeautifulSoup(answer.body, "html.parser")

    async def press(self, who: str, path: str, **fields: str) -> str:
        """Send a form of a page; return the sentence on the next one."""
        kind = "application/x-www-form-urlencoded"
        answer = await self.send("POST", who, path, urlencode(fields), **{"Content-Type": kind})
        assert answer.code == 303, answer.body
        cookie = "; ".join(each.split(";")[0] for each in answer.headers.get_list("Set-Cookie"))
        leads_to = answer.headers["Location"].removeprefix(PREFIX)
        page = await self.page(who, leads_to, Cookie=cookie)
        return page.select_one("p.alert[role=status]:not([hidden])").get_text()  # type: ignore[union-attr]


def model_of(token: str) -> Any:
    """Return what the hub says of a token, the name of a user, of their server or of a service."""
    name = token.removeprefix("server-of-")
    scopes = ["access:services!service=gpus"]
    if token == name:
        scopes += [f"delete:servers!user={name}", f"read:users:groups!user={name}"]
    if name == "boss":
        scopes += ["delete:servers"]
    kind = "service" if name == "culler" else "user"
    return {"kind": kind, "name": name, "scopes": scopes, "admin": False, "groups": []}
