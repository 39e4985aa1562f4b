"""What users send: an untrusted choice becomes a request, or a refusal they can understand.

Form, link and REST meet here. Nothing in this module knows of a host's engine, so that it serves a
spawner for many hosts as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .allocation import GPU, Request, model_counts
from .compatibility import fit
from .images import ImageVersion

# A choice is a few words. What is longer is no choice, and isn't worth reading back to its sender.
MAX_KEY = 200
MAX_SHOWN = 60


class Refused(Exception):
    """A choice that can't be granted. `str()` names the key, the value and the limit.

    `status` is the HTTP status that says whose mistake it is: 400 a malformed choice, 403 one over
    a limit.
    """

    def __init__(self, sentence: str, status: int = 400) -> None:
        super().__init__(sentence)
        self.status = status


class Choice(BaseModel):
    """What a user may say. A key that is missing, null or empty is left to the administrator."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    image: Annotated[str, Field(max_length=MAX_KEY)] | None = None
    gpus: Annotated[int, Field(ge=0)] | None = None
    model: Annotated[str, Field(max_length=MAX_KEY)] | None = None


_EXPECTED = {
    "image": "the key of an image version, as text",
    "gpus": "a whole number, 0 or more",
    "model": "the name of a GPU model, as text",
}


@dataclass(frozen=True)
class Limits:
    """What applies to a choice: the catalogue and the administrator's defaults for this user.

    `gpus` is the most GPUs a server of theirs may have; None leaves it to the host.
    """

    versions: Mapping[str, ImageVersion]
    default_image: str
    image_can_be_chosen: bool = True
    any_image: bool = False
    default_gpus: int = 1
    gpus: int | None = None


def from_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a form's or link's fields (key -> list of texts) into `user_options`.

    Only the shape is changed: of our own keys the first value counts, as in DockerSpawner. What is
    wrong is left as it is, for `parse` to refuse: one place refuses, and REST gets the same words.
    """
    options: dict[str, Any] = {}
    for name, values in fields.items():
        ours = name in Choice.model_fields
        single = isinstance(values, list) and (len(values) == 1 or (ours and values))
        value = values[0] if single else values
        if ours and value == "":
            continue
        if name == "gpus" and isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,9}", value):
            value = int(value)
        options[name] = value
    return options


def parse(raw: Any, others_allowed: bool = False) -> Choice:
    """Check keys and types of `user_options` as they came.

    Args:
        raw: anything that JSON can hold.
        others_allowed: leave unknown keys to the administrator's own hooks.

    Raises:
        Refused: with the key and the value.
    """
    if not isinstance(raw, Mapping):
        raise Refused(f"The options must be an object with the keys {_keys()}, got {_show(raw)}.")
    known = {key: raw[key] for key in Choice.model_fields if raw.get(key) not in (None, "")}
    unknown = [key for key in raw if key not in Choice.model_fields]
    if unknown and not others_allowed:
        key = unknown[0]
        raise Refused(
            f"{_show(key)} is not an option here (its value was {_show(raw[key])}). "
            f"The options are {_keys()}."
        )
    try:
        return Choice(**known)
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        raise Refused(f"{key} must be {_EXPECTED[key]}, got {_show(known[key])}.") from None


def image_key(choice: Choice, limits: Limits) -> str:
    """Return the catalogue key that a choice means.

    Raises:
        Refused: there is no such version.
    """
    if choice.image is None:
        return limits.default_image
    if limits.any_image:
        return choice.image
    if not limits.image_can_be_chosen:
        raise Refused(
            f"image can't be chosen on this hub, got {_show(choice.image)}: leave it out."
        )
    if choice.image not in limits.versions:
        raise Refused(
            f"image must be one of {', '.join(limits.versions)}, got {_show(choice.image)}."
        )
    return choice.image


def gpu_count(choice: Choice, limits: Limits) -> int:
    """Return how many GPUs a choice means before the host is looked at.

    Raises:
        Refused: it is over the limit.
    """
    if choice.gpus is None:
        count = limits.default_gpus
        return count if limits.gpus is None else min(count, limits.gpus)
    if limits.gpus is not None and choice.gpus > limits.gpus:
        raise Refused(f"gpus is {_show(choice.gpus)}, and your limit is {limits.gpus}.", 403)
    return choice.gpus


def request(choice: Choice, limits: Limits, gpus: Sequence[GPU], driver: str | None) -> Request:
    """Turn a choice into a request that this host could meet once enough GPUs are free.

    Args:
        choice: what `parse` returned.
        limits: what applies to this user.
        gpus: the host's GPUs, taken ones too; empty for a choice of 0 GPUs.
        driver: the host's driver version; None where there is none.

    Raises:
        Refused: unknown version or model, over a limit, more than the host has, or nothing that
            the image runs on.
    """
    key = image_key(choice, limits)
    count = gpu_count(choice, limits)
    # A GPU that is kept out isn't waited for.
    gpus = [gpu for gpu in gpus if gpu.state not in ("excluded", "mig")]
    models = model_counts(gpus)
    named = choice.model if count > 0 else None
    if named is not None and named not in models:
        there = f"it has {', '.join(models)}" if models else "it has no GPU"
        raise Refused(f"model is {_show(named)}, and this machine has no such GPU: {there}.")
    fits = fit(limits.versions.get(key), driver, gpus)
    if count > 0 and gpus and fits.reason:
        raise Refused(f"image {key} {fits.reason}. With 0 GPUs it can be used.")
    if named is not None and not fits.takes(named):
        runs_on = ", ".join(filter(fits.takes, models))
        raise Refused(
            f"model is {_show(named)}, and image {key} isn't built for it: it runs on {runs_on}."
        )
    total = sum(map(Request(key, count, named, fits.models).takes, gpus))
    if choice.gpus is None:
        # Nobody asked for GPUs, so a host without them is no reason to refuse.
        count = min(count, total)
    elif count > total:
        which = f" that image {key} runs on" if total < len(gpus) else ""
        which = f" of {named}" if named is not None else which
        raise Refused(f"gpus is {_show(count)}, and this machine has {total}{which}.")
    return Request(key, count, named, fits.models) if count else Request(key, 0)


def remembered(raw: Any) -> Choice:
    """Return a saved choice for the form, and an empty one where it no longer makes sense."""
    kept = raw if isinstance(raw, Mapping) else {}
    for keys in (Choice.model_fields, ("image",), ("gpus",)):
        try:
            return parse({key: kept[key] for key in keys if key in kept})
        except Refused:
            continue
    return Choice()


def _keys() -> str:
    return ", ".join(Choice.model_fields)


def _show(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (RecursionError, ValueError, TypeError):
        return "something that can't be shown"
    # A lone surrogate is valid JSON and no valid page.
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
