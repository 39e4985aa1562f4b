"""The spawn form: what users can choose, and why they can't choose the rest."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache, partial
from math import inf
from pathlib import Path

from markupsafe import Markup

from ..courses.model import NO_COURSE
from ..errors import Refused
from ..gpus.allocation import (
    availability,
    kind_shares,
    model_counts,
    most_on_one_node,
    nodes_with,
    offered_nodes,
)
from ..gpus.links import Connection, connection
from ..gpus.machine_names import MachineNames
from ..gpus.model import GPU, SHARED, WHOLE, Request
from ..gpus.names import gpu_names
from ..gpus.unit_names import Share
from ..group_overrides import lower
from ..i18n.languages import ENGLISH, Language, templates_of
from ..i18n.lazy_text import join_sentences, lazy_gettext, lazy_ngettext, listed
from ..i18n.phrases import clock_time, hours_words, memory_words, moment, ordinal, share_words
from ..images.compatibility import Fit, fit_nodes
from ..leases.ledger import View
from ..scheduling.budgets import STEP_SECONDS
from .course_choice import course_title, courses_offered, within_course
from .forecast import UNKNOWN, Forecast, ForecastOf
from .home_use import HomeUse
from .later import moment_of
from .limits import Limits
from .options import Choice
from .slot_hours import within_hours

# The offered durations, besides the limit and the default.
USUAL_HOURS = (1, 2, 4, 8, 24)
# How often the form's script polls if it can't follow the hub's event stream.
PERIOD_SECONDS = 3.5

_STATIC = Path(__file__).parent / "static"
# Where `page` puts what is one user's own. What users and administrators write is escaped, so
# nobody else's words can look like it.
_OWN = "<!-- own -->"
_templates = templates_of("gpuspawner.choices")


@dataclass(frozen=True)
class Item:
    """One option of the form. `reason` says why it can't be chosen; "" if it can."""

    value: str
    title: str
    checked: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Version(Item):
    """An image version. With a `reason` it can be chosen only for a server without GPUs.

    One that is `absent`, as its image isn't on the machine, can't be chosen.
    """

    facts: str = ""
    description: str = ""
    deprecated: str = ""
    warning: str = ""
    absent: bool = False

    @property
    def has_gpus(self) -> bool:
        """Whether a server with GPUs can have it."""
        return not (self.absent or self.reason)


@dataclass(frozen=True)
class Count(Item):
    """A number of GPUs or a part of one, with its forecast for the other options as chosen."""

    forecast: Forecast = UNKNOWN


@dataclass(frozen=True)
class Model(Item):
    """A GPU model.

    `gigabytes` is the memory of one GPU, `free` and `total` count its GPUs, `until` is when the
    next lease ends, in seconds since the epoch, `fits` whether the chosen image runs on it, and
    `where` on how many machines they are; "" where one alone has GPUs.
    """

    gigabytes: int | None = None
    free: int = 0
    total: int = 0
    until: float | None = None
    fits: bool = True
    where: str = ""


