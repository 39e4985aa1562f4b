"""An example user for whom doctor plans a server, since traits may be functions of the spawner."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import docker
from jupyterhub import orm
from jupyterhub.app import JupyterHub
from jupyterhub.objects import Hub
from jupyterhub.user import User
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from traitlets.config import Config

from ..backends.docker.checked_client import CheckedClient
from ..backends.docker.errors import Misconfigured, on_one_line
from ..untrusted import parse_json
from .findings import NAME

# The API version of Docker 20.10, the oldest supported engine.
API_VERSION = "1.41"


def arguments(hub: JupyterHub, place: Hub) -> dict[str, Any]:
    """Return the arguments with which a hub creates this user's spawner, without `config`.

    Args:
        hub: the hub's application, which isn't started.
        place: the hub's address.
    """
    settings = {"hub": place, "base_url": hub.base_url, "config": Config()}
    user = User(orm.User.find(_database(), NAME), settings)
    return {
        "user": user,
        "orm_spawner": user.orm_spawners[""],
        "hub": place,
        "oauth_client_id": f"jupyterhub-user-{NAME}",
    }


@cache
def _database() -> Session:
    """Return a hub's database in memory, with only this user."""
    database = create_engine("sqlite://")
    orm.Base.metadata.create_all(database)
    db = Session(database)
    db.add(orm.User(name=NAME))
    db.commit()
    return db


def returned(function: Callable[[Any], Any], spawner: Any) -> Mapping[str, Any] | None:
    """Return what a trait that is a function returns for this user, as JSON; None if that fails.

    Args:
        function: `extra_host_config` or `extra_create_kwargs`, which may be a coroutine function.
        spawner: this user's.
    """

    async def call() -> Any:
        found = function(spawner)
        return await found if inspect.isawaitable(found) else found

    try:
        found = asyncio.run(call())
    except Exception:  # of the administrator's, which `plan` tells of
        return None
    return found if isinstance(found, Mapping) else None


def plan(cls: Any, config: Config, given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with which this user's container would be created.

    Args:
        cls: the spawner class.
        config: the configuration.
        given: the result of `arguments`.

    Returns:
        "create": docker-py's arguments, without the environment, which may have secrets; or
        "error" and "setting": docker-py's message and the trait at fault; or "unknown": why they
        can't be determined. {} for a class that isn't a `GPUSpawner`.
    """
    if not hasattr(cls, "plan"):
        return {}
    try:
        spawner = _without_engine(cls)(config=config, **given)
        # Else DockerSpawner would ask the engine for the image's command.
        spawner.cmd = spawner.cmd or ["jupyterhub-singleuser"]
        create = asyncio.run(spawner.plan())
        return {"create": parse_json(json.dumps({**create, "environment": {}}))}
    except Misconfigured as error:
        return {"error": error.words, "setting": error.setting}
    except Exception as error:  # of a function of the administrator's, or of a class of theirs
        return {"unknown": f"{type(error).__name__}: {on_one_line(error)}"}


def _without_engine(cls: Any) -> Callable[..., Any]:
    """Return a subclass of a spawner class that uses no engine."""
    client = docker.APIClient(base_url="unix:///nowhere", version=API_VERSION)

    def checked(self: Any) -> CheckedClient:
        return CheckedClient(client, self.extra_host_config, self.extra_create_kwargs)

    others = {"client": property(checked), "executor": ThreadPoolExecutor(1)}
    return type(cls.__name__, (cls,), others)
