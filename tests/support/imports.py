"""What each of our modules imports."""

from __future__ import annotations

import ast
from collections.abc import Collection
from functools import cache
from pathlib import Path

import gpuspawner

PACKAGE = Path(gpuspawner.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports_of(path: Path, checkout: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, by absolute name."""
    package = path.relative_to(checkout).parent.parts
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*start, *filter(None, [node.module])])
            # `from . import inventory` names a module, `from .inventory import read` is in one.
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """Every module that one of ours imports."""
    return frozenset(imports_of(MODULES[module], PACKAGE.parent))


def top(names: Collection[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def ours(names: Collection[str]) -> set[str]:
    return {
        name.removeprefix("gpuspawner.")
        for name in names
        if name.startswith("gpuspawner.") and name.removeprefix("gpuspawner.") in MODULES
    }


def all_that_loads(module: str) -> set[str]:
    """What importing a module imports, through our own modules too."""
    names: set[str] = set()
    seen, left = {module}, [module]
    while left:
        found = imports(left.pop())
        names |= found
        left += ours(found) - seen
        seen |= ours(found)
    return names
