"""The parts of the reference that the code itself says, as Markdown.

`conf.py` puts each in place of the line `<!-- generated: NAME -->` of a page. Nothing here needs
Sphinx, so that the tests read the same text.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from prometheus_client import REGISTRY
from traitlets import TraitType

import gpuspawner.dashboard
from gpuspawner.__main__ import SUBCOMMANDS
from gpuspawner.choices.options import OPTIONS
from gpuspawner.hub import metrics as hub_metrics
from gpuspawner.spawner import GPUSpawner

MARK = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)
COLUMNS = "100"
METHODS = ("get", "put", "post", "delete", "patch")


def fill(text: str) -> str:
    """Return a page with its marks replaced."""
    return MARK.sub(lambda mark: PARTS[mark[1]](), text)


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(heads)
    cells = [heads, ["---"] * len(heads), *(map(_cell, row) for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


# ---- options -------------------------------------------------------------------------------------


def traits() -> dict[str, TraitType[Any, Any]]:
    """Return the traits that GPUSpawner adds to DockerSpawner's, or changes, in their order."""
    return {
        name: trait
        for name, trait in GPUSpawner.class_traits(config=True).items()
        if trait.help and (trait.this_class.__module__ or "").startswith("gpuspawner.")
    }


def options() -> str:
    """Return every option in one table, and then in full with autodoc-traits."""
    rows = (
        (f"[`{name}`](#gpuspawner.spawner.GPUSpawner.{name})", f"`{default(trait)}`", first(trait))
        for name, trait in traits().items()
    )
    directives = "\n".join(
        f".. autotrait:: gpuspawner.spawner.GPUSpawner.{name}\n" for name in traits()
    )
    table = _table(("option", "default", "what it does"), rows)
    return f"{table}\n## In full\n\n```{{eval-rst}}\n{directives}```\n"


def default(trait: TraitType[Any, Any]) -> str:
    """Return a trait's default as a configuration would say it."""
    value = trait.default_value
    if not isinstance(value, str | int | float | type(None)):
        value = trait.default(GPUSpawner())
    return repr(value).replace("'", '"')


def first(trait: TraitType[Any, Any]) -> str:
    """Return the first sentence of a trait's help."""
    text = " ".join(trait.help.split())
    return re.split(r"(?<=[.])\s+(?=[A-Z0-9{])", text)[0]


# ---- choices -------------------------------------------------------------------------------------


def choices() -> str:
    """Return the keys of a user's choice."""
    rows = (
        (f"`{key}`", f"{option.meaning} Over REST: {option.expected}.", option.left_out)
        for key, option in OPTIONS.items()
    )
    return _table(("key", "what it asks for", "left out"), rows)


# ---- metrics -------------------------------------------------------------------------------------


def metrics() -> str:
    """Return what the hub's process tells Prometheus of GPUs."""
    rows = []
    for name, help_text, labels in hub_metrics.GAUGES:
        rows.append((f"`{name}`", "gauge", _labels(labels), f"{help_text}."))
    for collector in (
        hub_metrics.WAITS,
        hub_metrics.STARTS,
        hub_metrics.REFUSALS,
        hub_metrics.ERRORS,
        hub_metrics.GPU_SECONDS,
        hub_metrics.IDLE_GPU_SECONDS,
        hub_metrics.LEASES,
    ):
        (family,) = collector.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = collector._labelnames
        rows.append((f"`{name}`", family.type, _labels(labels), f"{family.documentation}."))
    return _table(("metric", "type", "labels", "what it is"), rows)


def registered_metrics() -> set[str]:
    """Return the names of all our metrics that exist in this process."""
    found = {family.name for family in REGISTRY.collect() if family.name.startswith("gpuspawner_")}
    return found | {name for name, _, _ in hub_metrics.GAUGES}


