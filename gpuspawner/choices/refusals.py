"""The refusals of choices: in the words of the form, and for the REST API with its keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..errors import Refused
from ..gpus.allocation import gpu_count_phrase
from ..gpus.model import WHOLE
from ..i18n.lazy_text import lazy_gettext, listed
from ..i18n.phrases import hours_words
from .limits import Limits, Rule

# How much of a wrong value a refusal quotes, in characters.
MAX_SHOWN = 60
# A refusal says of more GPUs than these that they are more.
MANY_GPUS = 1_000_000


def not_an_object(raw: Any, keys: Iterable[str]) -> Refused:
    """Return the refusal of `user_options` that aren't a mapping."""
    return Refused(
        lazy_gettext(
            "The options must be an object with the keys %(keys)s, got %(value)s.",
            keys=", ".join(keys),
            value=quoted(raw),
        )
    )


def unknown_option(key: Any, value: Any, keys: Iterable[str]) -> Refused:
    """Return the refusal of an unknown key."""
    return Refused(
        lazy_gettext(
            "%(key)s is not an option here (its value was %(value)s). The options are %(keys)s.",
            key=quoted(key),
            value=quoted(value),
            keys=", ".join(keys),
        )
    )


def malformed(key: str, value: Any, name: str, expected: str) -> Refused:
    """Return the refusal of a value of a wrong type.

    Args:
        key, value: as they were sent.
        name: what users call it.
        expected: what it must be, in words.
    """

    def said(name: str) -> str:
        return lazy_gettext(
            "%(name)s must be %(what)s, got %(value)s.",
            name=name,
            what=expected,
            value=quoted(value),
        )

    return Refused(said(name), key=key, keyed=said(key))


# -- Images -------------------------------------------------------------------------------------


def no_image() -> Refused:
    """Return the refusal where the user may have no image version at all."""
    sentence = lazy_gettext("There is no image version that you may pick on this hub.")
    return Refused(sentence, status=403)


def image_not_offered(image: str) -> Refused:
    """Return the refusal of any image, where none can be chosen."""
    return Refused(
        lazy_gettext(
            "You asked for image %(value)s, and on this hub there is none to choose.",
            value=quoted(image),
        ),
        key="image",
    )


def unknown_image(image: str, limits: Limits) -> Refused:
    """Return the refusal of an image version that there isn't."""
    value = quoted(image)
    titles = [_title(key, limits) for key in limits.versions]
    return Refused(
        lazy_gettext(
            "You asked for image %(value)s, and the images you may have are: %(images)s.",
            value=value,
            images=listed(titles),
        ),
        key="image",
        keyed=lazy_gettext(
            "image must be one of %(keys)s, got %(value)s.",
            keys=", ".join(limits.versions),
            value=value,
        ),
    )


def absent_image(key: str, limits: Limits) -> Refused:
    """Return the refusal of an image version whose image isn't on the engine."""

    def said(name: str) -> str:
        return lazy_gettext(
            "Image %(image)s isn't on this machine yet. An administrator can put it there.",
            image=name,
        )

    return _of_image(said, key, limits, of="image", status=503)


def image_without_gpus(key: str, limits: Limits, reason: str) -> Refused:
    """Return the refusal of GPUs for an image version that runs on none of them, and why."""

    def said(name: str) -> str:
        return lazy_gettext(
            "Image %(image)s %(reason)s. Without GPUs it can be used.", image=name, reason=reason
        )

    return _of_image(said, key, limits, of="image")


def _of_image(
    said: Callable[[str], str], key: str, limits: Limits, *, of: str, status: int = 400
) -> Refused:
    """Return a refusal that names an image version: users know its title, programs its key.

    Args:
        said: returns the sentence with a name.
        key: the version's key.
        limits: the user's limits, with the versions.
        of: the key of the choice whose value is refused.
        status: the HTTP status.
    """
    keyed = Refused(said(key), key=of).keyed
    return Refused(said(_title(key, limits)), status=status, key=of, keyed=keyed)


def _title(key: str, limits: Limits) -> str:
    version = limits.versions.get(key)
    return version.title or key if version else key


# -- Limits -------------------------------------------------------------------------------------


def over_limit(count: int, rule: Rule) -> Refused:
    """Return the refusal of more GPUs than a limit."""
    return Refused(
        lazy_gettext(
            "You asked for %(gpus)s, and %(whose)s is %(most)s.",
            gpus=_gpus(count),
            whose=rule.whose,
            most=rule.most,
        ),
        status=403,
        key="gpus",
    )


def over_hours(asked: float, most: float) -> Refused:
    """Return the refusal of more hours than the limit."""
    return Refused(
        lazy_gettext(
            "You asked for %(asked)s, and your limit is %(most)s.",
            asked=hours_words(asked * 3600),
            most=hours_words(most * 3600),
        ),
        status=403,
        key="hours",
    )


def model_not_allowed(model: str, models: Sequence[str], limits: Limits, several: bool) -> Refused:
    """Return the refusal of a GPU model that the user may not have.

    Args:
        model: the one that was asked for.
        models: those of all nodes.
        limits: the user's limits, with the models.
        several: whether there are several nodes.
    """
    none = lazy_gettext("none of those here") if several else lazy_gettext("none of this machine's")
    may = listed(sorted((limits.models or frozenset()) & set(models))) or none
    return Refused(
        lazy_gettext(
            "You asked for the GPU model %(model)s, and the models you may have are: %(models)s.",
            model=quoted(model),
            models=may,
        ),
        status=403,
        key="model",
    )


