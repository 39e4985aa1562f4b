"""Parsing of choices: untrusted `user_options` become a request, or a refusal for the user.

Form, link and REST API share it. Nothing here depends on a backend.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import Refused
from ..gpus.allocation import model_counts, most_on_one_node, offered_nodes
from ..gpus.model import Node, Request
from ..i18n.lazy_text import lazy_gettext, listed
from ..images.compatibility import fit_nodes
from .limits import MAX_HOURS, Limits

# The longest value of a choice, and how much of a wrong value a refusal quotes, in characters.
MAX_KEY = 200
MAX_SHOWN = 60
# Characters of all keys and values, each number and bracket counted as one; and how deep they lie.
MAX_CHOICE = 8 * 1024
MAX_DEPTH = 20
TOO_LARGE = lazy_gettext(
    "The options are too long: at most %(most)s characters can be sent.", most=MAX_CHOICE
)


_DECIMAL = r"-?[0-9]{1,9}(\.[0-9]{1,9})?"


@dataclass(frozen=True)
class Option:
    """Metadata of a key of `Choice`, where all keys are declared.

    Args:
        expected: what the value must be, in words.
        meaning: what it asks for, for the reference.
        left_out: what holds where it is left out, for the reference.
        pattern: a regular expression for a form's or link's text that is such a value; "": any.
        read: converts such a text.
    """

    expected: str
    meaning: str
    left_out: str
    pattern: str = ""
    read: Callable[[str], Any] = str

    def value_of(self, text: Any) -> Any:
        """Return the value of a form's or link's text; anything that doesn't match as it is."""
        looks_right = isinstance(text, str) and re.fullmatch(self.pattern or ".*", text, re.DOTALL)
        return self.read(text) if looks_right else text


class Choice(BaseModel):
    """A user's choice. A key that is missing, null or empty takes the administrator's default.

    A new key needs a field here and its meaning in `request`; parsing, the check of its type, the
    refusal and its row in the reference are derived from the field.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    image: Annotated[
        str | None,
        Field(max_length=MAX_KEY),
        Option(
            lazy_gettext("the key of an image version, as text"),
            "Key of an image version.",
            "The catalogue's default.",
        ),
    ] = None
    gpus: Annotated[
        int | None,
        Field(ge=0),
        Option(
            lazy_gettext("a whole number, 0 or more"),
            "How many GPUs, up to the limit.",
            "`default_gpus`; on a machine without GPUs, none.",
            r"-?[0-9]{1,9}",
            int,
        ),
    ] = None
    model: Annotated[
        str | None,
        Field(max_length=MAX_KEY),
        Option(
            lazy_gettext("the name of a GPU model, as text"),
            "GPU model, as NVML names it.",
            "Any; all of one model where one has enough.",
        ),
    ] = None
    hours: Annotated[
        float | None,
        Field(gt=0, le=MAX_HOURS),
        Option(
            lazy_gettext(
                "a number of hours, more than 0 and at most %(most)s", most=f"{MAX_HOURS:g}"
            ),
            "For how long, up to `hour_limit`.",
            "`default_hours`.",
            _DECIMAL,
            float,
        ),
    ] = None
    safe_mode: Annotated[
        bool | None,
        Option(
            lazy_gettext("true or false"),
            "Whether to start without the user's own [packages and settings](../how-to/files.md).",
            "`false`.",
            "true|false",
            lambda text: text == "true",
        ),
    ] = None


OPTIONS: dict[str, Option] = {
    key: next(each for each in field.metadata if isinstance(each, Option))
    for key, field in Choice.model_fields.items()
}


def from_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a form's or link's fields (key -> list of texts) to `user_options`.

    For our own keys the first value counts, as in DockerSpawner. Invalid values are passed through:
    `parse` refuses them, with the same sentence as for the REST API.
    """
    options: dict[str, Any] = {}
    for name, values in fields.items():
        option = OPTIONS.get(name)
        single = isinstance(values, list) and (len(values) == 1 or (option and values))
        value = values[0] if single else values
        if option is None:
            options[name] = value
        elif value != "":
            options[name] = option.value_of(value)
    return options


