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

from .backends.docker import cleanup, volumes
from .backends.docker import errors as engine_errors
from .backends.docker.container_config import LimitRefused, granted_uuids, refused_limit
from .backends.docker.readiness import QUICK_START, Output, answers, exit_code
from .choices import form
from .choosing import ChoosingSpawner
from .gpus.model import Request
from .hub import http_errors, metrics
from .i18n.languages import translations
from .i18n.lazy_text import lazy_gettext
from .i18n.phrases import ordinal
from .leases.labels import RELEASED_STATES
from .leases.ledger import Contested, NotEnough, Reservation, Unknown
from .leasing import LeasingSpawner
from .scheduling.phrases import turn_words
from .scheduling.plan import QueuedRequest, Turn
from .scheduling.queue import OverLimit

# Two hubs that keep choosing the same GPUs give up after this many tries.
CLAIM_ROUNDS = 10
# How long a failed start is tidied up after before the user is told.
TIDYING_SECONDS = 5


class GPUSpawner(ChoosingSpawner):
    """Start single-user servers in containers, each with the GPUs it asked for and no others."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # What belongs to one spawn. None of it may outlive the next clear_state().
        self._creating: asyncio.Future[Any] | None = None
        self._output: Output | None = None
        self._pulled: str | None = None

    def clear_state(self) -> None:
        """Forget the last spawn; called before every start and after every stop."""
        super().clear_state()
        self.put_back()
        if self._reservation and self._creating is None:
            self.ledger.release(self._reservation)  # given up between its turn and its start
        self._request = self._reservation = self._creating = self._output = self._pulled = None
        self._since = None

    # -- Before start_timeout's clock starts -----------------------------------------------------

    async def run_pre_spawn_hook(self) -> None:
        """Run the administrator's hook, get the image, and wait for GPUs."""
        await maybe_future(super().run_pre_spawn_hook())
        try:
            await self.pull_image(self.image)
            self._pulled = self.image
            await self._take_turn()
        except Exception as error:
            raise self._translated(error) from error

    async def _take_turn(self) -> None:
        """Return when GPUs are reserved for this server."""
        if self._request is None:
            self._request = await self._check(self.user_options)
        request = self._request
        if not await cleanup.finish(self.object_name):
            raise NotEnough(
                lazy_gettext(
                    "An earlier start of this server isn't tidied up yet. "
                    "Please try again in a minute."
                )
            )
        await self._remove_leftovers(request)
        if request.gpus == 0:
            self._reservation = Reservation(self.holder, ())
            return
        self._since = self._since or self.shared.queue.since()
        waiting = QueuedRequest(self.holder, request, self._since, self._groups())
        try:
            self._reservation = await self.shared.queue.wait(waiting, self.terms(), self._tell_turn)
        except asyncio.CancelledError:
            self.note("leave", gpus=request.gpus, waited=_waited(waiting))
            raise
        except (NotEnough, OverLimit, Unknown) as error:
            self.note("refuse", gpus=request.gpus, waited=_waited(waiting), rule=str(error))
            raise
        self.begin_term(request.seconds)
        metrics.WAITS.observe(_waited(waiting))
        self.note(
            "grant",
            gpus=self._reservation.uuids,
            waited=_waited(waiting),
            rule=self.shared.queue.rules.order,
            until=self.until and round(self.until),
        )
        try:
            if self._waiting_since is not None:
                self._waiting_since = None
                self.keep_state()
                await self._check_again()
        except BaseException:
            # Given up, or refused by a rule that came meanwhile: nobody else would let go of them.
            self.ledger.release(self._reservation)
            self.note("release", gpus=self._reservation.uuids, rule="given up before the start")
            self._reservation = None
            raise

    async def _check_again(self) -> None:
        """Hold the rules that apply now against a choice that has waited."""
        image = self.image
        try:
            await self.apply_group_overrides()
            await self._check(self.user_options)
        except web.HTTPError as error:
            # That the host can't be read just now is no reason to lose one's turn.
            if error.status_code != 503:
                raise
            self.set_for_now("image", image)

    def _tell_turn(self, turn: Turn | str) -> None:
        """Say on the progress page where this server stands in the queue."""
        facts: dict[str, Any] = {}
        if not isinstance(turn, str):
            if self._waiting_since is None:
                self._waiting_since = self._since
                self.keep_state()
                self.note("wait", gpus=turn.waiting.request.gpus, rule=turn.because)
            nth = ordinal(turn.place)
            facts = {"place": turn.place, "nth": nth, "start": turn.start}
            facts["nth_said"] = translations(nth)
            facts["because"] = turn.because
            turn = turn_words(turn)
        self._steps.say(15, turn, about="queue", **facts)

    # -- Start ---------------------------------------------------------------------------------

    async def pull_image(self, image: str) -> None:
        """Get the image if needed, once per spawn, with its progress on the page."""
        if self._pulled != image:
            await self._get_image(image)

    def get_env(self) -> dict[str, str]:
        """Return the server's environment; what the administrator sets goes before ours."""
        return {**QUICK_START, **super().get_env()}

    async def start(self) -> tuple[str, int]:
        """Start a server with the GPUs of its request; return (ip, port) once it answers."""
        began = time.monotonic()
        try:
            for _ in range(CLAIM_ROUNDS):
                if self._reservation is None:
                    await self._take_turn()
                try:
                    return await self._start_once()
                except (Contested, LimitRefused) as reason:
                    self.log.warning("Starting %s once more: %s", self._log_name, reason)
            raise NotEnough(lazy_gettext("Others were quicker each time. Please try again."))
        except asyncio.CancelledError:
            if time.monotonic() - began < self.start_timeout * 0.98:
                raise  # the user gave up, not the clock
            raise http_errors.StartTimeout(self.start_timeout, self._last_lines()) from None
        except Exception as error:
            raise self._translated(error) from error

    async def _start_once(self) -> tuple[str, int]:
        began = time.monotonic()
        self._creating = self._output = None
        assert self._reservation is not None
        try:
            self._steps.say(20, form.granted(self._reservation.gpus))
            ip, port = await self._start_container()
            self._steps.say(70, lazy_gettext("Container started, waiting for JupyterLab"))
            await self._until_ready(ip, port)
        except BaseException as error:
            reservation, self._reservation = self._reservation, None
            tidied = cleanup.begin(
                self.object_name, self.docker, self.ledger, reservation, self._creating
            )
            if reservation.gpus:
                self.note("release", gpus=reservation.uuids, rule="the start failed")
            if isinstance(error, Exception):
                # The user needn't wait for an engine that is away; the task goes on by itself.
                await asyncio.wait([tidied], timeout=TIDYING_SECONDS)
            raise
        finally:
            if self._output:
                self._output.detach()
        self.hold(self._reservation.uuids)
        metrics.start_took(time.monotonic() - began, len(self._reservation.gpus))
        return ip, port

    async def _start_container(self) -> tuple[str, int]:
        try:
            return await super().start()
        except engine_errors.UNREACHABLE as error:
            # What an engine says of a container that ended isn't what its user wants to read.
            if self._output and await self._output.has_ended():
                raise await self._death() from error
            raise

    async def _death(self) -> Exception:
        code = await self._in_thread(exit_code, self.client, self.container_id)
        return http_errors.died(code, self._last_lines())

    async def _remove_leftovers(self, request: Request) -> None:
        """Remove what is left of an earlier server, before its GPUs are counted as taken."""
        existing = await self.get_object()
        resumed = existing and not self.remove and request.gpus == 0 and await self._same(existing)
        left = {container["Id"] for container in await self._own_containers()}
        left |= {existing["Id"]} if existing else set()
        for container_id in left - ({existing["Id"]} if resumed else set()):
            self.log.warning("Removing container %s, left by an earlier server", container_id[:12])
            await cleanup.remove(self.docker, container_id)
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
        return cleanup.can_resume(existing, plan, image["Id"])

    async def create_object(self) -> Any:
        """Create the container; from then on its labels hold the GPUs."""
        self._steps.say(40, lazy_gettext("Creating the container"))
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
            raise http_errors.failure(
                lazy_gettext("The container was created with other GPUs than were granted.")
            )
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
                f"so servers go without it from now on ({engine_errors.explain(error)})"
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
        if isinstance(error, OverLimit):
            return http_errors.refusal(str(error), "limit", 403)
        if isinstance(error, NotEnough | Unknown):
            reason = "no_gpu" if isinstance(error, NotEnough) else "unknown"
            return http_errors.refusal(str(error), reason, 503)
        self.log.error("Starting %s failed", self._log_name, exc_info=error)
        return http_errors.failure(engine_errors.explain(error))

    async def get_url(self) -> str:
        """Return where a running server is; asked by a hub that was killed while it started."""
        try:
            ip, port = await self.get_ip_and_port()
        except Exception:  # the engine is away: what the database has is the best there is
            return self.server.url
        return f"{'https' if self.internal_ssl else 'http'}://{ip}:{port}"

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """Yield what happens, in words; the key `gpuspawner` has what our own page shows of it."""
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
                    cleanup.remove_later(self.object_name, self.docker, container["Id"])
                    self.object_id = ""
                elif container["State"] not in RELEASED_STATES:
                    await self.docker("stop", container["Id"])
            await cleanup.finish(self.object_name)
        except engine_errors.UNREACHABLE as error:
            self.log.warning("Container %s may remain: %s", self.object_name, error)
            if self.container_id and self.remove:
                cleanup.remove_later(self.object_name, self.docker, self.container_id)
        await maybe_future(super().run_post_stop_hook())


def _waited(waiting: QueuedRequest) -> float:
    return round(max(0.0, time.time() - waiting.since), 1)
