"""Untrusted text, with a size; parsers of JSON and YAML, whose only error is ValueError."""

from __future__ import annotations

import json
from typing import Any

import yaml


def bounded(text: str, most: int) -> str:
    """Return at most so many characters of a text, all of which can be in a page.

    A lone surrogate, which JSON can have, would make a page or a line of the log fail.
    """
    text = text[:most]
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def printable(text: str, most: int) -> str:
    """Return at most so many characters of a text, with a mark for each that isn't printable."""
    text = bounded(text, most)
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is invalid, or nested deeper than Python's parser can follow.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its brackets lie too deep") from None


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        ValueError: it is invalid, or nested deeper than the parser can follow.
    """
    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError("its brackets lie too deep") from None
    except (LookupError, AttributeError):  # what PyYAML raises for `!!bool x` and `!!timestamp x`
        raise ValueError("a tag in it doesn't fit its value") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
