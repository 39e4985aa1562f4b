"""`make lock`: renew the locks, with the newest versions that the requirements allow."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from . import packages, setup
from .console import ROOT, call, finish, say, step
from .environment import LOCKS, ensure_environment, npm

# Relative paths, for the locks' comments name them.
PROJECT = "pyproject.toml"
NOTIFY = ("--extra", "notify")
TEST = ("--extra", "test", "--extra", "postgresql", *NOTIFY)


def compile_words(uv: Path | str) -> list[str]:
    """Return the beginning of each uv call: universal locks, without this machine's settings."""
    return [
        *(str(uv), "pip", "compile", "--no-config", "--quiet", "--upgrade"),
        *("--universal", "--python-version", "3.10", "--generate-hashes"),
        *("--no-emit-index-url", "--no-emit-find-links", "--custom-compile-command", "make lock"),
    ]


# Ours at their lower bounds, for the lock after it; the tests' tools are the newest in both.
LOWEST = ".run/lowest.txt"


def locks() -> dict[str, list[str]]:
    """Return name of the lock -> the arguments for its inputs, in the order of their making."""
    return {
        "requirements/build.txt": ["requirements/build.in"],
        "requirements/run.txt": [PROJECT, "requirements/run.in"],
        "requirements/test.txt": [
            *(PROJECT, *TEST, "requirements/run.in", "-c", "requirements/run.txt"),
        ],
        "requirements/docs.txt": [
            *(PROJECT, "requirements/docs.in", "-c", "requirements/test.txt"),
        ],
        LOWEST: [PROJECT, *NOTIFY, "requirements/oldest.in", "--resolution", "lowest-direct"],
        "requirements/oldest.txt": [PROJECT, *TEST, "-c", LOWEST, "--no-annotate"],
    }


def _uv() -> Path | str:
    found = shutil.which("uv")
    if found:
        return found
    folder = ROOT / ".venv-lock"
    if not (folder / "bin" / "uv").exists():
        with step("Installing uv into .venv-lock"):
            call([sys.executable, "-m", "venv", folder], ".venv-lock can't be made")
            call([folder / "bin" / "pip", "install", "uv"], "uv can't be installed")
    return folder / "bin" / "uv"


def main() -> int:
    """Renew requirements/*.txt and package-lock.json; return the exit status."""
    os.chdir(ROOT)
    setup.begin()
    packages.install(packages.missing_for_environment())
    uv = _uv()
    for name, inputs in locks().items():
        with step(f"Writing {name}"):
            call([*compile_words(uv), *inputs, "--output-file", name], f"{name} can't be written")
    ensure_environment(setup.ENVIRONMENT, "test.txt")
    _lock_node_modules()
    say(f"Written: {LOCKS.name}/*.txt and package-lock.json. The images' locks are renewed by")
    say("  `gpuspawner image lock --upgrade`")
    return 0


def _lock_node_modules() -> None:
    # In another folder, since npm would keep the versions of the old lock and node_modules.
    with step("Writing package-lock.json"), tempfile.TemporaryDirectory() as folder:
        for name in ("package.json", ".npmrc"):
            shutil.copy(ROOT / name, folder)
        words = [*npm(setup.ENVIRONMENT), "install", "--package-lock-only", "--prefix", folder]
        call(words, "package-lock.json can't be written")
        shutil.copy(Path(folder) / "package-lock.json", ROOT)


if __name__ == "__main__":
    finish(main)
