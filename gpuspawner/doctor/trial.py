"""Trial containers, which doctor starts to examine the machine from inside, and removes.

They are started as a server is: GPUs are reserved in the ledger, written on the container as a
lease and claimed before the start, so every hub on this engine counts them. Hubs show their holder
as `doctor`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import docker
import docker.errors

from ..backends.docker.backend import DockerBackend, UlimitRefused
from ..backends.docker.checked_client import leased
from ..backends.docker.container_config import refused_ulimit, with_log
from ..backends.docker.errors import UNREACHABLE, explain, explain_unknown
from ..backends.launch import launch
from ..backends.leftovers import Leftovers
from ..errors import GPUSpawnerError, StartAgain
from ..gpus.model import GPU, WHOLE, Holder, Request
from ..gpus.reader import Reader
from ..leases.labels import LABEL_HUB, labels
from ..leases.ledger import Ledger, Reservation
from ..scheduling.plan import QueuedRequest
from ..scheduling.queue import Queue, QueueSettings, RequestLimits
from .findings import Configuration, Context
from .own_volumes import OWN, remove_unused

log = logging.getLogger(__name__)

HOLDER = Holder("doctor")
# Not a hub's address, so that no hub takes the container for its server.
HUB = "gpuspawner doctor"
NVML_SECONDS = 15.0
# If doctor is killed, the container ends by itself, which frees its GPUs.
LIFETIME_SECONDS = 180
# The age from which a container that wasn't started is a killed doctor's.
STALE_SECONDS = 120
# Left out of a server's host config: what would outlive the container, publish its port, or need
# another container.
LEFT_OUT = {
    "AutoRemove",
    "Links",
    "PortBindings",
    "PublishAllPorts",
    "RestartPolicy",
    "VolumesFrom",
}

T = TypeVar("T")


class TrialError(GPUSpawnerError):
    """A trial container can't be created, started or examined. `str()` says why."""


class NoServer(GPUSpawnerError):
    """No container can be created with the configured settings. `str()` says where to look."""


@dataclass(frozen=True)
class TrialContainer:
    """A running trial container, with the GPUs of its lease."""

    client: docker.DockerClient
    container_id: str
    gpus: tuple[GPU, ...]
    # The ulimits that the engine isn't allowed to set.
    refused_ulimits: tuple[str, ...]

    def run(self, words: Sequence[str]) -> tuple[int, str]:
        """Run a program in it as its user; return the exit status and the output."""
        api = self.client.api
        made = api.exec_create(self.container_id, list(words))
        output = api.exec_start(made["Id"])
        status = api.exec_inspect(made["Id"])["ExitCode"]
        return int(status or 0), output.decode("utf-8", "replace").strip()


def run_trial(
    context: Context,
    gpus: int,
    look: Callable[[TrialContainer], T],
    network: str = "",
    kind: str = WHOLE,
) -> T:
    """Start a trial container, return the result of `look` for it, and remove it.

    Args:
        context: the results of earlier checks.
        gpus: how many GPUs it gets.
        look: examines the container.
        network: the name of its network; "": none.
        kind: the kind of its GPUs.

    Raises:
        errors.Refused: too few GPUs are free.
        errors.Unknown: NVML or the engine can't be read.
        NoServer: the configuration's servers can't be created.
        TrialError: the rest.
    """
    given = context.configuration
    if given and "error" in given.plan:
        raise NoServer("no server can be created: see Settings")
    try:
        request = Request("", gpus, kind=kind)
        return _run_until_signal(_start_and_examine(context, request, look, network))
    except UNREACHABLE as error:
        raise TrialError(explain(error)) from error


