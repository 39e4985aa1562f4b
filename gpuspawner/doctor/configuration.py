"""Checks of the hub's configuration: another process loads it, then the rules are applied."""

from __future__ import annotations

import ast
import difflib
import inspect
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import docker

from ..images.catalogue import ImageVersion
from ..untrusted import parse_json
from .configuration_rules import RULES, missing_folders
from .findings import NAME, NO_SUCH_USER, Configuration, Context, Finding

LOADING_SECONDS = 90
# What takes the arguments that are in a trait.
ARGUMENTS: dict[str, Any] = {
    "extra_create_kwargs": docker.APIClient.create_container,
    "extra_host_config": docker.types.HostConfig.__init__,
}


def configuration(context: Context) -> Iterator[Finding]:
    """Check that the configuration can be loaded; keep what it sets for later checks."""
    file = context.config_file
    if file is None:
        yield Finding(
            "note",
            "there is no jupyterhub_config.py in this folder",
            "name it: gpuspawner doctor -f /path/to/jupyterhub_config.py\n"
            "or begin with the one that comes with gpuspawner, jupyterhub_config.py",
            blocks=True,
        )
        return
    try:
        loaded = load(file, context.folder)
    except subprocess.TimeoutExpired:
        yield Finding(
            "failure",
            f"{file.name} isn't through after {LOADING_SECONDS} seconds",
            "look in it for what waits: a network, a lock, an input",
        )
        return
    if "error" in loaded:
        yield not_loaded(context, loaded["error"])
        return
    context.configuration = from_loaded(file, loaded)
    yield Finding("ok", f"{file} can be loaded; the hub's folder is {context.folder}")


def not_loaded(context: Context, error: Mapping[str, Any]) -> Finding:
    """Return the finding for an error of `loading.load`."""
    line = f", line {error['line']}" if error["line"] else ""
    found = f"{error['file']}{line}: {error['kind']}: {error['message']}"
    advice = "mend that line; a hub with this configuration wouldn't start"
    if module := error["missing_module"]:
        package = module.partition(".")[0]
        advice = f"install it in the hub's environment: {sys.executable} -m pip install {package}"
    elif error["kind"] == "PermissionError":
        advice = "run this as the hub's user"
    if context.engine is None and error["kind"] in ("DockerException", "NetworkError"):
        return Finding("skipped", "it asks the Docker Engine while it is loaded: see Docker Engine")
    return Finding("failure", found, advice)


def load(file: Path, folder: Path) -> dict[str, Any]:
    """Run a configuration in another process; return the result of `loading.load`.

    It runs in a temporary folder with links to everything in the hub's folder, so that it finds
    secrets there and creates none.

    Args:
        file: the configuration.
        folder: the hub's working folder.

    Raises:
        subprocess.TimeoutExpired: it doesn't end.
    """
    with tempfile.TemporaryDirectory(prefix="gpuspawner-doctor-") as made, linked(folder) as there:
        result = Path(made, "result")
        words = [sys.executable, "-m", "gpuspawner.doctor.loading", str(file), str(result)]
        done = subprocess.run(
            words,
            cwd=there,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LOADING_SECONDS,
            check=False,
        )
        with suppress(OSError, ValueError):
            loaded: dict[str, Any] = parse_json(result.read_text())
            return loaded
    last = (done.stderr or done.stdout).strip().rpartition("\n")[2]
    how = f"it ends the process (exit status {done.returncode})"
    return {
        "error": {
            "kind": "Ended",
            "message": f"{how}: {last}" if last else how,
            "line": None,
            "file": str(file),
            "missing_module": None,
        }
    }


