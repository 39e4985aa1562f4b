"""Who may do what on the dashboard, before anybody else is asked."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpuspawner.dashboard.actions import Actions
from gpuspawner.dashboard.facts import Person
from gpuspawner.dashboard.handlers import Handler
from gpuspawner.dashboard.monitor import Monitor, Snapshot
from gpuspawner.errors import Refused

from ..support.boards import ADA, BOSS, gpu, picture

# One that holds no user's name is a service's.
SERVICE = Person("")


@pytest.mark.parametrize(
    ("model", "person"),
    [
        ({"kind": "user", "name": "ada", "scopes": ["delete:servers!user=ada"]}, ADA),
        ({"kind": "user", "name": "ada", "scopes": ["delete:servers!group=lab"]}, ADA),
        ({"kind": "user", "name": "ada"}, ADA),
        ({"kind": "user", "name": "boss", "scopes": ["delete:servers"]}, BOSS),
        ({"kind": "service", "name": "ada", "scopes": ["read:users"]}, SERVICE),
    ],
)
def test_who_may_stop_everybody_s_servers_is_an_administrator_and_a_service_is_no_user(
    model: dict[str, Any], person: Person
) -> None:
    asked = SimpleNamespace(current_user=model, _names="administrators")
    assert Handler.person.fget(asked) == person


async def nothing(history: Any) -> None:
    """Sample nothing."""


def actions(folder: Path) -> Actions:
    """Return what can be done where there is one GPU, and no hub answers."""

    async def look(*_: Any) -> Snapshot:
        return replace(picture(gpu(0)), tried_at=time.monotonic())

    return Actions(Monitor(look, nothing), str(folder / "none.sock"), "http://127.0.0.1:1/hub/api")


@pytest.mark.parametrize("person", [Person("eve"), Person("adam"), Person("Ada"), SERVICE])
async def test_nobody_does_anything_to_somebody_else_s_server(
    tmp_path: Path, person: Person
) -> None:
    may = actions(tmp_path)
    for asked in (
        may.extend(person, "ada", ""),
        may.keep_alive(person, "ada", ""),
        may.leave(person, "token", "ada", ""),
        may.ask_for_gpus(person, "ada", "", 1, "", ""),
        may.withdraw(person, "ada", ""),
        may.switch(person, "ada", ""),
        may.give_back(person, "ada", ""),
    ):
        with pytest.raises(Refused, match="This is somebody else's server") as refused:
            await asked
        assert refused.value.status == 403


@pytest.mark.parametrize("person", [ADA, BOSS])
async def test_the_hub_is_asked_for_its_user_and_for_an_administrator(
    tmp_path: Path, person: Person
) -> None:
    may = actions(tmp_path)
    for asked in (
        may.extend(person, "ada", ""),
        may.keep_alive(person, "ada", ""),
        may.ask_for_gpus(person, "ada", "", None, "", ""),
        may.switch(person, "ada", ""),
        may.give_back(person, "ada", ""),
    ):
        with pytest.raises(Refused, match="JupyterHub doesn't answer"):
            await asked


@pytest.mark.parametrize("person", [ADA, SERVICE])
async def test_only_an_administrator_takes_gpus_out_of_service_and_stops_for_a_reason(
    tmp_path: Path, person: Person
) -> None:
    may = actions(tmp_path)
    for asked in (
        may.take_out(person, "GPU-none", "mine"),
        may.put_back(person, "GPU-none"),
        may.stop(person, "token", "ada", "", why="because"),
        may.stop(person, "token", "ada", "", minutes=10),
        may.keep(person, "ada", ""),
    ):
        with pytest.raises(Refused, match="Only an administrator can do that"):
            await asked
    for asked in (may.take_out(BOSS, "GPU-none", "fan"), may.put_back(BOSS, "GPU-none")):
        with pytest.raises(Refused, match="This machine has no such GPU"):
            await asked
    with pytest.raises(Refused, match="The reason is too long: at most 200 characters") as refused:
        await may.take_out(BOSS, "GPU-0", "x" * 201)
    assert (refused.value.status, refused.value.key) == (400, "why")
