"""DockerSpawner's calls of the engine, with leases in them, and which containers are whose."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

import docker.errors

from .backends.docker import cleanup, pull
from .backends.docker import errors as engine_errors
from .backends.docker.container_config import with_lease, with_log
from .backends.docker.events import Endings
from .gpus import out_of_service
from .gpus.model import Holder, Request
from .gpus.reader import Reader
from .hub import http_errors, metrics
from .hub.control_socket import ControlSocket
from .hub.progress import Steps
from .i18n.languages import translations
from .images.local_images import LocalImages
from .leases.labels import (
    LABEL_GPUS,
    LABEL_HUB,
    LABEL_SERVER,
    LABEL_SETTINGS,
    LABEL_USER,
    belongs_to,
    labels,
)
from .leases.ledger import Ledger, Reservation
from .leases.reclaimer import Reclaimer
from .scheduling.queue import Queue, QueueSettings
from .settings import DOCKER_THREADS, GPUSettings


@dataclass(frozen=True)
class Host:
    """What there is once per host: who holds what, who waits, and what looks after ends."""

    ledger: Ledger
    queue: Queue
    reclaimer: Reclaimer
    metrics: metrics.HostMetrics
    local_images: LocalImages
    # Held here, since the event loop itself holds tasks only weakly.
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class LeasingSpawner(GPUSettings):
    """What `GPUSpawner` knows of the engine; how a server starts and stops is not here."""

    _executor: ClassVar[ThreadPoolExecutor | None] = None
    _shared: ClassVar[tuple[Any, Host] | None] = None
    _refused_limits: ClassVar[set[str]] = set()
    _reaper: ClassVar[cleanup.StaleContainerReaper] = cleanup.StaleContainerReaper()
    _pulls: ClassVar[pull.Pulls] = pull.Pulls()
    _log_driver: ClassVar[str] = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._steps = Steps(translations)
        self._request: Request | None = None
        self._reservation: Reservation | None = None
        # Whether a container is only planned, to see what it would be created with.
        self._planning = False
        if self.user and self.hub:
            # Pages may ask the hub who waits before anybody has asked for a server.
            with suppress(RuntimeError):  # no event loop: the hub's own command line
                _ = self.shared

    @property
    def executor(self) -> ThreadPoolExecutor:
        """The threads for the engine's calls, so that a slow stop or pull holds up nobody."""
        if LeasingSpawner._executor is None:
            LeasingSpawner._executor = ThreadPoolExecutor(
                DOCKER_THREADS, thread_name_prefix="docker"
            )
        return LeasingSpawner._executor

    def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return asyncio.get_running_loop().run_in_executor(self.executor, function, *args)

    @property
    def holder(self) -> Holder:
        """This server, as the holder of its GPUs."""
        return Holder(self.user.name, self.name) if self.user else Holder("")

    @property
    def _hub_address(self) -> str:
        return self.hub.api_url if self.hub else ""

    @property
    def shared(self) -> Host:
        """What all spawners of this process share: the engine's host, its ledger and its queue."""
        loop = asyncio.get_running_loop()
        if LeasingSpawner._shared is None or LeasingSpawner._shared[0] is not loop:
            survey: dict[str, Any] = {
                "excluded": self.excluded_gpus,
                "memory_threshold_mib": (self.foreign_memory or 0) >> 20 or None,
            }
            surveyor = out_of_service.InServiceReader(
                Reader(self.nvml_timeout, **survey), self._list_volumes
            )
            ledger = Ledger(self._list_containers, surveyor, _explain_unknown, self._hub_address)
            rules = QueueSettings(self.queue_order, self.gpu_policy, self.queue_length)
            queue = Queue(ledger, rules, lambda notice: Endings(self.client, notice))
            host = Host(
                ledger,
                queue,
                Reclaimer(ledger, self._servers_with_gpus, self.log),
                metrics.HostMetrics(ledger, queue, loop),
                LocalImages(self._inspect_image),
            )
            if LeasingSpawner._shared:
                LeasingSpawner._shared[1].metrics.unregister()
            host.metrics.register()
            LeasingSpawner._shared = (loop, host)
            if self.control_socket:
                control = ControlSocket(
                    self.control_socket, queue, self._servers_with_gpus, self.log, survey
                )
                host.tasks.append(loop.create_task(control.begin()))
        return LeasingSpawner._shared[1]

    @property
    def ledger(self) -> Ledger:
        """Who holds what on the engine's host."""
        return self.shared.ledger

    @classmethod
    def _servers_with_gpus(cls) -> list[Any]:
        return []

    async def _list_volumes(self) -> dict[str, Any]:
        return await self.docker("volumes", filters=out_of_service.FILTER)

    async def _list_containers(self) -> Sequence[dict[str, Any]]:
        found = await self.docker("containers", all=True, filters={"label": LABEL_GPUS})
        self._reaper.reap(self.docker, found, self.log)
        return found

    def docker(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call the engine in a thread. What creates our container gets its lease here, last.

        Anywhere earlier, the administrator's extras could undo it, and `str.format` would read the
        user's name.
        """
        if method == "create_container" and kwargs.get("name") == self.object_name:
            return asyncio.ensure_future(self._create(self._with_lease(kwargs), self._planning))
        return super().docker(method, *args, **kwargs)

    async def _create(self, leased: dict[str, Any], planning: bool) -> Any:
        driver = self.log_driver or await self._engines_log_driver()
        leased = with_log(leased, driver, self.log_options)
        leased["labels"][LABEL_SETTINGS] = cleanup.fingerprint(leased)
        return leased if planning else await super().docker("create_container", **leased)

    async def _engines_log_driver(self) -> str:
        if not LeasingSpawner._log_driver:
            with suppress(*engine_errors.UNREACHABLE):  # creating will fail as well, and say why
                LeasingSpawner._log_driver = (await self.docker("info")).get("LoggingDriver") or ""
        return LeasingSpawner._log_driver

    async def _inspect_image(self, reference: str) -> Any:
        return await self.docker("inspect_image", reference)

    async def _get_image(self, image: str) -> None:
        def stream(repository: str, tag: str) -> Any:
            self.client.reload_config()  # somebody may have logged in meanwhile
            return self.client.pull(repository, tag=tag, stream=True, decode=True)

        def report(fraction: float, words: str) -> None:
            self._steps.say(5 + int(55 * fraction), words, about="image")

        try:
            await self._pulls.ensure(image, self.pull_policy, self._inspect_image, stream, report)
        except pull.PullFailed as error:
            self.log.error("%s %s", error, error.said)
            raise http_errors.failure(str(error)) from error

    async def get_object(self) -> Any:
        """Inspect this server's container; None where there is none, or its name is another's.

        Two hubs on one engine may both have a user of this name, and JupyterHub 5 servers "A" and
        "a". What isn't ours must neither be taken for this server nor stopped with it.
        """
        try:
            found = await self.docker("inspect_container", self.object_name)
        except docker.errors.NotFound:
            self.object_id = ""
            return None
        labels_of = found["Config"]["Labels"]
        if found["Id"] == self.container_id or belongs_to(
            labels_of, self.holder, self._hub_address
        ):
            self.object_id = found["Id"]
            return found
        self.log.warning("Container %s is another hub's or server's", self.object_name)
        self.object_id = ""
        return None

    async def poll(self) -> Any:
        """Return None while the server runs, and while nobody can tell: unknown isn't stopped."""
        try:
            return await super().poll()
        except engine_errors.UNREACHABLE as error:
            self.log.warning("Whether %s runs isn't known: %s", self._log_name, error)
            return None

    async def _own_containers(self) -> list[Any]:
        """List this server's containers by their labels, whatever their names."""
        whose = {**labels(self.holder, "", ()), LABEL_HUB: self._hub_address}
        wanted = [f"{label}={whose[label]}" for label in (LABEL_USER, LABEL_SERVER, LABEL_HUB)]
        return await self.docker("containers", all=True, filters={"label": wanted})

    def _with_lease(self, create_kwargs: dict[str, Any]) -> dict[str, Any]:
        held = self._reservation
        uuids = [gpu.uuid for gpu in held.gpus if gpu.uuid] if held else []
        key = self._request.image if self._request else self.image
        refused = LeasingSpawner._refused_limits
        return with_lease(
            create_kwargs,
            labels={
                **labels(self.holder, key, uuids, held.until if held else None, self._groups()),
                LABEL_HUB: self._hub_address,
            },
            uuids=uuids,
            shm_size=self.shm_size,
            ulimits={n: v for n, v in self.ulimits.items() if n not in refused},
        )


def _explain_unknown(error: Exception) -> str:
    metrics.could_not_read(error)
    return engine_errors.explain_unknown(error)
