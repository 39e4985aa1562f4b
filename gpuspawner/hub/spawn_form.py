"""The spawn form of one server: what its user may choose by the rules of now."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from ..choices import form, form_stream, options, start_link
from ..choices.check import Applicant, forecast_choice
from ..choices.limits import Limits, without_absent_versions
from ..choices.open_forms import RECENT_SECONDS
from ..errors import Refused, Unknown
from ..i18n.lazy_text import join_sentences, lazy_gettext
from ..leases.ledger import View
from ..scheduling.phrases import kept_words
from ..scheduling.queue import own_claims
from . import compat

FILLED_IN = lazy_gettext("A link has filled in this form. Nothing starts until you press Start.")


class SpawnForm:
    """The form of one server.

    Args:
        spawner: the server's `BaseGPUSpawner`.
    """

    def __init__(self, spawner: Any) -> None:
        self._spawner = spawner

    async def applicant(self) -> tuple[Applicant, str]:
        """Return this server's user and `pull_policy` by the current rules; change no trait.

        JupyterHub has the default server's spawner render the form of named servers, too, even
        while the default server runs or waits.
        """
        spawner = self._spawner
        overrides = await spawner.overrides_of_groups()
        if spawner.active:
            await spawner.ensure_rules_applied()
            return spawner.applicant(), spawner.pull_policy
        try:
            spawner.apply_overrides_of(overrides)
            return spawner.applicant(), spawner.pull_policy
        finally:
            spawner.overrides.put_back()

    async def render(self) -> str:
        """Return the spawn form as HTML; "" if there is nothing to choose.

        Raises:
            web.Finish: the form's script has requested it and has been answered.
        """
        spawner = self._spawner
        asked, open_forms = form_stream.requested_choice(), spawner.hub_state.open_forms
        applicant, pull_policy = await self.applicant()
        absent = await self._absent_versions(applicant.limits, pull_policy)
        limits = without_absent_versions(applicant.limits, absent)
        queue = spawner.hub_state.queue
        form_language = spawner.language_of_form()

        async def form_for(choice: options.Choice, seconds: float, **more: Any) -> str:
            """Return the form for a choice, made once for all who see the same."""
            view, trouble = await open_forms.recent_view(spawner.holder, seconds)
            seen, language = view or View(), form_language
            more["safe_mode"] = spawner.keeps_settings()
            left, more["budgets"] = await self._budgets(applicant, seen)
            within = replace(limits, gpu_hours=left)
            return open_forms.render_cache.get(
                open_forms.visible_state(view, trouble),
                (
                    choice,
                    str(within),
                    own_claims(spawner.holder, queue.claims(seen.leases)),
                    queue.kept_place(spawner.holder),
                    queue.share_of_user(spawner.holder, applicant.groups),
                    language,
                    *more.items(),
                ),
                lambda: form.render(
                    within,
                    choice,
                    view,
                    lambda each: forecast_choice(each, applicant, queue, seen),
                    language=language,
                    trouble=trouble,
                    **more,
                ),
            )

        if asked is None:
            choice, told = self._filled_in()
            shared = await form_for(choice, RECENT_SECONDS, **told)
            home = spawner.home_use(applicant.limits.files)
            return form.page(shared, home, form_language, spawner.home_words())
        picked = options.restore_choice(asked)
        answer = await form_stream.answer(
            lambda seconds: form_for(picked, seconds, picked=True),
            open_forms.watcher,
            lambda: spawner.active,
        )
        raise compat.answer_instead_of_page(answer)

    async def _budgets(
        self, applicant: Applicant, view: View
    ) -> tuple[float | None, tuple[str, ...]]:
        """Return the GPU hours that are left of the user's budgets, and sentences about each."""
        queue = self._spawner.hub_state.queue
        try:
            await queue.budgets.ensure_read(applicant.groups)
            standings = queue.standings(applicant.holder, applicant.groups, view.leases)
        except Unknown as error:
            return None, (str(error),)
        # Hundredths, downwards: the form is made once for all who have as much left.
        left = min((math.floor(each.left * 100) / 100 for each in standings), default=None)
        return left, tuple(each.words for each in standings)

    def _filled_in(self) -> tuple[options.Choice, dict[str, Any]]:
        """Return the choice that the page's form is filled with, and what `form.render` is told."""
        spawner = self._spawner
        picked_before, notice = spawner.refused_choice, spawner.notice
        if kept := spawner.hub_state.queue.kept_place(spawner.holder):
            notice = join_sentences(notice, kept_words(kept.until))
        if (linked := start_link.linked_choice()) is not None:
            picked_before = spawner.options_from_query(dict(linked))
            notice = join_sentences(notice, FILLED_IN, self._parse_error(picked_before))
        choice = options.restore_choice(picked_before or compat.saved_options(spawner))
        if kept and kept.not_before and not choice.not_before:
            at = datetime.fromtimestamp(kept.not_before, timezone.utc)
            choice = choice.model_copy(update={"not_before": at.isoformat()})
        return choice, {"notice": notice, "keep": bool(picked_before)}

    def _parse_error(self, raw: Any) -> str:
        """Return why a choice is invalid; "" if it isn't."""
        try:
            options.parse(raw, others_allowed=self._spawner.has_own_options())
        except Refused as error:
            return str(error)
        return ""

    async def _absent_versions(self, limits: Limits, pull_policy: str) -> frozenset[str]:
        """Return the keys of the versions whose image isn't on the engine and won't be pulled."""
        if pull_policy != "never":
            return frozenset()
        versions = limits.versions
        images = {each.image for each in versions.values()}
        missing = await self._spawner.hub_state.local_images.missing(images)
        return frozenset(key for key, each in versions.items() if each.image in missing)