def render(
    limits: Limits,
    last: Choice,
    view: View | None,
    forecast_of: ForecastOf,
    *,
    language: Language = ENGLISH,
    trouble: str = "",
    notice: str = "",
    keep: bool = False,
    picked: bool = False,
    safe_mode: bool = False,
    budgets: Sequence[str] = (),
) -> str:
    """Return the form as HTML, or "" if there is nothing to choose.

    It is the same for all users for whom these are: what is one user's own, `page` adds.

    Args:
        limits: the user's limits.
        last: the choice that the form is filled with, the user's last one.
        view: the nodes and the leases; None if they couldn't be read.
        forecast_of: returns the forecast of a choice.
        language: the user's.
        trouble: why the nodes couldn't be read; "" if they could.
        notice: why the user's last server was stopped.
        keep: show `last` unchanged even if it would be refused, so that the user can correct it.
        picked: `last` is the choice in an open form, whose script asks for an update.
        safe_mode: whether a server can be started without its user's settings.
        budgets: sentences about what is left of the user's budgets of GPU hours.
    """
    courses, limits = course_items(limits, last), _within_course(limits, last)
    seen = view
    if view:
        limits, nodes = within_hours(limits, view.nodes)
        view = replace(view, nodes=nodes)
    images = version_items(limits, last, view)
    counts = count_items(limits, last, view, forecast_of, keep or picked)
    models = model_items(limits, last, view)
    wanted = next(item for item in counts if item.checked)
    part = _part_of(limits, view, wanted)
    hours = hour_items(limits, last, part) if len(counts) > 1 else []
    told = limits.any_image or trouble or notice or len(courses) > 1
    if len(images) <= 1 and len(counts) <= 1 and not told:
        return ""
    forecast = wanted.forecast
    hours += _until_reserved(forecast) if hours else []
    offered = _offered(seen)
    machines = seen.machines if seen else MachineNames(())
    return _templates.get_template("form.html").render(
        courses=courses if len(courses) > 1 else [],
        images=images if len(images) > 1 else [],
        # Where no version can have GPUs that is no detail.
        folds=any(item.has_gpus for item in images),
        any_image=limits.any_image,
        image=_preselected(limits, last),
        counts=counts,
        models=models if len(models) > 1 and len(counts) > 1 else [],
        any_model=not any(item.checked for item in models),
        hours=hours if len(hours) > 1 else [],
        ends=_expected_end(forecast, hours),
        forecast=forecast,
        without=forecast.kind == "wait" and counts[0].forecast.kind == "now",
        gpus=machines.gpus(seen.gpus) if seen else (),
        machines=machines,
        offered=offered,
        where=machines.on(gpu.node for gpu in offered),
        picked_where=machines.on(_nodes_for(limits, last, view, wanted, keep or picked)),
        notes=[
            *kind_notes(
                _offered(view, limits.models, limits.kinds), machines, limits.guard_seconds
            ),
            *_hours_note(limits),
        ],
        limits=limits.rules(),
        budgets=budgets,
        size=size_phrase(limits),
        trouble=trouble,
        notice=notice,
        picked=picked,
        ahead=limits.ahead,
        starts=moment_of(last.not_before or ""),
        starts_text=_local_text(last.not_before),
        zone=f"{datetime.now().astimezone():%Z}",
        safe_mode=safe_mode,
        own=_OWN,
        period=PERIOD_SECONDS,
        moment=partial(moment, language=language),
        ordinal=ordinal,
        **language.context(),
    )


def page(
    shared: str, home: HomeUse | None, language: Language = ENGLISH, home_words: str = ""
) -> str:
    """Return the form for one user's page, with its style and script; "" if there is none.

    Args:
        shared: what `render` has returned.
        home: how much the user keeps at home; None: that isn't known.
        language: the user's.
        home_words: where the user's files are; "" where that makes no difference.
    """
    if not shared:
        return ""
    before, _, after = shared.partition(_OWN)
    return _templates.get_template("page.html").render(
        before=Markup(before),  # noqa: S704 # from our own template
        after=Markup(after),  # noqa: S704 # from our own template
        home=home,
        home_words=home_words,
        style=_read_static("form.css"),
        script=_read_static("form.js"),
        **language.context(),
    )


def course_items(limits: Limits, last: Choice) -> list[Item]:
    """Return the courses that the user may pick, and none of them where that can be."""
    chosen = _within_course(limits, last).course or NO_COURSE
    return [Item(key, course_title(key, limits), key == chosen) for key in courses_offered(limits)]


def _within_course(limits: Limits, last: Choice) -> Limits:
    """Return the limits within the course that is preselected."""
    try:
        return within_course(last.course, limits)
    except Refused:  # one that the user isn't in any more
        return within_course(None, limits)


