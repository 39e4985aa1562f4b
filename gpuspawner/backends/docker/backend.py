"""Docker as a backend: servers are containers of one engine, leases are their labels."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import docker
import docker.errors
from docker.utils import kwargs_from_env

from ...errors import GPUSpawnerError, StartAgain
from ...gpus.health import HealthMark
from ...leases.clock import Deadline
from ...leases.labels import ServerRecord
from ...leases.ledger import SharedRead
from ...leases.notes import Notes
from ...leases.server_run import ServerRun
from ..base import Report
from ..leftovers import StaleServerReaper
from . import errors as engine_errors
from . import (
    extended_ends,
    health_marks,
    injection,
    notes,
    out_of_service,
    process_view,
    pull,
    runs,
    stopping,
)
from .deleted_volumes import DeletedVolumes
from .engine_client import EngineClient
from .engine_info import EngineInfo
from .events import EndWatcher
from .home_sizes import HomeSizes
from .listing import Listed, Listing
from .poll_interval import PollInterval
from .ulimit_trials import UlimitTrials
from .volumes import VolumeOwners

# How long an engine's devices are believed to be all that it has, in seconds, where it lacks one.
LOOK_AGAIN_SECONDS = 60
# How long a removal that is already in progress may take, in seconds.
REMOVAL_SECONDS = 30


class UlimitRefused(StartAgain):
    """The engine isn't allowed to set a ulimit; the next try does without it."""


def connect(tls_config: Mapping[str, Any], more: Mapping[str, Any]) -> docker.APIClient:
    """Return a client for the engine that the environment names, as DockerSpawner does.

    Args:
        tls_config: arguments of `docker.tls.TLSConfig`; empty: TLS as the environment says.
        more: further arguments of `docker.APIClient`, which override the environment.
    """
    tls = {"tls": docker.tls.TLSConfig(**tls_config)} if tls_config else {}
    return docker.APIClient(**{"version": "auto", **tls, **kwargs_from_env(), **more})


