"""Parsing of choices: untrusted `user_options` become a request, or a refusal for the user.

Form, link and REST API share it. Nothing here depends on a backend.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import Refused
from ..gpus.allocation import kind_shares, model_counts, most_on_one_node, offered_nodes
from ..gpus.model import GPU, SHARED, WHOLE, Node, Request
from ..gpus.unit_names import PROFILE
from ..i18n.lazy_text import lazy_gettext
from ..images.compatibility import fit_nodes
from . import later, refusals
from .course_choice import within_course
from .limits import MAX_HOURS, Limits
from .slot_hours import within_hours

# The longest value of a choice, in characters.
MAX_KEY = 200
# Characters of all keys and values, each number and bracket counted as one; and how deep they lie.
MAX_CHOICE = 8 * 1024
MAX_DEPTH = 20
TOO_LARGE = lazy_gettext(
    "The options are too long: at most %(most)s characters can be sent.", most=MAX_CHOICE
)


_KIND = rf"{SHARED}|{PROFILE}"
# The form has as many digits as a number takes that is to come back as it is.
_DECIMAL = r"-?[0-9]{1,9}(\.[0-9]{1,20})?"


@dataclass(frozen=True)
class Option:
    """Metadata of a key of `Choice`, where all keys are declared.

    Args:
        name: what users call it, at the beginning of a sentence.
        expected: what the value must be, in words.
        meaning: what it asks for, for the reference.
        left_out: what holds where it is left out, for the reference.
        pattern: a regular expression for a form's or link's text that is such a value; "": any.
        read: converts such a text.
    """

    name: str
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
            lazy_gettext("The image"),
            lazy_gettext("the key of an image version, as text"),
            "Key of an image version.",
            "The catalogue's default.",
        ),
    ] = None
    gpus: Annotated[
        int | None,
        Field(ge=0),
        Option(
            lazy_gettext("The number of GPUs"),
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
            lazy_gettext("The GPU model"),
            lazy_gettext("the name of a GPU model, as text"),
            "GPU model, as NVML names it.",
            "Any; all of one model where one has enough.",
        ),
    ] = None
    kind: Annotated[
        str | None,
        Field(max_length=MAX_KEY),
        Option(
            lazy_gettext("The kind of GPU"),
            lazy_gettext('"gpu", "shared" or the profile of a MIG instance, as text'),
            "`gpu` for whole GPUs, `shared` for a slot of one that several servers share, or the "
            "profile of a MIG instance, such as `1g.10gb`. Of the last two a server has one. In a "
            "course's hours with [slots](../how-to/courses.md), `shared` is one of these.",
            "`default_kind`: whole GPUs where there are any. In such hours, a slot.",
        ),
    ] = None
    hours: Annotated[
        float | None,
        Field(gt=0, le=MAX_HOURS),
        Option(
            lazy_gettext("The time"),
            lazy_gettext(
                "a number of hours, more than 0 and at most %(most)s", most=f"{MAX_HOURS:g}"
            ),
            "For how long, up to `hour_limit`.",
            "`default_hours`.",
            _DECIMAL,
            float,
        ),
    ] = None
    not_before: Annotated[
        str | None,
        Field(max_length=MAX_KEY),
        Option(
            later.NAME,
            later.EXPECTED,
            "Not to start before that time: `08:00` (the next one), or `2026-12-24T08:00`, both in "
            "the hub's time zone, or `2026-12-24T08:00+01:00`. At most `not_before_hours` ahead. A "
            "server without GPUs starts at once all the same.",
            "When it is its turn.",
        ),
    ] = None
    safe_mode: Annotated[
        bool | None,
        Option(
            lazy_gettext("Whether to start without your packages and settings"),
            lazy_gettext("true or false"),
            "Whether to start without the user's own [packages and settings](../how-to/files.md).",
            "`false`.",
            "true|false",
            lambda text: text == "true",
        ),
    ] = None
    course: Annotated[
        str | None,
        Field(max_length=MAX_KEY),
        Option(
            lazy_gettext("The course"),
            lazy_gettext('the key of a course that you are in, or "none", as text'),
            "Key of a [course](../how-to/courses.md) that its user is in, or `none`.",
            "The course of the user's, where there is one alone; of several the first; none for "
            "who teaches them.",
        ),
    ] = None


# Of a saved choice that can't be had any more, one key may be why.
LEFT_OUT_FIRST = (
    "not_before",
    "course",
    "kind",
    "model",
    "hours",
    "safe_mode",
    "image",
    "gpus",
)

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
        if name == "gpus" and isinstance(value, str) and re.fullmatch(_KIND, value):
            # The form's one question: how many, or which part of one.
            options.setdefault("kind", value)
        elif option is None:
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
        raise refusals.not_an_object(raw, Choice.model_fields)
    known = {key: raw[key] for key in Choice.model_fields if raw.get(key) not in (None, "")}
    unknown = [key for key in raw if key not in Choice.model_fields]
    if unknown and not others_allowed:
        raise refusals.unknown_option(unknown[0], raw[unknown[0]], Choice.model_fields)
    try:
        return Choice(**known)
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        option = OPTIONS[key]
        raise refusals.malformed(key, known[key], option.name, option.expected) from None


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
            raise refusals.no_image()
        return limits.default_image
    if limits.any_image:
        return choice.image
    if not limits.image_can_be_chosen:
        raise refusals.image_not_offered(choice.image)
    if choice.image not in limits.versions:
        raise refusals.unknown_image(choice.image, limits)
    if choice.image in limits.absent:
        raise refusals.absent_image(choice.image, limits)
    return choice.image


def gpu_count(choice: Choice, limits: Limits) -> int:
    """Return how many GPUs a choice asks for, whatever the nodes have.

    Raises:
        Refused: the number is over a limit.
    """
    if choice.gpus is None and choice.kind is None:
        most = limits.most_gpus()
        return limits.default_gpus if most is None else min(limits.default_gpus, most)
    wanted = 1 if choice.gpus is None else choice.gpus
    for rule in limits.rules():
        if wanted > rule.most:
            raise refusals.over_limit(wanted, rule)
    return wanted


def unit_kind(choice: Choice, limits: Limits, gpus: Sequence[GPU]) -> str:
    """Return the kind of the units that a choice asks for.

    Args:
        choice: the choice.
        limits: the user's limits.
        gpus: the units that may be handed out to anybody.

    Raises:
        Refused: there is no such unit, the user may not have it, or a server can't have as many.
    """
    # Of a model that is named there may be no whole one, or nothing but whole ones.
    of_model = [gpu for gpu in gpus if choice.model in (None, gpu.model)]
    there = kind_shares(of_model or gpus)
    may = [kind for kind in there if limits.kinds is None or kind in limits.kinds]
    if choice.kind is None:
        # A number means whole GPUs, where the user can have any; several can mean nothing else.
        whole = (choice.gpus or 0) > 1 or WHOLE in may or not may
        if whole and limits.kinds is not None and WHOLE not in limits.kinds:
            raise refusals.kind_not_allowed(WHOLE, may)
        usual = WHOLE if whole else may[0]
        return limits.default_kind if choice.gpus is None and limits.default_kind in may else usual
    if choice.kind not in there and (choice.kind != WHOLE or there):
        raise refusals.unknown_kind(choice.kind, may)
    if limits.kinds is not None and choice.kind not in limits.kinds:
        raise refusals.kind_not_allowed(choice.kind, may)
    if choice.kind != WHOLE and (choice.gpus or 1) > 1:
        raise refusals.one_part_each(choice.kind)
    return choice.kind


def seconds(choice: Choice, limits: Limits) -> float | None:
    """Return for how long a choice asks for its GPUs, in seconds; None: without an end.

    Raises:
        Refused: the time is over the limit.
    """
    if choice.hours is None:
        known = [each for each in (limits.default_hours, limits.hours) if each is not None]
        return min(known) * 3600 if known else None
    if limits.hours is not None and choice.hours > limits.hours:
        raise refusals.over_hours(choice.hours, limits.hours)
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
    limits, nodes = within_hours(within_course(choice.course, limits), nodes)
    key = image_key(choice, limits)
    count = gpu_count(choice, limits)
    several = len(nodes) > 1
    every = [gpu for node in offered_nodes(nodes) for gpu in node.gpus]
    kind = unit_kind(choice, limits, every) if count > 0 else WHOLE
    if kind != WHOLE and choice.gpus is None:
        count = min(count, 1)  # the default is for whole GPUs
    gpus = [gpu for gpu in every if gpu.kind == kind]
    models = list(model_counts(gpus))
    named = choice.model if count > 0 else None
    if named is not None and limits.models is not None and named not in limits.models:
        raise refusals.model_not_allowed(named, models, limits, several)
    if named is not None and named not in models:
        raise refusals.unknown_model(named, models, several)
    kinds = frozenset({kind}) if limits.kinds is None or kind in limits.kinds else frozenset[str]()
    usable = offered_nodes(nodes, limits.models, kinds)
    fits = fit_nodes(limits.versions.get(key), usable)
    if count > 0 and fits.reason and any(node.gpus for node in usable):
        raise refusals.image_without_gpus(key, limits, fits.reason)
    if named is not None and not fits.takes(named):
        raise refusals.model_not_for_image(named, filter(fits.takes, models), key, limits)
    allowed = intersection(fits.models, limits.models)
    wanted = Request(
        key,
        count,
        named,
        allowed,
        places=fits.places,
        kind=kind,
        course=limits.course,
        slots=limits.hours_now.slots if limits.hours_now and kind == SHARED else 0,
    )
    fitting = [gpu for node in usable for gpu in node.gpus if wanted.takes(gpu)]
    total = most_on_one_node(fitting)
    if choice.gpus is None:
        # The user didn't name a number: on nodes without GPUs the server starts without.
        count = min(count, total)
    elif count > total:
        if named is None and limits.models is not None:
            raise refusals.too_few_allowed(count, total, several)
        if named is None and total < most_on_one_node(gpus):
            raise refusals.too_few_for_image(count, total, several, key, limits)
        raise refusals.too_few(count, total, several, named, kind)
    if count == 0:
        return Request(key, 0, course=limits.course)
    share = max(gpu.share for gpu in fitting)
    return replace(wanted, gpus=count, seconds=seconds(choice, limits), unit_share=share)


def intersection(one: frozenset[str] | None, other: frozenset[str] | None) -> frozenset[str] | None:
    """Return the intersection of two sets, where None stands for everything."""
    if one is None or other is None:
        return other if one is None else one
    return one & other


def restore_choice(raw: Any) -> Choice:
    """Return the choice of saved `user_options` for the form; what is invalid now is left out."""
    for part in parts_of(raw):
        with suppress(Refused):
            return parse(part)
    return Choice()


def parts_of(saved: Any, others_allowed: bool = False) -> Iterator[dict[Any, Any]]:
    """Yield what may be left of saved `user_options` that are invalid as a whole, the most first.

    The last is the empty choice, but for the keys of the administrator's own hooks.

    Args:
        saved: any JSON value.
        others_allowed: whether unknown keys are kept, for those hooks.
    """
    kept = saved if isinstance(saved, Mapping) else {}
    others = {key: kept[key] for key in kept if others_allowed and key not in Choice.model_fields}
    known = [key for key in Choice.model_fields if key in kept]
    # What an administrator changes most, and a user misses least, is left out first.
    less = [[key for key in known if key != gone] for gone in LEFT_OUT_FIRST if gone in known]
    for keys in (known, *less, ["course", "image"], ["image"], ["gpus"], []):
        yield {**others, **{key: kept[key] for key in keys if key in kept}}
