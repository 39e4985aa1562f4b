"""The shape of the code: what may import what, and how long a piece may get."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gpuspawner

ROOT = Path(gpuspawner.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted(ROOT.rglob("*.py"))
}
LONGEST_FUNCTION = 60
LONGEST_MODULE = 400


def imports(module: str) -> set[str]:
    """Every module that one imports, anywhere in it, by absolute name."""
    path = MODULES[module]
    package = ["gpuspawner", *path.relative_to(ROOT).parent.parts]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *filter(None, [node.module])])
            # `from . import inventory` names a module, `from .inventory import read` is in one.
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def top(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def ours(names: set[str]) -> set[str]:
    return {
        name.removeprefix("gpuspawner.")
        for name in names
        if name.startswith("gpuspawner.") and name.removeprefix("gpuspawner.") in MODULES
    }


def all_that_loads(module: str, seen: frozenset[str] = frozenset()) -> set[str]:
    """What importing a module imports, through our own modules too."""
    names = imports(module)
    for other in ours(names) - seen - {module}:
        names |= all_that_loads(other, seen | {module})
    return names


@pytest.mark.parametrize("module", ["gpus.allocation", "gpus.model", "i18n.lazy_text"])
def test_what_decides_and_its_words_load_only_the_standard_library(module: str) -> None:
    assert top(all_that_loads(module)) - {"gpuspawner", ""} <= sys.stdlib_module_names
    assert ours(imports(module)) <= {"i18n.lazy_text", "gpus.model"}


def test_what_says_it_in_a_language_knows_nothing_of_what_is_said() -> None:
    rooms = [name for name in MODULES if name.startswith("i18n.")]
    assert rooms
    assert {name for room in rooms for name in ours(imports(room))} <= {*rooms, "i18n.__init__"}


def test_only_the_inventory_imports_pynvml() -> None:
    assert [name for name in MODULES if "pynvml" in top(imports(name))] == ["gpus.nvml"]


@pytest.mark.parametrize(
    "module",
    [
        "choices.options",
        "images.catalogue",
        "choices.form",
        "gpus.allocation",
        "scheduling.plan",
        "leases.ledger",
    ],
)
def test_what_serves_many_hosts_as_well_loads_no_engine(module: str) -> None:
    assert not top(all_that_loads(module)) & {"docker", "dockerspawner", "jupyterhub", "pynvml"}


@pytest.mark.parametrize(
    "module",
    [
        "gpus.nvml",
        "images.catalogue",
        "backends.docker.container_config",
        "backends.docker.readiness",
        "backends.docker.volumes",
    ],
)
def test_what_deals_with_one_outside_world_knows_none_of_ours(module: str) -> None:
    assert ours(all_that_loads(module)) <= {"i18n.lazy_text", "gpus.state"}


def test_the_simulation_imports_nothing_of_ours() -> None:
    simulation = [name for name in MODULES if name.startswith("simulation.")]
    assert simulation
    used = {other for name in simulation for other in ours(imports(name))}
    assert {name for name in used if not name.startswith("simulation.")} == set()


def test_nothing_imports_the_spawner() -> None:
    assert [name for name in MODULES if "spawner" in ours(imports(name))] == []


def functions() -> Iterator[tuple[str, int]]:
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                yield f"{name}.{node.name}", (node.end_lineno or first) - first + 1


def test_no_function_is_too_long() -> None:
    assert {name: lines for name, lines in functions() if lines > LONGEST_FUNCTION} == {}


def test_no_module_is_too_long() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_MODULE} == {}


def test_an_exception_from_a_check_names_the_check() -> None:
    bare = re.compile(r"#\s*(noqa(?!:)|type:\s*ignore(?!\[))")
    found = [
        f"{name}:{number}"
        for name, path in MODULES.items()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if bare.search(line)
    ]
    assert found == []