class DockerBackend(EngineClient):
    """One Docker Engine.

    Args:
        make_client: returns a `docker.APIClient`; called when the engine is first needed.
        log: a logger.
        keeps_stopped: whether a container that has stopped is to stay.
    """

    def __init__(
        self, make_client: Callable[[], Any], log: Any, keeps_stopped: bool = False
    ) -> None:
        super().__init__(make_client)
        self._log = log
        self._pulls = pull.Pulls()
        self._keeps_stopped = keeps_stopped
        self._listing = Listing()
        # The names of all containers that there were at the last listing.
        self.names: frozenset[str] = frozenset()
        # The volumes of the last notes.
        self._noted: Sequence[notes.Volume] = ()
        # Of many that stop at once, the engine lists all containers for all of them.
        self._servers = SharedRead(self.list)
        # Image -> what inspects it for all who ask.
        self._inspections: dict[str, SharedRead[Any]] = {}
        # Image -> when its last inspection began, by the monotonic clock, and the inspection.
        self._inspected: dict[str, tuple[float, Any]] = {}
        self._reaper = StaleServerReaper(self.remove_unstarted, log)
        self._info = EngineInfo(partial(self.call, "info"))
        # Of looking at the servers that start.
        self.poll_interval = PollInterval()
        self.volume_owners = VolumeOwners(lambda: self.client)
        self.home_sizes = HomeSizes(lambda: self.client, self.in_thread, log)
        # Whether containers' processes can be seen from here; None: not known yet.
        self._sees_processes: bool | None = None
        # Whether the engine has refused to limit the size of a volume.
        self.has_no_quotas = False
        self.deleted_volumes = DeletedVolumes(lambda: self.client, self.in_thread, log)
        # The ulimits that this engine isn't allowed to set, by name, and the starts that find out.
        self.refused_ulimits: set[str] = set()
        self.ulimit_trials = UlimitTrials()

    # -- Backend -----------------------------------------------------------------------------

    async def list(self) -> Sequence[ServerRecord]:
        """Return every container with a lease's labels, and what else runs with GPUs."""
        # From before the containers: what has an end is there.
        noted = self._noted
        listed, outdated = await self.in_thread(self._list, noted)
        self.names = listed.names
        if outdated and noted is self._noted:
            self._noted = [each for each in noted if each["Name"] not in outdated]
        servers: Sequence[ServerRecord] = listed.servers
        self._reaper.reap(servers)
        return servers

    def _list(self, noted: Sequence[notes.Volume]) -> tuple[Listed, Sequence[str]]:
        """List the containers, and forget the ends of those that are gone; return the forgotten."""
        listed = self._listing.list(self.client)
        outdated = extended_ends.of_others_than(noted, listed.ids)
        with suppress(*engine_errors.UNREACHABLE):  # else with the next one
            extended_ends.forget(self.client, outdated)
            return listed, outdated
        return listed, ()

    async def notes(self) -> Notes:
        """Return which GPUs are out of service, and the ends of leases that were extended."""
        noted: Sequence[notes.Volume] = await self.in_thread(lambda: notes.list_notes(self.client))
        self._noted = noted
        return notes.parse(noted)

    async def start(self, server_id: str) -> None:
        """Start a container."""
        await self.call("start", server_id)

    async def remove(self, server_id: str) -> None:
        """Remove a container, running or not, and wait until it is gone."""
        await remove(self.call, server_id)

    async def stop(self, server_id: str) -> None:
        """Stop a container, which has its time to save; remove it."""
        try:
            await self.stop_container(server_id)
        except docker.errors.NotFound:
            return
        if not self._keeps_stopped:
            await self.remove(server_id)

    async def remove_unstarted(self, server_id: str) -> None:
        """Remove a container unless it runs: without force, so one that was started stays."""
        await self.call("remove_container", server_id, v=True)

    @property
    def divides_gpus(self) -> bool:
        """Whether a GPU is handed out whole and in slots in turn: a container names its GPUs."""
        return True

    @property
    def sees_processes(self) -> bool:
        """Whether containers' processes can be seen from here."""
        if self._sees_processes is None:
            with suppress(OSError):  # the engine is away: asked again the next time
                self._sees_processes = process_view.sees_processes(self.client)
        return bool(self._sees_processes)

    async def signal_inside(self, server_id: str, pid: int, number: int) -> None:
        """Send a signal to a process in a container, as the container's own user."""
        words = ["sh", "-c", f"kill -{int(number)} {int(pid)}"]
        job = await self.call("exec_create", server_id, words)
        said = await self.call("exec_start", job["Id"])
        code = (await self.call("exec_inspect", job["Id"]))["ExitCode"]
        if code:
            raise GPUSpawnerError(f"{words[-1]}: exit status {code}, {said!r:.200}")

    async def keep_end(self, server_id: str, end: Deadline) -> None:
        """Keep until when a container's lease was extended, for as long as it is there."""
        await self.in_thread(lambda: extended_ends.keep(self.client, server_id, end))

    async def runs(self, server_ids: Collection[str]) -> Mapping[str, ServerRun]:
        """Return when containers ran, of those that are gone as far as the engine remembers."""
        return await self.in_thread(lambda: runs.read(self.client, server_ids, time.time()))

    def watch(self, notice: Callable[[], None]) -> EndWatcher:
        """Return a watcher that calls `notice` when a container may have ended."""
        return EndWatcher(self.client, notice, self._info.forget)

    async def take_out_of_service(self, uuid: str, by: str, why: str) -> None:
        """Mark a GPU as out of service, by an empty volume."""
        await self.in_thread(lambda: out_of_service.take_out(self.client, uuid, by, why))

    async def put_into_service(self, uuid: str) -> None:
        """Remove a GPU's mark."""
        await self.in_thread(lambda: out_of_service.put_back(self.client, uuid))

    async def keep_health_mark(self, mark: HealthMark) -> None:
        """Keep a mark of a GPU's health, by an empty volume."""
        await self.in_thread(lambda: health_marks.keep(self.client, mark))

    async def end_health_mark(self, mark: HealthMark) -> None:
        """Remove a mark of a GPU's health."""
        await self.in_thread(lambda: health_marks.end(self.client, mark))

    async def forget_lifted(self, uuid: str, cause: str) -> None:
        """Forget that an administrator has lifted a cause."""
        await self.in_thread(lambda: health_marks.forget_lifted(self.client, uuid, cause))

    async def has_image(self, image: str) -> bool:
        """Return whether the engine has an image; True if that can't be determined."""
        try:
            await self.inspect_image(image)
        except docker.errors.NotFound:
            return False
        except engine_errors.UNREACHABLE:
            pass
        return True

    async def pull(self, image: str, policy: str, report: Report) -> None:
        """Pull an image if the policy requires it.

        Args:
            image: the image reference.
            policy: DockerSpawner's `pull_policy`.
            report: called with the progress.

        Raises:
            pull.PullFailed: the image can't be pulled.
        """

        def stream(repository: str, tag: str) -> Any:
            self.client.reload_config()  # the administrator may have logged in to the registry
            return self.client.pull(repository, tag=tag, stream=True, decode=True)

        await self._pulls.ensure(image, policy, self.inspect_image, stream, report)
        if policy == "always":  # else it was inspected, or wasn't there
            self._inspected.pop(image, None)

    # -- Docker only -----------------------------------------------------------------------------

    async def stop_container(self, container_id: str) -> None:
        """Stop a container, which has its time to save, and leave it there.

        Raises:
            docker.errors.NotFound: there is none.
        """
        await stopping.stop(self.call, self._servers, container_id)

    async def inspect_image(self, image: str, max_age: float = 0.0) -> Any:
        """Return an inspection of an image; of many that start at once, the engine makes two.

        Args:
            image: the image reference.
            max_age: how old it may be, in seconds.

        Raises:
            docker.errors.NotFound: there is none.
        """
        at, known = self._inspected.get(image, (-math.inf, None))
        if time.monotonic() - at < max_age:
            return known
        if image not in self._inspections:
            self._inspections[image] = SharedRead(partial(self._inspect_image, image))
        return await self._inspections[image]()

    async def _inspect_image(self, image: str) -> Any:
        self._inspected.pop(image, None)
        began = time.monotonic()
        found = await self.call("inspect_image", image)
        self._inspected[image] = began, found
        return found

    async def default_log_driver(self) -> str:
        """Return the engine's default log driver; "" if unknown."""
        with suppress(*engine_errors.UNREACHABLE):  # creating the container will fail, too
            return (await self._info.get()).get("LoggingDriver") or ""
        return ""

    async def way_to_gpus(
        self, wanted: str, uuids: Collection[str], *, anew: bool = False
    ) -> injection.Way:
        """Return the way in which a container is to be given GPUs.

        Args:
            wanted: the trait `gpu_injection`.
            uuids: the GPUs' UUIDs; may be empty.
            anew: ask the engine again, as it may have been restarted or set up anew.

        Raises:
            injection.NoCDI: only CDI is wanted, and the engine can't give these GPUs by it.
        """
        if wanted == "hook" or not uuids:
            return "hook"
        if anew:
            self._info.forget()
        try:
            cdi = await self._cdi()
            if cdi.is_on and cdi.devices is not None and cdi.lacks(uuids):
                # A specification is read anew without a restart of the engine, and a moment after
                # one. Nobody is refused for what the engine has said before.
                cdi = await self._cdi(0 if wanted == "cdi" else LOOK_AGAIN_SECONDS)
        except engine_errors.UNREACHABLE:
            # Creating the container will fail, too, or only this question isn't allowed.
            return "cdi" if wanted == "cdi" else "hook"
        return injection.choose(wanted, cdi, uuids)

    async def _cdi(self, max_age: float = math.inf) -> injection.EngineCDI:
        info = await self._info.get(max_age)
        return injection.cdi_of(info, str(getattr(self.client, "api_version", "")))


async def remove(call: Callable[..., Any], container_id: str) -> None:
    """Remove a container, running or not, and wait until it is gone.

    Args:
        call: calls a method of the engine's client: `await call(method, *args)`.
        container_id: the container's id.

    Raises:
        docker.errors.APIError: the engine refuses, or a removal in progress takes too long.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + REMOVAL_SECONDS
    while True:
        try:
            await call("remove_container", container_id, force=True, v=True)
        except docker.errors.NotFound:
            return
        except docker.errors.APIError as error:
            if error.status_code != 409 or loop.time() > deadline:  # 409: it is being removed
                raise
            await asyncio.sleep(0.05)
