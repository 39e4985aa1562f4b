"""The pages' HTML, made of `facts.status` and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from markupsafe import Markup, escape

from ..gpus.allocation import gpu_count_phrase, reserved_phrase
from ..gpus.health import BY
from ..gpus.model import WHOLE
from ..gpus.unit_names import UnitIndex, parse
from ..i18n.languages import Language, templates_of
from ..i18n.lazy_text import listed
from ..i18n.phrases import memory_words, moment
from .facts import home_use

# Of a GPU's little picture.
WIDTH, HEIGHT = 120, 24
# In how many minutes the form has a server stopped that isn't to be stopped now.
STOP_MINUTES = 10

_templates = templates_of("gpuspawner.dashboard")


def with_commands(sentence: str) -> Markup:
    """Return a sentence as HTML, with what stands between backticks as commands."""
    parts = enumerate(sentence.split("`"))
    return Markup("").join(
        Markup("<code>{}</code>").format(each) if number % 2 else escape(each)
        for number, each in parts
    )


def render(template: str, language: Language, facts: Mapping[str, Any], **more: Any) -> str:
    """Return a page, or a part of one.

    Args:
        template: its file.
        language: the reader's.
        facts: `facts.status`; {} for a page without.
        more: what else the template needs.
    """
    own: dict[str, Any] = {"gpus": facts.get("gpus", ()), "facts": facts, "page": "", "action": ""}
    servers = Servers(facts)
    divided = {gpu["parent"] for gpu in own["gpus"]}
    return _templates.get_template(template).render(
        {**language.context(), **own, **more},
        kind_of=kind,
        # What there is of a GPU in MIG mode is its instances.
        kinds=Counter(
            kind(gpu) for gpu in own["gpus"] if gpu["state"] != "mig" or gpu["uuid"] not in divided
        ),
        cards=cards_of(own["gpus"]),
        server_of=servers.of,
        time=_time_in(language),
        gigabytes=gigabytes,
        memory=memory_words,
        home_use=home_use,
        with_commands=lambda sentence: with_commands(language.say(sentence)),
        gpus_phrase=gpu_count_phrase,
        reserved_phrase=reserved_phrase,
        lines=line_points,
        joined=listed,
        gpus_of=servers.gpus,
        others_on=lambda gpu: others_on(gpu, facts["you"]["user"]),
        several=len(facts.get("nodes", ())) > 1,
        width=WIDTH,
        height=HEIGHT,
        stop_minutes=STOP_MINUTES,
    )


def kind(gpu: Mapping[str, Any]) -> str:
    """Return what a card says first of a GPU: its state, with whose it is and why."""
    if gpu["out_of_service"]:
        failed = gpu["health"]["verdict"] == "quarantine"
        return "unhealthy" if failed and gpu["out_of_service"]["by"] == BY else "out-of-service"
    if gpu["state"] == "leased":
        return "yours" if gpu["yours"] else "in-use"
    return str(gpu["state"])


class Servers:
    """Which server holds which GPU, where the reader may know it."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self._gpus = [gpu for gpu in facts.get("gpus", ()) if gpu["id"]]
        self._by_gpu = {name: each for each in facts.get("servers", ()) for name in each["gpus"]}
        self._place = {gpu["id"]: number for number, gpu in enumerate(self._gpus)}

    @cached_property
    def _names(self) -> UnitIndex:
        """The units that servers have, as they were leased."""
        return UnitIndex(self._by_gpu)

    @cached_property
    def _units(self) -> UnitIndex:
        """The units that there are now."""
        return UnitIndex(self._place)

    def of(self, gpu: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return a GPU's server; None where that isn't to be known."""
        if gpu["other_hub"] or not gpu["id"]:
            return None
        found = self._by_gpu.get(gpu["id"])
        if found is None and gpu["in_use"]:
            # It was leased when it was whole, or shared otherwise than it is now.
            named = self._names.excluded_by(parse(gpu["id"]))
            found = self._by_gpu[named[0]] if named else None
        return found

    def gpus(self, server: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Return the GPUs of a server, or of what else has `gpus`, that are there: in order."""
        # What isn't called so now was leased when its GPU was whole, or shared otherwise.
        named = {
            each
            for name in server["gpus"]
            for each in ([name] if name in self._place else self._units.excluded_by(parse(name)))
        }
        there = [self._gpus[place] for place in sorted(map(self._place.__getitem__, named))]
        return sorted(there, key=lambda gpu: (gpu["node"], gpu["index"]))


def others_on(gpu: Mapping[str, Any], user: str) -> list[Mapping[str, Any]]:
    """Return the holders of a GPU but a user's own servers, as far as they may be known."""
    return [
        each
        for each in gpu["holders"]
        if not (gpu["yours"] and each["user"] == user)
        or (gpu["other_hub"] and each == gpu["holder"])
    ]


def cards_of(gpus: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the cards of a page, one for each physical GPU: itself and the parts it has.

    A shared GPU is its own first slot, as each of them has its measures.
    """
    cards: dict[tuple[str, int, str], dict[str, Any]] = {}
    for gpu in gpus:
        # Two GPUs of one number would be a fault of the driver's, and are two cards.
        key = gpu["node"], gpu["index"], gpu["parent"] or gpu["uuid"] or str(len(cards))
        card = cards.setdefault(key, {"gpu": gpu, "parts": []})
        if gpu["kind"] != WHOLE:
            card["parts"].append(gpu)
    return list(cards.values())


def lanes(spans: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Return as few rows as there must be for things none of which covers another of its row.

    Args:
        spans: what to draw, with its `begin` and `end` in seconds.
    """
    rows: list[list[Mapping[str, Any]]] = []
    for each in sorted(spans, key=lambda one: one["begin"]):
        for row in rows:
            if row[-1]["end"] <= each["begin"]:
                row.append(each)
                break
        else:
            rows.append([each])
    return rows


def _time_in(language: Language) -> Callable[..., Markup]:
    """Return what makes HTML of a time as `facts` have it, ISO 8601."""

    def element(text: str, *, precise: bool = False) -> Markup:
        return moment(datetime.fromisoformat(text).timestamp(), language, precise=precise)

    return element


def gigabytes(mib: int | None) -> str:
    """Return an amount of memory as people say it; "?" where it isn't known."""
    if mib is None:
        return "?"
    return f"{mib / 1024:.1f}" if 0 < mib < 10 * 1024 else f"{mib / 1024:.0f}"


def line_points(
    values: Sequence[int | None], top: float, width: int = WIDTH, height: int = HEIGHT
) -> list[str]:
    """Return the points of SVG lines; where a value isn't known, a line ends.

    Args:
        values: oldest first.
        top: what is drawn at the upper edge.
        width, height: of the picture.
    """
    step = width / max(1, len(values) - 1)
    found: list[list[str]] = [[]]
    for number, value in enumerate(values):
        if value is None:
            found.append([])
        else:
            y = height - 1 - (height - 2) * min(1.0, value / top if top else 0.0)
            found[-1].append(f"{number * step:.0f},{y:.1f}")
    # One point alone would not be seen.
    return [str(escape(" ".join(each if len(each) > 1 else each * 2))) for each in found if each]
