"""What the spawn page shows: what can be picked, and the reason beside what can't."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from .allocation import GPU, availability, model_counts
from .compatibility import Fit, fit
from .leases import View
from .options import Choice, Limits

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


def render(limits: Limits, last: Choice, view: View | None, trouble: str = "") -> str:
    """Return the form's HTML, or "" where there is nothing to choose.

    Args:
        limits: what applies to the user.
        last: what they chose last.
        view: the host; None where it couldn't be read.
        trouble: why it couldn't.
    """
    images = image_items(limits, last, view)
    counts = count_items(limits, last, view)
    models = model_items(limits, last, view)
    if len(images) <= 1 and len(counts) <= 1 and not limits.any_image and not trouble:
        return ""
    return _templates.get_template("form.html").render(
        images=images if len(images) > 1 else [],
        any_image=limits.any_image,
        image=last.image or limits.default_image,
        counts=counts,
        models=models if len(models) > 2 and len(counts) > 1 else [],
        free=_free_words(view),
        gpus=view.gpus if view else (),
        limit=limits.gpus,
        trouble=trouble,
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


def count_items(limits: Limits, last: Choice, view: View | None) -> list[Item]:
    """Return the GPU counts from none to the most that this user could ever have here."""
    offered = _offered(view)
    most = len(offered) if limits.gpus is None else min(limits.gpus, len(offered))
    free = sum(gpu.state == "free" for gpu in offered)
    wanted = min(limits.default_gpus if last.gpus is None else last.gpus, most)
    # Preselecting what can't be picked would send nothing at all, and what the preselected image
    # can't use would be refused.
    fits = _fit(limits, _preselected(limits, last), view)
    wanted = min(wanted, sum(gpu.state == "free" and fits.takes(gpu.model) for gpu in offered))
    return [
        Item(
            str(count),
            "none" if count == 0 else str(count),
            reason="" if count <= free else availability(offered),
            checked=count == wanted,
        )
        for count in range(most + 1)
    ]


def model_items(limits: Limits, last: Choice, view: View | None) -> list[Item]:
    """Return "any" and the host's GPU models with what is free of each."""
    counts = model_counts(_offered(view))
    fits = _fit(limits, _preselected(limits, last), view)
    chosen = next((m for m in counts if m == last.model and counts[m][0] and fits.takes(m)), None)
    items = []
    for model, (free, total) in counts.items():
        words = " · ".join(filter(None, [_memory(model, view), f"{free} of {total} free now"]))
        note, reason = (words, "") if free else ("", words)
        items.append(Item(model, model, note, reason, checked=model == chosen))
    return [Item("", "any", checked=chosen is None), *items]


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


def _preselected(limits: Limits, last: Choice) -> str:
    """Return the image that is sent where nothing is changed."""
    allowed = limits.any_image or (limits.image_can_be_chosen and last.image in limits.versions)
    return last.image if last.image and allowed else limits.default_image


def _fit(limits: Limits, key: str, view: View | None) -> Fit:
    return fit(limits.versions.get(key), view.driver if view else None, _offered(view))


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