def _labels(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


# ---- the command line ----------------------------------------------------------------------------


def parsers() -> Iterator[argparse.ArgumentParser]:
    """Yield the parser of each subcommand, and those of its own subcommands."""
    for name, (module, help_text) in SUBCOMMANDS.items():
        parser = argparse.ArgumentParser(prog=f"gpuspawner {name}", description=help_text)
        import_module(module).add_arguments(parser)
        yield parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from action.choices.values()


def command_line() -> str:
    """Return what `--help` prints of every subcommand."""
    parts = []
    with patch.dict(os.environ, {"COLUMNS": COLUMNS, "NO_COLOR": "1"}):
        for parser in parsers():
            level = "##" if parser.prog.count(" ") == 1 else "###"
            parts.append(
                f"{level} {parser.prog}\n\n```text\n{parser.format_help().rstrip()}\n```\n"
            )
    return "\n".join(parts)


# ---- the dashboard's API -------------------------------------------------------------------------


def description() -> Mapping[str, Any]:
    """Return openapi.yaml as it is shipped."""
    path = Path(gpuspawner.dashboard.__file__).parent / "openapi.yaml"
    found: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def api() -> str:
    """Return the calls of the dashboard's JSON API and the values they give."""
    whole = description()
    parts = [whole["info"]["description"], "## Calls\n"]
    for path, item in whole["paths"].items():
        for method in (each for each in METHODS if each in item):
            parts.append(_call(path, method, item[method], item.get("parameters", []), whole))
    parts.append("## Values\n")
    for name, schema in whole["components"]["schemas"].items():
        if "properties" in schema:
            parts.append(f"### {name}\n\n{_properties(schema, whole)}")
    return "\n".join(parts)


def _call(path: str, method: str, call: Any, shared: Any, whole: Any) -> str:
    parts = [f"### `{method.upper()} {path.removeprefix('/')}`\n", f"{call['summary']}.\n"]
    if "description" in call:
        parts.append(f"{call['description'].strip()}\n")
    parameters = [_resolved(each, whole) for each in [*shared, *call.get("parameters", [])]]
    rows = [
        (f"`{each['name']}`", each["in"], _type(each["schema"]), each.get("description", ""))
        for each in parameters
    ]
    if rows:
        parts.append(_table(("parameter", "in", "type", "what it is"), rows))
    body = call.get("requestBody")
    if body:
        (content,) = body["content"].values()
        parts.append(f"The body, which may be left out:\n\n{_properties(content['schema'], whole)}")
    answers = [
        (str(status).replace("default", "any other"), *_answer(_resolved(answer, whole)))
        for status, answer in call["responses"].items()
    ]
    parts.append(_table(("status", "what it says", "body"), answers))
    return "\n".join(parts)


def _answer(answer: Any) -> tuple[str, str]:
    content = next(iter(answer.get("content", {}).values()), None)
    return f"{answer['description']}.", _type(content["schema"]) if content else ""


def _properties(schema: Any, whole: Any) -> str:
    rows = [
        (f"`{name}`", _type(each), _sentence(each, whole)) for name, each in _flat(schema).items()
    ]
    return _table(("key", "type", "what it is"), rows)


def _flat(schema: Any, before: str = "") -> dict[str, Any]:
    """Return a schema's properties, those of objects in it by their path: `history.seconds`."""
    found: dict[str, Any] = {}
    for name, each in schema["properties"].items():
        found[before + name] = each
        inner, path = each, f"{before}{name}."
        if "items" in each:
            inner, path = each["items"], f"{before}{name}[]."
        if "properties" in inner:
            found |= _flat(inner, path)
    return found


def _sentence(schema: Any, whole: Any) -> str:
    text = schema.get("description") or _resolved(schema, whole).get("description") or ""
    return text.strip()


def _resolved(value: Any, whole: Any) -> Any:
    if "$ref" not in value:
        return value
    found = whole
    for key in value["$ref"].removeprefix("#/").split("/"):
        found = found[key]
    return found


def _type(schema: Any) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return "a moment, or null" if name == "Moment" else f"[{name}](#{name.lower()})"
    if "enum" in schema:
        return " \\| ".join(f"`{'null' if each is None else each}`" for each in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    kinds = schema.get("type", "object")
    words = ", or ".join(kinds if isinstance(kinds, list) else [kinds])
    return words.replace("string", "a moment") if schema.get("format") == "date-time" else words


PARTS: dict[str, Callable[[], str]] = {
    "options": options,
    "choices": choices,
    "metrics": metrics,
    "command-line": command_line,
    "api": api,
}
