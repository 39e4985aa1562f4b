"""GPUSpawner: a DockerSpawner whose servers see exactly the GPUs they were granted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar

import docker.errors
from jupyterhub.utils import maybe_future, url_path_join
from tornado import web
from traitlets import default

from . import failures, form, options, refusals, tidying, volumes
from .allocation import Holder, Request
from .container import LimitRefused, granted_uuids, refused_limit, with_lease
from .leases import (
    LABEL_GPUS,
    LABEL_HUB,
    Contested,
    Ledger,
    NotEnough,
    Reservation,
    Unknown,
    View,
    belongs_to,
    labels,
)
from .readiness import Output, Steps, answers, exit_code
from .settings import DOCKER_THREADS, GPUSettings
from .survey import Surveyor

# Two hubs that keep choosing the same GPUs give up after this many tries.
CLAIM_ROUNDS = 10
# How long a failed start is tidied up after before the user is told.
TIDYING_SECONDS = 5


class GPUSpawner(GPUSettings):
    """Start single-user servers in containers, each with the GPUs it asked for and no others."""

    _executor: ClassVar[ThreadPoolExecutor | None] = None
    _ledger: ClassVar[tuple[Any, Ledger] | None] = None
    _refused_limits: ClassVar[set[str]] = set()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._last_choice = self.orm_spawner.user_options if self.orm_spawner else None
        # What belongs to one spawn. None of it may outlive the next clear_state().
        self._steps = Steps()
        self._request: Request | None = None
        self._reservation: Reservation | None = None
        self._creating: asyncio.Future[Any] | None = None
        self._output: Output | None = None
        self._pulled: str | None = None

    # -- The choice ----------------------------------------------------------------------------

    @default("options_form")
    def _options_form_default(self) -> Any:
        return GPUSpawner.render_form

    async def render_form(self) -> str:
        """Return the form in which users choose, as HTML; "" where there is nothing to choose."""
        overrides = await self.coming_overrides()
        limits = self.limits(overrides.get("gpu_limit", self.gpu_limit))
        view, trouble = None, ""
        try:
            view = await self.ledger.look(except_for=self.holder)
        except Unknown as error:
            trouble = str(error)
        saved = self.orm_spawner.user_options if self.orm_spawner else None
        return form.render(limits, options.remembered(saved), view, trouble)

    def options_from_query(self, query_data: dict[str, list[str]]) -> dict[str, Any]:
        """Interpret a link's arguments. JupyterHub 5 leaves the `opt-` before their names."""
        return self.run_options_from_form(
            {key.removeprefix("opt-"): value for key, value in query_data.items()}
        )

    async def _run_apply_user_options(self, user_options: Any) -> None:
        """Check the choice; the one place that form, link and REST share."""
        self._steps.begin()
        try:
            self._request = await self._check(user_options)
        except web.HTTPError as error:
            # The hub has saved the choice already, and would replay a refused one for ever.
            if error.status_code in (400, 403) and self.orm_spawner:
                self.orm_spawner.user_options = self._last_choice
            raise
        self._last_choice = user_options
        if self.apply_user_options:
            await super()._run_apply_user_options(user_options)

    async def _check(self, raw: Any) -> Request:
        try:
            choice = options.parse(raw, others_allowed=self._has_own_options())
            limits = self.limits(self.gpu_limit)
            key = options.image_key(choice, limits)
            view = View(None, None, ())
            if options.gpu_count(choice, limits) > 0:
                view = await self.ledger.look(except_for=self.holder)
            request = options.request(choice, limits, view.gpus, view.driver)
        except options.Refused as error:
            raise refusals.refusal(str(error), "choice", error.status) from None
        except Unknown as error:
            hint = "Until then, servers with 0 GPUs can be started."
            raise refusals.refusal(f"{error} {hint}", "unknown", 503) from None
        if choice.image is not None or self.images:
            known = limits.versions.get(key)
            self.replace("image", known.image if known else key)
        return request

    def _has_own_options(self) -> bool:
        """Return whether the administrator's own hooks read `user_options`, and so own its keys."""
        return bool(
            self.apply_user_options
            or self.options_form != GPUSpawner.render_form
            or self.options_from_form is not options.from_fields
        )

    async def check_allowed(self, image: str) -> str:
        """Return the image reference that a catalogue key stands for."""
        limits = self.limits(self.gpu_limit)
        try:
            key = options.image_key(options.parse({"image": image}), limits)
        except options.Refused as error:
            raise refusals.refusal(str(error), "choice", error.status) from None
        return limits.versions[key].image if key in limits.versions else key

    def clear_state(self) -> None:
        """Forget the last spawn; called before every start and after every stop."""
        super().clear_state()
        self.put_back()
        self._request = self._reservation = self._creating = self._output = self._pulled = None

    # -- The engine and the ledger -------------------------------------------------------------

    @property
    def executor(self) -> ThreadPoolExecutor:
        """The threads for the engine's calls, so that a slow stop or pull holds up nobody."""
        if GPUSpawner._executor is None:
            GPUSpawner._executor = ThreadPoolExecutor(DOCKER_THREADS, thread_name_prefix="docker")
        return GPUSpawner._executor

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
    def ledger(self) -> Ledger:
        """The ledger of the engine's host, one for all spawners of this process."""
        loop = asyncio.get_running_loop()
        if GPUSpawner._ledger is None or GPUSpawner._ledger[0] is not loop:
            surveyor = Surveyor(
                self.nvml_timeout,
                excluded=self.excluded_gpus,
                memory_threshold_mib=(self.foreign_memory or 0) >> 20 or None,
            )
            GPUSpawner._ledger = (
                loop,
                Ledger(self._list_containers, surveyor, failures.explain_unknown),
            )
        return GPUSpawner._ledger[1]

    async def _list_containers(self) -> Sequence[dict[str, Any]]:
        found = await self.docker("containers", all=True, filters={"label": LABEL_GPUS})
        tidying.sweep_stale(self.docker, found, self.log)
        return found

    def docker(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call the engine in a thread. What creates our container gets its lease here, last.

        Anywhere earlier, the administrator's extras could undo it, and `str.format` would read the
        user's name.
        """
        if method == "pull":
            self._steps.say(10, f"Getting the image {args[0]}. This can take minutes.")
        if method == "create_container" and kwargs.get("name") == self.object_name:
            kwargs = self._with_lease(kwargs)
        return super().docker(method, *args, **kwargs)

    async def get_object(self) -> Any:
        """Inspect this server's container; None where there is none, or its name is another's.

        Two hubs on one engine may both have a user of this name, and JupyterHub 5 servers "A" and
        "a". What isn't ours must neither be taken for this server nor stopped with it.
        """
        known: str = self.container_id
        found = await super().get_object()
        if not found or found[self.object_id_key] == known:
            return found
        if belongs_to(found["Config"]["Labels"], self.holder, self._hub_address):
            return found
        self.log.warning("Container %s is another hub's or server's", self.object_name)
        self.object_id = ""
        return None

    def _with_lease(self, create_kwargs: dict[str, Any]) -> dict[str, Any]:
        uuids = (
            [gpu.uuid for gpu in self._reservation.gpus if gpu.uuid] if self._reservation else []
        )
        key = self._request.image if self._request else self.image
        return with_lease(
            create_kwargs,
            labels={**labels(self.holder, key, uuids), LABEL_HUB: self._hub_address},
            uuids=uuids,
            shm_size=self.shm_size,
            ulimits={n: v for n, v in self.ulimits.items() if n not in GPUSpawner._refused_limits},
        )

    # -- Start ---------------------------------------------------------------------------------

    async def run_pre_spawn_hook(self) -> None:
        """Run the administrator's hook and get the image, before `start_timeout`'s clock starts."""
        await maybe_future(super().run_pre_spawn_hook())
        try:
            await self.pull_image(self.image)
        except Exception as error:
            raise self._translated(error) from error
        self._pulled = self.image

    async def pull_image(self, image: str) -> None:
        """Get the image if needed, once per spawn."""
        if self._pulled == image:
            return
        await super().pull_image(image)

    async def start(self) -> tuple[str, int]:
        """Start a server with the GPUs of its request; return (ip, port) once it answers."""
        began = time.monotonic()
        try:
            if self._request is None:
                self._request = await self._check(self.user_options)
            await tidying.finish(self.object_name)
            await self._make_way(self._request)
            for _ in range(CLAIM_ROUNDS):
                try:
                    return await self._start_once(self._request)
                except (Contested, LimitRefused) as reason:
                    self.log.warning("Starting %s once more: %s", self._log_name, reason)
            raise NotEnough("Others were quicker each time. Please try again.")
        except asyncio.CancelledError:
            if time.monotonic() - began < self.start_timeout * 0.98:
                raise  # the user gave up, not the clock
            raise refusals.StartTimeout(self.start_timeout, self._last_lines()) from None
        except Exception as error:
            raise self._translated(error) from error

    async def _start_once(self, request: Request) -> tuple[str, int]:
        self._reservation = self._creating = self._output = None
        try:
            self._reservation = await self.ledger.reserve(self.holder, request, self.gpu_policy)
            self._steps.say(20, form.granted(self._reservation.gpus))
            ip, port = await super().start()
            self._steps.say(70, "Container started, waiting for JupyterLab")
            await self._until_ready(ip, port)
        except BaseException as error:
            tidied = tidying.begin(
                self.object_name, self.docker, self.ledger, self._reservation, self._creating
            )
            if isinstance(error, Exception):
                # The user needn't wait for an engine that is away; the task goes on by itself.
                await asyncio.wait([tidied], timeout=TIDYING_SECONDS)
            raise
        finally:
            if self._output:
                self._output.detach()
        return ip, port

    async def _make_way(self, request: Request) -> None:
        """Remove what is left of an earlier server, before its GPUs are counted as taken."""
        existing = await self.get_object()
        if existing is None:
            return
        if not self.remove and tidying.can_resume(existing, request, self.image, self.mem_limit):
            return
        self.log.warning("Replacing container %s, left by an earlier server", self.object_name)
        await tidying.remove(self.docker, existing[self.object_id_key])
        self.object_id = ""

    async def create_object(self) -> Any:
        """Create the container; from then on its labels hold the GPUs."""
        self._steps.say(40, "Creating the container")
        self._creating = asyncio.ensure_future(super().create_object())
        # Shielded: a cancelled call would go on in its thread, and nobody would know its result.
        created = await asyncio.shield(self._creating)
        if self._reservation:
            self.ledger.release(self._reservation)
        return created

    async def start_object(self) -> None:
        """Start the container if it has what was granted, and nobody else was given that."""
        container = await self.docker("inspect_container", self.container_id)
        uuids = self._reservation.uuids if self._reservation else frozenset()
        if set(granted_uuids(container)) != uuids:
            raise refusals.failure("The container was created with other GPUs than were granted.")
        user = container["Config"].get("User") or ""
        await self._in_thread(
            volumes.give_to_user, self.client, self.container_id, user, self.mounted_volumes()
        )
        self._output = Output()
        with suppress(docker.errors.APIError):  # its last words would be nice to have, no more
            await self._in_thread(self._output.attach, self.client, self.container_id)
        await self.ledger.claim(self.container_id, uuids)
        try:
            await super().start_object()
        except docker.errors.APIError as error:
            name = refused_limit(error, self.ulimits)
            if name is None:
                raise
            GPUSpawner._refused_limits.add(name)
            raise LimitRefused(
                f"this engine may not set c.GPUSpawner.ulimits[{name!r}] = {self.ulimits[name]}, "
                f"so servers go without it from now on ({failures.explain(error)})"
            ) from error

    async def _until_ready(self, ip: str, port: int) -> None:
        """Wait for the server's first answer; the hub waits on where it doesn't come in time."""
        output = self._output or Output()
        path = url_path_join(self.server.base_url if self.server else "/", "api")
        url = "" if self.internal_ssl else f"http://{ip}:{port}{path}"
        if await answers(url, ip, port, output.ended, self.http_timeout):
            return
        if output.ended.is_set() and await self.poll() is not None:
            code = await self._in_thread(exit_code, self.client, self.container_id)
            raise refusals.died(code, self._last_lines())

    def _last_lines(self) -> list[str]:
        return self._output.last_lines() if self._output else []

    def _translated(self, error: Exception) -> Exception:
        """Return the exception that the user reads in place of this one."""
        if isinstance(error, web.HTTPError):
            return error
        if isinstance(error, NotEnough | Unknown):
            reason = "no_gpu" if isinstance(error, NotEnough) else "unknown"
            return refusals.refusal(str(error), reason, 503)
        self.log.error("Starting %s failed", self._log_name, exc_info=error)
        return refusals.failure(failures.explain(error))

    async def get_url(self) -> str:
        """Return where a running server is; asked by a hub that was killed while it started."""
        ip, port = await self.get_ip_and_port()
        return f"{'https' if self.internal_ssl else 'http'}://{ip}:{port}"

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """Yield what happens, in words."""
        async for event in self._steps.follow():
            yield event

    # -- Stop ----------------------------------------------------------------------------------

    async def run_post_stop_hook(self) -> None:
        """Leave nothing behind, however the server ended; then the administrator's hook."""
        try:
            remains = await self.get_object()
            if remains and await tidying.remove_remains(self.docker, remains, self.remove):
                self.object_id = ""
        except Exception as error:
            self.log.warning("Container %s may remain: %s", self.object_name, error)
        await maybe_future(super().run_post_stop_hook())

    # -- Volumes -------------------------------------------------------------------------------

    def mounted_volumes(self) -> list[volumes.Volume]:
        """Return the user's own volume and their courses', by the names they have in the engine."""
        groups = [group.name for group in self.user.groups] if self.user else []
        templates = volumes.mounted(self.home_volume, self.home_path, self.course_volumes, groups)
        return [
            replace(
                volume,
                name=self.format_volume_name(volume.name, self),
                path=self.format_volume_name(volume.path, self),
            )
            for volume in templates
        ]

    @property
    def volume_binds(self) -> dict[str, dict[str, Any]]:
        """DockerSpawner's binds, and the volumes of `home_volume` and `course_volumes`."""
        ours = {
            volume.name: {"bind": volume.path, "mode": "rw" if volume.writable else "ro"}
            for volume in self.mounted_volumes()
        }
        return super().volume_binds | ours
