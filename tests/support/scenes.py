"""Three users in the middle of things, when something breaks: one runs, one starts, one waits."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests

from .hubs import PLAIN, WAITING, Hub, until, with_groups
from .looks import container_of, containers, free_gpus, labelled
from .queues import ask

# A plain server that answers once there is a file.
OPEN = "/tmp/open"
GATED = f"import os, time\nwhile not os.path.exists({OPEN!r}): time.sleep(0.02)\n{PLAIN}"

LINES = (
    WAITING,
    "c.GPUSpawner.poll_interval = 1",
    "c.GPUSpawner.client_kwargs = {'timeout': 2}",
    "c.GPUSpawner.nvml_timeout = 2",
    # Longer than a busy machine takes to set the scene.
    "c.GPUSpawner.http_timeout = 20",
    "c.JupyterHub.concurrent_spawn_limit = 0",
    "c.JupyterHub.tornado_settings = {'slow_spawn_timeout': 0}",
    "c.Spawner.consecutive_failure_limit = 0",
    with_groups({"gated": {"cmd": ["python", "-I", "-S", "-c", GATED]}}),
)
RUNS, STARTS, WAITS, COMES = "rita", "stan", "wade", "nell"


class Scene:
    """The users on a hub with `LINES` and four GPUs. One GPU is free, and kept by nobody.

    Args:
        hub: their hub.
        engine: a client of its engine.
        choice: what all of them choose besides GPUs.
    """

    def __init__(self, hub: Hub, engine: Any, **choice: Any) -> None:
        self.hub, self.engine = hub, engine
        hub.start_server(RUNS, {"gpus": 2, **choice})
        hub.add_to_group("gated", STARTS)
        hub.spawn(STARTS, {"gpus": 1, **choice})
        until(lambda: STARTS in labelled(engine), "its container runs", log=hub.log)
        found = {
            user: engine.inspect_container(container_of(engine, user)) for user in (RUNS, STARTS)
        }
        # On the host, the first process of the two containers; and where they are reached.
        self.pids = {user: int(each["State"]["Pid"]) for user, each in found.items()}
        self.addresses = {
            user: each["NetworkSettings"]["Networks"]["gpuspawner"]["IPAddress"]
            for user, each in found.items()
        }
        ask(hub, WAITS, {"gpus": 2, **choice})
        until(self.has_place, "who waits has a place", log=hub.log)
        self.held = labelled(engine)

    # -- what they see -------------------------------------------------------------------------

    def answers(self, user: str) -> bool:
        """Return whether a user's server answers through the proxy."""
        with suppress(requests.RequestException):
            got = requests.get(f"{self.hub.url}/user/{user}/api", timeout=5)
            return got.text == "plain"
        return False

    def told(self, user: str) -> str:
        """Return the last message of a user's progress page; "" where nothing is under way."""
        url = f"{self.hub.url}/hub/api/users/{user}/server/progress"
        last = ""
        with suppress(requests.RequestException), self.hub.stream(url, 1) as stream:
            for line in stream.iter_lines(chunk_size=1, decode_unicode=True):
                if line.startswith("data: "):
                    last = json.loads(line[6:]).get("message", "")
        return last

    def page(self, user: str) -> str:
        """Return the page on which a user whose server doesn't run would start one."""
        return self.hub.log_in(user).get(f"{self.hub.url}/hub/spawn/{user}").text

    def has_place(self) -> bool:
        """Return whether who waits reads a place in the queue."""
        return "next in line" in self.told(WAITS)

    # -- what they do --------------------------------------------------------------------------

    def let_start(self) -> None:
        """Have the server that starts answer; needs no engine."""
        Path(f"/proc/{self.pids[STARTS]}/root{OPEN}").touch()

    # -- how it has to end ---------------------------------------------------------------------

    def goes_on(self) -> None:
        """Who runs has the same GPUs, and a server that answers."""
        until(lambda: self.hub.ready(RUNS), "it is known to run", log=self.hub.log)
        until(lambda: self.answers(RUNS), "it answers", log=self.hub.log)
        assert labelled(self.engine)[RUNS] == self.held[RUNS]

    def has_started(self) -> None:
        """Who starts has a server, with the GPU of the start."""
        until(lambda: self.hub.ready(STARTS), "it has started", log=self.hub.log)
        until(lambda: self.answers(STARTS), "it answers", log=self.hub.log)
        assert labelled(self.engine)[STARTS] == self.held[STARTS]

    def start_failed(self, user: str = STARTS) -> str:
        """Who starts has no server and no container; return the reason."""
        last: list[Any] = []

        def failed() -> bool:
            last[:] = self.hub.progress(user)
            return bool(last) and bool(last[-1].get("failed"))

        until(failed, "the start has failed", log=self.hub.log)
        until(lambda: not self._containers_of(user), "nothing is left", log=self.hub.log)
        return str(last[-1]["message"])

    def waits_on(self) -> None:
        """Who waits has the place, and a server as soon as the GPUs are there."""
        until(self.has_place, "who waits has the place", log=self.hub.log)
        self.hub.stop_server(RUNS)
        self.is_served()

    def is_served(self) -> None:
        """Who waited has a server."""
        until(lambda: self.answers(WAITS), "who waited has a server", log=self.hub.log)
        assert len(labelled(self.engine)[WAITS]) == 2

    def has_ended(self, why: str) -> None:
        """Whose server ran has none any more, and reads why on the page to start one."""
        until(lambda: not self.hub.server(RUNS), "its end is noticed", log=self.hub.log)
        assert why in self.page(RUNS)

    def nothing_is_lost(self) -> None:
        """No GPU has two holders; once all have left, the next one gets all of them."""
        held = [uuid for uuids in labelled(self.engine).values() for uuid in uuids]
        assert len(held) == len({*held})
        self.hub.stop_all_servers()
        until(lambda: len(free_gpus()) == 4, "all GPUs are free", log=self.hub.log)
        until(lambda: containers(self.engine) == [], "no container is left", log=self.hub.log)
        until(lambda: not self._is_stopping(), "no stop is under way", log=self.hub.log)
        self.hub.start_server(COMES, {"gpus": 4})
        assert len(labelled(self.engine)[COMES]) == 4

    def _is_stopping(self) -> bool:
        users = (RUNS, STARTS, WAITS)
        return any(self.hub.server(user).get("pending") for user in users)

    def _containers_of(self, user: str) -> list[Any]:
        wanted = {"label": f"gpuspawner.user={user}"}
        found: list[Any] = self.engine.containers(all=True, filters=wanted)
        return found
