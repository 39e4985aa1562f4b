"""The base class of GPU spawners: form, check, queue, start and end, for any backend.

A subclass for a backend implements how a server is created, started and removed there.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from jupyterhub.utils import maybe_future
from markupsafe import Markup
from tornado import web
from traitlets import TraitError, default

from .backends.base import Backend
from .backends.launch import ensure_cleared, launch
from .choices import form, form_stream, options, start_link
from .choices.check import (
    Applicant,
    CheckedChoice,
    check_choice,
    forecast_choice,
)
from .choices.home_use import HomeUse
from .choices.limits import Limits, without_absent_versions
from .errors import GPUSpawnerError, Refused, StartAgain, Unknown
from .gpus.model import Holder, Request
from .group_overrides import WHILE_RUNNING, GroupOverrides, OverrideError
from .hub import compat, http_errors, metrics
from .hub.home_page import HomePage
from .hub.progress import Steps
from .hub.server_page import DASHBOARD, ServerPage
from .hub.state import HubState, build_at_start, build_early, hub_state_of
from .i18n.languages import Language, language_for, translations
from .i18n.lazy_text import join_sentences, lazy_gettext
from .i18n.phrases import ordinal
from .leases import audit_log
from .leases.audit_log import one_line
from .leases.clock import Clock, Deadline
from .leases.ledger import Ledger, Reservation, View
from .leases.server_lease import ServerLease, iso_time
from .scheduling.phrases import kept_words, place_words, turn_words
from .scheduling.plan import QueuedRequest, Turn
from .scheduling.queue import PERIOD_SECONDS, held_by_person
from .settings import GPUTraits

# The longest pause between tries to keep an extension.
KEEP_END_SECONDS = 10
# The key of our part of a spawner's state.
STATE_KEY = "gpuspawner"
NOTHING_STARTED = lazy_gettext("A link has led here. Nothing starts until you press Start.")
FILLED_IN = lazy_gettext("A link has filled in this form. Nothing starts until you press Start.")
# Where a server in safe mode has what is else at home. ref: jupyter_core.paths, IPython.paths
_SCRATCH = "/tmp/jupyter-safe-mode"  # noqa: S108 - a server's own
SAFE_MODE = {
    "GPUSPAWNER_SAFE_MODE": "1",
    "JUPYTER_CONFIG_DIR": f"{_SCRATCH}/config",
    "JUPYTER_DATA_DIR": f"{_SCRATCH}/data",
    "IPYTHONDIR": f"{_SCRATCH}/ipython",
    "PYTHONNOUSERSITE": "1",
}


@dataclass(eq=False)
class SpawnAttempt:
    """The state of one spawn; `clear_state` replaces it as a whole.

    Args:
        since: when the choice was made, in seconds since the epoch: the time at which its request
            joins the queue, for the order.
        joined: the same by the steady clock, for how long it has waited.
        request: the request of the choice.
        waiting_since: `since`, once the request waits in the queue.
        reservation: the granted reservation, until `launch` takes it over.
        granted: the granted reservation, for as long as the spawn lasts.
        is_up: whether the server has started, by this hub process or an earlier one.
        granted_at: when the last reservation was granted, by the monotonic clock.
        reserved_at: when the GPUs of this try were reserved, by the monotonic clock.
        pulled: the image that has been pulled or found on the engine.
        safe_mode: whether the server starts without what its user has set up at home.
        image_title: what users call the request's image; it is known after a restart, too.
        changing_until: until when, by the monotonic clock, a request that leaves the queue keeps
            its place, as its user has said that they change their choice.
        is_refused: whether its choice was refused, so that nothing was begun.
    """

    since: float | None = None
    joined: Deadline | None = None
    request: Request | None = None
    waiting_since: float | None = None
    reservation: Reservation | None = None
    granted: Reservation | None = None
    is_up: bool = False
    granted_at: float = 0.0
    reserved_at: float = 0.0
    pulled: str | None = None
    safe_mode: bool = False
    image_title: str = ""
    changing_until: float = 0.0
    is_refused: bool = False


class BaseGPUSpawner(compat.UnofficialHooks, GPUTraits):
    """Spawner of single-user servers that see exactly the GPUs they were granted."""

    # Class attributes, as traits that are functions are called before `__init__` sets them.
    _hub_state: HubState | None = None
    _is_initialised = False
    # Whether the server is being stopped: the hooks that run then read the traits of its spawn.
    _is_stopping = False
    # Whether an earlier hub process started the server, so that overrides aren't applied yet; and
    # the values that hooks had set for it there.
    _rules_unknown = False
    _kept_rules: Mapping[str, Mapping[str, Any]] = {}
    # The call that keeps the last extension; a strong reference, as the loop holds tasks weakly.
    _keeping_end: asyncio.Task[None] | None = None

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
        self._last_choice = self._saved_choice()
        # The last choice if it was refused: the form shows it again, to be corrected.
        self._refused_choice: Any = None
        build_early(self)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if self._is_initialised:
            self.overrides.was_assigned(name)

    # -- Identity and shared state ---------------------------------------------------------------

    @property
    def holder(self) -> Holder:
        """This server as the holder of its GPUs."""
        return Holder(self.user.name, self.name) if self.user else Holder("")

    @property
    def log_name(self) -> str:
        """The name of this server in the log."""
        return one_line(self._log_name)

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

    @property
    def is_known(self) -> bool:
        """Whether the hub takes this server to run, to start or to stop, or holds GPUs for it."""
        attempt = self.attempt
        return bool(self.active or self.lease.uuids or attempt.reservation or attempt.granted)

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

    @abstractmethod
    async def stop_server(self, now: bool) -> None:
        """Stop the server; `now`: without waiting for it to end by itself."""

    def keeps_settings(self) -> bool:
        """Return whether what a user has set up outlives the server, so that it may break one."""
        return False

    def home_use(self, allowed: int | None) -> HomeUse | None:
        """Return how much the user keeps at home, at once; None where that isn't known.

        Args:
            allowed: how many bytes they may keep; None: no limit.
        """
        return None

    def home_facts(self) -> dict[str, Any] | None:
        """Return the same as a JSON value, for a server that runs."""
        return None

    def discarder(self) -> Callable[[str], Awaitable[None]]:
        """Return the function that undoes this try's `create_server`, given the server's id."""
        return self.backend.remove

    async def clean_up_ended(self) -> None:
        """Clean up after a server that has ended, for whatever reason."""

    def last_lines(self) -> list[str]:
        """Return the last lines of the server's output during its start."""
        return []

    def explain_end(self) -> str:
        """Return why the server has ended by itself, as sentences for its user; "" if unknown."""
        return ""

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
        """Remember the current request, its language and the choice of a link."""
        form_stream.remember_request(handler)
        start_link.remember_link(handler)
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

        Raises:
            web.HTTPError: an override can't be applied; the message names override and trait.
        """
        self._apply_overrides_of(await self._overrides_that_apply())

    async def _overrides_that_apply(self) -> list[dict[str, Any]]:
        try:
            return await self.overrides_that_apply()
        except Exception as error:
            raise self._wrong_override(OverrideError(error)) from error

    def _apply_overrides_of(self, overrides: list[dict[str, Any]]) -> None:
        self._rules_unknown = False
        try:
            self.overrides.apply(overrides)
        except OverrideError as error:
            raise self._wrong_override(error) from error

    def _wrong_override(self, error: OverrideError) -> web.HTTPError:
        self.log.error("%s", one_line(error), exc_info=error)
        return http_errors.failure(f"{error} Please tell an administrator.")

    def _saved_choice(self) -> Any:
        """Return the choice of the last start; None if there is none.

        Another spawner's form may have saved what is no mapping, and then JupyterHub itself fails
        at each start.
        """
        saved = compat.saved_options(self)
        if saved is None or isinstance(saved, Mapping):
            return saved
        compat.save_options(self, None)
        self.log.warning("The saved choice of %s is set aside: it has no keys", self.log_name)
        return None

    async def check_options(self, user_options: Any) -> Any:
        """Check the choice of a spawn, whether by form, link or REST API; return what holds of it.

        That is all of it, but for a saved one.
        """
        self.progress_steps.begin()
        self._join()
        try:
            if compat.repeats_saved_options(self):
                return await self._check_saved(user_options)
            checked = await self._check(user_options, self.applicant())
        except (Refused, Unknown) as error:
            self.attempt.is_refused = True
            if isinstance(error, Refused) and error.status in (400, 403):
                compat.save_options(self, self._last_choice)
            if options.is_too_large(user_options) and not self.has_own_options():
                self.user_options: Any = {}  # else it would be kept until the next start
            else:
                self._refused_choice = user_options
            raise self.refusal(error) from None
        self._take(checked)
        self._last_choice, self._refused_choice = user_options, None
        self.lease.notice = ""
        self.hub_state.endings.pop(self.holder, None)
        return user_options

    async def _check_saved(self, saved: Any) -> Any:
        """Check the choice of the last start; return it without what can't be had any more.

        It may be another spawner's, or from before a change of the rules, and who starts a server
        now hasn't made it: a refusal would meet them at every start.
        """
        applicant, refusal = self.applicant(), None
        for kept in (saved, *options.parts_of(saved, applicant.others_allowed)):
            try:
                checked = await self._check(kept, applicant)
            except Refused as error:
                if error.reason != "choice" or error.status not in (400, 403):
                    raise
                refusal = refusal or error
                continue
            self._take(checked)
            self._refused_choice, self.lease.notice = None, ""
            self.hub_state.endings.pop(self.holder, None)
            if refusal:
                self.user_options = kept
                said = one_line(refusal.keyed)
                self.log.warning("The saved choice of %s is set aside: %s", self.log_name, said)
                aside = lazy_gettext(
                    "Part of your last choice isn't available any more, and is left out."
                )
                self.progress_steps.add(0, join_sentences(aside, str(refusal)))
            return kept
        assert refusal
        raise refusal

    def applicant(self) -> Applicant:
        """Return this server with the rules that apply to its user now."""
        return Applicant(
            self.holder,
            self.groups,
            self.limits(),
            self.request_limits(),
            self.has_own_options(),
        )

    async def applicant_for_form(self) -> tuple[Applicant, str]:
        """Return this server's user and `pull_policy` by the current rules; change no trait.

        JupyterHub has the default server's spawner render the form of named servers, too, even
        while the default server runs or waits.
        """
        overrides = await self._overrides_that_apply()
        if self.active:
            await self.ensure_rules_applied()
            return self.applicant(), self.pull_policy
        try:
            self._apply_overrides_of(overrides)
            return self.applicant(), self.pull_policy
        finally:
            self.overrides.put_back()

    async def _check(self, raw: Any, applicant: Applicant) -> CheckedChoice:
        try:
            return await check_choice(raw, applicant, self.ledger, self.hub_state.queue)
        except Unknown as error:
            hint = lazy_gettext("Until then, servers with 0 GPUs can be started.")
            raise Unknown(join_sentences(str(error), hint)) from error

    def refusal(self, error: Refused | Unknown) -> web.HTTPError:
        """Return the HTTP error for a refused request, in its user's language and words."""
        return http_errors.refusal(error, self.language(), form_stream.is_rest_request())

    def _take(self, checked: CheckedChoice) -> None:
        self.attempt.request, self.attempt.safe_mode = checked.request, checked.safe_mode
        self.attempt.image_title = checked.title
        if checked.image is not None:
            self.overrides.choose("image", checked.image)

    def has_own_options(self) -> bool:
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
        asked, open_forms = form_stream.requested_choice(), self.hub_state.open_forms
        applicant, pull_policy = await self.applicant_for_form()
        absent = await self._absent_versions(applicant.limits, pull_policy)
        limits = without_absent_versions(applicant.limits, absent)

        def rendered(choice: options.Choice, view: View | None, trouble: str, **more: Any) -> str:
            seen = view or View()
            return form.render(
                limits,
                choice,
                view,
                lambda each: forecast_choice(each, applicant, self.hub_state.queue, seen),
                language=self.language(),
                trouble=trouble,
                safe_mode=self.keeps_settings(),
                **more,
            )

        if asked is None:
            picked_before, notice = self._refused_choice, self.notice
            if kept := self.hub_state.queue.kept_place(self.holder):
                notice = join_sentences(notice, kept_words(kept.until))
            if (linked := start_link.linked_choice()) is not None:
                picked_before = self.options_from_query(dict(linked))
                notice = join_sentences(notice, FILLED_IN, self._parse_error(picked_before))
            choice = options.restore_choice(picked_before or compat.saved_options(self))
            seen = await open_forms.recent_view(self.holder)
            home = self.home_use(applicant.limits.files)
            return rendered(choice, *seen, notice=notice, keep=bool(picked_before), home=home)
        picked, rules = options.restore_choice(asked), str(limits)

        async def render_again(seconds: float) -> str:
            view, trouble = await open_forms.recent_view(self.holder, seconds)
            claims = self.hub_state.queue.claims(view.leases if view else ())
            return open_forms.render_cache.get(
                open_forms.visible_state(view, trouble),
                (
                    picked,
                    rules,
                    held_by_person(self.holder, claims),
                    self.hub_state.queue.kept_place(self.holder),
                    self.language().tag,
                ),
                lambda: rendered(picked, view, trouble, picked=True),
            )

        answer = await form_stream.answer(render_again, open_forms.watcher, lambda: self.active)
        raise compat.answer_instead_of_page(answer)

    def _parse_error(self, raw: Any) -> str:
        """Return why a choice is invalid; "" if it isn't."""
        try:
            options.parse(raw, others_allowed=self.has_own_options())
        except Refused as error:
            return str(error)
        return ""

    async def get_options_form(self) -> str:
        """Return the form; without one, what holds the choice of a link from elsewhere."""
        shown = await super().get_options_form()
        linked = start_link.linked_choice()
        if shown or linked is None:
            return str(shown or "")
        said = Markup("<p>{}</p>").format(self.language().say(NOTHING_STARTED))
        return str(said + start_link.hidden_fields(linked))

    async def _absent_versions(self, limits: Limits, pull_policy: str) -> frozenset[str]:
        """Return the keys of the versions whose image isn't on the engine and won't be pulled."""
        if pull_policy != "never":
            return frozenset()
        versions = limits.versions
        images = {each.image for each in versions.values()}
        missing = await self.hub_state.local_images.missing(images)
        return frozenset(key for key, each in versions.items() if each.image in missing)

    # -- For the templates in hub/templates ------------------------------------------------------

    def start_link(self, spawn_url: str, static_url: Any) -> str:
        """Return the URL of the start button, with the options of the link that was opened."""
        return compat.start_link(spawn_url, static_url)

    @property
    def page(self) -> ServerPage:
        """What pages say of this server."""
        return ServerPage(self)

    @property
    def home(self) -> HomePage:
        """What the home page of this server's user says."""
        return HomePage(self)

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
        self.attempt.pulled = image

    async def _wait_for_turn(self) -> Reservation:
        """Wait in the queue; return the reservation, granted by the rules at that time."""
        attempt = self.attempt
        if attempt.request is None:
            with self.overrides.without_hooks():
                applicant = self.applicant()
            self._take(await self._check(self.user_options, applicant))
        assert attempt.request
        await self.remove_leftovers(attempt.request)
        if attempt.since is None:
            self._join()
        while True:
            request = attempt.request
            reservation = await self._wait_in_queue(request)
            try:
                if attempt.waiting_since is not None:
                    granted_by = reservation.groups, self.request_limits()
                    await self._check_again()
                    asked = replace(attempt.request, image=request.image)
                    rules = self.groups, self.request_limits()
                    if asked != request or (request.gpus and rules != granted_by):
                        # By the current rules it is another request, or in another group's share.
                        # Nothing awaits until it is back in the queue, at its place.
                        self._give_back(reservation)
                        continue
                    attempt.waiting_since = None
                attempt.granted = reservation
                compat.save_state(self)
            except BaseException:  # refused by a new rule, or cancelled
                attempt.granted = None
                self._give_back(reservation)
                raise
            return reservation

    def _join(self) -> None:
        """Note that the request comes now."""
        self.attempt.since = self.hub_state.queue.join_time(self.holder)
        self.attempt.joined = Deadline.after(0, Clock())

    @property
    def _waited(self) -> float:
        """For how long the request has waited, in seconds."""
        joined = self.attempt.joined
        return round(-joined.remaining, 1) if joined else 0.0

    async def _wait_in_queue(self, request: Request) -> Reservation:
        """Wait in the queue; return the reservation and begin the lease's term."""
        if request.gpus == 0:
            self.lease.begin_term(None)
            return Reservation(self.holder, ())
        queue, since = self.hub_state.queue, self.attempt.since
        assert since is not None
        waiting = QueuedRequest(self.holder, request, since, self.groups)
        try:
            reservation = await queue.wait(
                waiting,
                self.request_limits(),
                self._show_turn,
                rules=lambda: (self.groups, self.request_limits()),
                waited=None if self.attempt.waiting_since is None else self._waited,
            )
        except asyncio.CancelledError:
            facts = {"gpus": request.gpus, "waited": self._waited, "rule": "given up"}
            self.lease.log_event("leave", audit_log.HUB, **facts)
            if self.attempt.waiting_since and time.monotonic() < self.attempt.changing_until:
                queue.keep_place(waiting)
            raise
        except (Refused, Unknown) as error:
            rule = str(error)
            self.lease.log_event("refuse", gpus=request.gpus, waited=self._waited, rule=rule)
            raise
        self.lease.begin_term(request.seconds)
        self.attempt.granted_at = time.monotonic()
        metrics.WAITS.observe(self._waited)
        self.lease.log_event(
            "grant",
            gpus=reservation.uuids,
            waited=self._waited,
            rule=queue.settings.order,
            until=self.lease.until and round(self.lease.until),
        )
        return reservation

    def _give_back(self, reservation: Reservation) -> None:
        self.ledger.release(reservation)
        self._note_unused(self.attempt, reservation, "other rules, or given up before the start")

    def _note_unused(
        self, attempt: SpawnAttempt, granted: Reservation, rule: str, by: str = audit_log.RULES
    ) -> None:
        """Log the release of GPUs whose server never ran."""
        if granted.gpus:
            held = round(time.monotonic() - attempt.granted_at, 1)
            self.lease.log_event("release", by, gpus=granted.uuids, held=held, rule=rule)

    async def _check_again(self) -> None:
        """Check a choice that has waited by the rules that apply now.

        As at its first check, these are the rules without what later hooks have set.
        """
        while True:
            overrides = await self._overrides_that_apply()
            with self.overrides.without_hooks():
                self._apply_overrides_of(overrides)
                applicant = self.applicant()
            try:
                self._take(await self._check(self.user_options, applicant))
            except Unknown as error:
                # The request keeps its turn, but isn't granted by rules that can't be checked.
                self._show_turn(str(error))
                await asyncio.sleep(PERIOD_SECONDS)
                continue
            return await self.pull_image(self.image)

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
            line = place_words(turn)
            facts |= {"line": line, "line_said": translations(line), "of": turn.of}
            turn = turn_words(turn)
        self.progress_steps.add(15, turn, about="queue", **facts)

    # -- Start -----------------------------------------------------------------------------------

    async def start(self) -> tuple[str, int]:
        """Start a server with the GPUs of its request; return its (ip, port) once it answers."""
        began, self.start_task = time.monotonic(), asyncio.current_task()
        try:
            launched = await launch(self, self.ledger, self.hub_state.leftovers)
        except asyncio.CancelledError:
            if time.monotonic() - began < self.start_timeout * 0.98:
                self._note_failed_start("the start was given up", audit_log.HUB)
                raise  # the user gave up, not the clock
            self._note_failed_start("the start took too long")
            raise http_errors.StartTimeout(self.start_timeout, self.last_lines()) from None
        except Exception as error:
            self._note_failed_start(f"the start failed: {error}")
            raise self.to_http_error(error) from error
        self.attempt.is_up = True
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
        if not reason.keeps_gpus:
            self._note_failed_start(f"the start is tried again: {reason}")
        self.log.warning("Starting %s again: %s", self.log_name, one_line(reason))

    def _note_failed_start(self, rule: str, by: str = audit_log.RULES) -> None:
        if self.attempt.granted:
            self._note_unused(self.attempt, self.attempt.granted, rule, by)
        self.attempt.granted = None

    def to_http_error(self, error: Exception) -> Exception:
        """Return the exception that shows the user what this one means."""
        if isinstance(error, web.HTTPError):
            return error
        if isinstance(error, Refused | Unknown):
            return self.refusal(error)
        if isinstance(error, GPUSpawnerError):
            said = getattr(error, "said", "")  # the engine's own words
            self.log.error(
                "Starting %s failed: %s %s", self.log_name, one_line(error), one_line(said)
            )
            return http_errors.failure(str(error))
        self.log.error("Starting %s failed", self.log_name, exc_info=error)
        return http_errors.failure(self.explain(error))

    def get_env(self) -> dict[str, str]:
        """Return the server's environment, with when its time ends and where the dashboard is."""
        ours = {
            "GPUSPAWNER_UNTIL": iso_time(self.lease.until) if self.lease.until else "",
            "GPUSPAWNER_DASHBOARD_URL": compat.url_of_service(self, DASHBOARD),
        }
        safe = SAFE_MODE if self.attempt.safe_mode else {}
        return {**safe, **super().get_env(), **{name: each for name, each in ours.items() if each}}

    # -- What survives a restart of the hub ------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Return the state for `load_state`, with the lease or since when the server waits."""
        hooks = self._kept_rules if self._rules_unknown else self._rules_of_hooks()
        ours = {
            **self.lease.saved(),
            "waiting_since": self.attempt.waiting_since,
            "image": self.attempt.image_title,
            "hooks": hooks if any(hooks.values()) else None,
        }
        return {**super().get_state(), **({STATE_KEY: ours} if any(ours.values()) else {})}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the state that an earlier hub process saved."""
        super().load_state(state)
        ours = state.get(STATE_KEY) or {}
        # JupyterHub applies group overrides and runs hooks only at a spawn.
        self._rules_unknown, self._kept_rules = True, ours.get("hooks") or {}
        self.lease.restore(ours)
        self.attempt.image_title = str(ours.get("image") or "")
        self.attempt.is_up = bool(self.server_id)
        if not self.server_id and compat.has_begun_start(self):
            self.lease.notice = lazy_gettext(
                "JupyterHub was restarted while your server started. Please start it again."
            )
        if ours.get("waiting_since"):
            self.lease.notice = lazy_gettext(
                "JupyterHub was restarted while you waited for GPUs, so that you have lost your "
                "place. Please start your server again."
            )

    def on_found(self) -> None:
        """Note that the server runs, also where an earlier hub process didn't see it start."""
        if not self.attempt.is_up:
            self.attempt.is_up, self.lease.notice = True, ""

    def clear_state(self) -> None:
        """Reset the state of the last spawn; called before every start and after every stop."""
        super().clear_state()
        attempt, self.attempt = self.attempt, self.new_attempt()
        self._rules_unknown = False
        if not self._is_stopping:
            self.overrides.begin()
        if attempt.reservation:  # cancelled between its turn and its start
            self.ledger.release(attempt.reservation)
            self._note_unused(attempt, attempt.reservation, "given up before the start")
        self.lease.end()

    # -- The lease's server (`LeasedServer`) -----------------------------------------------------

    @property
    def image_title(self) -> str:
        """What users call the image of the server, or of its start; "" if that isn't known."""
        return self.attempt.image_title

    @property
    def waiting_requests(self) -> int:
        """The number of requests in the queue that could use its GPUs."""
        return self.hub_state.queue.waiting_for(self.lease.uuids)

    async def ensure_rules_applied(self) -> None:
        """Apply the rules for a server that an earlier hub process has started.

        JupyterHub applies group overrides and runs hooks only at a spawn.
        """
        if not self._rules_unknown:
            return
        self._rules_unknown = False
        overrides: list[dict[str, Any]] = []
        with suppress(web.HTTPError):  # an invalid override, which has been logged
            overrides = await self._overrides_that_apply()
        self.overrides.begin()
        self._set_rules(self._kept_rules.get("before", {}))
        with suppress(web.HTTPError):
            self._apply_overrides_of(overrides)
        self._set_rules(self._kept_rules.get("after", {}))

    def _rules_of_hooks(self) -> dict[str, dict[str, Any]]:
        """Return what hooks have set before and after the overrides for `WHILE_RUNNING` traits."""
        names = self.traits(config=True, **{WHILE_RUNNING: True})
        both = {"before": self.overrides.before_overrides(), "after": self.overrides.by_hooks()}
        return {
            when: {name: change.after for name, change in changes.items() if name in names}
            for when, changes in both.items()
        }

    def _set_rules(self, rules: Mapping[str, Any]) -> None:
        for name, value in rules.items():
            try:
                setattr(self, name, value)
            except TraitError as error:
                self.log.warning("What a hook had set can't be set again: %s", one_line(error))

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
            if ending := self.lease.ending:
                self._hub_state.remember_ending(self.holder, ending)
                self.lease.ending = None

    def on_end_changed(self, until: float) -> None:
        """Record when the lease ends now, for the plans of the queue."""
        if self.server_id:
            self.ledger.ends[self.server_id] = until

    def on_extended(self, end: Deadline) -> None:
        """Have the backend keep the new end, which outlives the hub's database."""
        self._keeping_end = asyncio.ensure_future(self._keep_end(end))

    async def _keep_end(self, end: Deadline) -> None:
        for attempt in itertools.count():
            try:
                return await self.backend.keep_end(self.server_id, end)
            except Exception as error:
                if not attempt:
                    self.log.warning(
                        "That %s was extended is in the hub's database only, until this is over: "
                        "%s",
                        self.log_name,
                        one_line(error),
                    )
            await asyncio.sleep(min(2**attempt, KEEP_END_SECONDS))
            if not self.lease.ends_at(end):  # it has ended, or was extended once more
                return None

    async def read_extended_end(self) -> Deadline | None:
        """Return the end that the backend has kept."""
        servers = await self.ledger.servers()
        return next((each.extended for each in servers if each.id == self.server_id), None)

    def save_state(self) -> None:
        """Save the lease in the hub's database."""
        compat.save_state(self)

    async def stop(self, now: bool = False) -> None:
        """Stop the server; hooks that run then still read the traits of its spawn."""
        await self.ensure_rules_applied()
        self.lease.will_stop(audit_log.HUB, "stopped")
        self._is_stopping = True
        try:
            await self.stop_server(now)
        finally:
            self._is_stopping = False

    async def stop_through_hub(self) -> None:
        """Stop the server and let the hub update its route, database and hooks."""
        await self.stop()
        await self.poll_and_notify()

    async def run_post_stop_hook(self) -> None:
        """Clean up after the server, then run the administrator's hook.

        JupyterHub forgets a server whose stop failed; it would keep running and hold its GPUs.
        """
        await self.ensure_rules_applied()
        if self.attempt.is_up and self.lease.cause is None:
            self.lease.notice = self.explain_end()
        if not self.attempt.is_refused:
            await self.clean_up_ended()
        await maybe_future(super().run_post_stop_hook())


compat.at_hub_start(build_at_start)


def _is_abstract(cls: type, name: str) -> bool:
    return name in vars(BaseGPUSpawner) and getattr(
        inspect.getattr_static(cls, name), "__isabstractmethod__", False
    )
