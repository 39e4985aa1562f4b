"""GPUSpawner: a DockerSpawner whose servers see exactly the GPUs they were granted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import docker.errors
from jupyterhub.utils import maybe_future, url_path_join
from tornado import web
from traitlets import default

from . import failures, form, options, refusals, tidying, volumes
from .allocation import Request
from .container import LimitRefused, granted_uuids, refused_limit
from .leases import (
    RELEASED_STATES,
    Contested,
    NotEnough,
    Unknown,
    View,
)
from .leasing import LeasingSpawner
from .readiness import Output, answers, exit_code

# Two hubs that keep choosing the same GPUs give up after this many tries.
CLAIM_ROUNDS = 10
# How long a failed start is tidied up after before the user is told.
TIDYING_SECONDS = 5


class GPUSpawner(LeasingSpawner):
    """Start single-user servers in containers, each with the GPUs it asked for and no others."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._last_choice = self.orm_spawner.user_options if self.orm_spawner else None
        # What belongs to one spawn. None of it may outlive the next clear_state().
        self._creating: asyncio.Future[Any] | None = None
        self._output: Output | None = None
        self._pulled: str | None = None

    # -- The choice ----------------------------------------------------------------------------

    @default("options_form")
    def _options_form_default(self) -> Any:
        return GPUSpawner.render_form

    async def render_form(self) -> str:
        """Return the form in which users choose, as HTML; "" where there is nothing to choose."""
        await self.apply_group_overrides()
        view, trouble = None, ""
        try:
            view = await self.ledger.look(except_for=self.holder)
        except Unknown as error:
            trouble = str(error)
        saved = self.orm_spawner.user_options if self.orm_spawner else None
        return form.render(self.limits(), options.remembered(saved), view, trouble)

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
            limits = self.limits()
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
            self.set_for_now("image", known.image if known else key)
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
        limits = self.limits()
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
            for _ in range(CLAIM_ROUNDS):
                if not await tidying.finish(self.object_name):
                    raise NotEnough(
                        "An earlier start of this server isn't tidied up yet. "
                        "Please try again in a minute."
                    )
                await self._make_way(self._request)
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
            ip, port = await self._start_container()
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

    async def _start_container(self) -> tuple[str, int]:
        try:
            return await super().start()
        except failures.UNREACHABLE as error:
            # What an engine says of a container that ended isn't what its user wants to read.
            if self._output and await self._output.has_ended():
                raise await self._death() from error
            raise

    async def _death(self) -> Exception:
        code = await self._in_thread(exit_code, self.client, self.container_id)
        return refusals.died(code, self._last_lines())

    async def _make_way(self, request: Request) -> None:
        """Remove what is left of an earlier server, before its GPUs are counted as taken."""
        existing = await self.get_object()
        resumed = existing and not self.remove and request.gpus == 0 and await self._same(existing)
        left = {container["Id"] for container in await self._own_containers()}
        left |= {existing["Id"]} if existing else set()
        for container_id in left - ({existing["Id"]} if resumed else set()):
            self.log.warning("Removing container %s, left by an earlier server", container_id[:12])
            await tidying.remove(self.docker, container_id)
        if not resumed:
            self.object_id = ""

    async def _same(self, existing: Any) -> bool:
        """Return whether a container is what would be created now."""
        self._planning = True
        try:
            plan = await super().create_object()
        finally:
            self._planning = False
        image = await self.docker("inspect_image", plan["image"])
        return tidying.can_resume(existing, plan, image["Id"])

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
            self._output.started = True
        except docker.errors.APIError as error:
            name = refused_limit(error, self.ulimits)
            if name is None:
                raise
            LeasingSpawner._refused_limits.add(name)
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
        if output.ended.is_set() and await super().poll() is not None:
            raise await self._death()

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
        try:
            ip, port = await self.get_ip_and_port()
        except Exception:  # the engine is away: what the database has is the best there is
            return self.server.url
        return f"{'https' if self.internal_ssl else 'http'}://{ip}:{port}"

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """Yield what happens, in words."""
        async for event in self._steps.follow():
            yield event

    # -- Stop ----------------------------------------------------------------------------------

    async def run_post_stop_hook(self) -> None:
        """Leave nothing behind, however the server ended; then the administrator's hook.

        JupyterHub forgets a server whose stop failed. Its container would run on with its GPUs.
        """
        try:
            for container in await self._own_containers():
                if self.remove or container["State"] == "created":
                    tidying.remove_later(self.object_name, self.docker, container["Id"])
                    self.object_id = ""
                elif container["State"] not in RELEASED_STATES:
                    await self.docker("stop", container["Id"])
            await tidying.finish(self.object_name)
        except failures.UNREACHABLE as error:
            self.log.warning("Container %s may remain: %s", self.object_name, error)
            if self.container_id and self.remove:
                tidying.remove_later(self.object_name, self.docker, self.container_id)
        await maybe_future(super().run_post_stop_hook())
