"""The kinds of values that traits take, in the words of administrators, and how to write them."""

from __future__ import annotations

import json
from typing import Any

import traitlets
from jupyterhub.traitlets import ByteSpecification
from jupyterhub.traitlets import Callable as HubCallable

LONGEST_SHOWN = 60
# Where the type doesn't tell what a mapping has.
EXAMPLES = {
    "course_volumes": '{"course": {"path": "/home/jovyan/course", "instructors": ["group"]}}',
    "courses": '{"ml-101": {"group": "ml-101"}}',
    "environment": '{"NAME": "value"}',
    "extra_host_config": '{"pids_limit": 4096}',
    "home_volume": '"home-{username}"',
    "group_gpu_limits": '{"students": 4}',
    "images": '{"my-version": "registry/name:tag"}',
    "read_only_volumes": '{"name": "/path/in/servers"}',
    "shared_gpus": '{"NVIDIA A100-SXM4-40GB": 8}',
    "volumes": '{"home-{username}": "/home/jovyan/work"}',
}
ENDLESS = (float("-inf"), float("inf"))


def expected(trait: Any, functions: bool = True) -> tuple[str, str]:
    """Return the kind of a trait's values, "a whole number", and an example; "" if unknown.

    Args:
        trait: the trait.
        functions: whether it may be a function, where the trait takes them.
    """
    parts = trait.trait_types if isinstance(trait, traitlets.Union) else [trait]
    if not functions:
        parts = [each for each in parts if not takes_functions(each)]
    told = [each for each in map(_of_kind, parts) if each[0]]
    if not told:
        return "", ""
    words = [word for word, _ in told]
    if any(part.allow_none for part in (trait, *parts)):
        words.append("None")
    # A value is easier to write than a function.
    example = EXAMPLES.get(trait.name, next((text for _, text in told if text), ""))
    return " or ".join(dict.fromkeys(words)), example


def takes_functions(trait: Any) -> bool:
    """Return whether a trait's value may be a function, which is called for each server."""
    parts = trait.trait_types if isinstance(trait, traitlets.Union) else [trait]
    return any(isinstance(part, (traitlets.Callable, HubCallable)) for part in parts)


def shown(value: Any) -> str:
    """Return a value as Python code, shortened."""
    text = written(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def _of_kind(trait: Any) -> tuple[str, str]:
    if isinstance(trait, ByteSpecification):
        return 'a number of bytes as 16 * 1024**3 or "16G"', '"16G"'
    if isinstance(trait, (traitlets.Callable, HubCallable)):
        return "a function", ""
    if isinstance(trait, traitlets.Bool):
        return "True or False", repr(trait.default_value is True)
    if isinstance(trait, traitlets.Enum):
        values = list(trait.values or ())
        return f"one of {', '.join(map(written, values))}", written(values[0]) if values else ""
    if isinstance(trait, (traitlets.Int, traitlets.Float)):
        return _number(trait)
    if isinstance(trait, traitlets.Dict):
        words, example = _inner(getattr(trait, "_value_trait", None))
        return f"a mapping{words}", _default(trait) or f'{{"…": {example}}}'
    if isinstance(trait, traitlets.Container):
        words, example = _inner(getattr(trait, "_trait", None))
        return f"a list{words}", _default(trait) or f"[{example}]"
    if isinstance(trait, traitlets.Unicode):
        return "a text", _default(trait) or written("…")
    return "", ""


def _inner(trait: Any) -> tuple[str, str]:
    words, example = ("", "") if trait is None else _of_kind(trait)
    return f" whose values are each {words}" if words else "", example or '"…"'


def _default(trait: Any) -> str:
    value = trait.default()
    return written(value) if value and isinstance(value, (str, list, dict)) else ""


def written(value: Any) -> str:
    """Return a value as Python code with double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return f"{{{', '.join(f'{written(key)}: {written(each)}' for key, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    return "a function" if callable(value) else repr(value)


def _number(trait: Any) -> tuple[str, str]:
    kind = "a whole number" if isinstance(trait, traitlets.Int) else "a number"
    low, high = (None if limit in (None, *ENDLESS) else limit for limit in (trait.min, trait.max))
    if low is not None and high is not None:
        kind += f" from {low:g} to {high:g}"
    elif low is not None:
        kind += f", at least {low:g}"
    default = trait.default_value
    usual = default if isinstance(default, (int, float)) and default else (low or 0) + 1
    return kind, f"{usual:g}"
