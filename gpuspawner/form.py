"""What the spawn page shows: what can be picked, and the reason beside what can't."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from .allocation import GPU, availability, model_counts
from .leases import View
from .options import Choice, Limits

_templates = jinja2.Environment(
    loader=jinja2.PackageLoader("gpuspawner"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


@dataclass(frozen=True)
class Item:
    """One thing to pick. `reason` says why it can't be; a `note` is for one that can."""

    value: str
    title: str
    note: str = ""
    reason: str = ""
    checked: bool = False


def render(limits: Limits, last: Choice, view: View | None, trouble: str = "") -> str:
    """Return the form's HTML, or "" where there is nothing to choose.

    Args:
        limits: what applies to the user.
        last: what they chose last.
        view: the host; None where it couldn't be read.
        trouble: why it couldn't.
    """
    images = image_items(limits, last, view.driver if view else None)
    counts = count_items(limits, last, view)
    models = model_items(last, view)
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


def image_items(limits: Limits, last: Choice, driver: str | None) -> list[Item]:
    """Return the image versions. One whose driver is missing can still run without GPUs."""
    if not limits.image_can_be_chosen or limits.any_image:
        return []
    chosen = last.image if last.image in limits.versions else limits.default_image
    return [
        Item(
            key,
            version.title or key,
            note=" · ".join(filter(None, [version.facts(), version.description])),
            reason=_without_gpus(version.needs_newer_driver(driver)),
            checked=key == chosen,
        )
        for key, version in limits.versions.items()
    ]


def count_items(limits: Limits, last: Choice, view: View | None) -> list[Item]:
    """Return the GPU counts from none to the most that this user could ever have here."""
    offered = _offered(view)
    most = len(offered) if limits.gpus is None else min(limits.gpus, len(offered))
    free = sum(gpu.state == "free" for gpu in offered)
    wanted = min(limits.default_gpus if last.gpus is None else last.gpus, most)
    # Preselecting what can't be picked would send nothing at all.
    wanted = min(wanted, free)
    return [
        Item(
            str(count),
            "none" if count == 0 else str(count),
            reason="" if count <= free else availability(offered),
            checked=count == wanted,
        )
        for count in range(most + 1)
    ]


def model_items(last: Choice, view: View | None) -> list[Item]:
    """Return "any" and the host's GPU models with what is free of each."""
    counts = model_counts(_offered(view))
    chosen = last.model if last.model in counts and counts[last.model][0] else None
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


def _without_gpus(reason: str) -> str:
    return f"{reason}; only without GPUs" if reason else ""
