"""What JupyterHub's home page says: a user's servers, and what they may have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tornado import web

from ..choices.home_use import HomeUse
from ..choices.limits import Limits
from ..courses.model import Course
from ..gpus.unit_names import Share
from ..i18n.lazy_text import join_sentences, lazy_gettext
from ..i18n.phrases import hours_words, memory_words, share_words
from ..leases.ledger import View
from ..scheduling.queue import held_by_person
from . import compat
from .server_page import ServerPage
from .spawn_form import SpawnForm


@dataclass(frozen=True)
class Allowance:
    """What a user may have of something.

    Args:
        what: the thing, as users call it.
        most: how much of it they may have.
        used: how much of it is used; "" where that isn't counted.
    """

    what: str
    most: str
    used: str = ""


class HomePage:
    """The facts for the template `hub/templates/gpuspawner/home.html`.

    Args:
        spawner: of the user's default server, a `BaseGPUSpawner`.
    """

    def __init__(self, spawner: Any) -> None:
        self._spawner = spawner

    def servers(self) -> list[ServerPage]:
        """Return the user's servers: the default one, then the named ones by name."""
        return [each.page for each in compat.servers_of(self._spawner.user)]

    def courses(self) -> list[Course]:
        """Return the courses that the user is in."""
        return list(self._spawner.own_courses().values())

    async def allowances(self) -> list[Allowance]:
        """Return what the user may have by the current rules, and what of it they use."""
        spawner = self._spawner
        try:
            applicant, _ = await SpawnForm(spawner).applicant()
        except web.HTTPError:  # a wrong override, which is in the log
            return []
        view, _ = await spawner.hub_state.open_forms.recent_view()
        claims = spawner.hub_state.queue.claims(view.leases if view else ())
        held = held_by_person(spawner.holder, claims)
        of_gpus = _of_gpus(applicant.limits, view or View(), held)
        home = spawner.home_use(applicant.limits.files)
        return [*of_gpus, *_of_server(applicant.limits), *_of_files(applicant.limits, home)]


def _of_gpus(limits: Limits, view: View, held: Share) -> Iterator[Allowance]:
    used = lazy_gettext("%(share)s held or waited for", share=share_words(held))
    if limits.gpus is not None:
        yield Allowance(lazy_gettext("GPUs of one server"), str(limits.gpus))
    if limits.user_gpus is not None:
        yield Allowance(lazy_gettext("GPUs of all your servers"), str(limits.user_gpus), used)
    elif held:
        yield Allowance(lazy_gettext("GPUs of all your servers"), lazy_gettext("no limit"), used)
    for group, most in limits.group_gpus.items():
        of_group = sum(lease.share for lease in view.leases if group in lease.groups)
        yield Allowance(
            lazy_gettext("GPUs of your group %(group)s", group=group),
            str(most),
            lazy_gettext("%(share)s held", share=share_words(of_group)),
        )
    if limits.hours is not None:
        what = lazy_gettext("Time of a server with GPUs")
        yield Allowance(what, hours_words(limits.hours * 3600))


def _of_server(limits: Limits) -> Iterator[Allowance]:
    if limits.memory is not None:
        yield Allowance(lazy_gettext("Memory of one server"), memory_words(limits.memory))
    if limits.processors is not None:
        what = lazy_gettext("Processors of one server")
        yield Allowance(what, f"{limits.processors:g}")


def _of_files(limits: Limits, home: HomeUse | None) -> Iterator[Allowance]:
    allowed = home.allowed if home else limits.files
    most = memory_words(allowed) if allowed is not None else lazy_gettext("no limit")
    used = memory_words(home.used) if home else ""
    if home and home.is_nearly_full:
        used = join_sentences(home.words, home.warning)
    if home or allowed is not None:
        yield Allowance(lazy_gettext("Your files"), str(most), str(used))
