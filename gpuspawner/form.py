"""What the spawn page shows: what can be picked, and the reason beside what can't."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from .allocation import GPU, Request, availability, model_counts
from .compatibility import Fit, fit
from .leases import View
from .options import Choice, Limits, both
from .order import Turn
from .words import clock_time, hours_words, prospect

# What most people need of an afternoon, a day and a night; the limit comes on top.
USUAL_HOURS = (1, 2, 4, 8, 24)

_templates = jinja2.Environment(
    loader=jinja2.PackageLoader("gpuspawner"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


@dataclass(frozen=True)
class Item:
    """One thing to pick. `reason` says why it can't be; a `note` is for one that can.

    A `warning` is for one that can, and perhaps shouldn't.
    """

    value: str
    title: str
    note: str = ""
    reason: str = ""
    warning: str = ""
    checked: bool = False


# What turn a request would get now; None where it can't be told.
Forecast = Callable[[Request], Turn | None]


def render(
    limits: Limits,
    last: Choice,
    view: View | None,
    forecast: Forecast,
    *,
    trouble: str = "",
    notice: str = "",
) -> str:
    """Return the form's HTML, or "" where there is nothing to choose.

    Args:
        limits: what applies to the user.
        last: what they chose last.
        view: the host; None where it couldn't be read.
        forecast: tells what turn a request would get.
        trouble: why the host couldn't be read.
        notice: why the user's last server was stopped.
    """
    images = image_items(limits, last, view)
    counts = count_items(limits, last, view, forecast)
    models = model_items(limits, last, view)
    hours = hour_items(limits, last) if len(counts) > 1 else []
    if len(images) <= 1 and len(counts) <= 1 and not (limits.any_image or trouble or notice):
        return ""
    return _templates.get_template("form.html").render(
        images=images if len(images) > 1 else [],
        any_image=limits.any_image,
        image=last.image or limits.default_image,
        counts=counts,
        models=models if len(models) > 2 and len(counts) > 1 else [],
        hours=hours if len(hours) > 1 else [],
        free=_free_words(view),
        gpus=view.gpus if view else (),
        limits=[f"{whose[0].upper()}{whose[1:]} is {most}." for most, whose in limits.rules()],
        gpu_words=_gpu_words,
        trouble=trouble,
        notice=notice,
    )


def image_items(limits: Limits, last: Choice, view: View | None) -> list[Item]:
    """Return the image versions. One that can't use this host's GPUs still runs without."""
    if not limits.image_can_be_chosen or limits.any_image:
        return []
    chosen = _preselected(limits, last)
    items = []
    for key, version in limits.versions.items():
        fits = _fit(limits, key, view)
        old = f"deprecated: {version.deprecated}" if version.deprecated else ""
        items.append(
            Item(
                key,
                version.title or key,
                note=" · ".join(filter(None, [version.facts(), version.description])),
                reason=f"{fits.reason}; only without GPUs" if fits.reason else "",
                warning=" · ".join(filter(None, [old, fits.note])),
                checked=key == chosen,
            )
        )
    return items


def count_items(limits: Limits, last: Choice, view: View | None, forecast: Forecast) -> list[Item]:
    """Return the GPU counts from none to the most that this user could ever have here."""
    fits = _fit(limits, _preselected(limits, last), view)
    allowed = both(fits.models, limits.models)
    usable = [gpu for gpu in _offered(view) if limits.models is None or gpu.model in limits.models]
    most = min([len(usable), *(most for most, _ in limits.rules())])
    # What the preselected image can't use would be refused.
    runs_on = [gpu for gpu in usable if fits.takes(gpu.model)]
    wanted = min(limits.default_gpus if last.gpus is None else last.gpus, most, len(runs_on))
    free = sum(gpu.state == "free" for gpu in runs_on)
    if last.gpus is None or not limits.waits:
        # Who didn't say so isn't sent to the queue.
        wanted = min(wanted, free)
    hours = next((item.value for item in hour_items(limits, last) if item.checked), "")
    seconds = float(hours) * 3600 if hours else None
    items = []
    for count in range(most + 1):
        request = Request(_preselected(limits, last), count, None, allowed, seconds)
        turn = forecast(request) if 0 < count <= len(runs_on) else None
        now = count == 0 or bool(turn and turn.gpus)
        items.append(
            Item(
                str(count),
                "none" if count == 0 else str(count),
                note=prospect(turn) if turn and limits.waits else "",
                reason="" if now or limits.waits else availability(usable),
                checked=count == wanted,
            )
        )
    return items


def model_items(limits: Limits, last: Choice, view: View | None) -> list[Item]:
    """Return "any" and the host's GPU models with what is free of each, and when more will be."""
    counts = model_counts(_offered(view))
    fits = _fit(limits, _preselected(limits, last), view)
    chosen = next((m for m in counts if m == last.model and fits.takes(m)), None)
    items = []
    for model, (free, total) in counts.items():
        may = limits.models is None or model in limits.models
        ends = [gpu.until for gpu in _offered(view) if gpu.model == model and gpu.until]
        words = [
            _memory(model, view),
            f"{free} of {total} free now",
            "" if free or not ends else f"next about {clock_time(min(ends))}",
        ]
        items.append(
            Item(
                model,
                model,
                note=" · ".join(filter(None, words)),
                reason="" if may else "not for you",
                checked=may and model == chosen,
            )
        )
    return [Item("", "any", checked=not any(item.checked for item in items)), *items]


