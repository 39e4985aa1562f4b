"""The base class of GPU spawners: form, check, queue, start and end, for any backend.

A subclass for a backend implements how a server is created, started and removed there.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from jupyterhub.utils import maybe_future
from markupsafe import Markup
from tornado import web
from traitlets import default

from .backends.base import Backend
from .backends.launch import ensure_cleared, launch
from .backends.server import ServerOfBackend, unimplemented
from .choices import form, form_stream, later, options, start_link
from .choices.check import (
    Applicant,
    CheckedChoice,
    check_choice,
)
from .choices.course_choice import longest_hours
from .choices.slot_hours import SlotHours
from .courses.catalogue import CourseCatalogue
from .errors import GPUSpawnerError, Refused, StartAgain, Unknown
from .gpu_switch import GPUSwitch
from .gpus import share_hints
from .gpus.machine_names import may_know
from .gpus.model import Holder, Lease
from .group_overrides import GroupOverrides, OverrideError
from .hub import compat, http_errors, metrics
from .hub.home_page import HomePage
from .hub.progress import Steps
from .hub.server_page import DASHBOARD, ServerPage
from .hub.spawn_form import SpawnForm
from .hub.state import (
    HubState,
    build_at_start,
    build_early,
    built_state_of,
    hub_state_of,
    stay_off,
)
from .i18n.languages import ENGLISH, LOG, Language, language_for, translations
from .i18n.lazy_text import LazyText, MachineText, join_sentences, lazy_gettext
from .kept_rules import KeptRules
from .leases import audit_log
from .leases.audit_log import one_line
from .leases.clock import Deadline
from .leases.ledger import Ledger, Reservation
from .leases.server_lease import ServerLease, iso_time
from .notifications.notifier import Occasion
from .scheduling.phrases import runs_words
from .settings import GPUTraits
from .spawn_attempt import SpawnAttempt
from .usage import endings as usage_endings
from .wait_in_queue import UNUSED, WaitInQueue

# The longest pause between tries to keep an extension.
KEEP_END_SECONDS = 10
# The key of our part of a spawner's state.
STATE_KEY = "gpuspawner"
NOT_STARTED_AGAIN = lazy_gettext(
    "Your server was stopped to be started with other GPUs, and that didn't work."
)
SEE_PAGE = lazy_gettext("The page on which you start servers says why.")
NOTHING_STARTED = lazy_gettext("A link has led here. Nothing starts until you press Start.")
# Where a server in safe mode has what is else at home. ref: jupyter_core.paths, IPython.paths
_SCRATCH = "/tmp/jupyter-safe-mode"  # noqa: S108 - a server's own
SAFE_MODE = {
    "GPUSPAWNER_SAFE_MODE": "1",
    "JUPYTER_CONFIG_DIR": f"{_SCRATCH}/config",
    "JUPYTER_DATA_DIR": f"{_SCRATCH}/data",
    "IPYTHONDIR": f"{_SCRATCH}/ipython",
    "PYTHONNOUSERSITE": "1",
}


def has_loop() -> bool:
    """Return whether an event loop runs: the hub's own command line has none."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class BaseGPUSpawner(compat.UnofficialHooks, ServerOfBackend, GPUTraits):
    """Spawner of single-user servers that see exactly the GPUs they were granted."""

    # Class attributes, as traits that are functions are called before `__init__` sets them.
    _hub_state: HubState | None = None
    _is_initialised = False
    # Whether the server is being stopped: the hooks that run then read the traits of its spawn.
    _is_stopping = False
    # The call that keeps the last extension; a strong reference, as the loop holds tasks weakly.
    _keeping_end: asyncio.Task[None] | None = None

    def __init_subclass__(cls, *, is_abstract: bool = False, **kwargs: Any) -> None:
        """Refuse a subclass that lacks an abstract method; traitlets' metaclass excludes `abc`.

        Args:
            is_abstract: whether it is for subclasses, which have them.
            kwargs: of other classes.
        """
        super().__init_subclass__(**kwargs)
        if is_abstract:
            return
        if missing := unimplemented(cls):
            raise TypeError(f"{cls.__name__} doesn't say how it does {', '.join(missing)}")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.attempt = self.new_attempt()
        self.lease = ServerLease(self)
        self.progress_steps = Steps(self._translations)
        self.overrides = GroupOverrides(self)
        self.kept_rules = KeptRules(self)
        self.waiting = WaitInQueue(self)
        self.gpu_switch = GPUSwitch(self)
        self._is_initialised = True
        self._last_choice = self._saved_choice()
        # The last choice if it was refused: the form shows it again, to be corrected.
        self.refused_choice: Any = None
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
        return bool(self.active or self.lease.units or attempt.reservation or attempt.granted)

    def guards_memory(self) -> bool:
        """Return whether servers that share a GPU are kept to their part of its memory."""
        # Without a hub, as on a command line, there is no backend to ask.
        is_wanted = self.memory_guard and self._hub_state is not None
        return is_wanted and self.backend.sees_processes

    def new_attempt(self) -> SpawnAttempt:
        """Return the state of a new spawn."""
        return SpawnAttempt()

    def discarder(self) -> Callable[[str], Awaitable[None]]:
        """Return the function that undoes this try's `create_server`, given the server's id."""
        return self.backend.remove

    @property
    def course_catalogue(self) -> CourseCatalogue:
        """The courses of the hub, which all its spawners share."""
        state = self._hub_state or built_state_of(self)
        # Without one it is doctor's, or the hub's own command line: they begin none.
        return state.courses if state else super().course_catalogue

    def course_now(self, courses: Iterable[str]) -> str:
        """Return the key of the first of these courses whose reserved hours they are; "": none."""
        return self._hub_state.reserved.running(courses) if self._hub_state and courses else ""

    def slot_hours(self, courses: Iterable[str]) -> Mapping[str, SlotHours]:
        """Return course -> its next reserved hours in which servers share GPUs."""
        if self._hub_state is None or not courses:
            return {}
        return self._hub_state.reserved.slot_hours(courses)

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
            if self._accept_language:  # programs have none
                self.language_seen = self.language()

    # The image of the next server, where the spawner class has such a trait.
    image: Any
    # The Accept-Language of the last request with a `handler`, which JupyterHub doesn't always set.
    _accept_language = ""
    # The language that its user's browser was last seen with, for what no request asks for.
    language_seen = ENGLISH

    def language(self, static_url: Any = None) -> Language:
        """Return the language of the user's browser, in which pages name machines if it may know.

        What outlives the request, as why a start has failed, names them only if everybody may know.

        Args:
            static_url: a template's `static_url`, in a page that is rendered without `handler` set.
        """
        handler = compat.handler_of_page(static_url)
        said = language_for(form_stream.accept_language_of(handler) or self._accept_language)
        return said.naming(self.names_machines_for(handler))

    def language_of_form(self) -> Language:
        """Return the language of who reads the form that is made now, and nobody else."""
        handler = form_stream.current_request()
        return self.language().naming(self.names_machines_for(handler))

    def names_machines_for(self, handler: Any = None) -> bool:
        """Return whether who has sent a request may know the machines' names.

        Args:
            handler: the request's, whose answer nobody else reads; None: everybody is asked of.
        """
        state = self._hub_state
        audience = state.name_machines if state else self.name_machines
        return may_know(audience, handler is not None and compat.is_by_administrator(handler))

    def _translations(self, text: str) -> dict[str, str]:
        """Return language tag -> what all who see this server read, English among them."""
        named = self.names_machines_for()
        if named and isinstance(text, LazyText):
            # For programs, which read it as it is.
            text = MachineText(text, LOG.say(text))
        return {"en": text, **translations(text, named)}

    async def apply_group_overrides(self) -> None:
        """Apply the group overrides to the configured values, so that rights end with membership.

        Raises:
            web.HTTPError: an override can't be applied; the message names override and trait.
        """
        self.apply_overrides_of(await self.overrides_of_groups())

    async def overrides_of_groups(self) -> list[dict[str, Any]]:
        """Return the group overrides that apply now; raises web.HTTPError if one is wrong."""
        try:
            return await self.overrides_that_apply()
        except Exception as error:
            raise self._wrong_override(OverrideError(error)) from error

    def apply_overrides_of(self, overrides: list[dict[str, Any]]) -> None:
        """Apply what `overrides_of_groups` has returned; raises web.HTTPError if it can't be."""
        self.kept_rules.forget()
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
        self.waiting.join()
        self.attempt.began = self.ledger.moment()
        try:
            if compat.repeats_saved_options(self):
                return await self._check_saved(user_options)
            checked = await self.check_choice(user_options, self.applicant())
        except (Refused, Unknown) as error:
            self.attempt.is_refused = True
            if isinstance(error, Refused) and error.status in (400, 403):
                compat.save_options(self, self._last_choice)
            if options.is_too_large(user_options) and not self.has_own_options():
                self.user_options: Any = {}  # else it would be kept until the next start
            else:
                self.refused_choice = user_options
            raise self.refusal(error) from None
        self.take(checked)
        user_options = self._without_time(user_options, checked)
        self._last_choice, self.refused_choice = user_options, None
        self.lease.notice = ""
        self.hub_state.forget_last(self.holder)
        return user_options

    def _without_time(self, user_options: Any, checked: CheckedChoice) -> Any:
        """Return a choice without the time before which it isn't to start: that is of this start.

        The next one repeats it otherwise, and so does the check at its turn.
        """
        self.attempt.not_before = checked.not_before
        if not isinstance(user_options, Mapping) or later.KEY not in user_options:
            return user_options
        left = {key: each for key, each in user_options.items() if key != later.KEY}
        self.user_options = left
        compat.save_options(self, left)
        return left

    async def _check_saved(self, saved: Any) -> Any:
        """Check the choice of the last start; return it without what can't be had any more.

        It may be another spawner's, or from before a change of the rules, and who starts a server
        now hasn't made it: a refusal would meet them at every start.
        """
        applicant, refusal = self.applicant(), None
        for kept in (saved, *options.parts_of(saved, applicant.others_allowed)):
            try:
                checked = await self.check_choice(kept, applicant)
            except Refused as error:
                if error.reason != "choice" or error.status not in (400, 403):
                    raise
                refusal = refusal or error
                continue
            self.take(checked)
            kept = self._without_time(kept, checked)
            self.refused_choice, self.lease.notice = None, ""
            self.hub_state.forget_last(self.holder)
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
            self.promised_seconds,
            self.home_node(),
        )

    @property
    def promised_seconds(self) -> float | None:
        """For how long the server is promised GPUs that it waits for, in seconds; None: unknown."""
        switch, waits = self.hub_state.switches.get(self.holder), not self.attempt.is_up
        asked = switch.asked.request if switch and switch.asked else None
        request = asked or (self.attempt.request if waits else None)
        return request.seconds if request else None

    async def check_choice(self, raw: Any, applicant: Applicant) -> CheckedChoice:
        """Check a choice by the rules that apply to an applicant."""
        try:
            return await check_choice(raw, applicant, self.ledger, self.hub_state.queue)
        except Unknown as error:
            hint = lazy_gettext("Until then, servers with 0 GPUs can be started.")
            raise Unknown(join_sentences(str(error), hint)) from error

    def refusal(self, error: Refused | Unknown) -> web.HTTPError:
        """Return the HTTP error for a refused request, in its user's language and words."""
        return http_errors.refusal(error, self.language(), form_stream.is_rest_request())

    def take(self, checked: CheckedChoice) -> None:
        """Make a checked choice the one that is started."""
        self.attempt.request, self.attempt.safe_mode = checked.request, checked.safe_mode
        self.attempt.image_title, self.attempt.course = checked.title, checked.request.course
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
        return await SpawnForm(self).render()

    async def get_options_form(self) -> str:
        """Return the form; without one, what holds the choice of a link from elsewhere."""
        shown = await super().get_options_form()
        linked = start_link.linked_choice()
        if shown or linked is None:
            return str(shown or "")
        said = Markup("<p>{}</p>").format(self.language().say(NOTHING_STARTED))
        return str(said + start_link.hidden_fields(linked))

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
        """Run the administrator's hook, wait for GPUs, and have the image where they are."""
        await maybe_future(super().run_pre_spawn_hook())
        try:
            await self.pull_image(self.image)
            await ensure_cleared(self.server_key, self.hub_state.leftovers)
            self.attempt.reservation = await self._reserve_on_node()
        except Exception as error:
            self._tell_failure(error)
            raise self.to_http_error(error) from error

    async def pull_image(self, image: str) -> None:
        """Pull the image if needed, once per spawn, and show the progress."""
        if self.attempt.pulled == image:
            return
        await self.backend.pull(image, self.pull_policy, self.report_pull)
        self.attempt.pulled = image

    def report_pull(self, fraction: float, words: str) -> None:
        """Show how far the pull of the image is."""
        self.progress_steps.add(5 + int(55 * fraction), words, about="image")

    async def _reserve_on_node(self) -> Reservation:
        """Wait for the turn, and have the node ready; what is reserved is given back if it isn't.

        Not a step of the start: who gives up while the node gets an image leaves at once.
        """
        reservation = await self.waiting.for_turn()
        try:
            await self.prepare_node(reservation)
        except Exception as error:
            self.waiting.give_back(reservation, f"the machine isn't ready: {error}")
            raise
        except asyncio.CancelledError:
            self.waiting.give_back(reservation, UNUSED)
            raise
        return reservation

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
            late = http_errors.StartTimeout(self.start_timeout, self.last_lines())
            self._tell_failure(late)
            raise late from None
        except Exception as error:
            self._note_failed_start(f"the start failed: {error}")
            self._tell_failure(error)
            raise self.to_http_error(error) from error
        self.attempt.is_up = True
        self.lease.hold(launched.reservation.units)
        seconds = time.monotonic() - self.attempt.reserved_at
        metrics.observe_start(seconds, len(launched.reservation.gpus))
        if self.attempt.has_waited:
            self.tell("turn", runs_words(launched.reservation.gpus, self.lease.until))
        return launched.answer

    def _tell_failure(self, error: Exception) -> None:
        """Send a message to a user who has waited and may be elsewhere."""
        if self.attempt.has_waited:
            is_ours = isinstance(error, Refused | Unknown)
            self.tell("failed", str(error) if is_ours else SEE_PAGE)

    async def reserve_gpus(self) -> Reservation:
        """Return the reservation made before the start; for another try, wait for a new one."""
        reservation, self.attempt.reservation = self.attempt.reservation, None
        if reservation is None:
            reservation = await self._reserve_on_node()
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
            self.waiting.note_unused(self.attempt, self.attempt.granted, rule, by)
            if self.attempt.granted.gpus:
                self.hub_state.usage.note_why(self.server_id, usage_endings.FAILED)
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
                "Starting %s failed: %s %s",
                self.log_name,
                one_line(LOG.say(str(error))),
                one_line(said),
            )
            return http_errors.failure(str(error))
        self.log.error("Starting %s failed", self.log_name, exc_info=error)
        return http_errors.failure(self.explain(error))

    def get_env(self) -> dict[str, str]:
        """Return the server's environment, with its GPUs, their end, and the dashboard's URL."""
        granted = self.attempt.granted
        ours = {
            # NVIDIA_VISIBLE_DEVICES is "void" where the engine gives GPUs by CDI.
            "GPUSPAWNER_GPUS": ",".join(granted.uuids) if granted else "",
            "GPUSPAWNER_UNTIL": iso_time(self.lease.until) if self.lease.until else "",
            "GPUSPAWNER_DASHBOARD_URL": compat.url_of_service(self, DASHBOARD),
        }
        safe = SAFE_MODE if self.attempt.safe_mode else {}
        hints = {}
        if granted and share_hints.is_shared(granted.gpus):
            guard = self.memory_guard_seconds if self.guards_memory() else None
            hints = share_hints.environment(granted.gpus, guard)
        return {
            **safe,
            **hints,
            **super().get_env(),
            **{name: each for name, each in ours.items() if each},
        }

    # -- What survives a restart of the hub ------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Return the state for `load_state`, with the lease or since when the server waits."""
        hub_state = self._hub_state or built_state_of(self)
        ours = {
            **self.lease.saved(),
            "waiting_since": self.attempt.waiting_since,
            "image": self.attempt.image_title,
            "course": self.attempt.course,
            "starting": (self.gpu_switch.starts_again and not self.server_id) or None,
            **self.gpu_switch.saved(),
            "hooks": self.kept_rules.saved(),
            "messages": hub_state.messages.saved(self.holder) if hub_state else [],
        }
        if not any(ours.values()):
            return super().get_state()
        return {**super().get_state(), STATE_KEY: {**ours, "language": self.language_seen.tag}}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the state that an earlier hub process saved."""
        super().load_state(state)
        ours = state.get(STATE_KEY) or {}
        self.kept_rules.restore(ours.get("hooks"))
        self.language_seen = language_for(str(ours.get("language") or ""))
        self.lease.restore(ours)
        self.gpu_switch.restore(ours)
        self.attempt.image_title = str(ours.get("image") or "")
        self.attempt.course = str(ours.get("course") or "")
        self.attempt.is_up = bool(self.server_id)
        hub_state = self._hub_state or built_state_of(self)
        if hub_state and self.server_id and (said := ours.get("messages")):
            hub_state.messages.restore(self.holder, said)
        is_between = ours.get("starting") or compat.has_begun_start(self)
        if is_between and not self.server_id:
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
        self.kept_rules.forget()
        if not self._is_stopping:
            self.overrides.begin()
        if attempt.reservation:  # cancelled between its turn and its start
            self.ledger.release(attempt.reservation)
            self.waiting.note_unused(attempt, attempt.reservation, "given up before the start")
        self.gpu_switch.end()
        self.lease.end()

    # -- The lease's server (`LeasedServer`) -----------------------------------------------------

    @property
    def image_title(self) -> str:
        """What users call the image of the server, or of its start; "" if that isn't known."""
        return self.attempt.image_title

    @property
    def longest_hours(self) -> float | None:
        """The most hours that it may have left, by its user's limits; None: any."""
        course = self.course_catalogue.current().get(self.attempt.course)
        return longest_hours(self.hour_limit, course, self.groups)

    @property
    def waiting_requests(self) -> int:
        """The number of requests in the queue that could use its GPUs."""
        return self.hub_state.queue.waiting_for(self.lease.units)

    def tell(self, occasion: Occasion, words: str) -> None:
        """Send the server's user a message, where an administrator has set where to."""
        self.hub_state.notifier.tell(self, occasion, words)

    @property
    def public_link(self) -> str:
        """Where its user finds it, or the page on which they wait for it.

        "" without `public_url` and `subdomain_host`, as the hub doesn't know its address then.
        """
        return str(self.user.public_url(self.name))

    async def ensure_rules_applied(self) -> None:
        """Apply the rules for a server that an earlier hub process has started."""
        await self.kept_rules.ensure_applied()

    def on_lease_begin(self) -> None:
        """Register the lease with the reclaimer."""
        with suppress(RuntimeError):  # no event loop: the hub's own command line
            asyncio.get_running_loop()
            self.hub_state.leases.add(self.lease)
            self.hub_state.reclaimer.start()
            self.hub_state.memory_guard.start()

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

    def latest_end(self, until: float) -> tuple[float, str]:
        """Return the latest end that the lease can have, and what is in the way of a later one."""
        return self.hub_state.reserved.latest_end(self.holder, until)

    def budgeted_end(self, until: float) -> tuple[float, str]:
        """Return the latest end within its user's budgets, and why there is none later."""
        lease = Lease(self.holder, self.lease.units, self.lease.until, self.groups)
        try:
            return self.hub_state.queue.latest_end(lease, until)
        except Unknown as error:
            return 0.0, str(error)

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
        servers = await self.ledger.servers_with_ends()
        return next((each.extended for each in servers if each.id == self.server_id), None)

    def save_state(self) -> None:
        """Save the lease in the hub's database."""
        compat.save_state(self)

    async def stop(self, now: bool = False) -> None:
        """Stop the server; hooks that run then still read the traits of its spawn."""
        await self.ensure_rules_applied()
        self.lease.will_stop(audit_log.HUB, "stopped")
        self._note_why(self.lease.cause)
        self._is_stopping = True
        try:
            await self.stop_server(now)
        finally:
            self._is_stopping = False

    def _note_why(self, cause: tuple[str, str] | None) -> None:
        """Have it kept why the server ends; `cause`, as of its lease."""
        if not self.lease.units or cause is None:
            return
        why = usage_endings.OF_RULE.get(cause[1])
        kind, name = compat.who_stops()
        if why is None and kind == "user":
            is_own = name == self.holder.user
            why = usage_endings.USER if is_own else usage_endings.ADMINISTRATOR
        elif why is None:
            why = usage_endings.SERVICE if kind == "service" else usage_endings.HUB
        self.hub_state.usage.note_why(self.server_id, why)

    async def stop_through_hub(self) -> None:
        """Stop the server and let the hub update its route, database and hooks."""
        self.gpu_switch.stay_off()
        await self.stop()
        await self.poll_and_notify()

    async def restart_through_hub(
        self, choice: dict[str, Any], starts_again: Callable[[], bool]
    ) -> None:
        """Stop the server, which saves, and start it with another choice, as the hub does both.

        Args:
            choice: what it is started with.
            starts_again: says whether it is to be started still; False once somebody has it
                stopped, which this restart doesn't undo.

        Raises:
            Exception: it couldn't be stopped, or didn't start. The hub's pages say why.
        """
        handler = compat.handler_of_hub(self)
        await compat.stop_by(handler, self)
        try:
            await compat.start_by(handler, self, choice, starts_again)
        except Exception as error:
            words = http_errors.sentence_of(error)
            compat.spawner_now(self).lease.notice = join_sentences(NOT_STARTED_AGAIN, words)
            raise
        if not starts_again():
            self._begins_no_start()

    def _begins_no_start(self) -> None:
        """Save that no start follows; what was saved as the server stopped may say otherwise."""
        now = self.user.spawners.get(self.name) or self
        if now.active or compat.is_forgotten(now):
            return
        now.lease.notice = self.lease.notice
        compat.save_state(now)

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
compat.at_stop(stay_off)
