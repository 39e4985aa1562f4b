"""Docker Engines of other releases of Debian, each in a root folder: see `engine_root.py`.

A root is made once, of the packages of whatever mirror this machine's apt uses, and kept beside the
tests' engines.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from gpuspawner.simulation.engine_root import make_root, version
from gpuspawner.simulation.programs import SimulationError

from .built_images import engines_cache
from .requirements import cannot

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
    try:
        make_root(release, root, RELEASES[release])
    except SimulationError as error:
        cannot(str(error))
    return root


def cache_of(release: str) -> Path:
    """Return the folder of images and volumes of a release's engine: no other can read them."""
    return engines_cache() / f"of-{release}"


def version_of(release: str) -> tuple[int, int]:
    """Return the version of a release's engine: (26, 1)."""
    return version(engine_root(release))