# -- What the nodes have ------------------------------------------------------------------------


def unknown_model(model: str, models: Sequence[str], several: bool) -> Refused:
    """Return the refusal of a GPU model that no node has; arguments as `model_not_allowed`."""
    values: Mapping[str, Any] = {"model": quoted(model), "models": listed(models)}
    if models and several:
        sentence = lazy_gettext(
            "You asked for the GPU model %(model)s, and no machine here has it: there are "
            "%(models)s.",
            **values,
        )
    elif models:
        sentence = lazy_gettext(
            "You asked for the GPU model %(model)s, and this machine has no such GPU: it has "
            "%(models)s.",
            **values,
        )
    elif several:
        sentence = lazy_gettext(
            "You asked for the GPU model %(model)s, and no machine here has a GPU.", **values
        )
    else:
        sentence = lazy_gettext(
            "You asked for the GPU model %(model)s, and this machine has no GPU.", **values
        )
    return Refused(sentence, key="model")


def model_not_for_image(model: str, fitting: Iterable[str], key: str, limits: Limits) -> Refused:
    """Return the refusal of a GPU model that an image version doesn't run on.

    Args:
        model: the one that was asked for.
        fitting: those that the version runs on.
        key: the version's key.
        limits: the user's limits, with the versions.
    """
    models = listed([*fitting])

    def said(name: str) -> str:
        return lazy_gettext(
            "You asked for the GPU model %(model)s, and image %(image)s isn't built for it: it "
            "runs on %(models)s.",
            model=quoted(model),
            image=name,
            models=models,
        )

    return _of_image(said, key, limits, of="model")


def unknown_kind(kind: str, kinds: Sequence[str]) -> Refused:
    """Return the refusal of a kind of units that no node has.

    Args:
        kind: the one that was asked for.
        kinds: those that the user may have.
    """
    return Refused(
        lazy_gettext(
            "You asked for the kind of GPU %(kind)s, and here there are: %(kinds)s.",
            kind=quoted(kind),
            kinds=listed(kinds) or lazy_gettext("none"),
        ),
        key="kind",
    )


def kind_not_allowed(kind: str, kinds: Sequence[str]) -> Refused:
    """Return the refusal of a kind of units that the user may not have; as `unknown_kind`."""
    return Refused(
        lazy_gettext(
            "You asked for the kind of GPU %(kind)s, and the kinds you may have are: %(kinds)s.",
            kind=quoted(kind),
            kinds=listed(kinds) or lazy_gettext("none of those here"),
        ),
        status=403,
        key="kind",
    )


def one_part_each(kind: str) -> Refused:
    """Return the refusal of several slots or MIG instances for one server."""
    return Refused(
        lazy_gettext(
            "A server can have one part of a GPU of the kind %(kind)s, and not several: programs "
            "see one at a time.",
            kind=quoted(kind),
        ),
        key="gpus",
    )


def too_few(
    count: int, total: int, several: bool, model: str | None = None, kind: str = WHOLE
) -> Refused:
    """Return the refusal of more GPUs than any node has.

    Args:
        count: how many were asked for.
        total: how many the node has that has the most.
        several: whether there are several nodes.
        model: the model that was asked for; None: any.
        kind: the kind of the units.
    """
    values: Mapping[str, Any] = {"gpus": _gpus(count, model, kind), "total": total}
    return Refused(
        lazy_gettext(
            "You asked for %(gpus)s, and no machine here has more than %(total)s.", **values
        )
        if several
        else lazy_gettext("You asked for %(gpus)s, and this machine has %(total)s.", **values),
        key="gpus",
    )


def too_few_allowed(count: int, total: int, several: bool) -> Refused:
    """Return the refusal of more GPUs than any node has of the models that the user may have."""
    values: Mapping[str, Any] = {"gpus": _gpus(count), "total": total}
    return Refused(
        lazy_gettext(
            "You asked for %(gpus)s, and no machine here has more than %(total)s that you may "
            "have.",
            **values,
        )
        if several
        else lazy_gettext(
            "You asked for %(gpus)s, and this machine has %(total)s that you may have.", **values
        ),
        key="gpus",
    )


def too_few_for_image(count: int, total: int, several: bool, key: str, limits: Limits) -> Refused:
    """Return the refusal of more GPUs than any node has that an image version runs on."""
    values: Mapping[str, Any] = {"gpus": _gpus(count), "total": total}

    def said(name: str) -> str:
        if several:
            return lazy_gettext(
                "You asked for %(gpus)s, and no machine here has more than %(total)s that image "
                "%(image)s runs on.",
                image=name,
                **values,
            )
        return lazy_gettext(
            "You asked for %(gpus)s, and this machine has %(total)s that image %(image)s runs on.",
            image=name,
            **values,
        )

    return _of_image(said, key, limits, of="gpus")


def _gpus(count: int, model: str | None = None, kind: str = WHOLE) -> str:
    """Return "2 GPUs", or what is short for any number that was sent."""
    if count <= MANY_GPUS:
        return gpu_count_phrase(count, model, kind)
    return lazy_gettext("more than %(most)s GPUs", most=MANY_GPUS)


def quoted(value: Any) -> str:
    """Return a value as a refusal quotes it."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (RecursionError, ValueError, TypeError):
        return "something that can't be shown"
    # A lone surrogate is valid JSON and no valid page.
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
