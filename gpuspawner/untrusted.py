"""Untrusted text, with a size; parsers of JSON and YAML, whose only error is ValueError."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
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


def parse_json(text: str | bytes, with_twins: bool = True) -> Any:
    """Return the value of a JSON text.

    Args:
        text: the text.
        with_twins: whether an object may have a key twice, of which parsers take different ones.

    Raises:
        ValueError: it is invalid, or nested deeper than Python's parser can follow.
    """
    try:
        return json.loads(text, object_pairs_hook=None if with_twins else _without_twins)
    except RecursionError:
        raise ValueError("its brackets lie too deep") from None


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has a key twice")
    return found


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


# The path of each value in a document -> its line, counted from 1.
Lines = Mapping[tuple[Any, ...], int]


class _PlainLoader(yaml.SafeLoader):
    """A loader for which `10:00` and `2026-10-05` are texts, not the number 600 and a date."""


_NUMBER = re.compile(r"[-+]?[0-9]+")
_DECIMAL = re.compile(r"[-+]?[0-9]+\.[0-9]*([eE][-+]?[0-9]+)?")
_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":bool", ":null"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in (("int", _NUMBER), ("float", _DECIMAL)):
    _PlainLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^{_pattern.pattern}$"), list("-+0123456789")
    )


def parse_yaml_with_lines(text: str) -> tuple[Any, Lines]:
    """Return the value of a YAML text, and the line of each value in it.

    Raises:
        ValueError: as for `parse_yaml`, or a key is there twice, or it refers to other parts of it.
    """
    try:
        loader = _PlainLoader(text)
        try:
            node = loader.get_single_node()
            lines: dict[tuple[Any, ...], int] = {}
            if node is None:
                return None, lines
            _note_lines(node, (), lines, set())
            return loader.construct_document(node), lines
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError("its brackets lie too deep") from None
    except (LookupError, AttributeError, TypeError):
        raise ValueError("a tag in it doesn't fit its value") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _note_lines(
    node: yaml.Node, path: tuple[Any, ...], lines: dict[tuple[Any, ...], int], seen: set[int]
) -> None:
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    if not isinstance(node, yaml.CollectionNode):
        return
    # A document of a few lines can mean millions of values by them.
    if id(node) in seen:
        raise ValueError(f"line {line}: write it out, without & and *")
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            _note_lines(value, (*path, number), lines, seen)
        return
    for name, value in node.value:
        inner = (*path, name.value)
        if inner in lines:
            raise ValueError(f"line {name.start_mark.line + 1}: {name.value!r} is there twice")
        lines[inner] = name.start_mark.line + 1
        _note_lines(value, inner, lines, seen)