def version_items(limits: Limits, last: Choice, view: View | None) -> list[Version]:
    """Return the image versions that the form shows."""
    if not limits.image_can_be_chosen or limits.any_image:
        return []
    chosen = _preselected(limits, last)
    items = []
    for key, version in limits.versions.items():
        fits = _fit(limits, key, view)
        items.append(
            Version(
                key,
                version.title or key,
                key == chosen,
                reason=fits.reason,
                facts=version.facts(),
                description=version.description,
                deprecated=version.deprecated,
                warning=fits.note,
                absent=key in limits.absent,
            )
        )
    return items


def count_items(
    limits: Limits, last: Choice, view: View | None, forecast_of: ForecastOf, keep: bool = False
) -> list[Count]:
    """Return what can be had: none, each kind of parts of a GPU, and 1 GPU up to the most.

    The most is what this user could ever have on one node.
    """
    image = _preselected(limits, last) if limits.image_can_be_chosen else None
    usable = _offered(view, limits.models, limits.kinds)
    whole = [gpu for gpu in usable if gpu.kind == WHOLE]
    may = min((rule.most for rule in limits.rules()), default=inf)
    shares = kind_shares(usable) if may else {}
    parts = {kind: share for kind, share in shares.items() if kind != WHOLE}
    most = int(min(most_on_one_node(whole), may))
    model = last.model if keep else _chosen_model(limits, last, view)
    amounts = [(0, WHOLE), *((1, kind) for kind in parts)]
    amounts += [(count, WHOLE) for count in range(1, most + 1)]
    forecasts = [
        forecast_of(
            Choice(
                image=image or None,
                gpus=count,
                model=model if count else None,
                # Where there is one kind alone nobody is asked for it.
                kind=kind if count and parts else None,
                hours=_hours(limits, last, count * _part(usable, kind)),
                not_before=last.not_before,
                course=(limits.course or NO_COURSE) if limits.courses else None,
            )
        )
        for count, kind in amounts
    ]
    wanted = _wanted(limits, last, amounts, forecasts, keep)
    return [
        Count(
            kind if count and kind != WHOLE else str(count),
            kind_title(kind, parts[kind]) if count and kind != WHOLE else str(count),
            number == wanted,
            # Without a queue: no choice of model or image can start with so many GPUs now.
            reason=_shortage(usable, count, kind) if not limits.waits else "",
            forecast=forecasts[number],
        )
        for number, (count, kind) in enumerate(amounts)
    ]


def _wanted(
    limits: Limits,
    last: Choice,
    amounts: Sequence[tuple[int, str]],
    forecasts: Sequence[Forecast],
    keep: bool,
) -> int:
    """Return the position in `amounts` of what is preselected."""
    parts = [kind for count, kind in amounts if count and kind != WHOLE]
    most = max(count for count, kind in amounts if not count or kind == WHOLE)
    usual = (last.gpus is None and limits.default_kind in parts) or most == 0
    count = limits.default_gpus if last.gpus is None else last.gpus
    if last.gpus is None and (last.kind or (parts and usual)):
        count = min(count, 1)  # the default is for whole GPUs
    if count == 1 and (last.kind in parts or (last.kind is None and usual and parts)):
        named = last.kind if last.kind in parts else limits.default_kind
        number = amounts.index((1, named if named in parts else parts[0]))
        return number if keep or _is_offered(number, forecasts, limits) else 0
    # The saved number isn't limited.
    count = min(count, most + 1)
    while (
        not keep
        and count > 0
        and not (count <= most and _is_offered(amounts.index((count, WHOLE)), forecasts, limits))
    ):
        count -= 1
    return amounts.index((min(count, most), WHOLE))


def _shortage(usable: Sequence[GPU], count: int, kind: str) -> str:
    """Return why so many can't be had now; "" if they can."""
    of_kind = [gpu for gpu in usable if gpu.kind == kind]
    free = most_on_one_node(gpu for gpu in of_kind if gpu.state == "free")
    return availability(of_kind) if count > free else ""


