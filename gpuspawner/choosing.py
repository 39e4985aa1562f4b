"""What a user may choose, and what they chose: the form, and the one check for form, link, REST."""

from __future__ import annotations

from typing import Any, ClassVar

from tornado import web
from traitlets import default, observe

from .choices import form, form_stream, options
from .choices.forecast import Forecast
from .choices.limits import Limits, without
from .choices.open_forms import OpenForms
from .gpus.allocation import largest
from .gpus.model import Request
from .hub import http_errors
from .i18n.languages import Language, language_for
from .i18n.lazy_text import lazy_gettext, together
from .leases.ledger import Unknown, View
from .scheduling.plan import QueuedRequest
from .scheduling.queue import RequestLimits, held_by, over_user_limit
from .terms import TimedSpawner


class ChoosingSpawner(TimedSpawner):
    """What `GPUSpawner` knows of its user's choice."""

    _open_forms: ClassVar[OpenForms | None] = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._last_choice = self.orm_spawner.user_options if self.orm_spawner else None
        # What was picked last, where that was refused: the form has it still, to be mended.
        self._refused_choice: Any = None
        # The Accept-Language of the last request that JupyterHub told of: of some it doesn't.
        self._language_asked = ""
        # When the choice was made, in seconds since the epoch.
        self._since: float | None = None

    @default("options_form")
    def _options_form_default(self) -> Any:
        return ChoosingSpawner.render_form

    @observe("handler")
    def _request_began(self, change: Any) -> None:
        form_stream.begin(change.new)
        if change.new is not None:
            self._language_asked = form_stream.language_asked()

    async def render_form(self) -> str:
        """Return the form in which users choose, as HTML; "" where there is nothing to choose.

        Raises:
            web.Finish: it was asked for by the form's own script, which has its answer.
        """
        await self.apply_group_overrides()
        asked = form_stream.choice_asked()
        limits = without(self.limits(), await self._absent_versions())
        if asked is None:
            saved = self.orm_spawner.user_options if self.orm_spawner else None
            refused = self._refused_choice
            choice = options.remembered(refused or saved)
            seen = await self._pages.recent(self.holder)
            return self._form(limits, choice, *seen, notice=self._notice, keep=bool(refused))
        picked, rules = options.remembered(asked), str(limits)

        async def again(seconds: float) -> str:
            view, trouble = await self._pages.recent(self.holder, seconds)
            claims = self.shared.queue.claims(view.leases if view else ())
            held = sum(number for holder, number in claims if holder.person == self.holder.person)
            return self._pages.same.get(
                self._pages.state(view, trouble),
                (picked, rules, held, self.language().tag),
                lambda: self._form(limits, picked, view, trouble, picked=True),
            )

        raise await form_stream.answer(again, self._pages.watch, lambda: self.active)

    def _form(
        self,
        limits: Limits,
        choice: options.Choice,
        view: View | None,
        trouble: str,
        **more: Any,
    ) -> str:
        seen = view or View()
        return form.render(
            limits,
            choice,
            view,
            lambda choice: self._forecast(choice, limits, seen),
            language=self.language(),
            trouble=trouble,
            **more,
        )

    async def _absent_versions(self) -> frozenset[str]:
        """Return the keys of the versions whose image isn't here and won't be fetched."""
        if self.pull_policy != "never":
            return frozenset()
        versions = self.limits().versions
        missing = await self.shared.local_images.missing({each.image for each in versions.values()})
        return frozenset(key for key, each in versions.items() if each.image in missing)

    @property
    def _pages(self) -> OpenForms:
        """What all open forms of this host share."""
        host, known = self.shared, ChoosingSpawner._open_forms
        if known is None or known.ledger is not host.ledger:
            known = ChoosingSpawner._open_forms = OpenForms(host.ledger, host.queue)
        return known

    # -- What the hub's own pages ask, in templates/hub ------------------------------------------

    def language(self, static_url: Any = None) -> Language:
        """Return the reader's language.

        Args:
            static_url: the template's own, where a page is made of which the spawner isn't told: a
                method of the handler that makes it.
        """
        handler = getattr(static_url, "__self__", None)
        return language_for(form_stream.language_asked(handler) or self._language_asked)

    def steps_so_far(self) -> list[dict[str, Any]]:
        """Return what has happened in this start."""
        return self._steps.so_far()

    @property
    def notice(self) -> str:
        """Why the user's last server was stopped; "" where they did that."""
        return self._notice

    def _forecast(self, choice: options.Choice, limits: Limits, view: View) -> Forecast:
        """Return what would come of a choice, checked as when it is sent."""
        count = choice.gpus or 0
        try:
            request = options.request(choice, limits, view.nodes)
            self._check_other_servers(request, view)
        except options.Refused as error:
            return Forecast("no", count, refusal=str(error))
        if request.gpus == 0:
            return Forecast("now")
        queue, terms = self.shared.queue, self.terms()
        turn = queue.forecast(
            QueuedRequest(self.holder, request, queue.since(), self._groups()), terms, view
        )
        if turn.gpus:
            return Forecast("now", count)
        if refusal := queue.refusal(request, terms, turn, view):
            return Forecast("no", count, refusal=refusal)
        fitting = [gpu for gpu in view.gpus if request.takes(gpu)]
        free = [gpu for gpu in fitting if gpu.state == "free"]
        return Forecast(
            "wait",
            count,
            turn,
            free=len(free),
            taken=all(gpu.state == "leased" for gpu in fitting),
            model=request.model or "",
            scattered=largest(free) < request.gpus <= len(free),
        )

    def options_from_query(self, query_data: dict[str, list[str]]) -> dict[str, Any]:
        """Interpret a link's arguments. JupyterHub 5 leaves the `opt-` before their names."""
        return self.run_options_from_form(
            {key.removeprefix("opt-"): value for key, value in query_data.items()}
        )

    async def _run_apply_user_options(self, user_options: Any) -> None:
        """Check the choice; the one place that form, link and REST share."""
        self._steps.begin()
        # A place in the queue counts from here, however long the image takes to come.
        self._since = self.shared.queue.since()
        try:
            self._request = await self._check(user_options)
        except web.HTTPError as error:
            # The hub has saved the choice already, and would replay a refused one for ever.
            if error.status_code in (400, 403) and self.orm_spawner:
                self.orm_spawner.user_options = self._last_choice
            self._refused_choice = user_options
            raise
        self._last_choice, self._refused_choice = user_options, None
        self._notice = ""
        if self.apply_user_options:
            await super()._run_apply_user_options(user_options)

    async def _check(self, raw: Any) -> Request:
        try:
            choice = options.parse(raw, others_allowed=self._has_own_options())
            limits = self.limits()
            key = options.image_key(choice, limits)
            view = View()
            if options.gpu_count(choice, limits) > 0:
                view = await self.ledger.look(except_for=self.holder)
            request = options.request(choice, limits, view.nodes)
            self._check_other_servers(request, view)
        except options.Refused as error:
            raise self._refusal(str(error), "choice", error.status) from None
        except Unknown as error:
            hint = lazy_gettext("Until then, servers with 0 GPUs can be started.")
            raise self._refusal(together(str(error), hint), "unknown", 503) from None
        if choice.image is not None or self.images:
            known = limits.versions.get(key)
            self.set_for_now("image", known.image if known else key)
        return request

    def _refusal(self, sentence: str, reason: str, status: int) -> web.HTTPError:
        """Return what refuses a choice, in the language of who made it: it is answered at once."""
        return http_errors.refusal(sentence, reason, status, self.language().say(sentence))

    def _check_other_servers(self, request: Request, view: View) -> None:
        """Refuse at once what the queue would refuse: too many GPUs with the user's other servers.

        Raises:
            options.Refused: so it is.
        """
        limit = self.user_gpu_limit
        held = held_by(self.holder, self.shared.queue.claims(view.leases)) if request.gpus else 0
        if limit is not None and request.gpus and held + request.gpus > limit:
            raise options.Refused(over_user_limit(request.gpus, held, limit), 403)

    def terms(self) -> RequestLimits:
        """Return what applies to this server in the queue."""
        minutes = self.longest_wait_minutes
        return RequestLimits(
            self.user_gpu_limit,
            self.limits().group_gpus,
            None if minutes is None else minutes * 60,
        )

    def _has_own_options(self) -> bool:
        """Return whether the administrator's own hooks read `user_options`, and so own its keys."""
        return bool(
            self.apply_user_options
            or self.options_form != ChoosingSpawner.render_form
            or self.options_from_form is not options.from_fields
        )

    async def check_allowed(self, image: str) -> str:
        """Return the image reference that a catalogue key stands for."""
        limits = self.limits()
        try:
            key = options.image_key(options.parse({"image": image}), limits)
        except options.Refused as error:
            raise self._refusal(str(error), "choice", error.status) from None
        return limits.versions[key].image if key in limits.versions else key
