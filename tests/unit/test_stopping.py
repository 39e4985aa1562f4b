"""How a container is stopped that has time to save: what the engine is asked, and when."""

from __future__ import annotations

import asyncio
from typing import Any

import docker.errors
import pytest

from gpuspawner.backends.docker import stopping
from gpuspawner.leases.labels import ServerRecord


class Engine:
    """Containers by their ids, and what the engine was asked.

    Args:
        looks: how many looks a container is seen to run after it was told to end; None: for ever.
    """

    def __init__(self, *, looks: int | None = 0, env: tuple[str, ...] = (), **config: Any) -> None:
        self.config = {"Env": list(env), **config}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._looks = looks

    async def call(self, method: str, server_id: str, **how: Any) -> Any:
        if method == "inspect_container":
            return {"Config": self.config}
        self.asked.append((method, how))
        return None

    async def servers(self) -> list[ServerRecord]:
        if self._looks is None or self._looks > 0:
            self._looks = None if self._looks is None else self._looks - 1
            return [ServerRecord("one", {}), ServerRecord("other", {})]
        return [ServerRecord("one", {}, state="ended"), ServerRecord("other", {})]

    def stop(self) -> list[tuple[str, dict[str, Any]]]:
        asyncio.run(stopping.stop(self.call, self.servers, "one"))
        return self.asked


TOLD = ("kill", {"signal": "SIGTERM"})
BY_FORCE = ("stop", {"timeout": stopping.LAST_SECONDS})


def test_a_container_that_ends_in_its_time_isn_t_ended_by_force() -> None:
    assert Engine(looks=3, env=("GPUSPAWNER_STOP_GRACE=60",)).stop() == [TOLD]


def test_one_that_doesn_t_is() -> None:
    assert Engine(looks=None, env=("GPUSPAWNER_STOP_GRACE=0.2",)).stop() == [TOLD, BY_FORCE]
    assert Engine(looks=None, env=("GPUSPAWNER_STOP_GRACE=0",)).stop() == [TOLD, BY_FORCE]


@pytest.mark.parametrize("env", [(), ("GPUSPAWNER_STOP_GRACE=soon",), ("GPUSPAWNER_STOP_GRACE",)])
def test_one_that_doesn_t_say_how_long_has_the_engines_time(env: tuple[str, ...]) -> None:
    assert Engine(env=env).stop() == [("stop", {})]


def test_an_image_says_which_signal_ends_it_and_how_long_it_takes() -> None:
    # ref: STOPSIGNAL in Dockerfiles, and docker run --stop-timeout.
    env = ("GPUSPAWNER_STOP_GRACE=0",)
    engine = Engine(looks=4, env=env, StopSignal="SIGINT", StopTimeout=30)
    assert engine.stop() == [("kill", {"signal": "SIGINT"})]


def test_an_engine_that_is_away_for_a_moment_is_asked_again() -> None:
    engine = Engine(looks=1, env=("GPUSPAWNER_STOP_GRACE=60",))
    listing, away = engine.servers, [ConnectionError(), docker.errors.DockerException()]

    async def servers() -> list[ServerRecord]:
        if away:
            raise away.pop()
        return await listing()

    engine.servers = servers  # type: ignore[method-assign]
    assert engine.stop() == [TOLD]


def test_one_that_doesn_t_run_is_stopped_as_ever() -> None:
    engine = Engine(env=("GPUSPAWNER_STOP_GRACE=60",))
    call = engine.call

    async def refuse(method: str, server_id: str, **how: Any) -> Any:
        if method == "kill":
            raise docker.errors.APIError("it is not running")
        return await call(method, server_id, **how)

    engine.call = refuse  # type: ignore[method-assign]
    assert engine.stop() == [BY_FORCE]
