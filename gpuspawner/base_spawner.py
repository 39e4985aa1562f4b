"""The base class of GPU spawners: form, check, queue, start and end, for any backend.

A subclass for a backend implements how a server is created, started and removed there.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from jupyterhub.utils import maybe_future
from tornado import web
from traitlets import default

from .backends.base import Backend
from .backends.launch import ensure_cleared, launch
from .choices import form, form_stream, options
from .choices.check import (
    Applicant,
    CheckedChoice,
    check_choice,
    forecast_choice,
)
from .choices.limits import without_absent_versions
from .errors import GPUSpawnerError, Refused, StartAgain, Unknown
from .gpus.model import Holder, Request
from .group_overrides import GroupOverrides, OverrideError
from .hub import compat, http_errors, metrics
from .hub.progress import Steps
from .hub.state import HubState, build_early, hub_state_of
from .i18n.languages import Language, language_for, translations
from .i18n.lazy_text import join_sentences, lazy_gettext
from .i18n.phrases import ordinal
from .leases.ledger import Ledger, Reservation, View
from .leases.server_lease import ServerLease, iso_time
from .scheduling.phrases import turn_words
from .scheduling.plan import QueuedRequest, Turn
from .scheduling.queue import held_by_person
from .settings import GPUTraits

# The key of our part of a spawner's state.
STATE_KEY = "gpuspawner"
# The service that the dashboard is, in the shipped configuration.
DASHBOARD = "gpus"


@dataclass(eq=False)
class SpawnAttempt:
    """The state of one spawn; `clear_state` replaces it as a whole.

    Args:
        since: when the choice was made, in seconds since the epoch: the time at which its request
            joins the queue.
        request: the request of the choice.
        waiting_since: `since`, once the request waits in the queue.
        reservation: the granted reservation, until `launch` takes it over.
        granted: the granted reservation, for as long as the spawn lasts.
        image: the administrator's `image`, if the choice has replaced it.
        chosen_image: the choice's image; a hook may have replaced it again.
        reserved_at: when the GPUs of this try were reserved, by the monotonic clock.
        pulled: the image that has been pulled or found on the engine.
    """

    since: float | None = None
    request: Request | None = None
    waiting_since: float | None = None
    reservation: Reservation | None = None
    granted: Reservation | None = None
    image: str | None = None
    chosen_image: str | None = None
    reserved_at: float = 0.0
    pulled: str | None = None


class BaseGPUSpawner(compat.UnofficialHooks, GPUTraits):
    """Spawner of single-user servers that see exactly the GPUs they were granted."""

    # Class attributes, as traits that are functions are called before `__init__` sets them.
    _hub_state: HubState | None = None
    _is_initialised = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a subclass that lacks an abstract method; traitlets' metaclass excludes `abc`."""
        super().__init_subclass__(**kwargs)
        missing = [name for name in dir(cls) if _is_abstract(cls, name)]
        if missing:
            raise TypeError(f"{cls.__name__} doesn't say how it does {', '.join(missing)}")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.attempt = self.new_attempt()
        self.lease = ServerLease(self)
        self.progress_steps = Steps(translations)
        self.overrides = GroupOverrides(self)
        self._is_initialised = True
        self._last_choice = compat.saved_options(self)
        # The last choice if it was refused: the form shows it again, to be corrected.
        self._refused_choice: Any = None
        build_early(self)

    # -- Identity and shared state ---------------------------------------------------------------

    @property
    def holder(self) -> Holder:
        """This server as the holder of its GPUs."""
        return Holder(self.user.name, self.name) if self.user else Holder("")

    @property
    def hub_address(self) -> str:
        """The URL of the hub's API, which tells hubs that share a backend apart."""
        return self.hub.api_url if self.hub else ""

    @property
    def hub_state(self) -> HubState:
        """The state that all spawners of this hub share."""
        if self._hub_state is None:
            self._hub_state = hub_state_of(self)
        return self._hub_state

    @property
    def backend(self) -> Backend:
        """The backend that starts servers."""
        return self.hub_state.backend

    @property
    def ledger(self) -> Ledger:
        """The ledger of leases and reservations."""
        return self.hub_state.ledger

    # -- Methods that a subclass for a backend implements ----------------------------------------

    def new_attempt(self) -> SpawnAttempt:
        """Return the state of a new spawn."""
        return SpawnAttempt()

    @abstractmethod
    def make_backend(self) -> Backend:
        """Make the backend for all spawners of this hub."""

    @abstractmethod
    def explain(self, error: BaseException) -> str:
        """Return what an error of the backend means, as a sentence for users."""

    @abstractmethod
    def explain_unknown(self, error: BaseException) -> str:
        """Return why the nodes or leases couldn't be read, as a sentence for users."""

    @property
    @abstractmethod
    def server_key(self) -> str:
        """A name of this server that is unique on this hub."""

    @property
    @abstractmethod
    def server_id(self) -> str:
        """The backend's id of the server; "" if there is none."""

    @abstractmethod
    async def remove_leftovers(self, request: Request) -> None:
        """Remove the containers of earlier starts of this server before its GPUs are reserved."""

    @abstractmethod
    async def create_server(self, reservation: Reservation) -> str:
        """Create the server and return its id. A step of `launch`, as are the next ones."""

    @abstractmethod
    async def verify_server(self, server_id: str, reservation: Reservation) -> None:
        """Raise an exception if the server was created with other GPUs than were reserved."""

    @abstractmethod
    async def start_server(self, server_id: str) -> None:
        """Start the server."""

    @abstractmethod
    async def await_server(self, server_id: str) -> tuple[str, int]:
        """Wait until the server answers; return its (ip, port)."""

    def discarder(self) -> Callable[[str], Awaitable[None]]:
        """Return the function that undoes this try's `create_server`, given the server's id."""
        return self.backend.remove

    async def clean_up_ended(self) -> None:
        """Clean up after a server that has ended, for whatever reason."""

    def last_lines(self) -> list[str]:
        """Return the last lines of the server's output during its start."""
        return []

    # -- The choice ------------------------------------------------------------------------------

    @default("options_form")
    def _options_form_default(self) -> Any:
        return BaseGPUSpawner.render_form

    @default("options_from_form")
    def _options_from_form_default(self) -> Any:
        return options.from_fields

    def options_from_query(self, query_data: dict[str, list[str]]) -> dict[str, Any]:
        """Interpret a link's arguments; JupyterHub 5 doesn't remove `opt-` from their names."""
        return self.run_options_from_form(
            {key.removeprefix("opt-"): value for key, value in query_data.items()}
        )

    def on_request(self, handler: Any) -> None:
        """Remember the current request and its language."""
        form_stream.remember_request(handler)
        if handler is not None:
            self._accept_language = form_stream.accept_language_of()

    # The image of the next server, where the spawner class has such a trait.
    image: Any
    # The Accept-Language of the last request with a `handler`, which JupyterHub doesn't always set.
    _accept_language = ""

    def language(self, static_url: Any = None) -> Language:
        """Return the language of the user's browser.

        Args:
            static_url: a template's `static_url`, in a page that is rendered without `handler` set.
        """
        handler = compat.handler_of_page(static_url)
        return language_for(form_stream.accept_language_of(handler) or self._accept_language)

    async def apply_group_overrides(self) -> None:
        """Apply the group overrides to the configured values, so that rights end with membership.

        Also called for the form, which JupyterHub renders before it applies the overrides.

        Raises:
            web.HTTPError: an override can't be applied; the message names override and trait.
        """
        try:
            await self.overrides.apply(super().apply_group_overrides)
        except OverrideError as error:
            self.log.exception("%s", error)
            raise http_errors.failure(f"{error} Please tell an administrator.") from error

    def apply_override(self, override: dict[str, Any]) -> None:
        """Apply one group override."""
        self.overrides.apply_one(override)

    async def check_options(self, user_options: Any) -> None:
        """Check the choice of a spawn, whether by form, link or REST API."""
        self.progress_steps.begin()
        self.attempt.since = self.hub_state.queue.join_time()
        try:
            checked = await self._check(user_options)
        except (Refused, Unknown) as error:
            if isinstance(error, Refused) and error.status in (400, 403):
                compat.save_options(self, self._last_choice)
            self._refused_choice = user_options
            raise self.refusal(error) from None
        self.attempt.request = checked.request
        if checked.image is not None:
            self._use_image(checked.image)
        self._last_choice, self._refused_choice = user_options, None
        self.lease.notice = ""

    def applicant(self) -> Applicant:
        """Return this server with the rules that apply to its user now."""
        return Applicant(
            self.holder,
            self.groups,
            self.limits(),
            self.request_limits(),
            self._has_own_options(),
        )

    async def _check(self, raw: Any) -> CheckedChoice:
        try:
            return await check_choice(raw, self.applicant(), self.ledger, self.hub_state.queue)
        except Unknown as error:
            hint = lazy_gettext("Until then, servers with 0 GPUs can be started.")
            raise Unknown(join_sentences(str(error), hint)) from error

    def refusal(self, error: Refused | Unknown) -> web.HTTPError:
        """Return the HTTP error for a refused request, in its user's language."""
        return http_errors.refusal(error, self.language())

    def _use_image(self, image: str) -> None:
        """Use an image for this spawn; `clear_state` restores the administrator's."""
        if self.attempt.image is None:
            self.attempt.image = self.image
        self.image = self.attempt.chosen_image = image

    def _has_own_options(self) -> bool:
        """Return whether the administrator's hooks may read further keys of `user_options`."""
        return bool(
            self.apply_user_options
            or self.options_form != BaseGPUSpawner.render_form
            or self.options_from_form is not options.from_fields
        )

    async def render_form(self) -> str:
        """Return the spawn form as HTML; "" if there is nothing to choose.

        Raises:
            web.Finish: the form's script has requested it and has been answered.
        """
        await self.apply_group_overrides()
        asked = form_stream.requested_choice()
        applicant, open_forms = self.applicant(), self.hub_state.open_forms
        limits = without_absent_versions(applicant.limits, await self._absent_versions())

        def rendered(choice: options.Choice, view: View | None, trouble: str, **more: Any) -> str:
            seen = view or View()
            return form.render(
                limits,
                choice,
                view,
                lambda each: forecast_choice(each, applicant, self.hub_state.queue, seen),
                language=self.language(),
                trouble=trouble,
                **more,
            )

        if asked is None:
            refused = self._refused_choice
            choice = options.restore_choice(refused or compat.saved_options(self))
            seen = await open_forms.recent_view(self.holder)
            return rendered(choice, *seen, notice=self.notice, keep=bool(refused))
        picked, rules = options.restore_choice(asked), str(limits)

        async def render_again(seconds: float) -> str:
            view, trouble = await open_forms.recent_view(self.holder, seconds)
            claims = self.hub_state.queue.claims(view.leases if view else ())
            return open_forms.render_cache.get(
                open_forms.visible_state(view, trouble),
                (picked, rules, held_by_person(self.holder, claims), self.language().tag),
                lambda: rendered(picked, view, trouble, picked=True),
            )

        answer = await form_stream.answer(render_again, open_forms.watcher, lambda: self.active)
        raise compat.answer_instead_of_page(answer)

    async def _absent_versions(self) -> frozenset[str]:
        """Return the keys of the versions whose image isn't on the engine and won't be pulled."""
        if self.pull_policy != "never":
            return frozenset()
        versions = self.limits().versions
        images = {each.image for each in versions.values()}
        missing = await self.hub_state.local_images.missing(images)
        return frozenset(key for key, each in versions.items() if each.image in missing)

    # -- For the templates in hub/templates ------------------------------------------------------

    def steps_so_far(self) -> list[dict[str, Any]]:
        """Return the progress events of this start so far."""
        return self.progress_steps.so_far()

    @property
    def notice(self) -> str:
        """Why the last server was stopped; "" if the user stopped it."""
        return self.lease.notice

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """Yield progress events; the key `gpuspawner` has further data for our own page."""
        async for event in self.progress_steps.follow():
            yield event

    # -- Before start_timeout's clock starts -----------------------------------------------------

    async def run_pre_spawn_hook(self) -> None:
        """Run the administrator's hook, pull the image, and wait for GPUs."""
        await maybe_future(super().run_pre_spawn_hook())
        try:
            await self.pull_image(self.image)
            self.attempt.pulled = self.image
            await ensure_cleared(self.server_key, self.hub_state.leftovers)
            self.attempt.reservation = await self._wait_for_turn()
        except Exception as error:
            raise self.to_http_error(error) from error

    async def pull_image(self, image: str) -> None:
        """Pull the image if needed, once per spawn, and show the progress."""
        if self.attempt.pulled == image:
            return

        def report(fraction: float, words: str) -> None:
            self.progress_steps.add(5 + int(55 * fraction), words, about="image")

        await self.backend.pull(image, self.pull_policy, report)

    async def _wait_for_turn(self) -> Reservation:
        """Wait in the queue; return the reservation, granted by the rules at that time."""
        attempt = self.attempt
        if attempt.request is None:
            checked = await self._check(self.user_options)
            attempt.request = checked.request
            if checked.image is not None:
                self._use_image(checked.image)
        await self.remove_leftovers(attempt.request)
        attempt.since = attempt.since or self.hub_state.queue.join_time()
        while True:
            request = attempt.request
            reservation = await self._wait_in_queue(request)
            try:
                if attempt.waiting_since is not None:
                    attempt.request = await self._recheck(request)
                    if replace(attempt.request, image=request.image) != request:
                        # The rules have changed: other GPUs have to be reserved.
                        self._give_back(reservation)
                        continue
                    attempt.waiting_since = None
                    compat.save_state(self)
            except BaseException:
                # Refused by a new rule, cancelled, or the database can't be written.
                self._give_back(reservation)
                raise
            attempt.granted = reservation
            return reservation

    async def _wait_in_queue(self, request: Request) -> Reservation:
        """Wait in the queue; return the reservation and begin the lease's term."""
        if request.gpus == 0:
            self.lease.begin_term(None)
            return Reservation(self.holder, ())
        queue, since = self.hub_state.queue, self.attempt.since or time.time()
        waiting = QueuedRequest(self.holder, request, since, self.groups)
        try:
            reservation = await queue.wait(waiting, self.request_limits(), self._show_turn)
        except asyncio.CancelledError:
            self.lease.log_event("leave", gpus=request.gpus, waited=_waited(since))
            raise
        except (Refused, Unknown) as error:
            self.lease.log_event(
                "refuse", gpus=request.gpus, waited=_waited(since), rule=str(error)
            )
            raise
        self.lease.begin_term(request.seconds)
        metrics.WAITS.observe(_waited(since))
        self.lease.log_event(
            "grant",
            gpus=reservation.uuids,
            waited=_waited(since),
            rule=queue.settings.order,
            until=self.lease.until and round(self.lease.until),
        )
        return reservation

    def _give_back(self, reservation: Reservation) -> None:
        self.ledger.release(reservation)
        if reservation.gpus:
            self.lease.log_event(
                "release", gpus=reservation.uuids, rule="given up before the start"
            )

    async def _recheck(self, request: Request) -> Request:
        """Check the choice again after a wait, by the rules that apply now; return its request.

        Traits that the administrator's hooks have set since the first check keep their values.
        """
        attempt, hooked = self.attempt, self.overrides.changed_since()
        hooks_image = self.image if self.image != attempt.chosen_image else None
        try:
            await self.apply_group_overrides()
            self.overrides.keep(hooked)
            checked = await self._check(self.user_options)
        except Unknown:  # the request keeps its turn
            return request
        if attempt.chosen_image is not None and hooks_image is not None:
            self.image = hooks_image
        elif checked.image is not None:
            self._use_image(checked.image)
            await self.pull_image(self.image)
        return checked.request

    def _show_turn(self, turn: Turn | str) -> None:
        """Show the server's place in the queue on the progress page."""
        facts: dict[str, Any] = {}
        if not isinstance(turn, str):
            if self.attempt.waiting_since is None:
                self.attempt.waiting_since = self.attempt.since
                compat.save_state(self)
                self.lease.log_event("wait", gpus=turn.waiting.request.gpus, rule=turn.because)
            nth = ordinal(turn.place)
            facts = {"place": turn.place, "nth": nth, "start": turn.start}
            facts["nth_said"] = translations(nth)
            facts["because"] = turn.because
            turn = turn_words(turn)
        self.progress_steps.add(15, turn, about="queue", **facts)

    # -- Start -----------------------------------------------------------------------------------

    async def start(self) -> tuple[str, int]:
        """Start a server with the GPUs of its request; return its (ip, port) once it answers."""
        began = time.monotonic()
        try:
            launched = await launch(self, self.ledger, self.hub_state.leftovers)
        except asyncio.CancelledError:
            self._log_failed_start()
            if time.monotonic() - began < self.start_timeout * 0.98:
                raise  # the user gave up, not the clock
            raise http_errors.StartTimeout(self.start_timeout, self.last_lines()) from None
        except Exception as error:
            self._log_failed_start()
            raise self.to_http_error(error) from error
        self.lease.hold(launched.reservation.uuids)
        seconds = time.monotonic() - self.attempt.reserved_at
        metrics.observe_start(seconds, len(launched.reservation.gpus))
        return launched.answer

    async def reserve_gpus(self) -> Reservation:
        """Return the reservation made before the start; for another try, wait for a new one."""
        reservation, self.attempt.reservation = self.attempt.reservation, None
        if reservation is None:
            reservation = await self._wait_for_turn()
        self.attempt.reserved_at = time.monotonic()
        self.progress_steps.add(20, form.granted_phrase(reservation.gpus))
        return reservation

    def on_retry(self, reason: StartAgain) -> None:
        """Log why the start is tried again."""
        self._log_failed_start()
        self.log.warning("Starting %s again: %s", self._log_name, reason)

    def _log_failed_start(self) -> None:
        granted = self.attempt.granted
        if granted and granted.gpus:
            self.lease.log_event("release", gpus=granted.uuids, rule="the start failed")
        self.attempt.granted = None

    def to_http_error(self, error: Exception) -> Exception:
        """Return the exception that shows the user what this one means."""
        if isinstance(error, web.HTTPError):
            return error
        if isinstance(error, Refused | Unknown):
            return self.refusal(error)
        if isinstance(error, GPUSpawnerError):
            said = getattr(error, "said", "")  # the engine's own words
            self.log.error("Starting %s failed: %s %s", self._log_name, error, said)
            return http_errors.failure(str(error))
        self.log.error("Starting %s failed", self._log_name, exc_info=error)
        return http_errors.failure(self.explain(error))

    def get_env(self) -> dict[str, str]:
        """Return the server's environment, with when its time ends and where the dashboard is."""
        ours = {
            "GPUSPAWNER_UNTIL": iso_time(self.lease.until) if self.lease.until else "",
            "GPUSPAWNER_DASHBOARD_URL": compat.url_of_service(self, DASHBOARD),
        }
        return {**super().get_env(), **{name: value for name, value in ours.items() if value}}

    # -- What survives a restart of the hub ------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Return the state for `load_state`, with the lease or since when the server waits."""
        ours = {**self.lease.saved(), "waiting_since": self.attempt.waiting_since}
        return {**super().get_state(), **({STATE_KEY: ours} if any(ours.values()) else {})}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the state that an earlier hub process saved."""
        super().load_state(state)
        ours = state.get(STATE_KEY) or {}
        self.lease.restore(ours)
        if ours.get("waiting_since"):
            self.lease.notice = lazy_gettext(
                "JupyterHub was restarted while you waited for GPUs, so that you have lost your "
                "place. Please start your server again."
            )

    def clear_state(self) -> None:
        """Reset the state of the last spawn; called before every start and after every stop."""
        super().clear_state()
        attempt, self.attempt = self.attempt, self.new_attempt()
        if attempt.image is not None:
            self.image = attempt.image
        if attempt.reservation:
            self.ledger.release(attempt.reservation)  # cancelled between its turn and its start
        self.lease.end()

    # -- The lease's server (`LeasedServer`) -----------------------------------------------------

    @property
    def waiting_requests(self) -> int:
        """The number of requests that wait for GPUs."""
        return len(self.hub_state.queue.waiting)

    async def apply_rules(self) -> None:
        """Apply the group overrides to a server that an earlier hub process started."""
        with suppress(web.HTTPError):  # an invalid override, which has been logged
            await self.apply_group_overrides()

    def on_lease_begin(self) -> None:
        """Register the lease with the reclaimer."""
        with suppress(RuntimeError):  # no event loop: the hub's own command line
            asyncio.get_running_loop()
            self.hub_state.leases.add(self.lease)
            self.hub_state.reclaimer.start()

    def on_lease_end(self) -> None:
        """Unregister the lease from the reclaimer."""
        if self._hub_state:
            self._hub_state.leases.discard(self.lease)

    def on_end_changed(self, until: float) -> None:
        """Record when the lease ends now, for the plans of the queue."""
        if self.server_id:
            self.ledger.ends[self.server_id] = until

    def save_state(self) -> None:
        """Save the lease in the hub's database."""
        compat.save_state(self)

    async def stop_through_hub(self) -> None:
        """Stop the server and let the hub update its route, database and hooks."""
        await self.stop()
        await self.poll_and_notify()

    async def run_post_stop_hook(self) -> None:
        """Clean up after the server, then run the administrator's hook.

        JupyterHub forgets a server whose stop failed; it would keep running and hold its GPUs.
        """
        await self.clean_up_ended()
        await maybe_future(super().run_post_stop_hook())


def _is_abstract(cls: type, name: str) -> bool:
    return name in vars(BaseGPUSpawner) and getattr(
        inspect.getattr_static(cls, name), "__isabstractmethod__", False
    )


def _waited(since: float) -> float:
    return round(max(0.0, time.time() - since), 1)