def kind_title(kind: str, share: Share) -> str:
    """Return what a part of a GPU is called: "1/8", "1g.10gb".

    Args:
        kind: `GPU.kind`, not of whole ones.
        share: how much of a GPU it is.
    """
    if kind == SHARED:
        return lazy_gettext("%(share)s shared", share=share_words(share))
    return kind


def _nodes_for(
    limits: Limits, last: Choice, view: View | None, count: Count, keep: bool
) -> Collection[str]:
    """Return the names of the nodes that have what is picked, free or not; none for no GPU."""
    kind = WHOLE if count.value.isdigit() else count.value
    number = int(count.value) if kind == WHOLE else 1
    model = last.model if keep else _chosen_model(limits, last, view)
    fits = _fit(limits, _preselected(limits, last), view)
    request = Request("", number, model or None, fits.models, places=fits.places, kind=kind)
    usable = _offered(view, limits.models, limits.kinds)
    return nodes_with(number, filter(request.takes, usable)) if number else ()


def kind_notes(
    usable: Sequence[GPU], machines: MachineNames, guard_seconds: float | None = None
) -> list[str]:
    """Return sentences for each kind of parts of GPUs, that say what it is and isn't, and where.

    Args:
        usable: the units that the user may have.
        machines: what the machines are called.
        guard_seconds: as `Limits.guard_seconds`.
    """
    notes: list[str] = []
    for kind, share in kind_shares(usable).items():
        units = [gpu for gpu in usable if gpu.kind == kind]
        sizes = sorted({gpu.memory_total_mib for gpu in units if gpu.memory_total_mib})
        memory = memory_words(sizes[0] << 20) if sizes else ""
        what = listed(
            [*filter(None, (kind_title(kind, share), machines.on(gpu.node for gpu in units)))]
        )
        if kind == SHARED:
            whole = lazy_gettext(
                "%(what)s: up to %(others)s others compute on the same GPU, by turns. "
                "All see the whole of its memory, which nothing divides by hardware: take no "
                "more than your part.",
                what=what,
                others=max(gpu.parts for gpu in units) - 1,
            )
            notes.append(join_sentences(whole, _guard_words(guard_seconds)))
        elif kind != WHOLE and memory:
            notes.append(
                lazy_gettext(
                    "%(what)s: a part of a GPU with its own memory (%(memory)s) and cores.",
                    what=what,
                    memory=memory,
                )
            )
        elif kind != WHOLE:
            notes.append(
                lazy_gettext("%(what)s: a part of a GPU with its own memory and cores.", what=what)
            )
    return notes


def _hours_note(limits: Limits) -> list[str]:
    """Return when slots in reserved hours are to be had, and how long."""
    if (hours := limits.hours_now) is None:
        return []
    return [
        lazy_gettext(
            "Shared GPUs are for the reserved hours of your course, from %(begin)s until %(end)s: "
            "a server with one ends with these at the latest.",
            begin=clock_time(hours.begin),
            end=clock_time(hours.end),
        )
    ]


def _guard_words(seconds: float | None) -> str:
    if seconds is None:
        return lazy_gettext("Nothing limits who takes more, and others' programs fail then.")
    return lazy_gettext(
        "Who takes more for %(duration)s is warned. After as long again the largest process is "
        "ended, and then the server is stopped.",
        duration=hours_words(seconds),
    )


def _is_offered(number: int, forecasts: Sequence[Forecast], limits: Limits) -> bool:
    """Return whether something may be preselected: it starts now, or its turn will come.

    Where all GPUs are taken the wish stays: who presses the button then joins the queue, and would
    start without a GPU and without a place if 0 were preselected.
    """
    found = forecasts[number]
    comes = found.turn is not None and found.turn.because != "never"
    return found.kind == "now" or (limits.waits and found.kind == "wait" and comes)