def parse(raw: Any, others_allowed: bool = False) -> Choice:
    """Check the keys and types of `user_options`.

    Args:
        raw: any JSON value.
        others_allowed: whether unknown keys are allowed, for the administrator's own hooks.

    Raises:
        Refused: a key is unknown or its value invalid; the sentence names both.
    """
    if not others_allowed and is_too_large(raw):
        raise Refused(TOO_LARGE)
    if not isinstance(raw, Mapping):
        raise Refused(
            lazy_gettext(
                "The options must be an object with the keys %(keys)s, got %(value)s.",
                keys=_keys(),
                value=_quote(raw),
            )
        )
    known = {key: raw[key] for key in Choice.model_fields if raw.get(key) not in (None, "")}
    unknown = [key for key in raw if key not in Choice.model_fields]
    if unknown and not others_allowed:
        key = unknown[0]
        raise Refused(
            lazy_gettext(
                "%(key)s is not an option here (its value was %(value)s). "
                "The options are %(keys)s.",
                key=_quote(key),
                value=_quote(raw[key]),
                keys=_keys(),
            )
        )
    try:
        return Choice(**known)
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        what, value = OPTIONS[key].expected, _quote(known[key])
        raise Refused(
            lazy_gettext(
                "%(key)s must be %(what)s, got %(value)s.", key=key, what=what, value=value
            )
        ) from None


def is_too_large(raw: Any) -> bool:
    """Return whether something is more than a choice can be, by looking at no more than that."""
    size, level = 0, [raw]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, Mapping):
                inner += [*value, *value.values()]
            elif isinstance(value, list | tuple):
                inner += value
            size += _size(value)
            if size + len(inner) > MAX_CHOICE:
                return True
        level = inner
    return bool(level)