def hour_items(limits: Limits, last: Choice) -> list[Item]:
    """Return the durations to pick from: the usual ones up to the limit, the default, the limit.

    None where the administrator has set neither: then servers have no end unless their users ask.
    """
    most = limits.hours
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
        Item(f"{each:g}", hours_words(each * 3600), checked=each == wanted)
        for each in sorted(offered if most is None else {min(each, most) for each in offered})
    ]


def granted(gpus: Sequence[GPU]) -> str:
    """Say which GPUs were set aside: "2 GPUs set aside for you: GPU 0 and 1 (NVIDIA A100)"."""
    if not gpus:
        return "No GPU was asked for"
    parts = []
    for model in dict.fromkeys(gpu.model for gpu in gpus):
        *first, last = (str(gpu.index) for gpu in gpus if gpu.model == model)
        indexes = f"{', '.join(first)} and {last}" if first else last
        parts.append(f"GPU {indexes} ({model})")
    return f"{len(gpus)} GPU{'s' * (len(gpus) > 1)} set aside for you: {', '.join(parts)}"


def _gpu_words(gpu: GPU) -> str:
    if gpu.state == "free":
        return "free"
    until = f" until about {clock_time(gpu.until)}" if gpu.until else ""
    return (gpu.reason or gpu.state) + until


def _preselected(limits: Limits, last: Choice) -> str:
    """Return the image that is sent where nothing is changed."""
    allowed = limits.any_image or (limits.image_can_be_chosen and last.image in limits.versions)
    return last.image if last.image and allowed else limits.default_image


def _fit(limits: Limits, key: str, view: View | None) -> Fit:
    usable = [gpu for gpu in _offered(view) if limits.models is None or gpu.model in limits.models]
    return fit(limits.versions.get(key), view.driver if view else None, usable)


def _offered(view: View | None) -> list[Any]:
    return [gpu for gpu in view.gpus if gpu.state not in ("excluded", "mig")] if view else []


def _memory(model: str, view: View | None) -> str:
    sizes = [gpu.memory_total_mib for gpu in _offered(view) if gpu.model == model]
    return f"{round(sizes[0] / 1024)} GB" if sizes and sizes[0] else ""


def _free_words(view: View | None) -> str:
    offered = _offered(view)
    if not offered:
        return ""
    return f"{sum(gpu.state == 'free' for gpu in offered)} of {len(offered)} free now"