def model_items(limits: Limits, last: Choice, view: View | None) -> list[Model]:
    """Return the GPU models of all nodes."""
    # NVML may not report the model of an unhealthy GPU.
    named = [gpu for gpu in _offered(view) if gpu.uuid]
    counts = model_counts(named)
    fits = _fit(limits, _preselected(limits, last), view)
    chosen = _chosen_model(limits, last, view)
    items = []
    for model, (free, total) in counts.items():
        of_model = [gpu for gpu in named if gpu.model == model]
        may = limits.models is None or model in limits.models
        size = of_model[0].memory_total_mib
        items.append(
            Model(
                model,
                model,
                model == chosen,
                reason="" if may else lazy_gettext("not for you"),
                gigabytes=round(size / 1024) if size else None,
                free=free,
                total=total,
                until=min((gpu.until for gpu in of_model if gpu.until), default=None),
                fits=fits.takes(model),
                where=view.machines.on(gpu.node for gpu in of_model) if view else "",
            )
        )
    return items


def _chosen_model(limits: Limits, last: Choice, view: View | None) -> str | None:
    """Return the GPU model that is preselected; None for any."""
    fits = _fit(limits, _preselected(limits, last), view)
    may = limits.models is None or last.model in limits.models
    there = last.model in model_counts(_offered(view))
    return last.model if last.model and may and there and fits.takes(last.model) else None


def _hours(limits: Limits, last: Choice, part: Share) -> float | None:
    """Return the time of a choice in hours, as the form has it for such a part of GPUs."""
    items = hour_items(limits, last, part)
    return next((float(item.value) for item in items if item.checked), None)


def _part(usable: Sequence[GPU], kind: str) -> Share:
    """Return the part of a GPU that one unit of a kind is at the most, whatever limits count."""
    parts = [gpu.name.share for gpu in usable if gpu.name and gpu.kind == kind]
    return max(parts, default=1)


def _part_of(limits: Limits, view: View | None, count: Count) -> Share:
    """Return the part of GPUs that an option of the form asks for."""
    if count.value.isdigit():
        return int(count.value)
    return _part(_offered(view, limits.models, limits.kinds), count.value)


def _within_budget(limits: Limits, part: Share) -> float | None:
    """Return the longest time in hours of what is left of a budget; None: none, or too little."""
    if limits.gpu_hours is None or not part:
        return None
    steps = math.floor(limits.gpu_hours * 3600 / float(part) / STEP_SECONDS)
    return steps * STEP_SECONDS / 3600 or None


def hour_items(limits: Limits, last: Choice, part: Share = 0) -> list[Item]:
    """Return the durations in hours: the usual ones up to the limit, the default and the limit.

    Empty if the administrator has set neither limit nor default: servers have no end then.

    Args:
        limits: the user's limits.
        last: the choice that the form is filled with.
        part: the part of GPUs for which there is to be enough of a budget; 0: for no budget.
    """
    most = lower(limits.hours, _within_budget(limits, part))
    if most is None and limits.default_hours is None:
        return []
    offered = {float(each) for each in USUAL_HOURS if most is None or each < most}
    offered |= {each for each in (most, limits.default_hours) if each is not None}
    within = last.hours is not None and (most is None or last.hours <= most)
    if within and last.hours is not None:
        offered.add(last.hours)
    known = [each for each in (limits.default_hours, most) if each is not None]
    default = min(known) if known else None
    wanted = last.hours if within else default
    return [
        Item(_exactly(each), hours_words(each * 3600), each == wanted)
        for each in sorted(offered if most is None else {min(each, most) for each in offered})
    ]


def _until_reserved(forecast: Forecast) -> list[Item]:
    """Return the time with which a choice would start now, before hours that are reserved."""
    until = forecast.turn.hours.until_then if forecast.turn and forecast.turn.hours else 0
    minutes = int((until - time.time()) / 60)
    if minutes < 1:
        return []
    title = lazy_gettext("until %(time)s", time=clock_time(until))
    return [Item(_exactly(minutes / 60), title)]


def _exactly(number: float) -> str:
    """Return a number as it is read back: rounded, a limit would be over itself."""
    short = f"{number:g}"
    return short if float(short) == number else repr(float(number))