def _run_until_signal(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine; a signal that ends the program cancels it, but not the tasks it waits for.

    Without these handlers the event loop would cancel all tasks at its end, such as one that is
    creating a container.
    """
    if threading.current_thread() is not threading.main_thread():
        return asyncio.run(work)
    stopping = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }

    async def main() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        for number in stopping:
            loop.add_signal_handler(number, task.cancel)
        return await work

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        for number, handler in stopping.items():
            signal.signal(number, handler)


async def _start_and_examine(
    context: Context, request: Request, look: Callable[[TrialContainer], T], network: str
) -> T:
    client, given = context.engine, context.configuration
    assert client is not None
    backend = DockerBackend(lambda: client.api, log)
    reader = Reader(
        NVML_SECONDS,
        excluded=_value(given, "excluded_gpus") or (),
        memory_threshold_mib=(_value(given, "foreign_memory") or 0) >> 20 or None,
        shared=_value(given, "shared_gpus") or {},
    )
    ledger = Ledger(backend.list, reader, explain_unknown, read_notes=backend.notes)
    leftovers = Leftovers()
    settings = QueueSettings(
        policy=_value(given, "gpu_policy") or "pack",
        part_policy=_value(given, "shared_gpu_policy") or "spread",
    )
    queue = Queue(ledger, settings, backend.watch)
    trial = _Trial(context, request, network, queue, backend)
    await asyncio.to_thread(_remove_stale_containers, client)
    try:
        here = (await launch(trial, ledger, leftovers)).answer
        try:
            return await asyncio.to_thread(look, here)
        finally:
            leftovers.remove_later(trial.server_key, backend.remove, here.container_id)
    finally:
        # No task may outlive this: what ends the loop cancels it, and the container would stay.
        await asyncio.shield(asyncio.ensure_future(leftovers.wait_until_cleared(trial.server_key)))
        await asyncio.shield(asyncio.to_thread(remove_unused, client.api))
        backend.executor.shutdown(wait=False)


class _Trial:
    """A trial container as a `backends.launch.Launchable`, so that it starts as a server does."""

    def __init__(
        self,
        context: Context,
        request: Request,
        network: str,
        queue: Queue,
        backend: DockerBackend,
    ) -> None:
        self._context = context
        self._network = network
        self._queue = queue
        self._backend = backend
        assert context.trial_image is not None
        self._request = replace(request, image=context.trial_image[0])
        self._granted: Reservation | None = None

    @property
    def server_key(self) -> str:
        return HOLDER.user

    async def reserve_gpus(self) -> Reservation:
        if self._request.gpus == 0:
            self._granted = Reservation(HOLDER, ())
            return self._granted
        joining = QueuedRequest(HOLDER, self._request, self._queue.join_time())
        self._granted = await self._queue.wait(
            joining, RequestLimits(max_wait_seconds=0), lambda turn: None
        )
        return self._granted

    async def create_server(self, reservation: Reservation) -> str:
        way = await self._backend.way_to_gpus(
            _value(self._context.configuration, "gpu_injection") or "auto", reservation.uuids
        )
        wanted = _create_arguments(
            self._context,
            reservation,
            self._network,
            self._backend.refused_ulimits,
            by_cdi=way == "cdi",
        )
        return str((await self._backend.call("create_container", **wanted))["Id"])

    async def verify_server(self, server_id: str, reservation: Reservation) -> None:
        """Do nothing: doctor compares the container's GPUs with the lease from inside."""

    async def start_server(self, server_id: str) -> None:
        try:
            await self._backend.start(server_id)
        except docker.errors.APIError as error:
            refused = self._backend.refused_ulimits
            limit = refused_ulimit(error, set(_ulimits(self._context.configuration)) - refused)
            if limit is None:
                raise
            refused.add(limit)
            raise UlimitRefused(f"the engine may not set the limit {limit}") from error

    async def await_server(self, server_id: str) -> TrialContainer:
        assert self._context.engine is not None
        assert self._granted is not None
        refused = tuple(sorted(self._backend.refused_ulimits))
        return TrialContainer(self._context.engine, server_id, self._granted.gpus, refused)

    def discarder(self) -> Callable[[str], Awaitable[None]]:
        return self._backend.remove

    def on_retry(self, reason: StartAgain) -> None:
        log.debug("Starting it once more: %s", reason)


def _value(given: Configuration | None, name: str) -> Any:
    return given.spawner.get(name) if given else None


def _ulimits(given: Configuration | None) -> Mapping[str, int]:
    return _value(given, "ulimits") or {}


def _create_arguments(
    context: Context,
    reservation: Reservation,
    network: str,
    refused: Collection[str],
    *,
    by_cdi: bool,
) -> dict[str, Any]:
    """Return the arguments of the container: a server's, without what would outlive it."""
    client, given, image = context.engine, context.configuration, context.trial_image
    assert client is not None
    assert image is not None
    name = f"{OWN}{secrets.token_hex(4)}"
    plan = dict(given.plan.get("create") or {}) if given else {}
    host: dict[str, Any] = client.api.create_host_config(
        cap_drop=["ALL"], security_opt=["no-new-privileges"]
    )
    if plan:
        host = {key: each for key, each in plan["host_config"].items() if key not in LEFT_OUT}
        host |= _own_volumes(host, name, is_here=context.engine_is_here)
    host |= {"NetworkMode": network or "none", "AutoRemove": True}
    create = {
        **plan,
        "image": image[1],
        "entrypoint": ["sleep"],
        "command": [str(LIFETIME_SECONDS)],
        "name": name,
        "host_config": host,
    }
    create.pop("networking_config", None)
    driver = _value(given, "log_driver") or client.api.info().get("LoggingDriver") or ""
    create = with_log(create, driver, _value(given, "log_options") or {})
    return leased(
        create,
        labels={
            **labels(HOLDER, image[0], sorted(reservation.units), time.time() + LIFETIME_SECONDS),
            LABEL_HUB: HUB,
        },
        uuids=sorted(reservation.uuids),
        allowed_devices=_value(given, "allowed_devices") or (),
        by_cdi=by_cdi,
        shm_size=_value(given, "shm_size"),
        ulimits={n: v for n, v in _ulimits(given).items() if n not in refused},
    )


def _own_volumes(host: Mapping[str, Any], name: str, is_here: bool) -> dict[str, Any]:
    """Return a host config's mounts with doctor's own volumes in place of users' volumes.

    Folders of the host are mounted as they are. Missing ones aren't mounted, as the engine would
    create them.

    Args:
        host: the host config.
        name: the beginning of the volumes' names.
        is_here: whether the engine runs on this machine, so that its folders can be read.
    """

    def own(source: str, number: int) -> str | None:
        if not source.startswith("/"):
            return f"{name}-{number}"
        return source if is_here and Path(source).exists() else None

    binds, mounts = [], []
    bound = host.get("Binds") or []
    for number, bind in enumerate(bound):
        source, _, rest = str(bind).partition(":")
        if not rest:  # a path in the container, or nonsense, which the engine is to judge
            binds.append(bind)
        elif kept := own(source, number):
            binds.append(f"{kept}:{rest}")
    for number, mount in enumerate(host.get("Mounts") or [], len(bound)):
        if mount.get("Type") != "volume" or not mount.get("Source"):
            mounts.append(mount)
        else:
            mounts.append({**mount, "Source": own(mount["Source"], number)})
    return {"Binds": binds, "Mounts": mounts}


def _remove_stale_containers(client: docker.DockerClient) -> None:
    """Remove the containers of doctors that were killed.

    One that was created and not started would hold its GPUs for ever.
    """
    for left in client.api.containers(all=True, filters={"label": f"{LABEL_HUB}={HUB}"}):
        if left["State"] == "created" and time.time() - left["Created"] > STALE_SECONDS:
            # Not by force, so that one that was started meanwhile stays.
            with suppress(docker.errors.APIError):
                client.api.remove_container(left["Id"], v=True)
    remove_unused(client.api)
