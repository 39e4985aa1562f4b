"""The dashboard's service without a hub: who has which token, and what they may, is told here."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

from gpuspawner.dashboard import command
from gpuspawner.dashboard.login import Login

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