@contextmanager
def linked(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder with links to everything in a folder."""
    with tempfile.TemporaryDirectory(prefix="gpuspawner-doctor-") as made:
        with suppress(OSError):  # nor can the hub find anything in a folder that can't be listed
            for entry in folder.iterdir():
                Path(made, entry.name).symlink_to(entry)
        yield Path(made)


def from_loaded(file: Path, loaded: Mapping[str, Any]) -> Configuration:
    """Return the result of `loading.load` for a file as a `Configuration`."""
    lines = lines_of(file)
    errors = [each for each in loaded["networks"] if each["error"]]
    return Configuration(
        file=file,
        spawner_class=loaded["spawner_class"],
        is_ours=loaded["is_ours"],
        spawner=loaded["spawner"],
        hub=loaded["hub"],
        versions={key: ImageVersion(**fields) for key, fields in loaded["versions"].items()},
        problems=[Finding(**_with_line(problem, lines)) for problem in loaded["problems"]],
        network_error=errors[0]["error"] if errors else "",
        network_advice=errors[0]["advice"] if errors else "",
        sections=loaded["sections"],
        lines=lines,
        plan=loaded["plan"],
        called=loaded["called"],
    )


def _with_line(problem: Mapping[str, str], lines: Mapping[tuple[str, str], int]) -> dict[str, Any]:
    """Return a problem with the line of the setting that it begins with."""
    found = re.match(r"c\.(\w+)\.(\w+)(\[[^]]*\])?", problem["found"])
    line = lines.get((found[1], found[2])) if found else None
    if found is None or line is None:
        return dict(problem)
    return {
        **problem,
        "found": f"{found[0]} (line {line}){problem['found'][found.end() :]}",
        "advice": problem["advice"] or f"change line {line}",
    }


def lines_of(file: Path) -> dict[tuple[str, str], int]:
    """Return (section, trait) -> the last line that sets it; {} if the file isn't Python."""
    try:
        tree = ast.parse(file.read_text())
    except (OSError, SyntaxError, ValueError):
        return {}
    found: dict[tuple[str, str], int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
            section = node.value
            if isinstance(section.value, ast.Name) and section.value.id == "c":
                key = (section.attr, node.attr)
                found[key] = max(node.lineno, found.get(key, 0))
    return found


def settings(context: Context) -> Iterator[Finding]:
    """Check the configuration for mistakes and for settings that don't keep users apart."""
    given = context.configuration
    if given is None:
        return
    usable = None
    if context.inventory is not None and context.inventory.driver is not None:
        usable = context.gpus
    found = [*given.problems]
    if not given.is_ours:
        line = given.lines.get(("JupyterHub", "spawner_class"))
        where = "c.JupyterHub.spawner_class" + (f" (line {line})" if line else "")
        what = f"{where}: servers are made by {given.spawner_class}, which hands out no GPUs"
        found.append(Finding("failure", what, 'c.JupyterHub.spawner_class = "gpu"'))
    else:
        found += [finding for rule in RULES for finding in rule(given, usable)]
        if context.engine_is_here:
            found += missing_folders(given)
        found += _of_plan(given, found)
    yield from (_unblocking(finding) for finding in found)
    if not found:
        yield Finding("ok", "nothing to change")


def _of_plan(given: Configuration, found: Sequence[Finding]) -> Iterator[Finding]:
    """Yield why no server can be created with these settings.

    Args:
        given: the configuration.
        found: the findings so far. A setting that one of them names isn't reported again.
    """
    if error := given.plan.get("error"):
        setting = given.plan["setting"]
        where = given.where(setting) if setting else "what servers are created with"
        if not any(each.state == "failure" and each.found.startswith(where) for each in found):
            yield Finding("failure", f"{where}: {error}", _cure_of_argument(error, setting))
    elif reason := given.plan.get("unknown"):
        what = f"what a server is created with can't be told for a user {NAME!r}: {reason}"
        yield Finding("note", what, NO_SUCH_USER)


def _cure_of_argument(error: str, setting: str) -> str:
    """Return what to do about an argument that docker-py refuses, from its message.

    Args:
        error: the message.
        setting: the trait that the argument is from.
    """
    unknown = re.match(r"(\w+): .* got an unexpected keyword argument", error)
    for name in [unknown[1]] if unknown else []:
        for trait, function in ARGUMENTS.items():
            known = inspect.signature(function).parameters
            if trait != setting and name in known:
                return f"it belongs in c.GPUSpawner.{trait}: no server starts with it here"
            if trait == setting and (close := difflib.get_close_matches(name, known, 1)):
                return f"did you mean {close[0]}? No server starts with it"
    return "mend it: no server starts with it"


def _unblocking(finding: Finding) -> Finding:
    """Return a finding that blocks no other check, since the other settings are valid."""
    return Finding(finding.state, finding.found, finding.advice, blocks=False)