def _size(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    return 1 + value.bit_length() // 8 if isinstance(value, int) else 1


def image_key(choice: Choice, limits: Limits) -> str:
    """Return the key of the image version that a choice means.

    Raises:
        Refused: there is no such version, or the user may not choose it.
    """
    if choice.image is None:
        if not limits.default_image:
            raise Refused(
                lazy_gettext("There is no image version that you may pick on this hub."), status=403
            )
        return limits.default_image
    if limits.any_image:
        return choice.image
    if not limits.image_can_be_chosen:
        raise Refused(
            lazy_gettext(
                "image can't be chosen on this hub, got %(value)s: leave it out.",
                value=_quote(choice.image),
            )
        )
    if choice.image not in limits.versions:
        raise Refused(
            lazy_gettext(
                "image must be one of %(keys)s, got %(value)s.",
                keys=", ".join(limits.versions),
                value=_quote(choice.image),
            )
        )
    if choice.image in limits.absent:
        raise Refused(
            lazy_gettext(
                "image %(image)s isn't on this machine yet. An administrator can put it there.",
                image=choice.image,
            ),
            status=503,
        )
    return choice.image


def gpu_count(choice: Choice, limits: Limits) -> int:
    """Return how many GPUs a choice asks for, whatever the nodes have.

    Raises:
        Refused: the number is over a limit.
    """
    if choice.gpus is None:
        most = limits.most_gpus()
        return limits.default_gpus if most is None else min(limits.default_gpus, most)
    for rule in limits.rules():
        if choice.gpus > rule.most:
            raise Refused(
                lazy_gettext(
                    "gpus is %(value)s, and %(whose)s is %(most)s.",
                    value=_quote(choice.gpus),
                    whose=rule.whose,
                    most=rule.most,
                ),
                status=403,
            )
    return choice.gpus


def seconds(choice: Choice, limits: Limits) -> float | None:
    """Return for how long a choice asks for its GPUs, in seconds; None: without an end.

    Raises:
        Refused: the time is over the limit.
    """
    if choice.hours is None:
        known = [each for each in (limits.default_hours, limits.hours) if each is not None]
        return min(known) * 3600 if known else None
    if limits.hours is not None and choice.hours > limits.hours:
        raise Refused(
            lazy_gettext(
                "hours is %(value)s, and your limit is %(most)s.",
                value=f"{choice.hours:g}",
                most=f"{limits.hours:g}",
            ),
            status=403,
        )
    return choice.hours * 3600


def request(choice: Choice, limits: Limits, nodes: Sequence[Node]) -> Request:
    """Convert a choice to a request that one of the nodes can grant once enough GPUs are free.

    Args:
        choice: the result of `parse`.
        limits: the user's limits.
        nodes: the nodes with all their GPUs, free or not; may be empty for a choice of 0 GPUs.

    Raises:
        Refused: the version or model is unknown, a limit is exceeded, no node has so many GPUs, or
            the image runs on none of them.
    """
    key = image_key(choice, limits)
    count = gpu_count(choice, limits)
    several = len(nodes) > 1
    gpus = [gpu for node in offered_nodes(nodes) for gpu in node.gpus]
    models = list(model_counts(gpus))
    named = choice.model if count > 0 else None
    if named is not None:
        _check_model(named, models, limits, several)
    usable = offered_nodes(nodes, limits.models)
    fits = fit_nodes(limits.versions.get(key), usable)
    if count > 0 and fits.reason and any(node.gpus for node in usable):
        raise Refused(
            lazy_gettext(
                "image %(image)s %(reason)s. With 0 GPUs it can be used.",
                image=key,
                reason=fits.reason,
            )
        )
    if named is not None and not fits.takes(named):
        raise Refused(
            lazy_gettext(
                "model is %(value)s, and image %(image)s isn't built for it: "
                "it runs on %(models)s.",
                value=_quote(named),
                image=key,
                models=", ".join(filter(fits.takes, models)),
            )
        )
    allowed = intersection(fits.models, limits.models)
    total = most_on_one_node(
        filter(Request(key, count, named, allowed, places=fits.places).takes, gpus)
    )
    if choice.gpus is None:
        # The user didn't name a number: on nodes without GPUs the server starts without.
        count = min(count, total)
    elif count > total:
        few = _too_few_anywhere if several else _too_few
        raise Refused(few(count, total, key, named, limits, total < most_on_one_node(gpus)))
    if count == 0:
        return Request(key, 0)
    return Request(key, count, named, allowed, seconds(choice, limits), fits.places)


def _check_model(named: str, models: list[str], limits: Limits, several: bool) -> None:
    """Raise `Refused` if the user may not have a GPU model, or no node has it."""
    if limits.models is not None and named not in limits.models:
        none = (
            lazy_gettext("none of those here")
            if several
            else lazy_gettext("none of this machine's")
        )
        may = listed(sorted(limits.models & set(models))) or none
        raise Refused(
            lazy_gettext(
                "model is %(value)s, and the models you may have are: %(models)s.",
                value=_quote(named),
                models=may,
            ),
            status=403,
        )
    if models and named not in models:
        known = {"value": _quote(named), "models": listed(models)}
        raise Refused(
            lazy_gettext(
                "model is %(value)s, and no machine here has such a GPU: there are %(models)s.",
                **known,
            )
            if several
            else lazy_gettext(
                "model is %(value)s, and this machine has no such GPU: it has %(models)s.", **known
            )
        )
    if not models:
        value = _quote(named)
        raise Refused(
            lazy_gettext("model is %(value)s, and no machine here has a GPU.", value=value)
            if several
            else lazy_gettext(
                "model is %(value)s, and this machine has no such GPU: it has no GPU.", value=value
            )
        )


def _too_few(
    count: int, total: int, key: str, named: str | None, limits: Limits, not_all: bool
) -> str:
    """Return the refusal if the only node doesn't have so many GPUs of the kind requested.

    Args:
        count: how many are requested.
        total: how many there are.
        key: the image version's key.
        named: the model that is requested; None: any.
        limits: the user's limits.
        not_all: whether the image or the limits exclude some of the node's GPUs.
    """
    values = {"value": _quote(count), "total": total}
    if named is not None:
        return lazy_gettext(
            "gpus is %(value)s, and this machine has %(total)s of %(model)s.", **values, model=named
        )
    if limits.models is not None:
        return lazy_gettext(
            "gpus is %(value)s, and this machine has %(total)s that you may have.", **values
        )
    if not_all:
        return lazy_gettext(
            "gpus is %(value)s, and this machine has %(total)s that image %(image)s runs on.",
            **values,
            image=key,
        )
    return lazy_gettext("gpus is %(value)s, and this machine has %(total)s.", **values)


def _too_few_anywhere(
    count: int, total: int, key: str, named: str | None, limits: Limits, not_all: bool
) -> str:
    """Return the refusal if none of several nodes has so many GPUs; as `_too_few`."""
    values = {"value": _quote(count), "total": total}
    if named is not None:
        return lazy_gettext(
            "gpus is %(value)s, and no machine here has more than %(total)s of %(model)s.",
            **values,
            model=named,
        )
    if limits.models is not None:
        return lazy_gettext(
            "gpus is %(value)s, and no machine here has more than %(total)s that you may have.",
            **values,
        )
    if not_all:
        return lazy_gettext(
            "gpus is %(value)s, and no machine here has more than %(total)s that image %(image)s "
            "runs on.",
            **values,
            image=key,
        )
    return lazy_gettext("gpus is %(value)s, and no machine here has more than %(total)s.", **values)


def intersection(one: frozenset[str] | None, other: frozenset[str] | None) -> frozenset[str] | None:
    """Return the intersection of two sets, where None stands for everything."""
    if one is None or other is None:
        return other if one is None else one
    return one & other


def restore_choice(raw: Any) -> Choice:
    """Return the choice of saved `user_options` for the form; what is invalid now is left out."""
    kept = raw if isinstance(raw, Mapping) else {}
    for keys in (Choice.model_fields, ("image",), ("gpus",)):
        try:
            return parse({key: kept[key] for key in keys if key in kept})
        except Refused:
            continue
    return Choice()


def _keys() -> str:
    return ", ".join(Choice.model_fields)


def _quote(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (RecursionError, ValueError, TypeError):
        return "something that can't be shown"
    # A lone surrogate is valid JSON and no valid page.
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
