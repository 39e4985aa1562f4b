"""GPUSpawner: a DockerSpawner whose servers see exactly the GPUs they were granted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import docker.errors
from jupyterhub.utils import maybe_future, url_path_join
from tornado import web

from .backends.docker import errors as engine_errors
from .backends.docker import runs
from .backends.docker.backend import DockerBackend, UlimitRefused, connect
from .backends.docker.checked_client import leased
from .backends.docker.container_config import (
    can_resume,
    fingerprint,
    is_kept_of_another,
    refused_ulimit,
    removed_by_hub,
    with_kept_folders,
    with_log,
)
from .backends.docker.device_requests import are_by_cdi, granted_uuids
from .backends.docker.injection import InjectionChanged
from .backends.docker.network import NetworkError, is_cut_off, restore_network
from .backends.docker.readiness import QUICK_START, Output, wait_until_answering
from .backends.docker.set_aside import FirstVolume, Listing
from .backends.docker.stopping import GRACE
from .backends.docker.ulimit_trials import UlimitTrial
from .backends.docker.user_volumes import FoundVolumes, UserVolumes
from .backends.docker.volumes import Volume
from .choices.home_use import HomeUse
from .configured_container import ConfiguredContainer, answer, is_planning
from .errors import GPUSpawnerError, StartAgain
from .gpus.model import Request
from .hub import compat, http_errors
from .i18n.lazy_text import lazy_gettext
from .leases.audit_log import one_line
from .leases.labels import (
    LABEL_HUB,
    LABEL_SERVER,
    LABEL_SETTINGS,
    LABEL_USER,
    ServerRecord,
    belongs_to,
    labels,
    lease_of,
)
from .leases.ledger import Reservation
from .leases.server_run import ServerRun
from .spawn_attempt import SpawnAttempt

T = TypeVar("T")

# Whether a call of "create_container" creates the container of a lease, and not e.g. a subclass's.
_creating: ContextVar[bool] = ContextVar("creating", default=False)
# The inspection of a container that is in place of a new one.
_inspected: ContextVar[Any] = ContextVar("inspected", default=None)


# Says in a server that something limits its user's files, and how many bytes they may take.
HOME_SIZE = "GPUSPAWNER_HOME_SIZE"
# Sockets and the like of a running server: off the home, which may be full, or hold another's.
RUNTIME = {"JUPYTER_RUNTIME_DIR": "/tmp/jupyter-runtime"}  # noqa: S108 - a container's own
# How old an image's inspection may be of which a container's command is taken, in seconds.
IMAGE_SECONDS = 1.0
# How long until a starting container is looked at again whose output can't be followed any more.
LOOK_AGAIN_SECONDS = 1.0


class NetworkMissing(StartAgain):
    """The servers' network had been removed; the next try finds it again."""


@contextmanager
def _with(variable: ContextVar[T], value: T) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


async def _do_nothing(server_id: str) -> None:
    """Don't remove a container."""


@dataclass(eq=False)
class ContainerAttempt(SpawnAttempt):
    """The state of one spawn of a container.

    Args:
        resumed: the inspection of the stopped container to start again; None: a new one is created.
        volumes: which of its volumes there were before the container.
        inspected: the inspection of the container between its creation and its start.
        output: the container's output until the server is ready.
        found: the inspection by which a hub that starts has found that the server runs, until it
            asks for its URL.
        state: the container's state when it was last inspected; empty if it was gone.
        memory: its limit of memory, in bytes; 0: none, or it was never seen.
        is_cut_off: whether it was on the servers' network no more, when it was last inspected.
        ip: its address, once this start has found it out.
        ulimit_trial: set if this start finds out which ulimits the engine may set.
    """

    resumed: Any = None
    volumes: FoundVolumes = field(default_factory=lambda: FoundVolumes(Listing(), {}))
    inspected: Any = None
    output: Output | None = None
    found: Any = None
    state: Mapping[str, Any] = field(default_factory=dict)
    memory: int = 0
    is_cut_off: bool = False
    ip: str = ""
    ulimit_trial: UlimitTrial | None = None


