"""The locks, which pin each image version's Python packages by version and hash."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from .recipe import COMMON, BuildingError, Recipe

# The locks hold for this Python; on x86-64 and on ARM, since the resolution is universal.
PYTHON = "3.11"


def write(recipes: Iterable[Recipe], *, upgrade: bool) -> list[Path]:
    """Write the locks of image versions; return the files.

    A version has the packages of its parent versions at the same versions, so that images share
    layers. Parents are locked first.

    Args:
        recipes: the image versions.
        upgrade: whether to take the newest versions that the requirements allow; else pinned
            versions that still satisfy them stay.

    Raises:
        BuildingError: uv is missing, or the requirements can't be met.
    """
    written = []
    for recipe in sorted(recipes, key=lambda recipe: len(recipe.parent_versions)):
        folder = recipe.folder
        common = f"versions/{COMMON}/requirements.lock"
        inside = recipe.relative_folder
        words = [f"{inside}/requirements.in", "-o", f"{inside}/requirements.lock"]
        if recipe.key != COMMON:
            words += [
                word
                for key in recipe.parent_versions
                for word in ("-c", f"versions/{key}/requirements.lock")
            ]
        written.append(_compile(folder, words, upgrade=upgrade))
        if recipe.key == COMMON:
            # The build begins with uv alone, in the version that the environment has too.
            words = ["-", "-o", "installer.lock", "-c", common]
            written.append(_compile(folder, words, upgrade=upgrade, given="uv\n"))
    return written


def _compile(folder: Path, words: list[str], *, upgrade: bool, given: str | None = None) -> Path:
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        raise BuildingError("writing a lock needs uv: run `pip install uv`")
    command = [
        *(uv, "pip", "compile", "--no-config", "--quiet"),
        *("--universal", "--python-version", PYTHON),
        *("--generate-hashes", "--no-emit-index-url", "--no-annotate"),
        *("--custom-compile-command", "gpuspawner image lock"),
        *("--excludes", "excludes.txt"),
        *(["--upgrade"] if upgrade else []),
        *words,
    ]
    result = subprocess.run(
        command, cwd=folder, input=given, capture_output=True, text=True, check=False
    )
    target = words[words.index("-o") + 1]
    if result.returncode:
        said = " ".join(result.stderr.split())[-600:] or "it said nothing"
        raise BuildingError(f"{target} can't be written: {said}")
    return folder / target
