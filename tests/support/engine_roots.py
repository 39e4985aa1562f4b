"""Docker Engines of other releases of Debian, each in a root folder: see `engine_root.py`.

A root is made once, of the packages of whatever mirror this machine's apt uses, and kept beside the
tests' engines.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from gpuspawner.simulation import engine

from .built_images import engines_cache, one_at_a_time
from .requirements import cannot

PACKAGES = ("docker.io", "containerd", "runc", "iptables", "ca-certificates", "python3")
# Release -> what its packages need besides. A mirror's copy of unstable is soon out of date.
RELEASES = {
    "bookworm": [],
    "trixie": [],
    "sid": ['--aptopt=Acquire::Check-Valid-Until "false"'],
}


def engine_root(release: str) -> Path:
    """Return the root with a release's engine; it is made if it isn't there.

    Skips the test where it can't be made, as without a mirror.
    """
    if os.geteuid() != 0 or not shutil.which("mmdebstrap"):
        cannot("needs root and mmdebstrap (make test installs it)")
    root = engines_cache() / "roots" / release
    with one_at_a_time("roots"):
        if not root.exists():
            _make(release, root)
    return root


def cache_of(release: str) -> Path:
    """Return the folder of images and volumes of a release's engine: no other can read them."""
    return engines_cache() / f"of-{release}"


def version_of(release: str) -> tuple[int, int]:
    """Return the version of a release's engine: (26, 1)."""
    return engine.version(engine_root(release))


def _make(release: str, root: Path) -> None:
    new = root.with_name(f"{release}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.parent.mkdir(parents=True, exist_ok=True)
    words = ["mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    words += [*RELEASES[release], release, str(new)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(new, ignore_errors=True)
        said = [line for line in done.stderr.splitlines() if line.startswith("E:")]
        cannot(f"mmdebstrap couldn't make {release}: {' '.join(said)[-500:] or done.stderr[-500:]}")
    new.replace(root)