def _local_text(not_before: str | None) -> str:
    """Return a time for a form's field, in the hub's time zone; "" for none."""
    at = moment_of(not_before or "")
    return "" if at is None else f"{datetime.fromtimestamp(at):%Y-%m-%dT%H:%M}"


def _expected_end(forecast: Forecast, hours: Sequence[Item]) -> float | None:
    """Return when the lease would end, in seconds since the epoch; None if unknown or never."""
    start = (
        forecast.turn.start if forecast.turn else time.time() if forecast.kind == "now" else None
    )
    wanted = next((float(item.value) for item in hours if item.checked), None)
    if start is None or wanted is None or not forecast.gpus:
        return None
    end = start + wanted * 3600
    return end if forecast.until is None else min(end, forecast.until)


def size_phrase(limits: Limits) -> str:
    """Return how much memory and how many processors a server may use; "" without limits."""
    memory = limits.memory and memory_words(limits.memory)
    processors = limits.processors and processors_phrase(limits.processors)
    if memory and processors:
        return lazy_gettext(
            "A server may use up to %(memory)s of memory and %(processors)s.",
            memory=memory,
            processors=processors,
        )
    if memory:
        return lazy_gettext("A server may use up to %(memory)s of memory.", memory=memory)
    return lazy_gettext("A server may use up to %(what)s.", what=processors) if processors else ""


def processors_phrase(number: float) -> str:
    """Return a number of processors: "4 processors", "0.5 processors"."""
    if number == int(number):
        return lazy_ngettext("%(num)s processor", "%(num)s processors", int(number))
    return lazy_gettext("%(number)s processors", number=f"{number:g}")


def granted_phrase(gpus: Sequence[GPU]) -> str:
    """Return which GPUs were granted: "2 GPUs set aside for you: GPU 0 and 1 (NVIDIA A100)".

    And what connects them, as that may be why it is these.
    """
    if not gpus:
        return lazy_gettext("No GPU was asked for")
    parts = []
    if gpus[0].kind != WHOLE:
        named = gpu_names(gpus, MachineNames(()))
        return lazy_gettext("Set aside for you: %(which)s", which=named)
    for model in dict.fromkeys(gpu.model for gpu in gpus):
        indexes = listed([str(gpu.index) for gpu in gpus if gpu.model == model], "and")
        parts.append(lazy_gettext("GPU %(indexes)s (%(model)s)", indexes=indexes, model=model))
    granted = lazy_ngettext(
        "%(num)s GPU set aside for you: %(which)s",
        "%(num)s GPUs set aside for you: %(which)s",
        len(gpus),
        which=listed(parts),
    )
    how = connection(gpus)
    return lazy_gettext("%(gpus)s, %(how)s", gpus=granted, how=CONNECTED[how]) if how else granted


CONNECTED: dict[Connection, str] = {
    "nvlink": lazy_gettext("connected by NVLink"),
    "switch": lazy_gettext("on one PCIe switch"),
}


def _preselected(limits: Limits, last: Choice) -> str:
    """Return the key of the image version that is preselected."""
    there = last.image in limits.versions and last.image not in limits.absent
    allowed = limits.any_image or (limits.image_can_be_chosen and there)
    return last.image if last.image and allowed else limits.default_image


def _fit(limits: Limits, key: str, view: View | None) -> Fit:
    nodes = offered_nodes(view.nodes, limits.models) if view else ()
    return fit_nodes(limits.versions.get(key), nodes)


def _offered(
    view: View | None,
    models: frozenset[str] | None = None,
    kinds: frozenset[str] | None = None,
) -> list[GPU]:
    nodes = offered_nodes(view.nodes, models, kinds) if view else ()
    return [gpu for node in nodes for gpu in node.gpus]


@cache
def _read_static(name: str) -> Markup:
    """Return a static file to be inlined: JupyterHub doesn't serve a spawner's files."""
    return Markup((_STATIC / name).read_text(encoding="utf-8"))  # noqa: S704