class GPUSpawner(ConfiguredContainer):
    """DockerSpawner whose containers see exactly the GPUs that their servers were granted."""

    attempt: ContainerAttempt
    # The name of its container, as of its last inspection, if another spawner made it and keeps it
    # when it is stopped; else "".
    _kept_of_another = ""

    @cached_property
    def user_volumes(self) -> UserVolumes:
        """The server's volumes. Traits that are functions may need them before `__init__` ends."""
        return UserVolumes(self)

    def new_attempt(self) -> ContainerAttempt:
        """Return the state of a new spawn."""
        return ContainerAttempt()

    # -- DockerSpawner's engine, shared by all servers of a hub ----------------------------------

    def make_backend(self) -> DockerBackend:
        """Make the backend for the engine that the configuration names."""
        tls, more = dict(self.tls_config), dict(self.client_kwargs)
        return DockerBackend(lambda: connect(tls, more), self.log, not self.remove)

    @property
    def backend(self) -> DockerBackend:
        """The backend, one Docker Engine."""
        backend = self.hub_state.backend
        assert isinstance(backend, DockerBackend)
        return backend

    def explain(self, error: BaseException) -> str:
        """Return what an error of the engine means, as a sentence for users."""
        return engine_errors.explain(error)

    def explain_unknown(self, error: BaseException) -> str:
        """Return why the nodes or leases couldn't be read, as a sentence for users."""
        return engine_errors.explain_unknown(error)

    # -- The container ---------------------------------------------------------------------------

    def mounted_volumes(self) -> list[Volume]:
        """Return the volumes that are mounted."""
        return self.user_volumes.mounted(self.attempt.volumes)

    def home_use(self, allowed: int | None) -> HomeUse | None:
        """Return how much the user keeps at home, at once; None where that isn't known."""
        return self.user_volumes.home_use(allowed)

    def home_facts(self) -> dict[str, Any] | None:
        """Return the same as a JSON value, for a server that runs."""
        return self.user_volumes.home_facts()

    async def delete_forever(self) -> None:
        """Have nobody find the volumes of a user who is deleted, or of a server that is removed."""
        await maybe_future(super().delete_forever())
        active = [each.name for each in self.user.spawners.values() if each.active]
        if not self.name and active:
            self.log.warning(
                "%s keeps all volumes: JupyterHub deletes nobody whose servers run. Stop %s first",
                self.log_name,
                one_line(", ".join(active)),
            )
            return
        firsts, policy = await self._volumes_to_forget()
        self.backend.home_sizes.forget(self.user.name)
        if firsts and policy != "keep":
            await self.user_volumes.delete(firsts, policy, lambda: compat.is_forgotten(self))

    async def _volumes_to_forget(self) -> tuple[list[FirstVolume], Any]:
        """Return the first generations of the volumes that go with this server, and the policy."""
        overrides: list[dict[str, Any]] = []
        with suppress(web.HTTPError):  # an invalid override, which has been logged
            overrides = await self.overrides_of_groups()
        try:
            with suppress(web.HTTPError):
                self.apply_overrides_of(overrides)
            return self.user_volumes.going(), self.deleted_user_volumes
        finally:
            self.overrides.put_back()

    @property
    def volume_binds(self) -> dict[str, dict[str, Any]]:
        """DockerSpawner's binds, and those of the users' own volumes and `course_volumes`."""
        ours = {
            volume.name: {"bind": volume.path, "mode": "rw" if volume.writable else "ro"}
            for volume in self.mounted_volumes()
        }
        return super().volume_binds | ours

    def get_env(self) -> dict[str, str]:
        """Return the server's environment; the administrator's variables override ours."""
        kept = RUNTIME if self.home_volume else {}
        if self.home_volume and self.home_size:
            kept = {**kept, HOME_SIZE: str(self.home_size)}
        grace = {GRACE: f"{self.stop_grace:g}"}
        return {**QUICK_START, **grace, **kept, **super().get_env()}

    def docker(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call the engine in a thread.

        The arguments of "create_container" get the lease here, last: earlier, the administrator's
        extra arguments could override it, and `str.format` would interpret the user's name.
        """
        is_ours = not (_creating.get() or is_planning()) and kwargs.get("name") == self.object_name
        if method == "create_container" and is_ours:
            return asyncio.ensure_future(self._create_leased(kwargs))
        known = _inspected.get()
        if method == "inspect_container" and known and args == (known["Id"],) and not kwargs:
            return answer(known)
        if method == "inspect_container" and args == (self.object_id,) and not kwargs:
            return asyncio.ensure_future(self._inspect_running(self.attempt))
        if method == "inspect_image" and len(args) == 1 and not kwargs:
            # For the command, moments after it was looked whether the image is there.
            return asyncio.ensure_future(self.backend.inspect_image(*args, IMAGE_SECONDS))
        return super().docker(method, *args, **kwargs)

    async def _inspect_running(self, attempt: ContainerAttempt) -> Any:
        """Inspect the container; its state says when it was started, which the usage asks for."""
        found = await super().docker("inspect_container", self.object_id)
        attempt.state = found["State"]
        return found

    async def _create_leased(self, plan: dict[str, Any]) -> Any:
        create = await self._leased(plan)
        driver = create["host_config"].get("VolumeDriver")
        await self.user_volumes.make(self.attempt.volumes, driver)
        with _with(_creating, True):
            return await self.docker("create_container", **create)

    async def _leased(self, plan: dict[str, Any]) -> dict[str, Any]:
        """Return what the container is created with."""
        way = await self.backend.way_to_gpus(self.gpu_injection, self._granted_uuids())
        create = self._with_lease(plan, by_cdi=way == "cdi")
        if self.remove:
            create = with_kept_folders(create)
        driver = self.log_driver or await self.backend.default_log_driver()
        create = with_log(create, driver, self.log_options)
        create["labels"][LABEL_SETTINGS] = fingerprint(create)
        return create

    async def create_object(self) -> Any:
        """Create the container; from then on its labels hold the GPUs."""
        return await self._create_leased(await self.plan())

    def _granted_uuids(self) -> list[str]:
        held = self.attempt.granted
        return held.uuids if held else []

    def _with_lease(self, create_kwargs: dict[str, Any], *, by_cdi: bool) -> dict[str, Any]:
        refused = self.backend.refused_ulimits
        return leased(
            removed_by_hub(create_kwargs) if self.remove else create_kwargs,
            labels=self.lease_labels(self.attempt.granted),
            uuids=self._granted_uuids(),
            allowed_devices=self.allowed_devices,
            by_cdi=by_cdi,
            shm_size=self.shm_size,
            ulimits={n: v for n, v in self.ulimits.items() if n not in refused},
        )

    async def start(self) -> tuple[str, int]:
        """Start a server with the GPUs of its request; return (ip, port) once it answers."""
        attempt = self.attempt
        try:
            return await super().start()
        finally:
            if attempt.ulimit_trial:
                attempt.ulimit_trial.given_up()

    # -- The steps of a start, in their order ----------------------------------------------------

    async def remove_leftovers(self, request: Request) -> None:
        """Remove the containers of earlier starts, except one that can be started again."""
        # Those are all in a listing that began with this spawn: what an earlier one still creates
        # and removes has been waited for. Another try of this spawn has a new listing.
        since, self.attempt.began = self.attempt.began, None
        own = await self._own_containers(since)
        there = self.server_id or self.server_key in self.backend.names
        found = await self._inspect() if there else None
        existing = self._own(found)
        if found and not existing:
            raise GPUSpawnerError(self._name_is_taken(found))
        resumed = (
            existing
            and not self.remove
            and request.gpus == 0
            and self._is_this_users(existing)
            and await self._is_unchanged(existing)
        )
        self.attempt.resumed = existing if resumed else None
        left = {container.id for container in own}
        if existing and self._kept_of_another:
            await self._set_aside(existing)
        elif existing:
            left.add(existing["Id"])
        for container_id in left - ({existing["Id"]} if resumed else set()):
            said = one_line(container_id[:12])
            self.log.warning("Removing container %s, left by an earlier server", said)
            await self.backend.remove(container_id)
        if not resumed:
            self.object_id = self._kept_of_another = ""

    async def _set_aside(self, container: Any) -> None:
        """Leave a container of another spawner's to its user, who may have files in it.

        It can't be started again in place of a new one: it has no labels, and may have GPUs.
        """
        if container["State"]["Running"]:
            await self.docker("stop", container["Id"])
        name = now = self._kept_of_another
        if name == self.object_name:
            now = f"{name}-{container['Id'][:12]}"
            await self.docker("rename", container["Id"], now)
        self._log_kept(now, f", so far {name}," if now != name else ",")

    def _log_kept(self, name: str, before: str = ",") -> None:
        self.log.warning(
            "Container %s%s which an earlier spawner made for %s, stays stopped: files in it that "
            "are in no volume aren't in new servers. See docker cp, or docker rm %s",
            one_line(name),
            one_line(before),
            self.log_name,
            one_line(name),
        )

    def _name_is_taken(self, found: Any) -> str:
        """Say which container has this server's container name, and what to do about it."""
        hub = (found["Config"]["Labels"] or {}).get(LABEL_HUB, self.hub_address)
        if hub == self.hub_address:
            return lazy_gettext(
                "Container %(name)s is another server's of this hub, and has the name that this "
                "server's container would get. Give this server another name.",
                name=self.object_name,
            )
        return lazy_gettext(
            "Container %(name)s is left from a hub at %(hub)s, or is another hub's, and has the "
            "name that this server's container would get. An administrator can remove it with "
            "docker rm -f %(name)s if nobody needs it, or else give each hub its own "
            "c.DockerSpawner.prefix.",
            name=self.object_name,
            hub=hub,
        )

    def _is_this_users(self, existing: Any) -> bool:
        """Return whether a container is of this user's: one deleted may have had the name."""
        if self.deleted_user_volumes == "keep":
            return True
        # Both in UTC.
        return str(existing["Created"])[:19] >= compat.user_since(self).isoformat()[:19]

    async def _is_unchanged(self, existing: Any) -> bool:
        """Return whether a container is identical to the one that would be created now."""
        self.attempt.volumes = await self.user_volumes.find()
        plan = await self._leased(await self.plan())
        image = await self.backend.inspect_image(plan["image"])
        return can_resume(existing, plan, image["Id"])

    async def create_server(self, reservation: Reservation) -> str:
        """Create the container, or return the one to start again."""
        if existing := self.attempt.resumed:
            # ref: DockerSpawner.start: the container keeps its token.
            for line in existing["Config"]["Env"]:
                if line.startswith(("JPY_API_TOKEN=", "JUPYTERHUB_API_TOKEN=")):
                    self.api_token = line.split("=", 1)[1]
                    break
            return str(existing["Id"])
        await self.apply_image_option()
        await self.pull_image(self.image)  # where a subclass or a hook has changed it
        self.progress_steps.add(40, lazy_gettext("Creating the container"))
        if self.ulimits and not self.attempt.ulimit_trial:
            self.attempt.ulimit_trial = await self.backend.ulimit_trials.join(self.ulimits)
        self.attempt.volumes = await self.user_volumes.find()
        image, created = self.image, await self.create_object()
        container_id = str(created["Id"])
        self.log.info(
            "Created container %s (id: %s) for %s from image %s",
            one_line(self.object_name),
            one_line(container_id[:7]),
            self.log_name,
            one_line(image),
        )
        return container_id

    async def verify_server(self, server_id: str, reservation: Reservation) -> None:
        """Raise an exception if the container was created with other GPUs than were reserved."""
        # Not in `create_server`, which runs to its end even if the start is cancelled.
        self.object_id = server_id
        container = await self.docker("inspect_container", server_id)
        if set(granted_uuids(container)) != set(reservation.uuids):
            raise http_errors.failure(
                lazy_gettext("The container was created with other GPUs than were granted.")
            )
        self.attempt.inspected = container

    async def start_server(self, server_id: str) -> None:
        """Give the volumes to the container's user, and start it."""
        backend, output = self.backend, Output()
        await backend.in_thread(
            backend.volume_owners.chown_to_user,
            self.attempt.inspected,
            self.mounted_volumes(),
            self.attempt.volumes.listing.volumes,
            self.attempt.volumes.made,
        )
        self.attempt.output = output
        with suppress(docker.errors.APIError):  # without the output an error is just less helpful
            await backend.in_thread(output.attach, self.client, self.attempt.inspected)
        try:
            await self.start_object()
            output.started = True
            if self.attempt.ulimit_trial:
                self.attempt.ulimit_trial.succeeded()
        except docker.errors.APIError as error:
            await self._restore_network(error)
            await self._inject_otherwise(error)
            name = refused_ulimit(error, self.ulimits)
            if name is None:
                raise
            backend.refused_ulimits.add(name)
            raise UlimitRefused(
                f"this engine may not set c.GPUSpawner.ulimits[{name!r}] = {self.ulimits[name]}, "
                f"so servers go without it from now on ({engine_errors.explain(error)})"
            ) from error
        finally:
            if not output.started:
                output.detach()

    def _note_started(self, server_id: str) -> None:
        labels = self.attempt.inspected["Config"]["Labels"] or {}
        self.hub_state.usage.began(ServerRecord(server_id, labels, created=time.time()))

    def known_run(self) -> ServerRun | None:
        """Return when the container ran, as of its last inspection; None: that isn't known."""
        run = runs.run_of(self.attempt.state) if self.attempt.state else None
        return run if run and run.started is not None else None

    async def _inject_otherwise(self, error: Exception) -> None:
        """Start again if the engine has been set up anew, and gives GPUs in another way by now."""
        if not engine_errors.gives_no_gpus(error):
            return
        was = "cdi" if are_by_cdi(self.attempt.inspected) else "hook"
        uuids = granted_uuids(self.attempt.inspected)
        way = await self.backend.way_to_gpus(self.gpu_injection, uuids, anew=True)
        if way != was:
            raise InjectionChanged(
                f"the engine gives GPUs by {way} by now, not by {was}"
            ) from error

    async def _restore_network(self, error: Exception) -> None:
        """Create the servers' network anew if its lack made a start fail, and start again."""
        name = engine_errors.missing_network(error)
        if name and await self._network_is_back(name):
            raise NetworkMissing(
                f"network {name} was missing, and has been created anew"
            ) from error

    async def _network_is_back(self, name: str) -> bool:
        # Who runs has the address again that the proxy has for them, and nobody else.
        running = {
            each.server_id: each.attempt.ip or each.server.ip
            for each in self.hub_state.spawners
            if isinstance(each, GPUSpawner) and each.server_id and each.server
        }
        backend = self.backend
        try:
            back = await backend.in_thread(restore_network, backend.client, name, running)
        except NetworkError as error:
            self.log.error("%s", one_line(error))
            return True
        return bool(back)

    async def await_server(self, server_id: str) -> tuple[str, int]:
        """Wait for the server's first answer; return the container's (ip, port).

        If it doesn't answer within `http_timeout`, JupyterHub goes on waiting.
        """
        output = self.attempt.output
        assert output is not None
        try:
            try:
                ip, port = await self._address(server_id, output)
            finally:  # by then it is known when it was started, or it isn't needed any more
                self._note_started(server_id)
            self.attempt.ip = ip
            self.progress_steps.add(70, lazy_gettext("Container started, waiting for JupyterLab"))
            await self._wait_for_answer(ip, port, output)
            return ip, port
        finally:
            output.detach()

    async def _wait_for_answer(self, ip: str, port: int, output: Output) -> None:
        path = url_path_join(self.server.base_url if self.server else "/", "api")
        url = "" if self.internal_ssl else f"http://{ip}:{port}{path}"
        loop, ended, interval = asyncio.get_running_loop(), output.ended, self.backend.poll_interval
        deadline = loop.time() + self.http_timeout
        while not await wait_until_answering(
            url, ip, port, ended, deadline - loop.time(), interval
        ):
            if not ended.is_set():
                return
            if await self.poll() is not None:
                raise self._start_failure(output)
            # It goes on, or isn't marked as ended yet, or the engine is being restarted.
            ended = asyncio.Event()
            loop.call_later(LOOK_AGAIN_SECONDS, ended.set)

    async def _address(self, server_id: str, output: Output) -> tuple[str, int]:
        try:
            if self.post_start_cmd:
                await self.post_start_exec()
            ip, port = await self.get_ip_and_port()
        except engine_errors.UNREACHABLE as error:
            # If the container has ended, its output is more helpful than the engine's error.
            if await output.has_ended() and await self.poll() is not None:
                raise self._start_failure(output) from error
            raise
        return ip, port

    def _start_failure(self, output: Output) -> Exception:
        state = self.attempt.state
        out_of_memory = engine_errors.is_out_of_memory(state)
        return http_errors.container_died(state.get("ExitCode"), output.last_lines(), out_of_memory)

    def last_lines(self) -> list[str]:
        """Return the last lines of the container's output."""
        return self.attempt.output.last_lines() if self.attempt.output else []

    def discarder(self) -> Callable[[str], Awaitable[None]]:
        """Return the function that removes this try's container; a resumed one is kept."""
        return _do_nothing if self.attempt.resumed else self.backend.remove

    # -- While the server runs, and its end ------------------------------------------------------

    async def stop_server(self, now: bool) -> None:
        """Stop the container, and remove it where `remove` says so.

        As DockerSpawner does, but that JupyterHub, which looks whether servers run, may see the end
        first. It cleans up then, and the next start may already have begun.
        """
        attempt = self.attempt
        if self.object_id:  # else the engine was away before there was one
            self.log.info("Stopping the container of %s", self.log_name)
            await self.stop_object()
            # No id: the hub has removed it.
            if self.remove and self.object_id and self.attempt is attempt:
                await self.remove_object()
        if self.attempt is attempt:
            if self.remove:
                self.object_id = ""
            self.clear_state()

    async def stop_object(self) -> None:
        """Stop the container; what runs in it has `stop_grace` seconds to save."""
        with suppress(docker.errors.NotFound):
            await self.backend.stop_container(self.object_id)

    async def remove_object(self) -> None:
        """Remove the container, unless it is one that another spawner made to be kept."""
        if self._kept_of_another:
            self._log_kept(self._kept_of_another)
        else:
            await super().remove_object()

    async def get_object(self) -> Any:
        """Inspect this server's container; return None if there is none.

        A container of this name may be another server's: two hubs on one engine may have users of
        the same name, and JupyterHub 5 allows servers "A" and "a". It must neither be taken for
        this server nor be stopped. The lease of a running container that this hub lost in a crash
        is adopted.
        """
        return self._own(await self._inspect())

    async def _inspect(self) -> Any:
        """Inspect the container by its id, else by its name, whoever has it; None: there is none.

        Its name alone wouldn't find it after a change of the templates or the image.
        """
        self.attempt.state = {}
        for key in filter(None, (self.object_id, self.object_name)):
            with suppress(docker.errors.NotFound):
                return await self.docker("inspect_container", key)
        return None

    def _own(self, found: Any) -> Any:
        """Return a container that `_inspect` found if it is this server's, else None."""
        self._kept_of_another = ""
        if found is None:
            self.object_id = ""
            return None
        found_labels = found["Config"]["Labels"] or {}
        if found["Id"] != self.container_id and not belongs_to(
            found_labels, self.holder, self.hub_address
        ):
            self.log.warning(
                "Container %s is another hub's or server's", one_line(self.object_name)
            )
            self.object_id = ""
            return None
        self.object_id, self.attempt.state = found["Id"], found["State"]
        self.attempt.found = found if self.pending == "check" else None
        self.attempt.is_cut_off = is_cut_off(found, self.network_name)
        self.attempt.memory = (found.get("HostConfig") or {}).get("Memory") or 0
        if is_kept_of_another(found):
            self._kept_of_another = str(found.get("Name") or "").lstrip("/")
        if found["State"]["Running"] and not self.pending:
            self.on_found()
            lease = lease_of(ServerRecord(found["Id"], found_labels))
            if lease:
                self.attempt.course = lease.course
            if lease and lease.gpus and not self.lease.units:
                self.lease.adopt(lease)
        return found

    async def poll(self) -> Any:
        """Return None while the server runs or the engine is unreachable, else its exit status.

        The hub asks for it before it stops what a refused choice was to start: the engine is told
        nothing of that.
        """
        if self.attempt.is_refused:
            return 0
        try:
            status = await super().poll()
            if status is None and self.attempt.is_cut_off:
                self.attempt.found = None
                await self._network_is_back(self.network_name)
            return status
        except engine_errors.UNREACHABLE as error:
            self.log.warning("Whether %s runs isn't known: %s", self.log_name, one_line(error))
            return None

    async def get_url(self) -> str:
        """Return a running server's URL, for a hub that was killed while the server started."""
        found, self.attempt.found = self.attempt.found, None
        try:
            with _with(_inspected, found):
                ip, port = await self.get_ip_and_port()
        except Exception:  # the engine can't be reached: use the URL in the database
            return str(self.server.url)
        return f"{'https' if self.internal_ssl else 'http'}://{ip}:{port}"

    def explain_end(self) -> str:
        """Return why the server has ended by itself, as sentences for its user."""
        return engine_errors.explain_end(self.attempt.state, time.time(), self.attempt.memory)

    async def _own_containers(self, since: int | None = None) -> list[ServerRecord]:
        """List this server's containers by their labels, whatever their names are.

        Args:
            since: as for `Ledger.servers`.
        """
        whose = {**labels(self.holder, "", ()), LABEL_HUB: self.hub_address}
        wanted = {label: whose[label] for label in (LABEL_USER, LABEL_SERVER, LABEL_HUB)}
        # Of many that start or stop at once, the engine lists all containers for all of them.
        servers = await self.ledger.servers(since)
        return [each for each in servers if wanted.items() <= each.labels.items()]

    async def clean_up_ended(self) -> None:
        """Remove or stop the containers of a server that has ended, for whatever reason."""
        leftovers, remove = self.hub_state.leftovers, self.backend.remove
        try:
            for container in await self._own_containers():
                if self.remove or container.state == "created":
                    leftovers.remove_later(self.server_key, remove, container.id)
                    self.object_id = ""
                elif container.state != "ended":
                    await self.backend.stop_container(container.id)
            await leftovers.wait_until_cleared(self.server_key)
        except engine_errors.UNREACHABLE as error:
            self.log.warning(
                "Container %s may remain: %s", one_line(self.object_name), one_line(error)
            )
            if self.container_id and self.remove and not self._kept_of_another:
                leftovers.remove_later(self.server_key, remove, self.container_id)
