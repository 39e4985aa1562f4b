"""The Docker Engine's configuration on a node: what joining changes in it, and how that is undone.

Three keys are ours: which GPUs the machine offers to Swarm, the runtime that gives containers
their GPUs, and that it is used by default, since a service can't name one. Everything else in the
file stays as it is.

ref: https://docs.docker.com/reference/cli/dockerd/#daemon-configuration-file
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import GPUSpawnerError
from ..untrusted import parse_json
from .addresses import replace_file
from .resources import as_words, is_kind

DAEMON_JSON = Path("/etc/docker/daemon.json")
# The file as it was, beside it.
BACKUP_SUFFIX = ".before-gpuspawner"
RESOURCES, RUNTIMES, DEFAULT = "node-generic-resources", "runtimes", "default-runtime"
RUNTIME = "nvidia"
# As `nvidia-ctk runtime configure` writes it.
RUNTIME_ENTRY = {"args": [], "path": "nvidia-container-runtime"}

Config = Mapping[str, Any]


class EngineConfigError(GPUSpawnerError):
    """The engine's configuration can't be used or changed. `str()` is for administrators."""


@dataclass(frozen=True)
class EngineFile:
    """The engine's configuration file.

    Args:
        path: where it is, links followed.
        content: its bytes; None: there is no file.
        config: what it says.
    """

    path: Path
    content: bytes | None
    config: Config


def read_file(path: Path) -> EngineFile:
    """Return the configuration in a file, {} if there is none.

    Raises:
        EngineConfigError: it can't be read, or isn't a JSON object.
    """
    path = path.resolve()
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return EngineFile(path, None, {})
    except OSError as error:
        raise EngineConfigError(f"{path} can't be read: {error.strerror}.") from None
    if not content.strip():
        return EngineFile(path, content, {})
    try:
        config = parse_json(content)
    except ValueError as error:
        raise EngineConfigError(f"{path} isn't JSON, so the engine can't use it: {error}") from None
    if not isinstance(config, dict):
        raise EngineConfigError(f"{path} isn't a JSON object, so the engine can't use it.")
    return EngineFile(path, content, config)


def with_gpus(config: Config, offered: Mapping[str, int]) -> dict[str, Any]:
    """Return a configuration that offers units to Swarm; everything else in it stays.

    Args:
        config: the configuration as it is.
        offered: kind -> how many of it, as `resources.offers` returns it.

    Raises:
        EngineConfigError: a setting that Swarm or we can't do with has to go first.
    """
    if config.get("live-restore"):
        raise EngineConfigError(
            '"live-restore" is on, and the engine refuses to be in a Swarm with it. Take that '
            "line out, restart the engine while nobody works, and try again."
        )
    runtimes = config.get(RUNTIMES, {})
    if not isinstance(runtimes, Mapping):
        raise EngineConfigError(f"\"{RUNTIMES}\" isn't an object, so the engine can't use it.")
    found = dict(config)
    # Where it is the default and isn't here, the engine's service names it, and no two may.
    if RUNTIME not in runtimes and config.get(DEFAULT) != RUNTIME:
        found[RUNTIMES] = {**runtimes, RUNTIME: dict(RUNTIME_ENTRY)}
    found[DEFAULT] = RUNTIME
    resources = [*_others(config), *as_words(offered)]
    if resources or RESOURCES in config:
        found[RESOURCES] = resources
    return found


def without_gpus(config: Config, before: Config) -> dict[str, Any]:
    """Return a configuration without what `with_gpus` has put into it.

    What an administrator has changed since stays changed.

    Args:
        config: the configuration as it is now.
        before: as it was before the machine joined.
    """
    found = dict(config)
    others = _others(config)
    if RESOURCES in found:
        ours_before = [each for each in _words(before) if is_kind(_kind(each))]
        found[RESOURCES] = [*others, *ours_before]
        if not found[RESOURCES] and RESOURCES not in before:
            del found[RESOURCES]
        elif sorted(found[RESOURCES]) == sorted(_words(before)):
            found[RESOURCES] = before[RESOURCES]
    if found.get(DEFAULT) == RUNTIME and before.get(DEFAULT) != RUNTIME:
        _put_back(found, DEFAULT, before)
    runtimes, runtimes_before = found.get(RUNTIMES), before.get(RUNTIMES, {})
    if (
        isinstance(runtimes, Mapping)
        and RUNTIME not in runtimes_before
        and runtimes.get(RUNTIME) == RUNTIME_ENTRY
        # Else the engine wouldn't start.
        and found.get(DEFAULT) != RUNTIME
    ):
        left = {name: entry for name, entry in runtimes.items() if name != RUNTIME}
        found[RUNTIMES] = left
        if not left and RUNTIMES not in before:
            del found[RUNTIMES]
    return found


def _put_back(config: dict[str, Any], key: str, before: Config) -> None:
    if key in before:
        config[key] = before[key]
    else:
        del config[key]


def _words(config: Config) -> list[str]:
    found = config.get(RESOURCES) or []
    # The engine takes one text for a list of one.
    return [found] if isinstance(found, str) else [str(each) for each in found]


def _kind(word: str) -> str:
    return word.partition("=")[0].lower()


def _others(config: Config) -> list[str]:
    """Return the resources of a configuration that aren't ours: an administrator's own."""
    return [each for each in _words(config) if not is_kind(_kind(each))]


def offered_by(config: Config) -> dict[str, int]:
    """Return kind -> how many of it a configuration offers, of GPUs and MIG instances."""
    found = {}
    for word in _words(config):
        kind, _, number = word.partition("=")
        if is_kind(kind.lower()) and number.isdecimal():
            found[kind.lower()] = int(number)
    return found


def as_text(config: Config) -> str:
    """Return what is written for a configuration."""
    return json.dumps(config, indent=4, ensure_ascii=False) + "\n"


def difference(before: EngineFile, after: Config) -> list[str]:
    """Return the lines of a diff, for people; [] if nothing changes."""
    if before.config == after:
        return []
    old = (before.content or b"").decode(errors="replace").splitlines()
    return list(
        difflib.unified_diff(
            old, as_text(after).splitlines(), str(before.path), str(before.path), lineterm=""
        )
    )


def backup_of(path: Path) -> Path:
    """Return where the file as it was before the machine joined is kept."""
    path = path.resolve()
    return path.with_name(path.name + BACKUP_SUFFIX)


def write_file(before: EngineFile, after: Config) -> None:
    """Replace the configuration at once, and keep it as it was, unless that is kept already.

    Raises:
        EngineConfigError: the file has changed since it was read.
        OSError: it can't be written, and is as it was.
    """
    _unless_changed(before)
    before.path.parent.mkdir(parents=True, exist_ok=True)
    backup = backup_of(before.path)
    if not backup.exists():
        # An empty file stands for none, which says the same.
        replace_file(backup, before.content or b"", 0o600)
    replace_file(before.path, as_text(after).encode(), _mode(before))


def undo_file(path: Path) -> bool:
    """Put the configuration back to what it was before the machine joined; keep later changes.

    Returns whether anything changed.

    Raises:
        EngineConfigError: the file or what was kept of it can't be used.
        OSError: it can't be written, and is as it was.
    """
    now, backup = read_file(path), backup_of(path)
    if not backup.exists():
        return False
    kept = read_file(backup)
    after = without_gpus(now.config, kept.config)
    if after == now.config:
        backup.unlink()
        return False
    if after != kept.config:
        replace_file(now.path, as_text(after).encode(), _mode(now))
    elif kept.content:
        replace_file(now.path, kept.content, _mode(now))
    else:
        now.path.unlink()
    backup.unlink()
    return True


def restore(before: EngineFile) -> None:
    """Put the file back exactly as it was read, as the engine doesn't start with the new one."""
    if before.content is None:
        before.path.unlink(missing_ok=True)
    else:
        replace_file(before.path, before.content, _mode(before))


def _unless_changed(before: EngineFile) -> None:
    if read_file(before.path).content != before.content:
        raise EngineConfigError(f"{before.path} has just been changed by somebody else.")


def _mode(file: EngineFile) -> int:
    try:
        return file.path.stat().st_mode & 0o777
    except OSError:
        return 0o644
